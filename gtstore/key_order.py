"""The keys of a dict in the order of their bytes, made when somebody wants them.

A partition in memory is a dict, which knows no order, and keeping one would cost every put of a new
key. So the order is made by those who read by it, scans and copies, a portion with each request:
sorting all of 100,000 keys at once would keep everybody else waiting for 30 ms or more.

A ``KeyOrder`` has sorted runs of some thousand keys each. Every question first takes in the keys
that came since the last one: a dict has its keys in the order of their arrival, so these are behind
the newest one that is known. Then it sorts one portion of what is not sorted yet; and when nothing
is left to sort, it merges the runs from the wanted key on. So an answer is always about the keys as
they are now, and one KeyOrder serves any number of readers, wherever each of them is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import groupby, islice, takewhile
from typing import Final

_RUN_SIZE: Final = 4096
"""Keys that are sorted at once: less than a millisecond (tests/test_key_order.py prints it)."""
_IDLE_MAX: Final = 5


class KeyOrder:
    """The order of one dict's keys. Not for several threads at once.

    Args:
        entries: the dict. Keys may be added at any time; before one is removed, ``will_drop`` is
            called, and ``forget`` when it is cleared.
    """

    __slots__ = ("_entries", "_idle", "_known", "_newest", "_runs", "_unsorted")

    def __init__(self, entries: dict[bytes, bytes]) -> None:
        self._entries = entries
        self.forget()

    def forget(self) -> None:
        """Let go of everything; the next question begins anew."""
        self._newest: bytes | None = None
        """The key that had come last when the dict was looked at; None: nothing is known."""
        self._known = 0  # keys in runs and unsorted, also those that were dropped since
        self._unsorted: list[bytes] = []
        self._runs: list[list[bytes]] = []
        self._idle = 0

    def from_key(self, first: bytes, count: int) -> list[bytes] | None:
        """The lowest ``count`` keys that are not below ``first``, or as many as there are; None:
        they are not sorted yet, ask again."""
        self._idle = 0
        self._take_in()
        self._sort_some()
        if self._unsorted:
            return None
        merged = merge(*(_tail(run, bisect_left(run, first)) for run in self._runs))
        # A key that was dropped and put again may be in two runs.
        keys = (key for key, _ in groupby(merged))
        return list(islice(filter(self._entries.__contains__, keys), count))

    def will_drop(self, key: bytes) -> None:
        """A key is about to be removed from the dict."""
        # If it came again, it would stand behind others that are not known yet.
        if key == self._newest:
            self.forget()

    def rest(self) -> None:
        """To be called now and then: when nobody has asked for some calls, let go of everything."""
        self._idle += 1
        if self._idle > _IDLE_MAX and self._newest is not None:
            self.forget()

    def _take_in(self) -> None:
        """Learn which keys have come."""
        entries = self._entries
        # Begin anew where most keys came since, or many of those that are known were dropped: what
        # one question costs must not depend on what happened before it.
        if not len(entries) // 2 <= self._known <= len(entries) * 5 // 4 + _RUN_SIZE:
            self.forget()
        fresh: Iterable[bytes] = entries
        if self._newest is not None:
            fresh = takewhile(self._newest.__ne__, reversed(entries))
        before = len(self._unsorted)
        self._unsorted += fresh
        if len(self._unsorted) > before:
            self._newest = next(reversed(entries))
            self._known += len(self._unsorted) - before

    def _sort_some(self) -> None:
        """Make a run of some of the unsorted keys, or add them to the last one, if they fit."""
        if not self._unsorted:
            return
        run = self._unsorted[-_RUN_SIZE:]
        del self._unsorted[-_RUN_SIZE:]
        if self._runs and len(self._runs[-1]) + len(run) <= _RUN_SIZE:
            run = self._runs.pop() + run
        run.sort()
        self._runs.append(run)


def _tail(run: list[bytes], at: int) -> Iterator[bytes]:
    """The items of a list from there on, none of them copied."""
    return map(run.__getitem__, range(at, len(run)))
