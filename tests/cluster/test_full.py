"""Nodes that take no more: a write that they refuse fails at once, and never happens."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gtstore
from gtstore.testing import Cluster, wait_until
from gtstore.wire import messages
from gtstore.wire.codec import encode

from ..peers import Talk

pytestmark = pytest.mark.cluster

TIMEOUT_S = 100.0
"""So long that a test which waits for it fails."""

Put = Callable[[str, bytes], Any]


def with_threads(cluster: Cluster, use: Callable[[Put], None]) -> None:
    with cluster.connect(TIMEOUT_S) as store:
        use(store.put)


def with_tasks(cluster: Cluster, use: Callable[[Put], None]) -> None:
    with asyncio.Runner() as runner:
        store = gtstore.connect_async(cluster.address, TIMEOUT_S)
        try:
            use(lambda key, value: runner.run(store.put(key, value)))
        finally:
            runner.run(store.close())


each_client = pytest.mark.parametrize("with_client", [with_threads, with_tasks])
WithClient = Callable[[Cluster, Callable[[Put], None]], None]


def refusal_of(put: Put, key: str, value: bytes) -> str:
    """Why a put did not happen."""
    with pytest.raises(gtstore.OperationFailed) as caught:
        put(key, value)
    assert type(caught.value) is gtstore.OperationFailed
    return str(caught.value)


@each_client
def test_full_memory(with_client: WithClient) -> None:
    """C3: refused at once, with the limit's name; status and the log say so, until there is room;
    and also the next primary does not have what was refused."""
    with Cluster(3, 2, ["--max-memory-mb", "1"]) as cluster:
        with cluster.connect() as other:
            keys = [f"key{number}" for number in range(1000)]
            keys = [key for key in keys if other.where(key).owners[0] == 1]
            other.put(keys[0], b"old")

        def use(put: Put) -> None:
            fit = 0
            while not fit or fit < len(keys) - 1:
                try:
                    put(keys[fit + 1], bytes(20_000))
                except gtstore.OperationFailed:
                    break
                fit += 1
            for key in (keys[0], keys[fit + 1]):
                assert "--max-memory-mb" in refusal_of(put, key, bytes(20_000))
            with cluster.connect() as other:
                wait_until(
                    lambda: other.status()["nodes"][0]["full"] == "memory", "that it says so"
                )
                assert other.get(keys[0]) == b"old"
                for key in keys[1 : fit + 1]:
                    other.delete(key)
                wait_until(lambda: other.status()["nodes"][0]["full"] is None, "room")
                log = cluster.log()
                assert log.count("writes are refused: this node's memory is full") == 1
                assert log.count("there is room in memory again") == 1
                cluster.kill_node(1)
                assert other.get(keys[0]) == b"old"
                assert other.get(keys[fit + 1]) is None

        with_client(cluster, use)


def take_all(port: int, count: int) -> list[Talk]:
    """Connections that have all places of a node; others may have some for a moment yet."""
    held: list[Talk] = []

    def has_one_more() -> bool:
        talk = Talk(port)
        talk.send(encode(messages.Get(0, 0, b"key1"), 1))
        reply = talk.reply()
        if reply is None or isinstance(reply[1], messages.Error):
            talk.sock.close()
            return False
        held.append(talk)
        return True

    for _ in range(count):
        wait_until(has_one_more, "a place")
    return held


@each_client
def test_all_connections_are_taken(with_client: WithClient) -> None:
    """BUSY, of the primary: nothing was handled there, and the backup was not given what it has
    refused."""
    with Cluster(3, 2, ["--max-connections", "3"]) as cluster:
        with cluster.connect() as other:
            other.put("key1", b"old")
            node = other.where("key1").owners[0]
            address = other.status()["nodes"][node - 1]["address"]

        def use(put: Put) -> None:
            held = take_all(int(address.rpartition(":")[2]), 3)
            refusal = refusal_of(put, "key1", b"new")
            assert "all 3 connections are taken (--max-connections)" in refusal
            for talk in held:
                talk.sock.close()
            with cluster.connect() as other:
                assert other.get("key1") == b"old"
                cluster.kill_node(node)
                assert other.get("key1") == b"old"

        with_client(cluster, use)


@each_client
@pytest.mark.parametrize("at", [0, 1])
def test_a_full_disk_of_one_owner(tmp_path: Path, at: int, with_client: WithClient) -> None:
    """Its first refusal may come when another owner has the write already. From then on that node
    is asked first, so nobody has what it refuses; and what was stored is read, though its reader
    has to complete it there."""
    with (
        Cluster(3, 2, ["--data-dir", str(tmp_path / "data")]) as cluster,
        cluster.connect() as other,
        cluster.connect() as reader,
    ):
        owners = other.where("key1").owners
        pid = cluster.node_pids[owners[at]]
        stored: list[str] = []

        def use(put: Put) -> None:
            put("key1", b"old")
            _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 20, most))

            def is_refused() -> bool:
                """``other`` does not tell the backups yet what is complete."""
                key = f"key{len(stored)}"
                try:
                    if other.where(key).owners == owners:
                        other.put(key, bytes(2000))
                    stored.append(key)
                except (gtstore.OperationFailed, gtstore.OutcomeUnknown):
                    return True
                return False

            wait_until(is_refused, "that writes are refused", 60)
            for key in stored[1:]:
                if other.where(key).owners == owners:
                    assert reader.get(key) is not None
            with pytest.raises((gtstore.OperationFailed, gtstore.OutcomeUnknown), match="no room"):
                put("key1", b"new")
            for _ in range(3):
                assert "no room on this node's disk" in refusal_of(put, "key1", b"newer")

        with_client(cluster, use)
