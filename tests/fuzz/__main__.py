"""``python -m tests.fuzz [--seconds N] [--seed N]``: the fuzzer for as long as one likes.

The same seed gives the same cases in the same order, but for the epoch and the times in them, which
are those of the cluster.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from gtstore.testing import Cluster

from .engine import NODES, REPLICAS, Fuzzer, Violation


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args()
    print(f"seed {options.seed}: make fuzz SECONDS={options.seconds:g} SEED={options.seed}")
    chance = random.Random(options.seed)
    with Cluster(NODES, REPLICAS) as cluster:
        fuzzer = Fuzzer(cluster)
        started = time.monotonic()
        try:
            while time.monotonic() < started + options.seconds:
                fuzzer.fire(chance)
            after = fuzzer.after()
        except (Violation, AssertionError, TimeoutError) as error:
            print(f"VIOLATED in case {fuzzer.cases}: {error}", file=sys.stderr)
            return 1
        seconds = time.monotonic() - started
    print(f"{fuzzer.cases} cases in {seconds:.0f} s, {fuzzer.cases / seconds:.0f} a second")
    print(f"without an answer: {fuzzer.without_answer}; reset while sending: {fuzzer.resets}")
    for title, counts in (("answers", fuzzer.answers), ("errors", fuzzer.errors)):
        print(f"{title}: {', '.join(f'{name} {count}' for name, count in counts.most_common())}")
    for name, before in fuzzer.before.items():
        now = after[name]
        print(
            f"{name}: memory {before.memory >> 10:,} KiB before, {now.memory >> 10:,} after; "
            f"threads {before.threads}, {now.threads}; files {before.files}, {now.files}"
        )
    print("every answer was a valid frame, every probe was answered, every guarded key is there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
