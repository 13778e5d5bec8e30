"""The holes of docs/REPLICATION.md, each as its shortest trace, with the rule that closes it to be
switched off.

A scenario drives the shipped operations, replicas and membership through one trace, event by event,
and ends with what users see: a write that was lost, a write that was done twice, an old value, two
holders of one lock. As shipped it passes. With the rule switched off, it must fail, and exactly
with that: so the rule is what closes the hole, and the scenario would notice if it were gone.
Switches exist only here; they replace functions of the product for the length of one test.

====  ======================================  ======================================================
hole  scenario                                what is switched off
====  ======================================  ======================================================
H1    ack_of_a_dead_primary                   C3: `acked` ends with the tenure
H2    help_in_a_new_list                      C5: what is helped is not sent again in a new list
H2    result_in_a_new_list                    C4: nor is a result
H3    stray_first_version                     C3: after a second version, a new tenure ends it
H3    second_version_out_of_order             C3: a second version is ordered
H4    failure_on_a_pending_entry              C4: help first, then report the failure
H5    late_execute                            C4: FAILED after silence is OutcomeUnknown
H6    lost_ack_of_a_put                       C3: SUPERSEDED while unresolved is OutcomeUnknown
H6    lost_answer_of_an_append                C4: the same
H7    result_out_of_order                     C2: ordered writes go in list order
H7    help_out_of_order                       C2: by helpers too
H8    copy_of_an_uncompleted_result           N6: copy from the predecessor, not from the primary
H9    in_sync_out_of_order                    the in-sync owners are a prefix (see below)
H10   new_key_below_one_floor                 N7: what is below a floor is refused by an error
H11   empty_process_on_an_old_port            N0: an owner is one incarnation of a node
H12   label_of_another_partition              N1a: one epoch for each partition
H13   stored_after_the_copy (test_holes.py)   N1b: check and store are one step under the lock
H14   live_primary_is_removed                 M2: a primary that lives is never removed
H16   identity_that_was_given_up              State: no version is used twice, whoever draws it
H17   write_that_a_full_primary_refused      C3: what backups have of it is touched first
C5    read_of_a_pending_entry                 C5: help first, then return the value
N5    late_commit_of_an_older_version         N5: only the version that COMMIT names is committed
N6    copy_before_the_new_list                N6: the source first goes by the copier's list
N7    late_write_after_the_tombstone          N7: what was dropped raises the floor
N7    late_write_to_a_copier                  N7: the last batch carries the source's floor
====  ======================================  ======================================================

The last five are no holes of the document's table: they show rules that it cites elsewhere.

H9 is closed twice. As long as owners copy from their predecessors (N6), nobody has anything to
report out of order; and the manager ignores such a report. Only without both, and with the first
owner in sync as the primary instead of the first owner, does the primary move without a removal.

One hole cannot occur in this version: H15 needs entries that are not on disk yet. There is no disk:
a process that ends takes its entries with it, and comes back as the owner of nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pytest

from gtstore import copying, membership, operations, placement, replica, settling
from gtstore.errors import OperationFailed, OutcomeUnknown, VersionMismatch
from gtstore.operations import ACKED, MANAGER, Lost, Reply, Source, Step
from gtstore.placement import LABEL, Route, Routes, home_owners
from gtstore.read_modify_write import VERSION_SIZE
from gtstore.replica import Replica, Replicas
from gtstore.wire import messages
from gtstore.wire.codec import COMMIT_BODY, HEADER_WORDS, head_word
from gtstore.wire.messages import (
    APPEND,
    ORDERED,
    PUT_IF_ABSENT,
    PUT_IF_VALUE,
    Execute,
    Get,
    GetMap,
    Row,
    Write,
)

from ..linearizability import Done, violations
from .network import Call, Client, Fault, Network, after

KEY: Final = b"key1"
"""Of three nodes, its owners are 1, 2 and 3, in this order."""
PARTITION: Final = 186
NEIGHBOUR: Final = b"1yek"
"""In the same partition."""
OTHER_KEY: Final = b"key4"
"""In another partition of the same nodes."""
SECOND_US: Final = 1_000_000

LOST: Final = "a write that was acknowledged is lost"
UNDEAD: Final = "a write that was reported as not done was done"
TWICE: Final = "a write was done twice"
STALE: Final = "an old value was read"
WRONG_NO: Final = "a comparison that was reported as failed counts"
TWO_HOLDERS: Final = "two clients hold one lock"


class Wrong(AssertionError):
    """Users see what they must not see. ``history`` is what all of them saw."""

    def __init__(self, symptom: str, history: list[Done]) -> None:
        super().__init__(symptom)
        self.history = history


class Task:
    """One operation of one user, to be advanced event by event.

    ``outcome`` is "done", "unknown" or "failed" when it has ended, and ``result`` what it returned.
    One that is never advanced to its end belongs to a client that was killed.
    """

    def __init__(self, users: Users, call: Call[Any], done: Done) -> None:
        self.users = users
        self.call = call
        self.done = done
        self.outcome = ""
        self.result: Any = None

    def step(self, events: int = 1) -> Task:
        """The first event of an operation begins it; each request, and then going on with the
        replies, is one more."""
        for _ in range(events):
            self.call.advance()
            if self.call.is_done:
                self._end()
                break
        return self

    def finish(self) -> Task:
        while not self.call.is_done:
            self.step()
        return self

    def reach(self, *nodes: int) -> Task:
        """Begin a put or a delete, and let its first round reach these owners and no others."""
        self.step()
        waiting = [*self.call.client.routes.find(KEY).nodes]
        for node in nodes:
            at = waiting.index(node)
            del waiting[at]
            self.call.advance(at)
        return self

    def _end(self) -> None:
        done = self.done
        match self.call.error:
            case None:
                self.outcome = "done"
                done.end = self.users.next_moment()
                self.result = self.call.result
            case OutcomeUnknown():
                self.outcome = "unknown"
            case VersionMismatch():
                self.outcome = "failed"
                done.end = self.users.next_moment()
                done.result = False
                done.version = self.call.error.version
            case OperationFailed():
                self.outcome = "failed"
                self.users.history.remove(done)
            case error:
                raise error
        if self.outcome == "done":
            done.version = None if self.result is None else self.result.version
            if done.what == "get":
                self.result = done.value = None if self.result is None else self.result.value
            elif done.what == "append":
                self.result = done.result = self.result.value
            elif done.what == "compare":
                done.result = True


class Users:
    """Clients of one key on a cluster of their own, and what they see."""

    def __init__(self, replicas: int = 2, nodes: int = 3) -> None:
        self.network = Network(nodes, replicas)
        self.history: list[Done] = []
        self.clients: list[Client] = []
        self._moment = 0

    def next_moment(self) -> int:
        self._moment += 1
        return self._moment

    def client(self, ahead_s: float = 0) -> Client:
        """A new client that knows the map. Its clock is that far ahead after it has learned the
        manager's, so that a test chooses whose version is higher."""
        client = Client(self.network, seed=len(self.clients) + 1).know()
        self.clients.append(client)
        client.skew_us = round(ahead_s * SECOND_US)
        return client

    # --- operations, begun: nothing was sent yet -------------------------------------------------

    def put(self, value: bytes, client: Client | None = None, key: bytes = KEY) -> Task:
        client = client or self.client()
        operation = operations.put(client.routes, client.source, key, value)
        return self._begin(client, operation, Done("put", key, value, 0, None))

    def delete(self, client: Client | None = None, key: bytes = KEY) -> Task:
        client = client or self.client()
        operation = operations.delete(client.routes, client.source, key)
        return self._begin(client, operation, Done("delete", key, None, 0, None))

    def get(self, client: Client | None = None) -> Task:
        client = client or self.client()
        operation = operations.get(client.routes, client.source, KEY)
        return self._begin(client, operation, Done("get", KEY, None, 0, None))

    def append(self, value: bytes, client: Client | None = None) -> Task:
        client = client or self.client()
        operation = operations.execute(client.routes, client.source, KEY, APPEND, value)
        return self._begin(client, operation, Done("append", KEY, value, 0, None))

    def compare(self, value: bytes, expected: bytes | None, client: Client | None = None) -> Task:
        """Put a value if the key has that one, or (None) no value."""
        client = client or self.client()
        kind = PUT_IF_ABSENT if expected is None else PUT_IF_VALUE
        operation = operations.execute(
            client.routes, client.source, KEY, kind, value, expected or b""
        )
        return self._begin(client, operation, Done("compare", KEY, value, 0, None, expected))

    def _begin(self, client: Client, operation: Any, done: Done) -> Task:
        done.start = self.next_moment()
        self.history.append(done)
        return Task(self, client.call(operation, 5), done)

    # --- the cluster -----------------------------------------------------------------------------

    def kill(self, node: int) -> None:
        """A node dies, and the manager knows it."""
        self.network.kill(node)
        self.network.notice(node)

    def forget_deletes(self, *nodes: int) -> None:
        """All that is owed arrives, and after a long time these nodes drop their tombstones."""
        for client in self.clients:
            client.source.owe_now()
            self.network.deliver_owed(client.source.owed)
        later_us = self.network.now_us + 10_000 * SECOND_US
        for node in nodes:
            settling.look_through(self.network.nodes[node].replicas, PARTITION, later_us)

    def held(self, node: int) -> bytes | None:
        entry = self.network.nodes[node].held(KEY)
        return None if entry is None else entry.value

    # --- what they see ---------------------------------------------------------------------------

    @property
    def seen(self) -> list[Done]:
        """The history of the key. A read that did not end says nothing."""
        return [
            done
            for done in self.history
            if done.key == KEY and (done.what != "get" or done.end is not None)
        ]

    def check(self) -> None:
        """What they have seen so far fits together."""
        assert not (found := violations(self.seen)), "\n".join(map(str, found))

    def expect(self, is_so: bool, symptom: str) -> None:
        """The end of a scenario."""
        if not is_so:
            raise Wrong(symptom, self.seen)
        self.check()


