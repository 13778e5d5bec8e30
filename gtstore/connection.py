"""One socket to one peer: connecting, deadlines, and OSError -> our errors.

A Connection is used by one thread at a time. ``call`` is the simple way, for one request and its
reply; session.py drives many connections at once. A connection on which anything went wrong is
closed, and never used again.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  # getaddrinfo needs it, and would load it late: it is a file
import errno
import math
import os
import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from .addresses import Search
from .errors import (
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    InvalidInput,
    RemoteProtocolError,
)
from .wire import messages
from .wire.codec import ERROR, Frame, decode, encode
from .wire.messages import KEEPALIVE_AFTER_S, KEEPALIVE_INTERVAL_S, SILENCE_MAX_S
from .wire.stream import FrameBuffer

PATIENCE_S: Final = 0.020
"""How long ``recv`` waits before a selector takes over: so long waits have exact deadlines, and
short ones cost little."""

_ADDRESS: Final = re.compile(
    r"(\[(?P<ipv6>[^\[\]]+)\]|(?P<host>[^:\[\]]+))(:(?P<port>[0-9]{1,6}))?"
)


class Deadline:
    """The absolute end of one operation; passed down, so that all of its steps share it."""

    __slots__ = ("at", "timeout_s")

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.at = time.monotonic() + timeout_s

    def remaining_s(self) -> float:
        return max(0.0, self.at - time.monotonic())

    def has_passed(self) -> bool:
        return time.monotonic() >= self.at


def parse_address(text: str, default_port: int = messages.MANAGER_PORT) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``, ``HOST`` or ``[IPV6]:PORT``. Raises InvalidInput."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise InvalidInput(f"{text!r} is no address; write HOST:PORT, for example 127.0.0.1:9001")
    port = int(match["port"] or default_port)
    if not 0 < port < 65536:
        raise InvalidInput(f"{text!r}: a port is a number from 1 to 65535")
    return match["ipv6"] or match["host"], port


def describe(error: OSError) -> str:
    """An OSError in the words of the operating system, without its number."""
    if isinstance(error, TimeoutError):
        return "timed out"
    return (error.strerror or str(error)).lower()


def is_not_yet(error: Exception) -> bool:
    """Whether a send or a receive found nothing to do in its time. A connection that the kernel
    has given up (ETIMEDOUT) raises TimeoutError, too."""
    return isinstance(error, BlockingIOError) or (
        isinstance(error, TimeoutError) and error.errno is None
    )


def set_up(sock: socket.socket, silence_max_s: float = SILENCE_MAX_S) -> None:
    """What each connection of the cluster is set up with, at both ends (PROTOCOL.md section 5): a
    peer that vanishes says nothing, and without this its connection would stay for ever. Raises
    OSError."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_AFTER_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    # It also takes the place of the number of probes that may be lost.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silence_max_s * 1000))


