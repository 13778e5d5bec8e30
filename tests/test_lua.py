"""docs/gtstore.lua: the tables in it, and what tshark makes of the test vectors by them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from gtstore.wire import messages
from gtstore.wire.codec import encode, encode_record
from gtstore.wire.describe.__main__ import DOCS
from gtstore.wire.describe.lua import tables_block
from gtstore.wire.fields import fields_of

from .dissection import Reply, capture_of, dissect, fields_of_packets, needs_tshark

VECTORS = Path(__file__).parent / "vectors"
MESSAGES = json.loads((VECTORS / "messages.json").read_text())
ERRORS = json.loads((VECTORS / "errors.json").read_text())
FRAMES = [bytes.fromhex(vector["hex"]) for vector in MESSAGES]
EPOCH = 1 << 32 | 1
ENTRY = encode_record(messages.Entry(1_700_000_000_000_000, 5, 1, 0, None, b"v" * 400))
WRITE = encode(messages.Write(EPOCH, 186, b"key1", ENTRY), 3)
ACK = encode(messages.Ack(), 3)


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
        assert number in found, vector["description"]
    assert "cut" not in dissect(capture, "-V")


@needs_tshark
def test_short_garbage_is_marked(tmp_path: Path) -> None:
    """What is no frame is marked from its first byte on, also after a frame in the same packet."""
    capture = tmp_path / "garbage.pcap"
    streams = [[b"G"], [b"GET / HTTP"], [b"\xc7\x02"], [WRITE + b"G"], [WRITE, b"\r\n"]]
    capture.write_bytes(capture_of(streams))
    marked = fields_of_packets(capture, "tcp.stream", only="gtstore.malformed")
    assert [packet["tcp.stream"] for packet in marked] == [["0"], ["1"], ["2"], ["3"], ["4"]]
    kinds = fields_of_packets(capture, "gtstore.header.kind", only="gtstore.header.kind")
    assert kinds == [{"gtstore.header.kind": ["0x11"]}] * 2
    assert "WRITE 3 'key1'  this is no frame" in dissect(capture)


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
        assert kinds["1"] == expected
    assert dissect(capture, "-Y", "gtstore.malformed") == ""


@needs_tshark
def test_mutations_do_no_harm(tmp_path: Path) -> None:
    """Whatever the bytes, cut or not, the dissector ends, and without an error of its own."""
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
    capture.write_bytes(capture_of(([mutant] for mutant in mutants), 40 + 33))
    assert dissect(capture, "-2", "-T", "fields", "-e", "frame.number").count("\n") == 3000
    dissect(capture, "-V")


@needs_tshark
def test_tokens_are_not_shown(tmp_path: Path) -> None:
    register = next(frame for frame in FRAMES if frame[2] == messages.Register.kind)
    printed = dissect(write(tmp_path / "token.pcap", register), "-V")
    assert "a secret" in printed
    assert "a0a1a2a3" not in printed.replace(":", "")


@needs_tshark
def test_a_first_frame_in_pieces_on_any_port(tmp_path: Path) -> None:
    """Four bytes are enough to recognise a connection by; what comes later of the frame is asked
    for, and what follows the frame is taken for frames too."""
    capture = tmp_path / "pieces.pcap"
    pieces = [WRITE[:4], WRITE[4:11], WRITE[11:100], WRITE[100:], Reply(ACK[:5]), Reply(ACK[5:])]
    others = [[b"\xc7\x01\x00\x00", WRITE[4:]], [WRITE[:3] + b"\1", WRITE[4:]], [b"POST"]]
    capture.write_bytes(capture_of([pieces, *others, [WRITE, b"garbage"]]))
    for options in ((), ("-2",)):
        packets = fields_of_packets(
            capture,
            "tcp.stream",
            "gtstore.header.kind",
            "gtstore.entry.value",
            "gtstore.malformed",
            ports=(9,),
            options=options,
        )
        write = {"gtstore.header.kind": ["0x11"], "gtstore.entry.value": [(b"v" * 400).hex()]}
        ack = {"gtstore.header.kind": ["0x92"]}
        first, last = {"tcp.stream": ["0"]}, {"tcp.stream": ["4"]}
        assert [first | write, first | ack, last | write] == packets[:-1]
        assert packets[-1].keys() == {"tcp.stream", "gtstore.malformed"}


@needs_tshark
def test_cut_captures(tmp_path: Path) -> None:
    """Whatever was cut off: what is there is shown, and nothing is called malformed."""
    capture = tmp_path / "cut.pcap"
    streams = [[WRITE, Reply(ACK)], *([frame] for frame in FRAMES)]
    names = ("tcp.stream", "gtstore.cut", "gtstore.malformed")
    for snap in (41, 43, 44, 51, 52, 53, 57, 60, 64, 65, 66, 70, 80, 96, 200):
        capture.write_bytes(capture_of(streams, snap))
        packets = fields_of_packets(capture, *names)[2:]
        assert len(packets) == len(FRAMES)
        for packet, frame in zip(packets, FRAMES, strict=True):
            assert "gtstore.malformed" not in packet
            assert ("gtstore.cut" in packet) == (40 + len(frame) > snap), (snap, frame)


@needs_tshark
def test_what_is_there_of_a_cut_frame(tmp_path: Path) -> None:
    """Fields up to the cut, the beginning of the one that is cut, and the link with the reply; on
    any port, as in a whole capture."""
    capture = tmp_path / "cut.pcap"
    capture.write_bytes(capture_of([[WRITE, Reply(ACK)]], 40 + 100))
    names = ("gtstore.key", "gtstore.entry.time", "gtstore.entry.value", "gtstore.response_to")
    head = WRITE[: -len(b"v" * 400)]
    for ports in ((10001,), (9,)):
        write, ack = fields_of_packets(capture, *names, ports=ports)
        assert write["gtstore.key"] == ["key1"]
        assert write["gtstore.entry.time"] == ["Nov 14, 2023 22:13:20.000000000 UTC"]
        assert write["gtstore.entry.value"] == [(b"v" * (100 - len(head))).hex()]
        assert ack["gtstore.response_to"] == ["1"]
    assert "WRITE 3 'key1' (cut)" in dissect(capture)


@needs_tshark
def test_what_follows_a_cut(tmp_path: Path) -> None:
    """The rest of a frame whose beginning is cut off is called that, not malformed; then frames are
    read as before. What came earlier, or from the other side, is garbage."""
    capture = tmp_path / "cut.pcap"
    garbage = b"garbage"
    stream = [garbage, WRITE[:200], WRITE[200:400], WRITE[400:], WRITE[:60], Reply(garbage)]
    capture.write_bytes(capture_of([[*stream, WRITE[60:], FRAMES[0]]], 40 + 70))
    numbers = {
        name: [
            packet["frame.number"][0]
            for packet in fields_of_packets(capture, "frame.number", only=name, options=("-2",))
        ]
        for name in ("gtstore.cut", "gtstore.malformed")
    }
    assert numbers == {"gtstore.cut": ["2", "3", "4", "7"], "gtstore.malformed": ["1", "6"]}
    whole = fields_of_packets(capture, "gtstore.header.kind", only="!gtstore.cut")
    assert whole[-1] == {"gtstore.header.kind": [f"0x{FRAMES[0][2]:02x}"]}


@needs_tshark
def test_without_reassembly(tmp_path: Path) -> None:
    """If Wireshark is told to put nothing together, each packet shows what it has of a frame."""
    capture = tmp_path / "pieces.pcap"
    capture.write_bytes(capture_of([[WRITE[:100], WRITE[100:], Reply(ACK)]]))
    alone = ("-o", "tcp.desegment_tcp_streams:FALSE")
    packets = fields_of_packets(capture, "gtstore.header.kind", options=alone)
    assert packets == [{"gtstore.header.kind": ["0x11"]}, {}, {"gtstore.header.kind": ["0x92"]}]
    assert dissect(capture, "-Y", "gtstore.malformed", *alone) == ""


@needs_tshark
def test_replies_are_linked(tmp_path: Path) -> None:
    """In one pass and in two; the same request ids on another connection are others."""
    capture = tmp_path / "linked.pcap"
    ping, pong = encode(messages.Ping(), 4), encode(messages.Adopted(EPOCH), 4)
    capture.write_bytes(capture_of([[WRITE + ping, Reply(pong), Reply(ACK)], [ping, Reply(pong)]]))
    names = ("response_in", "response_to", "response_time")
    filters = [f"gtstore.{name}" for name in names]
    one_pass = fields_of_packets(capture, *filters)
    two_passes = fields_of_packets(capture, *filters, options=("-2",))
    replies = [
        {"gtstore.response_to": ["1"], "gtstore.response_time": ["0.001000000"]},
        {"gtstore.response_to": ["1"], "gtstore.response_time": ["0.002000000"]},
        {"gtstore.response_to": ["4"], "gtstore.response_time": ["0.001000000"]},
    ]
    assert [packet for packet in one_pass if packet] == replies
    assert two_passes == [
        {"gtstore.response_in": ["3", "2"]},
        *replies[:2],
        {"gtstore.response_in": ["5"]},
        replies[2],
    ]


@needs_tshark
def test_texts(tmp_path: Path) -> None:
    """UTF-8 is shown as it is; bytes that are none, and control characters, by their numbers."""
    keys = {
        "clé€😀".encode(): "clé€😀",
        "ключ 鍵".encode(): "ключ 鍵",
        b"\0\xff\tb": "\\x00\\xff\\x09b",
        b"\xc3": "\\xc3",
        b"\xed\xa0\x80": "\\xed\\xa0\\x80",  # a surrogate
        b"\xc0\x80": "\\xc0\\x80",  # not the shortest form
        "é".encode() * 250: "é" * 250,
    }
    frames = [encode(messages.KeyNodes(key), 1) for key in keys]
    refused = encode(messages.Error(messages.BUSY, "zu viele Gäste", bytes(4)), 1)
    capture = write(tmp_path / "texts.pcap", *frames, refused)
    packets = fields_of_packets(capture, "gtstore.key", "gtstore.message")
    *shown, error = packets
    assert [packet["gtstore.key"][0] for packet in shown] == list(keys.values())
    assert error["gtstore.message"] == ["zu viele Gäste"]
    infos = dissect(capture).splitlines()
    assert infos[0].rstrip().endswith("KEY_NODES 1 'clé€😀'")
    assert infos[6].rstrip().endswith("KEY_NODES 1 '" + "é" * 40 + "'")
    found = fields_of_packets(capture, "gtstore.key", only='gtstore.key == "clé€😀"')
    assert len(found) == 1


@needs_tshark
def test_an_entry_that_may_be_absent(tmp_path: Path) -> None:
    """That of FAILED has fields like others, or is not there, or is too short to be one."""
    frames = [encode(messages.Failed(1, entry), 1) for entry in (ENTRY, b"", ENTRY[:10])]
    capture = write(tmp_path / "failed.pcap", *frames)
    packets = fields_of_packets(capture, "gtstore.entry.client", "gtstore.entry.value")
    assert packets[0]["gtstore.entry.client"] == ["5"]
    assert packets[0]["gtstore.entry.value"] == [(b"v" * 400).hex()]
    assert packets[1] == {}
    marked = fields_of_packets(capture, "tcp.stream", only="gtstore.malformed")
    assert marked == [{"tcp.stream": ["2"]}]


@needs_tshark
def test_long_arrays(tmp_path: Path) -> None:
    """The first 500 rows of a large cluster's map are shown, and how many more there are, which are
    read all the same: what is wrong behind them is found."""
    owners = tuple(messages.Owner(node, 1, EPOCH, 1) for node in (1, 2, 3))
    rows = tuple(messages.Row(i, EPOCH, EPOCH, owners) for i in range(64_000))
    large = encode(messages.Map(EPOCH, rows), 1)
    shown = dissect(write(tmp_path / "large.pcap", large), "-O", "gtstore")
    assert shown.count(" partition: ") == 500
    assert shown.splitlines()[-2].strip() == "63500 more"
    assert "malformed" not in shown.lower()
    few, more = (encode(messages.Map(EPOCH, rows[:count]), 1) for count in (500, 501))
    size = int.from_bytes(more[8:12], "big")
    too_long = more[:8] + (size + 1).to_bytes(4, "big") + more[12:] + b"x"
    lie = more[:20] + (502).to_bytes(4, "big") + more[24:]
    names = ("tcp.stream", "gtstore.row.partition", "gtstore.malformed")
    packets = fields_of_packets(write(tmp_path / "rows.pcap", few, more, too_long, lie), *names)
    assert [len(packet["gtstore.row.partition"]) for packet in packets] == [500] * 4
    assert ["gtstore.malformed" in packet for packet in packets] == [False, False, True, True]
