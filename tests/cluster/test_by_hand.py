"""PROTOCOL.md is right: its examples are sent to a running cluster, and section 11 is typed in.

Section 11 is written for a cluster on the default ports. Here it runs on free ones, which stand in
for the default ones in what is typed and in what is printed.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gtstore.testing import Cluster
from gtstore.wire import messages
from gtstore.wire.codec import decode, decode_entry, encode
from gtstore.wire.describe.__main__ import DOCS
from gtstore.wire.describe.examples import EXAMPLES
from gtstore.wire.stream import FrameBuffer

pytestmark = pytest.mark.cluster

DOCUMENT = (DOCS / "PROTOCOL.md").read_text(encoding="utf-8")
SECTION = DOCUMENT.split("\n## 11 ")[1].split("\n## ")[0]
TYPED = "".join(re.findall(r"```console\n(.*?)```", SECTION, re.DOTALL))

MISSING = [tool for tool in ("bash", "nc", "xxd") if shutil.which(tool) is None]
needs_tools = pytest.mark.skipif(
    bool(MISSING),
    reason=f"section 11 needs {' and '.join(MISSING)}; on Debian: apt install netcat-openbsd xxd",
)

VOLATILE = {"epoch", "list_epoch", "primary_epoch", "join_epoch", "time", "client", "pid", "port"}
"""Fields that every cluster and every run has others of."""

DUMP_LINE = re.compile(r"^[0-9a-f]{8}: ((?:[0-9a-f]{2} ){1,16}) {1,48}\S?")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A default cluster, freshly started, but on free ports."""
    with Cluster(7, 3) as running:
        yield running


def ports_of(cluster: Cluster) -> dict[str, str]:
    """Default port -> this cluster's port."""
    ports = [node["address"].rpartition(":")[2] for node in cluster.status()["nodes"]]
    manager = cluster.address.rpartition(":")[2]
    return {"9001": manager, **{str(10001 + i): port for i, port in enumerate(ports)}}


def with_ports(text: str, ports: dict[str, str]) -> str:
    names = "|".join(map(re.escape, ports))
    return re.sub(rf"\b({names})\b", lambda match: ports[match[1]], text)


# --- the examples of section 7 -------------------------------------------------------------------


def exchange(address: str, frame: bytes) -> bytes:
    """Send bytes and no more, and return all that comes back until the peer closes."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(frame)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def messages_in(data: bytes) -> list[tuple[int, messages.Message]]:
    buffer = FrameBuffer()
    frames = buffer.feed(data)
    assert not buffer.size, "the answer ends within a frame"
    return [(request_id, decode(kind, body)) for kind, _, request_id, body in frames]


COMMON_ERRORS = {"STALE_EPOCH", "NOT_ALLOWED"}
"""The examples are those of another cluster, with another token."""


def test_the_examples_are_answered_as_the_document_says(cluster: Cluster) -> None:
    """Section 7: each request's example, sent as it is printed, gets one of its replies."""
    node = cluster.status()["nodes"][0]["address"]
    for request_id, message in EXAMPLES.values():
        if message.kind >= 0x80:
            continue
        frame = encode(message, request_id)
        for role, address in ((messages.MANAGER, cluster.address), (messages.NODE, node)):
            if role not in type(message).receivers:
                continue
            replies = messages_in(exchange(address, frame))
            if not message.replies:
                assert replies == []
                continue
            [(reply_id, reply)] = replies
            assert reply_id == request_id
            name = reply.name
            if isinstance(reply, messages.Error):
                name = messages.ERRORS[reply.code].name
                assert name in COMMON_ERRORS, reply
            assert name in message.replies


# --- section 11 ----------------------------------------------------------------------------------


class Step(NamedTuple):
    command: str
    printed: str


