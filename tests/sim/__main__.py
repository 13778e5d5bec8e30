"""Many simulated runs, one seed after the other."""

from __future__ import annotations

import argparse
import time

from .run import SMALL, run_many


def main() -> None:
    """Run, and print how many there were of what."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="the first run's")
    options = parser.parse_args()
    for module, name, value in SMALL:
        setattr(module, name, value)
    started = time.monotonic()
    outcomes = run_many(range(options.seed, options.seed + options.runs))
    took_s = time.monotonic() - started
    counts = ", ".join(f"{count} {what}" for what, count in outcomes.items())
    print(f"{options.runs} runs from seed {options.seed} in {took_s:.0f} s, all linearizable:")
    print(counts)


if __name__ == "__main__":
    main()
