"""What the manager decides: who is alive, who is to be killed, and which map holds.

The pure core of the manager. It is told of events, each with the time at which it happened, and
returns what to do; it knows no sockets, clocks, threads or processes. The rules (M1, M2, ...) are
those of docs/REPLICATION.md.

A member's state follows one table, TRANSITIONS: an event that has no row for a state is a mistake
of the caller. Silence makes a member suspect, and never dead: a suspect that stays silent is fenced
(killed), and only the end of its process, seen by the manager, makes it dead (M2). A dead node is
started again: the new process, another incarnation, is a member once it has registered.

Order of a change (M2): the process is surely gone, then the new map is made, then it is published,
then a successor is started, which joins as syncing and copies what it is to hold (M7).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from .placement import (
    PartitionMap,
    home_owners,
    is_open,
    row_begun_anew,
    row_given_up,
    row_in_sync,
    row_reopened,
    row_repaired,
    row_source,
    row_without,
)
from .wire.messages import (
    ALIVE,
    DEAD,
    FULL_DISK,
    RESPAWN_PAUSE_MAX_S,
    START_TIMEOUT_S,
    SUSPECT,
    Join,
    Member,
    Row,
)

STAND_IN_AFTER_S: Final = 2.0
"""A dead node's places are kept for it so long. It is usually back within a second, and copies to
stand-ins would be made in vain."""
CLIENTS_FIRST_S: Final = 0.2
"""So long after a death the successor is started: clients have found the other owners by then, and
the start, the joining and the copying do not make them wait for the processors at that moment."""
JOINS_MAX: Final = 12
"""So many partitions a node copies at once from one other; for each that it has copied it joins
another one. Each change of the map costs everybody some work for each row, and all at once it would
be felt. From each other node, so that one that hangs holds up its own partitions only."""
JOINS_FIRST: Final = 2
_HELD_A_JOIN: Final = 4
"""A node that has just come back, and holds nothing, begins with two, and may have one more for
each four partitions that it holds. Its start is felt enough by itself."""
_SETTLED_MIN_S: Final = 2.0
"""A node that lived for that long, and for longer than its last pause, does not keep dying. One
that was back in sync before it died has shown that it works, and waits for a second at most."""
_SHARE: Final = 0.2
"""A process that ran, or waited for a processor, for this part of the time does not hang."""
_NOT_HUNG: Final = Fraction(1, 10)
"""What a missed probe counts for then, or if the process waits for its disk."""
_COPIES_FIRST_S: Final = 30.0
"""So long nobody else is killed on suspicion while copies are missing: the others have the dead
one's load, and the copying, on top of theirs."""
_LATE: Final = 1.5
"""A manager that has waited so many times as long as it meant to was itself without a processor."""
_PATIENCE_MAX: Final = 8
_PATIENCE_FALLS: Final = 0.9
"""While processors are short, probes wait for their answers up to eight intervals: doubled each
time, and less again little by little."""

