"""What a benchmark has found: as an object for JSON, and as lines for people.

Times are in microseconds, or in seconds where the name says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from ..text_table import aligned
from .balance import Spread

_COLUMNS_MAX: Final = 12
"""So many nodes have a column each."""


class Latencies(NamedTuple):
    """How long the operations of one kind took, in microseconds."""

    operations: int
    mean_us: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float


class Run(NamedTuple):
    """One measurement: so many operations of all clients, from the first one's begin to the last
    one's end.

    ``client_cpu_us`` and ``node_cpu_us`` are microseconds of CPU time of all clients, and of all
    nodes, for one operation; of the nodes None, where ``node_cpu_unknown`` says why. ``retries``
    counts comparisons that failed because another client came first.
    """

    replicas: int
    operations: int
    duration_s: float
    client_cpu_us: float
    node_cpu_us: float | None
    node_cpu_unknown: str
    retries: int
    latencies: Mapping[str, Latencies]

    @property
    def operations_per_s(self) -> float:
        return self.operations / self.duration_s


class Placement(NamedTuple):
    """How many keys each node holds, under one hash and with so many replicas."""

    hash: str
    replicas: int
    keys_per_node: Mapping[int, int]
    spread: Spread


class Report(NamedTuple):
    """A benchmark's outcome: an object for JSON, and lines of text."""

    form: dict[str, Any]
    lines: list[str]


def of_runs(title: str, about: Mapping[str, Any], runs: Sequence[Run]) -> Report:
    """The report of a measurement.

    Args:
        title: one line for people: what was measured.
        about: what was measured, for JSON.
    """
    return Report(
        {**about, "runs": [_form_of_run(run) for run in runs]},
        [title, "", *_rate_lines(runs), "", *_latency_lines(runs), *_notes(runs)],
    )


def _form_of_run(run: Run) -> dict[str, Any]:
    unknown = {"node_cpu_unknown": run.node_cpu_unknown} if run.node_cpu_unknown else {}
    return {
        "replicas": run.replicas,
        "operations": run.operations,
        "duration_s": round(run.duration_s, 6),
        "operations_per_s": round(run.operations_per_s, 1),
        "client_cpu_us_per_operation": round(run.client_cpu_us, 2),
        "node_cpu_us_per_operation": (
            None if run.node_cpu_us is None else round(run.node_cpu_us, 2)
        ),
        **unknown,
        "retries": run.retries,
        "latencies": {
            kind: {name: round(value, 1) for name, value in found._asdict().items()}
            for kind, found in run.latencies.items()
        },
    }


def _rate_lines(runs: Sequence[Run]) -> list[str]:
    titles = ("k", "operations/s", "client CPU us/operation", "node CPU us/operation")
    rows = [
        (
            run.replicas,
            f"{run.operations_per_s:,.0f}",
            f"{run.client_cpu_us:,.1f}",
            "unknown" if run.node_cpu_us is None else f"{run.node_cpu_us:,.1f}",
        )
        for run in runs
    ]
    return list(aligned(titles, rows, titles))


def _latency_lines(runs: Sequence[Run]) -> list[str]:
    numbers = ("operations", "mean us", "p50 us", "p99 us", "p999 us", "max us")
    rows = [
        (
            run.replicas,
            kind.replace("_", "-"),
            f"{found.operations:,}",
            *(f"{value:,.1f}" for value in found[1:]),
        )
        for run in runs
        for kind, found in run.latencies.items()
    ]
    return list(aligned(("k", "kind", *numbers), rows, numbers))


def _notes(runs: Sequence[Run]) -> list[str]:
    unknown = dict.fromkeys(run.node_cpu_unknown for run in runs if run.node_cpu_unknown)
    notes = [f"CPU time of the nodes is unknown: {reason}" for reason in unknown]
    notes += [
        f"k = {run.replicas}: {run.retries:,} comparisons were repeated, because another client "
        "had come first"
        for run in runs
        if run.retries
    ]
    return ["", *notes] if notes else []


def of_placements(title: str, about: Mapping[str, Any], found: Sequence[Placement]) -> Report:
    """The report of where keys are; see of_runs."""
    return Report(
        {**about, "runs": [_form_of_placement(one) for one in found]},
        [title, "", *_placement_lines(found)],
    )


def _form_of_placement(placement: Placement) -> dict[str, Any]:
    of_all = placement.spread
    return {
        "hash": placement.hash,
        "replicas": placement.replicas,
        "min": of_all.low,
        "mean": round(of_all.mean, 2),
        "max": of_all.high,
        "stddev": round(of_all.stddev, 2),
        "relative_stddev": round(of_all.relative_stddev, 5),
        "nodes": [{"id": node, "keys": keys} for node, keys in placement.keys_per_node.items()],
    }


def _placement_lines(found: Sequence[Placement]) -> list[str]:
    nodes = dict.fromkeys(node for one in found for node in one.keys_per_node)
    if len(nodes) > _COLUMNS_MAX:
        nodes = {}  # --json has them
    numbers = ("min", "mean", "max", "stddev/mean", *(f"node {node}" for node in nodes))
    rows = [
        (
            one.hash,
            one.replicas,
            f"{one.spread.low:,}",
            f"{one.spread.mean:,.0f}",
            f"{one.spread.high:,}",
            f"{one.spread.relative_stddev:.2%}",
            *(f"{one.keys_per_node.get(node, 0):,}" for node in nodes),
        )
        for one in found
    ]
    return list(aligned(("hash", "k", *numbers), rows, numbers))
