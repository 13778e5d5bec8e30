"""What EXECUTE makes of a stored entry: append, increment, compare and put, touch (rule N4); and
what the primary makes of one that has expired (C8).

Pure functions of the stored entry and the request. Whether the request may be evaluated at all, and
storing the result, is replica.py's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeAlias

from .wire.fields import malformed
from .wire.messages import (
    APPEND,
    COMPARISON_FAILED,
    ENTRY_HEAD_SIZE,
    EXPIRES,
    INCREMENT,
    NOT_A_NUMBER,
    NUMBER_OVERFLOW,
    ORDERED,
    PUT_IF_ABSENT,
    PUT_IF_VALUE,
    PUT_IF_VERSION,
    RESULT_TOO_LONG,
    TOMBSTONE,
    TOUCH,
    VALUE_SIZE_MAX,
)

VERSION_SIZE: Final = 16
FLAGS_AT: Final = 20
"""Where an entry's flags stand; bytes 0 to 15 are its version, 8 to 19 its rid."""

NUMBER_MIN: Final = -(1 << 63)
NUMBER_MAX: Final = (1 << 63) - 1
_NUMBER: Final = re.compile(rb"[+-]?[0-9]{1,20}")


class Failure(Exception):
    """The operation cannot be done on what is stored. ``reason`` is FAILED's."""

    def __init__(self, reason: int) -> None:
        self.reason = reason


class Stored(NamedTuple):
    """What is stored under a key, taken apart. A key without an entry, and one that was deleted,
    has the value None."""

    version: bytes
    expiry: bytes
    value: bytes | None


_NOTHING: Final = Stored(b"", b"", None)


def take_apart(entry: bytes | None) -> Stored:
    """The parts of a stored entry; ``expiry`` has its 8 bytes, or none."""
    if entry is None:
        return _NOTHING
    version, flags = entry[:VERSION_SIZE], entry[FLAGS_AT]
    if flags & TOMBSTONE:
        return Stored(version, b"", None)
    value_at = ENTRY_HEAD_SIZE + (8 if flags & EXPIRES else 0)
    return Stored(version, entry[ENTRY_HEAD_SIZE:value_at], entry[value_at:])


def has_expired(entry: bytes, now_us: int) -> bool:
    """Whether an entry's time is over, by cluster time (T1). Only the primary may ask (C8)."""
    if not entry[FLAGS_AT] & EXPIRES:
        return False
    return int.from_bytes(entry[ENTRY_HEAD_SIZE : ENTRY_HEAD_SIZE + 8], "big") <= now_us


def tombstone_of(entry: bytes) -> bytes:
    """What its primary puts in the place of an entry that has expired (C8): a tombstone, with the
    version next to the entry's own. So nothing is ever between the two: a write that the tombstone
    refuses would have been refused by the entry. And every node makes the same tombstone of it, so
    that also a version that two primaries made has one content.

    (Next to it is a version of another client, whose number nobody draws but once in 2^64. An owner
    that finds it at or below its floor refuses it, which is no answer that counts, and then the key
    is touched: N7, C6.)
    """
    version = int.from_bytes(entry[:VERSION_SIZE], "big") + 1
    counter = entry[VERSION_SIZE:FLAGS_AT]
    return version.to_bytes(VERSION_SIZE, "big") + counter + bytes((ORDERED | TOMBSTONE,))


Evaluate: TypeAlias = Callable[[Stored, bytes, bytes], bytes | None]
"""(what is stored, what is expected, the operand) -> the new value; None: a tombstone. Raises
Failure."""


def _append(stored: Stored, expected: bytes, operand: bytes) -> bytes:  # noqa: ARG001
    value = stored.value or b""
    if len(value) + len(operand) > VALUE_SIZE_MAX:
        raise Failure(RESULT_TOO_LONG)
    return value + operand


def _increment(stored: Stored, expected: bytes, operand: bytes) -> bytes:  # noqa: ARG001
    step = number_of(operand)
    if step is None:
        raise malformed("what to add is no decimal number of 64 bits")
    number = 0 if stored.value is None else number_of(stored.value)
    if number is None:
        raise Failure(NOT_A_NUMBER)
    if not NUMBER_MIN <= number + step <= NUMBER_MAX:
        raise Failure(NUMBER_OVERFLOW)
    return b"%d" % (number + step)


def _put_if_absent(stored: Stored, expected: bytes, operand: bytes) -> bytes:  # noqa: ARG001
    return _put_if(stored.value is None, operand)


def _put_if_value(stored: Stored, expected: bytes, operand: bytes) -> bytes:
    return _put_if(stored.value == expected, operand)


def _put_if_version(stored: Stored, expected: bytes, operand: bytes) -> bytes:
    if len(expected) != VERSION_SIZE:
        raise malformed(f"a version has {VERSION_SIZE} bytes, not {len(expected)}")
    return _put_if(stored.version == expected, operand)


def _touch(stored: Stored, expected: bytes, operand: bytes) -> bytes | None:
    if expected or operand:
        raise malformed("a touch expects nothing and has no value")
    return stored.value


def _put_if(is_so: bool, operand: bytes) -> bytes:
    if not is_so:
        raise Failure(COMPARISON_FAILED)
    return operand


EVALUATE: Final[Mapping[int, Evaluate]] = {
    APPEND: _append,
    INCREMENT: _increment,
    PUT_IF_ABSENT: _put_if_absent,
    PUT_IF_VALUE: _put_if_value,
    PUT_IF_VERSION: _put_if_version,
    TOUCH: _touch,
}

KEEPS_EXPIRY: Final = frozenset((APPEND, INCREMENT, TOUCH))
"""With these the value goes on living; the others put a new one, with an expiry of its own."""


def number_of(text: bytes) -> int | None:
    """The signed 64-bit number that decimal digits stand for; None if they stand for none."""
    if not _NUMBER.fullmatch(text):
        return None
    number = int(text)
    return number if NUMBER_MIN <= number <= NUMBER_MAX else None
