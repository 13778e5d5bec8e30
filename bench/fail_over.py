"""How soon a cluster goes on after a node has failed, how fast its copies are made again, and
whether anything is lost.

Each part has clusters of its own. The clients that are measured are processes of their own, which
are connected before anything happens; nodes are on the CPUs that the manager gives them.

- kill: SIGKILL of each node in turn; until each key was read, or put, again
- stop: the same with SIGSTOP, which the manager notices by missed probes
- restore: many keys; from a kill until all copies are there again
- load: the same while a client runs at half of the rate that it is capable of
- all_nodes: every node is killed once while keys are overwritten; then every key is read
- stopped: nodes that hold last copies, and the manager, are stopped for a while; nobody is killed

    python bench/fail_over.py [--only kill,stop,restore,load,all_nodes,stopped]

The exit code is 1 if data was lost, else 0, whatever the times.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import multiprocessing
import os
import platform
import random
import signal
import statistics
import sys
import threading
import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gtstore import BatchFailed, Client, GTStoreError, connect
from gtstore.connection import call_once, parse_address
from gtstore.placement import HASH_FUNCTIONS, partition_count
from gtstore.testing import Cluster, wait_until
from gtstore.wire.messages import HASHES, PROBE_MISSES_MAX, Ping, Pong

FAIL_OVER_WORST_S = 0.5
FAIL_OVER_TYPICAL_S = 0.1
AFTER_SILENCE_S = 0.5
RESTORED_KEYS_A_SECOND = 30_000
P99_MS = 20.0

BATCH = 2000
CALM_S = 2.0
"""For measuring a client while nothing happens."""
RESTORE_TIMEOUT_S = 120.0
UNTIL_FIRST_LOOK_S = 1.0
LOOK_PAUSE_S = 0.01
LOOK_AGAIN_PAUSE_S = 0.05
"""While a node copies. Each PING has a connection and a thread of its own there, which the client
that is measured feels if there are many."""
PING_TIMEOUT_S = 0.25
ASK_ANYWAY_S = 10.0
"""Before it failed, a node may have held more than it gets back."""

FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Figure:
    """A line of the summary. ``is_met`` is None if there is no bound."""

    name: str
    value: str
    bound: str
    is_met: bool | None
    is_loss: bool = False


# --- clusters ------------------------------------------------------------------------------------


def make_cluster(options: argparse.Namespace, replicas: int | None = None) -> Cluster:
    arguments = ("--hash", options.hash, "--probe-interval-ms", str(options.probe_interval_ms))
    return Cluster(options.nodes, replicas or options.replicas, arguments)


def spread_keys(count: int, options: argparse.Namespace) -> list[bytes]:
    """Keys of which every partition has as many as every other, or one more."""
    hash_code = next(code for code, name in HASHES.items() if name == options.hash)
    partitions = partition_count(options.nodes)
    room = [count // partitions + (p < count % partitions) for p in range(partitions)]
    keys: list[bytes] = []
    draw = random.Random(1)
    while len(keys) < count:
        key = b"%012x" % draw.getrandbits(48)
        partition = HASH_FUNCTIONS[hash_code](key) % partitions
        if room[partition]:
            room[partition] -= 1
            keys.append(key)
    return keys


def batches(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (keys[at : at + BATCH] for at in range(0, len(keys), BATCH))


def load(store: Client, keys: Sequence[bytes], value: bytes) -> None:
    for batch in batches(keys):
        store.put_many(dict.fromkeys(batch, value))


def count_right(
    store: Client, keys: Sequence[bytes], is_right: Callable[[bytes, bytes | None], bool]
) -> int:
    """How many of the keys have a value that they may have."""
    return sum(
        is_right(key, value)
        for batch in batches(keys)
        for key, value in store.get_many(batch).items()
    )


def processes(store: Client) -> list[tuple[int, int, int]]:
    """Each node, its process and its incarnation."""
    return [(node["id"], node["pid"], node["incarnation"]) for node in store.status()["nodes"]]


def member(status: dict[str, Any], node: int) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in status["nodes"] if each["id"] == node)
    return found


@dataclass(frozen=True)
class Return:
    """A node's failure, and its way back; times on the monotonic clock."""

    node: int
    failed_at: float
    returned_at: float  # its new process answers
    in_sync_at: float
    entries: int  # that it held then

    @property
    def whole_s(self) -> float:
        return self.in_sync_at - self.failed_at

    @property
    def copying_s(self) -> float:
        return self.in_sync_at - self.returned_at


