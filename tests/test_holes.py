"""The holes of docs/REPLICATION.md stay closed, and it is the rules that close them.

The table of the holes, their scenarios and the switches is in sim/holes.py. Here they are run; and
here is what needs threads (H13) or many histories (H14), and what the rules promise for clients
that die, sleep or have a wrong clock.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gtstore import copying, operations, placement, server, storage
from gtstore.engine import MemoryEngine
from gtstore.membership import Membership
from gtstore.operations import Pause
from gtstore.placement import PartitionMap, epoch_of, row_repaired
from gtstore.replica import Replicas
from gtstore.storage import NodeOptions, StorageNode
from gtstore.wire import messages
from gtstore.wire.codec import decode_entry, encode, encode_record
from gtstore.wire.messages import ALIVE, Ack, ClusterInfo, Entry, Join, Member, Owner, Row, Write

from .linearizability import violations
from .peers import Talk
from .sim.holes import (
    H9_SWITCHES,
    HOLES,
    KEY,
    LOST,
    PARTITION,
    SECOND_US,
    Hole,
    Users,
    Wrong,
    in_sync_out_of_order,
    remove_live_primaries,
)
from .sim.network import Client, Fault, frame_of

each_hole = pytest.mark.parametrize("hole", HOLES, ids=str)


@each_hole
def test_the_hole_is_closed(hole: Hole) -> None:
    """As shipped, users see nothing wrong."""
    hole.scenario()


@each_hole
def test_the_rule_is_what_closes_it(hole: Hole, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rule switched off, the same trace shows users what they must not see."""
    hole.switch_off(monkeypatch)
    with pytest.raises(Wrong, match=hole.symptom) as caught:
        hole.scenario()
    assert violations(caught.value.history)


@pytest.mark.parametrize("left_on", H9_SWITCHES)
def test_hole_9_is_closed_twice(left_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefix rule: any two of the switches still show users nothing wrong."""
    for switch_off in H9_SWITCHES:
        if switch_off is not left_on:
            switch_off(monkeypatch)
    in_sync_out_of_order()


# --- H13: check and store are one step -----------------------------------------------------------

TOKEN = bytes(range(16))
CLUSTER = 0xC0FFEE01
LOCKED_WAIT_S = 0.3
UNLOCKED_WAIT_S = 10.0
"""So long a write that was checked waits for a copy. With the lock it waits in vain."""


def at(counter: int) -> int:
    return epoch_of(CLUSTER, counter)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[StorageNode]:
    """Node 1, with its server and threads, and without a manager."""
    shape = messages.Registered(at(0), 3, 2, messages.HASH_ADDITIVE)
    monkeypatch.setattr(StorageNode, "_register", lambda _: shape)
    options = NodeOptions(1, 1, "127.0.0.1", 0, ("127.0.0.1", 1), TOKEN, 10, None)
    node = StorageNode(options)
    node._server.start()
    yield node
    node.stop()


def stored_after_the_copy(node: StorageNode, is_first: bool, wait_s: float) -> None:
    """H13: a WRITE passes the check in list 1, which has one owner, and its thread is held up. A
    second owner has joined in list 2, and copies. Then the write is stored, and acknowledged: it is
    complete in list 1. Then the first owner dies."""
    replicas = node._replicas
    alone = Row(PARTITION, at(1), at(1), (Owner(1, 1, at(1), 1),))
    joined = Row(PARTITION, at(2), at(1), (*alone.owners, Owner(2, 1, at(2), 0)))
    replicas.adopt(at(1), [alone])
    now_us = time.time_ns() // 1000
    checked, copied = threading.Event(), threading.Event()

    def held_up() -> int:
        """The clock is looked at after the epoch (N9), and before the entry is stored."""
        checked.set()
        copied.wait(wait_s)
        return now_us

    replicas._now_us = held_up
    copier = Replicas(2, 1, CLUSTER, 3, messages.HASH_ADDITIVE, MemoryEngine(), lambda: now_us)
    copier.adopt(at(2), [joined])
    numbers = itertools.count(1)
    pace = copying.Pace(math.inf, lambda: 0.0)
    copy = copying.copy(copier, threading.Lock(), PARTITION, TOKEN, numbers.__next__, pace)
    port = node._server.port
    with Talk(port) as writer, Talk(port) as source:
        if not is_first:  # a connection's first request goes another way through the server
            writer.send(encode(messages.Get(at(1), PARTITION, KEY), 1))
            assert writer.reply() == (1, messages.NotFound())
        entry = encode_record(Entry(now_us, 5, 1, 0, None, b"a"))
        writer.send(encode(Write(at(1), PARTITION, KEY, entry), 2))
        assert checked.wait(10)
        assert next(copy) == Pause(0.0)
        step: Any = copy.send([])
        source.send(step[2])
        reply = source.reply()
        copied.set()
        assert reply is not None
        assert writer.reply() == (2, Ack())
        with pytest.raises(StopIteration) as stop:
            copy.send([frame_of(encode(reply[1], reply[0]))])
        assert stop.value.value.join == Join(PARTITION, at(2))
    copier.adopt(at(3), [Row(PARTITION, at(3), at(3), (Owner(2, 1, at(2), 1),))])
    found = copier.get(3, messages_body(messages.Get(at(3), PARTITION, KEY)))
    if frame_of(found)[0] != messages.EntryReply.kind:
        raise Wrong(LOST, [])


def messages_body(message: messages.Message) -> bytes:
    return encode(message, 0)[messages.HEADER_SIZE :]


each_way = pytest.mark.parametrize("is_first", [True, False], ids=["first", "later"])


@each_way
def test_no_copy_comes_between_check_and_store(node: StorageNode, is_first: bool) -> None:
    """N1b, hole H13, as shipped: handlers run under the node's lock."""
    stored_after_the_copy(node, is_first, LOCKED_WAIT_S)


@pytest.fixture
def without_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "TokenLock", server._NoLock)


