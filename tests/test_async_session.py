"""AsyncSession against peers that misbehave; see test_session.py, whose peers these are, and
test_hostile_peers.py, which is for both clients."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest

from gtstore import addresses, async_session
from gtstore.async_session import AsyncSession, Exchange
from gtstore.errors import ConnectError, ConnectionLost, DeadlineExceeded, OperationFailed
from gtstore.operations import ACKED, Lost, Operation, Pause, Source
from gtstore.turns import Ticket, Turns
from gtstore.wire import messages
from gtstore.wire.codec import encode, error_frame

from .peers import Peer, answer, frames_of, hold, one_reply

PING = messages.Ping()


def new_session(*peers: Peer, host: str = "127.0.0.1", timeout_s: float = 5) -> AsyncSession:
    def locate(node: int) -> tuple[str, str, int]:
        if node > len(peers):
            raise ConnectError(f"node {node}", "its address is not known")
        return f"node {node}", host, peers[node - 1].port

    return AsyncSession(locate, Source(lambda: 1, time.time_ns, lambda: 0.5), timeout_s)


def run(session: AsyncSession, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        session.enter()
        try:
            await work()
        finally:
            session.close()

    asyncio.run(main())


def write(session: AsyncSession, request_id: int, *nodes: int, size: int = 0) -> Exchange:
    now = time.monotonic()
    frame = encode(messages.Write(1, 1, b"key", bytes(size or 21)), request_id)
    return session.exchange(nodes, request_id, frame, now, now + session.timeout_s)


def test_replies_in_any_order(peers: Callable[..., Peer]) -> None:
    """They are matched by their request ids."""

    def backwards(sock: socket.socket) -> None:
        requests = frames_of(sock)
        ids = [next(requests)[1] for _ in range(3)]
        for request_id in reversed(ids):
            sock.sendall(encode(messages.Superseded(request_id.to_bytes(16, "big")), request_id))
        hold(sock)

    session = new_session(peers(backwards))

    async def work() -> None:
        exchanges = [write(session, number, 1) for number in (1, 2, 3)]
        for number, exchange in zip((1, 2, 3), exchanges, strict=True):
            (reply,) = await exchange.future
            assert reply[12:] == number.to_bytes(16, "big")

    run(session, work)


def test_a_late_reply_is_dropped(peers: Callable[..., Peer]) -> None:
    """The deadline of one call has passed; others go on over the same connection, and its late
    reply is nobody's."""
    goes_on = threading.Event()

    def late(sock: socket.socket) -> None:
        requests = frames_of(sock)
        _, first = next(requests)
        _, second = next(requests)
        sock.sendall(encode(messages.Ack(), second))
        goes_on.wait(10)
        sock.sendall(encode(messages.Ack(), first))
        _, third = next(requests)
        sock.sendall(encode(messages.Ack(), third))

    peer = peers(late)
    session = new_session(peer, timeout_s=0.3)

    async def work() -> None:
        first, second = write(session, 1, 1), write(session, 2, 1)
        assert await second.future == [ACKED]
        (lost,) = await first.future
        assert isinstance(lost, Lost)
        assert isinstance(lost.error, DeadlineExceeded)
        assert lost.sent
        goes_on.set()
        assert await write(session, 3, 1).future == [ACKED]
        assert peer.accepted == 1

    run(session, work)


class _Request:
    """What a web server keeps in a context variable while it handles one."""


_current: ContextVar[_Request] = ContextVar("_current")


