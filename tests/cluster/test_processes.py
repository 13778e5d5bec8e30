"""How the manager holds the nodes' processes: what goes wrong only now and then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gtstore import nursery
from gtstore.client import Client
from gtstore.errors import ClusterError
from gtstore.manager import Manager, ManagerOptions, _Published
from gtstore.membership import Membership
from gtstore.nursery import NodeProcess, Nursery, start_time
from gtstore.placement import PartitionMap
from gtstore.state_file import StateFile
from gtstore.testing import Cluster, wait_until
from gtstore.wire.messages import ALIVE, HASH_ADDITIVE, START_TIMEOUT_S, Member

pytestmark = pytest.mark.cluster


@pytest.fixture
def started() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.fixture
def manager() -> Iterator[Manager]:
    """A manager of one node, which was not started."""
    made = Manager(
        ManagerOptions(
            1,
            1,
            "127.0.0.1",
            0,
            0,
            HASH_ADDITIVE,
            250,
            True,
            False,
            10,
            None,
            1000,
            "error",
            "text",
        )
    )
    member = Member(1, ALIVE, 1, 1, 1, "127.0.0.1")
    first = PartitionMap.first(7, 1, 1, {1: 1})
    made._membership = Membership([member], first, 1, 0.25, 4)
    made._published = _Published(first, {1: member})
    yield made
    made._is_stopping.set()
    for process in made._processes.values():
        process.send_signal(signal.SIGKILL)
        process.wait()
    made.stop()


def test_a_process_that_has_ended_holds_no_file(started: Nursery) -> None:
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        process = started.start({"node": 1}, 1)  # too few options: it ends at once
        assert process.wait() == 1
    del process
    assert len(os.listdir("/proc/self/fd")) == files


def test_too_many_open_files(started: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper tries again: no other exception may end it. The process is not left running."""

    def fail(pid: int) -> int:
        pids.append(pid)
        raise OSError(24, "too many open files")

    pids: list[int] = []
    monkeypatch.setattr(os, "pidfd_open", fail)
    with pytest.raises(ClusterError, match="too many open files"):
        started.start({"node": 1}, 1)
    assert not os.path.exists(f"/proc/{pids[0]}")


def test_what_cannot_be_looked_at_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A successor that took a running node for dead would start another one beside it (M4)."""

    def fail(_: str) -> None:
        raise OSError(24, "too many open files")

    assert start_time(1 << 23) == 0
    monkeypatch.setattr(nursery, "open", fail, raising=False)
    with pytest.raises(OSError, match="too many"):
        start_time(os.getpid())


def test_a_node_is_awaited_before_it_may_register(manager: Manager) -> None:
    """Told of its start after its return, the membership would kill it as one that does not come,
    even if it had the last copy by then."""
    membership = manager._membership
    assert membership is not None
    membership.exited(1, "killed", 1000.0)
    assert manager._spawn(1, 2) is not None
    assert 1 in membership._starting
    membership.returned(Member(1, ALIVE, 2, 1, 1, "127.0.0.1"), 1001.0)
    assert 1 not in membership._starting


def test_what_is_saved_never_goes_back(manager: Manager) -> None:
    """A start saves what is known when it saves, not what was known when it began to wait."""
    membership = manager._membership
    assert membership is not None
    newer = _Published(PartitionMap(99, membership.map.rows), manager._published.members)
    process: list[NodeProcess] = []
    with manager._saving:  # as the publisher does
        thread = threading.Thread(target=lambda: process.append(manager._spawn(1, 1)))
        thread.start()
        wait_until(lambda: 1 in manager._looks, "the new process")
        manager._published = newer
    thread.join()
    assert manager._published is newer
    (saved,) = manager._state_file.read()
    assert saved.map.epoch == 99


def test_a_signal_interrupts_also_the_first_map(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that is stopped just then takes no map for as long as a start may take."""
    manager._registered = {1: Member(1, ALIVE, 1, 1, 1, "127.0.0.1")}
    tries: list[float] = []

    def publish(timeout_s: float) -> list[int]:
        tries.append(timeout_s)
        return [1]

    monkeypatch.setattr(manager, "_publish", publish)
    manager._is_interrupted = lambda: bool(tries)
    with pytest.raises(ClusterError, match="stopped before all storage nodes were ready"):
        manager._await_nodes()
    assert sum(tries) < START_TIMEOUT_S / 10


def test_the_state_file_goes_before_the_port(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the port is free, the file may be another manager's."""
    manager._spawn(1, 1)
    process = manager._processes[1]
    threading.Thread(target=process.wait).start()
    assert manager._state_file.path.exists()
    there: list[bool] = []
    drain = manager._server.drain

    def drain_late() -> None:
        there.append(manager._state_file.path.exists())
        drain()

    monkeypatch.setattr(manager._server, "drain", drain_late)
    manager.stop()
    assert there == [False]
    manager._processes.clear()


def test_the_state_directory_is_made_again(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    file = StateFile.of_address("127.0.0.1", 1)
    file.path.parent.rmdir()
    manager._state_file = file
    manager._save()
    assert file.path.exists()
    assert file.path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.gtstore(nodes=4)
def test_a_source_that_hangs_holds_up_no_other(cluster: Cluster, store: Client) -> None:
    """Node 1 copies from nodes 2 and 4. While node 2, which has the last copy of some partitions,
    is stopped, the copies from node 4 are restored all the same."""
    store.put_many({f"key{number}": bytes(4000) for number in range(4000)})
    cluster.kill_node(1)
    wait_until(lambda: store.status()["nodes"][0]["incarnation"] == 2, "a new node 1")
    cluster.pause_node(2)
    assert {partition % 4 for partition in store.status()["under_replicated"]} == {0, 3}

    def is_node_4_done() -> bool:
        return {partition % 4 for partition in store.status()["under_replicated"]} == {0}

    wait_until(is_node_4_done, "copies from node 4")
    cluster.resume_node(2)
    cluster.wait_in_sync()


def test_a_nursery_whose_manager_is_killed() -> None:
    """It ends without a word, also with an answer that nobody reads any more."""
    command = [sys.executable, "-m", "gtstore.storaged", "--nursery"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        print('{"reap": 1}', file=process.stdin, flush=True)
        assert process.stderr.read() == ""
        assert process.wait(60) == 0