@each_way
def test_without_the_lock_a_copy_may_come_between(
    without_lock: None,  # noqa: ARG001
    node: StorageNode,
    is_first: bool,
) -> None:
    """N1b, hole H13, switched off."""
    with pytest.raises(Wrong, match=LOST):
        stored_after_the_copy(node, is_first, UNLOCKED_WAIT_S)


# --- H14: a primary that lives is never removed --------------------------------------------------

Event = tuple[str, int]
NODES_MAX = 5


class Cluster:
    """The manager's membership, and which processes really live; one partition a node."""

    def __init__(self, nodes: int, replicas: int) -> None:
        self.now = 0.0
        self.living = dict.fromkeys(range(1, nodes + 1), 1)
        self.last = dict(self.living)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(placement, "PARTITIONS_PER_NODE", 1)
            first = PartitionMap.first(CLUSTER, nodes, replicas, self.living)
        members = [self._member(node) for node in self.living]
        self.membership = Membership(members, first, replicas, 0.25, 4)

    def _member(self, node: int) -> Member:
        return Member(node, ALIVE, self.last[node], 1, 10000 + node, "127.0.0.1")

    def happen(self, event: str, number: int) -> None:
        """What is not possible now does not happen."""
        node = (number - 1) % len(self.last) + 1
        before = self.membership.map
        match event:
            case "exited" if node in self.living:
                del self.living[node]
                self.membership.exited(node, "killed", self.now)
            case "returned" if node not in self.living:
                self.last[node] += 1
                self.living[node] = self.last[node]
                self.membership.returned(self._member(node), self.now)
            case "copied" if node in self.living:
                joins = [
                    Join(row.partition, owner.join_epoch)
                    for row in before.rows
                    for owner in row.owners
                    if owner.node == node
                ]
                self.membership.synced(node, joins)
            case "tick":
                self.now += number / 2
                self.membership.tick(self.now)
            case "missed" if node in self.living:
                self.membership.missed(node, "no answer")
            case "answered" if node in self.living:
                self.membership.answered(node)
        for old, new in zip(before.rows, self.membership.map.rows, strict=True):
            self.check(old, new)

    def check(self, old: Row, new: Row) -> None:
        """One change of a row."""
        primary = old.owners[0]
        is_same = (new.owners[0].node, new.owners[0].incarnation) == (
            primary.node,
            primary.incarnation,
        )
        if not is_same and self.living.get(primary.node) == primary.incarnation:
            raise Wrong(f"node {primary.node} is removed as the primary, and lives", [])
        flags = [owner.in_sync for owner in new.owners]
        assert flags == sorted(flags, reverse=True), "the owners in sync are a prefix (H9)"
        assert flags[0], "the primary is in sync"
        who = [[(owner.node, owner.join_epoch) for owner in row.owners] for row in (old, new)]
        assert (who[0] == who[1]) == (old.list_epoch == new.list_epoch), "another list, an epoch"
        assert new.list_epoch >= old.list_epoch, "a row never goes backwards"
        is_same_tenure = old.primary_epoch == new.primary_epoch
        assert is_same_tenure == (who[0][0] == who[1][0]), "a tenure is one primary's"