# --- scenarios -----------------------------------------------------------------------------------


def ack_of_a_dead_primary() -> None:
    """H1: P ACKs put a, B never gets it, P dies. An append succeeds on B over the old base. The put
    is sent again: SUPERSEDED."""
    users = Users()
    users.network.script(2, Write, Fault.DROP)
    put = users.put(b"a")
    put.step(3)
    assert (users.held(1), users.held(2)) == (b"a", None)
    users.kill(1)
    assert users.append(b"b", users.client(ahead_s=1)).finish().result == b"b"
    put.finish()
    users.expect(put.outcome != "done" or users.get().finish().result != b"b", LOST)


def help_in_a_new_list() -> None:
    """H2: a reader has the pending result a(2.0) from P. P dies. On B: put b(1.1), and the append
    runs again, at the same version. Then the reader goes on."""
    users = Users()
    append = users.append(b"a", users.client(ahead_s=1)).step(2)
    read = users.get().step(2)
    assert users.held(1) == b"a"
    users.kill(1)
    assert users.put(b"b").finish().outcome == "done"
    assert append.finish().result == b"ba"
    users.expect(read.finish().result == b"ba", STALE)


def result_in_a_new_list() -> None:
    """H2, by the writer: P has executed its append, and dies. On B: put b(1.1). Then the writer
    goes on."""
    users = Users()
    append = users.append(b"a", users.client(ahead_s=1)).step(2)
    assert users.held(1) == b"a"
    users.kill(1)
    assert users.put(b"b").finish().outcome == "done"
    append.finish()
    users.expect(b"b" in users.get().finish().result, LOST)


