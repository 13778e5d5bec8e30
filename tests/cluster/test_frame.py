"""gtclient frame: a frame that it makes works, and a tap shows what passes and changes nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import IO

import pytest

import gtstore
from gtstore.testing import Cluster, wait_until
from gtstore.wire import messages
from gtstore.wire.codec import decode, encode

pytestmark = pytest.mark.cluster

_GTCLIENT = [sys.executable, "-m", "gtstore.cli"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(5, 3) as running:
        yield running


def gtclient(
    cluster: Cluster, *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [*_GTCLIENT, "--manager", cluster.address, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30)


def send(address: str, data: bytes) -> bytes:
    """Send bytes and no more; return what comes back."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))


# --- encode, decode ------------------------------------------------------------------------------


def test_a_put_by_hand(cluster: Cluster) -> None:
    """The frame goes to the nodes that are named, each answers ACK, and clients find the value."""
    made = gtclient(cluster, "frame", "encode", "put", "key1", "by hand")
    assert made.returncode == 0
    addresses = re.findall(r"node \d+ \(([^)]*)\)", made.stderr)
    assert re.findall(r"node (\d+)", made.stderr) == ["4", "5", "1"]
    for address in addresses:
        reply = send(address, bytes.fromhex(made.stdout))
        assert reply == encode(messages.Ack(), 1)
    with cluster.connect() as client:
        assert client.get("key1") == b"by hand"
    asked = gtclient(cluster, "frame", "encode", "get", "key1", "--request-id", "9")
    assert asked.stderr == f"to node 4 ({addresses[0]}), the primary\n"
    reply = send(addresses[0], bytes.fromhex(asked.stdout))
    entry = decode(reply[2], reply[12:])
    assert isinstance(entry, messages.EntryReply)
    assert entry.entry.endswith(b"by hand")
    gone = gtclient(cluster, "frame", "encode", "delete", "key1")
    for address in addresses:
        send(address, bytes.fromhex(gone.stdout))
    with cluster.connect() as client:
        assert client.get("key1") is None


