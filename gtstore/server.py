"""The socketserver shell of nodes and managers: accept, a thread a connection, limits, drain.

Each connection's loop receives a large block, handles every whole frame in it, and sends all answers
with one send. It knows no message: a role gives it a table, kind -> handler, and each handler turns
a request id and a body into the bytes of the reply, b"" for none.

What keeps one peer from hurting the others (PROTOCOL.md section 5): a frame that was begun must be whole
in time; a peer that does not read its answers is not read from either, and closed after the same
time; a connection that has sent a counted kind counts against the limit of connections, and only
a few more can be open for everything else.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, TypeAlias, get_type_hints

from .connection import describe, format_address
from .errors import ClusterError, RemoteProtocolError
from .wire import messages
from .wire.codec import Frame, decode, encode, error_frame, unknown_kind
from .wire.stream import FrameBuffer

logger = logging.getLogger("gtstore.server")

Handler: TypeAlias = Callable[[int, bytes], bytes]

_FRAME_TIMEOUT: Final = struct.pack("ll", messages.FRAME_TIMEOUT_S, 0)


def on_message(handle: Callable[[Any], messages.Message]) -> dict[int, Handler]:
    """The table's row for a handler of one message class, named by its argument's annotation.

    The general way, through the codec; the node's data requests have handlers on the bytes.
    """
    (cls,) = (hint for name, hint in get_type_hints(handle).items() if name != "return")

    def handler(request_id: int, body: bytes) -> bytes:
        return encode(handle(decode(cls.kind, body)), request_id)

    return {cls.kind: handler}


class FrameServer(socketserver.ThreadingTCPServer):
    """Serves frames on one address.

    Args:
        host, port: where to listen; port 0 takes a free one, see ``port``.
        handlers: kind -> handler. A handler may raise RemoteProtocolError for a typed refusal.
        counted: the kinds whose senders count against ``connections_max``.

    Raises ClusterError if the address cannot be had.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(
        self,
        host: str,
        port: int,
        handlers: Mapping[int, Handler],
        counted: Collection[int] = (),
        connections_max: int = messages.CONNECTIONS_MAX,
    ) -> None:
        self.handlers = handlers
        self.counted = counted
        self.connections_max = connections_max
        self.lock = threading.Lock()
        self.open_sockets: set[socket.socket] = set()  # guarded by lock
        self.counted_connections = 0  # guarded by lock
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _FrameHandler)
        except OSError as error:
            where = format_address(host, port)
            raise ClusterError(f"cannot listen on {where}: {describe(error)}") from error

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port: int = self.server_address[1]
        return port

    def start(self) -> None:
        """Serve in a thread of its own."""
        threading.Thread(target=self.serve_forever, args=(0.2,), daemon=True).start()

    def drain(self, timeout_s: float = 1.0) -> None:
        """Stop: accept no more, answer the requests that have arrived, close."""
        self.shutdown()
        self.server_close()
        with self.lock:
            for sock in self.open_sockets:
                try:
                    sock.shutdown(socket.SHUT_RD)
                except OSError:
                    pass  # the peer was faster
        end = time.monotonic() + timeout_s
        while self.open_sockets and time.monotonic() < end:
            time.sleep(0.005)

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        with self.lock:
            is_free = len(self.open_sockets) < self.connections_max + messages.CONNECTIONS_RESERVED
            if is_free:
                self.open_sockets.add(request)
        if not is_free:
            try:
                request.send(_busy(0, self.connections_max), socket.MSG_DONTWAIT)
            except OSError:
                pass
        return is_free

    def shutdown_request(self, request: Any) -> None:
        with self.lock:
            self.open_sockets.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        logger.exception("internal error on the connection from %s", client_address)

    def count_in(self) -> bool:
        """Take one of the counted connections' places, if there is one."""
        with self.lock:
            is_free = self.counted_connections < self.connections_max
            self.counted_connections += is_free
        return is_free

    def count_out(self) -> None:
        with self.lock:
            self.counted_connections -= 1


