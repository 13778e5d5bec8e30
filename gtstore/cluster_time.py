"""Cluster time: the one clock by which versions are drawn and expiries are made and judged; rule T1
of docs/REPLICATION.md.

It is the manager's. Nobody reads a wall clock for it but the manager, once, when it starts: from
then on everybody carries it on by a clock that nobody sets, the machine's steady clock. All that
has to be known is how far cluster time is ahead of that. Nodes are on the manager's machine, and
are told. A client asks, and then knows it to within the time that the answer took.

This module knows no clocks: readings of them come in as arguments, in microseconds.
"""

from __future__ import annotations

from typing import Final, NamedTuple

DRIFT_PPM: Final = 500
"""By how many millionths the steady clocks of two machines may differ in speed: the kernel speeds
up or slows down its clocks by no more to follow NTP."""
MEASURE_AGAIN_S: Final = 30
"""What was measured is good for so long: then two clocks may have drifted by 15 ms."""
JUMP_MIN_US: Final = 500_000
"""NTP moves a machine's clocks together, but for steps; smaller ones than this are of no matter."""
ASK_AGAIN_S: Final = 1
"""Who is told that its clock is wrong asks the manager, but no more often than this."""


class ClusterTime:
    """What one client knows of cluster time. Any number of threads may read it, one at a time
    measures.

    Cluster time is never before ``earliest_us`` and never after ``latest_us``; the earliest never
    goes back as long as the steady clock is steady. ``offset_us``, added to a reading of that, is
    the middle: a time for versions, which need no certainty, and rise in any case
    (operations.Identity).
    """

    __slots__ = ("_asked_us", "_measured", "_wall_us", "offset_us")

    def __init__(self) -> None:
        self.offset_us = 0
        self._measured: tuple[int, int, int] | None = None
        """A reading of the steady clock, and between which two the offset was then. Replaced as a
        whole, since others may be reading."""
        self._asked_us: int | None = None
        self._wall_us: int | None = None

    def take(self, asked_us: int, answered_us: int, time_us: int) -> None:
        """Learn from one answer: some time between these two readings of the steady clock, which
        may be the same, cluster time was that one. What was known before still holds, but for what
        the clocks may have drifted; if both cannot be true, the steady clock was not steady (a
        virtual machine was paused, or moved), and only the answer does."""
        # Each reading was rounded down, and the clocks may have drifted since the manager's.
        drift_us = _drift_us(answered_us - asked_us)
        low, high = time_us - answered_us - 1 - drift_us, time_us + 1 - asked_us + drift_us
        if self._measured is not None:
            old_low, old_high = self._bounds(answered_us)
            if low <= old_high and old_low <= high:
                low, high = max(low, old_low), min(high, old_high)
        self._measured = answered_us, low, high
        self._asked_us = answered_us
        self.offset_us = (low + high) // 2

    def is_due(self, steady_us: int, after_s: float) -> bool:
        """Whether so long has passed since the manager was asked the last time, or it never was;
        then count it as asked now, so that nobody else asks meanwhile, nor soon after a failure."""
        if self._asked_us is not None and 0 <= steady_us - self._asked_us < after_s * 1_000_000:
            return False
        self._asked_us = steady_us
        return True

    def has_jumped(self, steady_us: int, wall_us: int) -> bool:
        """Whether the wall clock and the steady one were moved against each other since the last
        look: either the wall clock was set, or the machine is a virtual one that was paused, of
        which its steady clock knows nothing. Then the manager is to be asked."""
        before_us, self._wall_us = self._wall_us, wall_us - steady_us
        return before_us is not None and abs(self._wall_us - before_us) > JUMP_MIN_US

    def earliest_us(self, steady_us: int) -> int:
        """What cluster time has surely reached."""
        return steady_us + self._bounds(steady_us)[0]

    def latest_us(self, steady_us: int) -> int:
        """What cluster time has surely not passed."""
        return steady_us + self._bounds(steady_us)[1]

    def expiry_us(self, steady_us: int, ttl_us: int) -> int:
        """When to end what lives so long from now on. It lives longer by what is not known of
        cluster time, so that it never lives shorter; but at most twice as long: whoever asks for
        less than can be known wants it to be gone at once."""
        earliest_us = self.earliest_us(steady_us)
        unknown_us = self.latest_us(steady_us) - earliest_us
        return max(0, earliest_us) + ttl_us + min(ttl_us, unknown_us)

    def wall_lead_us(self, steady_us: int, wall_us: int) -> int:
        """How far a wall clock is ahead of cluster time, in whole seconds: 0 where they agree. For
        expiries that leave the cluster, or come into it: people, files and other clusters have no
        other clock in common."""
        return round((wall_us - steady_us - self.offset_us) / 1_000_000) * 1_000_000

    def _bounds(self, steady_us: int) -> tuple[int, int]:
        """Between which two the offset is at this reading."""
        assert self._measured is not None, "it was not measured yet"
        measured_us, low, high = self._measured
        drift_us = _drift_us(steady_us - measured_us)
        return low - drift_us, high + drift_us


def _drift_us(time_us: int) -> int:
    """How far two machines' steady clocks may drift apart in so long."""
    return -(-max(0, time_us) * DRIFT_PPM // 1_000_000)  # rounded up


class Reached(NamedTuple):
    """What a manager leaves for its successor: a cluster time, the steady clock's reading then, and
    in which boot of which machine that was ("" if nobody can tell). Only in the same one do
    readings of the steady clock compare."""

    time_us: int
    steady_us: int
    boot: str


def offset_at_start(
    wall_us: int, steady_us: int, boot: str, reached: Reached | None, has_nodes: bool
) -> int:
    """How far cluster time is ahead of a manager's steady clock.

    A new cluster's is what the wall clock says. It never goes back: not below what the last manager
    has left, nor, as long as the machine was not booted again, below that and the time since. If
    nodes of the cluster run (``has_nodes``), it goes on as they have it, without a jump: what has a
    time to live keeps it. Otherwise this start is when it may catch up with the wall clock.
    """
    if reached is None:
        return wall_us - steady_us
    is_same_boot = boot == reached.boot != ""
    gone_us = max(0, steady_us - reached.steady_us) if is_same_boot else 0
    now_us = reached.time_us + gone_us
    if has_nodes and is_same_boot:
        return now_us - steady_us
    return max(now_us, wall_us) - steady_us