def stray_first_version() -> None:
    """H3: put b(1.1) is stored at B, refused by P, and gets the version 3.1. P dies. A reader sees
    b(1.1) on B; put d(2.2) succeeds; the put of b goes on."""
    users = Users()
    users.put(b"c", users.client(ahead_s=1)).reach(1)
    put = users.put(b"b").step(4)
    assert (users.held(1), users.held(2)) == (b"c", b"b")
    users.kill(1)
    assert users.get().finish().result == b"b"
    assert users.put(b"d", users.client(ahead_s=0.5)).finish().outcome == "done"
    put.finish()
    users.expect(users.get().finish().result == b"d", TWICE)


def second_version_out_of_order() -> None:
    """H3, three owners: the second version, b(3.1), reaches only P, or, without order, only B2; its
    client is killed. P dies, b(1.1) is read on B1, put d(2.2) succeeds, B1 dies."""
    users = Users(replicas=3)
    users.put(b"c", users.client(ahead_s=1)).reach(1)
    put = users.put(b"b").step(5)
    assert [users.held(node) for node in (1, 2, 3)] == [b"c", b"b", b"b"]
    put.call.advance(2)  # the last one of those that it is being sent to
    users.kill(1)
    assert users.get().finish().result == b"b"
    assert users.put(b"d", users.client(ahead_s=0.5)).finish().outcome == "done"
    users.kill(2)
    users.expect(users.get().finish().result == b"d", TWICE)


def failure_on_a_pending_entry() -> None:
    """H4: P has put a pending; a comparison fails because of it; P dies; get finds nothing."""
    users = Users()
    users.put(b"a").reach(1)
    compare = users.compare(b"b", None, users.client(ahead_s=1)).finish()
    assert compare.outcome == "failed"
    users.kill(1)
    users.expect(users.get().finish().result == b"a", WRONG_NO)