def _busy(request_id: int, connections_max: int) -> bytes:
    return error_frame(
        request_id,
        messages.BUSY,
        f"all {connections_max} connections are taken (--max-connections)",
        messages.BusyDetail(connections_max),
    )


class _Closing(Exception):
    """Leave the connection's loop, after sending what has been answered so far."""


class _FrameHandler(socketserver.BaseRequestHandler):
    """One connection, in its own thread."""

    server: FrameServer
    request: socket.socket

    def setup(self) -> None:
        self._buffer = FrameBuffer()
        self._answers: list[bytes] = []
        self._answers_size = 0
        self._is_counted = False
        self._begun_at = 0.0  # when the frame that is under way was begun
        self._is_hurried = False  # whether the next receive has less than the whole time
        sock = self.request
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # With these two a blocking receive or send returns after that time: no poll before each one.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _FRAME_TIMEOUT)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _FRAME_TIMEOUT)

    def handle(self) -> None:
        recv = self.request.recv
        buffer = self._buffer
        try:
            while True:
                try:
                    data = recv(buffer.receive_size)
                except BlockingIOError:
                    data = None
                frames = buffer.feed(data) if data else []
                if frames:
                    self._begun_at = 0.0
                    self._handle(frames)
                if buffer.error is not None:
                    self._refuse(0, buffer.error)
                if self._answers:
                    self._send()
                if data == b"":
                    return
                if not buffer.is_empty or self._is_hurried:
                    self._watch_frame()
        except _Closing:
            self._send()
        except OSError as error:
            logger.debug("connection from %s: %s", self.client_address, describe(error))

    def finish(self) -> None:
        if self._is_counted:
            self.server.count_out()

    def _handle(self, frames: list[Frame]) -> None:
        handlers = self.server.handlers
        for kind, flags, request_id, body in frames:
            try:
                handler = handlers.get(kind)
                if handler is None:
                    raise unknown_kind(kind)
                if flags:
                    raise RemoteProtocolError(
                        messages.UNKNOWN_FLAGS, f"the header's flags are {flags}, not 0"
                    )
                if not self._is_counted and kind in self.server.counted:
                    self._count(request_id)
                answer = handler(request_id, body)
            except RemoteProtocolError as error:
                self._refuse(request_id, error)
            except _Closing:
                raise
            except Exception:
                logger.exception("internal error in a request of kind 0x%02x", kind)
                text = "an error of the program; its log says more"
                self._refuse(request_id, RemoteProtocolError(messages.INTERNAL, text, closes=True))
            else:
                if answer:
                    self._answers.append(answer)
                    self._answers_size += len(answer)
                    if self._answers_size > messages.IN_FLIGHT_SIZE_MAX:
                        self._send()

    def _count(self, request_id: int) -> None:
        if not self.server.count_in():
            self._answers.append(_busy(request_id, self.server.connections_max))
            raise _Closing
        self._is_counted = True

    def _refuse(self, request_id: int, error: RemoteProtocolError) -> None:
        self._answers.append(error_frame(request_id, error.error_code, str(error), error.detail))
        if error.closes:
            raise _Closing

    def _send(self) -> None:
        answers = self._answers
        if answers:
            self.request.sendall(answers[0] if len(answers) == 1 else b"".join(answers))
            answers.clear()
            self._answers_size = 0

    def _watch_frame(self) -> None:
        """A frame has been begun: it must be whole in time. Or it was ended: there is time again."""
        now = time.monotonic()
        if not self._begun_at:
            self._begun_at = now
            if not self._is_hurried:
                return  # the next receive has the whole time anyway
        self._is_hurried = not self._buffer.is_empty
        remaining_s = float(messages.FRAME_TIMEOUT_S)
        if self._is_hurried:
            remaining_s += self._begun_at - now
        else:
            self._begun_at = 0.0
        if remaining_s <= 0:
            text = f"a frame was not whole within {messages.FRAME_TIMEOUT_S} s"
            self._refuse(0, RemoteProtocolError(messages.FRAME_TIMEOUT, text, closes=True))
        timeout = struct.pack("ll", int(remaining_s), int(remaining_s % 1 * 1_000_000) + 1)
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
