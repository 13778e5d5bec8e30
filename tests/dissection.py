"""Has tshark dissect frames with docs/gtstore.lua. A module for tests, without tests of its own."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gtstore.wire.describe.__main__ import DOCS

TSHARK = shutil.which("tshark")

needs_tshark = pytest.mark.skipif(
    TSHARK is None, reason="docs/gtstore.lua is tried with tshark; on Debian: apt install tshark"
)

PORT = 10001
_SEGMENT_SIZE_MAX = 60_000


class Reply(bytes):
    """A part of a stream that the server sends."""


def capture_of(streams: Iterable[Sequence[bytes]], snap: int = 262_144) -> bytes:
    """A capture file with one TCP connection for each stream, a packet for each of its parts, one
    millisecond after the other. Of a packet, ``snap`` bytes are kept."""
    out = bytearray(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, snap, 101))  # raw IP
    for number, parts in enumerate(streams):
        server = bytes((127, 0, 0, 1 + number // 40_000)), PORT
        client = bytes((127, 0, 0, 1)), 20_000 + number % 40_000
        sent = {client: 0, server: 0}
        milliseconds = 0
        for whole in parts:
            here, there = (server, client) if isinstance(whole, Reply) else (client, server)
            for at in range(0, len(whole), _SEGMENT_SIZE_MAX):
                part = whole[at : at + _SEGMENT_SIZE_MAX]
                tcp = struct.pack(
                    ">HHIIBBHHH",
                    here[1], there[1], 1 + sent[here], 1 + sent[there], 5 << 4, 0x18, 65_535, 0, 0,
                )  # fmt: skip
                ip = struct.pack(
                    ">BBHHHBBH4s4s",
                    0x45, 0, 40 + len(part), 0, 0, 64, 6, 0, here[0], there[0],
                )  # fmt: skip
                packet = ip + tcp + part
                seconds, rest = divmod(milliseconds, 1000)
                kept = packet[:snap]
                out += struct.pack("<IIII", number + seconds, rest * 1000, len(kept), len(packet))
                out += kept
                sent[here] += len(part)
                milliseconds += 1
    return bytes(out)


def dissect(capture: Path, *options: str, ports: Iterable[int] = (PORT,)) -> str:
    """What tshark prints of a capture; nothing may have gone wrong in the dissector."""
    assert TSHARK is not None
    listed = ",".join(map(str, ports))
    command = [
        TSHARK, "-r", str(capture), "-X", f"lua_script:{DOCS / 'gtstore.lua'}",
        "-o", f"gtstore.ports:{listed}", *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    trouble = [line for line in done.stderr.splitlines() if "Running as user" not in line]
    assert (done.returncode, trouble) == (0, [])
    assert "Lua Error" not in done.stdout
    return done.stdout


def fields_of_packets(
    capture: Path,
    *names: str,
    only: str = "gtstore",
    ports: Iterable[int] = (PORT,),
    options: Sequence[str] = (),
) -> list[dict[str, list[str]]]:
    """For each packet that the filter lets through: field -> its values."""
    shown = [option for name in names for option in ("-e", name)]
    printed = dissect(capture, "-Y", only, "-T", "json", *shown, *options, ports=ports)
    packets: list[Any] = json.loads(printed or "[]")
    return [packet["_source"]["layers"] for packet in packets]
