"""Names of hosts: the time limits are ours, all addresses are tried, in each way to connect.

The resolver is a function here; on the wire it would be resolv.conf's five seconds a try. Networks
127.0.0.0/8 have an address for everybody: at some of them nobody listens.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gtstore import addresses, threads
from gtstore.async_session import AsyncSession
from gtstore.connection import Connection, Deadline, call_once
from gtstore.errors import ConnectError, DeadlineExceeded, NetworkError
from gtstore.operations import ACKED, Lost, Operation, Reply, Source
from gtstore.session import Session
from gtstore.testing import wait_until
from gtstore.wire import messages
from gtstore.wire.codec import ACK, encode

from .peers import PONG, Peer, answer

Way = Callable[[str, int, float], None]
"""Connects to a host and a port, has one request answered, and raises NetworkError if it cannot
in so many seconds."""

HERE, NOBODY, SILENT = "127.0.0.1", "127.0.0.99", "127.0.0.98"


class Names:
    """A name server."""

    def __init__(self) -> None:
        self.addresses: list[str] | Exception = [HERE]
        self.is_there = threading.Event()
        self.is_there.set()
        self.asked: list[str] = []

    def getaddrinfo(self, host: str, port: int | None, *_: object, **options: Any) -> list[Any]:
        assert port is None, "each name is looked up once, for all ports"
        if host[0].isdigit():
            return [self._row(host)]
        if options.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "no number")
        self.asked.append(host)
        self.is_there.wait(20)
        if isinstance(self.addresses, Exception):
            raise self.addresses
        return [self._row(address) for address in self.addresses]

    def _row(self, address: str) -> Any:
        if ":" in address:
            return socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, 0, 0, 0)
        return socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    server = Names()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    monkeypatch.setattr(addresses, "_good", {})
    yield server
    server.is_there.set()


def ping(host: str, port: int, timeout_s: float) -> None:
    reply = call_once("a peer", host, port, messages.Ping(), timeout_s)
    assert reply == PONG


def in_loop(host: str, port: int, timeout_s: float) -> None:
    def write() -> Operation[Reply]:
        replies = yield (1,), 1, encode(messages.Write(1, 1, b"key", bytes(31)), 1)
        return replies[0]

    session = Session(lambda _: ("a peer", host, port))
    try:
        reply = session.run(write(), timeout_s)
    finally:
        session.close()
    if isinstance(reply, Lost):
        assert not reply.sent
        raise reply.error
    assert reply[0] == ACK


def in_tasks(host: str, port: int, timeout_s: float) -> None:
    async def main() -> None:
        source = Source(lambda: 1, time.time_ns, lambda: 0.5)
        session = AsyncSession(lambda _: ("a peer", host, port), source, timeout_s)
        session.enter()
        try:
            now = time.monotonic()
            frame = encode(messages.Write(1, 1, b"key", bytes(31)), 1)
            (reply,) = await session.exchange((1,), 1, frame, now, now + timeout_s).future
        finally:
            session.close()
        if isinstance(reply, Lost):
            assert not reply.sent
            raise reply.error
        assert reply == ACKED

    asyncio.run(main())


@pytest.fixture(params=[ping, in_loop, in_tasks])
def way(request: pytest.FixtureRequest) -> Way:
    """Each way in which nodes, managers and clients connect."""
    found: Way = request.param
    return found


def test_a_silent_name_server(names: Names, peers: Callable[..., Peer], way: Way) -> None:
    """A call takes no longer than it may in all, and says who did not answer; nothing keeps the
    program from its end; and once the name server is back, all is well."""
    peer = peers(answer)
    names.is_there.clear()
    with pytest.raises(
        NetworkError, match=r"no answer from the name server about 'a\.name' within"
    ):
        way("a.name", peer.port, 0.1)
    assert names.asked == ["a.name"]
    assert all(thread.daemon for thread in threading.enumerate() if "look up" in thread.name)
    names.is_there.set()
    way("a.name", peer.port, 10)


def test_a_name_server_that_comes_back(
    names: Names, peers: Callable[..., Peer], way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call does not wait for a question that was lost before it came: it asks again."""
    peer = peers(answer)
    is_lost = threading.Event()
    answers = names.getaddrinfo

    def lose_the_first(host: str, *arguments: Any, **options: Any) -> list[Any]:
        if host == "a.name" and not options.get("flags") and not names.asked:
            names.asked.append(host)
            is_lost.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "timed out")
        return answers(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lose_the_first)
    monkeypatch.setattr(addresses, "_ASK_AGAIN_S", 0.01)
    with pytest.raises(NetworkError):
        way("a.name", peer.port, 0.1)
    way("a.name", peer.port, 10)
    assert len(names.asked) == 2
    is_lost.set()


def test_the_last_good_address(names: Names, peers: Callable[..., Peer], way: Way) -> None:
    """Where somebody has answered before is tried without waiting for the name server."""
    peer = peers(answer, answer)
    way("a.name", peer.port, 10)
    names.is_there.clear()
    way("a.name", peer.port, 10)


