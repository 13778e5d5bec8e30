"""The types of a field, one by one: what they put, what they take, what they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from gtstore.errors import LocalProtocolError, RemoteProtocolError
from gtstore.wire import fields
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

U8 = Integer("u8", "B")
U16 = Integer("u16", "H")
INTEGERS = (U8, U16, Integer("u32", "I"), Integer("u64", "Q"))
KEY = Counted("key", U16, 1, 500)
TEXT = Characters("text", U16, 1000)


@dataclass(frozen=True)
class Point:
    """A record of three bytes."""

    x: Annotated[int, U16, "across"]
    y: Annotated[int, U8, "down"]


POINT = Record(Point)
POINTS = Array(U8, POINT)


def put(wire_type: WireType, value: Any, values: Mapping[str, Any] | None = None) -> bytes:
    out = bytearray()
    wire_type.put(value, out, values or {})
    return bytes(out)


def take(wire_type: WireType, body: bytes, at: int = 0, **values: Any) -> tuple[Any, int]:
    return wire_type.take(body, at, values)


def refused(wire_type: WireType, body: bytes, at: int = 0, **values: Any) -> bool:
    """Whether the bytes are refused as MALFORMED."""
    with pytest.raises(RemoteProtocolError) as caught:
        take(wire_type, body, at, **values)
    return caught.value.error_code == MALFORMED and not caught.value.closes


@pytest.mark.parametrize("wire_type", INTEGERS, ids=lambda wire_type: wire_type.name)
def test_an_integer_is_unsigned_and_big_endian(wire_type: Integer) -> None:
    """The lowest and the highest number, and one whose bytes all differ, stand as expected."""
    size = wire_type.size
    distinct = bytes(range(1, size + 1))
    assert put(wire_type, 0) == bytes(size)
    assert put(wire_type, 256**size - 1) == b"\xff" * size
    assert put(wire_type, int.from_bytes(distinct, "big")) == distinct
    assert take(wire_type, b"?" + distinct + b"?", 1) == (
        int.from_bytes(distinct, "big"),
        1 + size,
    )


def test_integer_sizes() -> None:
    """u8, u16, u32 and u64 have 1, 2, 4 and 8 bytes."""
    assert [wire_type.size for wire_type in INTEGERS] == [1, 2, 4, 8]


@pytest.mark.parametrize("wire_type", INTEGERS, ids=lambda wire_type: wire_type.name)
@pytest.mark.parametrize("illegal", [-1, "too big", None, 1.5, "1"])
def test_what_is_no_such_integer_is_not_sent(wire_type: Integer, illegal: Any) -> None:
    """A number that does not fit its field, or no number at all, is our own mistake."""
    value = 256**wire_type.size if illegal == "too big" else illegal
    with pytest.raises(LocalProtocolError, match=wire_type.name):
        put(wire_type, value)


@pytest.mark.parametrize("wire_type", [*INTEGERS, Fixed("token", 16)], ids=lambda t: t.name)
def test_a_field_of_fixed_size_must_be_whole(wire_type: Integer | Fixed) -> None:
    """A body that ends within the field is malformed, wherever it ends."""
    for size in range(wire_type.size):
        assert refused(wire_type, bytes(3 + size), 3)


def test_a_fixed_field_takes_its_size_and_no_other() -> None:
    """A token has 16 bytes."""
    token = bytes(range(16))
    assert put(Fixed("token", 16), token) == token
    assert take(Fixed("token", 16), b"??" + token + b"?", 2) == (token, 18)
    for size in (0, 15, 17):
        with pytest.raises(LocalProtocolError, match="a token has 16 bytes"):
            put(Fixed("token", 16), bytes(size))


def test_a_counted_field_says_its_length_first() -> None:
    """The length stands before the bytes, and the offset behind them comes back."""
    assert put(KEY, b"key1") == b"\x00\x04key1"
    assert take(KEY, b"?\x00\x04key1?", 1) == (b"key1", 7)


@pytest.mark.parametrize("size", [1, 499, 500])
def test_counted_sizes_within_the_limits(size: int) -> None:
    """Both limits are legal."""
    assert take(KEY, put(KEY, bytes(size))) == (bytes(size), 2 + size)


@pytest.mark.parametrize("size", [0, 501])
def test_counted_sizes_beyond_the_limits(size: int) -> None:
    """A size beyond a limit is neither sent nor believed, though the bytes be there."""
    with pytest.raises(LocalProtocolError, match="1 to 500 bytes"):
        put(KEY, bytes(size))
    assert refused(KEY, size.to_bytes(2, "big") + bytes(size))


def test_a_counted_field_must_be_whole() -> None:
    """A length that leaves the body is malformed, and so is half a length."""
    whole = put(KEY, b"key1")
    for size in range(len(whole)):
        assert refused(KEY, whole[:size])


@pytest.mark.parametrize(
    "text", ["", "why", "Gr\u00fc\u00dfe", "\u65e5\u672c", "\U0001f600", "a\x00b\n"]
)
def test_text_is_utf8_with_its_length_in_bytes(text: str) -> None:
    """The length counts bytes, not characters, and the text comes back as it was."""
    data = text.encode()
    assert put(TEXT, text) == len(data).to_bytes(2, "big") + data
    assert take(TEXT, put(TEXT, text)) == (text, 2 + len(data))


def test_text_that_is_too_long_is_cut() -> None:
    """A message to a person is never refused: it is cut, within a character if need be."""
    assert take(TEXT, put(TEXT, "x" * 1001))[0] == "x" * 1000
    assert (
        take(TEXT, put(TEXT, "x" + "é" * 500))[0] == "x" + "é" * 499 + "\N{REPLACEMENT CHARACTER}"
    )


def test_text_that_is_no_utf8() -> None:
    """What is no UTF-8 is replaced when it comes in, and escaped when it goes out."""
    assert take(TEXT, b"\x00\x03a\xffb")[0] == "a\N{REPLACEMENT CHARACTER}b"
    assert put(TEXT, "a\udcff") == b"\x00\x07a\\udcff"


def test_text_that_is_too_long_on_the_wire() -> None:
    """The limit holds for the other side's texts too."""
    assert refused(TEXT, b"\x03\xe9" + b"x" * 1001)
    assert refused(TEXT, b"\x00\x02x")


