"""explain.py, describe/, and the test vectors: what the document prints is what the codec does.

The vectors are read both ways, and whole, byte by byte and with more bytes behind.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtstore.errors import RemoteProtocolError
from gtstore.placement import HASH_FUNCTIONS, home_owners, partition_count
from gtstore.wire import messages
from gtstore.wire.codec import (
    BODY_SIZE_MAX,
    HEADER,
    Frame,
    decode,
    decode_entry,
    encode,
    encode_record,
    error_detail,
)
from gtstore.wire.describe import blocks
from gtstore.wire.describe.__main__ import DOCS, main
from gtstore.wire.describe.document import BLOCKS, TYPE_MEANINGS
from gtstore.wire.describe.examples import EXAMPLES
from gtstore.wire.explain import Header, explain
from gtstore.wire.fields import Integer, fields_of
from gtstore.wire.json_form import from_json, to_json
from gtstore.wire.stream import FrameBuffer

VECTORS = Path(__file__).parent / "vectors"
DOCUMENT = (DOCS / "PROTOCOL.md").read_text(encoding="utf-8")
NAMED = {cls.name: cls for cls in messages.MESSAGES.values()}
FRAMES = {kind: encode(message, number) for kind, (number, message) in EXAMPLES.items()}
WRITE = FRAMES[messages.Write.kind]


def load(name: str) -> list[Any]:
    vectors = json.loads((VECTORS / name).read_text(encoding="utf-8"))
    return [pytest.param(vector, id=str(i)) for i, vector in enumerate(vectors)]


def feed_whole(data: bytes) -> tuple[list[Frame], FrameBuffer]:
    buffer = FrameBuffer()
    return buffer.feed(data), buffer


def feed_bytewise(data: bytes) -> tuple[list[Frame], FrameBuffer]:
    buffer = FrameBuffer()
    frames = []
    for i in range(len(data)):
        frames += buffer.feed(data[i : i + 1])
    return frames, buffer


# --- messages.json -------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", load("messages.json"))
def test_message_vectors(vector: dict[str, Any]) -> None:
    """Each vector decodes to its fields, and its fields encode to its bytes."""
    data = bytes.fromhex(vector["hex"])
    frames, buffer = feed_whole(data)
    assert (buffer.error, buffer.size, len(frames)) == (None, 0, 1)
    assert feed_bytewise(data)[0] == frames
    assert feed_whole(data + data + data[:7])[0] == frames * 2
    assert feed_bytewise(data + b"\xc7")[0] == frames
    kind, flags, request_id, body = frames[0]
    message = decode(kind, body)
    assert (message.name, flags, request_id) == (vector["name"], 0, vector["request_id"])
    assert to_json(message) == vector["fields"]
    assert encode(from_json(NAMED[vector["name"]], vector["fields"]), request_id) == data
    assert not [line for line in explain(data) if line.startswith("wrong")]


def test_message_vectors_are_complete() -> None:
    """There are vectors of every message, of every record and of every code with fields."""
    vectors = [vector.values[0] for vector in load("messages.json")]
    assert {vector["name"] for vector in vectors} == set(NAMED)
    codes = {vector["fields"]["code"] for vector in vectors if vector["name"] == "ERROR"}
    assert codes >= {code for code, row in messages.ERRORS.items() if row.detail}
    frames = {vector["hex"] for vector in vectors}
    assert frames >= {frame.hex() for frame in FRAMES.values()}


# --- errors.json ---------------------------------------------------------------------------------


def error_of(frames: list[Frame], buffer: FrameBuffer) -> tuple[int, bool]:
    """The code that answers the bytes, and whether the connection is closed after it."""
    if buffer.error is not None:
        assert frames == []
        return buffer.error.error_code, buffer.error.closes
    ((kind, flags, _, body),) = frames
    if flags and kind in messages.MESSAGES:
        return messages.UNKNOWN_FLAGS, False
    with pytest.raises(RemoteProtocolError) as caught:
        decode(kind, body)
    return caught.value.error_code, caught.value.closes


@pytest.mark.parametrize("vector", load("errors.json"))
def test_error_vectors(vector: dict[str, Any]) -> None:
    """Bad bytes are answered with their code, however they arrive."""
    data = bytes.fromhex(vector["hex"])
    code, closes = error_of(*feed_whole(data))
    row = messages.ERRORS[code]
    assert (row.name, row.closes) == (vector["error"], closes)
    assert error_of(*feed_bytewise(data)) == (code, closes)
    if closes:
        assert error_of(*feed_whole(data + WRITE)) == (code, True)
    else:
        frames, buffer = feed_whole(data + WRITE)
        assert error_of(frames[:1], buffer) == (code, False)
        assert decode(frames[1][0], frames[1][3]) == EXAMPLES[messages.Write.kind][1]
    assert explain(data)[-1].startswith(f"wrong: {vector['error']}: ")


# --- placement.json ------------------------------------------------------------------------------


def check_placement(vector: dict[str, Any]) -> None:
    hash_code = next(code for code, name in messages.HASHES.items() if name == vector["hash"])
    value = HASH_FUNCTIONS[hash_code](bytes.fromhex(vector["key"]))
    partition = value % partition_count(vector["nodes"])
    owners = home_owners(partition, vector["nodes"], vector["replicas"])
    assert value == vector["value"]
    assert partition == vector["partition"]
    assert list(owners) == vector["owners"]


@pytest.mark.parametrize("vector", load("placement.json"))
def test_placement_vectors(vector: dict[str, Any]) -> None:
    """Every client places every key alike."""
    check_placement(vector)


def test_the_documents_placements() -> None:
    """The table of PROTOCOL.md section 10.1 holds too."""
    rows = re.findall(
        r"^\| (\d+) \| (\d+) \| `(\w+)` \| (\w+) \| (\d+) \| (\d+) \| ([\d ]+) \|$",
        DOCUMENT,
        re.MULTILINE,
    )
    assert len(rows) >= 8
    for nodes, replicas, key, hash_name, value, partition, owners in rows:
        check_placement(
            {
                "key": key,
                "hash": hash_name,
                "value": int(value),
                "nodes": int(nodes),
                "replicas": int(replicas),
                "partition": int(partition),
                "owners": [int(owner) for owner in owners.split()],
            }
        )


# --- the header ----------------------------------------------------------------------------------


def test_header_offsets() -> None:
    """Every offset of the header, in the table and in the codec."""
    offsets = {}
    at = 0
    for field in fields_of(Header):
        assert isinstance(field.wire_type, Integer)
        offsets[field.name] = (at, field.wire_type.size)
        at += field.wire_type.size
    assert offsets == {
        "magic": (0, 1),
        "version": (1, 1),
        "kind": (2, 1),
        "flags": (3, 1),
        "request_id": (4, 4),
        "length": (8, 4),
    }
    assert at == messages.HEADER_SIZE == HEADER.size == 12
    assert HEADER.pack(0x0102, 3, 4, 0x05060708, 0x090A0B0C) == bytes(range(1, 13))
    assert WRITE[:4] == bytes((messages.MAGIC, messages.PROTOCOL_VERSION, 0x11, 0))
    assert encode(messages.Ping(), 0xA0B0C0D0)[4:] == bytes.fromhex("a0b0c0d0 00000000")


# --- explain -------------------------------------------------------------------------------------

LINE = re.compile(r" *(\d+)  ((?:[0-9a-f]{2} ?){1,8})(?:  +(.*))?")


def bytes_of(lines: list[str]) -> bytes:
    """The bytes that explain's lines show; they must follow each other without gaps."""
    data = b""
    for line in lines:
        match = LINE.fullmatch(line)
        assert match, line
        assert int(match[1]) == len(data)
        data += bytes.fromhex(match[2])
    return data


