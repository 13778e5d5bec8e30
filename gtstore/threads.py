"""Starts every thread of manager and nodes, and sees each one's end: docs/ARCHITECTURE.md.

What the work of a thread raises is logged, and then what its maker has chosen happens: the work
begins again (GO_ON), the process ends with an exit code that says why (END), or only this thread is
over (OVER), and its maker has seen to what it leaves. A test reads the sources: no other module
starts a thread.

``threading.Thread.start`` waits for the thread's first step, for ever if memory does not suffice
for that. So these are made of ``_thread``, and a start has an end.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from typing import Final

from . import exit_codes

logger = logging.getLogger("gtstore.threads")

GO_ON: Final = "go on"
END: Final = "end"
OVER: Final = "over"

BEGIN_TIMEOUT_S: Final = 10.0
_AGAIN_S: Final = 1.0


class Supervised:
    """A thread. It does not keep the process from ending.

    Args:
        name: for people, in the log and in debuggers.
        work: what it does; it is over when that returns.
        then: what becomes of what that raises: GO_ON, END or OVER.
    """

    def __init__(self, name: str, work: Callable[[], None], then: str) -> None:
        self.name = name
        self._work = work
        self._then = then
        self._turn = allocate_lock()  # taken by the thread when it begins, or by who gives it up
        self._begun = allocate_lock()
        self._ended = allocate_lock()

    def start(self, timeout_s: float = BEGIN_TIMEOUT_S) -> None:
        """Return when it has begun. Raises RuntimeError or MemoryError if it cannot; then it never
        will."""
        self._begun.acquire()
        self._ended.acquire()
        try:
            start_new_thread(self._run, ())
        except BaseException:
            self._ended.release()
            raise
        if not self._begun.acquire(timeout=timeout_s) and self._turn.acquire(blocking=False):
            self._ended.release()
            raise RuntimeError(f"the thread {self.name!r} did not begin within {timeout_s:g} s")

    def is_alive(self) -> bool:
        return self._ended.locked()

    def join(self) -> None:
        """Wait for its end."""
        with self._ended:
            pass

    def _run(self) -> None:
        if not self._turn.acquire(blocking=False):
            return  # it is given up
        try:
            self._begun.release()
            threading.current_thread().name = self.name
            sys.settrace(threading.gettrace())  # as coverage and debuggers expect of a thread
            while self._is_to_go_on():
                time.sleep(_AGAIN_S)
        finally:
            self._ended.release()

    def _is_to_go_on(self) -> bool:
        """Work; say whether that is to be begun again."""
        try:
            self._work()
        except BaseException as error:
            self._tell(error)
            if self._then == END:
                os._exit(
                    exit_codes.NO_MEMORY
                    if isinstance(error, MemoryError)
                    else exit_codes.INTERNAL_ERROR
                )
            return self._then == GO_ON
        return False

    def _tell(self, error: BaseException) -> None:
        what = "memory is short" if isinstance(error, MemoryError) else "internal error"
        end = {END: "this process ends", GO_ON: f"it goes on in {_AGAIN_S:g} s", OVER: "it is over"}
        try:
            logger.critical(
                "%s in the thread %s: %s", what, self.name, end[self._then], exc_info=error
            )
        except BaseException:
            pass  # memory may be short for that, too; what is to happen, happens


def supervised(
    name: str, work: Callable[[], None], then: str, timeout_s: float = BEGIN_TIMEOUT_S
) -> Supervised:
    """A thread that has begun: see Supervised."""
    thread = Supervised(name, work, then)
    thread.start(timeout_s)
    return thread
