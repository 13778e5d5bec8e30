"""What one node does with each data request: the entry and its legal changes.

The rules are those of docs/REPLICATION.md, cited here by their names (N0, N1, ...). This module takes the
bytes of a request and returns the bytes of its reply; it knows no sockets, clocks or threads. The
caller holds one lock around every call, because check, evaluation and store are one step (N1b).

A stored entry is the wire's bytes (PROTOCOL.md section 2): comparing the first 16 bytes compares
versions, and bytes 8 to 19 are the identity of the operation, its rid. So the two hot handlers, ``get``
and ``write``, build no objects; everything that is rare goes through the codec.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Final

from .engine import Engine, Entries
from .errors import RemoteProtocolError
from .placement import HASH_FUNCTIONS, cluster_of, partition_count
from .wire import messages
from .wire.codec import (
    ACK,
    COMMIT,
    COMMIT_BODY,
    ENTRY,
    ENTRY_HEAD,
    GET,
    GET_BODY,
    HEADER,
    MAGIC_VERSION,
    NOT_FOUND,
    SUPERSEDED,
    SUPERSEDED_FRAME,
    WRITE,
    WRITE_BODY,
    error_frame,
)
from .wire.fields import malformed
from .wire.messages import (
    CLOCK_AHEAD_MAX_S,
    COMMITTED,
    ENTRY_HEAD_SIZE,
    ENTRY_SIZE_MAX,
    EXPIRES,
    KEY_SIZE_MAX,
    ORDERED,
    TOMBSTONE,
    VALUE_SIZE_MAX,
)

VERSION_SIZE: Final = 16
FLAGS_AT: Final = 20
"""Where an entry's flags stand; bytes 0 to 15 are its version, 8 to 19 its rid."""

CLOCK_AHEAD_MAX_US: Final = CLOCK_AHEAD_MAX_S * 1_000_000

ENTRY_OVERHEAD_SIZE: Final = 130
"""What one small entry takes in memory beyond its key's and entry's own bytes (two bytes objects and
a place in a dict), for ``--max-memory-mb``: bench/memory.py measures it."""

_NOBODY: Final = -1  # no epoch on the wire is negative: nothing is equal to it
_GET_KEY_AT: Final = GET_BODY.size
_WRITE_KEY_AT: Final = WRITE_BODY.size
_COMMIT_KEY_AT: Final = COMMIT_BODY.size


class Behind(Exception):
    """The request's row is newer than ours (N1c): fetch the map, then handle the request again."""


class Replica:
    """This node's part of one partition.

    ``write_epoch`` is the list_epoch that a WRITE must carry, ``read_epoch`` the one that a GET must
    carry (besides 0): both are the row's if this node is an owner or the primary, otherwise nothing
    that a request can carry. So the usual check of N1a is one comparison.
    """

    __slots__ = ("entries", "join_epoch", "read_epoch", "row", "write_epoch")

    def __init__(self, entries: Entries) -> None:
        self.entries = entries
        self.row: messages.Row | None = None
        self.join_epoch = 0
        self.write_epoch = _NOBODY
        self.read_epoch = _NOBODY


