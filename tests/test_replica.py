"""What one node does with each data request: rules N0, N1a, N3, N5, N9; bytes in and bytes out."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gtstore.disk import DiskEngine, remembered_joins
from gtstore.engine import MemoryEngine
from gtstore.errors import RemoteProtocolError, StoreDamaged
from gtstore.placement import HASH_FUNCTIONS, epoch_of
from gtstore.read_modify_write import FLAGS_AT
from gtstore.replica import ENTRY_OVERHEAD_SIZE, Behind, Replicas
from gtstore.wire import messages
from gtstore.wire.codec import (
    HEADER,
    MAGIC_VERSION,
    LongReply,
    decode,
    encode,
    encode_record,
    error_detail,
)
from gtstore.wire.messages import (
    CLOCK_AHEAD_MAX_S,
    COMMITTED,
    EXPIRES,
    HASH_ADDITIVE,
    HASH_CRC16,
    HEADER_SIZE,
    KEY_SIZE_MAX,
    LONG_FRAME_SIZE,
    MALFORMED,
    ORDERED,
    TOMBSTONE,
    VALUE_SIZE_MAX,
    Ack,
    Commit,
    Entry,
    EntryReply,
    Error,
    Get,
    Message,
    NotFound,
    Owner,
    Row,
    Superseded,
    Write,
)

from .forgetful_store import ForgetfulStore

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

CLUSTER = 0xC0FFEE01
OTHER_CLUSTER = 0xDEADBEEF
NODES = 3
NODE = 1
INCARNATION = 4
NOW_US = 1_700_000_000_000_000
AHEAD_US = CLOCK_AHEAD_MAX_S * 1_000_000
KEY = b"key1"
PARTITION = 186  # sum(b"key1") % 192
REQUEST_ID = 7


def at(counter: int, cluster: int = CLUSTER) -> int:
    return epoch_of(cluster, counter)


def owner(node: int, join: int = 1, in_sync: int = 1, incarnation: int | None = None) -> Owner:
    if incarnation is None:
        incarnation = INCARNATION if node == NODE else 1
    return Owner(node, incarnation, at(join), in_sync)


def row(counter: int, *owners: Owner, partition: int = PARTITION, cluster: int = CLUSTER) -> Row:
    return Row(partition, at(counter, cluster), at(1, cluster), owners)


def new(memory_max: int | None = None, hash_code: int = HASH_ADDITIVE) -> Replicas:
    """A node that has just registered: it has no map yet."""
    return Replicas(
        NODE, INCARNATION, CLUSTER, NODES, hash_code, MemoryEngine(), lambda: NOW_US, memory_max
    )


def primary(memory_max: int | None = None) -> Replicas:
    """A node that is the primary of KEY, in a list of two owners, at epoch 1."""
    replicas = new(memory_max)
    replicas.adopt(at(1), [row(1, owner(1), owner(2))])
    return replicas


def backup() -> Replicas:
    replicas = new()
    replicas.adopt(at(1), [row(1, owner(2), owner(1))])
    return replicas


def handle(replicas: Replicas, kind: int, body: bytes) -> Message | None:
    """Have a node handle a request; check its reply's header and return what it says."""
    reply = replicas.handlers[kind](REQUEST_ID, body)
    if not reply:
        return None
    magic, reply_kind, flags, request_id, size = HEADER.unpack_from(reply)
    assert (magic, flags, request_id) == (MAGIC_VERSION, 0, REQUEST_ID)
    assert size == len(reply) - HEADER_SIZE
    return decode(reply_kind, reply[HEADER_SIZE:])


def ask(replicas: Replicas, request: Message) -> Message | None:
    return handle(replicas, request.kind, encode(request)[HEADER_SIZE:])


def entry(
    time: int = NOW_US,
    client: int = 1,
    counter: int = 1,
    flags: int = 0,
    value: bytes = b"value",
    expiry: int | None = None,
) -> bytes:
    if flags & TOMBSTONE:
        value = b""
    return encode_record(Entry(time, client, counter, flags, expiry, value))


def write(
    replicas: Replicas,
    data: bytes,
    key: bytes = KEY,
    epoch: int | None = None,
    partition: int = PARTITION,
) -> Message | None:
    return ask(replicas, Write(at(1) if epoch is None else epoch, partition, key, data))


def get(
    replicas: Replicas, key: bytes = KEY, epoch: int | None = None, partition: int = PARTITION
) -> Message | None:
    return ask(replicas, Get(at(1) if epoch is None else epoch, partition, key))


def held(replicas: Replicas, key: bytes = KEY) -> bytes | None:
    """What a node holds, whatever its role: GET with epoch 0."""
    reply = get(replicas, key, epoch=0, partition=0)
    if reply == NotFound():
        return None
    assert isinstance(reply, EntryReply)
    return reply.entry


def commit(replicas: Replicas, data: bytes, key: bytes = KEY, partition: int = PARTITION) -> None:
    assert ask(replicas, Commit(partition, data[:16], key)) is None


def committed(data: bytes) -> bytes:
    return data[:20] + bytes((data[20] | COMMITTED,)) + data[21:]


def code_of(reply: Message | None) -> int:
    assert isinstance(reply, Error), reply
    return reply.code


def detail_of(reply: Message | None) -> Any:
    assert isinstance(reply, Error)
    return error_detail(reply)


