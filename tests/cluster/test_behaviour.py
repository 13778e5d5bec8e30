"""What both clients promise: each test here runs with Client and with AsyncClient."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import gtstore
from gtstore.testing import Cluster, wait_until

from ..blocking import Connect, connect_blocking

pytestmark = pytest.mark.cluster


@pytest.fixture(
    scope="module", params=[gtstore.connect, connect_blocking], ids=["threads", "asyncio"]
)
def connect(request: pytest.FixtureRequest) -> Connect:
    made: Connect = request.param
    return made


@pytest.fixture(scope="module")
def cluster(connect: Connect) -> Iterator[Cluster]:  # noqa: ARG001  # one for each of both
    with Cluster(5, 3) as running:
        yield running


def test_a_waiting_client_returns_at_its_deadline(connect: Connect) -> None:
    """The node is stopped, not dead, so its connection stays open and silent. It owns the last
    copy, so the manager does not kill it (M1). How exact the return is, bench/deadlines.py
    measures."""
    with Cluster(1, 1) as cluster, connect(cluster.address, timeout=0.7) as store:
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


def test_a_hung_node_is_killed_and_replaced(connect: Connect) -> None:
    """After the misses the manager kills it (M1, M2), and the client goes on with the next one."""
    options = ["--probe-interval-ms", "50"]
    with Cluster(3, 2, options) as cluster, connect(cluster.address, timeout=20) as store:
        store.put("key1", b"value")
        primary = store.where("key1").owners[0]
        cluster.pause_node(primary)
        assert store.get("key1") == b"value"
        store.put("key1", b"next")
        assert store.where("key1").owners[0] != primary
        cluster.wait_in_sync()
        assert store.status()["nodes"][primary - 1]["incarnation"] == 2
        assert primary in store.where("key1").owners


def test_nodes_go_on_without_the_manager(connect: Connect) -> None:
    """SIGKILL of the manager: reads and writes go on, a new client cannot start."""
    with Cluster(3, 2) as cluster, connect(cluster.address, timeout=5) as store:
        store.put("key", b"1")
        cluster.kill_manager()
        for i in range(20):
            store.put(f"key{i}", b"%d" % i)
            assert store.get(f"key{i}") == b"%d" % i
        with pytest.raises(gtstore.ConnectError, match="connection refused"):
            connect(cluster.address)


def test_all_owners_dead_is_unavailable(connect: Connect) -> None:
    """A partition without a living owner is refused at once, with how many are alive."""
    options = ["--no-respawn"]
    with Cluster(3, 1, options) as cluster, connect(cluster.address, timeout=20) as store:
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


def test_a_client_outlives_its_cluster(connect: Connect) -> None:
    """The whole cluster is started anew on the same ports: the same Client finds its way."""
    with Cluster(3, 2) as first:
        port = int(first.address.rpartition(":")[2])
        node_ports = [node["address"] for node in first.status()["nodes"]]
        store = connect(first.address, timeout=20)
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


INVALID_KEYS = ["", b"", "k" * 501, "\ud800", 1, None]


INVALID_VALUES = ["\ud800", 1, None]


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, "x") for key in INVALID_KEYS] + [("k", value) for value in INVALID_VALUES],
)
def test_invalid_input_is_refused(connect: Connect, cluster: Cluster, key: str, value: str) -> None:
    with connect(cluster.address) as store, pytest.raises(gtstore.InvalidInput):
        store.put(key, value)


def test_values_of_every_kind(connect: Connect, cluster: Cluster) -> None:
    with connect(cluster.address, timeout=30) as store:
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


def test_versions_rise(connect: Connect, cluster: Cluster) -> None:
    with connect(cluster.address) as one, connect(cluster.address) as other:
        first = one.put("versions", b"1")
        second = other.put("versions", b"2")
        assert first.version < second.version
        entry = one.get_entry("versions")
        assert entry is not None
        assert (entry.value, entry.version, entry.node) == (b"2", second.version, second.nodes[0])


def test_batches(connect: Connect, cluster: Cluster) -> None:
    items = {f"batch {i}": f"value {i}" for i in range(3000)}
    with connect(cluster.address, timeout=30) as store:
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


def test_a_closed_client_says_so(connect: Connect, cluster: Cluster) -> None:
    store = connect(cluster.address)
    store.close()
    store.close()
    with pytest.raises(gtstore.GTStoreError, match="closed"):
        store.get("key")


def test_timeouts_are_checked(connect: Connect) -> None:
    for timeout in (0, -1, float("nan")):
        with pytest.raises(gtstore.InvalidInput):
            connect("127.0.0.1:1", timeout=timeout)


def test_values_that_expire(connect: Connect, cluster: Cluster) -> None:
    """C8: seconds after the put, also of many keys and of comparisons; a value that has no time to
    live stays, and a put without one takes it away."""
    with connect(cluster.address) as store:
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


def test_an_expired_value_stays_away_when_its_primary_is_killed(connect: Connect) -> None:
    """C8: once it was read as gone, and also where nobody read it."""
    with Cluster(3, 2) as cluster, connect(cluster.address) as store:
        keys = [f"key{i}" for i in range(10)]
        store.put_many(dict.fromkeys(keys, b"value"), ttl=0.000001)
        assert store.get_many(keys[:5]) == dict.fromkeys(keys[:5])
        cluster.kill_node(1)
        assert store.get_many(keys) == dict.fromkeys(keys)


@pytest.mark.parametrize(
    "ttl", [0, -1, float("nan"), float("inf"), 3_153_600_001, 10**400, "1", b"1", [1]]
)
def test_times_to_live_that_are_none(connect: Connect, cluster: Cluster, ttl: object) -> None:
    with connect(cluster.address) as store:
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


def test_append_increment_and_compare(connect: Connect, cluster: Cluster) -> None:
    """Over real processes, with what is refused before anything is sent."""
    with connect(cluster.address) as store:
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


def test_scans(connect: Connect, cluster: Cluster) -> None:
    """All three ways, one that is left in the middle, and what was found put again."""
    items = {b"scan/%d" % i: b"%d" % i for i in range(700)}
    with connect(cluster.address, timeout=30) as store:
        store.put_many(items)
        store.put("scan/late", b"gone", ttl=0.000001)
        assert dict(store.scan("scan/")) == items
        assert set(store.scan_keys(b"scan/")) == set(items)
        found = list(store.scan_entries("scan/6"))
        assert {entry.key: entry.value for entry in found} == {
            key: value for key, value in items.items() if key.startswith(b"scan/6")
        }
        left = store.scan_keys("scan/")
        next(left)
        left.close()
        assert len(list(store.scan_keys("scan/"))) == len(items)
        again = store.put_entries(entry._replace(key=b"again/" + entry.key) for entry in found)
        assert dict(store.scan("again/")) == {b"again/" + entry.key: entry.value for entry in found}
        assert again[b"again/scan/6"].version > found[0].version
        with pytest.raises(gtstore.InvalidInput):
            list(store.scan(3))  # type: ignore[arg-type]


def test_where_and_status(connect: Connect, cluster: Cluster) -> None:
    with connect(cluster.address) as store:
        result = store.put("key3", b"x")
        assert store.where("key3").owners == result.nodes == (1, 2, 3)
        status = store.status()
        assert [node["state"] for node in status["nodes"]] == ["alive"] * 5
        assert status["under_replicated"] == []


def test_the_report_s_test_4(connect: Connect) -> None:
    """7 nodes, k = 3, 20 keys, 3 overwritten, 2 nodes killed: always the latest value."""
    keys = [f"key{i}" for i in range(1, 21)]
    options = ["--no-respawn"]
    with Cluster(7, 3, options) as cluster, connect(cluster.address, timeout=20) as store:
        for key in keys:
            store.put(key, f"{key} first")
        for key in keys[:3]:
            store.put(key, f"{key} second")
        wanted = {key: f"{key} {'second' if key in keys[:3] else 'first'}".encode() for key in keys}
        for node in (2, 5):
            cluster.kill_node(node)
            assert {key: store.get(key) for key in keys} == wanted
            assert store.get_many(keys) == wanted
        assert not {2, 5} & set(store.put("key2", b"third").nodes)
        assert store.get("key2") == b"third"


def test_batches_through_a_kill(connect: Connect) -> None:
    """Each key of a batch has its own outcome; with replicas left, all of them are good."""
    items = {f"key{i}": f"{i}" for i in range(500)}
    with Cluster(3, 2) as cluster, connect(cluster.address, timeout=20) as store:
        store.put_many(items)
        for node in (1, 2):
            cluster.kill_node(node)
            assert set(store.put_many(items)) == set(items)
            assert store.get_many(items) == {key: value.encode() for key, value in items.items()}
            cluster.wait_in_sync()
