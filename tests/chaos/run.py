"""One run: a cluster, client processes, faults, and then the check of what the clients saw."""

from __future__ import annotations

import json
import multiprocessing
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.context import SpawnProcess
from pathlib import Path

from gtstore.connection import parse_address
from gtstore.testing import Cluster

from ..linearizability import Violation, violations, without_versions
from .busy import busy_loops
from .clients import (
    CALL_TIMEOUT_S,
    START_TIMEOUT_S,
    TASKS,
    Flag,
    Shared,
    histories,
    read_all,
    report_path,
    work,
)
from .faults import Faults, Tell
from .network import BadNetwork
from .shim import skewed
from .small_disk import SmallDisk
from .values import size_of
from .world import PLAIN, World

CLIENTS = 8
END_TIMEOUT_S = CALL_TIMEOUT_S + 10
UNKNOWN_SHARE_MAX = 0.01
"""But where the only copy is on a node that is killed, each write that is under way is unknown."""
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
        longest: which one that was, in words.
        checked: how many operations the histories have.
        errors: what went wrong otherwise.
    """

    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    longest: str = ""
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
    world: World = PLAIN,
    *,
    options: Sequence[str] = (),
    overlap: bool = False,
    tell: Tell = print,
) -> Report:
    """Let clients work for some seconds while nodes fail, and check what they saw.

    Args:
        directory: where the histories are written, and the cluster's log.
        world: what else they have to live with.
        options: further options of managerd.
        overlap, tell: see Faults.
    """
    report = Report()
    disk = SmallDisk(directory / "disk") if world.has_full_disk else None
    if disk or world.is_durable:
        options = [*options, "--data-dir", str(disk.data if disk else directory / "data")]
    if world.memory_mb:
        options = [*options, "--max-memory-mb", str(world.memory_mb)]
    context = multiprocessing.get_context("spawn")
    with skewed(directory / "skew") as skew, Cluster(nodes, replicas, options) as cluster:
        shared = Shared(
            cluster.address,
            directory,
            time.monotonic_ns(),
            world.has_long_values,
            context.Value("q", 0),
            context.Barrier(CLIENTS + 1),
            Flag(context),
        )
        clients = [
            context.Process(
                target=work,
                args=(shared, number, seed * 100 + number, world.is_async and number % 2 == 0),
                daemon=True,
            )
            for number in range(1, CLIENTS + 1)
        ]
        faults = Faults(cluster, clients, shared, seed, overlap, tell, world, skew, disk)
        try:
            with ExitStack() as around:
                around.enter_context(busy_loops(context, world.busy))
                if world.has_bad_network:
                    ports = _ports(cluster)
                    network = around.enter_context(BadNetwork(context, ports, seed))
                    skew.divert(ports)
                _work(report, cluster, shared, clients, faults, seconds)
        finally:
            (directory / "cluster.log").write_text(cluster.log())
    report.faults = faults.counts
    if world.has_bad_network:
        report.faults.update(network.counts)
    report.errors += [faults.error] if faults.error else []
    report.errors += odd_lines(cluster.log(), faults.stopped)
    for number in range(1, CLIENTS + 1):
        _add_client(report, number, report_path(directory, number))
    callers = CLIENTS // 2 * (1 + TASKS) if world.is_async else CLIENTS
    # In a short run what is under way when everything is killed may be more.
    unknown_max = callers * (1 + report.faults["kill everything"])
    if replicas > 1 and report.unknown > max(unknown_max, UNKNOWN_SHARE_MAX * report.writes):
        report.errors.append(f"too many outcomes are unknown: {report.unknown_share:.2%} of writes")
    for history in histories(directory):
        report.checked += len(history)
        report.violations += violations(without_versions(history), size_of)
    return report


def _ports(cluster: Cluster) -> list[int]:
    """The manager's, and those of the nodes."""
    addresses = [cluster.address, *(node["address"] for node in cluster.status()["nodes"])]
    return [parse_address(address)[1] for address in addresses]


def _work(
    report: Report,
    cluster: Cluster,
    shared: Shared,
    clients: list[SpawnProcess],
    faults: Faults,
    seconds: float,
) -> None:
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
                faults.wait_for_all()
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


_KILLED = re.compile(r"node (\d+) is silent .*: killing it")
_ENDED = re.compile(
    r"node (\d+) is dead: (?!its process was killed by SIGKILL|its process ended($| while))"
)


def odd_lines(log: str, stopped: Mapping[int, int]) -> list[str]:
    """Lines of the cluster's log that no fault explains: a node is killed that was not stopped, or
    not so often; it ends otherwise than by SIGKILL; an error of the program.

    Args:
        stopped: how often each node was stopped, with SIGSTOP.
    """
    found = []
    killed: Counter[int] = Counter()
    for line in log.splitlines():
        if silent := _KILLED.search(line):
            node = int(silent[1])
            killed[node] += 1
            if killed[node] > stopped.get(node, 0):
                found.append(f"it was not hung: {line}")
        elif _ENDED.search(line) or "did not register" in line or "internal error" in line:
            found.append(line)
        elif line.startswith("Traceback"):
            found.append("there is a traceback in the log")
    return found


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
    longest_s = figures.get("longest_ns", 0) / 1e9
    if longest_s > report.longest_s:
        report.longest_s = longest_s
        report.longest = figures["longest"]