def test_rest_reaches_to_the_end() -> None:
    """The rest is everything that is left, and may be nothing unless it has a least size."""
    assert take(Rest("bytes"), b"??value", 2) == (b"value", 7)
    assert take(Rest("bytes"), b"??", 2) == (b"", 2)
    assert put(Rest("bytes"), b"") == b""
    assert put(Rest("entry", 3), b"abc") == b"abc"
    assert take(Rest("entry", 3), b"abc") == (b"abc", 3)


def test_rest_that_is_too_short() -> None:
    """An entry has at least its head."""
    with pytest.raises(LocalProtocolError, match="at least 3 bytes, not 2"):
        put(Rest("entry", 3), b"ab")
    assert refused(Rest("entry", 3), b"?ab", 1)


def test_a_field_that_is_there_only_with_its_flag() -> None:
    """With the flag it stands there, without the flag it is None and takes no bytes."""
    expiry = IfFlag(8, U16)
    assert put(expiry, 258, {"flags": 8}) == b"\x01\x02"
    assert put(expiry, None, {"flags": 7}) == b""
    assert take(expiry, b"\x01\x02", flags=15) == (258, 2)
    assert take(expiry, b"\x01\x02", flags=7) == (None, 0)
    assert refused(expiry, b"\x01", flags=8)


@pytest.mark.parametrize(("value", "flags"), [(None, 8), (0, 0), (1, 7)])
def test_a_field_and_its_flag_go_together(value: int | None, flags: int) -> None:
    """Neither is sent without the other, not even a zero."""
    with pytest.raises(LocalProtocolError, match="flag 8 go together"):
        put(IfFlag(8, U16), value, {"flags": flags})


def test_a_record_is_its_fields_in_order() -> None:
    """Nothing stands between, before or after the fields."""
    assert put(POINT, Point(1, 2)) == b"\x00\x01\x02"
    assert take(POINT, b"?\x00\x01\x02?", 1) == (Point(1, 2), 4)
    assert refused(POINT, b"\x00\x01")


def test_an_array_says_its_count_first() -> None:
    """It comes back as a tuple; none at all is legal."""
    assert put(POINTS, (Point(1, 2), Point(3, 4))) == b"\x02\x00\x01\x02\x00\x03\x04"
    assert take(POINTS, b"\x02\x00\x01\x02\x00\x03\x04") == ((Point(1, 2), Point(3, 4)), 7)
    assert take(POINTS, put(POINTS, ())) == ((), 1)


def test_an_array_with_more_than_its_count_can_say() -> None:
    """255 are the most that a count of one byte can say."""
    assert len(put(POINTS, (Point(0, 0),) * 255)) == 1 + 255 * 3
    with pytest.raises(LocalProtocolError, match="u8"):
        put(POINTS, (Point(0, 0),) * 256)


def test_a_count_that_lies_runs_into_the_end_of_the_body() -> None:
    """Nothing is set aside for four thousand million records that are not there."""
    many = Array(Integer("u32", "I"), POINT)
    assert refused(many, b"\xff\xff\xff\xff" + b"\x00\x01\x02" * 2)


def test_names_in_the_document() -> None:
    """A type that is made of others says so in its name."""
    assert IfFlag(8, U16).name == "u16, if flag 8"
    assert POINT.name == "point"
    assert POINTS.name == "u8 count, then each point"


def test_fields_are_the_annotated_ones() -> None:
    """What is not annotated with a wire type does not go over the wire."""

    class Mixed:
        kind: int
        x: Annotated[int, fields._U16, "across"]

    Mixed.__annotations__ = {"kind": int, "x": Annotated[int, U16, "across"]}
    (only,) = fields_of(Mixed)
    assert (only.name, only.wire_type, only.meaning) == ("x", U16, "across")
    assert [field.name for field in fields_of(Point)] == ["x", "y"]
