"""A client process: it works on a few keys at once with all others, and writes down what it saw.

All processes move on to fresh keys together, by a count of their operations: a write whose outcome
is unknown stays open for ever, and a key that has too many of them tells little. The keys of some
rounds make a block. A block is checked on its own, so that not all of a long run must be in memory
at once; its older keys are still read now and then, and must be what they were.
"""

from __future__ import annotations

import json
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Literal, TextIO, TypeAlias

import gtstore

from ..blocking import connect_blocking
from ..linearizability import Done, Version, What
from .values import drawn_size, full, piece, shortened

ROUND = 2000
"""Operations of all clients on the keys of a round."""
LONG_ROUND = 300
"""The same with long values, or appends would make them longer and longer."""
KEPT_ROUNDS = 2
"""With long values, the keys of older rounds are deleted."""
BLOCK_ROUNDS = 20
BATCHES = 0.2
"""How often a get or a put is one of a batch, beside others of keys that are not checked."""
BESIDE = 20
BESIDE_SIZE_MAX = 16 * 1024
OLD_KEYS = 0.03
"""How often a client reads a key of an earlier round instead."""
TASKS = 4
"""Clients that share one AsyncClient."""
CANCELS = 0.002
"""How often one of their calls is cancelled. Each write that was leaves its outcome open, which
makes the check harder, so there must not be many."""
START_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 20.0
_LOOK_S = 0.02

KeyKind: TypeAlias = Literal["register", "list", "number", "mixed"]

KEY_KINDS: tuple[KeyKind, ...] = ("register", "register", "list", "number", "mixed")
"""The keys of a round."""

WEIGHTS: dict[KeyKind, dict[What, int]] = {
    "register": {"get": 40, "put": 25, "delete": 5, "compare": 30},
    "list": {"get": 40, "append": 60},
    "number": {"get": 40, "increment": 60},
    "mixed": {"get": 40, "put": 15, "delete": 10, "append": 20, "compare": 15},
}


def keys_of(number: int) -> list[tuple[bytes, KeyKind]]:
    """The keys of a round."""
    return [(b"chaos/%d/%d" % (number, i), kind) for i, kind in enumerate(KEY_KINDS)]


class Flag:
    """One that all processes see. No lock is taken, as an Event's is at each look: a process that
    is stopped while it holds one would hold up also the one that is to let it go on."""

    def __init__(self, context: SpawnContext) -> None:
        self._value = context.RawValue("b", 0)

    def set(self) -> None:
        self._value.value = 1

    def is_set(self) -> bool:
        return bool(self._value.value)

    def wait(self, timeout_s: float) -> bool:
        """Until it is set, or for that time; whether it is set."""
        ends_at = time.monotonic() + timeout_s
        while not self.is_set() and (left_s := ends_at - time.monotonic()) > 0:
            time.sleep(min(left_s, _LOOK_S))
        return self.is_set()


@dataclass(frozen=True)
class Shared:
    """What parent and clients have in common.

    Attributes:
        has_long_values: whether values may be long, up to 1 MiB.
        tickets: how many operations were begun.
        is_over: set when the time is up, or when somebody failed.
    """

    address: str
    directory: Path
    started_ns: int
    has_long_values: bool
    tickets: Synchronized[int]
    at_start: Barrier
    is_over: Flag

    def now(self) -> int:
        """Nanoseconds since the start: the same clock in all processes of this machine."""
        return time.monotonic_ns() - self.started_ns

    @property
    def round_size(self) -> int:
        """How many operations a round has."""
        return LONG_ROUND if self.has_long_values else ROUND

    @property
    def round_now(self) -> int:
        return self.tickets.value // self.round_size


# --- histories in files --------------------------------------------------------------------------


def as_line(done: Done) -> str:
    """One line of JSON; bytes are latin-1."""
    return json.dumps(
        [
            done.what,
            done.key.decode("latin-1"),
            None if done.value is None else done.value.decode("latin-1"),
            done.start,
            done.end,
            done.expected.decode("latin-1") if isinstance(done.expected, bytes) else done.expected,
            done.result,
            done.version,
            done.client,
        ]
    )


def from_line(line: str) -> Done:
    what, key, value, start, end, expected, result, version, client = json.loads(line)
    if isinstance(expected, str):
        expected = expected.encode("latin-1")
    elif expected is not None:
        expected = tuple(expected)
    return Done(
        what,
        key.encode("latin-1"),
        None if value is None else value.encode("latin-1"),
        start,
        end,
        expected,
        result,
        None if version is None else tuple(version),
        client,
    )


def path_of(directory: Path, block: int, client: int) -> Path:
    return directory / f"history-{block}-{client}.jsonl"


def histories(directory: Path) -> Iterator[list[Done]]:
    """What all clients saw, block by block."""
    blocks = {int(path.name.split("-")[1]) for path in directory.glob("history-*.jsonl")}
    for block in sorted(blocks):
        history = []
        for path in directory.glob(f"history-{block}-*.jsonl"):
            with path.open() as file:
                history += [from_line(line) for line in file]
        yield history


