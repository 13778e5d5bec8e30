"""EXECUTE at a node: rule N4, and what append, increment, the comparisons and touch make of an
entry; and what the primary makes of one that has expired (C8)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtstore.errors import RemoteProtocolError
from gtstore.read_modify_write import NUMBER_MAX, NUMBER_MIN, number_of, tombstone_of
from gtstore.replica import Replicas
from gtstore.wire import messages
from gtstore.wire.codec import LongReply, decode, decode_entry, encode, encode_record
from gtstore.wire.messages import (
    APPEND,
    COMMITTED,
    EXPIRES,
    HEADER_SIZE,
    INCREMENT,
    LONG_FRAME_SIZE,
    MALFORMED,
    ORDERED,
    PUT_IF_ABSENT,
    PUT_IF_VALUE,
    PUT_IF_VERSION,
    TOMBSTONE,
    TOUCH,
    VALUE_SIZE_MAX,
    Ack,
    Entry,
    Execute,
    Executed,
    Failed,
    Superseded,
)

from .test_replica import (
    KEY,
    NOW_US,
    PARTITION,
    ask,
    at,
    backup,
    code_of,
    commit,
    committed,
    entry,
    get,
    held,
    primary,
    write,
)

STORED_TIME = NOW_US
NEW_TIME = NOW_US + 10


def execute(
    replicas: Replicas,
    operation: int,
    operand: bytes,
    expected: bytes = b"",
    *,
    time: int = NEW_TIME,
    client: int = 7,
    counter: int = 1,
    flags: int = 0,
    expiry: int | None = None,
    epoch: int | None = None,
    key: bytes = KEY,
    partition: int = PARTITION,
) -> Any:
    request = Execute(
        at(1) if epoch is None else epoch,
        partition,
        key,
        operation,
        expected,
        encode_record(Entry(time, client, counter, flags, expiry, operand)),
    )
    return ask(replicas, request)


def holding(value: bytes | None, flags: int = 0, expiry: int | None = None) -> Replicas:
    """A primary that holds this value under the key; None: nothing."""
    replicas = primary()
    if value is not None:
        if expiry is not None:
            flags |= EXPIRES
        assert write(replicas, entry(STORED_TIME, flags=flags, value=value, expiry=expiry)) == Ack()
    return replicas


def result(reply: Any) -> Entry:
    assert isinstance(reply, Executed), reply
    return decode_entry(reply.entry)


def get_entry(replicas: Replicas) -> bytes:
    reply = get(replicas)
    assert isinstance(reply, messages.EntryReply)
    return reply.entry


def reason(reply: Any) -> int:
    assert isinstance(reply, Failed), reply
    return reply.reason


# --- append, increment ---------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [(None, b"x"), (b"", b"x"), (b"abc", b"abcx")])
def test_append(old: bytes | None, new: bytes) -> None:
    """A missing key counts as empty; the result is pending, ordered, and of the request's
    version."""
    replicas = holding(old)
    made = result(execute(replicas, APPEND, b"x"))
    assert made == Entry(NEW_TIME, 7, 1, ORDERED, None, new)
    assert held(replicas) == encode_record(made)


def test_append_to_a_deleted_key() -> None:
    replicas = holding(b"", flags=TOMBSTONE)
    assert result(execute(replicas, APPEND, b"x")).value == b"x"
    assert replicas.count == 1


def test_append_up_to_the_limit() -> None:
    replicas = holding(bytes(VALUE_SIZE_MAX - 1))
    with pytest.raises(LongReply) as caught:  # FAILED, with the entry uncopied
        execute(replicas, APPEND, b"xx")
    failed = decode(messages.Failed.kind, caught.value.head[HEADER_SIZE:] + caught.value.rest)
    assert reason(failed) == messages.RESULT_TOO_LONG
    with pytest.raises(LongReply) as caught:
        execute(replicas, APPEND, b"x")
    assert len(caught.value.rest) == messages.ENTRY_HEAD_SIZE + VALUE_SIZE_MAX


@pytest.mark.parametrize(
    ("old", "step", "new"),
    [
        (None, b"1", b"1"),
        (b"41", b"1", b"42"),
        (b"-1", b"+1", b"0"),
        (b"007", b"-10", b"-3"),
        (b"%d" % (NUMBER_MAX - 1), b"1", b"%d" % NUMBER_MAX),
        (b"%d" % NUMBER_MIN, b"%d" % NUMBER_MAX, b"-1"),
    ],
)
def test_increment(old: bytes | None, step: bytes, new: bytes) -> None:
    assert result(execute(holding(old), INCREMENT, step)).value == new


@pytest.mark.parametrize(
    ("old", "step", "why"),
    [
        (b"", b"1", messages.NOT_A_NUMBER),
        (b"1.5", b"1", messages.NOT_A_NUMBER),
        (b" 1", b"1", messages.NOT_A_NUMBER),
        (b"1\n", b"1", messages.NOT_A_NUMBER),
        (b"9" * 19, b"1", messages.NOT_A_NUMBER),
        (b"%d" % NUMBER_MAX, b"1", messages.NUMBER_OVERFLOW),
        (b"%d" % NUMBER_MIN, b"-1", messages.NUMBER_OVERFLOW),
    ],
)
def test_increment_fails(old: bytes, step: bytes, why: int) -> None:
    """Nothing is changed, and the reply has the entry that is there."""
    replicas = holding(old)
    before = held(replicas)
    reply = execute(replicas, INCREMENT, step)
    assert reason(reply) == why
    assert reply.entry == before == held(replicas)


@given(st.integers())
def test_numbers(number: int) -> None:
    """Exactly the signed numbers of 64 bits."""
    text = b"%d" % number
    assert number_of(text) == (number if NUMBER_MIN <= number <= NUMBER_MAX else None)


@given(st.binary(max_size=25))
def test_other_bytes_are_no_numbers(text: bytes) -> None:
    number = number_of(text)
    assert number is None or int(text) == number


# --- comparisons ---------------------------------------------------------------------------------

VERSION = entry(STORED_TIME)[:16]


@pytest.mark.parametrize(
    ("old", "operation", "expected"),
    [
        (None, PUT_IF_ABSENT, b""),
        (b"old", PUT_IF_VALUE, b"old"),
        (b"", PUT_IF_VALUE, b""),
        (b"old", PUT_IF_VERSION, VERSION),
    ],
)
def test_comparisons_succeed(old: bytes | None, operation: int, expected: bytes) -> None:
    assert result(execute(holding(old), operation, b"new", expected)).value == b"new"


@pytest.mark.parametrize(
    ("old", "operation", "expected"),
    [
        (b"old", PUT_IF_ABSENT, b""),
        (b"", PUT_IF_ABSENT, b""),
        (None, PUT_IF_VALUE, b""),
        (b"old", PUT_IF_VALUE, b"ol"),
        (None, PUT_IF_VERSION, VERSION),
        (b"old", PUT_IF_VERSION, bytes(16)),
    ],
)
def test_comparisons_fail(old: bytes | None, operation: int, expected: bytes) -> None:
    replicas = holding(old)
    reply = execute(replicas, operation, b"new", expected)
    assert reason(reply) == messages.COMPARISON_FAILED
    assert (reply.entry or None) == held(replicas)


def test_a_deleted_key_is_absent() -> None:
    """It has no value to compare with; but its version can be compared."""
    assert result(execute(holding(b"", TOMBSTONE), PUT_IF_ABSENT, b"new")).value == b"new"
    assert reason(execute(holding(b"", TOMBSTONE), PUT_IF_VALUE, b"new")) == 1
    made = execute(holding(b"", TOMBSTONE), PUT_IF_VERSION, b"new", VERSION)
    assert result(made).value == b"new"


# --- expiry --------------------------------------------------------------------------------------


def test_append_and_increment_keep_the_expiry() -> None:
    """The value lives on; what is put anew has its own."""
    later = NOW_US + 1
    for operation in (APPEND, INCREMENT):
        made = result(execute(holding(b"1", expiry=later), operation, b"1"))
        assert (made.flags, made.expiry) == (ORDERED | EXPIRES, later)
    assert result(execute(holding(b"1", expiry=later), PUT_IF_VALUE, b"2", b"1")).expiry is None
    made = result(execute(holding(None), PUT_IF_ABSENT, b"2", flags=EXPIRES, expiry=5))
    assert (made.flags, made.expiry, made.value) == (ORDERED | EXPIRES, 5, b"2")


TOMBSTONE_OF_IT = entry(STORED_TIME, client=2, flags=ORDERED | TOMBSTONE)
"""Of the entries that holding makes: their client is 1."""


def test_a_get_of_an_expired_entry_stores_a_tombstone() -> None:
    """C8: from the moment on that the expiry names, by the primary's clock. The tombstone is
    pending, ordered, and next to the entry; the same one is returned from then on."""
    assert held(holding(b"1", expiry=NOW_US + 1)) == get_entry(holding(b"1", expiry=NOW_US + 1))
    for flags in (0, ORDERED):
        replicas = holding(b"1", flags, expiry=NOW_US)
        commit(replicas, entry(STORED_TIME))
        assert replicas.count == 1
        assert get_entry(replicas) == TOMBSTONE_OF_IT
        assert held(replicas) == TOMBSTONE_OF_IT
        assert (replicas.count, replicas.size) == (0, len(KEY) + len(TOMBSTONE_OF_IT))
        commit(replicas, TOMBSTONE_OF_IT)
        assert get_entry(replicas) == committed(TOMBSTONE_OF_IT)


def test_a_tombstone_may_expire_too() -> None:
    replicas = holding(b"", TOMBSTONE, expiry=NOW_US)
    assert get_entry(replicas) == TOMBSTONE_OF_IT
    assert (replicas.count, replicas.size) == (0, len(KEY) + len(TOMBSTONE_OF_IT))


def test_nothing_is_between_an_entry_and_its_tombstone() -> None:
    """Also where the client's number is the highest; and only what is at most the entry is refused
    by the tombstone (C8)."""
    highest = 2**64 - 1
    data = entry(NOW_US, client=highest, counter=9, flags=EXPIRES, expiry=1)
    assert decode_entry(tombstone_of(data)) == Entry(
        NOW_US + 1, 0, 9, ORDERED | TOMBSTONE, None, b""
    )
    replicas = holding(b"1", expiry=NOW_US)
    get_entry(replicas)
    assert write(replicas, entry(STORED_TIME, client=0)) == Superseded(TOMBSTONE_OF_IT[:16])
    assert write(replicas, entry(STORED_TIME, client=3)) == Ack()


def test_only_the_primary_judges() -> None:
    """C8: neither a backup nor a GET with epoch 0."""
    for replicas in (backup(), primary()):
        data = entry(flags=EXPIRES, expiry=1)
        write(replicas, data)
        assert held(replicas) == data
        assert held(replicas) == data
    assert code_of(get(backup())) == messages.STALE_EPOCH


@pytest.mark.parametrize(
    ("operation", "operand", "value"),
    [(APPEND, b"1", b"1"), (INCREMENT, b"1", b"1"), (PUT_IF_ABSENT, b"2", b"2")],
)
def test_what_has_expired_counts_as_nil(operation: int, operand: bytes, value: bytes) -> None:
    """C8: the result is computed from nothing, and has no expiry of the old value."""
    replicas = holding(b"41", expiry=NOW_US)
    made = result(execute(replicas, operation, operand))
    assert made == Entry(NEW_TIME, 7, 1, ORDERED, None, value)
    assert held(replicas) == encode_record(made)
    assert (replicas.count, replicas.size) == (1, len(KEY) + len(encode_record(made)))


@pytest.mark.parametrize(
    ("operation", "expected"), [(PUT_IF_VALUE, b"1"), (PUT_IF_VERSION, VERSION)]
)
def test_a_comparison_with_what_has_expired_fails(operation: int, expected: bytes) -> None:
    """C8: with the pending tombstone, which the client completes before it reports that (C4)."""
    replicas = holding(b"1", expiry=NOW_US)
    reply = execute(replicas, operation, b"2", expected)
    assert reason(reply) == messages.COMPARISON_FAILED
    assert reply.entry == held(replicas) == TOMBSTONE_OF_IT
    again = execute(replicas, PUT_IF_VERSION, b"2", TOMBSTONE_OF_IT[:16], counter=2)
    assert result(again).value == b"2"


def test_the_same_operation_again_after_its_result_has_expired() -> None:
    """N4: it was done, and says so. Its entry is completed; the next reader finds it expired."""
    replicas = holding(None)
    first = execute(replicas, PUT_IF_ABSENT, b"2", flags=EXPIRES, expiry=NOW_US)
    assert execute(replicas, PUT_IF_ABSENT, b"2", flags=EXPIRES, expiry=NOW_US) == first
    gone = get_entry(replicas)
    assert decode_entry(gone).flags == ORDERED | TOMBSTONE
    late = execute(replicas, PUT_IF_ABSENT, b"2", flags=EXPIRES, expiry=NOW_US)
    assert late == Superseded(gone[:16])


def test_an_expired_value_gives_its_memory_back() -> None:
    """What is put in its place must fit, as ever; the tombstone always does."""
    full = primary(memory_max=1000)
    write(full, entry(STORED_TIME, flags=EXPIRES, expiry=NOW_US, value=bytes(800)))
    assert code_of(execute(full, APPEND, bytes(900))) == messages.NO_SPACE
    assert held(full) == TOMBSTONE_OF_IT
    assert result(execute(full, APPEND, bytes(800))).value == bytes(800)


# --- touch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, ORDERED, TOMBSTONE, ORDERED | TOMBSTONE])
@pytest.mark.parametrize("expiry", [None, NOW_US + 1])
def test_touch_stores_the_same_under_a_new_version(flags: int, expiry: int | None) -> None:
    """C6: the value, or that there is none; its expiry stays."""
    value = b"" if flags & TOMBSTONE else b"value"
    replicas = holding(value, flags, expiry)
    made = result(execute(replicas, TOUCH, b""))
    flags = ORDERED | flags & TOMBSTONE
    if flags & TOMBSTONE:
        expiry = None
    elif expiry is not None:
        flags |= EXPIRES
    assert made == Entry(NEW_TIME, 7, 1, flags, expiry, value)
    assert held(replicas) == encode_record(made)
    assert replicas.count == (not flags & TOMBSTONE)


@pytest.mark.parametrize(("value", "expiry"), [(None, None), (b"value", NOW_US)])
def test_touch_of_nothing_stores_a_tombstone(value: bytes | None, expiry: int | None) -> None:
    """C6, C8: under a new version, too, so that what only a backup holds is below it."""
    replicas = holding(value, expiry=expiry)
    made = result(execute(replicas, TOUCH, b""))
    assert made == Entry(NEW_TIME, 7, 1, ORDERED | TOMBSTONE, None, b"")
    assert held(replicas) == encode_record(made)
    assert (replicas.count, replicas.size) == (0, len(KEY) + len(encode_record(made)))


# --- N4 ------------------------------------------------------------------------------------------


def test_the_same_operation_again_is_answered_as_before() -> None:
    """N4: by its rid, whatever its version; committed or not; it is not done twice."""
    replicas = holding(b"a")
    first = execute(replicas, APPEND, b"x")
    assert execute(replicas, APPEND, b"x") == first
    assert execute(replicas, APPEND, b"x", time=NEW_TIME + 5) == first
    commit(replicas, first.entry)
    assert result(execute(replicas, APPEND, b"x")).flags == ORDERED | COMMITTED


def test_a_version_that_is_not_higher_is_refused() -> None:
    """N4: also where the comparison would fail."""
    replicas = holding(b"a")
    for time in (STORED_TIME - 1, STORED_TIME):
        reply = execute(replicas, PUT_IF_ABSENT, b"x", time=time, client=0)
        assert reply == Superseded(VERSION)
    assert held(replicas) == entry(STORED_TIME, value=b"a")


def test_only_the_primary_executes() -> None:
    """N1a: a backup, another epoch, epoch 0, another cluster's partition."""
    replicas = backup()
    assert code_of(execute(replicas, APPEND, b"x")) == messages.STALE_EPOCH
    replicas = holding(b"a")
    assert code_of(execute(replicas, APPEND, b"x", epoch=0)) == messages.STALE_EPOCH
    assert code_of(execute(replicas, APPEND, b"x", epoch=at(0))) == messages.STALE_EPOCH
    other = at(1, cluster=0xDEADBEEF)
    reply = execute(replicas, APPEND, b"x", epoch=other, partition=100_000)
    assert code_of(reply) == messages.STALE_EPOCH
    wrong = execute(replicas, APPEND, b"x", key=b"key2")
    assert code_of(wrong) == messages.WRONG_PARTITION
    assert replicas.count == 1


