"""A cluster in one thread: real Replicas, a small manager, and a network that does as it is told.

Nothing here waits or draws a number of its own. A Call runs one operation generator; each call of
``Call.advance`` is one event: one request reaches one peer, or the operation takes its next step.
So tests choose how several clients interleave. Faults are scripted for each request
(``Network.script``) or chosen by a function (``Network.choose``). Time passes only as events
happen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from gtstore import copying, operations, scanning
from gtstore.cluster_time import ClusterTime
from gtstore.disk import DiskEngine, doubted, remembered_joins
from gtstore.engine import MemoryEngine
from gtstore.errors import (
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    GTStoreError,
    RemoteProtocolError,
)
from gtstore.membership import Membership, Returned
from gtstore.operations import MANAGER, Lost, Operation, Pause, Reply, Source
from gtstore.placement import HASH_FUNCTIONS, PartitionMap, Routes, cluster_of, partition_count
from gtstore.replica import Behind, Replicas
from gtstore.results import PutResult
from gtstore.wire import messages
from gtstore.wire.codec import (
    HEADER,
    MAGIC_VERSION,
    Frame,
    decode,
    decode_entry,
    encode,
    error_frame,
)
from gtstore.wire.messages import Entry, Member, Message, Owner, Row

from ..forgetful_store import ForgetfulStore

Result = TypeVar("Result")

CLUSTER = 0xC0FFEE01
TOKEN = bytes(range(16))
NO_PACE = copying.Pace(math.inf, lambda: 0.0)
START_US = 1_700_000_000_000_000
STEP_US = 100
"""How much time an event takes."""
HASH = messages.HASH_ADDITIVE


class Fault(enum.Enum):
    """What becomes of one request to one peer."""

    NONE = "done and answered"
    REFUSE = "no connection comes about"
    DROP = "the connection ends before the peer saw the request"
    DROP_REPLY = "done, but the connection ends before the reply"
    LATE = "the connection ends; the request is done later (Network.deliver_late)"
    AGAIN = "done and answered, and done once more later"
    SILENT = "not done; nothing is heard until the deadline"
    CRASH = "handled, but the peer dies before that is on its disk, and before the reply"


Action: TypeAlias = Callable[["Network", bytes], bytes | None]
"""Called in front of a request, with its frame; what it returns, if anything, is the reply."""


def no_fault(peer: int, request: Message) -> Fault | Action:  # noqa: ARG001
    return Fault.NONE


class Node:
    """One process of a node. ``network.start`` replaces it by the next incarnation.

    Args:
        store: its disk; None: entries are in memory.
    """

    def __init__(
        self,
        network: Network,
        number: int,
        incarnation: int,
        store: ForgetfulStore | None = None,
        first_epoch: int = 0,
    ) -> None:
        self.store = store
        self.engine = DiskEngine(store) if store else None
        if self.engine:
            self.engine.on_depend = lambda _: self.save()
        self._saved: list[tuple[int, bytes]] = []
        self.number = number
        self.incarnation = incarnation
        self.is_alive = True
        self.fetches = True
        """Whether it can fetch the map from the manager when it is behind (N1c)."""
        self.network = network
        self.replicas = Replicas(
            number,
            incarnation,
            network.cluster_id,
            network.node_count,
            HASH,
            self.engine or MemoryEngine(),
            self.clock_us,
            first_epoch=first_epoch,
        )
        if self.engine:
            self._saved = [(each.join_epoch, each.floor) for each in self.replicas._replicas]

    def save(self) -> None:
        """Commit what is staged. It comes before each answer that depends on it (N2)."""
        if self.engine and self.store and self.engine.has_staged:
            self.store.commit(self.engine.take(self.replicas.remembered))
            self.store.refresh()
            self.engine.settle()
            self._saved = [(each.join_epoch, each.floor) for each in self.replicas._replicas]

    def tidy(self) -> None:
        """What it does when it has nothing else to do."""
        copying.let_go(self.replicas)
        if self.engine and self.store:
            self.store.commit(self.engine.garbage())
            self.store.refresh()

    def floor(self, partition: int) -> bytes:
        """A partition's floor, as nothing can take it away any more."""
        replica = self.replicas[partition]
        if not self._saved:
            return replica.floor
        join_epoch, floor = self._saved[partition]
        return floor if join_epoch == replica.join_epoch else b""

    @property
    def joins(self) -> tuple[tuple[messages.Join, ...], tuple[messages.Join, ...]]:
        """What the next process can say of this one's disk: see Returned."""
        return remembered_joins(self.store.after_crash()) if self.store else ((), ())

    def knows_its_joins(self) -> bool:
        """Whether it would also without the last record of its log."""
        assert self.store
        last = remembered_joins(self.store.after_crash(loses_last=True))
        return last == remembered_joins(self.store.after_crash())

    def handle(self, frame: bytes) -> bytes:
        """Handle a request, and return the reply when it may leave."""
        reply = self.begin(frame)
        if frame[2] not in (messages.Get.kind, messages.Commit.kind):
            self.save()
        return reply

    def begin(self, frame: bytes) -> bytes:
        """Handle a request, whose reply must not leave yet."""
        kind, request_id, body = split(frame)
        if kind == messages.Ping.kind:
            return encode(self._pong(), request_id)
        if kind == messages.Copy.kind:
            return copying.answer(self.replicas, request_id, copying.request_of(body))
        handler = self._scan if kind == messages.Scan.kind else self.replicas.handlers[kind]
        try:
            try:
                return handler(request_id, body)
            except Behind:
                if not self.fetches:
                    raise
                self.adopt()
                return handler(request_id, body)
        except RemoteProtocolError as error:
            return error_frame(request_id, error.error_code, str(error), error.detail)

    def _scan(self, request_id: int, body: bytes) -> bytes:
        request = decode(messages.Scan.kind, body)
        assert isinstance(request, messages.Scan)
        return scanning.answer(self.replicas, request_id, request)

    def clock_us(self) -> int:
        return self.network.now_us + self.network.skews_us.get(self.number, 0)

    def limit_memory(self, size: int | None) -> None:
        """As --max-memory-mb does, but from now on."""
        self.replicas._memory_max = size
        self.replicas._room = 0

    def adopt(self) -> None:
        """Go by the manager's map."""
        newest = self.network.map
        self.replicas.adopt(newest.epoch, newest.rows_since(self.replicas.epoch))

    def held(self, key: bytes) -> Entry | None:
        """The entry that it holds, for good, whatever its role."""
        partition = HASH_FUNCTIONS[HASH](key) % len(self.replicas)
        entry = self.replicas[partition].shown(key)
        return None if entry is None else decode_entry(entry)

    def _pong(self) -> messages.Pong:
        replicas = self.replicas
        return messages.Pong(
            messages.ROLE_NODE,
            self.number,
            self.incarnation,
            1000 + self.number,
            replicas.epoch,
            self.clock_us(),
            replicas.count,
            replicas.size,
            replicas.full,
        )


