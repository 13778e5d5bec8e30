"""Frames in words and digits: what people type and paste (gtclient frame)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtstore.errors import InvalidInput, LocalProtocolError
from gtstore.frame_words import bytes_of, message_of
from gtstore.wire import messages
from gtstore.wire.codec import decode, decode_entry, encode
from gtstore.wire.explain import summarize
from gtstore.wire.fields import fields_of
from gtstore.wire.json_form import from_json, to_json

VECTORS = json.loads((Path(__file__).parent / "vectors" / "messages.json").read_text())
FRAMES = [bytes.fromhex(vector["hex"]) for vector in VECTORS]


# --- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["description"][:50])
def test_the_form_of_the_vectors(vector: dict[str, Any]) -> None:
    """Both ways, and through JSON's own text."""
    frame = bytes.fromhex(vector["hex"])
    message = decode(frame[2], frame[12:])
    assert to_json(message) == vector["fields"]
    form = json.loads(json.dumps(vector["fields"]))
    assert encode(from_json(type(message), form), vector["request_id"]) == frame


@pytest.mark.parametrize(
    ("cls", "form", "said"),
    [
        (messages.Get, [], "Get is an object with fields"),
        (messages.Get, {"epoch": 1, "partition": 1}, "the field key is missing"),
        (messages.Get, {"key": "61", "kee": 1}, "there is no field kee; there are epoch, "),
        (messages.Get, {"epoch": "1", "partition": 1, "key": ""}, "epoch is a whole number, not"),
        (messages.Get, {"epoch": True, "partition": 1, "key": ""}, "epoch is a whole number"),
        (messages.Get, {"epoch": 1, "partition": 1, "key": "x"}, "key is bytes, as hexadecimal"),
        (messages.Get, {"epoch": 1, "partition": 1, "key": None}, "key is bytes, as hexadecimal"),
        (messages.Error, {"code": 1, "message": 2, "detail": None}, "message is a text"),
        (messages.Map, {"epoch": 1, "rows": 5}, "rows is a list"),
        (messages.Map, {"epoch": 1, "rows": [5]}, "rows\\[0\\] is an object with fields"),
        (messages.Map, {"epoch": 1, "rows": [{}]}, "the field rows\\[0\\].partition is missing"),
        (messages.EntryReply, {"entry": {"time": 1}}, "the field entry.client is missing"),
    ],
)
def test_forms_that_are_none(cls: type[Any], form: Any, said: str) -> None:
    """The field is named."""
    with pytest.raises(InvalidInput, match=said):
        from_json(cls, form)


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("ping", messages.Ping()),
        ("CLUSTER_INFO", messages.ClusterInfo()),
        ("cluster-info", messages.ClusterInfo()),
        ("get_map 0", messages.GetMap(0)),
        ("get_map since=5eed0001:2", messages.GetMap(0x5EED_0001_0000_0002)),
        ("key_nodes key1", messages.KeyNodes(b"key1")),
        ("key_nodes 0x00ff", messages.KeyNodes(b"\x00\xff")),
        ("key_nodes a=b", "KeyNodes has no field a"),
        ("key_nodes key=a=b", messages.KeyNodes(b"a=b")),
        ("next_primary 1 key1", messages.NextPrimary(1, b"key1")),
        ("get epoch=0 partition=0x10 key=k", messages.Get(0, 16, b"k")),
        ("pong manager 0 0 1 0 1 0 0 0", messages.Pong(1, 0, 0, 1, 0, 1, 0, 0, 0)),
        ("error 13 text detail=null", messages.Error(13, "text", b"")),
        ("map 1 []", messages.Map(1, ())),
        ("map 1 [", "rows is JSON"),
        ("frob", "there is no message 'frob'; there are ack "),
        ("ping 1", "PING has 0 fields: '1' is one too many"),
        ("get_map x", "since is a whole number, not 'x'"),
        ("get_map since.x=1", "since has no fields of its own"),
        ("get_map", "the field since is missing"),
    ],
)
def test_words(words: str, message: messages.Message | str) -> None:
    if isinstance(message, str):
        with pytest.raises(InvalidInput, match=message):
            message_of(words.split())
    else:
        assert message_of(words.split()) == message


def test_an_entry_in_words() -> None:
    """By its own fields, or as JSON; the expiry may be left out where no flag says that there is
    one."""
    start = ["write", "epoch=1", "partition=2", "key=key1"]
    fields = ["entry.time=1", "entry.client=0x2", "entry.counter=3", "entry.flags=0"]
    message = message_of([*start, *fields, "entry.value=a b"])
    assert isinstance(message, messages.Write)
    entry = messages.Entry(1, 2, 3, 0, None, b"a b")
    assert decode_entry(message.entry) == entry
    form = json.dumps(to_json(entry))
    assert message_of([*start, f"entry={form}"]) == message
    expires = [*start, *fields[:3], "entry.flags=8", "entry.expiry=9", "entry.value="]
    assert decode_entry(message_of(expires).entry).expiry == 9  # type: ignore[attr-defined]
    with pytest.raises(LocalProtocolError):
        message_of([*start, *fields[:3], "entry.flags=8", "entry.value="])


