"""Who is alive, who is to be killed or started, and which map holds: rules M1, M2, M5 and M7."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Collection, Mapping
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gtstore.membership import (
    ANSWERED,
    CLIENTS_FIRST_S,
    EXITED,
    JOINS_FIRST,
    JOINS_MAX,
    MISSED,
    RETURNED,
    STAND_IN_AFTER_S,
    TRANSITIONS,
    Action,
    Evidence,
    Fence,
    Membership,
    Probe,
    Publish,
    Report,
    Returned,
    Silence,
    Start,
)
from gtstore.placement import PartitionMap
from gtstore.wire.messages import (
    ALIVE,
    DEAD,
    FULL_DISK,
    FULL_MEMORY,
    LEFT,
    START_TIMEOUT_S,
    STATES,
    SUSPECT,
    Join,
    Member,
    Row,
)

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

INTERVAL_S = 0.25
MISSES_MAX = 4
NOW = 1000.0


def member(node: int, incarnation: int = 1) -> Member:
    return Member(node, ALIVE, incarnation, 100 * incarnation + node, 10000 + node, "127.0.0.1")


def cluster(
    nodes: int,
    replicas: int,
    respawns: bool = True,
    joins_max: int = JOINS_MAX,
    joins_first: int | None = None,
    is_durable: bool = False,
) -> Membership:
    """A new cluster with every node alive. Unless ``joins_first`` says otherwise, a node that comes
    back joins as many partitions at once as ever."""
    numbers = range(1, nodes + 1)
    return Membership(
        [member(node) for node in numbers],
        PartitionMap.first(1, nodes, replicas, dict.fromkeys(numbers, 1)),
        replicas,
        INTERVAL_S,
        MISSES_MAX,
        respawns,
        joins_max,
        joins_max if joins_first is None else joins_first,
        is_durable,
    )


def miss(membership: Membership, node: int, times: int) -> list[Action]:
    """That many missed probes; what the last one asks for."""
    actions: list[Action] = []
    for _ in range(times):
        actions = membership.missed(node, "no answer")
    return actions


def state_of(membership: Membership, node: int) -> int:
    return membership.members[node].state


def fences(actions: Collection[Action]) -> list[int]:
    return [action.node for action in actions if isinstance(action, Fence)]


def probes(actions: Collection[Action]) -> list[int]:
    return [action.node for action in actions if isinstance(action, Probe)]


def texts(actions: Collection[Action]) -> str:
    return "\n".join(action.text for action in actions if isinstance(action, Report))


def is_last_copy(rows: Collection[Row], node: int, gone: Collection[int]) -> bool:
    """Whether some row has this node as its only in-sync owner besides the gone ones."""
    for row in rows:
        if [o.node for o in row.owners if o.in_sync and o.node not in gone] == [node]:
            return True
    return False


# --- the table of states -------------------------------------------------------------------------


def enter(membership: Membership, state: int) -> None:
    """Bring node 1 into a state."""
    if state == SUSPECT:
        membership.missed(1, "no answer")
    if state == DEAD:
        membership.exited(1, "killed", NOW)
    assert state_of(membership, 1) == state


def tell(membership: Membership, event: str) -> list[Action]:
    if event == ANSWERED:
        return membership.answered(1)
    if event == MISSED:
        return membership.missed(1, "no answer")
    if event == RETURNED:
        return membership.returned(member(1, 2), NOW)
    return membership.exited(1, "killed", NOW)


@pytest.mark.parametrize(
    ("state", "event"),
    TRANSITIONS,
    ids=lambda part: part if isinstance(part, str) else STATES[part],
)
def test_each_transition(state: int, event: str) -> None:
    """An event leads to the state that the table says, and changes nobody else."""
    membership = cluster(3, 2)
    enter(membership, state)
    actions = tell(membership, event)
    after = TRANSITIONS[state, event]
    assert state_of(membership, 1) == after
    assert [state_of(membership, node) for node in (2, 3)] == [ALIVE, ALIVE]
    is_told = after != state or event == EXITED
    assert bool(texts(actions)) == is_told, "a change of state is reported, and each end"


def test_the_table_is_whole() -> None:
    """Every state of a member has a row for each event, but for a return of who is not dead: the
    next process is started after the end of the last one was told."""
    pairs = set(itertools.product((ALIVE, SUSPECT, DEAD), (ANSWERED, MISSED, EXITED, RETURNED)))
    assert pairs - set(TRANSITIONS) == {(ALIVE, RETURNED), (SUSPECT, RETURNED)}
    assert LEFT not in TRANSITIONS.values(), "no member leaves in this version"


@pytest.mark.parametrize("is_durable", [False, True])
def test_a_process_that_ends_before_it_is_a_member(is_durable: bool) -> None:
    """It has registered, or not: it is dead as before, nobody's owners change, and the next one is
    started, later each time."""
    membership = cluster(3, 2, is_durable=is_durable)
    membership.exited(1, "killed", NOW)
    before = membership.map
    for pause_s in (1.0, 2.0):
        membership.started(1, NOW)
        actions = membership.exited(1, "killed", NOW)
        assert membership.map is before
        assert state_of(membership, 1) == DEAD
        assert Start(1, pause_s) in actions
        assert "node 1 is dead: killed" in texts(actions)
    membership.started(1, NOW)
    membership.returned(member(1, 4), NOW)
    assert state_of(membership, 1) == ALIVE


def test_only_a_new_process_leads_out_of_death() -> None:
    """A process that ended answers nobody any more (M2)."""
    assert [event for (before, event), after in TRANSITIONS.items() if before == DEAD != after] == [
        RETURNED
    ]


def test_silence_is_never_death() -> None:
    """Only the end of its process makes a member dead (M1)."""
    assert [pair for pair, after in TRANSITIONS.items() if after == DEAD and pair[0] != DEAD] == [
        (ALIVE, EXITED),
        (SUSPECT, EXITED),
    ]


# --- suspicion -----------------------------------------------------------------------------------


def test_a_silent_node_is_suspected_then_killed_once() -> None:
    """The first miss makes it suspect, the fourth in a row asks for its end, later ones do not."""
    membership = cluster(3, 2)
    assert fences(miss(membership, 1, 1)) == []
    assert state_of(membership, 1) == SUSPECT
    assert miss(membership, 1, MISSES_MAX - 2) == []
    actions = miss(membership, 1, 1)
    assert fences(actions) == [1]
    assert "node 1 is silent for 4 probes (no answer): killing it" in texts(actions)
    for _ in range(10):
        assert membership.missed(1, "no answer") == []
    assert state_of(membership, 1) == SUSPECT, "it is dead when its end was seen"


def test_with_one_miss_allowed_the_first_is_enough() -> None:
    """Suspicion and its consequence may come from the same probe, in this order."""
    membership = Membership(
        [Member(node, ALIVE, 1, 1, 1, "") for node in (1, 2)],
        PartitionMap.first(1, 2, 2, {1: 1, 2: 1}),
        2,
        INTERVAL_S,
        misses_max=1,
    )
    actions = membership.missed(1, "refused")
    assert fences(actions) == [1]
    assert texts(actions).startswith("node 1 is suspect\n")


def test_an_answer_ends_the_suspicion() -> None:
    """The node is alive again, says so once, and its misses are counted anew."""
    membership = cluster(3, 2)
    miss(membership, 1, MISSES_MAX - 1)
    assert membership.answered(1) == [Report("node 1 is alive again")]
    assert membership.answered(1) == []
    assert state_of(membership, 1) == ALIVE
    assert fences(miss(membership, 1, MISSES_MAX - 1)) == []
    assert fences(miss(membership, 1, 1)) == [1]


def evidence(
    ran_s: float = 0.0, waited_s: float | None = 0.0, states: str = "SSS", seconds: float = 1.0
) -> Evidence:
    return Evidence(seconds, ran_s, waited_s, states)


HUNG = evidence(0.01, 0.01)
STOPPED = evidence(states="TTT")
OVERLOADED = {
    "at work": evidence(0.5),
    "waited": evidence(0.01, 0.9),
    "waits": evidence(states="SRS"),
    "waits, and nobody tells for how long": evidence(0.0, None, "RS"),
    "at work and waited": evidence(0.5, 0.9, "R"),
    "waits for a disk": evidence(states="SD"),
}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (HUNG, "it had a processor and used none: in 1.00 s its threads ran 0.01 s, their wait"),
        (HUNG, "their wait for a processor was 0.01 s, their states are 3 S"),
        (STOPPED, "its process is stopped (SIGSTOP, or a debugger)"),
        (OVERLOADED["at work"], "it was at work: in 1.00 s its threads ran 0.50 s"),
        (OVERLOADED["waited"], "it waited for a processor: "),
        (OVERLOADED["waits"], "their states are 2 S 1 R"),
        (evidence(0.0, None, ""), "processor was unknown, their states are unknown"),
        (OVERLOADED["at work and waited"], "it waited for a processor: "),
        (OVERLOADED["waits for a disk"], "it waits for a disk: "),
    ],
)
def test_evidence_in_words(found: Evidence, words: str) -> None:
    """Each kill, and each that is not done, says what it goes by (M1)."""
    assert words in str(found)


@pytest.mark.parametrize("found", OVERLOADED.values(), ids=OVERLOADED)
def test_an_overloaded_node_is_not_killed(found: Evidence) -> None:
    """Who is at work, waits for a processor, or for a disk, is not hung: its misses count a tenth
    (M1). It is suspect when it has missed what kills another one, and that is told once; but it
    does not stay for ever."""
    membership = cluster(3, 2)
    for _ in range(MISSES_MAX - 1):
        assert membership.missed(1, "no answer", found) == []
    assert state_of(membership, 1) == ALIVE
    told = texts(membership.missed(1, "no answer", found))
    assert (
        told == f"node 1 is suspect\nnode 1 is silent for 4 probes (no answer), not killed: {found}"
    )
    for _ in range(9 * MISSES_MAX - 1):
        assert membership.missed(1, "no answer", found) == []
    last = membership.missed(1, "no answer", found)
    assert fences(last) == [1]
    assert f"silent for {10 * MISSES_MAX} probes (no answer): killing it; {found}" in texts(last)


@pytest.mark.parametrize("found", [HUNG, STOPPED, None])
def test_a_hung_node_is_killed_in_time(found: Evidence | None) -> None:
    """Nothing excuses it: each miss counts (M1)."""
    membership = cluster(3, 2)
    for _ in range(MISSES_MAX - 1):
        assert fences(membership.missed(1, "no answer", found)) == []
    last = membership.missed(1, "no answer", found)
    assert fences(last) == [1]
    assert str(found or "nobody has looked") in texts(last)


# --- rounds of probes ----------------------------------------------------------------------------


def probed(
    membership: Membership,
    silent: Mapping[int, Evidence],
    times: int = 1,
    took_s: float = INTERVAL_S,
) -> list[Action]:
    """Rounds in which these nodes did not answer; what all of them ask for."""
    actions = []
    for _ in range(times):
        round_ = {
            node: Silence("no answer", silent[node]) if node in silent else None
            for node, known in membership.members.items()
            if known.state != DEAD
        }
        actions += membership.probed(round_, took_s)
    return actions


def test_a_silent_node_in_rounds_of_probes() -> None:
    """The others answer, so it is its own fault, and the patience with all stays as it is."""
    membership = cluster(3, 2)
    assert fences(probed(membership, {1: HUNG}, MISSES_MAX - 1)) == []
    assert texts(probed(membership, {})) == "node 1 is alive again"
    assert fences(probed(membership, {1: HUNG}, MISSES_MAX)) == [1]
    assert membership.patience_s == INTERVAL_S


def test_all_are_silent_at_once() -> None:
    """They are on the manager's machine: it is the machine, or the manager (M1). Told once."""
    membership = cluster(3, 2)
    told = probed(membership, dict.fromkeys((1, 2, 3), HUNG), 20 * MISSES_MAX)
    assert fences(told) == []
    assert texts(told).count("not killed: all nodes are silent at once") == 3
    assert state_of(membership, 1) == SUSPECT
    assert fences(probed(membership, {1: HUNG}, MISSES_MAX)) == [1], "the others answer again"


