"""What a log file of a data directory holds: batches of changes, each as one record.

A record is written and synced before anything in it is acknowledged, and its changes reach the
store proper later (log_store.py), so after a crash the records since then are read back. A log file
is written again from its start when everything in it has got there; what is left of its former
contents are records with lower numbers.

A record: its head, which is magic (4 bytes), number (u64), size of what follows the head (u32),
checksum of that (u32), and the head's own checksum (u32); then for each change the size of its name
(u16), the size of its value (u32; 4,294,967,295: the name is removed), name and value. Behind it,
in the same write, stands an end mark: another magic, the record's number, its own checksum. The
next record overwrites it. So a log that was cut, or whose last record is damaged or was not
finished, has no end mark where it ends, and that can be told from one that ends whole.

All integers are big-endian, all checksums CRC-32; those of heads and end marks are of a salt, too,
16 random bytes that are in no log, which keeps values that look like records from being taken for
some. Each file is read from its start, record by record, so it takes a time that is proportional to
its size, whatever is in it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from .disk import Changes
from .errors import StoreCorrupt

SALT_SIZE: Final = 16

_RECORD: Final = b"GTSR"
_END: Final = b"GTSE"
_MAGIC: Final = b"GTS"
"""What both begin with."""
_HEAD_CHECKED: Final = struct.Struct(">4sQII")
_HEAD_SIZE: Final = _HEAD_CHECKED.size + 4
_MARK_CHECKED: Final = struct.Struct(">4sQ")
_CHANGE: Final = struct.Struct(">HI")
_REMOVED: Final = 0xFFFF_FFFF

END_SIZE: Final = _MARK_CHECKED.size + 4


class Record(NamedTuple):
    """A batch as it was found: in which file, by its place in the order that was given, and where
    it ends there, which is where its end mark stands, or the next record."""

    file: int
    end: int
    changes: Changes


class Log(NamedTuple):
    """What was read.

    ``missing``: why it cannot be said that these are all the records that were ever written; "" if
    they are. ``strange``: the files that begin with neither a record nor an end mark.
    """

    records: list[Record]
    missing: str
    strange: tuple[int, ...]


def packed(number: int, changes: Changes, salt: bytes) -> bytes:
    """The record of a batch, and the end mark behind it."""
    parts: list[bytes] = []
    for name, value in changes.items():
        if value is None:
            parts += _CHANGE.pack(len(name), _REMOVED), name
        else:
            parts += _CHANGE.pack(len(name), len(value)), name, value
    body = b"".join(parts)
    checked = _HEAD_CHECKED.pack(_RECORD, number, len(body), zlib.crc32(body))
    return b"".join((checked, _checksum(checked, salt), body, end_mark(number, salt)))


def end_mark(number: int, salt: bytes) -> bytes:
    """What stands behind the last record; or, in a file that has none, at its start."""
    checked = _MARK_CHECKED.pack(_END, number)
    return checked + _checksum(checked, salt)


def read(files: Sequence[bytes], salt: bytes, last: int) -> Log:
    """What is in the log after record number ``last``, up to which the store proper has everything.

    A file is begun anew only when the store proper has all that is in it, and what that has is
    whole files. So the record after ``last``, if there is one, begins a file; and where a file does
    not begin with something that can be read, that may have been it.

    Raises StoreCorrupt if a record is missing, and a later one is there: what was in between had
    been synced when that one was written, so it is damaged.
    """
    begins = [_number_at(data, 0, salt) for data in files]
    strange = tuple(file for file, number in enumerate(begins) if number is None)
    records: list[Record] = []
    missing = ""
    for file in sorted(range(len(files)), key=lambda file: begins[file] or 0):
        if begins[file] == last + 1 and _head_at(files[file], 0, salt):
            found, is_whole = _records_of(file, files[file], salt, last + 1)
            records += found
            last += len(found)
            missing = "" if is_whole else f"log-{file} has no end mark behind record {last}"
    if strange:
        names = " and ".join(f"log-{file}" for file in strange)
        missing = f"what {names} begins with is no record of this log"
    if missing or any(number and number > last for number in begins):
        newest = max(_newest(data, salt) for data in files)
        if newest > last + 1:
            raise StoreCorrupt(f"record {last + 1} is missing, and record {newest} is there")
    return Log(records, missing, strange)


def _records_of(file: int, data: bytes, salt: bytes, number: int) -> tuple[list[Record], bool]:
    """The records of a file, of which the first one has this number, as far as they are whole; and
    whether the end mark of the last one stands behind it."""
    at = 0
    records = []
    while (head := _head_at(data, at, salt)) and head.number == number:
        begin = at + _HEAD_SIZE
        body = data[begin : begin + head.size]
        if len(body) != head.size or zlib.crc32(body) != head.checksum:
            break
        at = begin + head.size
        records.append(Record(file, at, dict(changes_of(body))))
        number += 1
    return records, data[at : at + END_SIZE] == end_mark(number - 1, salt)


def _newest(data: bytes, salt: bytes) -> int:
    """The highest number of a record that was ever begun in this file, or ended; or 0. Only heads
    and end marks are looked at, wherever they are: what is behind a damaged record, too."""
    newest = 0
    at = data.find(_MAGIC)
    while at >= 0:
        newest = max(newest, _number_at(data, at, salt) or 0)
        at = data.find(_MAGIC, at + 1)
    return newest


class _Head(NamedTuple):
    number: int
    size: int
    checksum: int


def _head_at(data: bytes, at: int, salt: bytes) -> _Head | None:
    checked = data[at : at + _HEAD_CHECKED.size]
    checksum = data[at + _HEAD_CHECKED.size : at + _HEAD_SIZE]
    if not checked.startswith(_RECORD) or checksum != _checksum(checked, salt):
        return None
    return _Head(*_HEAD_CHECKED.unpack(checked)[1:])


def _number_at(data: bytes, at: int, salt: bytes) -> int | None:
    """The number in the head or end mark that begins there; None if there is neither."""
    if head := _head_at(data, at, salt):
        return head.number
    mark = data[at : at + END_SIZE]
    if not mark.startswith(_END) or len(mark) < END_SIZE:
        return None
    number: int = _MARK_CHECKED.unpack_from(mark)[1]
    return number if mark == end_mark(number, salt) else None


def changes_of(body: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """What follows a record's head."""
    at = 0
    while at < len(body):
        name_size, value_size = _CHANGE.unpack_from(body, at)
        name_at = at + _CHANGE.size
        at = name_at + name_size
        name = body[name_at:at]
        if value_size == _REMOVED:
            yield name, None
        else:
            value = body[at : at + value_size]
            at += value_size
            yield name, value


def _checksum(checked: bytes, salt: bytes) -> bytes:
    return zlib.crc32(checked, zlib.crc32(salt)).to_bytes(4, "big")
