"""One client process of a benchmark: ``python -m gtstore.bench.worker``.

It is told what to do by a line of JSON on standard input (clients.Plan), and says how far it is in
lines of JSON on standard output, each with a ``state``: it connects, does its part of the warm-up
and is ``ready``; at the next line of input it begins, is ``working`` now and then, and ``done``; at
last come its ``latencies``. Or it has ``failed``.

Operations and their keys are made before the clock runs, histograms after it, so that the CPU time
is the client's own. When standard input ends, whoever started it is gone, and it ends too.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle, islice
from typing import Any, Final

from ..client import Client, connect
from ..command_line import DONE
from ..errors import GTStoreError, OperationFailed, VersionMismatch
from ..threads import END, supervised
from .latencies import packed
from .workloads import (
    GET,
    INSERT,
    PUT,
    READ,
    READ_MODIFY_WRITE,
    UPDATE,
    WORKLOADS,
    Step,
    put_get_steps,
    ycsb_steps,
)

_VALUES_MAX: Final = 64
_VALUES_SIZE: Final = 4 * 1024 * 1024
_CHUNK: Final = 1000
_PAUSE_S: Final = 0.1


class Operations:
    """What a client does for each kind of operation."""

    def __init__(self, store: Client, values: Iterator[bytes]) -> None:
        self._store = store
        self._values = values
        self.retries = 0
        self.by_kind: Mapping[str, Callable[[bytes], None]] = {
            PUT: self._put,
            GET: self._get,
            READ: self._get,
            UPDATE: self._put,
            INSERT: self._put,
            READ_MODIFY_WRITE: self._read_modify_write,
        }

    def _put(self, key: bytes) -> None:
        self._store.put(key, next(self._values))

    def _get(self, key: bytes) -> None:
        if self._store.get(key) is None:
            raise _gone(key)

    def _read_modify_write(self, key: bytes) -> None:
        """Read, and store another value if what was read is still there; or else again."""
        while True:
            entry = self._store.get_entry(key)
            if entry is None:
                raise _gone(key)
            try:
                self._store.compare_and_put(key, next(self._values), version=entry.version)
                return
            except VersionMismatch:
                self.retries += 1


def _gone(key: bytes) -> OperationFailed:
    return OperationFailed(
        f"key {key.decode()} has no value, though it was put: it was deleted meanwhile, or all "
        "copies were lost"
    )


def values(size: int, chance: random.Random) -> Iterator[bytes]:
    """Values of so many bytes without end, one after the other not equal (if they have bytes)."""
    count = max(2, min(_VALUES_MAX, _VALUES_SIZE // max(size, 1)))
    return cycle([chance.randbytes(size) for _ in range(count)])


def steps(plan: Mapping[str, Any], chance: random.Random) -> Iterator[Step]:
    """The operations of a plan, without end."""
    prefix = plan["prefix"].encode()
    if plan["workload"] is None:
        return put_get_steps(prefix, plan["client"])
    return ycsb_steps(
        WORKLOADS[plan["workload"]],
        prefix,
        plan["records"],
        plan["client"],
        plan["clients"],
        chance.random,
    )


Drawn = tuple[list[str], list[bytes]]
"""Operations that wait: their kinds, and their keys. Lists of pairs would take four times the
memory."""


def drawn(work: Iterator[Step], count: int) -> Drawn:
    """The next so many operations."""
    names: list[str] = []
    keys: list[bytes] = []
    for kind, key in islice(work, count):
        names.append(kind)
        keys.append(key)
    return names, keys


class Worker:
    """A client of a plan; ``tell`` is called with each thing that it says."""

    def __init__(self, plan: Mapping[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
        self._plan = plan
        self._tell = tell
        self._done = 0
        self._began = time.monotonic()
        self._told_at = self._began

    def run(self, wait: Callable[[], object]) -> None:
        """Do all of it; ``wait`` returns when the others are ready too.

        Raises GTStoreError if an operation failed.
        """
        plan = self._plan
        chance = random.Random(f"{plan['seed']}/{plan['client']}")
        work = steps(plan, chance)
        warmup = drawn(work, plan["warmup"])
        measured = drawn(work, plan["operations"])
        with connect(plan["manager"], plan["timeout_s"]) as store:
            operations = Operations(store, values(plan["value_size"], chance))
            kinds = operations.by_kind
            latencies = {kind: array("q") for kind in kinds}
            self._do(warmup, kinds, latencies)
            for found in latencies.values():
                del found[:]
            operations.retries = 0
            # What was made so far need not be looked through during the measurement.
            gc.freeze()
            self._tell({"state": "ready"})
            wait()
            self._began = began = time.monotonic()
            cpu_began = time.process_time()
            self._do(measured, kinds, latencies)
            cpu_s = time.process_time() - cpu_began
            ended = time.monotonic()
        self._tell({"state": "done", "began": began, "ended": ended, "cpu_s": cpu_s})
        histograms = {kind: packed(found) for kind, found in latencies.items() if found}
        told = {"state": "latencies", "latencies": histograms, "retries": operations.retries}
        self._tell(told)

    def _do(
        self,
        work: Drawn,
        kinds: Mapping[str, Callable[[bytes], None]],
        latencies: Mapping[str, array[int]],
    ) -> None:
        clock = time.perf_counter_ns
        names, keys = work
        for start in range(0, len(keys), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            for kind, key in zip(names[chunk], keys[chunk], strict=True):
                operation = kinds[kind]
                began = clock()
                operation(key)
                latencies[kind].append(clock() - began)
                self._done += 1
            if (now := time.monotonic()) > self._told_at + _PAUSE_S:
                self._told_at = now
                self._tell({"state": "working", "operations": self._done})

    def failure(self, error: Exception) -> dict[str, Any]:
        """What is said of the error that has ended it."""
        known = isinstance(error, GTStoreError)
        return {
            "state": "failed",
            "error": str(error) if known else f"internal error: {type(error).__name__}: {error}",
            "operations": self._done,
            "after_s": round(time.monotonic() - self._began, 3),
        }


def main() -> int:
    """Run the program; return its exit code."""
    plan = json.loads(sys.stdin.buffer.readline())

    def tell(what: dict[str, Any]) -> None:
        # At once, and without a lock that the other thread could hold.
        os.write(sys.stdout.fileno(), json.dumps(what).encode() + b"\n")

    begin = threading.Event()

    def listen() -> None:
        if sys.stdin.buffer.readline():
            begin.set()
            sys.stdin.buffer.read()
        os._exit(DONE)

    supervised("listener", listen, END)
    worker = Worker(plan, tell)
    try:
        worker.run(begin.wait)
    except Exception as error:
        tell(worker.failure(error))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
