"""A client whose peers break the protocol: small servers in this process that answer what they
should not.

Whatever they do, a call ends in time with the right value or with the right error of
gtstore.errors; a put says OutcomeUnknown only where it may have happened; and a connection on which
the borders of frames, or requests and replies, are no longer certain is never used again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import gtstore
from gtstore.client import Client
from gtstore.errors import (
    BatchFailed,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    GTStoreError,
    OperationFailed,
    OutcomeUnknown,
    RemoteError,
    RemoteProtocolError,
)
from gtstore.placement import epoch_of
from gtstore.wire import messages
from gtstore.wire.codec import HEADER, MAGIC_VERSION, decode, encode, error_frame
from gtstore.wire.messages import (
    ALIVE,
    COMMITTED,
    HASH_ADDITIVE,
    MIB,
    Ack,
    Cluster,
    ClusterInfo,
    Commit,
    EntryReply,
    Error,
    Get,
    GetMap,
    GetTroubles,
    KeyNodes,
    Map,
    Member,
    NextPrimary,
    NotFound,
    Owner,
    Owners,
    Ping,
    Pong,
    Row,
    StaleDetail,
    Superseded,
    Troubles,
    Write,
)

from .blocking import Connect, connect_blocking, set_timeout
from .peers import Answer, FakePeer, raw, says

CLUSTER_ID = 0xC0FFEE01
OTHER_CLUSTER = 0xDEADBEEF
TIMEOUT_S = 0.25
"""The shortest with which a client goes the way of its hot path."""
SHORT_S = 0.1
"""Enough for calls that go to the manager, which have no other way."""
AMPLE_S = 5.0
"""For calls that are to end before their deadline, on a machine that is busy with other tests."""
LATE_S = 5.0
"""How much later than its deadline a call may return on a machine that is busy with other tests; a
call that hangs never does."""


class FakeNode(FakePeer):
    """A good node, at first. It takes every entry for complete."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: dict[bytes, bytes] = {}
        pong = Pong(messages.ROLE_NODE, 1, 1, 1, 1, 1, 1, 1, 0)
        self.answers = {
            Get.kind: self._get,
            Write.kind: self._write,
            Commit.kind: lambda *_: None,
            Ping.kind: says(pong),
        }

    def _get(self, sock: socket.socket, request_id: int, body: bytes) -> None:
        request = decode(Get.kind, body)
        assert isinstance(request, Get)
        entry = self.entries.get(request.key)
        sock.sendall(encode(EntryReply(entry) if entry else NotFound(), request_id))

    def _write(self, sock: socket.socket, request_id: int, body: bytes) -> None:
        request = decode(Write.kind, body)
        assert isinstance(request, Write)
        entry = bytearray(request.entry)
        entry[20] |= COMMITTED
        self.entries[request.key] = bytes(entry)
        sock.sendall(encode(Ack(), request_id))


class FakeCluster:
    """A manager and two nodes that own one partition together."""

    def __init__(self, connect: Connect) -> None:
        self.connect = connect
        """What makes the client: both of them must stand all this."""
        self.manager = FakePeer()
        self.nodes = [FakeNode(), FakeNode()]
        self.tell(self.shape(), self.map())

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.manager.port}"

    def shape(self, **changes: Any) -> Cluster:
        members = tuple(
            Member(number, ALIVE, 1, 1, node.port, "127.0.0.1")
            for number, node in enumerate(self.nodes, start=1)
        )
        time_us = time.time_ns() // 1000
        shape = Cluster(epoch_of(CLUSTER_ID, 1), 2, 2, HASH_ADDITIVE, 1, time_us, members)
        return dataclasses.replace(shape, **changes)

    def map(self, **changes: Any) -> Map:
        epoch = epoch_of(CLUSTER_ID, 1)
        owners = tuple(Owner(number, 1, epoch, 1) for number in (1, 2))
        row = dataclasses.replace(Row(0, epoch, epoch, owners), **changes)
        return Map(epoch, (row,))

    def tell(self, shape: Cluster, partition_map: Map) -> None:
        """Have the manager say this of the cluster."""
        owners = Owners(self.map().rows[0], self.shape().members)
        self.manager.behave(
            {
                ClusterInfo.kind: says(shape),
                GetTroubles.kind: says(Troubles(())),
                GetMap.kind: says(partition_map),
                KeyNodes.kind: says(owners),
                NextPrimary.kind: says(owners),
            }
        )

    def behave(self, answer: Answer, is_fatal: bool = False) -> None:
        """Have both nodes answer data requests like that."""
        for node in self.nodes:
            node.bad_kinds = {Get.kind, Write.kind} if is_fatal else set()
            node.behave({Get.kind: answer, Write.kind: answer})

    def close(self) -> None:
        for peer in (self.manager, *self.nodes):
            peer.close()