# --- N0: identity --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, KEY_SIZE_MAX + 1])
def test_keys_out_of_bounds_after_a_good_write(size: int) -> None:
    """MALFORMED, also where the clock need not be looked at."""
    replicas = primary()
    assert write(replicas, entry()) == Ack()
    place = at(1).to_bytes(8, "big") + PARTITION.to_bytes(4, "big") + size.to_bytes(2, "big")
    with pytest.raises(RemoteProtocolError) as caught:
        replicas.write(REQUEST_ID, place + bytes(size) + entry())
    assert caught.value.error_code == MALFORMED


def test_long_entries_are_not_copied() -> None:
    """An entry that makes a long frame is raised in two parts, and the second is what is stored."""
    replicas = primary()
    long_value = bytes(LONG_FRAME_SIZE)
    assert ask(replicas, Write(at(1), PARTITION, KEY, entry(value=long_value))) == Ack()
    for epoch in (at(1), 0):
        body = encode(Get(epoch, PARTITION, KEY))[HEADER_SIZE:]
        with pytest.raises(LongReply) as caught:
            replicas.get(REQUEST_ID, body)
        stored = replicas._replicas[PARTITION].entries.get(KEY)
        assert caught.value.rest is stored
        assert caught.value.head + caught.value.rest == encode(
            messages.EntryReply(entry(value=long_value)), REQUEST_ID
        )


def test_a_process_starts_as_the_owner_of_nothing() -> None:
    """N0: before the first map every request is answered NOT_READY."""
    replicas = new()
    for epoch in (at(1), 0, at(1, OTHER_CLUSTER)):
        assert code_of(get(replicas, epoch=epoch)) == messages.NOT_READY
    assert code_of(write(replicas, entry())) == messages.NOT_READY
    assert code_of(get(replicas, partition=10_000)) == messages.NOT_READY
    commit(replicas, entry())
    assert (replicas.epoch, replicas.count, replicas.size) == (0, 0, 0)


def test_a_partition_without_a_row_is_not_ready() -> None:
    """N0: a map that does not cover a partition says nothing about it."""
    replicas = primary()
    assert code_of(get(replicas, b"key2", partition=187)) == messages.NOT_READY
    assert code_of(write(replicas, entry(), b"key2", partition=187)) == messages.NOT_READY


def test_a_row_that_names_another_incarnation_does_not_name_this_process() -> None:
    """N0, hole H11: an empty process never answers for the one that it replaces."""
    for incarnation in (INCARNATION - 1, INCARNATION + 1):
        replicas = new()
        theirs = row(1, owner(1, incarnation=incarnation), owner(2))
        replicas.adopt(at(1), [theirs])
        for reply in (get(replicas), write(replicas, entry())):
            assert code_of(reply) == messages.STALE_EPOCH
            assert detail_of(reply).row == theirs
        assert held(replicas) is None


@pytest.mark.parametrize(
    ("owners", "is_kept"),
    [
        ((owner(1, join=1),), True),
        ((owner(2), owner(1, join=1)), True),
        ((owner(1, join=2), owner(2)), False),
        ((owner(2), owner(1, join=2, in_sync=0)), False),
        ((owner(2), owner(3)), False),
        ((owner(1, join=1, incarnation=INCARNATION + 1), owner(2)), False),
        ((), False),
    ],
)
def test_entries_are_kept_only_under_their_own_join(
    owners: tuple[Owner, ...], is_kept: bool
) -> None:
    """N0, N2: another join_epoch, or no place among the owners, discards the partition, only it."""
    replicas = primary()
    replicas.adopt(at(1), [row(1, owner(1), partition=187)])
    write(replicas, entry(), b"key2", partition=187)
    write(replicas, entry())
    write(replicas, entry(flags=TOMBSTONE), b"1yek")
    size = replicas.size
    replicas.adopt(at(2), [row(2, *owners)])
    assert held(replicas) == (entry() if is_kept else None)
    assert replicas.count == (2 if is_kept else 1)
    assert replicas.size == (size if is_kept else len(b"key2") + len(entry()))
    assert held(replicas, b"key2") == entry()


# --- N1a: epochs ---------------------------------------------------------------------------------


def test_a_lower_epoch_is_stale() -> None:
    """N1a: the answer carries this partition's row, and nothing is done."""
    replicas = primary()
    newer = row(5, owner(1), owner(3))
    replicas.adopt(at(6), [newer])
    for reply in (get(replicas), write(replicas, entry()), get(replicas, epoch=at(4))):
        assert code_of(reply) == messages.STALE_EPOCH
        assert detail_of(reply).row == newer
    assert held(replicas) is None
    assert write(replicas, entry(), epoch=at(5)) == Ack()


def test_a_node_that_is_no_owner_is_stale() -> None:
    """N1a: even if the sender's epoch is right."""
    replicas = new()
    theirs = row(1, owner(2), owner(3))
    replicas.adopt(at(1), [theirs])
    for reply in (get(replicas), write(replicas, entry())):
        assert code_of(reply) == messages.STALE_EPOCH
        assert detail_of(reply).row == theirs
    assert held(replicas) is None


def test_a_backup_serves_no_reads() -> None:
    """N1a: it takes writes, and answers a GET with STALE_EPOCH."""
    replicas = backup()
    assert write(replicas, entry()) == Ack()
    reply = get(replicas)
    assert code_of(reply) == messages.STALE_EPOCH
    assert detail_of(reply).row.owners[0].node == 2
    assert held(replicas) == entry()


@pytest.mark.parametrize("owners", [(owner(2), owner(1, in_sync=0)), (owner(1, in_sync=0),)])
def test_a_syncing_owner_takes_writes_but_no_reads(owners: tuple[Owner, ...]) -> None:
    """N1a, N6: it takes part in every write from its join on."""
    replicas = new()
    replicas.adopt(at(1), [row(1, *owners)])
    assert write(replicas, entry()) == Ack()
    assert code_of(get(replicas)) == messages.STALE_EPOCH


