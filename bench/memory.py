"""What one key takes in a node's memory, beyond the bytes of the key and of its entry.

A node's rules and its engine in this process, no network: the growth of resident memory over many
puts, per key. ``--max-memory-mb`` counts replica.ENTRY_OVERHEAD_SIZE bytes a key.

    python bench/memory.py [--keys 1000000] [--value-size 100]
"""

from __future__ import annotations

import argparse
import os
import time

from gtstore.engine import MemoryEngine
from gtstore.operations import Source, begin_put
from gtstore.placement import PartitionMap, Routes
from gtstore.replica import ENTRY_OVERHEAD_SIZE, Replicas
from gtstore.wire import messages


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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