def play(nodes: int, replicas: int, events: list[Event]) -> None:
    cluster = Cluster(nodes, replicas)
    for event, number in events:
        cluster.happen(event, number)


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, list[Event]]:
    nodes = draw(st.integers(1, NODES_MAX))
    replicas = draw(st.integers(1, nodes))
    names = ("exited", "returned", "copied", "copied", "copied", "tick", "missed", "answered")
    events = st.tuples(st.sampled_from(names), st.integers(1, NODES_MAX))
    return nodes, replicas, draw(st.lists(events, max_size=60))


@settings(max_examples=150, deadline=None)
@given(histories())
def test_a_primary_that_lives_is_never_removed(history: tuple[int, int, list[Event]]) -> None:
    """M2, hole H14: in this version a primary goes only when its process has ended."""
    play(*history)


def test_with_another_repair_the_property_would_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """M2, hole H14, switched off: nodes 1 and 2 are killed in turn; a stand-in is the primary, then
    node 1 is back and has copied."""
    history: list[Event] = [
        ("exited", 2), ("tick", 1), ("tick", 5), ("copied", 3), ("exited", 1),
        ("returned", 1), ("copied", 1),
    ]  # fmt: skip
    play(3, 2, history)
    remove_live_primaries(monkeypatch)
    with pytest.raises(Wrong, match="node 3 is removed as the primary, and lives"):
        play(3, 2, history)


@st.composite
def rows(draw: st.DrawFn) -> tuple[Row, int, int, dict[int, int], set[int], set[int]]:
    """A row, the cluster's shape, who lives in which incarnation, who is awaited, and who may
    join."""
    nodes = draw(st.integers(1, NODES_MAX))
    replicas = draw(st.integers(1, nodes))
    numbers = draw(st.permutations(range(1, nodes + 1)))
    owners = numbers[: draw(st.integers(1, min(nodes, replicas + 1)))]
    in_sync = draw(st.integers(1, len(owners)))
    row = Row(
        draw(st.integers(0, nodes - 1)),
        at(5),
        at(2),
        tuple(Owner(node, 1, at(2), i < in_sync) for i, node in enumerate(owners)),
    )
    living = {node: draw(st.integers(1, 2)) for node in numbers if draw(st.booleans())}
    awaited = {node for node in numbers if node not in living and draw(st.booleans())}
    joining = {node for node in living if draw(st.booleans())}
    return row, nodes, replicas, living, awaited, joining


@settings(max_examples=300, deadline=None)
@given(rows())
def test_a_repair_keeps_the_primary(
    given_row: tuple[Row, int, int, dict[int, int], set[int], set[int]],
) -> None:
    """M7, hole H14: also in rows that no history leads to. Of a dead one, the first living owner
    takes the place, if that is in sync."""
    row, nodes, replicas, living, awaited, joining = given_row
    repaired = row_repaired(row, nodes, replicas, living, awaited, joining.__contains__, at(9))
    alive = [owner for owner in row.owners if living.get(owner.node) == owner.incarnation]
    primary = alive[0] if alive and alive[0].in_sync else row.owners[0]
    assert repaired.owners[0] == primary
    assert repaired.primary_epoch == (row.primary_epoch if primary == row.owners[0] else at(9))
    assert joining.issuperset(o.node for o in repaired.owners if o not in row.owners)


# --- a client that is killed between its writes --------------------------------------------------


def subsets(nodes: int) -> list[tuple[int, ...]]:
    numbers = range(1, nodes + 1)
    return [some for size in range(nodes + 1) for some in itertools.combinations(numbers, size)]


each_subset = pytest.mark.parametrize(
    ("replicas", "reached"),
    [(replicas, some) for replicas in (2, 3) for some in subsets(replicas)],
    ids=str,
)


def read(users: Users) -> bytes | None:
    task = users.get().finish()
    assert task.outcome == "done"
    value: bytes | None = task.result
    return value