def late_execute() -> None:
    """H5: the first EXECUTE of a comparison is late, the second one fails. Then put a; then the
    first one arrives, and succeeds."""
    users = Users()
    users.network.script(1, Execute, Fault.LATE)
    compare = users.compare(b"b", b"a", users.client(ahead_s=1)).finish()
    assert users.put(b"a").finish().outcome == "done"
    users.network.deliver_late()
    value = users.get().finish().result
    users.expect(compare.outcome == "unknown" or value == b"a", WRONG_NO)


def lost_ack_of_a_put() -> None:
    """H6: a put's ACK is lost, an append builds on it, the put is sent again: SUPERSEDED."""
    users = Users()
    users.network.script(1, Write, Fault.DROP_REPLY)
    put = users.put(b"a").step(3)
    assert users.append(b"!", users.client(ahead_s=1)).finish().result == b"a!"
    put.finish()
    users.expect(users.get().finish().result == b"a!", TWICE)


def lost_answer_of_an_append() -> None:
    """H6: the same with two appends."""
    users = Users()
    users.network.script(1, Execute, Fault.DROP_REPLY)
    append = users.append(b"a").step(2)
    assert users.append(b"!", users.client(ahead_s=1)).finish().result == b"a!"
    append.finish()
    users.expect(users.get().finish().result == b"a!", TWICE)


def _is_lost_behind_b2(users: Users) -> None:
    """The end of H7 and H8: P dies, put b succeeds on B1 and B2, B1 dies."""
    users.kill(1)
    assert users.put(b"b").finish().outcome == "done"
    users.kill(2)
    users.expect(users.get().finish().result == b"b", LOST)


def result_out_of_order() -> None:
    """H7: an append's result v(2.0) does not reach B1, and its client is killed. P dies. Put
    b(1.1): B1 ACK, B2 SUPERSEDED. B1 dies."""
    users = Users(replicas=3)
    users.network.script(2, Write, Fault.DROP)
    users.append(b"v", users.client(ahead_s=1)).step(5)
    assert (users.held(1), users.held(2)) == (b"v", None)
    _is_lost_behind_b2(users)


def help_out_of_order() -> None:
    """H7: the same, with a reader that helps the result, and is killed."""
    users = Users(replicas=3)
    users.append(b"v", users.client(ahead_s=1)).step(2)
    users.network.script(2, Write, Fault.DROP)
    users.get().step(5)
    assert (users.held(1), users.held(2)) == (b"v", None)
    _is_lost_behind_b2(users)


def copy_of_an_uncompleted_result() -> None:
    """H8: the third owner joins, and copies while an append's result is on P only; its client is
    killed. Then as H7."""
    users = Users(replicas=3)
    network = users.network
    users.kill(3)
    network.bring_back(3)
    users.append(b"v", users.client(ahead_s=1)).step(2)
    assert (users.held(1), users.held(2)) == (b"v", None)
    network.copy(3, PARTITION).run()
    assert all(owner.in_sync for owner in network.map.rows[PARTITION].owners)
    _is_lost_behind_b2(users)


def new_key_below_one_floor() -> None:
    """H10: only B has dropped a later delete of another key. Put a(1.0) of a new key: P ACKs it, B
    does not. P dies."""
    users = Users()
    assert users.delete(users.client(ahead_s=1), NEIGHBOUR).finish().outcome == "done"
    users.forget_deletes(2)
    put = users.put(b"a").finish()
    users.kill(1)
    users.expect(put.outcome != "done" or users.get().finish().result == b"a", LOST)


def _deleted_long_ago(users: Users) -> Task:
    """A put that has reached P when its client is stopped; it was read, deleted and forgotten."""
    put = users.put(b"a").reach(1)
    assert users.get().finish().result == b"a"
    assert users.delete(users.client(ahead_s=1)).finish().outcome == "done"
    users.forget_deletes(1, 2)
    assert users.held(1) is users.held(2) is None
    return put


def late_write_after_the_tombstone() -> None:
    """N7: the stopped client goes on, and its write reaches B. P dies."""
    users = Users()
    put = _deleted_long_ago(users)
    put.step()
    users.kill(1)
    users.expect(users.get().finish().result is None, TWICE)


def late_write_to_a_copier() -> None:
    """N7: B is replaced, and its successor, which knows nothing yet, gets the late write. Then it
    copies. P dies."""
    users = Users()
    put = _deleted_long_ago(users)
    users.kill(2)
    users.network.bring_back(2)
    users.network.script(1, Write, *[Fault.DROP] * 9)
    while users.held(2) is None:
        put.step()
    users.network.copy(2, PARTITION).run()
    users.kill(1)
    users.expect(users.get().finish().result is None, TWICE)


