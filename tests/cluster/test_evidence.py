"""Evidence before a kill (M1), with real processes: who waits for a processor does not hang."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import pytest

from gtstore import nursery
from gtstore.client import Client
from gtstore.nursery import Look, NodeProcess
from gtstore.testing import Cluster, wait_until

pytestmark = pytest.mark.cluster

LOOPS_A_PROCESSOR = 8
KEYS = 300


@contextmanager
def programs(code: str, count: int) -> Iterator[list[int]]:
    """Python programs that run meanwhile: their process numbers."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            running.append(subprocess.Popen([sys.executable, "-c", code], start_new_session=True))
        yield [process.pid for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()


@contextmanager
def full_machine() -> Iterator[None]:
    """Others keep each processor more than full."""
    with programs("while True: pass", LOOPS_A_PROCESSOR * len(os.sched_getaffinity(0))):
        yield


def test_a_process_that_gets_on() -> None:
    """With its start: it uses a processor, or reads, however little."""
    nobody: Any = None
    reads = "import time\nwhile True: open('/proc/stat').read(), time.sleep(0.1)"
    for code in ("while True: pass", reads):
        with programs(code, 1) as (pid,):
            process = NodeProcess(pid, 1, nobody)
            for _ in range(4):
                wait_until(process.gets_on, "that it gets on", 50)
    with programs("import signal; signal.pause()", 1) as (pid,):
        process = NodeProcess(pid, 1, nobody)
        wait_until(lambda: not any(process.gets_on() for _ in range(100)), "that it sleeps")
    assert not process.gets_on(), "it has ended"


def test_a_look_at_processes() -> None:
    """One that is at work, one that sleeps, and the same one stopped: the system tells them apart,
    for all threads together."""
    at_work = "import threading; threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()"
    with programs(at_work, 1) as (busy,), programs("import signal; signal.pause()", 1) as (idle,):
        wait_until(lambda: Look.at(busy).since(None).has_waited, "a thread that is ready to run")
        before = Look.at(busy)
        # On a full machine it waits for most of the time.
        wait_until(
            lambda: (e := Look.at(busy).since(before)).ran_s + (e.waited_s or 0) > 0.1, "its time"
        )
        assert not Look.at(busy).since(before).is_hung
        wait_until(lambda: set(Look.at(idle).states) == {"S"}, "a process that sleeps")
        before = Look.at(idle)
        wait_until(lambda: Look.at(idle).since(before).seconds > 0.05, "a moment")
        assert Look.at(idle).since(before).is_hung
        os.kill(busy, signal.SIGSTOP)
        wait_until(lambda: Look.at(busy).since(before).is_stopped, "its stop")
    assert Look.at(busy).states == ""


def test_a_kernel_without_schedstat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is known: how long the threads ran, and their states."""

    def without(name: str) -> IO[Any]:
        if name.endswith("schedstat"):
            raise FileNotFoundError(name)
        return open(name)

    monkeypatch.setattr(nursery, "open", without, raising=False)
    before = Look.at(os.getpid())
    wait_until(lambda: sum(i * i for i in range(10**4)) and ran(before) > 0.03, "some work", 60)
    found = Look.at(os.getpid()).since(before)
    assert found.waited_s is None
    assert "R" in found.states


def ran(before: Look) -> float:
    return Look.at(os.getpid()).since(before).ran_s


@pytest.mark.gtstore(nodes=5, replicas=3, options=["--probe-interval-ms", "20"])
def test_nobody_is_killed_on_a_full_machine(cluster: Cluster) -> None:
    """One node is killed by hand, while others keep the machine full: it returns, and nobody else
    is taken for hung (M1)."""
    items = {f"key{i}": bytes(1000) for i in range(KEYS)}
    with cluster.connect(timeout=60) as store, full_machine():
        store.put_many(items)
        for node in (1, 2):
            before = {row["id"]: row["pid"] for row in store.status()["nodes"]}
            cluster.kill_node(node)
            cluster.wait_in_sync(120)
            after = {row["id"]: row["pid"] for row in store.status()["nodes"]}
            assert {n for n in before if after[n] != before[n]} == {node}
            put_by_many(cluster, items)
        assert store.get_many(list(items)) == items
    assert "killing it" not in cluster.log()


def put_by_many(cluster: Cluster, items: dict[str, bytes]) -> None:
    """All of these, by several clients at once."""

    def put() -> None:
        with cluster.connect(timeout=60) as client:
            for key, value in items.items():
                client.put(key, value)

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.gtstore(nodes=3, replicas=2, options=["--probe-interval-ms", "50"])
def test_a_stopped_node_is_replaced_on_a_full_machine(cluster: Cluster, store: Client) -> None:
    """Its process is stopped, the system says so: nothing excuses it (M1)."""
    with full_machine():
        cluster.pause_node(2)
        wait_until(lambda: store.status()["nodes"][1]["incarnation"] == 2, "its successor", 60)
    lines = [line for line in cluster.log().splitlines() if "killing it" in line]
    assert len(lines) == 1
    assert "node 2 is silent for " in lines[0]
    assert "its process is stopped" in lines[0]


@pytest.mark.gtstore(nodes=3, replicas=2, options=["--probe-interval-ms", "50"])
def test_all_nodes_are_stopped_for_a_moment(cluster: Cluster, store: Client) -> None:
    """Of three nodes with two copies each, one may be killed, and no more before all copies are
    there again (M1)."""
    store.put("key", b"value")
    for node in (1, 2, 3):
        cluster.pause_node(node)
    wait_until(lambda: "killing it" in cluster.log(), "the end of the first one")
    wait_until(lambda: cluster.log().count(" probes (") >= 3, "what is said of the others")
    for node in (1, 2, 3):
        cluster.resume_node(node)
    cluster.wait_in_sync()
    assert cluster.log().count("killing it") == 1
    assert store.get("key") == b"value"


@pytest.mark.gtstore(nodes=3, replicas=2, options=["--probe-interval-ms", "50"])
def test_a_node_that_accepts_nobody_is_replaced(cluster: Cluster, store: Client) -> None:
    """It serves the connections that it has, those of the manager too, and is not alive for that:
    probes go over new ones now and then (M1)."""
    store.put_many({f"key{i}": b"value" for i in range(50)})
    resource.prlimit(cluster.node_pids[2], resource.RLIMIT_NOFILE, (3, 3))
    wait_until(lambda: "node 2 is dead" in cluster.log(), "its end")
    with cluster.connect(timeout=20) as other:
        wait_until(lambda: other.status()["nodes"][1]["incarnation"] == 2, "its successor")
        assert other.get("key1") == b"value"
