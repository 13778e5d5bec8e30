"""Acknowledged puts a second where an acknowledgement means "on disk": GT Store with --data-dir,
Redis with appendfsync always, and a bare log with fdatasync, all on one file system.

Every store gets the same puts: random keys, never the same one again, with random values of 100
bytes. A client is one process that waits for each put before the next one, so C clients are C puts
in flight. Processes cost a switch at each wake-up, but no thread of one client ever waits for the
interpreter lock of another, which would be a different loss with each store. The servers are bound
to the CPUs in turn, as GT Store's manager does it, and the clients are bound to none.

A put to k copies is acknowledged when it is on k disks, that is, synced by k processes:

- GT Store: k nodes and k replicas, so each node holds everything; and once more with 7 nodes
- Redis: each put is sent to k servers that know nothing of each other, then k answers are received
  (redis-py's bare connections); that nobody else's put can come between them is not promised
- Redis, WAIT: one primary with k-1 replicas, and WAIT k-1 after each SET, sent with it
- the log: k processes with a socket each, which append all the records that wait to a file, call
  fdatasync, and answer: what the sockets, the processes and the disk leave to any store
- the log without sockets: k processes append C records at a time and call fdatasync

All servers run all the time, and take turns in being used, so that the ratios hold when the
machine's speed drifts.

    python bench/durable.py [--copies 1,3] [--clients 1,8,64] [--rounds 3] [--seconds 2]
                            [--redis-server PATH] [--dir DIR]
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gtstore import connect
from gtstore.testing import Cluster
from machine import FORK, bind, busy_s, cpus, in_parallel, numbers, with_range
from servers import DURABLE, RedisServers, find_redis
from stores import BareRedis, WaitingRedis

VALUE_SIZE = 100
KEY_SIZE = 16
RECORD_SIZE = KEY_SIZE + VALUE_SIZE + 24  # with a version and a checksum
NODES_MORE = 7
NO_DISKS = {"tmpfs", "ramfs", "overlay"}
ACK = b"a"

Put = Callable[[bytes, bytes], object]
Caller = tuple[Put, Callable[[], object]]
"""A client's put, and its close."""


# --- clients -------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """Puts a second, and how many microseconds of CPU one takes, of clients and servers."""

    rate: float
    cpu_us: float


def measure(connect_one: Callable[[], Caller], clients: int, seconds: float) -> Measured:
    """What so many clients do."""

    def prepare(number: int) -> Callable[[float], float]:
        draw = random.Random(f"{time.time_ns()} {number}")
        bits, some = draw.getrandbits, draw.randbytes
        now = time.perf_counter
        put, close = connect_one()
        put(b"%016x" % bits(64), some(VALUE_SIZE))

        def work(end: float) -> float:
            started = now()
            count = 0
            while now() < end:
                put(b"%016x" % bits(64), some(VALUE_SIZE))
                count += 1
            rate = count / (now() - started)
            close()  # or what a client of ours owes to nodes would be work for them, later
            return rate

        return work

    rates, before, after = in_parallel(clients, prepare, seconds, busy_s)
    return Measured(sum(rates), (after - before) / seconds / sum(rates) * 1e6)


# --- GT Store ------------------------------------------------------------------------------------


class Ours:
    def __init__(self, nodes: int, copies: int, place: Path) -> None:
        self._cluster = Cluster(nodes, copies, ("--data-dir", str(place)))

    def __enter__(self) -> Callable[[int, float], Measured]:
        self._cluster.start()
        return partial(measure, self._connect)

    def __exit__(self, *_: object) -> None:
        self._cluster.stop()

    def _connect(self) -> Caller:
        client = connect(self._cluster.address)
        return client.put, client.close


# --- Redis ---------------------------------------------------------------------------------------


class Redis:
    """So many servers, all with appendfsync always; the others follow the first one if it
    ``replicates``."""

    def __init__(self, binary: str, copies: int, place: Path, *, replicates: bool) -> None:
        self._servers = RedisServers(
            binary, copies, replicates=replicates, settings=DURABLE, place=place
        )
        self._copies = copies
        self._client = WaitingRedis if replicates else BareRedis

    def __enter__(self) -> Callable[[int, float], Measured]:
        self._servers.__enter__().bind()
        return partial(measure, self._connect)

    def __exit__(self, *_: object) -> None:
        self._servers.stop()

    def _connect(self) -> Caller:
        servers = self._servers
        client = self._client(servers.ports, self._copies, servers.pids)
        return client.put, client.close


