"""1,000 connections to one node, against 16 at the same rate.

First the node's saturated rate: each connection has one request under way, and sends the next one
when it is answered. Then half of what 16 connections reach, and half of what 1,000 reach, is
offered to 16 and to 1,000 connections in turn, and at last to 16 just after 1,000 saturating ones,
as an open loop: each process draws when its next request is due (exponential pauses), and sends it
then on its next connection, however many are unanswered. Latency counts from when a request was
due, not from when it was sent. Half of the requests are puts, half gets, of values of 100 bytes.

The clients work with bare frames of the protocol, in two processes with an epoll loop each, on
another CPU than the node, if there is one.

    python bench/connections.py [--many 1000] [--rounds 3] [--seconds 4]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import random
import secrets
import select
import socket
import statistics
import time
from array import array
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from gtstore.command_line import raise_file_limit
from gtstore.connection import call_once, parse_address
from gtstore.operations import Source, begin_get, begin_put
from gtstore.placement import Routes
from gtstore.testing import Cluster
from gtstore.wire.codec import ACK, ENTRY, HEADER_WORDS, head_word
from gtstore.wire.messages import HEADER_SIZE, ClusterInfo, GetMap, Map
from gtstore.wire.messages import Cluster as Shape
from machine import (
    about,
    cpu_s,
    in_parallel,
    percentiles_us,
    print_table,
    ratios,
    resident,
    resident_peak,
    stolen_s,
    with_range,
)

FEW = 16
PROCESSES = 2
VALUE = b"x" * 100
KEYS = 10_000
GRACE_S = 5.0
"""For what is unanswered at the end."""
METER_PAUSE_S = 0.1
"""So long the connections stay open at the end, so that the node's memory is read with them."""
AFTER_ROUNDS = 4
AFTER_S = 1.0
"""How long the saturating connections work that others come after, and how many times as often."""
LATENCY_FACTOR_MAX = 10.0
ACK_WORD, ENTRY_WORD = head_word(ACK), head_word(ENTRY)


class Result(NamedTuple):
    """Of one process."""

    answered: int
    errors: int
    times: array[int]
    cpu_s: float


class Meter(NamedTuple):
    """Of the node."""

    cpu_s: float
    stolen_s: float
    resident: int


class Run(NamedTuple):
    rate: float
    errors: int
    times: array[int]
    node_cpu: float
    clients_cpu: float
    stolen_s: float
    resident: int


