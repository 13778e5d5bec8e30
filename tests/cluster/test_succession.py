"""A manager's successor, where something is not as the last one left it: another port, other
options, another cluster at the address, a runtime directory that is gone, an old file (M4)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gtstore.state_file import StateFile
from gtstore.testing import Cluster, _state, wait_until

pytestmark = pytest.mark.cluster


def managerd(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run managerd until it ends by itself."""
    command = [sys.executable, "-m", "gtstore.managerd", *arguments, "--node-port", "0"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def port_of(cluster: Cluster) -> int:
    return int(cluster.address.rpartition(":")[2])


def is_gone(pid: int) -> bool:
    """Also if nobody has reaped it yet."""
    return _state(pid) == "Z"


@pytest.mark.parametrize("options", [[], ["--no-respawn"]])
def test_a_successor_on_another_port(tmp_path: Path, options: list[str]) -> None:
    """The nodes that run report to the last one's address: it is refused, in one line, with exit 2;
    nothing is touched."""
    data = ["--data-dir", str(tmp_path / "data")]
    with Cluster(2, 2, data) as cluster:
        pids = list(cluster.node_pids.values())
        cluster.kill_manager()
        done = managerd("2", "2", "--port", "0", *data, *options)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert f"report to {cluster.address}: start it with --host 127.0.0.1 --port" in done.stderr
        assert f"kill {pids[0]} {pids[1]}" in done.stderr
        cluster.start()
        assert list(cluster.node_pids.values()) == pids
        assert "each with the options that it was started with" in cluster.log()


def test_a_successor_with_a_data_directory(tmp_path: Path) -> None:
    """Nodes that have their data in memory would be left to themselves: it is refused."""
    with Cluster(1, 1) as cluster:
        cluster.kill_manager()
        data = ("--data-dir", str(tmp_path / "data"))
        done = managerd("1", "1", "--port", str(port_of(cluster)), *data)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert f"start it without --data-dir, or stop them with: kill {cluster.node_pids[1]}" in (
            done.stderr
        )


@pytest.mark.parametrize("is_durable", [False, True])
def test_another_cluster_at_the_address(tmp_path: Path, is_durable: bool) -> None:
    """Nobody knows of the nodes of a killed manager any more, and another cluster is started where
    it was: the nodes end, and say why; their clients find the new cluster. What was on disk is
    there for the next start with it."""
    options = ["--data-dir", str(tmp_path / "data")] if is_durable else []
    with Cluster(2, 2, options) as cluster, cluster.connect() as store:
        store.put("key", b"value")
        port, pids = port_of(cluster), list(cluster.node_pids.values())
        cluster.kill_manager()
        StateFile.of_address("127.0.0.1", port).remove()
        assert store.get("key") == b"value"
        with Cluster(2, 2, port=port) as other:
            wait_until(lambda: all(map(is_gone, pids)), "the end of the old nodes", 60)
            assert store.get("key") is None
            assert other.status()["nodes"][0]["incarnation"] == 1, "nobody else was touched"
        for node in (1, 2):
            assert f"node {node}: the manager of another cluster" in cluster.log()
            assert f"node {node}: stopping: this cluster is over" in cluster.log()
        if is_durable:
            cluster.start()
            assert store.get("key") == b"value"


def test_nodes_wait_for_a_manager_that_is_away(tmp_path: Path) -> None:
    """Nobody at the address, or somebody who is no manager, or their own manager's successor: they
    stay. The successor's first answers come while it is starting, without an epoch."""
    data = ["--data-dir", str(tmp_path / "data")]
    with Cluster(2, 2, data) as cluster, cluster.connect() as store:
        store.put("key", b"value")
        pids = list(cluster.node_pids.values())
        cluster.kill_manager()
        cluster.start()
        cluster.kill_node(1)
        cluster.wait_in_sync()
        assert is_gone(pids[0])
        assert cluster.node_pids[2] == pids[1]
        assert "another cluster" not in cluster.log()


def test_a_logout_takes_the_runtime_directory_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager writes its file to the other place, and its successor finds it there, with the
    runtime directory or without."""
    runtime, temporary = tmp_path / "run", tmp_path / "tmp"
    for directory in (runtime, temporary):
        directory.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with Cluster(2, 2) as cluster, cluster.connect() as store:
        store.put("key", b"value")
        name = f"manager-127.0.0.1-{port_of(cluster)}.json"
        assert (runtime / "gtstore" / name).exists()
        shutil.rmtree(runtime)
        there = temporary / f"gtstore-{os.getuid()}" / name
        wait_until(there.exists, "the file in the other place")
        for is_logged_in in (False, True):
            if is_logged_in:
                runtime.mkdir()
            cluster.kill_manager()
            cluster.start()
            assert store.get("key") == b"value"
            assert [node["incarnation"] for node in store.status()["nodes"]] == [1, 1]
        assert not there.exists()


@pytest.mark.parametrize("is_whole", [True, False])
def test_an_old_state_comes_back(tmp_path: Path, is_whole: bool) -> None:
    """Somebody puts back a state.json from before changes of the map: its epochs would be used
    again. What the nodes have says so, also if none of their logs ends whole; nothing is touched,
    and the right one still works."""
    data = ["--data-dir", str(tmp_path / "data")]
    path = tmp_path / "data" / "manager" / "state.json"
    with Cluster(2, 2, data) as cluster, cluster.connect() as store:
        old = path.read_text()
        store.put("key", b"old")
        cluster.kill_node(1)
        cluster.wait_in_sync()
        store.put("key", b"value")
        if not is_whole:
            cluster.kill_everything()
    if not is_whole:
        from .test_disks import flip_end_mark  # it needs lmdb

        for node in (1, 2):
            flip_end_mark(tmp_path, node)
    new = path.read_text()
    path.write_text(old)
    done = managerd("2", "2", "--port", "0", *data)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"gtstore: {path} is of map 1, but node" in done.stderr.splitlines()[-1]
    path.write_text(new)
    with Cluster(2, 2, data) as cluster, cluster.connect() as store:
        assert store.get("key") == b"value"


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_damaged_state(tmp_path: Path, damage: str) -> None:
    """One line, exit 2; nothing is touched."""
    data = ["--data-dir", str(tmp_path / "data")]
    path = tmp_path / "data" / "manager" / "state.json"
    with Cluster(2, 2, data) as cluster, cluster.connect() as store:
        store.put("key", b"value")
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:5000])
    elif damage == "flipped":
        path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    else:
        path.unlink()
    done = managerd("2", "2", "--port", "0", *data)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert str(path) in done.stderr
    path.write_bytes(whole)
    with Cluster(2, 2, data) as cluster, cluster.connect() as store:
        assert store.get("key") == b"value"


def test_a_lock_that_cannot_be_written(tmp_path: Path) -> None:
    """On a full disk, say: the process number in it is only for people."""
    data = tmp_path / "data"
    (data / "manager").mkdir(parents=True)
    (data / "manager" / "lock").symlink_to("/dev/full")
    with Cluster(1, 1, ["--data-dir", str(data)]) as cluster, cluster.connect() as store:
        store.put("key", b"value")
        done = managerd("1", "1", "--port", "0", "--data-dir", str(data))
        assert done.returncode == 2
        assert "is in use by the manager that is process" in done.stderr
