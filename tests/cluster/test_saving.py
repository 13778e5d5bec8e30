"""The manager's state file cannot be written: what it does meanwhile, and afterwards (M2, M4).

A limit on the size of files makes writing fail for the manager alone, as a full disk would: no file
that it writes may grow beyond what its log takes.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import gtstore
from gtstore.manager import Manager
from gtstore.state_file import StateFile
from gtstore.testing import Cluster, wait_until

from .managers import a_manager, address_of

pytestmark = pytest.mark.cluster

ROOM = 16 * 1024
KEYS = [f"key{i}" for i in range(300)]


@contextmanager
def no_room(cluster: Cluster) -> Iterator[None]:
    """The manager cannot write its state file."""
    pid = cluster.manager_pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (ROOM, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # the test has ended it
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def reasons(store: gtstore.Client) -> list[str]:
    return [trouble["reason"] for trouble in store.status()["troubles"]]


def test_a_change_of_the_map_waits_for_its_file(tmp_path: Path) -> None:
    """With a data directory: the last state stays. Nobody sees the next map, no node is started
    again, and status says why; clients are told, and read what they can. Once there is room, all
    goes on."""
    path = tmp_path / "data" / "manager" / "state.json"
    options = ["--data-dir", str(tmp_path / "data")]
    with Cluster(3, 2, options) as cluster, cluster.connect() as store:
        store.put_many(dict.fromkeys(KEYS, b"value"))
        of_node_1 = next(key for key in KEYS if store.where(key).owners[0] == 1)
        of_others = next(key for key in KEYS if 1 not in store.where(key).owners)
        before, epoch = path.read_text(), store.status()["epoch"]
        with no_room(cluster):
            cluster.kill_node(1)
            wait_until(lambda: reasons(store), "that the status says so")
            (trouble,) = store.status()["troubles"]
            assert trouble["what"] == "unsaved"
            assert trouble["reason"] == (
                f"{path} cannot be written: file too large; changes of the map wait for it, and "
                "dead nodes are not started again"
            )
            assert trouble["reason"] in cluster.log()
            with pytest.raises(gtstore.Unavailable, match=r"is dead, and .* cannot be written"):
                store.get(of_node_1)
            assert store.get(of_others) == b"value"
            store.put(of_others, b"new")
            status = store.status()
            assert (status["nodes"][0]["state"], status["epoch"]) == ("dead", epoch)
            assert status["nodes"][0]["incarnation"] == 1
            assert status["troubles"] == [trouble], "it is the same one all the time"
            assert path.read_text() == before
        cluster.wait_in_sync()
        assert reasons(store) == []
        assert f"{path} is written again" in cluster.log()
        assert store.get(of_node_1) == b"value"
        assert store.status()["nodes"][0]["incarnation"] == 2


@pytest.mark.parametrize("end", [Cluster.stop, Cluster.kill_everything])
def test_a_full_disk_and_a_restart(tmp_path: Path, end: Callable[[Cluster], object]) -> None:
    """Everything that was acknowledged is back, also if the manager could not write at the end; an
    orderly stop needs no room."""
    options = ["--data-dir", str(tmp_path / "data")]
    with Cluster(3, 2, options) as cluster, cluster.connect() as store:
        store.put_many(dict.fromkeys(KEYS, b"value"))
        with no_room(cluster):
            cluster.kill_node(1)
            wait_until(lambda: "state.json" in cluster.log(), "that the log says so")
            assert end(cluster) in (0, None)
    with Cluster(3, 2, options) as cluster, cluster.connect() as store:
        assert store.get_many(KEYS) == dict.fromkeys(KEYS, b"value")


def test_in_memory_it_goes_on_without_a_successor() -> None:
    """Without a data directory a node is started again all the same; the old file, of older epochs,
    is removed, status and log say so, and it is written again as soon as that works."""
    with Cluster(3, 2) as cluster, cluster.connect() as store:
        store.put_many(dict.fromkeys(KEYS, b"value"))
        path = StateFile.of_address("127.0.0.1", int(cluster.address.rpartition(":")[2])).path
        with no_room(cluster):
            cluster.kill_node(1)
            cluster.wait_in_sync()
            assert not path.exists()
            (reason,) = reasons(store)
            assert reason == (
                f"{path} cannot be written: file too large; if this manager is killed, no other "
                "one can take its nodes over"
            )
            assert reason in cluster.log()
        wait_until(lambda: not reasons(store), "that it is written again")
        assert path.exists()
        cluster.kill_manager()
        cluster.start()
        assert store.get_many(KEYS) == dict.fromkeys(KEYS, b"value")
        assert store.status()["nodes"][0]["incarnation"] == 2


def test_a_file_that_is_lost_is_written_again() -> None:
    """What cleans up takes the manager's file away: it notices within moments, not an hour."""
    with Cluster(1, 1) as cluster:
        path = StateFile.of_address("127.0.0.1", int(cluster.address.rpartition(":")[2])).path
        path.unlink()
        wait_until(path.exists, "the file")


