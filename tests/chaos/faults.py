"""What befalls the cluster during a run, drawn from one seed: nodes are killed and stopped, the
manager is killed and started again, and clients are stopped for a while, so that others find writes
half done.

A node fails only when the cluster can stand it: with k replicas, fewer than k nodes are down or
without some of their copies at any time, so nothing that was acknowledged may be lost. Where nodes
that died stay dead, that ends once there would be too many of them.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.context import SpawnProcess
from typing import Any

from gtstore.connection import call_once, parse_address
from gtstore.testing import Cluster
from gtstore.wire import messages

from .clients import ROUND, Shared, keys_of

SETTLE_S = 20.0
"""How long to wait at most until the cluster can stand that another node fails."""
PAUSE_S = (0.1, 1.5)
"""Between two faults."""
STALL_S = (0.05, 0.6)
"""How long a node is stopped that shall go on: less than it takes the manager to give it up."""
CLIENT_STALL_S = (0.05, 1.0)
MANAGER_STALL_S = (0.0, 2.0)

Tell = Callable[[str], None]


class Faults:
    """The faults of a run, in a thread of their own.

    Args:
        overlap: whether nodes may also fail while others are still without copies, as long as it
            is fewer than k.
        tell: is told what happens.
        is_durable: whether everything may be killed at once, since nodes come back with their data.
    """

    def __init__(
        self,
        cluster: Cluster,
        clients: Sequence[SpawnProcess],
        shared: Shared,
        seed: int,
        overlap: bool,
        tell: Tell,
        is_durable: bool = False,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.error = ""
        self._cluster = cluster
        self._clients = clients
        self._shared = shared
        self._random = random.Random(seed)
        self._overlap = overlap
        self._tell = tell
        self._is_durable = is_durable
        self._nodes_may_fail = False
        self._settled_at = time.monotonic()
        # The nodes that were killed, or stopped for good, and their pids then.
        self._victims: dict[int, int] = {}
        self._is_stopped: set[int] = set()
        self._thread = threading.Thread(target=self._run, name="faults")

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Wait until the thread has seen that the run is over."""
        self._thread.join()

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with self._cluster.connect(timeout=10) as store:
                self._store = store
                self._replicas: int = store.status()["replicas"]
                self._nodes_may_fail = self._replicas > 1
                self._partitions = _partition_counts(store.status())
                while not self._pause(PAUSE_S):
                    is_turn = not self.counts["kill"] or self._random.random() < 0.7
                    if self._nodes_may_fail and is_turn and self._is_settled():
                        self._hurt_cluster()
                    else:
                        self._stall_client()
        except Exception:
            self.error = traceback.format_exc()
            self._shared.is_over.set()
        finally:
            for node in self._is_stopped:  # if the manager does not kill it, it shall go on
                self._cluster.resume_node(node)

    def _pause(self, between: tuple[float, float]) -> bool:
        """Let some time pass; whether the run is over."""
        return self._shared.is_over.wait(self._random.uniform(*between))

    def _is_settled(self) -> bool:
        """Whether the cluster can stand that another node fails."""
        status = self._store.status()
        nodes = {node["id"]: node for node in status["nodes"]}
        is_noticed = all(
            nodes[node]["pid"] != pid or nodes[node]["state"] == "dead"
            for node, pid in self._victims.items()
        ) and not any(node["state"] == "suspect" for node in nodes.values())
        now = time.monotonic()
        if is_noticed:
            self._is_stopped.clear()
            rows = self._rows()
            copies = min(_copies(status, row) for row in rows)
            if not status["under_replicated"] and copies >= self._replicas:
                self._victims.clear()
                self._settled_at = now
                return True
            # Where nodes that died stay dead, go on for as long as there are copies enough.
            self._overlap |= now > self._settled_at + SETTLE_S
            if self._overlap and copies >= 2 and self._can_lag(status, rows):
                self._settled_at = now
                return True
        if now > self._settled_at + SETTLE_S:
            self._tell(f"after {SETTLE_S:g} s copies are still missing: no other node shall fail")
            self._nodes_may_fail = False
        return False

    def _can_lag(self, status: dict[str, Any], rows: Sequence[messages.Row]) -> bool:
        """Whether fewer than k-1 nodes are without some of the copies that they had at first."""
        alive = {node["id"] for node in status["nodes"] if node["state"] == "alive"}
        now = _partition_counts(status)
        lagging = {
            node
            for node, count in self._partitions.items()
            if node not in alive or now[node] < count or _is_syncing(rows, node)
        }
        return len(lagging) < self._replicas - 1

    def _rows(self) -> Sequence[messages.Row]:
        host, port = parse_address(self._cluster.address)
        reply = call_once("the manager", host, port, messages.GetMap(0), 10)
        assert isinstance(reply, messages.Map)
        return reply.rows

    # --- faults ----------------------------------------------------------------------------------

    def _stall_client(self) -> None:
        client = self._random.choice(self._clients)
        if client.pid is None or not client.is_alive():
            return
        self._say("stall client", f" {self._clients.index(client) + 1}")
        os.kill(client.pid, signal.SIGSTOP)
        try:
            self._pause(CLIENT_STALL_S)
        finally:
            os.kill(client.pid, signal.SIGCONT)

    def _hurt_cluster(self) -> None:
        nodes = {
            node["id"]: node["pid"]
            for node in self._store.status()["nodes"]
            if node["state"] == "alive"
        }
        self._cluster.node_pids.update(nodes)
        is_time = self.counts["kill"] and not self.counts["kill everything"]
        if self._is_durable and (is_time or self._random.random() < 0.15):
            self._kill_everything()
            return
        if self.counts["kill"] and self._random.random() < 0.2:
            self._hurt_manager()
            return
        node, why = self._choose(sorted(nodes))
        # A node that dies is the most frequent case, and the first.
        kinds = ("kill", "stop", "stall") if self.counts["kill"] else ("kill",)
        (kind,) = self._random.choices(kinds, (2, 1, 1)[: len(kinds)])
        self._say(kind, f" node {node}{why}")
        if kind == "stall":
            self._cluster.pause_node(node)
            try:
                self._pause(STALL_S)
            finally:
                self._cluster.resume_node(node)
            return
        self._victims[node] = nodes[node]
        if kind == "kill":
            self._cluster.kill_node(node)
        else:
            self._is_stopped.add(node)
            self._cluster.pause_node(node)

    def _hurt_manager(self) -> None:
        """Stop it for a while, or kill it, and start its successor after a while."""
        if self._random.random() < 0.3:
            self._say("stall manager")
            self._cluster.pause_manager()
            try:
                self._pause(MANAGER_STALL_S)
            finally:
                self._cluster.resume_manager()
            return
        self._say("kill manager")
        self._cluster.kill_manager()
        try:
            self._pause(MANAGER_STALL_S)
        finally:
            self._cluster.start()

    def _kill_everything(self) -> None:
        """And start it again after a while."""
        self._say("kill everything")
        self._cluster.kill_everything()
        self._victims.clear()
        self._is_stopped.clear()
        try:
            self._pause(MANAGER_STALL_S)
        finally:
            self._cluster.start()

    def _choose(self, nodes: list[int]) -> tuple[int, str]:
        """A node; mostly one that is the primary of a key in use."""
        if self._random.random() < 0.7:
            key, _ = self._random.choice(keys_of(self._shared.tickets.value // ROUND))
            primary = self._store.where(key).owners[0]
            if primary in nodes:
                return primary, f", the primary of {key.decode()}"
        return self._random.choice(nodes), ""

    def _say(self, kind: str, what: str = "") -> None:
        self.counts[kind] += 1
        self._tell(f"{self._shared.now() / 1e9:6.2f} s: {kind}{what}")


def _partition_counts(status: dict[str, Any]) -> dict[int, int]:
    return {node["id"]: node["partitions"] for node in status["nodes"]}


def _is_syncing(rows: Sequence[messages.Row], node: int) -> bool:
    return any(owner.node == node and not owner.in_sync for row in rows for owner in row.owners)


def _copies(status: dict[str, Any], row: messages.Row) -> int:
    """How many copies of a partition are in sync on nodes that live."""
    alive = {
        (node["id"], node["incarnation"]) for node in status["nodes"] if node["state"] == "alive"
    }
    return sum(owner.in_sync and (owner.node, owner.incarnation) in alive for owner in row.owners)
