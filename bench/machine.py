"""What the benchmarks share: CPUs, CPU time, memory, clients that are processes, and tables.

The tables are Markdown, as docs/BENCHMARKS.md has them.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import platform
import statistics
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

FORK = multiprocessing.get_context("fork")
START_PAUSE_S = 0.2
READY_TIMEOUT_S = 60.0
_CPUCLOCK_SCHED = 2  # in the kernel's numbers of clocks
PERCENTILES = (0.5, 0.99, 0.999)


def optional(package: str) -> Any:
    """A package that may be missing, or None."""
    try:
        return importlib.import_module(package)
    except ImportError:
        return None


# --- CPUs and memory -----------------------------------------------------------------------------


def cpus() -> list[int]:
    """Those that this process may use."""
    return sorted(os.sched_getaffinity(0))


def bind(pid: int, number: int) -> None:
    """To one CPU, in turn."""
    os.sched_setaffinity(pid, {cpus()[number % len(cpus())]})


def busy_s() -> float:
    """How long all CPUs together have been busy since the machine was started."""
    user, nice, system, _, _, irq, softirq = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def stolen_s() -> float:
    """What a virtual machine's neighbours took: it makes single calls late."""
    with open("/proc/stat") as file:
        return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")


def cpu_s(pids: Iterable[int]) -> float:
    """How much CPU time these processes have had, with all threads that they ever had.

    Not from /proc/PID/stat, which counts in steps of 10 ms: with many processes that is a large
    part of a short measurement. The clock's number is what clock_getcpuclockid(3) returns.
    """
    return sum(map(_cpu_s, pids))


def _cpu_s(pid: int) -> float:
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError as error:
        raise ProcessLookupError(f"process {pid} has ended") from error


def resident(pid: int | str = "self") -> int:
    """How many bytes of a process are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def resident_peak(pid: int) -> int:
    """The most that it has ever been."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no VmHWM")


def about() -> str:
    return f"{len(cpus())} CPUs, Linux {platform.release()}, Python {platform.python_version()}"


# --- clients that are processes ------------------------------------------------------------------


def in_parallel(
    clients: int,
    prepare: Callable[[int], Callable[[float], Any]],
    seconds: float,
    meter: Callable[[], Result],
) -> tuple[list[Any], Result, Result]:
    """Let so many processes work for so long, all at the same time.

    Each calls ``prepare`` with its number, and what that returned, once all have, with the end on
    time.perf_counter's clock. Returns what that returned in all of them, and what the ``meter``
    showed at the start and at the end.
    """
    start = FORK.Value("d", 0.0)
    prepared = FORK.Barrier(clients + 1)
    pipes = [FORK.Pipe(duplex=False) for _ in range(clients)]

    def client(number: int) -> None:
        for other, (_, sender) in enumerate(pipes):
            if other != number:
                sender.close()
        work = prepare(number)
        prepared.wait(READY_TIMEOUT_S)
        prepared.wait(READY_TIMEOUT_S)
        time.sleep(max(0.0, start.value - time.perf_counter()))
        pipes[number][1].send(work(start.value + seconds))

    processes = [FORK.Process(target=client, args=(n,), daemon=True) for n in range(clients)]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()  # so that the end of a client that fails is seen
    prepared.wait(READY_TIMEOUT_S)
    start.value = time.perf_counter() + START_PAUSE_S
    prepared.wait(READY_TIMEOUT_S)
    time.sleep(max(0.0, start.value - time.perf_counter()))
    before = meter()
    time.sleep(seconds)
    after = meter()
    try:
        results = [receiver.recv() for receiver, _ in pipes]  # a client with much to say waits
    except EOFError:
        sys.exit("a client failed: see above")
    for process in processes:
        process.join()
        if process.exitcode:
            sys.exit("a client failed: see above")
    return results, before, after


# --- tables --------------------------------------------------------------------------------------


def percentiles_us(times_ns: array[int]) -> str:
    """p50 / p99 / p999 in microseconds, without those that hardly a call is beyond."""
    ordered = sorted(times_ns)
    count = len(ordered)
    return " / ".join(
        f"{ordered[int(count * p)] / 1000:,.0f}" if count * (1 - p) > 1 else "-"
        for p in PERCENTILES
    )


def with_range(values: Sequence[float], form: str = "{:,.0f}") -> str:
    """Median (min to max)."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{form} ({form} to {form})".format(middle, low, high)


def ratios(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round, so that they hold when the machine's speed drifts."""
    return [one / other for one, other in zip(mine, theirs, strict=True)]


def print_table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    print(f"| {' | '.join(heads)} |")
    print("|" + " --- |" * len(heads))
    for line in lines:
        print(f"| {' | '.join(line)} |")
    print(flush=True)


def numbers(text: str) -> list[int]:
    """1,3,5 as an option's value."""
    return [int(number) for number in text.split(",")]
