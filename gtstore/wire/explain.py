"""Bytes in words: what ``gtclient frame decode`` and the examples of docs/PROTOCOL.md print.

Everything is read off the message table: names and types of fields from the annotations, what their
values are called from ``NAMES``. It never raises, whatever the bytes: what is wrong with them is
said in the last line, as a node would say it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, get_args

from ..errors import RemoteProtocolError
from . import messages
from .codec import BODY_SIZE_MAX
from .fields import (
    MALFORMED,
    U8,
    U32,
    Array,
    Characters,
    Counted,
    Field,
    IfFlag,
    Record,
    WireType,
    fields_of,
)
from .stream import FrameBuffer


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

NAMES: Final[Mapping[tuple[type[Any], str], Mapping[int, str]]] = {
    (Header, "magic"): {messages.MAGIC: "GT Store"},
    (Header, "kind"): {kind: cls.name for kind, cls in messages.MESSAGES.items()},
    (messages.Pong, "role"): messages.ROLES,
    (messages.Cluster, "hash"): messages.HASHES,
    (messages.Registered, "hash"): messages.HASHES,
    (messages.Member, "state"): messages.STATES,
    (messages.Owner, "in_sync"): {0: "syncing", 1: "in sync"},
    (messages.Execute, "operation"): messages.OPERATIONS,
    (messages.Failed, "reason"): messages.FAILURES,
    (messages.Error, "code"): {code: row.name for code, row in messages.ERRORS.items()},
}
"""(class, field) -> what its values are called."""


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


_SUMMARY_SIZE_MAX: Final = 160
_MINOR: Final = {"client", "counter", "incarnation", "join_epoch", "pid", "primary_epoch"}


def _is_minor(name: str) -> bool:
    """Whether a summary does without that piece."""
    return name.endswith(" size") or name.rpartition(".")[2] in _MINOR


def _fact(piece: Piece) -> str:
    """A piece in a summary; of an epoch, the counter is enough."""
    return f"{piece.name} {piece.words.rpartition(', counter ')[2]}"


def summarize(frame: bytes) -> str:
    """One line for one frame: the message, the request id, and as much of its fields as fits."""
    pieces: list[Piece] = []
    wrong = ""
    walk = _walk_frame(frame, 0)
    try:
        while True:
            pieces.append(next(walk))
    except StopIteration:
        pass
    except (RemoteProtocolError, EOFError) as error:
        wrong = f"wrong: {error}"
    header = {piece.name: piece.words for piece in pieces[:6]}
    name = header.get("kind", "").partition(": ")[2] or "no frame"
    facts = [_fact(piece) for piece in pieces[6:] if piece.words and not _is_minor(piece.name)]
    words = ", ".join([*facts, *filter(None, [wrong])])
    title = f"{name} {header.get('request_id', '')}".rstrip()
    line = f"{title}  {words}".rstrip()
    return line if len(line) <= _SUMMARY_SIZE_MAX else line[: _SUMMARY_SIZE_MAX - 4] + " ..."


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
