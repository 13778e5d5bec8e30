"""The generated blocks of docs/PROTOCOL.md: the message table in Markdown.

Types, sizes, limits and meanings come from the annotations, a message's purpose from its docstring;
what is written down here and nowhere else is the words for the types (``TYPE_MEANINGS``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from .. import messages
from ..codec import encode
from ..explain import ENTRY_TYPE, Header, explain
from ..fields import (
    Array,
    Characters,
    Counted,
    Fixed,
    IfFlag,
    Integer,
    Record,
    Rest,
    WireType,
    fields_of,
)
from .examples import EXAMPLES

RECORDS: Final[tuple[type[Any], ...]] = (
    messages.Entry,
    messages.Owner,
    messages.Row,
    messages.Member,
    messages.Trouble,
    messages.Join,
    messages.HeldEntry,
    messages.KeyedEntry,
    messages.ScannedKey,
)

TYPE_MEANINGS: Final = {
    "u8": "",
    "u16": "",
    "u32": "",
    "u64": "",
    "epoch": "a version of the partition map: the cluster id in the upper 32 bits, a counter in "
    "the lower 32",
    "time": "microseconds since 1970-01-01 00:00 UTC",
    "version": "the first 16 bytes of an entry: its time and its client",
    "token": "a secret of the cluster's own processes",
    "mark": "a random number that a node has put on its disk",
    "marks": "some of these, one after the other",
    "key": "any bytes",
    "value": "any bytes",
    "text": "for a person to read, or a host's name",
    "bytes": "any bytes",
    "entry": "the fields of [Entry](#entry)",
}


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return [("| " + " | ".join(line) + " |").replace("|  |", "| |") for line in lines]


def _wire_types() -> Iterator[WireType]:
    """Every type that a field has, each once, those of the table's words first."""
    classes = [*RECORDS, *messages.MESSAGES.values()]
    classes += [row.detail for row in messages.ERRORS.values() if row.detail]
    found = {"u8": fields_of(Header)[0].wire_type}
    for cls in classes:
        for field in fields_of(cls):
            found.setdefault(field.wire_type.name, field.wire_type)
    yield from (found[name] for name in TYPE_MEANINGS if name in found)
    yield from (found[name] for name in found if name not in TYPE_MEANINGS)


def _encoding(wire_type: WireType) -> str:
    """How a value of the type stands on the wire; "" for a type that has fields of its own."""
    match wire_type:
        case Integer(size=size):
            return f"{size} byte{'s' * (size > 1)}, unsigned"
        case Fixed(size=size):
            return f"{size} bytes"
        case Counted(length=length, size_min=low, size_max=high):
            return f"its size as {length.name}, then {low} to {high:,} bytes"
        case Characters(length=length, size_max=high):
            return f"its size in bytes as {length.name}, then 0 to {high:,} bytes of UTF-8"
        case Rest(size_min=size):
            return "the rest of the body" + (f", {size} bytes or more" if size else "")
    return ""


def types_block() -> list[str]:
    """The table of field types that have no fields of their own."""
    return _table(
        ("type", "on the wire", "meaning"),
        (
            (f"`{wire_type.name}`", encoding, TYPE_MEANINGS[wire_type.name])
            for wire_type in _wire_types()
            if (encoding := _encoding(wire_type))
        ),
    )


def _type_name(wire_type: WireType) -> str:
    match wire_type:
        case Record():
            return f"[{wire_type.name}](#{wire_type.name})"
        case Array(count=count, item=item):
            return f"{count.name} count, then so many [{item.name}](#{item.name})"
        case IfFlag(bit=bit, inner=inner):
            return f"{inner.name}, if flag {bit} is set"
    return "[entry](#entry)" if wire_type is ENTRY_TYPE else wire_type.name


def _size(wire_type: WireType) -> int | None:
    """The size of a value on the wire, or None if it is not always the same."""
    match wire_type:
        case Integer(size=size) | Fixed(size=size):
            return size
        case Record(cls=cls):
            sizes = [_size(field.wire_type) for field in fields_of(cls)]
            return None if None in sizes else sum(size for size in sizes if size is not None)
    return None


def fields_table(cls: type[Any]) -> list[str]:
    """A body's table: offset (where it is always the same), field, type, meaning."""
    rows = []
    at: int | None = 0
    for field in fields_of(cls):
        offset = "" if at is None else str(at)
        rows.append((offset, f"`{field.name}`", _type_name(field.wire_type), field.meaning))
        size = _size(field.wire_type)
        at = None if at is None or size is None else at + size
    return _table(("offset", "field", "type", "meaning"), rows)


