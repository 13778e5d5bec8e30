"""The manager: starts and probes the nodes, decides the partition map, and tells it.

What is decided, and when, is membership.py's; this module carries it out: processes, threads,
sockets. The manager is never in the way of a put or a get. Its threads:

- one a node, its keeper, waits for the end of its process, so that a death is seen at once, and
  starts the next one;
- the prober sends PING to every node once an interval, over the port that clients use;
- the publisher makes the newest map known: it answers requests from then on, and every living node
  is given what it does not have of it;
- the server's threads answer clients and nodes.

Each of them may tell the membership of an event. That happens under one lock (``_changed``), and
what the membership returns is done outside of it.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from . import exit_codes
from .cluster_time import Reached, offset_at_start
from .connection import call_once, describe
from .data_directory import DataDirectory
from .errors import (
    ClusterError,
    ConnectionLost,
    GTStoreError,
    NetworkError,
    RemoteProtocolError,
)
from .membership import (
    Action,
    Fence,
    Membership,
    Probe,
    Publish,
    Report,
    Returned,
    Silence,
    Start,
)
from .nursery import Look, NodeProcess, Nursery
from .operations import Lost, Operation
from .placement import (
    HASH_FUNCTIONS,
    PartitionMap,
    cluster_of,
    epoch_of,
    format_address,
    partition_count,
)
from .server import FrameServer, Gathered, Handler, on_control_message, on_message
from .session import Session
from .state_file import MEMORY, Process, SavedState, StateFile
from .steady_clock import boot_id, steady_us, wall_us
from .threads import GO_ON, supervised
from .wire import messages
from .wire.codec import RowEncoder, decode, encode, head_word, reply_frame
from .wire.fields import MARK_SIZE, TOKEN_SIZE

logger = logging.getLogger("gtstore.manager")

_STOP_TIMEOUT_S = 3.0
_KILL_TIMEOUT_S = 5.0
_EXIT_WAIT_S = 0.25
_PUBLISH_TIMEOUT_S = 0.25
_FIRST_PUBLISH_TIMEOUT_S = 1.0
_FIRST_PUBLISH_TIMEOUT_MAX_S = 4.0
_SAVE_AGAIN_S = 3600.0
"""What cleans up old files must not take the state file of a cluster that lives long."""
_SAVE_RETRY_S = 0.5
"""What cannot be saved is tried again so often."""
_HOLDER_TIMEOUT_S = 0.5
_MAP_BODIES_MAX = 16
_DAMAGE_EXITS = (
    exit_codes.DISK_FAILED,
    -signal.SIGBUS,  # a part of the file is not there, or cannot be read
    -signal.SIGSEGV,
    -signal.SIGABRT,
)
"""How a process may end that meets a damage on its disk."""
_NEW_CONNECTION_EACH = 8
"""After so many probes the next one, and those that follow it, go over a new connection: a node
that accepts none any more is found out."""

_MAP_WORD = head_word(messages.Map.kind)


class _Published(NamedTuple):
    """What is known to everybody who asks: one state of the membership."""

    map: PartitionMap
    members: dict[int, messages.Member]


_NOTHING_PUBLISHED = _Published(PartitionMap(0, ()), {})


class _Unsaved(NamedTuple):
    """The newest map cannot be written down for a successor."""

    since_us: int
    reason: str
    is_held: bool
    """Whether changes of the map wait for that."""


@dataclass
class _Keeper:
    """How far a node's keeper is: it waits for the end of a process; or that has come, and what is
    to be done then."""

    node: int
    process: NodeProcess | None
    incarnation: int
    actions: Sequence[Action]


@dataclass(frozen=True)
class ManagerOptions:
    """What a cluster is started with; see managerd for their meaning."""

    nodes: int
    replicas: int
    host: str
    port: int
    node_port: int
    hash_code: int
    probe_interval_ms: int
    respawns: bool
    pin: bool
    max_connections: int
    max_memory_mb: int | None
    frame_timeout_ms: int
    log_level: str
    log_format: str
    engine: str = MEMORY
    data_dir: Path | None = None
    lifeline: int | None = None
    log_file: Path | None = None
    accepts_loss: bool = False
    scrub_percent: float = messages.SCRUB_PERCENT


class Manager:
    """One cluster's manager.

    ``start`` returns when every node is ready, or raises soon after ``is_interrupted`` says so;
    ``stop`` stops the nodes too.
    """

    def __init__(
        self, options: ManagerOptions, is_interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        self._options = options
        self._is_interrupted = is_interrupted
        self._cluster_id = secrets.randbits(32) or 1  # 0 means that there is none
        self._token = secrets.token_bytes(TOKEN_SIZE)
        self._clock_offset_us = 0  # how far cluster time is ahead of the steady clock (T1)
        self._is_stopping = threading.Event()
        # Held while a process is started: none registers, and the cluster is not stopped, before
        # the process is known here.
        self._spawning = threading.Lock()
        # An epoch, and bodies of MAP by the epoch that they begin after; replaced as a whole,
        # without a lock.
        self._map_bodies: tuple[int, dict[int, bytes]] = (0, {})
        self._encoder = RowEncoder()
        self._changed = threading.Condition()
        # Guarded by _changed:
        self._processes: dict[int, NodeProcess] = {}  # the newest of each node that was seen here
        self._known: dict[int, Process] = {}  # the newest of each node, also if it had ended before
        self._looks: dict[int, Gathered[None]] = {}  # one for each of these
        self._registered: dict[int, messages.Member] = {}  # the newest of each node
        self._marks: dict[int, bytes] = {}  # the last one of each node's disk (M6a)
        self._new_marks: dict[int, bytes] = {}  # told of, and not gone by yet
        self._membership: Membership | None = None
        self._published = _NOTHING_PUBLISHED  # also guarded by _saving
        self._unsaved: _Unsaved | None = None  # also guarded by _saving
        self._pushed_epoch = 0  # of the last map that was published and pushed
        self._is_publish_due = False
        self._saving = threading.Lock()  # what is published is what was saved
        # The publisher's own:
        self._push_session = Session(self._locate)
        self._adopted: dict[int, tuple[int, int]] = {}  # node -> its incarnation, its map's epoch
        # The prober's own:
        self._probe_session = Session(self._locate)
        self._rounds = 0
        self._last_looks: dict[int, Look] = {}  # at the processes of those that were silent
        self._handlers: dict[int, Handler] = {}
        # What nodes that were started again, and still live, have said, until the map of all of
        # them is made.
        self._returns: dict[int, Returned] | None = None
        self._ended: set[int] = set()  # nodes whose process ended meanwhile
        try:
            # The port is also what keeps a second manager away from the state file.
            self._server = FrameServer(
                options.host,
                options.port,
                self._handlers,
                connections_max=options.max_connections,
                frame_timeout_ms=options.frame_timeout_ms,
            )
        except ClusterError as error:
            holder = describe_holders(options.host, [options.port])
            raise ClusterError(holder or str(error)) from error
        try:
            self._directory = DataDirectory(options.data_dir) if options.data_dir else None
            self._state_file = (
                StateFile(self._directory.state_path, is_synced=True)
                if self._directory
                else StateFile.of_address(options.host, self._server.port)
            )
        except ClusterError:
            self._server.server_close()
            raise
        self._nursery = Nursery(options.lifeline)

    # --- start and stop --------------------------------------------------------------------------

    def start(self) -> str:
        """Start the nodes and give them their first map, or take over those of a manager that was
        killed (M4); return the ready line.

        Raises ClusterError if that cannot be done; nothing that was started here is left running.
        """
        try:
            saved, adopted = self._find_saved()
            if saved and (adopted or self._directory):
                self._check_shape(saved, adopted)
            if saved and adopted:
                self._check_address(saved, adopted)
            elif self._directory:
                self._check_memory()
            if saved and adopted:
                self._take_over(saved, adopted)
            elif saved and saved.engine != MEMORY:
                self._check_node_ports()
                self._open_again(saved)
            else:
                if self._directory:
                    self._directory.check_is_new()
                self._check_node_ports()
                self._set_clock(None)
                self._serve()
                for node in range(1, self._options.nodes + 1):
                    self._start_keeper(node, self._spawn(node, 1))
                self._await_nodes()
        except BaseException:
            self.stop()
            raise
        supervised("publisher", self._publish_forever, GO_ON)
        supervised("prober", self._probe_forever, GO_ON)
        ports = [self._registered[node].port for node in sorted(self._registered)]
        return (
            f"gtstore: manager ready on {format_address(self._options.host, self._server.port)}, "
            f"{len(ports)} storage node{'s' * (len(ports) > 1)} on port{'s' * (len(ports) > 1)} "
            f"{_ranges(ports)}, {self._options.replicas} "
            f"replica{'s' * (self._options.replicas > 1)}"
        )

    def _set_clock(self, reached: Reached | None, has_nodes: bool = False) -> None:
        """T1: cluster time begins, or goes on. The only look at the wall clock."""
        self._clock_offset_us = offset_at_start(
            wall_us(), steady_us(), boot_id(), reached, has_nodes
        )

    def _cluster_time_us(self) -> int:
        return steady_us() + self._clock_offset_us

    def _reached(self) -> Reached:
        """For a successor, whose cluster time must not be lower (T1)."""
        now_us = steady_us()
        return Reached(now_us + self._clock_offset_us, now_us, boot_id())

    def stop(self) -> None:
        """Stop the nodes, by force if they do not stop by themselves, and the server."""
        with self._spawning:
            self._is_stopping.set()
        with self._changed:
            processes = dict(self._processes)
            self._changed.notify_all()
        _end(processes)
        self._nursery.close()
        if self._directory:
            self._save(is_last=True)  # the marks of the nodes' last orderly ends
            with self._saving:
                self._directory.release()
        elif processes:
            # While the port is held: then the file there may be the next manager's.
            try:
                with self._saving:
                    self._state_file.remove()
            except OSError as error:
                # No node of it runs any more: the next manager begins anew all the same.
                logger.warning("%s stays: %s", self._state_file.path, describe(error))
        self._server.drain()
        for session in (self._probe_session, self._push_session):
            session.abort()

    def stop_node(self, node: int) -> None:
        """Stop a node, by force if it does not stop by itself, and leave it dead until
        ``start_node``, whether dead nodes are started again or not. Of one that is away already,
        nothing changes.

        Raises ClusterError if there is no such node, or its process does not end, or it is stopped,
        but that cannot be saved.
        """
        membership = self._membership_with(node)
        logger.info("node %d is to be stopped, and to stay away", node)
        # A process of it is either known here by then, or not started at all.
        with self._spawning:
            self._apply(partial(membership.hold, node))
        with self._changed:
            self._changed.notify_all()  # its keeper, which may be about to start it
            processes = {node: self._processes[node]} if node in self._processes else {}
        self._save()
        _end(processes)
        with self._changed:
            is_over = self._changed.wait_for(
                lambda: membership.is_away(node) or self._is_stopping.is_set(), _KILL_TIMEOUT_S
            )
        if not is_over:
            raise ClusterError(f"the process of node {node} does not end, not even by SIGKILL")
        epoch = membership.map.epoch
        self._await_published(epoch)
        unsaved = self._unsaved
        if unsaved is not None and self._published.map.epoch < epoch:
            raise ClusterError(f"node {node} is stopped, but {unsaved.reason}")

    def start_node(self, node: int) -> None:
        """Start a node that is away: it was stopped with ``stop_node``, or has died and is not
        started again. It returns before the node is ready.

        Raises ClusterError if it is not away, or there is no such node.
        """
        actions = self._apply(partial(self._membership_with(node).release, node))
        if not actions:
            raise ClusterError(f"node {node} is not away: stop it first")
        self._start_keeper(node, None, self._known[node].incarnation, actions)

    def reopen_logs(self) -> None:
        """Have the nodes open their log files anew."""
        with self._changed:
            processes = list(self._processes.values())
        for process in processes:
            process.send_signal(signal.SIGHUP)

    def _membership_with(self, node: int) -> Membership:
        with self._changed:
            membership = self._membership
        assert membership is not None, "to be called after start"
        if node not in membership.members:
            raise ClusterError(f"there is no node {node}")
        return membership

    def _serve(self) -> None:
        self._handlers |= {
            **on_message(self.on_ping),
            **on_message(self.on_cluster_info),
            messages.GetMap.kind: self.get_map,
            **on_message(self.on_key_nodes),
            **on_message(self.on_next_primary),
            **on_message(self.on_get_troubles),
            **on_control_message(self.on_register, self._token),
            **on_control_message(self.on_in_sync, self._token),
            **on_control_message(self.on_leave, self._token),
            **on_control_message(self.on_new_mark, self._token),
        }
        self._server.start()

    # --- the successor of a killed manager (M4) --------------------------------------------------

    def _find_saved(self) -> tuple[SavedState | None, dict[int, NodeProcess]]:
        """The state that counts, of those that were found, and its node processes that still
        run."""
        found = [(saved, self._find_running(saved)) for saved in self._state_file.read()]
        if len({saved.cluster_id for saved, running in found if running}) > 1:
            pids = " ".join(str(p.pid) for _, running in found for p in running.values())
            raise ClusterError(
                f"nodes of two clusters still run on this port, with a state file each; stop those "
                f"that are not wanted, of: {pids}"
            )
        return max(found, key=lambda pair: (bool(pair[1]), pair[0].map.epoch), default=(None, {}))

    def _find_running(self, saved: SavedState) -> dict[int, NodeProcess]:
        """The node processes of the saved state that still run."""
        found = {}
        for known in saved.processes:
            process = self._nursery.adopt(known.pid, known.incarnation, known.started)
            if process is not None:
                found[known.node] = process
        return found

    def _check_shape(self, saved: SavedState, running: dict[int, NodeProcess]) -> None:
        options = self._options
        shape = _describe_shape(saved.nodes, saved.replicas, saved.hash_code, saved.engine)
        asked = _describe_shape(options.nodes, options.replicas, options.hash_code, options.engine)
        if shape == asked:
            return
        if self._directory:
            raise ClusterError(
                f"the directory {self._directory.path} holds a cluster of {shape}; asked for was "
                f"{asked}. A backup can be restored into a cluster of any shape"
            )
        pids = " ".join(str(process.pid) for process in running.values())
        raise ClusterError(
            f"the nodes of a manager that was killed still run on this port: {shape}; start it "
            f"with these, or stop them with: kill {pids}"
        )

    def _check_address(self, saved: SavedState, running: dict[int, NodeProcess]) -> None:
        """Nodes that run report to the address that they were started with."""
        if saved.address in (None, (self._options.host, self._server.port)):
            return
        host, port = saved.address
        pids = " ".join(str(process.pid) for process in running.values())
        raise ClusterError(
            f"the nodes of a manager that was killed still run, and report to "
            f"{format_address(host, port)}: start it with --host {host} --port {port}, or stop "
            f"them with: kill {pids}"
        )

    def _check_memory(self) -> None:
        """There may be a cluster without a data directory, whose manager was here."""
        file = StateFile.of_address(self._options.host, self._server.port)
        running = [
            process for saved in file.read() for process in self._find_running(saved).values()
        ]
        if running:
            pids = " ".join(str(process.pid) for process in running)
            raise ClusterError(
                "the nodes of a manager that was killed still run on this port, and have their "
                f"data in memory: start it without --data-dir, or stop them with: kill {pids}"
            )

    def _take_over(self, saved: SavedState, running: dict[int, NodeProcess]) -> None:
        """Go on where the last manager was: the nodes that run are members; for the others it is as
        if they had died now."""
        self._cluster_id, self._token = saved.cluster_id, saved.token
        self._set_clock(saved.reached, has_nodes=True)
        members = {member.node: member for member in saved.members}
        for node, process in list(running.items()):
            member = members[node]
            if member.state == messages.DEAD or member.incarnation != process.incarnation:
                # It was being started, and nobody knows how far it got.
                process.send_signal(signal.SIGKILL)
        with self._changed:
            self._processes = dict(running)
            self._known = {known.node: known for known in saved.processes}
            self._registered = dict(members)
            self._membership = self._new_membership(members.values(), saved.map, saved.held)
            self._published = _Published(saved.map, members)
            self._marks = dict(saved.marks)
            awaited_again = self._membership.awaited_again()
        for node in awaited_again:
            # What its disk vouches for it has told the last manager, and tells at its next start.
            running[node].send_signal(signal.SIGKILL)
        for node, process in running.items():
            self._looks[node] = Gathered(partial(self._look_at, node, process))
        numbers = _ranges(sorted(running))
        logger.warning(
            "took over the cluster of a manager that is gone: nodes %s run, each with the options "
            "that it was started with",
            numbers,
        )
        if self._options.accepts_loss:
            logger.warning(
                "--accept-data-loss counts only where all nodes are started: stop them first"
            )
        how = "its process ended while there was no manager"
        ends = {known.node: how for known in saved.processes if known.node not in running}
        ended: dict[int, list[Action]] = {}

        def end_all(membership: Membership = self._membership) -> list[Action]:
            ended.update(membership.all_exited(ends, time.monotonic()))
            return [action for actions in ended.values() for action in actions]

        self._apply(end_all)
        for known in saved.processes:
            node = known.node
            if node in running:
                self._start_keeper(node, running[node])
            else:
                self._start_keeper(node, None, known.incarnation, ended[node])
        self._serve()
        self._publish(_PUBLISH_TIMEOUT_S)

    # --- a cluster whose entries are on disk -----------------------------------------------------

    def _open_again(self, saved: SavedState) -> None:
        """Start the nodes of a data directory, and go on with what they have (M5).

        Their first map is made when all have said what that is, or when the others are known to be
        late: whoever comes after it has to copy what was written meanwhile.
        """
        self._cluster_id = saved.cluster_id
        self._set_clock(saved.reached)
        members = [replace(member, state=messages.DEAD) for member in saved.members]
        with self._changed:
            self._membership = membership = self._new_membership(members, saved.map)
            self._registered = {member.node: member for member in members}
            self._returns = {}
            self._marks = dict(saved.marks)
        self._serve()
        for known in saved.processes:
            process = self._spawn(known.node, known.incarnation + 1)
            self._start_keeper(known.node, process)

        def are_back() -> bool:
            assert self._returns is not None
            # Before anything is given up, each has had its time; one that has ended is started
            # again meanwhile.
            ended = set() if self._options.accepts_loss else self._ended
            return len(ended | self._returns.keys()) == len(members)

        with self._changed:
            end = time.monotonic() + messages.START_TIMEOUT_S
            while not are_back():
                self._changed.wait(0.1)  # a signal may interrupt, and notifies nobody
                if self._is_interrupted():
                    raise ClusterError("stopped before all storage nodes were ready")
                if time.monotonic() > end:
                    late = self._processes.keys() - self._returns.keys()
                    if not [node for node in late if self._gets_on(node)]:
                        break
                    end = time.monotonic() + messages.START_TIMEOUT_S
            returns, self._returns = self._returns, None
            if not returns:
                raise ClusterError("no storage node has started; their lines above say why")
            self._check_age(saved, returns.values())
            # In the same step: whoever dies now has returned.
            accepts_loss = self._options.accepts_loss
            self._apply(
                partial(membership.all_returned, returns.values(), time.monotonic(), accepts_loss)
            )
        self._publish(_FIRST_PUBLISH_TIMEOUT_S)
        self._check_published()
        with self._changed:
            while membership.opening() and time.monotonic() < end:
                self._changed.wait(0.1)
                if self._is_interrupted():
                    raise ClusterError("stopped before all storage nodes were ready")

    def _check_age(self, saved: SavedState, returns: Iterable[Returned]) -> None:
        """A state from before the last change of the map would use epochs again (M4). Nodes that
        became owners since then know better."""
        for returned in returns:
            joins = (*returned.joins, *returned.doubtful)
            newest = max((join.join_epoch for join in joins), default=0)
            if cluster_of(newest) == saved.cluster_id and newest > saved.map.epoch:
                raise ClusterError(
                    f"{self._state_file.path} is of map {saved.map.epoch & 0xFFFF_FFFF}, but node "
                    f"{returned.member.node} has been in map {newest & 0xFFFF_FFFF}: it is an old "
                    "one. Without the last one nobody knows what the nodes' data is worth: "
                    "docs/OPERATIONS.md"
                )

    def _check_published(self) -> None:
        """Raises ClusterError if there is no first map, because it could not be saved."""
        if self._unsaved is not None and not self._published.map.epoch:
            raise ClusterError(self._unsaved.reason)

    def _new_membership(
        self,
        members: Iterable[messages.Member],
        partition_map: PartitionMap,
        held: Iterable[int] = (),
    ) -> Membership:
        return Membership(
            members,
            partition_map,
            self._options.replicas,
            self._options.probe_interval_ms / 1000,
            messages.PROBE_MISSES_MAX,
            self._options.respawns,
            is_durable=self._options.engine != MEMORY,
            held=held,
        )

    # --- the nodes' ports ------------------------------------------------------------------------

    def _check_node_ports(self) -> None:
        """Say who holds a port before any process is started in vain."""
        first = self._options.node_port
        if not first:
            return
        ports = range(first, first + self._options.nodes)
        busy = [port for port in ports if not _can_listen(self._options.host, port)]
        if busy:
            raise ClusterError(
                describe_holders(self._options.host, busy)
                or f"cannot listen on port {_ranges(busy)} of {self._options.host}: in use by "
                "another program; choose others with --node-port"
            )

    # --- processes -------------------------------------------------------------------------------

    def _spawn(self, node: int, incarnation: int) -> NodeProcess | None:
        """Start a node; None if it is to stay away. Raises ClusterError; also if the cluster is
        being stopped."""
        options = self._options
        first = options.node_port
        cpus = sorted(os.sched_getaffinity(0))
        with self._spawning:
            if self._is_stopping.is_set():
                raise ClusterError("the cluster is being stopped")
            with self._changed:
                if self._membership is not None and not self._membership.begin_start(node):
                    self._changed.notify_all()
                    return None
            # A node that returns listens where its clients know it.
            member = self._registered.get(node)
            port = first + node - 1 if first else member.port if member else 0
            process = self._nursery.start(
                {
                    "node": node,
                    "incarnation": incarnation,
                    "host": options.host,
                    "port": port,
                    "manager": (options.host, self._server.port),
                    "token": self._token.hex(),
                    "cpu": cpus[(node - 1) % len(cpus)] if options.pin else None,
                    "max_connections": options.max_connections,
                    "max_memory_mb": options.max_memory_mb,
                    "frame_timeout_ms": options.frame_timeout_ms,
                    "log_level": options.log_level,
                    "log_format": options.log_format,
                    "log_file": str(options.log_file) if options.log_file else None,
                    "data_dir": self._data_path(node),
                    "suspect": self._is_suspect(node),
                    "scrub_percent": options.scrub_percent,
                    "clock_offset_us": self._clock_offset_us,
                    "lifeline": options.lifeline,
                },
                incarnation,
            )
            with self._changed:
                self._processes[node] = process
                self._known[node] = Process(node, incarnation, process.pid, process.started)
                # Before it may register: told after its return, it would be awaited for ever.
                if self._membership is not None:
                    self._membership.started(node, time.monotonic())
            self._looks[node] = Gathered(partial(self._look_at, node, process))
            # Before it may register, so that a successor of this manager knows of it.
            if not self._save():
                logger.error("node %d is stopped: nobody could take it over", node)
                process.send_signal(signal.SIGKILL)
        return process

    def _is_suspect(self, node: int) -> bool:
        """Whether its last process has ended as one does that meets a damage on its disk."""
        process = self._processes.get(node)
        return process is not None and process.exit_code in _DAMAGE_EXITS

    def _data_path(self, node: int) -> str | None:
        if self._directory is None or self._options.engine == MEMORY:
            return None
        return str(self._directory.node_path(node))

    def _gets_on(self, node: int) -> bool:
        """Whether a node that has not registered yet is at work, and has been lately: it may have
        much to read, or a busy machine. To kill it would have the next one begin anew."""
        gets_on = self._processes[node].gets_on()
        if gets_on:
            logger.warning("node %d is still starting, and at work: waiting for it", node)
        return gets_on

    def _start_keeper(
        self,
        node: int,
        process: NodeProcess | None,
        incarnation: int = 0,
        actions: Sequence[Action] = (),
    ) -> None:
        """Keep a process; or its successor, if it has ended: then ``incarnation`` was the last one,
        and ``actions`` are those that came of its end."""
        keeper = _Keeper(node, process, process.incarnation if process else incarnation, actions)
        supervised(f"keeper of node {node}", partial(self._keep, keeper), GO_ON)

    def _keep(self, keeper: _Keeper) -> None:
        """Wait for the end of a node's process, tell of it, start the next one. Whatever is raised
        in between, it can be called again, and goes on there."""
        node = keeper.node
        while True:
            if keeper.process is None:
                keeper.process = self._succeed(node, keeper.incarnation, keeper.actions)
                if keeper.process is None:
                    return
                keeper.incarnation = keeper.process.incarnation
            how = _describe_exit(keeper.process.wait())
            with self._changed:
                self._ended.add(node)
                if self._returns is not None:
                    self._returns.pop(node, None)
                self._changed.notify_all()
                membership = self._membership
            if membership is None or self._is_stopping.is_set():
                return
            keeper.actions = self._apply(partial(membership.exited, node, how, time.monotonic()))
            keeper.process = None

    def _succeed(
        self, node: int, incarnation: int, actions: Sequence[Action]
    ) -> NodeProcess | None:
        """Start the successor of a dead process, if that is to be done; None if not."""
        pauses = [action.pause_s for action in actions if isinstance(action, Start)]
        if not pauses:
            return None
        # M2: it is started once the map without the dead one is known.
        assert self._membership is not None
        epoch = self._membership.map.epoch
        with self._changed:  # however long it cannot be saved
            self._changed.wait_for(
                lambda: self._published.map.epoch >= epoch or self._is_stopping.is_set()
            )
        self._await_published(epoch)
        return self._start_again(node, incarnation + 1, pauses[0])

    def _start_again(self, node: int, incarnation: int, pause_s: float) -> NodeProcess | None:
        """The node's next process; None if the cluster is stopped, or the node held, instead."""
        while self._pause(node, pause_s):
            try:
                process = self._spawn(node, incarnation)
            except ClusterError as error:
                if not self._is_stopping.is_set():
                    logger.error("node %d cannot be started again: %s", node, error)
                    pause_s = float(messages.RESPAWN_PAUSE_MAX_S)
            else:
                if process is not None:
                    logger.info("node %d is started again: process %d", node, process.pid)
                return process
        return None

    def _pause(self, node: int, pause_s: float) -> bool:
        """Before a start, which is looked into at once if the node is held; False if the cluster is
        being stopped."""
        with self._changed:
            membership = self._membership
            assert membership is not None
            self._changed.wait_for(
                lambda: node in membership.held or self._is_stopping.is_set(), pause_s
            )
        return not self._is_stopping.is_set()

    def _await_nodes(self) -> None:
        """Wait until all nodes have registered, then make and publish the first map."""
        nodes = self._options.nodes

        def exited() -> dict[int, NodeProcess]:
            return {n: p for n, p in self._processes.items() if p.is_reaped}

        def is_settled() -> bool:
            return bool(len(self._registered) == nodes or self._is_interrupted() or exited())

        with self._changed:
            end = time.monotonic() + messages.START_TIMEOUT_S
            while not is_settled() and time.monotonic() < end:
                self._changed.wait(0.1)  # a signal may interrupt, and notifies nobody
            if self._is_interrupted():
                raise ClusterError("stopped before all storage nodes were ready")
            missing = sorted(set(self._processes) - set(self._registered))
            for node, process in exited().items():
                how = _describe_exit(process.exit_code)
                raise ClusterError(f"storage node {node} did not start: {how}")
            if missing:
                raise ClusterError(
                    f"node {_ranges(missing)} did not register within {messages.START_TIMEOUT_S} s"
                )
            members = [self._registered[node] for node in sorted(self._registered)]
            self._membership = self._new_membership(
                members,
                PartitionMap.first(
                    self._cluster_id,
                    nodes,
                    self._options.replicas,
                    {member.node: member.incarnation for member in members},
                ),
            )
        timeout_s = _FIRST_PUBLISH_TIMEOUT_S  # not all at once: a signal may interrupt
        while late := self._publish(timeout_s):
            self._check_published()
            if self._is_interrupted():
                raise ClusterError("stopped before all storage nodes were ready")
            if time.monotonic() > end:
                raise ClusterError(f"storage node {_ranges(late)} did not take its first map")
            timeout_s = min(2 * timeout_s, _FIRST_PUBLISH_TIMEOUT_MAX_S)
            self._is_stopping.wait(_EXIT_WAIT_S)

    # --- events and actions ----------------------------------------------------------------------

    def _apply(self, event: Callable[[], list[Action]]) -> list[Action]:
        """Tell the membership of an event, and do what it says; return that. Starts are left to the
        keeper, probes to the prober."""
        with self._changed:
            actions = event()
            if Publish() in actions:
                self._is_publish_due = True
                self._changed.notify_all()
        for action in actions:
            match action:
                case Report(text):
                    logger.warning("%s", text)
                case Fence(node):
                    self._processes[node].send_signal(signal.SIGKILL)
        return actions

    def _publish_forever(self) -> None:
        def is_due() -> bool:
            return self._is_publish_due or self._is_stopping.is_set()

        while True:
            with self._changed:
                self._changed.wait_for(lambda: is_due() or self._unsaved is not None)
                # What could not be saved, whoever tried it, is tried again without being asked.
                self._changed.wait_for(is_due, _SAVE_RETRY_S)
                if self._is_stopping.is_set():
                    return
                self._is_publish_due = False
            try:
                self._publish(_PUBLISH_TIMEOUT_S)
            except Exception:  # for example too many open files
                logger.exception("the newest map could not be published yet")
                self._is_stopping.wait(_PUBLISH_TIMEOUT_S)
                with self._changed:
                    self._is_publish_due = True

    def _publish(self, timeout_s: float) -> list[int]:
        """Make the newest map known, and push it to every living node that does not hold it yet.
        Return those that did not take it in time: the prober sees by their PONGs that they are
        behind, and has it pushed again. A map that cannot be saved is pushed to nobody; then the
        publisher tries again."""
        with self._changed:
            assert self._membership is not None
            published = _Published(self._membership.map, dict(self._membership.members))
        if not self._save(published):
            return sorted(published.members)
        held = {}
        for node, member in published.members.items():
            incarnation, epoch = self._adopted.get(node, (0, 0))
            held[node] = epoch if incarnation == member.incarnation else 0
        behind = [
            node
            for node, member in published.members.items()
            if member.state != messages.DEAD and held[node] < published.map.epoch
        ]
        # The same for all nodes that hold the same map: made once.
        frames = {
            since: self._encoder.frame(
                messages.MapUpdate(
                    self._token, published.map.epoch, published.map.rows_since(since)
                ),
                1,
            )
            for since in {held[node] for node in behind}
        }
        requests = [_request(node, frames[held[node]]) for node in behind]
        late = []
        replies = self._push_session.run_many(requests, timeout_s, len(behind))
        for node, reply in zip(behind, replies, strict=True):
            if isinstance(reply, messages.Adopted):
                self._adopted[node] = published.members[node].incarnation, reply.epoch
            else:
                logger.info("node %d did not take the map: %s", node, reply)
                late.append(node)
        with self._changed:
            self._pushed_epoch = published.map.epoch
            self._changed.notify_all()
        return late

    def _save(self, published: _Published | None = None, is_last: bool = False) -> bool:
        """Leave this, or what is known already, to a successor (M4), then make it known: M2's
        order. Return False if it must not become known, because it cannot be saved.

        It never raises anything: those who call it have other things to see to.
        """
        with self._saving:
            published = published or self._published  # not before: another one may just be saved
            if not published.map.epoch or (self._is_stopping.is_set() and not is_last):
                return True  # nobody needs a successor before the first map, nor after the end
            with self._changed:
                processes = [known for _, known in sorted(self._known.items())]
                held = tuple(self._membership.held) if self._membership else ()
                marks = self._take_marks(published.map)
            members = tuple(published.members.values())
            options = self._options
            state = SavedState(
                self._cluster_id,
                options.nodes,
                options.replicas,
                options.hash_code,
                options.engine,
                self._token,
                published.map,
                members,
                tuple(processes),
                held,
                self._reached(),
                marks,
                (options.host, self._server.port),
            )
            try:
                self._state_file.write(state)
                unsaved = None
            except Exception as error:
                unsaved = self._give_up_saving(error)
            self._tell_unsaved(unsaved)
            if unsaved is not None and unsaved.is_held:
                return False
            with self._changed:
                self._published = published
                self._changed.notify_all()
            return True

    def _give_up_saving(self, error: Exception) -> _Unsaved:
        """The state cannot be written. With a data directory what is there is the only way back to
        all data, so it stays, and the map as it is there too: a change waits. Without one it is
        better to go on than to have a successor; but then there must be no older file either, or
        the successor would use its epochs again. Without a file it does not begin."""
        reason = f"{self._state_file.path} cannot be written: {_in_words(error)}"
        is_held = self._directory is not None
        if not is_held:
            try:
                self._state_file.remove()
            except OSError as second_error:
                reason += f"; nor can it be removed: {describe(second_error)}"
                is_held = True
        return _Unsaved(
            wall_us(),
            f"{reason}; "
            + (
                "changes of the map wait for it, and dead nodes are not started again"
                if is_held
                else "if this manager is killed, no other one can take its nodes over"
            ),
            is_held,
        )

    def _tell_unsaved(self, unsaved: _Unsaved | None) -> None:
        """Note whether saving works, and log what has changed of that. _saving is held."""
        before = self._unsaved
        if unsaved is not None:
            if before is None or before.reason != unsaved.reason:
                logger.error("%s", unsaved.reason)
            if before is not None:
                unsaved = unsaved._replace(since_us=before.since_us)
        elif before is not None:
            logger.warning("%s is written again", self._state_file.path)
        with self._changed:
            self._unsaved = unsaved
            self._changed.notify_all()

    def _await_published(self, epoch: int) -> None:
        """Wait until this map, or a newer one, was made known and pushed; not for ever."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._pushed_epoch >= epoch or self._is_stopping.is_set(),
                4 * _PUBLISH_TIMEOUT_S,
            )

    def _probe_forever(self) -> None:
        membership = self._membership
        assert membership is not None
        saves_at = time.monotonic() + _SAVE_AGAIN_S
        while not self._is_stopping.is_set():
            with self._changed:
                for node in membership.overdue(time.monotonic()):
                    if self._gets_on(node):
                        membership.started(node, time.monotonic())
                actions = membership.tick(time.monotonic())
            nodes = [action.node for action in actions if isinstance(action, Probe)]
            others = [action for action in actions if not isinstance(action, Probe)]
            try:
                self._apply(lambda others=others: others)  # type: ignore[misc]
                self._probe(membership, nodes)
                is_lost = self._unsaved is None and not self._state_file.is_there()
                if is_lost or time.monotonic() > saves_at:
                    saves_at = time.monotonic() + _SAVE_AGAIN_S
                    self._save()
            except Exception:
                # For example too many open files. Without this thread no hung node is noticed.
                logger.exception("a round of probes failed")
            self._is_stopping.wait(max(0.0, membership.next_tick - time.monotonic()))

    def _probe(self, membership: Membership, nodes: list[int]) -> None:
        ping = encode(messages.Ping(), 1)
        requests = [_request(node, ping) for node in nodes]
        self._rounds += 1
        for node in nodes:
            if (self._rounds + node) % _NEW_CONNECTION_EACH == 0:
                self._probe_session.forget(node)
        began = time.monotonic()
        replies = self._probe_session.run_many(requests, membership.patience_s, len(nodes))
        took_s = time.monotonic() - began
        is_behind = False
        round_: dict[int, Silence | None] = {}
        full: dict[int, int] = {}
        looks: dict[int, Look] = {}
        for node, reply in zip(nodes, replies, strict=True):
            if isinstance(reply, messages.Error) and reply.code == messages.BUSY:
                round_[node] = None
            elif isinstance(reply, messages.Pong) and reply.node == node:
                round_[node] = None
                is_behind |= reply.epoch < self._published.map.epoch
                full[node] = reply.full
            else:
                looks[node] = look = self._processes[node].look()
                round_[node] = Silence(str(reply), look.since(self._last_looks.get(node)))
        self._last_looks = looks
        self._apply(partial(membership.probed, round_, took_s))
        self._apply(partial(membership.filled, full))
        if is_behind:
            self._apply(lambda: [Publish()])

    def _locate(self, node: int) -> tuple[str, str, int]:
        with self._changed:
            member = self._registered[node]
        return f"node {node} ({format_address(member.host, member.port)})", member.host, member.port

    # --- requests --------------------------------------------------------------------------------

    def on_ping(self, request: messages.Ping) -> messages.Pong:  # noqa: ARG002  # it is empty
        epoch = self._published.map.epoch
        now_us = self._cluster_time_us()
        return messages.Pong(messages.ROLE_MANAGER, 0, 0, os.getpid(), epoch, now_us, 0, 0, 0)

    def on_cluster_info(self, request: messages.ClusterInfo) -> messages.Cluster:  # noqa: ARG002
        published = self._ready()
        with self._changed:
            assert self._membership is not None
            members = tuple(self._membership.members.values())  # with their states of now
        return messages.Cluster(
            published.map.epoch,
            self._options.nodes,
            self._options.replicas,
            self._options.hash_code,
            partition_count(self._options.nodes),
            self._cluster_time_us(),
            members,
        )

    def on_get_troubles(self, request: messages.GetTroubles) -> messages.Troubles:  # noqa: ARG002
        unsaved = self._unsaved
        found = [messages.Trouble("unsaved", *unsaved[:2])] if unsaved is not None else []
        return messages.Troubles(tuple(found))

    def get_map(self, request_id: int, body: bytes) -> bytes:
        """GET_MAP. Each answer is made once an epoch: every new client asks for the whole map,
        which in a large cluster is megabytes and a second of work, and after a change all clients
        ask for the same rows."""
        request = decode(messages.GetMap.kind, body)
        assert isinstance(request, messages.GetMap)
        partition_map = self._ready().map
        # 0, or another cluster's epoch, of whose map nothing holds here: all rows.
        since = request.since if cluster_of(request.since) == self._cluster_id else 0
        epoch, bodies = self._map_bodies
        if epoch != partition_map.epoch:
            epoch, bodies = self._map_bodies = (partition_map.epoch, {})
        found = bodies.get(since)
        if found is None:
            rows = partition_map.rows_since(since)
            found = self._encoder.body(messages.Map(epoch, rows))
            if len(bodies) < _MAP_BODIES_MAX:
                bodies[since] = found
        return reply_frame(_MAP_WORD, request_id, found)

    def on_key_nodes(self, request: messages.KeyNodes) -> messages.Owners:
        return self._owners(request.key)

    def on_next_primary(self, request: messages.NextPrimary) -> messages.Owners:
        look = self._looks.get(request.node)
        if look is not None:
            look()
        return self._owners(request.key)

    def on_register(self, request: messages.Register) -> messages.Registered:
        with self._spawning, self._changed:
            process = self._processes.get(request.node)
            known = self._registered.get(request.node)
            # N0: a process registers once, as the incarnation that it was started as. Its end may
            # have been told by now, and nothing may come after that.
            if (
                process is None
                or process.exited.is_set()
                or (request.pid, request.incarnation) != (process.pid, process.incarnation)
                or (known is not None and known.incarnation == request.incarnation)
            ):
                raise RemoteProtocolError(
                    messages.NOT_ALLOWED, f"node {request.node} is not awaited", closes=True
                )
            member = messages.Member(
                request.node,
                messages.ALIVE,
                request.incarnation,
                request.pid,
                request.port,
                self._options.host,
            )
            self._registered[request.node] = member
            self._changed.notify_all()
            membership = self._membership
            returned = Returned(
                member, request.joins, request.doubtful, self._is_older(request.node, request.marks)
            )
            # In the same step: the process may end at any moment, and that must come after this.
            if self._returns is not None:
                self._returns[request.node] = returned
            elif membership is not None:
                self._apply(partial(membership.all_returned, [returned], time.monotonic()))
        known_since = self._membership.map.epoch if self._membership else 0
        return messages.Registered(
            known_since or epoch_of(self._cluster_id, 0),
            self._options.nodes,
            self._options.replicas,
            self._options.hash_code,
        )

    def _is_older(self, node: int, marks: bytes) -> bool:
        """M6a: whether a disk with these marks lacks the last one that the node has told of."""
        last = self._marks.get(node)
        found = {marks[at : at + MARK_SIZE] for at in range(0, len(marks), MARK_SIZE)}
        return last is not None and last not in found

    def on_new_mark(self, request: messages.NewMark) -> messages.Noted:
        """M6a. It is left to a successor with the next map, or at the end: until then the one
        before is there, which the disk has, too."""
        with self._changed:
            process = self._processes.get(request.node)
            if process is not None and process.incarnation == request.incarnation:
                self._new_marks[request.node] = request.mark
        return messages.Noted()

    def _take_marks(self, saved: PartitionMap) -> dict[int, bytes]:
        """The marks to go by from now on, which are left to a successor with this map;
        ``_changed`` is held. A disk that some partition may be opened with keeps the one before: if
        it is an older copy, it stays one as long as that counts. So it is also where the partition
        is open by now, but not in the map that a successor finds."""
        if self._membership is not None:
            awaited = self._membership.awaited_again(saved)
            for node in self._new_marks.keys() - awaited:
                self._marks[node] = self._new_marks.pop(node)
        return dict(self._marks)

    def on_in_sync(self, request: messages.InSync) -> messages.Noted:
        self._ready()
        assert self._membership is not None
        self._apply(partial(self._membership.synced, request.node, request.joins))
        return messages.Noted()

    def on_leave(self, request: messages.Leave) -> messages.Noted:
        self._ready()
        membership = self._membership
        assert membership is not None
        self._apply(partial(membership.left, request.node, request.join))
        if membership.is_joined(request.node, request.join):
            raise RemoteProtocolError(
                messages.UNAVAILABLE,
                f"node {request.node} has the last copy of partition {request.join.partition}",
                detail=messages.AliveDetail(self._options.replicas, 1),
            )
        # A successor of this manager must know it too, or the node would never be asked to join.
        epoch = membership.map.epoch
        self._await_published(epoch)
        if self._published.map.epoch < epoch:
            raise RemoteProtocolError(messages.NOT_READY, "the map without it is not saved yet")
        return messages.Noted()

    def _ready(self) -> _Published:
        """What is published. Raises NOT_READY before there is anything."""
        published = self._published
        if not published.map.epoch:
            raise RemoteProtocolError(messages.NOT_READY, "the storage nodes are still starting")
        return published

    def _owners(self, key: bytes) -> messages.Owners:
        published = self._ready()
        partition = HASH_FUNCTIONS[self._options.hash_code](key) % len(published.map.rows)
        row = published.map.rows[partition]
        members = tuple(published.members[owner.node] for owner in row.owners)
        alive = sum(
            member.state != messages.DEAD and member.incarnation == owner.incarnation
            for owner, member in zip(row.owners, members, strict=True)
        )
        unsaved = self._unsaved
        if unsaved is not None and unsaved.is_held and self._is_gone(row.owners[0]):
            raise RemoteProtocolError(
                messages.UNAVAILABLE,
                f"the primary of partition {partition} is dead, and {unsaved.reason}",
                detail=messages.AliveDetail(self._options.replicas, alive),
            )
        if not alive:
            is_back = any(member.state != messages.DEAD for member in members)
            if self._options.engine == MEMORY:
                why = "are dead, and its data is gone: it begins anew, empty, when one returns"
            elif is_back:
                why = (
                    "had died, and those that are back may not have everything: they compare what "
                    "they have, or wait for somebody (the manager's log, docs/OPERATIONS.md)"
                )
            else:
                why = "are dead, and its data is on their disks: it opens again when one returns"
            raise RemoteProtocolError(
                messages.UNAVAILABLE,
                f"all owners of partition {partition} {why}",
                detail=messages.AliveDetail(self._options.replicas, alive),
            )
        return messages.Owners(row, members)

    def _is_gone(self, owner: messages.Owner) -> bool:
        """Whether an owner of the published map is dead, as is known by now."""
        assert self._membership is not None
        member = self._membership.members[owner.node]
        return member.state == messages.DEAD or member.incarnation != owner.incarnation

    def _look_at(self, node: int, process: NodeProcess) -> None:
        """Find out at once whether a node that a client could not reach is dead. If so, return when
        the map without it is published. No client is believed: the node is asked."""
        if process.exited.is_set():
            self._await_removal(node, process.incarnation)
            return
        known = self._registered.get(node)
        if known is None or known.incarnation != process.incarnation:
            return  # it is being started
        try:
            peer, host, port = self._locate(node)
            timeout_s = self._options.probe_interval_ms / 1000
            call_once(peer, host, port, messages.Ping(), timeout_s)
        except NetworkError:
            # Its sockets close a moment before its end can be seen.
            if process.exited.wait(_EXIT_WAIT_S):
                self._await_removal(node, process.incarnation)

    def _await_removal(self, node: int, incarnation: int) -> None:
        """Wait until the published map is without that incarnation of a node; not for ever."""

        def is_removed() -> bool:
            member = self._published.members.get(node)
            is_dead = member is not None and member.state == messages.DEAD
            return is_dead or member is None or member.incarnation > incarnation

        with self._changed:
            self._changed.wait_for(is_removed, 2 * _PUBLISH_TIMEOUT_S)


def _end(processes: dict[int, NodeProcess]) -> None:
    """Stop these nodes, by force if they do not stop by themselves. A keeper sees their ends."""
    for process in processes.values():
        process.send_signal(signal.SIGTERM)
    end = time.monotonic() + _STOP_TIMEOUT_S
    for node, process in processes.items():
        if not process.exited.wait(max(0.0, end - time.monotonic())):
            logger.warning("node %d did not stop within %g s: killing it", node, _STOP_TIMEOUT_S)
            process.send_signal(signal.SIGKILL)
            if not process.exited.wait(_KILL_TIMEOUT_S):  # for example it waits for a dead disk
                found = process.look().since(None)
                logger.error("node %d does not end, not even by SIGKILL: %s", node, found)


def _request(node: int, frame: bytes) -> Operation[messages.Message]:
    """An operation: one request, with the id 1, to one node. Raises NetworkError,
    RemoteProtocolError."""
    (reply,) = yield (node,), 1, frame
    if isinstance(reply, Lost) and isinstance(reply.error, ConnectionLost):
        (reply,) = yield (node,), 1, frame  # the connection may only have been to a dead process
    if isinstance(reply, Lost):
        raise reply.error
    return decode(reply[0], reply[3])


def _in_words(error: Exception) -> str:
    return describe(error) if isinstance(error, OSError) else repr(error)


def _describe_shape(nodes: int, replicas: int, hash_code: int, engine: str) -> str:
    hash_name = messages.HASHES[hash_code]
    return f"{nodes} nodes, {replicas} replicas, --hash {hash_name}, --engine {engine}"


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "its process ended"
    if code < 0:
        return f"its process was killed by {signal.Signals(-code).name}"
    if code == exit_codes.DISK_FAILED:
        return "its disk has failed (its own line above says how)"
    if code == exit_codes.NO_MEMORY:
        return "its memory did not suffice (its own line above says where)"
    if code == exit_codes.INTERNAL_ERROR:
        return "an internal error has ended it (its own lines above say which)"
    return f"its process ended with exit status {code}"


def _ranges(numbers: list[int]) -> str:
    """Numbers for people: ``10001-10007``, or ``32801 32807 40001`` where they do not follow."""
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]}-{numbers[-1]}"
    return " ".join(map(str, numbers))


def _can_listen(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(1)
        except OSError:
            return False
    return True


def describe_holders(host: str, ports: list[int]) -> str:
    """Which GT Store processes hold these ports, and how to stop them; "" if none does.

    The processes are asked with PING, as anybody may.
    """
    pongs = dict(_ask_holders(host, ports))
    managers = [port for port, pong in pongs.items() if pong.role == messages.ROLE_MANAGER]
    if managers:
        where = format_address(host, managers[0])
        pid = pongs[managers[0]].pid
        return (
            f"{where} is held by another GT Store manager, process {pid}; stop it with: kill {pid}"
        )
    if not pongs:
        return ""
    pids = " ".join(str(pong.pid) for pong in pongs.values())
    nodes = _ranges([pong.node for pong in pongs.values()])
    text = (
        f"port {_ranges(list(pongs))} of {host}: held by storage node {nodes} of a cluster that is "
        f"still running, process {pids}; if its manager is gone, stop them with: kill {pids}"
    )
    silent = [port for port in ports if port not in pongs]
    return text + (f" (port {_ranges(silent)}: in use, no answer)" if silent else "")


def _ask_holders(host: str, ports: list[int]) -> Iterator[tuple[int, messages.Pong]]:
    for port in ports:
        try:
            pong = call_once("its holder", host, port, messages.Ping(), _HOLDER_TIMEOUT_S)
        except GTStoreError:
            continue
        if isinstance(pong, messages.Pong):
            yield port, pong
