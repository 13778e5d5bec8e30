"""How a node that joins a partition gets what is stored there: rule N6, on a simulated cluster."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gtstore import copying, key_order, keyed_entries
from gtstore.errors import DeadlineExceeded, RemoteProtocolError, Unavailable
from gtstore.operations import Limited, Lost, Pause
from gtstore.wire import messages
from gtstore.wire.codec import decode, encode, encode_record, fixed_format
from gtstore.wire.fields import fields_of
from gtstore.wire.messages import (
    COMMITTED,
    ENTRY_HEAD_SIZE,
    EXPIRES,
    HEADER_SIZE,
    ORDERED,
    TOMBSTONE,
    Copied,
    Copy,
    Entry,
    HeldEntry,
    InSync,
    KeyedEntry,
)

from .sim.network import (
    TOKEN,
    Client,
    Fault,
    Network,
    after,
    answer,
    answer_raw,
    message_of,
    refuse,
)

KEY = b"key1"
PARTITION = 186  # of 192; its owners are nodes 1, 2 and 3, in this order
KEYS = [KEY, b"1yek", b"e1ky", b"yek1"]  # of the same partition


def cluster(
    replicas: int = 2, fills: bool = True, is_durable: bool = False
) -> tuple[Network, Client]:
    """Three nodes, and a client that knows the map and has put something under each key."""
    network = Network(3, replicas, is_durable=is_durable)
    client = Client(network).know()
    for key in KEYS if fills else []:
        client.put(key, b"of " + key)
    return network, client


def lose(network: Network, *nodes: int) -> None:
    for node in nodes:
        network.kill(node)
        network.notice(node)


def held(network: Network, node: int) -> dict[bytes, bytes]:
    """What a node holds of KEYS."""
    entries = {key: network.nodes[node].held(key) for key in KEYS}
    return {key: entry.value for key, entry in entries.items() if entry}


def owners(network: Network) -> list[tuple[int, int]]:
    return [(o.node, o.in_sync) for o in network.map.rows[PARTITION].owners]


EVERYTHING = {key: b"of " + key for key in KEYS}


@pytest.mark.parametrize("size", [1, 60, 64 * 1024])
def test_everything_is_copied(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """In one batch or many; then the node is in sync, and what it counts is right."""
    monkeypatch.setattr(copying, "COPY_SIZE", size)
    network, client = cluster()
    client.delete(KEYS[3])
    lose(network, 2)
    network.bring_back(2)
    assert owners(network) == [(1, 1), (2, 0)]
    assert copying.pending(network.nodes[2].replicas)
    assert network.copy(2, PARTITION).run() == 4
    assert owners(network) == [(1, 1), (2, 1)]
    assert held(network, 2) == held(network, 1) == {**EVERYTHING, KEYS[3]: b""}
    one, two = network.nodes[1].replicas, network.nodes[2].replicas
    assert (two.count, two.size) == (3, one.size)
    assert PARTITION not in copying.pending(two)


def test_a_batch_keeps_to_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first entry always fits; the next only if it does not exceed the size."""
    monkeypatch.setattr(copying, "COPY_SIZE", 100)
    network, client = cluster(fills=False)
    for key, size in zip(sorted(KEYS), (10, 10, 300, 10), strict=True):
        client.put(key, bytes(size))
    lose(network, 2)
    network.bring_back(2)
    assert network.copy(2, PARTITION).run() == 4
    batches = [message for node, message in network.seen if isinstance(message, Copy)]
    assert [batch.after for batch in batches] == [b"", *sorted(KEYS)[1:3]]


