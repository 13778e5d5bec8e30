"""Many tasks on one AsyncClient, against one thread on one Client, in one run.

Half of the operations are puts, half gets, of values of 100 bytes under 2,000 keys; 7 nodes. Client
and nodes are all on one CPU. The rounds of all rows take turns, so that what disturbs the machine
disturbs all of them.

    python bench/tasks.py [--tasks 100] [--rounds 7] [--operations 20000] [--replicas 1,3,5]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable

import gtstore
from gtstore.testing import Cluster
from machine import about, cpus, numbers, print_table, ratios, with_range

NODES = 7
KEYS = [f"key{number}" for number in range(2000)]
VALUE = b"x" * 100
STEP = 7919
"""A prime: so neighbours in time are no neighbours among the keys."""


def one_thread(store: gtstore.Client, count: int) -> None:
    for number in range(count):
        key = KEYS[number * STEP % len(KEYS)]
        if number & 1:
            store.put(key, VALUE)
        else:
            store.get(key)


async def in_tasks(store: gtstore.AsyncClient, count: int, tasks: int) -> None:
    """Each task has one operation under way at a time."""

    async def work(first: int) -> None:
        for turn, number in enumerate(range(first, count, tasks)):
            key = KEYS[number * STEP % len(KEYS)]
            if turn + first & 1:
                await store.put(key, VALUE)
            else:
                await store.get(key)

    await asyncio.gather(*(work(first) for first in range(tasks)))


async def gathered(store: gtstore.AsyncClient, count: int, tasks: int) -> None:
    """A new task for each operation, so many at a time."""
    for first in range(0, count, tasks):
        calls: list[Awaitable[object]] = []
        for number in range(first, first + tasks):
            key = KEYS[number * STEP % len(KEYS)]
            calls.append(store.put(key, VALUE) if number & 1 else store.get(key))
        await asyncio.gather(*calls)


async def timed(work: Callable[[], Awaitable[None]], count: int) -> float:
    began_at = time.perf_counter()
    await work()
    return count / (time.perf_counter() - began_at)


async def measure(address: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Operations a second of each row, round by round."""
    count, tasks = options.operations, options.tasks
    rates: dict[str, list[float]] = {}
    with gtstore.connect(address) as one:
        async with gtstore.connect_async(address) as many:

            async def alone() -> None:
                one_thread(one, count)

            rows: dict[str, Callable[[], Awaitable[None]]] = {
                "Client, one thread": alone,
                "AsyncClient, one task": lambda: in_tasks(many, count, 1),
                f"AsyncClient, {tasks} tasks": lambda: in_tasks(many, count, tasks),
                f"AsyncClient, gather of {tasks}": lambda: gathered(many, count, tasks),
            }
            one.put_many(dict.fromkeys(KEYS, VALUE))
            for round_ in range(options.rounds + 1):
                for name, work in rows.items():
                    rate = await timed(work, count)
                    if round_:  # the first one warms up
                        rates.setdefault(name, []).append(rate)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--replicas", type=numbers, default=[1, 3, 5])
    options = parser.parse_args()
    print(f"{about()}; client and {NODES} nodes on one of the CPUs")
    os.sched_setaffinity(0, {cpus()[-1]})
    for replicas in options.replicas:
        with Cluster(NODES, replicas) as cluster:
            rates = asyncio.run(measure(cluster.address, options))
        base = next(iter(rates.values()))
        print(f"\nk = {replicas}, medians of {options.rounds} rounds (and their range):")
        print_table(
            ("", "operations a second", "of Client's"),
            [
                (name, with_range(each), with_range(ratios(each, base), "{:.2f}"))
                for name, each in rates.items()
            ],
        )


if __name__ == "__main__":
    main()