def typed_steps() -> list[Step]:
    """The section's commands, each with what the document says that it prints."""
    steps: list[Step] = []
    for line in TYPED.splitlines():
        if line.startswith("$ "):
            steps.append(Step(line.removeprefix("$ "), ""))
        elif line.startswith("> "):
            command, _ = steps.pop()
            steps.append(Step(f"{command}\n{line.removeprefix('> ')}", ""))
        else:
            command, printed = steps.pop()
            steps.append(Step(command, f"{printed}{line}\n"))
    return steps


MARK = "--- the next command prints ---"


def type_in(steps: list[Step], cluster: Cluster) -> Iterator[tuple[Step, str]]:
    """Run the commands in one shell; yield each with what it really printed."""
    ports = ports_of(cluster)
    script = "".join(f"echo '{MARK}'\n{with_ports(step.command, ports)}\n" for step in steps)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GTSTORE_MANAGER": cluster.address,
    }
    done = subprocess.run(
        ["bash", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        timeout=60,
    )
    printed = done.stdout.split(f"{MARK}\n")[1:]
    assert len(printed) == len(steps), done.stdout
    default_ports = {port: default for default, port in ports.items()}
    for step, text in zip(steps, printed, strict=True):
        yield step, with_ports(text, default_ports)


def dumped(text: str) -> bytes | None:
    """The bytes of what ``xxd -g1`` prints; None if it is something else."""
    lines = [DUMP_LINE.match(line) for line in text.splitlines()]
    if not lines or None in lines:
        return None
    return b"".join(bytes.fromhex(line[1]) for line in lines if line)


def steady(value: Any) -> Any:
    """A message as it is in every cluster: without its volatile fields."""
    if isinstance(value, messages.EntryReply):
        value = decode_entry(value.entry)
    if isinstance(value, tuple):
        return [steady(item) for item in value]
    if not is_dataclass(value):
        return value
    return {
        field.name: steady(getattr(value, field.name))
        for field in fields(value)
        if field.name not in VOLATILE
    }


def assert_same(printed: str, text: str) -> None:
    """What was printed is what the document prints, but for the volatile fields of frames. A line
    ``...`` stands for any number of lines."""
    expected_bytes, real_bytes = dumped(printed), dumped(text)
    if expected_bytes is not None and real_bytes is not None:
        expected, real = messages_in(expected_bytes), messages_in(real_bytes)
        assert [(i, type(message), steady(message)) for i, message in expected] == [
            (i, type(message), steady(message)) for i, message in real
        ]
        return
    if text and not text.endswith("\n"):
        text += "\n"  # gtclient get adds it on a terminal only
    parts = (re.escape(part) for part in printed.split("...\n"))
    pattern = r"(?:.*\n)*".join(parts)
    assert re.fullmatch(pattern, text), f"the document says:\n{printed}\nnow it prints:\n{text}"


@needs_tools
def test_section_11_is_as_it_is_typed(cluster: Cluster) -> None:
    """Every command of the section, in its order, against one freshly started cluster."""
    steps = typed_steps()
    assert len(steps) > 10
    for step, text in type_in(steps, cluster):
        assert_same(step.printed, text)


def test_the_bytes_of_section_11_without_tools(cluster: Cluster) -> None:
    """The frames that are written out there, over a socket, also where there is no nc."""
    ports = ports_of(cluster)
    tried = 0
    frame = b""
    for step in typed_steps():
        if match := re.fullmatch(r"HEX=([0-9a-f]+)", step.command):
            frame = bytes.fromhex(match[1])
        if "frame encode put key1" in step.command:
            with cluster.connect() as client:
                client.put("key1", "value1")
        sends = re.fullmatch(r"printf %s \$HEX .* nc -N 127.0.0.1 (\d+) \| xxd -g1", step.command)
        if frame and sends and (expected := dumped(step.printed)):
            real = exchange(f"127.0.0.1:{ports[sends[1]]}", frame)
            assert [type(m) for _, m in messages_in(real)] == [
                type(m) for _, m in messages_in(expected)
            ]
            tried += 1
    assert tried > 3
