"""A bad network: a process through which connections to nodes and to the manager lead.

It listens on PROXY_HOST at the ports of the servers, and passes on what comes; but now and then
nothing goes one way for a while, or some bytes go one by one, or both ends are reset in the middle
of what is under way. Who connects does not know of it: shim/skew.py.
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import Final

from .shim.skew import PROXY_HOST, let_connections_be

SERVER_HOST = "127.0.0.1"
QUIET_S: Final = 5.0
"""After such a time one way of a connection, on average, something happens to what comes next."""
KINDS: Final = {"stall one way": 6, "single bytes": 13, "reset": 1}
"""Each reset may leave the outcome of what is under way there unknown."""
STALL_S: Final = (0.05, 2.0)
SINGLE_BYTES_MAX: Final = 300
_BLOCK_SIZE: Final = 64 * 1024
_START_TIMEOUT_S: Final = 30.0
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: a close sends RST


class BadNetwork:
    """The process; as a context manager, it ends with the context. ``counts`` is then what has
    happened."""

    def __init__(self, context: SpawnContext, ports: Sequence[int], seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._pipe, theirs = context.Pipe()
        self._theirs = theirs
        self._process = context.Process(target=_serve, args=(theirs, ports, seed), daemon=True)

    def __enter__(self) -> BadNetwork:
        self._process.start()
        self._theirs.close()
        if not self._pipe.poll(_START_TIMEOUT_S):
            self._process.kill()
            raise TimeoutError("the bad network did not start")
        self._pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._pipe.send(None)
            self.counts = self._pipe.recv()
        except (OSError, EOFError):
            pass  # it has failed, and said so
        self._process.join()
        self._process.close()


def _serve(pipe: Connection, ports: Sequence[int], seed: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it too, and ends the run
    let_connections_be()
    asyncio.run(_serve_until_told(pipe, ports, seed))


async def _serve_until_told(pipe: Connection, ports: Sequence[int], seed: int) -> None:
    counts: Counter[str] = Counter()
    chance = random.Random(seed)
    links: set[_Link] = set()

    def accept(port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            link = _Link(writer, chance, counts)
            links.add(link)
            try:
                await link.run(reader, port)
            except asyncio.CancelledError:
                pass  # at the end of all
            finally:
                links.discard(link)

        return serve

    servers = [
        await asyncio.start_server(accept(port), PROXY_HOST, port, backlog=1024) for port in ports
    ]
    told = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), told.set)
    pipe.send(None)
    await told.wait()
    for server in servers:
        server.close()
    for link in list(links):
        link.reset()
    try:
        pipe.send(counts)
    except OSError:
        pass  # the parent is gone


class _Link:
    """One connection through here."""

    def __init__(
        self, writer: asyncio.StreamWriter, chance: random.Random, counts: Counter[str]
    ) -> None:
        self._writers = [writer]
        self._chance = chance
        self._counts = counts

    async def run(self, reader: asyncio.StreamReader, port: int) -> None:
        (client,) = self._writers
        try:
            server_reader, server = await asyncio.open_connection(SERVER_HOST, port)
        except OSError:
            self.reset()
            return
        self._writers.append(server)
        for writer in self._writers:
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.gather(
                self._pass_on(reader, server), self._pass_on(server_reader, client)
            )
        except OSError:
            self.reset()  # the other end, too, is to see that it broke
        for writer in self._writers:
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One way, until its end."""
        now = asyncio.get_running_loop().time
        quiet_until = now() + self._drawn_quiet_s()
        while data := await reader.read(_BLOCK_SIZE):
            if now() > quiet_until:
                at = self._chance.randrange(len(data))
                _write(writer, data[:at])
                data = await self._trouble(data[at:], writer)
                quiet_until = now() + self._drawn_quiet_s()
            _write(writer, data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    def _drawn_quiet_s(self) -> float:
        return self._chance.expovariate(1 / QUIET_S)

    async def _trouble(self, data: bytes, writer: asyncio.StreamWriter) -> bytes:
        """Let something happen before these bytes; return those that are left."""
        (kind,) = self._chance.choices(list(KINDS), list(KINDS.values()))
        self._counts[kind] += 1
        match kind:
            case "stall one way":
                await writer.drain()
                await asyncio.sleep(self._chance.uniform(*STALL_S))
            case "single bytes":
                count = min(len(data), self._chance.randint(1, SINGLE_BYTES_MAX))
                for at in range(count):
                    _write(writer, data[at : at + 1])
                    await asyncio.sleep(0)
                data = data[count:]
            case "reset":
                self.reset()
                raise ConnectionResetError
        return data

    def reset(self) -> None:
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and not writer.transport.is_closing():
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if writer.is_closing():
        raise ConnectionResetError  # the other way was reset
    writer.write(data)
