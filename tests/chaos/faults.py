"""What befalls the cluster during a run, drawn from one seed: nodes are killed and stopped, the
manager is killed and started again, and clients are stopped for a while, so that others find writes
half done.

A node fails only when the cluster can stand it: with k replicas, fewer than k nodes are down or
without some of their copies at any time, so nothing that was acknowledged may be lost. Where nodes
that died stay dead, that ends once there would be too many of them.
"""

from __future__ import annotations

import math
import os
import random
import signal
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from multiprocessing.context import SpawnProcess
from typing import Any

from gtstore.connection import call_once, parse_address
from gtstore.testing import Cluster
from gtstore.wire import messages

from .clients import Shared, keys_of
from .shim.skew import Skew
from .small_disk import SmallDisk
from .world import World

NODES_SHARE = 0.6
"""So many faults are of nodes and the manager."""
ALL_S = 60.0
"""How much longer a run may take until each kind of fault has come."""
SETTLE_S = 20.0
"""How long to wait at most until the cluster can stand that another node fails."""
PAUSE_S = (0.1, 1.5)
"""Between two faults; where operations take long, SLOW times as much, or too large a part of them
would be under way when something is killed."""
SLOW = 2.5
STALL_S = (0.05, 0.6)
"""How long a node is stopped that shall go on: less than it takes the manager to give it up."""
CLIENT_STALL_S = (0.05, 1.0)
MANAGER_STALL_S = (0.0, 2.0)
FULL_S = (0.5, 4.0)
SLOW_SYNC_S = (0.05, 0.4)
"""How much longer each sync of a slow disk takes."""
STEP_S = (1.0, 3600.0)

Tell = Callable[[str], None]


