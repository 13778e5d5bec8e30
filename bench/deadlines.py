"""How exactly a waiting Client returns at its deadline: milliseconds after it.

A node is stopped (SIGSTOP), so its connections stay open and silent, and get, put, a put of 1 MiB
and put_many are called with deadlines of several lengths.

    python bench/deadlines.py [--rounds 10]
"""

from __future__ import annotations

import argparse
import time

from gtstore import Client, GTStoreError
from gtstore.testing import Cluster
from machine import stolen_s

BOUND_MS = 50.0

CALLS = {
    "get": lambda store: store.get("key"),
    "put": lambda store: store.put("key", b"x"),
    "put of 1 MiB": lambda store: store.put("key", bytes(1 << 20)),
    "put_many, 1000 keys": lambda store: store.put_many({f"key{i}": b"x" for i in range(1000)}),
}


def late_ms(store: Client, name: str, timeout_s: float) -> float:
    started = time.monotonic()
    try:
        CALLS[name](store)
    except GTStoreError:
        return (time.monotonic() - started - timeout_s) * 1000
    raise AssertionError("a stopped node answered")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    print(f"milliseconds after the deadline, {options.rounds} rounds: median and worst")
    worst = 0.0
    stolen = stolen_s()
    with Cluster(1, 1) as cluster:
        for timeout_s in (0.05, 0.3, 1.0):
            with cluster.connect(timeout=timeout_s) as store:
                store.put("key", b"x")
                cluster.pause_node(1)
                for name in CALLS:
                    times = sorted(late_ms(store, name, timeout_s) for _ in range(options.rounds))
                    worst = max(worst, times[-1])
                    median = times[len(times) // 2]
                    print(f"{timeout_s:5.2f} s  {name:20}  {median:6.1f}  {times[-1]:6.1f}")
                cluster.resume_node(1)
    stolen_ms = (stolen_s() - stolen) * 1000
    print(f"CPU time that the hypervisor gave to others meanwhile: {stolen_ms:.0f} ms")
    verdict = "within" if worst <= BOUND_MS else "NOT within"
    print(f"worst: {worst:.1f} ms, {verdict} {BOUND_MS:g} ms")


if __name__ == "__main__":
    main()
