"""The clock that nobody sets: it goes on while the machine sleeps, and knows no wall clock. Beside
it, for those few who may look at it, the one that somebody may set.

Readings of one boot of a machine compare, whichever process takes them. Cluster time is carried on
by it (cluster_time.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

# Where there is none, for example on macOS, the next best one stands still in sleep.
steady_ns: Final[Callable[[], int]] = (
    partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic_ns
)
"""Nanoseconds, from some moment on."""


def steady_us() -> int:
    """The same in microseconds."""
    return steady_ns() // 1000


def wall_us() -> int:
    """The wall clock: microseconds since 1970, as far as it is right."""
    return time.time_ns() // 1000


@cache
def boot_id() -> str:
    """Which boot of which machine this is; "" if nobody can tell."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