def test_the_manager_itself_was_late() -> None:
    """What did not come while it had no processor proves nothing (M1)."""
    membership = cluster(3, 2)
    told = probed(membership, {1: HUNG}, 1, took_s=2 * INTERVAL_S)
    for _ in range(3 * MISSES_MAX):
        told += probed(membership, {1: HUNG}, 1, took_s=2 * membership.patience_s)
    assert fences(told) == []
    assert "not killed: the manager itself was late, by 2.00 s" in texts(told)


def test_a_stopped_process_has_no_excuse() -> None:
    """The system says that it is stopped, so nothing else matters (M1)."""
    membership = cluster(3, 2)
    assert fences(probed(membership, {1: STOPPED, 2: HUNG, 3: HUNG}, MISSES_MAX, 60.0)) == [1]


def test_patience_while_processors_are_short() -> None:
    """Probes wait longer for their answers, up to eight intervals, or those that are always late
    would never be heard; when all is well again it falls, little by little."""
    membership = cluster(3, 2)
    waits = []
    for _ in range(5):
        probed(membership, {1: OVERLOADED["waited"]})
        waits.append(membership.patience_s / INTERVAL_S)
    assert waits == [2, 4, 8, 8, 8]
    membership.tick(NOW)
    assert "stopped" not in texts(membership.tick(NOW + 9 * INTERVAL_S)), "it was waited for"
    assert "stopped" in texts(membership.tick(NOW + 20 * INTERVAL_S))
    probed(membership, {})
    assert 7 < membership.patience_s / INTERVAL_S < 8
    probed(membership, {}, 30)
    assert membership.patience_s == INTERVAL_S


def test_who_is_stopped_is_not_waited_for_longer() -> None:
    """Also while processors are short: the system has said it already."""
    membership = cluster(3, 2)
    for _ in range(3):
        probed(membership, {1: OVERLOADED["waited"]})
    assert membership.patience_s == 8 * INTERVAL_S
    probed(membership, {2: STOPPED})
    assert membership.patience_s == INTERVAL_S
    probed(membership, {1: OVERLOADED["waited"], 2: STOPPED})
    assert membership.patience_s == 8 * INTERVAL_S
    probed(membership, {})
    assert membership.patience_s > 7 * INTERVAL_S


# --- one after the other -------------------------------------------------------------------------


def test_nobody_else_is_killed_while_copies_are_made() -> None:
    """Others bear the load of the one that is gone, and copy: they are not killed for their
    silence (M1). After thirty seconds they are, if they hang."""
    membership = cluster(5, 3)
    membership.tick(NOW)
    membership.exited(1, "killed by hand", NOW)
    told = miss(membership, 2, MISSES_MAX)
    assert texts(told) == (
        "node 2 is silent for 4 probes (no answer), not killed yet: copies are being made; nobody "
        "has looked at its process"
    )
    membership.tick(NOW + 20.0)
    membership.exited(1, "killed once more", NOW + 20.0)
    assert miss(membership, 2, 10 * MISSES_MAX) == []
    membership.tick(NOW + 29.0)
    membership.answered(2)
    assert fences(miss(membership, 2, MISSES_MAX)) == []
    membership.tick(NOW + 30.1)
    for _ in range(10 * MISSES_MAX):
        busy = membership.missed(3, "no answer", OVERLOADED["at work"])
        assert fences(busy) == []
    assert [fences(membership.missed(2, "no answer", HUNG)) for _ in range(MISSES_MAX)][-1] == [2]


