"""Giving memory back: what a long frame took must not stay with the process.

The C library keeps what is freed, for later. With glibc every thread has a heap of its own, so that
a process which received long values on many connections stays large, with nothing stored. One heap
for all is no slower here, since threads take turns in Python anyway; and what is free in it goes
back to the system with one call, which takes some milliseconds. Making glibc do that at each free
instead would have the pages to be had anew each time.

With another C library both functions do nothing.
"""

from __future__ import annotations

import ctypes
import time

_M_ARENA_MAX = -8  # malloc.h
_PAUSE_S = 1.0
_PAUSE_SHARE = 50
"""And never for more than a fiftieth of the time: where much is stored, it takes longer."""

_libc = ctypes.CDLL(None)
_mallopt = getattr(_libc, "mallopt", None)
_malloc_trim = getattr(_libc, "malloc_trim", None)


def use_one_heap() -> None:
    """Have one heap for all threads; to be called before there are any."""
    if _mallopt is not None:
        _mallopt(_M_ARENA_MAX, 1)


class Trimmer:
    """Gives free memory back when somebody has ``noted`` that much was freed, but at most once a
    second: whoever frees much all the time would only have to get it again."""

    def __init__(self) -> None:
        self._is_due = False
        self._next_at = 0.0

    def note(self) -> None:
        """Much was freed, or soon will be."""
        self._is_due = True

    def trim(self) -> None:
        """To be called several times a second."""
        now = time.monotonic()
        if self._is_due and now >= self._next_at:
            self._is_due = False
            if _malloc_trim is not None:
                _malloc_trim(0)
            took_s = time.monotonic() - now
            self._next_at = now + max(_PAUSE_S, _PAUSE_SHARE * took_s)