def in_sync_out_of_order() -> None:
    """H9: of P, S1, S2, the last one is in sync first. P dies, so S2 is the first in sync. S1
    becomes in sync, and S2 has not heard of it yet. Two clients take a lock."""
    users = Users(replicas=3)
    network = users.network
    for node in (2, 3):
        users.kill(node)
    for node in (2, 3):
        network.bring_back(node)
    network.copy(3, PARTITION).run()
    users.kill(1)
    first = users.client(ahead_s=1)
    network.publishes_at_once = False
    network.copy(2, PARTITION).run()
    network.nodes[2].adopt()
    first_lock = users.compare(b"first", None, first).step(2)
    second_lock = users.compare(b"second", None, users.client(ahead_s=2)).finish()
    first_lock.finish()
    users.expect([first_lock.outcome, second_lock.outcome] != ["done", "done"], TWO_HOLDERS)


def empty_process_on_an_old_port() -> None:
    """H11: P dies and is started again, empty, on the same port, before the map has changed. A
    client with that map asks it."""
    users = Users()
    network = users.network
    assert users.put(b"a").finish().outcome == "done"
    client = users.client()
    network.kill(1)
    network.start(1)
    network.nodes[1].adopt()

    def notice() -> None:
        network.membership.exited(1, "killed", network.now_us / 1e6)
        network.publish(network.map)

    network.script(1, Get, Fault.NONE, after(notice))
    users.expect(users.get(client).finish().result == b"a", STALE)


def label_of_another_partition() -> None:
    """H12: a client's lists are old: they lack the backup, which has joined again and is in sync.
    It learns one partition's list, and puts to the other. The primary dies."""
    users = Users()
    network = users.network
    users.kill(2)
    client = users.client()
    network.bring_back(2)
    network.copy_all()
    network.script(MANAGER, GetMap, Fault.REFUSE)  # or it would learn all lists at once
    assert users.put(b"", client, OTHER_KEY).finish().outcome == "done"
    assert users.put(b"a", client).finish().outcome == "done"
    users.kill(1)
    users.expect(users.get().finish().result == b"a", LOST)


def identity_that_was_given_up() -> None:
    """H16: a key's version is so far ahead that no client learns of it for its clock. One client
    appends and puts at the same time; both are refused, and go above it."""
    users = Users()
    client = users.client()
    other = users.client(ahead_s=50)
    assert users.delete(other).finish().outcome == "done"
    other.skew_us = 100 * SECOND_US  # within 60 s of what is stored
    assert users.delete(other).finish().outcome == "done"
    put = users.put(b"b", client)
    append = users.append(b"a", client).step(2)
    put.reach(1, 2)
    assert append.finish().result == b"a"
    put.finish()
    users.expect(users.get().finish().result in (b"ab", b"b"), LOST)


def live_primary_is_removed() -> None:
    """H14: a stand-in is the primary, and a home owner is back. The nodes of the new map serve,
    before the old primary has heard of it."""
    users = Users()
    network = users.network
    users.put(b"old").finish()
    users.kill(2)
    network.now_us += 3 * SECOND_US
    network.tick()
    network.copy_all()
    users.kill(1)
    assert [owner.node for owner in network.map.rows[PARTITION].owners] == [3]
    network.bring_back(1)
    before = users.client()
    assert users.get(before).finish().result == b"old"  # it is committed with the next request
    network.publishes_at_once = False
    network.copy(1, PARTITION).run()
    for node in (1, 2):
        if network.nodes[node].is_alive:
            network.nodes[node].adopt()
    users.put(b"new").finish()
    users.expect(users.get(before).finish().result == b"new", STALE)


def write_that_a_full_primary_refused() -> None:
    """H17: P is full and refuses put a, which B has stored. The client says that it did not happen.
    P dies."""
    users = Users()
    users.network.nodes[1].limit_memory(1)
    put = users.put(b"a").finish()
    assert put.outcome == "failed"
    users.kill(1)
    users.expect(users.get().finish().result is None, UNDEAD)


def read_of_a_pending_entry() -> None:
    """C5: P has put a pending; a reader sees it; P dies; another reader comes."""
    users = Users()
    users.put(b"a").reach(1)
    assert users.get().finish().result == b"a"
    users.kill(1)
    users.expect(users.get().finish().result == b"a", STALE)


def late_commit_of_an_older_version() -> None:
    """N5: put a is complete. Put b reaches P only, and its client is killed. Then the COMMIT of a
    arrives. A reader sees b; P dies; another reader comes."""
    users = Users()
    client = users.client()
    users.put(b"a", client).finish()
    users.put(b"b", users.client(ahead_s=1)).reach(1)
    users.network.deliver_owed(client.source.owed)
    assert users.get().finish().result == b"b"
    users.kill(1)
    users.expect(users.get().finish().result == b"b", STALE)