@pytest.fixture(params=[gtstore.connect, connect_blocking], ids=["threads", "asyncio"])
def cluster(request: pytest.FixtureRequest) -> Iterator[FakeCluster]:
    running = FakeCluster(request.param)
    yield running
    running.close()


# --- answers -------------------------------------------------------------------------------------


def body_of(kind: int, body: bytes) -> Answer:
    """A frame whose body is not what its kind says."""
    return raw(lambda number: HEADER.pack(MAGIC_VERSION, kind, 0, number, len(body)) + body)


def refuses(code: int, detail: Any = None) -> Answer:
    return raw(lambda number: error_frame(number, code, "no", detail))


def closes(answer: Answer) -> Answer:
    """The same, and then the end of the connection."""

    def then_close(sock: socket.socket, request_id: int, body: bytes) -> None:
        answer(sock, request_id, body)
        raise ConnectionAbortedError

    return then_close


def silent(sock: socket.socket, request_id: int, body: bytes) -> None:
    pass


def reset(sock: socket.socket, *_: Any) -> None:
    """The connection is reset: with this option, closing drops what is still to be sent."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raise ConnectionAbortedError


def endless(data: bytes) -> Answer:
    """These bytes again and again, until the client has had enough."""

    def pour(sock: socket.socket, *_: Any) -> None:
        while True:
            sock.sendall(data)

    return pour


def trickle(sock: socket.socket, request_id: int, _: bytes) -> None:
    """A right reply, a byte at a time."""
    for byte in encode(Ack(), request_id) + bytes(1000):
        sock.sendall(bytes((byte,)))
        time.sleep(0.03)


def with_flags(number: int) -> bytes:
    return HEADER.pack(MAGIC_VERSION, NotFound.kind, 1, number, 0)


ENTRY = EntryReply(struct.pack(">QQIB", 1, 2, 3, COMMITTED) + b"not what was stored")
OTHER_ROW = Row(0, epoch_of(OTHER_CLUSTER, 1), epoch_of(OTHER_CLUSTER, 1), (Owner(1, 1, 1, 1),))
TEXT_TOO_LONG = struct.pack(">HH", messages.STALE_EPOCH, 500) + b"short"
UNREADABLE = HEADER.pack(MAGIC_VERSION, Error.kind, 0, 0, 0)

GONE_ASTRAY = {
    "another request's id": raw(lambda number: encode(ENTRY, number + 1)),
    "the id 0": raw(lambda _: encode(ENTRY, 0)),
    "cut, then closed": closes(raw(lambda number: encode(ENTRY, number)[:20])),
    "cut, then silent": raw(lambda number: encode(ENTRY, number)[:20]),
    "flags in its header": raw(with_flags),
    "garbage": raw(lambda _: bytes(range(200))),
    "HTTP": closes(raw(lambda _: b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")),
    "protocol version 2": raw(lambda number: b"\xc7\x02" + encode(ENTRY, number)[2:]),
    "a length of 4294967295": raw(lambda n: HEADER.pack(MAGIC_VERSION, 0x90, 0, n, 0xFFFF_FFFF)),
    "zeros without end": endless(bytes(65536)),
    "replies to nobody without end": endless(encode(ENTRY, 4_000_000_000) * 1000),
    "a frame without end": raw(lambda number: HEADER.pack(MAGIC_VERSION, 0x90, 0, number, MIB)),
    "a byte now and then": trickle,
    "nothing": silent,
    "the end of the connection": closes(silent),
    "a reset": reset,
}  # fmt: skip
"""Nothing more can be believed on such a connection: it is closed, and other ones are tried until
the deadline."""


@dataclasses.dataclass
class Case:
    """A reply in a whole frame that is wrong in itself, and what it makes of a get and of a put."""

    answer: Answer
    get: type[GTStoreError]
    put: type[GTStoreError] | tuple[type[GTStoreError], ...]


AT_THE_DEADLINE = (OperationFailed, OutcomeUnknown)
"""Whether the last attempt of many is answered when the time is up is a matter of chance."""

WRONG_REPLIES = {
    "a request": Case(says(Ping()), RemoteProtocolError, OutcomeUnknown),
    "an unknown kind": Case(body_of(0xEE, b"abc"), RemoteProtocolError, OutcomeUnknown),
    "another request's reply": Case(says(Map(1, ())), RemoteProtocolError, OutcomeUnknown),
    "a short entry": Case(body_of(0x90, bytes(20)), RemoteProtocolError, OutcomeUnknown),
    "a short version": Case(body_of(0x93, bytes(8)), RemoteProtocolError, OperationFailed),
    "a long version": Case(body_of(0x93, bytes(17)), RemoteProtocolError, OperationFailed),
    "the highest version": Case(
        says(Superseded(b"\xff" * 16)), RemoteProtocolError, OperationFailed
    ),
    "an error of no bytes": Case(body_of(0xFF, b""), RemoteProtocolError, OutcomeUnknown),
    "an unknown error": Case(body_of(0xFF, b"\x7f\xff\0\0"), DeadlineExceeded, OutcomeUnknown),
    "a text that leaves the frame": Case(
        body_of(0xFF, TEXT_TOO_LONG), RemoteProtocolError, OperationFailed
    ),
    "a row of garbage": Case(
        says(Error(messages.STALE_EPOCH, "", b"garbage")), RemoteProtocolError, OperationFailed
    ),
    "a row of another cluster": Case(
        refuses(messages.STALE_EPOCH, StaleDetail(OTHER_ROW)), DeadlineExceeded, AT_THE_DEADLINE
    ),
    "a row that is no news": Case(
        refuses(messages.STALE_EPOCH, StaleDetail(dataclasses.replace(OTHER_ROW, list_epoch=1))),
        DeadlineExceeded,
        AT_THE_DEADLINE,
    ),
    "not ready, for ever": Case(refuses(messages.NOT_READY), DeadlineExceeded, AT_THE_DEADLINE),
    "malformed": Case(refuses(messages.MALFORMED), RemoteError, OperationFailed),
    "a refusal of the connection": Case(
        closes(raw(lambda _: error_frame(0, messages.BUSY, "a\nb", messages.BusyDetail(1)))),
        DeadlineExceeded,
        AT_THE_DEADLINE,
    ),
    "a refusal that cannot be read": Case(
        closes(raw(lambda _: UNREADABLE)), RemoteProtocolError, OutcomeUnknown
    ),
    "two refusals that cannot be read": Case(
        closes(raw(lambda _: UNREADABLE * 2)), RemoteProtocolError, OutcomeUnknown
    ),
}
"""Errors with the outcome "no" leave no doubt, even if their fields cannot be read (section 8)."""


# --- what a client does --------------------------------------------------------------------------


def in_time(call: Callable[[], Any]) -> Any:
    """A call's result or error; it must come soon after the deadline, and be one of ours, in one
    line."""
    started = time.monotonic()
    outcome: Any
    try:
        outcome = call()
    except GTStoreError as error:
        outcome = error
    assert time.monotonic() - started < AMPLE_S + LATE_S
    assert not isinstance(outcome, GTStoreError) or "\n" not in str(outcome)
    return outcome


def outcomes(
    cluster: FakeCluster, answer: Answer, timeout_s: float, is_fatal: bool = False
) -> dict[str, Any]:
    """What became of calls to nodes that answer so: of each operation, with a new client and with
    one that has its connections, all side by side. The clients must be as good as new afterwards.
    """
    # A batch's second request may be under way when the first one's reply is not what it should be.
    keys = ["key"] if is_fatal else ["key", "new"]
    calls: dict[str, Callable[[Client], Any]] = {
        "get": lambda store: store.get("key"),
        "put": lambda store: store.put("new", "value"),
        "delete": lambda store: store.delete("new"),
        "get_many": lambda store: store.get_many(keys),
        "put_many": lambda store: store.put_many(dict.fromkeys(keys, "value")),
    }
    good = cluster.nodes[0].answers, cluster.nodes[1].answers
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(cluster.connect(cluster.address, AMPLE_S))
            for _ in range(2 * len(calls))
        ]
        for store in clients[::2]:
            store.put("key", "value")
        for store in clients:
            set_timeout(store, timeout_s)
        cluster.behave(answer, is_fatal)
        with ThreadPoolExecutor(len(clients)) as pool:
            futures = {
                (name, is_warm): pool.submit(in_time, lambda s=store, c=call: c(s))  # type: ignore[misc]
                for (name, call), pair in zip(
                    calls.items(), zip(clients[::2], clients[1::2], strict=True), strict=True
                )
                for store, is_warm in zip(pair, (True, False), strict=True)
            }
        found = {
            f"{name}, {'warm' if is_warm else 'cold'}": future.result()
            for (name, is_warm), future in futures.items()
        }
        for node, answers in zip(cluster.nodes, good, strict=True):
            node.bad_kinds = set()
            node.answers = answers
        for store in clients:
            set_timeout(store, AMPLE_S)
            assert store.get("key") == b"value"
            assert store.put("key", "value").nodes == (1, 2)
        assert [node.reused for node in cluster.nodes] == [[], []]
    return found


def check(found: dict[str, Any], get: Any, put: Any) -> None:
    """Each operation's error is of these classes, and each key's of a batch too."""
    for name, outcome in found.items():
        expected = get if name.startswith("get") else put
        if "many" in name:
            assert isinstance(outcome, BatchFailed), (name, outcome)
            assert all(isinstance(error, expected) for error in outcome.errors.values()), outcome
            assert not outcome.results
        else:
            assert isinstance(outcome, expected), (name, outcome)


def test_good_peers(cluster: FakeCluster) -> None:
    """The servers of these tests are no worse than they are told to be."""
    with cluster.connect(cluster.address) as store:
        assert store.put("key", "value").nodes == (1, 2)
        assert store.get("key") == b"value"
        assert store.get_many(["key", "none"]) == {"key": b"value", "none": None}
        assert store.where("key").owners == (1, 2)
        assert len(store.status()["nodes"]) == 2
        store.delete("key")
        assert store.get("key") is None


@pytest.mark.parametrize("name", GONE_ASTRAY)
def test_what_is_no_reply(cluster: FakeCluster, name: str) -> None:
    """Section 5: the connection is closed, and not used again; a read is tried again until its
    deadline, a write may have happened."""
    unknown = AT_THE_DEADLINE if name in MAYBE_UNSENT else OutcomeUnknown
    found = outcomes(cluster, GONE_ASTRAY[name], TIMEOUT_S, is_fatal=True)
    check(found, DeadlineExceeded, unknown)


MAYBE_UNSENT = ("the end of the connection", "a reset", "HTTP", "cut, then closed")
"""A request that finds its connection closed already was not sent."""


@pytest.mark.parametrize("name", WRONG_REPLIES)
def test_a_reply_that_is_wrong_in_itself(cluster: FakeCluster, name: str) -> None:
    """Sections 7 and 8: the error says what is wrong, and whether a write may have happened."""
    case = WRONG_REPLIES[name]
    timeout_s = TIMEOUT_S if case.get is DeadlineExceeded else AMPLE_S
    check(outcomes(cluster, case.answer, timeout_s), case.get, case.put)


def test_closed_right_after_accept(cluster: FakeCluster) -> None:
    """Nodes that take no request: they are tried again until the deadline."""
    with cluster.connect(cluster.address, TIMEOUT_S) as store:
        for node in cluster.nodes:
            node.greeting = reset
        assert isinstance(in_time(lambda: store.get("key")), DeadlineExceeded)
        outcome = in_time(lambda: store.put("key", "value"))
        assert isinstance(outcome, OperationFailed | OutcomeUnknown)
        cluster.manager.greeting = reset
        outcome = in_time(lambda: cluster.connect(cluster.address, TIMEOUT_S))
        assert isinstance(outcome, ConnectError | DeadlineExceeded)


def test_garbage_before_any_request(cluster: FakeCluster) -> None:
    """A peer that speaks first is none of ours."""
    for node in cluster.nodes:
        node.greeting = lambda sock: sock.sendall(b"220 mail.example ESMTP\r\n")
    with cluster.connect(cluster.address, TIMEOUT_S) as store:
        assert isinstance(in_time(lambda: store.get("key")), DeadlineExceeded)
        outcome = in_time(lambda: store.put("key", "value"))
        assert isinstance(outcome, OperationFailed | OutcomeUnknown)


@pytest.mark.parametrize(
    "data",
    [bytes(65536), encode(ENTRY, 4_000_000_000) * 1000, b"\xc7\x01\x90\0\0\0\0\1\xff\xff\xff\xff"],
    ids=["zeros", "replies to nobody", "a length of 4294967295"],
)
def test_endless_streams_take_no_memory(cluster: FakeCluster, data: bytes) -> None:
    """What is no reply is not kept: less than a MiB, for all that one receive returns and what is
    made of it, while hundreds pour in."""
    with cluster.connect(cluster.address, TIMEOUT_S) as store:
        cluster.behave(endless(data))
        tracemalloc.start()
        try:
            assert isinstance(in_time(lambda: store.get("key")), DeadlineExceeded)
            assert tracemalloc.get_traced_memory()[1] < MIB
        finally:
            tracemalloc.stop()


def test_a_reply_that_never_ends_takes_what_has_come(cluster: FakeCluster) -> None:
    """Section 14: memory is taken for bytes that have arrived, not for those that are announced."""
    with cluster.connect(cluster.address, TIMEOUT_S) as store:
        announced = raw(lambda n: HEADER.pack(MAGIC_VERSION, 0x90, 0, n, 16 * MIB) + bytes(1000))
        cluster.behave(announced)
        tracemalloc.start()
        try:
            assert isinstance(in_time(lambda: store.get("key")), DeadlineExceeded)
            assert tracemalloc.get_traced_memory()[1] < 3 * MIB  # one large receive, two at most
        finally:
            tracemalloc.stop()


def test_nodes_of_another_cluster(cluster: FakeCluster) -> None:
    """Section 10.3: STALE_EPOCH with another cluster's row: the client starts over with Init, and
    goes on there."""
    stale = refuses(messages.STALE_EPOCH, StaleDetail(OTHER_ROW))
    with cluster.connect(cluster.address, AMPLE_S) as store:
        other = FakeCluster(cluster.connect)
        try:
            store.put("key", "value")
            cluster.behave(stale)
            epoch = epoch_of(OTHER_CLUSTER, 1)
            cluster.tell(other.shape(epoch=epoch), Map(epoch, (OTHER_ROW,)))
            assert store.get("key") is None
            assert store.put("key", "there").nodes == (1,)
            assert store.get("key") == b"there"
            assert b"key" in other.nodes[0].entries
        finally:
            other.close()


# --- managers ------------------------------------------------------------------------------------

NO_MAPS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "no rows": ({"partitions": 0}, None),
    "no owners": ({}, {"owners": ()}),
    "an owner twice": ({}, {"owners": (Owner(1, 1, 1, 1), Owner(1, 1, 1, 1))}),
    "the manager as owner": ({}, {"owners": (Owner(0, 1, 1, 1),)}),
    "another partition": ({}, {"partition": 1}),
    "an unknown hash": ({"hash": 200}, {}),
    "a clock at the end of time": ({"time": (1 << 64) - 1}, {}),
    "a member twice": ({"members": (Member(1, ALIVE, 1, 1, 1, "127.0.0.1"),) * 2}, {}),
    "the manager as member": ({"members": (Member(0, ALIVE, 1, 1, 1, "127.0.0.1"),)}, {}),
    "no cluster id": ({"epoch": 1}, {"list_epoch": 1}),
}
"""Changes of CLUSTER and of the map's row, or None for no row at all."""