class Network:
    """The cluster: its nodes, its manager and what lies between.

    Args:
        nodes, replicas: the shape.
        seed: of everything that is random.
        cluster_id: of the map's epochs.
        is_durable: whether the nodes have disks.
    """

    def __init__(
        self,
        nodes: int = 3,
        replicas: int = 2,
        seed: int = 0,
        cluster_id: int = CLUSTER,
        is_durable: bool = False,
    ) -> None:
        self.is_durable = is_durable
        self.random = random.Random(seed)
        self.now_us = START_US
        self.skews_us: dict[int, int] = {}
        """How far nodes' clocks are ahead of the manager's, by their numbers."""
        self.choose: Callable[[int, Message], Fault | Action] = no_fault
        """What becomes of a request for which nothing is scripted."""
        self.publishes_at_once = True
        """Whether living nodes adopt a new map when it is made; otherwise the test says when."""
        self.late: list[tuple[int, bytes]] = []
        """Requests that are still under way though nobody waits for them."""
        self.seen: list[tuple[int, Message]] = []
        """What the peers were given to handle, in order."""
        self.asked: list[tuple[int, Message]] = []
        """What the clients sent, done or not, in order."""
        self.torn: set[int] = set()
        """Dead nodes whose logs end in records that were being written."""
        self.damaged: set[int] = set()
        """Dead nodes whose logs' last records cannot be read any more: nobody can tell these from
        the others (N2a)."""
        self.present = 0
        """Entries that a copier had already, of all copies that came to an end."""
        self.troubles: tuple[messages.Trouble, ...] = ()
        """What the manager says of itself."""
        self._scripts: list[tuple[int, type[Message], Fault | Action]] = []
        self.create(nodes, replicas, cluster_id)

    def create(self, nodes: int, replicas: int, cluster_id: int) -> None:
        """Make the cluster, or another one in its place, on the same addresses."""
        self.cluster_id = cluster_id
        self.node_count = nodes
        self.replica_count = replicas
        numbers = range(1, nodes + 1)
        self.nodes = {
            number: Node(self, number, 1, ForgetfulStore() if self.is_durable else None)
            for number in numbers
        }
        self.membership = Membership(
            [self._member(node) for node in numbers],
            PartitionMap.first(cluster_id, nodes, replicas, dict.fromkeys(numbers, 1)),
            replicas,
            0.25,
            4,
            joins_max=partition_count(nodes),
            joins_first=partition_count(nodes),
            is_durable=self.is_durable,
        )
        for node in self.nodes.values():
            node.adopt()
            node.save()

    @property
    def map(self) -> PartitionMap:
        """The manager's newest map."""
        return self.membership.map

    # --- what happens to nodes -------------------------------------------------------------------

    def kill(self, node: int) -> None:
        """SIGKILL. The manager knows nothing of it yet."""
        self.nodes[node].is_alive = False

    def notice(self, node: int) -> None:
        """The manager finds out that a node is dead, and makes the next map."""
        assert not self.nodes[node].is_alive
        if self.membership.members[node].state != messages.DEAD:
            self.membership.exited(node, "killed", self.now_us / 1e6)
            self.publish(self.map)

    def start(self, node: int) -> None:
        """A new process on a node's old address, with what is on its disk, if it has one. It has
        not registered yet."""
        old = self.nodes[node]
        store = old.store.after_crash(loses_last=node in self.damaged) if old.store else None
        if store and node in self.damaged | self.torn:
            store.commit(doubted(store))
            store.refresh()
        self.damaged.discard(node)
        self.torn.discard(node)
        self.nodes[node] = Node(self, node, old.incarnation + 1, store)

    def bring_back(self, *nodes: int) -> None:
        """New processes of dead nodes register, and open their partitions again (M5), or join
        (M7)."""
        for node in nodes:
            self.notice(node)
            self.start(node)
        self.membership.all_returned(
            [Returned(self._member(node), *self.nodes[node].joins) for node in nodes],
            self.now_us / 1e6,
        )
        for number in nodes:
            node = self.nodes[number]
            self.nodes[number] = Node(self, number, node.incarnation, node.store, self.map.epoch)
        self.publish(self.map)

    def start_in_vain(self, node: int) -> None:
        """A new process of a dead node ends before the manager makes a map with it: before it has
        registered, or, where several are started, before the others have."""
        self.notice(node)
        self.start(node)
        self.membership.started(node, self.now_us / 1e6)
        self.kill(node)
        self.membership.exited(node, "killed", self.now_us / 1e6)
        self.publish(self.map)

    def restart(self, *nodes: int, in_vain: Collection[int] = ()) -> None:
        """Everything was killed, and a new manager starts nodes again: these, and some in vain; the
        others come later. Whatever any node has said to the last manager, or the last manager to
        it, is in its map."""
        for node, member in self.membership.members.items():
            self.kill(node)
            self.membership.members[node] = dataclasses.replace(member, state=messages.DEAD)
        self.late.clear()
        for node in in_vain:
            self.start_in_vain(node)
        self.bring_back(*nodes)

    def tick(self) -> None:
        """The manager looks at its clock: stand-ins may be due."""
        self.membership.tick(self.now_us / 1e6)
        self.publish(self.map)

    def copy(self, node: int, partition: int) -> Call[int]:
        """A node's copying of one partition, and its report, to be advanced; it returns how many
        entries came."""
        client = Client(self)
        number = client.source.next_number
        replicas = self.nodes[node].replicas

        def copy_and_report() -> Operation[int]:
            moved, present, join = yield from copying.copy(
                replicas, contextlib.nullcontext(), partition, TOKEN, number, NO_PACE
            )
            self.present += present
            if join is not None:
                self.nodes[node].save()
                yield from copying.report(TOKEN, node, [join], number)
            return moved

        return client.call(copy_and_report())

    def gather(self, node: int, partition: int) -> Call[None]:
        """A node's gathering of what all owners have of a partition that is not open (N2a), and its
        report, to be advanced."""
        number = Client(self).source.next_number
        replicas = self.nodes[node].replicas

        def gather_and_report() -> Operation[None]:
            lock = contextlib.nullcontext()
            join = yield from copying.gather(replicas, lock, partition, TOKEN, number, NO_PACE)
            if join is not None:
                replicas.vouch(partition)
                self.nodes[node].save()
                yield from copying.report(TOKEN, node, [join], number)

        return Client(self).call(gather_and_report())

    def copy_all(self) -> None:
        """Let all copying be done."""
        while todo := [
            (number, partition)
            for number, node in self.nodes.items()
            if node.is_alive
            for partition in copying.pending(node.replicas)
        ]:
            for number, partition in todo:
                self.copy(number, partition).run()

    def publish(self, new_map: PartitionMap) -> None:
        self.membership.map = new_map
        if self.publishes_at_once:
            for node in self.nodes.values():
                if node.is_alive:
                    node.adopt()

    def change(self, partition: int, *owners: Owner, new_tenure: bool = False) -> Row:
        """Publish a map in which a partition has these owners."""
        epoch = self.map.epoch + 1
        old = self.map.rows[partition]
        is_new = new_tenure or owners[0].node != old.owners[0].node
        row = Row(partition, epoch, epoch if is_new else old.primary_epoch, owners)
        rows = list(self.map.rows)
        rows[partition] = row
        self.publish(PartitionMap(epoch, rows))
        return row

    def owner(self, node: int, in_sync: int = 1) -> Owner:
        """An owner that joins with the next map."""
        return Owner(node, self.nodes[node].incarnation, self.map.epoch + 1, in_sync)

    def living(self, row: Row) -> list[Node]:
        """The in-sync owners of a row that are alive, in order."""
        return [
            self.nodes[owner.node]
            for owner in row.owners
            if owner.in_sync
            and self.nodes[owner.node].is_alive
            and self.nodes[owner.node].incarnation == owner.incarnation
        ]

    # --- requests --------------------------------------------------------------------------------

    def script(self, peer: int, kind: type[Message], *actions: Fault | Action) -> None:
        """What becomes of this peer's next requests of this kind, one after the other."""
        self._scripts += [(peer, kind, action) for action in actions]

    def send(self, peer: int, frame: bytes, deadline_us: int | None) -> Reply:
        """Carry one request; return its reply, or Lost."""
        self.now_us += STEP_US
        request = message_of(frame)
        self.asked.append((peer, request))
        action = self._action(peer, request)
        if not isinstance(action, Fault):
            reply = action(self, frame)
            if reply is not None:
                return frame_of(reply)
            action = Fault.NONE
        name = "the manager" if peer == MANAGER else f"node {peer}"
        if action is Fault.REFUSE or (peer != MANAGER and not self.nodes[peer].is_alive):
            return Lost(0, peer, False, ConnectError(name, "connection refused"))
        if action is Fault.SILENT:
            assert deadline_us is not None, "nothing ends the silence"
            self.now_us = max(self.now_us, deadline_us)
            return Lost(0, peer, True, DeadlineExceeded(name, "no answer in time"))
        lost = Lost(0, peer, True, ConnectionLost(name, "the connection was lost"))
        if action is Fault.DROP:
            return lost
        if action is Fault.LATE:
            self.late.append((peer, frame))
            return lost
        if action is Fault.CRASH:
            self.seen.append((peer, request))
            self.nodes[peer].begin(frame)
            self.kill(peer)
            return lost
        reply = self.handle(peer, frame, request)
        if action is Fault.AGAIN:
            self.late.append((peer, frame))
        return lost if action is Fault.DROP_REPLY else frame_of(reply)

    def handle(self, peer: int, frame: bytes, request: Message | None = None) -> bytes:
        """Have a peer handle a request now."""
        self.seen.append((peer, request or message_of(frame)))
        return self._manage(frame) if peer == MANAGER else self.nodes[peer].handle(frame)

    def deliver_late(self, index: int | None = None) -> None:
        """Have late requests done: all, or one of them. A dead node does nothing."""
        which = self.late[:] if index is None else [self.late[index]]
        for peer, frame in which:
            self.late.remove((peer, frame))
            if peer == MANAGER or self.nodes[peer].is_alive:
                self.handle(peer, frame)

    def deliver_owed(self, owed: dict[int, bytes]) -> None:
        """Carry all COMMITs that a client owes (C7)."""
        for node in list(owed):
            for frame in frames_of(owed.pop(node)):
                if self.nodes[node].is_alive:
                    self.handle(node, frame)

    def _action(self, peer: int, request: Message) -> Fault | Action:
        for at, (its_peer, kind, action) in enumerate(self._scripts):
            if its_peer == peer and isinstance(request, kind):
                del self._scripts[at]
                return action
        return self.choose(peer, request)

    @property
    def is_script_done(self) -> bool:
        return not self._scripts

    # --- the manager -----------------------------------------------------------------------------

    def cluster(self) -> messages.Cluster:
        """The manager's answer to CLUSTER_INFO."""
        return messages.Cluster(
            self.map.epoch,
            self.node_count,
            self.replica_count,
            HASH,
            partition_count(self.node_count),
            self.now_us,
            tuple(self._member(node) for node in self.nodes),
        )

    def _member(self, number: int) -> Member:
        node = self.nodes[number]
        state = messages.ALIVE if node.is_alive else messages.DEAD
        return Member(number, state, node.incarnation, 1000 + number, 10000 + number, "127.0.0.1")

    def _manage(self, frame: bytes) -> bytes:
        _, request_id, _ = split(frame)
        request = message_of(frame)
        match request:
            case messages.ClusterInfo():
                return encode(self.cluster(), request_id)
            case messages.GetTroubles():
                return encode(messages.Troubles(self.troubles), request_id)
            case messages.GetMap(since):
                # Another cluster's epoch counts as 0.
                since = since if cluster_of(since) == self.cluster_id else 0
                return encode(messages.Map(self.map.epoch, self.map.rows_since(since)), request_id)
            case messages.NextPrimary(node, key):
                if not self.nodes[node].is_alive:
                    self.notice(node)
                return self._owners(key, request_id)
            case messages.KeyNodes(key):
                return self._owners(key, request_id)
            case messages.InSync(_, node, joins):
                self.membership.synced(node, joins)
                self.publish(self.map)
                return encode(messages.Noted(), request_id)
        raise AssertionError(request)

    def _owners(self, key: bytes, request_id: int) -> bytes:
        row = self.row_of(key)
        if not self.living(row):
            return error_frame(
                request_id,
                messages.UNAVAILABLE,
                f"no owner of partition {row.partition} is alive",
                messages.AliveDetail(self.replica_count, 0),
            )
        members = tuple(self._member(owner.node) for owner in row.owners)
        return encode(messages.Owners(row, members), request_id)

    def row_of(self, key: bytes) -> Row:
        return self.map.rows[sum(key) % len(self.map.rows)]


