"""One run: a cluster, client processes, faults, and then the check of what the clients saw."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gtstore.testing import Cluster

from ..linearizability import Violation, violations, without_versions
from .clients import (
    CALL_TIMEOUT_S,
    START_TIMEOUT_S,
    Flag,
    Shared,
    histories,
    read_all,
    report_path,
    work,
)
from .faults import Faults, Tell

CLIENTS = 8
END_TIMEOUT_S = CALL_TIMEOUT_S + 10
WRITES = ("put", "delete", "append", "increment", "compare")


@dataclass
class Report:
    """The figures of a run.

    Attributes:
        counts: operations by kind, whatever became of them.
        unknown: writes whose outcome is unknown.
        failed: operations that surely did nothing, by kind and exception.
        faults: by kind.
        longest_s: the longest operation.
        checked: how many operations the histories have.
        errors: what went wrong otherwise.
    """

    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    checked: int = 0
    violations: list[Violation] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def writes(self) -> int:
        return sum(self.counts[what] for what in WRITES)

    @property
    def unknown_share(self) -> float:
        """Of all writes."""
        return self.unknown / max(1, self.writes)

    @property
    def failed_reads(self) -> int:
        return sum(count for name, count in self.failed.items() if name.startswith("get "))

    @property
    def is_good(self) -> bool:
        return not self.violations and not self.errors


def run(
    directory: Path,
    seed: int,
    seconds: float,
    nodes: int,
    replicas: int,
    *,
    options: Sequence[str] = (),
    overlap: bool = False,
    is_durable: bool = False,
    is_async: bool = False,
    tell: Tell = print,
) -> Report:
    """Let clients work for some seconds while nodes fail, and check what they saw.

    Args:
        directory: where the histories are written, and the cluster's log.
        options: further options of managerd.
        overlap, tell: see Faults.
        is_durable: keep everything on disk, and now and then kill everything at once.
        is_async: every other client process is one of asyncio.
    """
    report = Report()
    if is_durable:
        options = [*options, "--data-dir", str(directory / "data")]
    with Cluster(nodes, replicas, options) as cluster:
        try:
            _work(report, cluster, directory, seed, seconds, overlap, is_durable, is_async, tell)
        finally:
            (directory / "cluster.log").write_text(cluster.log())
    for history in histories(directory):
        report.checked += len(history)
        report.violations += violations(without_versions(history))
    return report


def _work(
    report: Report,
    cluster: Cluster,
    directory: Path,
    seed: int,
    seconds: float,
    overlap: bool,
    is_durable: bool,
    is_async: bool,
    tell: Tell,
) -> None:
    context = multiprocessing.get_context("spawn")
    tickets = context.Value("q", 0)
    shared = Shared(
        cluster.address,
        directory,
        time.monotonic_ns(),
        tickets,
        context.Barrier(CLIENTS + 1),
        Flag(context),
    )
    clients = [
        context.Process(
            target=work,
            args=(shared, number, seed * 100 + number, is_async and number % 2 == 0),
            daemon=True,
        )
        for number in range(1, CLIENTS + 1)
    ]
    faults = Faults(cluster, clients, shared, seed, overlap, tell, is_durable)
    with cluster.connect(timeout=CALL_TIMEOUT_S) as reader:
        reader.get("chaos")  # it knows the map from now on, and needs no manager
        for client in clients:
            client.start()
        try:
            shared.at_start.wait(START_TIMEOUT_S)
            started = time.monotonic()
            faults.start()
            try:
                shared.is_over.wait(seconds)
            finally:
                shared.is_over.set()
                faults.join()
            report.seconds = time.monotonic() - started
            for number, client in enumerate(clients, 1):
                client.join(END_TIMEOUT_S)
                if client.exitcode is None:
                    report.errors.append(f"client {number} did not end")
            read_all(shared, reader)
        except Exception as error:
            report.errors.append(f"{type(error).__name__}: {error}")
        finally:
            shared.is_over.set()
            for client in clients:
                client.kill()
                client.join()
                client.close()
    report.faults = faults.counts
    report.errors += [faults.error] if faults.error else []
    for number in range(1, CLIENTS + 1):
        _add_client(report, number, report_path(directory, number))


def _add_client(report: Report, number: int, path: Path) -> None:
    """Add the figures of one client."""
    if not path.exists():
        report.errors.append(f"client {number} left no report")
        return
    figures = json.loads(path.read_text())
    if "error" in figures:
        report.errors.append(f"client {number}: {figures['error']}")
    report.counts.update(figures.get("counts", {}))
    report.failed.update(figures.get("failed", {}))
    report.unknown += figures.get("unknown", 0)
    report.longest_s = max(report.longest_s, figures.get("longest_ns", 0) / 1e9)