def ping(address: str) -> Pong | None:
    """A node's answer to PING, if it gives one."""
    host, port = parse_address(address)
    try:
        reply = call_once("node", host, port, Ping(), PING_TIMEOUT_S)
    except GTStoreError:
        return None
    return reply if isinstance(reply, Pong) else None


def fail(store: Client, node: int, number: signal.Signals, first_look_s: float) -> Return:
    """Send a node a signal that it does not survive, or that makes the manager kill it, and wait
    until the next process is there and all partitions have all their copies.

    It is not enough that under_replicated is empty: so it is until the manager knows. And status()
    takes its time: until the node has as many entries as before, only it is asked.
    """
    before = member(store.status(), node)
    failed_at = time.monotonic()
    os.kill(before["pid"], number)
    time.sleep(first_look_s)
    returned_at = 0.0
    entries = -1
    pause_s = LOOK_PAUSE_S
    while time.monotonic() < failed_at + RESTORE_TIMEOUT_S:
        is_late = time.monotonic() > failed_at + ASK_ANYWAY_S
        if not returned_at or (entries < before["entries"] and not is_late):
            pong = ping(before["address"])
            if pong is not None and pong.incarnation > before["incarnation"]:
                returned_at = returned_at or time.monotonic()
                entries = pong.entries
                pause_s = LOOK_AGAIN_PAUSE_S
        else:
            is_whole = not store.status()["under_replicated"]
            now = time.monotonic()
            if is_whole:
                # Not the status's entries: its connection may be to the dead process.
                return Return(node, failed_at, returned_at, now, entries)
        time.sleep(pause_s)
    raise TimeoutError(f"node {node} was not restored within {RESTORE_TIMEOUT_S:g} s")


# --- clients that are measured -------------------------------------------------------------------


class Caller:
    """A client in a process of its own, which makes calls until it is stopped.

    Args:
        run: gets a flag, which becomes 1 when it shall end, and a function that sends something
            to this process.
    """

    def __init__(self, run: Callable[[Any, Callable[[object], None]], None]) -> None:
        self._flag = FORK.RawValue("b", 0)
        self._ours, theirs = FORK.Pipe()
        self._process = FORK.Process(
            target=_run_caller, args=(run, self._flag, theirs), daemon=True
        )
        self._process.start()
        theirs.close()

    def receive(self) -> Any:
        return self._ours.recv()

    def stop(self) -> Any:
        """Let it end; return what it sends last."""
        self._flag.value = 1
        last = self.receive()
        self._process.join()
        return last


def _run_caller(run: Callable[[Any, Callable[[object], None]], None], flag: Any, pipe: Any) -> None:
    gc.freeze()  # or this client would now and then wait for a look at all of the parent's keys
    run(flag, pipe.send)


@dataclass
class Calls:
    """What a client did: for each call when it was due, when it began, and when it ended; and the
    numbers of those that failed, or brought another value than they should."""

    due: array[float]
    began: array[float]
    ended: array[float]
    errors: dict[int, str]
    wrong: list[int]

    @classmethod
    def none(cls) -> Calls:
        return cls(array("d"), array("d"), array("d"), {}, [])


