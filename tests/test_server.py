"""FrameServer, in this process: limits, errors, order, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, cycle, product

import pytest

from gtstore import server as server_module
from gtstore.errors import ClusterError, RemoteProtocolError
from gtstore.reactor import Reactor
from gtstore.server import (
    TURN_S,
    FrameServer,
    Gathered,
    TokenLock,
    on_control_message,
    on_message,
)
from gtstore.testing import wait_until
from gtstore.wire import messages
from gtstore.wire.codec import LongReply, encode, head_word
from gtstore.wire.messages import Ack, Commit, Get, MapUpdate, NotFound, Ping, Pong

from .peers import Talk

PONG = Pong(2, 1, 1, 1, 1, 1, 1, 1, 0)
GET = Get(0, 0, b"key")
UPDATE = MapUpdate(bytes(16), 1, ())
LARGE = messages.EntryReply(bytes(300_000))
LONG = encode(messages.EntryReply(bytes(10_000_000)), 9)

Serve = Callable[..., FrameServer]


class Costly:
    """Something large that a handler makes."""

    made = 0
    alive = 0

    def __init__(self) -> None:
        Costly.alive += 1

    def __del__(self) -> None:
        Costly.alive -= 1

    def use(self) -> None:
        Costly.made += 1


class Retriable(Exception):
    """What recover mends."""


@pytest.fixture(params=["threads", "crowd"])
def serve(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Servers that serve each connection by its thread, and some that always have a crowd, which
    the reactor serves."""
    running: list[FrameServer] = []
    monkeypatch.setattr(server_module, "_CROWD", 1)

    def start(**options: int) -> FrameServer:
        attempts: list[int] = []
        behind = cycle([True, False])

        def on_ping(_: Ping) -> Pong:
            return PONG

        def on_get(request: Get) -> messages.Message:
            match request.key:
                case b"refuse":
                    raise RemoteProtocolError(messages.MALFORMED, "refused")
                case b"close":
                    raise RemoteProtocolError(messages.NOT_ALLOWED, "no", closes=True)
                case b"bug":
                    raise ZeroDivisionError
                case b"again" if len(attempts) < 1:
                    attempts.append(1)
                    raise Retriable
                case b"behind" if next(behind):
                    raise Retriable
                case b"large":
                    return LARGE
                case b"long":
                    raise LongReply(LONG[:12], LONG[12:])
                case b"costly":
                    costly = Costly()
                    try:
                        raise ZeroDivisionError
                    except ZeroDivisionError:
                        costly.use()
                        raise LongReply(LONG[:12], LONG[12:])  # noqa: B904  # as EXECUTE does
            return NotFound()

        def on_update(_: MapUpdate) -> Ack:
            return Ack()

        handlers = {**on_message(on_ping), **on_message(on_get), **on_message(on_update)}
        handlers[Commit.kind] = lambda _request_id, _body: b""
        lock = TokenLock()
        reactor = Reactor(lock, handlers) if request.param == "crowd" else None
        if reactor:
            reactor.start()
        running.append(
            FrameServer(
                "127.0.0.1",
                0,
                handlers,
                counted=(Get.kind, Commit.kind),
                lock=lock,
                outbox=reactor,
                recover=lambda error: isinstance(error, Retriable),
                **options,
            )
        )
        running[-1].start()
        return running[-1]

    yield start
    for each in running:
        each.drain()
        assert each.open_sockets == set()
        assert each.counted_connections == 0


def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    """Whatever the order of kinds, a connection's first counted one included; COMMIT is silent."""
    with Talk(serve().port) as talk:
        requests = [Ping(), GET, Commit(1, bytes(16), b"key"), Ping(), GET, Get(0, 0, b"large")]
        talk.send(*(encode(request, i) for i, request in enumerate(requests * 20)))
        replies = [talk.reply() for _ in range(5 * 20)]
        expected = [PONG, NotFound(), None, PONG, NotFound(), LARGE] * 20
        assert replies == [(i, reply) for i, reply in enumerate(expected) if reply is not None]


