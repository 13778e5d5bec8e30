"""How much CPU time the nodes of a cluster have used, if they run on this machine."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Final

from ..connection import parse_address
from ..results import NodeStatus

_PROCESS_CLOCK: Final = 2
"""CPUCLOCK_SCHED: the kernel's clock of a process's time, to the nanosecond; /proc/PID/stat has
hundredths of a second only."""


class NodeTime:
    """The nodes' CPU time.

    Args:
        nodes: as in ``Client.status()["nodes"]``. The dead ones do not count.
    """

    def __init__(self, nodes: Sequence[NodeStatus]) -> None:
        self._pids = [node["pid"] for node in nodes if node["state"] in ("alive", "suspect")]
        self.unknown = ""
        """Why it is not known, or empty."""
        if not all(_is_local(node["address"]) for node in nodes):
            self.unknown = "they run on another machine"
        elif not all(map(_is_node, self._pids)):
            self.unknown = "their processes are not to be seen from here"

    def used_ns(self) -> int:
        """So far, by all of them; 0 if it is not known."""
        if self.unknown:
            return 0
        try:
            # As clock_getcpuclockid(3) makes a clock's number from a process's.
            return sum(time.clock_gettime_ns(~pid << 3 | _PROCESS_CLOCK) for pid in self._pids)
        except OSError:
            self.unknown = "a node's process ended meanwhile"
            return 0


def _is_local(address: str) -> bool:
    host, _ = parse_address(address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(where)  # only an address of this machine can be bound to
    except OSError:
        return False
    return True


def _is_node(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"gtstore.storaged" in file.read()
    except OSError:
        return False
