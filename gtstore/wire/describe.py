"""The message table in words: the generated blocks of docs/PROTOCOL.md, and ``explain`` for bytes.

``python -m gtstore.wire.describe`` rewrites the blocks; with ``--check`` it changes nothing, and
fails if a block differs from the table. A block stands between two comments of the document::

    <!-- generated: messages -->
    ...
    <!-- end -->

Everything is read off the table: types, sizes, limits and meanings from the annotations, a
message's purpose from its docstring. What is written down here and nowhere else is the header's
fields, the words for the types (``TYPE_MEANINGS``) and one example a message (``EXAMPLES``), which
``explain`` takes apart as it takes apart any bytes. Only ``main`` touches a file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, get_args

from ..errors import RemoteProtocolError
from . import messages
from .codec import BODY_SIZE_MAX, encode, encode_record
from .fields import (
    MALFORMED,
    U8,
    U32,
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
from .stream import FrameBuffer

PROTOCOL: Final = Path(__file__).parents[2] / "docs" / "PROTOCOL.md"


@dataclass(frozen=True)
class Header:
    """The first 12 bytes of every frame; a test holds them against codec.HEADER."""

    magic: Annotated[U8, f"0x{messages.MAGIC:02x}, in every frame"]
    version: Annotated[U8, f"of the protocol: {messages.PROTOCOL_VERSION}"]
    kind: Annotated[U8, "which message the body is (section 6)"]
    flags: Annotated[U8, "0; other values are kept for later versions"]
    request_id: Annotated[U32, "chosen by the sender of the request; the reply has the same"]
    length: Annotated[U32, f"of the body, in bytes: 0 to {BODY_SIZE_MAX:,}"]


ENTRY_TYPE: Final[WireType] = get_args(messages.EntryBytes)[1]
DETAIL_TYPE: Final[WireType] = fields_of(messages.Error)[-1].wire_type

RECORDS: Final[tuple[type[Any], ...]] = (
    messages.Entry,
    messages.Owner,
    messages.Row,
    messages.Member,
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
    "key": "any bytes",
    "text": "for a person to read, or a host's name",
    "bytes": "any bytes",
    "entry": "the fields of [Entry](#entry)",
}

NAMES: Final[Mapping[tuple[type[Any], str], Mapping[int, str]]] = {
    (Header, "magic"): {messages.MAGIC: "GT Store"},
    (Header, "kind"): {kind: cls.name for kind, cls in messages.MESSAGES.items()},
    (messages.Pong, "role"): messages.ROLES,
    (messages.Cluster, "hash"): messages.HASHES,
    (messages.Registered, "hash"): messages.HASHES,
    (messages.Member, "state"): messages.STATES,
    (messages.Owner, "in_sync"): {0: "syncing", 1: "in sync"},
    (messages.Error, "code"): {code: row.name for code, row in messages.ERRORS.items()},
}
"""(class, field) -> what its values are called."""

# --- examples: a cluster of 3 nodes with 2 replicas, and the key "key1" --------------------------

_CLUSTER_ID: Final = 0x5EED_0001 << 32
_EPOCH: Final = _CLUSTER_ID | 1
_NEXT_EPOCH: Final = _CLUSTER_ID | 2
_TIME: Final = 1_700_000_000_000_000
_PUT_CLIENT: Final = 0x1122334455667788
_TOKEN: Final = bytes(range(0xA0, 0xB0))
_KEY: Final = b"key1"
_PARTITION: Final = 186
_ROW: Final = messages.Row(
    _PARTITION,
    _EPOCH,
    _EPOCH,
    (messages.Owner(1, 1, _EPOCH, 1), messages.Owner(2, 1, _EPOCH, 1)),
)
_NEXT_ROW: Final = messages.Row(
    _PARTITION, _NEXT_EPOCH, _NEXT_EPOCH, (messages.Owner(2, 1, _EPOCH, 1),)
)
_MEMBERS: Final = tuple(
    messages.Member(node, messages.ALIVE, 1, 4000 + node, 10000 + node, "127.0.0.1")
    for node in (1, 2, 3)
)
_ENTRY: Final = messages.Entry(_TIME, _PUT_CLIENT, 7, 0, None, b"value1")
_COMMITTED: Final = messages.Entry(_TIME, _PUT_CLIENT, 7, messages.COMMITTED, None, b"value1")
_VERSION: Final = encode_record(_ENTRY)[:16]

EXAMPLES: Final[Mapping[int, tuple[int, messages.Message]]] = {
    message.kind: (request_id, message)
    for request_id, message in (
        (1, messages.Ping()),
        (1, messages.Pong(messages.ROLE_NODE, 1, 1, 4001, _EPOCH, _TIME, 1, 31)),
        (2, messages.ClusterInfo()),
        (2, messages.Cluster(_EPOCH, 3, 2, messages.HASH_ADDITIVE, 192, _TIME, _MEMBERS)),
        (3, messages.GetMap(_EPOCH)),
        (3, messages.Map(_NEXT_EPOCH, (_NEXT_ROW,))),
        (4, messages.KeyNodes(_KEY)),
        (5, messages.NextPrimary(1, _KEY)),
        (4, messages.Owners(_ROW, _MEMBERS[:2])),
        (1, messages.Register(_TOKEN, 1, 1, 4001, 10001)),
        (1, messages.Registered(_CLUSTER_ID, 3, 2, messages.HASH_ADDITIVE)),
        (6, messages.Get(_EPOCH, _PARTITION, _KEY)),
        (6, messages.EntryReply(encode_record(_COMMITTED))),
        (6, messages.NotFound()),
        (7, messages.Write(_EPOCH, _PARTITION, _KEY, encode_record(_ENTRY))),
        (7, messages.Ack()),
        (7, messages.Superseded(_VERSION)),
        (0, messages.Commit(_PARTITION, _VERSION, _KEY)),
        (1, messages.MapUpdate(_TOKEN, _NEXT_EPOCH, (_NEXT_ROW,))),
        (1, messages.Adopted(_NEXT_EPOCH)),
        (
            6,
            messages.Error(
                messages.STALE_EPOCH,
                "the owners are another list",
                encode_record(messages.StaleDetail(_NEXT_ROW)),
            ),
        ),
    )
}
"""kind -> request id and message. The document prints them, and tests decode them."""

# --- explain -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """Some bytes that mean one thing."""

    at: int
    data: bytes
    name: str
    words: str


Walk = Generator[Piece, None, tuple[Any, int]]
"""Yields the pieces of a value, and returns what ``take`` returns."""


def explain(data: bytes) -> list[str]:
    """Return lines that explain frames field by field: offset, hex, name, value in words.

    Never raises. If the bytes are not one or more valid frames, the last line says what is wrong.
    """
    pieces: list[Piece] = []
    wrong: list[str] = []
    at = 0
    try:
        while at < len(data) or not at:
            walk = _walk_frame(data, at)
            try:
                while True:
                    pieces.append(next(walk))
            except StopIteration as stop:
                at = stop.value
    except RemoteProtocolError as error:
        wrong.append(f"wrong: {messages.ERRORS[error.error_code].name}: {error}")
    except EOFError as error:
        wrong.append(f"wrong: {error}")
    width = max((len(piece.name) for piece in pieces), default=0)
    return [line for piece in pieces for line in _piece_lines(piece, width)] + wrong


def _walk_frame(data: bytes, start: int) -> Generator[Piece, None, int]:
    """Yield the pieces of the frame that begins at this offset; return the offset behind it.

    Raises RemoteProtocolError as a node would refuse it, and EOFError if it is not whole.
    """
    header_end = start + messages.HEADER_SIZE
    buffer = FrameBuffer()
    buffer.feed(data[start:header_end])
    if len(data) >= header_end and (
        not buffer.error or buffer.error.error_code != messages.BAD_MAGIC
    ):
        header, _ = yield from _walk_fields(Header, data, start, "")
    if buffer.error is not None:
        raise buffer.error
    if len(data) < header_end:
        raise EOFError(f"{len(data) - start} bytes; a header has {messages.HEADER_SIZE}")
    end: int = header_end + header.length
    cls = messages.MESSAGES.get(header.kind)
    if cls is None:
        text = f"no message has the kind 0x{header.kind:02x}"
        raise RemoteProtocolError(messages.UNKNOWN_KIND, text)
    if header.flags:
        text = f"the header's flags are {header.flags}, not 0"
        raise RemoteProtocolError(messages.UNKNOWN_FLAGS, text)
    try:
        _, at = yield from _walk_fields(cls, data[:end], header_end, "")
    except RemoteProtocolError:
        if end <= len(data):
            raise
    if end > len(data):
        text = f"the frame has {end - start} bytes; {len(data) - start} are there"
        raise EOFError(text)
    if at != end:
        raise RemoteProtocolError(MALFORMED, f"{end - at} bytes after the end of {cls.name}")
    return end


def _walk_fields(cls: type[Any], data: bytes, at: int, prefix: str) -> Walk:
    values: dict[str, Any] = {}
    for field in fields_of(cls):
        values[field.name], at = yield from _walk(cls, field, data, at, values, prefix)
    return cls(**values), at


def _walk(
    cls: type[Any], field: Field, data: bytes, at: int, values: dict[str, Any], prefix: str
) -> Walk:
    name = prefix + field.name
    wire_type = field.wire_type
    if wire_type is DETAIL_TYPE and cls is messages.Error:
        row = messages.ERRORS.get(values["code"])
        if row is not None and row.detail is not None:
            _, at = yield from _walk_fields(row.detail, data, at, "detail.")
            name = "more detail"  # of a later version: to be passed over
    elif wire_type is ENTRY_TYPE:
        wire_type.take(data, at, values)  # is it long enough?
        return (yield from _walk_fields(messages.Entry, data, at, name + "."))
    match wire_type:
        case Record():
            return (yield from _walk_fields(wire_type.cls, data, at, name + "."))
        case Array():
            count, end = wire_type.count.take(data, at, values)
            yield Piece(at, data[at:end], f"{name} count", str(count))
            items = []
            for i in range(count):
                item, end = yield from _walk_fields(wire_type.item.cls, data, end, f"{name}[{i}].")
                items.append(item)
            return tuple(items), end
    begin = at
    if isinstance(wire_type, Counted | Characters):
        size, at = wire_type.length.take(data, begin, values)
        yield Piece(begin, data[begin:at], f"{name} size", str(size))
    value, end = wire_type.take(data, begin, values)
    if end > at:
        yield Piece(at, data[at:end], name, _words(cls, field, value))
    return value, end


def _words(cls: type[Any], field: Field, value: Any) -> str:
    wire_type = field.wire_type.inner if isinstance(field.wire_type, IfFlag) else field.wire_type
    if isinstance(value, bytes):
        if wire_type.name == "version":
            time, client = int.from_bytes(value[:8], "big"), int.from_bytes(value[8:], "big")
            return f"time {_seconds(time)}, client {client:016x}"
        return "" if wire_type.name == "token" else _quote(value)
    if isinstance(value, str):
        return repr(value)
    number: int = value
    if cls is messages.Entry and field.name == "flags":
        names = [name for bit, name in messages.ENTRY_FLAGS.items() if number & bit]
        unknown = number & ~sum(messages.ENTRY_FLAGS)
        names += [f"unknown {unknown}"] * bool(unknown)
        return f"{number}: {', '.join(names) or 'none'}"
    if cls is messages.Entry and field.name == "client":
        return f"{number:016x}"
    names_of_values = NAMES.get((cls, field.name))
    if names_of_values is not None:
        shown = f"0x{number:02x}" if cls is Header else str(number)
        return f"{shown}: {names_of_values.get(number, 'unknown')}"
    if wire_type.name == "epoch":
        return f"cluster {number >> 32:08x}, counter {number & 0xFFFF_FFFF}" if number else "0"
    if wire_type.name == "time":
        return _seconds(number)
    return str(number)


def _seconds(time_us: int) -> str:
    return f"{time_us // 1_000_000}.{time_us % 1_000_000:06} s since 1970"


_QUOTED_SIZE_MAX: Final = 64


def _quote(data: bytes) -> str:
    more = f" ... ({len(data):,} bytes)" if len(data) > _QUOTED_SIZE_MAX else ""
    return repr(data[:_QUOTED_SIZE_MAX])[1:] + more


_BYTES_A_LINE: Final = 8
_BYTES_SHOWN_MAX: Final = 64


def _piece_lines(piece: Piece, width: int) -> Iterator[str]:
    """The piece's lines, 8 bytes each; only the beginning of a long one is shown."""
    size = len(piece.data)
    shown = piece.data if size <= _BYTES_SHOWN_MAX else piece.data[: _BYTES_SHOWN_MAX // 2]
    for i in range(0, len(shown), _BYTES_A_LINE):
        text = shown[i : i + _BYTES_A_LINE].hex(" ")
        words = f"{piece.name:<{width}}  {piece.words}" if i == 0 else ""
        yield f"{piece.at + i:4}  {text:<23}  {words}".rstrip()
    if len(shown) < size:
        yield f"      ... {size - len(shown):,} more bytes"


# --- the document's blocks -----------------------------------------------------------------------


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
    for kind, cls in messages.MESSAGES.items():
        lines += [f"### 0x{kind:02x} {cls.name}", ""]
        lines += [f"From {cls.sender} to {' or '.join(cls.receivers)}. {_purpose(cls)}", ""]
        lines += [*fields_table(cls), ""] if fields_of(cls) else ["It has no body.", ""]
        if kind < 0x80:
            lines += [_replies_sentence(cls), ""]
        request_id, message = EXAMPLES[kind]
        lines += ["```", *explain(encode(message, request_id)), "```", ""]
    return lines[:-1]


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

_BEGIN: Final = "<!-- generated: "
_BEGIN_END: Final = " -->"
_END: Final = "<!-- end -->"


def rewrite(text: str) -> tuple[str, list[str]]:
    """Return the document with every block as the table has it, and what was wrong with it before:
    one line each block that differs, is not known, has no end, or is missing.
    """
    wrong: list[str] = []
    out: list[str] = []
    missing = set(BLOCKS)
    lines = iter(text.split("\n"))
    for line in lines:
        out.append(line)
        if not line.startswith(_BEGIN):
            continue
        name = line.removeprefix(_BEGIN).removesuffix(_BEGIN_END)
        old = []
        for old_line in lines:
            old.append(old_line)
            if old_line == _END:
                break
        make = BLOCKS.get(name)
        if make is None or not old or old[-1] != _END:
            wrong.append(f"block {name!r} has no end" if make else f"block {name!r} is not known")
            out += old
            continue
        new = ["", *make(), "", _END]
        missing.discard(name)
        if new != old:
            wrong.append(f"block {name!r} differs from the table: {_first_difference(old, new)}")
        out += new
    wrong += [f"block {name!r} is missing" for name in BLOCKS if name in missing]
    return "\n".join(out), wrong


def _first_difference(old: list[str], new: list[str]) -> str:
    # There is one: both end with _END, and have it nowhere else.
    pairs = enumerate(zip(old, new, strict=False), 1)
    return next(f"line {i} is {was!r}, not {is_!r}" for i, (was, is_) in pairs if was != is_)


def main(arguments: list[str] | None = None, path: Path = PROTOCOL) -> int:
    """Run the program; return its exit code: 1 if a block differs, or cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python -m gtstore.wire.describe",
        description="Rewrite the generated blocks of docs/PROTOCOL.md.",
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail if one differs")
    options = parser.parse_args(arguments)
    text = path.read_text(encoding="utf-8")
    new_text, wrong = rewrite(text)
    if not options.check:
        path.write_text(new_text, encoding="utf-8")
        wrong = rewrite(new_text)[1]
    for what in wrong:
        print(f"{path.name}: {what}", file=sys.stderr)
    if wrong and options.check:
        print("to rewrite them: python -m gtstore.wire.describe", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
