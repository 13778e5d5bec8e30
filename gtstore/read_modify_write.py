"""What EXECUTE makes of a stored entry: append, increment, compare and put (rule N4).

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
    PUT_IF_ABSENT,
    PUT_IF_VALUE,
    PUT_IF_VERSION,
    RESULT_TOO_LONG,
    TOMBSTONE,
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


Evaluate: TypeAlias = Callable[[Stored, bytes, bytes], bytes]
"""(what is stored, what is expected, the operand) -> the new value. Raises Failure."""


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
}

KEEPS_EXPIRY: Final = frozenset((APPEND, INCREMENT))
"""These change a value that goes on living; the others put a new one, with an expiry of its own."""


def number_of(text: bytes) -> int | None:
    """The signed 64-bit number that decimal digits stand for; None if they stand for none."""
    if not _NUMBER.fullmatch(text):
        return None
    number = int(text)
    return number if NUMBER_MIN <= number <= NUMBER_MAX else None
