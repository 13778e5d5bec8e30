"""A storage node: the request handlers around replica.py and an engine.

The node binds its port, registers with the manager, learns the cluster's shape, and then serves.
Until the manager has given it a map that names it, replica.py answers NOT_READY (N0). One lock
guards the replicas: check, evaluation and store of a request are one step under it, and so is
adopting a map (N1b). The waiting for the network is done outside of it.

What the node does of its own accord is in upkeep.py.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from . import copying, lmdb_store, scanning
from .committer import Committer, end_node
from .connection import call_once, describe
from .data_directory import set_aside
from .disk import Changes, DiskEngine, doubted, marked, marks_on, remembered_joins
from .engine import MemoryEngine
from .errors import (
    ClusterError,
    GTStoreError,
    NetworkError,
    StoreCorrupt,
    StoreDamaged,
    StoreError,
    StoreFull,
)
from .inspection import damage_in
from .log_store import NOT_WHOLE, LogStore
from .placement import cluster_of
from .reactor import Reactor
from .replica import Behind, Replicas
from .server import (
    FrameServer,
    Gathered,
    Handler,
    TokenLock,
    guarded,
    on_control_message,
    on_message,
)
from .steady_clock import steady_ns
from .upkeep import Upkeep
from .wire import messages
from .wire.codec import decode
from .wire.fields import MARK_SIZE

logger = logging.getLogger("gtstore.storage")

_REGISTER_TIMEOUT_S = 10.0
_FETCH_TIMEOUT_S = 1.0
_MARK_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class NodeOptions:
    """What a node is told when it is started."""

    node: int
    incarnation: int
    host: str
    port: int
    manager: tuple[str, int]
    token: bytes
    max_connections: int
    max_memory_mb: int | None
    frame_timeout_ms: int = messages.FRAME_TIMEOUT_MS
    data_dir: Path | None = None
    clock_offset_us: int = 0
    """How far cluster time is ahead of the machine's steady clock, which is the manager's too: so
    the node has it exactly, for as long as it lives, also without the manager (T1)."""
    is_suspect: bool = False
    """Whether the process before has ended as one does that meets a damage."""
    scrub_share: float = 0
    """See Upkeep."""


class StorageNode:
    """One node's server. Raises ClusterError if its port cannot be had, or the manager refuses
    it."""

    def __init__(self, options: NodeOptions) -> None:
        self._options = options
        self._clock_offset_us = options.clock_offset_us
        self._lock = TokenLock()
        self._store = _open_store(options) if options.data_dir else None
        self._engine = DiskEngine(self._store) if self._store else MemoryEngine()
        handlers: dict[int, Handler] = {}
        self._committer = (
            Committer(
                self._engine,
                self._store,
                self._lock,
                lambda p: self._replicas.remembered(p),
                handlers,
            )
            if isinstance(self._engine, DiskEngine) and self._store
            else None
        )
        self._reactor = self._committer or Reactor(self._lock, handlers)
        self._fetch_map = Gathered(self._fetch_map_now)
        self._server = FrameServer(
            options.host,
            options.port,
            handlers,
            counted=(
                messages.Get.kind,
                messages.Write.kind,
                messages.Commit.kind,
                messages.Execute.kind,
                messages.Scan.kind,
            ),
            connections_max=options.max_connections,
            frame_timeout_ms=options.frame_timeout_ms,
            lock=self._lock,
            recover=self._recover,
            outbox=self._reactor,
            holds_answers=self._committer is not None,
        )
        shape = self._register()
        if self._store:
            self._store.claim({"cluster": cluster_of(shape.epoch), "node": options.node})
            if self._store.not_whole:
                try:
                    self._commit_now({**doubted(self._store), NOT_WHOLE: None})
                except StoreFull as error:
                    raise ClusterError(
                        f"its log does not end whole, and there is no room to note that: {error}; "
                        "it starts once there is some"
                    ) from error
            self._put_mark()
        memory_max = options.max_memory_mb
        self._replicas = Replicas(
            options.node,
            options.incarnation,
            cluster_of(shape.epoch),
            shape.nodes,
            shape.hash,
            self._engine,
            self._now_us,
            memory_max * messages.MIB if memory_max else None,
            shape.epoch,
        )
        handlers |= self._replicas.handlers
        handlers[messages.Scan.kind] = self.scan
        handlers |= on_control_message(self.on_map_update, options.token)
        handlers |= guarded({messages.Copy.kind: self.copy}, options.token)
        handlers |= on_control_message(self.on_differs, options.token)
        if isinstance(self._engine, DiskEngine):
            handlers |= on_disk(handlers, self._engine)
        handlers |= on_message(self.on_ping)
        handlers |= on_message(self.on_get_statistics)
        self._full_since = 0.0
        self._upkeep = Upkeep(
            self._replicas,
            self._now_us,
            self._lock,
            options.manager,
            options.token,
            self._flush,
            options.scrub_share if self._store else 0,
        )

    @property
    def has_map(self) -> bool:
        """Whether the manager has ever given it a map."""
        return self._replicas.epoch != 0

    def other_cluster(self) -> int:
        """Ask at the manager's address: the id of another cluster whose manager answers there, or
        0."""
        try:
            reply = self._ask(messages.Ping(), _FETCH_TIMEOUT_S)
        except GTStoreError:
            return 0
        if not isinstance(reply, messages.Pong) or reply.role != messages.ROLE_MANAGER:
            return 0
        found = cluster_of(reply.epoch)  # 0: it is still starting
        return 0 if found == self._replicas.cluster_id else found

    def start(self) -> None:
        """Serve, in threads of its own."""
        if self._store:
            self._store.on_failure(end_node)  # M6: in whatever thread, before anybody is told
        self._reactor.start()
        self._server.start()
        self._upkeep.start()

    def stop(self) -> None:
        """Answer what has arrived, and close."""
        self._server.drain()
        if self._committer:
            self._committer.stop()
        if self._store:
            try:
                self._put_mark()
                with self._lock:  # other threads may still read
                    self._store.flush()
            except StoreError as error:
                logger.warning("the log keeps what it has: %s", error)

    def _commit_now(self, changes: Changes) -> None:
        """Where no committer is at work. Raises StoreError."""
        assert self._store
        if changes:
            self._store.commit(changes)
            self._store.refresh()

    def _put_mark(self) -> None:
        """M6a: put a new mark on the disk, and tell the manager. In this order: what it knows is
        then always there."""
        assert self._store
        mark = os.urandom(MARK_SIZE)
        try:
            with self._lock:  # other threads may read
                self._commit_now(marked(self._store, mark))
            request = messages.NewMark(
                self._options.token, self._options.node, self._options.incarnation, mark
            )
            self._ask(request, _MARK_TIMEOUT_S)
        except (StoreFull, NetworkError) as error:
            logger.info("the mark of this disk stays the one before: %s", error)

    def _flush(self) -> None:
        if self._committer:
            self._committer.flush()

    def _now_us(self) -> int:
        """Cluster time."""
        return steady_ns() // 1000 + self._clock_offset_us

    # --- requests --------------------------------------------------------------------------------

    def _recover(self, error: Exception) -> bool:
        """A request came with a newer row than ours (N1c): fetch the map, and handle it again. Or
        it has met a damaged entry: handle it again once this partition is not answered for."""
        if isinstance(error, StoreDamaged):
            return self._upkeep.on_damage(error)
        return isinstance(error, Behind) and self._fetch_map()

    def on_ping(self, request: messages.Ping) -> messages.Pong:  # noqa: ARG002  # it is empty
        replicas = self._replicas
        return messages.Pong(
            messages.ROLE_NODE,
            self._options.node,
            self._options.incarnation,
            os.getpid(),
            replicas.epoch,
            self._now_us(),
            replicas.count,
            replicas.size,
            self._look_for_room(),
        )

    def _look_for_room(self) -> int:
        """PONG's ``full``. Says in the log when memory is full, and when it is not any more; of the
        disk the committer does."""
        full = self._replicas.full
        if full == messages.FULL_MEMORY and not self._full_since:
            self._full_since = time.monotonic()
            logger.error("writes are refused: %s; reads and deletes go on", self._replicas.limit)
        elif full != messages.FULL_MEMORY and self._full_since:
            full_s = time.monotonic() - self._full_since
            self._full_since = 0.0
            logger.info("there is room in memory again, after %.1f s", full_s)
        return full

    def on_get_statistics(self, request: messages.GetStatistics) -> messages.Statistics:  # noqa: ARG002
        replicas = self._replicas
        return messages.Statistics(
            self._options.incarnation, replicas.gets, replicas.writes, replicas.executes
        )

    def on_map_update(self, request: messages.MapUpdate) -> messages.Adopted:
        self._adopt(request.epoch, request.rows)
        return messages.Adopted(self._replicas.epoch)

    def scan(self, request_id: int, body: bytes) -> bytes:
        """SCAN, by a client."""
        request = decode(messages.Scan.kind, body)
        assert isinstance(request, messages.Scan)
        return scanning.answer(self._replicas, request_id, request)

    def copy(self, request_id: int, body: bytes) -> bytes:
        """COPY, by a node that joins one of our partitions."""
        return copying.answer(self._replicas, request_id, copying.request_of(body))

    def on_differs(self, request: messages.Differs) -> messages.Noted:
        return self._upkeep.on_differs(request)

    # --- the manager -----------------------------------------------------------------------------

    def _register(self) -> messages.Registered:
        options = self._options
        request = messages.Register(
            options.token,
            options.node,
            options.incarnation,
            os.getpid(),
            self._server.port,
        )
        if self._store:
            whole, doubtful = remembered_joins(self._store)
            if self._store.not_whole:
                whole, doubtful = (), whole + doubtful
            request = replace(request, joins=whole, doubtful=doubtful, marks=marks_on(self._store))
        try:
            reply = self._ask(request, _REGISTER_TIMEOUT_S)
        except NetworkError as error:
            raise ClusterError(f"cannot register: {error}") from error
        if isinstance(reply, messages.Error):
            raise ClusterError(f"the manager refuses this node: {reply.message}")
        assert isinstance(reply, messages.Registered)
        return reply

    def _fetch_map_now(self) -> bool:
        """Get the newest map from the manager; say whether that went well."""
        try:
            reply = self._ask(messages.GetMap(self._replicas.epoch), _FETCH_TIMEOUT_S)
        except NetworkError as error:
            logger.warning("cannot fetch the map: %s", error)
            return False
        if not isinstance(reply, messages.Map):
            return False
        with self._lock:
            self._adopt(reply.epoch, reply.rows)
        return True

    def _adopt(self, epoch: int, rows: tuple[messages.Row, ...]) -> None:
        """Go by a newer map. The lock is held."""
        self._replicas.adopt(epoch, rows)
        # Most changes are of others' partitions, and a look at all of ours would cost more.
        if any(
            self._replicas.is_mine(owner) and not owner.in_sync
            for row in rows
            for owner in row.owners
        ):
            self._upkeep.on_new_map()
        logger.debug("goes by map %d (%d rows changed)", epoch & 0xFFFF_FFFF, len(rows))

    def _ask(self, request: messages.Message, timeout_s: float) -> messages.Message:
        host, port = self._options.manager
        return call_once("the manager", host, port, request, timeout_s)


def _open_store(options: NodeOptions) -> LogStore:
    """A node's entries; without any if what was there is damaged: that is set aside, and this node
    copies what others have. Raises ClusterError."""
    path = options.data_dir
    assert path is not None
    try:
        # What cannot be read may end the process that tries to.
        if (options.is_suspect or lmdb_store.is_short(path)) and (damage := damage_in(path)):
            raise StoreCorrupt(damage)
        return LogStore(path)
    except StoreCorrupt as error:
        logger.error(
            "the data in %s is damaged: %s: it is set aside as %s, and this node begins without it "
            "(docs/OPERATIONS.md)",
            path,
            error,
            set_aside(path),
        )
    except OSError as error:
        raise ClusterError(f"cannot open the data in {path}: {describe(error)}") from error
    try:
        return LogStore(path)
    except StoreCorrupt as error:
        raise ClusterError(f"cannot begin anew in {path}: {error}") from error


def on_disk(handlers: Mapping[int, Handler], engine: DiskEngine) -> dict[int, Handler]:
    """The same handlers where entries are on disk: what they answer leaves when everything is there
    that was stored before (N2).

    However a handler ends: a long answer, for example, is raised (LongReply). GET and SCAN are
    shown what is there already, and wait only where they say so themselves. COMMIT has no answer.
    """

    def dependent(handle: Handler) -> Handler:
        def handler(request_id: int, body: bytes) -> bytes:
            try:
                return handle(request_id, body)
            finally:
                engine.depend()

        return handler

    wrap = {
        messages.Get.kind: lambda handle: handle,
        messages.Scan.kind: lambda handle: handle,
        messages.Commit.kind: lambda handle: handle,
    }
    return {kind: wrap.get(kind, dependent)(handle) for kind, handle in handlers.items()}