@pytest.mark.parametrize("name", NO_MAPS)
def test_a_map_that_is_none(cluster: FakeCluster, name: str) -> None:
    """Init ends at once, and says so."""
    shape_changes, row_changes = NO_MAPS[name]
    rows = () if row_changes is None else cluster.map(**row_changes).rows
    shape = cluster.shape(**shape_changes)
    with cluster.connect(cluster.address, AMPLE_S) as store:
        cluster.tell(shape, Map(shape.epoch, rows))
        assert isinstance(
            in_time(lambda: cluster.connect(cluster.address, AMPLE_S)), RemoteProtocolError
        )
        assert isinstance(in_time(store.status), GTStoreError | dict)
        assert store.put("key", "value").nodes == (1, 2)
        assert store.get("key") == b"value"


def test_a_map_of_another_size(cluster: FakeCluster) -> None:
    """Section 10.2: the halves do not fit together, so the client asks again."""
    for shape in (cluster.shape(partitions=2), cluster.shape(epoch=epoch_of(OTHER_CLUSTER, 1))):
        cluster.tell(shape, cluster.map())
        outcome = in_time(lambda: cluster.connect(cluster.address, TIMEOUT_S))
        assert isinstance(outcome, DeadlineExceeded)


def nowhere(host: str = "127.0.0.1", port: int = 1) -> dict[str, Any]:
    """Members that cannot be reached."""
    return {"members": tuple(Member(number, ALIVE, 1, 1, port, host) for number in (1, 2))}