class Call(Generic[Result]):
    """One operation in progress, driven as session.py drives it."""

    def __init__(
        self, client: Client, operation: Operation[Result], deadline_us: int | None = None
    ) -> None:
        self.client = client
        self.operation = operation
        self.deadline_us = deadline_us
        self.is_done = False
        self.result: Result | None = None
        self.error: Exception | None = None
        self._step: Any = None  # None before the first one
        self._replies: list[Reply | None] = []

    @property
    def has_expired(self) -> bool:
        return self.deadline_us is not None and self.client.network.now_us >= self.deadline_us

    def expire(self) -> None:
        """The time is up now."""
        self.deadline_us = 0

    def advance(self, at: int = 0) -> None:
        """One event: the ``at``-th of the requests that are awaited gets its reply; or, if none is
        awaited, the operation takes its next step."""
        network = self.client.network
        waiting = [slot for slot, reply in enumerate(self._replies) if reply is None]
        if not waiting:
            self._take_step()
            return
        if self.has_expired:
            for slot in waiting:
                peer = self._step[0][slot]
                error = DeadlineExceeded(f"node {peer}", "no answer in time")
                self._replies[slot] = Lost(0, peer, True, error)
            return
        slot = waiting[at % len(waiting)]
        peer = self._step[0][slot]
        self.client.pay(peer)
        self._replies[slot] = network.send(peer, self._step[2], self.deadline_us)

    def run(self) -> Result:
        """Go on to the end; return the result or raise the error."""
        while not self.is_done:
            self.advance()
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]

    def _take_step(self) -> None:
        network = self.client.network
        if isinstance(self._step, Pause):
            # Most of those who wait for their turn are called long before.
            seconds = self._step.seconds if self._step.ticket is None else 0.001
            network.now_us += round(seconds * 1e6)
        try:
            if self._step is None:
                self._step = next(self.operation)
            else:
                self._step = self.operation.send(self._replies)  # type: ignore[arg-type]
            while self.has_expired:
                error = DeadlineExceeded("the call", "no time was left")
                self._step = self.operation.throw(error)
        except StopIteration as stop:
            self.result = stop.value
            self.is_done = True
        except GTStoreError as error:  # whatever else there is ends the test
            self.error = error
            self.is_done = True
        else:
            self.client.steps.append(self._step)
            is_pause = isinstance(self._step, Pause)
            self._replies = [] if is_pause else [None] * len(self._step[0])


