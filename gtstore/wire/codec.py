"""One message <-> one frame, driven by the table in messages.py (PROTOCOL.md sections 3 and 7).

``encode`` and ``decode`` serve every message. The three messages of the hot path (GET, WRITE,
COMMIT) and their replies also have ``struct.Struct`` objects, compiled from the same table, for the
code that works on the bytes (replica.py, operations.py): the fixed part of such a frame is one
pack or unpack, and the key and the entry follow as they are.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Any, Final, TypeAlias

from ..errors import LocalProtocolError, RemoteProtocolError
from . import messages
from .fields import Counted, Fixed, Integer, fields_of, malformed, put_fields, take_fields

Frame: TypeAlias = tuple[int, int, int, bytes]
"""kind, flags, request id, body."""

HEADER: Final = struct.Struct(">HBBII")
"""magic and protocol version together, kind, flags, request id, length of the body."""
MAGIC_VERSION: Final = messages.MAGIC << 8 | messages.PROTOCOL_VERSION
BODY_SIZE_MAX: Final = messages.FRAME_SIZE_MAX - messages.HEADER_SIZE
assert HEADER.size == messages.HEADER_SIZE

HEADER_WORDS: Final = struct.Struct(">III")
"""The header again, for the hot paths: its first four bytes as one number (see ``head_word``),
request id, length. Comparing that number checks magic, version, kind and flags at once."""


def head_word(kind: int) -> int:
    """The first four bytes of a frame of this kind, without flags."""
    return MAGIC_VERSION << 16 | kind << 8


def fixed_format(cls: type[Any]) -> str:
    """The struct format of a message's leading fields of fixed size, with the length of the first
    field that is counted."""
    letters = ""
    for field in fields_of(cls):
        match field.wire_type:
            case Integer(code=code):
                letters += code
            case Fixed(size=size):
                letters += f"{size}s"
            case Counted(length=length):
                return letters + length.code
            case _:
                break
    return letters


def body_struct(cls: type[Any]) -> struct.Struct:
    return struct.Struct(">" + fixed_format(cls))


def frame_struct(cls: type[Any]) -> struct.Struct:
    return struct.Struct(HEADER.format + fixed_format(cls))


GET: Final = messages.Get.kind
WRITE: Final = messages.Write.kind
COMMIT: Final = messages.Commit.kind
EXECUTE: Final = messages.Execute.kind
ACK: Final = messages.Ack.kind
ENTRY: Final = messages.EntryReply.kind
NOT_FOUND: Final = messages.NotFound.kind
SUPERSEDED: Final = messages.Superseded.kind
EXECUTED: Final = messages.Executed.kind
FAILED: Final = messages.Failed.kind
ERROR: Final = messages.Error.kind

GET_BODY: Final = body_struct(messages.Get)
WRITE_BODY: Final = body_struct(messages.Write)
COMMIT_BODY: Final = body_struct(messages.Commit)
GET_FRAME: Final = frame_struct(messages.Get)
WRITE_FRAME: Final = frame_struct(messages.Write)
COMMIT_FRAME: Final = frame_struct(messages.Commit)
ENTRY_HEAD: Final = struct.Struct(">QQIB")
"""An entry's time, client, counter and flags. A test holds it against messages.Entry."""


class LongReply(Exception):
    """A reply in two parts, which a handler raises instead of returning one: what is long and kept
    anyway, such as an entry, is not copied for each of its readers, however slowly they read.
    """

    def __init__(self, head: bytes, rest: bytes) -> None:
        self.head = head
        self.rest = rest


def reply_frame(word: int, request_id: int, body: bytes) -> bytes:
    """A reply whose body stands ready; ``word`` is its kind's head_word. Raises LongReply if it is
    long."""
    size = len(body)
    header = HEADER_WORDS.pack(word, request_id, size)
    if size > messages.LONG_FRAME_SIZE:
        raise LongReply(header, body)
    return header + body


def encode(message: messages.Message, request_id: int = 0) -> bytes:
    """Return the message's frame.

    Raises LocalProtocolError if a field's value is not allowed, or the frame would be too long.
    """
    body = bytearray()
    put_fields(message, body)
    if len(body) > BODY_SIZE_MAX:
        raise LocalProtocolError(f"{message.name} is {len(body) - BODY_SIZE_MAX} bytes too long")
    if not 0 <= request_id <= 0xFFFF_FFFF:
        raise LocalProtocolError(f"{request_id} is no request id: it has 32 bits")
    return HEADER.pack(MAGIC_VERSION, message.kind, 0, request_id, len(body)) + bytes(body)


def decode(kind: int, body: bytes) -> messages.Message:
    """Return the message of a frame's kind and body.

    Raises RemoteProtocolError with UNKNOWN_KIND or MALFORMED; nothing else, whatever the bytes.
    """
    cls = messages.MESSAGES.get(kind)
    if cls is None:
        raise unknown_kind(kind)
    message: messages.Message
    message, end = take_fields(cls, body, 0)
    if end != len(body):
        raise malformed(f"{len(body) - end} bytes after the end of {cls.name}")
    return message


def unknown_kind(kind: int) -> RemoteProtocolError:
    return RemoteProtocolError(messages.UNKNOWN_KIND, f"no request of kind 0x{kind:02x} here")


def encode_record(record: Any) -> bytes:
    """Return a record's bytes: an entry, or an error's detail."""
    out = bytearray()
    put_fields(record, out)
    return bytes(out)


class RowEncoder:
    """Encodes bodies that end with rows of the map. It keeps each row's bytes, since most rows of
    the next map are those of the last one."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[messages.Row, bytes]] = {}  # by partition

    def body(self, message: messages.Map | messages.MapUpdate) -> bytes:
        """What ``encode`` puts behind the header."""
        count = len(message.rows).to_bytes(4, "big")
        head = encode(dataclasses.replace(message, rows=()))[messages.HEADER_SIZE : -len(count)]
        return b"".join((head, count, *map(self._row, message.rows)))

    def frame(self, message: messages.Map | messages.MapUpdate, request_id: int) -> bytes:
        """What ``encode`` returns."""
        body = self.body(message)
        return HEADER_WORDS.pack(head_word(message.kind), request_id, len(body)) + body

    def _row(self, row: messages.Row) -> bytes:
        known = self._known.get(row.partition)
        if known is None or known[0] is not row:
            known = self._known[row.partition] = row, encode_record(row)
        return known[1]


def decode_entry(data: bytes) -> messages.Entry:
    """Return the fields of an entry's bytes. Raises RemoteProtocolError, MALFORMED."""
    entry: messages.Entry
    entry, _ = take_fields(messages.Entry, data, 0)
    return entry


def error_frame(request_id: int, code: int, text: str, detail: Any = None) -> bytes:
    """Return an ERROR reply; ``detail`` is a record of the code's own type, or None."""
    detail_type = messages.ERRORS[code].detail
    assert type(detail) is (detail_type or type(None))
    extra = b"" if detail is None else encode_record(detail)
    return encode(messages.Error(code, text, extra), request_id)


def error_detail(error: messages.Error) -> Any:
    """Return the typed fields of an ERROR reply, or None if its code has none or is not known."""
    row = messages.ERRORS.get(error.code)
    if row is None or row.detail is None:
        return None
    detail, _ = take_fields(row.detail, error.detail, 0)
    return detail
