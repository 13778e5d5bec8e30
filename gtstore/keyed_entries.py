"""Keys and entries as they stand in COPIED and SCANNED, and keys and identities in COPY, packed and
taken apart by hand: the codec would take longer than all the rest of a copy or a scan."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from .wire.fields import malformed
from .wire.messages import KEY_SIZE_MAX

KEY_SIZE: Final = struct.Struct(">H")
ENTRY_SIZE: Final = struct.Struct(">I")
COUNT: Final = struct.Struct(">I")
IDENTITY: Final = struct.Struct(">16sI")  # version and checksum
_OVERHEAD_SIZE: Final = KEY_SIZE.size + ENTRY_SIZE.size


class Batch:
    """Keys and entries up to a size in bytes, which only the first of them may exceed."""

    __slots__ = ("_parts", "_size_max", "size")

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._parts: list[bytes] = []
        self.size = 0

    def add(self, key: bytes, entry: bytes) -> bool:
        """Add one; False if it does not fit any more."""
        size = self.size + len(key) + len(entry) + _OVERHEAD_SIZE
        if size > self._size_max and self._parts:
            return False
        self._parts += KEY_SIZE.pack(len(key)), key, ENTRY_SIZE.pack(len(entry)), entry
        self.size = size
        return True

    def packed(self) -> bytes:
        """The count and all that was added."""
        return b"".join((COUNT.pack(len(self._parts) // 4), *self._parts))


def take_apart(body: bytes, at: int) -> list[tuple[bytes, bytes]]:
    """The keys and entries of a body whose last field they are; ``at``: where their count stands.

    Raises RemoteProtocolError, MALFORMED. Whether the entries are any, the caller looks.
    """
    pairs = []
    try:
        (count,) = COUNT.unpack_from(body, at)
        at += COUNT.size
        for _ in range(count):
            key, at = _take_key(body, at)
            (size,) = ENTRY_SIZE.unpack_from(body, at)
            entry_at = at + ENTRY_SIZE.size
            at = entry_at + size
            pairs.append((key, body[entry_at:at]))
    except struct.error as error:
        raise malformed(f"the body is too short: {error}") from error
    if at != len(body):
        raise malformed(f"the body has {len(body)} bytes, and its entries end at {at}")
    return pairs


def pack_held(held: Mapping[bytes, bytes]) -> bytes:
    """The count, and each key with its entry's identity."""
    parts = [COUNT.pack(len(held))]
    for key, identity in held.items():
        parts += KEY_SIZE.pack(len(key)), key, identity
    return b"".join(parts)


def take_held(body: bytes, at: int) -> dict[bytes, bytes]:
    """The keys and identities of a body whose last field they are; ``at``: where their count
    stands. Raises RemoteProtocolError, MALFORMED."""
    held = {}
    try:
        (count,) = COUNT.unpack_from(body, at)
        at += COUNT.size
        for _ in range(count):
            key, identity_at = _take_key(body, at)
            at = identity_at + IDENTITY.size
            held[key] = body[identity_at:at]
    except struct.error as error:
        raise malformed(f"the body is too short: {error}") from error
    if at != len(body):
        raise malformed(f"the body has {len(body)} bytes, and what is named in it ends at {at}")
    return held


def _take_key(body: bytes, at: int) -> tuple[bytes, int]:
    """A key that stands there after its size, and where it ends."""
    (size,) = KEY_SIZE.unpack_from(body, at)
    at += KEY_SIZE.size
    if not 0 < size <= KEY_SIZE_MAX:
        raise malformed(f"a key has 1 to {KEY_SIZE_MAX} bytes, not {size}")
    return body[at : at + size], at + size
