"""GT Store against Redis, memcached and bare sockets, all in one run.

Every store gets the same calls: put, then get, of key0, key1, ... with values of 100 bytes, and
keeps k copies on 7 nodes; bench/stores.py says how each one does that, bench/floors.py what the
bare sockets are. All of them run all the time and take turns, round by round, so that the ratios
hold when the machine's speed drifts: a ratio is one of two turns in the same round.

- sync: one synchronous client; servers and clients all on one CPU
- batches: the same place; put_many and get_many of 100 keys in turn
- processes: four clients, a process each, with keys of their own. No client is bound to a CPU;
  servers are where they place themselves: GT Store's nodes on one CPU each, in turn, the others
  on none
- memory: what a key takes of a server's memory, bench/memory.py
- connections: 1,000 connections to one node against 16, bench/connections.py

    python bench/peers.py [--only sync,batches,...] [--copies 1,3,5] [--rounds 5] [--seconds 0.7]
                          [--redis-server PATH] [--memcached PATH] [--plot DIR]

What is not installed is left out, and a line says so.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import connections
import floors
import memory
import servers
import stores
from gtstore import connect
from gtstore.testing import Cluster
from machine import (
    about,
    cpu_s,
    cpus,
    in_parallel,
    numbers,
    percentiles_us,
    print_table,
    ratios,
    with_range,
)
from stores import NODES, VALUE, Connected, Times, no_times, time_pair

OURS = "**GT Store**"
C_FLOOR = "sockets in C, no store"
FLOOR = "sockets in Python, no store"
DOCUMENTED = "Redis, redis-py as documented"
BARE = "Redis, bare connections"
WAIT = "Redis, WAIT"
PYMEMCACHE = "memcached, pymemcache"
PYLIBMC = "memcached, pylibmc as documented"
TEXT = "memcached, pylibmc, text protocol"

BATCH = 100
BATCHES = [[f"key{100 * n + i}" for i in range(BATCH)] for n in range(100)]
CLIENTS = 4
PROCESS_KEYS = 10_000
WARM_UP_PAIRS = 1000
TIMED_PART = 0.5
"""So much of a turn's length, once more, with each call timed."""

Connect = Callable[[], Connected]
Rates = dict[str, list[float]]


class Targets(NamedTuple):
    """Ratios to another row at k = 1, 3, 5; 0 is none."""

    row: str
    must: tuple[float, float, float]
    goal: tuple[float, float, float]


AHEAD = (1.0, 1.0, 1.0)
NONE = (0.0, 0.0, 0.0)
SYNC_TARGETS = (
    Targets(FLOOR, (0.70, 0.70, 0.65), (0.80, 0.80, 0.80)),
    Targets(DOCUMENTED, (1.6, 1.3, 1.15), (1.8, 1.5, 1.3)),
    Targets(BARE, (1.0, 1.0, 0.0), AHEAD),
    Targets(PYLIBMC, (1.0, 1.0, 0.0), AHEAD),
    Targets(TEXT, (1.0, 1.0, 0.0), AHEAD),
    Targets(PYMEMCACHE, NONE, NONE),
    Targets(WAIT, NONE, NONE),
    Targets(C_FLOOR, NONE, NONE),
)
BATCH_TARGETS = (
    Targets(DOCUMENTED, AHEAD, AHEAD),
    Targets(PYMEMCACHE, AHEAD, AHEAD),
    Targets(PYLIBMC, AHEAD, AHEAD),
    Targets(TEXT, AHEAD, AHEAD),
    Targets(BARE, NONE, AHEAD),
    Targets(WAIT, NONE, NONE),
)
PROCESS_TARGETS = (
    Targets(DOCUMENTED, AHEAD, AHEAD),
    Targets(BARE, NONE, AHEAD),
    Targets(PYLIBMC, NONE, NONE),
    Targets(TEXT, NONE, NONE),
    Targets(PYMEMCACHE, NONE, NONE),
    Targets(WAIT, NONE, NONE),
    Targets(FLOOR, NONE, NONE),
)
COPIES = (1, 3, 5)


# --- the stores ----------------------------------------------------------------------------------


