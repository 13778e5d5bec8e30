"""What bounds every store: blocking sockets that carry the same bytes as GT Store, and no store.

The servers keep nothing: each receives whatever is there and sends an answer of the right size.
The client sends a put to k of them and then receives from the k; a get goes to one. Once in Python,
which bounds what is written in Python, and once in C (floor.c), compiled when it is needed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from array import array
from pathlib import Path

import machine
from gtstore.wire import messages
from gtstore.wire.codec import GET_FRAME, WRITE_FRAME
from stores import NODES, VALUE, Connected, Times

PUT_SIZE = WRITE_FRAME.size + messages.ENTRY_HEAD_SIZE + len(VALUE)  # and the key
GET_SIZE = GET_FRAME.size  # and the key
ACK_SIZE = messages.HEADER_SIZE
ENTRY_SIZE = messages.HEADER_SIZE + messages.ENTRY_HEAD_SIZE + len(VALUE)
GET_SIZE_MAX = GET_SIZE + 30  # everything longer is a put
SOURCE = Path(__file__).with_name("floor.c")


def serve(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ack, entry = b"a" * ACK_SIZE, b"e" * ENTRY_SIZE
    while data := connection.recv(65536):
        connection.sendall(ack if len(data) > GET_SIZE_MAX else entry)


class PythonFloor(Connected):
    """Servers without a store, one process each, and connections to them."""

    def __init__(self, copies: int) -> None:
        self._copies = copies
        self._sockets: list[socket.socket] = []
        self.server_pids = []
        for _ in range(NODES):
            listener = socket.create_server(("127.0.0.1", 0))
            pid = os.fork()
            if not pid:
                try:
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
                    for connection in self._sockets:
                        connection.close()
                    serve(listener)
                finally:
                    os._exit(0)
            self.server_pids.append(pid)
            connection = socket.create_connection(listener.getsockname())
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets.append(connection)
            listener.close()

    def _owners(self, key: bytes) -> list[socket.socket]:
        primary = sum(key) % NODES
        return [self._sockets[(primary + j) % NODES] for j in range(self._copies)]

    def put(self, key: str, value: bytes) -> None:  # noqa: ARG002  # the floor looks at no value
        data = key.encode()
        put = b"p" * (PUT_SIZE + len(data))
        owners = self._owners(data)
        for owner in owners:
            owner.send(put)
        for owner in owners:
            owner.recv(65536)

    def get(self, key: str) -> bytes:
        data = key.encode()
        owner = self._sockets[sum(data) % NODES]
        owner.send(b"g" * (GET_SIZE + len(data)))
        return owner.recv(65536)[-len(VALUE) :]

    def run(self, pairs: int) -> None:
        for i in range(pairs):
            key = b"key%d" % i
            put = b"p" * (PUT_SIZE + len(key))
            get = b"g" * (GET_SIZE + len(key))
            primary = sum(key) % NODES
            owners = [self._sockets[(primary + j) % NODES] for j in range(self._copies)]
            for owner in owners:
                owner.send(put)
            for owner in owners:
                owner.recv(65536)
            owners[0].send(get)
            owners[0].recv(65536)

    def close(self) -> None:
        for connection, pid in zip(self._sockets, self.server_pids, strict=True):
            connection.close()
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


def compiler() -> str | None:
    """Its path, or None, having said that there is none."""
    found = shutil.which("cc")
    if found is None:
        print("without the row of sockets in C: missing a C compiler, cc")
    return found


class CFloor(Connected):
    """The same as a program of its own, servers and client."""

    def __init__(self, copies: int, cc: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="floor-")
        program = f"{self._directory.name}/floor"
        subprocess.run([cc, "-O2", "-o", program, str(SOURCE)], check=True)
        sizes = (PUT_SIZE, GET_SIZE, GET_SIZE_MAX, ACK_SIZE, ENTRY_SIZE)
        self._process = subprocess.Popen(
            [program, *map(str, (NODES, copies, *sizes))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands, self._answers = self._process.stdin, self._process.stdout
        self.server_pids = list(map(int, self._answers.readline().split()))

    def client_cpu_s(self) -> float:
        return machine.cpu_s([self._process.pid])

    def _order(self, word: str, pairs: int) -> None:
        self._commands.write(f"{word} {pairs}\n".encode())
        self._commands.flush()

    def run(self, pairs: int) -> None:
        self._order("run", pairs)
        assert self._answers.readline() == b"\n"

    def run_timed(self, pairs: int) -> Times:
        self._order("time", pairs)
        both = array("I", self._answers.read(8 * pairs))
        return Times(array("Q", both[::2]), array("Q", both[1::2]))

    def close(self) -> None:
        self._commands.close()
        self._process.wait()
        self._answers.close()  # the servers end with their client
        self._directory.cleanup()
