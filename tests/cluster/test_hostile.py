"""Bad input and trouble (PROTOCOL.md sections 5 and 8) against a running node and manager.

After each test the processes answer, what was stored is there, nothing was written to a log that
should not be, and threads, files and memory are what they were.
"""

from __future__ import annotations

import contextlib
import pickle
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gtstore.placement import home_owners
from gtstore.testing import Cluster, wait_until
from gtstore.wire import messages
from gtstore.wire.codec import encode, encode_record
from gtstore.wire.messages import (
    HEADER_SIZE,
    MIB,
    VALUE_SIZE_MAX,
    Commit,
    Entry,
    Get,
    KeyNodes,
    Message,
    NextPrimary,
    Write,
)

from .. import peers
from ..fuzz.engine import Fuzzer, State, Target

pytestmark = pytest.mark.cluster

CONNECTIONS_MAX = 20
LINGER_RESET = struct.pack("ii", 1, 0)
KEY = b"key1"
PARTITION = 186
HELD = next(
    key.encode() for key in Fuzzer.guarded() if 1 in home_owners(sum(key.encode()) % 192, 3, 2)
)
"""A guarded key that node 1 holds."""


@pytest.fixture(scope="module")
def fuzzer() -> Iterator[Fuzzer]:
    """A cluster of 3 nodes and 2 replicas that is quick to lose patience; with guarded keys."""
    options = ["--frame-timeout-ms", "600", "--max-connections", str(CONNECTIONS_MAX)]
    with Cluster(3, 2, options) as cluster:
        yield Fuzzer(cluster)


@pytest.fixture(autouse=True)
def all_is_well_afterwards(fuzzer: Fuzzer) -> Iterator[None]:
    yield
    fuzzer.after()


@pytest.fixture
def node(fuzzer: Fuzzer) -> Target:
    return fuzzer.targets[0]


@pytest.fixture(params=[0, 1], ids=["node", "manager"])
def target(fuzzer: Fuzzer, request: pytest.FixtureRequest) -> Target:
    return fuzzer.targets[request.param]


class Talk(peers.Talk):
    """A connection to one of the targets."""

    def __init__(self, target: Target, receive_size: int | None = None) -> None:
        super().__init__(target.port, receive_size)
        self.sock.settimeout(20)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, message: Message, request_id: int = 1) -> None:
        self.send(encode(message, request_id))

    def refusal(self) -> tuple[int, str]:
        """The next reply, an ERROR: its request id and its name."""
        return self.error()[:2]

    def assert_closed(self) -> None:
        with contextlib.suppress(ConnectionResetError):
            assert self.reply() is None

    def assert_open(self) -> None:
        self.ask(messages.Ping(), 77)
        answer = self.reply()
        assert answer is not None
        assert answer[0] == 77
        assert isinstance(answer[1], messages.Pong)


def header(kind: int, length: int, request_id: int = 1, flags: int = 0, version: int = 1) -> bytes:
    return struct.pack(">BBBBII", 0xC7, version, kind, flags, request_id, length)


def entry(fuzzer: Fuzzer, flags: int = 0, value: bytes = b"v") -> bytes:
    time_us = fuzzer.targets[0].ping().time
    return encode_record(Entry(time_us, 1, 1, 0, None, value))[:20] + bytes((flags,)) + value


# --- keys, values, flags -------------------------------------------------------------------------


def keyed(kind: int, before: bytes, key: bytes, after: bytes = b"") -> bytes:
    body = before + struct.pack(">H", len(key)) + key + after
    return header(kind, len(body)) + body


@pytest.mark.parametrize("key", [b"", b"k" * 501, b"k" * 65_535], ids=["empty", "501", "65535"])
def test_keys_out_of_bounds(fuzzer: Fuzzer, key: bytes) -> None:
    """MALFORMED, and the connection goes on."""
    place = struct.pack(">QI", fuzzer.epoch, PARTITION)
    entry_bytes = entry(fuzzer)
    node, manager = fuzzer.targets
    for target, frame in (
        (node, keyed(Get.kind, place, key)),
        (node, keyed(Get.kind, bytes(12), key)),
        (node, keyed(Write.kind, place, key, entry_bytes)),
        (node, keyed(Commit.kind, struct.pack(">I", PARTITION) + entry_bytes[:16], key)),
        (node, keyed(messages.Execute.kind, place, key, b"\1" + bytes(4) + entry_bytes)),
        # In a SCAN they may be empty.
        (node, keyed(messages.Scan.kind, place, key or b"k" * 501, b"\0\0\1")),
        (node, keyed(messages.Scan.kind, place + b"\0\0", key or b"k" * 501, b"\1")),
        (manager, keyed(KeyNodes.kind, b"", key)),
        (manager, keyed(NextPrimary.kind, b"\0\1", key)),
    ):
        with Talk(target) as talk:
            talk.send(frame)
            assert talk.refusal() == (1, "MALFORMED")
            talk.assert_open()