class Faults:
    """The faults of a run, in a thread of their own.

    Args:
        overlap: whether nodes may also fail while others are still without copies, as long as it
            is fewer than k.
        tell: is told what happens.
        world: which kinds there are; ``skew`` and ``disk`` are what some of them are done with. If
            it is durable, everything may be killed at once, since nodes come back with their data.

    ``stopped`` is how often each node was stopped with SIGSTOP: only those may be thought hung.
    """

    def __init__(
        self,
        cluster: Cluster,
        clients: Sequence[SpawnProcess],
        shared: Shared,
        seed: int,
        overlap: bool,
        tell: Tell,
        world: World,
        skew: Skew,
        disk: SmallDisk | None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.stopped: Counter[int] = Counter()
        self.error = ""
        self._cluster = cluster
        self._clients = clients
        self._shared = shared
        self._random = random.Random(seed)
        self._overlap = overlap
        self._tell = tell
        self._world = world
        self._skew = skew
        self._disk = disk
        self._is_durable = world.is_durable or world.has_full_disk
        self._full_until = 0.0
        self._stepped: list[int] = []  # processes whose clocks are wrong
        self._slow: list[int] = []  # those whose disks are slow
        around = [self._stall_client]
        around += [self._step_clock, self._step_clock] if world.has_steps else []
        around += [self._slow_disk] if self._is_durable else []
        around += [self._fill_disk] if disk else []
        # The next ones, and those that have not come yet: a short run has each of them once.
        self._around = deque(self._random.sample(around, len(around)))
        self._missing = {each.__name__ for each in around}
        self._has_had_all = threading.Event()
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

    def wait_for_all(self) -> None:
        """Wait until each kind has come once, but not for ever."""
        ends_at = time.monotonic() + ALL_S
        while not self._has_had_each() and time.monotonic() < ends_at:
            if self._shared.is_over.wait(0.05):
                return

    def _has_had_each(self) -> bool:
        is_missed = self._is_durable and not self.counts["kill everything"]
        return self._has_had_all.is_set() and not is_missed

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with self._cluster.connect(timeout=10) as store:
                self._store = store
                self._replicas: int = store.status()["replicas"]
                self._nodes_may_fail = self._replicas > 1 or self._is_durable
                self._partitions = _partition_counts(store.status())
                slow = self._world.has_long_values or self._world.has_bad_network
                low, high = PAUSE_S
                pause_s = (SLOW * low, SLOW * high) if slow else PAUSE_S
                while not self._pause(pause_s):
                    is_turn = not self.counts["kill"] or self._random.random() < NODES_SHARE
                    if self._nodes_may_fail and is_turn and self._is_settled():
                        self._hurt_cluster()
                    else:
                        self._hurt_around()
                    if self._full_until and time.monotonic() > self._full_until:
                        self._clear_disk()
        except Exception:
            self.error = traceback.format_exc()
            self._shared.is_over.set()
        finally:
            for node in self._is_stopped:  # if the manager does not kill it, it shall go on
                self._cluster.resume_node(node)
            self._clear_disk()

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

    def _hurt_around(self) -> None:
        """Something else than nodes and manager; each kind in turn."""
        kind = self._around[0]
        self._around.rotate(-1)
        kind()
        self._missing.discard(kind.__name__)
        if not self._missing and self.counts["kill"]:
            self._has_had_all.set()

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

    def _step_clock(self) -> None:
        """Of a client, a node or the manager; or set one right again."""
        if self._stepped and self._random.random() < 0.6:
            pid = self._stepped.pop(self._random.randrange(len(self._stepped)))
            self._say("clock set right", f": process {pid}")
            self._skew.set_clock(pid, 0)
            return
        pids = {f"client {n}": client.pid for n, client in enumerate(self._clients, 1)}
        pids |= {f"node {node}": pid for node, pid in self._cluster.node_pids.items()}
        pids["the manager"] = self._cluster.manager_pid
        who, pid = self._random.choice(list(pids.items()))
        step_s = self._drawn_step_s()
        self._say("clock step", f" of {who}: {step_s:+.0f} s")
        assert pid is not None
        self._skew.set_clock(pid, step_s)
        self._stepped.append(pid)

    def _drawn_step_s(self) -> float:
        low, high = map(math.log, STEP_S)
        return self._random.choice((-1, 1)) * math.exp(self._random.uniform(low, high))

    def _start_manager(self) -> None:
        """Where clocks step, now and then by a clock that is wrong already."""
        if self._world.has_steps and self._random.random() < 0.5:
            step_s = self._drawn_step_s()
            self._say("start with a wrong clock", f": {step_s:+.0f} s")
            self._skew.set_new_clocks(step_s)
        try:
            self._cluster.start()
        finally:
            self._skew.set_new_clocks(0)

    def _slow_disk(self) -> None:
        """Of a node; or let those that are slow be quick again."""
        if self._slow:
            self._say("disks quick again")
            for pid in self._slow:
                self._skew.set_sync(pid, 0)
            self._slow.clear()
        else:
            self._slow_down(self._random.choice(list(self._cluster.node_pids.values())))

    def _slow_down(self, pid: int) -> None:
        """Let a process have more in hand that is not on disk yet."""
        seconds = self._random.uniform(*SLOW_SYNC_S)
        self._say("slow disk", f" of process {pid}: {seconds:.2f} s")
        self._skew.set_sync(pid, seconds)
        self._slow.append(pid)
        self._pause(STALL_S)

    def _fill_disk(self) -> None:
        if self._disk and not self._full_until:
            self._say("full disk")
            self._full_until = time.monotonic() + self._random.uniform(*FULL_S)
            self._disk.fill()

    def _clear_disk(self) -> None:
        if self._disk and self._full_until:
            self._full_until = 0.0
            self._disk.clear()
            self._tell(f"{self._shared.now() / 1e9:6.2f} s: there is room on the disk")

    def _hurt_cluster(self) -> None:
        nodes = {
            node["id"]: node["pid"]
            for node in self._store.status()["nodes"]
            if node["state"] == "alive"
        }
        self._cluster.node_pids.update(nodes)
        is_time = self.counts["kill"] and not self.counts["kill everything"]
        if self._is_durable and (is_time or self._random.random() < 0.08):
            self._kill_everything()
            return
        if self.counts["kill"] and self._random.random() < 0.2:
            self._hurt_manager()
            return
        node, why = self._choose(sorted(nodes))
        # A node that dies is the most frequent case, and the first.
        kinds = ("kill", "stall", "stop") if self.counts["kill"] else ("kill",)
        if self._replicas == 1:
            kinds = kinds[:2]  # the last one that has something is never given up
        (kind,) = self._random.choices(kinds, (2, 1, 1)[: len(kinds)])
        if kind == "kill" and self._is_durable and self._random.random() < 0.5:
            self._slow_down(nodes[node])
        self._say(kind, f" node {node}{why}")
        self.stopped[node] += kind != "kill"
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
            self._start_manager()

    def _kill_everything(self) -> None:
        """And start it again after a while."""
        if self._random.random() < 0.7:
            self._slow_down(self._random.choice(list(self._cluster.node_pids.values())))
        self._say("kill everything")
        self._cluster.kill_everything()
        self._victims.clear()
        self._is_stopped.clear()
        try:
            self._pause(MANAGER_STALL_S)
        finally:
            self._start_manager()

    def _choose(self, nodes: list[int]) -> tuple[int, str]:
        """A node; mostly one that is the primary of a key in use."""
        if self._random.random() < 0.7:
            key, _ = self._random.choice(keys_of(self._shared.round_now))
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
