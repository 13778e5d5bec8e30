"""Nodes that fail and return, over real processes: nothing that was acknowledged is lost or done
twice."""

from __future__ import annotations

import multiprocessing
import random
import threading
from collections import Counter
from typing import Any

import pytest

import gtstore
from gtstore.connection import call_once
from gtstore.testing import Cluster, wait_until
from gtstore.wire.codec import decode_entry
from gtstore.wire.messages import COMMITTED, EntryReply, Get

pytestmark = pytest.mark.cluster

KILLS = 10
PROCESSES = 8
TOKENS_A_KEY = 100
"""A process goes on to the next key then: an append carries the whole value along."""


def change_until(address: str, number: int, is_over: Any) -> dict[str, Any]:
    """One process: append tokens, each another one, and count; what became of each."""
    found: dict[str, Any] = {"done": [], "unknown": [], "counted": 0, "maybe counted": 0}
    at = 0
    with gtstore.connect(address, timeout=20) as store:
        while not is_over.is_set():
            token = f"{number}.{at};"
            try:
                store.append(f"tokens{at // TOKENS_A_KEY}", token)
                found["done"].append(token)
            except gtstore.OutcomeUnknown:
                found["unknown"].append(token)
            try:
                store.increment("count")
                found["counted"] += 1
            except gtstore.OutcomeUnknown:
                found["maybe counted"] += 1
            at += 1
    return found


def test_changes_by_many_through_many_kills() -> None:
    """append and increment by 8 processes on the same keys: each acknowledged one is there exactly
    once, each unknown one at most once (C4)."""
    context = multiprocessing.get_context("spawn")
    chosen = random.Random(4)
    with (
        Cluster(5, 3) as cluster,
        cluster.connect(timeout=20) as store,
        context.Manager() as manager,
        context.Pool(PROCESSES) as pool,
    ):
        is_over = manager.Event()
        workers = [
            pool.apply_async(change_until, (cluster.address, number, is_over))
            for number in range(PROCESSES)
        ]
        wait_until(lambda: int(store.get("count", b"0")) > 10 * PROCESSES, "the first changes")
        for _ in range(KILLS):
            key = chosen.choice(("count", "tokens0"))
            cluster.kill_node(store.where(key).owners[0])
            cluster.wait_in_sync()
            now = int(store.get("count", b"0"))
            wait_until(lambda now=now: int(store.get("count", b"0")) > now, "more changes")  # type: ignore[misc]
        is_over.set()
        found = [worker.get(60) for worker in workers]
        done = [token for one in found for token in one["done"]]
        unknown = [token for one in found for token in one["unknown"]]
        last = max(int(token.split(".")[1][:-1]) for token in done + unknown) // TOKENS_A_KEY
        there: Counter[str] = Counter()
        for at in range(last + 1):
            value = store.get(f"tokens{at}", b"").decode()
            there.update(f"{token};" for token in value.split(";")[:-1])
        assert {token: there[token] for token in done} == dict.fromkeys(done, 1)
        assert all(there[token] <= 1 for token in unknown)
        assert there.keys() <= {*done, *unknown}
        counted = sum(one["counted"] for one in found)
        maybe = sum(one["maybe counted"] for one in found)
        assert counted <= int(store.get("count", b"0")) <= counted + maybe
        assert len(unknown) + maybe <= (len(done) + counted) // 100 + KILLS
        incarnations = sum(node["incarnation"] - 1 for node in store.status()["nodes"])
        assert incarnations == KILLS


def test_every_node_is_killed_once() -> None:
    """One after another, waiting until all copies are there again: every key has its latest value
    (N6, M7), though all of them were overwritten meanwhile, and no process is the first one."""
    with Cluster(4, 2, ["--hash", "crc16"]) as cluster, cluster.connect(timeout=20) as store:
        latest = {f"key{i}": b"first %d" % i for i in range(2000)}
        store.put_many(latest)
        is_over = threading.Event()
        written: dict[str, bytes] = {}

        def overwrite() -> None:
            turn = 0
            with cluster.connect(timeout=20) as other:
                while not is_over.is_set():
                    turn += 1
                    # Half of the keys: the others must live on as they are.
                    for i in range(0, 1000, 100):
                        items = {f"key{j}": b"%d of %d" % (turn, j) for j in range(i, i + 100)}
                        other.put_many(items)
                        written.update(items)

        thread = threading.Thread(target=overwrite)
        thread.start()
        try:
            for node in range(1, 5):
                cluster.kill_node(node)
                cluster.wait_in_sync()
        finally:
            is_over.set()
            thread.join()
        latest.update(written)
        assert store.get_many(list(latest)) == latest
        status = store.status()
        assert [node["incarnation"] for node in status["nodes"]] == [2, 2, 2, 2]
        assert sum(node["partitions"] for node in status["nodes"]) == 4 * 64 * 2