def two_agree(users: Users) -> bytes | None:
    """Two readers, the second one later, and other clients both."""
    first, second = read(users), read(users)
    assert first == second
    users.check()
    return first


@each_subset
@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("what", ["put", "delete"])
def test_a_client_that_is_killed_while_it_writes(
    what: str, old: bytes | None, replicas: int, reached: tuple[int, ...]
) -> None:
    """C2, C5: some owners have its write. The next reader completes it, if the primary is among
    them; the others agree with that reader, also on the next primary. Otherwise a later primary may
    have it, and then all read it."""
    users = Users(replicas)
    if old is not None:
        users.put(old).finish()
    client = users.client(ahead_s=1)
    task = users.put(b"new", client) if what == "put" else users.delete(client)
    task.reach(*reached)
    new = b"new" if what == "put" else None
    value = two_agree(users)
    assert value == (new if 1 in reached else old)
    for node in range(1, replicas):
        users.kill(node)
        again = two_agree(users)
        assert again in (value, new)
        if value == new:
            assert again == new
        value = again


@each_subset
def test_a_write_over_that_of_a_killed_client(replicas: int, reached: tuple[int, ...]) -> None:
    """C3: the next writer's value is what all read from now on, though its version may be lower and
    be refused at first."""
    for ahead_s in (-1, 2):
        users = Users(replicas)
        users.put(b"killed", users.client(ahead_s=1)).reach(*reached)
        assert users.put(b"next", users.client(ahead_s)).finish().outcome == "done"
        assert two_agree(users) == b"next"
        for node in range(1, replicas):
            users.kill(node)
            assert two_agree(users) in (b"next", b"killed")


@each_subset
def test_an_append_over_a_write_of_a_killed_client(replicas: int, reached: tuple[int, ...]) -> None:
    """C4: it builds on that write, or does without it, and so it stays."""
    users = Users(replicas)
    users.put(b"killed").reach(*reached)
    result = users.append(b"+", users.client(ahead_s=1)).finish().result
    assert result == (b"killed+" if 1 in reached else b"+")
    for node in range(1, replicas + 1):
        assert two_agree(users) == result
        if node < replicas:
            users.kill(node)


@pytest.mark.parametrize("replicas", [2, 3])
@pytest.mark.parametrize("events", range(9))
def test_a_client_that_is_killed_while_it_appends(replicas: int, events: int) -> None:
    """C2, C4: the result is on the first owners of the list. What a reader sees then stays."""
    users = Users(replicas)
    users.put(b"a").finish()
    users.append(b"b", users.client(ahead_s=1)).step(events)
    value = two_agree(users)
    assert value == (b"a" if events < 2 else b"ab")
    for node in range(1, replicas):
        users.kill(node)
        assert two_agree(users) == value


@pytest.mark.parametrize("replicas", [2, 3])
@pytest.mark.parametrize("events", range(12))
def test_a_client_that_is_killed_while_it_writes_again(replicas: int, events: int) -> None:
    """C3: its first version was refused by the primary, and may be on a backup; the second one is
    on the way. It is read as one write, or as none."""
    users = Users(replicas)
    users.put(b"c", users.client(ahead_s=1)).reach(1)
    users.put(b"b").step(events)
    assert two_agree(users) in (b"b", b"c")
    for node in range(1, replicas):
        users.kill(node)
        assert two_agree(users) in (b"b", b"c")


# --- a client that sleeps ------------------------------------------------------------------------


def replace_at_once(users: Users) -> None:
    """Each node dies in turn and comes back empty, and copies."""
    for node in (1, 2, 3):
        users.kill(node)
        users.network.bring_back(node)
        users.network.copy_all()


def replace_slowly(users: Users) -> None:
    """The same, and each stays away for so long that a stand-in takes its place."""
    network = users.network
    for node in (1, 2, 3):
        users.kill(node)
        network.now_us += 600 * SECOND_US
        network.tick()
        network.copy_all()
        network.bring_back(node)
        network.copy_all()


each_replacement = pytest.mark.parametrize("replace", [replace_at_once, replace_slowly])
HOUR_US = 3600 * SECOND_US