class Peer:
    """One connection, with keys of its own: requests on others may overtake its own, and an older
    version that comes second is refused. It puts a key, then gets it.

    ``waiting``: when each request was due, and its answer's first word.
    """

    __slots__ = ("begun", "is_put", "key", "keys", "sock", "waiting")

    def __init__(self, address: tuple[str, int], keys: list[bytes]) -> None:
        self.keys = itertools.cycle(keys)
        self.key = b""
        self.is_put = False
        self.sock = socket.create_connection(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.waiting: deque[tuple[float, int]] = deque()
        self.begun = b""


class Load:
    """One process's connections."""

    def __init__(self, manager: str, number: int, connections: int) -> None:
        host, port = parse_address(manager)
        shape = call_once("manager", host, port, ClusterInfo(), 5.0)
        partition_map = call_once("manager", host, port, GetMap(0), 5.0)
        assert isinstance(shape, Shape)
        assert isinstance(partition_map, Map)
        self._routes = Routes()
        self._routes.replace(shape, partition_map.rows, 0)
        self._source = Source(lambda: secrets.randbits(64), time.time_ns, random.random)
        (member,) = shape.members
        self._poll = select.epoll()  # before the sockets: select takes no numbers above 1023
        self._peers: dict[int, Peer] = {}
        own = max(1, KEYS // PROCESSES // connections)
        for i in range(connections):
            keys = [b"key%d-%d-%d" % (number, i, j) for j in range(own)]
            peer = Peer((member.host, member.port), keys)
            self._peers[peer.sock.fileno()] = peer
            self._poll.register(peer.sock, select.EPOLLIN)
        self._errors = 0
        self._unanswered = 0
        self._times = array("Q")
        self._cpu_before_s = time.process_time()

    def _send(self, peer: Peer, due: float) -> None:
        peer.is_put = not peer.is_put
        if peer.is_put:
            peer.key = key = next(peer.keys)
            frame, word = begin_put(self._routes, self._source, key, VALUE)[2], ACK_WORD
        else:
            frame, word = begin_get(self._routes, self._source, peer.key)[2], ENTRY_WORD
        try:
            if peer.sock.send(frame) == len(frame):
                peer.waiting.append((due, word))
                self._unanswered += 1
                return
        except OSError:
            pass
        self._errors += 1

    def _receive(self, peer: Peer) -> int:
        """How many answers there were."""
        try:
            data = peer.sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._errors += 1 + len(peer.waiting)
            self._unanswered -= len(peer.waiting)
            self._poll.unregister(peer.sock)
            return 0
        now = time.perf_counter()
        data = peer.begun + data
        at = count = 0
        while len(data) - at >= HEADER_SIZE:
            word, _, size = HEADER_WORDS.unpack_from(data, at)
            if at + HEADER_SIZE + size > len(data):
                break
            at += HEADER_SIZE + size
            due, expected = peer.waiting.popleft()
            self._times.append(int((now - due) * 1e9))
            self._errors += word != expected
            count += 1
        peer.begun = data[at:]
        self._unanswered -= count
        return count

    def saturate(self, end: float) -> Result:
        """One request under way on each connection until the end."""
        now = time.perf_counter()
        for peer in self._peers.values():
            self._send(peer, now)
        while now < end:
            for number, _ in self._poll.poll(0.1):
                peer = self._peers[number]
                if self._receive(peer):
                    self._send(peer, time.perf_counter())
            now = time.perf_counter()
        answered = len(self._times)
        return self._finish(end, answered)

    def offer(self, rate: float, end: float) -> Result:
        """So many requests a second, due at random times."""
        peers = itertools.cycle(random.sample(list(self._peers.values()), len(self._peers)))
        due = now = time.perf_counter()
        while now < end:
            while due <= now:
                self._send(next(peers), due)
                due += random.expovariate(rate)
            # epoll itself waits for whole milliseconds.
            select.select([self._poll], [], [], max(0.0, due - time.perf_counter()))
            for number, _ in self._poll.poll(0):
                self._receive(self._peers[number])
            now = time.perf_counter()
        return self._finish(end, None)

    def _finish(self, end: float, answered: int | None) -> Result:
        while self._unanswered > 0 and time.perf_counter() < end + GRACE_S:
            for number, _ in self._poll.poll(0.1):
                self._receive(self._peers[number])
        time.sleep(METER_PAUSE_S)
        errors = self._errors + self._unanswered
        answered = len(self._times) if answered is None else answered
        return Result(answered, errors, self._times, time.process_time() - self._cpu_before_s)


def run(
    cluster: Cluster,
    connections: int,
    seconds: float,
    work: Callable[[Load, float], Result],
) -> Run:
    (pid,) = cluster.node_pids.values()
    others = os.sched_getaffinity(0) - os.sched_getaffinity(pid)

    def prepare(number: int) -> Callable[[float], Result]:
        raise_file_limit()
        if others:
            os.sched_setaffinity(0, others)
        gc.disable()  # its pauses would be the client's, not the node's
        share = connections // PROCESSES + (number < connections % PROCESSES)
        load = Load(cluster.address, number, share)
        return lambda end: work(load, end)

    def meter() -> Meter:
        return Meter(cpu_s([pid]), stolen_s(), resident(pid))

    results, before, after = in_parallel(PROCESSES, prepare, seconds, meter)
    times = array("Q")
    for result in results:
        times.extend(result.times)
    rate = sum(result.answered for result in results) / seconds
    errors = sum(result.errors for result in results)
    node_cpu = (after.cpu_s - before.cpu_s) / seconds
    clients_cpu = sum(result.cpu_s for result in results) / seconds
    stolen = after.stolen_s - before.stolen_s
    return Run(rate, errors, times, node_cpu, clients_cpu, stolen, after.resident)


def p99_ms(times: array[int]) -> float:
    return sorted(times)[int(len(times) * 0.99)] / 1e6


Runs = dict[int, list[Run]]


def measure(many: int = 1000, rounds: int = 3, seconds: float = 4.0) -> None:
    print(f"### {many:,} connections to one node\n", flush=True)
    counts = (FEW, many)
    with Cluster(1, 1) as cluster:
        (pid,) = cluster.node_pids.values()
        before = resident(pid)
        saturated: Runs = {count: [] for count in counts}
        for _ in range(rounds):
            for count in counts:
                saturated[count].append(run(cluster, count, seconds / 2, Load.saturate))
        print(f"Saturated, median (min to max) of {rounds} rounds:\n")
        print_runs(saturated)
        for base in counts:
            rate = statistics.median(each.rate for each in saturated[base]) / 2
            offered: Runs = {count: [] for count in counts}
            for _ in range(rounds):
                for count in counts:
                    offered[count].append(run(cluster, count, seconds, partial(offer, rate)))
            print(f"At {rate:,.0f} requests/s, half of what {base:,} connections reach:\n")
            print_runs(offered)
            print_verdict(offered[many], offered[FEW])
        after: list[Run] = []
        for _ in range(AFTER_ROUNDS * rounds):
            run(cluster, many, AFTER_S, Load.saturate)
            after.append(run(cluster, FEW, seconds / 2, partial(offer, rate)))
        print(
            f"The same rate on {FEW} connections, each time just after {many:,} saturating ones:\n"
        )
        print_runs({FEW: after})
        log = cluster.log()
        peak = resident_peak(pid)
    lines = sum(log.count(level) for level in ("WARNING", "ERROR"))
    print(
        f"The node's memory: {before / 2**20:.1f} MiB before all this, {peak / 2**20:.1f} at most; "
        f"warnings and errors in its log: {lines}.\n",
        flush=True,
    )


def offer(rate: float, load: Load, end: float) -> Result:
    return load.offer(rate / PROCESSES, end)


def print_runs(runs: Runs) -> None:
    print_table(
        ["connections", "requests/s", "us, p50 / p99 / p999", "p99 of each round, ms",
         "CPU, node", "CPU, clients", "stolen, ms", "errors", "node's memory, MiB"],
        [
            [
                f"{count:,}",
                with_range([each.rate for each in of_count]),
                percentiles_us(sum((each.times for each in of_count), array("Q"))),
                ", ".join(f"{p99_ms(each.times):.2f}" for each in of_count),
                f"{statistics.median(each.node_cpu for each in of_count):.0%}",
                f"{statistics.median(each.clients_cpu for each in of_count):.0%}",
                ", ".join(f"{each.stolen_s * 1000:.0f}" for each in of_count),
                str(sum(each.errors for each in of_count)),
                ", ".join(f"{each.resident / 2**20:.1f}" for each in of_count),
            ]
            for count, of_count in runs.items()
        ],
    )  # fmt: skip


def print_verdict(many: list[Run], few: list[Run]) -> None:
    found = ratios([p99_ms(each.times) for each in many], [p99_ms(each.times) for each in few])
    errors = sum(each.errors for each in (*many, *few))
    is_met = statistics.median(found) < LATENCY_FACTOR_MAX and not errors
    print(
        f"p99 of the one / of the other: {with_range(found, '{:.1f}')}; must: below "
        f"{LATENCY_FACTOR_MAX:g} and no errors: {'met' if is_met else '**missed**'}.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    print(about())
    measure(options.many, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
