"""A run of the simulated cluster at random, all of it drawn from one seed.

Clients put, delete, get, append, increment and compare a few keys at once, step by step, while
requests are lost or late, nodes die, return and copy, stand-ins join, maps spread slowly, and nodes
settle what is pending and drop tombstones, and clocks are set, back and forth. The
invariants of docs/REPLICATION.md are checked after every step, and in the end that each key's
history is linearizable.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from gtstore import copying, operations, placement, settling
from gtstore.errors import (
    DeadlineExceeded,
    OperationFailed,
    OutcomeUnknown,
    Unavailable,
    VersionMismatch,
)
from gtstore.replica import Replica
from gtstore.wire import messages
from gtstore.wire.messages import ALIVE, COMMITTED, DEAD, ORDERED, Entry

from ..linearizability import Done, What, violations, without_versions
from .network import Call, Client, Fault, Network, Node

EVENTS_MAX = 700
END_EVENTS_MAX = 3000
SECOND_US = 1_000_000
SMALL = (
    (placement, "PARTITIONS_PER_NODE", 1), (copying, "COPY_SIZE", 40), (copying, "HELD_SIZE", 40)
)  # fmt: skip
"""Module, name and value of what has to be set before a run, so that little is enough to have
several keys in a partition, and several batches in a copy."""
FAULTS = (Fault.REFUSE, Fault.DROP, Fault.DROP_REPLY, Fault.LATE, Fault.AGAIN)


def run_many(seeds: Iterable[int], make: Callable[[int], Run] | None = None) -> Counter[str]:
    """Run them all, and count what happened. Prints the seed of the first run that fails.

    Args:
        make: makes the run of a seed; Run if not given.
    """
    make = make or Run
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        run = make(seed)
        try:
            run.run()
        except BaseException:
            print(f"seed {seed} of {make.__name__}")
            raise
        run.count(outcomes)
    return outcomes


SKEWS_US = (0, 0, 50, 500, 5000, 10 * SECOND_US, 40 * SECOND_US)
"""How far clients' clocks are ahead: the last one is far enough that others give up their
identities when they meet its versions (operations.Source)."""
STEPS_US = (*SKEWS_US, -50, -5000, -10 * SECOND_US, -40 * SECOND_US)
"""To how far ahead they are set, while operations are under way; nodes' clocks too."""


