"""The socketserver shell of nodes and managers: accept, a thread a connection, limits, drain.

Each connection's loop receives a large block, handles every whole frame in it, and sends all
answers with one send. It knows no message: a role gives it a table, kind -> handler, and each
handler turns a request id and a body into the bytes of the reply, b"" for none.

What keeps one peer from hurting the others (PROTOCOL.md section 5): a frame that was begun must be
whole in time; a peer that does not read its answers is not read from either, and closed after the
same time; only a few long frames are received at once, and a long entry is not copied to be sent,
so that many connections do not cost much memory either; a connection that has sent a counted kind
counts against the limit of connections, and only a few more can be open for everything else: of
these the ones that are silent for long are closed, and the most silent one when another one comes.
"""

from __future__ import annotations

import errno
import heapq
import hmac
import logging
import math
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar, get_type_hints

from .allocator import Trimmer
from .connection import describe, set_up
from .errors import ClusterError, RemoteProtocolError
from .placement import format_address
from .threads import GO_ON, OVER, supervised
from .wire import messages
from .wire.codec import (
    HEADER_WORDS,
    LongReply,
    decode,
    encode,
    error_frame,
    head_word,
    unknown_kind,
)
from .wire.stream import HEADER_SIZE, RECEIVE_SIZE, SHORT_RECEIVE_SIZE, FrameBuffer

logger = logging.getLogger("gtstore.server")

Handler: TypeAlias = Callable[[int, bytes], bytes]
Result = TypeVar("Result")

unpack_words: Final = HEADER_WORDS.unpack_from

_SMALL_ANSWER_SIZE: Final = 64 * messages.KIB
TURN_S: Final = 0.000_2
_TURN_EACH_S: Final = 0.000_01
"""How long a thread may go on while another one waits for the interpreter's lock; with many
connections so long for each of them, since each thread that waits wakes up after every turn."""
_ANSWERS_SIZE_MAX: Final = 64 * messages.KIB
_CROWD: Final = 12
"""From so many connections on one thread serves them all (reactor.py)."""
_SMALL_ANSWERS_MAX: Final = messages.IN_FLIGHT_SIZE_MAX // _SMALL_ANSWER_SIZE
"""No more than so many small answers wait for one send, so together they stay in the limit."""
_NO_FILES_PAUSE_S: Final = 0.1
_BEGIN_TIMEOUT_S: Final = 2.0
"""How long it is waited for a connection's thread to begin: others wait to be accepted."""
_LINGER_S: Final = 0.5
_IDLE_LOOKS: Final = 8
"""So many times in the time that a connection may be idle it is looked for those that are."""
_ROOM_SHARE: Final = 16
"""Of the connections that are not counted this part is closed when all places are taken."""
_TCP_INFO_SIZE: Final = 60
_TCP_INFO_TIMES: Final = struct.Struct("=3I")
_TCP_INFO_TIMES_AT: Final = 44
"""Of Linux's struct tcp_info: the times since data was sent, an ACK was sent, data was received."""


def pack_timeout(seconds: float) -> bytes:
    """A time limit as setsockopt takes it."""
    return struct.pack("ll", int(seconds), min(int(seconds % 1 * 1_000_000) + 1, 999_999))


def on_message(handle: Callable[[Any], messages.Message]) -> dict[int, Handler]:
    """The table's row for a handler of one message class, named by its argument's annotation.

    The general way, through the codec; the node's data requests have handlers on the bytes.
    """
    (cls,) = (hint for name, hint in get_type_hints(handle).items() if name != "return")

    def handler(request_id: int, body: bytes) -> bytes:
        return encode(handle(decode(cls.kind, body)), request_id)

    return {cls.kind: handler}


def on_control_message(
    handle: Callable[[Any], messages.Message], token: bytes
) -> dict[int, Handler]:
    """The same for a message that begins with the cluster's token."""
    return guarded(on_message(handle), token)


def guarded(handlers: dict[int, Handler], token: bytes) -> dict[int, Handler]:
    """Handlers of messages that begin with the cluster's token.

    The token is looked at before anything else: taking megabytes of rows apart costs seconds, in
    which a node answers nobody.
    """
    return {kind: _guarded(take, token) for kind, take in handlers.items()}


