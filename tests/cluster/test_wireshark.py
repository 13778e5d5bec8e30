"""docs/gtstore.lua on real traffic: every message of the table, and nothing malformed or unknown.

dumpcap captures what a cluster's processes and its clients send over loopback, from the cluster's
start on, so that its own messages are there too.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import gtstore
from gtstore.results import PutResult
from gtstore.testing import Cluster, wait_until
from gtstore.top import take
from gtstore.wire import messages
from gtstore.wire.codec import encode, encode_record
from gtstore.wire.messages import Entry, Get, Write

from ..dissection import dissect, fields_of_packets, needs_tshark
from .test_manager import free_ports

pytestmark = [pytest.mark.cluster, needs_tshark]

NODES = 3
PARTITION = 186  # of key1 in a cluster of 3 nodes


@contextmanager
def capturing(path: Path, ports: range) -> Iterator[None]:
    """Capture these ports of loopback into a file, as long as the block runs."""
    dumpcap = shutil.which("dumpcap")
    if dumpcap is None:
        pytest.skip("capturing needs dumpcap; on Debian: apt install wireshark-common")
    process = subprocess.Popen(
        [
            dumpcap, "-i", "lo", "-w", str(path), "-q", "-B", "64",
            "-f", f"tcp portrange {ports[0]}-{ports[-1]}",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("File: "):
            break  # it captures from now on
    else:
        pytest.skip(f"this user may not capture on lo: {' '.join(said)!r}")
    try:
        yield
    finally:
        marker(path, ports[0])
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def marker(path: Path, port: int) -> None:
    """Send something last, and wait until it is in the file: then everything before is too."""
    text = b"the last packet"
    with (
        socket.create_server(("127.0.0.1", port)),
        socket.create_connection(("127.0.0.1", port)) as sock,
    ):
        sock.sendall(text)
        wait_until(lambda: text in path.read_bytes()[-2000:], "the last packet in the file")


def raw(address: str, *requests: messages.Message) -> None:
    """Send requests, and wait for as many replies as they get."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(b"".join(encode(request, i + 1) for i, request in enumerate(requests)))
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


def entry(result: PutResult, later_us: int, value: bytes = b"raw", flags: int = 0) -> bytes:
    """An entry whose version is that much later than a put's."""
    return encode_record(Entry(result.version.time + later_us, 5, 1, flags, None, value))


def make_traffic(cluster: Cluster, value: bytes) -> None:
    """Have every message sent that clients send, and every reply and some errors."""
    with cluster.connect(timeout=30) as client:
        result = client.put("key1", b"value1")
        assert client.get("key1") == b"value1"
        assert client.get("nothing") is None
        client.put("large", value)
        assert client.get("large") == value
        items = {f"key{i}": b"%d" % i for i in range(300)}
        client.put_many(items)
        assert client.get_many(list(items)) == items
        assert take(client).answers
        client.delete("key2")
        client.append("log", b"x")
        client.increment("number", 5)
        with pytest.raises(gtstore.VersionMismatch):
            client.compare_and_put("log", b"y", expected=b"z")
        assert len(list(client.scan_entries("key29"))) == 11
        client.where("key1")
        epoch = int(client.status()["cluster"], 16) << 32 | 1
        node = client.status()["nodes"][0]["address"]
        raw(
            node,
            Write(epoch, PARTITION, b"key1", entry(result, -1000)),  # SUPERSEDED
            Write(epoch, PARTITION, b"key1", entry(result, 90_000_000)),  # TOO_FAR
            Write(epoch - 1, PARTITION, b"key1", entry(result, 1)),  # STALE_EPOCH
            Write(epoch, PARTITION, b"other", entry(result, 1)),  # WRONG_PARTITION
            Get(0, 0, b"key1"),
            messages.KeyNodes(b"key1"),  # UNKNOWN_KIND, at a node
        )
        raw(node, messages.MapUpdate(bytes(16), epoch, ()))  # NOT_ALLOWED
        raw(node, messages.Differs(bytes(16), 0, bytes(16), b"key"))  # the same
        raw(cluster.address, messages.Leave(bytes(16), 1, messages.Join(0, epoch)))
        raw(cluster.address, messages.NewMark(bytes(16), 1, 1, bytes(16)))
        raw(node, Get(epoch, 100_000, b"key1"))  # MALFORMED to the node, but a whole GET
        cluster.kill_node(1)
        assert client.get("key1") == items["key1"]
        client.get_many(list(items))
        cluster.wait_in_sync()  # the stand-ins' COPY and IN_SYNC


def test_real_traffic_is_dissected(tmp_path: Path) -> None:
    """Section 13: every kind of the table occurs, with nothing malformed or unknown in it."""
    capture = tmp_path / "capture.pcapng"
    first = free_ports(NODES + 2)
    ports = range(first, first + NODES + 2)  # the first one is the marker's
    value = os.urandom(400_000)
    with (
        capturing(capture, ports),
        Cluster(NODES, 2, ["--no-respawn"], first + 1, first + 2) as cluster,
    ):
        make_traffic(cluster, value)
    served = ports[1:]

    def all_of(name: str, only: str = "gtstore", *options: str) -> list[Any]:
        packets = fields_of_packets(capture, name, only=only, ports=served, options=options)
        return [item for packet in packets for item in packet.get(name, [])]

    assert set(all_of("gtstore.header.kind")) == {f"0x{kind:02x}" for kind in messages.MESSAGES}
    assert dissect(capture, "-Y", "gtstore.malformed or gtstore.unknown", ports=served) == ""
    codes = {int(code) for code in all_of("gtstore.code")}
    names = {messages.ERRORS[code].name for code in codes}
    assert names >= {
        "MALFORMED", "NOT_ALLOWED", "STALE_EPOCH", "TOO_FAR", "UNKNOWN_KIND", "WRONG_PARTITION",
    }  # fmt: skip
    large = all_of("gtstore.entry.value", 'gtstore.key == "large"')
    assert value.hex() in large
    assert "key299" in all_of("gtstore.key", "gtstore.header.kind == 0x11")
    times = all_of("gtstore.response_time")
    assert times, "replies are linked with their requests"
    for name in ("gtstore.response_in", "gtstore.response_to", "gtstore.response_time"):
        assert len(all_of(name, "gtstore", "-2")) == len(times), name
    dissect(capture, "-V", ports=served)
