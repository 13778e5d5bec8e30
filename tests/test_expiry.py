"""Values that expire, on the simulated network, with nodes whose clocks differ: rule C8; and C6.

What must not happen is that a key comes back: that somebody is told that it has no value any more,
and somebody else reads the value later, from a node with a slower clock.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from gtstore import operations
from gtstore.errors import DeadlineExceeded, OutcomeUnknown, VersionMismatch
from gtstore.results import Version
from gtstore.wire.codec import decode_entry
from gtstore.wire.messages import (
    APPEND,
    COMMITTED,
    EXPIRES,
    INCREMENT,
    ORDERED,
    PUT_IF_ABSENT,
    PUT_IF_VALUE,
    PUT_IF_VERSION,
    TOMBSTONE,
    TOUCH,
    Execute,
    Get,
    Write,
)

from .linearizability import Done, What
from .sim.network import Call, Client, Fault, Network, after
from .sim.run import SMALL, Run, run_many
from .test_operations import KEY, another, cluster, owed, values, version_bytes, writes

RUNS = 300
SECOND_US = 1_000_000
TTL_US = 10 * SECOND_US
SLOW_US = -30 * SECOND_US  # more, and nodes would refuse the versions of others (N9)


def begin_put(client: Client, value: bytes = b"v", ttl_us: int = TTL_US) -> Call[Any]:
    expiry = operations.expiry_after(client.routes, client.source, ttl_us)
    return client.call(
        operations.put(client.routes, client.source, KEY, expiry + value, EXPIRES),
        timeout_s=0.01,
    )


def begin_get(client: Client) -> Call[Any]:
    return client.call(operations.get(client.routes, client.source, KEY))


def expired(replicas: int = 2) -> tuple[Network, Client]:
    """A value that is complete and has expired by the clock of its primary, node 1, and not by
    those of the other nodes."""
    network, client = cluster(replicas)
    network.skews_us = {2: SLOW_US, 3: SLOW_US}
    begin_put(client).run()
    assert client.get(KEY) == b"v"
    network.now_us += TTL_US
    client.steps.clear()
    return network, client


def advance_until_judged(call: Call[Any], node: int) -> None:
    """Until a node holds the tombstone."""
    for _ in range(10):
        if flags(call.client.network)[node - 1] == ORDERED | TOMBSTONE:
            return
        call.advance()
    raise AssertionError(flags(call.client.network))


def kill(network: Network, node: int) -> None:
    network.kill(node)
    network.notice(node)


def flags(network: Network) -> list[int | None]:
    """The flags of what nodes 1, 2 and 3 hold."""
    found = [network.nodes[node].held(KEY) for node in (1, 2, 3)]
    return [None if entry is None else entry.flags for entry in found]


# --- the usual way -------------------------------------------------------------------------------


def test_a_get_of_an_expired_value_completes_the_tombstone_first() -> None:
    """C8, C5, C2: in list order; C7: COMMIT to all."""
    network, client = expired(replicas=3)
    assert client.get(KEY) is None
    sent = [(sent.peers, type(sent.message)) for sent in client.sent()]
    assert sent == [((1,), Get), ((2,), Write), ((3,), Write)]
    assert flags(network) == [ORDERED | TOMBSTONE] * 3
    assert set(owed(client)) == {1, 2, 3}
    network.deliver_owed(client.source.owed)
    client.steps.clear()
    assert client.get(KEY) is None
    assert [type(sent.message) for sent in client.sent()] == [Get]
    assert flags(network) == [ORDERED | TOMBSTONE | COMMITTED] * 3


def test_a_single_owner() -> None:
    network, client = expired(replicas=1)
    assert client.get(KEY) is None
    assert flags(network) == [ORDERED | TOMBSTONE, None, None]


def test_only_the_clock_of_the_primary_counts() -> None:
    """Neither the backups' nor the readers'."""
    network, client = cluster()
    network.skews_us = {2: 2 * TTL_US}
    begin_put(client).run()
    assert another(network, ahead_s=3600).get(KEY) == b"v"
    network.now_us += TTL_US
    assert client.get(KEY) is None


def test_the_expiry_is_by_cluster_time() -> None:
    """T1: a client whose clock is ahead says the same time as others; what it learned from versions
    of clients that are ahead is not in it."""
    network, right = cluster()
    wrong = Client(network, skew_us=30 * SECOND_US, seed=2).know()
    another(network, seed=3, ahead_s=20).put(KEY, b"ahead")
    begin_put(right).run()
    assert right.source.now_us(right.routes.clock.offset_us) > network.now_us + 19 * SECOND_US
    for client in (right, wrong):
        expiry = operations.expiry_after(client.routes, client.source, SECOND_US)
        assert 0 <= int.from_bytes(expiry, "big") - network.now_us - SECOND_US < 10


# --- it does not come back -----------------------------------------------------------------------


def test_it_does_not_come_back_with_another_primary() -> None:
    """C8: node 2 believes that the value has an hour to live."""
    network, client = expired()
    assert client.get(KEY) is None
    kill(network, 1)
    assert client.get(KEY) is None


def test_fail_over_between_judging_and_completing() -> None:
    """C8, C5: the primary has judged, and dies before anybody else knows: so nobody has been told,
    and the next primary judges anew."""
    network, client = expired()
    call = begin_get(client)
    advance_until_judged(call, 1)
    assert values(network) == [b"", b"v", None]
    call.advance()  # the answer has arrived
    kill(network, 1)
    assert call.run().value == b"v"
    assert client.get(KEY) == b"v"
    network.skews_us[2] = 0
    assert client.get(KEY) is None


@pytest.mark.parametrize("fault", [Fault.DROP, Fault.DROP_REPLY, Fault.REFUSE])
def test_help_that_is_lost_makes_a_reader_get_again(fault: Fault) -> None:
    """C5: never the same tombstone without a fresh answer; and no reader's outcome is unknown."""
    network, client = expired()
    network.script(2, Write, fault)
    assert client.get(KEY) is None
    assert len(client.sent(Get)) == 2
    assert flags(network)[1] == ORDERED | TOMBSTONE


