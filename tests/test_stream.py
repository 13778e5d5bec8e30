"""Cutting a stream of bytes into frames: any pieces, any garbage, any length."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gtstore.wire.codec import BODY_SIZE_MAX, HEADER, MAGIC_VERSION, Frame
from gtstore.wire.messages import (
    BAD_MAGIC,
    ERRORS,
    FRAME_TOO_LONG,
    KIB,
    MAGIC,
    MIB,
    PROTOCOL_VERSION,
    UNSUPPORTED_VERSION,
    SizeDetail,
    VersionDetail,
)
from gtstore.wire.stream import RECEIVE_SIZE, FrameBuffer

quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])

HEADER_SIZE = HEADER.size

frames = st.tuples(
    st.integers(0, 255), st.integers(0, 255), st.integers(0, 0xFFFFFFFF), st.binary(max_size=40)
)
bad_headers = st.one_of(
    st.binary(min_size=HEADER_SIZE, max_size=HEADER_SIZE).filter(lambda data: data[0] != MAGIC),
    st.integers(0, 255)
    .filter(lambda version: version != PROTOCOL_VERSION)
    .map(lambda version: bytes([MAGIC, version]) + bytes(10)),
    st.integers(BODY_SIZE_MAX + 1, 0xFFFFFFFF).map(lambda length: header(length)),
)


def header(length: int) -> bytes:
    return HEADER.pack(MAGIC_VERSION, 1, 0, 7, length)


def to_bytes(sent: Iterable[Frame]) -> bytes:
    return b"".join(
        HEADER.pack(MAGIC_VERSION, kind, flags, request_id, len(body)) + body
        for kind, flags, request_id, body in sent
    )


@st.composite
def pieces_of(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The bytes, cut at any places; some pieces may be empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def feed_all(buffer: FrameBuffer, pieces: Iterable[bytes]) -> list[Frame]:
    """Feed the pieces; at each step no more is kept than was fed and not given back."""
    out: list[Frame] = []
    fed = given_back = 0
    for piece in pieces:
        fed += len(piece)
        for frame in buffer.feed(piece):
            given_back += HEADER_SIZE + len(frame[3])
            out.append(frame)
        assert RECEIVE_SIZE <= buffer.receive_size <= MIB
        if buffer.error is None:
            assert buffer.size == fed - given_back
    return out


def error_code(buffer: FrameBuffer) -> int | None:
    return None if buffer.error is None else buffer.error.error_code


def parse(data: bytes) -> tuple[list[Frame], int | None]:
    """A deliberately dumb second version: the frames of a whole stream, and what is wrong then."""
    out: list[Frame] = []
    while data:
        if data[0] != MAGIC:
            return out, BAD_MAGIC
        if len(data) < HEADER_SIZE:
            return out, None
        if data[1] != PROTOCOL_VERSION:
            return out, UNSUPPORTED_VERSION
        length = int.from_bytes(data[8:12], "big")
        if length > BODY_SIZE_MAX:
            return out, FRAME_TOO_LONG
        if len(data) < HEADER_SIZE + length:
            return out, None
        request_id = int.from_bytes(data[4:8], "big")
        out.append((data[2], data[3], request_id, data[HEADER_SIZE : HEADER_SIZE + length]))
        data = data[HEADER_SIZE + length :]
    return out, None


# --- whole frames --------------------------------------------------------------------------------


@quick
@given(st.lists(frames, max_size=6), st.data())
def test_frames_come_out_however_the_stream_is_cut(sent: list[Frame], data: st.DataObject) -> None:
    """The pieces in which bytes arrive do not matter, and nothing is left over."""
    buffer = FrameBuffer()
    assert feed_all(buffer, data.draw(pieces_of(to_bytes(sent)))) == sent
    assert buffer.error is None
    assert buffer.size == 0


@quick
@given(st.lists(frames, max_size=4))
def test_frames_come_out_byte_by_byte(sent: list[Frame]) -> None:
    """A frame comes out with its last byte, not before and not later."""
    buffer = FrameBuffer()
    for frame in sent:
        *first, last = to_bytes([frame])
        assert feed_all(buffer, (bytes([byte]) for byte in first)) == []
        assert buffer.feed(bytes([last])) == [frame]
        assert buffer.size == 0


@quick
@given(st.lists(frames, max_size=4), frames, st.data())
def test_a_frame_that_is_not_whole_yet(
    sent: list[Frame], begun: Frame, data: st.DataObject
) -> None:
    """The frames before it come out, its bytes are kept, and it comes out once it is whole."""
    whole = to_bytes([begun])
    cut = data.draw(st.integers(1, len(whole) - 1))
    buffer = FrameBuffer()
    assert buffer.feed(to_bytes(sent) + whole[:cut]) == sent
    assert buffer.size == cut
    assert buffer.feed(whole[cut:]) == [begun]
    assert buffer.size == 0


def test_nothing_fed_is_nothing_said() -> None:
    """No bytes are no frame, at the start and within one."""
    buffer = FrameBuffer()
    assert buffer.feed(b"") == []
    assert buffer.feed(header(1)) == []
    assert buffer.feed(b"") == []
    assert buffer.feed(b"x") == [(1, 0, 7, b"x")]


# --- garbage -------------------------------------------------------------------------------------


@quick
@given(st.lists(frames, max_size=3), bad_headers, st.binary(max_size=30), st.data())
def test_frames_before_the_bad_one_come_out(
    sent: list[Frame], bad: bytes, after: bytes, data: st.DataObject
) -> None:
    """Then ``error`` says what was wrong, and nothing more comes out, not even good frames."""
    stream = to_bytes(sent) + bad + after + to_bytes([(1, 0, 1, b"")])
    buffer = FrameBuffer()
    assert feed_all(buffer, data.draw(pieces_of(stream))) == sent
    assert buffer.error is not None
    assert buffer.error.closes
    assert error_code(buffer) == parse(stream)[1]
    assert ERRORS[buffer.error.error_code].closes
    assert buffer.feed(to_bytes([(1, 0, 1, b"")])) == []


@quick
@given(
    st.lists(
        st.one_of(st.binary(max_size=20), frames.map(lambda f: to_bytes([f])), st.just(header(9)))
    ),
    st.data(),
)
def test_any_bytes_at_all(parts: list[bytes], data: st.DataObject) -> None:
    """Nothing is raised, and a dumb parser of the whole stream sees the same."""
    stream = b"".join(parts) + header(0)  # so that no header is cut short at the end
    buffer = FrameBuffer()
    out = feed_all(buffer, data.draw(pieces_of(stream)))
    assert (out, error_code(buffer)) == parse(stream)


@pytest.mark.parametrize("first", [0, 1, ord("G"), MAGIC - 1, MAGIC + 1, 255])
def test_garbage_shorter_than_a_header_is_refused_at_once(first: int) -> None:
    """Its sender may wait for an answer before it sends more."""
    buffer = FrameBuffer()
    assert buffer.feed(bytes([first])) == []
    assert error_code(buffer) == BAD_MAGIC
    assert f"0x{first:02x}" in str(buffer.error)


@pytest.mark.parametrize("size", range(1, HEADER_SIZE))
def test_the_beginning_of_a_header_is_no_garbage(size: int) -> None:
    """A good header may come in two pieces."""
    buffer = FrameBuffer()
    assert buffer.feed(header(0)[:size]) == []
    assert buffer.error is None
    assert buffer.feed(header(0)[size:]) == [(1, 0, 7, b"")]


@pytest.mark.parametrize("version", [0, 2, 255])
@pytest.mark.parametrize("size", [2, HEADER_SIZE, 100])
def test_unknown_version(version: int, size: int) -> None:
    """The error says which version is spoken here."""
    buffer = FrameBuffer()
    assert buffer.feed(bytes([MAGIC, version]) + bytes(size - 2)) == []
    assert buffer.error is not None
    assert error_code(buffer) == UNSUPPORTED_VERSION
    assert buffer.error.detail == VersionDetail(PROTOCOL_VERSION)
    assert buffer.error.closes


def test_the_first_error_stays() -> None:
    """What follows garbage does not change what was said of it."""
    buffer = FrameBuffer()
    buffer.feed(b"GET / HTTP/1.1\r\n")
    first = buffer.error
    assert buffer.feed(header(0xFFFFFFFF)) == []
    assert buffer.error is first


# --- lengths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [BODY_SIZE_MAX + 1, 1 << 31, 4294967295])
def test_lengths_beyond_the_limit(length: int) -> None:
    """The header alone is enough to refuse the frame."""
    buffer = FrameBuffer()
    assert buffer.feed(header(length)) == []
    assert buffer.error is not None
    assert error_code(buffer) == FRAME_TOO_LONG
    assert buffer.error.detail == SizeDetail(BODY_SIZE_MAX)
    assert str(length) in str(buffer.error)


@pytest.mark.parametrize("length", [0, 1])
def test_the_shortest_lengths(length: int) -> None:
    """An empty body and one byte are frames like others."""
    buffer = FrameBuffer()
    assert buffer.feed(header(length) + bytes(length)) == [(1, 0, 7, bytes(length))]
    assert buffer.error is None


def test_the_longest_length() -> None:
    """A body as long as the limit comes out, and meanwhile the socket is asked for more at once."""
    buffer = FrameBuffer()
    assert buffer.feed(header(BODY_SIZE_MAX)) == []
    assert buffer.receive_size == MIB
    missing = BODY_SIZE_MAX
    out: list[Frame] = []
    while missing:
        assert out == []
        assert buffer.receive_size == min(max(missing, RECEIVE_SIZE), MIB)
        piece = bytes(min(missing, buffer.receive_size))
        missing -= len(piece)
        out = buffer.feed(piece)
    assert out == [(1, 0, 7, bytes(BODY_SIZE_MAX))]
    assert buffer.receive_size == RECEIVE_SIZE


def test_no_memory_is_taken_for_an_announced_length() -> None:
    """A header that announces 16 MiB costs its sender's bytes and no more."""
    buffer = FrameBuffer()
    stream = header(BODY_SIZE_MAX) + bytes(1000)
    tracemalloc.start()
    try:
        buffer.feed(stream)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * KIB
    assert buffer.size == len(stream)


def test_receive_size_without_a_long_frame() -> None:
    """A short frame under way, or none, asks for the usual size."""
    buffer = FrameBuffer()
    assert buffer.receive_size == RECEIVE_SIZE
    buffer.feed(header(RECEIVE_SIZE))
    assert buffer.receive_size == RECEIVE_SIZE
    buffer.feed(bytes(RECEIVE_SIZE) + header(RECEIVE_SIZE + 1))
    assert buffer.receive_size == RECEIVE_SIZE + 1
    buffer.feed(bytes(RECEIVE_SIZE + 1))
    assert buffer.receive_size == RECEIVE_SIZE