# --- evidence (M1) -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """What the system says of a process that did not answer.

    ``ran_s`` and ``waited_s`` are what all of its threads together spent on a processor, and ready
    to run without one, in the last ``seconds``; ``waited_s`` is None where the system does not tell
    that. ``states`` has a letter for each thread, as it was in the end: R runs or is ready to, D
    waits for a disk, T is stopped by a signal, S waits for anything else.
    """

    seconds: float
    ran_s: float
    waited_s: float | None
    states: str

    @property
    def is_stopped(self) -> bool:
        return bool(self.states) and set(self.states) <= set("TtZX")

    @property
    def has_run(self) -> bool:
        return self.ran_s > _SHARE * self.seconds

    @property
    def has_waited(self) -> bool:
        """The system adds a wait up when it is over: one that lasts shows as a state alone."""
        waits = "R" in self.states and not self.has_run
        return waits or (self.waited_s or 0.0) > _SHARE * self.seconds

    @property
    def is_hung(self) -> bool:
        """Whether it could have answered, as far as processors and disks are concerned. Threads of
        a process that hangs in one place may go on in others: little time does not count."""
        return not (self.has_waited or self.has_run or "D" in self.states)

    def __str__(self) -> str:
        if self.is_stopped:
            return "its process is stopped (SIGSTOP, or a debugger)"
        if self.has_waited:
            what = "it waited for a processor"
        elif self.has_run:
            what = "it was at work"
        elif self.is_hung:
            what = "it had a processor and used none"
        else:
            what = "it waits for a disk"
        waited = "unknown" if self.waited_s is None else f"{self.waited_s:.2f} s"
        states = " ".join(f"{count} {state}" for state, count in Counter(self.states).items())
        return (
            f"{what}: in {self.seconds:.2f} s its threads ran {self.ran_s:.2f} s, their wait for a "
            f"processor was {waited}, their states are {states or 'unknown'}"
        )


@dataclass(frozen=True)
class Silence:
    """A probe was not answered in time, or its connection failed."""

    reason: str
    evidence: Evidence | None = None


# --- events --------------------------------------------------------------------------------------

ANSWERED: Final = "answered"
MISSED: Final = "missed"
EXITED: Final = "exited"
RETURNED: Final = "returned"

TRANSITIONS: Final = {
    (ALIVE, ANSWERED): ALIVE,
    (ALIVE, MISSED): SUSPECT,
    (ALIVE, EXITED): DEAD,
    (SUSPECT, ANSWERED): ALIVE,
    (SUSPECT, MISSED): SUSPECT,
    (SUSPECT, EXITED): DEAD,
    (DEAD, RETURNED): ALIVE,
    # A probe that was under way when the process ended.
    (DEAD, ANSWERED): DEAD,
    (DEAD, MISSED): DEAD,
    # A process that was started and ended before it had registered, or one that had, but before
    # the first map of a cluster that is opened again; or the end of the last one, which was told
    # when there was no manager, is told to its successor.
    (DEAD, EXITED): DEAD,
}
"""What is not here cannot happen: a process registers once, and the next one of its node is started
only after its end was told. So no node returns that is alive or suspect."""

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
    """Make the newest map known, and give it to every living node."""


@dataclass(frozen=True)
class Start:
    """Once the newest map is known, and after a pause, start the node again; tell ``started``, then
    ``returned`` when it has registered, or ``exited``."""

    node: int
    pause_s: float


@dataclass(frozen=True)
class Report:
    """Write this to the log, as a warning."""

    text: str


Action: TypeAlias = Probe | Fence | Publish | Start | Report


class Returned(NamedTuple):
    """A node that was started again, and what it has on its disk: of which partitions everything,
    and of which nobody knows whether something is missing at the end (N2a). ``is_older``: the disk
    is an older copy of what the node had (M6a)."""

    member: Member
    joins: Iterable[Join] = ()
    doubtful: Iterable[Join] = ()
    is_older: bool = False


class Membership:
    """The members of one cluster and its partition map.

    Args:
        members: all nodes, each alive, as they registered.
        partition_map: the map that holds.
        replicas: how many copies of each key are meant to be there.
        probe_interval_s: how often each node is probed.
        misses_max: how many probes in a row may be missed before the manager acts.
        respawns: whether dead nodes are started again.
        joins_max: how many partitions a node copies at once from one other.
        joins_first: the same, of a node that holds nothing yet.
        is_durable: whether nodes come back with what they held.
        held: nodes that are to stay away, as after ``hold``.

    Times are those of one clock that only goes forward, in seconds.
    """

    def __init__(
        self,
        members: Iterable[Member],
        partition_map: PartitionMap,
        replicas: int,
        probe_interval_s: float,
        misses_max: int,
        respawns: bool = True,
        joins_max: int = JOINS_MAX,
        joins_first: int = JOINS_FIRST,
        is_durable: bool = False,
        held: Iterable[int] = (),
    ) -> None:
        self.members = {member.node: member for member in members}
        self.map = partition_map
        self._replicas = replicas
        self._interval_s = probe_interval_s
        self._misses_max = misses_max
        self._respawns = respawns
        self._joins_max = joins_max
        self._joins_first = joins_first
        self._is_durable = is_durable
        # Since its last answer: how many probes a node has missed, and what they count for.
        self._silent_probes: Counter[int] = Counter()
        self._doubtful: dict[int, Mapping[int, int]] = {}  # of living nodes: see Returned
        self._misses: dict[int, Fraction] = dict.fromkeys(self.members, Fraction(0))
        self._spared: dict[int, str] = {}  # silent, and not killed for this reason
        self._fenced: set[int] = set()
        self._next_tick: float | None = None
        self._late_at = math.inf  # a tick after that comes too late
        self._now = -math.inf  # of the last event that had a time
        self._copies_missing_since = -math.inf  # holds while any are
        self._patience_s = probe_interval_s
        self._are_stopped = False  # all who were silent in the last round
        self._alive_since = dict.fromkeys(self.members, -math.inf)
        self._early_deaths = dict.fromkeys(self.members, 0)
        self._starting: dict[int, float] = {}  # started at that time, and not back yet
        self._awaited: dict[int, float] = {}  # dead, and until then their places are kept
        self.held = set(held)
        self._full: dict[int, int] = {}  # nodes without room: messages.FULL_MEMORY or FULL_DISK
        self._away: set[int] = set()  # dead, and no start is on its way
        self._ending: set[int] = set()  # see all_exited

    def tick(self, now: float) -> list[Action]:
        """Probe every living node once an interval. ``next_tick`` says when to call again."""
        actions: list[Action] = []
        self._now = now
        if self._next_tick is not None and now > self._late_at:
            # M1: the manager itself was stopped, or the machine slept: silence proves nothing.
            late_s = now - self._next_tick
            actions.append(Report(f"the manager was stopped for {late_s:.1f} s: probes start anew"))
            for node in self.members:
                self._forgive(node)
        if self._next_tick is None or now >= self._next_tick:
            self._next_tick = now + self._interval_s
            self._late_at = now + self.patience_s + self._interval_s
            actions += [
                Probe(node) for node, member in self.members.items() if member.state != DEAD
            ]
            actions += self._look_at_the_dead(now)
        return actions

    def _look_at_the_dead(self, now: float) -> list[Action]:
        """Kill a node that does not get started; let stand-ins join for those that stay away."""
        actions: list[Action] = []
        for node in self.overdue(now):
            self._fenced.add(node)
            text = (
                f"node {node} did not register, and has done nothing for {START_TIMEOUT_S} s: "
                "killing it"
            )
            actions += [Report(text), Fence(node)]
        late = [node for node, until in self._awaited.items() if now > until]
        for node in late:
            del self._awaited[node]
        if late:
            actions += self._repaired()
        return actions

    def overdue(self, now: float) -> list[int]:
        """The nodes that the next ``tick`` kills, because they were started long ago. One that is
        still at work is to be ``started`` once more before that."""
        return [
            node
            for node, since in self._starting.items()
            if now > since + START_TIMEOUT_S and node not in self._fenced
        ]

    @property
    def next_tick(self) -> float:
        """When ``tick`` is due again, on the caller's clock."""
        return self._next_tick or 0.0

    @property
    def patience_s(self) -> float:
        """How long a probe waits for its answer. Who is stopped is not waited for longer."""
        return self._interval_s if self._are_stopped else self._patience_s

    def probed(self, round_: Mapping[int, Silence | None], took_s: float) -> list[Action]:
        """A round of probes is over, and took so long: None for each node that has answered."""
        silent = {node: silence for node, silence in round_.items() if silence is not None}
        evidence = [silence.evidence for silence in silent.values()]
        doubt = ""
        if took_s > _LATE * self.patience_s:
            doubt = f"the manager itself was late, by {took_s - self.patience_s:.2f} s"
        elif len(silent) == len(round_) > 1:
            # M1: they are all on one machine, which is the manager's.
            doubt = "all nodes are silent at once, so it is the manager, or the machine"
        self._are_stopped = bool(silent) and all(one and one.is_stopped for one in evidence)
        if doubt or any(one and one.has_waited for one in evidence):
            self._patience_s = min(2 * self._patience_s, _PATIENCE_MAX * self._interval_s)
        else:
            self._patience_s = max(_PATIENCE_FALLS * self._patience_s, self._interval_s)
        actions: list[Action] = []
        for node, silence in round_.items():
            if silence is None:
                actions += self.answered(node)
            else:
                actions += self.missed(node, silence.reason, silence.evidence, doubt)
        return actions

    def answered(self, node: int) -> list[Action]:
        """A probe was answered, by that node and this incarnation."""
        self._forgive(node)
        return self._enter(node, ANSWERED)

    def filled(self, full: Mapping[int, int]) -> list[Action]:
        """What is full on these nodes, as they have answered: PONG's ``full``."""
        before = dict(self._full)
        for node, what in full.items():
            self._full.pop(node, None)
            if what:
                self._full[node] = what
        return self._repaired() if self._full != before else []

    def _forgive(self, node: int) -> None:
        self._misses[node] = Fraction(0)
        self._silent_probes[node] = 0
        self._spared.pop(node, None)

    def missed(
        self, node: int, reason: str, evidence: Evidence | None = None, doubt: str = ""
    ) -> list[Action]:
        """A probe was not answered in time, or its connection failed.

        Args:
            evidence: what the system says of the process; without any, it is taken for hung.
            doubt: why the silence may be the manager's own fault.
        """
        self._silent_probes[node] += 1
        if evidence and evidence.is_stopped:
            doubt = ""  # that is so, whoever is late
        if not doubt:
            # M1: one that is at work, or would like to be, is overloaded rather than hung. To kill
            # it would give its load to the others, and then they would fall silent one after the
            # other. But one that never answers again, however busy, must not stay for ever.
            is_hung = evidence is None or evidence.is_hung
            self._misses[node] += 1 if is_hung else _NOT_HUNG
        is_silent_long = self._silent_probes[node] >= self._misses_max
        is_suspect = is_silent_long or self._misses[node] >= 1
        actions = self._enter(node, MISSED) if is_suspect else []
        if not is_silent_long or node in self._fenced or self.members[node].state == DEAD:
            return actions
        silence = f"is silent for {self._silent_probes[node]} probes ({reason})"
        excuse = doubt or str(evidence or "nobody has looked at its process")
        if self._misses[node] < self._misses_max:
            return actions + self._spare(node, "not hung", f"{silence}, not killed: {excuse}")
        # M1: the last in-sync owner of anything is neither killed nor removed on suspicion. Those
        # that are being killed count no more, or two that fall silent together would both be
        # killed.
        if self.map.is_last_in_sync(node, self._fenced):
            text = f"{silence} and holds the last copy of some partitions: waiting for it; {excuse}"
            return actions + self._spare(node, "last copy", text)
        if self._fenced or not self._has_all_copies():
            if self._now < self._copies_missing_since + _COPIES_FIRST_S:
                text = f"{silence}, not killed yet: copies are being made; {excuse}"
                return actions + self._spare(node, "copies first", text)
            if evidence and not evidence.is_hung:
                text = f"{silence}, not killed while copies are missing: {excuse}"
                return actions + self._spare(node, "copies", text)
        else:
            self._copies_missing_since = self._now
        self._fenced.add(node)
        return [*actions, Report(f"node {node} {silence}: killing it; {excuse}"), Fence(node)]

    def _spare(self, node: int, why: str, text: str) -> list[Action]:
        """Not to kill a node is told once, for each reason."""
        if self._spared.get(node) == why:
            return []
        self._spared[node] = why
        return [Report(f"node {node} {text}")]

    def _has_all_copies(self) -> bool:
        living = self._living()
        return all(
            sum(living.get(o.node) == o.incarnation for o in row.owners if o.in_sync)
            >= self._replicas
            for row in self.map.rows
        )

    def exited(self, node: int, how: str, now: float) -> list[Action]:
        """The node's newest process has ended: seen by the manager, so it answers nobody any more
        (M2). It may have ended before it was a member."""
        self._now = max(self._now, now)
        if self._has_all_copies():
            self._copies_missing_since = self._now
        self._fenced.discard(node)
        self._starting.pop(node, None)
        self._doubtful.pop(node, None)
        actions: list[Action] = [Report(f"node {node} is dead: {how}")]
        is_first = self.members[node].state != DEAD
        actions += self._enter(node, EXITED)
        if is_first:
            settled_s = max(_SETTLED_MIN_S, _pause_s(self._early_deaths[node]))
            if now > self._alive_since[node] + settled_s:
                self._early_deaths[node] = 0
            elif self._is_in_sync(node):
                self._early_deaths[node] = min(self._early_deaths[node], 1)
            living = self._living()
            self._change(lambda row, epoch: row_without(row, node, living, epoch))
            lost = sum(
                row.owners[0].node == node and not self.alive_owners(row.partition)
                for row in self.map.rows
            )
            if lost:
                text = f"{lost} partitions have lost their last owner: they are Unavailable"
                actions.append(Report(text))
            actions += self._begin_anew()
        starts = self._next_start(node, now)
        self._repair()
        # Also if no row has changed: the member's state has. And a start comes after it (M2).
        return [*actions, Publish(), *starts]

    def all_exited(self, ends: Mapping[int, str], now: float) -> dict[int, list[Action]]:
        """The same of several nodes, which had all ended before any map without one of them was
        known: so whichever of them were in sync still are, and each may open a partition (M5).
        Return the actions that come of each end."""
        self._ending = set(ends)
        actions = {node: self.exited(node, how, now) for node, how in ends.items()}
        self._ending.clear()
        return actions

    def _next_start(self, node: int, now: float) -> list[Action]:
        if not self._respawns or node in self.held:
            self._away.add(node)
            return []
        pause_s = self._respawn_pause_s(node)
        if pause_s < STAND_IN_AFTER_S:
            self._awaited[node] = now + STAND_IN_AFTER_S
        return [Start(node, pause_s)]

    def hold(self, node: int) -> list[Action]:
        """A node is to be stopped, and to stay away until ``release``: for tests. To end its
        process is the caller's; others stand in for it from its death on."""
        self.held.add(node)
        self._awaited.pop(node, None)
        return self._repaired()

    def release(self, node: int) -> list[Action]:
        """A node is not to stay away any more: it is started if it is away, also for another
        reason; if not, it is treated as usual at its next death."""
        self.held.discard(node)
        if node not in self._away:
            return []
        self._away.discard(node)
        return [Start(node, 0.0)]

    def is_away(self, node: int) -> bool:
        """Whether a node is dead, and will be until ``release``."""
        return node in self._away

    def begin_start(self, node: int) -> bool:
        """A Start is to be carried out now. Return whether it still holds; if not, it is over: the
        node was held meanwhile, and is away."""
        if node in self.held:
            self._away.add(node)
        return node not in self._away

    def started(self, node: int, now: float) -> None:
        """A new process of a dead node was started, or is seen to get on with its start. To be told
        before ``returned``: whoever is awaited and does not come is killed."""
        self._starting[node] = now

    def returned(self, member: Member, now: float, joins: Iterable[Join] = ()) -> list[Action]:
        """A node that was started again has registered: a new incarnation. See all_returned."""
        return self.all_returned([Returned(member, joins)], now)

    def all_returned(
        self, returned: Iterable[Returned], now: float, accepts_loss: bool = False
    ) -> list[Action]:
        """Nodes that were started again have registered, each with what its disk has.

        A partition whose owners in sync had all died opens again with those of them that are back
        with everything (M5). Of the others these nodes own nothing yet (N0).

        Args:
            accepts_loss: whether partitions are opened also with what may not be all of it, where
                there is nothing better among these nodes: nobody else is waited for any more.
        """
        actions: list[Action] = []
        whole: dict[int, Mapping[int, int]] = {}
        older: dict[int, Mapping[int, int]] = {}
        for member, joins, doubtful, is_older in returned:
            node = member.node
            actions += self._enter(node, RETURNED)
            self.members[node] = member
            self._forgive(node)
            self._full.pop(node, None)
            self._starting.pop(node, None)
            self._awaited.pop(node, None)
            self._alive_since[node] = now
            whole[node], self._doubtful[node], older[node] = _by_partition(joins), {}, {}
            if is_older:
                older[node], whole[node] = {**whole[node], **_by_partition(doubtful)}, {}
            else:
                self._doubtful[node] = _by_partition(doubtful)
        self._reopen(whole)
        if accepts_loss:
            actions += self._accept_loss(older)
        for node in whole:
            actions += self._report_what_is_missing(node, older[node])
        actions += self._begin_anew()
        self._repair()
        return [*actions, Publish()]

    def _reopen(
        self, held: Mapping[int, Mapping[int, int]], partitions: Iterable[int] | None = None
    ) -> None:
        """M5: open what these nodes have everything of; only these partitions, if any are given."""
        living = self._living()
        self._change(lambda row, epoch: row_reopened(row, living, held, epoch), partitions)

    def _accept_loss(self, older: Mapping[int, Mapping[int, int]]) -> list[Action]:
        """Open the rest with what there is: what logs have that do not end whole, after the nodes
        have compared it (N2a), or else one older copy."""
        living = self._living()
        accepted: set[int] = set()

        def change(row: Row, epoch: int) -> Row:
            doubtful = [o.node for o in row.owners if _has(self._doubtful, o.node, row)]
            changed = row_given_up(row, living, doubtful, epoch)
            first = next((o.node for o in row.owners if _has(older, o.node, row)), 0)
            if not doubtful and first:
                changed = row_reopened(row, living, {first: older[first]}, epoch)
            if changed is not row:
                accepted.add(row.partition)
            return changed

        self._change(change)
        if not accepted:
            return []
        text = f"{len(accepted)} partitions are opened with what there is (--accept-data-loss)"
        return [Report(f"{text}: {_some(sorted(accepted))}")]

    def opening(self) -> list[int]:
        """The partitions that are not open, though all of their owners in sync are back: these are
        comparing what they have (N2a)."""
        living = self._living()
        return [
            row.partition
            for row in self.map.rows
            if not is_open(row, living)
            and all(_has(self._doubtful, o.node, row) for o in row.owners if o.in_sync)
        ]

    def awaited_again(self, saved: PartitionMap | None = None) -> list[int]:
        """The living nodes that may have on their disks what some partition can be opened with that
        is not open; as of the map, or of an earlier one."""
        living = self._living()
        return sorted(
            {
                owner.node
                for row in (saved or self.map).rows
                if not is_open(row, living)
                for owner in row.owners
                if owner.in_sync and owner.node in living
            }
        )

    def _report_what_is_missing(self, node: int, older: Mapping[int, int]) -> list[Action]:
        """Say of what a node that has returned does not have everything, though nobody else
        has it."""
        if not self._is_durable:
            return []
        closed = [
            row.partition
            for row in self.map.rows
            if not self.alive_owners(row.partition)
            for owner in row.owners
            if owner.in_sync and owner.node == node
        ]
        doubtful = [p for p in closed if p in self._doubtful[node]]
        old = [p for p in closed if p in older]
        lost = len(closed) - len(doubtful) - len(old)
        actions: list[Action] = []
        if older:
            text = f"node {node} has an older copy of its disk: it copies what differs"
            if any(o.node == node and o.in_sync for row in self.map.rows for o in row.owners):
                text = f"node {node} has an older copy of its disk, which counts from now on"
            if old:
                text = (
                    f"node {node} has an older copy of its disk; {len(old)} partitions of which "
                    "nobody has a newer one stay Unavailable until somebody has, or until this one "
                    "is to count: --accept-data-loss (docs/OPERATIONS.md)"
                )
            actions.append(Report(text))
        if doubtful:
            text = (
                f"the log of node {node} does not end whole: {len(doubtful)} partitions are opened "
                "when their owners have compared what they have (docs/OPERATIONS.md)"
            )
            actions.append(Report(text))
        if lost:
            text = (
                f"node {node} is back without its data of {lost} partitions, which are "
                "Unavailable until it is started with it (docs/OPERATIONS.md)"
            )
            actions.append(Report(text))
        return actions

    def synced(self, node: int, joins: Iterable[Join]) -> list[Action]:
        """A node reports that it has copied everything of these partitions, as of these joins
        (N6); or all that there is of one that is not open (N2a), which opens with it."""
        before = self.map
        join_epochs = {
            partition: join_epoch
            for partition, join_epoch in _by_partition(joins).items()
            if partition < len(before.rows)
        }
        self._reopen({node: join_epochs}, join_epochs)
        self._change(
            lambda row, epoch: row_in_sync(row, node, join_epochs[row.partition], epoch),
            join_epochs,
        )
        if self.map is before:
            return []
        self._repair()
        return [Publish()]

    def left(self, node: int, join: Join) -> list[Action]:
        """A node has found its copy of a partition damaged, and does not answer for it any more: it
        is an owner no longer, and joins anew, if there is another copy in sync. Afterwards
        ``is_joined`` tells."""
        before = self.map
        if self.is_joined(node, join) and not self._is_last_living(node, join.partition):
            living = self._living()
            self._change(lambda row, epoch: row_without(row, node, living, epoch), [join.partition])
            self._repair()
        return [Publish()] if self.map is not before else []

    def is_joined(self, node: int, join: Join) -> bool:
        """Whether a node is an owner, and became one then."""
        return join.partition < len(self.map.rows) and any(
            (owner.node, owner.join_epoch) == (node, join.join_epoch)
            for owner in self.map.rows[join.partition].owners
        )

    def _is_last_living(self, node: int, partition: int) -> bool:
        """Whether no other owner in sync lives."""
        living = self._living()
        return not any(
            owner.in_sync and owner.node != node and living.get(owner.node) == owner.incarnation
            for owner in self.map.rows[partition].owners
        )

    def _is_in_sync(self, node: int) -> bool:
        """Whether it has everything of all that it owns, and owns something."""
        flags = {o.in_sync for row in self.map.rows for o in row.owners if o.node == node}
        return flags == {1}

    def _respawn_pause_s(self, node: int) -> float:
        """How long after its death it is started again. At once if something is Unavailable until
        then; 1, 2, 4 .. seconds, longer each time, while it keeps dying soon after its start."""
        self._early_deaths[node] += 1
        deaths = self._early_deaths[node]
        if deaths > 1:
            return _pause_s(deaths)
        is_missed = any(row.owners[0].node == node for row in self.map.rows)
        return 0.0 if is_missed else CLIENTS_FIRST_S

    # --- the next map ----------------------------------------------------------------------------

    def _living(self) -> dict[int, int]:
        return {
            node: member.incarnation
            for node, member in self.members.items()
            if member.state != DEAD and node not in self._ending
        }

    def _change(
        self, change: Callable[[Row, int], Row], partitions: Iterable[int] | None = None
    ) -> None:
        self.map = self.map.changed_by(change, partitions)

    def _repair(self) -> None:
        """M7: one step towards k copies, in as many partitions as may join at once.

        A node without room joins none. One whose disk is full cannot copy what it has begun, and
        would refuse all writes there, so it leaves. (Where memory is full it stays: what it gives
        away would be room for the next ones, which it would copy in vain.)
        """
        nodes, living = len(self.members), self._living()
        for node, full in self._full.items():
            if full == FULL_DISK:
                self._change(partial(_without_syncing, node, self._living()))
        joins = Counter(_joins(self.map.rows))
        held = Counter(o.node for row in self.map.rows for o in row.owners if o.in_sync)

        def change(row: Row, epoch: int) -> Row:
            def may_join(node: int) -> bool:
                if node in self._full:
                    return False
                most = min(self._joins_max, self._joins_first + held[node] // _HELD_A_JOIN)
                return joins[node, row_source(row)] < most

            repaired = row_repaired(
                row, nodes, self._replicas, living, self._awaited, may_join, epoch
            )
            if repaired is not row:
                joins.subtract(_joins([row]))
                joins.update(_joins([repaired]))
            return repaired

        self._change(change)

    def _repaired(self) -> list[Action]:
        """The same, where nothing else has changed."""
        before = self.map
        self._repair()
        return [Publish()] if self.map is not before else []

    def _begin_anew(self) -> list[Action]:
        """M5, in memory: partitions whose in-sync owners have all died begin empty on their other
        owners, or their home owners, if one lives; otherwise when one returns."""
        if self._is_durable:
            return []
        living = self._living()
        nodes = len(self.members)
        begun: list[int] = []

        def change(row: Row, epoch: int) -> Row:
            owners = [o.node for o in row.owners if living.get(o.node) == o.incarnation]
            if owners and row.owners[0].node == owners[0]:
                return row  # its primary lives; a dead one stays only if it was the last in sync
            home = home_owners(row.partition, nodes, self._replicas)
            heirs = owners or [node for node in home if node in living]
            if not heirs:
                return row
            begun.append(row.partition)
            return row_begun_anew(row, heirs, living, epoch)

        self._change(change)
        if not begun:
            return []
        text = f"all copies of {len(begun)} partitions are gone, and they begin anew, empty"
        return [Report(f"{text}: {_some(begun)}")]

    def alive_owners(self, partition: int) -> int:
        """How many of a partition's owners have not died."""
        living = self._living()
        owners = self.map.rows[partition].owners
        return sum(living.get(owner.node) == owner.incarnation for owner in owners)

    def _enter(self, node: int, event: str) -> list[Action]:
        member = self.members[node]
        state = TRANSITIONS[member.state, event]
        if state == member.state:
            return []
        self.members[node] = replace(member, state=state)
        if event == EXITED:
            return []
        return [Report(f"node {node} is {'suspect' if state == SUSPECT else 'alive again'}")]


def _without_syncing(node: int, living: Mapping[int, int], row: Row, epoch: int) -> Row:
    """Without this owner, if it still copies."""
    is_syncing = any(owner.node == node and not owner.in_sync for owner in row.owners)
    return row_without(row, node, living, epoch) if is_syncing else row


def _pause_s(deaths: int) -> float:
    """The pause after so many early deaths, one after the other, from the second one on."""
    return float(min(2 ** min(deaths - 2, 10), RESPAWN_PAUSE_MAX_S)) if deaths > 1 else 0.0


def _by_partition(joins: Iterable[Join]) -> dict[int, int]:
    return {join.partition: join.join_epoch for join in joins}


def _has(held: Mapping[int, Mapping[int, int]], node: int, row: Row) -> bool:
    """Whether that node has a partition on its disk, as the owner in sync that the row names."""
    return any(
        owner.in_sync
        and owner.node == node
        and held.get(node, {}).get(row.partition) == owner.join_epoch
        for owner in row.owners
    )


def _joins(rows: Iterable[Row]) -> Iterator[tuple[int, int]]:
    """For each syncing owner: its node, and the one that it copies from."""
    return ((o.node, row_source(row)) for row in rows for o in row.owners if not o.in_sync)


def _some(numbers: list[int]) -> str:
    """Numbers for people, not all of very many."""
    return " ".join(map(str, numbers[:20])) + (" ..." if len(numbers) > 20 else "")
