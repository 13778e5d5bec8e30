"""Processes end when their lifeline is cut, whatever they are doing, and one hears of it."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gtstore.lifeline import Lifeline, hold_on, pipe_reader

ENOUGH_S = 30.0


def start(work: Callable[[], None]) -> int:
    """A process that does this and then waits; return its number when it waits."""
    ready, its_ready = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            work()
            os.write(its_ready, b".")
            time.sleep(ENOUGH_S)
        finally:
            os._exit(1)
    os.close(its_ready)
    assert os.read(ready, 1) == b"."
    os.close(ready)
    return pid


def end_of(pid: int) -> int:
    """Wait for it; the signal that has killed it."""
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


def holder(lifeline: Lifeline, *numbers: signal.Signals) -> int:
    reader = os.dup(lifeline.reader)  # the fork has no part in the lifeline itself
    pid = start(lambda: hold_on(reader, *numbers))
    os.close(reader)
    return pid


def test_the_cut_ends_all_and_waits_for_it() -> None:
    lifeline = Lifeline()
    pids = [holder(lifeline, signal.SIGKILL) for _ in range(3)]
    assert lifeline.cut(ENOUGH_S)
    assert lifeline.cut(ENOUGH_S), "nothing happens the second time"
    assert [end_of(pid) for pid in pids] == [signal.SIGKILL] * 3


def test_a_process_that_is_stopped_ends_too() -> None:
    """By a signal that cannot be caught; or by one that can, and another that lets it go on."""
    lifeline = Lifeline()
    pids = [
        holder(lifeline, signal.SIGKILL),
        holder(lifeline, signal.SIGTERM, signal.SIGCONT),
    ]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
    assert lifeline.cut(ENOUGH_S)
    assert [end_of(pid) for pid in pids] == [signal.SIGKILL, signal.SIGTERM]


def test_one_that_does_not_end_is_told() -> None:
    lifeline = Lifeline()
    reader = os.dup(lifeline.reader)
    pid = start(lambda: None)  # it has the reader, and does not listen
    os.close(reader)
    assert not lifeline.cut(0)
    os.kill(pid, signal.SIGKILL)
    end_of(pid)


def test_a_lifeline_that_nobody_uses_any_more() -> None:
    """And what it has opened is closed."""
    files = len(os.listdir("/proc/self/fd"))
    lifeline = Lifeline()
    pid = holder(lifeline, signal.SIGKILL)
    del lifeline
    assert end_of(pid) == signal.SIGKILL
    assert len(os.listdir("/proc/self/fd")) == files


def test_it_is_cut_before_anybody_listens() -> None:
    """A process that is started just then ends all the same."""
    lifeline = Lifeline()
    reader = os.dup(lifeline.reader)

    def listen_late() -> None:
        hold_on(reader, signal.SIGKILL)

    lifeline.cut(0)
    pid = os.fork()
    if not pid:
        listen_late()
        os._exit(0)
    os.close(reader)
    assert end_of(pid) == signal.SIGKILL


def test_a_fork_of_the_program_does_not_keep_it() -> None:
    """Nor does it end anybody."""
    lifeline = Lifeline()
    first = holder(lifeline, signal.SIGKILL)
    fork = start(lambda: None)
    assert os.waitpid(first, os.WNOHANG) == (0, 0)
    assert lifeline.cut(ENOUGH_S)
    assert end_of(first) == signal.SIGKILL
    assert os.waitpid(fork, os.WNOHANG) == (0, 0)
    os.kill(fork, signal.SIGKILL)
    end_of(fork)


def test_only_the_reading_end_of_a_pipe_is_taken(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    file = os.open(tmp_path / "file", os.O_RDONLY | os.O_CREAT)
    closed = os.dup(reader)
    os.close(closed)
    assert pipe_reader(str(reader)) == reader
    for text in (str(writer), str(file), str(closed), "-1", "x", "", "9" * 30):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not the number of an"):
            pipe_reader(text)
    for number in (reader, writer, file):
        os.close(number)