def test_writes_go_on_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copier takes part in them from its join on; what is newer is not replaced."""
    monkeypatch.setattr(copying, "COPY_SIZE", 1)
    network, client = cluster()
    lose(network, 2)
    network.bring_back(2)
    call = network.copy(2, PARTITION)
    for _ in range(4):
        call.advance()
    for key in KEYS:
        client.put(key, b"new " + key)
    client.put(b"1key", b"another one")
    assert client.get(b"1key") == b"another one"
    call.run()
    assert held(network, 2) == {key: b"new " + key for key in KEYS}
    network.kill(1)
    for key in KEYS:
        assert client.get(key) == b"new " + key
    assert client.get(b"1key") == b"another one"


def test_committed_marks_are_merged() -> None:
    """Equal versions: committed at the source is committed here (N6); never the other way."""
    network, client = cluster(fills=False)
    lose(network, 2)
    network.bring_back(2)
    client.put(KEY, b"v")
    entry = network.nodes[2].held(KEY)
    assert entry is not None
    assert entry.flags == 0
    client.source.owe_now()
    network.deliver_owed({1: client.source.owed.pop(1)})
    network.copy(2, PARTITION).run()
    entry = network.nodes[2].held(KEY)
    assert entry is not None
    assert entry.flags == COMMITTED
    two = network.nodes[2].replicas
    for pending in (Entry(entry.time, entry.client, 1, 0, None, b"v"), entry):
        two.merge(two[PARTITION], KEY, encode_record(pending))
    older = Entry(entry.time - 1, entry.client, 1, COMMITTED | TOMBSTONE, None, b"")
    two.merge(two[PARTITION], KEY, encode_record(older))
    assert network.nodes[2].held(KEY) == entry
    assert two.count == 1
    newer = Entry(entry.time + 1, entry.client, 1, TOMBSTONE, None, b"")
    two.merge(two[PARTITION], KEY, encode_record(newer))
    assert (two.count, two.size) == (0, len(KEY) + 21)


def test_the_source_is_the_one_before() -> None:
    """H8: not the primary; and only once it is in sync itself."""
    network, _ = cluster(replicas=3)
    lose(network, 2, 3)
    network.bring_back(2)
    network.bring_back(3)
    assert owners(network) == [(1, 1), (2, 0), (3, 0)]
    assert PARTITION not in copying.pending(network.nodes[3].replicas)
    assert network.copy(3, PARTITION).run() == 0
    network.copy(2, PARTITION).run()
    network.copy(3, PARTITION).run()
    assert [node for node, m in network.seen if isinstance(m, Copy)] == [1, 2]
    assert owners(network) == [(1, 1), (2, 1), (3, 1)]
    assert held(network, 3) == EVERYTHING


def test_the_source_goes_by_the_copiers_row_first() -> None:
    """N6: from then on it takes no write that leaves the copier out."""
    network, client = cluster()
    lose(network, 2)
    network.publishes_at_once = False
    network.bring_back(2)
    network.nodes[2].adopt()
    assert network.nodes[1].replicas[PARTITION].row != network.map.rows[PARTITION]
    network.copy(2, PARTITION).run()
    assert (
        network.nodes[1].replicas[PARTITION].write_epoch == network.map.rows[PARTITION].list_epoch
    )
    assert network.nodes[1].replicas.epoch < network.map.epoch, "other rows are not there yet"
    client.put(KEY, b"after")
    assert held(network, 2)[KEY] == b"after"


def test_a_source_that_does_not_know_of_its_own_sync() -> None:
    """The copier's row tells it."""
    network, _ = cluster(replicas=3)
    lose(network, 2, 3)
    network.bring_back(2)
    network.bring_back(3)
    network.publishes_at_once = False
    network.copy(2, PARTITION).run()
    network.nodes[3].adopt()
    assert not network.nodes[2].replicas[PARTITION].row.owners[1].in_sync  # type: ignore[union-attr]
    assert network.copy(3, PARTITION).run() == 4


def copy_request(network: Network, node: int, **changes: int) -> Copy:
    row = dataclasses.replace(network.map.rows[PARTITION], **changes)
    return Copy(TOKEN, node, row, b"", ())


def ask(network: Network, node: int, request: Copy) -> messages.Message:
    return message_of(network.handle(node, encode(request)))


def test_nobody_else_is_answered() -> None:
    """Neither one that is no owner, nor one in front, nor by one that is not in sync."""
    network, _ = cluster(replicas=3)
    lose(network, 2)
    network.bring_back(2)
    assert owners(network) == [(1, 1), (3, 1), (2, 0)]
    assert isinstance(ask(network, 3, copy_request(network, 2)), Copied)
    for source, copier in ((1, 2), (3, 1), (2, 3), (1, 7)):
        reply = ask(network, source, copy_request(network, copier))
        assert isinstance(reply, messages.Error)
        assert reply.code == messages.STALE_EPOCH
    reply = ask(network, 3, copy_request(network, 2, partition=50_000))
    assert isinstance(reply, messages.Error)
    network.start(3)
    reply = ask(network, 3, copy_request(network, 2))
    assert isinstance(reply, messages.Error)
    assert reply.code == messages.NOT_READY


