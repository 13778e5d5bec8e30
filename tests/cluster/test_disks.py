"""What becomes of disks between two starts: cut, damaged, put back from a copy (N2a, M6a).

The right values come back from the other replicas; where there are none, nothing is served that may
be older than what was acknowledged, unless an operator says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gtstore import Unavailable
from gtstore.testing import Cluster, wait_until

pytest.importorskip("lmdb", reason="entries on disk need py-lmdb (the extra durable)")

pytestmark = pytest.mark.cluster

KEYS = [f"key{i}" for i in range(1, 13)]
END_SIZE = 16


def cluster_on(directory: Path, nodes: int = 3, replicas: int = 3, *options: str) -> Cluster:
    return Cluster(nodes, replicas, ["--data-dir", str(directory / "data"), *options])


def last_end(directory: Path, node: int) -> tuple[Path, int]:
    """The file in which a node's log ends, and where its last end mark stands."""
    found = []
    for file in (directory / "data" / f"node-{node}").glob("log-*"):
        data = file.read_bytes()
        at = data.find(b"GTSE")
        while at >= 0:
            found.append((int.from_bytes(data[at + 4 : at + 12], "big"), file, at))
            at = data.find(b"GTSE", at + 1)
    _, file, at = max(found)
    return file, at


def flip(file: Path, at: int) -> None:
    """One bit."""
    with file.open("r+b") as log:
        log.seek(at)
        byte = log.read(1)[0]
        log.seek(at)
        log.write(bytes((byte ^ 1,)))


def flip_last_record(directory: Path, node: int) -> None:
    file, at = last_end(directory, node)
    flip(file, at - 1)


def flip_end_mark(directory: Path, node: int) -> None:
    """As if a record that was never acknowledged had been under way."""
    file, at = last_end(directory, node)
    flip(file, at + END_SIZE - 1)


def cut_tail(directory: Path, node: int) -> None:
    file, at = last_end(directory, node)
    with file.open("r+b") as log:
        log.truncate(at - 3)


@pytest.mark.parametrize("damage", [flip_last_record, flip_end_mark, cut_tail])
def test_the_primarys_log_does_not_end_whole(
    tmp_path: Path, damage: Callable[[Path, int], None]
) -> None:
    """N2a: nobody can tell whether what is missing was acknowledged; the others' logs are whole, so
    they go on, and the node joins anew."""
    with cluster_on(tmp_path) as cluster, cluster.connect() as client:
        client.put("key1", "old")  # its primary is node 1
        client.put("key1", "new")
        cluster.kill_everything()
        damage(tmp_path, 1)
        cluster.start()
        assert "does not end whole" in cluster.log()
        assert client.get("key1") == b"new"
        cluster.wait_in_sync()
        assert client.where("key1").owners == (2, 3, 1)
        cluster.kill_node(2)
        cluster.kill_node(3)
        assert client.get("key1") == b"new"


def test_no_log_ends_whole(tmp_path: Path) -> None:
    """N2a: the primary opens the partition with the newest that any of its owners has. Here it has
    lost the last write itself, with the last record of its log."""
    with cluster_on(tmp_path) as cluster, cluster.connect() as client:
        client.put_many(dict.fromkeys(KEYS, "old"))
        client.delete("key2")
        client.put("key1", "new")
        cluster.kill_everything()
        flip_last_record(tmp_path, 1)
        for node in (2, 3):
            flip_end_mark(tmp_path, node)
        cluster.start()
        assert client.get_many(KEYS) == {
            **dict.fromkeys(KEYS, b"old"),
            "key1": b"new",
            "key2": None,
        }
        assert cluster.log().count("partitions are opened when their owners have compared") == 3
        assert "have what is left of them on all disks, and open again" in cluster.log()
        cluster.wait_in_sync()
        cluster.kill_everything()  # what was doubtful is not any more
        cluster.start()
        assert client.get("key1") == b"new"
        assert cluster.log().count("partitions are opened when their owners have compared") == 3


def test_owners_that_died_while_there_was_no_manager(tmp_path: Path) -> None:
    """M5, N2a: each of them has everything, so one whose log does not end whole does not go on
    alone, whichever end the successor is told of last."""
    with cluster_on(tmp_path, 4, 2) as cluster, cluster.connect() as client:
        client.put("key1", "old")
        client.put("key1", "new")
        owners = client.where("key1").owners
        cluster.kill_manager()
        for node in owners:
            cluster.kill_node(node)
        flip_last_record(tmp_path, max(owners))
        cluster.start()

        def value() -> bytes | None:
            try:
                return client.get("key1")
            except Unavailable as error:
                return b"not open: " + str(error).encode()

        wait_until(lambda: not (value() or b"").startswith(b"not open"), "an open partition")
        assert value() == b"new"


