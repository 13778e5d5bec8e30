"""Many callers increment one key: how long do calls take, and does any fail?

Threads of one program, threads of several programs, and tasks; each makes some calls, one after the
other. With --redis it runs Redis's INCR beside it, which has a single thread for all keys.

    python bench/contention.py [--calls 5000] [--rounds 3] [--timeout 5] [--redis redis-server]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import gtstore
from gtstore.testing import Cluster, wait_until
from machine import about, print_table

KEY = "counter"
SHAPES: dict[str, tuple[int, int]] = {
    "1 thread": (1, 1),
    "10 threads": (1, 10),
    "100 threads": (1, 100),
    "200 threads": (1, 200),
    "8 processes of 25 threads": (8, 25),
}

Outcome = tuple[list[float], int, float]
"""How long the calls took, how many failed, and how long all of them took together."""


def threads_of(increment: Callable[[], object], threads: int, calls: int) -> Outcome:
    took: list[float] = []
    failed: list[gtstore.GTStoreError] = []
    begin = threading.Barrier(threads + 1)

    def work() -> None:
        begin.wait()
        for _ in range(calls // threads):
            began = time.monotonic()
            try:
                increment()
            except gtstore.GTStoreError as error:
                failed.append(error)
            took.append(time.monotonic() - began)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    began = time.monotonic()
    begin.wait()
    for worker in workers:
        worker.join()
    return took, len(failed), time.monotonic() - began


def program(address: str, timeout_s: float, threads: int, calls: int) -> Outcome:
    """In a process of its own."""
    with gtstore.connect(address, timeout_s) as store:
        store.get(KEY)
        return threads_of(lambda: store.increment(KEY), threads, calls)


def redis_program(port: int, _: float, threads: int, calls: int) -> Outcome:
    import redis  # type: ignore[import-untyped,import-not-found,unused-ignore]

    with closing(redis.Redis(port=port, max_connections=threads + 1)) as store:
        return threads_of(lambda: store.incr(KEY), threads, calls)


def programs(
    work: Callable[..., Outcome], address: Any, timeout_s: float, shape: tuple[int, int], calls: int
) -> Outcome:
    processes, threads = shape
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        arguments = [(address, timeout_s, threads, calls // processes)] * processes
        outcomes = pool.starmap(work, arguments, chunksize=1)
    return (
        [each for took, _, _ in outcomes for each in took],
        sum(failed for _, failed, _ in outcomes),
        max(all_s for _, _, all_s in outcomes),
    )


def tasks(address: str, timeout_s: float, count: int, calls: int) -> Outcome:
    took: list[float] = []
    failed: list[gtstore.GTStoreError] = []

    async def work(store: gtstore.AsyncClient) -> None:
        for _ in range(calls // count):
            began = time.monotonic()
            try:
                await store.increment(KEY)
            except gtstore.GTStoreError as error:
                failed.append(error)
            took.append(time.monotonic() - began)

    async def main() -> float:
        async with gtstore.connect_async(address, timeout_s) as store:
            began = time.monotonic()
            await asyncio.gather(*(work(store) for _ in range(count)))
            return time.monotonic() - began

    all_s = asyncio.run(main())
    return took, len(failed), all_s


def row_of(name: str, outcomes: list[Outcome]) -> tuple[str, ...]:
    """The median of the rounds, of each figure; of the failures the sum."""
    figures = []
    for took, _, all_s in outcomes:
        took.sort()
        median, late = took[len(took) // 2], took[len(took) * 99 // 100]
        figures.append((len(took) / all_s, median * 1e3, late * 1e3, took[-1] * 1e3, late / median))
    middle = [sorted(column)[len(outcomes) // 2] for column in zip(*figures, strict=True)]
    failed = sum(failed for _, failed, _ in outcomes)
    return (name, *(f"{figure:,.1f}" for figure in middle), str(failed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("--only", default="", help="rows that have this in their names")
    parser.add_argument("--redis", help="redis-server's path: INCR beside it (the extra peers)")
    options = parser.parse_args()
    print(about())
    calls, timeout_s = options.calls, options.timeout
    rows = []
    with Cluster(3, 2) as cluster:
        runs: dict[str, Callable[[], Outcome]] = {
            name: lambda shape=shape: programs(  # type: ignore[misc]
                program, cluster.address, timeout_s, shape, calls
            )
            for name, shape in SHAPES.items()
        }
        runs["200 tasks"] = lambda: tasks(cluster.address, timeout_s, 200, calls)
        for name, run in runs.items():
            if options.only in name:
                rows.append(row_of(name, [run() for _ in range(options.rounds)]))
    if options.redis:
        with tempfile.TemporaryDirectory() as directory:
            rows += redis_rows(options, directory)
    titles = ("callers", "calls/s", "median ms", "p99 ms", "longest ms", "p99/median", "failed")
    print_table(titles, rows)


def redis_rows(options: argparse.Namespace, directory: str) -> list[tuple[str, ...]]:
    import redis

    port = 16379
    command = [options.redis, "--port", str(port), "--save", "", "--dir", directory]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:

        def is_there() -> bool:
            try:
                with closing(redis.Redis(port=port)) as store:
                    return bool(store.ping())
            except redis.ConnectionError:
                return False

        wait_until(is_there, "redis-server")
        return [
            row_of(
                f"Redis, {name}",
                [
                    programs(redis_program, port, 0, shape, options.calls)
                    for _ in range(options.rounds)
                ],
            )
            for name, shape in SHAPES.items()
            if options.only in name
        ]
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