def _guarded(take: Handler, token: bytes) -> Handler:
    def handler(request_id: int, body: bytes) -> bytes:
        given = body[: len(token)]
        if len(given) == len(token) and not hmac.compare_digest(given, token):
            text = "the token is not this cluster's"
            raise RemoteProtocolError(messages.NOT_ALLOWED, text, closes=True)
        return take(request_id, body)

    return handler


class TokenLock:
    """A lock made of a queue with one token in it: to take the token out is to hold the lock.

    On CPython 3.11 that costs a third of threading.Lock, whose methods parse keyword arguments at
    each call: 68 ns against 199, of the few microseconds that a node has for a frame.

        python -m timeit -s "import queue; q = queue.SimpleQueue(); q.put(0)" "q.get(); q.put(0)"
        python -m timeit -s "import threading; l = threading.Lock()" "l.acquire(); l.release()"

    ``acquire()`` waits for the token; ``release(None)`` gives it back.
    """

    def __init__(self) -> None:
        queue: SimpleQueue[None] = SimpleQueue()
        queue.put(None)
        self.acquire: Callable[[], None] = queue.get
        self.release: Callable[[None], None] = queue.put

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release(None)


class _NoLock(TokenLock):
    """For handlers that need none."""

    def __init__(self) -> None:
        self.acquire = lambda: None
        self.release = lambda _: None


