"""One message, one frame: round trips, garbage, cut and overlong bodies, illegal values.

Every test runs over the whole table: its values are made from the fields' wire types, so a new
message is covered as soon as it is declared.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gtstore.errors import LocalProtocolError, RemoteProtocolError
from gtstore.placement import LABEL
from gtstore.wire import codec, messages
from gtstore.wire.codec import (
    BODY_SIZE_MAX,
    ENTRY_HEAD,
    HEADER,
    HEADER_WORDS,
    MAGIC_VERSION,
    RowEncoder,
    body_struct,
    decode,
    decode_entry,
    encode,
    encode_record,
    error_detail,
    error_frame,
    fixed_format,
    frame_struct,
    head_word,
)
from gtstore.wire.fields import (
    MALFORMED,
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
from gtstore.wire.messages import ERRORS, MESSAGES, UNKNOWN_KIND, ErrorCode, Message

RECORDS: list[type[Any]] = [
    cls
    for cls in vars(messages).values()
    if dataclasses.is_dataclass(cls) and isinstance(cls, type) and fields_of(cls)
    if not issubclass(cls, Message)
]

few = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
some = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

each_message = pytest.mark.parametrize("cls", MESSAGES.values(), ids=lambda cls: cls.name)
each_body = pytest.mark.parametrize(
    "cls", [*MESSAGES.values(), *RECORDS], ids=lambda cls: cls.__name__
)
each_error = pytest.mark.parametrize("row", ERRORS.values(), ids=lambda row: row.name)

request_ids = st.integers(0, 0xFFFFFFFF)


def legal(wire_type: WireType) -> st.SearchStrategy[Any]:
    """Values that the wire type can carry, and that come back as they are."""
    match wire_type:
        case Integer():
            return st.integers(0, 256**wire_type.size - 1)
        case Fixed(size=size):
            return st.binary(min_size=size, max_size=size)
        case Counted(size_min=low, size_max=high):
            most = high if high <= 1000 else low + 300  # a value of 16 MiB takes too long here
            sizes = st.sampled_from([low, most]) | st.integers(low, min(high, low + 20))
            return sizes.flatmap(lambda size: st.binary(min_size=size, max_size=size))
        case Characters(size_max=high):
            short = st.text(st.characters(codec="utf-8"), max_size=20)
            return short | st.just("x" * high)
        case Rest(size_min=low):
            return st.binary(min_size=low, max_size=low + 30)
        case Record(cls=cls):
            return records(cls)
        case Array(item=item):
            return st.lists(records(item.cls), max_size=3).map(tuple)
    raise AssertionError(f"say here which values a {wire_type} can carry")


@st.composite
def records(draw: st.DrawFn, cls: type[Any]) -> Any:
    """Any legal record or message of the class."""
    values: dict[str, Any] = {}
    for field in fields_of(cls):
        match field.wire_type:
            case IfFlag(bit=bit, inner=inner):
                there = values["flags"] & bit
                values[field.name] = draw(legal(inner)) if there else None
            case wire_type:
                values[field.name] = draw(legal(wire_type))
    return cls(**values)


def smallest(cls: type[Any]) -> Any:
    """The record or message of the class with the fewest bytes."""
    values: dict[str, Any] = {}
    for field in fields_of(cls):
        match field.wire_type:
            case Integer():
                values[field.name] = 0
            case Fixed(size=size) | Counted(size_min=size) | Rest(size_min=size):
                values[field.name] = bytes(size)
            case Characters():
                values[field.name] = ""
            case IfFlag():
                values[field.name] = None
            case Record(cls=inner):
                values[field.name] = smallest(inner)
            case Array():
                values[field.name] = ()
    return cls(**values)


def illegal(wire_type: WireType) -> list[Any]:
    """Values that must not be sent."""
    match wire_type:
        case Integer():
            return [-1, 256**wire_type.size]
        case Fixed(size=size):
            return [bytes(size - 1), bytes(size + 1)]
        case Counted(size_min=low, size_max=high):
            return [bytes(size) for size in (low - 1, high + 1) if size >= 0]
        case Rest(size_min=low):
            return [bytes(low - 1)] if low else []
        case IfFlag():
            return [0]  # the smallest record has no flags
        case Array(count=Integer(size=1), item=item):
            return [(smallest(item.cls),) * 256]
    return []


def has_text(cls: type[Any]) -> bool:
    """Whether bytes that are no UTF-8 may be replaced in it."""
    for field in fields_of(cls):
        match field.wire_type:
            case Characters():
                return True
            case Record(cls=inner) | Array(item=Record(cls=inner)) if has_text(inner):
                return True
    return False


def ends_open(cls: type[Any]) -> bool:
    """Whether the body reaches as far as it reaches, so that some of its beginnings are legal."""
    return any(isinstance(field.wire_type, Rest) for field in fields_of(cls))


def body_of(message: Message) -> bytes:
    return encode(message)[HEADER.size :]


def attempt(function: Callable[..., Any], *arguments: Any) -> tuple[Any, int | None]:
    """(what the function returns, None) or (None, the code with which it refuses)."""
    try:
        return function(*arguments), None
    except RemoteProtocolError as error:
        # The borders of the frames are still known, so the connection goes on.
        return None, None if error.closes else error.error_code


def decode_or_malformed(kind: int, body: bytes) -> Message | None:
    """The message, or None if the body is refused, which must be as MALFORMED."""
    message, code = attempt(decode, kind, body)
    assert message is not None or code == MALFORMED
    return message  # type: ignore[no-any-return]


# --- round trips ---------------------------------------------------------------------------------


@each_message
@some
@given(st.data())
def test_round_trip(cls: type[Message], data: st.DataObject) -> None:
    """What was encoded is decoded to the same message, and its header says so."""
    message, request_id = data.draw(records(cls)), data.draw(request_ids)
    frame = encode(message, request_id)
    magic_version, kind, flags, read_id, length = HEADER.unpack_from(frame)
    body = frame[HEADER.size :]
    assert (magic_version, kind, flags, read_id) == (MAGIC_VERSION, cls.kind, 0, request_id)
    assert length == len(body)
    assert decode(kind, body) == message


@many
@given(records(messages.Entry))
def test_round_trip_of_an_entry(entry: messages.Entry) -> None:
    """An entry is its bytes, with the head as the struct of the hot path reads it."""
    data = encode_record(entry)
    assert decode_entry(data) == entry
    assert ENTRY_HEAD.unpack_from(data) == (entry.time, entry.client, entry.counter, entry.flags)
    assert ENTRY_HEAD.size == messages.ENTRY_HEAD_SIZE
    expiry_size = 0 if entry.expiry is None else 8
    assert data[messages.ENTRY_HEAD_SIZE + expiry_size :] == entry.value


@many
@given(records(messages.Entry), records(messages.Entry))
def test_comparing_the_first_16_bytes_compares_versions(
    one: messages.Entry, other: messages.Entry
) -> None:
    """A version is (time, client); its bytes are in the same order."""
    assert ((one.time, one.client) < (other.time, other.client)) == (
        encode_record(one)[:16] < encode_record(other)[:16]
    )


@each_error
@some
@given(st.data())
def test_round_trip_of_an_error(row: ErrorCode, data: st.DataObject) -> None:
    """Each code's own fields come back as what they were."""
    detail = data.draw(records(row.detail)) if row.detail else None
    request_id = data.draw(request_ids)
    frame = error_frame(request_id, row.code, "why", detail)
    _, kind, _, read_id, _ = HEADER.unpack_from(frame)
    error = decode(kind, frame[HEADER.size :])
    assert isinstance(error, messages.Error)
    assert (error.code, error.message, read_id) == (row.code, "why", request_id)
    assert error_detail(error) == detail


