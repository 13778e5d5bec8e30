"""``gtclient bench``: from options to a report."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

from .. import placement
from ..connection import call_once, parse_address
from ..errors import InvalidInput, OperationFailed
from ..placement import HASH_FUNCTIONS, format_address
from ..version import __version__
from ..wire import messages
from ..wire.messages import HASHES
from . import chart, latencies, measuring
from .balance import home_map, keys_per_node, keys_per_partition, random_keys, spread
from .measuring import Shape, Task
from .report import Placement, Report, Run, of_placements, of_runs
from .stopping import Stopping
from .workloads import WORKLOADS

_NODES: Final = 7
_REPLICAS: Final = (1, 3, 5)
_YCSB_REPLICAS: Final = (3,)
_OPERATIONS, _VALUE_SIZE = 200_000, 100
_YCSB_OPERATIONS, _YCSB_VALUE_SIZE = 100_000, 1000
_WARMUP_PART: Final = 10
_CHUNK: Final = 10_000

Draw = Callable[[], None]
"""What writes the chart that was asked for, or does nothing."""


def run(options: argparse.Namespace) -> tuple[Report, Draw]:
    """Do what was asked for, and return the report, and what draws the chart.

    Args:
        options: as arguments.py has them, ``command``, ``manager``, ``is_manager_given`` and
            ``timeout``.

    Raises:
        InvalidInput: the options do not fit each other, or an extra is not installed.
        GTStoreError: it could not be measured.
        KeyboardInterrupt, SystemExit: by a signal. Whatever was started has ended.
    """
    if options.plot is not None:
        chart.check(options.plot)
    if options.is_manager_given:
        _refuse_shape(options)
    with Stopping() as stopping:
        return _BENCHMARKS[options.command](options, stopping)


def _refuse_shape(options: argparse.Namespace) -> None:
    for name in ("nodes", "replicas", "hash"):
        if getattr(options, name) is not None:
            raise InvalidInput(
                f"--{name} is for a cluster that is started for this; that of --manager is "
                "measured as it is"
            )


def _shapes(options: argparse.Namespace, default: Sequence[int]) -> list[Shape]:
    """Of the clusters to start. A default that is too large for the nodes is left out."""
    nodes = options.nodes or _NODES
    counts = options.replicas or [count for count in default if count <= nodes] or [nodes]
    if max(counts) > nodes:
        raise InvalidInput(f"{max(counts)} replicas need at least as many nodes, not {nodes}")
    return [Shape(nodes, count, options.hash or "additive") for count in counts]


# --- throughput and YCSB -------------------------------------------------------------------------


def throughput(options: argparse.Namespace, stopping: Stopping) -> tuple[Report, Draw]:
    task = _task(options, None, 0, _OPERATIONS, _VALUE_SIZE, 0)
    title = f"{task.operations:,} operations, half put, half get"
    about = {"benchmark": "throughput"}
    return _measured(options, stopping, task, _REPLICAS, title, about)


def ycsb(options: argparse.Namespace, stopping: Stopping) -> tuple[Report, Draw]:
    name = options.workload
    task = _task(options, name, options.records, _YCSB_OPERATIONS, _YCSB_VALUE_SIZE, options.seed)
    title = (
        f"YCSB workload {name} ({WORKLOADS[name].title}), {task.operations:,} operations, "
        f"{task.records:,} records"
    )
    about = {
        "benchmark": "ycsb",
        "workload": name,
        "records": task.records,
        "seed": task.seed,
    }
    return _measured(options, stopping, task, _YCSB_REPLICAS, title, about)


def _task(
    options: argparse.Namespace,
    workload: str | None,
    records: int,
    operations: int,
    value_size: int,
    seed: int,
) -> Task:
    """The task of the options; ``operations`` and ``value_size`` are the defaults."""
    if not latencies.is_installed():
        raise InvalidInput(latencies.INSTALL_HINT)
    operations = options.operations or operations
    return Task(
        workload,
        records,
        options.clients,
        operations // _WARMUP_PART if options.warmup is None else options.warmup,
        operations,
        value_size if options.value_size is None else options.value_size,
        seed,
        options.timeout,
    )


def _measured(
    options: argparse.Namespace,
    stopping: Stopping,
    task: Task,
    default_replicas: Sequence[int],
    title: str,
    about: dict[str, Any],
) -> tuple[Report, Draw]:
    removed = None
    if options.is_manager_given:
        shape, run, removed = _measure_given(options.manager, task, stopping)
        runs = [run]
    else:
        shapes = _shapes(options, default_replicas)
        runs = [_measure_own(shape, task, stopping) for shape in shapes]
        shape = shapes[0]
    about |= {
        "version": __version__,
        "manager": options.manager if options.is_manager_given else None,
        "nodes": shape.nodes,
        "hash": shape.hash,
        "clients": task.clients,
        "operations": task.operations,
        "warmup": task.warmup,
        "value_size": task.value_size,
        "keys_removed": removed,
    }
    title += (
        f"; {task.clients} client process{'es' * (task.clients != 1)}, {shape.nodes} "
        f"node{'s' * (shape.nodes != 1)}, hash {shape.hash}, values of {task.value_size:,} bytes"
    )
    report = of_runs(title, about, runs)
    if removed is not None:
        report.lines.extend(("", f"removed the {removed:,} keys that it had put"))

    def draw() -> None:
        if options.plot is not None:
            chart.draw_runs(options.plot, title, runs)

    return report, draw


def _measure_own(shape: Shape, task: Task, stopping: Stopping) -> Run:
    with measuring.own_cluster(shape, stopping) as manager:
        return measuring.measure(manager, task, measuring.new_prefix(), shape.replicas, stopping)


def _measure_given(manager: str, task: Task, stopping: Stopping) -> tuple[Shape, Run, int]:
    """Measure a cluster that is there, and leave it as it was, also when that fails: its shape, the
    run, how many keys were removed."""
    shape = measuring.shape_of(manager, task.timeout_s)
    prefix = measuring.new_prefix()
    try:
        run = measuring.measure(manager, task, prefix, shape.replicas, stopping)
    finally:
        removed = measuring.remove(manager, task.timeout_s, prefix, stopping)
    return shape, run, removed


# --- balance -------------------------------------------------------------------------------------


def balance(options: argparse.Namespace, stopping: Stopping) -> tuple[Report, Draw]:
    if options.is_manager_given:
        found = [_placement_of(options, stopping)]
    else:
        shapes = _shapes(options, _REPLICAS)
        found = [
            placed
            for code, name in HASHES.items()
            if options.hash in (None, name)
            for placed in _placements(options, code, shapes, stopping)
        ]
    nodes = len(found[0].keys_per_node)
    about = {
        "benchmark": "balance",
        "version": __version__,
        "manager": options.manager if options.is_manager_given else None,
        "nodes": nodes,
        "keys": options.keys,
        "seed": options.seed,
    }
    title = f"{options.keys:,} random keys, {nodes} node{'s' * (nodes != 1)}: keys per node"

    def draw() -> None:
        if options.plot is not None:
            chart.draw_placements(options.plot, title, found)

    return of_placements(title, about, found), draw


def _placements(
    options: argparse.Namespace, hash_code: int, shapes: Sequence[Shape], stopping: Stopping
) -> Iterator[Placement]:
    """Of new clusters of these shapes, which have equally many nodes."""
    nodes = shapes[0].nodes
    per_partition = _counted(options, hash_code, placement.partition_count(nodes), stopping)
    for shape in shapes:
        owners = home_map(nodes, shape.replicas)
        counts = keys_per_node(per_partition, owners, range(1, nodes + 1))
        of_all = spread(list(counts.values()))
        yield Placement(HASHES[hash_code], shape.replicas, counts, of_all)


def _placement_of(options: argparse.Namespace, stopping: Stopping) -> Placement:
    """Of the cluster that is there: the owners that its partitions have now."""
    host, port = parse_address(options.manager)
    manager = f"the manager at {format_address(host, port)}", host, port
    cluster = call_once(*manager, messages.ClusterInfo(), options.timeout)
    current = call_once(*manager, messages.GetMap(0), options.timeout)
    if not isinstance(cluster, messages.Cluster) or not isinstance(current, messages.Map):
        answers = (cluster, current)
        text = next((one.message for one in answers if isinstance(one, messages.Error)), "")
        raise OperationFailed(f"{manager[0]} does not tell its partition map: {text}")
    owners = [[owner.node for owner in row.owners] for row in current.rows]
    if cluster.hash not in HASH_FUNCTIONS or not owners:
        raise OperationFailed(f"{manager[0]}: its partition map needs a newer client")
    per_partition = _counted(options, cluster.hash, len(owners), stopping)
    counts = keys_per_node(per_partition, owners, range(1, cluster.nodes + 1))
    of_all = spread(list(counts.values()))
    return Placement(HASHES[cluster.hash], cluster.replicas, counts, of_all)


def _counted(
    options: argparse.Namespace, hash_code: int, partitions: int, stopping: Stopping
) -> list[int]:
    """How many of the random keys each partition has."""
    result = [0] * partitions
    keys = random_keys(options.keys, random.Random(options.seed).randrange)
    hash_function = HASH_FUNCTIONS[hash_code]
    while some := list(islice(keys, _CHUNK)):
        stopping.check()
        counts = keys_per_partition(some, hash_function, partitions)
        result = [before + more for before, more in zip(result, counts, strict=True)]
    return result


_BENCHMARKS: Final = {
    "bench throughput": throughput,
    "bench balance": balance,
    "bench ycsb": ycsb,
}
