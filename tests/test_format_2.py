"""format_2.py: the log of the format before, as the next start of its node reads it."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtstore.disk import Changes
from gtstore.errors import StoreCorrupt
from gtstore.format_2 import read
from gtstore.write_ahead_log import END_SIZE, packed

SALT = bytes(range(16))
BATCHES: list[Changes] = [{b"a": b"1", b"b": b""}, {b"a": None}, {}, {b"c": b"3" * 300}]


def former_log(first: int, batches: list[Changes], salt: bytes = SALT) -> bytes:
    """As that version wrote it."""
    result = b""
    for number, changes in enumerate(batches, first):
        body = packed(0, changes, b"")[24:-END_SIZE]
        checked = struct.pack(">QI", number, len(body))
        checksum = zlib.crc32(body, zlib.crc32(checked, zlib.crc32(salt)))
        result += b"GTSL" + checked + struct.pack(">I", checksum) + body
    return result


def test_what_was_written_is_read() -> None:
    """Only of one that was stopped in order it is known that it ends whole."""
    assert read([former_log(1, BATCHES), b""], SALT, 0) == (BATCHES, False)
    assert read([former_log(3, BATCHES), former_log(1, BATCHES[:2])], SALT, 0) == (
        BATCHES[:2] + BATCHES,
        False,
    )
    assert read([former_log(1, BATCHES), b""], SALT, 4) == ([], True)
    assert read([former_log(1, BATCHES), former_log(5, BATCHES)], SALT, 4) == (BATCHES, False)
    assert read([b"", b""], SALT, 0) == ([], True)
    assert read([former_log(1, BATCHES), former_log(5, BATCHES)], SALT, 8) == ([], True)


def test_what_is_left_of_older_records_is_none() -> None:
    data = former_log(9, BATCHES[:1]) + former_log(1, BATCHES)
    assert read([data, former_log(5, BATCHES)], SALT, 8) == (BATCHES[:1], False)


@pytest.mark.parametrize("at", range(len(former_log(5, BATCHES))))
def test_what_is_cut_or_flipped_is_never_silently_less(at: int) -> None:
    data = former_log(5, BATCHES)
    flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    for wrong in (data[:at], flipped) if at >= 20 else (flipped,):
        batches, is_whole = read([former_log(1, BATCHES), wrong], SALT, 4)
        assert batches == BATCHES[: len(batches)]
        assert not is_whole


def test_a_damage_is_told_from_an_end() -> None:
    data = former_log(1, BATCHES)
    with pytest.raises(StoreCorrupt, match="record 4 is missing, and record 5 is there"):
        read([data[:-1], former_log(5, BATCHES)], SALT, 0)


@given(st.binary(max_size=200), st.integers(0, 3))
def test_garbage_is_no_record(garbage: bytes, last: int) -> None:
    assert read([garbage, b"GTSL" + garbage], SALT, last)[0] == []
