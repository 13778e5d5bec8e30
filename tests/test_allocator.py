"""Giving memory back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gtstore import allocator
from gtstore.allocator import Trimmer

# In a process of its own: the test's must not be left with one heap.
PROGRAM = """
import threading
from gtstore import allocator

def memory_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

allocator.use_one_heap()
before = memory_mib()
barrier = threading.Barrier(16)

def work():
    pieces = [bytes(size * 1000) for size in range(1, 250)]  # some 30 MB
    barrier.wait()
    del pieces

threads = [threading.Thread(target=work) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
trimmer = allocator.Trimmer()
trimmer.note()
trimmer.trim()
print(memory_mib() - before)
"""


def test_what_many_threads_have_freed_goes_back() -> None:
    """Of 500 MB next to nothing stays."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stderr == ""
    assert int(done.stdout) < 20


def test_it_is_given_back_once_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only if there is something."""
    trims: list[int] = []
    now = [100.0]
    monkeypatch.setattr(allocator, "_malloc_trim", trims.append)
    monkeypatch.setattr(allocator.time, "monotonic", lambda: now[0])
    trimmer = Trimmer()
    trimmer.trim()
    assert trims == []
    trimmer.note()
    trimmer.trim()
    trimmer.trim()
    assert trims == [0]
    trimmer.note()
    trimmer.trim()
    assert trims == [0]
    now[0] += 1
    trimmer.trim()
    assert trims == [0, 0]
    monkeypatch.setattr(allocator, "_malloc_trim", None)  # of another C library
    monkeypatch.setattr(allocator, "_mallopt", None)
    allocator.use_one_heap()
    trimmer.note()
    now[0] += 1
    trimmer.trim()
