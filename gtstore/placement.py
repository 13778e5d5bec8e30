"""Where a key lives: key -> partition -> owners, and the next map after a death.

The partition map has one row for each partition (``messages.Row``). Its epochs are those of the
wire: the cluster id in the upper 32 bits, a counter that only grows in the lower ones, so that one
comparison for equality also tells another cluster.

With the additive hash and P = 64 x NODES partitions the home owners of a key are exactly those of
the report: the sum of the key's bytes modulo NODES gives the primary, and the replicas follow
clockwise. PROTOCOL.md section 10 says the same for authors of other clients, with test vectors.
"""

from __future__ import annotations

import binascii
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from .cluster_time import ClusterTime
from .turns import Turns
from .wire.fields import malformed
from .wire.messages import (
    ALIVE,
    HASH_ADDITIVE,
    HASH_CRC16,
    PARTITIONS_PER_NODE,
    SUSPECT,
    Cluster,
    Member,
    Owner,
    Row,
)

COUNTER_BITS = 32

LABEL: Final = struct.Struct(">QI")
"""How GET and WRITE begin: list_epoch and partition. A test holds it against their fields."""


additive: Callable[[bytes], int] = sum
"""The report's hash: the sum of the key's byte values."""


def crc16(key: bytes) -> int:
    """CRC-16/XMODEM (polynomial 0x1021, initial value 0), as Redis Cluster places its keys."""
    return binascii.crc_hqx(key, 0)


HASH_FUNCTIONS: dict[int, Callable[[bytes], int]] = {HASH_ADDITIVE: additive, HASH_CRC16: crc16}


