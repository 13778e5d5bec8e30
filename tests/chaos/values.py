"""The values that clients write: each one is its own, and may be long.

A value is made of pieces ``<client.number:size|filling>``, of which an append adds one. Histories
have the short form of a value, in which a piece is ``<client.number:size>``: the short form of two
values joined is that of the first with that of the second behind it, so the checker can work with
short forms, and ``size_of`` tells it how long the values are. The filling is looked at when a value
is shortened: one with a byte that is missing or wrong has a short form that nobody has written.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256
from typing import Final
from zlib import crc32

from gtstore.reactor import HELD_SIZE_MAX
from gtstore.wire.messages import KIB, LONG_FRAME_SIZE, MIB
from gtstore.wire.stream import RECEIVE_SIZE, SHORT_RECEIVE_SIZE

SIZE_MAX: Final = MIB
SHORT_SIZE_MAX: Final = 50
LIMITS: Final = (SHORT_RECEIVE_SIZE, KIB, HELD_SIZE_MAX, RECEIVE_SIZE, LONG_FRAME_SIZE, MIB)
"""Sizes from which on something else is done with a frame, an entry or an answer."""
AROUND: Final = 600
"""A frame's size differs from its value's by so much at most: the heads, and a key."""

_HEAD: Final = re.compile(rb"<(\d+\.\d+):(\d+)([|>])")
_FILLINGS: Final = random.Random(0).randbytes(SIZE_MAX).hex().encode()
_SHOWN_MAX: Final = 60


def piece(client: int, number: int, size: int) -> bytes:
    """The short form of a new piece of about so many bytes; b"" for 0."""
    if not size:
        return b""
    name = b"<%d.%d:" % (client, number)
    return b"%s%d>" % (name, max(size, len(name) + len(b"10|>")))


def full(short: bytes) -> bytes:
    """The value itself."""
    if not short.startswith(b"<"):
        return short
    return b"".join(map(_full_piece, _heads(short)))


def shortened(value: bytes | None) -> bytes | None:
    """The short form. What is not made of pieces, a number for example, is its own; but of a long
    one that is damaged it says so."""
    if value is None:
        return None
    pieces = []
    at = 0
    while at < len(value):
        head = _HEAD.match(value, at)
        if head is None or head[3] != b"|" or not value.startswith(_full_piece(head), at):
            return value if len(value) <= _SHOWN_MAX and not at else _damaged(value, at)
        pieces.append(b"<%s:%s>" % (head[1], head[2]))
        at += int(head[2])
    return b"".join(pieces)


@lru_cache(10_000)
def size_of(short: bytes) -> int:
    """The size of the value that has this short form."""
    if not short.startswith(b"<"):
        return len(short)
    return sum(int(head[2]) for head in _heads(short))


def drawn_size(chance: random.Random, is_long: bool) -> int:
    """A size from 0 to SIZE_MAX, often close to one of the LIMITS; or always a short one."""
    kind = chance.random()
    if not is_long or kind < 0.4:
        return chance.randint(0, SHORT_SIZE_MAX)
    if kind < 0.8:
        # The longest ones take so much time that little else would happen.
        limit = LIMITS[min(chance.randrange(2 * len(LIMITS) - 1) // 2, len(LIMITS) - 1)]
        return min(max(limit + chance.randint(-AROUND, AROUND), 0), SIZE_MAX)
    return int(SIZE_MAX ** chance.random())


def _heads(short: bytes) -> Iterator[re.Match[bytes]]:
    return _HEAD.finditer(short)


def _full_piece(head: re.Match[bytes]) -> bytes:
    begin = b"<%s:%s|" % (head[1], head[2])
    size = int(head[2]) - len(begin) - 1
    place = crc32(begin) % SIZE_MAX
    return b"%s%s>" % (begin, _FILLINGS[place : place + size])


def _damaged(value: bytes, at: int) -> bytes:
    digest = sha256(value).hexdigest()[:16]
    return b"damaged after %d of %d bytes: %s" % (at, len(value), digest.encode())