def test_troubles_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost request or reply, a refusal, a lost report: all is asked again, after a pause."""
    monkeypatch.setattr(copying, "COPY_SIZE", 1)
    network, _ = cluster()
    lose(network, 2)
    network.bring_back(2)
    network.script(1, Copy, Fault.DROP, Fault.NONE, Fault.DROP_REPLY, refuse(messages.NOT_READY))
    network.script(0, InSync, Fault.DROP, Fault.DROP_REPLY)
    call = network.copy(2, PARTITION)
    assert call.run() == 4
    assert len([pause for pause in call.client.pauses if pause]) == 5
    assert owners(network) == [(1, 1), (2, 1)]


def test_the_source_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one takes its place, and copying begins again there."""
    monkeypatch.setattr(copying, "COPY_SIZE", 1)
    network, _ = cluster(replicas=3)
    lose(network, 3)
    network.bring_back(3)
    network.script(2, Copy, Fault.NONE, Fault.NONE, after(lambda: network.kill(2)), Fault.REFUSE)
    call = network.copy(3, PARTITION)
    for _ in range(12):
        call.advance()
    network.notice(2)
    call.run()
    copies = [(node, m.after) for node, m in network.seen if isinstance(m, Copy)]
    assert copies[-4:] == [(1, after) for after in (b"", *sorted(KEYS)[:3])]
    assert held(network, 3) == EVERYTHING


def test_the_copier_is_removed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives under another join is ignored, and copying ends."""
    monkeypatch.setattr(copying, "COPY_SIZE", 1)
    network, _ = cluster()
    lose(network, 2)
    network.bring_back(2)

    def remove() -> None:
        network.change(PARTITION, network.map.rows[PARTITION].owners[0])

    batch = Copied(
        network.map.rows[PARTITION].owners[1].join_epoch,
        0,
        bytes(16),
        (KeyedEntry(KEY, encode_record(Entry(1, 1, 1, 0, None, b"v"))),),
    )
    given = answer(batch)

    def remove_and_answer(network: Network, frame: bytes) -> bytes | None:
        remove()
        return given(network, frame)

    network.script(1, Copy, remove_and_answer)
    assert network.copy(2, PARTITION).run() == 0
    assert held(network, 2) == {}


ENTRY = encode_record(Entry(1, 1, 1, 0, None, b"v"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(28),
        bytes(8) + b"\1" + bytes(16) + b"\0\0\0\1",
        bytes(8) + b"\1" + bytes(16) + b"\0\0\0\1\0\0\0\0\0\1x",
        bytes(8) + b"\1" + bytes(16) + b"\0\0\0\1\0\1k\0\0\0\1x",
        bytes(8) + b"\1" + bytes(16) + b"\0\0\0\1\0\1k\0\0\0\2xx",
        bytes(8) + b"\1" + bytes(16) + b"\0\0\0\1\0\1k\0\0\0\0",
        bytes(8) + b"\1" + bytes(16) + b"\0\0\0\0x",
        bytes(8) + b"\1" + bytes(16) + b"\0\0\0\1\0\1k\0\0\1\0" + ENTRY,
    ],
)
def test_malformed_batches(body: bytes) -> None:
    """They end the attempt, and nothing of them is stored."""
    network, _ = cluster()
    lose(network, 2)
    network.bring_back(2)
    network.script(1, Copy, answer_raw(Copied.kind, body))
    with pytest.raises(RemoteProtocolError):
        network.copy(2, PARTITION).run()
    assert held(network, 2) == {}


def test_a_source_that_is_not_done_with_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers without entries, and is asked again."""
    monkeypatch.setattr(key_order, "_RUN_SIZE", 1)
    network, _ = cluster()
    lose(network, 2)
    network.bring_back(2)
    assert network.copy(2, PARTITION).run() == 4
    asked = [message.after for _, message in network.seen if isinstance(message, Copy)]
    assert asked == [b""] * 4


