"""write_ahead_log.py: records, and what is read back after a crash or a damage."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtstore.disk import Changes
from gtstore.errors import StoreCorrupt
from gtstore.write_ahead_log import END_SIZE, SALT_SIZE, end_mark, packed, read

SALT = bytes(range(SALT_SIZE))
BATCHES: list[Changes] = [{b"a": b"1", b"b": b""}, {b"a": None}, {}, {b"c": b"3" * 300}]


def log(first: int, batches: list[Changes], salt: bytes = SALT) -> bytes:
    """A file with these records: each overwrites the end mark of the one before."""
    records = [packed(number, changes, salt) for number, changes in enumerate(batches, first)]
    return b"".join(record[:-END_SIZE] for record in records) + records[-1][-END_SIZE:]


EMPTY = end_mark(0, SALT)
"""A file that has had no record yet."""


def found(*files: bytes, last: int = 0) -> list[Changes]:
    """Of a log that ends whole."""
    records, missing, strange = read(files, SALT, last)
    assert (missing, strange) == ("", ())
    return [record.changes for record in records]


def test_what_was_written_is_read() -> None:
    """In the order of the numbers, whichever file has them, from the next one on."""
    assert found(log(1, BATCHES), EMPTY) == BATCHES
    assert found(log(3, BATCHES[2:]), log(1, BATCHES[:2])) == BATCHES
    assert found(log(1, BATCHES[:3]), log(4, BATCHES[3:]), last=3) == BATCHES[3:]
    assert found(log(1, BATCHES), EMPTY, last=4) == []
    assert found(EMPTY, EMPTY) == []


def test_where_a_record_ends() -> None:
    records = read([log(1, BATCHES[:2]), log(3, BATCHES[2:])], SALT, 0).records
    ends = [len(log(1, BATCHES[:1])), len(log(1, BATCHES[:2]))]
    ends += [len(log(3, BATCHES[2:3])), len(log(3, BATCHES[2:]))]
    assert [(record.file, record.end + END_SIZE) for record in records] == list(
        zip((0, 0, 1, 1), ends, strict=True)
    )


def records_or_not_whole(files: list[bytes], last: int, acknowledged: list[Changes]) -> bool:
    """Whether all acknowledged batches are found, perhaps with more, or it is said that some may be
    missing; and in any case nothing else."""
    try:
        records, missing, _ = read(files, SALT, last)
    except StoreCorrupt:
        return True
    changes = [record.changes for record in records]
    size = min(len(changes), len(acknowledged))
    assert changes[:size] == acknowledged[:size]
    return bool(missing) or len(changes) >= len(acknowledged)


STATES = {
    "new": ([EMPTY, EMPTY], 0, []),
    "records in one file": ([log(1, BATCHES), EMPTY], 0, BATCHES),
    "in the second one": ([log(1, BATCHES[:2]), log(3, BATCHES)], 2, BATCHES),
    "in both": ([log(1, BATCHES[:3]), log(4, BATCHES[1:])], 0, BATCHES[:3] + BATCHES[1:]),
    "in both, as it goes on": ([log(9, BATCHES), log(6, BATCHES[:3])], 5, BATCHES[:3] + BATCHES),
    "a file was begun": ([log(9, BATCHES[:1]) + log(1, BATCHES), log(5, BATCHES)], 8, BATCHES[:1]),
    "a file is to be begun": ([log(1, BATCHES), log(5, BATCHES)], 4, BATCHES),
    "everything is elsewhere": ([log(1, BATCHES), log(5, BATCHES)], 8, []),
}
"""The files, up to which record the store proper has everything, and what was committed since."""


@pytest.mark.parametrize("state", STATES)
def test_what_is_cut_or_flipped_is_never_silently_less(state: str) -> None:
    """Wherever a file is cut, and whichever byte of it is another one."""
    files, last, acknowledged = STATES[state]
    assert found(*files, last=last) == acknowledged
    for file, data in enumerate(files):
        for at in range(len(data)):
            zeros = data[:at] + bytes(len(data) - at)
            flipped = [data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :] for bit in (1, 8, 255)]
            for wrong in (data[:at], zeros, *flipped):
                damaged = [wrong if each == file else files[each] for each in range(len(files))]
                assert records_or_not_whole(damaged, last, acknowledged), (state, file, at)


@pytest.mark.parametrize("state", STATES)
def test_a_write_may_break_off_anywhere(state: str) -> None:
    """kill -9, or the machine stops: what was acknowledged before is there, or it is said that it
    may not be; and where nothing of the write is there, it is whole."""
    files, last, acknowledged = STATES[state]
    number = last + len(acknowledged) + 1
    places = [(file, data.index(end_mark(number - 1, SALT))) for file, data in enumerate(files)
              if end_mark(number - 1, SALT) in data]  # fmt: skip
    for file, at in [*places, *((file, 0) for file in (0, 1) if not acknowledged)]:
        new = packed(number, {b"new": b"value"}, SALT)
        old = files[file][at:] + bytes(max(0, len(new) - len(files[file][at:])))
        for size in range(len(new) + 1):
            for torn in (new[:size] + old[size:], old[:size] + new[size:] + old[len(new) :]):
                data = files[file][:at] + torn
                damaged = [data if each == file else files[each] for each in (0, 1)]
                assert records_or_not_whole(damaged, last, acknowledged), (file, size)


def test_why_it_is_not_whole() -> None:
    whole = log(1, BATCHES)
    assert read([whole[:-1], EMPTY], SALT, 0).missing == "log-0 has no end mark behind record 4"
    assert read([b"", EMPTY], SALT, 0)[1:] == (
        "what log-0 begins with is no record of this log",
        (0,),
    )
    both = read([b"", b"garbage"], SALT, 7)
    assert both.missing == "what log-0 and log-1 begins with is no record of this log"
    first = read([log(1, BATCHES), log(5, BATCHES[:1])[: -END_SIZE - 1]], SALT, 4)
    assert first == ([], "log-1 has no end mark behind record 4", ())


def test_a_damage_is_told_from_an_end() -> None:
    """There is a record behind it, which was written when it had been synced: nothing of the log is
    to be relied upon."""
    first = len(log(1, BATCHES[:1])) - END_SIZE
    data = log(1, BATCHES)
    for at in range(first):
        damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(StoreCorrupt, match="record 1 is missing, and record 4 is there"):
            read([damaged, EMPTY], SALT, 0)
    with pytest.raises(StoreCorrupt, match="record 1 is missing, and record 8 is there"):
        read([EMPTY, log(5, BATCHES)], SALT, 0)
    with pytest.raises(StoreCorrupt, match="record 5 is missing, and record 9 is there"):
        read([b"", log(6, BATCHES)], SALT, 4)


def test_what_a_file_had_before_is_not_taken() -> None:
    """Records with lower numbers, as long as LMDB has them."""
    older = log(1, BATCHES * 5)
    newer = log(21, BATCHES)
    data = newer + older[len(newer) :]
    assert found(data, log(9, BATCHES), last=20) == BATCHES


def test_a_value_that_looks_like_a_record_is_none() -> None:
    """Whoever writes it does not know the salt; and it is within a record."""
    forged = log(2, [{b"x": b"forged"}], salt=bytes(SALT_SIZE))
    data = log(1, [{b"a": forged}])
    assert found(data, EMPTY) == [{b"a": forged}]
    assert read([data[:-1], EMPTY], SALT, 0).missing
    right = log(2, [{b"x": b"forged"}])
    assert found(log(1, [{b"a": right}]), EMPTY) == [{b"a": right}], "as a part of a whole record"


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_time_that_is_proportional_to_its_size(
    is_whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is stored: lengths are believed only in heads whose own checksums are right."""
    checked = struct.pack(">4sQII", b"GTSR", 1 << 60, 1 << 20, 12345)
    old = struct.pack(">4sQII", b"GTSL", 1 << 60, 1 << 20, 12345)
    like_a_log = (checked + bytes(4) + old) * (MIB // 44)
    data = log(1, [{b"a": like_a_log}, {b"b": like_a_log}])
    seen = 0
    crc32 = zlib.crc32

    def counted(data: bytes, *start: int) -> int:
        nonlocal seen
        seen += len(data)
        return crc32(data, *start)

    monkeypatch.setattr(zlib, "crc32", counted)
    files = [data, EMPTY] if is_whole else [data[: len(data) // 2], EMPTY]
    assert bool(read(files, SALT, 0).missing) is not is_whole
    assert seen < 4 * len(data)


MIB = 1 << 20


@given(st.binary(max_size=200), st.integers(0, 3))
def test_garbage_is_no_record(garbage: bytes, last: int) -> None:
    for head in (b"GTSR", b"GTSE"):
        assert read([garbage, head + garbage], SALT, last).records == []


changes = st.dictionaries(
    st.binary(min_size=1, max_size=20), st.none() | st.binary(max_size=50), max_size=5
)


@given(
    st.lists(changes, min_size=1, max_size=4),
    st.lists(changes, min_size=1, max_size=4),
    st.integers(1, 1 << 60),
)
def test_any_batches(first: list[Changes], second: list[Changes], number: int) -> None:
    files = log(number, first), log(number + len(first), second)
    assert found(*files, last=number - 1) == first + second
    assert found(*reversed(files), last=number + len(first) - 1) == second