def test_values_over_the_limit(fuzzer: Fuzzer, node: Target) -> None:
    """VALUE_TOO_LONG, also in the longest frame that there may be."""
    longest = messages.FRAME_SIZE_MAX - HEADER_SIZE - 14 - len(KEY) - messages.ENTRY_HEAD_SIZE
    for size in (VALUE_SIZE_MAX + 1, longest):
        with Talk(node) as talk:
            talk.ask(Write(fuzzer.epoch, PARTITION, KEY, entry(fuzzer, value=bytes(size))))
            assert talk.refusal() == (1, "VALUE_TOO_LONG")
            talk.assert_open()


@pytest.mark.parametrize("flags", [1, 3, 4, 8, 16, 128, 255])
def test_entry_flags(fuzzer: Fuzzer, node: Target, flags: int) -> None:
    """Committed, a tombstone with a value, an expiry without room, flags that nobody knows."""
    with Talk(node) as talk:
        talk.ask(Write(fuzzer.epoch, PARTITION, KEY, entry(fuzzer, flags)))
        assert talk.refusal() == (1, "MALFORMED")
        talk.assert_open()


# --- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "name", "closes"),
    [
        (header(0x00, 0), "UNKNOWN_KIND", False),
        (header(0x7F, 3) + b"abc", "UNKNOWN_KIND", False),
        (header(0x81, 0), "UNKNOWN_KIND", False),
        (header(0xFF, 0), "UNKNOWN_KIND", False),
        (header(0x01, 0, flags=1), "UNKNOWN_FLAGS", False),
        (header(0x01, 0, flags=255), "UNKNOWN_FLAGS", False),
        (header(0x01, 1) + b"x", "MALFORMED", False),
        (header(0x01, 0, version=0), "UNSUPPORTED_VERSION", True),
        (header(0x01, 0, version=2), "UNSUPPORTED_VERSION", True),
        (header(0x01, 0, version=255), "UNSUPPORTED_VERSION", True),
        (header(0x01, 16 * MIB + 1024 - 11), "FRAME_TOO_LONG", True),
        (header(0x01, 0xFFFF_FFFF), "FRAME_TOO_LONG", True),
        (b"GET / HTTP/1.1\r\nHost: store\r\n\r\n", "BAD_MAGIC", True),
        (bytes.fromhex("16030100a5010000a10303") + bytes(150), "BAD_MAGIC", True),
        (pickle.dumps({"key": ["value"]}), "BAD_MAGIC", True),
        (bytes(100_000), "BAD_MAGIC", True),
        (b"\n", "BAD_MAGIC", True),
    ],
)
def test_strange_frames(target: Target, frame: bytes, name: str, closes: bool) -> None:
    """Unknown kinds, flags and versions; lengths; an HTTP request, a TLS hello, a pickle. What came
    before is answered, and what comes behind an error that closes is not."""
    with Talk(target) as talk:
        talk.send(encode(messages.Ping(), 5) + frame + encode(messages.Ping(), 6))
        first = talk.reply()
        assert first is not None
        assert first[0] == 5
        assert talk.refusal() == (0 if closes else 1, name)
        if closes:
            talk.assert_closed()
        else:
            second = talk.reply()
            assert second is not None
            assert second[0] == 6


def test_requests_to_the_wrong_role(fuzzer: Fuzzer) -> None:
    node, manager = fuzzer.targets
    for target, request in ((node, messages.ClusterInfo()), (manager, Get(0, 0, KEY))):
        with Talk(target) as talk:
            talk.ask(request)
            assert talk.refusal() == (1, "UNKNOWN_KIND")
            talk.assert_open()


def test_inner_lengths_that_leave_the_frame(fuzzer: Fuzzer) -> None:
    """Sizes and counts that announce more than is there cost nothing, and are MALFORMED."""
    node, manager = fuzzer.targets
    epoch = struct.pack(">Q", fuzzer.epoch)
    place = epoch + struct.pack(">I", PARTITION)
    bodies = [
        (node, Get.kind, place + b"\0\5key1"),
        (node, Write.kind, place + b"\1\xf4key1"),
        (node, Commit.kind, bytes(20) + b"\0\5key1"),
        (node, messages.MapUpdate.kind, bytes(16) + epoch + b"\xff\xff\xff\xff"),
        (node, messages.Execute.kind, place + b"\0\1k\1\xff\xff\xff\xff"),
        (node, messages.Scan.kind, place + b"\0\0\0\5key1"),
        (node, messages.Scan.kind, epoch + b"\xff\xff\xff\xff\0\0\0\0\1"),
        (node, messages.Scan.kind, place + b"\0\0\0\0"),
        (manager, KeyNodes.kind, b"\0\5key1"),
        (manager, NextPrimary.kind, b"\0\1\xff\xffk"),
    ]
    for target, kind, body in bodies:
        with Talk(target) as talk:
            talk.send(header(kind, len(body)) + body)
            request_id, name = talk.refusal()
            assert request_id == 1
            assert name == ("NOT_ALLOWED" if kind == messages.MapUpdate.kind else "MALFORMED")


