"""How a node that joins a partition gets what is stored there: rule N6, on a simulated cluster."""

from __future__ import annotations

import dataclasses

import pytest

from gtstore import copying, key_order, keyed_entries
from gtstore.errors import RemoteProtocolError
from gtstore.wire import messages
from gtstore.wire.codec import decode, encode, encode_record, fixed_format
from gtstore.wire.fields import fields_of
from gtstore.wire.messages import COMMITTED, TOMBSTONE, Copied, Copy, Entry, InSync, KeyedEntry

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


def cluster(replicas: int = 2, fills: bool = True) -> tuple[Network, Client]:
    """Three nodes, and a client that knows the map and has put something under each key."""
    network = Network(3, replicas)
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