def test_the_deadline_of_a_get_that_met_an_expired_value() -> None:
    network, client = expired()
    network.script(2, Write, Fault.SILENT)
    with pytest.raises(DeadlineExceeded):
        client.get(KEY, timeout_s=0.1)


def test_a_reader_that_stopped_is_no_loss() -> None:
    """The tombstone is pending at the primary: the next reader completes it."""
    network, client = expired()
    call = begin_get(another(network))
    advance_until_judged(call, 1)
    assert client.get(KEY) is None
    kill(network, 1)
    assert client.get(KEY) is None


def test_two_primaries_make_the_same_tombstone() -> None:
    """The version that node 1 made and node 3 never saw is made again by node 2."""
    network, client = expired(replicas=3)
    call = begin_get(client)
    advance_until_judged(call, 2)
    first = network.nodes[2].held(KEY)
    assert values(network) == [b"", b"", b"v"]
    network.kill(1)
    network.kill(2)
    network.notice(1)
    network.notice(2)
    network.skews_us[3] = 0
    assert another(network).get(KEY) is None
    assert network.nodes[3].held(KEY) == first


# --- puts that did not end -----------------------------------------------------------------------


def test_a_pending_value_that_has_expired() -> None:
    """It is superseded before anybody is told that there is no value; what is still under way comes
    too late."""
    network, client = cluster()
    network.skews_us = {2: SLOW_US}
    network.script(2, Write, Fault.LATE, Fault.SILENT)
    with pytest.raises(OutcomeUnknown):
        begin_put(client).run()
    assert values(network) == [b"v", None, None]
    network.now_us += TTL_US
    assert another(network).get(KEY) is None
    network.deliver_late()
    assert values(network) == [b"", b"", None]
    kill(network, 1)
    assert client.get(KEY) is None


def test_a_pending_value_that_has_not_expired_is_helped_as_it_is() -> None:
    network, client = cluster()
    network.script(2, Write, Fault.SILENT)
    with pytest.raises(OutcomeUnknown):
        begin_put(client).run()
    reader = another(network)
    assert reader.get(KEY) == b"v"
    [(peers, entry)] = writes(reader)
    assert (peers, entry.flags, entry.value) == ((2,), EXPIRES, b"v")


@pytest.mark.parametrize(("fault", "is_known"), [(Fault.NONE, True), (Fault.DROP_REPLY, False)])
def test_a_put_that_has_expired_before_its_end(fault: Fault, is_known: bool) -> None:
    """C3: as with any later write. The primary's ACK counts; without it nothing is known."""
    network, client = cluster()
    network.script(1, Write, fault)
    network.script(2, Write, Fault.DROP)
    call = begin_put(client, ttl_us=1)
    for _ in range(3):
        call.advance()
    assert another(network).get(KEY) is None
    if is_known:
        call.run()
    else:
        with pytest.raises(OutcomeUnknown):
            call.run()
    assert values(network) == [b"", b"", None]


def test_a_second_version_keeps_the_expiry() -> None:
    """C3: the same put, the same time."""
    network, client = cluster()
    another(network).put(KEY, b"ahead")
    begin_put(client).run()
    first, *others = (entry for _, entry in writes(client))
    assert others
    assert all(entry.expiry == first.expiry for entry in others)
    assert all(entry.flags == ORDERED | EXPIRES for entry in others)
    assert client.get(KEY) == b"v"