def test_a_busy_node_is_not_killed_while_copies_are_missing() -> None:
    """However long it takes: only who hangs is (M1)."""
    membership = cluster(5, 3, respawns=False)
    membership.tick(NOW)
    membership.exited(1, "killed by hand", NOW)
    membership.tick(NOW + 31.0)
    told = ""
    for _ in range(20 * MISSES_MAX):
        actions = membership.missed(2, "no answer", OVERLOADED["at work"])
        assert fences(actions) == []
        told += texts(actions)
    assert told.count("not killed while copies are missing: it was at work") == 1


def test_the_next_one_when_all_copies_are_there() -> None:
    """Then it is as if nothing had been (M1)."""
    membership = cluster(3, 2)
    membership.tick(NOW)
    membership.exited(1, "killed by hand", NOW)
    membership.returned(member(1, 2), NOW)
    assert fences(miss(membership, 2, MISSES_MAX)) == []
    while joins := [
        (o.node, row.partition) for row in membership.map.rows for o in row.owners if not o.in_sync
    ]:
        for node, partition in joins:
            sync(membership, node, partition)
    assert fences(miss(membership, 2, 1)) == [2]
    assert fences(miss(membership, 3, MISSES_MAX)) == [], "it is being killed"


@pytest.mark.parametrize("node", [1, 2, 3])
def test_the_only_copy_is_never_killed(node: int) -> None:
    """With one replica every node is the last in-sync owner of something (M1)."""
    membership = cluster(3, 1)
    reports = []
    for _ in range(5 * MISSES_MAX):
        actions = membership.missed(node, "no answer")
        assert fences(actions) == []
        reports += [text for text in texts(actions).splitlines() if "last copy" in text]
    assert len(reports) == 1, "it is said once, not at every probe"
    assert state_of(membership, node) == SUSPECT


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_two_silent_neighbours_are_not_both_killed(first: int, second: int) -> None:
    """With two replicas, whoever is killed first leaves the other as the last copy (M1)."""
    membership = cluster(2, 2)
    killed = []
    for _ in range(3 * MISSES_MAX):
        killed += fences(membership.missed(first, "no answer"))
        killed += fences(membership.missed(second, "no answer"))
    assert killed == [first]
    membership.exited(first, "killed", NOW)
    assert fences(miss(membership, second, 3 * MISSES_MAX)) == []


def test_of_three_copies_two_may_be_killed() -> None:
    """As long as one in-sync owner stays, silence may be acted on: but not at once (M1)."""
    membership = cluster(3, 3)
    membership.tick(NOW)
    assert [fences(miss(membership, node, MISSES_MAX)) for node in (1, 2, 3)] == [[1], [], []]
    membership.tick(NOW + 30.0)
    assert [fences(miss(membership, node, 1)) for node in (2, 3)] == [[], []]
    membership.answered(2)
    membership.answered(3)
    membership.tick(NOW + 60.0)
    membership.exited(1, "killed", NOW + 60.0)
    membership.tick(NOW + 90.0)
    assert [fences(miss(membership, node, MISSES_MAX)) for node in (2, 3)] == [[2], []]


def test_a_silent_last_copy_that_answers_is_alive_again() -> None:
    """It was waited for, and it came back."""
    membership = cluster(1, 1)
    miss(membership, 1, 3 * MISSES_MAX)
    assert membership.answered(1) == [Report("node 1 is alive again")]


def test_a_late_probe_of_a_dead_node_is_nothing() -> None:
    """It may have been under way when the process ended."""
    membership = cluster(3, 2)
    membership.exited(1, "killed", NOW)
    assert miss(membership, 1, 2 * MISSES_MAX) == []
    assert membership.answered(1) == []


# --- the end of a process ------------------------------------------------------------------------


def test_an_exit_changes_the_map_then_publishes_it() -> None:
    """The dead node is in no row any more, and everybody is told (M2)."""
    membership = cluster(3, 2)
    before = membership.map
    actions = membership.exited(2, "killed by signal 9", NOW)
    assert actions == [
        Report("node 2 is dead: killed by signal 9"),
        Publish(),
        Start(2, CLIENTS_FIRST_S),
    ]
    assert membership.map.epoch == before.epoch + 1
    assert all(owner.node != 2 for row in membership.map.rows for owner in row.owners)
    assert state_of(membership, 2) == DEAD


def test_partitions_without_a_living_owner_are_reported() -> None:
    """The last owner stays in its rows, dead, and somebody must be told (M5)."""
    membership = cluster(3, 2)
    assert "Unavailable" not in texts(membership.exited(1, "killed", NOW))
    actions = membership.exited(2, "killed", NOW)
    # Nodes 1 and 2 were the owners of every third partition, of 192.
    assert "64 partitions have lost their last owner" in texts(actions)
    lost = [row.partition for row in membership.map.rows if row.owners[0].node == 2]
    assert len(lost) == 64
    assert {membership.alive_owners(partition) for partition in lost} == {0}


def test_alive_owners() -> None:
    """A suspect owner counts, a dead one does not."""
    membership = cluster(3, 1)
    miss(membership, 1, 1)
    membership.exited(2, "killed", NOW)
    assert [membership.alive_owners(partition) for partition in range(3)] == [1, 0, 1]


def test_a_dead_neighbour_makes_its_partner_the_last_copy() -> None:
    """A process that ended by itself counts as little as one that is being killed (M1)."""
    membership = cluster(2, 2)
    membership.exited(1, "crashed", NOW)
    assert fences(miss(membership, 2, 2 * MISSES_MAX)) == []


# --- ticks ---------------------------------------------------------------------------------------


def test_the_first_tick_probes_everybody() -> None:
    """It is due at once, the next one an interval later."""
    membership = cluster(3, 2)
    assert membership.next_tick == 0.0
    assert probes(membership.tick(100.0)) == [1, 2, 3]
    assert membership.next_tick == 100.0 + INTERVAL_S


def test_between_ticks_nothing_happens() -> None:
    """A tick before its time asks for nothing and moves nothing."""
    membership = cluster(3, 2)
    membership.tick(100.0)
    assert membership.tick(100.0) == []
    assert membership.tick(100.0 + INTERVAL_S / 2) == []
    assert membership.next_tick == 100.0 + INTERVAL_S
    assert probes(membership.tick(100.0 + INTERVAL_S)) == [1, 2, 3]


def test_the_dead_are_not_probed() -> None:
    """Suspects are."""
    membership = cluster(3, 2)
    miss(membership, 1, 1)
    membership.exited(2, "killed", NOW)
    assert probes(membership.tick(0.0)) == [1, 3]


def test_a_tick_that_is_late_by_an_interval_is_an_ordinary_one() -> None:
    """The misses before it still count."""
    membership = cluster(3, 2)
    membership.tick(0.0)
    miss(membership, 1, MISSES_MAX - 1)
    assert texts(membership.tick(2 * INTERVAL_S)) == ""
    assert fences(miss(membership, 1, 1)) == [1]


