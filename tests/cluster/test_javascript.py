"""A client in another language, written from PROTOCOL.md alone: the report's tests 1 to 4 with it.

What one language's client stores, the other's must find: so each test also asks gtstore.Client.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest

from gtstore.client import Client
from gtstore.testing import Cluster

from .test_report import PLACEMENTS_4

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        shutil.which("node") is None,
        reason="examples/gtstore.mjs needs Node.js; on Debian: apt install nodejs",
    ),
]

PROGRAM = Path(__file__).parents[2] / "examples" / "gtstore_cli.mjs"


def once(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program for one command."""
    command = ["node", str(PROGRAM), cluster.address, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


class JavaScript:
    """One client that lives through several commands, so that its map can grow old."""

    def __init__(self, cluster: Cluster) -> None:
        self._process = subprocess.Popen(
            ["node", str(PROGRAM), cluster.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> JavaScript:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=30)
        assert self._process.returncode == 0

    def say(self, *words: str) -> str:
        """One command; the line that answers it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().rstrip("\n")

    def put(self, key: str, value: str) -> list[int]:
        text, _, nodes = self.say("put", key, value).partition(": ")
        assert text == f"key {key} stored at storage nodes"
        return [int(node) for node in nodes.split()]

    def get(self, key: str) -> str:
        return self.say("get", key)


@pytest.fixture
def javascript(cluster: Cluster) -> Iterator[JavaScript]:
    with JavaScript(cluster) as running:
        yield running


@pytest.mark.gtstore(nodes=1, replicas=1)
def test_1_one_node(cluster: Cluster, store: Client) -> None:
    """One node, one replica; what the exit codes say."""
    done = once(cluster, "put", "key1", "value1")
    assert (done.returncode, done.stdout) == (0, "key key1 stored at storage nodes: 1\n")
    assert store.get("key1") == b"value1"
    store.put("key1", "value2")
    assert once(cluster, "get", "key1").stdout == "value2\n"
    assert once(cluster, "delete", "key1").returncode == 0
    assert store.get("key1") is None
    assert once(cluster, "get", "key1").returncode == 1
    assert once(cluster, "got", "key1").returncode == 2
    assert once(cluster, "put", "k" * 501, "value").returncode == 2


@pytest.mark.gtstore(nodes=5, replicas=3)
def test_2_five_nodes(javascript: JavaScript, store: Client) -> None:
    """5 nodes, k=3: the report's placements."""
    for key, nodes in {"key1": [4, 5, 1], "key2": [5, 1, 2], "key3": [1, 2, 3]}.items():
        assert javascript.put(key, f"value-of-{key}") == nodes
        assert javascript.get(key) == f"value-of-{key}"
        assert store.get(key) == f"value-of-{key}".encode()


@pytest.mark.gtstore(nodes=5, replicas=3)
def test_values_that_expire(cluster: Cluster, javascript: JavaScript, store: Client) -> None:
    """A client that knows nothing of expiry is right: it completes the primary's tombstone."""
    store.put("key1", "value1", ttl=100)
    assert javascript.get("key1") == "value1"
    store.put("key1", "value1", ttl=0.000001)
    gone = once(cluster, "get", "key1")
    assert (gone.returncode, gone.stdout) == (1, "")
    assert store.get("key1") is None


@pytest.mark.gtstore(nodes=5, replicas=3, options=["--hash", "crc16"])
def test_2_crc16(javascript: JavaScript, store: Client) -> None:
    """The other hash function places keys where the Python client looks for them."""
    for i in range(20):
        nodes = javascript.put(f"key{i}", f"value{i}")
        assert list(store.where(f"key{i}").owners) == nodes
        assert store.get(f"key{i}") == b"value%d" % i


def test_3_primary_is_killed(cluster: Cluster, javascript: JavaScript, store: Client) -> None:
    """3 nodes, k=2: kill -9 of a primary; a client that knows the old map gets and puts on."""
    assert javascript.put("key1", "old") == [1, 2]
    assert javascript.put("key1", "latest") == [1, 2]
    assert javascript.put("key3", "other") == [3, 1]
    cluster.kill_node(1)
    assert javascript.get("key1") == "latest"
    assert javascript.put("key1", "after-the-death")[0] == 2
    assert javascript.put("key3", "with-one-backup-less")[0] == 3
    assert store.get("key1") == b"after-the-death"
    assert once(cluster, "get", "key3").stdout == "with-one-backup-less\n"


@pytest.mark.gtstore(nodes=7, replicas=3)
def test_4_two_nodes_are_killed(cluster: Cluster, javascript: JavaScript, store: Client) -> None:
    """7 nodes, k=3, 20 keys, 3 of them overwritten by turns from both languages, two nodes
    killed: always the latest value."""
    latest = {}
    for i, nodes in PLACEMENTS_4.items():
        latest[i] = f"value{i}"
        assert javascript.put(f"key{i}", latest[i]) == nodes
    for i in (2, 5, 12):
        store.put(f"key{i}", "by-python")
        assert javascript.get(f"key{i}") == "by-python"
        latest[i] = f"latest-of-{i}"
        javascript.put(f"key{i}", latest[i])
    for dead in (2, 5):
        cluster.kill_node(dead)
        for i, value in latest.items():
            assert javascript.get(f"key{i}") == value
    for i, nodes in PLACEMENTS_4.items():
        survivors = [node for node in nodes if node not in (2, 5)]
        assert javascript.put(f"key{i}", "again")[: len(survivors)] == survivors
        assert store.get(f"key{i}") == b"again"


def test_a_clock_that_is_far_ahead(javascript: JavaScript, store: Client) -> None:
    """TOO_FAR: a client whose clock is an hour ahead measures cluster time once more; if that does
    not help, what it wanted did not happen, and locks nothing."""
    assert javascript.say("shift-clock", "3600000") == "ok"
    assert "stored" not in javascript.say("put", "key1", "javascript")
    store.put("key1", "python")
    assert javascript.get("key1") == "python"
    assert javascript.say("shift-clock", "0") == "ok"
    assert javascript.put("key1", "javascript") == [1, 2]


def test_a_clock_that_is_behind(javascript: JavaScript, store: Client) -> None:
    """SUPERSEDED: a client whose clock is half a minute behind overwrites all the same."""
    assert javascript.say("shift-clock", "-30000") == "ok"
    for i in range(5):
        store.put("key1", f"python-{i}")
        assert javascript.put("key1", f"javascript-{i}") == [1, 2]
        assert store.get("key1") == b"javascript-%d" % i