class Connection:
    """One TCP connection, as its opener holds it.

    ``recv`` is the socket's own method, for the hot path: it waits, but no longer than PATIENCE_S;
    then it raises TimeoutError. That limit is a poll's, with an end on the clock. SO_RCVTIMEO would
    save its system call, 0.4 microseconds, but signals that come faster would prolong it for ever,
    because Python begins an interrupted receive anew (PEP 475), and where gevent has taken the
    sockets' place it means nothing.

    ``send`` and ``recv_now`` never wait: they raise BlockingIOError. They are the system's own
    calls on ``descriptor``, since the socket's methods would poll first.
    """

    __slots__ = (
        "_ends_at", "_reasons", "_search", "_target", "address", "awaiting", "buffer",
        "descriptor", "feed", "is_connecting", "is_doubtful", "node", "outgoing", "peer",
        "queued_size", "recv", "sent_size", "sock", "try_until", "unread", "used_at", "watched",
    )  # fmt: skip

    sock: socket.socket
    recv: Callable[[int], bytes]

    def __init__(self, node: int, peer: str, address: tuple[str, int]) -> None:
        self.node = node
        self.peer = peer
        self.address = address
        self.buffer = FrameBuffer()
        self.feed = self.buffer.feed
        self.is_connecting = True
        self.descriptor = -1
        self.try_until = math.inf  # then the next address is due
        self._ends_at = math.inf
        self._search: Search | None = None
        self._target: tuple[Any, ...] = ()  # the address that is tried
        self._reasons: list[str] = []  # why others were left
        self.awaiting: dict[int, Any] = {}  # request id -> who waits for the reply
        self.is_doubtful = False  # the node may be at another address by now
        # For session.py's selector loop:
        self.outgoing: deque[Any] = deque()
        self.queued_size = 0  # bytes that were ever put into outgoing
        self.sent_size = 0  # bytes of them that the kernel took
        self.used_at = time.monotonic()  # when the manager was last asked something here
        self.watched = 0  # the selector's events
        self.unread = b""  # what was received and not looked at yet

    # --- connecting ------------------------------------------------------------------------------

    @classmethod
    def start(cls, node: int, peer: str, host: str, port: int, ends_at: float) -> Connection:
        """Begin to connect, without waiting; see ``begin``."""
        connection = cls(node, peer, (host, port))
        connection.begin(ends_at)
        return connection

    def begin(self, ends_at: float) -> None:
        """Begin to connect, without waiting, to be there by a time on the monotonic clock: to one
        address of the host after the other, each for its share of the time.

        Call ``go_on_connecting`` when ``descriptor`` can be read (``is_resolving``: the name is
        being looked up) or written, and when ``try_until`` has passed, until it ``is_connecting``
        no more. Raises ConnectError if nothing can come of it.
        """
        self._ends_at = ends_at
        try:
            self._search = Search(*self.address)
        except UnicodeError as error:
            raise ConnectError(self.peer, f"{self.address[0]!r} is no host name") from error
        except OSError as error:
            raise ConnectError(self.peer, describe(error)) from error
        self._try_next()

    @property
    def is_resolving(self) -> bool:
        """Whether it waits for the host's address, not for an answer from there."""
        return self.is_connecting and not hasattr(self, "sock")

    def waits_for(self) -> str:
        """What there was none of, if nothing more comes."""
        if self.is_resolving:
            return f"no answer from the name server about {self.address[0]!r}"
        return "no connection" if self.is_connecting else "no answer"

    def is_due(self) -> bool:
        """Whether ``try_until`` has passed."""
        return time.monotonic() >= self.try_until

    def go_on_connecting(self) -> None:
        """See ``begin``. Raises ConnectError, closed, if no address is left to try."""
        if not self.is_resolving:
            try:
                if self._has_connected():
                    self._take_into_use()
                    return
                if not self.is_due():
                    return
                reason = "no connection in time"
            except OSError as error:
                reason = describe(error)
            self._give_up(reason)
        self._try_next()

    def _try_next(self) -> None:
        """Begin to connect to the next address; or wait until there is one."""
        assert self._search is not None
        while (found := self._search.take()) is not None:
            family, self._target = found
            try:
                kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
                self.sock = socket.socket(family, kind)
                code = self.sock.connect_ex(self._target)
            except OSError as error:  # too many open files, or no such family here
                self._give_up(describe(error))
                continue
            if code not in (0, errno.EINPROGRESS):
                self._give_up(os.strerror(code).lower())
                continue
            self.descriptor = self.sock.fileno()
            self.try_until = math.inf
            if not self._search.is_last:
                now = time.monotonic()
                self.try_until = now + self._search.share_s(self._ends_at - now)
            return
        if self._search.bell is None:
            why = self._search.error
            if why is not None:
                self._reasons.append(describe(why) if isinstance(why, OSError) else str(why))
            self.close()
            raise ConnectError(self.peer, "; ".join(self._reasons) or "it has no address") from why
        self.descriptor = self._search.bell.descriptor
        self.try_until = math.inf

    def _give_up(self, reason: str) -> None:
        """Leave an address."""
        if hasattr(self, "sock"):
            self.descriptor = -1
            self.sock.close()
            del self.sock
        is_only = not self._reasons and self._search is not None and self._search.is_last
        self._reasons.append(reason if is_only else f"{self._target[0]}: {reason}")

    def _has_connected(self) -> bool:
        """Raises OSError if there will be no connection."""
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        try:
            other_end = self.sock.getpeername()
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            return False
        # A port from the range of outgoing connections, where nobody listens, may by chance connect
        # to itself.
        if self.sock.getsockname() == other_end:
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        return True

    def _take_into_use(self) -> None:
        assert self._search is not None
        self.sock.settimeout(PATIENCE_S)
        set_up(self.sock)
        self.recv = self.sock.recv
        self._search.remember()
        self._search = None
        self.is_connecting = False

    # --- sending and receiving -------------------------------------------------------------------

    def send(self, data: bytes | memoryview) -> int:
        """Send as much as the kernel takes at once, and return how many bytes that are."""
        return os.write(self.descriptor, data)

    def recv_now(self, size: int) -> bytes:
        """Receive what is there, b"" at the end."""
        return os.read(self.descriptor, size)

    def close(self) -> None:
        self.descriptor = -1  # the number may soon be another file's
        self._search = None
        if hasattr(self, "sock"):
            self.sock.close()

    # --- one request at a time -------------------------------------------------------------------

    @classmethod
    def open(cls, peer: str, host: str, port: int, deadline: Deadline) -> Connection:
        """Connect and wait until it is there. Raises ConnectError."""
        connection = cls.start(0, peer, host, port, deadline.at)
        try:
            while connection.is_connecting:
                now = time.monotonic()
                if now >= deadline.at:
                    text = f"{connection.waits_for()} within {deadline.timeout_s:g} s"
                    raise ConnectError(peer, text)
                poll = select.poll()
                events = select.POLLIN if connection.is_resolving else select.POLLOUT
                poll.register(connection.descriptor, events)
                poll.poll(math.ceil((min(deadline.at, connection.try_until) - now) * 1000))
                connection.go_on_connecting()
        except BaseException:
            connection.close()
            raise
        return connection

    def call(self, request: messages.Message, deadline: Deadline) -> messages.Message:
        """Send one request and return its reply, which may be an ERROR.

        Raises:
            DeadlineExceeded: no reply in time. The connection is closed.
            ConnectionLost: the connection ended, or the peer does not speak the protocol. It is
                closed.
        """
        try:
            self.sock.settimeout(deadline.remaining_s() or 1e-6)
            self.sock.sendall(encode(request, 1))
            while True:
                self.sock.settimeout(deadline.remaining_s() or 1e-6)
                data = self.sock.recv(self.buffer.receive_size)
                frames = self.buffer.feed(data)
                if frames and frames[0][1:3] == (0, 1):
                    return decode(frames[0][0], frames[0][3])
                if frames or self.buffer.error or not data:
                    raise self.ended(data, frames)
        except OSError as error:
            self.close()
            if is_not_yet(error):
                text = f"no answer within {deadline.timeout_s:g} s"
                raise DeadlineExceeded(self.peer, text) from error
            raise ConnectionLost(self.peer, describe(error)) from error
        except (ConnectionLost, RemoteProtocolError) as error:
            self.close()
            raise ConnectionLost(self.peer, str(error)) from error

    def take_in(self, data: bytes, answer: Callable[[Any, Frame], None]) -> ConnectionLost | None:
        """Hand out what was received, nothing means the end, to those who are ``awaiting`` it.

        Returns None, or why nothing more can be received here: the caller closes the connection.
        """
        is_told_to_close = False
        for frame in self.buffer.feed(data):
            if is_about_all(frame):
                # About the connection, not a request: nothing that waits here was or will be done.
                for waiter in self.awaiting.values():
                    answer(waiter, frame)
                self.awaiting.clear()
                is_told_to_close = True
                break
            if frame[1] or frame[2] not in self.awaiting:
                return self.ended(data, [frame])
            answer(self.awaiting.pop(frame[2]), frame)
            if frame[0] == ERROR:
                is_told_to_close |= closes(frame)
                self.is_doubtful |= code_of(frame) == messages.STALE_EPOCH
        is_surplus = self.buffer.size > 0 and not self.awaiting
        if is_told_to_close or not data or self.buffer.error is not None or is_surplus:
            return self.ended(b"", [])
        return None

    def ended(self, data: bytes, frames: list[Frame]) -> ConnectionLost:
        """Why nothing more can be received: what to raise."""
        if frames:
            return ConnectionLost(self.peer, _why_useless(frames[0]))
        if self.buffer.error is not None:
            return ConnectionLost(self.peer, str(self.buffer.error))
        assert not data
        if not self.buffer.size:
            return ConnectionLost(self.peer, "the connection was closed")
        return ConnectionLost(self.peer, "the connection was closed within a reply")