def test_every_answer_leaves_before_more_is_received(serve: Serve) -> None:
    """Whatever becomes of the frames that come together, in whatever order: each one is answered
    though nothing follows."""
    requests: list[tuple[messages.Message, str]] = [
        (GET, "NOT_FOUND"),
        (Commit(1, bytes(16), b"key"), ""),
        (Get(0, 0, b"refuse"), "MALFORMED"),
        (Get(0, 0, b"behind"), "NOT_FOUND"),
        (Get(0, 0, b"large"), "ENTRY"),
        (messages.KeyNodes(b"key"), "UNKNOWN_KIND"),
    ]

    def told(answer: tuple[int, messages.Message] | None) -> tuple[int, str]:
        assert answer is not None
        request_id, reply = answer
        is_error = isinstance(reply, messages.Error)
        return request_id, messages.ERRORS[reply.code].name if is_error else reply.name

    with Talk(serve().port) as talk:
        talk.send(encode(GET, 0))  # a connection's first request goes another way
        assert told(talk.reply()) == (0, "NOT_FOUND")
        for block in chain(product(requests, repeat=2), product(requests, repeat=3)):
            talk.send(*(encode(request, i) for i, (request, _) in enumerate(block, 1)))
            expected = [(i, answer) for i, (_, answer) in enumerate(block, 1) if answer]
            assert [told(talk.reply()) for _ in expected] == expected


def test_bytewise_requests(serve: Serve) -> None:
    with Talk(serve().port) as talk:
        talk.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in encode(GET, 7) + encode(Ping(), 8):
            talk.send(bytes((byte,)))
        assert talk.reply() == (7, NotFound())
        assert talk.reply() == (8, PONG)


def test_half_closed_connections_are_answered(serve: Serve) -> None:
    """Requests that were sent before the end are answered, then the server closes too."""
    with Talk(serve().port) as talk:
        talk.send(*(encode(Get(0, 0, b"large"), i) for i in range(30)))
        talk.sock.shutdown(socket.SHUT_WR)
        assert [talk.reply() for _ in range(30)] == [(i, LARGE) for i in range(30)]
        assert talk.reply() is None


@pytest.mark.parametrize(
    ("frame", "name", "closes"),
    [
        (encode(Get(0, 0, b"refuse"), 5), "MALFORMED", False),
        (encode(Get(0, 0, b"bug"), 5), "INTERNAL", True),
        (encode(Get(0, 0, b"close"), 5), "NOT_ALLOWED", True),
        (encode(messages.KeyNodes(b"key"), 5), "UNKNOWN_KIND", False),
        (encode(Pong(1, 1, 1, 1, 1, 1, 1, 1, 0), 5), "UNKNOWN_KIND", False),
        (b"\xc7\x01\x77\0\0\0\0\5\0\0\0\0", "UNKNOWN_KIND", False),
        (b"\xc7\x01\x01\x80\0\0\0\5\0\0\0\0", "UNKNOWN_FLAGS", False),
        (b"\xc7\x01\x01\0\0\0\0\5\0\0\0\1x", "MALFORMED", False),
        (b"\xc7\x01\x10\0\0\0\0\5\0\0\0\0", "MALFORMED", False),
        (b"\xc7\x02\x01\0\0\0\0\5\0\0\0\0", "UNSUPPORTED_VERSION", True),
        (b"\xc7\x01\x01\0\0\0\0\5\xff\xff\xff\xff", "FRAME_TOO_LONG", True),
        (b"GET / HTTP/1.1\r\nHost: example\r\n\r\n", "BAD_MAGIC", True),
        (b"\x16\x03\x01\x02\x00\x01", "BAD_MAGIC", True),
        (b"\x80\x04", "BAD_MAGIC", True),
    ],
)
@pytest.mark.parametrize("is_counted", [False, True])
def test_bad_requests(
    serve: Serve, frame: bytes, name: str, closes: bool, is_counted: bool
) -> None:
    """A typed reply to each; what was sent before is answered; the server goes on."""
    server = serve()
    with Talk(server.port) as talk:
        if is_counted:
            talk.send(encode(GET, 1))
            assert talk.reply() == (1, NotFound())
        talk.send(encode(Ping(), 4), frame)
        assert talk.reply() == (4, PONG)
        request_id, error_name, _ = talk.error()
        assert error_name == name
        is_frame = name not in ("UNSUPPORTED_VERSION", "FRAME_TOO_LONG", "BAD_MAGIC")
        assert request_id == (5 if is_frame else 0)
        if closes:
            assert talk.reply() is None
        else:
            talk.send(encode(Ping(), 6))
            assert talk.reply() == (6, PONG)
    with Talk(server.port) as talk:
        talk.send(encode(Ping(), 1))
        assert talk.reply() == (1, PONG)


def test_the_reason_for_closing_arrives(serve: Serve) -> None:
    """Also when much more was sent than the server has read, so that a plain close would reset."""
    with Talk(serve().port) as talk:
        talk.send(b"\xc7\x01\x01\0\0\0\0\5\xff\xff\xff\xff" + bytes(1_000_000))
        assert talk.error()[1] == "FRAME_TOO_LONG"