def test_after_a_stop_of_the_manager_itself_probes_start_anew() -> None:
    """If the manager was stopped, or the machine slept, silence proves nothing (M1)."""
    membership = cluster(3, 2)
    membership.tick(0.0)
    miss(membership, 1, MISSES_MAX - 1)
    actions = membership.tick(60.0 + INTERVAL_S)
    assert "the manager was stopped for 60.0 s" in texts(actions)
    assert probes(actions) == [1, 2, 3]
    assert fences(miss(membership, 1, MISSES_MAX - 1)) == []
    assert fences(miss(membership, 1, 1)) == [1]


# --- nodes that return ---------------------------------------------------------------------------


def nodes_of(membership: Membership, partition: int) -> list[tuple[int, int]]:
    """A partition's owners, and whether each is in sync."""
    return [(o.node, o.in_sync) for o in membership.map.rows[partition].owners]


def sync(membership: Membership, node: int, partition: int) -> None:
    """The node reports that it has copied the partition."""
    for owner in membership.map.rows[partition].owners:
        if owner.node == node:
            membership.synced(node, [Join(partition, owner.join_epoch)])


def test_a_node_returns() -> None:
    """It joins behind the others, as syncing, under its new incarnation, and is in sync when it
    says so; the primary stays who it is (M7)."""
    membership = cluster(3, 2)
    membership.exited(1, "killed", NOW)
    assert [nodes_of(membership, p) for p in range(3)] == [[(2, 1)], [(2, 1), (3, 1)], [(3, 1)]]
    assert membership.returned(member(1, 2), NOW + 0.1) == [
        Report("node 1 is alive again"), Publish(),
    ]  # fmt: skip
    assert [nodes_of(membership, p) for p in range(3)] == [
        [(2, 1), (1, 0)], [(2, 1), (3, 1)], [(3, 1), (1, 0)],
    ]  # fmt: skip
    row = membership.map.rows[0]
    assert (row.list_epoch, row.owners[1].join_epoch) == (membership.map.epoch,) * 2
    assert row.owners[1].incarnation == 2
    before = membership.map
    assert membership.synced(1, [Join(0, row.owners[1].join_epoch)]) == [Publish()]
    assert nodes_of(membership, 0) == [(2, 1), (1, 1)]
    assert membership.map.rows[0].list_epoch == row.list_epoch, "who is written to is the same"
    assert membership.map.rows_since(before.epoch)[0] == membership.map.rows[0]


def test_a_node_joins_some_partitions_after_the_others() -> None:
    """As many as it may copy at once from one other, and for each that it has copied the next one
    (M7). A source that hangs holds up its own partitions only."""
    membership = cluster(3, 2)
    membership.exited(1, "killed", NOW)
    membership.returned(member(1, 2), NOW)
    from_2, from_3 = range(0, 192, 3), range(2, 192, 3)

    def joined() -> list[int]:
        return [row.partition for row in membership.map.rows if not row.owners[-1].in_sync]

    assert joined() == sorted([*from_2[:JOINS_MAX], *from_3[:JOINS_MAX]])
    epoch = membership.map.epoch
    first, second = (membership.map.rows[p].owners[1].join_epoch for p in from_2[:2])
    assert membership.synced(1, [Join(0, first), Join(3, second)]) == [Publish()]
    assert joined() == sorted([*from_2[2 : JOINS_MAX + 2], *from_3[:JOINS_MAX]])
    assert len(membership.map.rows_since(epoch)) == 4
    for partition in from_2:
        sync(membership, 1, partition)
    assert joined() == [*from_3[:JOINS_MAX]]
    for partition in from_3:
        sync(membership, 1, partition)
    assert [len(row.owners) for row in membership.map.rows] == [2] * 192
    assert not joined()


def rows_of(membership: Membership, node: int) -> list[Row]:
    return [row for row in membership.map.rows if any(o.node == node for o in row.owners)]


@pytest.mark.parametrize("full", [FULL_MEMORY, FULL_DISK])
def test_a_node_without_room_joins_nothing(full: int) -> None:
    """M7: until it has room again. One whose disk is full leaves where it has not copied all yet:
    it would refuse the writes of others there."""
    membership = cluster(3, 2, joins_max=5)
    home = len(rows_of(membership, 3))
    membership.exited(3, "killed", NOW)
    membership.returned(member(3, 2), NOW)
    begun = rows_of(membership, 3)
    assert begun
    actions = membership.filled({3: full})
    assert rows_of(membership, 3) == (begun if full == FULL_MEMORY else [])
    assert (Publish() in actions) == (full == FULL_DISK)
    assert membership.filled({3: full}) == []
    epoch = membership.map.epoch
    copied = [Join(row.partition, row.owners[-1].join_epoch) for row in begun]
    membership.synced(3, copied)
    assert len(rows_of(membership, 3)) == (len(begun) if full == FULL_MEMORY else 0)
    assert Publish() in membership.filled({3: 0})
    assert membership.map.epoch > epoch
    for _ in range(home):
        joins = [
            Join(row.partition, owner.join_epoch)
            for row in membership.map.rows
            for owner in row.owners
            if not owner.in_sync
        ]
        membership.synced(3, joins)
    assert len(rows_of(membership, 3)) == home
    # A new process has told nothing yet.
    membership.filled({3: full})
    membership.exited(3, "killed", NOW)
    membership.returned(member(3, 3), NOW)
    assert rows_of(membership, 3)


def test_an_owner_in_sync_stays_without_room() -> None:
    """M6: it refuses writes and says so; its copies are as good as ever."""
    membership = cluster(3, 2)
    before = membership.map
    assert membership.filled({1: FULL_DISK, 2: 0}) == []
    assert membership.map is before


def test_reports_of_other_joins_change_nothing() -> None:
    """N6: neither of an older one, nor of a node that is not next, nor of no partition."""
    membership = cluster(3, 2)
    membership.exited(1, "killed", NOW)
    old = membership.map.epoch
    membership.returned(member(1, 2), NOW)
    before = membership.map
    new = membership.map.rows[0].owners[1].join_epoch
    joins = [Join(0, old), Join(1, new), Join(99_999, new)]
    assert membership.synced(1, joins) == []
    assert membership.synced(3, [Join(0, new)]) == []
    assert membership.map is before


def test_only_the_first_syncing_owner_becomes_in_sync() -> None:
    """H9: those in sync are in front, so a death never makes a syncing one the primary."""
    membership = cluster(4, 3)
    for node in (2, 3):
        membership.exited(node, "killed", NOW)
    for node in (3, 2):
        membership.returned(member(node, 2), NOW)
    assert nodes_of(membership, 0) == [(1, 1), (3, 0), (2, 0)]
    sync(membership, 2, 0)
    assert nodes_of(membership, 0) == [(1, 1), (3, 0), (2, 0)]
    sync(membership, 3, 0)
    sync(membership, 2, 0)
    assert nodes_of(membership, 0) == [(1, 1), (3, 1), (2, 1)]


