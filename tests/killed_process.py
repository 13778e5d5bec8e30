"""A process that is killed in the middle of its work."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

FORK = multiprocessing.get_context("fork")


def last_before_kill(work: Callable[[Connection], None], count: int) -> int:
    """Let a process work until it has sent so many numbers, then kill it; return the last number
    that it has sent."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=work, args=(theirs,))
    process.start()
    theirs.close()
    last: int = [ours.recv() for _ in range(count)][-1]
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    while ours.poll():
        try:
            last = ours.recv()
        except EOFError:
            break
    ours.close()
    return last