def test_every_message_has_an_example() -> None:
    assert list(EXAMPLES) == list(messages.MESSAGES)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_explain_shows_every_byte(kind: int) -> None:
    """The lines hold the whole frame, and name every field of the message."""
    lines = explain(FRAMES[kind])
    assert bytes_of(lines) == FRAMES[kind]
    assert f"0x{kind:02x}: {messages.MESSAGES[kind].name}" in lines[2]
    text = "\n".join(lines)
    for field in fields_of(messages.MESSAGES[kind]):
        assert field.name in text


def test_explain_in_words() -> None:
    text = "\n".join(explain(FRAMES[messages.Cluster.kind]))
    assert "cluster 5eed0001, counter 1" in text
    assert "1700000000.000000 s since 1970" in text
    assert "1: additive" in text
    assert re.search(r"members\[2\]\.host +'127\.0\.0\.1'", text)
    error = explain(FRAMES[messages.Error.kind])
    assert error[6].endswith("12: STALE_EPOCH")
    assert "detail.row.owners[0].node" in "\n".join(error)


def test_explain_entry_flags() -> None:
    flags = messages.ORDERED | messages.EXPIRES | 0x40
    entry = encode_record(messages.Entry(1, 2, 3, flags, 5_000_001, b"\x00'x\xff"))
    text = "\n".join(explain(encode(messages.EntryReply(entry), 1)))
    assert "74: ordered, expires, unknown 64" in text
    assert re.search(r"entry\.expiry +5\.000001 s since 1970", text)
    assert "\\x00'x\\xff" in text
    assert re.search(r"\bepoch +0$", "\n".join(explain(encode(messages.Get(0, 0, b"k")))), re.M)