def call_in_turn(
    address: str, kind: str, keys: Sequence[bytes], value: bytes
) -> Callable[[Any, Callable[[object], None]], None]:
    """Get, or put, all keys one after the other, again and again: call i is of key i % len(keys);
    or with get_many and put_many, all of them with each call.

    It sends None after two turns, and its Calls in the end.
    """

    def run(flag: Any, send: Callable[[object], None]) -> None:
        calls = Calls.none()
        now = time.monotonic
        items = dict.fromkeys(keys, value)
        with connect(address) as store:
            made: dict[str, Callable[[bytes], bool]] = {
                "get": lambda key: store.get(key) == value,
                "put": lambda key: bool(store.put(key, value)),
                "get_many": lambda _: store.get_many(keys) == items,
                "put_many": lambda _: bool(store.put_many(items)),
            }
            call = made[kind]
            for turn in itertools.count(1):
                for key in keys[: calls_in_turn(kind, keys)]:
                    calls.began.append(now())
                    try:
                        if not call(key):
                            calls.wrong.append(len(calls.ended))
                    except GTStoreError as error:
                        calls.errors[len(calls.ended)] = repr(error)
                    calls.ended.append(now())
                if turn == 2:
                    send(None)
                if flag.value:
                    break
        calls.due = calls.began
        send(calls)

    return run


def calls_in_turn(kind: str, keys: Sequence[bytes]) -> int:
    """How many calls it takes to get or put every key once."""
    return 1 if kind.endswith("_many") else len(keys)


def call_at_half_rate(
    address: str, keys: Sequence[bytes], value: bytes
) -> Callable[[Any, Callable[[object], None]], None]:
    """Put and get keys at random in turn: first as fast as it goes, for CALM_S; then half as fast.

    It sends the first rate, and in the end its Calls at half of it. Each call began when it should
    have begun: one that waits for the end of a slow one before it is slow too.
    """
    draw = random.Random(2)
    order = [draw.choice(keys) for _ in range(50_000)]

    def run(flag: Any, send: Callable[[object], None]) -> None:
        calls = Calls.none()
        now = time.monotonic

        def call(number: int) -> None:
            key = order[number % len(order)]
            try:
                if number % 2:
                    store.put(key, value)
                elif store.get(key) != value:
                    calls.wrong.append(number)
            except GTStoreError as error:
                calls.errors[number] = repr(error)

        with connect(address) as store:
            for number in range(2000):
                call(number)
            started = now()
            number = 0
            while now() < started + CALM_S:
                call(number)
                number += 1
            rate = number / (now() - started)
            send(rate)
            interval = 2 / rate
            started = now()
            for number in itertools.count():
                due = started + number * interval
                pause = due - now()
                if pause > 0:
                    time.sleep(pause)
                calls.due.append(due)
                calls.began.append(now())
                call(number)
                calls.ended.append(now())
                if flag.value:
                    break
        send(calls)

    return run


# --- the parts -----------------------------------------------------------------------------------


def part_kill(options: argparse.Namespace) -> list[Figure]:
    """Kill each node in turn: milliseconds from the kill"""
    return disturb(options, signal.SIGKILL, FAIL_OVER_WORST_S, FAIL_OVER_TYPICAL_S)


def part_stop(options: argparse.Namespace) -> list[Figure]:
    """Stop each node in turn: milliseconds from the stop"""
    bound_s = options.probe_interval_ms / 1000 * PROBE_MISSES_MAX + AFTER_SILENCE_S
    return disturb(options, signal.SIGSTOP, bound_s, None)


def disturb(
    options: argparse.Namespace, number: signal.Signals, worst_s: float, typical_s: float | None
) -> list[Figure]:
    value = bytes(options.value_size)
    keys = spread_keys(options.keys, options)
    figures = []
    print(f"{len(keys):,} keys; a turn is once through all of them, before anything happens")
    print("              node    turn  until each succeeded  worst call  calls above 10 ms  errors")
    for kind in ("get", "put", "get_many", "put_many"):
        until_all, worst = [], []
        errors = wrong = 0
        for _ in range(options.rounds):
            with make_cluster(options) as cluster, cluster.connect() as store:
                load(store, keys, value)
                caller = Caller(call_in_turn(cluster.address, kind, keys, value))
                caller.receive()
                returns = []
                for node in range(1, options.nodes + 1):
                    time.sleep(0.3)
                    returns.append(fail(store, node, number, UNTIL_FIRST_LOOK_S))
                time.sleep(0.3)
                calls = caller.stop()
            for each in returns:
                seen = look_at(calls, each, calls_in_turn(kind, keys))
                until_all.append(seen.until_all_s * 1000)
                worst.append(seen.worst_s * 1000)
                print(
                    f"{kind:12}  {each.node:4}  {seen.turn_s * 1000:6.1f}  {until_all[-1]:20.1f}"
                    f"  {worst[-1]:10.1f}  {seen.slow:17}  {seen.errors:6}"
                )
            errors += len(calls.errors)
            wrong += len(calls.wrong)
            print_some(calls.errors.values())
        named = f"{number.name}, {kind}"
        measured = {"until each key succeeded": until_all, "worst call": worst}
        if kind.endswith("_many"):
            del measured["worst call"]
        for name, times in measured.items():
            text = f"{named}: {name}, worst of {len(times)}"
            figures.append(below(text, max(times), worst_s * 1000))
            median, text = statistics.median(times), f"{named}: {name}, median"
            if typical_s is None:
                figures.append(Figure(text, f"{median:.1f} ms", "", None))
            else:
                figures.append(below(text, median, typical_s * 1000))
        figures.append(none_failed(named, errors))
        if kind.startswith("get"):
            figures.append(nothing_lost(f"{named}: wrong or missing values", wrong))
    return figures