def test_a_good_address_that_is_no_more(names: Names, peers: Callable[..., Peer], way: Way) -> None:
    """The host is elsewhere: it is looked up anew, and found."""
    way("a.name", peers(answer).port, 10)
    addresses._good["a.name"] = (socket.AF_INET, (NOBODY, 0))
    way("a.name", peers(answer).port, 10)
    assert addresses._good["a.name"] == (socket.AF_INET, (HERE, 0))
    names.addresses = [NOBODY]
    search = addresses.Search("a.name", 1)
    while search.bell is not None:
        search.take()
        time.sleep(0.001)
    assert "a.name" not in addresses._good, "whoever is there has another name"


def test_all_addresses_are_tried(names: Names, peers: Callable[..., Peer], way: Way) -> None:
    """Nobody listens at the first ones; one is of a family that this machine may not even have."""
    names.addresses = ["::1", NOBODY, HERE]
    way("a.name", peers(answer).port, 10)
    assert addresses._good["a.name"][1][0] == HERE


def test_an_address_without_any_answer(
    names: Names, peers: Callable[..., Peer], way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its share of the time, not all of it. (Nothing is silent in 127.0.0.0/8: so the
    connection there never comes about.)"""
    real = Connection._has_connected

    def never_there(connection: Connection) -> bool:
        return connection._target[0] != SILENT and real(connection)

    peer = peers(answer)
    silent = socket.create_server((SILENT, peer.port))
    monkeypatch.setattr(Connection, "_has_connected", never_there)
    names.addresses = [SILENT, HERE]
    with silent:
        way("a.name", peer.port, 4)


def test_no_address_answers(names: Names, peers: Callable[..., Peer], way: Way) -> None:
    """What was tried is told, each with why it was of no use."""
    gone = peers()
    gone.close()
    names.addresses = [NOBODY, HERE]
    with pytest.raises(
        ConnectError,
        match=rf"a peer: {NOBODY}: connection refused; {HERE}: connection refused$",
    ):
        way("a.name", gone.port, 10)
    with pytest.raises(ConnectError, match=r"a peer: connection refused$"):
        way(HERE, gone.port, 10)


@pytest.mark.parametrize(
    ("answer_of_server", "reason"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "name or service not"),
        (OSError(24, "Too many open files"), "too many open files"),
        ([], "it has no address"),
    ],
)
def test_a_name_of_nothing(
    names: Names, way: Way, answer_of_server: list[str] | Exception, reason: str
) -> None:
    names.addresses = answer_of_server
    with pytest.raises(ConnectError, match=reason):
        way("a.name", 1, 10)


def test_no_thread_for_a_look_up(names: Names, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    real = threads.start_new_thread

    def none_left(work: Any, arguments: tuple[()]) -> int:
        if "look up" in work.__self__.name:
            raise RuntimeError("can't start new thread")
        return real(work, arguments)

    monkeypatch.setattr(threads, "start_new_thread", none_left)
    with pytest.raises(ConnectError, match="can't start new thread"):
        way("a.name", 1, 10)
    assert addresses._lookups == {}
    assert names.asked == []


def test_names_are_looked_up_in_parallel(names: Names, peers: Callable[..., Peer]) -> None:
    """One that is not answered holds up no other; one that two wait for is asked for once."""
    quick, slow = peers(answer), peers(answer, answer)
    answers = names.getaddrinfo
    goes_on = threading.Event()

    def slowly(host: str, *arguments: Any, **options: Any) -> list[Any]:
        if host == "slow.name" and not options.get("flags"):
            assert goes_on.wait(20)
        return answers(host, *arguments, **options)

    def request(node: int) -> Operation[int]:
        replies = yield (node,), node, encode(messages.Write(1, 1, b"key", bytes(31)), node)
        if node == 1:
            goes_on.set()
        return replies[0][0]

    places = {1: ("quick.name", quick.port), 2: ("slow.name", slow.port)}
    session = Session(lambda node: ("a peer", *places[min(node, 2)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", slowly)
        outcomes = session.run_many(map(request, (2, 1)), 10, 2)
    assert outcomes == [ACK, ACK]
    assert sorted(names.asked) == ["quick.name", "slow.name"]
    session.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_asks_for_itself(names: Names) -> None:
    """A fork has the parent's look-ups without their threads: it forgets them."""
    names.is_there.clear()
    search = addresses.Search("a.name", 1)
    assert search.take() is None
    child = os.fork()
    if not child:
        os._exit(len(addresses._lookups))
    assert os.waitpid(child, 0)[1] == 0
    assert list(addresses._lookups) == ["a.name"]


def test_a_deadline_that_has_passed(names: Names, peers: Callable[..., Peer]) -> None:
    with pytest.raises(ConnectError, match="within 0 s"):
        Connection.open("a peer", "a.name", peers(answer).port, Deadline(0))
    assert issubclass(DeadlineExceeded, NetworkError)
    wait_until(lambda: names.asked, "the question")
