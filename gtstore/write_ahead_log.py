"""What a log file of a data directory holds: batches of changes, each as one record.

A record is written and synced before anything in it is acknowledged, and its changes reach the
store proper later (log_store.py), so after a crash the records since then are read back. A log file
is written again from its start when everything in it has got there; what is left of its former
contents are records with lower numbers.

A record: magic (4 bytes), number (u64), size of what follows the head (u32), checksum (CRC-32, of
a salt, the number, the size and what follows); then for each change the size of its name (u16), the
size of its value (u32; 4,294,967,295: the name is removed), name and value. All integers are
big-endian. The salt, 16 random bytes that are in no log, keeps values that look like records from
being taken for some.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from .disk import Changes

SALT_SIZE: Final = 16

_MAGIC: Final = b"GTSL"
_HEAD: Final = struct.Struct(">4sQII")
_CHECKED: Final = struct.Struct(">QI")
_CHANGE: Final = struct.Struct(">HI")
_REMOVED: Final = 0xFFFF_FFFF


class Record(NamedTuple):
    """A batch as it was found: in which file, by its place in the order that was given, and where
    it ends there."""

    file: int
    end: int
    changes: Changes


def packed(number: int, changes: Changes, salt: bytes) -> bytes:
    """The record of a batch."""
    parts: list[bytes] = []
    for name, value in changes.items():
        if value is None:
            parts += _CHANGE.pack(len(name), _REMOVED), name
        else:
            parts += _CHANGE.pack(len(name), len(value)), name, value
    body = b"".join(parts)
    return _HEAD.pack(_MAGIC, number, len(body), _checksum(salt, number, body)) + body


def read(files: Iterable[bytes], salt: bytes, last: int) -> tuple[list[Record], int]:
    """What is in the log after record number ``last``: the records from the next one on, as far as
    they go without a gap; and the number of a record that is there behind a gap, or 0.

    A record that is there in part was being written, and so the last one. One behind a gap was
    written when those in the gap had been synced: they are damaged.
    """
    found: dict[int, Record] = {}
    for file, data in enumerate(files):
        found.update(_found_in(file, data, salt, last))
    records = []
    while record := found.pop(last + 1, None):
        records.append(record)
        last += 1
    return records, min(found, default=0)


def _found_in(file: int, data: bytes, salt: bytes, last: int) -> Iterator[tuple[int, Record]]:
    """All records with higher numbers that are whole."""
    at = data.find(_MAGIC)
    while 0 <= at <= len(data) - _HEAD.size:
        _, number, size, checksum = _HEAD.unpack_from(data, at)
        begin = at + _HEAD.size
        at += 1
        if number > last and size <= len(data) - begin:
            body = data[begin : begin + size]
            if checksum == _checksum(salt, number, body):
                at = begin + size
                yield number, Record(file, at, dict(_changes(body)))
        at = data.find(_MAGIC, at)


def _changes(body: bytes) -> Iterator[tuple[bytes, bytes | None]]:
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


def _checksum(salt: bytes, number: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(_CHECKED.pack(number, len(body)), zlib.crc32(salt)))
