"""Objects for as long as they live: weakref.WeakSet for code that may be entered at any point.

A finalizer, which the garbage collector runs wherever it likes, and a signal's handler may use a
client while the same thread is inside of that client. A lock would wait for ever then, and to go
through a WeakSet raises RuntimeError when something has joined it meanwhile. Here each step is one
that nothing comes between.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

Kept = TypeVar("Kept")


class Living(Generic[Kept]):
    """Those of the objects added that are still alive, in no order."""

    def __init__(self) -> None:
        self._references: set[weakref.ref[Kept]] = set()

    def add(self, one: Kept) -> None:
        self._references.add(weakref.ref(one, self._references.discard))

    def clear(self) -> None:
        self._references.clear()

    def __iter__(self) -> Iterator[Kept]:
        for reference in list(self._references):  # one step: no Python code runs in between
            one = reference()
            if one is not None:
                yield one