DEAD_ENDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "owners that are no members": ({}, {"owners": (Owner(7, 1, 1, 1), Owner(8, 1, 1, 1))}),
    "255 owners": ({}, {"owners": tuple(Owner(number, 1, 1, 1) for number in range(3, 258))}),
    "a port where nobody listens": (nowhere(), {}),
    "port 0": (nowhere(port=0), {}),
    "no host": (nowhere(host=""), {}),
    "a host that is no name": (nowhere(host="\0\n\x1b[2J" + "x" * 900), {}),
}


@pytest.mark.parametrize("name", DEAD_ENDS)
def test_a_map_that_leads_nowhere(cluster: FakeCluster, name: str) -> None:
    """Nothing can be sent, so nothing has happened; and the reason stays on its line."""
    shape_changes, row_changes = DEAD_ENDS[name]
    shape, row = cluster.shape(**shape_changes), cluster.map(**row_changes).rows[0]
    cluster.tell(shape, Map(shape.epoch, (row,)))
    for kind in (KeyNodes.kind, NextPrimary.kind):
        cluster.manager.behave({kind: says(Owners(row, shape.members))})
    with cluster.connect(cluster.address, TIMEOUT_S) as store:
        assert isinstance(in_time(lambda: store.get("key")), DeadlineExceeded)
        assert isinstance(in_time(lambda: store.put("key", "value")), OperationFailed)
        assert isinstance(in_time(store.status), dict)


