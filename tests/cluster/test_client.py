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


def test_a_waiting_client_returns_at_its_deadline() -> None:
    """The node is stopped, not dead, so its connection stays open and silent. It owns the last
    copy, so the manager does not kill it (M1). How exact the return is, bench/deadlines.py
    measures."""
    with Cluster(1, 1) as cluster, cluster.connect(timeout=0.7) as store:
        store.put("key", b"before")
        cluster.pause_node(1)
        for call in (
            lambda: store.get("key"),
            lambda: store.put("key", b"x" * 100_000),
            lambda: store.put("key", b"after"),
            lambda: store.put_many({f"key{i}": b"x" for i in range(100)}),
        ):
            with pytest.raises(gtstore.GTStoreError) as raised:
                call()
            assert isinstance(
                raised.value,
                gtstore.DeadlineExceeded | gtstore.OutcomeUnknown | gtstore.BatchFailed,
            )
        cluster.resume_node(1)
        wait_until(lambda: store.get("key") in (b"before", b"after", b"x" * 100_000), "an answer")
        store.put("key", b"again")
        assert store.get("key") == b"again"


def test_a_hung_node_is_killed_and_replaced() -> None:
    """After the misses the manager kills it (M1, M2), and the client goes on with the next one."""
    options = ["--probe-interval-ms", "50"]
    with Cluster(3, 2, options) as cluster, cluster.connect(timeout=20) as store:
        store.put("key1", b"value")
        primary = store.where("key1").owners[0]
        cluster.pause_node(primary)
        assert store.get("key1") == b"value"
        store.put("key1", b"next")
        assert store.where("key1").owners[0] != primary
        cluster.wait_in_sync()
        assert store.status()["nodes"][primary - 1]["incarnation"] == 2
        assert primary in store.where("key1").owners


def test_nodes_go_on_without_the_manager() -> None:
    """SIGKILL of the manager: reads and writes go on, a new client cannot start."""
    with Cluster(3, 2) as cluster, cluster.connect(timeout=5) as store:
        store.put("key", b"1")
        cluster.kill_manager()
        for i in range(20):
            store.put(f"key{i}", b"%d" % i)
            assert store.get(f"key{i}") == b"%d" % i
        with pytest.raises(gtstore.ConnectError, match="connection refused"):
            cluster.connect()


def test_all_owners_dead_is_unavailable() -> None:
    """A partition without a living owner is refused at once, with how many are alive."""
    options = ["--no-respawn"]
    with Cluster(3, 1, options) as cluster, cluster.connect(timeout=20) as store:
        store.put("key1", b"1")
        store.put("key2", b"2")
        for node in store.where("key1").owners:
            cluster.kill_node(node)
        with pytest.raises(gtstore.Unavailable) as raised:
            store.get("key1")
        assert (raised.value.required, raised.value.alive) == (1, 0)
        with pytest.raises(gtstore.GTStoreError) as refused:
            store.put("key1", b"3")
        assert isinstance(refused.value, gtstore.Unavailable | gtstore.OutcomeUnknown)
        assert store.get("key2") == b"2"  # its owner lives
        with pytest.raises(gtstore.BatchFailed) as failed:
            store.get_many(["key1", "key2"])
        assert failed.value.results == {"key2": b"2"}
        assert isinstance(failed.value.errors["key1"], gtstore.Unavailable)


def test_a_client_outlives_its_cluster() -> None:
    """The whole cluster is started anew on the same ports: the same Client finds its way."""
    with Cluster(3, 2) as first:
        port = int(first.address.rpartition(":")[2])
        node_ports = [node["address"] for node in first.status()["nodes"]]
        store = first.connect(timeout=20)
        store.put("key1", b"old")
        assert store.get("key1") == b"old"
    try:
        with Cluster(4, 2, port=port) as second:
            assert second.address == first.address
            assert node_ports != [node["address"] for node in second.status()["nodes"]]
            assert store.get("key1") is None
            store.put("key1", b"new")
            assert store.get("key1") == b"new"
            assert len(store.status()["nodes"]) == 4
    finally:
        store.close()


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