@dataclass(frozen=True)
class Disturbance:
    """What a failure meant for a client."""

    turn_s: float  # once through all keys, before
    until_all_s: float
    worst_s: float
    slow: int
    errors: int


def look_at(calls: Calls, failure: Return, turn: int) -> Disturbance:
    """The calls from a failure until all copies were there again. ``turn``: so many calls get or
    put all keys."""
    missing = set(range(turn))
    until = failure.failed_at
    # The one that was under way may have got its value before.
    for number in range(bisect_left(calls.began, failure.failed_at), len(calls.ended)):
        if number not in calls.errors:
            missing.discard(number % turn)
        until = calls.ended[number]
        if not missing:
            break
    # Of the worst call it is the time after the failure that counts.
    first = bisect_left(calls.ended, failure.failed_at)
    last = bisect_right(calls.began, failure.in_sync_at)
    times = [calls.ended[n] - max(calls.began[n], failure.failed_at) for n in range(first, last)]
    return Disturbance(
        calls.ended[first - 1] - calls.began[first - turn],
        float("inf") if missing else until - failure.failed_at,
        max(times),
        sum(seconds > 0.01 for seconds in times),
        sum(first <= number < last for number in calls.errors),
    )


def part_restore(options: argparse.Namespace) -> list[Figure]:
    """Restore a node: from the kill until all partitions have all their copies"""
    value = bytes(options.value_size)
    keys = spread_keys(options.restore_keys, options)
    rates, rates_copying = [], []
    with make_cluster(options) as cluster, cluster.connect(timeout=60) as store:
        load(store, keys, value)
        print(f"{len(keys):,} keys, values of {len(value)} bytes")
        print("node  entries  until it is back, s  until all copies, s  keys/s  without the start")
        for node in restored_nodes(options):
            back = fail(store, node, signal.SIGKILL, 0.0)
            rates.append(back.entries / back.whole_s)
            rates_copying.append(back.entries / back.copying_s)
            print_return(back)
        right = count_right(store, keys, lambda _, found: found == value)
    return [
        at_least("restoring, keys a second from the kill", statistics.median(rates)),
        at_least("restoring, without the process's start", statistics.median(rates_copying)),
        nothing_lost("restoring: wrong or missing values", len(keys) - right),
    ]


def print_some(errors: Iterable[str]) -> None:
    for text in sorted(set(errors))[:3]:
        print(f"     {text}")


def restored_nodes(options: argparse.Namespace) -> range:
    return range(1, min(options.restores, options.nodes) + 1)


def print_return(back: Return) -> None:
    print(
        f"{back.node:4}  {back.entries:7,}  {back.returned_at - back.failed_at:19.2f}"
        f"  {back.whole_s:19.2f}  {back.entries / back.whole_s:6,.0f}"
        f"  {back.entries / back.copying_s:17,.0f}"
    )


