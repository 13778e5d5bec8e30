"""One thread that serves many connections, as long as what comes on them is usual.

Each connection has a thread of its own (server.py), which is the fastest way for a few: it sleeps
in its receive, and answers at once. But of a thousand threads that have something to do, each waits
for the interpreter's lock, and wakes up again and again to see whether it is free; these switches
cost more than all the requests, and a reply may take seconds. So a thread may *lend* its connection
to the reactor, and sleep: the reactor receives and handles what comes, as long as that is whole
frames of the usual kinds. At anything else, be it half a frame or the end, it gives the connection
back to its thread, with what it has received.
"""

from __future__ import annotations

import logging
import select
import socket
from _thread import LockType, allocate_lock
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from .server import Handler, TokenLock, unpack_words
from .threads import END, Supervised
from .wire.codec import COMMIT, EXECUTE, GET, WRITE, LongReply, head_word
from .wire.messages import KIB
from .wire.stream import HEADER_SIZE

logger = logging.getLogger("gtstore.reactor")

_USUAL: Final = frozenset((GET, WRITE, COMMIT, EXECUTE))
HELD_SIZE_MAX: Final = 4 * KIB
"""A thread with more than so many bytes of answers sends them itself."""
_RECEIVE_SIZE: Final = 4 * KIB
"""Who sends as much as this at once is better served by its thread, which receives more."""
_ENDED_AT_ONCE: Final = 4
_ENDED_PAUSE_S: Final = 0.001
"""So many connections that have ended are given back at once, and then the next ones after that
time: their threads all want the interpreter's lock to end, too."""


class Lent:
    """A connection that is lent, whose thread is at the gate until it is given back."""

    __slots__ = ("admit", "answers", "data", "gate", "is_polled", "long_part", "sock")

    def __init__(self, sock: socket.socket | None, answers: bytes = b"") -> None:
        self.sock = sock
        self.admit: Callable[[], bool] | None = None  # see server.Outbox.adopt
        self.answers = answers
        """What is to be sent before anything more is received."""
        self.long_part = b""
        """And this after it, by its thread."""
        self.gate: LockType = allocate_lock()
        self.gate.acquire()
        self.data: bytes | None = None
        """What was received and is its thread's to handle, after the answers were sent."""
        self.is_polled = False


