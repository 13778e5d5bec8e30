"""Scans, both ends, on a simulated cluster: what a client is told, whatever happens meanwhile."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from gtstore import copying, key_order, operations, placement, scan_operation, scanning, settling
from gtstore.disk import DiskEngine
from gtstore.errors import (
    DeadlineExceeded,
    OperationFailed,
    OutcomeUnknown,
    RemoteError,
    RemoteProtocolError,
)
from gtstore.placement import epoch_of, key_in, partition_count
from gtstore.replica import Replicas
from gtstore.results import ScannedEntry
from gtstore.scan_operation import Scanner
from gtstore.wire import messages
from gtstore.wire.codec import encode, encode_record, fixed_format
from gtstore.wire.fields import fields_of
from gtstore.wire.messages import (
    COMMITTED,
    EXPIRES,
    HASH_ADDITIVE,
    HASH_CRC16,
    TOMBSTONE,
    Entry,
    Get,
    Owner,
    Row,
    Scan,
    Scanned,
    ScannedKey,
)

from .forgetful_store import ForgetfulStore
from .sim.network import (
    CLUSTER,
    Call,
    Client,
    Fault,
    Network,
    answer,
    answer_raw,
    message_of,
    refuse,
)

KEY = b"key1"
PARTITION = 186  # of 192; its owners are nodes 1, 2 and 3, in this order
KEYS = sorted([KEY, b"1yek", b"e1ky", b"yek1"])  # of the same partition
SECOND_US = 1_000_000


@pytest.fixture
def _few_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """One a node: fewer steps, where a test does not need partition 186."""
    monkeypatch.setattr(placement, "PARTITIONS_PER_NODE", 1)


def cluster(nodes: int = 3, replicas: int = 2) -> tuple[Network, Client]:
    network = Network(nodes, replicas)
    return network, Client(network).know()


def commit(client: Client) -> None:
    """All that is owed arrives."""
    client.source.owe_now()
    client.network.deliver_owed(client.source.owed)


def steps(scanner: Scanner, client: Client) -> Iterator[list[Call[list[ScannedEntry]]]]:
    """The scan's rounds, to be run."""
    while operations := scanner.steps(client.source):
        yield [client.call(operation, 5) for operation in operations]


def scan(client: Client, prefix: bytes = b"", with_values: bool = True) -> list[ScannedEntry]:
    scanner = Scanner(client.routes, prefix, with_values)
    return [entry for calls in steps(scanner, client) for call in calls for entry in call.run()]


def pairs(found: list[ScannedEntry]) -> list[tuple[bytes, bytes]]:
    return [(entry.key, entry.value) for entry in found]


def ask(network: Network, node: int, **changes: Any) -> messages.Message:
    """A node's answer to a SCAN of PARTITION."""
    row = network.map.rows[PARTITION]
    fields = {"epoch": row.list_epoch, "partition": PARTITION, "after": b"", "prefix": b""}
    fields |= {"with_values": 1, **changes}
    return message_of(network.handle(node, encode(Scan(**fields), 7)))


def told(reply: messages.Message) -> list[tuple[bytes, bytes]]:
    assert isinstance(reply, Scanned)
    return [(key.key, key.entry) for key in reply.keys]


def code_of(reply: messages.Message) -> int:
    assert isinstance(reply, messages.Error)
    return reply.code


# --- what a node answers -------------------------------------------------------------------------


def test_only_the_primary_answers_and_only_to_its_list() -> None:
    """As to GET (N1a): another epoch, a backup, a partition that there is not, no map yet."""
    network, _ = cluster()
    epoch = network.map.epoch
    assert told(ask(network, 1)) == []
    assert code_of(ask(network, 2)) == messages.STALE_EPOCH
    assert code_of(ask(network, 1, epoch=0)) == messages.STALE_EPOCH
    assert code_of(ask(network, 1, epoch=epoch - 1)) == messages.STALE_EPOCH
    assert code_of(ask(network, 1, epoch=epoch + 1)) == messages.BEHIND
    assert code_of(ask(network, 1, partition=192)) == messages.MALFORMED
    assert code_of(ask(network, 1, partition=192, epoch=1)) == messages.STALE_EPOCH
    network.start(1)
    assert code_of(ask(network, 1)) == messages.NOT_READY