# --- the work ------------------------------------------------------------------------------------


class Recorder:
    """Calls the store, and writes down each call that may have had an effect or saw something, with
    the short forms of values."""

    def __init__(self, shared: Shared, number: int) -> None:
        self._shared = shared
        self._number = number
        self._block = -1
        self._file: TextIO | None = None
        self.counts: Counter[str] = Counter()
        self.unknown = 0
        self.failed: Counter[str] = Counter()
        """Calls that surely did nothing, by kind and exception."""
        self.longest_ns = 0
        self.longest = ""
        """Which one took so long, in words."""

    def call(self, block: int, done: Done, work: Callable[[Done], None]) -> bool:
        """Do one operation. ``work`` does it and enters its results in ``done``. Returns whether
        anything came of it."""
        done.client = self._number
        done.start = self._shared.now()
        is_over = True
        outcome = "it was done"
        try:
            work(done)
        except gtstore.OutcomeUnknown as error:
            self.unknown += 1
            is_over = False
            outcome = f"unknown: {error}"
        except gtstore.VersionMismatch as error:
            done.result = False
            done.version = _pair(error.version)
        except (
            gtstore.OperationFailed,
            gtstore.ConnectError,
            gtstore.DeadlineExceeded,
            gtstore.ConnectionLost,
        ) as error:
            # Of a write, all of these say that it did not happen, but for a lost connection.
            if isinstance(error, gtstore.ConnectionLost) and done.what != "get":
                raise
            self.failed[f"{done.what} {type(error).__name__}"] += 1
            outcome = f"{type(error).__name__}: {error}"
            return False
        finally:
            end = self._shared.now()
            self.counts[done.what] += 1
            if end - done.start > self.longest_ns:
                self.longest_ns = end - done.start
                self.longest = self._told(done, outcome)
        done.end = end if is_over else None
        self._write(block, done)
        return is_over

    def _told(self, done: Done, outcome: str) -> str:
        key = done.key.decode()
        begin_s = done.start / 1e9
        return f"{done.what} of {key} by client {self._number}, begun at {begin_s:.2f} s: {outcome}"

    def _write(self, block: int, done: Done) -> None:
        if block != self._block or self._file is None:
            self.close()
            self._block = block
            self._file = path_of(self._shared.directory, block, self._number).open("a")
        self._file.write(as_line(done) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Worker:
    """One client. Each of its writes has a value of its own, unless that is empty."""

    def __init__(self, shared: Shared, number: int, seed: int, store: gtstore.Client) -> None:
        self.recorder = Recorder(shared, number)
        self._shared = shared
        self._number = number
        self._random = random.Random(seed)
        self._store = store
        self._writes = 0
        self._round = -1
        # What this client saw last of each key of the round: value and version.
        self._seen: dict[bytes, tuple[bytes | None, Version | None]] = {}

    def step(self) -> None:
        """One operation."""
        with self._shared.tickets.get_lock():
            ticket = self._shared.tickets.value
            self._shared.tickets.value += 1
        number, turn = divmod(ticket, self._shared.round_size)
        if number != self._round:
            self._round = number
            self._seen.clear()
        if not turn and self._shared.has_long_values:
            self._delete_round(number - KEPT_ROUNDS)
        block = number // BLOCK_ROUNDS
        oldest = block * BLOCK_ROUNDS
        if number > oldest and self._random.random() < OLD_KEYS:
            key, _ = self._random.choice(keys_of(self._random.randrange(oldest, number)))
            self.recorder.call(block, Done("get", key, None, 0, None), self._get)
            return
        key, kind = self._random.choice(keys_of(number))
        weights = WEIGHTS[kind]
        (what,) = self._random.choices(list(weights), list(weights.values()))
        done = Done(what, key, None, 0, None)
        works: dict[What, Callable[[Done], None]] = {
            "get": self._get,
            "put": self._put,
            "delete": self._delete,
            "append": self._append,
            "increment": self._increment,
            "compare": self._compare,
        }
        if what == "increment":
            # Of two sums of such numbers hardly any are equal, so a result tells what is in it.
            done.value = b"%d" % self._random.randrange(1, 1 << 40)
        elif what not in ("get", "delete"):
            done.value = self._new_value()
        if what == "compare":
            value, version = self._seen.get(key, (None, None))
            done.expected = value if version is None or self._random.random() < 0.5 else version
        if self.recorder.call(block, done, works[what]):
            self._remember(done)

    def _delete_round(self, number: int) -> None:
        """So that there is room for what comes."""
        if number < 0:
            return
        for key, _ in keys_of(number):
            done = Done("delete", key, None, 0, None)
            self.recorder.call(number // BLOCK_ROUNDS, done, self._delete)

    def _new_value(self) -> bytes:
        """The short form of one."""
        self._writes += 1
        size = drawn_size(self._random, self._shared.has_long_values)
        return piece(self._number, self._writes, size)

    def _remember(self, done: Done) -> None:
        if done.what in ("get", "put") or (done.what == "compare" and done.result):
            self._seen[done.key] = done.value, done.version
        elif done.what == "delete":
            self._seen[done.key] = None, done.version

    def _in_batch(self, key: bytes, call: Callable[[], dict[bytes, Any]]) -> Any:
        """A key's result in a batch."""
        try:
            return call()[key]
        except gtstore.BatchFailed as failed:
            if key in failed.errors:
                raise failed.errors[key] from None
            return failed.results[key]

    def _beside(self) -> list[bytes]:
        count = self._random.randrange(BESIDE)
        return [b"beside/%d/%d" % (self._number, i) for i in range(count)]

    def _get(self, done: Done) -> None:
        if self._random.random() < BATCHES:
            keys = [*self._beside(), done.key]
            done.value = shortened(self._in_batch(done.key, lambda: self._store.get_many(keys)))
            return
        if self._random.random() < 0.7:
            done.value = shortened(self._store.get(done.key))
            return
        entry = self._store.get_entry(done.key)
        if entry is not None:
            done.value, done.version = shortened(entry.value), _pair(entry.version)

    def _put(self, done: Done) -> None:
        value = full(done.value or b"")
        if self._random.random() < BATCHES:
            others = dict.fromkeys(self._beside(), value[:BESIDE_SIZE_MAX])
            items = {**others, done.key: value}
            result = self._in_batch(done.key, lambda: self._store.put_many(items))
        else:
            result = self._store.put(done.key, value)
        done.version = _pair(result.version)

    def _delete(self, done: Done) -> None:
        done.version = _pair(self._store.delete(done.key).version)

    def _append(self, done: Done) -> None:
        done.result = self._store.append(done.key, full(done.value or b""))

    def _increment(self, done: Done) -> None:
        assert done.value is not None
        done.result = self._store.increment(done.key, int(done.value))

    def _compare(self, done: Done) -> None:
        value = full(done.value or b"")
        if isinstance(done.expected, tuple):
            version = gtstore.Version(*done.expected)
            result = self._store.compare_and_put(done.key, value, version=version)
        else:
            expected = None if done.expected is None else full(done.expected)
            result = self._store.compare_and_put(done.key, value, expected=expected)
        done.result, done.version = True, _pair(result.version)


def _pair(version: gtstore.Version | None) -> Version | None:
    return None if version is None else (version.time, version.client)


def read_all(shared: Shared, store: gtstore.Client) -> None:
    """Read every key of the last block, twice: as client 0."""
    recorder = Recorder(shared, 0)

    def get(done: Done) -> None:
        done.value = shortened(store.get(done.key))

    last = shared.round_now
    block = last // BLOCK_ROUNDS
    for number in range(block * BLOCK_ROUNDS, last + 1):
        for key, _ in keys_of(number):
            for _ in range(2):
                recorder.call(block, Done("get", key, None, 0, None), get)
    recorder.close()
    if recorder.failed:
        raise AssertionError(f"in the end, keys could not be read: {dict(recorder.failed)}")


def report_path(directory: Path, number: int) -> Path:
    return directory / f"client-{number}.json"


def work(shared: Shared, number: int, seed: int, is_async: bool) -> None:
    """The whole life of a client process. What it has to say is in its file in the end.

    With ``is_async`` it is TASKS clients, which share one AsyncClient; now and then one of their
    calls is cancelled.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it too, and ends the run
    report: dict[str, Any] = {}
    try:
        with _connect(shared.address, is_async) as store:
            workers = [
                Worker(shared, number * 100 + task, seed * 100 + task, store)
                for task in range(TASKS if is_async else 1)
            ]
            shared.at_start.wait(START_TIMEOUT_S)
            try:
                with ThreadPoolExecutor(len(workers)) as pool:
                    for ended in [pool.submit(_work_on, shared, worker) for worker in workers]:
                        ended.result()
            finally:
                report = _summed([worker.recorder for worker in workers])
    except BaseException:
        shared.is_over.set()
        report["error"] = traceback.format_exc()
    report_path(shared.directory, number).write_text(json.dumps(report))


def _connect(address: str, is_async: bool) -> gtstore.Client:
    if is_async:
        return connect_blocking(address, CALL_TIMEOUT_S, CANCELS)
    return gtstore.connect(address, CALL_TIMEOUT_S)


def _work_on(shared: Shared, worker: Worker) -> None:
    try:
        while not shared.is_over.is_set():
            worker.step()
    except BaseException:
        shared.is_over.set()
        raise
    finally:
        worker.recorder.close()


def _summed(recorders: Sequence[Recorder]) -> dict[str, Any]:
    """The figures of a process."""
    slowest = max(recorders, key=lambda recorder: recorder.longest_ns)
    return {
        "counts": sum((recorder.counts for recorder in recorders), Counter()),
        "unknown": sum(recorder.unknown for recorder in recorders),
        "failed": sum((recorder.failed for recorder in recorders), Counter()),
        "longest_ns": slowest.longest_ns,
        "longest": slowest.longest,
    }