INVALID_KEYS = ["", b"", "k" * 501, "\ud800", 1, None]
INVALID_VALUES = ["\ud800", 1, None]


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, "x") for key in INVALID_KEYS] + [("k", value) for value in INVALID_VALUES],
)
def test_invalid_input_is_refused(cluster: Cluster, key: str, value: str) -> None:
    with cluster.connect() as store, pytest.raises(gtstore.InvalidInput):
        store.put(key, value)


def test_values_of_every_kind(cluster: Cluster) -> None:
    with cluster.connect(timeout=30) as store:
        assert store.put(b"\xff\x00", bytearray(b"a")).nodes  # type: ignore[arg-type]
        assert store.get(b"\xff\x00") == b"a"
        store.put("empty", b"")
        assert store.get("empty") == b""
        largest = bytes(16 * 1024 * 1024)
        store.put("largest", largest)
        assert store.get("largest") == largest
        with pytest.raises(gtstore.InvalidInput, match="16777216"):
            store.put("larger", largest + b"x")
        store.delete("largest")
        assert store.get_entry("largest") is None


def test_versions_rise(cluster: Cluster) -> None:
    with cluster.connect() as one, cluster.connect() as other:
        first = one.put("versions", b"1")
        second = other.put("versions", b"2")
        assert first.version < second.version
        entry = one.get_entry("versions")
        assert entry is not None
        assert (entry.value, entry.version, entry.node) == (b"2", second.version, second.nodes[0])


def test_batches(cluster: Cluster) -> None:
    items = {f"batch {i}": f"value {i}" for i in range(3000)}
    with cluster.connect(timeout=30) as store:
        results = store.put_many(items)
        assert list(results) == list(items)
        found = store.get_many([*items, "batch none"], default=b"-")
        assert found == {**{k: v.encode() for k, v in items.items()}, "batch none": b"-"}
        assert store.put_many({}) == {}
        with pytest.raises(gtstore.InvalidInput, match="twice"):
            store.put_many({"a": "1", b"a": "2"})  # type: ignore[dict-item]
        with pytest.raises(gtstore.InvalidInput, match="twice"):
            store.get_many(["a", "a"])
        with pytest.raises(gtstore.InvalidInput, match="several"):
            store.get_many("abc")


def test_a_closed_client_says_so(cluster: Cluster) -> None:
    store = cluster.connect()
    store.close()
    store.close()
    with pytest.raises(gtstore.GTStoreError, match="closed"):
        store.get("key")


def test_timeouts_are_checked() -> None:
    for timeout in (0, -1, float("nan")):
        with pytest.raises(gtstore.InvalidInput):
            gtstore.connect(timeout=timeout)


def test_values_that_expire(cluster: Cluster) -> None:
    """C8: seconds after the put, also of many keys and of comparisons; a value that has no time to
    live stays, and a put without one takes it away."""
    with cluster.connect() as store:
        begin = time.monotonic()
        first = store.put("short", b"value", ttl=1)
        assert len(first.nodes) == 3
        assert store.get("short") == b"value"
        wait_until(lambda: store.get("short") is None, "the value expires")
        # Not much sooner: all clocks are this machine's, and the client's correction of its own is
        # wrong by what the manager's answer took.
        assert time.monotonic() - begin > 0.5
        assert store.get_entry("short") is None
        assert store.append("short", b"again") == 5
        assert store.get_many(["short"]) == {"short": b"again"}

        store.put("kept", b"1", ttl=0.000001)
        store.put("kept", b"2")
        store.put_many({"many 1": b"1", "many 2": b"2"}, ttl=0.000001)
        store.put_many({"many 3": b"3"}, ttl=100)
        wanted = {"kept": b"2", "many 1": None, "many 2": None, "many 3": b"3"}
        assert store.get_many(wanted) == wanted

        store.compare_and_put("lock", b"one", expected=None, ttl=0.000001)
        two = store.compare_and_put("lock", b"two", expected=None, ttl=100)
        with pytest.raises(gtstore.VersionMismatch):
            store.compare_and_put("lock", b"three", expected=None)
        store.compare_and_put("lock", b"three", version=two.version, ttl=100)
        store.compare_and_put("lock", b"four", expected=b"three", ttl=0.000001)
        with pytest.raises(gtstore.VersionMismatch, match="lock has no value") as caught:
            store.compare_and_put("lock", b"five", expected=b"four")
        assert caught.value.is_absent


