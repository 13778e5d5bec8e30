"""Lets answers leave when what they depend on is on disk: rule N2 of docs/REPLICATION.md.

One thread a node commits, again and again, what all connections have stored meanwhile, each time
with one sync: the more wait, the more share it. A connection's thread waits before it sends, and
only if one of its answers depends on something that is not on disk yet.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from _thread import LockType, allocate_lock, get_ident
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

from .disk import DiskEngine, Store, sealed
from .engine import Remembered
from .errors import StoreFull
from .server import TokenLock

logger = logging.getLogger("gtstore.committer")

DISK_FAILED_EXIT: Final = 74
"""A node's exit code when its disk fails (EX_IOERR of sysexits.h); the manager says it in words."""
_IDLE_S: Final = 0.5
"""What nobody waits for (committed flags) is committed after that time; and so often it is tried
whether a full disk has room again."""


class Committer:
    """The thread of one node.

    Args:
        store: the engine's.
        lock: guards the engine and what is around it.
        remembered: tells what is to be kept of a partition; called with the lock held.
    """

    def __init__(
        self,
        engine: DiskEngine,
        store: Store,
        lock: TokenLock,
        remembered: Callable[[int], Remembered],
    ) -> None:
        self._engine = engine
        self._store = store
        self._lock = lock
        self._remembered = remembered
        self._depends: dict[int, int] = {}  # thread -> the batch that its answers depend on
        self._waiting: list[tuple[int, LockType]] = []  # guarded by _lock; batch, what it waits at
        self._wanted: SimpleQueue[None] = SimpleQueue()
        self._is_stopping = threading.Event()
        engine.on_depend = self._depend
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Commit what is left, and end. The store stays open: other threads may still read."""
        self._is_stopping.set()
        self._wanted.put(None)
        self._thread.join()

    # --- for the threads that wait ---------------------------------------------------------------

    def _depend(self, batch: int) -> None:
        self._depends[get_ident()] = batch

    def wait(self) -> None:
        """Wait until everything is on disk that this thread's answers depend on (engine.depend).

        Raises ConnectionAbortedError if it could not be stored: they must not be sent.
        """
        batch = self._depends.pop(get_ident(), 0)
        if batch <= self._engine.committed:
            return
        gate = allocate_lock()
        gate.acquire()
        with self._lock:
            if batch <= self._engine.committed:
                return
            self._waiting.append((batch, gate))
        self._wanted.put(None)
        gate.acquire()
        if batch > self._engine.committed:
            raise ConnectionAbortedError("what the answers depend on could not be stored")

    def flush(self) -> None:
        """Wait until everything is on disk that is stored now. Raises ConnectionAbortedError."""
        with self._lock:
            self._engine.depend()
        self.wait()

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_stopping.is_set():
                self._await_work()
                self._commit()
            self._commit()
        except Exception as error:
            # M6: what is on the disk is not known any more, so nothing may be answered.
            logger.critical("the disk failed: %s: this node ends", error)
            os._exit(DISK_FAILED_EXIT)

    def _await_work(self) -> None:
        try:
            self._wanted.get(timeout=_IDLE_S)
            while True:
                self._wanted.get_nowait()
        except Empty:
            pass

    def _commit(self) -> None:
        engine = self._engine
        with self._lock:
            is_idle = not engine.has_staged
            changes = engine.garbage() if is_idle else engine.take(self._remembered)
        try:
            if changes:
                self._store.commit(sealed(changes))
        except StoreFull as error:
            with self._lock:
                if not is_idle:
                    engine.put_back()
                if not engine.is_full:
                    logger.error("writes are refused until there is room again: %s", error)
                engine.is_full = True
                gates = self._gates(engine.batch - 1)
        else:
            has_room = self._store.has_room()
            with self._lock:
                if changes:
                    self._store.refresh()
                if not is_idle:
                    engine.settle()
                if engine.is_full is has_room:
                    what = "there is room again" if has_room else "writes are refused: it is full"
                    logger.log(logging.INFO if has_room else logging.ERROR, "the disk: %s", what)
                engine.is_full = not has_room
                gates = self._gates(engine.committed)
        for gate in gates:
            gate.release()
        if engine.is_full:
            time.sleep(_IDLE_S)

    def _gates(self, batch: int) -> list[LockType]:
        """Those who wait for a batch up to this one; they wait no more."""
        gates = [gate for number, gate in self._waiting if number <= batch]
        if gates:
            self._waiting = [item for item in self._waiting if item[0] > batch]
        return gates
