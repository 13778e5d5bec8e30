"""The test kit: nodes that are stopped and started, and nothing that is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gtstore import testing
from gtstore.client import Client
from gtstore.errors import ClusterError, Unavailable
from gtstore.testing import Cluster, _state, wait_until

pytestmark = pytest.mark.cluster


def node(cluster: Cluster, number: int) -> dict[str, Any]:
    return next(row for row in cluster.status()["nodes"] if row["id"] == number)


def all_have_ended(pids: list[int]) -> bool:
    return all(_state(pid) == "Z" for pid in pids)


# --- nodes that are stopped and started ----------------------------------------------------------


@pytest.mark.gtstore(nodes=4)
def test_a_stopped_node_stays_away(cluster: Cluster, store: Client) -> None:
    """Others stand in for it, and it is not started when others are."""
    values = {f"key{i}": b"%d" % i for i in range(400)}
    store.put_many(values)
    before = node(cluster, 3)
    cluster.stop_node(3)
    assert all_have_ended([before["pid"]])
    assert node(cluster, 3)["state"] == "dead"
    assert "node 3 is dead: its process ended with exit status 0" in cluster.log()
    cluster.wait_in_sync()
    cluster.kill_node(1)
    wait_until(lambda: node(cluster, 1)["incarnation"] == 2, "a new node 1")
    cluster.wait_in_sync()
    cluster.stop_node(3)  # again: nothing changes
    assert store.get_many(list(values)) == values
    now = node(cluster, 3)
    assert (now["state"], now["incarnation"]) == ("dead", 1)
    cluster.restart_node(3)
    now = node(cluster, 3)
    assert (now["state"], now["incarnation"]) == ("alive", 2)
    assert now["pid"] != before["pid"]
    assert now["pid"] == cluster.node_pids[3]
    cluster.wait_in_sync()
    assert store.get_many(list(values)) == values
    cluster.kill_node(3)
    wait_until(lambda: node(cluster, 3)["incarnation"] == 3, "it is held no longer")


def test_a_running_node_is_restarted(cluster: Cluster) -> None:
    """It is stopped in an orderly way before. A paused one is ended by force."""
    cluster.restart_node(2)
    assert node(cluster, 2)["incarnation"] == 2
    assert "ended with exit status 0" in cluster.log()
    cluster.wait_in_sync()
    cluster.pause_node(1)
    cluster.restart_node(1)
    assert node(cluster, 1)["incarnation"] == 2
    cluster.wait_in_sync()


def test_a_dead_node_is_restarted_at_once(cluster: Cluster) -> None:
    """Also while the manager pauses before it starts it again, and then there is one start only."""
    for _ in range(4):  # the manager's own pause gets longer each time
        cluster.kill_node(2)
        cluster.restart_node(2)
    cluster.wait_in_sync()
    assert node(cluster, 2)["incarnation"] == 5
    assert cluster.log().count("node 2 is started again") == 4


@pytest.mark.gtstore(respawn=False)
def test_a_dead_node_is_restarted_where_the_manager_does_not(cluster: Cluster) -> None:
    """And if it was stopped, and dies again, it stays dead as before."""
    cluster.kill_node(2)
    cluster.wait_in_sync()
    cluster.restart_node(2)
    cluster.stop_node(2)
    cluster.restart_node(2)
    assert node(cluster, 2)["incarnation"] == 3
    cluster.wait_in_sync()
    cluster.kill_node(2)
    cluster.wait_in_sync()
    cluster.kill_node(1)
    wait_until(lambda: node(cluster, 1)["state"] == "dead", "what the manager has seen")
    assert node(cluster, 2)["state"] == "dead"


def test_a_successor_of_the_manager_leaves_it_away(cluster: Cluster) -> None:
    """One after the other, and the last one can start it."""
    cluster.stop_node(3)
    for _ in range(2):
        cluster.kill_manager()
        cluster.start()
        cluster.restart_node(1)
        cluster.wait_in_sync()
        assert node(cluster, 3)["incarnation"] == 1
    cluster.restart_node(3)
    cluster.wait_in_sync()
    assert node(cluster, 3)["incarnation"] == 2


def test_a_stopped_node_keeps_its_disk(tmp_path: Path) -> None:
    """And it is started again with everything else after everything was killed."""
    with (
        Cluster(2, 1, ["--data-dir", str(tmp_path / "data")]) as cluster,
        cluster.connect() as store,
    ):
        store.put("key1", "value1")
        assert store.where("key1").owners == (1,)
        cluster.stop_node(1)
        with pytest.raises(Unavailable):
            store.get("key1")
        cluster.restart_node(1)
        assert store.get("key1") == b"value1"
        cluster.stop_node(1)
        cluster.kill_everything()
        cluster.start()
        assert store.get("key1") == b"value1"


def test_what_cannot_be_done_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="there is no node 4"):
        cluster.stop_node(4)
    with pytest.raises(ClusterError, match="node 1 is not away: stop it first"):
        cluster._ask({"start": 1})
    for command in ({"bark": 1}, {"stop": 1, "start": 1}, {}, {"stop": None}):
        with pytest.raises(ClusterError, match="this is no command"):
            cluster._ask(command)  # type: ignore[arg-type]
    cluster.kill_manager()
    with pytest.raises(ClusterError, match="no manager"):
        cluster.stop_node(1)


# --- nothing is left behind ----------------------------------------------------------------------


PROGRAM = """
import multiprocessing, os, signal, sys, time
from gtstore.testing import Cluster

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
cluster = Cluster(3, 2).start()
print(cluster.manager_pid, *cluster.node_pids.values(), flush=True)
{deed}
"""
DEEDS = {
    "waiting": "time.sleep(60)",
    "without a manager": "cluster.kill_manager(); time.sleep(60)",
    "all paused": "cluster.pause_manager(); "
    "[os.kill(pid, signal.SIGSTOP) for pid in cluster.node_pids.values()]; "
    "print(flush=True); time.sleep(60)",
    "in a context": "with cluster: time.sleep(60)",
}


def run(deed: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A program with a cluster, and the cluster's processes."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(deed=deed)], stdout=subprocess.PIPE
    )
    assert program.stdout is not None
    pids = [int(pid) for pid in program.stdout.readline().split()]
    assert len(pids) == 4
    assert not all_have_ended(pids)
    return program, pids


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("deed", ["waiting", "without a manager", "in a context"])
def test_the_program_is_ended(deed: str, number: signal.Signals) -> None:
    """By Ctrl-C, by a supervisor, or by force; also after its manager was killed."""
    program, pids = run(DEEDS[deed])
    with program:
        program.send_signal(number)
    wait_until(lambda: all_have_ended(pids), "the end of all processes")


def test_the_program_is_killed_while_all_are_stopped() -> None:
    program, pids = run(DEEDS["all paused"])
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"\n"
        program.kill()
    wait_until(lambda: all_have_ended(pids), "the end of all processes")


@pytest.mark.parametrize("deed", ["pass", "cluster.kill_manager()", "del cluster; time.sleep(60)"])
def test_the_program_forgets_to_stop_it(deed: str) -> None:
    """It ends, or has no more use for it."""
    program, pids = run(deed)
    with program:
        wait_until(lambda: all_have_ended(pids), "the end of all processes")
        program.kill()


def test_a_fork_of_the_program_lives_longer() -> None:
    """The program is killed; its fork, as multiprocessing makes them, does not keep the cluster."""
    # One write a line: both of them write at the same time.
    program, pids = run(r"os.write(1, b'%d\n' % os.fork()); time.sleep(60)")
    with program:
        assert program.stdout is not None
        # The fork prints too.
        fork = max(int(program.stdout.readline()), int(program.stdout.readline()))
        program.kill()
        wait_until(lambda: all_have_ended(pids), "the end of all processes")
        assert _state(fork) != "Z"
        os.kill(fork, signal.SIGKILL)


@pytest.mark.parametrize("moment", ["the manager was started", "it is ready", "it is stopped"])
def test_an_interrupt_at_any_moment(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Ctrl-C within start: also when the manager's process is there, and not known yet. And within
    stop."""
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        started.append(popen(*arguments, **options))
        if moment == "the manager was started":
            raise KeyboardInterrupt
        return started[0]

    monkeypatch.setattr(testing.subprocess, "Popen", start)
    if moment == "it is ready":
        monkeypatch.setattr(Cluster, "_learn_pids", interrupted)
    cluster = Cluster(2, 1)
    if moment == "it is stopped":
        cluster.start()
        monkeypatch.setattr(Cluster, "_stop_manager", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cluster.stop()
    else:
        with pytest.raises(KeyboardInterrupt):
            cluster.start()
    assert not cluster._lifeline._open, "it was waited for their ends"
    with started[0]:
        # A process closes its files a moment before its end can be seen.
        wait_until(lambda: all_have_ended([started[0].pid]), "the end of the manager")


def test_stopping_twice_and_its_log() -> None:
    """The log can be read also afterwards."""
    cluster = Cluster(2, 1, respawn=False).start()
    cluster.kill_node(1)
    wait_until(lambda: "node 1 is dead" in cluster.log(), "what the manager has seen")
    assert cluster.stop() == 0
    assert cluster.stop() == 0
    assert "node 1 is dead" in cluster.log()
    Cluster().stop()  # never started