def test_an_expired_value_stays_away_when_its_primary_is_killed() -> None:
    """C8: once it was read as gone, and also where nobody read it."""
    with Cluster(3, 2) as cluster, cluster.connect() as store:
        keys = [f"key{i}" for i in range(10)]
        store.put_many(dict.fromkeys(keys, b"value"), ttl=0.000001)
        assert store.get_many(keys[:5]) == dict.fromkeys(keys[:5])
        cluster.kill_node(1)
        assert store.get_many(keys) == dict.fromkeys(keys)


@pytest.mark.parametrize(
    "ttl", [0, -1, float("nan"), float("inf"), 3_153_600_001, 10**400, "1", b"1", [1]]
)
def test_times_to_live_that_are_none(cluster: Cluster, ttl: object) -> None:
    with cluster.connect() as store:
        for call in (
            lambda: store.put("key", b"value", ttl=ttl),  # type: ignore[arg-type]
            lambda: store.put_many({"key": b"value"}, ttl=ttl),  # type: ignore[arg-type]
            lambda: store.compare_and_put(
                "key",
                b"value",
                expected=None,
                ttl=ttl,  # type: ignore[arg-type]
            ),
        ):
            with pytest.raises(gtstore.InvalidInput, match="it is a number of seconds"):
                call()
        assert store.get("key") is None
        store.put("other", b"value", ttl=3_153_600_000)
        assert store.get("other") == b"value"


def test_append_increment_and_compare(cluster: Cluster) -> None:
    """Over real processes, with what is refused before anything is sent."""
    with cluster.connect() as store:
        assert [store.append("rmw/log", part) for part in ("ab", b"", "c")] == [2, 2, 3]
        assert store.get("rmw/log") == b"abc"
        assert [store.increment("rmw/n", step) for step in (5, -7)] == [5, -2]
        first = store.compare_and_put("rmw/c", "1", expected=None)
        with pytest.raises(gtstore.VersionMismatch, match="another value") as raised:
            store.compare_and_put("rmw/c", "2", expected="0")
        assert raised.value.version == first.version
        second = store.compare_and_put("rmw/c", "2", version=first.version)
        with pytest.raises(gtstore.VersionMismatch):
            store.compare_and_put("rmw/c", "3", version=first.version)
        assert store.compare_and_put("rmw/c", "3", expected=b"2").nodes == second.nodes
        assert store.get("rmw/c") == b"3"
        with pytest.raises(gtstore.OperationFailed, match="no number"):
            store.increment("rmw/log")
        for wrong in (1.5, "1", 1 << 63):
            with pytest.raises(gtstore.InvalidInput, match="64 bits"):
                store.increment("rmw/n", wrong)  # type: ignore[arg-type]
        with pytest.raises(gtstore.InvalidInput, match="either"):
            store.compare_and_put("rmw/c", "x")
        with pytest.raises(gtstore.InvalidInput, match="either"):
            store.compare_and_put("rmw/c", "x", expected="3", version=first.version)
        with pytest.raises(gtstore.InvalidInput, match="no version"):
            store.compare_and_put("rmw/c", "x", version="1")  # type: ignore[arg-type]
        half = bytes(9 * 1024 * 1024)
        with pytest.raises(gtstore.InvalidInput, match="compare by version"):
            store.compare_and_put("rmw/c", half, expected=half)


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