def test_the_token_comes_first() -> None:
    """Whoever has none makes nobody take megabytes apart: what follows it is not looked at."""
    token = bytes(range(16))
    seen: list[MapUpdate] = []

    def on_update(update: MapUpdate) -> Ack:
        seen.append(update)
        return Ack()

    ((kind, handler),) = on_control_message(on_update, token).items()
    assert kind == MapUpdate.kind
    row = messages.Row(0, 1, 1, ())
    good = encode(MapUpdate(token, 7, (row,)))[messages.HEADER_SIZE :]
    assert handler(1, good) == encode(Ack(), 1)
    assert seen == [MapUpdate(token, 7, (row,))]
    for body, code in (
        (bytes(16) + good[16:], messages.NOT_ALLOWED),
        (bytes(16) + b"no rows at all", messages.NOT_ALLOWED),
        (bytes(16), messages.NOT_ALLOWED),
        (bytes(15), messages.MALFORMED),
        (good[:-1], messages.MALFORMED),
        (token, messages.MALFORMED),
    ):
        with pytest.raises(RemoteProtocolError) as caught:
            handler(1, body)
        assert caught.value.error_code == code
    assert len(seen) == 1


def test_many_callers_share_one_question() -> None:
    """Each answer belongs to a question that was put after the call; a failure is only its own."""
    asked: list[int] = []
    waiting: list[None] = []
    may_answer = threading.Event()

    class Lock(TokenLock):
        def __enter__(self) -> None:
            waiting.append(None)
            super().__enter__()

    def ask() -> int:
        asked.append(len(asked))
        may_answer.wait(10)
        if asked[-1] == 1:
            raise Retriable
        return asked[-1]

    gathered = Gathered(ask)
    gathered._lock = Lock()  # type: ignore[assignment]
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(gathered)
        wait_until(lambda: asked, "the first question")
        others = [pool.submit(gathered) for _ in range(8)]
        wait_until(lambda: len(waiting) == 9, "the other callers")
        may_answer.set()
        assert first.result() == 0
        assert [type(other.exception()) for other in others].count(Retriable) == 1
        assert {other.result() for other in others if not other.exception()} == {2}
    assert gathered() == 3


def test_recover_and_try_again(serve: Serve) -> None:
    with Talk(serve().port) as talk:
        talk.send(encode(Get(0, 0, b"again"), 1))
        assert talk.reply() == (1, NotFound())


