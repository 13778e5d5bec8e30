"""Many callers want one key: who has lost a race for it goes first, so that no call runs into its
timeout, and each one counts once. How long calls take, bench/contention.py measures."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import gtstore
from gtstore.testing import Cluster

pytestmark = pytest.mark.cluster

TIMEOUT_S = 5.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(3, 2) as running:
        yield running


def in_threads(address: str, key: str, threads: int, calls: int) -> int:
    """How many of each thread's calls failed."""
    with gtstore.connect(address, TIMEOUT_S) as store, ThreadPoolExecutor(threads) as pool:

        def work(_: int) -> int:
            failed = 0
            for _ in range(calls):
                try:
                    store.increment(key)
                except gtstore.GTStoreError:
                    failed += 1
            return failed

        return sum(pool.map(work, range(threads)))


def value_of(cluster: Cluster, key: str) -> bytes | None:
    with cluster.connect() as store:
        return store.get(key)


def test_threads_at_one_key(cluster: Cluster) -> None:
    assert in_threads(cluster.address, "threads", 200, 25) == 0
    assert value_of(cluster, "threads") == b"5000"


def test_processes_with_threads_at_one_key(cluster: Cluster) -> None:
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        todo = [(cluster.address, "processes", 25, 25)] * 8
        assert pool.starmap(in_threads, todo, chunksize=1) == [0] * 8
    assert value_of(cluster, "processes") == b"5000"


def test_tasks_at_one_key(cluster: Cluster) -> None:
    async def work(store: gtstore.AsyncClient) -> None:
        for _ in range(25):
            await store.increment("tasks")

    async def main() -> None:
        async with gtstore.connect_async(cluster.address, TIMEOUT_S) as store:
            await asyncio.gather(*(work(store) for _ in range(200)))

    asyncio.run(main())
    assert value_of(cluster, "tasks") == b"5000"