def test_an_error_with_another_codes_fields() -> None:
    """Fields that the table does not give to a code are our own mistake."""
    with pytest.raises(AssertionError):
        error_frame(1, messages.BUSY, "why", messages.SizeDetail(1))
    with pytest.raises(AssertionError):
        error_frame(1, messages.BUSY, "why")


# --- what comes from outside ---------------------------------------------------------------------


@many
@given(st.sampled_from(sorted(set(range(256)) - set(MESSAGES))), st.binary(max_size=40))
def test_unknown_kinds(kind: int, body: bytes) -> None:
    """A kind that is not in the table is refused as such, whatever its body."""
    with pytest.raises(RemoteProtocolError) as caught:
        decode(kind, body)
    assert caught.value.error_code == UNKNOWN_KIND
    assert not caught.value.closes


@each_message
@some
@given(st.binary(max_size=200))
def test_garbage_bodies(cls: type[Message], body: bytes) -> None:
    """Any bytes are a message or MALFORMED; a message without text has one encoding only."""
    message = decode_or_malformed(cls.kind, body)
    assert message is None or has_text(cls) or body_of(message) == body


@each_message
@some
@given(st.data())
def test_damaged_bodies(cls: type[Message], data: st.DataObject) -> None:
    """Bytes that are almost a message lead further into the decoder than mere garbage."""
    body = bytearray(body_of(data.draw(records(cls))))
    if body:
        places = st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255))
        for at, byte in data.draw(st.lists(places, max_size=4)):
            body[at] = byte
    message = decode_or_malformed(cls.kind, bytes(body))
    assert message is None or has_text(cls) or body_of(message) == body


