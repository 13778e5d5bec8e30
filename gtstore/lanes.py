"""What a client's calls run on: a lane each, taken from those that are idle, and given back.

Many threads use one client, and so do signal handlers and finalizers, in the middle of a call, and
in the middle of everything below. So there is no lock here that anything could wait for while its
holder cannot go on: ``pop`` and ``append`` of a list are atomic, and so is each other step. The
usual call takes a lane with ``idle.pop()`` and gives it back with ``idle.append``. A call that was
interrupted gives none back: what it has sent may end in the middle of a frame.

At most so many lanes are alive. If all are in use, a call waits for one: no longer than its
deadline, so also a finalizer's call ends that needs a lane which its own thread holds.

A lane that no call has used for a while is closed, by a later call: a client has no thread of its
own, which a fork would lose and other programs would have to live with. So one that makes no call
at all keeps its connections, until it makes one; that call uses none that may have been idle for
longer than twice CLIENT_IDLE_S, and closes all of them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from .errors import DeadlineExceeded, GTStoreError
from .living import Living
from .operations import Source
from .session import Session
from .wire.messages import CLIENT_IDLE_S


class Lane:
    """What one call at a time uses: an identity with its clock, and a connection to each peer."""

    __slots__ = ("__weakref__", "_on_end", "look_at", "session", "source")

    def __init__(self, source: Source, session: Session) -> None:
        self.source = source
        self.session = session
        self.look_at = time.monotonic() + CLIENT_IDLE_S
        """The first call from that time on has a look at what is idle: Lanes.look."""
        self._on_end: Callable[[], None] | None = None

    def is_idle(self, now: float) -> bool:
        """Whether no call has used it for a while: the first one after ``look_at`` puts it off."""
        return now >= self.look_at + CLIENT_IDLE_S

    def close(self) -> None:
        """Send what is owed, and close the connections."""
        self.source.owe_now()
        self.session.close()

    def __del__(self) -> None:
        if self._on_end is not None:
            self._on_end()


class _Waiter:
    """A call that waits for a lane; in a queue of them, any number of times woken."""

    __slots__ = ("_sleep", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self._sleep = threading.Lock()
        self._sleep.acquire()

    def wait(self, seconds: float) -> None:
        self._sleep.acquire(timeout=seconds)

    def wake(self) -> None:
        with suppress(RuntimeError):  # it is awake
            self._sleep.release()


class Lanes:
    """The lanes of one client.

    Args:
        make: returns a new one.
        count_max: how many there may be.
    """

    def __init__(self, make: Callable[[], Lane], count_max: int) -> None:
        self.idle: list[Lane] = []
        self.wanted: deque[_Waiter] = deque()
        """Who is to be told when a lane was given back: the calls that wait for one, first come,
        first served; and for ever, once the client is closed. Then call ``serve``."""
        self.is_closed = False
        self._make = make
        self._count_max = count_max
        self._places = [True] * count_max  # of lanes that may still be made
        self._living: Living[Lane] = Living()

    def take(self, began_at: float, timeout_s: float) -> Lane:
        """A lane for a call that began at ``began_at``, on the monotonic clock. If all are in use,
        wait for one.

        Raises:
            DeadlineExceeded: none was given back in time.
            GTStoreError: the client was closed.
        """
        lane = None if self.wanted else self._take_now()  # who has waited longer goes first
        return lane or self._wait(began_at + timeout_s, timeout_s)

    def _take_now(self) -> Lane | None:
        if self.is_closed:
            raise GTStoreError("this client was closed")
        try:
            return self.idle.pop()
        except IndexError:
            pass
        try:
            self._places.pop()
        except IndexError:
            return None
        places, wanted = self._places, self.wanted

        def return_place() -> None:
            """Whatever has ended the lane: it may have been lost by a call that was interrupted."""
            places.append(True)
            if wanted:
                _wake_first(wanted)

        try:
            lane = self._make()
        except BaseException:
            return_place()
            raise
        lane._on_end = return_place
        self._living.add(lane)
        return lane

    def _wait(self, ends_at: float, timeout_s: float) -> Lane:
        waiter = _Waiter()
        try:
            # A handler's call, in the middle of another call of this thread that waits, too, goes
            # first: the other one cannot go on before it.
            if any(other.thread == waiter.thread for other in list(self.wanted)):
                self.wanted.appendleft(waiter)
            else:
                self.wanted.append(waiter)
            while True:
                # It is in the queue, so whoever gives a lane back from now on sees it.
                if self.is_closed or self.wanted[0] is waiter:
                    lane = self._take_now()
                    if lane is not None:
                        return lane
                left_s = ends_at - time.monotonic()
                if left_s <= 0:
                    raise DeadlineExceeded(
                        "this client",
                        f"all its {self._count_max} connections to each node were in use by other "
                        f"calls for {timeout_s:g} s; give it a larger max_connections, or make "
                        "fewer calls at once",
                    )
                waiter.wait(left_s)
        finally:
            with suppress(ValueError):  # interrupted before it was there
                self.wanted.remove(waiter)
            self.serve()  # whoever woke this one may have woken no other

    def lent(self, lane: Lane) -> Lent:
        """For ``with``: the lane, given back if the call ends as calls do, with a result or a
        GTStoreError."""
        return Lent(self, lane)

    def give_back(self, lane: Lane) -> None:
        """What has been sent with it is answered."""
        self.idle.append(lane)
        if self.wanted:
            self.serve()

    def drop(self, lane: Lane) -> None:
        """What has been sent with it may end anywhere: nobody uses it any more. Its place is free
        at once: an error's traceback may keep the lane for long."""
        lane.session.abort()
        return_place, lane._on_end = lane._on_end, None
        if return_place is not None:
            return_place()

    def serve(self) -> None:
        """See to those who want a lane, after one was given back."""
        if self.is_closed:
            self._close_idle()
        elif self.idle or self._places:
            _wake_first(self.wanted)

    def look(self, lane: Lane, now: float) -> None:
        """Close what has been idle: of this lane, before a call uses it, and other idle lanes."""
        if lane.is_idle(now):
            lane.close()
        else:
            lane.session.close_unused()
        lane.look_at = now + CLIENT_IDLE_S
        for other in list(self.idle):
            if other.is_idle(now):
                with suppress(ValueError):  # a call has taken it
                    self.idle.remove(other)
                    other.close()

    def close(self) -> None:
        """Close all that are idle, and the others when they are given back; who waits waits no
        more."""
        if not self.is_closed:
            self.is_closed = True
            waiting = list(self.wanted)
            self.wanted.append(_Waiter())  # it stays: all that are given back are wanted
            for waiter in waiting:
                waiter.wake()
        self._close_idle()

    def _close_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self.idle.pop().close()

    def after_fork(self) -> None:
        """In a forked child: leave the parent's connections alone, and draw new identities.

        The sockets are closed here without a word, also those of calls that other threads of the
        parent had in progress: the nodes see nothing of it, since the parent still holds them.
        """
        for lane in self._living:
            lane._on_end = None
            lane.session.abort()
        self._living.clear()
        self.idle.clear()
        self._places = [True] * self._count_max
        self.wanted.clear()
        if self.is_closed:
            self.wanted.append(_Waiter())


class Lent:
    """See Lanes.lent."""

    __slots__ = ("_lane", "_lanes")

    def __init__(self, lanes: Lanes, lane: Lane) -> None:
        self._lanes = lanes
        self._lane: Lane | None = lane

    def __enter__(self) -> Lane:
        assert self._lane is not None
        return self._lane

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        lane, self._lane = self._lane, None
        assert lane is not None
        if kind is None or issubclass(kind, GTStoreError):
            self._lanes.give_back(lane)
        else:
            self._lanes.drop(lane)


def _wake_first(wanted: deque[_Waiter]) -> None:
    with suppress(IndexError):
        wanted[0].wake()
