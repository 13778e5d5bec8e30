"""The report's tests 1 to 4, over real processes, with its placements (docs/ARCHITECTURE.md)."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from gtstore.client import Client
from gtstore.testing import Cluster

pytestmark = pytest.mark.cluster


def gtclient(cluster: Cluster, *arguments: str) -> str:
    """Run the program as a user does; nothing may go wrong, and nothing may be complained about."""
    command = [sys.executable, "-m", "gtstore.cli", "--manager", cluster.address, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def put(cluster: Cluster, key: str, value: str) -> list[int]:
    """Put with gtclient; return the nodes that it names."""
    text, _, nodes = gtclient(cluster, "put", key, value).strip().partition(": ")
    assert text == f"key {key} stored at storage nodes"
    return [int(node) for node in nodes.split()]


def owners(cluster: Cluster, key: str) -> list[int]:
    answer = json.loads(gtclient(cluster, "--json", "where", key))
    nodes: list[int] = answer["owners"]
    return nodes


@pytest.mark.gtstore(nodes=1, replicas=1)
def test_1_one_node(cluster: Cluster) -> None:
    """One node, one replica: put, get, overwrite, get."""
    assert put(cluster, "key1", "value1") == [1]
    assert gtclient(cluster, "get", "key1") == "value1"
    assert put(cluster, "key1", "value2") == [1]
    assert gtclient(cluster, "get", "key1") == "value2"


@pytest.mark.gtstore(nodes=5, replicas=3)
def test_2_five_nodes(cluster: Cluster) -> None:
    """5 nodes, k=3: the report's placements."""
    for key, nodes in {"key1": [4, 5, 1], "key2": [5, 1, 2], "key3": [1, 2, 3]}.items():
        assert put(cluster, key, f"value of {key}") == nodes
        assert owners(cluster, key) == nodes
        assert gtclient(cluster, "get", key) == f"value of {key}"


def test_3_primary_is_killed(cluster: Cluster) -> None:
    """3 nodes, k=2: kill -9 of a primary; the very next get and put work with no error."""
    placements = {
        "key1": [1, 2], "key2": [2, 3], "key3": [3, 1], "key4": [1, 2],
        "key5": [2, 3], "key6": [3, 1], "key7": [1, 2],
    }  # fmt: skip
    for key, nodes in placements.items():
        assert put(cluster, key, f"old {key}") == nodes
    assert put(cluster, "key1", "latest key1") == [1, 2]
    cluster.kill_node(1)
    assert gtclient(cluster, "get", "key1") == "latest key1"
    assert put(cluster, "key1", "after the death")[0] == 2
    assert gtclient(cluster, "get", "key1") == "after the death"
    for key, nodes in placements.items():
        assert owners(cluster, key)[0] == next(node for node in nodes if node != 1)
        if key != "key1":
            assert gtclient(cluster, "get", key) == f"old {key}"


PLACEMENTS_4 = {
    1: [1, 2, 3], 2: [2, 3, 4], 3: [3, 4, 5], 4: [4, 5, 6], 5: [5, 6, 7], 6: [6, 7, 1], 7: [7, 1,
    2], 8: [1, 2, 3], 9: [2, 3, 4], 10: [7, 1, 2], 11: [1, 2, 3], 12: [2, 3, 4], 13: [3, 4, 5],
    14: [4, 5, 6], 15: [5, 6, 7], 16: [6, 7, 1], 17: [7, 1, 2], 18: [1, 2, 3], 19: [2, 3, 4],
    20: [1, 2, 3],
}  # fmt: skip


@pytest.mark.gtstore(nodes=7, replicas=3, respawn=False)
def test_4_two_nodes_are_killed(
    caplog: pytest.LogCaptureFixture, cluster: Cluster, store: Client
) -> None:
    """7 nodes, k=3, 20 keys, 3 of them overwritten, kill -9 of nodes 2 and 5: always the latest
    value, by gtclient and by a long-lived Client, which tells the report's steps. The dead stay
    dead, and the next nodes of the circle take over."""
    latest = {f"key{i}": f"value{i}" for i in PLACEMENTS_4}
    for i, nodes in PLACEMENTS_4.items():
        assert list(store.put(f"key{i}", latest[f"key{i}"]).nodes) == nodes
    for key in ("key2", "key5", "key12"):
        latest[key] = f"latest of {key}"
        store.put(key, latest[key])

    caplog.set_level(logging.INFO, "gtstore.client")
    for dead, key, following in ((2, "key2", 3), (5, "key5", 6)):
        cluster.kill_node(dead)
        assert gtclient(cluster, "get", key) == latest[key]
        caplog.clear()
        assert store.get(key) == latest[key].encode()
        steps = [record.getMessage() for record in caplog.records]
        assert steps[0].startswith(f"primary unavailable (node {dead} ")
        assert steps[0].endswith("asking the manager")
        answer = f"the manager answers: {key} is at storage nodes {following} "
        assert steps[1].startswith(answer)
        assert steps[2:] == [f"value of {key} from node {following}"]
        assert store.get_entry(key).node == following  # type: ignore[union-attr]

    for i, nodes in PLACEMENTS_4.items():
        key = f"key{i}"
        assert store.get(key) == latest[key].encode()
        circle = [node % 7 + 1 for node in range(nodes[0] - 1, nodes[0] + 6)]
        assert owners(cluster, key) == [n for n in circle if n not in (2, 5)][:3]
        latest[key] += ", and again"
        assert put(cluster, key, latest[key]) == owners(cluster, key)
        assert store.get(key) == latest[key].encode()
    assert [node["state"] for node in store.status()["nodes"]].count("dead") == 2
    cluster.wait_in_sync()