def test_lengths_of_after_and_prefix() -> None:
    """As long as keys may be, and no longer."""
    network, _ = cluster()
    longest = b"k" * 500
    assert told(ask(network, 1, after=longest, prefix=longest)) == []
    body = encode(Scan(network.map.epoch, PARTITION, longest, b"", 1))[12:]
    for at, wrong in ((12, b"\x01\xf5"), (12, b"\xff\xff"), (14 + 500, b"\x01\xf5")):
        damaged = body[:at] + wrong + body[at + 2 :] + bytes(10)
        frame = encode(messages.Ping(), 1)
        frame = frame[:2] + b"\x14" + frame[3:8] + len(damaged).to_bytes(4, "big") + damaged
        assert code_of(message_of(network.handle(1, frame, messages.Ping()))) == messages.MALFORMED


def test_what_a_node_tells() -> None:
    """Complete entries as they are; pending ones by their name, also deletes; no complete deletes.
    The expired one's tombstone is pending (C8)."""
    network, client = cluster()
    for key in KEYS:
        client.put(key, b"of " + key)
    expiry = (network.now_us + SECOND_US).to_bytes(8, "big")
    client.run(operations.put(client.routes, client.source, b"kye1", expiry + b"short", EXPIRES))
    commit(client)
    entries = {key: network.nodes[1].held(key) for key in (*KEYS, b"kye1")}
    everything = [(key, encode_record(entries[key])) for key in sorted(entries)]
    assert told(ask(network, 1)) == everything
    heads = [(key, entry[: 29 if key == b"kye1" else 21]) for key, entry in everything]
    assert told(ask(network, 1, with_values=0)) == heads
    client.pays = False
    client.put(KEYS[0], b"pending")
    client.delete(KEYS[1])
    network.now_us += SECOND_US
    client.source.owed.clear()
    still = [(key, entry) for key, entry in everything if key in KEYS[2:]]
    named = [(KEYS[0], b""), (KEYS[1], b""), (b"kye1", b"")]
    assert sorted(told(ask(network, 1))) == sorted(named + still)
    assert pairs(scan(client)) == [
        (KEYS[0], b"pending"),
        *((key, b"of " + key) for key in KEYS[2:]),
    ]
    commit(client)
    assert [key for key, _ in told(ask(network, 1))] == [KEYS[0], *KEYS[2:]]


def test_a_single_owner_has_nothing_to_complete() -> None:
    """Nobody sends COMMIT there; an entry is told as it is, and a tombstone is none."""
    network, client = cluster(replicas=1)
    client.put(KEY, b"value")
    client.delete(KEYS[0])
    ((key, entry),) = told(ask(network, 1))
    assert (key, entry[20:]) == (KEY, b"\0value")


def test_prefix_and_after() -> None:
    """The keys that begin so, above that one, whichever of the two is the higher."""
    network, _ = cluster()
    keys = [b"a", b"key1", b"key1\0", b"key1a", b"key2", b"z"]
    replica = network.nodes[1].replicas
    for key in keys:
        entry = encode_record(Entry(1, 1, 1, COMMITTED, None, key))
        replica.merge(replica[PARTITION], key, entry)

    def found(prefix: bytes, after: bytes = b"") -> list[bytes]:
        reply = ask(network, 1, prefix=prefix, after=after)
        assert isinstance(reply, Scanned)
        assert reply.is_last
        return [key.key for key in reply.keys]

    assert found(b"") == keys
    assert found(b"key1") == keys[1:4]
    assert found(b"key1", b"a") == keys[1:4]
    assert found(b"key1", b"key1") == keys[2:4]
    assert found(b"key1", b"key2") == []
    assert found(b"x") == []
    assert found(b"", b"y") == [b"z"]