def part_load(options: argparse.Namespace) -> list[Figure]:
    """Restore a node while a client runs at half of its rate"""
    value = bytes(options.value_size)
    keys = spread_keys(options.restore_keys, options)
    with make_cluster(options) as cluster, cluster.connect(timeout=60) as store:
        load(store, keys, value)
        caller = Caller(call_at_half_rate(cluster.address, keys, value))
        rate = caller.receive()
        print(
            f"{len(keys):,} keys; the client makes {rate:,.0f} calls a second, half put, half get"
        )
        print(f"from now on it is to make {rate / 2:,.0f}; times are from when a call should begin")
        print("node  entries  until it is back, s  until all copies, s  keys/s  without the start")
        time.sleep(0.5)
        calm_at = time.monotonic()
        time.sleep(CALM_S)
        returns = []
        for node in restored_nodes(options):
            returns.append(fail(store, node, signal.SIGKILL, 0.0))
            print_return(returns[-1])
            time.sleep(1.0)
        calls = caller.stop()
    print("milliseconds                  calls       p50       p99      p999     worst")
    print_times("nothing happens", between(calls, calm_at, calm_at + CALM_S))
    all_p99, back_p99, all_worst = [], [], []
    for back in returns:
        name = f"node {back.node}"
        span = back.failed_at, back.in_sync_at
        times = between(calls, *span)
        print_times(f"{name}, from the kill", times)
        times_back = between(calls, back.returned_at, back.in_sync_at)
        print_times(f"{name}, from its return", times_back)
        print_times("  without waiting for turn", between(calls, *span, of=calls.began))
        all_p99.append(percentile(times, 0.99) * 1000)
        back_p99.append(percentile(times_back, 0.99) * 1000)
        all_worst.append(times[-1] * 1000)
    print_some(calls.errors.values())
    count = len(returns)
    speed = statistics.median(back.entries / back.whole_s for back in returns)
    return [
        below(f"restoring under load, p99 from the kill, worst of {count}", max(all_p99), P99_MS),
        below(
            f"restoring under load, p99 from the return, worst of {count}", max(back_p99), P99_MS
        ),
        Figure("restoring under load, worst call", f"{max(all_worst):.1f} ms", "", None),
        Figure("restoring under load, keys a second from the kill", f"{speed:,.0f}", "", None),
        none_failed("restoring under load", len(calls.errors)),
        nothing_lost("restoring under load: wrong or missing values", len(calls.wrong)),
    ]


def between(
    calls: Calls, start: float, end: float, of: Sequence[float] | None = None
) -> list[float]:
    """The times, sorted, of the calls that were due then: since they were due, or ``of``
    another moment of theirs."""
    since = calls.due if of is None else of
    first, last = bisect_left(calls.due, start), bisect_right(calls.due, end)
    return sorted(calls.ended[n] - since[n] for n in range(first, last))


def percentile(times: Sequence[float], share: float) -> float:
    return times[min(int(len(times) * share), len(times) - 1)]


def print_times(name: str, times: Sequence[float]) -> None:
    columns = (*(percentile(times, share) for share in (0.5, 0.99, 0.999)), times[-1])
    text = "".join(f"{seconds * 1000:10.2f}" for seconds in columns)
    print(f"{name:26}  {len(times):7,}{text}")


