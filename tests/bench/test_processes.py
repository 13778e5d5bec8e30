"""What is around the measuring: latencies, CPU time, signals, client processes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest

from gtstore import OperationFailed, Version, VersionMismatch
from gtstore.bench import processor_time, worker
from gtstore.bench.clients import Clients, Plan
from gtstore.bench.latencies import added_up, packed
from gtstore.bench.processor_time import NodeTime
from gtstore.bench.stopping import Stopping
from gtstore.bench.workloads import READ, READ_MODIFY_WRITE

NO_MANAGER = "127.0.0.1:1"
PLAN = Plan(NO_MANAGER, 1.0, "bench/", None, 0, 0, 1, 0, 10, 10, 0)


# --- latencies -----------------------------------------------------------------------------------


def test_percentiles() -> None:
    """Of all processes together, to three digits; also a latency beyond what is counted exactly."""
    found = added_up([packed(range(1000, 500_000, 1000)), packed(range(500_000, 1_001_000, 1000))])
    assert found.operations == 1000
    assert found.mean_us == pytest.approx(500.5, rel=0.002)
    assert found.p50_us == pytest.approx(500, rel=0.002)
    assert found.p99_us == pytest.approx(990, rel=0.002)
    assert found.p999_us == pytest.approx(999, rel=0.002)
    assert found.max_us == pytest.approx(1000, rel=0.002)
    assert added_up([packed([10**15])]).max_us == pytest.approx(3.6e9, rel=0.002)


def test_no_latencies() -> None:
    assert added_up([]) == added_up([packed([])]) == (0, 0.0, 0.0, 0.0, 0.0, 0.0)


# --- CPU time ------------------------------------------------------------------------------------


def node(pid: int, address: str = "127.0.0.1:10001", state: str = "alive") -> dict[str, Any]:
    return {"pid": pid, "address": address, "state": state}


def test_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the processes, which grows as they work; a dead node is none of them."""
    monkeypatch.setattr(processor_time, "_is_node", lambda _: True)
    nodes = NodeTime([node(os.getpid()), node(1, state="dead")])
    before = nodes.used_ns()
    sum(range(100_000))
    assert 0 < before < nodes.used_ns()
    assert nodes.unknown == ""


def test_nodes_elsewhere() -> None:
    """A process here may have the number of one that runs there."""
    nodes = NodeTime([node(os.getpid(), "192.0.2.1:10001")])
    assert (nodes.used_ns(), nodes.unknown) == (0, "they run on another machine")
    nodes = NodeTime([node(os.getpid(), "no-such-host.invalid:10001")])
    assert nodes.unknown == "they run on another machine"


def test_processes_that_are_no_nodes() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for pid in (os.getpid(), process.pid):  # the latter is gone
        nodes = NodeTime([node(pid)])
        assert (nodes.used_ns(), nodes.unknown) == (
            0,
            "their processes are not to be seen from here",
        )


def test_a_node_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor_time, "_is_node", lambda _: True)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    nodes = NodeTime([node(process.pid)])
    assert (nodes.used_ns(), nodes.unknown) == (0, "a node's process ended meanwhile")


# --- signals -------------------------------------------------------------------------------------


def test_signals_wait_for_a_check() -> None:
    """The first one decides how it ends; another one does not come in between."""
    before = signal.getsignal(signal.SIGTERM)
    with Stopping() as stopping:
        stopping.check()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stopping.signals == 2
        stopping.check(2)
        with pytest.raises(SystemExit) as caught:
            stopping.check()
        stopping.signals = 0
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_at_the_very_end() -> None:
    with pytest.raises(KeyboardInterrupt), Stopping():
        signal.raise_signal(signal.SIGINT)


def test_an_error_stays() -> None:
    def work() -> None:
        with Stopping():
            signal.raise_signal(signal.SIGINT)
            raise OperationFailed("keys are left")

    with pytest.raises(OperationFailed):
        work()


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stopping() as stopping:
            signal.raise_signal(signal.SIGHUP)
            assert stopping.signals == 0
    finally:
        signal.signal(signal.SIGHUP, before)


# --- client processes ----------------------------------------------------------------------------


def test_a_client_that_fails() -> None:
    """What happened, where, after how long; the others end too."""
    plans = [PLAN._replace(client=client, clients=2) for client in range(2)]
    with Clients(plans, Stopping(), lambda _: None) as clients:
        processes = [process.process for process in clients._processes]
        with pytest.raises(OperationFailed) as caught:
            clients.wait("ready")
    assert "failed after 0 operations and " in str(caught.value)
    assert f"the manager at {NO_MANAGER}: connection refused" in str(caught.value)
    assert all(process.poll() is not None for process in processes)


def test_a_client_that_ends() -> None:
    with Clients([PLAN], Stopping(), lambda _: None) as clients:
        clients._processes[0].process.kill()
        clients._processes[0].process.wait()
        clients.begin()  # a pipe that nobody reads
        with pytest.raises(OperationFailed, match="client process 1 ended too early, with exit"):
            clients.wait("ready")


def test_clients_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with (
        pytest.raises(OperationFailed, match="cannot start client process 1: No such file"),
        Clients([PLAN], Stopping(), lambda _: None),
    ):
        pass


class Store:
    """Has one value, and another client's in its place after each of the first reads."""

    def __init__(self, changes: int) -> None:
        self.changes = changes
        self.version = Version(1, 1)
        self.value: bytes | None = b"old"

    def get(self, key: bytes) -> bytes | None:  # noqa: ARG002
        return self.value

    def get_entry(self, key: bytes) -> Any:  # noqa: ARG002
        read = self.version
        if self.changes:
            self.changes -= 1
            self.version = Version(self.version.time + 1, 1)
        return None if self.value is None else SimpleNamespace(value=self.value, version=read)

    def compare_and_put(self, key: bytes, value: bytes, version: Version) -> None:  # noqa: ARG002
        if version != self.version:
            raise VersionMismatch("no", version=self.version, is_absent=False)
        self.value = value


def operations_on(store: Any) -> worker.Operations:
    return worker.Operations(store, iter([b"new 1", b"new 2", b"new 3"]))


def test_read_modify_write() -> None:
    """It is repeated until no other client comes in between, and that is counted."""
    store = Store(changes=2)
    operations = operations_on(store)
    operations.by_kind[READ_MODIFY_WRITE](b"key")
    assert store.value == b"new 3"
    assert operations.retries == 2


@pytest.mark.parametrize("kind", [READ, READ_MODIFY_WRITE])
def test_a_value_that_is_gone(kind: str) -> None:
    """A measurement of misses would say something else."""
    store = Store(changes=0)
    store.value = None
    with pytest.raises(OperationFailed, match="key user1 has no value, though it was put"):
        operations_on(store).by_kind[kind](b"user1")


def test_values() -> None:
    """Of the size that was asked for; no two in a row are equal, however large they are."""

    def some(size: int) -> Iterator[bytes]:
        return islice(worker.values(size, random.Random(1)), 3)

    for size in (100, 3 * 1024 * 1024):
        first, second, third = some(size)
        assert len(first) == len(second) == size
        assert first != second != third
    assert list(some(0)) == [b"", b"", b""]


def test_an_error_of_ours() -> None:
    """It is told as such."""
    failed = worker.Worker(PLAN._asdict(), lambda _: None).failure(ZeroDivisionError("a bug"))
    assert failed["error"] == "internal error: ZeroDivisionError: a bug"
