"""One side of against.py: a cluster and a client of the checkout that PYTHONPATH names. They work
when they are told to, so that two sides can take turns.

    python bench/side.py NODES REPLICAS CPU [DATA_DIR]

CPU is the one that all of it is bound to, or -1. First it says ``{"from": [PATH, ...]}``, where the
code of client and nodes is from. Then it answers each line ``["put", COUNT]`` with how long
that took, and the CPU time of client and nodes. It ends with its input.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gtstore
from gtstore.testing import Cluster
from machine import cpu_s
from tasks import KEYS, STEP, VALUE, in_tasks

BATCH = 100
TASKS = 100
WRITERS = 16
"""Tasks that put at the same time: their puts can share a sync."""

Work = Callable[[int], object]


def key_of(number: int) -> str:
    return KEYS[number * STEP % len(KEYS)]


def works(store: gtstore.Client, address: str, runner: asyncio.Runner) -> dict[str, Work]:
    """What there is to do, each so many times: operations, or keys of batches."""
    asynchronous = runner.run(connected(address))
    batches = [KEYS[at : at + BATCH] for at in range(0, len(KEYS), BATCH)]

    def put(count: int) -> None:
        for number in range(count):
            store.put(key_of(number), VALUE)

    def get(count: int) -> None:
        for number in range(count):
            store.get(key_of(number))

    def put_many(count: int) -> None:
        for number in range(count // BATCH):
            store.put_many(dict.fromkeys(batches[number % len(batches)], VALUE))

    def get_many(count: int) -> None:
        for number in range(count // BATCH):
            store.get_many(batches[number % len(batches)])

    async def write(count: int) -> None:
        async def put_each(first: int) -> None:
            for number in range(first, count, WRITERS):
                await asynchronous.put(key_of(number), VALUE)

        await asyncio.gather(*map(put_each, range(WRITERS)))

    return {
        "put": put,
        "get": get,
        "put_many": put_many,
        "get_many": get_many,
        "tasks": lambda count: runner.run(in_tasks(asynchronous, count, TASKS)),
        "writers": lambda count: runner.run(write(count)),
    }


async def connected(address: str) -> gtstore.AsyncClient:
    return await gtstore.connect_async(address)


def checkout_of(pid: int) -> str:
    """Where a node's code is from: whoever has forked it has put that first."""
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (path,) = (each for each in environment if each.startswith(b"PYTHONPATH="))
    return path.partition(b"=")[2].decode().split(os.pathsep)[0]


def main() -> None:
    nodes, replicas, cpu, *data_dir = sys.argv[1:]
    if int(cpu) >= 0:
        os.sched_setaffinity(0, {int(cpu)})
    options = ["--data-dir", *data_dir] if data_dir else []
    with (
        Cluster(int(nodes), int(replicas), options) as cluster,
        cluster.connect(30) as store,
        asyncio.Runner() as runner,
    ):
        store.put_many(dict.fromkeys(KEYS, VALUE))
        do = works(store, cluster.address, runner)
        pids = list(cluster.node_pids.values())
        gc.freeze()
        places = [str(Path(gtstore.__file__).parent.parent), *map(checkout_of, pids)]
        print(json.dumps({"from": places}), flush=True)
        for line in sys.stdin:
            name, count = json.loads(line)
            nodes_s, client_s = cpu_s(pids), time.process_time()
            began_at = time.perf_counter()
            do[name](count)
            seconds = time.perf_counter() - began_at
            used_s = cpu_s(pids) - nodes_s + time.process_time() - client_s
            print(json.dumps({"seconds": seconds, "cpu_s": used_s}), flush=True)


if __name__ == "__main__":
    main()