def test_explain_shortens_long_values() -> None:
    entry = encode_record(messages.Entry(1, 2, 3, 0, None, b"x" * 100_000))
    lines = explain(encode(messages.EntryReply(entry), 1))
    assert lines[-1] == "      ... 99,968 more bytes"
    assert "(100,000 bytes)" in lines[-5]
    assert len(lines) < 20


def test_explain_passes_over_later_fields_of_an_error() -> None:
    """PROTOCOL.md section 4: a later version may append fields to an error's detail."""
    busy = encode_record(messages.BusyDetail(7)) + b"\x01"
    lines = explain(encode(messages.Error(messages.BUSY, "", busy), 1))
    assert "detail.connections_max" in lines[-2]
    assert "more detail" in lines[-1]
    later = explain(encode(messages.Error(999, "", b"xy"), 1))
    assert later[6].endswith("999: unknown")
    assert later[-1].endswith("'xy'")


def test_explain_several_frames() -> None:
    lines = explain(WRITE + WRITE)
    assert bytes_of(lines) == WRITE + WRITE
    assert explain(WRITE + b"x")[-1].startswith("wrong: BAD_MAGIC: ")


@pytest.mark.parametrize(
    ("data", "shown", "wrong"),
    [
        (b"", 0, "wrong: 0 bytes; a header has 12"),
        (WRITE[:5], 0, "wrong: 5 bytes; a header has 12"),
        (WRITE[:12], 12, "wrong: the frame has 57 bytes; 12 are there"),
        (WRITE[:28], 26, "wrong: the frame has 57 bytes; 28 are there"),
        (WRITE[:-1], 56, "wrong: the frame has 57 bytes; 56 are there"),
        (b"\xc7\x02" + WRITE[2:], 12, "wrong: UNSUPPORTED_VERSION: "),
        (HEADER.pack(0xC701, 1, 0, 0, BODY_SIZE_MAX + 1), 12, "wrong: FRAME_TOO_LONG: "),
        (HEADER.pack(0xC701, 1, 0, 0, 1) + b"x", 12, "wrong: MALFORMED: 1 bytes after the end"),
    ],
)
def test_explain_says_what_is_wrong(data: bytes, shown: int, wrong: str) -> None:
    """What can be read is shown, and the last line says what is wrong."""
    lines = explain(data)
    assert lines[-1].startswith(wrong)
    assert bytes_of(lines[:-1]) == data[:shown]


@st.composite
def damaged_frames(draw: st.DrawFn) -> bytes:
    """An example with some bytes changed, cut off or added, so that the walk gets far."""
    data = bytearray(FRAMES[draw(st.sampled_from(sorted(FRAMES)))])
    for at in draw(st.lists(st.integers(0, len(data) - 1), max_size=3)):
        data[at] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))]) + draw(st.binary(max_size=4))


@given(
    st.one_of(
        st.binary(max_size=100),
        damaged_frames(),
        st.builds(
            lambda kind, body: HEADER.pack(0xC701, kind, 0, 1, len(body)) + body,
            st.sampled_from(sorted(messages.MESSAGES)),
            st.binary(max_size=80),
        ),
    )
)
def test_explain_never_raises(data: bytes) -> None:
    """On garbage the last line says what is wrong, exactly if the codec refuses it too."""
    lines = explain(data)
    assert lines
    assert not [line for line in lines[:-1] if line.startswith("wrong")]
    frames, buffer = feed_whole(data)
    is_good = bool(frames) and buffer.error is None and not buffer.size
    for kind, flags, _, body in frames:
        try:
            message = decode(kind, body)
            entry = getattr(message, "entry", None)
            if entry is not None and not isinstance(message, messages.Failed):
                decode_entry(entry)
            if isinstance(message, messages.Error):
                error_detail(message)
        except RemoteProtocolError:
            is_good = False
        is_good &= not flags
    assert lines[-1].startswith("wrong: ") != is_good