class Reactor:
    """The thread of one node.

    Args:
        lock: held while a handler runs.
        handlers: kind -> handler, of which those of the usual kinds are called here; they have to
            be there when it starts.
    """

    def __init__(self, lock: TokenLock, handlers: Mapping[int, Handler]) -> None:
        self._lock = lock
        self._all_handlers = handlers
        self._handlers: dict[int, Handler] = {}  # head word -> handler
        self._lent: dict[socket.socket, Lent] = {}
        self._poll = select.epoll()
        self._polled: dict[int, Lent] = {}  # by the socket's number
        self._ended: deque[Lent] = deque()
        self._thread = Supervised("reactor", self._run, END)

    def start(self) -> None:
        for kind in _USUAL & self._all_handlers.keys():
            self._handlers[head_word(kind)] = self._all_handlers[kind]
        self._thread.start()

    # --- for the threads of connections ----------------------------------------------------------

    def lend(self, sock: socket.socket, answers: bytes, is_whole: bool) -> bool:  # noqa: ARG002
        """See server.Outbox: nothing here has to wait."""
        return False

    def wait(self) -> None:
        """See server.Outbox."""

    def adopt(self, sock: socket.socket, admit: Callable[[], bool] | None = None) -> None:
        """See server.Outbox."""
        if sock not in self._lent:
            lent = self._lent[sock] = self._new(sock)
            lent.admit = admit
            self._start_polling(lent)

    def receive(self, sock: socket.socket, size: int) -> bytes:
        """What comes next on a connection, up to that size, or more of one that was lent; b"" at
        its end.

        Raises OSError; ConnectionAbortedError if its last answers must not be sent.
        """
        lent = self._lent.get(sock)
        if lent is None:
            return sock.recv(size)
        lent.gate.acquire()
        del self._lent[sock]
        self._check(lent)
        try:
            for part in (lent.answers, lent.long_part):
                if part:  # the peer does not take it at once
                    sock.sendall(part)
        except BlockingIOError as error:  # which is no end, where a receive raises it
            raise TimeoutError("the peer does not take its answers") from error
        return sock.recv(size) if lent.data is None else lent.data

    # --- what a heir of this class may do otherwise ----------------------------------------------

    def _new(self, sock: socket.socket) -> Lent:
        return Lent(sock)

    def _check(self, lent: Lent) -> None:
        """Raise ConnectionAbortedError if the answers of one that was given back must not be
        sent."""

    def _has_handled(self, lent: Lent) -> None:
        """See to the answers to what was just handled."""
        self._go_on(lent)

    def _on_bell(self) -> None:
        """Something else is there than a connection."""

    # --- the reactor's thread --------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._serve_ready(None)

    def _serve_ready(self, timeout_s: float | None) -> None:
        """Wait until something comes, and go on with all that has come."""
        if self._ended:
            timeout_s = _ENDED_PAUSE_S if timeout_s is None else min(timeout_s, _ENDED_PAUSE_S)
            for _ in range(min(_ENDED_AT_ONCE, len(self._ended))):
                self._give_back(self._ended.popleft())
        for number, _ in self._poll.poll(timeout_s):
            lent = self._polled.get(number)
            if lent is None:
                self._on_bell()
            else:
                self._serve(lent)

    def _serve(self, lent: Lent) -> None:
        """Receive and handle what is there; then it is answered, now or later, or given back."""
        assert lent.sock
        if lent.answers or lent.data is not None:  # it has sent more without waiting for them
            self._stop_polling(lent)
            return
        try:
            data = lent.sock.recv(_RECEIVE_SIZE, socket.MSG_DONTWAIT)
        except OSError:
            self._give_back(lent)  # its thread finds out what it is
            return
        if not data:
            lent.data = data
            self._stop_polling(lent)
            self._ended.append(lent)
            return
        answers: list[bytes] = []
        answers_size = at = 0
        size = len(data) if len(data) < _RECEIVE_SIZE and self._is_admitted(lent, data) else 0
        with self._lock:
            try:
                while size - at >= HEADER_SIZE and answers_size <= HELD_SIZE_MAX:
                    word, request_id, length = unpack_words(data, at)
                    body_at = at + HEADER_SIZE
                    end = body_at + length
                    handler = self._handlers.get(word)
                    if handler is None or end > size:
                        break
                    if answer := handler(request_id, data[body_at:end]):
                        answers.append(answer)
                        answers_size += len(answer)
                    at = end
            except LongReply as reply:
                # It is done, so it must not be handled once more: an append would be another one
                # if somebody else's came between (N4).
                answers.append(reply.head)
                lent.long_part = reply.rest
                at = end
            except Exception as error:
                # Nothing was done. Its thread handles this request once more, and says what is
                # wrong with it.
                logger.debug("a request is left to its thread: %s", type(error).__name__)
        lent.answers = answers[0] if len(answers) == 1 else b"".join(answers)
        lent.data = data[at:] or None
        self._has_handled(lent)

    def _is_admitted(self, lent: Lent, data: bytes) -> bool:
        """Whether it may be served: what begins so, if it has to be asked for."""
        if lent.admit is None:
            return True
        if len(data) < HEADER_SIZE or unpack_words(data)[0] not in self._handlers:
            return False
        if not lent.admit():
            return False
        lent.admit = None
        return True

    def _go_on(self, lent: Lent) -> None:
        """Send its answers, on which nothing waits any more."""
        assert lent.sock
        if lent.answers:
            try:
                sent = lent.sock.send(lent.answers, socket.MSG_DONTWAIT)
            except OSError:
                sent = 0  # no room, or no peer
            lent.answers = lent.answers[sent:]
        if lent.answers or lent.long_part or lent.data is not None:
            self._give_back(lent)
        elif not lent.is_polled:
            self._start_polling(lent)

    def _start_polling(self, lent: Lent) -> None:
        assert lent.sock
        number = lent.sock.fileno()
        lent.is_polled = True
        self._polled[number] = lent
        self._poll.register(number, select.EPOLLIN)

    def _stop_polling(self, lent: Lent) -> None:
        assert lent.sock
        if lent.is_polled:
            number = lent.sock.fileno()
            lent.is_polled = False
            del self._polled[number]
            self._poll.unregister(number)

    def _give_back(self, lent: Lent) -> None:
        """To its thread."""
        if lent.sock:
            self._stop_polling(lent)
        lent.gate.release()
