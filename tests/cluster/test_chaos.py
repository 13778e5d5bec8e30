"""Clients at work while nodes are killed and stopped: what they saw is linearizable (see
tests/chaos)."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from ..chaos.__main__ import print_figures
from ..chaos.clients import as_line, histories, path_of
from ..chaos.run import CLIENTS, Report, run
from ..linearizability import Done
from .test_manager import children_of

pytestmark = pytest.mark.cluster

SECONDS = 15


def test_histories_in_files(tmp_path: Path) -> None:
    """What the checker reads is what the clients wrote, whatever bytes there are."""
    key = b"key\xff\n"
    written = [
        Done("put", key, b"\0\xfe", 1, 2, version=(1, 1 << 63), client=1),
        Done("get", key, None, 3, 4, client=1),
        Done("compare", key, b"a", 5, 6, (1, 2), True, (3, 4), client=1),
        Done("compare", key, b"b", 7, 8, b"\xfd", False, client=1),
        Done("append", key, b"c", 9, 10, result=2, client=1),
        Done("increment", key, b"-1", 11, None, client=1),
    ]
    for done in written:
        with path_of(tmp_path, done.start // 6, done.client).open("a") as file:
            file.write(as_line(done) + "\n")
    assert list(histories(tmp_path)) == [written[:3], written[3:]]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(("nodes", "replicas"), [(4, 2), (5, 3)])
def test_histories_are_linearizable(
    nodes: int, replicas: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing that was acknowledged is lost or done twice, few outcomes are unknown, and no process
    is left behind."""
    report = run(tmp_path, replicas, SECONDS, nodes, replicas, overlap=True)
    check(report, f"k = {replicas}", capsys)
    assert report.unknown_share < 0.01


def test_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --data-dir, and everything killed at once in the middle."""
    pytest.importorskip("lmdb", reason="entries on disk need py-lmdb (the extra durable)")
    report = run(tmp_path, 1, SECONDS, 5, 3, overlap=True, is_durable=True)
    check(report, "k = 3, on disk", capsys)
    assert report.faults["kill everything"] > 0


def test_with_asyncio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every other client process has several tasks on one AsyncClient, of which some are cancelled;
    they work on the same keys, also with each other."""
    report = run(tmp_path, 6, SECONDS, 5, 3, overlap=True, is_async=True)
    check(report, "k = 3, half of the clients asyncio", capsys)
    assert report.unknown_share < 0.01


def check(report: Report, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Print the figures, and see that it was worth something and nothing is wrong."""
    with capsys.disabled():
        print(f"\n{name}, {report.seconds:.0f} s:")
        print_figures(report)
    assert report.errors == []
    assert not report.violations, "\n".join(map(str, report.violations))
    assert report.faults["kill"] > 0
    assert report.checked > 100 * CLIENTS
    assert multiprocessing.active_children() == []
    commands = [command_of(pid) for pid in children_of(os.getpid())]
    # Of multiprocessing's own helper, too, the path may have "gtstore" in it.
    assert not [c for c in commands if b"\0gtstore." in c or b"spawn_main" in c]
