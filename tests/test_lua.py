"""docs/gtstore.lua: the tables in it, and what tshark makes of the test vectors by them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from gtstore.wire import messages
from gtstore.wire.describe.__main__ import DOCS
from gtstore.wire.describe.lua import tables_block
from gtstore.wire.fields import fields_of

from .dissection import capture_of, dissect, fields_of_packets, needs_tshark

VECTORS = Path(__file__).parent / "vectors"
MESSAGES = json.loads((VECTORS / "messages.json").read_text())
ERRORS = json.loads((VECTORS / "errors.json").read_text())
FRAMES = [bytes.fromhex(vector["hex"]) for vector in MESSAGES]


def test_everything_of_the_table_is_there() -> None:
    """Each message, each field, each error, with its number."""
    tables = "\n".join(tables_block())
    for kind, cls in messages.MESSAGES.items():
        assert f'[0x{kind:02x}] = {{name = "{cls.name}"' in tables
        for field in fields_of(cls):
            assert f'name = "{field.name}", filter = "gtstore.{field.name}"' in tables
    for code, row in messages.ERRORS.items():
        assert f'[{code}] = {{name = "{row.name}"' in tables
    assert "\n".join(tables_block()) in (DOCS / "gtstore.lua").read_text()


def write(path: Path, *frames: bytes) -> Path:
    """A capture with a connection for each of these."""
    path.write_bytes(capture_of([frame] for frame in frames))
    return path


@needs_tshark
def test_the_vectors_are_dissected(tmp_path: Path) -> None:
    """Each is what it is; nothing is malformed, and nothing unknown but what is meant to be."""
    capture = write(tmp_path / "vectors.pcap", *FRAMES)
    names = (
        "gtstore.header.kind",
        "gtstore.header.request_id",
        "gtstore.key",
        "gtstore.entry.value",
    )
    packets = fields_of_packets(capture, "tcp.stream", *names)
    assert len(packets) == len(FRAMES)
    for packet, vector in zip(packets, MESSAGES, strict=True):
        frame = bytes.fromhex(vector["hex"])
        assert packet["gtstore.header.kind"] == [f"0x{frame[2]:02x}"]
        assert packet["gtstore.header.request_id"] == [str(vector["request_id"])]
        key = vector["fields"].get("key")
        if key and bytes.fromhex(key).isalnum():
            assert packet["gtstore.key"] == [bytes.fromhex(key).decode()]
        entry = vector["fields"].get("entry")
        if isinstance(entry, dict) and entry["value"]:
            assert packet["gtstore.entry.value"] == [entry["value"]]
    assert dissect(capture, "-Y", "gtstore.malformed") == ""
    strange = fields_of_packets(capture, "gtstore.code", only="gtstore.unknown")
    assert [packet["gtstore.code"] for packet in strange] == [["65535"]]


@needs_tshark
def test_bad_frames_are_marked(tmp_path: Path) -> None:
    """Each that a node would refuse."""
    frames = [bytes.fromhex(vector["hex"]) for vector in ERRORS]
    capture = write(tmp_path / "errors.pcap", *frames)
    marked = fields_of_packets(capture, "tcp.stream", only="gtstore.malformed or gtstore.unknown")
    found = {int(packet["tcp.stream"][0]) for packet in marked}
    for number, vector in enumerate(ERRORS):
        is_whole = len(bytes.fromhex(vector["hex"])) >= 12
        if is_whole and vector["error"] != "BAD_MAGIC":
            assert number in found, vector["description"]


@needs_tshark
def test_frames_over_segments(tmp_path: Path) -> None:
    """Cut anywhere, several in one packet, on a port that is none of the store's."""
    stream = b"".join(FRAMES)
    cuts = random.Random(5)
    parts, at = [], 0
    while at < len(stream):
        size = cuts.choice((1, 5, 11, 12, 13, 100, 1000))
        parts.append(stream[at : at + size])
        at += size
    large = messages.HEADER_SIZE * b"\0" + bytes(400_000)
    large = FRAMES[0][:2] + b"\x90" + FRAMES[0][3:8] + (400_000).to_bytes(4, "big") + large[12:]
    capture = tmp_path / "segments.pcap"
    capture.write_bytes(capture_of([[stream], parts, [large], [FRAMES[-1], *parts]]))
    for ports in ((10001,), (9,)):  # the second time by how they begin
        packets = fields_of_packets(capture, "tcp.stream", "gtstore.header.kind", ports=ports)
        kinds: dict[str, list[str]] = {}
        for packet in packets:
            whole = packet.get("gtstore.header.kind", [])  # none in a packet that only begins one
            kinds.setdefault(packet["tcp.stream"][0], []).extend(whole)
        expected = [f"0x{frame[2]:02x}" for frame in FRAMES]
        assert kinds["0"] == expected
        assert kinds["2"] == ["0x90"]
        assert kinds["3"] == [expected[-1], *expected]
        if ports == (10001,):
            assert kinds["1"] == expected
    assert dissect(capture, "-Y", "gtstore.malformed") == ""


@needs_tshark
def test_mutations_do_no_harm(tmp_path: Path) -> None:
    """Whatever the bytes, the dissector ends, and without an error of its own."""
    chance = random.Random(11)
    mutants = []
    for _ in range(3000):
        frame = bytearray(chance.choice(FRAMES))
        for _ in range(chance.randint(1, 4)):
            frame[chance.randrange(2, len(frame))] = chance.choice(
                (0, 1, 127, 255, chance.randrange(256))
            )
        mutants.append(
            bytes(frame[: chance.choice((len(frame), chance.randrange(1, len(frame) + 1)))])
        )
    capture = write(tmp_path / "mutants.pcap", *mutants)
    assert dissect(capture, "-T", "fields", "-e", "frame.number").count("\n") == 3000
    dissect(capture, "-V")


@needs_tshark
def test_tokens_are_not_shown(tmp_path: Path) -> None:
    register = next(frame for frame in FRAMES if frame[2] == messages.Register.kind)
    printed = dissect(write(tmp_path / "token.pcap", register), "-V")
    assert "a secret" in printed
    assert "a0a1a2a3" not in printed.replace(":", "")
