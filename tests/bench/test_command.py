"""gtclient bench over real clusters: what it prints, what it leaves, its errors in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gtstore import OperationFailed, __version__, cli
from gtstore.bench import arguments, chart, clients, latencies, measuring
from gtstore.bench.stopping import Stopping
from gtstore.bench.workloads import WORKLOADS
from gtstore.testing import Cluster, wait_until

pytestmark = pytest.mark.cluster

NO_MANAGER = "127.0.0.1:1"
MARK = "GTSTORE_TEST_MARK"
LATENCY_FIELDS = {"operations", "mean_us", "p50_us", "p99_us", "p999_us", "max_us"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """It holds a key of its user's."""
    with Cluster(nodes=3, replicas=2, options=["--hash", "crc16"]) as started:
        with started.connect() as store:
            store.put("mine", b"value")
        yield started


def run(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What gtclient bench prints; it says nothing on standard error, and its exit code is 0."""
    assert cli.main(["bench", *options]) == 0
    output, error = capsys.readouterr()
    assert error == ""
    return output


def run_json(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    form: dict[str, Any] = json.loads(run(capsys, *options, "--json"))
    return form


def complaint(capsys: pytest.CaptureFixture[str], code: int, *options: str) -> str:
    """The one line of an error."""
    try:
        found = cli.main(["bench", *options])
    except SystemExit as error:
        found = error.code  # type: ignore[assignment]  # a number
    assert found == code
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("gtclient: ")
    assert error.count("\n") == 1
    return error


def keys_of(cluster: Cluster) -> list[bytes]:
    with cluster.connect() as store:
        return list(store.scan_keys())


# --- throughput and YCSB -------------------------------------------------------------------------


def test_throughput_of_own_clusters(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One after the other, for each k; and the chart."""
    picture = tmp_path / "figure.png"
    options = ("--operations", "400", "--nodes", "2", "--replicas", "1,2", "--plot", str(picture))
    form = run_json(capsys, "throughput", *options)
    runs = form.pop("runs")
    assert form == {
        "benchmark": "throughput",
        "version": __version__,
        "manager": None,
        "nodes": 2,
        "hash": "additive",
        "clients": 1,
        "operations": 400,
        "warmup": 40,
        "value_size": 100,
        "keys_removed": None,
    }
    assert [one["replicas"] for one in runs] == [1, 2]
    for one in runs:
        assert one["operations"] == 400
        assert one["operations_per_s"] > 0
        assert one["client_cpu_us_per_operation"] > 0
        assert one["node_cpu_us_per_operation"] > 0
        assert {kind: found["operations"] for kind, found in one["latencies"].items()} == {
            "put": 200,
            "get": 200,
        }
        for found in one["latencies"].values():
            assert set(found) == LATENCY_FIELDS
            assert found["p50_us"] <= found["p99_us"] <= found["p999_us"] <= found["max_us"]
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert list(tmp_path.iterdir()) == [picture]


def test_throughput_of_a_cluster(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """It is measured as it is, and left as it was; more clients than operations do no harm."""
    options = ("--operations", "3", "--warmup", "0", "--clients", "4", "--value-size", "0")
    lines = run(capsys, "throughput", "--manager", cluster.address, *options).splitlines()
    assert lines[0] == (
        "3 operations, half put, half get; 4 client processes, 3 nodes, hash crc16, values of "
        "0 bytes"
    )
    assert lines[2].split("  ")[0] == "k"
    assert lines[3].split()[0] == "2"
    assert lines[-1] == "removed the 3 keys that it had put"
    assert keys_of(cluster) == [b"mine"]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_ycsb(cluster: Cluster, capsys: pytest.CaptureFixture[str], workload: str) -> None:
    form = run_json(
        capsys, "ycsb", "--workload", workload, "--records", "30", "--operations", "400",
        "--clients", "2", "--manager", cluster.address,
    )  # fmt: skip
    assert form["workload"] == workload
    assert form["manager"] == cluster.address
    assert (form["nodes"], form["hash"], form["value_size"]) == (3, "crc16", 1000)
    (one,) = form["runs"]
    assert one["replicas"] == 2
    assert set(one["latencies"]) == {kind for kind, _ in WORKLOADS[workload].mix}
    assert sum(found["operations"] for found in one["latencies"].values()) == 400
    assert form["keys_removed"] >= 30
    assert (form["keys_removed"] > 30) == (workload == "d")
    assert keys_of(cluster) == [b"mine"]


def test_the_same_seed_draws_the_same(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    def kinds(seed: str) -> dict[str, int]:
        form = run_json(
            capsys, "ycsb", "--workload", "a", "--records", "5", "--operations", "301",
            "--manager", cluster.address, "--seed", seed,
        )  # fmt: skip
        return {kind: one["operations"] for kind, one in form["runs"][0]["latencies"].items()}

    assert kinds("7") == kinds("7") != kinds("8")


# --- balance -------------------------------------------------------------------------------------


def test_balance(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Figure 3, for both hashes, without a cluster; and its chart."""
    picture = tmp_path / "figure.png"
    form = run_json(capsys, "balance", "--keys", "2000", "--plot", str(picture))
    assert (form["benchmark"], form["nodes"], form["keys"]) == ("balance", 7, 2000)
    assert [(one["hash"], one["replicas"]) for one in form["runs"]] == [
        (name, replicas) for name in ("additive", "crc16") for replicas in (1, 3, 5)
    ]
    for one in form["runs"]:
        keys = [node["keys"] for node in one["nodes"]]
        assert [node["id"] for node in one["nodes"]] == list(range(1, 8))
        assert sum(keys) == 2000 * one["replicas"]
        assert (one["min"], one["max"]) == (min(keys), max(keys))
        assert 0 < one["relative_stddev"] < 0.2
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")


def test_balance_of_other_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    """What is too large for the nodes is left out of the default, not refused."""
    text = run(capsys, "balance", "--keys", "100", "--nodes", "4", "--hash", "crc16")
    assert [line.split()[:2] for line in text.splitlines()[3:]] == [["crc16", "1"], ["crc16", "3"]]
    (one,) = run_json(
        capsys, "balance", "--keys", "100", "--nodes", "2", "--replicas", "2", "--hash", "additive"
    )["runs"]
    assert [node["keys"] for node in one["nodes"]] == [100, 100]


def test_balance_of_a_cluster(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Each random key counts on the nodes that ``where`` names."""
    form = run_json(capsys, "balance", "--manager", cluster.address, "--keys", "50")
    (one,) = form["runs"]
    assert (one["hash"], one["replicas"]) == ("crc16", 2)
    assert sum(node["keys"] for node in one["nodes"]) == 100
    (worked_out,) = run_json(
        capsys, "balance", "--nodes", "3", "--replicas", "2", "--hash", "crc16", "--keys", "50"
    )["runs"]
    assert one == worked_out


# --- errors --------------------------------------------------------------------------------------


def test_a_default_manager_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only a cluster that was named is measured; it may be named before the command too."""
    monkeypatch.setenv("GTSTORE_MANAGER", NO_MANAGER)
    assert run_json(capsys, "balance", "--keys", "10")["manager"] is None
    assert cli.main(["--manager", NO_MANAGER, "bench", "balance"]) == 3


@pytest.mark.parametrize(
    "options", [("throughput",), ("balance",), ("ycsb", "--workload", "c")], ids=lambda one: one[0]
)
def test_no_manager(capsys: pytest.CaptureFixture[str], options: Sequence[str]) -> None:
    said = complaint(capsys, 3, *options, "--manager", NO_MANAGER)
    assert f"the manager at {NO_MANAGER}: connection refused; is a manager running there?" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "COMMAND"),
        (("ycsb",), "--workload"),
        (("ycsb", "--workload", "e"), "invalid choice"),
        (("throughput", "--operations", "0"), "'0' is no whole number from 1 to 10000000"),
        (("throughput", "--replicas", "1,x"), "'x' is no whole number from 1 to 15"),
        (("balance", "--replicas", "3,3"), "'3,3' names a number twice"),
        (("balance", "--replicas", "1,5", "--nodes", "3"), "5 replicas need at least as many"),
        (("throughput", "--manager", NO_MANAGER, "--nodes", "3"), "--nodes is for a cluster"),
        (("balance", "--manager", NO_MANAGER, "--replicas", "3"), "--replicas is for a cluster"),
        (("balance", "--manager", NO_MANAGER, "--hash", "crc16"), "--hash is for a cluster"),
        (("balance", "--plot", "figure.pdf"), "--plot writes PNG files: figure.pdf must end in"),
        (("balance", "--plot", "/no/such/figure.png"), "there is no directory /no/such"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], options: Sequence[str], said: str) -> None:
    assert said in complaint(capsys, 2, *options)


def test_the_workloads_are_those_of_the_options() -> None:
    """arguments.py names them itself, because it is loaded with every command."""
    assert tuple(WORKLOADS) == arguments.ARGUMENTS["--workload"]["choices"]


def test_no_directory_for_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "taken.png").mkdir()
    said = complaint(capsys, 2, "balance", "--plot", str(tmp_path / "taken.png"))
    assert "taken.png is a directory" in said


@pytest.mark.parametrize("options", [("throughput",), ("ycsb", "--workload", "a")])
def test_without_hdrhistogram(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: Sequence[str]
) -> None:
    """At once, before anything is started. To see where keys are, it is not needed."""
    monkeypatch.setattr(latencies, "HdrHistogram", None)
    said = complaint(capsys, 2, *options)
    assert "latency percentiles need hdrhistogram: pip install 'gtstore[bench]'" in said
    run(capsys, "balance", "--keys", "10")


def test_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    said = complaint(capsys, 2, "balance", "--plot", "figure.png")
    assert "--plot needs matplotlib: pip install 'gtstore[bench]'" in said


def test_a_chart_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What was found is not lost with it."""
    monkeypatch.setattr(chart, "check", lambda _: None)
    picture = str(tmp_path / "none" / "figure.png")
    assert cli.main(["bench", "balance", "--keys", "1000", "--plot", picture]) == 3
    output, error = capsys.readouterr()
    assert output.startswith("1,000 random keys")
    assert "cannot write the chart" in error
    assert error.endswith("No such file or directory\n")


def test_a_cluster_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> Cluster:
        return Cluster(1, 1, ["--no-such-option"])

    monkeypatch.setattr(measuring, "Cluster", fail)
    assert "the cluster did not start" in complaint(capsys, 3, "throughput")


def test_keys_that_are_left(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said which, and how to see them: here, because a signal came during the removal."""
    prefix = measuring.new_prefix()
    with cluster.connect() as store, Stopping() as stopping:
        store.put(prefix + b"1", b"")
        monkeypatch.setattr(stopping, "check", _interrupt)
        with pytest.raises(OperationFailed, match=f"gtclient scan {prefix.decode()} prints"):
            measuring.remove(cluster.address, 5.0, prefix, stopping)
        monkeypatch.undo()
        assert measuring.remove(cluster.address, 5.0, prefix, stopping) == 1
    assert keys_of(cluster) == [b"mine"]


def _interrupt(_: int) -> None:
    raise KeyboardInterrupt


def test_a_measurement_that_fails(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, nothing printed as if it had been measured, and the keys are removed."""

    def fail(self: clients.Clients) -> None:
        self._processes[0].process.kill()

    monkeypatch.setattr(clients.Clients, "begin", fail)
    said = complaint(capsys, 3, "throughput", "--operations", "40", "--manager", cluster.address)
    assert "client process 1 ended too early, with exit code -9, after " in said
    assert keys_of(cluster) == [b"mine"]


# --- signals -------------------------------------------------------------------------------------


def marked(mark: str) -> list[bytes]:
    """The command lines of all processes that have this mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes())
        except OSError:
            pass  # another user's, or gone
    return [command for command in found if command]


class Started:
    """gtclient bench as a process of its own, whose processes all bear its mark."""

    def __init__(self, *options: str) -> None:
        self.mark = secrets.token_hex(8)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gtstore.cli", "bench", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {MARK: self.mark},
            start_new_session=True,
        )

    def has(self, module: bytes) -> bool:
        return any(module in command for command in marked(self.mark))

    def end(self) -> tuple[int, bytes, bytes]:
        output, error = self.process.communicate(timeout=60)
        wait_until(lambda: not marked(self.mark), "the end of all processes")
        return self.process.returncode, output, error


@pytest.mark.parametrize(
    ("module", "is_for_all"),
    [(b"gtstore.managerd", False), (b"gtstore.managerd", True), (b"gtstore.bench.worker", True)],
)
def test_control_c_leaves_nothing_running(module: bytes, is_for_all: bool) -> None:
    """While the cluster starts, and while it is measured; from kill, and from a terminal, where
    all of the foreground gets it."""
    started = Started("throughput", "--nodes", "2", "--replicas", "2", "--operations", "1000000")
    wait_until(lambda: started.has(module), "the start")
    if is_for_all:
        os.killpg(started.process.pid, signal.SIGINT)
    else:
        started.process.send_signal(signal.SIGINT)
    assert started.end() == (130, b"", b"")


def test_sigterm_leaves_no_keys(cluster: Cluster) -> None:
    """Those that were put are removed first."""
    started = Started(
        "ycsb", "--workload", "a", "--records", "200", "--value-size", "10",
        "--operations", "1000000", "--manager", cluster.address,
    )  # fmt: skip
    wait_until(lambda: started.has(b"gtstore.bench.worker"), "the start")
    assert len(keys_of(cluster)) > 1
    started.process.send_signal(signal.SIGTERM)
    assert started.end() == (128 + signal.SIGTERM, b"", b"")
    assert keys_of(cluster) == [b"mine"]


def test_clients_do_not_outlive_gtclient(cluster: Cluster) -> None:
    """Nor do they when it has no time to end them."""
    started = Started("throughput", "--operations", "200000", "--manager", cluster.address)
    wait_until(lambda: started.has(b"gtstore.bench.worker"), "the start")
    started.process.kill()
    assert started.end() == (-signal.SIGKILL, b"", b"")
    with cluster.connect() as store:
        for key in store.scan_keys(b"bench/"):
            store.delete(key)