def test_a_source_that_does_not_go_on() -> None:
    """A batch that came already ends the attempt."""
    network, _ = cluster()
    lose(network, 2)
    network.bring_back(2)
    join_epoch = network.map.rows[PARTITION].owners[1].join_epoch
    batch = Copied(join_epoch, 0, bytes(16), (KeyedEntry(KEY, ENTRY),))
    network.script(1, Copy, answer(batch), answer(batch))
    with pytest.raises(RemoteProtocolError, match="does not go on"):
        network.copy(2, PARTITION).run()


def test_the_packed_batch_is_the_tables() -> None:
    """COPIED is packed by hand."""
    assert copying._COPIED_HEAD.format == ">" + fixed_format(Copied)
    key, entry = (field.wire_type for field in fields_of(KeyedEntry))
    assert key.length.code == keyed_entries.KEY_SIZE.format[1:]  # type: ignore[union-attr]
    assert entry.length.code == keyed_entries.ENTRY_SIZE.format[1:]  # type: ignore[union-attr]
    network, _ = cluster()
    lose(network, 2)
    network.bring_back(2)
    frame = network.handle(1, encode(copy_request(network, 2), 9))
    message = decode(frame[2], frame[12:])
    assert encode(message, 9) == frame
    assert isinstance(message, Copied)
    assert [entry.key for entry in message.entries] == sorted(KEYS)


