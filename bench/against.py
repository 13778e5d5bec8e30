"""Is this tree as fast as another commit was? Both in one run, in turn.

Each side is a process of its own, with a cluster and a client of its checkout (bench/side.py); the
Python, its packages and the machine are the same. In each round both sides begin anew, as how fast
a process is also depends on where its memory is, by a fifth and more. Then they take short turns,
so that what disturbs the machine disturbs both; of a side's turns the upper quartile counts, as
whatever disturbs makes slower. What is compared is the ratio of the sides in a round, and the
median of the rounds' ratios: two copies of the same code came within 0.988 and 1.009 of each other
by CPU time, in twelve rounds. A piece of work passes if that is at least 0.97, either of the
operations a second, or of the operations a second of CPU time that client and nodes use. What does
not pass is measured for up to twice as many rounds more: then noise goes, and what is slow stays.

- k=1, k=3: put and get by one synchronous client; put_many and get_many of 100 keys; 100 tasks of
  one AsyncClient, half puts, half gets. Values of 100 bytes, 7 nodes; everything on one CPU
- durable: puts with --data-dir on 3 nodes, k=3: by one synchronous client, and by 16 tasks. Nodes
  are bound to the CPUs in turn, the client to none

    python bench/against.py COMMIT [--rounds 15] [--seconds 0.4] [--only k=1,k=3,durable]
                                   [--dir DIR]

Exit code 1: something does not pass.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from durable import file_system
from machine import about, cpus, print_table, ratios

RATIO_MIN = 0.97
REPEATS_MAX = 2
TURNS = 20
"""Of each side in a round."""
TURNS_MIN = 4
COUNTS_FROM = 0.75
"""Which of a side's turns counts, in the order of their speeds."""
WARM_UP = 1000
DURABLE_WARM_UP = 100
UNIT = 100
"""Counts are a multiple of a batch's size."""
CONFIDENCE = 0.95
HERE = Path(__file__).resolve().parent
TREE = HERE.parent


class Section(NamedTuple):
    nodes: int
    replicas: int
    works: tuple[str, ...]
    is_durable: bool = False


SECTIONS = {
    "k=1": Section(7, 1, ("put", "get")),
    "k=3": Section(7, 3, ("put", "get", "put_many", "get_many", "tasks")),
    "durable": Section(3, 3, ("put", "writers"), is_durable=True),
}


class Turns:
    """What one side did, round by round: operations a second, and a second of CPU time."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.cpu_rates: list[float] = []


class Compared(NamedTuple):
    """The two sides at one piece of work."""

    theirs: Turns
    ours: Turns

    @property
    def rate_ratios(self) -> list[float]:
        return ratios(self.ours.rates, self.theirs.rates)

    @property
    def cpu_ratios(self) -> list[float]:
        return ratios(self.ours.cpu_rates, self.theirs.cpu_rates)

    @property
    def passes(self) -> bool:
        return max(map(statistics.median, (self.rate_ratios, self.cpu_ratios))) >= RATIO_MIN


class Side:
    """The process of one checkout."""

    def __init__(self, checkout: Path, section: Section, place: Path) -> None:
        cpu = -1 if section.is_durable else cpus()[-1]
        self._process = subprocess.Popen(
            [
                sys.executable, HERE / "side.py",
                str(section.nodes), str(section.replicas), str(cpu),
                *([str(place)] if section.is_durable else ()),
            ],
            # What the side starts with "python -m" is looked for in its directory first.
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self._checkout = checkout

    def __enter__(self) -> Side:
        found = map(Path, self._answer()["from"])
        assert all(each.samefile(self._checkout) for each in found), "another checkout is at work"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def do(self, work: str, count: int) -> tuple[float, float]:
        """Do so many operations; how long it took, and the CPU time that was used."""
        assert self._process.stdin is not None
        print(json.dumps([work, count]), file=self._process.stdin, flush=True)
        took = self._answer()
        return took["seconds"], took["cpu_s"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the side of {self._checkout} failed: see above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def checkout_of(commit: str, place: Path) -> Iterator[Path]:
    """A commit's files, in a worktree that is there meanwhile."""
    git = ["git", "-C", str(TREE), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(place), commit], check=True)
    try:
        yield place
    finally:
        subprocess.run([*git, "remove", "--force", str(place)], check=True)