@pytest.mark.parametrize("partition", [PARTITION, 10_000])
def test_another_clusters_epoch_is_stale(partition: int) -> None:
    """N1a, M4: whatever its counter is, and also for a partition that does not exist here."""
    replicas = new()
    replicas.adopt(at(1), [row(1, owner(1)), row(1, owner(1), partition=0)])
    for counter in (0, 1, 99):
        epoch = at(counter, OTHER_CLUSTER)
        for reply in (
            get(replicas, epoch=epoch, partition=partition),
            write(replicas, entry(), epoch=epoch, partition=partition),
        ):
            assert code_of(reply) == messages.STALE_EPOCH
            assert detail_of(reply).row.list_epoch == at(1)
    assert held(replicas) is None


def test_a_higher_epoch_is_behind() -> None:
    """N1c: the node has to fetch the map, and the request has done nothing."""
    replicas = primary()
    for request in (Get(at(2), PARTITION, KEY), Write(at(2), PARTITION, KEY, entry())):
        with pytest.raises(Behind) as caught:
            ask(replicas, request)
        assert caught.value.error_code == messages.BEHIND
    assert held(replicas) is None
    replicas.adopt(at(2), [row(2, owner(1))])
    assert write(replicas, entry(), epoch=at(2)) == Ack()
    assert get(replicas, epoch=at(2)) == EntryReply(entry())


def test_rows_never_go_backwards() -> None:
    """N1a: an older row, or another one of the same epoch, changes nothing."""
    replicas = new()
    replicas.adopt(at(5), [row(5, owner(1))])
    write(replicas, entry(), epoch=at(5))
    replicas.adopt(at(4), [row(4, owner(2))])
    replicas.adopt(at(5), [row(5, owner(2))])
    assert replicas.epoch == at(5)
    assert get(replicas, epoch=at(5)) == EntryReply(entry())
    replicas.adopt(at(7), [])
    assert replicas.epoch == at(7)
    assert get(replicas, epoch=at(5)) == EntryReply(entry())


def test_other_clusters_rows_are_ignored() -> None:
    """M4: a map, or a row, that names another cluster is not adopted, nor one out of range."""
    replicas = primary()
    foreign = row(9, owner(2), cluster=OTHER_CLUSTER)
    replicas.adopt(at(9, OTHER_CLUSTER), [row(9, owner(2))])
    replicas.adopt(at(2), [foreign, row(2, owner(1), partition=10_000)])
    assert replicas.epoch == at(2)
    assert write(replicas, entry()) == Ack()
    assert get(replicas) == EntryReply(entry())


def test_a_map_of_another_cluster_is_no_first_map() -> None:
    """N0: after it the node is still not ready."""
    replicas = new()
    replicas.adopt(at(1, OTHER_CLUSTER), [row(1, owner(1), cluster=OTHER_CLUSTER)])
    assert code_of(get(replicas)) == messages.NOT_READY


def test_there_is_no_such_partition() -> None:
    """A partition beyond the last one, named with this cluster's id, is malformed."""
    replicas = primary()
    for request in (Get(at(1), 192, KEY), Write(at(1), 192, KEY, entry())):
        with pytest.raises(RemoteProtocolError, match="no partition 192, only 0 to 191") as caught:
            ask(replicas, request)
        assert caught.value.error_code == MALFORMED


def test_another_shape_is_refused_without_a_row_of_partition_0() -> None:
    """N0, M4: a node that was given some rows only still answers, whatever it is asked."""
    replicas = primary()
    reply = get(replicas, epoch=at(1, OTHER_CLUSTER), partition=10_000)
    assert code_of(reply) in (messages.NOT_READY, messages.STALE_EPOCH)


# --- GET -----------------------------------------------------------------------------------------


def test_get_returns_the_entry_as_it_is() -> None:
    replicas = primary()
    assert get(replicas) == NotFound()
    for number, flags in enumerate((0, ORDERED, TOMBSTONE, ORDERED | TOMBSTONE)):
        data = entry(NOW_US + number, flags=flags)
        assert write(replicas, data) == Ack()
        assert get(replicas) == EntryReply(data)
    data = entry(NOW_US + 9, flags=EXPIRES, expiry=NOW_US + 1)  # not yet
    assert write(replicas, data) == Ack()
    assert get(replicas) == EntryReply(data)


def test_get_with_epoch_zero_asks_for_whatever_is_held() -> None:
    """Any node that has a map answers, and finds the partition itself."""
    replicas = backup()
    write(replicas, entry())
    assert get(replicas, epoch=0, partition=0) == EntryReply(entry())
    assert get(replicas, epoch=0, partition=10_000) == EntryReply(entry())
    assert get(replicas, b"other", epoch=0) == NotFound()


@pytest.mark.parametrize("hash_code", [HASH_ADDITIVE, HASH_CRC16])
def test_a_wrong_partition_is_refused(hash_code: int) -> None:
    """For both requests, with the right one: the sender's hash or count is wrong."""
    replicas = new(hash_code=hash_code)
    right = HASH_FUNCTIONS[hash_code](KEY) % 192
    wrong = (right + 1) % 192
    replicas.adopt(at(1), [row(1, owner(1), partition=p) for p in (right, wrong)])
    for reply in (get(replicas, partition=wrong), write(replicas, entry(), partition=wrong)):
        assert code_of(reply) == messages.WRONG_PARTITION
        assert detail_of(reply).partition == right
    assert replicas.count == 0
    assert write(replicas, entry(), partition=right) == Ack()
    assert get(replicas, partition=right) == EntryReply(entry())