# --- others at the same time ---------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(1, 5))
def test_a_put_while_a_reader_completes_the_tombstone(steps: int) -> None:
    """The tombstone is next to the entry, so it refuses no put that the entry would have taken; and
    it never overwrites one."""
    network, client = expired()
    call = begin_get(client)
    for _ in range(steps):
        call.advance()
    writer = another(network, ahead_s=0)
    writer.put(KEY, b"new")
    assert len(writer.sent(Write)) == 1
    entry = call.run()
    assert entry is None or entry.value == b"new"
    assert client.get(KEY) == b"new"
    kill(network, 1)
    assert client.get(KEY) == b"new"


def test_what_has_expired_counts_as_nil() -> None:
    """C8, at the primary: an append begins anew, and without an expiry."""
    network, client = expired()
    changed = client.execute(KEY, APPEND, b"x")
    assert changed.value == b"x"
    assert flags(network) == [ORDERED, ORDERED, None]
    network.now_us += 10 * TTL_US
    kill(network, 1)
    assert client.get(KEY) == b"x"


def test_an_append_that_fails_over_finds_the_value_alive() -> None:
    """C4: the new primary computes anew, by its own clock; nobody saw the first result."""
    network, client = expired()
    network.script(2, Write, after(lambda: kill(network, 1)))
    changed = client.execute(KEY, APPEND, b"x")
    assert changed.value == b"vx"
    assert flags(network)[1] == ORDERED | EXPIRES


@pytest.mark.parametrize("operation", [PUT_IF_VALUE, PUT_IF_VERSION])
def test_a_comparison_that_fails_completes_the_tombstone_first(operation: int) -> None:
    """C8, C4, hole H4."""
    network, client = cluster()
    network.skews_us = {2: SLOW_US}
    put = begin_put(client).run()
    network.now_us += TTL_US
    expected = b"v" if operation == PUT_IF_VALUE else version_bytes(put.version)
    with pytest.raises(VersionMismatch, match="key1 has no value") as caught:
        client.execute(KEY, operation, b"new", expected)
    assert caught.value.is_absent
    assert caught.value.version == Version(put.version.time, put.version.client + 1)
    assert flags(network) == [ORDERED | TOMBSTONE, ORDERED | TOMBSTONE, None]
    kill(network, 1)
    assert client.get(KEY) is None
    again = client.execute(KEY, PUT_IF_VERSION, b"new", version_bytes(caught.value.version))
    assert again.value == b"new"


def test_a_comparison_whose_primary_dies_before_the_tombstone_is_complete() -> None:
    """C4: it has not failed yet, and at the next primary it succeeds."""
    network, client = expired()
    network.script(2, Write, after(lambda: kill(network, 1)))
    assert client.execute(KEY, PUT_IF_VALUE, b"new", b"v").value == b"new"
    assert len(client.sent(Execute)) == 2


def test_put_if_absent_with_an_expiry_is_a_lock_that_ends() -> None:
    network, client = cluster()
    other = another(network)

    def lock(who: Client, value: bytes) -> operations.Changed:
        expiry = operations.expiry_after(who.routes, who.source, TTL_US)
        return who.execute(KEY, PUT_IF_ABSENT, expiry + value, flags=EXPIRES)

    assert lock(client, b"one").value == b"one"
    with pytest.raises(VersionMismatch):
        lock(other, b"two")
    network.now_us += TTL_US
    assert lock(other, b"two").value == b"two"
    assert client.get(KEY) == b"two"


def test_append_and_increment_keep_the_expiry() -> None:
    network, client = cluster()
    begin_put(client, b"1").run()
    assert client.execute(KEY, APPEND, b"0").value == b"10"
    assert client.execute(KEY, INCREMENT, b"1").value == b"11"
    assert client.get(KEY) == b"11"
    network.now_us += TTL_US
    assert client.get(KEY) is None


# --- C6: touch -----------------------------------------------------------------------------------


def test_touch_gives_all_owners_the_same_under_a_new_version() -> None:
    """C6: what a writer that stopped has left on a backup is gone."""
    network, client = cluster(replicas=3)
    put = client.put(KEY, b"v")
    stopped = another(network)
    call = stopped.call(operations.put(stopped.routes, stopped.source, KEY, b"stray"))
    call.advance()
    call.advance(at=1)
    assert values(network) == [b"v", b"stray", b"v"]
    touched = another(network, seed=3, ahead_s=2).execute(KEY, TOUCH, b"")
    assert touched.value == b"v"
    assert touched.version > put.version
    assert values(network) == [b"v", b"v", b"v"]


def test_touch_of_nothing() -> None:
    network, client = cluster()
    assert client.execute(KEY, TOUCH, b"").value == b""
    assert flags(network) == [ORDERED | TOMBSTONE, ORDERED | TOMBSTONE, None]
    assert client.get(KEY) is None


