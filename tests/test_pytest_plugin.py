"""The fixtures that a project with gtstore installed has, as pytest runs them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gtstore.testing import _state, wait_until

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.cluster

STRICT = ("--strict-markers", "--strict-config", "-W", "error", "-p", "no:cacheprovider")


@pytest.fixture(autouse=True)
def ini(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\n")


def run(pytester: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(source)
    return pytester.runpytest_inprocess(*STRICT, *options)


def test_it_loads_nothing_before_it_is_used() -> None:
    """It is loaded in each run of pytest wherever gtstore is installed."""
    code = (
        "import sys, pytest; before = {*sys.modules}; import gtstore.pytest_plugin; "
        "print(*sorted({*sys.modules} - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "gtstore gtstore.pytest_plugin\n"


def test_markers_and_fixtures_are_shown(pytester: pytest.Pytester) -> None:
    shown = pytester.runpytest_inprocess("--markers").stdout
    shown.fnmatch_lines(["@pytest.mark.gtstore(nodes=3, replicas=2, *): the cluster of *"])
    shown = pytester.runpytest_inprocess("--fixtures").stdout
    for name in ("gtstore_cluster", "gtstore_store", "gtstore_shared_cluster"):
        shown.fnmatch_lines([f"{name}*"])


def test_tests_that_pass(pytester: pytest.Pytester) -> None:
    """Each has its own cluster, of the shape that its marker says; the shared one is shared."""
    source = """
        import pytest

        addresses = set()
        shared = []

        def test_store(gtstore_store, gtstore_cluster):
            gtstore_store.put("key1", b"value1")
            assert gtstore_store.get("key1") == b"value1"
            status = gtstore_cluster.status()
            assert (len(status["nodes"]), status["replicas"]) == (3, 2)
            addresses.add(gtstore_cluster.address)

        @pytest.mark.gtstore(nodes=2, replicas=1, options=("--hash", "crc16"), respawn=False)
        def test_marker(gtstore_cluster, gtstore_store):
            status = gtstore_store.status()
            assert (len(status["nodes"]), status["replicas"]) == (2, 1)
            assert status["hash"] == "crc16"
            assert gtstore_store.get("key1") is None
            gtstore_cluster.kill_node(1)
            gtstore_cluster.restart_node(1)

        @pytest.mark.parametrize("number", [1, 2])
        def test_shared(gtstore_shared_cluster, number):
            with gtstore_shared_cluster.connect() as store:
                assert store.increment("count") == number
    """
    run(pytester, source).assert_outcomes(passed=4)


def test_a_failure_shows_the_log(pytester: pytest.Pytester) -> None:
    """That of each cluster that the test has, also from a fixture of its own; others show none."""
    source = """
        import pytest
        from gtstore.testing import Cluster, wait_until

        @pytest.fixture(scope="module")
        def my_cluster():
            with Cluster(1, 1, ["--log-level", "debug"]) as cluster:
                yield cluster

        @pytest.fixture
        def another_name(gtstore_cluster):
            return gtstore_cluster

        def test_one(another_name, gtstore_cluster, my_cluster, gtstore_store):
            gtstore_cluster.kill_node(2)
            wait_until(lambda: "node 2 is dead" in gtstore_cluster.log(), "its death")
            assert gtstore_store.get("key1") == b"value1"

        def test_without(tmp_path):
            assert not tmp_path
    """
    result = run(pytester, source, "-p", "no:randomly")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*- Cluster log of *gtstore_cluster -*",
            "gtstore: manager ready on *, 3 storage nodes *",
            "*WARNING manager: node 2 is dead: its process was killed by SIGKILL",
            "*_ test_without _*",
        ]
    )
    shown = result.stdout.str()
    assert shown.count("- Cluster log of gtstore_cluster -") == 1
    assert shown.count("- Cluster log of my_cluster -") == 1
    assert "Cluster log" not in shown.partition("_ test_without _")[2]


def test_the_end_of_a_long_log(pytester: pytest.Pytester) -> None:
    source = """
        import time

        def test_one(gtstore_shared_cluster):
            for number in range(1000):
                print("line", number, file=gtstore_shared_cluster._log)
            assert False
    """
    shown = run(pytester, source).stdout
    shown.fnmatch_lines(["gtstore: manager ready on *", "(* lines before)", "line 700"])
    shown.no_fnmatch_line("line 600")


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        (
            "nodes=3, copies=2",
            "@pytest.mark.gtstore takes nodes=, replicas=, options=, respawn=; not: copies",
        ),
        ("5", "@pytest.mark.gtstore takes *; not: 5"),
        (
            "nodes=1, replicas=2",
            "the cluster did not start: gtstore-managerd: 2 replicas need at least as many nodes*",
        ),
        ("nodes=0", "the cluster did not start: gtstore-managerd: *'0' is no whole number from *"),
    ],
)
def test_a_cluster_that_cannot_be_had(pytester: pytest.Pytester, marker: str, message: str) -> None:
    """The test errors, with one message and no traceback."""
    source = f"""
        import pytest

        @pytest.mark.gtstore({marker})
        def test_one(gtstore_store):
            pass
    """
    result = run(pytester, source)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*_ ERROR at setup of test_one _*", message, "*short test*"])
    result.stdout.no_fnmatch_line("*Traceback*")


INTERRUPTED = """
    import os, signal, time
    from pathlib import Path

    def test_one(gtstore_shared_cluster, gtstore_cluster, gtstore_store):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored
        pids = [
            pid
            for cluster in (gtstore_shared_cluster, gtstore_cluster)
            for pid in (cluster.manager_pid, *cluster.node_pids.values())
        ]
        Path("new").write_text(" ".join(map(str, pids)))
        os.rename("new", "pids")
        time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_nothing(
    pytester: pytest.Pytester, number: signal.Signals
) -> None:
    """Ctrl-C, a supervisor that stops the run, and one that has no patience."""
    pytester.makepyfile(INTERRUPTED)
    pids = Path(pytester.path / "pids")
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *STRICT], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as running:
        wait_until(lambda: pids.exists() or running.poll() is not None, "the test", 60)
        running.send_signal(number)
        output, _ = running.communicate(timeout=60)
    clusters = [int(pid) for pid in pids.read_text().split()]
    assert len(clusters) == 8
    wait_until(lambda: all(_state(pid) == "Z" for pid in clusters), "the end of all processes")
    assert (b"KeyboardInterrupt" in output) == (number == signal.SIGINT)
    assert b"Warning" not in output
