"""The types that a field of a message can have (PROTOCOL.md section 2).

A message is a frozen dataclass whose annotations say how each field stands on the wire::

    key: Annotated[Key, "the key"]

The type checker reads ``bytes``, the codec reads the wire type, the document reads the sentence.
Each wire type appends a value to a buffer (``put``) and takes one out of a body (``take``). ``put``
raises LocalProtocolError for a value that the protocol does not allow, ``take`` raises
RemoteProtocolError with the code MALFORMED. Lengths are checked before anything is cut out.

This module knows no message; ``messages`` knows them all.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Annotated, Any, Final, NamedTuple, Protocol, get_args, get_origin, get_type_hints

from ..errors import LocalProtocolError, RemoteProtocolError

MALFORMED = 6
"""The error code of a body that does not fit its message; its row stands in messages.ERRORS."""


def malformed(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(MALFORMED, what)


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"  # a u8, an epoch


class WireType(Protocol):
    """How one value stands on the wire."""

    @property
    def name(self) -> str:
        """The name in the document's table of field types."""
        ...

    def put(self, value: Any, out: bytearray, values: Mapping[str, Any]) -> None:
        """Append the value. ``values`` holds the message's fields, for a type that depends on
        one."""
        ...

    def take(self, body: bytes, at: int, values: Mapping[str, Any]) -> tuple[Any, int]:
        """Return the value that begins at offset ``at`` and the offset behind it."""
        ...


@dataclass(frozen=True)
class Integer:
    """An unsigned integer, big-endian; ``code`` is its letter in the struct module."""

    name: str
    code: str

    @property
    def size(self) -> int:
        return struct.calcsize(">" + self.code)

    def put(self, value: int, out: bytearray, values: Mapping[str, Any]) -> None:
        try:
            out += struct.pack(">" + self.code, value)
        except struct.error as error:
            raise LocalProtocolError(f"{value!r} is no {self.name}: {error}") from error

    def take(self, body: bytes, at: int, values: Mapping[str, Any]) -> tuple[int, int]:
        end = at + self.size
        if end > len(body):
            raise malformed(f"the body ends within {_a(self.name)} at offset {at}")
        return int.from_bytes(body[at:end], "big"), end


@dataclass(frozen=True)
class Fixed:
    """A number of bytes that is always the same."""

    name: str
    size: int

    def put(self, value: bytes, out: bytearray, values: Mapping[str, Any]) -> None:
        if len(value) != self.size:
            raise LocalProtocolError(f"{_a(self.name)} has {self.size} bytes, not {len(value)}")
        out += value

    def take(self, body: bytes, at: int, values: Mapping[str, Any]) -> tuple[bytes, int]:
        end = at + self.size
        if end > len(body):
            raise malformed(f"the body ends within {_a(self.name)} at offset {at}")
        return body[at:end], end


@dataclass(frozen=True)
class Counted:
    """A length, then that many bytes, between ``size_min`` and ``size_max``."""

    name: str
    length: Integer
    size_min: int
    size_max: int

    def put(self, value: bytes, out: bytearray, values: Mapping[str, Any]) -> None:
        if not self.size_min <= len(value) <= self.size_max:
            raise LocalProtocolError(
                f"{_a(self.name)} has {self.size_min} to {self.size_max} bytes, not {len(value)}"
            )
        self.length.put(len(value), out, values)
        out += value

    def take(self, body: bytes, at: int, values: Mapping[str, Any]) -> tuple[bytes, int]:
        size, at = self.length.take(body, at, values)
        if not self.size_min <= size <= self.size_max:
            raise malformed(
                f"{_a(self.name)} has {self.size_min} to {self.size_max} bytes, not {size}"
            )
        if at + size > len(body):
            raise malformed(f"{_a(self.name)} of {size} bytes at offset {at} leaves the body")
        return body[at : at + size], at + size


@dataclass(frozen=True)
class Characters:
    """Text in UTF-8: a length, then that many bytes. A text that is too long is cut, never
    refused."""

    name: str
    length: Integer
    size_max: int

    def put(self, value: str, out: bytearray, values: Mapping[str, Any]) -> None:
        data = value.encode("utf-8", "backslashreplace")[: self.size_max]
        self.length.put(len(data), out, values)
        out += data

    def take(self, body: bytes, at: int, values: Mapping[str, Any]) -> tuple[str, int]:
        counted = Counted(self.name, self.length, 0, self.size_max)
        data, at = counted.take(body, at, values)
        return data.decode("utf-8", "replace"), at


@dataclass(frozen=True)
class Rest:
    """All bytes up to the end of the body, at least ``size_min``; always the last field."""

    name: str
    size_min: int = 0

    def put(self, value: bytes, out: bytearray, values: Mapping[str, Any]) -> None:
        if len(value) < self.size_min:
            raise LocalProtocolError(
                f"{_a(self.name)} has at least {self.size_min} bytes, not {len(value)}"
            )
        out += value

    def take(self, body: bytes, at: int, values: Mapping[str, Any]) -> tuple[bytes, int]:
        if len(body) - at < self.size_min:
            raise malformed(
                f"{_a(self.name)} has at least {self.size_min} bytes, not {len(body) - at}"
            )
        return body[at:], len(body)