def test_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes, and in keys that are looked at, tombstones too; a long entry is named only."""
    network, client = cluster()
    monkeypatch.setattr(scanning, "KEYS_A_REPLY_MAX", 2)
    for key in KEYS:
        client.put(key, b"of " + key)
    client.delete(KEYS[0])
    client.delete(KEYS[1])
    commit(client)
    reply = ask(network, 1)
    assert isinstance(reply, Scanned)
    assert (reply.is_last, reply.after, reply.keys) == (0, KEYS[1], ())
    reply = ask(network, 1, after=reply.after)
    assert [key for key, _ in told(reply)] == KEYS[2:]
    assert (reply.is_last, reply.after) == (0, KEYS[3])  # type: ignore[attr-defined]
    reply = ask(network, 1, after=KEYS[3])
    assert (reply.is_last, reply.after, reply.keys) == (1, KEYS[3], ())  # type: ignore[attr-defined]
    monkeypatch.undo()
    monkeypatch.setattr(scanning, "SCAN_SIZE", 40)
    client.put(KEYS[3], bytes(20))
    commit(client)
    reply = ask(network, 1)
    assert isinstance(reply, Scanned)
    assert [key for key, _ in told(reply)] == KEYS[2:3]
    assert (reply.is_last, reply.after) == (0, KEYS[2])
    assert told(ask(network, 1, after=KEYS[2])) == [(KEYS[3], b"")]
    assert pairs(scan(client)) == [(KEYS[2], b"of " + KEYS[2]), (KEYS[3], bytes(20))]
    heads = told(ask(network, 1, with_values=0))
    assert [(key, len(entry)) for key, entry in heads] == [(KEYS[2], 21)]


def test_a_node_that_is_not_done_with_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that it goes on, and the client asks again, in the same step."""
    monkeypatch.setattr(key_order, "_RUN_SIZE", 1)
    network, client = cluster()
    for key in KEYS:
        client.put(key, b"value")
    commit(client)
    reply = ask(network, 1)
    assert (reply.is_last, reply.after, reply.keys) == (0, b"", ())  # type: ignore[attr-defined]
    assert [entry.key for entry in scan(client)] == KEYS


def test_the_packed_answer_is_the_tables() -> None:
    """SCANNED is packed by hand."""
    assert scanning._HEAD.format == ">" + fixed_format(Scanned)
    assert scanning._HEAD.size == scan_operation._AFTER_AT
    network, client = cluster()
    for key in KEYS:
        client.put(key, b"of " + key)
    commit(client)
    reply = ask(network, 1)
    row = network.map.rows[PARTITION]
    frame = network.handle(1, encode(Scan(row.list_epoch, PARTITION, b"", b"", 1), 7))
    assert encode(reply, 7) == frame
    key, entry = (field.wire_type for field in fields_of(ScannedKey))
    assert (key.length.code, entry.length.code) == ("H", "I")  # type: ignore[union-attr]


def test_what_nobody_scans_any_more_is_let_go() -> None:
    """The node's own look through a partition sees to it."""
    network, client = cluster()
    client.put(KEY, b"value")
    replicas = network.nodes[1].replicas
    ask(network, 1)
    keys: Any = replicas[PARTITION].keys
    assert keys._runs
    for _ in range(10):
        settling.look_through(replicas, PARTITION, network.now_us)
    assert not keys._runs
    assert [key for key, _ in told(ask(network, 1))] == [KEY]


def test_entries_on_disk() -> None:
    """What is not committed there yet is not told, as to a GET: neither a new key nor a new value;
    nor is a delete. An expired entry is told of by its name."""
    store = ForgetfulStore()
    engine = DiskEngine(store)
    replicas = Replicas(1, 1, CLUSTER, 3, HASH_ADDITIVE, engine, lambda: 5000)
    epoch = epoch_of(CLUSTER, 1)
    owners = tuple(Owner(node, 1, epoch, 1) for node in (1, 2))
    replicas.adopt(epoch, [Row(PARTITION, epoch, epoch, owners)])
    replica = replicas[PARTITION]

    def put(key: bytes, time: int, flags: int, value: bytes) -> bytes:
        expiry = 4000 if flags & EXPIRES else None
        entry = encode_record(Entry(time, 1, 1, COMMITTED | flags, expiry, value))
        replicas.merge(replica, key, entry)
        return entry

    def sync() -> None:
        store.commit(engine.take(replicas.remembered))
        store.refresh()
        engine.settle()

    def asked(**fields: Any) -> list[tuple[bytes, bytes]]:
        request = Scan(epoch, PARTITION, fields.get("after", b""), b"", 1)
        return told(message_of(scanning.answer(replicas, 7, request)))

    entries = [(key, put(key, 1, 0, b"of " + key)) for key in KEYS[:3]]
    assert asked() == []
    sync()
    assert asked() == entries
    assert asked(after=KEYS[0]) == entries[1:]
    put(KEYS[0], 2, 0, b"new")
    put(KEYS[1], 2, TOMBSTONE, b"")
    put(KEYS[3], 2, EXPIRES, b"short")
    assert asked() == entries
    assert replica.keys.from_key(b"", 9) == KEYS
    replicas.drop(replica, KEYS[2])
    assert replica.keys.from_key(KEYS[1], 9) == [KEYS[1], KEYS[3]]
    assert asked() == entries[:2], "the third one's tombstone, as it were, was dropped"
    sync()
    replica.keys.rest()
    assert [key for key, _ in asked()] == [KEYS[0], KEYS[3]]
    assert asked()[1] == (KEYS[3], b"")