def test_truncated_frames(fuzzer: Fuzzer, target: Target) -> None:
    """Every beginning of a frame, and then the end of the connection: dropped without a word."""
    whole = encode(Get(fuzzer.epoch, PARTITION, KEY), 1)
    for size in range(1, len(whole)):
        with Talk(target) as talk:
            talk.send(whole[:size])
            if size % 2:
                talk.sock.shutdown(socket.SHUT_WR)
                talk.assert_closed()


def test_control_messages_without_the_token(fuzzer: Fuzzer) -> None:
    """NOT_ALLOWED and closed; the map is as it was."""
    node, manager = fuzzer.targets
    with fuzzer.cluster.connect() as client:
        before = client.where(KEY), client.status()["epoch"]
    owner = messages.Owner(3, 1, fuzzer.epoch, 1)
    row = messages.Row(PARTITION, fuzzer.epoch + 9, fuzzer.epoch + 9, (owner,))
    for target, request in (
        (node, messages.MapUpdate(bytes(16), fuzzer.epoch + 9, (row,))),
        (manager, messages.Register(bytes(16), 1, 2, 1, 1, ())),
    ):
        with Talk(target) as talk:
            talk.ask(request)
            assert talk.refusal() == (1, "NOT_ALLOWED")
            talk.assert_closed()
    with fuzzer.cluster.connect() as client:
        assert (client.where(KEY), client.status()["epoch"]) == before


# --- slow, deaf and many peers -------------------------------------------------------------------


def test_a_peer_that_sends_byte_by_byte(fuzzer: Fuzzer, target: Target) -> None:
    """A frame must be whole in its time, however steadily it trickles: FRAME_TIMEOUT. A byte comes
    each twentieth of that time."""
    request = encode(Get(fuzzer.epoch, PARTITION, b"k" * 100), 1)
    with Talk(target) as talk:
        stop = threading.Event()

        def trickle() -> None:
            for byte in request:
                try:
                    talk.send(bytes((byte,)))
                except OSError:
                    return
                if stop.wait(0.03):
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        assert talk.refusal() == (0, "FRAME_TIMEOUT")
        talk.assert_closed()
        stop.set()
        thread.join()


def test_half_closed_connections_are_answered(node: Target) -> None:
    """Requests that were sent before are answered, then the node closes."""
    with Talk(node) as talk:
        talk.send(b"".join(encode(Get(0, 0, HELD), i) for i in range(1, 501)))
        talk.sock.shutdown(socket.SHUT_WR)
        for i in range(1, 501):
            answer = talk.reply()
            assert answer is not None
            assert answer[0] == i
            assert isinstance(answer[1], messages.EntryReply)
        talk.assert_closed()


def test_peers_that_reset(target: Target) -> None:
    """In the middle of a frame, and with answers on the way."""
    whole = encode(Get(0, 0, HELD), 1)
    for i in range(200):
        talk = Talk(target)
        talk.send(whole * 5 + whole[: i % len(whole)])
        talk.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        talk.sock.close()


@pytest.mark.parametrize(("connections", "size"), [(1, MIB), (8, 16 * MIB)])
def test_deaf_peers_with_large_values(
    fuzzer: Fuzzer, node: Target, connections: int, size: int
) -> None:
    """10,000 pipelined gets of a large value each, and nobody reads: the node holds little more
    than the value, serves others meanwhile, and closes the connections in the end."""
    with fuzzer.cluster.connect(timeout=30) as client:
        client.put("large", bytes(size))
        owner = client.where("large").owners[0]
        deaf_target = node
        if owner != 1:
            host, _, port = client.status()["nodes"][owner - 1]["address"].rpartition(":")
            pid = fuzzer.cluster.node_pids[owner]
            deaf_target = Target(f"node {owner}", host, int(port), pid)
        before = State.of(deaf_target.pid)
        requests = b"".join(encode(Get(0, 0, b"large"), i) for i in range(1, 10_001))
        with contextlib.ExitStack() as stack:
            for _ in range(connections):
                talk = stack.enter_context(Talk(deaf_target, receive_size=4096))
                talk.sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    talk.sock.send(requests)
            for _ in range(20):
                assert len(client.get("large") or b"") == size
                now = State.of(deaf_target.pid)
                assert now.memory < before.memory + 3 * size + 32 * MIB
            wait_until(
                lambda: State.of(deaf_target.pid).threads <= before.threads,
                "the end of the deaf connections",
            )
        client.delete("large")


