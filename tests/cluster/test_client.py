"""The client over real processes: threads, forks, deadlines, failures, another cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator

import pytest

import gtstore
from gtstore.testing import Cluster, wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(5, 3) as running:
        yield running


def mixed_work(store: gtstore.Client, name: str, seconds: float) -> int:
    """Put, get, delete, put_many, get_many on keys of one's own; every get returns what was put."""
    end = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < end:
        rounds += 1
        keys = [f"{name}/{i}" for i in range(5)]
        store.put(keys[0], f"{rounds}")
        assert store.get(keys[0]) == b"%d" % rounds
        store.put_many({key: f"{key} {rounds}" for key in keys})
        assert store.get_many(keys) == {key: f"{key} {rounds}".encode() for key in keys}
        large = os.urandom(50_000 + rounds % 7 * 40_000)
        store.put(keys[1], large)
        assert store.get(keys[1]) == large
        store.delete(keys[2])
        assert store.get(keys[2], b"none") == b"none"
    return rounds


def test_50_threads_share_one_client(cluster: Cluster) -> None:
    """Every get returns what that thread put."""
    failures: list[str] = []

    def work(number: int) -> None:
        try:
            assert mixed_work(store, f"thread {number}", 2.0) > 0
        except BaseException:
            failures.append(traceback.format_exc())

    with cluster.connect(timeout=30) as store:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_fork_after_use(cluster: Cluster) -> None:
    """Parent and children go on with the same Client, also while threads of the parent use it."""
    context = multiprocessing.get_context("fork")
    stop = threading.Event()
    with cluster.connect(timeout=30) as store:
        mixed_work(store, "parent", 0.1)

        def keep_busy() -> None:
            while not stop.is_set():
                mixed_work(store, "busy", 0.1)

        busy = threading.Thread(target=keep_busy)
        busy.start()
        children = [
            context.Process(target=mixed_work, args=(store, f"child {i}", 1.0)) for i in range(3)
        ]
        for child in children:
            child.start()
        mixed_work(store, "parent", 1.0)
        for child in children:
            child.join()
        stop.set()
        busy.join()
        assert [child.exitcode for child in children] == [0, 0, 0]
        store.put("after", b"1")
        assert store.get("after") == b"1"


def test_a_stopped_manager_kills_nobody() -> None:
    """M1: probes that were late because the manager itself was stopped prove nothing."""
    options = ["--probe-interval-ms", "50"]
    with Cluster(3, 2, options) as cluster, cluster.connect() as store:
        os.kill(cluster.manager_pid, signal.SIGSTOP)
        try:
            for i in range(10):
                store.put(f"key{i}", b"x")
            os.kill(cluster.node_pids[1], signal.SIGSTOP)
        finally:
            os.kill(cluster.node_pids[1], signal.SIGCONT)
            os.kill(cluster.manager_pid, signal.SIGCONT)
        assert {node["state"] for node in store.status()["nodes"]} <= {"alive", "suspect"}


def count_up(address: str, seconds: float) -> tuple[int, int]:
    """Increment and append until the time is over: how many were acknowledged, how many are
    unknown."""
    done = unknown = 0
    end = time.monotonic() + seconds
    with gtstore.connect(address, timeout=10) as store:
        while time.monotonic() < end:
            for call in (lambda: store.increment("count"), lambda: store.append("letters", "x")):
                try:
                    call()
                    done += 1
                except gtstore.OutcomeUnknown:
                    unknown += 1
    return done, unknown


def test_increments_and_appends_through_a_kill() -> None:
    """C4: four processes change the same two keys while their primary is killed: each acknowledged
    change is there once, each unknown one at most once."""
    with Cluster(3, 3) as cluster, cluster.connect(timeout=20) as store:
        store.increment("count", 0)
        with multiprocessing.get_context("spawn").Pool(4) as pool:
            workers = [pool.apply_async(count_up, (cluster.address, 2.0)) for _ in range(4)]
            wait_until(lambda: store.get("count", b"0") != b"0", "the first increments")
            cluster.kill_node(store.where("count").owners[0])
            counts = [worker.get(60) for worker in workers]
        done = sum(count[0] for count in counts)
        unknown = sum(count[1] for count in counts)
        value = store.get("count")
        letters = store.get("letters")
        assert value is not None
        assert letters is not None
        assert done <= int(value) + len(letters) <= done + unknown
        assert unknown <= done // 10 + 8
