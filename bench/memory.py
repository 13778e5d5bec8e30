"""What one key takes in a node's memory, beyond the bytes of the key and of its entry.

A node's rules and its engine in this process, no network: the growth of resident memory over many
puts, per key. ``--max-memory-mb`` counts replica.ENTRY_OVERHEAD_SIZE bytes a key.
``measure_servers``, a section of bench/peers.py, does it from outside: a real node, and servers of
other stores.

    python bench/memory.py [--keys 1000000] [--value-size 100]
"""

from __future__ import annotations

import argparse
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import servers
from gtstore.engine import MemoryEngine
from gtstore.operations import Source, begin_put
from gtstore.placement import PartitionMap, Routes
from gtstore.replica import ENTRY_OVERHEAD_SIZE, Replicas
from gtstore.testing import Cluster
from gtstore.wire import messages
from machine import FORK, print_table, resident

BATCH = 2000
MUST, GOAL_ROW = 260, "Redis"

PutRange = Callable[[int, int], object]
"""Puts the keys of these numbers."""


# --- servers from outside ------------------------------------------------------------------------


@contextmanager
def our_node(value: bytes) -> Iterator[tuple[int, PutRange]]:
    with Cluster(1, 1) as cluster, cluster.connect(timeout=60) as client:
        (pid,) = cluster.node_pids.values()

        def put(first: int, last: int) -> None:
            client.put_many({b"key%d" % i: value for i in range(first, last)})

        yield pid, put


@contextmanager
def one_server(
    kind: servers.Servers, request: Callable[[bytes], bytes], answer: bytes
) -> Iterator[tuple[int, PutRange]]:
    """Redis or memcached; ``request`` makes the bytes that store a value under a key."""
    with kind, socket.create_connection((servers.HOST, kind.ports[0])) as connection:
        answers = connection.makefile("rb")

        def put(first: int, last: int) -> None:
            connection.sendall(b"".join(request(b"key%d" % i) for i in range(first, last)))
            if answers.read(len(answer) * (last - first)) != answer * (last - first):
                raise AssertionError("a value was not stored")

        yield kind.pids[0], put


def server_size(keys: int, server: tuple[int, PutRange]) -> float:
    """Bytes a key, by the growth of the process's resident memory."""
    pid, put = server
    put(0, 1)  # what the first connection and the first request need is no key's
    before = resident(pid)
    for first in range(1, keys, BATCH):
        put(first, min(first + BATCH, keys))
    return (resident(pid) - before) / keys


def dict_size(keys: int, value_size: int) -> float:
    """A dict of bytes in a process of its own."""
    sizes = FORK.SimpleQueue()

    def fill() -> None:
        before = resident()
        entries = {b"key%d" % i: bytes(value_size) for i in range(keys)}
        sizes.put((resident() - before) / len(entries))

    process = FORK.Process(target=fill)
    process.start()
    size: float = sizes.get()
    process.join()
    return size


def measure_servers(
    keys: int, value_size: int, redis_server: str | None, memcached: str | None
) -> None:
    """One process of each kind, k = 1."""
    print("### Memory of one server\n", flush=True)
    value = b"x" * value_size
    found = {}
    with our_node(value) as node:
        found["GT Store"] = server_size(keys, node)
    if redis_server is not None:
        tail = b"\r\n$%d\r\n%s\r\n" % (value_size, value)
        alone = one_server(
            servers.RedisServers(redis_server, 1),
            lambda key: b"*3\r\n$3\r\nSET\r\n$%d\r\n%s%s" % (len(key), key, tail),
            b"+OK\r\n",
        )
        with alone as server:
            found[GOAL_ROW] = server_size(keys, server)
    if memcached is not None:
        cache = one_server(
            servers.Memcacheds(memcached, 1),
            lambda key: b"set %s 0 0 %d\r\n%s\r\n" % (key, value_size, value),
            b"STORED\r\n",
        )
        with cache as server:
            found["memcached"] = server_size(keys, server)
    found["a dict of bytes, no store"] = dict_size(keys, value_size)
    print(f"Growth of resident memory over {keys:,} keys, values of {value_size} bytes:\n")
    print_table(["", "bytes a key"], [[name, f"{size:.0f}"] for name, size in found.items()])
    ours = found["GT Store"]
    print(f"must: {MUST}: {'met' if ours <= MUST else '**missed**'}", end="")
    if GOAL_ROW in found:
        is_met = ours < found[GOAL_ROW]
        print(f"; goal: less than {GOAL_ROW}: {'met' if is_met else '**missed**'}", end="")
    print("\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--value-size", type=int, default=100)
    options = parser.parse_args()

    def now_us() -> int:
        return time.time_ns() // 1000

    partition_map = PartitionMap.first(1, 1, 1, {1: 1})
    replicas = Replicas(1, 1, 1, 1, messages.HASH_CRC16, MemoryEngine(), now_us)
    replicas.adopt(partition_map.epoch, partition_map.rows)
    routes = Routes()
    shape = messages.Cluster(partition_map.epoch, 1, 1, messages.HASH_CRC16, 64, now_us(), ())
    routes.replace(shape, partition_map.rows, 0)
    source = Source(lambda: 1, time.time_ns, lambda: 0.5)

    value = bytes(options.value_size)
    before = resident()
    for i in range(options.keys):
        frame = begin_put(routes, source, b"key%d" % i, value)[2]
        replicas.write(1, frame[messages.HEADER_SIZE :])
    taken = resident() - before
    own = replicas.size
    print(f"{options.keys:,} keys, values of {options.value_size} bytes")
    print(f"a key takes {taken / options.keys:.0f} bytes, {own / options.keys:.0f} of them its own")
    overhead = (taken - own) / options.keys
    print(f"overhead: {overhead:.0f} bytes a key; --max-memory-mb counts {ENTRY_OVERHEAD_SIZE}")


if __name__ == "__main__":
    main()