# --- N3: WRITE -----------------------------------------------------------------------------------


def test_a_higher_version_is_stored_as_pending() -> None:
    """N3: first row of the order; also with the rid that is stored, and over a committed entry."""
    replicas = primary()
    versions = [
        entry(NOW_US, client=5),
        entry(NOW_US, client=6),
        entry(NOW_US + 1, client=1),
        entry(NOW_US + 2, client=1, flags=ORDERED, value=b"another version, same rid"),
    ]
    for data in versions:
        assert write(replicas, data) == Ack()
        assert get(replicas) == EntryReply(data)
        commit(replicas, data)


def test_an_equal_version_is_acknowledged_and_changes_nothing() -> None:
    """N3: a request that is sent twice; the committed flag stays."""
    replicas = primary()
    data = entry()
    write(replicas, data)
    assert write(replicas, data) == Ack()
    commit(replicas, data)
    assert write(replicas, data) == Ack()
    assert write(replicas, entry(flags=ORDERED)) == Ack()
    assert held(replicas) == committed(data)


def test_an_equal_rid_is_acknowledged_and_changes_nothing() -> None:
    """N3: the first version of an operation that is already there under its second one."""
    replicas = primary()
    second = entry(NOW_US + 5, client=8, counter=3, flags=ORDERED)
    write(replicas, second)
    assert write(replicas, entry(NOW_US, client=8, counter=3)) == Ack()
    assert held(replicas) == second


@pytest.mark.parametrize(
    "late",
    [
        entry(NOW_US - 1, client=9, counter=1),
        entry(NOW_US - 1, client=5, counter=2),
        entry(NOW_US, client=4, counter=1),
        entry(NOW_US, client=4, counter=2),
    ],
)
def test_otherwise_it_is_superseded_by_the_stored_version(late: bytes) -> None:
    """N3: last row of the order, also for a tombstone that is stored."""
    for flags in (0, TOMBSTONE):
        replicas = backup()
        stored = entry(NOW_US, client=5, counter=1, flags=flags)
        write(replicas, stored)
        assert write(replicas, late) == Superseded(stored[:16])
        assert held(replicas) == stored


# --- N5: COMMIT ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, ORDERED, TOMBSTONE, ORDERED | TOMBSTONE])
def test_commit_marks_only_the_stored_version(flags: int) -> None:
    """N5: a COMMIT of another version, higher or lower, changes nothing. It has no reply."""
    replicas = backup()
    stored = entry(NOW_US, client=5, flags=flags)
    write(replicas, stored)
    for other in (entry(NOW_US, client=4), entry(NOW_US, client=6), entry(NOW_US + 1, client=5)):
        commit(replicas, other)
        assert held(replicas) == stored
    size, count = replicas.size, replicas.count
    commit(replicas, stored)
    commit(replicas, stored)
    assert held(replicas) == committed(stored)
    assert (replicas.size, replicas.count) == (size, count)


def test_commit_of_an_absent_key_does_nothing() -> None:
    """N5: nor in a partition of which this node is no owner, or without any map."""
    replicas = primary()
    commit(replicas, entry())
    commit(replicas, entry(), partition=0)
    commit(new(), entry())
    assert held(replicas) is None


def test_commit_needs_no_epoch() -> None:
    """N1: it is as good under a newer list."""
    replicas = primary()
    write(replicas, entry())
    replicas.adopt(at(2), [row(2, owner(1))])
    commit(replicas, entry())
    assert get(replicas, epoch=at(2)) == EntryReply(committed(entry()))


# --- against a dict ------------------------------------------------------------------------------

model_keys = st.sampled_from([b"key1", b"1yek", b"ke1y"])  # all in one partition
model_steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("write"),
            model_keys,
            st.integers(0, 4),
            st.integers(1, 3),
            st.integers(1, 2),
            st.sampled_from([0, ORDERED, TOMBSTONE]),
            st.binary(max_size=8),
        ),
        st.tuples(st.just("commit"), model_keys, st.integers(0, 4), st.integers(1, 3)),
        st.tuples(st.just("discard")),
        st.tuples(st.just("row")),
    ),
    max_size=40,
)


@quick
@given(model_steps)
def test_like_a_dict(steps: list[tuple[Any, ...]]) -> None:
    """N3, N5 and the counts, against a dict of entries and the rules in their plainest form."""
    replicas = primary()
    model: dict[bytes, Entry] = {}
    list_epoch = join = 1
    for step in steps:
        if step[0] == "write":
            _, key, time, client, counter, flags, value = step
            value = b"" if flags & TOMBSTONE else value
            new_entry = Entry(time, client, counter, flags, None, value)
            old = model.get(key)
            expected: Message = Ack()
            if old is None or (time, client) > (old.time, old.client):
                model[key] = new_entry
            elif (time, client) != (old.time, old.client) and (client, counter) != (
                old.client,
                old.counter,
            ):
                expected = Superseded(struct.pack(">QQ", old.time, old.client))
            reply = write(replicas, encode_record(new_entry), key, at(list_epoch))
            assert reply == expected
        elif step[0] == "commit":
            _, key, time, client = step
            commit(replicas, struct.pack(">QQ", time, client), key)
            old = model.get(key)
            if old is not None and (old.time, old.client) == (time, client):
                flags = old.flags | COMMITTED
                model[key] = Entry(time, client, old.counter, flags, None, old.value)
        else:
            list_epoch += 1
            if step[0] == "discard":
                join = list_epoch
                model.clear()
            replicas.adopt(at(list_epoch), [row(list_epoch, owner(1, join), owner(2))])
        for key in (b"key1", b"1yek", b"ke1y"):
            data = None if key not in model else encode_record(model[key])
            assert held(replicas, key) == data
        assert replicas.count == sum(not e.flags & TOMBSTONE for e in model.values())
        assert replicas.size == sum(len(k) + len(encode_record(e)) for k, e in model.items())