def test_decode(cluster: Cluster) -> None:
    """From the arguments or standard input; what is wrong is said last, with exit code 3."""
    done = gtclient(cluster, "frame", "decode", "c70101000000000100000000")
    assert done.stdout.splitlines()[-1] == "   8  00 00 00 00              length      0"
    assert done.returncode == 0
    two = "c70101000000000100000000\nc70102000000000200000000"
    done = gtclient(cluster, "frame", "decode", "--json", stdin=two)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"name": "PING", "request_id": 1, "fields": {}},
        {"name": "CLUSTER_INFO", "request_id": 2, "fields": {}},
    ]
    for arguments in (("c70101",), ("--json", "c70101")):
        done = gtclient(cluster, "frame", "decode", *arguments)
        assert done.stdout == "wrong: 3 bytes; a header has 12\n"
        assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (("encode", "frob"), "there is no message 'frob'", 2),
        (("encode", "get_map", "99999999999999999999999"), "is no epoch", 2),
        (("encode", "put", "k" * 501, "v"), "a key has 1 to 500 bytes", 2),
        (("encode",), "required: WORD", 2),
        (("decode", "zz"), "no hexadecimal digits", 2),
        (("tap", "nowhere:"), "is no address", 2),
        (("tap", "--listen", "192.0.2.1:1"), "cannot listen on 192.0.2.1:1", 2),
    ],
)
def test_errors_are_one_line(
    cluster: Cluster, arguments: tuple[str, ...], said: str, code: int
) -> None:
    done = gtclient(cluster, "frame", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_manager_to_ask() -> None:
    command = [*_GTCLIENT, "--manager", "127.0.0.1:1", "frame", "encode", "get", "key1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 3
    assert "connection refused" in done.stderr


# --- tap -----------------------------------------------------------------------------------------


class Tap:
    """The program, in front of a cluster's manager."""

    def __init__(self, cluster: Cluster, *options: str) -> None:
        self._process = subprocess.Popen(
            [*_GTCLIENT, "--manager", cluster.address, "frame", "tap", *options],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.lines: list[str] = []
        first = self._process.stdout.readline()
        match = re.match(r"tap of \S+ on (\S+); for example: gtclient --manager \1 put", first)
        assert match, first
        self.address = match[1]
        # What is printed is read all the time: a tap whose output waits does not pass on either.
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()

    def _read(self, output: IO[str]) -> None:
        self.lines += (line.rstrip("\n") for line in output)

    def __enter__(self) -> Tap:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(30) == 0
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def read_until(self, pattern: str) -> None:
        """Wait for a line in which the pattern is found."""
        wait_until(lambda: self.found(pattern), f"a line with {pattern}")

    def found(self, pattern: str) -> list[str]:
        return [line for line in self.lines if re.search(pattern, line)]


def test_a_tap_shows_the_whole_story(cluster: Cluster) -> None:
    """Init at the manager, and then a put to three nodes: they are tapped too."""
    with Tap(cluster) as tap:
        with gtstore.connect(tap.address) as client:
            assert client.put("key1", b"value1").nodes == (4, 5, 1)
            assert client.get("key1") == b"value1"
        # Of the manager's connection and three nodes': each is told of as it comes.
        wait_until(lambda: len(tap.found("ends the connection$")) == 4, "the four ends")
    assert tap.found(rf"-> {cluster.address}  CLUSTER_INFO 1$")
    assert tap.found(r"<- \S+  CLUSTER 1 .*nodes 5, replicas 3.* ms\)$")
    assert tap.found(r"-> \S+  GET_MAP 2  since 0$")
    for node in (4, 5, 1):
        [write] = tap.found(rf"-> node {node}  WRITE \d+  epoch 1, partition 58, key 'key1'")
        assert write.endswith("entry.value 'value1'")
        assert tap.found(rf"<- node {node}  ACK \d+  \(\d+\.\d ms\)$")
    assert tap.found(r"-> node 4  COMMIT 0  partition 58, .*key 'key1'$")
    assert tap.found(r"-> node 4  GET \d+  epoch 1, partition 58, key 'key1'$")
    assert tap.found(r"<- node 4  ENTRY .*entry.flags 1: committed, entry.value 'value1'")


def test_a_tap_changes_nothing(cluster: Cluster) -> None:
    """Large values, batches, and an answer that comes after the client has ended its side."""
    value = os.urandom(300_000)
    with Tap(cluster, "-v") as tap:
        with gtstore.connect(tap.address, timeout=30) as client:
            client.put("large", value)
            assert client.get("large") == value
            items = {f"key{i}": b"%d" % i for i in range(300)}
            client.put_many(items)
            assert client.get_many(list(items)) == items
        assert send(tap.address, encode(messages.Ping(), 5))[:8].hex() == "c701810000000005"
        tap.read_until("PONG 5")
    assert tap.found(r"^ {4} {3}0  c7 +magic +0xc7: GT Store$")


def test_a_tap_of_one_address_only(cluster: Cluster) -> None:
    """--only: the nodes' addresses stay as they are, so only the manager's part is seen."""
    with Tap(cluster, "--only") as tap:
        with gtstore.connect(tap.address) as client:
            client.put("key1", b"x")
        tap.read_until("ends the connection")
    assert tap.found("GET_MAP")
    assert not tap.found("WRITE")


def test_what_is_no_frame_passes_through_a_tap(cluster: Cluster) -> None:
    """It is shown, once, and the answer comes back."""
    direct = send(cluster.address, b"GET / HTTP/1.1\r\n\r\n")
    with Tap(cluster) as tap:
        assert send(tap.address, b"GET / HTTP/1.1\r\n\r\n") == direct
        tap.read_until("ERROR 0  code 1: BAD_MAGIC")
        cut = encode(messages.Ping(), 1)[:5]
        assert send(tap.address, cut) == b""
    assert tap.found(r"-> \S+  47 45 54 20 .*this is no frame.*; passed on unchanged$")


def test_a_fail_over_through_taps() -> None:
    """A killed node: its tap says so, and the client goes on with the next one."""
    with (
        Cluster(3, 2, ["--no-respawn"]) as cluster,
        Tap(cluster) as tap,
        gtstore.connect(tap.address, timeout=20) as client,
    ):
        client.put("key1", b"value")
        cluster.kill_node(1)
        assert client.get("key1") == b"value"
        tap.read_until(r"node 1 cannot be reached: connection refused")
        tap.read_until(r"NEXT_PRIMARY \d+  node 1, key 'key1'")
        wait_until(lambda: client.where("key1").owners[0] == 2, "the map without it")
