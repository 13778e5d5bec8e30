"""Lets answers leave when what they depend on is on disk: rule N2 of docs/REPLICATION.md.

Of each node's two threads one, the committer, takes again and again what all connections have
stored meanwhile, and the other one, the syncer, writes it with one sync: the more wait, the more
share it.

The committer is the node's reactor: a connection whose answers wait is lent to it (reactor.py), and
after the sync it sends them, and goes on with what comes next on that connection. So a batch is
received, stored and answered without a switch to another thread for each request: with many clients
these switches, and the caches that are cold after them, cost more than all the rest.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from _thread import get_ident
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Final

from . import exit_codes
from .disk import Changes, DiskEngine, Store
from .engine import Remembered
from .errors import StoreError, StoreFailed, StoreFull
from .reactor import HELD_SIZE_MAX, Lent, Reactor
from .server import Handler, TokenLock
from .threads import END, Supervised

logger = logging.getLogger("gtstore.committer")

_IDLE_S: Final = 0.5
"""What nobody waits for (committed flags) is committed after that time; and so often it is tried
whether a full disk has room again."""
_GATHER_EACH_S: Final = 0.000_06
_GATHER_MAX_S: Final = 0.01
"""How long it is waited for more to share a commit: so long for each who is expected, and never
longer than this. Who is answered needs some time to come again."""
_COME_EACH_S: Final = 0.000_03
_COME_MAX_S: Final = 0.001
"""How long it sleeps until it looks who has come: so long for each who is missing, and never longer
than this."""


class _Waiting(Lent):
    """Who waits for a batch: a connection that is lent; or a thread, which has no connection
    here."""

    __slots__ = ("batch", "is_lost")

    def __init__(self, batch: int, sock: socket.socket | None = None, answers: bytes = b"") -> None:
        super().__init__(sock, answers)
        self.batch = batch
        """The answers are to be sent once it is on disk."""
        self.is_lost = False
        """Whether the batch could not be stored."""


class Committer(Reactor):
    """The threads of one node.

    Args:
        store: the engine's.
        lock: guards the engine and what is around it.
        remembered: tells what is to be kept of a partition; called with the lock held.
        handlers: see Reactor.
    """

    def __init__(
        self,
        engine: DiskEngine,
        store: Store,
        lock: TokenLock,
        remembered: Callable[[int], Remembered],
        handlers: Mapping[int, Handler],
    ) -> None:
        super().__init__(lock, handlers)
        self._engine = engine
        self._store = store
        self._remembered = remembered
        self._depends: dict[int, int] = {}  # thread -> the batch that its answers depend on
        self._waiting: list[_Waiting] = []
        """Other threads add to it with the lock held, or a batch could end in between."""
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Wakes the committer when another thread has something for it."""
        self._is_rung = False  # guarded by _lock
        self._poll.register(self._bell, select.EPOLLIN)
        self._expected = 0  # so many waited when the last commit had ended
        self._answered = 0  # at once, since the last commit was begun
        self._idle_until = 0.0
        self._is_syncing = False
        self._is_idle = False  # whether nothing was staged that is being written
        self._to_sync: SimpleQueue[Changes | None] = SimpleQueue()
        self._synced: SimpleQueue[StoreError | None] = SimpleQueue()
        self._is_stopping = False
        engine.on_depend = self._depend
        self._thread = Supervised("committer", self._run, END)
        self._syncer = Supervised("syncer", self._sync_forever, END)

    def start(self) -> None:
        self._idle_until = time.monotonic() + _IDLE_S
        super().start()
        self._syncer.start()

    def stop(self) -> None:
        """Commit what is left, and end. The store stays open: other threads may still read."""
        self._is_stopping = True
        self._ring()
        self._thread.join()
        self._syncer.join()

    # --- for the threads of connections ----------------------------------------------------------

    def _depend(self, batch: int) -> None:
        self._depends[get_ident()] = batch

    def lend(self, sock: socket.socket, answers: bytes, is_whole: bool) -> bool:
        """Leave this thread's answers, and its connection until the next ``receive``, to the
        committer, if they depend on something that is not on disk yet. Return False if the caller
        is to send them, now.

        Args:
            is_whole: whether nothing of a next frame was received.

        Raises ConnectionAbortedError if they must not be sent.
        """
        batch = self._depends.pop(get_ident(), 0)
        if batch <= self._engine.committed:
            return False
        if not is_whole or len(answers) > HELD_SIZE_MAX:
            self._wait(batch)
            return False
        lent = self._lent[sock] = _Waiting(batch, sock, answers)
        if self._enqueue(lent):
            return True
        del self._lent[sock]
        return False

    def wait(self) -> None:
        """Wait until everything is on disk that this thread's answers depend on.

        Raises ConnectionAbortedError if it could not be stored: they must not be sent.
        """
        self._wait(self._depends.pop(get_ident(), 0))

    def _wait(self, batch: int) -> None:
        if batch > self._engine.committed:
            waiting = _Waiting(batch)
            if self._enqueue(waiting):
                waiting.gate.acquire()
            if waiting.is_lost:
                raise _lost()

    def _enqueue(self, waiting: _Waiting) -> bool:
        """Return False if there is nothing to wait for any more."""
        with self._lock:
            if waiting.batch <= self._engine.committed:
                return False
            self._waiting.append(waiting)
        self._ring()
        return True

    def _ring(self) -> None:
        """Wake the committer; once, however many want it."""
        with self._lock:
            was_rung, self._is_rung = self._is_rung, True
        if not was_rung:
            os.eventfd_write(self._bell, 1)

    def flush(self) -> None:
        """Wait until everything is on disk that is stored now. Raises ConnectionAbortedError."""
        with self._lock:
            self._engine.depend()
        self.wait()

    # --- the syncer ------------------------------------------------------------------------------

    def _sync_forever(self) -> None:
        while (changes := self._to_sync.get()) is not None:
            self._synced.put(self._sync(changes))
            os.eventfd_write(self._bell, 1)

    def _sync(self, changes: Changes) -> StoreError | None:
        """Return what went wrong."""
        try:
            self._store.commit(changes)
        except StoreError as error:
            return error
        except MemoryError:
            raise  # it is none of the disk's; but what is there is not known, so the node ends
        except Exception as error:
            return StoreFailed(repr(error))
        return None

    # --- the committer ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_stopping or self._is_syncing:
                self._do_next()
            self._begin()
            while self._is_syncing:
                self._do_next()
        except StoreError as error:
            end_node(error)
        self._to_sync.put(None)

    def _do_next(self) -> None:
        if self._is_syncing:
            self._serve_ready(None)
            if not self._synced.empty():
                self._end(self._synced.get())
            return
        is_wanted = bool(self._waiting) and not self._engine.is_full
        left_s = self._idle_until - time.monotonic()
        if not is_wanted and left_s > 0 and not self._is_stopping:
            self._serve_ready(left_s)
            return
        if is_wanted:
            self._gather()
        self._answered = 0
        self._begin()

    def _gather(self) -> None:
        """Wait a moment, if fewer wait than at the last time: clients at work come again as soon as
        they are answered, and then all share one sync, where otherwise two halves of them would
        take turns."""
        ends_at = time.monotonic() + min(_GATHER_EACH_S * self._expected, _GATHER_MAX_S)
        while (missing := self._expected - len(self._waiting)) > 0:
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                break
            if self._answered:
                # Some of them read: who is answered at once may come with a write yet. epoll itself
                # knows no time below a millisecond.
                if not select.select([self._poll], (), (), left_s)[0]:
                    break
            else:
                # Asleep, and not until the next one comes: to be woken for each one costs more than
                # to serve them all.
                time.sleep(min(left_s, _COME_EACH_S * missing, _COME_MAX_S))
            self._serve_ready(0)

    def _new(self, sock: socket.socket) -> _Waiting:
        return _Waiting(0, sock)

    def _check(self, lent: Lent) -> None:
        assert isinstance(lent, _Waiting)
        if lent.is_lost:
            raise _lost()

    def _on_bell(self) -> None:
        os.eventfd_read(self._bell)
        with self._lock:
            self._is_rung = False

    def _has_handled(self, lent: Lent) -> None:
        """It waits for a batch, if it has to."""
        assert isinstance(lent, _Waiting)
        lent.batch = self._depends.pop(get_ident(), 0)
        if lent.batch > self._engine.committed:
            self._waiting.append(lent)
        else:
            self._answered += 1
            self._go_on(lent)

    def _begin(self) -> None:
        """Begin to write what is staged."""
        engine = self._engine
        with self._lock:
            self._is_idle = not engine.has_staged
            changes = engine.garbage() if self._is_idle else engine.take(self._remembered)
        if not changes:
            self._end(None)
        elif len(self._polled) <= 1 and all(lent.answers for lent in list(self._polled.values())):
            # Nobody can come meanwhile who does not wait for it. With more clients the next batch
            # is gathered at the same time.
            self._end(self._sync(changes))
        else:
            self._is_syncing = True
            self._to_sync.put(changes)

    def _end(self, error: StoreError | None) -> None:
        """What was begun is on disk, or there was nothing; go on with those who waited for it.

        Raises ``error``, unless there is just no room.
        """
        engine = self._engine
        self._is_syncing = False
        self._idle_until = time.monotonic() + _IDLE_S
        if error and not isinstance(error, StoreFull):
            raise error
        has_room = not error and self._store.has_room()
        with self._lock:
            if error:
                if not self._is_idle:
                    engine.put_back()
                if not engine.is_full:
                    logger.error("writes are refused until there is room again: %s", error)
                done = self._take_waiting(engine.batch - 1)
            else:
                self._store.refresh()
                if not self._is_idle:
                    engine.settle()
                if engine.is_full is has_room:
                    what = "there is room again" if has_room else "writes are refused: it is full"
                    logger.log(logging.INFO if has_room else logging.ERROR, "the disk: %s", what)
                done = self._take_waiting(engine.committed)
            engine.is_full = not has_room
        if done:
            self._expected = len(done) + len(self._waiting)
        for waiting in done:
            waiting.is_lost = waiting.batch > engine.committed
            if waiting.sock and not waiting.is_lost:
                self._go_on(waiting)
            else:
                self._give_back(waiting)

    def _take_waiting(self, batch: int) -> list[_Waiting]:
        """Those who wait for a batch up to this one; they wait no more."""
        done = [each for each in self._waiting if each.batch <= batch]
        if done:
            self._waiting = [each for each in self._waiting if each.batch > batch]
        return done


def end_node(error: StoreError) -> None:
    """M6: what is on the disk is not known any more, so nothing may be answered."""
    logger.critical("the disk failed: %s: this node ends", error)
    os._exit(exit_codes.DISK_FAILED)


def _lost() -> ConnectionAbortedError:
    return ConnectionAbortedError("what the answers depend on could not be stored")
