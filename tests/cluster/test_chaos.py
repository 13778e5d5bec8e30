"""Clients at work while nodes are killed and stopped: what they saw is linearizable (see
tests/chaos)."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from ..chaos.run import CLIENTS, run
from .test_manager import children_of

pytestmark = pytest.mark.cluster

SECONDS = 5


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(("nodes", "replicas"), [(4, 2), (5, 3)])
def test_histories_are_linearizable(nodes: int, replicas: int, tmp_path: Path) -> None:
    """Nothing that was acknowledged is lost or done twice, few outcomes are unknown, and no process
    is left behind."""
    report = run(tmp_path, replicas, SECONDS, nodes, replicas, overlap=True)
    assert report.errors == []
    assert not report.violations, "\n".join(map(str, report.violations))
    assert report.unknown_share < 0.01
    # It was worth something.
    assert report.faults["kill"] > 0
    assert report.checked > 100 * CLIENTS
    assert multiprocessing.active_children() == []
    commands = [command_of(pid) for pid in children_of(os.getpid())]
    assert not [c for c in commands if b"gtstore" in c or b"spawn_main" in c]