# --- the document --------------------------------------------------------------------------------


def test_the_document_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0
    assert capsys.readouterr().err == ""


def rewrite(text: str) -> tuple[str, list[str]]:
    return blocks.rewrite(text, BLOCKS)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A copy of the files."""
    for name in ("PROTOCOL.md", "gtstore.lua"):
        (tmp_path / name).write_bytes((DOCS / name).read_bytes())
    return tmp_path


def test_check_detects_a_difference(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--check names the block, says what differs, and changes nothing; without it, it is mended."""
    path = docs / "PROTOCOL.md"
    damaged = DOCUMENT.replace("| 9 | BUSY |", "| 9 | LAZY |")
    assert damaged != DOCUMENT
    path.write_text(damaged, encoding="utf-8")
    assert main(["--check"], docs) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("PROTOCOL.md: block 'errors' differs from the table: line ")
    assert "LAZY" in lines[0]
    assert path.read_text(encoding="utf-8") == damaged
    assert main([], docs) == 0
    assert path.read_text(encoding="utf-8") == DOCUMENT
    assert main(["--check"], docs) == 0


def test_check_looks_at_the_dissector_too(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = docs / "gtstore.lua"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("max = 500", "max = 400"), encoding="utf-8")
    assert main(["--check"], docs) == 1
    said = capsys.readouterr().err
    assert said.startswith("gtstore.lua: block 'tables' differs from the table: line ")
    assert main([], docs) == 0
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_is_checked(name: str) -> None:
    begin = f"<!-- generated: {name} -->\n"
    assert rewrite(DOCUMENT.replace(begin, begin + "more\n"))[0] == DOCUMENT
    wrong = rewrite(DOCUMENT.replace(begin, begin + "more\n"))[1]
    assert wrong == [f"block {name!r} differs from the table: line 1 is 'more', not ''"]
    assert rewrite(DOCUMENT.replace(begin, ""))[1] == [f"block {name!r} is missing"]


def test_a_shortened_block_differs() -> None:
    text = "<!-- generated: header -->\n\n<!-- end -->\n"
    assert rewrite(text)[1][0].startswith(
        "block 'header' differs from the table: line 2 is '<!-- end"
    )


def test_strange_blocks(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A block that nobody makes, or that has no end, is left as it is and named."""
    unknown = "<!-- generated: poems -->\nRoses\n<!-- end -->\n"
    text, wrong = rewrite(DOCUMENT + unknown)
    assert text == DOCUMENT + unknown
    assert wrong == ["block 'poems' is not known"]
    path = docs / "PROTOCOL.md"
    endless = "<!-- generated: limits -->\nmine"
    path.write_text(endless, encoding="utf-8")
    assert main([], docs) == 1
    assert path.read_text(encoding="utf-8") == endless
    assert "block 'limits' has no end" in capsys.readouterr().err


def test_the_document_prints_the_examples() -> None:
    """Section 7: the bytes in the document are those that the codec makes."""
    reference = DOCUMENT.split("<!-- generated: reference -->")[1].split("<!-- end -->")[0]
    blocks = re.findall(r"```\n(.*?)\n```\n\n`([0-9a-f]+)`", reference, re.DOTALL)
    assert {bytes_of(block.splitlines()) for block, _ in blocks} == set(FRAMES.values())
    assert {bytes.fromhex(line) for _, line in blocks} == set(FRAMES.values())
    assert len(blocks) == len(FRAMES)


def test_the_document_prints_vectors() -> None:
    """Section 12: the frames there are those of messages.json."""
    section = DOCUMENT.split("\n## 12 ")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.*) \| `([0-9a-f]+)` \|$", section, re.MULTILINE)
    vectors = json.loads((VECTORS / "messages.json").read_text(encoding="utf-8"))
    frames = {vector["description"]: vector["hex"] for vector in vectors}
    assert len(rows) > 5
    assert all(frames[description] == frame for description, frame in rows)


def test_links_of_the_document() -> None:
    """Every link within the document has a heading."""
    headings = re.findall(r"^#+ (.*)$", DOCUMENT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#([^)]*)\)", DOCUMENT))
    assert links <= anchors


def test_every_type_has_words() -> None:
    """No field's type is missing in section 2, and nothing is explained that is not used."""
    shown = set(re.findall(r"^\| `(\w+)` \|", "\n".join(BLOCKS["types"]()), re.MULTILINE))
    assert shown == set(TYPE_MEANINGS)
