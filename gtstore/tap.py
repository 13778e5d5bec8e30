"""``gtclient frame tap``: a proxy that shows every frame that passes, in words.

A tap listens on one address and connects to another for each connection that it gets. If it stands
in front of a manager, it opens a tap for each node too, and puts their addresses in the place of
the nodes' into the manager's replies: so a client that starts at the tap is seen in all that it
does.

Two threads a connection carry what comes, one each way, and send it on before they receive more:
so a slow reader slows its sender down, and nothing piles up here, except for one frame, which is
shown and passed on as a whole. What is no frame passes unchanged.
"""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from .connection import Connection, Deadline, describe, set_up
from .errors import ClusterError, ConnectError, ProtocolError
from .placement import format_address
from .threads import GO_ON, OVER, supervised
from .wire import messages
from .wire.codec import decode, encode
from .wire.explain import explain, summarize
from .wire.fields import TOKEN_SIZE, fields_of
from .wire.stream import HEADER_SIZE, RECEIVE_SIZE, FrameBuffer

Show = Callable[[str], None]

_CONNECT_TIMEOUT_S: Final = 5.0
_REWRITTEN: Final = (messages.Cluster.kind, messages.Owners.kind)


class Taps:
    """All taps of one program.

    Args:
        show: takes each line.
        verbose: also show each frame field by field.
        follows: open taps for the nodes that a manager's replies name.
    """

    def __init__(self, show: Show, verbose: bool = False, follows: bool = True) -> None:
        self.show = show
        self.verbose = verbose
        self.follows = follows
        self.started = time.monotonic()
        self._lock = threading.Lock()
        self._by_target: dict[tuple[str, int], Tap] = {}  # guarded by _lock
        self._connections = 0  # guarded by _lock

    def open(self, name: str, target: tuple[str, int], host: str, port: int = 0) -> Tap:
        """The tap in front of an address, made if there is none yet. Raises ClusterError."""
        with self._lock:
            if target not in self._by_target:
                self._by_target[target] = Tap(self, name, target, host, port)
            return self._by_target[target]

    def next_number(self) -> int:
        """A number for a new connection."""
        with self._lock:
            self._connections += 1
            return self._connections


class Tap:
    """One listening address, in front of another one."""

    def __init__(
        self, taps: Taps, name: str, target: tuple[str, int], host: str, port: int
    ) -> None:
        self.taps = taps
        self.name = name
        self.target = target
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family)
        except OSError as error:
            where = format_address(host, port)
            raise ClusterError(f"cannot listen on {where}: {describe(error)}") from error
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        supervised(f"tap of {self.name}", self._accept, GO_ON)

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            try:
                supervised("tapped connection", partial(self._serve, client), OVER)
            except BaseException:
                client.close()
                raise

    def _serve(self, client: socket.socket) -> None:
        number = self.taps.next_number()
        with client:
            try:
                opened = Connection.open(self.name, *self.target, Deadline(_CONNECT_TIMEOUT_S))
            except ConnectError as error:
                self.show(number, f"{self.name} cannot be reached: {error.reason}")
                return
            with opened.sock as server:
                server.settimeout(None)
                set_up(client)
                self.show(number, f"connected to {self.name}")
                shared: tuple[dict[int, float], list[str]] = ({}, [])
                there = _Way(self, number, client, server, *shared, is_request=True)
                back = _Way(self, number, server, client, *shared, is_request=False)
                thread = supervised("tapped requests", there.carry, OVER)
                back.carry()
                thread.join()

    def show(self, number: int, text: str) -> None:
        at = time.monotonic() - self.taps.started
        self.taps.show(f"{at:10.6f}  #{number}  {text}")

    def substitute(self, member: messages.Member) -> messages.Member:
        """The same member, at the address of its own tap."""
        if not member.port:
            return member
        tap = self.taps.open(f"node {member.node}", (member.host, member.port), self.host)
        return dataclasses.replace(member, host=tap.host, port=tap.port)


class _Way:
    """One direction of one connection."""

    def __init__(
        self,
        tap: Tap,
        number: int,
        source: socket.socket,
        sink: socket.socket,
        asked_at: dict[int, float],
        ends: list[str],
        is_request: bool,
    ) -> None:
        self._tap = tap
        self._number = number
        self._source = source
        self._sink = sink
        # Both directions have the same: request id -> when it passed; how the connection ended.
        self._asked_at = asked_at
        self._ends = ends
        self._is_request = is_request
        self._buffer = FrameBuffer()
        self._pending = bytearray()  # of a frame that is not whole yet

    def carry(self) -> None:
        """Pass on what comes until the sender ends; then tell the receiver so."""
        try:
            while data := self._source.recv(RECEIVE_SIZE):
                self._sink.sendall(self._take(data))
            self._sink.sendall(self._pending)
            self._sink.shutdown(socket.SHUT_WR)
            who = "the client" if self._is_request else self._tap.name
            self._end(f"{who} ends the connection")
        except OSError as error:
            self._end(f"the connection was lost: {describe(error)}")
            for sock in (self._source, self._sink):
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it has ended already

    def _end(self, how: str) -> None:
        """Say how it ends, if the other direction has not said it."""
        if not self._ends:
            self._ends.append(how)
            self._tap.show(self._number, how)

    def _take(self, data: bytes) -> bytes:
        """What is to be passed on now: whole frames, or anything once it is no stream of frames."""
        if self._buffer.error is not None:
            return data
        self._pending += data
        out = bytearray()
        for _, _, _, body in self._buffer.feed(data):
            size = HEADER_SIZE + len(body)
            frame = bytes(self._pending[:size])
            del self._pending[:size]
            out += self._pass(frame)
        if self._buffer.error is not None:
            self._show(f"{self._pending[:16].hex(' ')}: {self._buffer.error}; passed on unchanged")
            out += self._pending
            self._pending.clear()
        return bytes(out)

    def _pass(self, frame: bytes) -> bytes:
        request_id = int.from_bytes(frame[4:8], "big")
        took = ""
        if self._is_request and request_id:
            self._asked_at[request_id] = time.monotonic()
        elif request_id in self._asked_at:
            took = f"  ({(time.monotonic() - self._asked_at.pop(request_id)) * 1000:.1f} ms)"
        self._show(summarize(frame) + took)
        if self._tap.taps.verbose:
            for line in explain(_without_token(frame)):
                self._tap.taps.show("    " + line)
        follows = self._tap.taps.follows and not self._is_request and frame[2] in _REWRITTEN
        return self._with_taps(frame, request_id) if follows else frame

    def _with_taps(self, frame: bytes, request_id: int) -> bytes:
        """The manager's reply with the addresses of the nodes' taps."""
        try:
            message = decode(frame[2], frame[HEADER_SIZE:])
        except ProtocolError:
            return frame
        assert isinstance(message, messages.Cluster | messages.Owners)
        members = tuple(map(self._tap.substitute, message.members))
        return encode(dataclasses.replace(message, members=members), request_id)

    def _show(self, text: str) -> None:
        arrow = f"-> {self._tap.name}" if self._is_request else f"<- {self._tap.name}"
        self._tap.show(self._number, f"{arrow}  {text}")


def _without_token(frame: bytes) -> bytes:
    """A frame as it may be shown: a token is a secret."""
    cls = messages.MESSAGES.get(frame[2])
    fields = fields_of(cls) if cls else ()
    if fields and fields[0].wire_type.name == "token":
        return frame[:HEADER_SIZE] + bytes(TOKEN_SIZE) + frame[HEADER_SIZE + TOKEN_SIZE :]
    return frame