# --- what a client makes of it -------------------------------------------------------------------


@pytest.mark.usefixtures("_few_partitions")
def test_everything_is_found_once() -> None:
    """Of all partitions; each with its version, and its expiry if it has one."""
    network, client = cluster()
    versions = {b"%d" % i: client.put(b"%d" % i, b"v%d" % i).version for i in range(50)}
    expiry_us = network.now_us + 1000 * SECOND_US
    value = expiry_us.to_bytes(8, "big") + b"v"
    put = operations.put(client.routes, client.source, b"short", value, EXPIRES)
    versions[b"short"] = client.run(put).version
    commit(client)
    client.delete(b"7")
    found = scan(client)
    assert {entry.key: entry.version for entry in found} == {
        key: version for key, version in versions.items() if key != b"7"
    }
    assert len(found) == 50
    assert {entry for entry in found if entry.expiry_us} == {
        ScannedEntry(b"short", b"v", versions[b"short"], expiry_us)
    }
    assert sorted(pairs(scan(client, b"4"))) == [
        (b"4", b"v4"),
        *((b"4%d" % i, b"v4%d" % i) for i in range(10)),
    ]
    assert {entry.value for entry in scan(client, with_values=False)} == {b""}


def test_partitions_at_once() -> None:
    """Some at a time, each until its end; the next ones take the places of those that are done."""
    _, client = cluster(2, 1)
    scanner = Scanner(client.routes, b"", True)
    rounds = 0
    for calls in steps(scanner, client):
        assert len(calls) <= scan_operation.PARTITIONS_AT_ONCE
        rounds += 1
        for call in calls:
            call.run()
    assert rounds == 128 // scan_operation.PARTITIONS_AT_ONCE
    asked = [message.partition for _, message in client.network.seen if isinstance(message, Scan)]
    assert asked == list(range(128))