def header_block() -> list[str]:
    """The table of the frame's header."""
    return fields_table(Header)


def _anchor(cls: type[messages.Message]) -> str:
    return f"[{cls.name}](#0x{cls.kind:02x}-{cls.name.lower()})"


def _own_replies(cls: type[messages.Message]) -> list[str]:
    by_name = {reply.name: reply for reply in messages.MESSAGES.values()}
    return [_anchor(by_name[name]) for name in cls.replies if name in by_name]


def _own_errors(cls: type[messages.Message]) -> list[str]:
    names = {row.name for row in messages.ERRORS.values()}
    return [name for name in cls.replies if name in names]


def messages_block() -> list[str]:
    """The table of all messages."""
    return _table(
        ("kind", "message", "from", "to", "replies"),
        (
            (
                f"0x{kind:02x}",
                _anchor(cls),
                cls.sender,
                " or ".join(cls.receivers),
                ", ".join(_own_replies(cls)),
            )
            for kind, cls in messages.MESSAGES.items()
        ),
    )


def reference_block() -> list[str]:
    """Each message: its purpose, its body, its replies and errors, an example."""
    lines: list[str] = []
    own = [cls for cls in messages.MESSAGES.values() if not _is_for_clients(cls)]
    clients = [cls for cls in messages.MESSAGES.values() if _is_for_clients(cls)]
    for cls in [*clients, *own]:
        kind = cls.kind
        if cls is own[0]:
            lines += ["The rest are the cluster's own; a client has no use for them.", ""]
        lines += [f"### 0x{kind:02x} {cls.name}", ""]
        lines += [f"From {cls.sender} to {' or '.join(cls.receivers)}. {_purpose(cls)}", ""]
        lines += [*fields_table(cls), ""] if fields_of(cls) else ["It has no body.", ""]
        if kind < 0x80:
            lines += [_replies_sentence(cls), ""]
        request_id, message = EXAMPLES[kind]
        frame = encode(message, request_id)
        lines += ["```", *explain(frame), "```", "", f"`{frame.hex()}`", ""]
    return lines[:-1]


def _is_for_clients(cls: type[messages.Message]) -> bool:
    return messages.CLIENT in (cls.sender, *cls.receivers)


def _purpose(cls: type[Any]) -> str:
    return " ".join((cls.__doc__ or "").split())


def _replies_sentence(cls: type[messages.Message]) -> str:
    replies, errors = _own_replies(cls), _own_errors(cls)
    if not replies:
        return "It has no reply."
    text = f"Reply: {' or '.join(replies)}."
    return text + (f" Errors of its own: {', '.join(errors)}." if errors else "")


def records_block() -> list[str]:
    """The records that messages are made of."""
    lines: list[str] = []
    for cls in RECORDS:
        lines += [f"### {cls.__name__}", "", _purpose(cls), "", *fields_table(cls), ""]
    return lines[:-1]


def errors_block() -> list[str]:
    """The table of error codes, and the fields of those that have any."""
    rows = messages.ERRORS.values()
    lines = _table(
        ("code", "name", "fields", "retry", "connection", "outcome", "meaning"),
        (
            (
                str(row.code),
                row.name,
                ", ".join(f"`{field.name}`" for field in fields_of(row.detail))
                if row.detail
                else "",
                row.retry,
                "closed" if row.closes else "open",
                row.outcome,
                row.meaning,
            )
            for row in rows
        ),
    )
    details = [
        (row.name, f"`{field.name}`", _type_name(field.wire_type), field.meaning)
        for row in rows
        if row.detail
        for field in fields_of(row.detail)
    ]
    return [*lines, "", "The fields:", "", *_table(("error", "field", "type", "meaning"), details)]


def limits_block() -> list[str]:
    """The table of limits and defaults."""
    return _table(
        ("limit or default", "value", "notes"),
        ((limit.name, limit.value, limit.meaning) for limit in messages.LIMITS),
    )


BLOCKS: Final[Mapping[str, Callable[[], list[str]]]] = {
    "types": types_block,
    "header": header_block,
    "messages": messages_block,
    "reference": reference_block,
    "records": records_block,
    "errors": errors_block,
    "limits": limits_block,
}
"""The document's blocks: name -> what makes its lines."""
