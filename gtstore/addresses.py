"""Where hosts are: names become addresses, and nobody waits for a name server beyond its deadline.

getaddrinfo takes as long as the name servers do, and nothing ends it. So a name is looked up in a
thread of its own, for all who ask meanwhile; one that comes later asks again, beside it, for the
name server may be there again. Whoever needs it waits until a Bell can be read, as for a socket: in
a selector, in an event loop, or with poll, and with a deadline in each.

The address of a name at which somebody answered last is remembered, and tried first, while the name
is looked up anew. So a name server that is silent for a while holds up nobody who was there before.

Nothing here takes a lock: lanes.py says why.
"""

from __future__ import annotations

import math
import os
import socket
import time
from typing import Any, Final, TypeAlias

from .threads import OVER, supervised

Address: TypeAlias = tuple[int, tuple[Any, ...]]
"""A family, and an address as that family's sockets take it."""

_ASK_AGAIN_S: Final = 0.5
"""A look-up that takes longer than this is begun once more for whoever comes then."""

_good: Final[dict[str, Address]] = {}  # by host, with port 0
_lookups: Final[dict[str, Lookup]] = {}  # those that are under way, by host


class Bell:
    """A file that can be read once it was rung. It is closed when nobody has it any more: so never
    while another thread rings it."""

    __slots__ = ("descriptor",)

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def ring(self) -> None:
        os.eventfd_write(self.descriptor, 1)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class Lookup:
    """A question to the name servers. The first of its threads that has an answer ends it."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._asked_at = -math.inf
        self.found: list[Address] = []
        self.error: Exception | None = None
        self.is_done = False
        self._bells: list[Bell] = []

    def ring_when_done(self, bell: Bell) -> None:
        self._bells.append(bell)
        if self.is_done:
            self._ring()

    def ask(self) -> None:
        """Ask, unless that was done just now. Raises OSError."""
        now = time.monotonic()
        if now < self._asked_at + _ASK_AGAIN_S:
            return
        self._asked_at = now
        try:
            # A daemon: a program can end while a name server is silent.
            supervised(f"look up {self.host}", self._run, OVER)
        except (RuntimeError, MemoryError) as error:
            self._end([], OSError(str(error)))
            raise OSError(str(error)) from error

    def _run(self) -> None:
        try:
            found = _resolve(self.host)
        except Exception as error:
            self._end([], error)
        else:
            if _good.get(self.host) not in found:
                _good.pop(self.host, None)  # what is there has another name by now
            self._end(found, None)

    def _end(self, found: list[Address], error: Exception | None) -> None:
        if not self.is_done:
            self.found, self.error = found, error
            _lookups.pop(self.host, None)
            self.is_done = True
        self._ring()

    def _ring(self) -> None:
        """Also who joins at this moment is told, by this thread or by its own."""
        while self._bells:
            try:
                self._bells.pop().ring()
            except IndexError:
                pass


class Search:
    """The addresses of a host, one after the other, for one connection.

    Raises OSError if there can be no look-up, UnicodeError for an impossible name.
    """

    def __init__(self, host: str, port: int) -> None:
        # On this machine "localhost" may mean ::1 first, where nobody listens by default.
        self._host = "127.0.0.1" if host == "localhost" else host
        self._port = port
        self._tried: list[Address] = []
        self._lookup: Lookup | None = None
        self._left: list[Address] = []
        self.bell: Bell | None = None
        """Rings when there is more to take; None: there is all that there will be."""
        try:
            self._left = _resolve(self._host, socket.AI_NUMERICHOST)
        except OSError:  # no number, so a name
            self.bell = Bell()
            self._lookup = _lookups.setdefault(self._host, Lookup(self._host))
            self._lookup.ask()
            self._lookup.ring_when_done(self.bell)
            if self._host in _good:
                self._left.append(_good[self._host])

    @property
    def error(self) -> Exception | None:
        """Why the name could not be looked up, if so."""
        return self._lookup.error if self._lookup else None

    @property
    def is_last(self) -> bool:
        """Whether nothing can follow on what was taken."""
        self._take_in()
        return not self._left and self.bell is None

    def share_s(self, left_s: float) -> float:
        """How long to try what was taken, of the time that is left: so that there is as much for
        each of the others, as Go's dialer does it."""
        return left_s / (1 + max(len(self._left), self.bell is not None))

    def take(self) -> Address | None:
        """The next one to try; None if there is none, or none yet."""
        self._take_in()
        if not self._left:
            return None
        self._tried.append(self._left.pop(0))
        family, (host, _, *rest) = self._tried[-1]
        return family, (host, self._port, *rest)

    def _take_in(self) -> None:
        if self.bell is not None and self._lookup is not None and self._lookup.is_done:
            self.bell = None
            for address in self._lookup.found:
                if address not in self._tried and address not in self._left:
                    self._left.append(address)

    def remember(self) -> None:
        """Somebody answers at what was taken last."""
        if self._lookup is not None:
            _good[self._host] = self._tried[-1]


def _resolve(host: str, flags: int = 0) -> list[Address]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
    return [(family, address) for family, _, _, _, address in found]


os.register_at_fork(after_in_child=_lookups.clear)  # their threads are the parent's