@each_message
@few
@given(st.data())
def test_cut_bodies(cls: type[Message], data: st.DataObject) -> None:
    """A body that ends too early is malformed, unless its last field reaches to the end anyway."""
    body = body_of(data.draw(records(cls)))
    for size in range(len(body)):
        message = decode_or_malformed(cls.kind, body[:size])
        assert message is None or ends_open(cls)
        assert message is None or body_of(message) == body[:size]


@each_message
@few
@given(st.data())
def test_trailing_bytes(cls: type[Message], data: st.DataObject) -> None:
    """Bytes behind the last field are malformed, unless it reaches to the end anyway."""
    body = body_of(data.draw(records(cls))) + data.draw(st.binary(min_size=1, max_size=5))
    assert (decode_or_malformed(cls.kind, body) is not None) == ends_open(cls)


@many
@given(st.integers(0, 30) | st.integers(0, 0xFFFF), st.binary(max_size=80))
def test_garbage_in_an_errors_detail(code: int, detail: bytes) -> None:
    """A code that is not known has no fields; one that is known has its own or MALFORMED."""
    fields, refused = attempt(error_detail, messages.Error(code, "", detail))
    row = ERRORS.get(code)
    if row is None or row.detail is None:
        assert (fields, refused) == (None, None)
    else:
        assert type(fields) is row.detail or refused == MALFORMED


@each_error
def test_cut_details(row: ErrorCode) -> None:
    """An error's fields are there as a whole, or the reply is malformed."""
    if row.detail is None:
        return
    data = encode_record(smallest(row.detail))
    for size in range(len(data)):
        with pytest.raises(RemoteProtocolError) as caught:
            error_detail(messages.Error(row.code, "", data[:size]))
        assert caught.value.error_code == MALFORMED


@many
@given(st.binary(max_size=60))
def test_garbage_entries(data: bytes) -> None:
    """Any bytes are an entry or MALFORMED; those that are one stand for no other."""
    entry, refused = attempt(decode_entry, data)
    assert refused == MALFORMED or encode_record(entry) == data


def test_an_entry_cut_within_its_expiry() -> None:
    """Flag 8 announces eight bytes more."""
    data = encode_record(messages.Entry(1, 2, 3, messages.EXPIRES, 4, b""))
    for size in range(len(data)):
        with pytest.raises(RemoteProtocolError) as caught:
            decode_entry(data[:size])
        assert caught.value.error_code == MALFORMED


# --- what must not go out ------------------------------------------------------------------------


@each_body
def test_illegal_values(cls: type[Any]) -> None:
    """A value that its field cannot carry is a LocalProtocolError, field by field."""
    whole = smallest(cls)
    encode_record(whole)
    for field in fields_of(cls):
        for value in illegal(field.wire_type):
            with pytest.raises(LocalProtocolError):
                encode_record(dataclasses.replace(whole, **{field.name: value}))


@pytest.mark.parametrize(
    "message",
    [
        messages.Get(1 << 64, 0, b"k"),
        messages.Get(-1, 0, b"k"),
        messages.Get(0, 1 << 32, b"k"),
        messages.Get(0, 0, b""),
        messages.Get(0, 0, b"k" * 501),
        messages.Superseded(b"v" * 15),
        messages.Write(0, 0, b"k", b"e" * 20),
        messages.Register(b"t" * 17, 1, 1, 1, 1, ()),
        messages.Map(1, (messages.Row(0, 1, 1, (messages.Owner(1, 1, 1, 1),) * 256),)),
        messages.Error(1 << 16, "", b""),
    ],
    ids=lambda message: message.name,
)
def test_illegal_messages(message: Message) -> None:
    """The same for whole messages, so that the table's own limits are pinned."""
    with pytest.raises(LocalProtocolError):
        encode(message)


