"""write_ahead_log.py: records, and what is read back after a crash or a damage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtstore.disk import Changes
from gtstore.write_ahead_log import SALT_SIZE, packed, read

SALT = bytes(range(SALT_SIZE))
BATCHES: list[Changes] = [{b"a": b"1", b"b": b""}, {b"a": None}, {}, {b"c": b"3" * 300}]


def log(first: int, batches: list[Changes], salt: bytes = SALT) -> bytes:
    return b"".join(packed(number, changes, salt) for number, changes in enumerate(batches, first))


def found(*files: bytes, last: int = 0) -> tuple[list[Changes], int]:
    records, after_gap = read(files, SALT, last)
    return [record.changes for record in records], after_gap


def test_what_was_written_is_read() -> None:
    """In the order of the numbers, whichever file has them, from the next one on."""
    assert found(log(1, BATCHES)) == (BATCHES, 0)
    assert found(log(3, BATCHES[2:]), log(1, BATCHES[:2])) == (BATCHES, 0)
    assert found(log(1, BATCHES), last=3) == (BATCHES[3:], 0)
    assert found(log(1, BATCHES), last=4) == ([], 0)
    assert found(b"", b"") == ([], 0)


def test_where_a_record_ends() -> None:
    records, _ = read([log(1, BATCHES[:2]), log(3, BATCHES[2:])], SALT, 0)
    ends = [len(log(1, BATCHES[:1])), len(log(1, BATCHES[:2]))]
    ends += [len(log(3, BATCHES[2:3])), len(log(3, BATCHES[2:]))]
    assert [(record.file, record.end) for record in records] == list(
        zip((0, 0, 1, 1), ends, strict=True)
    )


@pytest.mark.parametrize("size", range(len(log(21, BATCHES))))
def test_a_record_that_was_being_written_is_none(size: int) -> None:
    """Wherever it was cut off, and whatever the file had there before."""
    whole = max(n for n in range(len(BATCHES) + 1) if len(log(21, BATCHES[:n])) <= size)
    data = log(21, BATCHES)[:size]
    older = log(5, [{b"older": b"x" * 700}])
    for rest in (b"", bytes(1000), older[size:]):
        assert found(data + rest, last=20) == (BATCHES[:whole], 0)


def test_what_a_file_had_before_is_not_taken() -> None:
    """Records with lower numbers, as long as LMDB has them."""
    older = log(1, BATCHES * 5)
    newer = log(21, BATCHES)
    data = newer + older[len(newer) :]
    assert found(data, last=20) == (BATCHES, 0)


@pytest.mark.parametrize("at", range(len(log(1, BATCHES[:1]))))
def test_a_damaged_record_is_told_from_an_unfinished_one(at: int) -> None:
    """There is one behind it, which was written when it had been synced."""
    data = bytearray(log(1, BATCHES))
    data[at] ^= 1
    assert found(bytes(data)) == ([], 2)
    first = len(log(1, BATCHES[:1]))
    assert found(bytes(data[:first])) == ([], 0)


def test_a_value_that_looks_like_a_record_is_none() -> None:
    """Whoever writes it does not know the salt."""
    forged = log(2, [{b"x": b"forged"}], salt=bytes(SALT_SIZE))
    data = log(1, [{b"a": forged}])
    assert found(data) == ([{b"a": forged}], 0)
    cut = data[:-1]
    assert found(cut) == ([], 0)
    right = log(2, [{b"x": b"forged"}])
    assert found(log(1, [{b"a": right}])) == ([{b"a": right}], 0), "as a part of a whole record"


@given(st.binary(max_size=200), st.integers(0, 3))
def test_garbage_is_no_record(garbage: bytes, last: int) -> None:
    head = b"GTSL" + garbage
    assert found(garbage, head, last=last) == ([], 0)


changes = st.dictionaries(
    st.binary(min_size=1, max_size=20), st.none() | st.binary(max_size=50), max_size=5
)


@given(st.lists(changes, max_size=6), st.integers(0, 6), st.integers(1, 1 << 60))
def test_any_batches(batches: list[Changes], in_first: int, first: int) -> None:
    files = log(first, batches[:in_first]), log(first + in_first, batches[in_first:])
    assert found(*files, last=first - 1) == (batches, 0)
