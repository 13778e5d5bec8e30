"""How clients measure a cluster: one that is there, or one that is started for it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from ..client import connect
from ..errors import ClusterError, GTStoreError, OperationFailed
from ..progress import shown_count, shown_progress
from ..results import ScannedEntry, Version
from ..testing import Cluster
from ..transfer import store_all
from .clients import Clients, Plan
from .latencies import added_up
from .processor_time import NodeTime
from .report import Run
from .stopping import Stopping
from .workloads import record_key, share

_NO_VERSION: Final = Version(0, 0)


class Task(NamedTuple):
    """What is to be measured; see Plan. ``operations`` and ``warmup`` are those of all clients."""

    workload: str | None
    records: int
    clients: int
    warmup: int
    operations: int
    value_size: int
    seed: int
    timeout_s: float


class Shape(NamedTuple):
    """A cluster's."""

    nodes: int
    replicas: int
    hash: str


def new_prefix() -> bytes:
    """What the keys of one benchmark begin with, and surely no others."""
    return b"bench/%s/" % secrets.token_hex(8).encode()


@contextmanager
def own_cluster(shape: Shape, stopping: Stopping) -> Iterator[str]:
    """The manager's address of a cluster that is there meanwhile, in memory, on free ports.

    Raises OperationFailed if it does not start.
    """
    cluster = Cluster(shape.nodes, shape.replicas, ["--hash", shape.hash, "--log-level", "error"])
    try:
        cluster.start()
        stopping.check()
        yield cluster.address
    except GTStoreError as error:
        # A terminal's Ctrl-C is for the manager too, and may have ended it first.
        stopping.check()
        if isinstance(error, ClusterError):
            raise OperationFailed(str(error)) from error
        raise
    finally:
        cluster.stop()


def shape_of(manager: str, timeout_s: float) -> Shape:
    """The shape of a cluster that is there. Raises as ``connect`` does."""
    with connect(manager, timeout_s) as store:
        status = store.status()
    return Shape(len(status["nodes"]), status["replicas"], status["hash"])


def measure(manager: str, task: Task, prefix: bytes, replicas: int, stopping: Stopping) -> Run:
    """Load the records if there are to be any, warm up, and measure.

    Raises OperationFailed or OutcomeUnknown if an operation failed: then nothing was measured.
    """
    name = f"k = {replicas}"
    if task.records:
        _load(manager, task, prefix, name, stopping)
    plans = [
        Plan(
            manager,
            task.timeout_s,
            prefix.decode(),
            task.workload,
            task.records,
            client,
            task.clients,
            share(task.warmup, task.clients, client),
            share(task.operations, task.clients, client),
            task.value_size,
            task.seed,
        )
        for client in range(task.clients)
    ]
    with connect(manager, task.timeout_s) as store:
        nodes = NodeTime(store.status()["nodes"])
    total = task.warmup + task.operations
    with (
        shown_count(f"measuring {name}", total, "operations") as note,
        Clients(plans, stopping, note) as clients,
    ):
        clients.wait("ready")
        used_ns = nodes.used_ns()
        clients.begin()
        done = clients.wait("done")
        used_ns = nodes.used_ns() - used_ns
        told = clients.wait("latencies")
    kinds = dict.fromkeys(kind for one in told for kind in one["latencies"])
    began, ended = min(one["began"] for one in done), max(one["ended"] for one in done)
    return Run(
        replicas,
        task.operations,
        ended - began,
        sum(one["cpu_s"] for one in done) * 1e6 / task.operations,
        None if nodes.unknown else used_ns / 1000 / task.operations,
        nodes.unknown,
        sum(one["retries"] for one in told),
        {
            kind: added_up(one["latencies"][kind] for one in told if kind in one["latencies"])
            for kind in kinds
        },
    )


def _load(manager: str, task: Task, prefix: bytes, name: str, stopping: Stopping) -> None:
    value = bytes(task.value_size)
    records = (
        ScannedEntry(record_key(prefix, number), value, _NO_VERSION, None)
        for number in range(task.records)
    )
    with (
        connect(manager, task.timeout_s) as store,
        shown_progress(f"loading {name}", task.records) as note,
    ):

        def loaded(entry: ScannedEntry) -> None:
            stopping.check()
            note(entry)

        store_all(store, records, loaded)


def remove(manager: str, timeout_s: float, prefix: bytes, stopping: Stopping) -> int:
    """Delete every key that begins with the prefix, and return how many there were. A signal that
    comes meanwhile ends it, one that came before does not.

    Raises OperationFailed if some may be left.
    """
    removed = 0
    known = stopping.signals
    try:
        with (
            connect(manager, timeout_s) as store,
            shown_count("removing the benchmark's keys", None, "keys") as note,
        ):
            for key in store.scan_keys(prefix):
                stopping.check(known)
                store.delete(key)
                removed += 1
                note(removed)
    except (GTStoreError, KeyboardInterrupt) as error:
        reason = str(error) or "it was interrupted"
        raise OperationFailed(
            f"the benchmark's keys, which begin with {prefix.decode()}, could not all be removed: "
            f"{reason}; gtclient scan {prefix.decode()} prints those that are left"
        ) from error
    return removed