@pytest.mark.parametrize(
    "entry",
    [
        messages.Entry(1, 2, 3, 0, 4, b""),
        messages.Entry(1, 2, 3, messages.EXPIRES, None, b""),
        messages.Entry(1, 2, 3, messages.EXPIRES, 1 << 64, b""),
        messages.Entry(1 << 64, 2, 3, 0, None, b""),
        messages.Entry(1, 2, 1 << 32, 0, None, b""),
        messages.Entry(1, 2, 3, 256, None, b""),
    ],
)
def test_illegal_entries(entry: messages.Entry) -> None:
    """An expiry needs its flag, the flag its expiry, and numbers their bounds."""
    with pytest.raises(LocalProtocolError):
        encode_record(entry)


def test_the_longest_frame() -> None:
    """A frame may be as long as the limit and not a byte longer."""
    fixed_size = len(body_of(messages.EntryReply(bytes(21)))) - 21
    entry = bytes(BODY_SIZE_MAX - fixed_size)
    assert len(encode(messages.EntryReply(entry))) == messages.FRAME_SIZE_MAX
    with pytest.raises(LocalProtocolError, match="ENTRY is 1 bytes too long"):
        encode(messages.EntryReply(entry + b"x"))


def test_the_longest_key_and_value_fit_a_frame() -> None:
    """So no legal put is refused for its frame's length."""
    head = messages.Entry(1, 2, 3, messages.EXPIRES, 4, bytes(messages.VALUE_SIZE_MAX))
    encode(messages.Write(1, 2, bytes(messages.KEY_SIZE_MAX), encode_record(head)))


# --- offsets and structs -------------------------------------------------------------------------


def test_header_offsets() -> None:
    """magic 0, version 1, kind 2, flags 3, request id 4, length 8; the body begins at 12."""
    frame = encode(messages.Superseded(bytes(range(16))), 0x0A0B0C0D)
    assert frame[0] == 0xC7 == messages.MAGIC
    assert frame[1] == 1 == messages.PROTOCOL_VERSION
    assert frame[2] == 0x93 == messages.Superseded.kind
    assert frame[3] == 0
    assert frame[4:8] == bytes.fromhex("0a0b0c0d")
    assert frame[8:12] == bytes.fromhex("00000010")
    assert frame[12:] == bytes(range(16))
    assert HEADER.size == messages.HEADER_SIZE == 12


def test_a_frame_without_a_body() -> None:
    """PING in full, as one would write it by hand."""
    assert encode(messages.Ping(), 1) == bytes.fromhex("c7 01 01 00 00000001 00000000")


def test_offsets_of_the_hot_messages() -> None:
    """GET and WRITE: epoch 0, partition 8, the key's length 12, the key 14, then the entry.
    COMMIT: partition 0, version 4, the key's length 20, the key 22."""
    version = bytes(range(1, 17))
    head = bytes.fromhex("0000000500000009 00000007 0002") + b"ab"
    entry = version + bytes(5)
    assert body_of(messages.Get(0x500000009, 7, b"ab")) == head
    assert body_of(messages.Write(0x500000009, 7, b"ab", entry)) == head + entry
    assert (
        body_of(messages.Commit(7, version, b"ab"))
        == bytes.fromhex("00000007") + version + b"\x00\x02ab"
    )


def test_entry_offsets() -> None:
    """time 0, client 8, counter 16, flags 20, then the expiry if there is one, then the value."""
    entry = messages.Entry(1, 2, 3, messages.EXPIRES | messages.COMMITTED, 4, b"v")
    assert encode_record(entry) == bytes.fromhex(
        "0000000000000001 0000000000000002 00000003 09 0000000000000004 76"
    )