@dataclass(frozen=True)
class IfFlag:
    """A field that is there only if the record's ``flags`` have ``bit``; otherwise its value is
    None."""

    bit: int
    inner: Integer

    @property
    def name(self) -> str:
        return f"{self.inner.name}, if flag {self.bit}"

    def put(self, value: int | None, out: bytearray, values: Mapping[str, Any]) -> None:
        if (value is not None) != bool(values["flags"] & self.bit):
            raise LocalProtocolError(f"the field and flag {self.bit} go together")
        if value is not None:
            self.inner.put(value, out, values)

    def take(self, body: bytes, at: int, values: Mapping[str, Any]) -> tuple[int | None, int]:
        if not values["flags"] & self.bit:
            return None, at
        return self.inner.take(body, at, values)


@dataclass(frozen=True)
class Record:
    """The fields of a dataclass, one after the other."""

    cls: type[Any]

    @property
    def name(self) -> str:
        return self.cls.__name__.lower()

    def put(self, value: Any, out: bytearray, values: Mapping[str, Any]) -> None:
        put_fields(value, out)

    def take(self, body: bytes, at: int, values: Mapping[str, Any]) -> tuple[Any, int]:
        return take_fields(self.cls, body, at)


@dataclass(frozen=True)
class Array:
    """A count, then that many of the same type; a tuple in Python."""

    count: Integer
    item: Record

    @property
    def name(self) -> str:
        return f"{self.count.name} count, then each {self.item.name}"

    def put(self, value: tuple[Any, ...], out: bytearray, values: Mapping[str, Any]) -> None:
        self.count.put(len(value), out, values)
        for item in value:
            self.item.put(item, out, values)

    def take(self, body: bytes, at: int, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], int]:
        # Nothing is allocated for the count itself: a count that lies runs into the body's end.
        count, at = self.count.take(body, at, values)
        items = []
        for _ in range(count):
            item, at = self.item.take(body, at, values)
            items.append(item)
        return tuple(items), at


@dataclass(frozen=True)
class Field:
    """One field of a message or record: its name, its wire type and what it means."""

    name: str
    wire_type: WireType
    meaning: str


def fields_of(cls: type[Any]) -> tuple[Field, ...]:
    """The fields of a message or record class in the order of the wire."""
    return _fields_of(cls)  # type: ignore[arg-type]  # a class is hashable; the checker doubts it


@cache
def _fields_of(cls: type[Any]) -> tuple[Field, ...]:
    fields = []
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if get_origin(hint) is Annotated:
            _, wire_type, meaning = get_args(hint)
            fields.append(Field(name, wire_type, meaning))
    return tuple(fields)


class _Plan(NamedTuple):
    """How a class's fields go on and off the wire: its leading integers all at once, because maps
    have thousands of rows and owners, then field by field."""

    names: tuple[str, ...]
    integers: struct.Struct
    rest: tuple[Field, ...]


@cache
def _plan_of(cls: type[Any]) -> _Plan:
    fields = fields_of(cls)
    leading = list(takewhile(lambda field: isinstance(field.wire_type, Integer), fields))
    codes = "".join(field.wire_type.code for field in leading)  # type: ignore[attr-defined]
    names = tuple(field.name for field in leading)
    return _Plan(names, struct.Struct(">" + codes), fields[len(leading) :])


def put_fields(value: Any, out: bytearray) -> None:
    values = vars(value)
    names, integers, rest = _plan_of(type(value))  # type: ignore[arg-type]  # it is hashable
    try:
        out += integers.pack(*map(values.__getitem__, names))
    except struct.error:
        rest = fields_of(type(value))  # one by one, which raises the error that says which
    for field in rest:
        field.wire_type.put(values[field.name], out, values)


def take_fields(cls: type[Any], body: bytes, at: int) -> tuple[Any, int]:
    names, integers, rest = _plan_of(cls)  # type: ignore[arg-type]  # it is hashable
    values: dict[str, Any] = {}
    try:
        values.update(zip(names, integers.unpack_from(body, at), strict=True))
        at += integers.size
    except struct.error:
        rest = fields_of(cls)  # the same for a body that is too short
    for field in rest:
        values[field.name], at = field.wire_type.take(body, at, values)
    return cls(**values), at


_U8 = Integer("u8", "B")
_U16 = Integer("u16", "H")
_U32 = Integer("u32", "I")
_U64 = Integer("u64", "Q")

U8 = Annotated[int, _U8]
U16 = Annotated[int, _U16]
U32 = Annotated[int, _U32]
U64 = Annotated[int, _U64]
Epoch = Annotated[int, Integer("epoch", "Q")]
Time = Annotated[int, Integer("time", "Q")]
Version = Annotated[bytes, Fixed("version", 16)]
TOKEN_SIZE: Final = 16
Token = Annotated[bytes, Fixed("token", TOKEN_SIZE)]
MARK_SIZE: Final = 16
Mark = Annotated[bytes, Fixed("mark", MARK_SIZE)]
Text = Annotated[str, Characters("text", _U16, 1000)]
OptionalTime = Annotated[int | None, IfFlag(8, Integer("time", "Q"))]