# --- the log -------------------------------------------------------------------------------------


class Log:
    """So many processes that append what they receive to a file each, and answer once it is
    synced."""

    def __init__(self, copies: int, place: Path) -> None:
        self._copies = copies
        self._place = place
        self._pids: list[int] = []
        self._addresses: list[Any] = []

    def __enter__(self) -> Callable[[int, float], Measured]:
        self._place.mkdir()
        for number in range(self._copies):
            listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
            self._addresses.append(listener.getsockname())
            pid = os.fork()
            if not pid:
                serve_log(listener, self._place / str(number))
            listener.close()
            self._pids.append(pid)
            bind(pid, number)
        return partial(measure, self._connect)

    def __exit__(self, *_: object) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _connect(self) -> Caller:
        sockets = [socket.create_connection(address) for address in self._addresses]
        for each in sockets:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rest = bytes(RECORD_SIZE - KEY_SIZE - VALUE_SIZE)

        def put(key: bytes, value: bytes) -> None:
            record = b"".join((rest, key, value))
            for each in sockets:
                each.send(record)
            for each in sockets:
                assert each.recv(1) == ACK

        return put, lambda: None


def serve_log(listener: socket.socket, path: Path) -> None:
    """Of as few calls as it can be done with: poll, receive from each, write, fdatasync, answer."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    peers: dict[int, socket.socket] = {}
    while True:
        records = []
        waiting = []
        for number, _ in poll.poll():
            if number == listener.fileno():
                peer, _ = listener.accept()
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peers[peer.fileno()] = peer
                poll.register(peer, select.EPOLLIN)
            elif record := peers[number].recv(RECORD_SIZE):
                assert len(record) == RECORD_SIZE
                records.append(record)
                waiting.append(peers[number])
            else:
                peers.pop(number).close()
        if records:
            os.write(log, b"".join(records))
            os.fdatasync(log)
            for peer in waiting:
                peer.send(ACK)


class DiskAlone:
    """So many processes that do nothing but append and sync."""

    def __init__(self, copies: int, place: Path) -> None:
        self._copies = copies
        self._place = place

    def __enter__(self) -> Callable[[int, float], Measured]:
        self._place.mkdir()
        return self._measure

    def __exit__(self, *_: object) -> None:
        pass

    def _measure(self, clients: int, seconds: float) -> Measured:
        rates = FORK.SimpleQueue()

        def write(number: int) -> None:
            bind(0, number)
            group = random.randbytes(RECORD_SIZE * clients)
            log = os.open(self._place / str(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            started = now = time.perf_counter()
            count = 0
            while now < started + seconds:
                os.write(log, group)
                os.fdatasync(log)
                count += clients
                now = time.perf_counter()
            rates.put(count / (now - started))

        processes = [FORK.Process(target=write, args=(n,)) for n in range(self._copies)]
        for process in processes:
            process.start()
        busy_before = busy_s()
        for process in processes:
            process.join()
        busy = busy_s() - busy_before
        rate = min(rates.get() for _ in processes)  # a put is done when all copies are
        return Measured(rate, busy / seconds / rate * 1e6)


# --- the table -----------------------------------------------------------------------------------


Servers = Any  # a context manager that yields (clients, seconds) -> Measured
OURS, REDIS, LOG = "GT Store", "Redis", "log"


def stores(copies: int, place: Path, redis_server: str | None) -> Iterator[tuple[str, Servers]]:
    """Each row of the table, and its servers."""
    yield f"{OURS}, {copies} nodes", Ours(copies, copies, place / "ours")
    yield f"{OURS}, {NODES_MORE} nodes", Ours(NODES_MORE, copies, place / "more")
    if redis_server is not None:
        yield (
            f"{REDIS}, {copies} servers",
            Redis(redis_server, copies, place / "redis", replicates=False),
        )
        if copies > 1:
            yield (
                f"{REDIS}, WAIT {copies - 1}",
                Redis(redis_server, copies, place / "wait", replicates=True),
            )
    yield f"{LOG}, {copies} processes", Log(copies, place / "log")
    yield f"{LOG}, without sockets", DiskAlone(copies, place / "disk")


def run(copies: int, options: argparse.Namespace, place: Path) -> None:
    measured: dict[str, dict[int, list[Measured]]] = {}
    with ExitStack() as stack:
        rows = {}
        for name, servers in stores(copies, place, options.redis_server):
            if not options.only or any(name.startswith(each) for each in options.only):
                rows[name] = stack.enter_context(servers)
        for _ in range(options.rounds):
            for clients in options.clients:
                for name, rate in rows.items():
                    cell = measured.setdefault(name, {}).setdefault(clients, [])
                    cell.append(rate(clients, options.seconds))
    heads = [f"{clients} client{'s' * (clients > 1)}" for clients in options.clients]
    rates = {
        name: {clients: [each.rate for each in cell] for clients, cell in cells.items()}
        for name, cells in measured.items()
    }
    print_line(f"k = {copies}, puts/s", heads)
    for name, cells in rates.items():
        print_line(name, [with_range(cell, "{:,.0f}") for cell in cells.values()])
    print_line("CPU us a put, of all processes", heads)
    for name, row in measured.items():
        cpu_us = [[each.cpu_us for each in cell] for cell in row.values()]
        print_line(name, [with_range(cell, "{:,.0f}") for cell in cpu_us])
    ours = f"{OURS}, {copies} nodes"
    for name in rates:
        if ours in rates and name.partition(",")[0] in (REDIS, LOG):
            pairs = (zip(rates[ours][n], rates[name][n], strict=True) for n in options.clients)
            ratios = [[mine / theirs for mine, theirs in pair] for pair in pairs]
            print_line(f"{OURS} / {name}", [with_range(cell, "{:.2f}") for cell in ratios])
    print()


def print_line(name: str, cells: Sequence[str]) -> None:
    print(f"{name:34}" + "".join(f"{cell:>27}" for cell in cells), flush=True)


# --- the machine ---------------------------------------------------------------------------------


def file_system(place: Path) -> tuple[str, str]:
    """Its kind, and the device that it is on."""
    device = os.stat(place).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, about = line.partition(" - ")
        if mount.split()[2] == number:
            kind, source = about.split()[:2]
            return kind, source
    return "unknown", number


@contextmanager
def working_directory(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="durable-", dir=parent) as name:
        yield Path(name).resolve()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    add = parser.add_argument
    add("--copies", type=numbers, default="1,3", metavar="K,...", help="(%(default)s)")
    add("--clients", type=numbers, default="1,8,64", metavar="C,...", help="(%(default)s)")
    add("--rounds", type=int, default=3, help="(%(default)s)")
    add("--seconds", type=float, default=2.0, help="of each row, round and number of clients")
    add("--only", action="append", metavar="ROW", help="rows that begin so; may be repeated")
    add("--redis-server", default="redis-server", metavar="PATH")
    add("--dir", type=Path, default=Path(), help="where the files are made, and removed at the end")
    return parser.parse_args()


def main() -> None:
    options = parse()
    kind, source = file_system(options.dir)
    if kind in NO_DISKS:
        sys.exit(f"{options.dir.absolute()} is on {kind}, which is no disk: choose another --dir")
    options.redis_server = find_redis(options.redis_server)
    print(
        f"files on {kind} ({source}); CPUs {' '.join(map(str, cpus()))}, servers are bound to one "
        f"each in turn, clients, a process each, to none; Python {platform.python_version()}"
    )
    print(
        f"medians (min to max) of {options.rounds} rounds of {options.seconds:g} s; keys of "
        f"{KEY_SIZE}, values of {VALUE_SIZE} bytes\n",
        flush=True,
    )
    gc.freeze()
    for copies in options.copies:
        with working_directory(options.dir) as place:
            run(copies, options, place)


if __name__ == "__main__":
    main()