def test_the_only_log_does_not_end_whole(tmp_path: Path) -> None:
    """There is nobody else to ask: what it has is all there is."""
    with cluster_on(tmp_path, 2, 1) as cluster, cluster.connect() as client:
        client.put("key1", "value")
        cluster.kill_everything()
        flip_end_mark(tmp_path, 1)
        cluster.start()
        assert client.get("key1") == b"value"
        assert "what was acknowledged last may be missing" in cluster.log()


def test_an_older_copy_of_a_disk_is_put_back(tmp_path: Path) -> None:
    """M6a: a snapshot of one node's directory, put back after an orderly stop. Nothing that was
    overwritten or deleted since comes back."""
    data = tmp_path / "data"
    with cluster_on(tmp_path) as cluster, cluster.connect() as client:
        client.put_many(dict.fromkeys(KEYS, "old"))
    shutil.copytree(data / "node-1", tmp_path / "copy")
    with cluster_on(tmp_path) as cluster, cluster.connect() as client:
        client.put_many(dict.fromkeys(KEYS[::2], "new"))
        for key in KEYS[1::2]:
            client.delete(key)
        expected = {key: b"new" if key in KEYS[::2] else None for key in KEYS}
        assert client.get_many(KEYS) == expected
    shutil.rmtree(data / "node-1")
    (tmp_path / "copy").rename(data / "node-1")
    with cluster_on(tmp_path) as cluster, cluster.connect() as client:
        assert client.get_many(KEYS) == expected
        assert "node 1 has an older copy of its disk: it copies what differs" in cluster.log()
        cluster.wait_in_sync()
        cluster.kill_node(2)
        cluster.kill_node(3)
        assert client.get_many(KEYS) == expected
    with cluster_on(tmp_path) as cluster, cluster.connect() as client:
        assert "older copy" not in cluster.log(), "it is its disk now"


def test_an_older_copy_is_the_only_one(tmp_path: Path) -> None:
    """M6a: it does not open by itself; an operator may say that it counts, and need say so once."""
    data = tmp_path / "data"
    with cluster_on(tmp_path, 2, 1) as cluster, cluster.connect() as client:
        client.put("key1", "old")  # on node 1
        client.put("key2", "old")  # on node 2
    shutil.copytree(data / "node-1", tmp_path / "copy")
    with cluster_on(tmp_path, 2, 1) as cluster, cluster.connect() as client:
        client.put("key1", "new")
    shutil.rmtree(data / "node-1")
    (tmp_path / "copy").rename(data / "node-1")
    for _ in range(2):
        with cluster_on(tmp_path, 2, 1) as cluster, cluster.connect() as client:
            assert client.get("key2") == b"old"
            with pytest.raises(Unavailable):
                client.get("key1")
            assert "node 1 has an older copy of its disk; 64 partitions" in cluster.log()
            assert "--accept-data-loss" in cluster.log()
    with (
        cluster_on(tmp_path, 2, 1, "--accept-data-loss") as cluster,
        cluster.connect() as client,
    ):
        assert client.get("key1") == b"old"
        assert "64 partitions are opened with what there is" in cluster.log()
        client.put("key1", "newer")
    with cluster_on(tmp_path, 2, 1) as cluster, cluster.connect() as client:
        assert client.get("key1") == b"newer"


def test_nobody_can_say_what_is_missing(tmp_path: Path) -> None:
    """N2a: an owner's log does not end whole, and the other one's disk is gone, which may have had
    more. That waits for the disk, or for an operator."""
    data = tmp_path / "data"
    with cluster_on(tmp_path, 2, 2) as cluster, cluster.connect() as client:
        client.put("key1", "value")
        cluster.kill_everything()
        flip_end_mark(tmp_path, 1)
        (data / "node-2").rename(tmp_path / "gone")
        cluster.start()
        with pytest.raises(Unavailable):
            client.get("key1")
        assert "node 2 is back without its data of 128 partitions" in cluster.log()
    shutil.rmtree(data / "node-2")
    (tmp_path / "gone").rename(data / "node-2")
    with cluster_on(tmp_path, 2, 2) as cluster, cluster.connect() as client:
        assert client.get("key1") == b"value"


def test_an_operator_says_that_it_counts(tmp_path: Path) -> None:
    """The same, and that disk is gone for good."""
    data = tmp_path / "data"
    with cluster_on(tmp_path, 2, 2) as cluster, cluster.connect() as client:
        client.put("key1", "value")
        cluster.kill_everything()
    flip_end_mark(tmp_path, 1)
    shutil.rmtree(data / "node-2")
    with (
        cluster_on(tmp_path, 2, 2, "--accept-data-loss") as cluster,
        cluster.connect() as client,
    ):
        assert client.get("key1") == b"value"
        cluster.wait_in_sync()