@contextmanager
def all_stores(copies: int, options: argparse.Namespace) -> Iterator[dict[str, Connect]]:
    """Start the servers of each store; each row's name, and how to connect one client."""
    with ExitStack() as stack:
        rows: dict[str, Connect] = {}
        if options.cc is not None:
            rows[C_FLOOR] = partial(floors.CFloor, copies, options.cc)
        rows[FLOOR] = partial(floors.PythonFloor, copies)
        cluster = stack.enter_context(Cluster(NODES, copies))
        stack.callback(say_log, cluster)
        pids = list(cluster.node_pids.values())
        rows[OURS] = lambda: stores.Ours(connect(cluster.address), pids)
        if options.memcached is not None:
            caches = stack.enter_context(servers.Memcacheds(options.memcached, NODES))
            if stores.pylibmc is not None:
                rows[PYLIBMC] = partial(stores.Pylibmc, caches.ports, copies, caches.pids)
                rows[TEXT] = partial(stores.TextPylibmc, caches.ports, copies, caches.pids)
            if stores.pymemcache is not None:
                rows[PYMEMCACHE] = partial(stores.Pymemcache, caches.ports, copies, caches.pids)
        if options.redis_server is not None:
            alone = stack.enter_context(servers.RedisServers(options.redis_server, NODES))
            rows[BARE] = partial(stores.BareRedis, alone.ports, copies, alone.pids)
            rows[DOCUMENTED] = partial(stores.DocumentedRedis, alone.ports, copies, alone.pids)
            if copies > 1:
                group = stack.enter_context(
                    servers.RedisServers(options.redis_server, copies, replicates=True)
                )
                rows[WAIT] = partial(stores.WaitingRedis, group.ports, copies, group.pids)
        yield rows


def say_log(cluster: Cluster) -> None:
    """A node that died or was thought dead is worth knowing, and no good measurement."""
    if log := cluster.log():
        print(f"The cluster's log:\n\n{log}\n")


def check(name: str, client: Connected) -> None:
    """A store that loses values would be fast."""
    client.put("checked", VALUE)
    if client.get("checked") != VALUE and name not in (FLOOR, C_FLOOR):
        raise AssertionError(f"{name} has lost a value")


@contextmanager
def on_one_cpu(cpu: int) -> Iterator[None]:
    """This process, and all that it starts meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# --- one client ----------------------------------------------------------------------------------


class Row:
    """What was measured of one store with one number of copies."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.client_us: list[float] = []
        self.server_us: list[float] = []
        self.times = no_times()

    def note(self, operations: float, seconds: float, client_s: float, server_s: float) -> None:
        self.rates.append(operations / seconds)
        self.client_us.append(client_s / operations * 1e6)
        self.server_us.append(server_s / operations * 1e6)


Rows = dict[str, Row]


def turn(client: Connected, operations: int, work: Callable[[], object], row: Row) -> None:
    client_before, servers_before = client.client_cpu_s(), cpu_s(client.server_pids)
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    client_s = client.client_cpu_s() - client_before
    row.note(operations, seconds, client_s, cpu_s(client.server_pids) - servers_before)