def is_reply(frame: Frame, request_id: int) -> bool:
    """Whether this frame answers that request. No version 1 reply has header flags."""
    return frame[1] == 0 and frame[2] == request_id


def is_about_all(frame: Frame) -> bool:
    """Whether this is an ERROR about the connection itself."""
    return frame[0] == ERROR and is_reply(frame, 0)


def code_of(frame: Frame) -> int:
    """An ERROR reply's code; 0 for other frames.

    After STALE_EPOCH the node's address is looked up again: whoever answers so may be another
    cluster's node, at the address where this one was.
    """
    return int.from_bytes(frame[3][:2], "big") if frame[0] == ERROR else 0


def closes(frame: Frame) -> bool:
    """Whether this is an ERROR reply after which the peer closes the connection."""
    row = messages.ERRORS.get(code_of(frame))
    return row is not None and row.closes


def _why_useless(frame: Frame) -> str:
    """Why a connection on which this was received, which nobody awaits, is of no use."""
    kind, flags, request_id, body = frame
    if flags:
        return f"a reply with the flags {flags}"
    if kind != ERROR or request_id:
        return f"a reply to a request that was not sent: {request_id}"
    try:
        error = decode(ERROR, body)
    except RemoteProtocolError as malformed:
        return f"it refuses the connection; why cannot be read: {malformed}"
    assert isinstance(error, messages.Error)
    return f"it refuses the connection: {error.message}"


def call_once(
    peer: str, host: str, port: int, request: messages.Message, timeout_s: float
) -> messages.Message:
    """Open a connection for one request, and return the reply; see open and call for the errors."""
    deadline = Deadline(timeout_s)
    connection = Connection.open(peer, host, port, deadline)
    try:
        return connection.call(request, deadline)
    finally:
        connection.close()
