"""Both ends of a connection, for tests: a plain client, and servers that do what a test says."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TypeAlias

from gtstore.wire import messages
from gtstore.wire.codec import Frame, decode, encode, error_detail
from gtstore.wire.stream import FrameBuffer

PONG = messages.Pong(2, 1, 1, 1, 1, 1, 1, 1, 0)

Script: TypeAlias = Callable[[socket.socket], None]
"""What a Peer does with an accepted connection."""
Answer: TypeAlias = Callable[[socket.socket, int, bytes], None]
"""What becomes of a request: it is given the connection, the request's id and its body. An OSError
closes the connection."""


class Talk:
    """A plain client of one connection.

    ``receive_size`` limits how much the system takes in for a client that does not read.
    """

    def __init__(self, port: int, receive_size: int | None = None) -> None:
        self.sock = socket.socket()
        if receive_size is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_size)
        self.sock.settimeout(10)
        self.sock.connect(("127.0.0.1", port))
        self._buffer = FrameBuffer()
        self._frames: list[Frame] = []

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, *frames: bytes) -> None:
        self.sock.sendall(b"".join(frames))

    def reply(self) -> tuple[int, messages.Message] | None:
        """The next reply with its request id; None at the end of the connection."""
        while not self._frames:
            data = self.sock.recv(65536)
            if not data:
                return None
            self._frames += self._buffer.feed(data)
        kind, _, request_id, body = self._frames.pop(0)
        return request_id, decode(kind, body)

    def error(self) -> tuple[int, str, object]:
        """The next reply, which is an ERROR: its request id, name and detail."""
        answer = self.reply()
        assert answer is not None
        request_id, message = answer
        assert isinstance(message, messages.Error)
        return request_id, messages.ERRORS[message.code].name, error_detail(message)

    def rest(self) -> list[tuple[int, messages.Message]]:
        """All further replies, up to the end of the connection."""
        replies = []
        while (answer := self.reply()) is not None:
            replies.append(answer)
        return replies


class FakePeer:
    """A server with an answer for each kind of request, and a thread for each connection."""

    def __init__(self) -> None:
        self.answers: dict[int, Answer] = {}
        self.greeting: Callable[[socket.socket], None] | None = None
        self.bad_kinds: set[int] = set()
        """After one of these, a connection must not be used again."""
        self.reused: list[int] = []
        """The kinds of requests that came over such a connection all the same."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def behave(self, answers: dict[int, Answer]) -> None:
        """Answer these kinds like that from now on."""
        self.answers = {**self.answers, **answers}

    def close(self) -> None:
        for sock in (self._listener, *self._open):
            with contextlib.suppress(OSError):  # closed already
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._open.add(sock)
                self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
                self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        buffer = FrameBuffer()
        is_bad = False
        with sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.greeting is not None:
                self.greeting(sock)
            while data := sock.recv(65536):
                for kind, _, request_id, body in buffer.feed(data):
                    if is_bad:
                        self.reused.append(kind)
                    is_bad |= kind in self.bad_kinds
                    self.answers[kind](sock, request_id, body)
        self._open.discard(sock)


def raw(data: Callable[[int], bytes]) -> Answer:
    """Bytes, made from the request's id."""
    return lambda sock, request_id, _: sock.sendall(data(request_id))


def says(message: messages.Message) -> Answer:
    """The right form, whatever the content."""
    return raw(lambda request_id: encode(message, request_id))


class Peer:
    """A server whose behaviour is a function of the accepted socket, called once a connection."""

    def __init__(self, *scripts: Script) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.accepted = 0
        self._open = self.listener
        self._scripts = scripts
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for script in self._scripts:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._open = sock
            with sock:
                try:
                    script(sock)
                except (OSError, StopIteration):
                    pass

    def close(self) -> None:
        for sock in (self.listener, self._open):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already
        self._thread.join()
        self.listener.close()


def frames_of(sock: socket.socket) -> Iterator[tuple[int, int]]:
    """The requests that arrive: kind and request id."""
    buffer = FrameBuffer()
    while data := sock.recv(65536):
        for kind, _, request_id, _ in buffer.feed(data):
            yield kind, request_id


def answer(sock: socket.socket) -> None:
    """A good node: ACK for every WRITE, PONG for every PING."""
    for kind, request_id in frames_of(sock):
        if kind == messages.Write.kind:
            sock.sendall(encode(messages.Ack(), request_id))
        elif kind == messages.Ping.kind:
            sock.sendall(encode(PONG, request_id))


def hold(sock: socket.socket) -> None:
    """Read everything, answer nothing."""
    for _ in frames_of(sock):
        pass


def one_reply(data: Callable[[int], bytes]) -> Script:
    """Answer the first request with these bytes, and close."""

    def script(sock: socket.socket) -> None:
        _, request_id = next(frames_of(sock))
        sock.sendall(data(request_id))

    return script