def test_a_stand_in_takes_over_and_leaves() -> None:
    """A node that does not get started: another one stands in for it; when it is back, and in sync,
    the stand-in discards what it had (M7)."""
    with Cluster(4, 2) as cluster, cluster.connect(timeout=20) as store:
        store.put_many({f"key{i}": b"%d" % i for i in range(400)})
        before = {i: store.where(f"key{i}").owners for i in range(400)}
        key = next(f"key{i}" for i, owners in before.items() if owners[0] == 2)
        cluster.stop_node(2)
        # In this order: before the manager has seen the death nothing is under-replicated either.
        wait_until(
            lambda: 2 not in store.where(key).owners and not store.status()["under_replicated"],
            "copies on stand-ins",
        )
        assert all(len(store.where(f"key{i}").owners) == 2 for i in range(400))
        cluster.restart_node(2)
        wait_until(lambda: 2 in store.where(key).owners, "its return")
        cluster.wait_in_sync()
        for i, owners in before.items():
            assert sorted(store.where(f"key{i}").owners) == sorted(owners)
            assert store.get(f"key{i}") == b"%d" % i
        wait_until(
            lambda: sum(node["entries"] for node in store.status()["nodes"]) == 800,
            "what stand-ins had is discarded",
        )


def test_the_last_copy_is_stopped_for_a_while() -> None:
    """At k=1 a hung node is waited for, not killed: it loses nothing (M1)."""
    options = ["--probe-interval-ms", "20"]
    with Cluster(3, 1, options) as cluster, cluster.connect(timeout=20) as store:
        store.put("key1", b"value")
        before = store.status()
        cluster.pause_node(1)
        wait_until(lambda: "holds the last copy of some" in cluster.log(), "the manager's finding")
        cluster.resume_node(1)
        assert store.get("key1") == b"value"
        wait_until(lambda: "node 1 is alive again" in cluster.log(), "an answer")
        after = store.status()
        assert [node["pid"] for node in after["nodes"]] == [node["pid"] for node in before["nodes"]]


def test_all_copies_are_lost_and_it_is_said() -> None:
    """M5: with one replica a node's values end with it. The partitions begin anew, empty."""
    with Cluster(2, 1) as cluster, cluster.connect(timeout=20) as store:
        store.put("key1", b"lost")
        store.put("key2", b"kept")
        assert store.where("key1").owners == (1,)
        cluster.kill_node(1)
        cluster.wait_in_sync()
        assert store.get("key1") is None
        store.put("key1", b"new")
        assert store.get("key1") == b"new"
        assert store.get("key2") == b"kept"
        assert len(store.status()["begun_anew"]) == 64
        assert "all copies of 64 partitions are gone, and they begin anew, empty" in cluster.log()


def test_nothing_stays_pending() -> None:
    """N8: a client that is gone before it says that its writes are complete leaves them pending;
    the nodes see to it by themselves."""
    with Cluster(3, 3, ["--hash", "crc16"]) as cluster:
        nodes = cluster.status()["nodes"]
        store = cluster.connect()
        for i in range(50):
            store.put(f"key{i}", b"v")
        for lane in store._lanes._living:
            lane.session.abort()  # as if it had been killed

        def is_committed(address: str, key: bytes) -> bool:
            host, _, port = address.rpartition(":")
            reply = call_once("a node", host, int(port), Get(0, 0, key), 5)
            assert isinstance(reply, EntryReply)
            return bool(decode_entry(reply.entry).flags & COMMITTED)

        keys = [b"key%d" % i for i in range(50)]
        addresses = [node["address"] for node in nodes]
        assert not all(is_committed(addresses[0], key) for key in keys)
        wait_until(
            lambda: all(is_committed(address, key) for address in addresses for key in keys),
            "every entry committed everywhere",
            timeout_s=40,
        )