def test_a_stand_in_comes_late_and_goes() -> None:
    """M7: the place of a node that stays away is taken; when it is back and in sync, the stand-in
    goes, whatever it is by then, unless it is the primary."""
    membership = cluster(5, 3)
    membership.tick(NOW)
    membership.exited(2, "killed", NOW)
    assert membership.tick(NOW + STAND_IN_AFTER_S - 0.01)[-1] == Probe(5)
    assert nodes_of(membership, 0) == [(1, 1), (3, 1)]
    assert membership.tick(NOW + STAND_IN_AFTER_S + 0.5)[-1] == Publish()
    assert nodes_of(membership, 0) == [(1, 1), (3, 1), (4, 0)]
    # Back while the stand-in still copies: it goes at once.
    membership.returned(member(2, 2), NOW + 3)
    assert nodes_of(membership, 0) == [(1, 1), (3, 1), (2, 0)]
    # Back when it is in sync: it goes once it is not needed.
    membership = cluster(5, 3)
    membership.tick(NOW)
    membership.exited(2, "killed", NOW)
    membership.tick(NOW + 5)
    sync(membership, 4, 0)
    membership.returned(member(2, 2), NOW + 10)
    assert nodes_of(membership, 0) == [(1, 1), (3, 1), (4, 1), (2, 0)]
    sync(membership, 2, 0)
    assert nodes_of(membership, 0) == [(1, 1), (3, 1), (2, 1)]


def test_a_stand_in_that_is_the_primary_stays() -> None:
    """M2: no living primary is removed."""
    membership = cluster(3, 2, respawns=False)
    membership.exited(1, "killed", NOW)
    assert nodes_of(membership, 0) == [(2, 1), (3, 0)]
    sync(membership, 3, 0)
    membership.exited(2, "killed", NOW)
    assert nodes_of(membership, 0) == [(3, 1)]
    for node in (1, 2):
        membership.returned(member(node, 2), NOW)
        sync(membership, node, 0)
    assert nodes_of(membership, 0) == [(3, 1), (1, 1)]


def test_without_respawn_stand_ins_come_at_once() -> None:
    """Nobody is awaited, and nobody is started."""
    membership = cluster(4, 2, respawns=False)
    actions = membership.exited(2, "killed", NOW)
    assert not [action for action in actions if isinstance(action, Start)]
    assert nodes_of(membership, 0) == [(1, 1), (3, 0)]
    assert nodes_of(membership, 1) == [(3, 1), (4, 0)]