# --- at random -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Expiry(Done):
    """What a put of this value may be followed by at any later time, or never: that it expires, as
    it is or after increments and appends."""


def state_after(done: Done, state: bytes | None) -> tuple[bool, bytes | None]:
    """Whether it can take effect in this state of its key, and the state after it."""
    if isinstance(done, Expiry):
        assert done.value is not None
        # The last four of a value's digits are for the increments.
        is_it = state is not None and re.match(done.value[:-4] + rb"\d{4}", state) is not None
        return is_it, None
    match done.what:
        case "get":
            return done.value == state, state
        case "put" | "delete":
            return True, done.value
        case "compare":
            is_same = state == done.expected
            return done.end is None or done.result == is_same, done.value if is_same else state
    assert done.value is not None
    number = int(state or b"0") + int(done.value)
    new = (state or b"") + done.value if done.what == "append" else b"%d" % number
    result = new if done.what == "append" else number
    return done.end is None or done.result == result, new


def is_linearizable(history: list[Done]) -> bool:
    """The plain search of Wing and Gong, with expiries as operations: for one key's few operations.
    (The search of tests/linearizability.py knows its operations too well to take another one.)"""
    required = {index for index, done in enumerate(history) if done.end is not None}
    tried: set[tuple[frozenset[int], bytes | None]] = set()
    todo: list[tuple[frozenset[int], bytes | None]] = [(frozenset(), None)]
    while todo:
        state = todo.pop()
        if state in tried:
            continue
        tried.add(state)
        past, value = state
        if required <= past:
            return True
        first_end = min(history[index].end or 0 for index in required - past)
        for index, done in enumerate(history):
            if index in past or done.start > first_end:
                continue
            can_be, new_value = state_after(done, value)
            if can_be:
                todo.append((past | {index}, new_value))
    return False


class ExpiringRun(Run):
    """A random run in which most values expire soon, and the nodes' clocks
    differ by more than the values live."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.network.skews_us = {
            node: self.random.choice((0, -500, 500, -20_000, 20_000, SLOW_US))
            for node in self.network.nodes
        }

    def start(self, number: int) -> None:
        super().start(number)
        done = self.calls[number][1]
        if done.what not in ("put", "compare") or done.value is None or self.random.random() < 0.2:
            return
        client = self.clients[number]
        place = (client.routes, client.source, done.key)
        ttl_us = self.random.choice((1, 300, 1000, 5000, 30_000))
        value = operations.expiry_after(client.routes, client.source, ttl_us) + done.value
        if done.what == "put":
            operation: Any = operations.put(*place, value, EXPIRES)
        else:
            code = PUT_IF_ABSENT if done.expected is None else PUT_IF_VALUE
            operation = operations.execute(*place, code, value, done.expected or b"", EXPIRES)
        self.calls[number] = (client.call(operation), done)
        self.history.append(Expiry("put", done.key, done.value, done.start, None))

    def change(self, what: What, number: int, place: Any) -> tuple[Any, Done]:
        """None by version: the plain search does not know versions."""
        while True:
            operation, done = super().change(what, number, place)
            if not isinstance(done.expected, tuple):
                return operation, done

    def check_history(self) -> None:
        for key in self.keys:
            assert is_linearizable([done for done in self.history if done.key == key]), key

    def count(self, outcomes: Counter[str]) -> None:
        """Also how many tombstones of expired values were given to backups."""
        super().count(outcomes)
        entries = [
            decode_entry(message.entry)
            for _, message in self.network.seen
            if isinstance(message, Write)
        ]
        clients = {client.source.identity.client for client in self.clients}
        outcomes["tombstones"] += sum(
            bool(entry.flags & TOMBSTONE) and entry.client - 1 in clients for entry in entries
        )


def test_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linearizable, with an expiry as an operation of its own, and the invariants hold after each
    event, whatever happens."""
    for module, name, value in SMALL:
        monkeypatch.setattr(module, name, value)
    outcomes = run_many(range(RUNS), ExpiringRun)
    assert outcomes["complete"] > 5 * RUNS
    assert outcomes["tombstones"] > RUNS // 2
    assert outcomes["copied"] > RUNS // 2


def test_the_check_of_histories_finds_a_value_that_comes_back() -> None:
    put = Done("put", KEY, b"110000", 1, 2)
    expiry = Expiry("put", KEY, b"110000", 1, None)
    appended = Done("append", KEY, b"1", 3, 4, result=b"1100001")
    gone, back = Done("get", KEY, None, 5, 6), Done("get", KEY, b"1100001", 7, 8)
    assert is_linearizable([put, expiry, appended, gone])
    assert not is_linearizable([put, appended, gone])
    assert not is_linearizable([put, expiry, appended, gone, back])