class Run:
    """One run. The cluster has one partition a node (placement.PARTITIONS_PER_NODE is 1), and a
    batch of a copy has few entries (copying.COPY_SIZE, HELD_SIZE)."""

    is_durable = False

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        replicas = self.random.randint(2, 3)
        self.network = Network(
            self.random.randint(replicas, 5), replicas, seed, is_durable=self.is_durable
        )
        self.network.publishes_at_once = False
        # The first two are of the same partition, the third one is of the next.
        self.keys = (b"key1", b"1yek", b"key2")[: self.random.randint(1, 3)]
        self.kills = self.random.randint(0, 6)
        self.fault_rate = self.random.choice((0.0, 0.05, 0.2, 0.4))
        self.network.choose = self.choose
        self.clients: list[Client] = []
        for number in range(self.random.randint(2, 3)):
            shared = self.clients[0].routes if number and self.random.random() < 0.3 else None
            if number and self.random.random() < 0.4:
                # Several operations of one client at once, as of an AsyncClient.
                self.clients.append(self.clients[-1])
                continue
            client = Client(self.network, routes=shared, seed=seed * 10 + number).know()
            client.skew_us = self.random.choice(SKEWS_US)
            client.pays = self.random.random() < 0.5
            self.clients.append(client)
        self.left = dict.fromkeys(range(len(self.clients)), self.random.randint(2, 5))
        self.calls: dict[int, tuple[Call[Any], Done]] = {}
        self.history: list[Done] = []
        self.failed: set[bytes] = set()
        self.is_healed = False
        self.events = 0
        self.in_vain = 0  # processes that ended before they were members
        self.copied = 0  # partitions
        self.copies: dict[Replica, tuple[Node, Call[Any]]] = {}
        self.gathered = 0
        self.settled = 0
        self.dropped = 0  # tombstones
        self.settling: list[tuple[Node, int, bytes, bytes, Call[bool]]] = []
        # Replica, its join_epoch and key: the highest version.
        self.holds: dict[tuple[int, int, bytes], tuple[int, int]] = {}
        self.complete: dict[bytes, tuple[int, int]] = {}
        self.checked: Any = None
        self.clock_steps = self.random.choice((0, 0, 5))

    def choose(self, peer: int, request: Any) -> Fault:  # noqa: ARG002
        if self.random.random() >= self.fault_rate:
            return Fault.NONE
        fault = self.random.choice(FAULTS)
        # TCP does nothing twice, and a client sends again only what was not answered. For an
        # EXECUTE that matters: one that was answered FAILED might succeed the second time (H5).
        is_execute = isinstance(request, messages.Execute)
        return Fault.NONE if fault is Fault.AGAIN and is_execute else fault

    def run(self) -> None:
        while (self.calls or any(self.left.values())) and self.events < EVENTS_MAX:
            self.event()
            self.check()
        # All is well from now on: what is under way ends, by itself.
        self.fault_rate = 0
        self.is_healed = True
        self.heal()
        while self.copy() or self.settle():
            self.events += 1
            self.check()
        for number, (call, _) in list(self.calls.items()):
            ends_at = self.events + END_EVENTS_MAX
            while not call.is_done:
                self.events += 1
                call.advance()
                self.check()
                # A write that is older than tombstones which only some owners have dropped cannot
                # end but by its deadline, which comes long before they are (N7).
                if self.dropped and self.events > ends_at:
                    call.expire()
            self.finish(number)
        reader = Client(self.network, seed=99).know()
        for key in self.keys:
            for _ in range(2):
                start = self.events = self.events + 1
                value = reader.get(key, timeout_s=None)
                self.events += 1
                self.history.append(Done("get", key, value, start, self.events))
                self.check()
        self.check_history()
        assert not self.failed & {done.value for done in self.history if done.what == "get"}

    def event(self) -> None:
        """Something happens: mostly to a client, now and then to the cluster."""
        self.events += 1
        network = self.network
        draw = self.random.random()
        if self.clock_steps and self.random.random() < 0.02:
            self.step_a_clock()
        if draw < 0.015 and self.kills:
            self.kill(self.random.choice(list(network.nodes)))
        elif draw < 0.03:
            self.see_to_the_dead()
        elif draw < 0.033:
            network.now_us += 3 * SECOND_US
            network.tick()
        elif draw < 0.08:
            node = self.random.choice(list(network.nodes.values()))
            node.fetches = self.random.random() < 0.5
            if node.is_alive:
                node.adopt()
        elif draw < 0.15 and network.late:
            network.deliver_late(self.random.randrange(len(network.late)))
        elif draw < 0.18:
            source = self.random.choice(self.clients).source
            source.owe_now()
            owed = source.owed
            if self.random.random() < 0.5:
                network.deliver_owed(owed)
            owed.clear()
        elif draw < 0.2:
            self.look_through(self.random.choice(list(network.nodes.values())))
        elif (draw < 0.25 and self.settle()) or (draw < 0.5 and self.copy()):
            pass
        else:
            self.advance(self.random.randrange(len(self.clients)))

    def step_a_clock(self) -> None:
        """A client's or a node's clock, which T1 says is never set, is all the same: no rule but
        C8's and N9's looks at it, and all of them hold whatever it says."""
        self.clock_steps -= 1
        step_us = self.random.choice(STEPS_US)
        if self.random.random() < 0.5:
            self.random.choice(self.clients).skew_us = step_us
        else:
            node = self.random.choice(list(self.network.nodes))
            self.network.skews_us[node] = max(step_us, -10 * SECOND_US)

    def kill(self, number: int) -> None:
        """Kill a node, unless it is the last living one in sync of some partition."""
        network = self.network
        dead = {n for n, node in network.nodes.items() if not node.is_alive}
        if number not in dead and not network.map.is_last_in_sync(number, dead):
            network.kill(number)
            self.kills -= 1

    def see_to_the_dead(self) -> None:
        """The manager finds out about one of the dead, or has one started again."""
        dead = [number for number, node in self.network.nodes.items() if not node.is_alive]
        if dead:
            number = self.random.choice(dead)
            is_noticed = self.network.membership.members[number].state == DEAD
            draw = self.random.random()
            if draw < 0.1:
                self.network.start_in_vain(number)
                self.in_vain += 1
            elif is_noticed or draw < 0.4:
                self.network.bring_back(number)
                if self.kills and self.random.random() < 0.1:
                    self.kill(number)  # before it has its first map
            else:
                self.network.notice(number)

    def copy(self) -> bool:
        """A step of some copying; say whether there was anything to do."""
        network = self.network
        for replica, (node, call) in list(self.copies.items()):
            if call.is_done or not node.is_alive:
                assert call.error is None
                self.copied += call.is_done
                del self.copies[replica]
        for number, node in network.nodes.items():
            if node.is_alive:
                for partition in copying.pending(node.replicas):
                    if node.replicas[partition] not in self.copies:
                        call = network.copy(number, partition)
                        self.copies[node.replicas[partition]] = node, call
                for partition in copying.to_gather(node.replicas):
                    if node.replicas[partition] not in self.copies:
                        self.gathered += 1
                        gathering = network.gather(number, partition)
                        self.copies[node.replicas[partition]] = node, gathering
        if self.copies:
            self.random.choice(list(self.copies.values()))[1].advance()
        return bool(self.copies)

    def look_through(self, node: Node) -> None:
        """A node looks for what is pending, and drops tombstones, by a clock of its own: it may be
        behind, or so far ahead that nothing is too young."""
        if not node.is_alive or not node.replicas.epoch:
            return
        node.tidy()
        retention_us = 600 * SECOND_US
        now_us = self.network.now_us + retention_us + self.random.choice((-5000, 0, SECOND_US))
        for partition in range(len(node.replicas)):
            before = node.replicas[partition].stored
            for key, version in settling.look_through(node.replicas, partition, now_us):
                client = Client(self.network, seed=self.random.getrandbits(32)).know()
                operation = operations.settle(client.routes, client.source, key, version)
                call = client.call(operation, 5)
                self.settling.append((node, partition, key, version, call))
            self.dropped += before - node.replicas[partition].stored

    def settle(self) -> bool:
        """A step of some settling; say whether there was anything to do."""
        if not self.settling:
            return False
        at = self.random.randrange(len(self.settling))
        node, partition, key, version, call = self.settling[at]
        if node.is_alive and not call.is_done:
            call.advance()
        if not node.is_alive or call.is_done:
            del self.settling[at]
            if call.result and node.is_alive:
                node.replicas.commit_held(node.replicas[partition], key, version)
                self.settled += 1
        return True

    def advance(self, number: int) -> None:
        if number in self.calls:
            call = self.calls[number][0]
            call.advance(self.random.randrange(10))
            if call.is_done:
                self.finish(number)
            elif self.random.random() < 0.003:
                call.expire()
        elif self.left[number]:
            self.left[number] -= 1
            self.start(number)

    def start(self, number: int) -> None:
        client = self.clients[number]
        key = self.random.choice(self.keys)
        place = (client.routes, client.source, key)
        draw = self.random.random()
        if draw < 0.25:
            value = self.new_value(number)
            operation: Any = operations.put(*place, value)
            done = Done("put", key, value, self.events, None)
        elif draw < 0.38:
            operation = operations.delete(*place)
            done = Done("delete", key, None, self.events, None)
        elif draw < 0.66:
            whats: tuple[What, ...] = ("append", "increment", "compare")
            what = self.random.choice(whats)
            operation, done = self.change(what, number, place)
        else:
            operation = operations.get(*place)
            done = Done("get", key, None, self.events, None)
        done.client = number + 1
        self.calls[number] = (client.call(operation), done)

    def new_value(self, number: int) -> bytes:
        """Digits, so that whatever is stored can be incremented; every value is another one."""
        return b"%d%d0000" % (number + 1, self.left[number])

    def change(self, what: What, number: int, place: Any) -> tuple[Any, Done]:
        """A read-modify-write. A comparison expects what it may well find."""
        key = place[2]
        code = messages.APPEND if what == "append" else messages.INCREMENT
        value = b"%d" % self.random.randrange(1, 9)
        expected: bytes | tuple[int, int] | None = None
        if what == "compare":
            known = [done for done in self.history if done.key == key]
            values = [None, *(done.value for done in known)]
            versions = [done.version for done in known if done.version is not None]
            by_version = bool(versions) and self.random.random() < 0.3
            expected = self.random.choice(versions if by_version else values)
            value = self.new_value(number)
        operand = b""
        if isinstance(expected, tuple):
            code = messages.PUT_IF_VERSION
            operand = b"".join(part.to_bytes(8, "big") for part in expected)
        elif what == "compare":
            code = messages.PUT_IF_ABSENT if expected is None else messages.PUT_IF_VALUE
            operand = expected or b""
        operation = operations.execute(*place, code, value, operand)
        return operation, Done(what, key, value, self.events, None, expected)

    def finish(self, number: int) -> None:
        call, done = self.calls.pop(number)
        if isinstance(call.error, VersionMismatch):
            done.end, done.result, done.version = self.events, False, call.error.version
            self.history.append(done)
            return
        if call.error is None:
            done.end = self.events
            result = call.result
            if done.what == "get":
                done.value = None if result is None else result.value
            elif done.what == "compare":
                done.result = True
            elif done.what == "append":
                done.result = result.value
            elif done.what == "increment":
                done.result = int(result.value)
            if result is not None:
                done.version = result.version
                version = (result.version.time, result.version.client)
                self.complete[done.key] = max(version, self.complete.get(done.key, version))
            self.history.append(done)
        elif done.what == "get":
            # In memory, what has lost all its copies begins anew.
            may_be_unavailable = self.is_durable and isinstance(call.error, Unavailable)
            assert isinstance(call.error, DeadlineExceeded) or may_be_unavailable
        elif isinstance(call.error, OutcomeUnknown):
            self.history.append(done)
        else:
            assert isinstance(call.error, OperationFailed)
            if done.what in ("put", "compare"):
                assert done.value is not None
                self.failed.add(done.value)

    def heal(self) -> None:
        """Everybody lives and knows the newest map, and nothing is late."""
        network = self.network
        self.clock_steps = 0
        network.deliver_late()
        for number, node in list(network.nodes.items()):
            if not node.is_alive:
                network.bring_back(number)
        network.publishes_at_once = True
        network.publish(network.map)
        for node in network.nodes.values():
            node.fetches = True

    def count(self, outcomes: Counter[str]) -> None:
        """Add what happened in this run."""
        outcomes["complete"] += sum(done.end is not None for done in self.history)
        outcomes["unknown"] += sum(done.end is None for done in self.history)
        outcomes["failed"] += len(self.failed)
        members = self.network.membership.members.values()
        assert all(member.state == ALIVE for member in members)
        outcomes["returned"] += sum(member.incarnation - 1 for member in members)
        outcomes["in vain"] += self.in_vain
        outcomes["copied"] += self.copied
        outcomes["settled"] += self.settled
        outcomes["dropped"] += self.dropped

    def check_history(self) -> None:
        """Each key's operations are linearizable."""
        history = self.history
        # Nor does anybody know the version of a delete whose tombstone was dropped.
        if self.dropped or any(
            isinstance(message, messages.Execute) and message.operation == messages.TOUCH
            for _, message in self.network.seen
        ):
            history = without_versions(history)
        assert not (found := violations(history)), "\n".join(map(str, found))

    def check(self) -> None:
        """The invariants 1 to 5, and the order of owners, if something may have changed."""
        network = self.network
        state = len(network.seen), len(self.history), network.map.epoch
        if state == self.checked:
            return
        self.checked = state
        for key in self.keys:
            self.check_key(key)
        for row in network.map.rows:
            flags = [owner.in_sync for owner in row.owners]
            assert flags == sorted(flags, reverse=True), "those in sync are in front"
            assert len(row.owners) <= network.replica_count + 1

    def check_key(self, key: bytes) -> None:
        network = self.network
        row = network.row_of(key)
        contents: dict[tuple[int, int], Entry] = {}
        versions: list[tuple[int, int]] = []  # of the living in-sync owners, in order
        before: list[tuple[int, int]] = []  # of the owners so far, in order
        for owner in row.owners:
            node = network.nodes[owner.node]
            if not node.is_alive or node.incarnation != owner.incarnation:
                continue
            if node.replicas[row.partition].join_epoch != owner.join_epoch:
                assert not owner.in_sync, "an owner in sync knows of it"
                continue
            entry = node.held(key)
            # A tombstone that was dropped counts as held (N7).
            floor = node.floor(row.partition) or bytes(16)
            version = int.from_bytes(floor[:8], "big"), int.from_bytes(floor[8:], "big")
            if entry is not None:
                version = max(version, (entry.time, entry.client))
            place = owner.node, owner.join_epoch, key
            assert version >= self.holds.get(place, (0, 0)), "invariant 1"
            self.holds[place] = version
            if entry is not None:
                # Only the living count: what a dead primary computed may be computed anew.
                plain = dataclasses.replace(entry, flags=entry.flags & ~COMMITTED)
                own = entry.time, entry.client
                assert contents.setdefault(own, plain) == plain, "invariant 2"
                if entry.flags & ORDERED:
                    assert all(other >= own for other in before), "invariant 3"
            before.append(version)
            if owner.in_sync:
                versions.append(version)
        for version in self.committed(row, key):
            assert all(other >= version for other in versions), "invariant 5"
        complete = self.complete.get(key, (0, 0))
        assert all(version >= complete for version in versions), "invariant 4"

    def committed(self, row: messages.Row, key: bytes) -> list[tuple[int, int]]:
        """The versions that are marked committed on an owner that lives."""
        found = []
        for owner in row.owners:
            node = self.network.nodes[owner.node]
            if node.is_alive and node.replicas[row.partition].join_epoch == owner.join_epoch:
                entry = node.held(key)
                if entry is not None and entry.flags & COMMITTED:
                    found.append((entry.time, entry.client))
        return found


