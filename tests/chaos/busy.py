"""Loops that keep CPUs busy beside a run, and end with it, also if it is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext


def _loop() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it too, and ends the run
    parent = os.getppid()
    while os.getppid() == parent:
        for _ in range(100_000):
            pass


@contextmanager
def busy_loops(context: SpawnContext, count: int) -> Iterator[None]:
    loops = [context.Process(target=_loop, daemon=True) for _ in range(count)]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.join()
            loop.close()