class Overwriter:
    """A thread that overwrites one share of the keys after the other, each again and again, and
    knows what each key may hold: the last value that was acknowledged, or one of those whose
    outcome is unknown since.

    Were all keys overwritten all the time, that would hide a loss: so what is written while one
    node is away is left alone when the next ones are killed, and the last share from the beginning.
    """

    def __init__(self, address: str, keys: Sequence[bytes], shares: int, size: int) -> None:
        self._shares = [keys[share::shares] for share in range(shares)]
        self._size = size
        self._share = 0
        self._turns = 0  # through the share that is overwritten now
        self._is_ended = threading.Event()
        self._store = connect(address)
        self.allowed: dict[bytes, list[bytes]] = {}
        self.writes = self.failed = 0
        self.errors: set[str] = set()
        self._thread = threading.Thread(target=self._run)
        for share in self._shares:
            self._write(share, 0)
        self.writes = 0

    def __enter__(self) -> Overwriter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ended.set()
        self._thread.join()
        self._store.close()

    def go_on(self) -> None:
        """Once every key of this share was overwritten: turn to the next one."""
        wait_until(lambda: self._turns > 0 or not self._thread.is_alive(), "a turn of the writer")
        self._share += 1
        self._turns = 0

    def _run(self) -> None:
        for turn in itertools.count(1):
            share = self._share
            if not self._write(self._shares[share], turn):
                return
            if share == self._share:
                self._turns += 1

    def _write(self, keys: Sequence[bytes], turn: int) -> bool:
        """Write all of these keys; return False if it is to end before that."""
        for batch in batches(keys):
            if self._is_ended.is_set():
                return False
            value = (b"%d," % turn).ljust(self._size, b"x")
            done = batch
            try:
                self._store.put_many(dict.fromkeys(batch, value))
            except BatchFailed as error:
                done = [key for key in batch if key in error.results]
                self.failed += len(error.errors)
                self.errors |= {repr(each) for each in error.errors.values()}
                for key in set(batch).difference(done):
                    self.allowed.setdefault(key, []).append(value)
            for key in done:
                self.allowed[key] = [value]
            self.writes += len(done)
        return True


def part_all_nodes(options: argparse.Namespace) -> list[Figure]:
    """Kill every node once, while keys are overwritten, another share at each node"""
    keys = spread_keys(options.all_nodes_keys, options)
    with make_cluster(options) as cluster, cluster.connect(timeout=60) as store:
        shares = options.nodes + 1
        with Overwriter(cluster.address, keys, shares, options.value_size) as writer:
            print("node  entries  until it is back, s  until all copies, s")
            for node in range(1, options.nodes + 1):
                back = fail(store, node, signal.SIGKILL, 0.0)
                print(
                    f"{node:4}  {back.entries:7,}  {back.returned_at - back.failed_at:19.2f}"
                    f"  {back.whole_s:19.2f}"
                )
                if node < options.nodes:
                    writer.go_on()
        right = count_right(store, keys, lambda key, value: value in writer.allowed[key])
        copies = sum(node["entries"] for node in store.status()["nodes"])
    unclear = sum(len(values) > 1 for values in writer.allowed.values())
    print(f"{writer.writes:,} writes meanwhile; {writer.failed} failed, {unclear} keys are unclear")
    print_some(writer.errors)
    print(f"the nodes hold {copies:,} entries, {copies / len(keys):.2f} a key")
    print(f"{right} of {len(keys)} keys have their latest value")
    return [
        nothing_lost("every node killed once: keys without their latest value", len(keys) - right),
        none_failed("every node killed once", writer.failed),
    ]


def part_stopped(options: argparse.Namespace) -> list[Figure]:
    """Stop nodes that hold last copies, then the manager: nobody is killed"""
    value = bytes(options.value_size)
    keys = spread_keys(options.keys, options)
    figures = []
    with make_cluster(options, replicas=1) as cluster, cluster.connect(timeout=60) as store:
        load(store, keys, value)
        before = processes(store)
        cluster.pause_node(1)
        time.sleep(options.stop_seconds)
        cluster.resume_node(1)
        right = count_right(store, keys, lambda _, found: found == value)
        time.sleep(4 * options.probe_interval_ms * PROBE_MISSES_MAX / 1000)
        figures += [
            same_processes("node stopped, k=1", before, processes(store)),
            nothing_lost("node stopped, k=1: wrong or missing values", len(keys) - right),
        ]
    with make_cluster(options) as cluster, cluster.connect(timeout=60) as store:
        load(store, keys, value)
        before = processes(store)
        caller = Caller(call_in_turn(cluster.address, "get", keys, value))
        caller.receive()
        os.kill(cluster.manager_pid, signal.SIGSTOP)
        time.sleep(options.stop_seconds)
        os.kill(cluster.manager_pid, signal.SIGCONT)
        time.sleep(4 * options.probe_interval_ms * PROBE_MISSES_MAX / 1000)
        calls = caller.stop()
        longest = max(map(float.__sub__, calls.ended, calls.began)) * 1000
        print(f"{len(calls.ended):,} gets meanwhile and soon after, the longest {longest:.1f} ms")
        right = count_right(store, keys, lambda _, found: found == value)
        lost = len(keys) - right + len(calls.wrong)
        figures += [
            same_processes("manager stopped", before, processes(store)),
            none_failed("manager stopped", len(calls.errors)),
            nothing_lost("manager stopped: wrong or missing values", lost),
        ]
    return figures