def test_the_same_limits_as_for_a_write() -> None:
    """N9, and the node's memory."""
    replicas = holding(b"a")
    far = execute(replicas, APPEND, b"x", time=NOW_US + 61_000_000)
    assert code_of(far) == messages.TOO_FAR
    full = primary(memory_max=1000)
    assert code_of(execute(full, APPEND, bytes(1000))) == messages.NO_SPACE
    assert held(full) is None


@pytest.mark.parametrize(
    "change",
    [
        {"operation": 0},
        {"operation": 99},
        {"flags": COMMITTED},
        {"flags": ORDERED},
        {"flags": TOMBSTONE, "operand": b""},
        {"operation": INCREMENT, "operand": b""},
        {"operation": INCREMENT, "operand": b"9" * 30},
        {"operation": PUT_IF_VERSION, "expected": b"short"},
        {"operation": TOUCH},
        {"operation": TOUCH, "operand": b"", "expected": b"a"},
    ],
)
def test_malformed(change: dict[str, Any]) -> None:
    arguments = {"operation": APPEND, "operand": b"x", **change}
    replicas = holding(b"a")
    with pytest.raises(RemoteProtocolError) as caught:
        execute(replicas, **arguments)
    assert caught.value.error_code == MALFORMED
    assert held(replicas) == entry(STORED_TIME, value=b"a")


def test_long_results_are_not_copied() -> None:
    replicas = holding(None)
    with pytest.raises(LongReply) as caught:
        execute(replicas, APPEND, bytes(LONG_FRAME_SIZE))
    body = encode(messages.Get(at(1), PARTITION, KEY))[HEADER_SIZE:]
    with pytest.raises(LongReply) as read:
        replicas.get(1, body)
    assert caught.value.rest == read.value.rest


def test_reads_see_the_result() -> None:
    replicas = holding(b"a")
    execute(replicas, APPEND, b"x")
    reply = get(replicas)
    assert isinstance(reply, messages.EntryReply)
    assert decode_entry(reply.entry).value == b"ax"
