"""What it costs that nodes read and compare all that they have (rule N10), where there is much.

    python bench/scrub.py [--keys 1000000] [--rounds 3] [--seconds 20] [--dir DIR]

One directory is filled, and a cluster is started on it in turn without the scrub and with it, as it
is by default. Each time it is waited until what nodes have to see to after a start is done; then
all is idle, and the processor time of all nodes together is counted; then one client puts and gets
at half the rate that it reaches, evenly spaced, and how long each call takes is measured from the
moment at which it was due. The directory is made under --dir, which must be on a real disk.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

from gtstore import Client
from gtstore.testing import Cluster
from machine import about, cpu_s, print_table
from restart import load

QUIET = 0.03
"""What nodes take of a processor together when they have done what a start brings."""
QUIET_TIMEOUT_S = 300.0


def idle(cluster: Cluster, seconds: float) -> float:
    """How much of one processor all nodes take meanwhile."""
    pids = list(cluster.node_pids.values())
    before = cpu_s(pids)
    time.sleep(seconds)
    return (cpu_s(pids) - before) / seconds


def await_quiet(cluster: Cluster) -> None:
    ends_at = time.monotonic() + QUIET_TIMEOUT_S
    while idle(cluster, 5) > QUIET and time.monotonic() < ends_at:
        pass


def call(store: Client, keys: int, number: int) -> None:
    """Puts and gets in turn."""
    key = b"key%09d" % random.randrange(keys)
    if number % 2:
        store.put(key, bytes(100))
    else:
        store.get(key)


def rate(store: Client, keys: int, seconds: float = 3.0) -> float:
    """Calls a second of one client that does nothing else."""
    ends_at = time.monotonic() + seconds
    count = 0
    while time.monotonic() < ends_at:
        call(store, keys, count)
        count += 1
    return count / seconds


def latencies(store: Client, keys: int, a_second: float, seconds: float) -> list[float]:
    due = time.perf_counter()
    found = []
    for number in range(int(a_second * seconds)):
        due += 1 / a_second
        while (left := due - time.perf_counter()) > 0:
            time.sleep(max(0.0, left - 0.000_1))
        call(store, keys, number)
        found.append(time.perf_counter() - due)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--nodes", type=int, default=7)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--dir", default=".")
    options = parser.parse_args()
    print(about())
    found: dict[str, list[tuple[float, float, float]]] = {"without": [], "with": []}
    a_second = 0.0
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        path = Path(directory) / "data"
        load(path, options)
        for _ in range(options.rounds):
            for name, more in (("without", ["--scrub-percent", "0"]), ("with", [])):
                arguments = ["--data-dir", str(path), *more]
                with (
                    Cluster(options.nodes, options.replicas, arguments) as cluster,
                    cluster.connect() as store,
                ):
                    await_quiet(cluster)
                    share = idle(cluster, options.seconds)
                    a_second = a_second or rate(store, options.keys) / 2
                    times = sorted(latencies(store, options.keys, a_second, options.seconds))
                    p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
                    found[name].append((share, p50, p99))
                    print(f"{name}: {share:.2%} of a processor; {p50 * 1e6:.0f}, {p99 * 1e6:.0f}")
    print_table(
        ("scrub", "idle: % of a processor", "p50 us", "p99 us"),
        [
            (
                name,
                *(
                    f"{factor * statistics.median(row[at] for row in rows):.2f}"
                    for at, factor in ((0, 100), (1, 1e6), (2, 1e6))
                ),
            )
            for name, rows in found.items()
        ],
    )
    pairs = zip(found["with"], found["without"], strict=True)
    ratio = statistics.median(one[2] / other[2] for one, other in pairs)
    print(f"at {a_second:.0f} calls a second p99 is {ratio:.2f} times what it is without")


if __name__ == "__main__":
    main()