@each_replacement
@pytest.mark.parametrize("replicas", [2, 3])
def test_a_client_that_slept_for_an_hour(replicas: int, replace: Callable[[Users], None]) -> None:
    """N1a: its map names processes that are gone, whose successors are at the same addresses. It
    learns the lists that hold, and loses nothing."""
    users = Users(replicas)
    client = users.client()
    users.put(b"before", client).finish()
    replace(users)
    users.network.now_us += HOUR_US
    assert users.get(client).finish().result == b"before"
    assert read(users) == b"before"
    assert users.put(b"after", client).finish().outcome == "done"
    assert two_agree(users) == b"after"
    replace(users)
    assert users.append(b"!", client).finish().result == b"after!"
    assert two_agree(users) == b"after!"


@each_replacement
@pytest.mark.parametrize("what", ["put", "append", "compare", "get"])
@pytest.mark.parametrize("events", range(1, 5))
def test_a_client_that_slept_in_the_midst(
    events: int, what: str, replace: Callable[[Users], None]
) -> None:
    """C3, C4, C5: it goes on after an hour, in other tenures, where another client has written."""
    users = Users()
    users.put(b"base").finish()
    client = users.client(ahead_s=1)
    begin = {
        "put": lambda: users.put(b"mine", client),
        "append": lambda: users.append(b"+mine", client),
        "compare": lambda: users.compare(b"mine", b"base", client),
        "get": lambda: users.get(client),
    }
    task = begin[what]().step(events)
    replace(users)
    users.network.now_us += HOUR_US
    task.call.deadline_us = users.network.now_us + 5 * SECOND_US
    assert users.append(b"+other").finish().outcome == "done"
    task.finish()
    two_agree(users)


# --- wrong clocks --------------------------------------------------------------------------------

DAY_S = 86_400
YEAR_S = 365 * DAY_S


def with_wrong_clock(users: Users, ahead_s: float) -> Client:
    """A client whose clock was wrong when it learned the manager's."""
    client = Client(users.network, round(ahead_s * SECOND_US), seed=99)
    client.run(operations.initialize(client.routes, client.source))
    return client


@pytest.mark.parametrize("ahead_s", [-DAY_S, YEAR_S])
def test_a_wrong_clock_is_corrected_by_the_managers(ahead_s: float) -> None:
    """N9: it takes turns with a client whose clock is right, and neither needs a second version."""
    users = Users()
    wrong, right = with_wrong_clock(users, ahead_s), users.client()
    take_turns(users, wrong, right)
    for client in (wrong, right):
        for sent in client.sent(Write):
            assert isinstance(sent.message, Write)
            assert decode_entry(sent.message.entry).flags == 0


@pytest.mark.parametrize("ahead_s", [-DAY_S, -1, 1, 50])
def test_a_clock_that_went_wrong_later(ahead_s: float) -> None:
    """N9: what was learned of it is wrong. It still takes turns with the others."""
    users = Users()
    wrong, right = users.client(), users.client()
    wrong.skew_us = round(ahead_s * SECOND_US)
    take_turns(users, wrong, right)


def take_turns(users: Users, *clients: Client) -> None:
    """All of them write, and all that is written is read."""
    for turn in range(5):
        for client in clients:
            value = b"%d" % turn
            assert users.put(value, client).finish().outcome == "done"
            assert all(users.get(other).finish().result == value for other in clients)
    users.check()


def test_a_clock_that_went_a_year_ahead_locks_no_key() -> None:
    """N9: nodes refuse its versions, so that the others can write on. If the manager does not tell
    it the time, it is told at once."""
    users = Users()
    users.network.choose = lambda _, request: (
        Fault.REFUSE if isinstance(request, ClusterInfo) else Fault.NONE
    )
    wrong, right = users.client(), users.client()
    assert users.put(b"first", right).finish().outcome == "done"
    wrong.skew_us = YEAR_S * SECOND_US
    for turn in range(3):
        assert users.put(b"wrong", wrong).finish().outcome == "failed"
        assert users.append(b"wrong", wrong).finish().outcome == "failed"
        value = b"%d" % turn
        assert users.put(value, right).finish().outcome == "done"
        assert users.get(wrong).finish().result == value
    assert len(right.sent(Write)) == 4
    users.check()


def test_a_clock_that_went_a_year_ahead_does_not_starve() -> None:
    """N9: a client corrects its clock by the manager's. For example a machine without a clock of
    its own: it begins in 1970, and is set right when the client knows the cluster already."""
    users = Users()
    wrong = users.client()
    wrong.skew_us = YEAR_S * SECOND_US
    users.put(b"0", wrong).finish()
    assert users.put(b"1", wrong).finish().outcome == "done"
