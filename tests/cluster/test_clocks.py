"""Wall clocks that are set while a cluster is at work: rule T1. By them nothing is dated, and
nothing expires; so nobody's step shortens or lengthens a time to live, or gives a lock to two."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import gtstore
from gtstore import async_client, client, operations
from gtstore.connection import call_once
from gtstore.placement import Routes
from gtstore.steady_clock import steady_ns
from gtstore.testing import Cluster, wait_until
from gtstore.wire import messages

from ..blocking import Connect, connect_blocking
from ..wall_clock import WallClock

pytestmark = pytest.mark.cluster

HOUR_S = 3600.0
LONG_S = 600.0
"""A time to live that no test outlives, and that is shorter than any step."""
each_client = pytest.mark.parametrize(
    "connect", [gtstore.connect, connect_blocking], ids=["threads", "asyncio"]
)
each_step = pytest.mark.parametrize("step_s", [-HOUR_S, HOUR_S])


@pytest.fixture
def wall_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WallClock:
    return WallClock(tmp_path, monkeypatch)


def times(cluster: Cluster) -> dict[int, int]:
    """Cluster time as the manager, 0, and each node tells it, one after the other."""
    host, _, port = cluster.address.rpartition(":")
    ports = {0: int(port)}
    for node in cluster.status()["nodes"]:
        ports[node["id"]] = int(node["address"].rpartition(":")[2])
    found = {}
    for number, its_port in ports.items():
        pong = call_once("a peer", host, its_port, messages.Ping(), 5)
        assert isinstance(pong, messages.Pong)
        found[number] = pong.time
    return found


def hold(store: gtstore.Client, key: str) -> None:
    """Take a lock, and store values, for longer than the test lasts."""
    store.compare_and_put(f"{key} lock", b"me", expected=None, ttl=LONG_S)
    store.put(f"{key} put", b"v", ttl=LONG_S)
    store.put_many({f"{key} many": b"v"}, ttl=LONG_S)


def check_held(store: gtstore.Client, key: str) -> None:
    """All of it is there, and nobody else gets the lock."""
    with pytest.raises(gtstore.VersionMismatch):
        store.compare_and_put(f"{key} lock", b"you", expected=None, ttl=LONG_S)
    assert [store.get(f"{key} {what}") for what in ("lock", "put", "many")] == [b"me", b"v", b"v"]


def check_ends(store: gtstore.Client, key: str) -> None:
    """What has a short time to live is gone after it."""
    store.put(key, b"v", ttl=0.3)
    wait_until(lambda: store.get(key) is None, "the value expires")
    store.compare_and_put(key, b"new", expected=None, ttl=LONG_S)


@each_client
@each_step
def test_a_client_whose_wall_clock_is_set(
    connect: Connect, step_s: float, wall_clock: WallClock
) -> None:
    """T1: by NTP, or by hand, once it knows the cluster; what it put before, and puts then."""
    with Cluster(3, 2) as cluster, connect(cluster.address) as store:
        hold(store, "before")
        wall_clock.step_ours(step_s)
        check_ends(store, "short")
        hold(store, "after")
        check_held(store, "before")
        check_held(store, "after")
        with connect(cluster.address) as another:
            check_held(another, "after")


@each_client
def test_cluster_time_is_measured_again(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """T1: in front of a put with a time to live, after some time; and a manager that hangs, or is
    gone, holds up one such put, not for long, and none of the others."""
    asked: list[Routes] = []
    measure = operations.measure

    def noticed(routes: Routes, source: operations.Source) -> Any:
        asked.append(routes)
        return measure(routes, source)

    monkeypatch.setattr(operations, "measure", noticed)
    with Cluster(3, 2) as cluster, connect(cluster.address) as store:
        hold(store, "at first")
        assert asked == []
        for module in (client, async_client):
            monkeypatch.setattr(module, "MEASURE_AGAIN_S", 0.001)
        check_ends(store, "again")
        assert asked
        for module in (client, async_client):
            monkeypatch.setattr(module, "MEASURE_AGAIN_S", HOUR_S)
        for disturb, mend in (
            (cluster.pause_manager, cluster.resume_manager),
            (cluster.kill_manager, cluster.start),
        ):
            disturb()
            asked[0].clock._asked_us = None
            count = len(asked)
            hold(store, disturb.__name__)
            check_held(store, disturb.__name__)
            assert len(asked) == count + 1
            mend()


@each_client
def test_a_client_whose_machine_was_paused(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T1: a virtual machine that goes on an hour later: its steady clock knows nothing of that, but
    its wall clock was set meanwhile."""
    paused_s = 0.0

    def paused_ns() -> int:
        return steady_ns() - int(paused_s * 1e9)

    for module in (client, async_client):
        monkeypatch.setattr(module, "steady_ns", paused_ns)
        monkeypatch.setattr(module, "steady_us", lambda: paused_ns() // 1000)
    with Cluster(3, 2) as cluster, connect(cluster.address) as store:
        paused_s = HOUR_S
        hold(store, "after")
        check_held(store, "after")
        check_ends(store, "short")


@each_step
def test_pop_leaves_nothing_behind(step_s: float, wall_clock: WallClock) -> None:
    """The empty value that pop puts has expired by any clock."""
    with Cluster(3, 2) as cluster, cluster.connect() as store:
        mapping = store.as_mapping()
        mapping["key"] = b"v"
        wall_clock.step_ours(step_s)
        assert mapping.pop("key") == b"v"
        assert store.get("key") is None
        assert mapping.pop("key", None) is None


@each_client
@each_step
def test_daemons_whose_wall_clock_is_set(
    connect: Connect, step_s: float, wall_clock: WallClock
) -> None:
    """T1: manager and nodes carry cluster time on by a clock that nobody sets."""
    with Cluster(3, 2) as cluster, connect(cluster.address) as store:
        hold(store, "before")
        before = times(cluster)
        wall_clock.step_theirs(step_s)
        check_held(store, "before")
        hold(store, "after")
        with connect(cluster.address) as another:
            check_held(another, "after")
            another.put("versions", b"rise")
            store.put("versions", b"rise")
            check_ends(another, "short")
        cluster.kill_node(1)
        cluster.wait_in_sync()
        check_held(store, "after")
        after = times(cluster)
        assert all(before[number] < after[number] for number in before)
        assert max(after.values()) - max(before.values()) < LONG_S * 1e6


def test_an_expiry_that_leaves_the_cluster(wall_clock: WallClock) -> None:
    """T1: a cluster that began in another year has a time of its own. Whoever scans is told when a
    value expires by his own clock; so it has as long to live in the cluster that he puts it into,
    for example from a backup."""
    wall_clock.step_theirs(-1e9)
    with Cluster(1, 1) as cluster, cluster.connect() as store:
        wall_clock.step_theirs(0.0)
        store.put("key", b"v", ttl=LONG_S)
        with Cluster(1, 1) as other, other.connect() as another:
            another.put_entries(store.scan_entries())
            assert another.get("key") == b"v"
            store.put_entries(another.scan_entries())
            assert store.get("key") == b"v"
            for found in (store.scan_entries(), another.scan_entries()):
                [entry] = found
                assert entry.expiry_us is not None
                assert abs(entry.expiry_us / 1e6 - time.time() - LONG_S) < LONG_S / 2


def is_in_order(before: dict[int, int], after: dict[int, int]) -> bool:
    return max(before.values()) <= min(after.values())


@each_step
def test_a_successor_whose_wall_clock_is_another(step_s: float, wall_clock: WallClock) -> None:
    """T1, M4: cluster time goes on where the nodes have it, neither back nor forth."""
    with Cluster(3, 2) as cluster, cluster.connect() as store:
        hold(store, "before")
        before = times(cluster)
        cluster.kill_manager()
        wall_clock.step_theirs(step_s)
        cluster.start()
        after = times(cluster)
        assert is_in_order(before, after)
        assert max(after.values()) - max(before.values()) < LONG_S * 1e6
        with cluster.connect() as another:
            check_held(another, "before")
            hold(another, "after")
        check_held(store, "after")


def kill(cluster: Cluster) -> None:
    cluster.kill_everything()
    cluster.start()


@pytest.mark.parametrize("step_s", [-HOUR_S, -1e9])
def test_a_cluster_that_starts_with_a_clock_behind(
    step_s: float, wall_clock: WallClock, tmp_path: Path
) -> None:
    """T1: for example on a machine whose clock begins in 1970. Its time is never below the one that
    was recorded, and so its versions are not below those on its disks."""
    options = ["--data-dir", str(tmp_path / "data")]
    with Cluster(3, 2, options) as cluster:
        with cluster.connect() as store:
            hold(store, "before")
        before = times(cluster)
        wall_clock.step_theirs(step_s)
        kill(cluster)
        assert is_in_order(before, times(cluster))
        with cluster.connect() as store:
            check_held(store, "before")
            check_ends(store, "short")


def test_a_cluster_that_starts_again_catches_up_with_the_wall_clock(
    wall_clock: WallClock, tmp_path: Path
) -> None:
    """T1: a cluster that was made while the clock was wrong can be set right so."""
    options = ["--data-dir", str(tmp_path / "data")]
    wall_clock.step_theirs(-1e9)
    with Cluster(1, 1, options) as cluster:
        before = times(cluster)
        wall_clock.step_theirs(0.0)
        assert max(times(cluster).values()) < max(before.values()) + 1e14
        kill(cluster)
        assert min(times(cluster).values()) > max(before.values()) + 9e14