# --- N9: clocks ----------------------------------------------------------------------------------


def test_a_time_too_far_ahead_is_refused() -> None:
    """N9: the bound is 60 s beyond the higher of the clock and the stored version."""
    replicas = primary()
    reply = write(replicas, entry(NOW_US + AHEAD_US + 1))
    assert code_of(reply) == messages.TOO_FAR
    assert detail_of(reply).time_max == NOW_US + AHEAD_US
    assert held(replicas) is None
    assert write(replicas, entry(NOW_US + AHEAD_US)) == Ack()


def test_one_wrong_clock_cannot_lock_a_key() -> None:
    """N9: beyond a stored version there are 60 s again, for that key only."""
    replicas = primary()
    stored = NOW_US + AHEAD_US
    write(replicas, entry(stored))
    reply = write(replicas, entry(stored + AHEAD_US + 1, counter=2))
    assert code_of(reply) == messages.TOO_FAR
    assert detail_of(reply).time_max == stored + AHEAD_US
    assert write(replicas, entry(stored + AHEAD_US, counter=3)) == Ack()
    assert code_of(write(replicas, entry(stored + 1), b"1yek")) == messages.TOO_FAR
    # A version that is sent again is far ahead of the clock, but not of itself.
    assert write(replicas, entry(stored + AHEAD_US, counter=3)) == Ack()
    assert write(replicas, entry(stored, counter=4)) == Superseded(
        entry(stored + AHEAD_US, counter=3)[:16]
    )


def test_the_bound_follows_the_clock() -> None:
    """N9: what was refused is taken once the clock has come that far."""
    now = [NOW_US]
    replicas = Replicas(
        NODE, INCARNATION, CLUSTER, NODES, HASH_ADDITIVE, MemoryEngine(), lambda: now[0]
    )
    replicas.adopt(at(1), [row(1, owner(1), owner(2))])
    late = entry(NOW_US + AHEAD_US + 5)
    assert code_of(write(replicas, late)) == messages.TOO_FAR
    now[0] += 5
    assert write(replicas, late) == Ack()


def test_above_a_floor_there_is_room() -> None:
    """N9, N7: what is TOO_OLD has something above it that is not TOO_FAR, though the floor is that
    of a clock which was an hour ahead; and 60 s of it, as anywhere."""
    replicas = primary()
    floor_us = NOW_US + 60 * AHEAD_US
    replicas.raise_floor(replicas[PARTITION], floor_us.to_bytes(8, "big") + bytes(8))
    assert code_of(write(replicas, entry(NOW_US))) == messages.TOO_OLD
    reply = write(replicas, entry(floor_us + AHEAD_US + 1))
    assert code_of(reply) == messages.TOO_FAR
    assert detail_of(reply).time_max == floor_us + AHEAD_US
    assert write(replicas, entry(floor_us + 1)) == Ack()
    assert write(replicas, entry(floor_us + AHEAD_US), b"1yek") == Ack()


# --- memory --------------------------------------------------------------------------------------


def test_a_full_node_refuses_what_would_grow_it() -> None:
    """NO_SPACE: while gets, deletes and writes that are no longer than what they replace go on."""
    replicas = primary(memory_max=2000)
    big = entry(NOW_US, value=bytes(1500))
    assert write(replicas, big) == Ack()
    refused = entry(NOW_US, client=2, value=bytes(600))
    for key in (b"1yek", KEY):
        reply = write(
            replicas, entry(NOW_US + 1, value=bytes(2100)) if key == KEY else refused, key
        )
        assert code_of(reply) == messages.NO_SPACE
        assert isinstance(reply, Error)
        assert "--max-memory-mb" in reply.message
    assert held(replicas, b"1yek") is None
    assert get(replicas) == EntryReply(big)
    # The same size, a shorter one, a delete of this key and of one that is not there.
    assert write(replicas, entry(NOW_US + 2, value=bytes(1500))) == Ack()
    assert write(replicas, entry(NOW_US + 3, value=bytes(1499))) == Ack()
    assert write(replicas, entry(NOW_US + 4, flags=TOMBSTONE), b"ke1y") == Ack()
    assert write(replicas, entry(NOW_US + 4, flags=TOMBSTONE)) == Ack()
    # Now there is room.
    assert write(replicas, refused, b"1yek") == Ack()
    assert replicas.count == 1


def test_a_full_node_still_acknowledges_what_it_holds() -> None:
    """N3 comes before the memory: a repeated request and a superseded one grow nothing."""
    replicas = primary(memory_max=500)
    data = entry(NOW_US, client=5, value=bytes(300))
    assert write(replicas, data) == Ack()
    assert write(replicas, data) == Ack()
    longer = entry(NOW_US - 1, client=6, value=bytes(900))
    assert write(replicas, longer) == Superseded(data[:16])


def test_a_full_backup_takes_what_its_primary_has_taken() -> None:
    """Only the primary judges: otherwise no reader could complete the entry."""
    replicas = new(memory_max=100)
    replicas.adopt(at(1), [row(1, owner(2), owner(1))])
    assert write(replicas, entry(value=bytes(1000))) == Ack()