def test_a_node_that_has_just_come_back_begins_with_few() -> None:
    """Two from each source, then more the more it holds, up to the most that ever join at once."""
    membership = cluster(3, 2, joins_first=JOINS_FIRST)
    membership.exited(1, "killed", NOW)
    membership.returned(member(1, 2), NOW)
    most = []
    held = 0
    while joining := [row for row in membership.map.rows if not row.owners[-1].in_sync]:
        most.append(max(Counter(row.owners[0].node for row in joining).values()))
        assert most[-1] <= min(JOINS_MAX, JOINS_FIRST + held // 4)
        sync(membership, 1, joining[0].partition)
        held += 1
    assert most[0] == JOINS_FIRST
    assert max(most) == JOINS_MAX
    assert held == 128


def test_lists_have_no_more_than_one_owner_too_many() -> None:
    """Two that return replace two stand-ins one after the other."""
    membership = cluster(6, 3, respawns=False, joins_max=1000)
    for node in (2, 3):
        membership.exited(node, "killed", NOW)
        sync(membership, 4, 0)
        sync(membership, 5, 0)
    assert nodes_of(membership, 0) == [(1, 1), (4, 1), (5, 1)]
    for node in (3, 2):
        membership.returned(member(node, 2), NOW)
    assert nodes_of(membership, 0) == [(1, 1), (4, 1), (5, 1), (3, 0)]
    sync(membership, 3, 0)
    assert nodes_of(membership, 0) == [(1, 1), (4, 1), (3, 1), (2, 0)]
    sync(membership, 2, 0)
    assert nodes_of(membership, 0) == [(1, 1), (3, 1), (2, 1)]


def test_what_keeps_dying_is_started_later_each_time() -> None:
    """0.2, 1, 2, 4 .. 30 s; anew after it has lived for a while. One that is away for long is not
    awaited: others stand in at once."""
    membership = cluster(4, 2)
    now, pauses = NOW, []
    for incarnation in range(2, 10):
        pauses.append(membership.exited(1, "crashed", now)[-1])
        now += 0.2
        membership.returned(member(1, incarnation), now)
        now += 0.2
    assert pauses == [Start(1, float(pause)) for pause in (CLIENTS_FIRST_S, 1, 2, 4, 8, 16, 30, 30)]
    now += 100
    assert membership.exited(1, "crashed", now)[-1] == Start(1, CLIENTS_FIRST_S)
    assert nodes_of(membership, 0) == [(2, 1)]
    membership.returned(member(1, 10), now)
    membership.exited(1, "crashed", now)
    membership.returned(member(1, 11), now)
    membership.exited(1, "crashed", now)  # the pause is 2 s now
    assert nodes_of(membership, 0) == [(2, 1), (3, 0)]


def test_what_works_until_it_is_killed_waits_for_a_second() -> None:
    """It is in sync each time; so its copies are not missed for long."""
    membership = cluster(3, 2)
    pauses = []
    for incarnation in range(2, 8):
        pauses.append(membership.exited(1, "killed", NOW)[-1])
        membership.returned(member(1, incarnation), NOW)
        while joining := [
            row.partition
            for row in membership.map.rows
            for owner in row.owners
            if owner.node == 1 and not owner.in_sync
        ]:
            for partition in joining:
                sync(membership, 1, partition)
    assert pauses == [Start(1, CLIENTS_FIRST_S), *[Start(1, 1.0)] * 5]


def test_what_is_killed_now_and_then_does_not_keep_dying() -> None:
    """It lives long enough in between: deaths of three nodes, one after the other."""
    membership = cluster(3, 2)
    now = NOW
    for death in range(9):
        node = 1 + death % 3
        assert membership.exited(node, "killed", now)[-1] == Start(node, CLIENTS_FIRST_S)
        now += 1
        membership.returned(member(node, 2 + death // 3), now)
        while syncing := [
            (owner.node, row.partition)
            for row in membership.map.rows
            for owner in row.owners
            if not owner.in_sync
        ]:
            for each, partition in syncing:
                sync(membership, each, partition)
        now += 1


def test_what_is_unavailable_is_started_at_once() -> None:
    """Nobody has to be let go first: some clients wait for nothing else."""
    membership = cluster(3, 1)
    assert membership.exited(1, "killed", NOW)[-1] == Start(1, 0.0)


def test_a_start_that_takes_long() -> None:
    """A process that gets on is not killed, however long it takes; 60 s without progress still
    kill it."""
    membership = cluster(3, 2)
    membership.tick(NOW)
    membership.exited(1, "killed", NOW)
    membership.started(1, NOW)
    for minute in range(1, 10):
        now = NOW + minute * (START_TIMEOUT_S + 1)
        assert membership.overdue(now - 1) == []
        assert membership.overdue(now) == [1]
        membership.started(1, now)  # it is at work
        assert membership.overdue(now) == []
        assert fences(membership.tick(now)) == []
    now += START_TIMEOUT_S + 1
    assert membership.overdue(now) == [1]
    report, fence = membership.tick(now)[-2:]
    assert (fence, membership.overdue(now)) == (Fence(1), [])
    assert "did not register, and has done nothing for 60 s: killing it" in str(report)


def test_a_start_that_comes_to_nothing() -> None:
    """A process that does not register is killed once, and the next one is started."""
    membership = cluster(3, 2)
    membership.tick(NOW)
    membership.exited(1, "killed", NOW)
    membership.started(1, NOW)
    assert fences(membership.tick(NOW + START_TIMEOUT_S)) == []
    assert fences(membership.tick(NOW + START_TIMEOUT_S + 1)) == [1]
    assert fences(membership.tick(NOW + START_TIMEOUT_S + 2)) == []
    actions = membership.exited(1, "killed", NOW + 62)
    assert actions == [Report("node 1 is dead: killed"), Publish(), Start(1, 1.0)]
    membership.started(1, NOW + 63)
    membership.returned(member(1, 3), NOW + 64)
    assert fences(miss(membership, 1, MISSES_MAX)) == [1], "it can be killed again"


def test_all_copies_are_gone() -> None:
    """M5: the partition is Unavailable, and begins anew, empty, with the first home owner that
    returns, under a new join_epoch; it is said."""
    membership = cluster(2, 2)
    membership.exited(1, "killed", NOW)
    epoch = membership.map.epoch
    actions = membership.exited(2, "killed", NOW)
    assert "128 partitions have lost their last owner: they are Unavailable" in texts(actions)
    actions = membership.returned(member(1, 2), NOW)
    text = "all copies of 128 partitions are gone, and they begin anew, empty: 0 1 2"
    assert text in texts(actions)
    assert nodes_of(membership, 0) == [(1, 1)]
    row = membership.map.rows[0]
    assert row.primary_epoch == row.owners[0].join_epoch > epoch
    membership.returned(member(2, 2), NOW)
    assert nodes_of(membership, 0) == [(1, 1), (2, 0)]


def test_the_last_copy_dies_while_others_copy_it() -> None:
    """M5: what they have is not everything, so they begin anew too, and discard it."""
    membership = cluster(3, 3)
    membership.exited(2, "killed", NOW)
    membership.returned(member(2, 2), NOW)
    membership.exited(3, "killed", NOW)
    join_epoch = membership.map.rows[0].owners[1].join_epoch
    assert nodes_of(membership, 0) == [(1, 1), (2, 0)]
    actions = membership.exited(1, "killed", NOW)
    assert "begin anew" in texts(actions)
    assert nodes_of(membership, 0) == [(2, 1)]
    assert membership.map.rows[0].owners[0].join_epoch > join_epoch


def test_the_last_copy_is_a_dead_stand_in() -> None:
    """M5: home owners that live take the partition over."""
    membership = cluster(3, 1, respawns=False)
    membership.map = PartitionMap(
        membership.map.epoch, [replace_owner(row, 2) for row in membership.map.rows]
    )
    membership.exited(2, "killed", NOW)
    assert nodes_of(membership, 0) == [(1, 1)]
    assert nodes_of(membership, 1) == [(2, 1)], "its home owner is dead"


# --- entries on disk (M5) ------------------------------------------------------------------------


def joins_of(membership: Membership, node: int) -> list[Join]:
    """What the disk of a node has that was in sync until now."""
    return [
        Join(row.partition, owner.join_epoch)
        for row in membership.map.rows
        for owner in row.owners
        if owner.node == node and owner.in_sync
    ]


def test_all_return_with_their_disks() -> None:
    """Every partition goes on where it was: the same owners, in sync, under the same join_epochs,
    with new incarnations, in a new tenure."""
    membership = durable_and_dead(3, 2)
    before = membership.map
    returns = [Returned(member(node, 2), joins_of(membership, node)) for node in (3, 1, 2)]
    assert membership.all_returned(returns, NOW)[-1] == Publish()
    for old, row in zip(before.rows, membership.map.rows, strict=True):
        assert [o.incarnation for o in row.owners] == [2, 2]
        assert [(o.node, o.join_epoch, o.in_sync) for o in row.owners] == [
            (o.node, o.join_epoch, o.in_sync) for o in old.owners
        ]
        assert row.primary_epoch == row.list_epoch > old.list_epoch


def durable_and_dead(nodes: int, replicas: int) -> Membership:
    """A cluster that was stopped as a whole."""
    membership = cluster(nodes, replicas, is_durable=True)
    for node, known in membership.members.items():
        membership.members[node] = dataclasses.replace(known, state=DEAD)
    return membership


def test_one_that_is_late_has_to_copy() -> None:
    """What opens without it may be written to, so it joins as any other."""
    membership = durable_and_dead(3, 2)
    joins = joins_of(membership, 1)
    membership.all_returned([Returned(member(n, 2), joins_of(membership, n)) for n in (2, 3)], NOW)
    assert [nodes_of(membership, p) for p in range(3)] == [
        [(2, 1), (3, 0)], [(2, 1), (3, 1)], [(3, 1), (2, 0)],
    ]  # fmt: skip
    membership.returned(member(1, 2), NOW, joins)
    assert [nodes_of(membership, p) for p in range(3)] == [
        [(2, 1), (1, 0)], [(2, 1), (3, 1)], [(3, 1), (1, 0)],
    ]  # fmt: skip


def test_only_who_was_last_opens_a_partition_again() -> None:
    """M5: the last owner in sync, and only with what it held. Nobody begins anew."""
    membership = cluster(2, 2, is_durable=True)
    old = joins_of(membership, 1)
    membership.exited(1, "killed", NOW)
    last = joins_of(membership, 2)
    membership.exited(2, "killed", NOW)
    membership.returned(member(1, 2), NOW, old)
    assert membership.alive_owners(0) == 0
    actions = membership.returned(member(2, 2), NOW, [])
    assert "node 2 is back without its data of 128 partitions" in texts(actions)
    assert membership.alive_owners(0) == 0
    membership.exited(2, "killed", NOW)
    membership.returned(member(2, 3), NOW, last)
    assert nodes_of(membership, 0) == [(2, 1), (1, 0)]
    assert membership.map.rows[0].owners[0].incarnation == 3


def test_a_node_of_two_has_lost_its_disk() -> None:
    """Its partitions open with the other one, and it joins them."""
    membership = durable_and_dead(2, 2)
    joins = joins_of(membership, 2)
    actions = membership.all_returned([Returned(member(1, 2)), Returned(member(2, 2), joins)], NOW)
    assert "without" not in texts(actions)
    assert nodes_of(membership, 0) == [(2, 1), (1, 0)]


def test_a_node_leaves_a_partition() -> None:
    """Its copy is damaged: it joins anew, behind the others; but not if nobody else has a copy."""
    membership = cluster(3, 2)
    (row, *_) = membership.map.rows
    join = Join(0, row.owners[0].join_epoch)
    assert membership.left(1, join) == [Publish()]
    assert nodes_of(membership, 0) == [(2, 1), (1, 0)]
    assert not membership.is_joined(1, join)
    assert membership.left(1, join) == [], "the answer was lost"
    assert membership.left(2, Join(0, membership.map.rows[0].owners[0].join_epoch)) == []
    assert nodes_of(membership, 0) == [(2, 1), (1, 0)]
    assert membership.left(2, Join(99_999, 1)) == []
    sync(membership, 1, 0)
    membership.exited(1, "killed", NOW)
    assert membership.left(2, Join(0, membership.map.rows[0].owners[0].join_epoch)) == []


def replace_owner(row: Row, node: int) -> Row:
    return dataclasses.replace(row, owners=(dataclasses.replace(row.owners[0], node=node),))


# --- any events in any order ---------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, bool, list[tuple[str, int]]]:
    """nodes, replicas, respawns and events; misses are common, so that nodes do get killed."""
    nodes = draw(st.integers(1, 5))
    replicas = draw(st.integers(1, min(3, nodes)))
    events = [MISSED] * 6 + [ANSWERED, EXITED, RETURNED, RETURNED, "tick", "late tick"]
    events += ["synced"] * 6
    numbers = st.integers(1, nodes)
    steps = st.lists(st.tuples(st.sampled_from(events), numbers), max_size=80)
    return nodes, replicas, draw(st.booleans()), draw(steps)


@quick
@given(histories())
def test_whatever_happens(history: tuple[int, int, bool, list[tuple[str, int]]]) -> None:
    """Epochs never fall, each row keeps an in-sync owner in front, no living primary is removed
    (H14), and nobody is killed who is the last copy of something, given those who are being killed
    already."""
    nodes, replicas, respawns, events = history
    membership = cluster(nodes, replicas, respawns)
    now = 0.0
    fenced: set[int] = set()
    dead: set[int] = set()
    for event, node in events:
        before = membership.map
        actions: list[Action] = []
        match event:
            case "tick" | "late tick":
                now += INTERVAL_S * (1 if event == "tick" else 12)
                actions = membership.tick(now)
                assert set(probes(actions)) == set(membership.members) - dead
            case "answered":
                actions = membership.answered(node)
            case "missed":
                actions = membership.missed(node, "no answer")
            case "exited":  # also of a process that was not a member yet
                actions = membership.exited(node, "killed", now)
                assert Publish() in actions
                dead.add(node)
                fenced.discard(node)
            case "returned" if node in dead:
                incarnation = membership.members[node].incarnation + 1
                actions = membership.returned(member(node, incarnation), now)
                dead.discard(node)
            case "synced":
                for partition in range(nodes):
                    sync(membership, node, partition)
        for killed in fences(actions):
            assert killed not in fenced | dead
            assert not is_last_copy(before.rows, killed, fenced)
            fenced.add(killed)
        assert {n for n, m in membership.members.items() if m.state == DEAD} == dead
        assert membership.map.epoch >= before.epoch
        assert (membership.map is before) == (membership.map.rows == before.rows)
        for old, row in zip(before.rows, membership.map.rows, strict=True):
            flags = [owner.in_sync for owner in row.owners]
            assert flags[0] == 1
            assert flags == sorted(flags, reverse=True)
            assert len(row.owners) <= replicas + 1
            assert len({owner.node for owner in row.owners}) == len(row.owners)
            primary = old.owners[0]
            if primary.node not in dead and primary.incarnation == (
                membership.members[primary.node].incarnation
            ):
                assert row.owners[0] == primary, "no living primary is removed"
                assert row.primary_epoch == old.primary_epoch
            if [o.node for o in old.owners] != [o.node for o in row.owners]:
                assert row.list_epoch > old.list_epoch


@quick
@given(
    st.integers(2, 6),
    st.integers(1, 3),
    st.lists(st.integers(1, 6), max_size=8),
    st.sampled_from([1, 5, 1000]),
)
def test_all_copies_come_back(nodes: int, replicas: int, deaths: list[int], joins_max: int) -> None:
    """Once everybody is back and copies, every partition has k copies in sync again, in lists of k
    owners, however few a node joins at once."""
    replicas = min(nodes, replicas)
    membership = cluster(nodes, replicas, joins_max=joins_max)
    now = NOW
    for number in deaths:
        node = (number - 1) % nodes + 1
        if state_of(membership, node) != DEAD:
            membership.exited(node, "killed", now)
        now += 1.5
        membership.tick(now)
    for node, known in list(membership.members.items()):
        if known.state == DEAD:
            membership.returned(member(node, known.incarnation + 1), now)
    while syncing := [
        (owner, row.partition)
        for row in membership.map.rows
        for owner in row.owners
        if not owner.in_sync
    ]:
        before = membership.map
        for owner, partition in syncing:
            membership.synced(owner.node, [Join(partition, owner.join_epoch)])
        assert membership.map is not before
    for row in membership.map.rows:
        assert [owner.in_sync for owner in row.owners] == [1] * replicas


@quick
@given(st.integers(1, 4), st.integers(1, 4), st.lists(st.integers(1, 4), max_size=60))
def test_silence_alone_never_loses_a_partition(
    nodes: int, replicas: int, silent: list[int]
) -> None:
    """However many fall silent, in whatever order, and are killed when the manager asks for it."""
    membership = cluster(nodes, min(nodes, replicas))
    for number in silent:
        node = (number - 1) % nodes + 1
        for killed in fences(membership.missed(node, "no answer")):
            membership.exited(killed, "killed", NOW)
    assert all(membership.alive_owners(p) > 0 for p in range(len(membership.map.rows)))


# --- nodes that are held -------------------------------------------------------------------------


def starts(actions: Collection[Action]) -> list[int]:
    return [action.node for action in actions if isinstance(action, Start)]


def owners_of(membership: Membership) -> set[int]:
    return {owner.node for row in membership.map.rows for owner in row.owners}


def test_a_held_node_is_not_started_until_it_is_released() -> None:
    """It is dead like any other, but nobody waits for it: stand-ins join at once."""
    membership = cluster(4, 2)
    assert membership.hold(1) == []
    assert state_of(membership, 1) == ALIVE
    assert not membership.is_away(1)
    assert starts(membership.exited(1, "stopped", NOW)) == []
    assert (state_of(membership, 1), membership.is_away(1)) == (DEAD, True)
    assert owners_of(membership) == {2, 3, 4}
    assert any(not o.in_sync for row in membership.map.rows for o in row.owners)
    assert membership.release(1) == [Start(1, 0.0)]
    assert not membership.is_away(1)
    assert membership.begin_start(1)
    membership.started(1, NOW)
    membership.returned(member(1, 2), NOW)
    assert state_of(membership, 1) == ALIVE
    assert starts(membership.exited(1, "killed", NOW)) == [1], "it is held no longer"


def test_a_stop_is_no_early_death() -> None:
    """However often a node is stopped, its next death brings no pause."""
    membership = cluster(3, 2)
    for incarnation in (2, 3, 4):
        membership.hold(1)
        membership.exited(1, "stopped", NOW)
        membership.release(1)
        membership.returned(member(1, incarnation), NOW)
    assert Start(1, CLIENTS_FIRST_S) in membership.exited(1, "killed", NOW)


def test_a_node_is_held_while_its_start_is_on_its_way() -> None:
    """The start is dropped when it is to be carried out, and not before: there is only ever one.
    Its places are not kept for it any more."""
    membership = cluster(4, 2)
    assert starts(membership.exited(1, "killed", NOW)) == [1]
    assert all(o.in_sync for row in membership.map.rows for o in row.owners)
    assert membership.hold(1) == [Publish()]
    assert any(not o.in_sync for row in membership.map.rows for o in row.owners)
    assert not membership.is_away(1)
    assert not membership.begin_start(1)
    assert membership.is_away(1)
    assert membership.release(1) == [Start(1, 0.0)]


def test_a_node_is_released_before_its_start_was_dropped() -> None:
    """Then that start holds, and there is no other."""
    membership = cluster(3, 2)
    membership.exited(1, "killed", NOW)
    membership.hold(1)
    assert membership.release(1) == []
    assert membership.begin_start(1)


def test_a_node_is_released_before_its_end() -> None:
    """It is started again as after any death."""
    membership = cluster(3, 2)
    membership.hold(1)
    assert membership.release(1) == []
    assert starts(membership.exited(1, "stopped", NOW)) == [1]


def test_a_dead_node_that_nobody_starts_is_away() -> None:
    """Where dead nodes are left dead, one can be started by hand."""
    membership = cluster(3, 2, respawns=False)
    membership.exited(1, "killed", NOW)
    assert membership.is_away(1)
    assert membership.release(1) == [Start(1, 0.0)]


def test_a_successor_knows_who_is_held() -> None:
    """A manager is told by the last one."""
    first = PartitionMap.first(1, 2, 2, {1: 1, 2: 1})
    membership = Membership([member(1), member(2)], first, 2, INTERVAL_S, MISSES_MAX, held=[2])
    assert starts(membership.exited(1, "killed", NOW)) == [1]
    assert starts(membership.exited(2, "stopped", NOW)) == []


# --- disks that are not what they were (N2a, M6a) ------------------------------------------------


def test_whose_log_ends_whole_goes_before_others() -> None:
    """N2a: the primary's does not, so it joins anew where another owner in sync has everything."""
    membership = durable_and_dead(3, 2)
    joins = {node: joins_of(membership, node) for node in (1, 2, 3)}
    actions = membership.all_returned(
        [
            Returned(member(1, 2), [], joins[1]),
            Returned(member(2, 2), joins[2]),
            Returned(member(3, 2), joins[3]),
        ],
        NOW,
    )
    assert [nodes_of(membership, p) for p in range(3)] == [
        [(2, 1), (1, 0)], [(2, 1), (3, 1)], [(3, 1), (1, 0)],
    ]  # fmt: skip
    assert membership.opening() == []
    assert "log" not in texts(actions)


def test_no_log_ends_whole() -> None:
    """N2a: nothing opens before the first owner reports that it has what all of them have; then it
    opens with that one, and the others join anew."""
    membership = durable_and_dead(3, 2)
    before = membership.map
    joins = {node: joins_of(membership, node) for node in (1, 2, 3)}
    actions = membership.all_returned(
        [Returned(member(node, 2), [], joins[node]) for node in (1, 2, 3)], NOW
    )
    assert membership.map.rows == before.rows
    assert len(membership.opening()) == 192
    assert membership.awaited_again() == [1, 2, 3]
    assert "the log of node 1 does not end whole: 128 partitions are opened when" in texts(actions)
    assert membership.synced(1, [Join(0, joins[1][0].join_epoch + 1)]) == []
    assert membership.synced(1, [Join(0, joins[1][0].join_epoch), Join(99_999, 1)]) == [Publish()]
    assert nodes_of(membership, 0) == [(1, 1), (2, 0)]
    assert 0 not in membership.opening()
    assert nodes_of(membership, 1) == [(2, 1), (3, 1)]


def test_an_owner_that_dies_again_stays_awaited() -> None:
    """M5: it may be the one that opens the partition, or has the newest that there is."""
    membership = durable_and_dead(2, 2)
    before = membership.map
    joins = {node: joins_of(membership, node) for node in (1, 2)}
    membership.returned(member(1, 2), NOW, [])
    membership.exited(1, "killed", NOW)
    membership.exited(2, "killed", NOW)
    assert membership.map is before
    membership.all_returned([Returned(member(1, 3), [], joins[1])], NOW)
    assert membership.opening() == []
    membership.all_returned([Returned(member(2, 2), [], joins[2])], NOW)
    assert len(membership.opening()) == 128
    membership.exited(1, "killed", NOW)
    assert membership.opening() == []
    assert membership.map is before


def test_owners_that_have_ended_together_all_stay() -> None:
    """M5: nobody has gone on without one of them, so whichever has everything opens the partition,
    and not the one whose end was told last."""
    membership = cluster(4, 2, is_durable=True)
    joins = {node: joins_of(membership, node) for node in (1, 2)}
    actions = membership.all_exited({1: "killed", 2: "killed"}, NOW)
    assert [action.node for action in actions[2] if isinstance(action, Start)] == [2]
    assert [nodes_of(membership, p) for p in range(2)] == [[(1, 1), (2, 1)], [(3, 1)]]
    membership.all_returned([Returned(member(2, 2), [], joins[2])], NOW)
    assert membership.alive_owners(0) == 0
    membership.all_returned([Returned(member(1, 2), joins[1])], NOW)
    assert nodes_of(membership, 0) == [(1, 1), (2, 0)]


def test_an_older_copy_of_a_disk_does_not_count() -> None:
    """M6a: where another owner is back it joins anew, and nobody is told of losses."""
    membership = durable_and_dead(2, 2)
    joins = {node: joins_of(membership, node) for node in (1, 2)}
    actions = membership.all_returned(
        [Returned(member(1, 2), joins[1], is_older=True), Returned(member(2, 2), joins[2])], NOW
    )
    assert nodes_of(membership, 0) == [(2, 1), (1, 0)]
    assert "node 1 has an older copy of its disk: it copies what differs" in texts(actions)


def test_an_older_copy_is_all_there_is() -> None:
    """M6a: its partitions stay Unavailable, and its disk is not taken for the newest one."""
    membership = durable_and_dead(2, 1)
    joins = joins_of(membership, 1)
    actions = membership.all_returned([Returned(member(1, 2), joins, is_older=True)], NOW)
    assert "node 1 has an older copy of its disk; 64 partitions" in texts(actions)
    assert "--accept-data-loss" in texts(actions)
    assert membership.alive_owners(0) == 0
    assert membership.awaited_again() == [1]


def test_an_older_copy_is_one_as_long_as_the_saved_map_may_open_with_it() -> None:
    """M6a: a successor that finds the map from before would take its disk for the newest one, if it
    found its new mark, too."""
    membership = durable_and_dead(2, 2)
    joins = {node: joins_of(membership, node) for node in (1, 2)}
    membership.all_returned([Returned(member(1, 2), joins[1], is_older=True)], NOW)
    saved = membership.map
    membership.all_returned([Returned(member(2, 2), joins[2])], NOW)
    assert membership.awaited_again() == []
    assert membership.awaited_again(saved) == [1, 2]


def accepting(nodes: int, replicas: int) -> Membership:
    """One whose nodes return under --accept-data-loss."""
    membership = durable_and_dead(nodes, replicas)
    membership.all_returned = partial(membership.all_returned, accepts_loss=True)  # type: ignore[method-assign]
    return membership


def test_an_operator_accepts_an_older_copy() -> None:
    """One of several, and only where nothing better is there."""
    membership = accepting(3, 2)
    joins = {node: joins_of(membership, node) for node in (1, 2, 3)}
    actions = membership.all_returned(
        [
            Returned(member(1, 2), joins[1], is_older=True),
            Returned(member(2, 2), [], joins[2], is_older=True),
            Returned(member(3, 2), joins[3]),
        ],
        NOW,
    )
    assert [nodes_of(membership, p) for p in range(3)] == [
        [(1, 1), (2, 0)], [(3, 1), (2, 0)], [(3, 1), (1, 0)],
    ]  # fmt: skip
    assert "64 partitions are opened with what there is (--accept-data-loss): 0 3" in texts(actions)


def test_an_operator_gives_up_what_others_had() -> None:
    """Of logs that do not end whole, what is there is compared; nobody is waited for any more."""
    membership = accepting(3, 3)
    joins = {node: joins_of(membership, node) for node in (1, 2)}
    membership.all_returned(
        [
            Returned(member(1, 2), [], joins[1]),
            Returned(member(2, 2), [], joins[2]),
            Returned(member(3, 2)),
        ],
        NOW,
    )
    assert nodes_of(membership, 0) == [(1, 1), (2, 1)]
    assert membership.alive_owners(0) == 0
    assert len(membership.opening()) == 192
    membership.synced(1, [Join(0, joins[1][0].join_epoch)])
    assert nodes_of(membership, 0) == [(1, 1), (2, 0), (3, 0)]


def test_an_operator_accepts_what_need_not_be_accepted() -> None:
    """Everything is there."""
    membership = accepting(2, 2)
    returns = [Returned(member(node, 2), joins_of(membership, node)) for node in (1, 2)]
    assert "data-loss" not in texts(membership.all_returned(returns, NOW))
    assert nodes_of(membership, 0) == [(1, 1), (2, 1)]