def test_bytes_that_are_no_text() -> None:
    """What a shell hands over goes back to the bytes that were typed."""
    assert message_of(["key_nodes", "\udcff"]) == messages.KeyNodes(b"\xff")


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: f"0x{frame[2]:02x}")
def test_every_message_can_be_typed(frame: bytes) -> None:
    """name=value for each field, values as JSON where they have parts."""
    message = decode(frame[2], frame[12:])
    form = to_json(message)
    words = [message.name.lower()]
    for field in fields_of(type(message)):
        value = form[field.name]
        is_bytes = isinstance(value, str) and field.wire_type.name != "text"
        text = f"0x{value}" if is_bytes else value if isinstance(value, str) else json.dumps(value)
        words.append(f"{field.name}={text}")
    assert message_of(words) == message


# --- digits --------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=100), st.sampled_from(["", " ", "\n", ":", "  ", ", "]))
def test_digits(data: bytes, between: str) -> None:
    assert bytes_of(between.join(f"{byte:02x}" for byte in data).encode()) == data
    assert bytes_of(f"0x{data.hex().upper()}\n".encode()) == data
    assert bytes_of(b"\xc7" + data) == b"\xc7" + data  # no digits: frames as they are


def xxd(data: bytes, group: int) -> bytes:
    """As xxd prints it."""
    lines = []
    for at in range(0, len(data), 16):
        part = data[at : at + 16]
        groups = [part[i : i + group].hex() for i in range(0, len(part), group)]
        width = 32 + 16 // group
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{at:08x}: {' '.join(groups):<{width}} {text}")
    return ("\n".join(lines) + "\n").encode()


def hexdump(data: bytes) -> bytes:
    """As hexdump -C prints it."""
    lines = []
    for at in range(0, len(data), 16):
        part = data[at : at + 16]
        left, right = part[:8].hex(" "), part[8:].hex(" ")
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{at:08x}  {left:<23}  {right:<23}  |{text}|")
    return "\n".join([*lines, f"{len(data):08x}\n"]).encode()


@given(st.binary(min_size=1, max_size=100))
def test_dumps(data: bytes) -> None:
    """Pasted as they are; the characters at the end may look like digits."""
    assert bytes_of(xxd(data, 1)) == data
    assert bytes_of(xxd(data, 2)) == data
    assert bytes_of(hexdump(data)) == data


@given(st.text(alphabet="0123456789abcdef", min_size=1, max_size=60))
def test_dumps_of_digits(text: str) -> None:
    data = text.encode()
    assert bytes_of(xxd(data, 1)) == bytes_of(xxd(data, 2)) == bytes_of(hexdump(data)) == data


def test_xxd_itself() -> None:
    """What the program prints, if it is there, is what the test takes for it."""
    data = bytes(range(256)) + b"c7"
    for group in (1, 2):
        try:
            done = subprocess.run(["xxd", f"-g{group}"], input=data, capture_output=True)
        except FileNotFoundError:
            pytest.skip("there is no xxd; on Debian: apt install xxd")
        assert done.stdout == xxd(data, group)


@pytest.mark.parametrize("text", [b"zz", b"123", b"00000000: zz", b"hello", b"0000000g", b"\xff"])
def test_no_digits(text: bytes) -> None:
    with pytest.raises(InvalidInput, match="no hexadecimal digits"):
        bytes_of(text)


def test_nothing() -> None:
    assert bytes_of(b"") == bytes_of(b"\n") == b""


# --- one line ------------------------------------------------------------------------------------


def test_summaries() -> None:
    """The message, the request id, and what matters."""
    by_name = {vector["description"]: bytes.fromhex(vector["hex"]) for vector in VECTORS}
    get = by_name["GET, as in PROTOCOL.md section 7"]
    assert summarize(get) == "GET 6  epoch 1, partition 186, key 'key1'"
    assert summarize(by_name["ACK, as in PROTOCOL.md section 7"]) == "ACK 7"
    write = summarize(by_name["WRITE, as in PROTOCOL.md section 7"])
    assert write.startswith("WRITE 7  epoch 1, partition 186, key 'key1', entry.time 17")
    assert write.endswith("entry.flags 0: none, entry.value 'value1'")
    assert summarize(get[:-1]).startswith("GET 6  ")
    assert "wrong: " in summarize(get[:-1])
    http = summarize(b"GET / HTTP")
    assert http == "no frame  wrong: this is no frame: it begins with 0x47, not 0xc7"
    for frame in FRAMES:
        assert len(summarize(frame)) <= 160
        assert "a0a1a2a3" not in summarize(frame), "a token is a secret"