def test_connections_are_counted_once_they_use_a_counted_kind(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """A full server still answers PING, and has room again when one leaves. The log says once that
    it is full, and when that is over."""
    caplog.set_level("INFO")
    server = serve(connections_max=2)
    with Talk(server.port) as one, Talk(server.port) as two, Talk(server.port) as three:
        for talk in (one, two):
            talk.send(encode(GET, 1))
            assert talk.reply() == (1, NotFound())
        three.send(encode(Ping(), 1))
        assert three.reply() == (1, PONG)
        three.send(encode(GET, 2))
        assert three.error() == (2, "BUSY", messages.BusyDetail(2))
        assert three.reply() is None
        with Talk(server.port) as another:
            another.send(encode(GET, 1))
            assert another.error() == (1, "BUSY", messages.BusyDetail(2))
        assert caplog.text.count("connections are refused: all 2 places are taken") == 1
        one.sock.close()
        wait_until(lambda: server.counted_connections == 1, "a free place")
        with Talk(server.port) as four:
            four.send(encode(GET, 1))
            assert four.reply() == (1, NotFound())
        assert caplog.text.count("there are places for connections again, after") == 1


def is_closed(talk: Talk) -> bool:
    try:
        return talk.reply() is None
    except ConnectionResetError:
        return True


def is_answered(talk: Talk) -> bool:
    talk.send(encode(Ping(), 1))
    return talk.reply() == (1, PONG)


def test_whoever_comes_gets_in(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """When all places are taken the most silent connection goes; none that is counted, and one that
    has brought the token only when there is no other."""
    monkeypatch.setattr(messages, "CONNECTIONS_RESERVED", 3)
    server = serve(connections_max=1)
    with contextlib.ExitStack() as stack:
        counted, trusted, other, silent, *rest = (
            stack.enter_context(Talk(server.port)) for _ in range(4)
        )
        assert not rest
        counted.send(encode(GET, 1))
        assert counted.reply() == (1, NotFound())
        trusted.send(encode(UPDATE, 1))
        assert trusted.reply() == (1, Ack())
        wait_until(lambda: len(server.open_sockets) == 4, "four connections")
        wait_until(
            lambda: all(server_silence(server, talk) > 0.02 for talk in (trusted, silent)), "time"
        )
        assert is_answered(other)
        more = [stack.enter_context(Talk(server.port)) for _ in range(1)]
        assert is_closed(silent)
        for talk in (other, counted, trusted, *more):
            assert is_answered(talk)
        # Now the others than the counted one are all trusted.
        for talk in (other, *more):
            talk.send(encode(UPDATE, 1))
            assert talk.reply() == (1, Ack())
        wait_until(lambda: server_silence(server, trusted) > 0.02, "time")
        assert is_answered(other)
        assert is_answered(more[0])
        assert is_answered(stack.enter_context(Talk(server.port)))
        assert is_closed(trusted)
        assert is_answered(counted)


def server_silence(server: FrameServer, talk: Talk) -> float:
    """For how long a connection's other end was silent, as the server sees it."""
    address = talk.sock.getsockname()
    (sock,) = (sock for sock in server.open_sockets if sock.getpeername() == address)
    return server_module._silent_s(sock)


def test_idle_connections_are_closed(serve: Serve) -> None:
    """After some time, unless they are counted: their clients open others. What is in use lives."""
    server = serve(idle_timeout_s=0.5)
    with Talk(server.port) as counted, Talk(server.port) as idle, Talk(server.port) as used:
        counted.send(encode(GET, 1))
        assert counted.reply() == (1, NotFound())
        idle.sock.settimeout(0.05)
        while True:
            assert is_answered(used)
            try:
                assert is_closed(idle)
                break
            except TimeoutError:
                pass
        assert is_answered(used)
        assert is_answered(counted)


def test_a_begun_frame_must_be_whole_in_time(serve: Serve) -> None:
    """Whether the rest does not come or trickles; a connection between two frames lives on."""
    server = serve(frame_timeout_ms=50)
    with Talk(server.port) as idle, Talk(server.port) as silent, Talk(server.port) as slow:
        for talk in (idle, silent, slow):
            talk.send(encode(GET, 1))
            assert talk.reply() == (1, NotFound())
        silent.send(encode(Ping(), 2), encode(Ping(), 3)[:5])
        assert silent.reply() == (2, PONG)
        assert silent.error()[:2] == (0, "FRAME_TIMEOUT")
        assert silent.reply() is None

        stop = threading.Event()

        def trickle() -> None:
            try:
                for byte in encode(MapUpdate(bytes(16), 1, ()), 1) * 1000:
                    slow.send(bytes((byte,)))
                    if stop.wait(0.004):
                        return
            except OSError:
                pass

        thread = threading.Thread(target=trickle)
        thread.start()
        while True:
            answer = slow.reply()
            assert answer is not None
            if isinstance(answer[1], messages.Error):
                assert answer[1].code == messages.FRAME_TIMEOUT
                break
        stop.set()
        thread.join()

        idle.send(encode(Ping(), 4))
        assert idle.reply() == (4, PONG)


def test_long_replies_keep_their_place(serve: Serve) -> None:
    """A reply in two parts stands between its neighbours, also at a connection's first request."""
    with Talk(serve().port) as talk:
        for _ in range(2):
            requests = [(Ping(), 8), (Get(0, 0, b"long"), 9), (GET, 10)]
            talk.send(*(encode(request, i) for request, i in requests))
            assert talk.reply() == (8, PONG)
            assert talk.reply() == (9, messages.EntryReply(bytes(10_000_000)))
            assert talk.reply() == (10, NotFound())


def test_a_long_reply_holds_nothing_but_itself(serve: Serve) -> None:
    """While a peer does not read it, what its handler has computed is gone already: EXECUTE takes
    a stored value apart, and a copy of 16 MiB for each deaf peer is too much."""
    with Talk(serve().port, receive_size=4096) as deaf:
        for _ in range(2):  # a connection's first request goes another way
            made = Costly.made
            deaf.send(encode(Get(0, 0, b"costly"), 9))
            wait_until(lambda made=made: Costly.made > made, "the handler")  # type: ignore[misc]
            wait_until(lambda: not Costly.alive, "the end of what it made")
            assert deaf.reply() == (9, messages.EntryReply(bytes(10_000_000)))


def long_frames_left(server: FrameServer) -> int:
    """How many connections more may receive a long frame."""
    taken = 0
    while server.long_frames.acquire(blocking=False):
        taken += 1
    for _ in range(taken):
        server.long_frames.release()
    return taken


def test_only_some_long_frames_are_received_at_once(serve: Serve) -> None:
    """The others wait until there is a place, and go on; short frames do not wait; a frame that
    finds no place in its time is refused, and so is one that is not finished."""
    server = serve(frame_timeout_ms=1000)
    long_frame = encode(Get(0, 0, b"key"), 1) + encode(messages.EntryReply(bytes(300_000)), 2)
    begun, rest = long_frame[:1000], long_frame[1000:]  # a peer that waits cannot send it all
    with contextlib.ExitStack() as stack:
        talks = [
            stack.enter_context(Talk(server.port)) for _ in range(messages.LONG_FRAMES_MAX + 2)
        ]
        *first, late, short = talks
        for talk in first:
            talk.send(begun)
            assert talk.reply() == (1, NotFound())
        wait_until(lambda: long_frames_left(server) == 0, "all places taken")
        late.send(begun)
        assert late.reply() == (1, NotFound())
        short.send(encode(Ping(), 5))
        assert short.reply() == (5, PONG)
        for talk in first[:2]:
            talk.send(rest)
            assert talk.error()[:2] == (2, "UNKNOWN_KIND")
        late.send(rest)
        assert late.error()[:2] == (2, "UNKNOWN_KIND")
        for talk in first[2:]:
            assert talk.error()[:2] == (0, "FRAME_TIMEOUT")
            assert talk.reply() is None
    wait_until(lambda: not server.open_sockets, "the end of all connections")
    assert long_frames_left(server) == messages.LONG_FRAMES_MAX


def test_a_peer_that_never_reads_holds_up_only_itself(serve: Serve) -> None:
    """The server reads no more requests than it can answer; others are served meanwhile."""
    server = serve()
    with Talk(server.port) as deaf, Talk(server.port) as other:
        deaf.sock.settimeout(0.2)
        sent = 0
        try:
            for _ in range(100_000):
                deaf.send(encode(Get(0, 0, b"large"), 1) * 10)
                sent += 10
        except TimeoutError:
            pass
        assert sent < 1_000_000, "it took all requests"
        other.send(encode(Ping(), 1))
        assert other.reply() == (1, PONG)


@pytest.mark.parametrize("serve", ["crowd"], indirect=True)
def test_the_threads_of_a_crowd_sleep(serve: Serve) -> None:
    """What is usual is handled by the reactor alone, however many connections there are; what is
    not, by each one's thread, and then it goes on as before."""
    server = serve()
    assert server.outbox
    seen: list[str] = []
    handle = server.handlers[Get.kind]

    def note(request_id: int, body: bytes) -> bytes:
        seen.append(threading.current_thread().name)
        return handle(request_id, body)

    assert isinstance(server.handlers, dict)
    server.handlers[Get.kind] = note
    server.outbox._handlers[head_word(Get.kind)] = note  # type: ignore[attr-defined]
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(Talk(server.port)) for _ in range(40)]
        for _ in range(3):
            for talk in talks:
                talk.send(encode(Get(0, 0, b"key"), 7))
            for talk in talks:
                assert talk.reply() == (7, NotFound())
            assert set(seen) == {"reactor"}
            for talk in talks:
                talk.send(encode(Get(0, 0, b"key"), 8)[:9])
                talk.send(encode(Get(0, 0, b"key"), 8)[9:], encode(Ping(), 9))
            for talk in talks:
                assert [talk.reply(), talk.reply()] == [(8, NotFound()), (9, PONG)]
            seen.clear()
    wait_until(lambda: not server.open_sockets, "the end of all connections")


@pytest.mark.parametrize("serve", ["crowd"], indirect=True)
def test_turns_are_long_only_in_a_crowd(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread that waits for the interpreter's lock wakes up after each turn."""
    turns: list[float] = []
    monkeypatch.setattr(sys, "setswitchinterval", turns.append)
    server = serve()
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(Talk(server.port))
        wait_until(lambda: len(server.open_sockets) == 100, "all connections")
        assert max(turns) > TURN_S
    wait_until(lambda: not server.open_sockets, "the end of all connections")
    assert turns[-1] == TURN_S


def test_a_busy_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ClusterError, match=rf"127.0.0.1:{port}: address already in use"):
            FrameServer("127.0.0.1", port, {})


def test_drain_before_start() -> None:
    """Nothing to wait for: it must not hang."""
    FrameServer("127.0.0.1", 0, {}).drain()


def test_a_token_lock_excludes() -> None:
    """One thread at a time is between acquire and release, whatever it raises there."""
    lock = TokenLock()
    inside: list[int] = []
    worst: list[int] = []

    def work() -> None:
        for _ in range(300):
            try:
                with lock:
                    inside.append(1)
                    worst.append(len(inside))
                    sum(range(100))
                    inside.pop()
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(worst) == 1
    assert len(worst) == 8 * 300