class Gathered(Generic[Result]):
    """A question that many threads may ask at once, and that is then asked twice at most.

    Each caller gets an answer to a question that was put after the call; all who waited while one
    was answered share the next one. So a flood of requests that need an answer from elsewhere is
    none there.
    """

    def __init__(self, ask: Callable[[], Result]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._asked = 0  # guarded by _lock; so is _answers
        self._answers: list[Result] = []  # the last one, if there was one

    def __call__(self) -> Result:
        asked_before = self._asked
        with self._lock:
            if self._asked == asked_before or not self._answers:
                self._asked += 1
                self._answers.clear()  # if _ask raises, those who wait ask for themselves
                self._answers.append(self._ask())
            return self._answers[0]


class Outbox(Protocol):
    """Has answers that must not leave yet, and connections that are lent to it (reactor.py). If a
    method raises OSError, what was not sent is not to be sent at all, and the connection to be
    closed."""

    def lend(self, sock: socket.socket, answers: bytes, is_whole: bool, /) -> bool:
        """Either send these answers later, and perhaps handle what comes after them; or return
        False once the caller is to send them. ``is_whole``: there is no part of a next frame."""
        ...

    def adopt(self, sock: socket.socket, admit: Callable[[], bool] | None, /) -> None:
        """Handle what comes, until the next ``receive`` returns: nothing is left to be sent, and
        there is no part of a frame. If ``admit`` is given it is asked once, before the first
        request is handled, whether that may be."""
        ...

    def receive(self, sock: socket.socket, size: int, /) -> bytes:
        """In the place of the socket's recv: wait until it is not lent any more."""
        ...

    def wait(self) -> None:
        """Return once the caller may send its answers."""
        ...


class FrameServer(socketserver.TCPServer):
    """Serves frames on one address.

    Args:
        host, port: where to listen; port 0 takes a free one, see ``port``.
        handlers: kind -> handler. A handler may raise RemoteProtocolError for a typed refusal.
        counted: the kinds whose senders count against ``connections_max``.
        frame_timeout_ms: how long a frame may take from its first byte to its last, and how long a
            peer may take none of its answers.
        idle_timeout_s: how long nothing may come on a connection that is not counted.
        lock: held while a handler runs, if one is given.
        recover: told of what a handler raised, without the lock; True: call the handler once more.
        outbox: asked by a connection's thread before it sends the answers that it has, and then for
            what it receives; not before there is a crowd, unless it ``holds_answers``.

    Raises ClusterError if the address cannot be had.
    """

    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(
        self,
        host: str,
        port: int,
        handlers: Mapping[int, Handler],
        counted: Collection[int] = (),
        connections_max: int = messages.CONNECTIONS_MAX,
        frame_timeout_ms: int = messages.FRAME_TIMEOUT_MS,
        idle_timeout_s: float = messages.IDLE_TIMEOUT_S,
        lock: TokenLock | None = None,
        recover: Callable[[Exception], bool] = lambda _: False,
        outbox: Outbox | None = None,
        holds_answers: bool = False,
    ) -> None:
        self.handler_lock = lock or _NoLock()
        self.recover = recover
        self.outbox = outbox
        self.holds_answers = holds_answers
        self.handlers = handlers
        self.counted = counted
        self.connections_max = connections_max
        self.frame_timeout_s = frame_timeout_ms / 1000
        self.long_frames = threading.BoundedSemaphore(messages.LONG_FRAMES_MAX)
        self.lock = threading.Lock()
        self.idle_timeout_s = idle_timeout_s
        self.looks_at = 0.0  # for idle ones, at that time
        self.open_sockets: set[socket.socket] = set()  # guarded by lock; so are the next two
        self.counted_sockets: set[socket.socket] = set()
        self.trusted_sockets: set[socket.socket] = set()  # have brought the cluster's token
        self.refuses_since = 0.0  # connections, since all places are taken; 0: it does not
        self.is_crowded = False
        self.has_long_turns = False
        self.memory = Trimmer()
        self.is_serving = False
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
        self.is_serving = True
        supervised("server", partial(self.serve_forever, 0.2), GO_ON)

    def drain(self, timeout_s: float = 1.0) -> None:
        """Stop: accept no more, answer the requests that have arrived, close."""
        if self.is_serving:
            self.shutdown()
        self.server_close()
        with self.lock:
            for sock in self.open_sockets:
                _shut_down(sock, socket.SHUT_RD)
        end = time.monotonic() + timeout_s
        while self.open_sockets and time.monotonic() < end:
            time.sleep(0.005)

    def service_actions(self) -> None:
        """What serve_forever calls between two connections, and several times a second anyway."""
        self.memory.trim()
        now = time.monotonic()
        if now >= self.looks_at:
            self.looks_at = now + self.idle_timeout_s / _IDLE_LOOKS
            self._close_idle()

    def _close_idle(self) -> None:
        """A client that is gone, or sleeps, needs no thread and no place here; it opens another
        connection when it comes again."""
        with self.lock:
            for sock in self.open_sockets - self.counted_sockets:
                if _silent_s(sock) > self.idle_timeout_s:
                    _shut_down(sock, socket.SHUT_RD)  # what has come is answered

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                # The connection stays in the queue, so the next try would follow at once, and fail.
                logger.warning("cannot accept a connection: %s", describe(error))
                time.sleep(_NO_FILES_PAUSE_S)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        try:
            self._take_in(request)
        except BaseException:
            self.shutdown_request(request)
            raise
        return True

    def _take_in(self, sock: socket.socket) -> None:
        """Whoever comes gets in: it may have the token. There are more places than counted
        connections, so if all are taken, some of the others have to go."""
        with self.lock:
            if len(self.open_sockets) >= self.connections_max + messages.CONNECTIONS_RESERVED:
                self._make_room()
            self.open_sockets.add(sock)
            self._look_around()

    def _make_room(self) -> None:
        """Close those from whom nothing has come for the longest time; the last ones those that
        have brought the token. Some at once, since each look at all takes its time."""
        others = self.open_sockets - self.counted_sockets
        silent = {sock: (sock not in self.trusted_sockets, _silent_s(sock)) for sock in others}
        count = max(1, len(others) // _ROOM_SHARE)
        for sock in heapq.nlargest(count, others, key=silent.__getitem__):
            self.open_sockets.discard(sock)
            _shut_down(sock, socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own."""
        work = partial(self._serve_connection, request, client_address)
        try:
            supervised(f"connection from {client_address}", work, OVER, _BEGIN_TIMEOUT_S)
        except (RuntimeError, MemoryError) as error:
            self.shutdown_request(request)
            logger.warning("a connection is closed, no thread can serve it: %r", error)

    def _serve_connection(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        finally:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        with self.lock:
            for sockets in (self.open_sockets, self.counted_sockets, self.trusted_sockets):
                sockets.discard(request)
            self._look_around()
            # Not at each one that leaves while others wait to come.
            if self.refuses_since and self.counted_connections <= self.connections_max * 0.9:
                refused_s = time.monotonic() - self.refuses_since
                self.refuses_since = 0.0
                logger.info("there are places for connections again, after %.1f s", refused_s)
        super().shutdown_request(request)

    @property
    def counted_connections(self) -> int:
        return len(self.counted_sockets)

    def count_in(self, sock: socket.socket) -> bool:
        """Take one of the counted connections' places, if there is one."""
        with self.lock:
            is_free = self.counted_connections < self.connections_max and sock in self.open_sockets
            if is_free:
                self.counted_sockets.add(sock)
            elif self.counted_connections >= self.connections_max and not self.refuses_since:
                self.refuses_since = time.monotonic()
                logger.error(
                    "connections are refused: all %d places are taken (--max-connections)",
                    self.connections_max,
                )
        return is_free

    def trust(self, sock: socket.socket) -> None:
        """It has brought the token."""
        with self.lock:
            self.trusted_sockets.add(sock)

    def _look_around(self) -> None:
        """The lock is held."""
        count = len(self.open_sockets)
        self.is_crowded = self.outbox is not None and count >= _CROWD
        if self.is_crowded or self.has_long_turns:
            self.has_long_turns = self.is_crowded
            sys.setswitchinterval(max(TURN_S, _TURN_EACH_S * count))


def _silent_s(sock: socket.socket) -> float:
    """For how long nothing has come, and nothing was sent: the system knows, so nobody has to note
    it at each request."""
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    except OSError:
        return math.inf  # it has ended
    sent_ms, _, received_ms = _TCP_INFO_TIMES.unpack_from(told, _TCP_INFO_TIMES_AT)
    return float(min(sent_ms, received_ms)) / 1000


def _shut_down(sock: socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError:
        pass  # the peer was faster


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
        self._is_counted = False
        self._is_trusted = False  # whether it has brought the cluster's token
        self._begun_at = 0.0  # when the frame that is under way was begun
        self._is_hurried = False  # whether the next receive has less than the whole time
        self._has_long_frame = False  # whether it has one of the server's places for long frames
        self._has_ended = False  # whether nothing more will come
        self._outbox = self.server.outbox if self.server.holds_answers else None
        # head word -> handler; without the counted kinds until the connection is counted in, and
        # without those that bring the token until one has.
        self._handlers: dict[int, Handler] = {}
        self._take_handlers()
        sock = self.request
        set_up(sock, max(messages.SILENCE_MAX_S, self.server.frame_timeout_s))
        # A blocking receive or send returns after that time, and needs no poll before it.
        timeout = pack_timeout(self.server.frame_timeout_s)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)

    def handle(self) -> None:
        try:
            self._serve()
        except _Closing:
            self._send_last()
        except OSError as error:
            logger.debug("connection from %s: %s", self.client_address, describe(error))

    def finish(self) -> None:
        if self._has_long_frame:
            self.server.long_frames.release()
            self.server.memory.note()

    def _take_handlers(self) -> None:
        self._handlers.clear()
        for kind, handler in self.server.handlers.items():
            needs_place = kind in self.server.counted and not self._is_counted
            needs_trust = kind in messages.CONTROL_KINDS and not self._is_trusted
            if not (needs_place or needs_trust):
                self._handlers[head_word(kind)] = handler

    def _serve(self) -> None:
        """Receive, handle all whole frames, send all answers; until the peer closes.

        The usual frames, whole and of a kind that is served, are handled straight from the received
        bytes. The rest, whatever it is, goes through the FrameBuffer.
        """
        server = self.server
        crowd = server.outbox
        recv = partial(self._outbox.receive, self.request) if self._outbox else self.request.recv
        # The one way out for what was answered, but for ``_send``. Without an outbox nothing has to
        # wait, and the socket's own method is the fastest.
        leave = self._leave if self._outbox else self.request.sendall
        buffer = self._buffer
        handlers = self._handlers
        answers = self._answers
        # Taken once: ``with`` would call two methods more for each frame.
        acquire = self.server.handler_lock.acquire
        release = self.server.handler_lock.release
        wanted = SHORT_RECEIVE_SIZE
        answer = b""
        while True:
            try:
                if server.is_crowded and crowd and not buffer.size:
                    crowd.adopt(self.request, None if self._is_counted else self._admit)
                    data = crowd.receive(self.request, wanted)
                else:
                    data = recv(wanted)
            except BlockingIOError:
                self._watch_frame(False)
                continue
            at = 0
            size = len(data)
            if size < SHORT_RECEIVE_SIZE:
                wanted = SHORT_RECEIVE_SIZE
            elif wanted == SHORT_RECEIVE_SIZE:
                wanted = buffer.receive_size  # until less comes than a short receive can take
                data = self._with_rest(data)
                size = len(data)
            if buffer.size:
                size = 0
            while size - at >= HEADER_SIZE:
                word, request_id, length = unpack_words(data, at)
                body_at = at + HEADER_SIZE
                end = body_at + length
                handler = handlers.get(word)
                if handler is None or end > size:
                    break
                body = data[body_at:end]
                try:
                    acquire()
                    try:
                        answer = handler(request_id, body)
                    finally:
                        release(None)
                except Exception as error:
                    self._on_error(handler, request_id, body, error)
                    at = self._handle_many(data, end)
                    break
                at = end
                if answer and at < size:  # unlike the usual end: one answer, to the last frame
                    answers.append(answer)
                    answer = b""
                    at = self._handle_many(data, at)
                    break
            if answer:
                leave(answer)
                answer = b""
                continue
            if at < size or buffer.size or not data:
                self._handle_rest(data[at:])
                wanted = buffer.receive_size
            if answers:
                self._has_ended = not data
                leave(answers[0] if len(answers) == 1 else b"".join(answers))
                answers.clear()
            if not data:
                return

    def _handle_many(self, data: bytes, at: int) -> int:
        """Handle all that follow of a block, as far as they are usual, and return where the rest
        begins: the lock is taken once for all of them, or for as many as have 64 KiB of answers,
        which are sent before the next ones are handled."""
        handler_of = self._handlers.get
        append = self._answers.append
        size = len(data)
        while True:
            room = _ANSWERS_SIZE_MAX
            try:
                with self.server.handler_lock:
                    while size - at >= HEADER_SIZE and room > 0:
                        word, request_id, length = unpack_words(data, at)
                        body_at = at + HEADER_SIZE
                        end = body_at + length
                        handler = handler_of(word)
                        if handler is None or end > size:
                            return at
                        if answer := handler(request_id, data[body_at:end]):
                            append(answer)
                            room -= len(answer)
                        at = end
            except Exception as error:
                assert handler is not None
                self._on_error(handler, request_id, data[body_at:end], error)
                self._send_many()  # refusals count against no room
                at = end
            if size - at < HEADER_SIZE:
                return at
            if room <= 0:
                self._send()

    def _with_rest(self, data: bytes) -> bytes:
        """What a short receive returned, with what else is there: or it would be cut in a frame,
        and all that follows would have to go through the FrameBuffer."""
        try:
            return data + self.request.recv(RECEIVE_SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return data

    def _handle_rest(self, data: bytes) -> None:
        """What the loop left: parts of frames, unknown kinds, flags, a connection's first
        request."""
        frames = self._buffer.feed(data)
        for kind, flags, request_id, body in frames:
            handler = self.server.handlers.get(kind)
            if handler is None:
                self._refuse(request_id, unknown_kind(kind))
            elif flags:
                text = f"the header's flags are {flags}, not 0"
                self._refuse(request_id, RemoteProtocolError(messages.UNKNOWN_FLAGS, text))
            else:
                if kind in self.server.counted and not self._is_counted:
                    self._count_in(request_id)
                try:
                    with self.server.handler_lock:
                        self._answers.append(handler(request_id, body))
                except Exception as error:
                    self._on_error(handler, request_id, body, error)
                else:
                    if kind in messages.CONTROL_KINDS and not self._is_trusted:
                        self._trust()
                self._send_many()
        if self._buffer.size or self._is_hurried:
            self._watch_frame(bool(frames))
        else:
            self._begun_at = 0.0
        if self._buffer.is_long is not self._has_long_frame:
            self._change_long_frame()

    def _change_long_frame(self) -> None:
        """A long frame has been begun, and needs a place before more of it is received; or it is
        whole."""
        places = self.server.long_frames
        if self._has_long_frame:
            places.release()
            self.server.memory.note()
        elif not places.acquire(blocking=False):
            self._send()  # the answers to what came before do not wait
            if not places.acquire(timeout=self._remaining_s()):
                text = f"{messages.LONG_FRAMES_MAX} other long frames were under way all the time"
                self._refuse(0, RemoteProtocolError(messages.FRAME_TIMEOUT, text, closes=True))
        self._has_long_frame = not self._has_long_frame

    def _remaining_s(self) -> float:
        """How long the begun frame may still take."""
        return max(0.0, self._begun_at + self.server.frame_timeout_s - time.monotonic())

    def _count_in(self, request_id: int) -> None:
        if not self._admit():
            self._answers.append(_busy(request_id, self.server.connections_max))
            raise _Closing

    def _admit(self) -> bool:
        """Count this connection, if there is a place for it."""
        self._is_counted = self.server.count_in(self.request)
        self._take_handlers()
        return self._is_counted

    def _trust(self) -> None:
        """Its token was right."""
        self._is_trusted = True
        self.server.trust(self.request)
        self._take_handlers()

    def _on_error(self, handler: Handler, request_id: int, body: bytes, error: Exception) -> None:
        """Answer a request whose handler raised something."""
        try:
            if not isinstance(error, LongReply) and self.server.recover(error):
                with self.server.handler_lock:
                    self._answers.append(handler(request_id, body))
                return
        except Exception as second_error:
            error = second_error
        if isinstance(error, LongReply):
            # Or all that its handler had in hand would stay, too, as long as the peer takes.
            error.__traceback__ = error.__context__ = None
            self.server.memory.note()  # the entry may be replaced while the peer takes its time
            self._send(error.head, error.rest)
            return
        if not isinstance(error, RemoteProtocolError):
            logger.error("internal error in %s", handler, exc_info=error)
            text = "an error of the program; its log says more"
            error = RemoteProtocolError(messages.INTERNAL, text, closes=True)
        self._refuse(request_id, error)

    def _refuse(self, request_id: int, error: RemoteProtocolError) -> None:
        self._answers.append(error_frame(request_id, error.error_code, str(error), error.detail))
        # Under the id 0 nobody can tell whose error it is, so it is the connection's.
        if error.closes or not request_id:
            raise _Closing

    def _send_many(self) -> None:
        """Send before more is handled, if much waits: what one peer may take of memory has a
        limit."""
        answers = self._answers
        if answers and (len(answers[-1]) > _SMALL_ANSWER_SIZE or len(answers) > _SMALL_ANSWERS_MAX):
            self._send()

    def _leave(self, answers: bytes) -> None:
        """Let answers go when what they depend on is on disk (N2): now, or later by the outbox."""
        assert self._outbox is not None
        is_whole = not (self._buffer.size or self._has_ended)
        if not self._outbox.lend(self.request, answers, is_whole):
            self.request.sendall(answers)

    def _send(self, *long_parts: bytes) -> None:
        """Send what was answered so far, and then these, once what all of it depends on is on disk
        (N2)."""
        if self._outbox:
            self._outbox.wait()
        self.request.sendall(b"".join(self._answers))
        self._answers.clear()
        for part in long_parts:
            self.request.sendall(part)

    def _send_last(self) -> None:
        """Send the reason for closing, and read on for a moment: a connection that is closed with
        unread bytes is reset, and the peer may lose the reason."""
        try:
            self._send()
            self.request.shutdown(socket.SHUT_WR)
            end = time.monotonic() + _LINGER_S
            while (remaining_s := end - time.monotonic()) > 0:
                self.request.settimeout(remaining_s)
                if not self.request.recv(RECEIVE_SIZE):
                    break
        except OSError:
            pass  # the peer does not want to know

    def _watch_frame(self, has_progressed: bool) -> None:
        """A frame that was begun must be whole in time; see to the next receive's time limit."""
        if self._buffer.error is not None:
            self._refuse(0, self._buffer.error)
        now = time.monotonic()
        if has_progressed or not self._begun_at:
            self._begun_at = now
        timeout_s = remaining_s = self.server.frame_timeout_s
        if self._buffer.size:
            remaining_s = self._remaining_s()
        else:
            self._begun_at = 0.0
        if remaining_s <= 0:
            text = f"a frame was not whole within {timeout_s:g} s"
            self._refuse(0, RemoteProtocolError(messages.FRAME_TIMEOUT, text, closes=True))
        is_hurried = remaining_s < timeout_s
        if is_hurried or self._is_hurried:
            timeout = pack_timeout(remaining_s)
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        self._is_hurried = is_hurried