def test_all_copies_together_keep_the_pace() -> None:
    """Those that ask at one moment come one after the other, each presumed to bring what the last
    one brought; what each has brought counts; idle time is not saved up."""
    now = 100.0
    pace = copying.Pace(copying.COPY_SIZE, lambda: now)
    assert pace.pause_before() == 0
    pace.came(copying.COPY_SIZE // 4)  # in no time: that takes a quarter of a second
    assert [pace.pause_before() for _ in range(3)] == [0.25, 0.5, 0.75]
    now = 100.5
    pace.came(copying.COPY_SIZE)
    pace.came(copying.COPY_SIZE)
    assert pace.pause_before() == 100 + 1.75 - now
    now = 200.0
    assert pace.pause_before() == 0


# --- copying only what differs -------------------------------------------------------------------


def on_disk(fills: bool = True) -> tuple[Network, Client]:
    """A cluster with disks, of which node 2 was killed and is out of the map."""
    network, client = cluster(fills=fills, is_durable=True)
    lose(network, 2)
    return network, client


def put_there(network: Network, node: int, entries: dict[bytes, bytes]) -> None:
    """Have a node hold these entries of the partition, on its disk if it has one."""
    replicas = network.nodes[node].replicas
    for key, entry in entries.items():
        replicas.merge(replicas[PARTITION], key, entry)
    network.nodes[node].save()


def stored(network: Network, node: int) -> dict[bytes, bytes]:
    """All entries of the partition that a node has, as they are."""
    replica = network.nodes[node].replicas[PARTITION]
    return {key: replica.entries.get(key) or b"" for key in replica.entries}


def answers(network: Network, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The frames of all COPIED from now on."""
    frames: list[bytes] = []
    handle = network.handle

    def listen(peer: int, frame: bytes, request: Any = None) -> bytes:
        reply = handle(peer, frame, request)
        if frame[2] == Copy.kind:
            frames.append(reply)
        return reply

    monkeypatch.setattr(network, "handle", listen)
    return frames


def copied_by_two(network: Network) -> tuple[int, int]:
    """Let node 2 come back and copy the partition; return how many entries were moved, and how many
    were there already."""
    network.bring_back(2)
    moved = network.copy(2, PARTITION).run()
    assert owners(network) == [(1, 1), (2, 1)]
    one, two = (network.nodes[node].replicas for node in (1, 2))
    assert two.remembered(PARTITION)[2:] == one.remembered(PARTITION)[2:]
    return moved, network.present


def test_equal_values_are_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what was changed, deleted or added meanwhile; and it is all there, also after a
    crash."""
    network, client = cluster(fills=False, is_durable=True)
    for key in KEYS:
        client.put(key, key * 2500)
    lose(network, 2)
    client.put(KEYS[1], bytes(1000))
    client.delete(KEYS[2])
    client.put(b"1key", b"new")
    frames = answers(network, monkeypatch)
    assert copied_by_two(network) == (3, 2)
    assert stored(network, 2) == stored(network, 1)
    assert len(stored(network, 2)) == 5
    assert 1000 < sum(map(len, frames)) < 1000 + 5 * 40
    network.restart(1, 2)
    assert owners(network) == [(1, 1), (2, 1)]
    assert stored(network, 2) == stored(network, 1)


def test_a_node_without_a_disk_names_nothing() -> None:
    network, _ = cluster()
    lose(network, 2)
    assert copied_by_two(network) == (4, 0)
    assert [m.held for _, m in network.seen if isinstance(m, Copy)] == [()]


@pytest.mark.parametrize("flags", [0, COMMITTED])
def test_the_flag_committed_is_the_sources(flags: int) -> None:
    """The rest of the entry is not moved, whatever the flag was here."""
    network, _ = on_disk(fills=False)
    entry = Entry(1, 2, 3, EXPIRES | ORDERED, 1 << 62, b"value")
    there = encode_record(dataclasses.replace(entry, flags=entry.flags | flags))
    put_there(network, 1, {KEY: there})
    put_there(network, 2, {KEY: encode_record(dataclasses.replace(entry, flags=entry.flags | 1))})
    assert copied_by_two(network) == (0, 1)
    assert stored(network, 2) == {KEY: there}


@pytest.mark.parametrize(
    "change",
    [
        {"value": b"other"},
        {"value": b""},
        {"value": b"", "flags": ORDERED | TOMBSTONE},
        {"flags": ORDERED | EXPIRES, "expiry": 5},
        {"counter": 9},
        {"client": 9},
        {"time": 9},
    ],
)
@pytest.mark.parametrize("is_here", [False, True])
def test_what_differs_in_anything_is_moved(change: dict[str, Any], is_here: bool) -> None:
    """Also with the same version: what one primary has computed, and the next one anew, when the
    first one had died with it (N4)."""
    network, _ = on_disk(fills=False)
    entry = Entry(1, 2, 3, ORDERED, None, b"value")
    both = entry, dataclasses.replace(entry, **change)
    here, there = map(encode_record, both if is_here else reversed(both))
    put_there(network, 2, {KEY: here})
    put_there(network, 1, {KEY: there})
    assert copied_by_two(network) == (1, 0)
    assert stored(network, 2) == {KEY: there}


def test_a_damaged_entry_is_moved() -> None:
    network, _ = on_disk()
    disk = network.nodes[2].store
    assert disk is not None
    disk.damaged = {name for name in disk.synced if name.endswith(KEY)}
    assert copied_by_two(network) == (1, 3)
    assert held(network, 2) == EVERYTHING


@pytest.mark.parametrize(
    ("copy_size", "held_size", "expected"),
    [
        (1, 1, [1, 1, 1, 1, 0]),
        (1, 1000, [4, 3, 2, 1, 0]),
        (1000, 1, [1, 1, 1, 1, 0]),
        (60, 60, [2, 2, 0]),
        (1000, 1000, [4, 0]),
    ],
)
def test_what_is_named_comes_in_portions(
    monkeypatch: pytest.MonkeyPatch, copy_size: int, held_size: int, expected: list[int]
) -> None:
    """An answer goes no further than what is named, so that all is named before it is moved."""
    monkeypatch.setattr(copying, "COPY_SIZE", copy_size)
    monkeypatch.setattr(copying, "HELD_SIZE", held_size)
    network, client = on_disk()
    client.put(b"yke1", b"new")  # above all others
    assert copied_by_two(network) == (1, 4)
    named = [[each.key for each in m.held] for _, m in network.seen if isinstance(m, Copy)]
    assert [len(keys) for keys in named] == expected
    assert {key for keys in named for key in keys} == set(KEYS)


def test_all_that_is_named_is_gone_at_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the answer has the next entry there is, and copying goes on."""
    monkeypatch.setattr(copying, "HELD_SIZE", 1)
    network, _ = on_disk()
    one = network.nodes[1].replicas
    for key in sorted(KEYS)[:3]:
        one.drop(one[PARTITION], key)
    moved, present = copied_by_two(network)
    assert (moved, present) == (1, 0), "the fourth key was not named yet"
    assert held(network, 2) == {max(KEYS): b"of " + max(KEYS)}


def test_long_entries_are_looked_at_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the source, too: short answers about them take long."""
    monkeypatch.setattr(copying, "HELD_SIZE", 2500)
    network, client = cluster(fills=False, is_durable=True)
    for key in KEYS:
        client.put(key, bytes(1000))
    lose(network, 2)
    assert copied_by_two(network) == (0, 4)
    assert [len(m.held) for _, m in network.seen if isinstance(m, Copy)] == [3, 1]
    held_by_two = tuple(
        HeldEntry(key, entry[:16], int.from_bytes(copying.identity(entry)[16:], "big"))
        for key, entry in sorted(stored(network, 2).items())
    )
    request = Copy(TOKEN, 2, network.map.rows[PARTITION], b"", held_by_two)
    reply = ask(network, 1, request)
    assert isinstance(reply, Copied)
    assert ([len(each.entry) for each in reply.entries], reply.is_last) == ([1, 1, 1], 0)


def test_it_joins_anew_before_it_has_copied_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so discards once more: what it had at first is still there, and used."""
    monkeypatch.setattr(copying, "COPY_SIZE", 1)
    network, client = on_disk()
    client.put(KEYS[0], b"new")
    network.bring_back(2)
    call = network.copy(2, PARTITION)
    for _ in range(6):
        call.advance()
    network.change(PARTITION, network.map.rows[PARTITION].owners[0])
    network.nodes[2].tidy()  # nothing is to be removed while it copies other partitions
    network.change(PARTITION, *network.map.rows[PARTITION].owners, network.owner(2, in_sync=0))
    network.present = 0
    assert network.copy(2, PARTITION).run() == 1
    assert network.present == 3
    assert stored(network, 2) == stored(network, 1)


def names_of(network: Network, node: int) -> set[tuple[int, bytes]]:
    """The generations and keys of the partition that are on a node's disk."""
    disk = network.nodes[node].store
    assert disk is not None
    prefix = PARTITION.to_bytes(4, "big")
    return {(name[7], name[8:]) for name in disk.synced if name.startswith(prefix)}


def test_it_is_let_go_when_it_is_of_no_use_any_more() -> None:
    """In sync: at once. No owner: when there is nothing more to be copied."""
    network, _ = on_disk()
    network.bring_back(2)
    two = network.nodes[2]
    before = names_of(network, 2)
    two.tidy()
    assert names_of(network, 2) == before
    network.copy(2, PARTITION).run()
    assert len(names_of(network, 2)) == 8
    assert copying.pending(two.replicas), "other partitions"
    two.tidy()
    (generation,) = {generation for generation, _ in names_of(network, 2)}
    assert names_of(network, 2) == {(generation, key) for key in KEYS}
    network.change(PARTITION, network.map.rows[PARTITION].owners[0])
    two.save()
    two.tidy()
    assert two.replicas[PARTITION].former.from_key(b"", 9) == sorted(KEYS), "it may join again"
    network.copy_all()
    two.tidy()
    network.change(PARTITION, network.map.rows[PARTITION].owners[0])
    two.save()
    two.tidy()
    assert names_of(network, 2) == set()


def batch_for(network: Network, *entries: KeyedEntry) -> Copied:
    return Copied(network.map.rows[PARTITION].owners[1].join_epoch, 1, bytes(16), entries)


@pytest.mark.parametrize(
    ("key", "flags", "text"),
    [
        (b"1key", 0, "flags of an entry that was not named"),
        (KEY, ORDERED, "flags of another entry than was named"),
        (KEY, 16, "flags of another entry than was named"),
    ],
)
def test_a_source_that_answers_with_other_flags(key: bytes, flags: int, text: str) -> None:
    """It ends the attempt, and nothing is stored."""
    network, _ = on_disk()
    network.bring_back(2)
    good = KeyedEntry(KEYS[1], bytes(1))
    network.script(1, Copy, answer(batch_for(network, good, KeyedEntry(key, bytes((flags,))))))
    with pytest.raises(RemoteProtocolError, match=text):
        network.copy(2, PARTITION).run()
    assert stored(network, 2) == {}


def test_a_silent_source_is_asked_again_and_awaited_longer() -> None:
    """The connection may have died without a sign, so no answer is awaited for the time of the
    whole copy; but a source that is slow gets the time that it needs."""
    network, _ = on_disk()
    network.bring_back(2)
    operation = network.copy(2, PARTITION).operation
    limits = []
    step = next(operation)
    while len(limits) < 6:
        if isinstance(step, Pause):
            step = operation.send([])
        else:
            assert isinstance(step, Limited)
            limits.append(step.limit_s)
            silence = Lost(0, 1, True, DeadlineExceeded("node 1", "no answer"))
            step = operation.send([silence])
    assert limits == [10, 20, 40, 80, 80, 80]


def test_the_packed_request_is_the_tables() -> None:
    """What COPY names is packed and taken apart by hand."""
    network, _ = on_disk()
    network.bring_back(2)
    call = network.copy(2, PARTITION)
    call.run()
    frame = next(step[2] for step in call.client.steps if not isinstance(step, Pause))
    message = decode(Copy.kind, frame[HEADER_SIZE:])
    assert isinstance(message, Copy)
    assert encode(message, int.from_bytes(frame[4:8], "big")) == frame
    assert [each.key for each in message.held] == sorted(KEYS)
    request = copying.request_of(frame[HEADER_SIZE:])
    assert (request.node, request.row, request.after) == (2, message.row, b"")
    packed = {h.key: h.version + h.checksum.to_bytes(4, "big") for h in message.held}
    assert request.held == packed


@pytest.mark.parametrize(
    "held",
    [
        b"",
        b"\0\0\0\1",
        b"\0\0\0\1\0",
        b"\0\0\0\0x",
        b"\0\0\0\1\0\1k" + bytes(19),
        b"\0\0\0\1\0\1k" + bytes(21),
        b"\0\0\0\1\0\0" + bytes(20),
        b"\0\0\0\1\1\xf5" + bytes(501 + 20),
        b"\xff\xff\xff\xff\0\1k" + bytes(20),
    ],
)
def test_malformed_requests(held: bytes) -> None:
    network, _ = cluster()
    body = encode(copy_request(network, 2))[HEADER_SIZE:-4]
    with pytest.raises(RemoteProtocolError) as caught:
        copying.request_of(body + held)
    assert caught.value.error_code == messages.MALFORMED


def entries_of(versions: tuple[int, int]) -> st.SearchStrategy[dict[bytes, bytes]]:
    """Entries whose content is mostly, and not always, told by their version."""
    entry = st.builds(
        lambda time, value, flags: encode_record(Entry(time, 1, 1, flags, None, value)),
        st.integers(*versions),
        st.sampled_from([b"", b"", b"x", bytes(30)]),
        st.sampled_from([0, COMMITTED, ORDERED]),
    )
    keys = st.sampled_from([*KEYS, b"1key", b"yke1"])
    return st.dictionaries(keys, entry, max_size=6)


@settings(max_examples=50, deadline=None)
@given(
    entries_of((1, 2)),
    entries_of((1, 2)),
    st.sampled_from([1, 60, 1000]),
    st.sampled_from([1, 50, 1000]),
)
def test_whatever_it_had_it_has_what_the_source_has(
    there: dict[bytes, bytes], here: dict[bytes, bytes], copy_size: int, held_size: int
) -> None:
    """And no more is moved than differs, if all is named at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "COPY_SIZE", copy_size)
        patch.setattr(copying, "HELD_SIZE", held_size)
        network, _ = on_disk(fills=False)
        put_there(network, 1, there)
        put_there(network, 2, here)
        moved, present = copied_by_two(network)
    assert stored(network, 2) == there
    same = [
        key
        for key in there.keys() & here.keys()
        if there[key][:20] + there[key][ENTRY_HEAD_SIZE:]
        == here[key][:20] + here[key][ENTRY_HEAD_SIZE:]
        and not (there[key][20] ^ here[key][20]) & ORDERED
    ]
    assert moved + present == len(there)
    assert present <= len(same)
    if copy_size == held_size == 1000:
        assert present == len(same)


# --- logs that do not end whole (N2a) ------------------------------------------------------------


def doubtful(replicas: int = 2, *, damaged: int = 0) -> tuple[Network, Client]:
    """A cluster in which no log ends whole; one node has lost the last record of its own."""
    network, client = cluster(replicas, is_durable=True)
    client.put(KEY, b"newest")
    network.torn = set(network.nodes)
    network.damaged = {damaged} if damaged else set()
    network.restart(*network.nodes)
    return network, client


@pytest.mark.parametrize("damaged", [0, 1, 2, 3])
def test_what_any_owner_has_is_gathered(damaged: int) -> None:
    """The first owner takes over what is newer elsewhere; until it has said so nobody answers."""
    network, client = doubtful(3, damaged=damaged)
    assert [node for node in (1, 2, 3) if copying.to_gather(network.nodes[node].replicas)] == [
        1, 2, 3,
    ]  # fmt: skip  # each is the first owner of some
    assert PARTITION in copying.to_gather(network.nodes[1].replicas)
    assert PARTITION not in copying.to_gather(network.nodes[2].replicas)
    with pytest.raises(Unavailable):
        client.get(KEY)
    network.gather(1, PARTITION).run()
    assert owners(network) == [(1, 1), (2, 0), (3, 0)]
    network.copy_all()
    assert held(network, 1) == held(network, 2) == held(network, 3)
    assert {key: client.get(key) for key in KEYS} == {**EVERYTHING, KEY: b"newest"}


@pytest.mark.parametrize("damaged", [1, 2])
def test_what_was_deleted_long_ago_does_not_come_back(damaged: int) -> None:
    """N7: one owner has dropped the tombstone, the other one has lost it with its last record, and
    still has the value."""
    network, client = cluster(is_durable=True)
    deleted = client.delete(KEY)
    other = network.nodes[3 - damaged]
    replica = other.replicas[PARTITION]
    network.deliver_owed(client.source.owed)
    other.replicas.raise_floor(replica, encode_record(entry_of(deleted))[:16])
    other.replicas.drop(replica, KEY)
    other.save()
    network.torn = {1, 2, 3}
    network.damaged = {damaged}
    network.restart(1, 2, 3)
    network.gather(1, PARTITION).run()
    network.copy_all()
    assert client.get(KEY) is None
    assert {key: client.get(key) for key in KEYS[1:]} == {
        key: value for key, value in EVERYTHING.items() if key != KEY
    }


def entry_of(result: Any) -> Entry:
    return Entry(result.version.time, result.version.client, 0, 0, None, b"")


def test_the_gatherer_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next process of it goes on; what the others have stays, though some die, too."""
    monkeypatch.setattr(copying, "COPY_SIZE", 1)
    network, client = doubtful(2, damaged=1)
    call = network.gather(1, PARTITION)
    for _ in range(3):
        call.advance()
    for node in (2, 1):
        network.kill(node)
        network.bring_back(node)
    network.gather(1, PARTITION).run()
    network.copy_all()
    assert client.get(KEY) == b"newest"


def test_a_whole_log_comes_meanwhile() -> None:
    """The gathering ends: the partition is open with what that one has."""
    network, client = cluster(is_durable=True)
    client.put(KEY, b"newest")
    network.torn = {1, 3}
    network.restart(1, 3)
    assert PARTITION in copying.to_gather(network.nodes[1].replicas)
    call = network.gather(1, PARTITION)
    call.advance()
    network.bring_back(2)
    assert copying.to_gather(network.nodes[1].replicas) == []
    call.run()
    assert owners(network) == [(2, 1), (1, 0)]
    network.copy_all()
    assert client.get(KEY) == b"newest"


def test_nothing_is_to_be_gathered_any_more() -> None:
    """It is asked for all the same."""
    network, _ = cluster(is_durable=True)
    assert network.gather(1, PARTITION).run() is None
    assert owners(network) == [(1, 1), (2, 1)]


def test_who_does_not_tell() -> None:
    """Only an owner that is as doubtful, under the same row, and only the first owner is told."""
    network, _ = doubtful(2)
    row = network.map.rows[PARTITION]
    request = copying.Request(1, row, b"", {})
    two = network.nodes[2].replicas

    def kind_of(request: copying.Request) -> int:
        return copying.answer(two, 1, request)[2]

    assert kind_of(request) == Copied.kind
    assert kind_of(dataclasses.replace(request, node=3)) == messages.Error.kind
    older = dataclasses.replace(row, list_epoch=row.list_epoch - 1)
    assert kind_of(dataclasses.replace(request, row=older)) == messages.Error.kind
    two.vouch(PARTITION)
    assert kind_of(request) == messages.Error.kind


def test_what_an_operator_accepts_is_doubtful_no_more() -> None:
    """The manager has put it into the row."""
    network, _ = doubtful(2)
    replica = network.nodes[1].replicas[PARTITION]
    assert replica.is_doubtful
    network.membership.synced(1, [messages.Join(PARTITION, replica.join_epoch)])
    network.publish(network.map)
    assert not replica.is_doubtful
