"""``python -m tests.chaos [--seconds N] [--seed N] ...``: clients and faults for as long as one
likes.

The seed draws what the clients do and which faults there are; when things happen depends on the
machine, so the same seed does not give the same history.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

from .run import Report, run
from .small_disk import go_inside, is_outside, why_impossible
from .world import World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument(
        "--overlap", action="store_true", help="faults also while other nodes lack copies"
    )
    flag = partial(parser.add_argument, action="store_true")
    flag("--durable", help="with --data-dir; everything is killed at once, too")
    flag("--async", help="every other client process is one of asyncio, with several tasks")
    flag("--long", help="values of up to 1 MiB")
    flag("--full-disk", help="the data is on a small disk that is full at times; durable, too")
    flag("--steps", help="wall clocks step, by seconds to an hour")
    flag("--network", help="connections stall one way, go byte by byte, are reset")
    flag("--mixed", help="the seed chooses which of these there are besides, but no full disk")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="busy loops beside")
    parser.add_argument("--max-memory-mb", type=int, default=0, metavar="N", help="of each node")
    options = parser.parse_args()
    if options.full_disk and is_outside():
        if why := why_impossible():
            sys.exit(f"there can be no small disk here: {why}")
        go_inside(["-m", "tests.chaos", *sys.argv[1:], "--seed", str(options.seed)])
    world = World(
        options.durable,
        vars(options)["async"],
        options.long,
        options.full_disk,
        options.steps,
        options.network,
        options.busy,
        options.max_memory_mb,
    )
    if options.mixed:
        world = world.mixed(options.seed)
    print(
        f"seed {options.seed}: make chaos SECONDS={options.seconds:g} SEED={options.seed} "
        f"NODES={options.nodes} REPLICAS={options.replicas}{' OVERLAP=1' * options.overlap} "
        f"{world}",
        flush=True,
    )
    directory = Path(tempfile.mkdtemp(prefix="gtstore-chaos-"))
    report = run(
        directory,
        options.seed,
        options.seconds,
        options.nodes,
        options.replicas,
        world,
        overlap=options.overlap,
        tell=lambda text: print(text, flush=True),
    )
    print_figures(report)
    if report.is_good:
        shutil.rmtree(directory, ignore_errors=options.full_disk)  # where the disk is mounted
        return 0
    print(f"the histories and the cluster's log are kept in {directory}", file=sys.stderr)
    return 1


def print_figures(report: Report) -> None:
    operations = report.counts.total()
    print(
        f"{operations} operations in {report.seconds:.1f} s, "
        f"{operations / max(report.seconds, 1e-9):.0f} a second: {_listed(report.counts)}"
    )
    share = f"{report.unknown} of {report.writes} writes, {report.unknown_share:.3%}"
    print(f"outcome unknown: {share}")
    print(f"reads that failed: {report.failed_reads}; did not happen: {_listed(report.failed)}")
    print(f"faults: {_listed(report.faults)}")
    print(f"longest operation: {report.longest_s:.3f} s, {report.longest}")
    for error in report.errors:
        print(f"FAILED: {error}", file=sys.stderr)
    for violation in report.violations:
        print(f"VIOLATED: {violation}", file=sys.stderr)
    if report.is_good:
        print(f"linearizable: all of {report.checked} operations")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


if __name__ == "__main__":
    sys.exit(main())