@each_message
@some
@given(st.data())
def test_structs_agree_with_the_table(cls: type[Message], data: st.DataObject) -> None:
    """Packing a message's leading fields gives the beginning of what the codec makes."""
    message, request_id = data.draw(records(cls)), data.draw(request_ids)
    leading: list[Any] = []
    for field in fields_of(cls):
        value = getattr(message, field.name)
        if isinstance(field.wire_type, Integer | Fixed):
            leading.append(value)
            continue
        if isinstance(field.wire_type, Counted):
            leading.append(len(value))
        break
    frame = encode(message, request_id)
    header = (MAGIC_VERSION, cls.kind, 0, request_id, len(frame) - HEADER.size)
    fixed = frame_struct(cls)
    assert fixed.pack(*header, *leading) == frame[: fixed.size]
    assert body_struct(cls).pack(*leading) == frame[HEADER.size : fixed.size]


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("GET", messages.Get),
        ("WRITE", messages.Write),
        ("COMMIT", messages.Commit),
    ],
)
def test_named_structs_are_those_of_their_message(name: str, cls: type[Message]) -> None:
    """The hot path's structs and kinds were not mixed up."""
    fixed: struct.Struct = getattr(codec, f"{name}_FRAME")
    assert fixed.format == frame_struct(cls).format
    assert getattr(codec, name) == cls.kind
    body: struct.Struct | None = getattr(codec, f"{name}_BODY", None)
    assert body is None or body.format == body_struct(cls).format


@pytest.mark.parametrize("cls", [messages.Get, messages.Write], ids=["GET", "WRITE"])
def test_get_and_write_begin_with_a_routes_label(cls: type[Message]) -> None:
    """The label that a route packs once is list_epoch and partition, as the table orders them."""
    assert [field.name for field in fields_of(cls)][:3] == ["epoch", "partition", "key"]
    assert fixed_format(cls) == LABEL.format.removeprefix(">") + "H"


@each_message
@some
@given(request_ids, st.integers(0, 0xFFFFFFFF))
def test_header_words(cls: type[Message], request_id: int, length: int) -> None:
    """The header as three numbers is the header, with no flags set."""
    words = HEADER_WORDS.pack(head_word(cls.kind), request_id, length)
    assert words == HEADER.pack(MAGIC_VERSION, cls.kind, 0, request_id, length)


@many
@given(records(messages.Get), records(messages.Write), records(messages.Commit))
def test_hot_frames_built_by_hand(
    get: messages.Get, write: messages.Write, commit: messages.Commit
) -> None:
    """The fixed part in one pack, then the key and the entry as they are: the same frame."""
    frame = codec.GET_FRAME.pack(
        MAGIC_VERSION,
        codec.GET,
        0,
        5,
        codec.GET_BODY.size + len(get.key),
        get.epoch,
        get.partition,
        len(get.key),
    )
    assert frame + get.key == encode(get, 5)
    frame = codec.WRITE_FRAME.pack(
        MAGIC_VERSION,
        codec.WRITE,
        0,
        6,
        codec.WRITE_BODY.size + len(write.key) + len(write.entry),
        write.epoch,
        write.partition,
        len(write.key),
    )
    assert frame + write.key + write.entry == encode(write, 6)
    frame = codec.COMMIT_FRAME.pack(
        MAGIC_VERSION,
        codec.COMMIT,
        0,
        0,
        codec.COMMIT_BODY.size + len(commit.key),
        commit.partition,
        commit.version,
        len(commit.key),
    )
    assert frame + commit.key == encode(commit)


@pytest.mark.parametrize("request_id", [-1, 1 << 32])
def test_request_ids_have_32_bits(request_id: int) -> None:
    with pytest.raises(LocalProtocolError, match="no request id"):
        encode(messages.Ping(), request_id)


def test_rows_are_encoded_once() -> None:
    """What a RowEncoder returns is what encode does, also when a row has changed since."""
    encoder = RowEncoder()
    rows = [
        messages.Row(partition, 5, 5, (messages.Owner(1 + partition, 1, 5, 1),))
        for partition in range(3)
    ]
    for change in (0, 1, 1, 2):
        rows[change] = dataclasses.replace(rows[change], list_epoch=6 + change)
        for message in (
            messages.Map(9, tuple(rows)),
            messages.Map(9, ()),
            messages.MapUpdate(bytes(16), 9, tuple(rows[change:])),
        ):
            assert encoder.frame(message, 7) == encode(message, 7)
