"""The log of a data directory of format 2, which the next start of its node brings into LMDB.

It is that of write_ahead_log.py without end marks, and its heads have no checksums of their own:
magic (4 bytes), number (u64), size of what follows (u32), checksum (CRC-32, of a salt, the number,
the size and what follows). So nobody can tell whether it ends whole, unless there is nothing in it
that LMDB does not have, as after an orderly stop.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

from .disk import Changes
from .errors import StoreCorrupt
from .write_ahead_log import changes_of

_MAGIC: Final = b"GTSL"
_HEAD: Final = struct.Struct(">4sQII")
_CHECKED: Final = struct.Struct(">QI")


def read(files: Sequence[bytes], salt: bytes, last: int) -> tuple[list[Changes], bool]:
    """The batches after record number ``last``, as far as they can be read, and whether that is
    surely all of them.

    Raises StoreCorrupt if a record is missing, and a later one is there.
    """
    begins = [_HEAD.unpack_from(data)[1] if len(data) >= _HEAD.size else 0 for data in files]
    batches: list[Changes] = []
    flushed = last
    for file in sorted(range(len(files)), key=begins.__getitem__):
        found = list(_records_of(files[file], salt))
        if found and found[0][0] > last + 1:
            raise StoreCorrupt(f"record {last + 1} is missing, and record {found[0][0]} is there")
        batches += [changes for number, changes in found if number > last]
        last = max([last, *(number for number, _ in found)])
    return batches, not any(_has_begun_after(data, flushed) for data in files)


def _records_of(data: bytes, salt: bytes) -> Iterator[tuple[int, Changes]]:
    """A file's records, from its start, each with its number."""
    at = before = 0
    while at <= len(data) - _HEAD.size:
        magic, number, size, checksum = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        body = data[at : at + size]
        checked = _CHECKED.pack(number, len(body))
        is_right = zlib.crc32(body, zlib.crc32(checked, zlib.crc32(salt))) == checksum
        if magic != _MAGIC or not is_right or before not in (0, number - 1):
            return
        at += size
        before = number
        yield number, dict(changes_of(body))


def _has_begun_after(data: bytes, last: int) -> bool:
    """Whether there is something that looks like a record with a higher number; it may be a part of
    a value."""
    at = data.find(_MAGIC)
    while 0 <= at <= len(data) - _HEAD.size:
        if _HEAD.unpack_from(data, at)[1] > last:
            return True
        at = data.find(_MAGIC, at + 1)
    return False
