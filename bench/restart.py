"""How long a cluster with --data-dir takes to start, with many stored keys and with none.

    python bench/restart.py [--keys 1000000] [--rounds 3]

Both are started in turn; a start is over when the manager prints its ready line. The directories
are made under --dir, which must be on a real disk.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from gtstore.testing import Cluster

BATCH = 2000


def started_s(path: Path, options: argparse.Namespace) -> float:
    """How long a start takes; the cluster is stopped again."""
    started = time.monotonic()
    with Cluster(options.nodes, options.replicas, ["--data-dir", str(path)]):
        return time.monotonic() - started


def load(path: Path, options: argparse.Namespace) -> None:
    value = bytes(100)
    cluster = Cluster(options.nodes, options.replicas, ["--data-dir", str(path)])
    with cluster, cluster.connect(timeout=60) as store:
        for at in range(0, options.keys, BATCH):
            last = min(at + BATCH, options.keys)
            store.put_many({b"key%09d" % number: value for number in range(at, last)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=7)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--dir", default=".")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        full = Path(directory) / "full"
        load(full, options)
        times: dict[str, list[float]] = {"empty": [], "full": []}
        for number in range(options.rounds):
            times["empty"].append(started_s(Path(directory) / f"empty-{number}", options))
            times["full"].append(started_s(full, options))
    for name, seconds in times.items():
        each = " ".join(f"{s:.2f}" for s in seconds)
        print(f"{name:6} {statistics.median(seconds):.2f} s (each: {each})")
    later = statistics.median(times["full"]) - statistics.median(times["empty"])
    print(f"with {options.keys:,} keys it is ready {later:.2f} s later; the target is below 1 s")


if __name__ == "__main__":
    main()
