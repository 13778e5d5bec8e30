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


def capture_of(streams: Iterable[Sequence[bytes]]) -> bytes:
    """A capture file with one TCP connection for each stream, a packet for each of its parts."""
    out = bytearray(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 101))  # raw IP
    for number, parts in enumerate(streams):
        sequence = 1
        for whole in parts:
            for at in range(0, len(whole), _SEGMENT_SIZE_MAX):
                part = whole[at : at + _SEGMENT_SIZE_MAX]
                source = 20_000 + number % 40_000
                tcp = struct.pack(
                    ">HHIIBBHHH", source, PORT, sequence, 1, 5 << 4, 0x18, 65_535, 0, 0
                )
                ip = struct.pack(
                    ">BBHHHBBH4s4s", 0x45, 0, 40 + len(part), 0, 0, 64, 6, 0,
                    bytes((127, 0, 0, 1)), bytes((127, 0, 0, 1 + number // 40_000)),
                )  # fmt: skip
                packet = ip + tcp + part
                out += struct.pack("<IIII", number, 0, len(packet), len(packet)) + packet
                sequence += len(part)
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
    capture: Path, *names: str, only: str = "gtstore", ports: Iterable[int] = (PORT,)
) -> list[dict[str, list[str]]]:
    """For each packet that the filter lets through: field -> its values."""
    options = [option for name in names for option in ("-e", name)]
    printed = dissect(capture, "-Y", only, "-T", "json", *options, ports=ports)
    packets: list[Any] = json.loads(printed or "[]")
    return [packet["_source"]["layers"] for packet in packets]