def key_in(partition: int, hash_code: int) -> bytes:
    """Some key of that partition: one whose hash is the partition's own number. For questions to
    the manager, which name a partition by a key."""
    if hash_code == HASH_ADDITIVE:
        return b"\xff" * (partition // 0xFF) + bytes((partition % 0xFF,))
    # Each number is the CRC-16 of exactly one key of two bytes.
    keys = (number.to_bytes(2, "big") for number in range(1 << 16))
    return next(key for key in keys if crc16(key) == partition)


def partition_count(nodes: int) -> int:
    return nodes * PARTITIONS_PER_NODE


def home_owners(partition: int, nodes: int, replicas: int) -> tuple[int, ...]:
    """The numbers of the nodes that a partition belongs to when all are alive, primary first."""
    return tuple((partition + i) % nodes + 1 for i in range(replicas))


def epoch_of(cluster_id: int, counter: int) -> int:
    return cluster_id << COUNTER_BITS | counter


def cluster_of(epoch: int) -> int:
    """The cluster id within an epoch."""
    return epoch >> COUNTER_BITS


class PartitionMap:
    """The whole map at one epoch. It never changes: a change makes the next map.

    Args:
        epoch: of the newest change; also of one that no list_epoch tells, an owner that is in sync
            now.
        rows: indexed by partition.
        changed: for each row, the epoch of its last change; its list_epoch if not given.
    """

    def __init__(
        self, epoch: int, rows: Iterable[Row], changed: Iterable[int] | None = None
    ) -> None:
        self.epoch = epoch
        self.rows = tuple(rows)
        self.changed = tuple((row.list_epoch for row in self.rows) if changed is None else changed)

    @classmethod
    def first(
        cls, cluster_id: int, nodes: int, replicas: int, incarnations: Mapping[int, int]
    ) -> PartitionMap:
        """The map of a new cluster: every partition with its home owners, all in sync (empty)."""
        epoch = epoch_of(cluster_id, 1)
        return cls(
            epoch,
            (
                Row(
                    partition,
                    epoch,
                    epoch,
                    tuple(
                        Owner(node, incarnations[node], epoch, 1)
                        for node in home_owners(partition, nodes, replicas)
                    ),
                )
                for partition in range(partition_count(nodes))
            ),
        )

    def changed_by(
        self, change: Callable[[Row, int], Row], partitions: Iterable[int] | None = None
    ) -> PartitionMap:
        """The next map, in which ``change(row, epoch)`` was done to all rows, or to those of some
        partitions; the same map if that changes nothing."""
        epoch = self.epoch + 1
        rows, changed = list(self.rows), list(self.changed)
        for partition in range(len(rows)) if partitions is None else partitions:
            row = change(rows[partition], epoch)
            if row is not rows[partition]:
                rows[partition], changed[partition] = row, epoch
        return PartitionMap(epoch, rows, changed) if epoch in changed else self

    def rows_since(self, epoch: int) -> tuple[Row, ...]:
        """The rows that somebody who holds the map of that epoch does not have yet."""
        return tuple(
            row for row, changed in zip(self.rows, self.changed, strict=True) if changed > epoch
        )

    def is_last_in_sync(self, node: int, gone: Collection[int] = ()) -> bool:
        """Whether the node is the last in-sync owner of some partition, the ``gone`` ones not
        counted (M1)."""
        return any(
            [owner.node for owner in row.owners if owner.in_sync and owner.node not in gone]
            == [node]
            for row in self.rows
        )


def row_source(row: Row) -> int:
    """The node that the next syncing owner copies from: the last one in sync (H8)."""
    return [owner.node for owner in row.owners if owner.in_sync][-1]


# --- how rows change -----------------------------------------------------------------------------
#
# Each of these returns the row itself if there is nothing to change. ``epoch`` is that of the
# change. The order of owners stays, the in-sync ones are in front (H9), so the primary changes by a
# removal only.


def row_without(row: Row, node: int, living: Mapping[int, int], epoch: int) -> Row:
    """A row without a node that has died, or that answers for the partition no more. Where no other
    owner in sync lives, the row stays (M5): nobody else may answer for the partition, and any of
    those that it names may be who opens it again.

    Args:
        living: the incarnation of each living node.
    """
    owners = tuple(owner for owner in row.owners if owner.node != node)
    if len(owners) == len(row.owners) or not is_open(replace(row, owners=owners), living):
        return row
    return _row_with(row, owners, epoch)


def row_in_sync(row: Row, node: int, join_epoch: int, epoch: int) -> Row:  # noqa: ARG001
    """A row whose first syncing owner has copied everything (N6). A report of another join, or out
    of order, changes nothing. The list_epoch stays: who is written to is the same."""
    for at, owner in enumerate(row.owners):
        if not owner.in_sync:
            if (owner.node, owner.join_epoch) != (node, join_epoch):
                return row
            owners = (*row.owners[:at], replace(owner, in_sync=1), *row.owners[at + 1 :])
            return replace(row, owners=owners)
    return row


def row_begun_anew(row: Row, nodes: Sequence[int], living: Mapping[int, int], epoch: int) -> Row:
    """A row whose in-sync owners are all dead, and what they held in memory with them (M5): it
    begins empty, on these nodes, under new join_epochs, so that they discard what they had."""
    owners = tuple(Owner(node, living[node], epoch, 1) for node in nodes)
    return Row(row.partition, epoch, epoch, owners)


def row_reopened(
    row: Row, living: Mapping[int, int], held: Mapping[int, Mapping[int, int]], epoch: int
) -> Row:
    """A row whose in-sync owners had all died, once some are back with what they held (M5): it goes
    on with these, since each of them has every write that was acknowledged. The others may join.

    Args:
        living: the incarnation of each living node.
        held: for nodes that have just returned, partition -> the join_epoch with which their disk
            has it.
    """
    if is_open(row, living):
        return row
    owners = tuple(
        replace(owner, incarnation=living[owner.node])
        for owner in row.owners
        if owner.in_sync
        and owner.node in living
        and held.get(owner.node, {}).get(row.partition) == owner.join_epoch
    )
    return _row_with(row, owners, epoch) if owners else row


def row_given_up(row: Row, living: Mapping[int, int], nodes: Collection[int], epoch: int) -> Row:
    """A row that is not open, without those of its owners in sync that are not among these: an
    operator says that what they had is not to be waited for."""
    owners = tuple(owner for owner in row.owners if owner.in_sync and owner.node in nodes)
    if is_open(row, living) or not owners or owners == row.owners:
        return row
    return _row_with(row, owners, epoch)


def is_open(row: Row, living: Mapping[int, int]) -> bool:
    """Whether an owner in sync lives, so that the partition is answered for (M5)."""
    return any(living.get(owner.node) == owner.incarnation for owner in row.owners if owner.in_sync)


def row_repaired(
    row: Row,
    nodes: int,
    replicas: int,
    living: Mapping[int, int],
    awaited: Collection[int],
    may_join: Callable[[int], bool],
    epoch: int,
) -> Row:
    """A row after one step towards k copies on the nodes where they belong (M7).

    Its copies belong on its primary, which is never taken away, then on its other home owners, then
    on stand-ins: the owners that it has, then the next nodes clockwise. Nodes that are missing join
    as syncing. Of the backups that are not needed there any more, a syncing one goes at once, one
    in sync when there are more than k in sync without it.

    Args:
        nodes, replicas: the cluster's shape.
        living: the incarnation of each living node.
        awaited: dead nodes that are expected back soon: their places are kept for them.
        may_join: whether that node may join this partition now; or else its place waits for it.
    """
    primary = row.owners[0]
    if living.get(primary.node) != primary.incarnation:
        alive = tuple(o for o in row.owners if living.get(o.node) == o.incarnation)
        # Unavailable (M5); or one that had copied everything has said so only after its death.
        return _row_with(row, alive, epoch) if alive and alive[0].in_sync else row
    if len(row.owners) == replicas and all(
        (owner.node - 1 - row.partition) % nodes < replicas for owner in row.owners
    ):
        return row  # these are the home owners; it is so with nearly all rows, at each change
    present = [owner.node for owner in row.owners]
    clockwise = home_owners(row.partition, nodes, nodes)
    order = dict.fromkeys((present[0], *clockwise[:replicas], *present[1:], *clockwise))
    wanted = [node for node in order if node in living or node in awaited][:replicas]
    owners = [owner for owner in row.owners if owner.in_sync or owner.node in wanted]
    for owner in owners[:0:-1]:
        if sum(other.in_sync for other in owners) > replicas and owner.node not in wanted:
            owners.remove(owner)
    for node in wanted:
        is_missing = node not in present and node in living
        if is_missing and len(owners) <= replicas and may_join(node):
            owners.append(Owner(node, living[node], epoch, 0))
    return row if tuple(owners) == row.owners else _row_with(row, tuple(owners), epoch)


def _row_with(row: Row, owners: tuple[Owner, ...], epoch: int) -> Row:
    primary_epoch = row.primary_epoch if owners[0] == row.owners[0] else epoch
    return Row(row.partition, epoch, primary_epoch, owners)


def under_replicated(
    rows: Iterable[Row], replicas: int, serving: Iterable[Member]
) -> Iterator[int]:
    """The partitions that have fewer living copies in sync than they are meant to have."""
    living = {member.node: member.incarnation for member in serving}
    for row in rows:
        copies = sum(
            owner.in_sync and living.get(owner.node) == owner.incarnation for owner in row.owners
        )
        if copies < replicas:
            yield row.partition


def begun_anew(rows: Iterable[Row]) -> Iterator[int]:
    """The partitions that have lost all copies since the cluster was made (M5), as long as the
    primary with which they began anew, empty, is their primary. It joined when it became that."""
    for row in rows:
        is_first = row.primary_epoch & ((1 << COUNTER_BITS) - 1) == 1
        if not is_first and row.owners[0].join_epoch == row.primary_epoch:
            yield row.partition


def is_serving(member: Member) -> bool:
    """Whether a member may still answer: a suspect one may."""
    return member.state in (ALIVE, SUSPECT)


def format_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Route:
    """A row as a client uses it: what the hot path needs, worked out once.

    The label on a request and the list of nodes that it goes to come from one Route, never from two
    (hole H12).
    """

    __slots__ = ("epoch", "label", "nodes", "partition", "primary", "row")

    def __init__(self, row: Row) -> None:
        self.row = row
        self.partition = row.partition
        self.epoch = row.list_epoch
        self.label = LABEL.pack(row.list_epoch, row.partition)
        """How the bodies of GET and WRITE begin."""
        self.nodes = tuple(owner.node for owner in row.owners)
        self.primary = self.nodes[:1]

    @property
    def tenure(self) -> tuple[int, int]:
        """(primary, primary_epoch); the epoch names the cluster too."""
        return self.nodes[0], self.row.primary_epoch


def _has_owners(row: Row) -> bool:
    """Whether a row has owners, all of them nodes, none twice: every owner is sent the same request
    id, and each is awaited."""
    nodes = {owner.node for owner in row.owners}
    return bool(nodes) and 0 not in nodes and len(nodes) == len(row.owners)


class Routes:
    """A client's copy of the map, patched row by row; shared by all of its threads.

    One reference in a list is replaced at a time, so readers need no lock. Two threads that patch
    the same partition at once may leave the older row there; its next request is answered with
    STALE_EPOCH and mends that.

    Args:
        owner: see Turns.
    """

    def __init__(self, owner: Callable[[], object] = lambda: None) -> None:
        self._owner = owner
        self.cluster_id = 0  # no cluster has been asked yet
        self.nodes = 0
        self.replicas = 0
        self.hash: Callable[[bytes], int] = additive
        self.hash_code = HASH_ADDITIVE
        self.clock = ClusterTime()
        """The cluster's, as it was measured by any of them."""
        self.epoch = 0
        """Of the newest map whose changes were asked for as a whole."""
        self.members: dict[int, Member] = {}
        self.asked_about: dict[int, int] = {}
        """Nodes that some operation is asking the manager about, since when, on the steady clock:
        for a while the others wait for its answer."""
        self.turns = Turns(owner)
        """Of this client's calls at keys that several of them want to change."""
        self.by_partition: list[Route] = []
        """The route of each; replaced as a whole."""

    def after_fork(self) -> None:
        """In a forked child, where no other call goes on."""
        self.asked_about.clear()
        self.turns = Turns(self._owner)

    def replace(self, cluster: Cluster, rows: Iterable[Row], clock: ClusterTime) -> None:
        """Start over with what the manager said of the cluster.

        Raises RemoteProtocolError if that is no map, or if keys are placed by a hash that is not
        known here.
        """
        rows = list(rows)
        if not rows or not all(map(_has_owners, rows)):
            raise malformed("a map without rows, or with a row without owners or with one twice")
        if any(row.partition != partition for partition, row in enumerate(rows)):
            raise malformed("a map whose rows are not in the order of their partitions")
        hash_function = HASH_FUNCTIONS.get(cluster.hash)
        if hash_function is None:
            raise malformed(f"hash {cluster.hash} is not known here: a newer client is needed")
        routes = [Route(row) for row in rows]
        self.nodes = cluster.nodes
        self.replicas = cluster.replicas
        self.hash_code = cluster.hash
        self.hash = hash_function
        self.clock = clock
        self.members = {member.node: member for member in cluster.members}
        self.by_partition = routes
        self.epoch = cluster.epoch
        self.cluster_id = cluster_of(cluster.epoch)

    @property
    def partitions(self) -> int:
        """How many there are."""
        return len(self.by_partition)

    def of(self, partition: int) -> Route:
        """The route of a partition's keys."""
        return self.by_partition[partition]

    def find(self, key: bytes) -> Route:
        """The route of a key: one hash and one look-up."""
        routes = self.by_partition
        return routes[self.hash(key) % len(routes)]

    def patch(self, row: Row) -> bool:
        """Take a row if it is newer than ours. Rows never go backwards, and other clusters' rows do
        not count."""
        routes = self.by_partition
        if cluster_of(row.list_epoch) != self.cluster_id or row.partition >= len(routes):
            return False
        held = routes[row.partition].epoch
        is_old = cluster_of(held) == self.cluster_id and row.list_epoch <= held
        if is_old or not _has_owners(row):
            return False
        routes[row.partition] = Route(row)
        return True