@pytest.mark.parametrize("time_us", [0, 1, (1 << 63) - 1])
def test_an_absurd_clock(cluster: FakeCluster, time_us: int) -> None:
    """Versions follow it, and go on rising; that they are too far ahead is for nodes to say."""
    cluster.tell(cluster.shape(time=time_us), cluster.map())
    with cluster.connect(cluster.address, AMPLE_S) as store:
        versions = [store.put("key", f"{i}").version for i in range(5)]
        assert versions == sorted(set(versions))
        assert store.get("key") == b"4"


@pytest.mark.parametrize("name", [*GONE_ASTRAY, *WRONG_REPLIES])
def test_managers(cluster: FakeCluster, name: str) -> None:
    """Whatever they answer with: a new client says that there is none, or what is wrong; one that
    knows the map goes on without."""
    answer = GONE_ASTRAY.get(name) or WRONG_REPLIES[name].answer
    kinds = (ClusterInfo.kind, GetMap.kind, KeyNodes.kind)
    with cluster.connect(cluster.address, AMPLE_S) as store, ThreadPoolExecutor(1) as pool:
        cluster.manager.bad_kinds = set(kinds) if name in GONE_ASTRAY else set()
        cluster.manager.behave(dict.fromkeys(kinds, answer))
        new = pool.submit(in_time, lambda: cluster.connect(cluster.address, SHORT_S))
        set_timeout(store, SHORT_S)
        errors = (ConnectionLost, DeadlineExceeded, RemoteProtocolError, RemoteError)
        # One after the other: of asyncio's client both would be sent before any answer comes.
        assert isinstance(in_time(lambda: store.where("key")), errors)
        assert isinstance(in_time(store.status), errors)
        assert isinstance(new.result(), errors)
        set_timeout(store, AMPLE_S)
        assert store.put("key", "value").nodes == (1, 2)
        assert store.get("key") == b"value"
        assert cluster.manager.reused == []
