"""Clients at work while nodes are killed and stopped: what they saw is linearizable (see
tests/chaos)."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from ..chaos.__main__ import print_figures
from ..chaos.clients import as_line, histories, path_of
from ..chaos.run import CLIENTS, Report, odd_lines, run
from ..chaos.small_disk import why_impossible
from ..chaos.values import (
    AROUND,
    LIMITS,
    SIZE_MAX,
    drawn_size,
    full,
    piece,
    shortened,
    size_of,
)
from ..chaos.world import World
from ..linearizability import Done
from .test_manager import children_of

pytestmark = pytest.mark.cluster

SECONDS = 15
SHORT_SECONDS = 6


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


def test_short_forms() -> None:
    """What the checker is told of a value is what it is, in a fraction of its size; joined values
    have joined short forms; and a value of which a byte is missing, changed or doubled has none
    that was written."""
    chance = random.Random(1)
    pieces = [piece(7, number, drawn_size(chance, is_long=True)) for number in range(200)]
    sizes = [size_of(each) for each in pieces]
    assert 0 in sizes
    assert max(sizes) == SIZE_MAX
    for limit in LIMITS[:-1]:
        assert any(size < limit < size + AROUND for size in sizes)
        assert any(size - AROUND < limit < size for size in sizes)
    for short in [*pieces, pieces[0] + pieces[1], b"17", b"-5"]:
        value = full(short)
        assert len(value) == size_of(short)
        assert shortened(value) == short
        assert len(short) < 50
    assert shortened(None) is None
    value = full(pieces[0] + piece(7, 8, 300_000))
    for damaged in (
        value[:-1],
        value[1:],
        value[:5000] + value[5001:],
        value + b"17",
        value + value[9:],
    ):
        assert (shortened(damaged) or b"").startswith(b"damaged after ")


def test_odd_lines() -> None:
    """A line of the log about an end that no fault of the run explains is an error of the run."""
    killing = "x WARNING manager: node 1 is silent for 4 probes (no answer): killing it; stopped\n"
    by_signal = "x WARNING manager: node 1 is dead: its process was killed by SIGKILL\n"
    by_status = "x WARNING manager: node 2 is dead: its process ended with exit status 70"
    assert odd_lines(killing + by_signal, {1: 1}) == []
    assert odd_lines(2 * killing, {1: 1}) == [f"it was not hung: {killing.strip()}"]
    assert odd_lines(by_signal + by_status, {}) == [by_status]
    assert odd_lines("x is dead: its process ended while there was no manager", {}) == []
    assert odd_lines("x\nTraceback (most recent call last):\n", {}) != []


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


def test_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --data-dir, and everything killed at once in the middle."""
    pytest.importorskip("lmdb", reason="entries on disk need py-lmdb (the extra durable)")
    report = run(tmp_path, 1, SECONDS, 5, 3, World(is_durable=True), overlap=True)
    check(report, "k = 3, on disk", capsys)
    assert report.faults["kill everything"] > 0


def test_long_values_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With one copy of each value, so all depends on what is on that node's disk (N2)."""
    pytest.importorskip("lmdb", reason="entries on disk need py-lmdb (the extra durable)")
    world = World(is_durable=True, has_long_values=True)
    report = run(tmp_path, 1, SHORT_SECONDS, 3, 1, world)
    check(report, "k = 1, long values on disk", capsys)
    assert report.faults["kill everything"] > 0


def test_with_asyncio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every other client process has several tasks on one AsyncClient, of which some are cancelled;
    they work on the same keys, also with each other."""
    report = run(tmp_path, 6, SECONDS, 5, 3, World(is_async=True), overlap=True)
    check(report, "k = 3, half of the clients asyncio", capsys)


@pytest.mark.parametrize(
    "world",
    [
        World(has_long_values=True, memory_mb=8),
        World(has_steps=True),
        World(has_bad_network=True, is_async=True),
        World(busy=1),
    ],
    ids=str,
)
def test_in_a_bad_world(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same with long values and little memory; where clocks step; where connections stall one
    way, go byte by byte and are reset; and where another program has half of the machine."""
    report = run(tmp_path, 1, SHORT_SECONDS, 5, 3, world, overlap=True)
    check(report, f"k = 3, {world}", capsys)
    assert report.faults["clock step"] > 0 or not world.has_steps
    assert report.faults["single bytes"] > 0 or not world.has_bad_network


def test_full_disk(capsys: pytest.CaptureFixture[str]) -> None:
    """The same on a disk that fills up and gets room again."""
    pytest.importorskip("lmdb", reason="entries on disk need py-lmdb (the extra durable)")
    if why := why_impossible():
        pytest.skip(f"there can be no small disk here: {why}")
    command = [sys.executable, "-m", "tests.chaos", "--seconds", "12", "--seed", "1", "--full-disk"]
    with capsys.disabled():
        print("\nk = 3, FULL_DISK=1:")
        subprocess.run(command, check=True, timeout=100)


def check(report: Report, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Print the figures, and see that it was worth something and nothing is wrong."""
    with capsys.disabled():
        print(f"\n{name}, {report.seconds:.0f} s:")
        print_figures(report)
    assert report.errors == []
    assert not report.violations, "\n".join(map(str, report.violations))
    assert report.faults["kill"] > 0
    assert report.checked > 20 * CLIENTS
    assert multiprocessing.active_children() == []
    commands = [command_of(pid) for pid in children_of(os.getpid())]
    # Of multiprocessing's own helper, too, the path may have "gtstore" in it.
    assert not [c for c in commands if b"\0gtstore." in c or b"spawn_main" in c]