@pytest.mark.parametrize("host", ["127.0.0.1", "a.name"])
def test_a_callers_context_is_not_kept(
    peers: Callable[..., Peer], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection, the timer, a look-up and a send that the kernel does not take at once outlive
    the call that began them; what its caller had in its context is freed with it."""
    goes_on = threading.Event()

    def slow(sock: socket.socket) -> None:
        for _, request_id in frames_of(sock):
            sock.sendall(encode(messages.Ack(), request_id))
            goes_on.wait(10)

    def looked_up(*_: Any, **options: Any) -> Any:
        if options.get("flags"):
            raise OSError("this is a name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", slow_peer.port))]

    slow_peer = peers(slow)
    if host == "a.name":
        monkeypatch.setattr("socket.getaddrinfo", looked_up)
    session = new_session(slow_peer, host=host, timeout_s=20)
    requests: list[weakref.ref[_Request]] = []

    async def request(number: int, size: int = 0, is_waiting: bool = True) -> None:
        request = _Request()
        requests.append(weakref.ref(request))
        _current.set(request)
        exchange = write(session, number, 1, size=size)
        if is_waiting:
            assert await exchange.future == [ACKED]

    async def work() -> None:
        await asyncio.create_task(request(1))
        await asyncio.create_task(request(2, 12 << 20, False))  # longer than the kernel takes
        while not session._connections[1].watched:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)  # or the tasks are still at their ends
        gc.collect()
        assert [ref() for ref in requests] == [None, None]
        goes_on.set()

    run(session, work)


def test_a_silent_peer_is_left(peers: Callable[..., Peer]) -> None:
    """Nothing was answered since the request: its connection is closed, and the next request has
    another one."""
    peer = peers(hold, answer)
    session = new_session(peer, timeout_s=0.2)

    async def work() -> None:
        (lost,) = await write(session, 1, 1).future
        assert isinstance(lost.error, DeadlineExceeded)
        assert await write(session, 2, 1).future == [ACKED]
        assert peer.accepted == 2

    run(session, work)


def test_a_call_with_little_time_left(peers: Callable[..., Peer]) -> None:
    """Its deadline says little of the peer: the others' connection stays."""
    goes_on = threading.Event()

    def slow(sock: socket.socket) -> None:
        requests = frames_of(sock)
        _, first = next(requests)
        goes_on.wait(10)
        sock.sendall(encode(messages.Ack(), first))
        answer(sock)

    peer = peers(slow)
    session = new_session(peer, timeout_s=20)

    async def work() -> None:
        other = write(session, 1, 1)
        now = time.monotonic()
        frame = encode(messages.Write(1, 1, b"key", bytes(21)), 2)
        (lost,) = await session.exchange((1,), 2, frame, now, now + 0.05).future
        assert isinstance(lost.error, DeadlineExceeded)
        goes_on.set()
        assert await other.future == [ACKED]
        assert peer.accepted == 1

    run(session, work)


def test_what_nobody_waits_for_is_not_sent(peers: Callable[..., Peer]) -> None:
    """A peer takes nothing more: what is cancelled, or too late, while it waits to be sent, never
    is; and a deadline says then that nothing was sent."""
    goes_on = threading.Event()
    seen: list[int] = []

    def slow(sock: socket.socket) -> None:
        goes_on.wait(10)
        for _, request_id in frames_of(sock):
            seen.append(request_id)
            sock.sendall(encode(messages.Ack(), request_id))

    session = new_session(peers(slow, slow), timeout_s=2)

    async def work() -> None:
        first = write(session, 1, 1, size=12 << 20)
        while not session._connections[1].unfinished:
            await asyncio.sleep(0.001)
        cancelled, late = write(session, 2, 1), write(session, 3, 1)
        cancelled.future.cancel()
        session.timeout_s = 10
        last = write(session, 4, 1)
        (lost,) = await late.future
        assert not lost.sent
        assert (await first.future)[0].sent
        goes_on.set()
        # The peer goes on with what was begun; it never hears of the two.
        assert await last.future == [ACKED]
        assert await write(session, 5, 1).future == [ACKED]
        assert seen == [1, 4, 5]

    run(session, work)


@pytest.mark.parametrize(
    "data",
    [
        lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n",
        lambda request_id: encode(messages.Ack(), request_id + 7),
        lambda request_id: encode(messages.Ack(), request_id)[:-1],
        lambda _: b"",
    ],
    ids=["garbage", "another id", "cut", "the end"],
)
def test_what_is_no_reply(peers: Callable[..., Peer], data: Callable[[int], bytes]) -> None:
    """All that wait on the connection learn that it is lost; the next request has another one."""
    peer = peers(one_reply(data), answer)
    session = new_session(peer)

    async def work() -> None:
        exchanges = [write(session, number, 1) for number in (1, 2)]
        for exchange in exchanges:
            (lost,) = await exchange.future
            assert isinstance(lost, Lost)
            assert isinstance(lost.error, ConnectionLost)
        assert await write(session, 3, 1).future == [ACKED]

    run(session, work)


def test_a_refusal_of_the_connection(peers: Callable[..., Peer]) -> None:
    """An ERROR with the id 0 is the reply to all that wait, none of which was done."""
    peer = peers(one_reply(lambda _: error_frame(0, messages.BUSY, "full", messages.BusyDetail(1))))
    session = new_session(peer)

    async def work() -> None:
        for exchange in [write(session, number, 1) for number in (1, 2)]:
            (reply,) = await exchange.future
            assert reply[0] == messages.Error.kind

    run(session, work)


def test_peers_that_are_not_there(peers: Callable[..., Peer]) -> None:
    """One that is unknown, one that refuses, and a good one, in one step."""
    gone = peers()
    gone.close()
    session = new_session(peers(answer), gone)

    async def work() -> None:
        good, refused, unknown = await write(session, 1, 1, 2, 3).future
        assert good is ACKED
        for lost in (refused, unknown):
            assert isinstance(lost.error, ConnectError)
            assert not lost.sent
        assert await write(session, 2).future == []

    run(session, work)


def test_host_names(peers: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked up beside the loop: requests wait for that, and the loop does not."""
    peer = peers(answer)
    session = new_session(peer, host="storage.example")
    asked: list[str] = []
    goes_on = threading.Event()

    def look_up(host: str, *_: object, flags: int = 0, **__: object) -> list[Any]:
        if flags:
            raise socket.gaierror(socket.EAI_NONAME, "no number")
        asked.append(host)
        goes_on.wait(10)
        if len(asked) > 1:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))]

    async def work() -> None:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        exchanges = [write(session, number, 1) for number in (1, 2)]
        await asyncio.sleep(0)  # the loop goes on meanwhile
        goes_on.set()
        assert [await one.future for one in exchanges] == [[ACKED], [ACKED]]
        assert asked == ["storage.example"]
        session._fail(session._connections[1], ConnectionLost("node 1", "a test"))
        monkeypatch.setattr(addresses, "_good", {})
        (lost,) = await write(session, 3, 1).future
        assert isinstance(lost.error, ConnectError)
        assert "not known" in str(lost.error)

    run(session, work)


def test_idle_connections_are_closed(
    peers: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To nodes and to the manager, also of a client that makes no call any more; not one on which
    an answer is awaited."""
    monkeypatch.setattr(async_session, "CLIENT_IDLE_S", 0.05)
    session = new_session(peer := peers(answer, answer), peers(hold))

    async def work() -> None:
        assert await write(session, 1, 1).future == [ACKED]
        awaited = write(session, 2, 2)
        while 1 in session._connections:
            await asyncio.sleep(0.01)
        assert 2 in session._connections
        assert not awaited.future.done()
        assert await write(session, 3, 1).future == [ACKED]
        assert peer.accepted == 2

    run(session, work)


def test_a_pause_ends_with_the_call() -> None:
    """An operation that pauses for longer than is left learns that the time is up."""

    def sleepy() -> Operation[None]:
        try:
            while True:
                yield Pause(60)
        except DeadlineExceeded as error:
            raise OperationFailed(str(error)) from error

    session = new_session(timeout_s=0.05)

    async def work() -> None:
        with pytest.raises(OperationFailed, match="no time was left after"):
            await session.run(sleepy(), time.monotonic())

    run(session, work)


def test_a_pause_ends_when_its_ticket_is_called() -> None:
    """Before, or while the call waits; and a call that is cancelled there is called in vain."""
    turns = Turns()
    first, second, third, fourth = (turns.ticket(b"key1") for _ in range(4))
    for ticket in (first, second, third, fourth):
        ticket.join()
    session = new_session()

    def patient(ticket: Ticket) -> Operation[str]:
        yield Pause(60, ticket)
        return "called"

    async def work() -> None:
        first.leave()
        assert await session.run(patient(second), time.monotonic()) == "called"
        waiting = asyncio.ensure_future(session.run(patient(third), time.monotonic()))
        cancelled = asyncio.ensure_future(session.run(patient(fourth), time.monotonic()))
        await asyncio.sleep(0)
        cancelled.cancel()
        second.leave()
        assert await waiting == "called"
        third.leave()
        with pytest.raises(asyncio.CancelledError):
            await cancelled

    run(session, work)


def test_what_is_owed_goes_in_front(peers: Callable[..., Peer]) -> None:
    """C7: in front of the next request to that node, and at the end."""
    kinds: list[int] = []

    def note(sock: socket.socket) -> None:
        for kind, request_id in frames_of(sock):
            kinds.append(kind)
            if kind == messages.Write.kind:
                sock.sendall(encode(messages.Ack(), request_id))

    session = new_session(peer := peers(note))
    commit = encode(messages.Commit(1, bytes(16), b"key"), 0)

    async def work() -> None:
        session._owed[1] = commit * 2
        assert await write(session, 1, 1).future == [ACKED]
        assert kinds == [messages.Commit.kind, messages.Commit.kind, messages.Write.kind]
        session._owed[1] = commit

    run(session, work)
    peer._thread.join()
    assert kinds[3:] == [messages.Commit.kind]