def copy_before_the_new_list() -> None:
    """N6: the backup is back, and copies from P, which has not heard of it from the manager. A
    client has the old list, too, and puts. P dies."""
    users = Users()
    network = users.network
    users.kill(2)
    client = users.client()
    network.publishes_at_once = False
    network.bring_back(2)
    network.nodes[2].adopt()
    network.copy(2, PARTITION).run()
    assert all(owner.in_sync for owner in network.map.rows[PARTITION].owners)
    assert users.put(b"a", client).finish().outcome == "done"
    users.kill(1)
    network.nodes[2].adopt()
    users.expect(users.get().finish().result == b"a", LOST)


# --- switches ------------------------------------------------------------------------------------

Patch = pytest.MonkeyPatch
Replies = Generator[Step, Sequence[Reply], Sequence[Reply]]


def keep_acked(patch: Patch) -> None:
    enter_tenure = operations._Write._enter_tenure

    def enter(write: Any, route: Route) -> None:
        acked = write._acked
        enter_tenure(write, route)
        write._acked = acked

    patch.setattr(operations._Write, "_enter_tenure", enter)


def _give_also_in_a_new_list(source: Source, route: Route, key: bytes, entry: bytes) -> Replies:
    """Give an entry to the backups, or, if their list is newer, to the owners in that one."""
    replies = yield from operations._write_to_backups(source, route, key, entry)
    for reply in replies:
        if operations._is_error(reply, messages.STALE_EPOCH):
            assert not isinstance(reply, Lost)
            error = operations.remote_error("a storage node", reply)
            newer = Route(error.detail.row)
            request_id = source.next_number()
            frame = operations._write_frame(request_id, newer, key, entry)
            replies = yield newer.nodes, request_id, frame
            assert operations._all_hold(replies)
            return [ACKED] * (len(route.nodes) - 1)
    return replies


def carry_help(patch: Patch) -> None:
    patch.setattr(operations, "_help", _give_also_in_a_new_list)


def carry_results(patch: Patch) -> None:
    def give(change: Any, route: Route) -> Replies:
        return _give_also_in_a_new_list(change._source, route, change._key, change._executed)

    patch.setattr(operations._Change, "_give_to_others", give)


def go_on_with_more_versions(patch: Patch) -> None:
    enter_tenure = operations._Write._enter_tenure

    def enter(write: Any, route: Route) -> None:
        versions, write._versions = write._versions, 1
        enter_tenure(write, route)
        write._versions = versions

    patch.setattr(operations._Write, "_enter_tenure", enter)


def no_order(patch: Patch) -> None:
    send_in_order = operations.send_in_order

    def send_at_once(flags: int, *arguments: Any) -> Replies:
        return send_in_order(flags & ~ORDERED, *arguments)

    patch.setattr(operations, "send_in_order", send_at_once)


def second_versions_are_not_ordered(patch: Patch) -> None:
    raise_version = operations._Write._raise_version

    def raise_it(write: Any, route: Route, reply: Reply) -> Any:
        flags = write._flags
        yield from raise_version(write, route, reply)
        write._flags = flags

    patch.setattr(operations._Write, "_raise_version", raise_it)


def report_failures_at_once(patch: Patch) -> None:
    def fail(change: Any, route: Route, reply: Any) -> Replies:  # noqa: ARG001
        yield from ()
        raise operations._failure(change._key, reply[3][0], reply[3][1:])

    patch.setattr(operations._Change, "_help_before_failing", fail)


def forget_unanswered_requests(patch: Patch) -> None:
    help_before_failing = operations._Change._help_before_failing

    def fail(change: Any, route: Route, reply: Reply) -> Replies:
        change._unanswered_epoch = 0
        return (yield from help_before_failing(change, route, reply))

    patch.setattr(operations._Change, "_help_before_failing", fail)


def ignore_unresolved(patch: Patch) -> None:
    def ignored(raise_version: Any) -> Any:
        def raise_it(operation: Any, *arguments: Any) -> Any:
            operation._unresolved = False
            yield from raise_version(operation, *arguments)

        return raise_it

    for cls in (operations._Write, operations._Change):
        patch.setattr(cls, "_raise_version", ignored(cls._raise_version))


def _first_in_sync(row: Row) -> messages.Owner:
    return next(owner for owner in row.owners if owner.in_sync)


def count_what_is_too_old(patch: Patch) -> None:
    """As SUPERSEDED, which counts as the answer of an owner that holds something higher."""
    patch.setattr(
        replica,
        "_too_old",
        lambda request_id, floor: (
            HEADER_WORDS.pack(head_word(messages.Superseded.kind), request_id, len(floor)) + floor
        ),
    )