@pytest.fixture
def manager() -> Iterator[Manager]:
    with a_manager() as made:
        yield made


def test_neither_written_nor_removed(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread of the manager ends with it. An epoch that a successor could use again must not
    become known (M4): the change waits, also in memory."""

    def fail(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with (
        gtstore.connect(address_of(manager)) as store,
        monkeypatch.context() as patch,
    ):
        store.put("key", b"value")
        before = store.status()
        patch.setattr(manager._state_file, "write", fail)
        patch.setattr(manager._state_file, "remove", fail)
        manager._processes[1].send_signal(9)  # type: ignore[arg-type]
        wait_until(lambda: store.status()["nodes"][0]["state"] == "dead", "its death")
        wait_until(lambda: reasons(store), "that the status says so")
        assert (
            "nor can it be removed: read-only file system; changes of the map" in reasons(store)[0]
        )
        assert store.status()["epoch"] == before["epoch"]
        patch.undo()
        wait_until(
            lambda: (
                store.status()["nodes"][0]["incarnation"] == 2
                and not store.status()["under_replicated"]
            ),
            "its return",
        )
        manager._processes[1].send_signal(9)  # type: ignore[arg-type]
        wait_until(lambda: store.status()["nodes"][0]["incarnation"] == 3, "its next return")
        assert store.get("key") == b"value"


def test_it_is_tried_again_whoever_has_tried(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is saved though the map has not changed, as once an hour."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = manager._state_file.path
    with gtstore.connect(address_of(manager)) as store, monkeypatch.context() as patch:
        patch.setattr(manager._state_file, "write", fail)
        assert manager._save()
        assert not path.exists()
        assert reasons(store)
        patch.undo()
        wait_until(path.exists, "the file")
        wait_until(lambda: not reasons(store), "that this is known")


def test_a_start_whose_process_cannot_be_saved(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A successor would not know of it: it is ended before it may register, and the next one is
    started when that can be saved."""
    save = manager._save
    tried: list[int] = []

    def save_later(published: Any = None) -> bool:
        if published is not None:
            return save(published)
        tried.append(manager._processes[1].pid)
        return len(tried) > 1 and save()

    first = manager._processes[1].pid
    monkeypatch.setattr(manager, "_save", save_later)
    with gtstore.connect(address_of(manager)) as store:
        manager._processes[1].send_signal(9)  # type: ignore[arg-type]
        wait_until(
            lambda: (
                store.status()["nodes"][0]["incarnation"] == 3
                and not store.status()["under_replicated"]
            ),
            "the one after the next",
        )
        assert len({first, *tried}) == 3


@pytest.mark.parametrize("name", ["lock", "state.json.spare"])
def test_a_first_state_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    """One line, exit 2, and nothing runs: no first map may be known before it is written down."""
    (tmp_path / "manager" / name).mkdir(parents=True)
    command = [sys.executable, "-m", "gtstore.managerd", "1", "1", "--port", "0"]
    command += ["--node-port", "0", "--data-dir", str(tmp_path), "--log-level", "error"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("gtstore: ")
    assert str(tmp_path) in last
    assert "is a directory" in last.lower()


def test_a_stop_that_cannot_remove_its_file(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a stop all the same."""

    def fail(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with a_manager() as manager:
        path = manager._state_file.path
        monkeypatch.setattr(manager._state_file, "remove", fail)
    assert f"{path} stays: read-only file system" in caplog.text
    path.unlink()
    path.with_name(f"{path.name}.spare").unlink()