@dataclass
class Sent:
    """One step of an operation that sent something: to whom, and what."""

    peers: tuple[int, ...]
    message: Message


class Client:
    """A client: its identity and its copy of the map, which it may share with others.

    Args:
        skew_us: how far its steady clock is ahead of cluster time. If that changes after the client
            has measured cluster time, it is wrong from then on.
        routes: another client's, if they are threads of the same program.
    """

    def __init__(
        self, network: Network, skew_us: int = 0, routes: Routes | None = None, seed: int = 1
    ) -> None:
        self.network = network
        self.skew_us = skew_us
        self.routes = routes or Routes()
        own_random = random.Random(seed)
        self.source = Source(
            lambda: own_random.getrandbits(64),
            lambda: (network.now_us + self.skew_us) * 1000,
            own_random.random,
        )
        self.steps: list[Any] = []
        """All steps of all its operations."""
        self.pays = True
        """Whether it sends the COMMITs that it owes in front of its next request to a node."""

    def know(self) -> Client:
        """Learn the cluster without a round trip."""
        network = self.network
        now_us, steady_us = network.now_us, self.source.steady_us()
        clock = ClusterTime()
        clock.take(steady_us, steady_us, now_us)
        self.routes.replace(network.cluster(), network.map.rows, clock)
        return self

    def call(self, operation: Operation[Result], timeout_s: float | None = None) -> Call[Result]:
        deadline_us = None
        if timeout_s is not None:
            deadline_us = self.network.now_us + round(timeout_s * 1e6)
        return Call(self, operation, deadline_us)

    def run(self, operation: Operation[Result], timeout_s: float | None = 5) -> Result:
        return self.call(operation, timeout_s).run()

    def put(self, key: bytes, value: bytes, timeout_s: float | None = 5) -> PutResult:
        return self.run(operations.put(self.routes, self.source, key, value), timeout_s)

    def execute(
        self,
        key: bytes,
        operation: int,
        operand: bytes,
        expected: bytes = b"",
        timeout_s: float | None = 5,
        flags: int = 0,
    ) -> operations.Changed:
        change = operations.execute(
            self.routes, self.source, key, operation, operand, expected, flags
        )
        return self.run(change, timeout_s)

    def append(self, key: bytes, value: bytes, timeout_s: float | None = 5) -> bytes:
        return self.execute(key, messages.APPEND, value, timeout_s=timeout_s).value

    def delete(self, key: bytes, timeout_s: float | None = 5) -> PutResult:
        return self.run(operations.delete(self.routes, self.source, key), timeout_s)

    def get(self, key: bytes, timeout_s: float | None = 5) -> bytes | None:
        entry = self.run(operations.get(self.routes, self.source, key), timeout_s)
        return None if entry is None else entry.value

    def pay(self, peer: int) -> None:
        """Send what a node is owed, if this client does so."""
        if self.pays and peer in self.source.owed:
            self.network.deliver_owed({peer: self.source.owed.pop(peer)})

    def sent(self, kind: type[Message] | None = None) -> list[Sent]:
        """What its operations sent so far, pauses left out."""
        found = []
        for step in self.steps:
            if not isinstance(step, Pause):
                message = message_of(step[2])
                if kind is None or isinstance(message, kind):
                    found.append(Sent(step[0], message))
        return found

    @property
    def pauses(self) -> list[float]:
        return [step.seconds for step in self.steps if isinstance(step, Pause)]