class Replicas:
    """All partitions of one node.

    Args:
        node: this node's number.
        incarnation: which start of the node this process is.
        cluster_id: the cluster's 32 random bits.
        nodes: how many nodes the cluster was made with.
        hash_code: HASH_ADDITIVE or HASH_CRC16.
        engine: where the entries are.
        now_us: this node's clock, in microseconds since 1970.
        memory_max: how many bytes the entries may take, or None.
    """

    def __init__(
        self,
        node: int,
        incarnation: int,
        cluster_id: int,
        nodes: int,
        hash_code: int,
        engine: Engine,
        now_us: Callable[[], int],
        memory_max: int | None = None,
    ) -> None:
        self.node = node
        self.incarnation = incarnation
        self.cluster_id = cluster_id
        self.epoch = 0  # of the newest map that was adopted; 0 = none yet (N0)
        self.count = 0  # keys that have a value
        self.size = 0  # bytes of all keys and entries, tombstones included
        self._hash = HASH_FUNCTIONS[hash_code]
        self._now_us = now_us
        self._memory_max = memory_max
        self._stored = 0  # keys that have an entry, tombstones included
        self._replicas = [Replica(engine.partition(p)) for p in range(partition_count(nodes))]
        self._partitions = len(self._replicas)
        self.handlers: dict[int, Callable[[int, bytes], bytes]] = {
            GET: self.get,
            WRITE: self.write,
            COMMIT: self.commit,
        }

    # --- requests --------------------------------------------------------------------------------

    def get(self, request_id: int, body: bytes) -> bytes:
        """GET: the entry, if this node is the primary of the list that the request names (N1a)."""
        try:
            epoch, partition, key_size = GET_BODY.unpack_from(body)
        except struct.error:
            raise malformed("the body of GET is too short") from None
        key = body[_GET_KEY_AT:]
        if len(key) != key_size or not 0 < key_size <= KEY_SIZE_MAX:
            raise _bad_key("GET", key_size, len(key))
        if not epoch:
            if not self.epoch:
                return self._refuse(request_id, 0, epoch)  # N0
            partition = self._hash(key) % self._partitions
            replica = self._replicas[partition]
        elif partition < self._partitions:
            replica = self._replicas[partition]
            if epoch != replica.read_epoch:
                return self._refuse(request_id, partition, epoch)
        else:
            return self._refuse(request_id, partition, epoch)
        entry = replica.entries.get(key)
        if entry is None:
            return HEADER.pack(MAGIC_VERSION, NOT_FOUND, 0, request_id, 0)
        return HEADER.pack(MAGIC_VERSION, ENTRY, 0, request_id, len(entry)) + entry

    def write(self, request_id: int, body: bytes) -> bytes:
        """WRITE: store the entry as pending if its version is higher than the stored one (N3)."""
        try:
            epoch, partition, key_size = WRITE_BODY.unpack_from(body)
            entry_at = _WRITE_KEY_AT + key_size
            key = body[_WRITE_KEY_AT:entry_at]
            entry = body[entry_at:]
            time, _, _, flags = ENTRY_HEAD.unpack_from(entry)
        except struct.error:
            raise malformed("the body of WRITE is too short") from None
        if not 0 < key_size <= KEY_SIZE_MAX:
            raise _bad_key("WRITE", key_size, key_size)
        if flags & ~ORDERED or len(entry) > ENTRY_SIZE_MAX - 8:
            _check_entry(flags, entry)
        if partition >= self._partitions or epoch != self._replicas[partition].write_epoch:
            return self._refuse(request_id, partition, epoch)
        if self._hash(key) % self._partitions != partition:
            return self._wrong_partition(request_id, key)
        entries = self._replicas[partition].entries
        stored = entries.get(key)
        if time > self._now_us() + CLOCK_AHEAD_MAX_US:
            refusal = self._check_time(request_id, time, stored)
            if refusal:
                return refusal
        # N3, in its order: higher version; equal version or equal rid; otherwise superseded.
        if stored is None:
            growth = len(key) + len(entry) + ENTRY_OVERHEAD_SIZE
        elif entry[:VERSION_SIZE] > stored[:VERSION_SIZE]:
            growth = len(entry) - len(stored)
        elif entry[:VERSION_SIZE] == stored[:VERSION_SIZE] or entry[8:20] == stored[8:20]:
            return HEADER.pack(MAGIC_VERSION, ACK, 0, request_id, 0)
        else:
            version = stored[:VERSION_SIZE]
            return SUPERSEDED_FRAME.pack(
                MAGIC_VERSION, SUPERSEDED, 0, request_id, VERSION_SIZE, version
            )
        if self._memory_max is not None and growth > 0 and not flags & TOMBSTONE:
            if self._memory + growth > self._memory_max:
                return error_frame(
                    request_id,
                    messages.NO_SPACE,
                    f"this node's memory is full ({self._memory_max} bytes, --max-memory-mb)",
                )
        entries[key] = entry
        self._account(key, entry, stored)
        return HEADER.pack(MAGIC_VERSION, ACK, 0, request_id, 0)

    def commit(self, request_id: int, body: bytes) -> bytes:  # noqa: ARG002: it has no reply
        """COMMIT: mark the entry as committed if the stored version is that one (N5). No reply."""
        try:
            partition, version, key_size = COMMIT_BODY.unpack_from(body)
        except struct.error:
            raise malformed("the body of COMMIT is too short") from None
        key = body[_COMMIT_KEY_AT:]
        if len(key) != key_size or not 0 < key_size <= KEY_SIZE_MAX:
            raise _bad_key("COMMIT", key_size, len(key))
        if partition < self._partitions:
            entries = self._replicas[partition].entries
            stored = entries.get(key)
            if stored is not None and stored[:VERSION_SIZE] == version:
                flags = stored[FLAGS_AT] | COMMITTED
                entries[key] = b"%b%c%b" % (stored[:FLAGS_AT], flags, stored[ENTRY_HEAD_SIZE:])
        return b""

    # --- the map ---------------------------------------------------------------------------------

    def adopt(self, epoch: int, rows: Iterable[messages.Row]) -> None:
        """Go by these rows from now on. A row never goes backwards; another cluster's is ignored."""
        if cluster_of(epoch) != self.cluster_id:
            return
        for row in rows:
            if row.partition < self._partitions and cluster_of(row.list_epoch) == self.cluster_id:
                replica = self._replicas[row.partition]
                if replica.row is None or row.list_epoch > replica.row.list_epoch:
                    self._adopt_row(replica, row)
        self.epoch = max(self.epoch, epoch)

    def _adopt_row(self, replica: Replica, row: messages.Row) -> None:
        mine = [
            owner
            for owner in row.owners
            # N0: a row that names another incarnation of this node does not name this process.
            if owner.node == self.node and owner.incarnation == self.incarnation
        ]
        join_epoch = mine[0].join_epoch if mine else 0
        if join_epoch != replica.join_epoch:
            self._discard(replica)  # what was stored under another join is not vouched for (N2)
        replica.row = row
        replica.join_epoch = join_epoch
        replica.write_epoch = row.list_epoch if mine else _NOBODY
        is_primary = bool(mine) and mine[0] is row.owners[0] and bool(mine[0].in_sync)
        replica.read_epoch = row.list_epoch if is_primary else _NOBODY

    def _discard(self, replica: Replica) -> None:
        for key in replica.entries:
            entry = replica.entries.get(key)
            assert entry is not None
            self.size -= len(key) + len(entry)
            self.count -= not entry[FLAGS_AT] & TOMBSTONE
            self._stored -= 1
        replica.entries.clear()

    # --- what is rare ----------------------------------------------------------------------------

    def _refuse(self, request_id: int, partition: int, epoch: int) -> bytes:
        """Answer a request whose epoch is not the one that it needs here (N0, N1)."""
        row = self._replicas[partition].row if partition < self._partitions else None
        if not self.epoch or (row is None and partition < self._partitions):
            return error_frame(
                request_id, messages.NOT_READY, f"node {self.node} has no map yet that names it"
            )
        if row is None:
            if cluster_of(epoch) == self.cluster_id:
                raise malformed(
                    f"there is no partition {partition}, only 0 to {self._partitions - 1}"
                )
            # A cluster of another shape: any row of this one says so.
            row = self._replicas[0].row
            assert row is not None
        if cluster_of(epoch) == self.cluster_id and epoch > row.list_epoch:
            raise Behind
        return error_frame(
            request_id,
            messages.STALE_EPOCH,
            f"the owners of partition {row.partition} are another list, or node {self.node} is not "
            "the one that this request needs",
            messages.StaleDetail(row),
        )

    def _wrong_partition(self, request_id: int, key: bytes) -> bytes:
        partition = self._hash(key) % self._partitions
        return error_frame(
            request_id,
            messages.WRONG_PARTITION,
            f"the key is in partition {partition}",
            messages.PartitionDetail(partition),
        )

    def _check_time(self, request_id: int, time: int, stored: bytes | None) -> bytes:
        """N9: a time too far ahead of the higher of our clock and the stored version is refused."""
        stored_time = 0 if stored is None else int.from_bytes(stored[:8], "big")
        time_max = max(self._now_us(), stored_time) + CLOCK_AHEAD_MAX_US
        if time <= time_max:
            return b""
        return error_frame(
            request_id,
            messages.TOO_FAR,
            f"the version's time is {(time - time_max) / 1e6 + CLOCK_AHEAD_MAX_S:.0f} s ahead of "
            f"this node's clock",
            messages.TimeDetail(time_max),
        )

    @property
    def _memory(self) -> int:
        return self.size + self._stored * ENTRY_OVERHEAD_SIZE

    def _account(self, key: bytes, entry: bytes, stored: bytes | None) -> None:
        if stored is None:
            self._stored += 1
            self.size += len(key) + len(entry)
            self.count += not entry[FLAGS_AT] & TOMBSTONE
        else:
            self.size += len(entry) - len(stored)
            self.count += (not entry[FLAGS_AT] & TOMBSTONE) - (not stored[FLAGS_AT] & TOMBSTONE)


def _bad_key(name: str, announced: int, there: int) -> RemoteProtocolError:
    if announced != there:
        return malformed(
            f"the key of {name} is announced with {announced} bytes; {there} are there"
        )
    return malformed(f"a key has 1 to {KEY_SIZE_MAX} bytes, not {announced}")


def _check_entry(flags: int, entry: bytes) -> None:
    """Refuse an entry of a WRITE that is none: its flags are unusual, or it is very long."""
    if flags & ~(ORDERED | TOMBSTONE | EXPIRES):
        raise malformed(
            f"the entry's flags are {flags}; a WRITE may have ordered, tombstone, expires"
        )
    head_size = ENTRY_HEAD_SIZE + (8 if flags & EXPIRES else 0)
    if len(entry) < head_size:
        raise malformed("the entry is too short for its expiry")
    if flags & TOMBSTONE and len(entry) > head_size:
        raise malformed("a tombstone has no value")
    if len(entry) > head_size + VALUE_SIZE_MAX:
        raise RemoteProtocolError(
            messages.VALUE_TOO_LONG,
            f"a value has at most {VALUE_SIZE_MAX} bytes, not {len(entry) - head_size}",
            detail=messages.SizeDetail(VALUE_SIZE_MAX),
        )
