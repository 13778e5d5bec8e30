"""What the manager decides: who is alive, who is to be killed, and which map holds.

The pure core of the manager. It is told of events, each with the time at which it happened, and
returns what to do; it knows no sockets, clocks, threads or processes. The rules (M1, M2, ...) are
those of docs/REPLICATION.md.

A member's state follows one table, TRANSITIONS: an event that has no row for a state is a mistake
of the caller. Silence makes a member suspect, and never dead: a suspect that stays silent is fenced
(killed), and only the end of its process, seen by the manager, makes it dead (M2). In this version
a dead member stays dead.

Order of a change (M2): the process is surely gone, then the new map is made, then it is published.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final, TypeAlias

from .placement import PartitionMap
from .wire.messages import ALIVE, DEAD, SUSPECT, Member

_BUSY_MISS: Final = Fraction(1, 10)
"""What a missed probe counts for if the process was at work meanwhile."""

# --- events --------------------------------------------------------------------------------------

ANSWERED: Final = "answered"
MISSED: Final = "missed"
EXITED: Final = "exited"

TRANSITIONS: Final = {
    (ALIVE, ANSWERED): ALIVE,
    (ALIVE, MISSED): SUSPECT,
    (ALIVE, EXITED): DEAD,
    (SUSPECT, ANSWERED): ALIVE,
    (SUSPECT, MISSED): SUSPECT,
    (SUSPECT, EXITED): DEAD,
    # A probe that was under way when the process ended.
    (DEAD, ANSWERED): DEAD,
    (DEAD, MISSED): DEAD,
}

# --- actions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """Send a PING; tell ``answered`` or ``missed`` when it is settled."""

    node: int


@dataclass(frozen=True)
class Fence:
    """Kill the process (SIGKILL); tell ``exited`` once its end was seen."""

    node: int


@dataclass(frozen=True)
class Publish:
    """Give the newest map to every living node: this node was removed from it."""

    node: int


@dataclass(frozen=True)
class Report:
    """Write this to the log, as a warning."""

    text: str


Action: TypeAlias = Probe | Fence | Publish | Report


class Membership:
    """The members of one cluster and its partition map.

    Args:
        members: all nodes, each alive, as they registered.
        partition_map: the map that holds.
        probe_interval_s: how often each node is probed.
        misses_max: how many probes in a row may be missed before the manager acts.
    """

    def __init__(
        self,
        members: list[Member],
        partition_map: PartitionMap,
        probe_interval_s: float,
        misses_max: int,
    ) -> None:
        self.members = {member.node: member for member in members}
        self.map = partition_map
        self._interval_s = probe_interval_s
        self._misses_max = misses_max
        self._misses: dict[int, Fraction] = dict.fromkeys(self.members, Fraction(0))
        self._fenced: set[int] = set()
        self._next_tick: float | None = None

    def tick(self, now: float) -> list[Action]:
        """Probe every living node once an interval. ``next_tick`` says when to call again."""
        actions: list[Action] = []
        if self._next_tick is not None and now > self._next_tick + self._interval_s:
            # M1: the manager itself was stopped, or the machine slept: silence proves nothing.
            late_s = now - self._next_tick
            actions.append(Report(f"the manager was stopped for {late_s:.1f} s: probes start anew"))
            self._misses = dict.fromkeys(self._misses, Fraction(0))
        if self._next_tick is None or now >= self._next_tick:
            self._next_tick = now + self._interval_s
            actions += [
                Probe(node) for node, member in self.members.items() if member.state != DEAD
            ]
        return actions

    @property
    def next_tick(self) -> float:
        """When ``tick`` is due again, on the caller's clock."""
        return self._next_tick or 0.0

    def answered(self, node: int) -> list[Action]:
        """A probe was answered, by that node and this incarnation."""
        self._misses[node] = Fraction(0)
        return self._enter(node, ANSWERED)

    def missed(self, node: int, reason: str, is_busy: bool = False) -> list[Action]:
        """A probe was not answered in time, or its connection failed. ``is_busy``: its process was
        at work meanwhile."""
        actions = self._enter(node, MISSED)
        # M1: one that is at work is more likely overloaded than hung. To kill it would give its
        # load to the others, and then they would fall silent one after the other. But one that
        # never answers again, however busy, must not stay for ever.
        before = self._misses[node]
        self._misses[node] += _BUSY_MISS if is_busy else 1
        if self.members[node].state != SUSPECT or self._misses[node] < self._misses_max:
            return actions
        if node in self._fenced:
            return actions
        # M1: the last in-sync owner of anything is neither killed nor removed on suspicion. Those
        # that are being killed count no more, or two that fall silent together would both be
        # killed.
        if self.map.is_last_in_sync(node, self._fenced):
            if before < self._misses_max:
                text = (
                    f"node {node} is silent ({reason}) and holds the last copy of some partitions"
                )
                actions.append(Report(f"{text}: waiting for it"))
            return actions
        self._fenced.add(node)
        text = f"node {node} is silent ({reason}, {float(self._misses[node]):g} probes): killing it"
        return [*actions, Report(text), Fence(node)]

    def exited(self, node: int, how: str) -> list[Action]:
        """The node's process has ended: seen by its parent, so it answers nobody any more (M2)."""
        if self.members[node].state == DEAD:
            return []
        actions = [Report(f"node {node} is dead: {how}"), *self._enter(node, EXITED)]
        self.map = self.map.without(node)
        actions.append(Publish(node))
        lost = [
            row.partition
            for row in self.map.rows
            if row.owners[0].node == node and not self.alive_owners(row.partition)
        ]
        if lost:
            text = f"{len(lost)} partitions have lost their last owner: they are Unavailable"
            actions.append(Report(text))
        return actions

    def alive_owners(self, partition: int) -> int:
        """How many of a partition's owners have not died."""
        owners = self.map.rows[partition].owners
        return sum(self.members[owner.node].state != DEAD for owner in owners)

    def _enter(self, node: int, event: str) -> list[Action]:
        member = self.members[node]
        state = TRANSITIONS[member.state, event]
        if state == member.state:
            return []
        self.members[node] = replace(member, state=state)
        if event == EXITED:
            return []
        return [Report(f"node {node} is {'suspect' if state == SUSPECT else 'alive again'}")]