def no_floors(patch: Patch) -> None:
    look_through = settling.look_through

    def look(replicas: Replicas, partition: int, now_us: int) -> Any:
        found = look_through(replicas, partition, now_us)
        replicas[partition].floor = b""
        return found

    patch.setattr(settling, "look_through", look)


def copy_no_floor(patch: Patch) -> None:
    patch.setattr(copying, "_take_floor", lambda *_: None)


def copy_from_the_primary(patch: Patch) -> None:
    """From the first owner in sync, whoever stands between."""
    answer = copying.answer

    def source_of(replicas: Replicas, partition: int) -> Any:
        row = replicas[partition].row
        for owner in row.owners if row else ():
            if replicas.is_mine(owner) and not owner.in_sync:
                assert row is not None
                source = _first_in_sync(row)
                return copying._Source(source.node, source.incarnation, owner.join_epoch, row)
        return None

    def answer_anyone(replicas: Replicas, request_id: int, request: copying.Request) -> bytes:
        replicas.adopt_row(request.row)
        replica = replicas[request.row.partition]
        row = replica.row
        assert row is not None
        # As if the copier stood right behind.
        copier = next(owner for owner in row.owners if owner.node == request.node)
        replica.row = dataclasses.replace(row, owners=(_first_in_sync(row), copier))
        try:
            return answer(replicas, request_id, dataclasses.replace(request, row=replica.row))
        finally:
            replica.row = row

    patch.setattr(copying, "_source_of", source_of)
    patch.setattr(copying, "answer", answer_anyone)


def reports_in_any_order(patch: Patch) -> None:
    """Any syncing owner that reports is in sync."""

    def row_in_sync(row: Row, node: int, join_epoch: int, epoch: int) -> Row:  # noqa: ARG001
        owners = tuple(
            dataclasses.replace(owner, in_sync=1)
            if (owner.node, owner.join_epoch) == (node, join_epoch)
            else owner
            for owner in row.owners
        )
        return row if owners == row.owners else dataclasses.replace(row, owners=owners)

    patch.setattr(membership, "row_in_sync", row_in_sync)


def first_in_sync_is_primary(patch: Patch) -> None:
    """The first owner that is in sync is the primary, wherever it stands."""
    make_route = Route.__init__
    adopt_row = Replicas.adopt_row

    def make(route: Route, row: Row) -> None:
        primary = _first_in_sync(row)
        backups = tuple(owner for owner in row.owners if owner is not primary)
        make_route(route, dataclasses.replace(row, owners=(primary, *backups)))

    def adopt(replicas: Replicas, row: Row) -> None:
        adopt_row(replicas, row)
        replica: Replica = replicas[row.partition]
        held = replica.row
        if held is not None:
            is_primary = replicas.is_mine(_first_in_sync(held))
            replica.read_epoch = held.list_epoch if is_primary else -1

    patch.setattr(Route, "__init__", make)
    patch.setattr(Replicas, "adopt_row", adopt)


H9_SWITCHES: Final = (copy_from_the_primary, reports_in_any_order, first_in_sync_is_primary)
"""All of them open the hole; two of them do not."""


def no_prefix(patch: Patch) -> None:
    for switch_off in H9_SWITCHES:
        switch_off(patch)


def any_incarnation_is_mine(patch: Patch) -> None:
    patch.setattr(Replicas, "is_mine", lambda replicas, owner: owner.node == replicas.node)


def one_epoch_for_all(patch: Patch) -> None:
    """Each request carries the highest epoch that the client knows, of whatever partition."""

    def label_all(change: Callable[..., Any]) -> Callable[..., Any]:
        def change_and_label(routes: Routes, *arguments: Any) -> Any:
            result = change(routes, *arguments)
            newest = max(route.epoch for route in routes.by_partition)
            for route in routes.by_partition:
                route.label = LABEL.pack(newest, route.partition)
            return result

        return change_and_label

    for name in ("patch", "replace"):
        patch.setattr(Routes, name, label_all(getattr(Routes, name)))


def believe_that_it_is_undone(patch: Patch) -> None:
    def undo(write: Any, route: Route) -> Generator[Step, Sequence[Reply], bool]:  # noqa: ARG001
        yield from ()
        return True

    patch.setattr(operations._Write, "_undo", undo)