def test_long_values_are_gotten_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step must not gather them all in memory, nor do very many gets."""
    monkeypatch.setattr(scanning, "SCAN_SIZE", 50)
    monkeypatch.setattr(scan_operation, "SCAN_SIZE", 2500)
    network, client = cluster()
    for key in KEYS:
        client.put(key, bytes(1000))
    commit(client)
    scanner = Scanner(client.routes, KEYS[0], True)
    scanner._waiting = iter([PARTITION])
    scanner._prefix = b""
    sizes = [len(call.run()) for calls in steps(scanner, client) for call in calls]
    assert sizes == [2, 2]
    network.seen.clear()
    assert [entry.key for entry in scan(client)] == KEYS
    assert sum(isinstance(message, Get) for _, message in network.seen) == 4


def test_a_step_that_failed_is_taken_again() -> None:
    """It begins where it began."""
    network, client = cluster()
    client.put(KEY, b"value")
    scanner = Scanner(client.routes, b"", True)
    scanner._waiting = iter([PARTITION])
    network.script(1, Scan, Fault.SILENT)
    (call,) = next(steps(scanner, client))
    with pytest.raises(DeadlineExceeded):
        call.run()
    (call,) = next(steps(scanner, client))
    assert pairs(call.run()) == [(KEY, b"value")]
    assert scanner.steps(client.source) == []


@pytest.mark.usefixtures("_few_partitions")
def test_another_cluster() -> None:
    """On the same addresses, of another shape: what was found does not belong to it."""
    network, client = cluster()
    client.put(KEY, b"value")
    scanner = Scanner(client.routes, b"", True)
    calls = next(steps(scanner, client))
    network.create(2, 1, 0xDECAF)
    with pytest.raises(OperationFailed, match="another cluster"):
        calls[0].run()
    assert scan(client) == []


def test_a_node_that_knows_no_scans() -> None:
    """An older one."""
    network, client = cluster()
    network.script(1, Scan, refuse(messages.UNKNOWN_KIND))
    with pytest.raises(RemoteError, match="UNKNOWN_KIND"):
        scan(client)


ENTRY = encode_record(Entry(1, 1, 1, COMMITTED, None, b"v"))


@pytest.mark.parametrize(
    "reply",
    [
        Scanned(0, b"", (ScannedKey(b"b", ENTRY), ScannedKey(b"a", ENTRY))),
        Scanned(1, b"b", (ScannedKey(b"b", ENTRY), ScannedKey(b"b", ENTRY))),
        Scanned(0, b"a", (ScannedKey(b"b", ENTRY),)),
        Scanned(1, b"c", (ScannedKey(b"c", ENTRY),)),
        Scanned(1, b"b", (ScannedKey(b"b", b"short"),)),
        Scanned(1, b"b", (ScannedKey(b"b", ENTRY[:20] + b"\x09short"),)),
    ],
    ids=["order", "twice", "back", "prefix", "short entry", "short expiry"],
)
@pytest.mark.usefixtures("_few_partitions")
def test_answers_that_are_none(reply: Scanned) -> None:
    """A node that answers so is not believed."""
    network, client = cluster()
    scanner = Scanner(client.routes, b"b" if reply.after == b"c" else b"", True)
    network.script(1, Scan, answer(reply))
    with pytest.raises(RemoteProtocolError) as caught:
        next(steps(scanner, client))[0].run()
    assert caught.value.error_code == messages.MALFORMED


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0",
        b"\1\0\1a",
        b"\1\0\0\0\0\0\1",
        b"\1\0\0\0\0\0\1\0\0\0\0\0\0",
        b"\1\0\0\0\0\0\0x",
        b"\1\1\xf5" + bytes(501) + bytes(4),
        b"\1\0\1b\0\0\0\1\0\1b\xff\xff\xff\xff",
    ],
    ids=["empty", "no size", "no count", "no key", "empty key", "more", "long after", "long entry"],
)
@pytest.mark.usefixtures("_few_partitions")
def test_bodies_that_are_none(body: bytes) -> None:
    """SCANNED is taken apart by hand: nothing else than MALFORMED comes of it."""
    network, client = cluster()
    network.script(1, Scan, answer_raw(Scanned.kind, body))
    with pytest.raises(RemoteProtocolError) as caught:
        scan(client)
    assert caught.value.error_code == messages.MALFORMED


# --- while nodes die and return ------------------------------------------------------------------


def test_the_primary_dies_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one goes on above the last key; the manager is asked by a key of the partition."""
    monkeypatch.setattr(scanning, "KEYS_A_REPLY_MAX", 2)
    network, client = cluster()
    for key in KEYS:
        client.put(key, b"of " + key)
    commit(client)
    scanner = Scanner(client.routes, b"", True)
    scanner._waiting = iter([PARTITION])
    rounds = steps(scanner, client)
    found = pairs(next(rounds)[0].run())
    network.kill(1)
    client.put(KEYS[0], b"not seen any more")
    for calls in rounds:
        found += pairs(calls[0].run())
    assert found == [(key, b"of " + key) for key in KEYS]