def test_memory_is_never_more_than_the_limit() -> None:
    """``--max-memory-mb``: what a new entry takes counts before it is stored."""
    replicas = primary(memory_max=len(KEY) + len(entry()) + ENTRY_OVERHEAD_SIZE - 1)
    assert code_of(write(replicas, entry())) == messages.NO_SPACE


def test_a_node_says_that_its_memory_is_full() -> None:
    """``full``: from a refusal on, until there would be room for it, or for much."""
    size = 100_000
    replicas = primary(memory_max=size)
    assert replicas.full == 0
    assert code_of(write(replicas, entry(value=bytes(size)))) == messages.NO_SPACE
    assert replicas.full == 0  # it is the value that is long
    others = [b"%c%c%c%c" % letters for letters in itertools.permutations(b"1key")][:9]
    assert KEY not in others
    for key in others:
        assert write(replicas, entry(value=bytes(10_900)), key) == Ack()
    assert replicas.full == 0
    assert code_of(write(replicas, entry(value=bytes(10_900)))) == messages.NO_SPACE
    assert replicas.full == messages.FULL_MEMORY
    assert write(replicas, entry(flags=TOMBSTONE, counter=9)) == Ack()
    assert replicas.full == messages.FULL_MEMORY
    assert write(replicas, entry(NOW_US + 1, flags=TOMBSTONE), others[3]) == Ack()
    assert replicas.full == 0


def test_a_full_disk_takes_what_it_has() -> None:
    """N3, before room: what is held is acknowledged, so that it can be completed, and what is lower
    is superseded; nothing else is stored, also by a backup."""
    replicas = primary()
    engine = replicas._engine
    data = entry(NOW_US, client=5)
    assert write(replicas, data) == Ack()
    engine.is_full = True
    assert replicas.full == messages.FULL_DISK
    assert write(replicas, data) == Ack()
    assert write(replicas, entry(NOW_US - 1, client=6)) == Superseded(data[:16])
    for newer in (entry(NOW_US + 1), entry(NOW_US + 1, flags=TOMBSTONE)):
        reply = write(replicas, newer)
        assert code_of(reply) == messages.NO_SPACE
        assert isinstance(reply, Error)
        assert reply.message == "there is no room on this node's disk; reads go on"
    replicas.adopt(at(2), [row(2, owner(2), owner(1))])
    assert code_of(write(replicas, entry(NOW_US + 1), epoch=at(2))) == messages.NO_SPACE
    engine.is_full = False
    assert write(replicas, entry(NOW_US + 1), epoch=at(2)) == Ack()


# --- what is malformed ---------------------------------------------------------------------------