def forget_times_that_are_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next version of an identity may be one that it has had: its time is not kept where it was
    drawn far ahead of the clock."""

    def next_time(
        source: Source, identity: operations.Identity, offset_us: int, above: int = 0
    ) -> int:
        near = source.now_us(offset_us)
        if near <= above:
            return above + 1
        return next_near(source, identity, offset_us)

    next_near = Source.next_time
    monkeypatch.setattr(Source, "next_time", next_time)


def remove_live_primaries(patch: Patch) -> None:
    """A stand-in that is the primary goes like any other, once there is somebody else in sync."""
    row_repaired = placement.row_repaired

    def repair(row: Row, nodes: int, replicas: int, *arguments: Any) -> Row:
        repaired = row_repaired(row, nodes, replicas, *arguments)
        owners = repaired.owners
        is_home = owners[0].node in home_owners(row.partition, nodes, replicas)
        if is_home or not any(owner.in_sync for owner in owners[1:]):
            return repaired
        return placement._row_with(row, owners[1:], arguments[-1])

    patch.setattr(membership, "row_repaired", repair)


def believe_pending_entries(patch: Patch) -> None:
    def help_nobody(source: Source, route: Route, key: bytes, entry: bytes) -> Replies:  # noqa: ARG001
        yield from ()
        return [ACKED] * (len(route.nodes) - 1)

    patch.setattr(operations, "_help", help_nobody)


def commit_whatever_is_there(patch: Patch) -> None:
    commit = Replicas.commit

    def commit_it(replicas: Replicas, request_id: int, body: bytes) -> bytes:
        partition, _, key_size = COMMIT_BODY.unpack_from(body)
        key = body[COMMIT_BODY.size :]
        stored = replicas[partition].entries.get(key)
        if stored is not None:
            body = COMMIT_BODY.pack(partition, stored[:VERSION_SIZE], key_size) + key
        return commit(replicas, request_id, body)

    patch.setattr(Replicas, "commit", commit_it)


def copy_without_adopting(patch: Patch) -> None:
    answer = copying.answer

    def answer_and_forget(replicas: Replicas, request_id: int, request: copying.Request) -> bytes:
        replica = replicas[request.row.partition]
        before = replica.row, replica.write_epoch, replica.read_epoch
        try:
            return answer(replicas, request_id, request)
        finally:
            replica.row, replica.write_epoch, replica.read_epoch = before

    patch.setattr(copying, "answer", answer_and_forget)


# --- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hole:
    """``symptom`` is what users see of it when the rule is off."""

    name: str
    scenario: Callable[[], None]
    switch_off: Callable[[Patch], None]
    symptom: str

    def __str__(self) -> str:
        return f"{self.name}-{self.scenario.__name__}"


HOLES: Final = (
    Hole("H1", ack_of_a_dead_primary, keep_acked, LOST),
    Hole("H2", help_in_a_new_list, carry_help, STALE),
    Hole("H2", result_in_a_new_list, carry_results, LOST),
    Hole("H3", stray_first_version, go_on_with_more_versions, TWICE),
    Hole("H3", second_version_out_of_order, second_versions_are_not_ordered, TWICE),
    Hole("H4", failure_on_a_pending_entry, report_failures_at_once, WRONG_NO),
    Hole("H5", late_execute, forget_unanswered_requests, WRONG_NO),
    Hole("H6", lost_ack_of_a_put, ignore_unresolved, TWICE),
    Hole("H6", lost_answer_of_an_append, ignore_unresolved, TWICE),
    Hole("H7", result_out_of_order, no_order, LOST),
    Hole("H7", help_out_of_order, no_order, LOST),
    Hole("H8", copy_of_an_uncompleted_result, copy_from_the_primary, LOST),
    Hole("H9", in_sync_out_of_order, no_prefix, TWO_HOLDERS),
    Hole("H10", new_key_below_one_floor, count_what_is_too_old, LOST),
    Hole("H11", empty_process_on_an_old_port, any_incarnation_is_mine, STALE),
    Hole("H12", label_of_another_partition, one_epoch_for_all, LOST),
    Hole("H14", live_primary_is_removed, remove_live_primaries, STALE),
    Hole("H16", identity_that_was_given_up, forget_times_that_are_far, LOST),
    Hole("H17", write_that_a_full_primary_refused, believe_that_it_is_undone, UNDEAD),
    Hole("C5", read_of_a_pending_entry, believe_pending_entries, STALE),
    Hole("N5", late_commit_of_an_older_version, commit_whatever_is_there, STALE),
    Hole("N6", copy_before_the_new_list, copy_without_adopting, LOST),
    Hole("N7", late_write_after_the_tombstone, no_floors, TWICE),
    Hole("N7", late_write_to_a_copier, copy_no_floor, TWICE),
)
