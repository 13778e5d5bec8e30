"""The message table in Lua: the generated block of docs/gtstore.lua, a Wireshark dissector.

The rest of that file is an interpreter that reads bytes by these tables, so a message that is added
to the table is dissected without another line.

A field's filter is ``gtstore.`` and its name; the fields of the header and of records have the
record's name between: ``gtstore.key``, ``gtstore.entry.flags``, ``gtstore.row.list_epoch``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from .. import messages
from ..codec import BODY_SIZE_MAX
from ..explain import DETAIL_TYPE, ENTRY_TYPE, NAMES, Header
from ..fields import (
    Array,
    Characters,
    Counted,
    Field,
    Fixed,
    IfFlag,
    Integer,
    Record,
    Rest,
    WireType,
    fields_of,
)
from .document import RECORDS

_FIRST_NODE_PORTS: Final = 100
"""So many ports from the first node's on are taken for those of nodes, unless the user says
others."""

_OPTIONAL_ENTRIES: Final = {(messages.Failed, "entry")}
"""Bytes that are an entry or nothing."""


def tables_block() -> list[str]:
    """The tables of docs/gtstore.lua: constants, records, messages, errors, flags."""
    ports = f"{messages.MANAGER_PORT},{messages.NODE_PORT}-"
    ports += str(messages.NODE_PORT + _FIRST_NODE_PORTS - 1)
    lines = [
        f"local MAGIC = 0x{messages.MAGIC:02x}",
        f"local VERSION = {messages.PROTOCOL_VERSION}",
        f"local HEADER_SIZE = {messages.HEADER_SIZE}",
        f"local BODY_SIZE_MAX = {BODY_SIZE_MAX}",
        f"local PORTS = {_quoted(ports)}",
        f"local ERROR = 0x{messages.Error.kind:02x}",
        "",
        "local ENTRY_FLAGS = {",
    ]
    for bit, name in messages.ENTRY_FLAGS.items():
        lines.append(f"  {{bit = {bit}, name = {_quoted(name)}}},")
    lines += ["}", "", "local RECORDS = {"]
    records: tuple[type[Any], ...] = (Header, *RECORDS)
    for cls in records:
        lines += [f"  {cls.__name__.lower()} = {{", *_fields(cls, cls.__name__.lower()), "  },"]
    lines += ["}", "", "local MESSAGES = {"]
    for kind, message in messages.MESSAGES.items():
        name = _quoted(message.name)
        lines += [f"  [0x{kind:02x}] = {{name = {name}, fields = {{", *_fields(message), "  }},"]
    lines += ["}", "", "local ERRORS = {"]
    for code, row in messages.ERRORS.items():
        detail = _fields(row.detail, "error") if row.detail else ()
        lines += [f"  [{code}] = {{name = {_quoted(row.name)}, fields = {{", *detail, "  }},"]
    return [*lines, "}"]


BLOCKS: Final[Mapping[str, Callable[[], list[str]]]] = {"tables": tables_block}
"""The file's blocks: name -> what makes its lines."""


def _fields(cls: type[Any], group: str = "") -> Iterator[str]:
    """A line for each field; ``group`` stands before its name in its filter."""
    for field in fields_of(cls):
        pairs = ", ".join(f"{name} = {value}" for name, value in _field(cls, field, group))
        yield f"    {{{pairs}}},"


def _field(cls: type[Any], field: Field, group: str) -> Iterator[tuple[str, str]]:
    """What the interpreter has to know of a field."""
    yield "name", _quoted(field.name)
    yield "filter", _quoted(".".join(filter(None, ("gtstore", group, field.name))))
    is_optional = (cls, field.name) in _OPTIONAL_ENTRIES
    if field.wire_type is DETAIL_TYPE and cls is messages.Error:
        yield "type", _quoted("detail")
    elif field.wire_type is ENTRY_TYPE or is_optional:
        yield "type", _quoted("record")
        yield "record", _quoted("entry")
        if is_optional:
            yield "optional", "true"
    else:
        yield from _type(field.wire_type)
    if cls is messages.Entry and field.name == "flags":
        yield "bits", "true"
    names = NAMES.get((cls, field.name))
    if names and cls is not Header:
        pairs = ", ".join(f"[{value}] = {_quoted(name)}" for value, name in names.items())
        yield "names", f"{{{pairs}}}"


def _type(wire_type: WireType) -> Iterator[tuple[str, str]]:
    match wire_type:
        case Integer(name=name, size=size):
            yield "type", _quoted(name if name in ("epoch", "time") else "number")
            yield "size", str(size)
        case IfFlag(bit=bit, inner=inner):
            yield from _type(inner)
            yield "if_flag", str(bit)
        case Fixed(name=name, size=size):
            yield "type", _quoted(name)
            yield "size", str(size)
        case Counted(name=name, length=length, size_min=low, size_max=high):
            yield "type", _quoted("text" if name == "key" else "bytes")
            yield from _counted(length, low, high)
        case Characters(length=length, size_max=high):
            yield "type", _quoted("text")
            yield from _counted(length, 0, high)
        case Rest(size_min=0):
            yield "type", _quoted("bytes")
        case Record(cls=cls):
            yield "type", _quoted("record")
            yield "record", _quoted(cls.__name__.lower())
        case Array(count=count, item=item):
            yield "type", _quoted("array")
            yield "length", str(count.size)
            yield "record", _quoted(item.cls.__name__.lower())
        case _:
            raise AssertionError(f"say here how Lua reads a {wire_type}")


def _counted(length: Integer, low: int, high: int) -> Iterator[tuple[str, str]]:
    yield "length", str(length.size)
    yield "min", str(low)
    yield "max", str(high)


def _quoted(text: str) -> str:
    assert '"' not in text
    assert "\\" not in text
    return f'"{text}"'
