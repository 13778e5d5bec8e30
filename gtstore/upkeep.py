"""What a node does of its own accord: it copies what it is to hold, and settles what is pending.

A thread for either, and one for each source that is being copied from, with connections of their
own. What they do is decided in copying.py and settling.py; while they wait for the network, they
hold no lock.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from . import copying, operations, scrubbing, settling
from .connection import call_once
from .errors import (
    ConnectError,
    GTStoreError,
    NetworkError,
    RemoteProtocolError,
    StoreDamaged,
)
from .operations import MANAGER, Source
from .placement import Routes, format_address
from .replica import Replicas
from .server import TokenLock
from .session import Session
from .steady_clock import steady_ns
from .threads import GO_ON, OVER, supervised
from .wire.messages import (
    SETTLE_AFTER_S,
    UNAVAILABLE,
    AliveDetail,
    Differs,
    Error,
    Join,
    Leave,
    Message,
    Noted,
)

logger = logging.getLogger("gtstore.upkeep")

_INIT_TIMEOUT_S: Final = 5.0
_COPIES_MAX: Final = 2
"""How many partitions are copied at once from one source, so that it and the copier are at work
together."""
_REPORTED_AT_ONCE: Final = 32
"""So many partitions make one report, and so one map: each costs every node some work."""
_COPY_TIMEOUT_S: Final = 600.0
"""Then copying begins again. A source that hangs is the manager's business."""
_REPORT_AGAIN_S: Final = 2.0
"""What was copied and reported, and does not count as in sync after that time, is copied anew."""
_LOOK_PAUSE_S: Final = 0.1
_ENTRIES_A_LOOK: Final = 500
_PARTITIONS_A_LOOK: Final = 64
_SETTLED_AT_ONCE: Final = 5
_SETTLE_PAUSE_S: Final = 0.02
"""Looking and settling are done in small portions, of less than a millisecond where partitions have
some thousand entries, because every client waits for them: on two processors the work of a second
at once could be felt as 60 ms."""
_SETTLE_TIMEOUT_S: Final = 5.0
_SCRUB_TIMEOUT_S: Final = 30.0
_SCRUB_PAUSE_S: Final = 1.0


