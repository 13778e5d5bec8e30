"""What a chaos run changes in the processes of its cluster and of its clients, from outside: their
wall clocks, how long their disks take, and where their connections lead.

It imports nothing of this project: ``sitecustomize.py`` loads it at the start of each process whose
environment has the directory of both in PYTHONPATH and ``FILE_VARIABLE``. That file is shared
memory: a place for each process, where the run writes and the process reads.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

FILE_VARIABLE = "GTSTORE_CHAOS_SKEW"
PLACES = 4096
"""A process has the place of its number modulo this."""
_NEW = PLACES  # the place from which a new process takes what stands in its own
PORTS_MAX = 64
_PLACE = struct.Struct("qq")  # nanoseconds of the clock, nanoseconds of each sync
_PORTS_AT = (PLACES + 1) * _PLACE.size
_SIZE = _PORTS_AT + struct.calcsize(f"{PORTS_MAX}q")
PROXY_HOST = "127.0.0.2"
"""Where the same ports lead to the same servers through network.py."""


class Skew:
    """The shared memory."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(_SIZE)
            self._memory = mmap.mmap(file.fileno(), _SIZE)

    def set_clock(self, pid: int, ahead_s: float) -> None:
        """Let a process's wall clock be so far ahead, or behind."""
        place = pid % PLACES
        self._set(place, int(ahead_s * 1e9), self._get(place)[1])

    def set_new_clocks(self, ahead_s: float) -> None:
        """The same for each process that begins from now on."""
        self._set(_NEW, int(ahead_s * 1e9), 0)

    def set_sync(self, pid: int, seconds: float) -> None:
        """Let each sync of a process take so much longer."""
        place = pid % PLACES
        self._set(place, self._get(place)[0], int(seconds * 1e9))

    def begin(self, pid: int) -> Callable[[], tuple[int, int]]:
        """For a process that begins: what to call to know what stands in its place."""
        place = pid % PLACES
        self._set(place, *self._get(_NEW))
        return lambda: self._get(place)

    def _get(self, place: int) -> tuple[int, int]:
        clock_ns, sync_ns = _PLACE.unpack_from(self._memory, place * _PLACE.size)
        return clock_ns, sync_ns

    def _set(self, place: int, clock_ns: int, sync_ns: int) -> None:
        _PLACE.pack_into(self._memory, place * _PLACE.size, clock_ns, sync_ns)

    def divert(self, ports: list[int]) -> None:
        """Let new connections to these ports, the manager's and then those of nodes, go through the
        proxy."""
        struct.pack_into(f"{len(ports)}q", self._memory, _PORTS_AT, *ports)

    def diverted_ports(self) -> tuple[int, ...]:
        """These, and 0 for none."""
        return struct.unpack_from(f"{PORTS_MAX}q", self._memory, _PORTS_AT)


def install(skew: Skew) -> None:
    """Change this process, and those that it forks."""
    mine = skew.begin(os.getpid())

    def begin() -> None:
        nonlocal mine
        mine = skew.begin(os.getpid())

    os.register_at_fork(after_in_child=begin)
    real_time, real_time_ns, pwritev, sleep = time.time, time.time_ns, os.pwritev, time.sleep

    def slow_pwritev(*arguments: object) -> int:
        sleep(mine()[1] / 1e9)
        return pwritev(*arguments)

    time.time = lambda: real_time() + mine()[0] / 1e9
    time.time_ns = lambda: real_time_ns() + mine()[0]
    os.pwritev = slow_pwritev
    if "gtstore.managerd" in sys.orig_argv:
        return  # it looks whether nodes live, and what it finds must be true
    # A node that cannot register ends, so it finds the manager; clients may not.
    _divert_connections(skew, first=1 if "gtstore.storaged" in sys.orig_argv else 0)


def _divert_connections(skew: Skew, first: int) -> None:
    def diverted(address: object) -> object:
        match address:
            case ("127.0.0.1", port) if port in skew.diverted_ports()[first:]:
                return PROXY_HOST, port
        return address

    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    socket.socket.connect = lambda sock, address: connect(sock, diverted(address))
    socket.socket.connect_ex = lambda sock, address: connect_ex(sock, diverted(address))


def let_connections_be() -> None:
    """In the proxy's own process."""
    # The methods of socket.socket are those of the class above it.
    for name in ("connect", "connect_ex"):
        if name in vars(socket.socket):
            delattr(socket.socket, name)