def refused_as_malformed(replicas: Replicas, kind: int, body: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        replicas.handlers[kind](REQUEST_ID, body)
    assert caught.value.error_code == MALFORMED
    assert not caught.value.closes
    return str(caught.value)


@pytest.mark.parametrize("make", [new, primary, backup])
@pytest.mark.parametrize(
    ("request_", "shortest"),
    [
        (Get(at(1), PARTITION, KEY), None),
        (Get(0, 0, KEY), None),
        (Get(at(9), PARTITION, KEY), None),
        (Write(at(1), PARTITION, KEY, entry()), -len(b"value")),
        (Write(at(9), PARTITION, KEY, entry()), -len(b"value")),
        (Write(at(1), PARTITION, KEY, entry(flags=TOMBSTONE)), None),
        (Write(at(1), PARTITION, KEY, entry(flags=EXPIRES, expiry=1, value=b"")), None),
        (Commit(PARTITION, entry()[:16], KEY), None),
    ],
)
def test_a_body_that_is_cut_is_malformed(
    make: Any, request_: Message, shortest: int | None
) -> None:
    """At every offset; ``shortest`` is how much may be missing (a shorter value is a value too)."""
    body = encode(request_)[HEADER_SIZE:]
    replicas = make()
    for end in range(len(body[:shortest])):
        refused_as_malformed(replicas, request_.kind, body[:end])
    assert held_or_none(replicas) is None


def held_or_none(replicas: Replicas) -> bytes | None:
    return held(replicas) if replicas.epoch else None


@pytest.mark.parametrize("request_", [Get(at(1), PARTITION, KEY), Get(0, 0, KEY)])
def test_bytes_behind_a_key_are_malformed(request_: Get) -> None:
    replicas = primary()
    body = encode(request_)[HEADER_SIZE:] + b"x"
    assert "5 bytes there" in refused_as_malformed(replicas, Get.kind, body)
    body = encode(Commit(PARTITION, entry()[:16], KEY))[HEADER_SIZE:] + b"x"
    assert "5 bytes there" in refused_as_malformed(replicas, Commit.kind, body)


@pytest.mark.parametrize("size", [0, KEY_SIZE_MAX + 1, 0xFFFF])
@pytest.mark.parametrize("epoch", [at(1), at(0), at(2), 0])
def test_a_key_has_1_to_500_bytes(size: int, epoch: int) -> None:
    """Also where the key's place is the partition's, and whatever the epoch is."""
    key = b"\0" * size
    replicas = new()
    replicas.adopt(at(1), [row(1, owner(1), partition=0)])
    head = struct.pack(">QIH", epoch, 0, size)
    assert "1 to 500 bytes" in refused_as_malformed(replicas, Get.kind, head + key)
    for time in (NOW_US, NOW_US + AHEAD_US + 1, (1 << 64) - 1):
        body = head + key + entry(time)
        assert "1 to 500 bytes" in refused_as_malformed(replicas, Write.kind, body)
    body = struct.pack(">I16sH", 0, entry(), size) + key
    assert "1 to 500 bytes" in refused_as_malformed(replicas, Commit.kind, body)


@pytest.mark.parametrize("epoch", [at(1), at(9), at(1, OTHER_CLUSTER)])
@pytest.mark.parametrize("partition", [PARTITION, 5, 99_999])
@pytest.mark.parametrize("make", [new, primary, backup])
def test_an_entry_is_checked_before_the_epoch(make: Any, epoch: int, partition: int) -> None:
    """Section 8: whether a body is well-formed does not depend on what this node knows."""
    for flags, code in ((COMMITTED, MALFORMED), (0, messages.VALUE_TOO_LONG)):
        data = entry(flags=flags, value=bytes(VALUE_SIZE_MAX + 1 if not flags else 0))
        body = encode(Write(epoch, partition, KEY, data))[HEADER_SIZE:]
        with pytest.raises(RemoteProtocolError) as caught:
            make().handlers[Write.kind](REQUEST_ID, body)
        assert caught.value.error_code == code


def test_the_longest_key_is_taken() -> None:
    replicas = new()
    replicas.adopt(at(1), [row(1, owner(1), partition=0)])
    key = b"\0" * KEY_SIZE_MAX
    assert write(replicas, entry(), key, partition=0) == Ack()
    assert get(replicas, key, partition=0) == EntryReply(entry())


@pytest.mark.parametrize("flags", [COMMITTED, COMMITTED | ORDERED, 16, 128, 0xFF])
def test_a_write_has_no_other_flags(flags: int) -> None:
    """A WRITE is pending by definition (N3); only COMMIT commits."""
    replicas = primary()
    data = entry()[:20] + bytes((flags,)) + b"value"
    body = encode(Write(at(1), PARTITION, KEY, data))[HEADER_SIZE:]
    assert f"flags are {flags}" in refused_as_malformed(replicas, Write.kind, body)
    assert held(replicas) is None


@pytest.mark.parametrize(
    ("flags", "rest", "what"),
    [
        (TOMBSTONE, b"v", "a tombstone has no value"),
        (TOMBSTONE | EXPIRES, bytes(9), "a tombstone has no value"),
        (EXPIRES, bytes(7), "too short for its expiry"),
        (EXPIRES | TOMBSTONE, b"", "too short for its expiry"),
    ],
)
def test_an_entry_fits_its_flags(flags: int, rest: bytes, what: str) -> None:
    replicas = primary()
    data = entry(value=b"")[:20] + bytes((flags,)) + rest
    body = encode(Write(at(1), PARTITION, KEY, data))[HEADER_SIZE:]
    assert what in refused_as_malformed(replicas, Write.kind, body)
    assert held(replicas) is None


def test_a_value_over_the_limit_is_refused() -> None:
    """VALUE_TOO_LONG, with the limit; the longest value is taken."""
    replicas = primary()
    head = encode(Write(at(1), PARTITION, KEY, entry(value=b"")))[HEADER_SIZE:]
    with pytest.raises(RemoteProtocolError) as caught:
        replicas.write(REQUEST_ID, head + bytes(VALUE_SIZE_MAX + 1))
    assert caught.value.error_code == messages.VALUE_TOO_LONG
    assert caught.value.detail.size_max == VALUE_SIZE_MAX
    assert replicas.size == 0
    assert handle(replicas, Write.kind, head + bytes(VALUE_SIZE_MAX)) == Ack()
    assert replicas.size == len(KEY) + 21 + VALUE_SIZE_MAX


def labelled(kind: int) -> st.SearchStrategy[bytes]:
    """Bodies that begin as this node expects, so that the rest is looked at."""
    rest = st.binary(max_size=60)
    if kind == Commit.kind:
        label = st.just(struct.pack(">I", PARTITION) + entry()[:16])
    else:
        label = st.builds(
            struct.Struct(">QI").pack,
            st.sampled_from([0, at(0), at(1), at(2), at(1, OTHER_CLUSTER)]),
            st.sampled_from([PARTITION, 0, 192, 0xFFFF_FFFF]),
        )
    sized = st.binary(min_size=1, max_size=4).map(lambda key: struct.pack(">H", len(key)) + key)
    return st.one_of(
        rest,
        st.tuples(label, rest).map(b"".join),
        st.tuples(label, sized, rest).map(b"".join),
        st.tuples(label, st.just(struct.pack(">H", 4) + KEY), rest).map(b"".join),
    )


@quick
@given(
    st.lists(
        st.sampled_from([Get.kind, Write.kind, Commit.kind]).flatmap(
            lambda kind: st.tuples(st.just(kind), labelled(kind))
        ),
        max_size=10,
    ),
    st.booleans(),
)
def test_only_protocol_errors_escape(requests: list[tuple[int, bytes]], has_map: bool) -> None:
    """Whatever the bytes: a reply, or RemoteProtocolError; and what is stored is an entry."""
    replicas = new(memory_max=1000)
    if has_map:
        replicas.adopt(at(1), [row(1, owner(1), partition=p) for p in (PARTITION, 0)])
    for kind, body in requests:
        try:
            handle(replicas, kind, body)
        except RemoteProtocolError:
            pass
    assert replicas.count >= 0
    assert replicas.size >= 0
    data = held_or_none(replicas)
    assert data is None or len(data) >= 21


def test_exactly_as_many_as_there_is_room_for() -> None:
    """However the room that is left is worked out."""
    one = len(KEY) + len(entry()) + ENTRY_OVERHEAD_SIZE
    replicas = new(memory_max=5 * one)
    rows = [row(1, owner(1), partition=partition) for partition in range(192)]
    replicas.adopt(at(1), rows)
    keys = [b"key%d" % i for i in range(6)]
    *taken, refused = [write(replicas, entry(), key, partition=sum(key) % 192) for key in keys]
    assert taken == [Ack()] * 5
    assert code_of(refused) == messages.NO_SPACE


# --- entries on disk -----------------------------------------------------------------------------


def on_disk(store: ForgetfulStore, incarnation: int, first: int = 0) -> tuple[Replicas, DiskEngine]:
    engine = DiskEngine(store)
    replicas = Replicas(
        NODE, incarnation, CLUSTER, NODES, HASH_ADDITIVE, engine, lambda: NOW_US,
        first_epoch=at(first),
    )  # fmt: skip
    return replicas, engine


def save(replicas: Replicas, engine: DiskEngine, store: ForgetfulStore) -> None:
    store.commit(engine.take(replicas.remembered))
    store.refresh()
    engine.settle()


def test_a_later_process_keeps_what_its_disk_has() -> None:
    """N2: entries, counts, floor and join_epoch; under a row that names it with that join_epoch."""
    store = ForgetfulStore()
    replicas, engine = on_disk(store, INCARNATION)
    replicas.adopt(at(1), [row(1, owner(1), owner(2))])
    write(replicas, entry())
    write(replicas, entry(flags=TOMBSTONE), b"1yek")
    replicas.raise_floor(replicas[PARTITION], b"f" * 16)
    save(replicas, engine, store)
    before = replicas.remembered(PARTITION)
    assert before == (at(1), b"f" * 16, 2, 1, replicas.size, False)
    assert remembered_joins(store) == ((messages.Join(PARTITION, at(1)),), ())
    later, _ = on_disk(store.after_crash(), INCARNATION + 1, first=5)
    assert code_of(get(later)) == messages.NOT_READY
    reopened = row(5, owner(1, incarnation=INCARNATION + 1), owner(2))
    later.adopt(at(5), [reopened])
    assert later.remembered(PARTITION) == before
    assert get(later, epoch=at(5)) == messages.EntryReply(entry())


def test_a_map_from_before_its_registration_discards_nothing() -> None:
    """N0: in it the node is the process before, or no owner; what it has may be the only copy."""
    store = ForgetfulStore()
    replicas, engine = on_disk(store, INCARNATION)
    replicas.adopt(at(1), [row(1, owner(1))])
    write(replicas, entry())
    save(replicas, engine, store)
    later, _ = on_disk(store.after_crash(), INCARNATION + 1, first=5)
    for old in (row(1, owner(1)), row(4, owner(2))):
        later.adopt_row(old)
        later.adopt(at(4), [old])
        assert (later.epoch, later[PARTITION].row) == (0, None)
    later.adopt(at(5), [row(5, owner(1, incarnation=INCARNATION + 1))])
    assert get(later, epoch=at(5)) == messages.EntryReply(entry())


def test_a_get_is_shown_what_is_on_disk() -> None:
    """It waits for nothing, but for the tombstone that it makes of what has expired."""
    store = ForgetfulStore()
    replicas, engine = on_disk(store, INCARNATION)
    depends: list[int] = []
    engine.on_depend = depends.append
    replicas.adopt(at(1), [row(1, owner(1))])
    expired = entry(flags=EXPIRES, expiry=NOW_US - 1)
    write(replicas, expired)
    assert get(replicas) == messages.NotFound()
    save(replicas, engine, store)
    assert depends == []
    found = get(replicas)
    assert isinstance(found, messages.EntryReply)
    assert found.entry[FLAGS_AT] == ORDERED | TOMBSTONE
    assert depends == [2]
    # What is shown has expired, and what was written since has not.
    newer = entry(time=NOW_US + 5)
    assert write(replicas, newer) == messages.Ack()
    assert get(replicas) == messages.EntryReply(newer)
    assert depends == [2, 2]


def test_a_suspended_partition_answers_nothing() -> None:
    """Until it is resumed, or joined anew; a newer row of the same join does not end it."""
    replicas = primary()
    write(replicas, entry())
    assert replicas.suspend(PARTITION) == at(1)
    assert code_of(get(replicas)) == code_of(write(replicas, entry())) == messages.STALE_EPOCH
    replicas.adopt(at(2), [row(2, owner(1), owner(3))])
    assert code_of(get(replicas, epoch=at(2))) == messages.STALE_EPOCH
    replicas.resume(PARTITION)
    assert get(replicas, epoch=at(2)) == messages.EntryReply(entry())
    replicas.suspend(PARTITION)
    replicas.adopt(at(3), [row(3, owner(3), owner(1, join=3, in_sync=0))])
    assert write(replicas, entry(), epoch=at(3)) == messages.Ack()


def test_a_key_that_is_named_and_cannot_be_found() -> None:
    """A flipped bit in a name takes it out of the order in which the disk looks for names."""
    store = ForgetfulStore()
    replicas, engine = on_disk(store, INCARNATION)
    replicas.adopt(at(1), [row(1, owner(1))])
    write(replicas, entry())
    save(replicas, engine, store)
    assert replicas.entry_of(PARTITION, KEY) == entry()
    with pytest.raises(StoreDamaged, match="is named on the disk, and cannot be found"):
        replicas.entry_of(PARTITION, b"1yek")
