"""Manager and nodes as daemons: logs that nobody reads, log files that are moved away, terminals
that are closed, and what an orderly stop says."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import gtstore
from gtstore.manager import describe_holders
from gtstore.testing import Cluster, wait_until

from .test_manager import free_ports

pytestmark = pytest.mark.cluster


@contextmanager
def managerd(*options: str, **files: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A manager of two nodes with other files than a Cluster's, and its address."""
    reader, writer = os.pipe()
    command = [
        sys.executable, "-m", "gtstore.managerd", "2", "2", "--port", "0", "--node-port", "0",
        "--lifeline", str(reader), *options,
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        stdin=files.get("stdin", subprocess.DEVNULL),
        stdout=subprocess.PIPE,
        stderr=files.get("stderr", subprocess.DEVNULL),
        text=True,
        pass_fds=(reader,),
        start_new_session=True,
    )
    os.close(reader)
    try:
        assert process.stdout is not None
        with process.stdout:
            match = re.search(r"ready on ([^ ,]+)", process.stdout.readline())
            assert match is not None
            yield process, match[1]
    finally:
        os.close(writer)  # cuts the lifeline
        process.wait()


def die_and_return(store: gtstore.Client, node: int) -> None:
    before = store.status()["nodes"][node - 1]
    os.kill(before["pid"], signal.SIGKILL)
    wait_until(
        lambda: (
            (now := store.status())["nodes"][node - 1]["incarnation"] > before["incarnation"]
            and not now["under_replicated"]
        ),
        f"the return of node {node}",
    )


def test_a_log_that_nobody_reads() -> None:
    """Standard error of manager and nodes is a pipe that is full: dead nodes come back, SIGTERM
    stops everything, and a reader that comes late is told how much it has missed."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    try:
        with managerd("--log-level", "debug", stderr=writer) as (process, address):
            with gtstore.connect(address) as store:
                store.put("key", b"value")
                for node in (1, 2):
                    die_and_return(store, node)
                assert store.get("key") == b"value"
            process.terminate()
            wait_until(lambda: process.poll() is not None, "its end", 60)
            assert process.returncode == 0
    finally:
        os.close(reader)
        os.close(writer)


def test_an_orderly_stop_says_so() -> None:
    """Why, and when it is done, by manager and nodes."""
    with Cluster(2, 2) as cluster:
        pass
    lines = [line.split(maxsplit=1)[1] for line in cluster.log().splitlines()]
    for who in ("manager", "node 1", "node 2"):
        assert lines.index(f"INFO    {who}: stopping: SIGTERM") < lines.index(
            f"INFO    {who}: stopped"
        )
    assert lines[-1] == "INFO    manager: stopped"


def test_a_hang_up_without_a_terminal_or_a_log_file() -> None:
    """It is told, and nothing else happens; neither to the manager nor to a node."""
    with Cluster(2, 2) as cluster, cluster.connect() as store:
        store.put("key", b"value")
        pids = (cluster.manager_pid, *cluster.node_pids.values())
        for pid in pids:
            os.kill(pid, signal.SIGHUP)
        wait_until(lambda: cluster.log().count("there is no log file") == 3, "three lines")
        assert store.get("key") == b"value"
        assert [node["pid"] for node in store.status()["nodes"]] == list(pids[1:])


def test_a_log_file_is_moved_away(tmp_path: Path) -> None:
    """SIGHUP to the manager: it and all its nodes go on in a new file."""
    path = tmp_path / "log"
    with Cluster(2, 2, ["--log-file", str(path)]) as cluster, cluster.connect() as store:
        die_and_return(store, 1)
        path.rename(tmp_path / "old")
        os.kill(cluster.manager_pid, signal.SIGHUP)
        told = re.compile(r"INFO +(manager|node \d): SIGHUP: the log file is opened anew$", re.M)
        wait_until(
            lambda: (
                path.exists()
                and set(told.findall(path.read_text())) == {"manager", "node 1", "node 2"}
            ),
            "that all of them say so",
        )
        die_and_return(store, 2)
    assert "node 1 is dead" in (tmp_path / "old").read_text()
    assert "node 2 is dead" in path.read_text()
    assert path.read_text().splitlines()[-1].endswith("manager: stopped")
    assert cluster.log() == ""


def test_a_log_file_that_cannot_be_written(tmp_path: Path) -> None:
    """One line, exit 2."""
    done = subprocess.run(
        [sys.executable, "-m", "gtstore.managerd", "1", "1", "--log-file", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f"--log-file {tmp_path}: Is a directory" in done.stderr


@pytest.mark.parametrize("has_log_file", [False, True])
def test_a_terminal_is_closed(tmp_path: Path, has_log_file: bool) -> None:
    """SIGHUP then means that: everything is stopped, in an orderly way, and the log says why."""
    ours, theirs = pty.openpty()
    options = ["--log-file", str(tmp_path / "log")] if has_log_file else []
    with managerd(*options, stdin=theirs, stderr=theirs) as (process, _):
        os.close(theirs)
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: process.poll() is not None, "its end", 60)
        assert process.returncode == 0
    if has_log_file:
        text = (tmp_path / "log").read_text()
        assert "manager: stopping: SIGHUP: its terminal was closed" in text
        assert text.splitlines()[-1].endswith("manager: stopped")


@pytest.mark.parametrize("is_full", [False, True])
def test_the_ready_line(is_full: bool) -> None:
    """Where it cannot be printed nothing is left running; where it only is not read, the cluster
    works, and can be stopped."""
    number = os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writer, True)
    command = [sys.executable, "-m", "gtstore.managerd", "1", "1"]
    command += ["--port", "0", "--node-port", "0"]
    with subprocess.Popen(
        command, stdout=number if is_full else writer, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        if is_full:
            assert (
                "gtstore: cannot print the ready line: No space left on device\n"
                in process.stderr.read()
            )
        else:
            while "nobody reads standard output" not in process.stderr.readline():
                assert process.poll() is None
            process.terminate()
            process.stderr.read()
        assert process.wait(60) == (2 if is_full else 0)
    for each in (number, reader, writer):
        os.close(each)


def test_without_standard_files() -> None:
    """Started with all of them closed, as some supervisors do: it works, and its sockets do not get
    their numbers."""
    first = free_ports(3)
    command = (
        f"exec {sys.executable} -m gtstore.managerd 2 2 --port {first} --node-port {first + 1} "
        "<&- >&- 2>&-"
    )
    with subprocess.Popen(["sh", "-c", command]) as process:
        try:
            wait_until(lambda: describe_holders("127.0.0.1", [first]), "the manager")
            with gtstore.connect(f"127.0.0.1:{first}", 30.0) as store:
                store.put("key", b"value")
                die_and_return(store, 1)
                assert store.get("key") == b"value"
            for number in (0, 1, 2):
                assert os.readlink(f"/proc/{process.pid}/fd/{number}") == os.devnull
        finally:
            process.terminate()
        assert process.wait(60) == 0