def take_turns(
    copies: int,
    options: argparse.Namespace,
    run: Callable[[Connected, int], object],
    run_timed: Callable[[Connected, int], Times],
    size: int,
    without: Sequence[str] = (),
) -> Rows:
    """One client of each store. ``run`` makes so many pairs of calls, and a call has ``size``
    keys."""
    rows: Rows = {}
    with on_one_cpu(options.cpu), all_stores(copies, options) as all_rows, ExitStack() as stack:
        clients = {name: make() for name, make in all_rows.items() if name not in without}
        counts = {}
        for name, client in clients.items():
            stack.callback(client.close)
            if name != C_FLOOR:
                check(name, client)
            warm_up = max(1, WARM_UP_PAIRS // size)
            run(client, warm_up)
            started = time.perf_counter()
            run(client, warm_up)
            seconds = time.perf_counter() - started
            counts[name] = max(1, int(warm_up / seconds * options.seconds))
            rows[name] = Row()
        for _ in range(options.rounds):
            for name, client in clients.items():
                count = counts[name]
                turn(client, 2 * count * size, partial(run, client, count), rows[name])
        for _ in range(options.rounds):
            for name, client in clients.items():
                rows[name].times.extend(run_timed(client, max(1, int(counts[name] * TIMED_PART))))
    return rows


def run_batches(client: Connected, pairs: int) -> None:
    put_many, get_many = client.put_many, client.get_many
    for i in range(pairs):
        keys = BATCHES[i % len(BATCHES)]
        put_many(dict.fromkeys(keys, VALUE))
        get_many(keys)


def run_batches_timed(client: Connected, pairs: int) -> Times:
    now = time.perf_counter_ns
    times = no_times()
    for i in range(pairs):
        keys = BATCHES[i % len(BATCHES)]
        items = dict.fromkeys(keys, VALUE)
        start = now()
        client.put_many(items)
        middle = now()
        found = client.get_many(keys)
        times.puts.append(middle - start)
        times.gets.append(now() - middle)
        assert len(found) == BATCH
    return times


# --- clients that are processes ------------------------------------------------------------------


def in_processes(copies: int, options: argparse.Namespace) -> Rows:
    rows: Rows = {}
    with all_stores(copies, options) as all_rows:
        all_rows.pop(C_FLOOR, None)  # its client is a program that makes a given number of calls
        for _ in range(options.rounds):
            for name, make in all_rows.items():
                processes_turn(make, options.seconds, rows.setdefault(name, Row()))
    return rows


def processes_turn(make: Connect, seconds: float, row: Row) -> None:
    pids = set(make_known_pids(make))

    def prepare(number: int) -> Callable[[float], Any]:
        client = make()
        keys = [f"key{number}-{i}" for i in range(PROCESS_KEYS)]
        for key in keys[:50]:
            time_pair(client, key, no_times())

        def work(end: float) -> Any:
            times = no_times()
            client_before, servers_before = client.client_cpu_s(), cpu_s(client.server_pids)
            started = now = time.perf_counter()
            while now < end:
                for key in keys:
                    time_pair(client, key, times)
                    now = time.perf_counter()
                    if now >= end:
                        break
            client_s = client.client_cpu_s() - client_before
            server_s = cpu_s(client.server_pids) - servers_before
            client.close()
            return times, now - started, client_s, server_s

        return work

    results, before, after = in_parallel(CLIENTS, prepare, seconds, lambda: cpu_s(pids))
    operations = 0
    rate = 0.0
    for times, elapsed, _, _ in results:
        row.times.extend(times)
        operations += 2 * len(times.puts)
        rate += 2 * len(times.puts) / elapsed
    client_s = sum(each[2] for each in results)
    # Servers that are shared are measured here, those of the floor, a set for each client, there.
    server_s = after - before if pids else sum(each[3] for each in results)
    row.note(operations, operations / rate, client_s, server_s)


def make_known_pids(make: Connect) -> list[int]:
    """Of the servers that all clients share."""
    client = make()
    pids = client.server_pids
    client.close()
    return [] if isinstance(client, floors.PythonFloor) else pids


# --- what is printed -----------------------------------------------------------------------------


class Section(NamedTuple):
    title: str
    unit: str
    call: str
    measure: Callable[[int, argparse.Namespace], Rows]
    targets: tuple[Targets, ...]


def measure_sync(copies: int, options: argparse.Namespace) -> Rows:
    return take_turns(copies, options, lambda c, n: c.run(n), lambda c, n: c.run_timed(n), 1)


def measure_batches(copies: int, options: argparse.Namespace) -> Rows:
    without = (C_FLOOR, FLOOR)
    return take_turns(copies, options, run_batches, run_batches_timed, BATCH, without)


SECTIONS = {
    "sync": Section(
        "One synchronous client, everything on one CPU", "operations/s", "call",
        measure_sync, SYNC_TARGETS,
    ),
    "batches": Section(
        f"Batches of {BATCH} keys, everything on one CPU", "keys/s", "batch",
        measure_batches, BATCH_TARGETS,
    ),
    "processes": Section(
        f"{CLIENTS} client processes, bound to no CPU", "operations/s", "call",
        in_processes, PROCESS_TARGETS,
    ),
}  # fmt: skip


def run_section(name: str, options: argparse.Namespace) -> None:
    section = SECTIONS[name]
    print(f"### {section.title}\n", flush=True)
    measured = {copies: section.measure(copies, options) for copies in options.copies}
    rows = list(dict.fromkeys(row for of_k in measured.values() for row in of_k))
    heads = [f"k={copies}" for copies in measured]
    print(f"{section.unit}, median (min to max) of {options.rounds} rounds:\n")
    print_table(
        [section.unit, *heads],
        [
            [
                row,
                *(
                    with_range(of_k[row].rates) if row in of_k else "-"
                    for of_k in measured.values()
                ),
            ]
            for row in rows
        ],
    )
    print_ratios(section, measured)
    print_calls(section, measured)
    if options.plot:
        title = f"{section.title}: {section.unit}"
        medians = {
            row: [
                statistics.median(of_k[row].rates) if row in of_k else 0.0
                for of_k in measured.values()
            ]
            for row in rows
        }
        plot(options.plot / f"{name}.svg", title, heads, medians)


def print_ratios(section: Section, measured: dict[int, Rows]) -> None:
    lines = []
    for targets in section.targets:
        for copies, of_k in measured.items():
            if targets.row in of_k:
                found = ratios(of_k[OURS].rates, of_k[targets.row].rates)
                verdicts = verdicts_on(targets, copies, statistics.median(found))
                lines.append([targets.row, str(copies), with_range(found, "{:.2f}"), *verdicts])
    print("GT Store's part of the others' rates, of turns in the same round:\n")
    print_table(["of", "k", "median (min to max)", "must", "goal"], lines)


def verdicts_on(targets: Targets, copies: int, ratio: float) -> Iterator[str]:
    """On must and goal."""
    for bounds in (targets.must, targets.goal):
        bound = bounds[COPIES.index(copies)] if copies in COPIES else 0.0
        yield f"{bound:.2f}: {'met' if ratio >= bound else '**missed**'}" if bound else ""


def print_calls(section: Section, measured: dict[int, Rows]) -> None:
    print(f"Microseconds of a {section.call}, p50 / p99 / p999, and of CPU for a key, medians:\n")
    print_table(
        ["k", "", "put", "get", "CPU, client", "CPU, servers"],
        [
            [
                str(copies), name, percentiles_us(row.times.puts), percentiles_us(row.times.gets),
                f"{statistics.median(row.client_us):.1f}",
                f"{statistics.median(row.server_us):.1f}",
            ]
            for copies, of_k in measured.items()
            for name, row in of_k.items()
        ],
    )  # fmt: skip


def plot(path: Path, title: str, groups: Sequence[str], bars: dict[str, list[float]]) -> None:
    """Groups of bars."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: missing the Python package matplotlib")
        return
    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
    matplotlib.rcParams["svg.hashsalt"] = "bench"  # the same figures make the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    width = 0.85 / len(bars)
    for number, (name, heights) in enumerate(bars.items()):
        places = [group + number * width for group in range(len(groups))]
        is_ours = name == OURS
        color = "black" if is_ours else f"C{number}"
        axes.bar(places, heights, width, label=name.strip("*"), color=color)
    axes.set_xticks([group + 0.425 - width / 2 for group in range(len(groups))], groups)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    add = parser.add_argument
    every = [*SECTIONS, "memory", "connections"]
    add("--only", default=",".join(every), metavar="SECTION,...", help="(%(default)s)")
    add("--copies", type=numbers, default="1,3,5", metavar="K,...", help="(%(default)s)")
    add("--rounds", type=int, default=5, help="(%(default)s)")
    add("--seconds", type=float, default=0.7, help="about so long is one turn (%(default)s)")
    add("--cpu", type=int, default=min(os.sched_getaffinity(0)), help="of sync and batches")
    add("--keys", type=int, default=1_000_000, help="of memory (%(default)s)")
    add("--redis-server", default="redis-server", metavar="PATH", help="(%(default)s)")
    add("--memcached", default="memcached", metavar="PATH", help="(%(default)s)")
    add("--plot", type=Path, metavar="DIR", help="also make a plot of each section there")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if strange := set(options.only) - set(every):
        parser.error(f"no sections: {' '.join(sorted(strange))}; there are {' '.join(every)}")
    return options


def main() -> None:
    options = parse()
    print(f"{about()}; {NODES} nodes, values of {len(VALUE)} bytes")
    options.redis_server = servers.find_redis(options.redis_server)
    options.memcached = servers.find_memcached(options.memcached)
    options.cc = floors.compiler()
    if options.memcached is not None:
        for package, module in (("pymemcache", stores.pymemcache), ("pylibmc", stores.pylibmc)):
            if module is None:
                print(f"without the row of {package}: missing the Python package {package}")
            else:
                print(f"{package} {module.__version__}", end="; ")
    print(f"sync and batches on CPU {options.cpu} of {cpus()}\n", flush=True)
    gc.freeze()
    for name in SECTIONS:
        if name in options.only:
            run_section(name, options)
    if "memory" in options.only:
        memory.measure_servers(options.keys, len(VALUE), options.redis_server, options.memcached)
    if "connections" in options.only:
        connections.measure()


if __name__ == "__main__":
    main()
