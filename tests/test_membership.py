"""Who is alive, who is to be killed, and which map holds: rules M1, M2 and M5."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gtstore.membership import (
    ANSWERED,
    EXITED,
    MISSED,
    TRANSITIONS,
    Action,
    Fence,
    Membership,
    Probe,
    Publish,
    Report,
)
from gtstore.placement import PartitionMap
from gtstore.wire.messages import ALIVE, DEAD, LEFT, STATES, SUSPECT, Member, Row

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

INTERVAL_S = 0.25
MISSES_MAX = 4


def cluster(nodes: int, replicas: int) -> Membership:
    """A new cluster with every node alive."""
    numbers = range(1, nodes + 1)
    return Membership(
        [Member(node, ALIVE, 1, 100 + node, 10000 + node, "127.0.0.1") for node in numbers],
        PartitionMap.first(1, nodes, replicas, dict.fromkeys(numbers, 1)),
        replicas,
        INTERVAL_S,
        MISSES_MAX,
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
        membership.exited(1, "killed")
    assert state_of(membership, 1) == state


def tell(membership: Membership, event: str) -> list[Action]:
    if event == ANSWERED:
        return membership.answered(1)
    if event == MISSED:
        return membership.missed(1, "no answer")
    return membership.exited(1, "killed")


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
    assert bool(texts(actions)) == (after != state), "a change of state is reported, and only that"


def test_the_table_is_whole() -> None:
    """Every state of a member has a row for each event; only a second end has none."""
    pairs = {(s, e) for s in (ALIVE, SUSPECT, DEAD) for e in (ANSWERED, MISSED, EXITED)}
    assert pairs - set(TRANSITIONS) == {(DEAD, EXITED)}
    assert LEFT not in TRANSITIONS.values(), "no member leaves in this version"


def test_dead_stays_dead() -> None:
    """No row leads out of death: a process that ended answers nobody any more (M2)."""
    assert all(after == DEAD for (before, _), after in TRANSITIONS.items() if before == DEAD)


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
    assert "node 1 is silent (no answer, 4 probes)" in texts(actions)
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


def test_a_busy_node_is_not_killed() -> None:
    """It is overloaded rather than hung: suspect for ten times as long (M1), but not for ever."""
    membership = cluster(3, 2)
    membership.missed(1, "no answer", is_busy=True)
    for _ in range(10 * MISSES_MAX - 2):
        assert membership.missed(1, "no answer", is_busy=True) == []
    assert state_of(membership, 1) == SUSPECT
    last = membership.missed(1, "no answer", is_busy=True)
    assert fences(last) == [1]
    assert any(
        f"{MISSES_MAX} probes" in action.text for action in last if isinstance(action, Report)
    )


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
    membership.exited(first, "killed")
    assert fences(miss(membership, second, 3 * MISSES_MAX)) == []


def test_of_three_copies_two_may_be_killed() -> None:
    """As long as one in-sync owner stays, silence may be acted on."""
    membership = cluster(3, 3)
    assert [fences(miss(membership, node, MISSES_MAX)) for node in (1, 2, 3)] == [[1], [2], []]


def test_a_silent_last_copy_that_answers_is_alive_again() -> None:
    """It was waited for, and it came back."""
    membership = cluster(1, 1)
    miss(membership, 1, 3 * MISSES_MAX)
    assert membership.answered(1) == [Report("node 1 is alive again")]


def test_a_late_probe_of_a_dead_node_is_nothing() -> None:
    """It may have been under way when the process ended."""
    membership = cluster(3, 2)
    membership.exited(1, "killed")
    assert miss(membership, 1, 2 * MISSES_MAX) == []
    assert membership.answered(1) == []


# --- the end of a process ------------------------------------------------------------------------


def test_an_exit_changes_the_map_then_publishes_it() -> None:
    """The dead node is in no row any more, and everybody is told (M2)."""
    membership = cluster(3, 2)
    before = membership.map
    actions = membership.exited(2, "killed by signal 9")
    assert actions == [Report("node 2 is dead: killed by signal 9"), Publish(2)]
    assert membership.map.epoch == before.epoch + 1
    assert all(owner.node != 2 for row in membership.map.rows for owner in row.owners)
    assert state_of(membership, 2) == DEAD


def test_a_second_exit_is_ignored() -> None:
    """Two who saw the same end make one change."""
    membership = cluster(3, 2)
    membership.exited(2, "killed")
    epoch = membership.map.epoch
    assert membership.exited(2, "killed") == []
    assert membership.map.epoch == epoch


def test_partitions_without_a_living_owner_are_reported() -> None:
    """The last owner stays in its rows, dead, and somebody must be told (M5)."""
    membership = cluster(3, 2)
    assert "Unavailable" not in texts(membership.exited(1, "killed"))
    actions = membership.exited(2, "killed")
    # Nodes 1 and 2 were the owners of every third partition, of 192.
    assert "64 partitions have lost their last owner" in texts(actions)
    lost = [row.partition for row in membership.map.rows if row.owners[0].node == 2]
    assert len(lost) == 64
    assert {membership.alive_owners(partition) for partition in lost} == {0}


def test_alive_owners() -> None:
    """A suspect owner counts, a dead one does not."""
    membership = cluster(3, 1)
    miss(membership, 1, 1)
    membership.exited(2, "killed")
    assert [membership.alive_owners(partition) for partition in range(3)] == [1, 0, 1]


def test_a_dead_neighbour_makes_its_partner_the_last_copy() -> None:
    """A process that ended by itself counts as little as one that is being killed (M1)."""
    membership = cluster(2, 2)
    membership.exited(1, "crashed")
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
    membership.exited(2, "killed")
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


# --- any events in any order ---------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, list[tuple[str, int]]]:
    """nodes, replicas and events; misses are common, so that nodes do get killed."""
    nodes = draw(st.integers(1, 4))
    replicas = draw(st.integers(1, nodes))
    events = st.sampled_from([MISSED] * 8 + [ANSWERED, EXITED, "tick", "late tick"])
    numbers = st.integers(1, nodes)
    return nodes, replicas, draw(st.lists(st.tuples(events, numbers), max_size=60))


@quick
@given(histories())
def test_whatever_happens(history: tuple[int, int, list[tuple[str, int]]]) -> None:
    """The dead stay dead, epochs never fall, each row keeps an in-sync owner, and nobody is killed
    who is the last copy of something, given those who are being killed already."""
    nodes, replicas, events = history
    membership = cluster(nodes, replicas)
    now = 0.0
    fenced: set[int] = set()
    dead: set[int] = set()
    for event, node in events:
        before = membership.map
        actions: list[Action] = []
        match event:
            case "tick" | "late tick":
                now += INTERVAL_S * (1 if event == "tick" else 5)
                actions = membership.tick(now)
                assert set(probes(actions)) == set(membership.members) - dead
            case "answered":
                actions = membership.answered(node)
            case "missed":
                actions = membership.missed(node, "no answer")
            case "exited":
                actions = membership.exited(node, "killed")
                assert (Publish(node) in actions) == (node not in dead)
                dead.add(node)
        for killed in fences(actions):
            assert killed not in fenced | dead
            assert not is_last_copy(before.rows, killed, fenced)
            fenced.add(killed)
        assert {n for n, m in membership.members.items() if m.state == DEAD} == dead
        assert membership.map.epoch >= before.epoch
        assert (membership.map is before) == (membership.map.rows == before.rows)
        assert all(any(owner.in_sync for owner in row.owners) for row in membership.map.rows)


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
            membership.exited(killed, "killed")
    assert all(membership.alive_owners(p) > 0 for p in range(len(membership.map.rows)))
