"""N10: a bit that flips on a disk is found and healed though no client reads what has it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gtstore.testing import Cluster, wait_until

pytest.importorskip("lmdb", reason="entries on disk need py-lmdb (the extra durable)")

pytestmark = pytest.mark.cluster

VALUES = {f"key-{i:04}": b"<%04d>" % i * 20 for i in range(600)}
PAGE = 4096


def cluster_on(directory: Path, percent: float) -> Cluster:
    options = ["--data-dir", str(directory / "data"), "--scrub-percent", str(percent)]
    return Cluster(3, 3, options)


def flip_where(path: Path, pattern: bytes) -> None:
    """One bit, wherever that stands in a file: LMDB has former versions of its pages, too."""
    data = path.read_bytes()
    places = [match.start() for match in re.finditer(pattern, data, re.DOTALL)]
    assert places
    with path.open("r+b") as file:
        for at in places:
            file.seek(at + len(pattern) // 2)
            byte = data[at + len(pattern) // 2]
            file.seek(at + len(pattern) // 2)
            file.write(bytes((byte ^ 1,)))


def flip_entry(node: Path) -> None:
    flip_where(node / "data.mdb", b"<0123><0123>")


def flip_key(node: Path) -> None:
    flip_where(node / "data.mdb", b"key-0123")


def damage_pages(node: Path) -> None:
    """Those that lead to others."""
    data = (node / "data.mdb").read_bytes()
    with (node / "data.mdb").open("r+b") as file:
        for at in range(2 * PAGE, len(data), PAGE):
            if int.from_bytes(data[at + 10 : at + 12], "little") & 1:
                file.seek(at + 18)
                file.write(bytes((data[at + 18] ^ 0x80,)))


@pytest.mark.parametrize("damage", [flip_entry, flip_key, damage_pages])
def test_what_nobody_reads(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """While a node serves."""
    with cluster_on(tmp_path, 0) as cluster, cluster.connect() as client:
        client.put_many(VALUES)
    with cluster_on(tmp_path, 20) as cluster, cluster.connect() as client:
        damage(tmp_path / "data" / "node-1")
        found = re.compile(r"node 1: .*copied from another node|node 1: .*set aside")
        wait_until(lambda: found.search(cluster.log()), "that it is found", 60)
        wait_until(lambda: client.status()["nodes"][0]["state"] == "alive", "its return", 60)
        cluster.wait_in_sync()
        cluster.kill_node(2)
        cluster.kill_node(3)
        assert client.get_many(list(VALUES)) == VALUES


def test_a_partitions_own_record(tmp_path: Path) -> None:
    """A node looks at that only when it starts: then it joins the partition anew."""
    with cluster_on(tmp_path, 0) as cluster, cluster.connect() as client:
        client.put_many(VALUES)
        row = client.where("key-0123")
        before = client.status()["cluster"]
    name = b"P" + row.partition.to_bytes(4, "big")
    flip_where(tmp_path / "data" / "node-1" / "data.mdb", re.escape(name) + b".{6}")
    with cluster_on(tmp_path, 0) as cluster, cluster.connect() as client:
        assert client.status()["cluster"] == before
        cluster.wait_in_sync()
        cluster.kill_node(2)
        cluster.kill_node(3)
        assert client.get_many(list(VALUES)) == VALUES
        assert dict(client.scan()) == {key.encode(): value for key, value in VALUES.items()}