@pytest.mark.parametrize("hash_code", [HASH_ADDITIVE, HASH_CRC16])
def test_some_key_of_a_partition(hash_code: int) -> None:
    """It is one that may be asked for, and it is in that partition."""
    for nodes in (1, 7, 1000):
        count = partition_count(nodes)
        for partition in {0, 1, 254, 255, 256, count // 2, count - 1} & set(range(count)):
            key = key_in(partition, hash_code)
            assert 0 < len(key) <= messages.KEY_SIZE_MAX
            assert placement.HASH_FUNCTIONS[hash_code](key) % count == partition


class Run:
    """Scans while clients put and delete, and nodes die, return and copy; all from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.network = Network(4, self.random.randint(2, 3), seed)
        self.network.publishes_at_once = self.random.random() < 0.5
        self.network.choose = self.choose
        self.fault_rate = 0.0
        self.writer = Client(self.network, seed=1).know()
        self.writer.pays = self.random.random() < 0.8
        self.reader = Client(self.network, seed=2).know()
        self.kills = 4
        self.puts = 0
        self.unknowns = 0
        # What each key may have had since the scan began; None: no value.
        self.seen: dict[bytes, set[bytes | None]] = {}
        self.now: dict[bytes, bytes | None] = {}
        # Values of writes whose outcome is unknown: they may come at any time.
        self.unknown: dict[bytes, set[bytes | None]] = {}

    def choose(self, peer: int, request: Any) -> Fault:  # noqa: ARG002
        if self.random.random() >= self.fault_rate:
            return Fault.NONE
        return self.random.choice((Fault.DROP, Fault.DROP_REPLY, Fault.REFUSE))

    def write(self) -> None:
        key = b"%d" % self.random.randrange(60)
        self.puts += 1
        value = None if self.random.random() < 0.3 else b"%d" % self.puts
        self.seen.setdefault(key, self.possible(key)).add(value)
        try:
            if value is None:
                self.writer.delete(key)
            else:
                self.writer.put(key, value)
            self.now[key] = value
        except OutcomeUnknown:
            self.unknown.setdefault(key, set()).add(value)
            self.unknowns += 1
        if self.random.random() < 0.1:
            commit(self.writer)

    def possible(self, key: bytes) -> set[bytes | None]:
        """What a key may have now."""
        return {self.now.get(key)} | self.unknown.get(key, set())

    def disturb(self) -> None:
        """Something happens to the cluster."""
        network = self.network
        dead = [number for number, node in network.nodes.items() if not node.is_alive]
        draw = self.random.random()
        if draw < 0.3 and self.kills:
            number = self.random.choice(list(network.nodes))
            if number not in dead and not network.map.is_last_in_sync(number, dead):
                network.kill(number)
                self.kills -= 1
        elif draw < 0.5 and dead:
            number = self.random.choice(dead)
            network.bring_back(number)
            network.nodes[number].adopt()
        elif draw < 0.6:
            network.now_us += 3 * SECOND_US
            network.tick()
        elif draw < 0.7:
            self.copy()
        elif draw < 0.8:
            for node in network.nodes.values():
                if node.is_alive:
                    node.adopt()
                    for partition in range(len(node.replicas)):
                        # By a clock that is far ahead, so that tombstones are dropped.
                        ahead_us = network.now_us + 601 * SECOND_US
                        settling.look_through(node.replicas, partition, ahead_us)

    def copy(self) -> None:
        """Some steps of all copying that there is."""
        for number, node in self.network.nodes.items():
            if node.is_alive:
                node.adopt()
                for partition in copying.pending(node.replicas):
                    call = self.network.copy(number, partition)
                    for _ in range(100):
                        if not call.is_done:
                            call.advance()

    def run(self) -> None:
        for _ in range(self.random.randint(10, 80)):
            self.write()
        for _ in range(2):
            self.seen = {key: self.possible(key) for key in {*self.now, *self.unknown}}
            self.fault_rate = self.random.choice((0.0, 0.1, 0.3))
            self.check(self.scan())
            self.fault_rate = 0.0

    def scan(self) -> list[ScannedEntry]:
        scanner = Scanner(self.reader.routes, b"", self.random.random() < 0.8)
        found: list[ScannedEntry] = []
        while operations := scanner.steps(self.reader.source):
            calls = [self.reader.call(operation) for operation in operations]
            while open_calls := [call for call in calls if not call.is_done]:
                self.random.choice(open_calls).advance()
                if self.random.random() < 0.1:
                    self.write()
                if self.random.random() < 0.1:
                    self.disturb()
            for call in calls:
                found += call.run()
        return found

    def check(self, found: list[ScannedEntry]) -> None:
        keys = [entry.key for entry in found]
        assert len(keys) == len(set(keys)), "no key twice"
        for entry in found:
            values = self.seen[entry.key] - {None}
            assert values if entry.value == b"" else entry.value in values
        for key, values in self.seen.items():
            assert None in values or key in keys, "it had a value all the time"


@pytest.mark.usefixtures("_few_partitions")
def test_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a scan promises holds, whatever happens meanwhile."""
    monkeypatch.setattr(scanning, "KEYS_A_REPLY_MAX", 3)
    monkeypatch.setattr(key_order, "_RUN_SIZE", 4)
    monkeypatch.setattr(copying, "COPY_SIZE", 100)
    monkeypatch.setattr(scan_operation, "SCAN_SIZE", 3000)
    for seed in range(400):
        try:
            Run(seed).run()
        except BaseException:
            print(f"seed {seed}")
            raise