def test_many_long_frames_at_once(node: Target) -> None:
    """Each of four times as many connections as there are places begins a frame of 16 MiB and sends
    half of it, as far as the node takes it: only some are received, and all are closed in time."""
    before = State.of(node.pid)
    half = 8 * MIB
    highest = 0
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(Talk(node)) for _ in range(4 * messages.LONG_FRAMES_MAX)]
        left = dict.fromkeys(talks, memoryview(header(Write.kind, 16 * MIB) + bytes(half)))
        for talk in talks:
            talk.sock.setblocking(False)
        end = time.monotonic() + 0.5  # the frames' own time is a little more
        while left and time.monotonic() < end:
            for talk in list(left):
                with contextlib.suppress(BlockingIOError):
                    left[talk] = left[talk][talk.sock.send(left[talk]) :]
                if not left[talk]:
                    del left[talk]
            highest = max(highest, State.of(node.pid).memory)
        node.ping()
        for talk in talks:
            talk.sock.settimeout(20)
            assert talk.refusal() == (0, "FRAME_TIMEOUT")
            highest = max(highest, State.of(node.pid).memory)
    # The first ones may be closed, and others begin, before their memory is given back.
    assert highest < before.memory + 2 * messages.LONG_FRAMES_MAX * half + 64 * MIB


def test_more_connections_than_allowed(fuzzer: Fuzzer, node: Target) -> None:
    """BUSY and closed; probes still work; whoever comes beyond the reserve gets in, and the most
    silent one of those that ask for no data goes."""
    get = Get(0, 0, HELD)
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS_MAX):
            talk = stack.enter_context(Talk(node))
            talk.ask(get)
            assert talk.reply() is not None
        more = stack.enter_context(Talk(node))
        more.assert_open()
        more.send(encode(get, 3) + encode(messages.Ping(), 4))
        assert more.refusal() == (3, "BUSY")
        more.assert_closed()
        first = stack.enter_context(Talk(node))
        while not select.select([first.sock], [], [], 0)[0]:
            talk = stack.enter_context(Talk(node))
            talk.ask(messages.Ping())
            answer = talk.reply()
            assert answer is not None
            assert isinstance(answer[1], messages.Pong)
        first.assert_closed()
        status = fuzzer.cluster.status
        # The manager's own probes have a connection: the node does not look dead.
    wait_until(lambda: {n["state"] for n in status()["nodes"]} == {"alive"}, "all nodes alive")


def test_a_flood_of_connections(target: Target) -> None:
    """A thousand that come and go at once."""
    for i in range(1000):
        with contextlib.suppress(ConnectionError):
            talk = Talk(target)
            if i % 3 == 0:
                talk.ask(messages.Ping())
            talk.sock.close()


def test_floods_of_requests_that_make_a_process_ask_another(fuzzer: Fuzzer) -> None:
    """NEXT_PRIMARY at the manager, and an epoch that a node does not have yet: all are answered."""
    node, manager = fuzzer.targets
    newer = Get(fuzzer.epoch + 1000, PARTITION, KEY)
    floods: list[tuple[Target, Message, Any]] = [
        (manager, NextPrimary(1, KEY), messages.Owners),
        (node, newer, messages.Error),
    ]
    for target, request, expected in floods:
        with Talk(target) as talk:
            count = 200
            talk.send(b"".join(encode(request, i) for i in range(1, count + 1)))
            for i in range(1, count + 1):
                answer = talk.reply()
                assert answer is not None
                assert answer[0] == i
                assert isinstance(answer[1], expected)


def test_nothing_of_a_key_gets_out_of_its_line(fuzzer: Fuzzer) -> None:
    """Keys with line ends and escape sequences in errors and logs."""
    nasty = b"a\n2026 ERROR fake\x1b[31m"
    with Talk(fuzzer.targets[1]) as talk:
        talk.ask(KeyNodes(nasty))
        assert talk.reply() is not None
    with Talk(fuzzer.targets[0]) as talk:
        talk.ask(Get(fuzzer.epoch, 1, nasty))
        assert talk.reply() is not None
    assert "\x1b" not in fuzzer.cluster.log()
    assert "ERROR fake" not in fuzzer.cluster.log()
