"""A storage node: the request handlers around replica.py and an engine.

The node binds its port, registers with the manager, learns the cluster's shape, and then serves.
Until the manager has given it a map that names it, replica.py answers NOT_READY (N0). One lock
guards the replicas: check, evaluation and store of a request are one step under it, and so is
adopting a map (N1b). The waiting for the network is done outside of it.

One thread of its own, the copier, gets what the node is to hold of partitions that it has joined
(copying.py).
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Final

from . import copying
from .connection import call_once
from .engine import MemoryEngine
from .errors import ClusterError, ConnectError, NetworkError
from .operations import MANAGER
from .placement import cluster_of, format_address
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
from .session import Session
from .wire import messages
from .wire.codec import decode

logger = logging.getLogger("gtstore.storage")

_REGISTER_TIMEOUT_S = 10.0
_FETCH_TIMEOUT_S = 1.0
_COPIES_MAX: Final = 4
"""How many partitions are copied at once: so their sources and the copier are at work together,
and clients wait for no more than as many batches."""
_COPY_TIMEOUT_S: Final = 600.0
"""Then copying begins again. A source that hangs is the manager's business."""
_REPORT_AGAIN_S: Final = 2.0
"""What was copied and reported, and does not count as in sync after that time, is copied anew."""


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


class StorageNode:
    """One node's server. Raises ClusterError if its port cannot be had, or the manager refuses
    it."""

    def __init__(self, options: NodeOptions) -> None:
        self._options = options
        self._lock = TokenLock()
        self._fetch_map = Gathered(self._fetch_map_now)
        handlers: dict[int, Handler] = {}
        self._server = FrameServer(
            options.host,
            options.port,
            handlers,
            counted=(
                messages.Get.kind,
                messages.Write.kind,
                messages.Commit.kind,
                messages.Execute.kind,
            ),
            connections_max=options.max_connections,
            frame_timeout_ms=options.frame_timeout_ms,
            lock=self._lock,
            recover=self._recover,
        )
        shape = self._register()
        memory_max = options.max_memory_mb
        self._replicas = Replicas(
            options.node,
            options.incarnation,
            cluster_of(shape.epoch),
            shape.nodes,
            shape.hash,
            MemoryEngine(),
            lambda: time.time_ns() // 1000,
            memory_max * messages.MIB if memory_max else None,
        )
        handlers |= self._replicas.handlers
        handlers |= on_message(self.on_ping)
        handlers |= on_control_message(self.on_map_update, options.token)
        handlers |= guarded({messages.Copy.kind: self.copy}, options.token)
        self._may_copy = threading.Event()  # the map has changed
        self._members: dict[int, messages.Member] = {}  # where the sources are; the copier's own

    @property
    def has_map(self) -> bool:
        """Whether the manager has ever given it a map."""
        return self._replicas.epoch != 0

    def start(self) -> None:
        """Serve, in threads of its own."""
        self._server.start()
        threading.Thread(target=self._copy_forever, name="copier", daemon=True).start()

    def stop(self) -> None:
        """Answer what has arrived, and close."""
        self._server.drain()

    # --- requests --------------------------------------------------------------------------------

    def _recover(self, error: Exception) -> bool:
        """A request came with a newer row than ours (N1c): fetch the map, and handle it again."""
        return isinstance(error, Behind) and self._fetch_map()

    def on_ping(self, request: messages.Ping) -> messages.Pong:  # noqa: ARG002  # it is empty
        replicas = self._replicas
        replicas.follow_clock()  # the manager pings several times a second
        return messages.Pong(
            messages.ROLE_NODE,
            self._options.node,
            self._options.incarnation,
            os.getpid(),
            replicas.epoch,
            time.time_ns() // 1000,
            replicas.count,
            replicas.size,
        )

    def on_map_update(self, request: messages.MapUpdate) -> messages.Adopted:
        self._adopt(request.epoch, request.rows)
        return messages.Adopted(self._replicas.epoch)

    def copy(self, request_id: int, body: bytes) -> bytes:
        """COPY, by a node that joins one of our partitions."""
        request = decode(messages.Copy.kind, body)
        assert isinstance(request, messages.Copy)
        return copying.answer(self._replicas, request_id, request)

    # --- copying ---------------------------------------------------------------------------------

    def _copy_forever(self) -> None:
        """Whenever the map has changed, copy the partitions that this node has joined."""
        numbers = itertools.cycle(range(1, 1 << 32))
        session = Session(self._locate, calls_max=_COPIES_MAX)
        reported: dict[int, int] = {}  # partition -> the join_epoch as which it was copied
        while True:
            if not self._may_copy.wait(_REPORT_AGAIN_S):
                reported.clear()
            self._may_copy.clear()
            with self._lock:
                joined = {p: self._replicas[p].join_epoch for p in copying.pending(self._replicas)}
            todo = [p for p, join_epoch in joined.items() if reported.get(p) != join_epoch]
            if not todo:
                continue
            try:
                self._members = self._ask_members()
                operations = (
                    copying.copy(
                        self._replicas,
                        self._lock,
                        partition,
                        self._options.token,
                        numbers.__next__,
                    )
                    for partition in todo
                )
                outcomes = session.run_many(operations, _COPY_TIMEOUT_S, len(todo))
            except Exception:
                # For example too many open files. Without this thread no copy is ever restored.
                logger.exception("copying failed; it goes on in %g s", _REPORT_AGAIN_S)
                continue
            counts = [outcome for outcome in outcomes if isinstance(outcome, int)]
            logger.info("copied %d entries of %d partitions", sum(counts), len(counts))
            for partition, outcome in zip(todo, outcomes, strict=True):
                if isinstance(outcome, int):
                    reported[partition] = joined[partition]
                else:
                    logger.warning("partition %d was not copied: %s", partition, outcome)

    def _ask_members(self) -> dict[int, messages.Member]:
        try:
            reply = self._ask(messages.ClusterInfo(), _FETCH_TIMEOUT_S)
        except NetworkError as error:
            logger.warning("cannot ask where the nodes are: %s", error)
            return self._members
        if not isinstance(reply, messages.Cluster):
            return self._members
        return {member.node: member for member in reply.members}

    def _locate(self, peer: int) -> tuple[str, str, int]:
        if peer == MANAGER:
            return ("the manager", *self._options.manager)
        member = self._members.get(peer)
        if member is None:
            raise ConnectError(f"node {peer}", "its address is not known")
        address = format_address(member.host, member.port)
        return f"node {peer} ({address})", member.host, member.port

    # --- the manager -----------------------------------------------------------------------------

    def _register(self) -> messages.Registered:
        options = self._options
        request = messages.Register(
            options.token, options.node, options.incarnation, os.getpid(), self._server.port
        )
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
        self._may_copy.set()
        logger.debug("goes by map %d (%d rows changed)", epoch & 0xFFFF_FFFF, len(rows))

    def _ask(self, request: messages.Message, timeout_s: float) -> messages.Message:
        host, port = self._options.manager
        return call_once("the manager", host, port, request, timeout_s)