PARTS = {
    "kill": part_kill,
    "stop": part_stop,
    "restore": part_restore,
    "load": part_load,
    "all_nodes": part_all_nodes,
    "stopped": part_stopped,
}


# --- the summary ---------------------------------------------------------------------------------


def below(name: str, value_ms: float, bound_ms: float) -> Figure:
    return Figure(name, f"{value_ms:.1f} ms", f"below {bound_ms:g} ms", value_ms < bound_ms)


def at_least(name: str, rate: float) -> Figure:
    bound = RESTORED_KEYS_A_SECOND
    return Figure(name, f"{rate:,.0f}", f"{bound:,} or more", rate >= bound)


def nothing_lost(name: str, count: int) -> Figure:
    return Figure(name, f"{count}", "0", not count, is_loss=count > 0)


def none_failed(name: str, count: int) -> Figure:
    return Figure(f"{name}: calls that failed", f"{count}", "0", not count)


def same_processes(name: str, before: list[Any], after: list[Any]) -> Figure:
    """Nothing that held entries was killed."""
    gone = len(set(before) - set(after))
    return Figure(f"{name}: processes that were replaced", f"{gone}", "0", not gone)


def print_summary(figures: Sequence[Figure]) -> None:
    print("\nsummary")
    widths = [
        max(len(getattr(figure, column)) for figure in figures)
        for column in ("name", "value", "bound")
    ]
    for figure in figures:
        verdict = {None: "", True: "met", False: "NOT met"}[figure.is_met]
        print(
            f"{figure.name:{widths[0]}}  {figure.value:>{widths[1]}}"
            f"  {figure.bound:{widths[2]}}  {verdict}".rstrip()
        )


def stolen_ms() -> float:
    """What a virtual machine's neighbours took: it makes single calls late."""
    with open("/proc/stat") as file:
        return int(file.readline().split()[8]) * 1000 / os.sysconf("SC_CLK_TCK")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--only", default=",".join(PARTS), metavar="PART,...", help="(%(default)s)")
    add("--nodes", type=int, default=5)
    add("--replicas", type=int, default=3)
    add("--hash", choices=tuple(HASHES.values()), default="crc16")
    add("--probe-interval-ms", type=int, default=250)
    add("--value-size", type=int, default=100)
    add("--keys", type=int, default=1000, help="of kill, stop and stopped")
    add("--rounds", type=int, default=1, help="of kill and stop, each kills every node once")
    add("--restore-keys", type=int, default=200_000, help="of restore and load")
    add("--restores", type=int, default=3, help="of restore and load: that many nodes are killed")
    add("--all-nodes-keys", type=int, default=100_000)
    add("--stop-seconds", type=float, default=10.0, help="of stopped")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"no such part: {' '.join(sorted(unknown))}")
    if not 2 <= options.replicas <= options.nodes:
        parser.error("--replicas: at least 2, or a kill loses data, and no more than nodes")
    return options


def main() -> int:
    options = parse()
    cpus = sorted(os.sched_getaffinity(0))
    print(
        f"{options.nodes} nodes, k={options.replicas}, {options.hash}; CPUs "
        f"{' '.join(map(str, cpus))}, the nodes are bound to one each in turn, manager and clients "
        f"to none; Python {platform.python_version()}"
    )
    figures: list[Figure] = []
    for name in options.only:
        part = PARTS[name]
        print(f"\n{name}: {part.__doc__}")
        stolen, started = stolen_ms(), time.monotonic()
        waiting = os.getloadavg()[0]
        figures += part(options)
        print(
            f"took {time.monotonic() - started:.0f} s; load average before it {waiting:.1f}; CPU "
            f"time that the hypervisor gave to others: {stolen_ms() - stolen:.0f} ms"
        )
    print_summary(figures)
    return int(any(figure.is_loss for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
