"""One synchronous client against the floor: blocking sockets in Python that carry the same bytes.

Both do put, then get, of key0, key1, ... with values of 100 bytes on 7 nodes, everything pinned to
one CPU. The floor's servers keep nothing: each receives whatever is there and sends an answer
of the right size. Its client sends a put to k servers and then receives from the k; a get goes to
one. Floor and store take turns, so that the ratio holds when the machine's speed drifts.

    python bench/floor.py [--operations 20000] [--rounds 5] [--cpu 0]
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import time
from collections.abc import Callable
from functools import partial

from gtstore import Client
from gtstore.testing import Cluster
from gtstore.wire import messages
from gtstore.wire.codec import GET_FRAME, WRITE_FRAME

NODES = 7
VALUE = b"x" * 100
ACK_SIZE = messages.HEADER_SIZE
ENTRY_SIZE = messages.HEADER_SIZE + messages.ENTRY_HEAD_SIZE + len(VALUE)
GET_SIZE_MAX = GET_FRAME.size + 30  # everything longer is a put


def serve(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ack, entry = b"a" * ACK_SIZE, b"e" * ENTRY_SIZE
    while data := connection.recv(65536):
        connection.sendall(ack if len(data) > GET_SIZE_MAX else entry)


class Floor:
    """Servers without a store, one process each, and connections to them."""

    def __init__(self) -> None:
        self.pids = []
        self.sockets = []
        for _ in range(NODES):
            listener = socket.create_server(("127.0.0.1", 0))
            pid = os.fork()
            if not pid:
                serve(listener)
                os._exit(0)
            self.pids.append(pid)
            connection = socket.create_connection(listener.getsockname())
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sockets.append(connection)
            listener.close()

    def run(self, operations: int, replicas: int) -> None:
        for i in range(operations // 2):
            key = b"key%d" % i
            put = b"p" * (WRITE_FRAME.size + len(key) + messages.ENTRY_HEAD_SIZE + len(VALUE))
            get = b"g" * (GET_FRAME.size + len(key))
            primary = sum(key) % NODES
            owners = [self.sockets[(primary + j) % NODES] for j in range(replicas)]
            for owner in owners:
                owner.send(put)
            for owner in owners:
                owner.recv(65536)
            owners[0].send(get)
            owners[0].recv(65536)

    def stop(self) -> None:
        for connection, pid in zip(self.sockets, self.pids, strict=True):
            connection.close()
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


def run_store(client: Client, operations: int) -> None:
    for i in range(operations // 2):
        key = f"key{i}"
        client.put(key, VALUE)
        client.get(key)


def rate(operations: int, work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return operations / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", type=int, default=min(os.sched_getaffinity(0)))
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.cpu})
    count = options.operations
    print(f"{NODES} nodes, values of {len(VALUE)} bytes, everything on CPU {options.cpu}")
    print(f"medians of {options.rounds} rounds of {count} operations, half put, half get")
    print("k  floor ops/s  GT Store ops/s  ratio (min to max)")
    for replicas in (1, 3, 5):
        floor = Floor()
        with Cluster(NODES, replicas) as cluster, cluster.connect() as client:
            floor.run(2000, replicas)
            run_store(client, 2000)
            pairs = []
            for _ in range(options.rounds):
                bare = rate(count, partial(floor.run, count, replicas))
                pairs.append((bare, rate(count, partial(run_store, client, count))))
        floor.stop()
        ratios = [store / bare for bare, store in pairs]
        bare, store = (statistics.median(rates) for rates in zip(*pairs, strict=True))
        print(
            f"{replicas}  {bare:11,.0f}  {store:14,.0f}  {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