# --- frames --------------------------------------------------------------------------------------


def split(frame: bytes) -> tuple[int, int, bytes]:
    """A frame's kind, request id and body."""
    _, kind, _, request_id, size = HEADER.unpack_from(frame)
    assert size == len(frame) - HEADER.size
    return kind, request_id, frame[HEADER.size :]


def frame_of(data: bytes) -> Frame:
    """A reply as a session hands it over."""
    kind, request_id, body = split(data)
    return kind, 0, request_id, body


def frames_of(data: bytes) -> Iterator[bytes]:
    """The single frames of several."""
    while data:
        end = HEADER.size + HEADER.unpack_from(data)[4]
        yield data[:end]
        data = data[end:]


def message_of(frame: bytes) -> Message:
    kind, _, body = split(frame)
    return decode(kind, body)


def answer(message: Message) -> Action:
    """An action that answers with this message, without the peer."""
    return lambda network, frame: encode(  # noqa: ARG005
        message, split(frame)[1]
    )


def answer_raw(kind: int, body: bytes) -> Action:
    """An action that answers with this kind and body, whatever they are."""
    return lambda network, frame: (  # noqa: ARG005
        HEADER.pack(MAGIC_VERSION, kind, 0, split(frame)[1], len(body)) + body
    )


def refuse(code: int, detail: Any = None) -> Action:
    """An action that answers with this error."""
    return lambda network, frame: error_frame(  # noqa: ARG005
        split(frame)[1], code, "no", detail
    )


def after(*steps: Callable[[], Any]) -> Action:
    """An action that does something first; then the request goes its way."""

    def act(network: Network, frame: bytes) -> None:  # noqa: ARG001
        for step in steps:
            step()

    return act
