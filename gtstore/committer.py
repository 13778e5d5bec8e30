"""Lets answers leave when what they depend on is on disk: rule N2 of docs/REPLICATION.md.

One thread a node commits, again and again, what all connections have stored meanwhile, each time
with one sync: the more wait, the more share it. Answers that depend on something that is not on
disk yet are left to this thread, which sends them after the sync, while the connections' threads
receive again: to wake each of them for that alone would cost more than everything else. A
connection has answers here once at a time, so they leave in the order of the requests.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from _thread import LockType, allocate_lock, get_ident
from collections.abc import Callable
from typing import Final, NamedTuple

from .disk import DiskEngine, Store
from .engine import Remembered
from .errors import StoreFull
from .server import TokenLock

logger = logging.getLogger("gtstore.committer")

DISK_FAILED_EXIT: Final = 74
"""A node's exit code when its disk fails (EX_IOERR of sysexits.h); the manager says it in words."""
_IDLE_S: Final = 0.5
"""What nobody waits for (committed flags) is committed after that time; and so often it is tried
whether a full disk has room again."""
_GATHER_COMMITS: Final = 0.5
_GATHER_EACH_S: Final = 0.000_06
_GATHER_MAX_S: Final = 0.01
"""How long it is waited for more to share a commit: that many times what the last one took, or so
long for each who is expected, and never longer than this. With many clients the processors are the
bound, and who is answered needs some time to come again."""
_HELD_SIZE_MAX: Final = 4096
"""A thread with more than so many bytes of answers waits, and sends them itself."""


class _Waiting(NamedTuple):
    """Who waits for a batch: a thread, at the gate, or answers that are to be sent then."""

    batch: int
    gate: LockType
    sock: socket.socket | None = None
    answers: bytes = b""


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
        self._waiting: list[_Waiting] = []  # guarded by _lock
        self._held: dict[socket.socket, LockType] = {}
        """Connections that have answers here, and what opens when those were sent."""
        self._expected = 0  # so many waited when the last commit had ended
        self._gathering = 0  # it is waited for so many; guarded by _lock
        self._commit_s = 0.0  # what the last one took
        self._is_wanted = False  # guarded by _lock
        self._wanted = _closed_gate()
        self._is_stopping = threading.Event()
        engine.on_depend = self._depend
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Commit what is left, and end. The store stays open: other threads may still read."""
        self._is_stopping.set()
        self._want()
        self._thread.join()

    # --- for the threads that wait ---------------------------------------------------------------

    def _depend(self, batch: int) -> None:
        self._depends[get_ident()] = batch

    def hold(self, sock: socket.socket, answers: bytes) -> bool:
        """See to it that this thread's answers are sent once everything is on disk that they depend
        on (engine.depend). Return False if the caller is to send them, now.

        Raises ConnectionAbortedError if they must not be sent.
        """
        batch = self._depends.pop(get_ident(), 0)
        if batch <= self._engine.committed and sock not in self._held:
            return False
        if len(answers) > _HELD_SIZE_MAX or sock in self._held:
            self._wait(batch, sock)
            return False
        gate = self._held[sock] = _closed_gate()
        if self._enqueue(_Waiting(batch, gate, sock, answers)):
            return True
        del self._held[sock]
        return False

    def wait(self, sock: socket.socket | None = None) -> None:
        """Wait until everything is on disk that this thread's answers depend on, and what the
        connection has here was sent.

        Raises ConnectionAbortedError if it could not be stored: they must not be sent.
        """
        self._wait(self._depends.pop(get_ident(), 0), sock)

    def _wait(self, batch: int, sock: socket.socket | None) -> None:
        earlier = self._held.get(sock) if sock else None
        if earlier:
            earlier.acquire()
        if batch > self._engine.committed:
            gate = _closed_gate()
            if self._enqueue(_Waiting(batch, gate)):
                gate.acquire()
            if batch > self._engine.committed:
                raise ConnectionAbortedError("what the answers depend on could not be stored")

    def _enqueue(self, waiting: _Waiting) -> bool:
        """Return False if there is nothing to wait for any more."""
        with self._lock:
            if waiting.batch <= self._engine.committed:
                return False
            self._waiting.append(waiting)
            is_news = not self._is_wanted and len(self._waiting) >= self._gathering
            self._is_wanted |= is_news
        if is_news:
            self._wanted.release()
        return True

    def _want(self) -> None:
        """Wake the committer; once, however many want it."""
        with self._lock:
            was_wanted, self._is_wanted = self._is_wanted, True
        if not was_wanted:
            self._wanted.release()

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
        """Until something is wanted; and then a moment more, if fewer wait than at the last time:
        clients at work come again as soon as they are answered, and then all share one sync, where
        otherwise two halves of them would take turns."""
        self._await_wanted(_IDLE_S)
        with self._lock:
            is_early = 0 < len(self._waiting) < self._expected
            self._gathering = self._expected if is_early else 0
        if is_early:
            gather_s = max(_GATHER_COMMITS * self._commit_s, _GATHER_EACH_S * self._expected)
            self._await_wanted(min(gather_s, _GATHER_MAX_S))
            self._gathering = 0

    def _await_wanted(self, timeout_s: float) -> None:
        if self._wanted.acquire(timeout=timeout_s):
            self._is_wanted = False

    def _commit(self) -> None:
        engine = self._engine
        with self._lock:
            is_idle = not engine.has_staged
            changes = engine.garbage() if is_idle else engine.take(self._remembered)
        started = time.perf_counter()
        try:
            if changes:
                self._store.commit(changes)
                self._commit_s = time.perf_counter() - started
        except StoreFull as error:
            with self._lock:
                if not is_idle:
                    engine.put_back()
                if not engine.is_full:
                    logger.error("writes are refused until there is room again: %s", error)
                engine.is_full = True
                done = self._take_waiting(engine.batch - 1)
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
                done = self._take_waiting(engine.committed)
        if done:
            self._expected = len(done) + len(self._waiting)
        for waiting in done:
            self._let_go(waiting)
        if engine.is_full:
            time.sleep(_IDLE_S)

    def _take_waiting(self, batch: int) -> list[_Waiting]:
        """Those who wait for a batch up to this one; they wait no more."""
        done = [each for each in self._waiting if each.batch <= batch]
        if done:
            self._waiting = [each for each in self._waiting if each.batch > batch]
        return done

    def _let_go(self, waiting: _Waiting) -> None:
        _, gate, sock, answers = waiting
        if sock:
            try:
                if waiting.batch > self._engine.committed:
                    sock.shutdown(socket.SHUT_RDWR)  # its thread finds the connection closed
                elif (sent := _send_some(sock, answers)) < len(answers):
                    rest = waiting._replace(answers=answers[sent:])
                    threading.Thread(target=self._send_rest, args=(rest,), daemon=True).start()
                    return
            except OSError:
                pass  # its thread finds that, too
            del self._held[sock]
        gate.release()

    def _send_rest(self, waiting: _Waiting) -> None:
        """To a peer that does not take its answers at once: nobody else waits for it."""
        assert waiting.sock
        try:
            waiting.sock.sendall(waiting.answers)
        except OSError:
            pass
        del self._held[waiting.sock]
        waiting.gate.release()


def _closed_gate() -> LockType:
    gate = allocate_lock()
    gate.acquire()
    return gate


def _send_some(sock: socket.socket, data: bytes) -> int:
    """What can be sent without waiting."""
    try:
        return sock.send(data, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return 0