class _Copier:
    """What copies from one source: its session, whether a thread is at work with it, and what it
    has copied since that was last told."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.moved = 0
        self.present = 0
        self.partitions = 0
        self.is_at_work = False


def _tell_what_was_copied(copiers: dict[int, _Copier]) -> None:
    """One line for all that was copied, and an end for the connections that are not needed."""
    idle = {source: copier for source, copier in copiers.items() if not copier.is_at_work}
    partitions = sum(copier.partitions for copier in idle.values())
    if partitions:
        moved = sum(copier.moved for copier in idle.values())
        present = sum(copier.present for copier in idle.values())
        more = f"; {present} more were here already" if present else ""
        logger.info("copied %d entries of %d partitions%s", moved, partitions, more)
    for source, copier in idle.items():
        copier.session.close()
        del copiers[source]


class Upkeep:
    """The threads of one node.

    Args:
        now_us: cluster time, in microseconds.
        manager: host and port of the manager.
        token: the cluster's.
        lock: guards the replicas.
        flush: returns when everything that is stored now cannot be lost any more. Raises OSError.
        scrub_share: the part of a processor's time in which this node compares what it holds; 0: it
            does not.
    """

    def __init__(
        self,
        replicas: Replicas,
        now_us: Callable[[], int],
        lock: TokenLock,
        manager: tuple[str, int],
        token: bytes,
        flush: Callable[[], None],
        scrub_share: float = 0,
    ) -> None:
        self._replicas = replicas
        self._scrub_share = scrub_share
        self._told: set[tuple[int, scrubbing.Difference]] = set()
        self._now_us = now_us
        self._lock = lock
        self._manager = manager
        self._token = token
        self._flush = flush
        self._last_copies: set[int] = set()
        """Partitions with a damaged entry, and no other copy; guarded by the lock."""
        self._routes = Routes()
        self._has_new_map = threading.Event()
        self._asking = threading.Lock()  # several threads want to know the cluster at once
        self._pace = copying.Pace(copying.BYTES_A_SECOND, time.monotonic)
        self._next_number = itertools.cycle(range(1, 1 << 32)).__next__

    def start(self) -> None:
        supervised("copies", self._copy_forever, GO_ON)
        supervised("settler", self._settle_forever, GO_ON)
        if self._is_doubtful():
            supervised("gatherer", self._gather, GO_ON)
        if self._scrub_share:
            supervised("scrub", self._scrub_forever, GO_ON)

    def on_new_map(self) -> None:
        """To be called when the map has changed where this node is syncing: there may be something
        to copy."""
        self._has_new_map.set()

    # --- copying (N6) ----------------------------------------------------------------------------

    def _copy_forever(self) -> None:
        """Whenever the map has changed, copy the partitions that this node has joined: those of
        each source in a thread of their own, so that one that hangs holds up no other."""
        copiers: dict[int, _Copier] = {}  # by the source's node
        reported: dict[int, int] = {}  # partition -> the join_epoch as which it was copied
        while True:
            if not self._has_new_map.wait(_REPORT_AGAIN_S):
                reported.clear()
                _tell_what_was_copied(copiers)
                with self._lock:
                    copying.let_go(self._replicas)
            self._has_new_map.clear()
            # Looked at first: what one that ends meanwhile has copied and reported would be taken
            # as pending here, and be copied once more. When it ends it sets the event again.
            at_work = {source for source, copier in copiers.items() if copier.is_at_work}
            sources: dict[int, list[int]] = {}
            with self._lock:
                for partition, source in copying.pending(self._replicas).items():
                    if reported.get(partition) != self._replicas[partition].join_epoch:
                        sources.setdefault(source, []).append(partition)
            for source in sources.keys() - at_work:
                if source not in copiers:
                    copiers[source] = _Copier(Session(self._locate, calls_max=_COPIES_MAX))
                work = partial(self._copy_from, copiers[source], sources[source], reported)
                copiers[source].is_at_work = True
                try:
                    supervised(f"copier from node {source}", work, OVER)
                except (RuntimeError, MemoryError) as error:
                    copiers[source].is_at_work = False
                    logger.warning("node %d is copied from later: %s", source, error)

    def _copy_from(self, copier: _Copier, todo: list[int], reported: dict[int, int]) -> None:
        is_done = False
        try:
            self._know_the_cluster(copier.session)
            is_done = self._copy(copier, todo, reported)
        except Exception as error:
            # Without this thread no copy is ever restored.
            logger.warning("copying failed; it goes on in %g s: %s", _REPORT_AGAIN_S, error)
        finally:
            copier.is_at_work = False
        if is_done:
            self._has_new_map.set()  # what came meanwhile was left to this thread

    def _copy(self, copier: _Copier, todo: list[int], reported: dict[int, int]) -> bool:
        """Say whether nothing failed: else it is tried again after a pause."""
        node, token = self._replicas.node, self._token
        failed = 0
        for at in range(0, len(todo), _REPORTED_AT_ONCE):
            some = todo[at : at + _REPORTED_AT_ONCE]
            outcomes = copier.session.run_many(
                (
                    copying.copy(
                        self._replicas,
                        self._lock,
                        partition,
                        token,
                        self._next_number,
                        self._pace,
                    )
                    for partition in some
                ),
                _COPY_TIMEOUT_S,
                len(some),
            )
            joins = []
            for partition, outcome in zip(some, outcomes, strict=True):
                if isinstance(outcome, GTStoreError):
                    logger.warning("partition %d was not copied: %s", partition, outcome)
                    failed += 1
                    continue
                copier.moved += outcome.moved
                copier.present += outcome.present
                if outcome.join is not None:
                    joins.append(outcome.join)
            if joins:
                self._flush()  # N2: the report says that it is all here, for good
                report = copying.report(token, node, joins, self._next_number)
                copier.session.run(report, _COPY_TIMEOUT_S)
                copier.partitions += len(joins)
                reported.update((join.partition, join.join_epoch) for join in joins)
        return not failed

    # --- logs that do not end whole (N2a) --------------------------------------------------------

    def _is_doubtful(self) -> bool:
        with self._lock:
            return any(self._replicas[p].is_doubtful for p in range(len(self._replicas)))

    def _gather(self) -> None:
        """As long as something that this node has is doubtful, look whether it is the one to open
        the partition, and do so. Otherwise it waits here for the owners that it is to hear of."""
        gathered: list[Join] = []  # all of it is here, and the manager does not know that yet
        while gathered or self._is_doubtful():
            with self._lock:
                todo = copying.to_gather(self._replicas)
            try:
                for at in range(0, max(len(todo), bool(gathered)), _REPORTED_AT_ONCE):
                    self._gather_some(todo[at : at + _REPORTED_AT_ONCE], gathered)
            except Exception as error:
                logger.warning(
                    "partitions are not opened yet; it goes on in %g s: %s", _REPORT_AGAIN_S, error
                )
                time.sleep(_REPORT_AGAIN_S)
            time.sleep(_LOOK_PAUSE_S if todo else SETTLE_AFTER_S)

    def _gather_some(self, todo: list[int], gathered: list[Join]) -> None:
        session = Session(self._locate)
        pace = copying.Pace(math.inf, time.monotonic)  # nobody works there meanwhile
        try:
            self._know_the_cluster(session)
            outcomes = session.run_many(
                (
                    copying.gather(
                        self._replicas, self._lock, p, self._token, self._next_number, pace
                    )
                    for p in todo
                ),
                _COPY_TIMEOUT_S,
                len(todo),
            )
            joins = [join for join in outcomes if isinstance(join, Join)]
            with self._lock:
                for join in joins:
                    self._replicas.vouch(join.partition)
            gathered += joins
            if not gathered:
                return
            self._flush()  # N2: the report says that it is all here, for good
            report = copying.report(self._token, self._replicas.node, gathered, self._next_number)
            session.run(report, _COPY_TIMEOUT_S)
            logger.warning(
                "%d partitions have what is left of them on all disks, and open again",
                len(gathered),
            )
            gathered.clear()
        finally:
            session.close()

    # --- scrub (N10) -----------------------------------------------------------------------------

    def _scrub_forever(self) -> None:
        """Read everything, and compare it with what others have, again and again, in a small share
        of a processor's time."""
        session = Session(self._locate)
        partitions = list(range(len(self._replicas)))
        while True:
            random.shuffle(partitions)  # or all nodes would be at the same ones at once
            for partition in partitions:
                try:
                    self._scrub(session, partition)
                except StoreDamaged as error:
                    if partition not in self._last_copies:
                        self.on_damage(error)
                except GTStoreError as error:
                    logger.debug("partition %d is compared another time: %s", partition, error)
            logger.debug("all that is here was read, and compared with what others have")
            time.sleep(_SCRUB_PAUSE_S)

    def _scrub(self, session: Session, partition: int) -> None:
        self._know_the_cluster(session)
        after: bytes | None = b""
        while after is not None:
            began_s = time.thread_time()
            looking = scrubbing.look(
                self._replicas,
                self._lock,
                partition,
                after,
                self._token,
                self._next_number,
                self._now_us,
            )
            portion = session.run(looking, _SCRUB_TIMEOUT_S)
            after = portion.after
            # What ends this look comes first: then the other owner is not to leave, too.
            for found in sorted(portion.differences, key=lambda each: each.wrong.name):
                self._on_difference(partition, portion.other, found)
            spent_s = time.thread_time() - began_s
            time.sleep(spent_s / self._scrub_share)

    def _on_difference(self, partition: int, other: int, found: scrubbing.Difference) -> None:
        """Raises StoreDamaged if this node has to copy the partition anew."""
        key = operations.shown(found.key)
        if found.wrong is scrubbing.Wrong.HERE:
            what = f"is older than what node {other} has committed"
            raise StoreDamaged(partition, found.key, what)
        if found.wrong is scrubbing.Wrong.THERE:
            logger.error("node %d lacks what is committed here of key %s", other, key)
            message = Differs(self._token, partition, found.version, found.key)
            try:
                call_once(*self._locate(other), message, _INIT_TIMEOUT_S)
            except NetworkError as error:
                logger.warning("node %d is told of it another time: %s", other, error)
        elif (partition, found) not in self._told:
            self._told.add((partition, found))
            logger.error(
                "node %d and this one do not hold the same of key %s (partition %d), and nobody "
                "can tell which is right: both stay as they are (docs/OPERATIONS.md)",
                other,
                key,
                partition,
            )

    def on_differs(self, request: Differs) -> Noted:
        """The lock is held. Raises StoreDamaged if it is so: then ``on_damage`` is to be called,
        and after that this again."""
        if request.partition < len(self._replicas):
            key, version = request.key, request.version
            is_so = scrubbing.lacks(self._replicas, request.partition, key, version)
            if is_so:
                what = "is older than what another owner has committed"
                raise StoreDamaged(request.partition, key, what)
            if is_so is None:
                logger.error(
                    "another owner has committed an entry of key %s (partition %d) that is not "
                    "here, and nobody can tell whether it was deleted: both stay as they are "
                    "(docs/OPERATIONS.md)",
                    operations.shown(key),
                    request.partition,
                )
        return Noted()

    # --- damaged entries -------------------------------------------------------------------------

    def on_damage(self, error: StoreDamaged) -> bool:
        """An entry on the disk is damaged: answer for its partition no more, and ask the manager to
        let this node join it anew, so that it copies what others have.

        Return False, or raise Unavailable, if that is not to be: this is the last copy. Then the
        rest of the partition is answered for, and only what is damaged is not.
        """
        partition = error.partition
        with self._lock:
            is_known = partition in self._last_copies or self._replicas[partition].is_suspended
            if not is_known:
                join = Join(partition, self._replicas.suspend(partition))
        if partition in self._last_copies:
            raise RemoteProtocolError(
                UNAVAILABLE, f"{error}, and there is no other copy", detail=AliveDetail(1, 0)
            )
        if not is_known:
            logger.error("%s: it is to be copied from another node", error)
            try:
                supervised("leaver", partial(self._leave, join), GO_ON)
            except BaseException:
                with self._lock:
                    self._replicas.resume(partition)  # until it is found again
                raise
        return True

    def _leave(self, join: Join) -> None:
        """Ask until there is an answer: before that, nothing may be answered."""
        request = Leave(self._token, self._replicas.node, join)
        while True:
            reply: Message | NetworkError
            try:
                reply = call_once("the manager", *self._manager, request, _INIT_TIMEOUT_S)
            except NetworkError as error:
                reply = error
            if isinstance(reply, Noted):
                return
            if isinstance(reply, Error) and reply.code == UNAVAILABLE:
                logger.error(
                    "this is the last copy of partition %d, and stays as it is; what is damaged is "
                    "Unavailable (docs/OPERATIONS.md)",
                    join.partition,
                )
                with self._lock:
                    self._last_copies.add(join.partition)
                    self._replicas.resume(join.partition)
                return
            logger.warning("the manager does not answer LEAVE yet: %s", reply)
            time.sleep(_REPORT_AGAIN_S)

    # --- settling (N8) ---------------------------------------------------------------------------

    def _settle_forever(self) -> None:
        """Go round all partitions, in a second or as long as it takes."""
        while True:
            source = Source(lambda: secrets.randbits(64), steady_ns, random.random)
            session = Session(self._locate, source.owed)
            ends_at = time.monotonic() + SETTLE_AFTER_S
            try:
                at = 0
                while at < len(self._replicas):
                    at, found = self._look_through(at)
                    for first in range(0, len(found), _SETTLED_AT_ONCE):
                        some = found[first : first + _SETTLED_AT_ONCE]
                        if not self._settle(session, source, some):
                            break  # an owner does not answer; the other partitions' may
                        time.sleep(_SETTLE_PAUSE_S)
                    time.sleep(_LOOK_PAUSE_S)
                source.owe_now()
            except Exception as error:
                logger.warning("settling failed; it goes on in %g s: %s", SETTLE_AFTER_S, error)
            session.close()
            time.sleep(max(_LOOK_PAUSE_S, ends_at - time.monotonic()))

    def _look_through(self, first: int) -> tuple[int, list[tuple[int, bytes, bytes]]]:
        """Look through some partitions from that one on; return the next one, and what was found:
        partition, key and version of each entry."""
        found: list[tuple[int, bytes, bytes]] = []
        seen = 0
        last = min(first + _PARTITIONS_A_LOOK, len(self._replicas))
        for partition in range(first, last):
            try:
                with self._lock:  # one partition at a time, so that requests come in between
                    pending = settling.look_through(self._replicas, partition, self._now_us())
            except StoreDamaged as error:
                if partition not in self._last_copies:
                    self.on_damage(error)
                continue
            seen += self._replicas[partition].stored
            found += [(partition, key, version) for key, version in pending]
            if seen > _ENTRIES_A_LOOK or found:
                return partition + 1, found
        return last, found

    def _settle(
        self, session: Session, source: Source, found: list[tuple[int, bytes, bytes]]
    ) -> bool:
        """Settle these; say whether all of them were."""
        self._know_the_cluster(session)
        outcomes = session.run_many(
            (operations.settle(self._routes, source, key, version) for _, key, version in found),
            _SETTLE_TIMEOUT_S,
            len(found),
        )
        for (partition, key, version), outcome in zip(found, outcomes, strict=True):
            if isinstance(outcome, GTStoreError):
                logger.debug("an entry of partition %d stays pending: %s", partition, outcome)
            elif outcome:
                with self._lock:
                    self._replicas.commit_held(self._replicas[partition], key, version)
        return not any(isinstance(outcome, GTStoreError) for outcome in outcomes)

    # --- the others ------------------------------------------------------------------------------

    def _know_the_cluster(self, session: Session) -> None:
        """Raises a GTStoreError if the manager does not answer."""
        with self._asking:
            if not self._routes.cluster_id:
                source = Source(lambda: secrets.randbits(64), steady_ns, random.random)
                with self._lock:
                    known = self._replicas.map() if self._replicas.epoch else None
                asking = operations.initialize(self._routes, source, known=known)
                session.run(asking, _INIT_TIMEOUT_S)

    def _locate(self, peer: int) -> tuple[str, str, int]:
        if peer == MANAGER:
            return ("the manager", *self._manager)
        member = self._routes.members.get(peer)
        if member is None:
            raise ConnectError(f"node {peer}", "its address is not known")
        address = format_address(member.host, member.port)
        return f"node {peer} ({address})", member.host, member.port