def measure(
    section: Section, checkout: Path, place: Path, options: argparse.Namespace
) -> dict[str, Compared]:
    found = {work: Compared(Turns(), Turns()) for work in section.works}
    for _ in range(1 + REPEATS_MAX):
        todo = [work for work, each in found.items() if not (each.ours.rates and each.passes)]
        for round_ in range(options.rounds if todo else 0):
            with ExitStack() as stack:
                there = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place)))
                sides = [
                    stack.enter_context(Side(tree, section, there / name))
                    for name, tree in (("theirs", checkout), ("ours", TREE))
                ]
                for work in todo:
                    turns, count = turns_for(sides, work, section, options.seconds)
                    compare(sides, work, turns, count, found[work], round_ % 2)
    return found


def compare(
    sides: Sequence[Side], work: str, turns: int, count: int, into: Compared, first: int
) -> None:
    """One round: the ``first`` side, twice the other one, twice the first one, and so on."""
    rates: list[list[float]] = [[], []]
    cpu_rates: list[list[float]] = [[], []]
    for turn in range(turns):
        for which in (first, 1 - first) if turn % 2 == 0 else (1 - first, first):
            seconds, cpu_s = sides[which].do(work, count)
            rates[which].append(count / seconds)
            cpu_rates[which].append(count / cpu_s)
    for which, side in enumerate(into):
        side.rates.append(that_counts(rates[which]))
        side.cpu_rates.append(that_counts(cpu_rates[which]))


def that_counts(rates: Sequence[float]) -> float:
    return sorted(rates)[int(len(rates) * COUNTS_FROM)]


def turns_for(
    sides: Sequence[Side], work: str, section: Section, seconds: float
) -> tuple[int, int]:
    """How many turns take that time, and of how many operations, when both sides are warm."""
    warm_up = DURABLE_WARM_UP if section.is_durable else WARM_UP
    for side in sides:
        side.do(work, warm_up)
    took_s, _ = sides[0].do(work, warm_up)
    units = max(TURNS_MIN, round(warm_up / took_s * seconds / UNIT))
    turns = min(TURNS, units)
    return turns, units // turns * UNIT


def interval(values: Sequence[float]) -> tuple[float, float]:
    """A confidence interval of the median, whatever the distribution: so many of the lowest and of
    the highest values are left out that the median is rarely beyond what remains."""
    count = len(values)
    beyond = 0.0  # how likely it is that the median is beyond one end
    left_out = -1
    while beyond + math.comb(count, left_out + 1) / 2**count <= (1 - CONFIDENCE) / 2:
        left_out += 1
        beyond += math.comb(count, left_out) / 2**count
    ordered = sorted(values)
    at = max(left_out, 0)
    return ordered[at], ordered[count - 1 - at]


def shown(values: Sequence[float]) -> str:
    low, high = interval(values)
    return f"{statistics.median(values):.3f} ({low:.3f} to {high:.3f})"


def line_of(name: str, compared: Compared) -> list[str]:
    return [
        name,
        f"{statistics.median(compared.ours.rates):,.0f}",
        shown(compared.rate_ratios),
        f"{1e6 / statistics.median(compared.ours.cpu_rates):,.1f}",
        shown(compared.cpu_ratios),
        f"{'yes' if compared.passes else '**NO**'}, {len(compared.ours.rates)} rounds",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("commit", help="the other one")
    add("--rounds", type=int, default=15, help="(%(default)s)")
    add("--seconds", type=float, default=0.4, help="of a side in a round (%(default)s)")
    add("--only", default=",".join(SECTIONS), help="(%(default)s)")
    add("--dir", type=Path, default=TREE / "build", help="for the checkout and durable data")
    options = parser.parse_args()
    options.dir = options.dir.resolve()
    options.dir.mkdir(exist_ok=True)
    print(
        f"This tree against {options.commit}, {options.rounds} rounds; {about()}. In memory "
        f"everything is on CPU {cpus()[-1]}; durable nodes are on CPUs "
        f"{' '.join(map(str, cpus()))} in turn, the client on any, the files on "
        f"{file_system(options.dir)[0]}\n",
        flush=True,
    )
    found: dict[str, Compared] = {}
    with (
        tempfile.TemporaryDirectory(prefix="against-", dir=options.dir) as place,
        checkout_of(options.commit, Path(place) / "checkout") as checkout,
    ):
        for name in options.only.split(","):
            measured = measure(SECTIONS[name], checkout, Path(place), options)
            found |= {f"{name}, {work}": compared for work, compared in measured.items()}
    heads = [
        "", "operations/s", "ratio (95 % confidence)",
        "CPU us an operation", "ratio (95 % confidence)", f"at least {RATIO_MIN:g}",
    ]  # fmt: skip
    print_table(heads, [line_of(name, compared) for name, compared in found.items()])
    print(
        "Ratios are those of operations a second, and of operations a second of CPU time, of this "
        "tree to the other commit: more than 1 is faster."
    )
    return 0 if all(compared.passes for compared in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