class TightRun(Run):
    """A run of nodes whose memory is full now and then: as primaries they refuse writes that others
    have stored already."""

    def choose(self, peer: int, request: Any) -> Fault:
        # TCP does nothing twice: a write that was refused might be stored at the second time, and
        # by then may have been undone.
        fault = super().choose(peer, request)
        return Fault.NONE if fault is Fault.AGAIN else fault

    def event(self) -> None:
        if self.random.random() < 0.05:
            node = self.random.choice(list(self.network.nodes.values()))
            node.limit_memory(self.random.choice((1, None)))
        super().event()

    def heal(self) -> None:
        super().heal()
        for node in self.network.nodes.values():
            node.limit_memory(None)


class DurableRun(Run):
    """A run of nodes with disks: any of them may die, also all at once, and at any moment between a
    request and its answer. What was acknowledged is there when they are back."""

    is_durable = True

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.restarts = self.random.randint(0, 2)
        self.reopened = 0
        self.damages = self.random.randint(0, 1)
        self.torn_rate = self.random.choice((0.0, 0.3, 1.0))

    def choose(self, peer: int, request: Any) -> Fault:
        if self.kills and peer and not self.is_healed and self.random.random() < 0.01:
            self.kills -= 1
            return Fault.CRASH
        return super().choose(peer, request)

    def event(self) -> None:
        if self.restarts and self.random.random() < 0.01:
            self.restarts -= 1
            nodes = list(self.network.nodes)
            self.reopened += 1
            some = self.random.sample(nodes, self.random.randint(1, len(nodes)))
            others = self.random.sample(nodes, self.random.choice((0, 0, 1)))
            self.in_vain += len(others)
            self.damage(nodes)
            self.network.restart(*some, in_vain=others)
        super().event()

    def damage(self, nodes: list[int]) -> None:
        """The logs of some nodes do not end whole; of one of them the last record was synced, and
        is damaged. Nobody has the only copy of what it had, nor does it say of what the node is an
        owner: then the partition stays closed, until somebody says that what is lost is lost."""
        network = self.network
        network.torn = {node for node in nodes if self.random.random() < self.torn_rate}
        candidates = [
            node
            for node in nodes
            if not network.map.is_last_in_sync(node) and network.nodes[node].knows_its_joins()
        ]
        if self.damages and candidates:
            self.damages -= 1
            network.damaged = {self.random.choice(candidates)}
            # It goes back, which invariant 1 forbids: but for what was never complete.
            self.holds = {
                place: version
                for place, version in self.holds.items()
                if place[0] not in network.damaged
            }

    def kill(self, number: int) -> None:
        """Kill a node, also the last one."""
        if self.network.nodes[number].is_alive:
            self.network.kill(number)
            self.kills -= 1

    def count(self, outcomes: Counter[str]) -> None:
        super().count(outcomes)
        outcomes["reopened"] += self.reopened
        outcomes["gathered"] += self.gathered
        outcomes["present"] += self.network.present
