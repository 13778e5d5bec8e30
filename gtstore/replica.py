"""What one node does with each data request: the entry and its legal changes.

The rules are those of docs/REPLICATION.md, cited here by their names (N0, N1, ...). This module
takes the bytes of a request and returns the bytes of its reply; it knows no sockets, clocks or
threads. The caller holds one lock around every call, because check, evaluation and store are one
step (N1b).

A stored entry is the wire's bytes (PROTOCOL.md section 2): comparing the first 16 bytes compares
versions, and bytes 8 to 19 are the identity of the operation, its rid. So the two hot handlers,
``get`` and ``write``, build no objects; everything that is rare goes through the codec.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterable
from typing import Final

from .engine import Engine, Partition, Remembered
from .errors import RemoteProtocolError, StoreDamaged
from .placement import HASH_FUNCTIONS, cluster_of, partition_count
from .read_modify_write import (
    EVALUATE,
    FLAGS_AT,
    KEEPS_EXPIRY,
    VERSION_SIZE,
    Failure,
    has_expired,
    take_apart,
    tombstone_of,
)
from .wire import messages
from .wire.codec import (
    ACK,
    COMMIT,
    COMMIT_BODY,
    ENTRY,
    EXECUTE,
    EXECUTED,
    FAILED,
    GET,
    GET_BODY,
    HEADER_WORDS,
    NOT_FOUND,
    SUPERSEDED,
    WRITE,
    WRITE_BODY,
    LongReply,
    decode,
    error_frame,
    head_word,
    reply_frame,
)
from .wire.fields import malformed
from .wire.messages import (
    CLOCK_AHEAD_MAX_S,
    COMMITTED,
    ENTRY_HEAD_SIZE,
    EXPIRES,
    KEY_SIZE_MAX,
    LONG_FRAME_SIZE,
    ORDERED,
    TOMBSTONE,
    VALUE_SIZE_MAX,
)

CLOCK_AHEAD_MAX_US: Final = CLOCK_AHEAD_MAX_S * 1_000_000

ENTRY_OVERHEAD_SIZE: Final = 130
"""What one small entry takes in memory beyond its key's and entry's own bytes (two bytes objects
and a place in a dict), for ``--max-memory-mb``: bench/memory.py measures it."""

KEY_AT: Final = WRITE_BODY.size
"""Where the key of GET and WRITE stands: after list_epoch, partition and its own size."""
_COMMIT_KEY_AT: Final = COMMIT_BODY.size
_NOBODY: Final = -1  # no epoch on the wire is negative
_WRITE_USUAL_SIZE: Final = VALUE_SIZE_MAX  # a longer WRITE may have a value that is too long
NEVER_SETTLED: Final = TOMBSTONE | EXPIRES
"""An entry with one of these flags is to be looked at again, though it is committed."""
_FREE_SHARE: Final = 64
"""Memory is not called full while one part of so many is free, whatever was too long for it."""
_DISK_FULL: Final = "there is no room on this node's disk; reads go on"
_COMMITTED_FLAGS: Final = tuple(bytes((flags | COMMITTED,)) for flags in range(256))

unpack_request: Final = WRITE_BODY.unpack_from
unpack_commit: Final = COMMIT_BODY.unpack_from
assert GET_BODY.format == WRITE_BODY.format
pack_words: Final[Callable[[int, int, int], bytes]] = HEADER_WORDS.pack
_ACK: Final = head_word(ACK)
_ENTRY: Final = head_word(ENTRY)
_NOT_FOUND: Final = head_word(NOT_FOUND)
_SUPERSEDED: Final = head_word(SUPERSEDED)
_EXECUTED: Final = head_word(EXECUTED)
_FAILED: Final = head_word(FAILED)


class Behind(RemoteProtocolError):
    """The request's row is newer than ours (N1c): fetch the map, then handle the request again. If
    that does not help, this is the refusal."""


class Replica:
    """This node's part of one partition.

    ``row`` is the row that it goes by, or None before the first one; ``join_epoch`` is since when
    this process is an owner, or 0 if it is none.

    ``write_epoch`` is the list_epoch that a WRITE must carry and ``read_epoch`` the one that a GET
    must carry: the row's, if this node is an owner or the primary, otherwise nothing that is on any
    wire. So the usual check of N1a is one comparison.
    """

    __slots__ = (
        "all_unsettled", "amend", "changed", "entries", "floor", "former", "is_doubtful",
        "is_shared", "is_suspended", "join_epoch", "keys", "read_epoch", "row", "shown", "size",
        "stored", "tombstones", "unsettled", "write_epoch",
    )  # fmt: skip

    def __init__(self, partition: Partition) -> None:
        self.entries = partition.entries
        self.keys = partition.keys
        self.shown = partition.shown
        """A key's entry as a GET may tell of it: as nothing can take it away any more."""
        self.amend = partition.amend
        """Replaces an entry by one that may be lost again: with its committed flag (N5)."""
        self.changed = partition.changed
        self.former = partition.former
        """What it had before it was discarded; copying.py's."""
        self.row: messages.Row | None = None
        self.join_epoch = 0
        self.floor = b""
        """The highest version of the tombstones that were dropped (N7)."""
        self.stored = 0
        """Keys that have an entry."""
        self.tombstones = 0
        """Of them, those whose entry is a tombstone."""
        self.size = 0
        """Bytes of all keys and entries, tombstones included."""
        self.is_doubtful = False
        """Whether what was acknowledged last may be missing: the log on the disk ended in a record
        that could not be read (N2a)."""
        if partition.remembered is not None:
            self.join_epoch, self.floor, self.stored, self.tombstones, self.size = (
                partition.remembered[:5]
            )
            self.is_doubtful = partition.remembered.is_doubtful
        self.write_epoch = _NOBODY
        self.read_epoch = _NOBODY
        self.is_shared = False
        """Whether its row has several owners."""
        self.is_suspended = False
        """Whether it answers nothing for now, whatever the row says."""
        self.unsettled: set[bytes] = set()
        """The keys whose entries are, or may be, pending, a tombstone, or to expire (settling.py):
        whatever is stored adds its key, but for pending entries of a single owner."""
        self.all_unsettled = partition.remembered is not None
        """Whether any key may be one of these, whatever ``unsettled`` has."""


class Replicas:
    """All partitions of one node.

    Args:
        node: this node's number.
        incarnation: which start of the node this process is.
        cluster_id: the cluster's 32 random bits.
        nodes: how many nodes the cluster was made with.
        hash_code: HASH_ADDITIVE or HASH_CRC16.
        engine: where the entries are.
        now_us: cluster time as this node has surely reached it (T1), in microseconds. It never goes
            back.
        memory_max: how many bytes the entries may take, or None.
        first_epoch: that of a map which knows of this process, or an earlier one: see ``adopt``.
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
        first_epoch: int = 0,
    ) -> None:
        self.node = node
        self.incarnation = incarnation
        self.cluster_id = cluster_id
        self.epoch = 0  # of the newest map that was adopted; 0 = none yet (N0)
        self._first_epoch = first_epoch
        self._hash = HASH_FUNCTIONS[hash_code]
        self._now_us = now_us
        # A bound of N9 that was right at some time, as a time's eight bytes. Cluster time never
        # goes back, so it is not too high now.
        self._time_max = bytes(8)
        self._memory_max = memory_max
        self._room = 0  # of it, that surely is free
        self._missing = 0  # of it, since a write was refused
        self._engine = engine
        self._replicas = [Replica(engine.partition(p)) for p in range(partition_count(nodes))]
        self._partitions = len(self._replicas)
        # Requests so far.
        self.gets = self.writes = self.executes = 0
        self.handlers: dict[int, Callable[[int, bytes], bytes]] = {
            GET: self.get,
            WRITE: self.write,
            COMMIT: self.commit,
            EXECUTE: self.execute,
        }

    # --- requests --------------------------------------------------------------------------------

    def get(self, request_id: int, body: bytes) -> bytes:
        """GET: the entry, if this node is the primary of the list that the request names (N1a)."""
        self.gets += 1
        try:
            epoch, partition, key_size = unpack_request(body)
            replica: Replica = self._replicas[partition]
        except (struct.error, IndexError):
            return self._get_unusual(request_id, body)
        key = body[KEY_AT:]
        if epoch != replica.read_epoch or len(key) != key_size:
            return self._get_unusual(request_id, body)
        entry = replica.shown(key)
        if entry is None:
            return self._not_found(request_id, partition, key)
        # The flag first: what does not expire costs neither a call nor a look at the clock.
        if entry[FLAGS_AT] & EXPIRES and has_expired(entry, self._now_us()):
            entry = self._get_expired(replica, key)
        if (size := len(entry)) > LONG_FRAME_SIZE:
            return reply_frame(_ENTRY, request_id, entry)
        return pack_words(_ENTRY, request_id, size) + entry  # the same, without its call

    def _get_expired(self, replica: Replica, key: bytes) -> bytes:
        """What GET answers, where what is shown has expired."""
        entry = replica.entries.get(key)  # which may be newer
        assert entry is not None
        if has_expired(entry, self._now_us()):
            entry = self.expire(replica, key, entry)
        self._engine.depend()
        return entry

    def _get_unusual(self, request_id: int, body: bytes) -> bytes:
        """A GET with epoch 0, one that is refused, or one that is malformed."""
        epoch, partition, key = _request_of("GET", body)
        if epoch or not self.epoch:
            return self.refuse(request_id, partition, epoch)
        entry = self._replicas[self._hash(key) % self._partitions].shown(key)
        if entry is None:
            return pack_words(_NOT_FOUND, request_id, 0)
        return reply_frame(_ENTRY, request_id, entry)

    def _not_found(self, request_id: int, partition: int, key: bytes) -> bytes:
        if not 0 < len(key) <= KEY_SIZE_MAX:
            raise _bad_key("GET", len(key), len(key))
        if self._hash(key) % self._partitions != partition:
            return self._wrong_partition(request_id, key)
        return pack_words(_NOT_FOUND, request_id, 0)

    def write(self, request_id: int, body: bytes) -> bytes:
        """WRITE: store the entry as pending if its version is higher than the stored one (N3)."""
        self.writes += 1
        try:
            epoch, partition, key_size = unpack_request(body)
            entry_at = KEY_AT + key_size
            entry = body[entry_at:]
            flags = entry[FLAGS_AT]
            replica: Replica = self._replicas[partition]
        except (struct.error, IndexError):
            return self._write_unusual(request_id, body)
        if flags or len(body) > _WRITE_USUAL_SIZE:
            _check_entry(flags, entry)
        if epoch != replica.write_epoch:
            return self._write_unusual(request_id, body)
        key = body[KEY_AT:entry_at]
        entries = replica.entries
        stored = entries.get(key)
        if entry > self._time_max:  # it begins with the time
            refusal = self._check_time(request_id, key, entry, stored, replica.floor)
            if refusal:
                return refusal
        # N3, in its order: higher version; equal version or equal rid; otherwise superseded.
        if stored is None:
            if not 0 < key_size <= KEY_SIZE_MAX:
                raise _bad_key("WRITE", key_size, key_size)
            if self._hash(key) % self._partitions != partition:
                return self._wrong_partition(request_id, key)
            if entry[:VERSION_SIZE] <= replica.floor:
                return _too_old(request_id, replica.floor)
            growth = len(key) + len(entry)
        elif entry > stored and entry[:VERSION_SIZE] != stored[:VERSION_SIZE]:
            growth = len(entry) - len(stored)
        elif entry[:VERSION_SIZE] == stored[:VERSION_SIZE] or entry[8:20] == stored[8:20]:
            return pack_words(_ACK, request_id, 0)
        else:
            return pack_words(_SUPERSEDED, request_id, VERSION_SIZE) + stored[:VERSION_SIZE]
        # What is held already, or superseded, needs no room: so a pending entry can be completed.
        if self._engine.is_full:
            return error_frame(request_id, messages.NO_SPACE, _DISK_FULL)
        # Of memory only the primary judges: what it has taken, its backups must take, or no reader
        # could complete it.
        if (
            self._memory_max is not None
            and self._is_full(key, entry, stored)
            and epoch == replica.read_epoch
        ):
            self._missing = min(len(key) + len(entry), self._memory_max // _FREE_SHARE)
            return error_frame(request_id, messages.NO_SPACE, self.limit)
        if growth:
            replica.size += growth
        if stored is None:
            replica.stored += 1
            replica.tombstones += bool(flags & TOMBSTONE)
        elif (flags ^ stored[FLAGS_AT]) & TOMBSTONE:
            replica.tombstones += 1 if flags & TOMBSTONE else -1
        entries[key] = entry
        if flags or replica.is_shared:
            replica.unsettled.add(key)
        return pack_words(_ACK, request_id, 0)

    def _write_unusual(self, request_id: int, body: bytes) -> bytes:
        """A WRITE that is refused or malformed."""
        epoch, partition, rest = _request_of("WRITE", body)
        if len(rest) < ENTRY_HEAD_SIZE:
            raise malformed("the entry of WRITE is too short")
        _check_entry(rest[FLAGS_AT], rest)
        return self.refuse(request_id, partition, epoch)

    def commit(self, request_id: int, body: bytes) -> bytes:  # noqa: ARG002  # it has no reply
        """COMMIT: mark the entry as committed if the stored version is that one (N5). No reply."""
        try:
            partition, version, key_size = unpack_commit(body)
            replica = self._replicas[partition]
        except (struct.error, IndexError):
            raise malformed("COMMIT is too short, or names no partition of this cluster") from None
        key = body[_COMMIT_KEY_AT:]
        if len(key) != key_size:
            raise _bad_key("COMMIT", key_size, len(key))
        stored = replica.entries.get(key)
        if stored is None:
            if not 0 < key_size <= KEY_SIZE_MAX:
                raise _bad_key("COMMIT", key_size, key_size)
        elif stored[:VERSION_SIZE] == version:
            _amend_committed(replica, key, stored)
        return b""

    def execute(self, request_id: int, body: bytes) -> bytes:
        """EXECUTE: compute a new entry from the stored one, and store it as pending (N4)."""
        self.executes += 1
        request = decode(EXECUTE, body)
        assert isinstance(request, messages.Execute)
        evaluate = EVALUATE.get(request.operation)
        flags = request.entry[FLAGS_AT]
        if evaluate is None:
            raise malformed(f"there is no operation {request.operation}")
        if flags & ~EXPIRES:
            raise malformed(f"the entry's flags are {flags}; an EXECUTE may have expires")
        _check_entry(flags, request.entry)
        partition, key = request.partition, request.key
        is_known = partition < self._partitions
        if not is_known or request.epoch != self._replicas[partition].read_epoch:
            return self.refuse(request_id, partition, request.epoch)
        replica = self._replicas[partition]
        stored = replica.entries.get(key)
        if stored is None:
            if self._hash(key) % self._partitions != partition:
                return self._wrong_partition(request_id, key)
        else:
            # N4, in its order: equal rid, answer as before, though it may have expired meanwhile;
            # not the higher version; evaluate, and what has expired counts as nil (C8).
            if request.entry[8:20] == stored[8:20]:
                return reply_frame(_EXECUTED, request_id, stored)
            if has_expired(stored, self._now_us()):
                stored = self.expire(replica, key, stored)
            if request.entry[:VERSION_SIZE] <= stored[:VERSION_SIZE]:
                return pack_words(_SUPERSEDED, request_id, VERSION_SIZE) + stored[:VERSION_SIZE]
        old, new = take_apart(stored), take_apart(request.entry)
        assert new.value is not None
        try:
            value = evaluate(old, request.expected, new.value)
        except Failure as failure:
            return _failed(request_id, failure.reason, stored)
        expiry = old.expiry if request.operation in KEEPS_EXPIRY else new.expiry
        flags = ORDERED | (EXPIRES if expiry else 0) | (TOMBSTONE if value is None else 0)
        result = request.entry[:FLAGS_AT] + bytes((flags,)) + expiry + (value or b"")
        # What may be stored, and whether there is room for it, is the same as for a WRITE.
        fixed = WRITE_BODY.pack(request.epoch, partition, len(key))
        reply = self.write(request_id, fixed + key + result)
        self.writes -= 1  # it was no request
        if len(reply) > messages.HEADER_SIZE:
            return reply  # an ERROR
        return reply_frame(_EXECUTED, request_id, result)

    def look_up(self, replica: Replica, key: bytes) -> bytes | None:
        """What the primary would answer to a GET of a key: the entry as it may be told, or a
        tombstone in the place of one that has expired."""
        entry = replica.shown(key)
        if entry is not None and has_expired(entry, self._now_us()):
            entry = self._get_expired(replica, key)
        return entry

    def expire(self, replica: Replica, key: bytes, entry: bytes) -> bytes:
        """C8: put a tombstone in the place of an entry whose time is over; return it.

        It is as if a client had this node EXECUTE "expire, if the version is still that one", and
        then stopped: the tombstone is pending, and whoever is answered with it completes it as any
        other pending entry (C5, C4) before it says that the key has no value. So the next primary
        has it too, and the key cannot come back with another clock.
        """
        tombstone = tombstone_of(entry)
        replica.size -= len(entry) - len(tombstone)
        replica.tombstones += not entry[FLAGS_AT] & TOMBSTONE
        replica.entries[key] = tombstone
        replica.unsettled.add(key)
        return tombstone

    # --- the map ---------------------------------------------------------------------------------

    def adopt(self, epoch: int, rows: Iterable[messages.Row]) -> None:
        """Go by these rows from now on. A row never goes backwards; another cluster's is ignored.

        So is a first map that is older than this process's registration (N0): in it this node is
        still the process before, or no owner, and what is on the disk would be discarded, of which
        it may be the only copy.
        """
        if cluster_of(epoch) != self.cluster_id or (not self.epoch and epoch < self._first_epoch):
            return
        self.epoch = max(self.epoch, epoch)
        for row in rows:
            self.adopt_row(row)

    def map(self) -> messages.Map:
        """The rows that this node goes by: those of its newest map, or newer ones."""
        rows = tuple(replica.row for replica in self._replicas if replica.row is not None)
        return messages.Map(self.epoch, rows)

    def adopt_row(self, row: messages.Row) -> None:
        """Go by this row from now on, if it is newer. With the same list_epoch it can say only that
        owners are in sync by now. Not before there is a first map."""
        if (
            not self.epoch
            or row.partition >= self._partitions
            or cluster_of(row.list_epoch) != self.cluster_id
        ):
            return
        replica = self._replicas[row.partition]
        held = replica.row
        if held is None or row.list_epoch > held.list_epoch:
            self._adopt_newer(replica, row)
        elif row.list_epoch == held.list_epoch and len(row.owners) == len(held.owners):
            owners = tuple(
                theirs if theirs.in_sync else ours
                for ours, theirs in zip(held.owners, row.owners, strict=True)
            )
            replica.row = dataclasses.replace(held, owners=owners)

    def _adopt_newer(self, replica: Replica, row: messages.Row) -> None:
        join_epoch = next((o.join_epoch for o in row.owners if self.is_mine(o)), 0)
        if not join_epoch and self._is_awaited(replica, row):
            join_epoch = replica.join_epoch
        if join_epoch != replica.join_epoch:
            self._discard(replica)  # what was stored under another join is not vouched for (N2)
            replica.is_suspended = False
        if replica.row is not None and len(replica.row.owners) == 1:
            replica.all_unsettled = True  # a single owner leaves its entries pending
        replica.row = row
        replica.is_shared = len(row.owners) > 1
        replica.join_epoch = join_epoch
        if replica.is_doubtful and any(self.is_mine(owner) for owner in row.owners):
            self.vouch(row.partition)  # an operator has said that it counts
        self._set_epochs(replica)

    def _set_epochs(self, replica: Replica) -> None:
        row = replica.row
        is_owner = (
            row is not None
            and not replica.is_suspended
            and any(self.is_mine(owner) for owner in row.owners)
        )
        replica.write_epoch = row.list_epoch if row and is_owner else _NOBODY
        is_primary = bool(
            row and is_owner and row.owners[0].in_sync and self.is_mine(row.owners[0])
        )
        replica.read_epoch = row.list_epoch if row and is_primary else _NOBODY

    def _is_awaited(self, replica: Replica, row: messages.Row) -> bool:
        """N2a: whether the row still names this node as the process before, with what the disk has:
        nobody has gone on with the partition since, and this may be the newest copy there is."""
        return bool(replica.join_epoch) and any(
            owner.node == self.node
            and owner.join_epoch == replica.join_epoch
            and owner.incarnation < self.incarnation
            for owner in row.owners
        )

    def is_awaited(self, partition: int) -> bool:
        """Whether this node holds, as no owner, what the partition may be opened with."""
        replica = self._replicas[partition]
        return replica.row is not None and self._is_awaited(replica, replica.row)

    def vouch(self, partition: int) -> None:
        """All is there again that any owner of a partition had that is not open (N2a)."""
        self._replicas[partition].is_doubtful = False
        self._replicas[partition].changed()

    def suspend(self, partition: int) -> int:
        """Answer for this partition no more; return the join_epoch that it has. It ends by
        ``resume``, or when the node joins anew."""
        replica = self._replicas[partition]
        replica.is_suspended = True
        self._set_epochs(replica)
        return replica.join_epoch

    def resume(self, partition: int) -> None:
        """Answer for it again, by its row."""
        self._replicas[partition].is_suspended = False
        self._set_epochs(self._replicas[partition])

    def is_mine(self, owner: messages.Owner) -> bool:
        """N0: an owner of another incarnation of this node is not this process."""
        return owner.node == self.node and owner.incarnation == self.incarnation

    def __getitem__(self, partition: int) -> Replica:
        return self._replicas[partition]

    def __len__(self) -> int:
        return self._partitions

    def remembered(self, partition: int) -> Remembered:
        """What a process of this node that comes later is to know of a partition (N2)."""
        replica = self._replicas[partition]
        return Remembered(
            replica.join_epoch,
            replica.floor,
            replica.stored,
            replica.tombstones,
            replica.size,
            replica.is_doubtful,
        )

    def entry_of(self, partition: int, key: bytes) -> bytes:
        """The entry of one of a partition's ``keys``. Raises StoreDamaged; also where a disk names
        a key, and does not find it."""
        entry = self._replicas[partition].entries.get(key)
        if entry is None:
            raise StoreDamaged(partition, key, "is named on the disk, and cannot be found there")
        return entry

    def merge(self, replica: Replica, key: bytes, entry: bytes) -> None:
        """Take an entry that was copied from another owner (N6): the higher version wins, and one
        that is committed there is committed here."""
        self._room = 0
        stored = replica.entries.get(key)
        if stored is None:
            replica.size += len(key) + len(entry)
            replica.stored += 1
            replica.tombstones += bool(entry[FLAGS_AT] & TOMBSTONE)
        elif entry[:VERSION_SIZE] > stored[:VERSION_SIZE]:
            replica.size += len(entry) - len(stored)
            replica.tombstones += bool(entry[FLAGS_AT] & TOMBSTONE)
            replica.tombstones -= bool(stored[FLAGS_AT] & TOMBSTONE)
        elif entry[:VERSION_SIZE] < stored[:VERSION_SIZE] or not entry[FLAGS_AT] & COMMITTED:
            return
        replica.entries[key] = entry
        if entry[FLAGS_AT] & (NEVER_SETTLED | COMMITTED) != COMMITTED:
            replica.unsettled.add(key)

    def commit_held(self, replica: Replica, key: bytes, version: bytes) -> None:
        """N5: mark an entry as committed, if its version is that one."""
        stored = replica.entries.get(key)
        if stored is not None and stored[:VERSION_SIZE] == version:
            _amend_committed(replica, key, stored)

    def raise_floor(self, replica: Replica, floor: bytes) -> None:
        """Refuse from now on what is at or below it, of keys that are not stored (N7)."""
        if floor > replica.floor:
            replica.floor = floor
            replica.changed()

    def drop(self, replica: Replica, key: bytes) -> None:
        """Hold nothing of a key any more. What its version was is the caller's to remember (N7)."""
        entry = replica.entries.get(key)
        assert entry is not None
        replica.size -= len(key) + len(entry)
        replica.tombstones -= bool(entry[FLAGS_AT] & TOMBSTONE)
        replica.stored -= 1
        replica.keys.will_drop(key)
        del replica.entries[key]

    def _discard(self, replica: Replica) -> None:
        replica.entries.clear()  # also a change of what is remembered
        replica.keys.forget()
        replica.unsettled = set()
        replica.all_unsettled = False
        replica.size = replica.stored = replica.tombstones = 0
        replica.floor = b""
        replica.is_doubtful = False

    # --- what is rare ----------------------------------------------------------------------------

    def refuse(self, request_id: int, partition: int, epoch: int) -> bytes:
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
            row = next(replica.row for replica in self._replicas if replica.row is not None)
        if cluster_of(epoch) == self.cluster_id and epoch > row.list_epoch:
            raise Behind(
                messages.BEHIND, f"node {self.node} does not have the map of this request yet"
            )
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

    def _check_time(
        self, request_id: int, key: bytes, entry: bytes, stored: bytes | None, floor: bytes
    ) -> bytes:
        """N9: a time too far ahead of the highest of cluster time, the stored version, and the
        floor is refused: so there is always room above what is TOO_OLD. Most requests are below the
        bound that was found here some time ago, and need no clock."""
        if not 0 < len(key) <= KEY_SIZE_MAX:
            raise _bad_key("WRITE", len(key), len(key))
        time_max = self._now_us() + CLOCK_AHEAD_MAX_US
        self._time_max = time_max.to_bytes(8, "big")
        time = int.from_bytes(entry[:8], "big")
        for version in (stored, floor):
            if version:
                time_max = max(time_max, int.from_bytes(version[:8], "big") + CLOCK_AHEAD_MAX_US)
        if time <= time_max:
            return b""
        return error_frame(
            request_id,
            messages.TOO_FAR,
            f"the version's time is {(time - time_max) / 1e6 + CLOCK_AHEAD_MAX_S:.0f} s ahead of "
            f"the cluster's clock",
            messages.TimeDetail(time_max),
        )

    @property
    def count(self) -> int:
        """Keys that have a value."""
        return sum(replica.stored - replica.tombstones for replica in self._replicas)

    @property
    def size(self) -> int:
        """Bytes of all keys and entries, tombstones included."""
        return sum(replica.size for replica in self._replicas)

    @property
    def limit(self) -> str:
        """Why there is no room in memory, in words."""
        return f"this node's memory is full ({self._memory_max} bytes, --max-memory-mb)"

    @property
    def full(self) -> int:
        """Why it takes no more writes: messages.FULL_MEMORY or FULL_DISK, or 0 if it does. Memory
        is full from the first write that was refused on, as long as there is no room for it."""
        if self._engine.is_full:
            return messages.FULL_DISK
        if self._missing and self._free() >= self._missing:
            self._missing = 0
        return messages.FULL_MEMORY if self._missing else 0

    def _free(self) -> int:
        """Bytes of memory; less than none, if others' writes had to be taken."""
        assert self._memory_max is not None
        overhead = ENTRY_OVERHEAD_SIZE * sum(replica.stored for replica in self._replicas)
        return self._memory_max - self.size - overhead

    def _is_full(self, key: bytes, entry: bytes, stored: bytes | None) -> bool:
        """Whether a write takes the node over its memory. A delete never does."""
        growth = (
            len(entry) - len(stored)
            if stored is not None
            else (len(key) + len(entry) + ENTRY_OVERHEAD_SIZE)
        )
        if growth <= 0 or entry[FLAGS_AT] & TOMBSTONE:
            return False
        if growth > self._room:
            # Adding up takes its time, so it is done once for many writes.
            self._room = self._free()
        self._room -= growth
        return self._room < 0


def _amend_committed(replica: Replica, key: bytes, stored: bytes) -> None:
    flags = stored[FLAGS_AT]
    committed = b"".join((stored[:FLAGS_AT], _COMMITTED_FLAGS[flags], stored[ENTRY_HEAD_SIZE:]))
    replica.amend(key, committed)
    if not flags & NEVER_SETTLED:
        replica.unsettled.discard(key)


def _too_old(request_id: int, floor: bytes) -> bytes:
    """N7: a tombstone of this key, above that version, may have been here and been dropped. It is a
    refusal, and no SUPERSEDED, which would count as an answer of an owner that holds something
    higher: so nothing that is complete depends on what was dropped (H10)."""
    return error_frame(
        request_id,
        messages.TOO_OLD,
        "the version is older than deletes of other keys that are not remembered any more",
        messages.FloorDetail(floor),
    )


def _failed(request_id: int, reason: int, stored: bytes | None) -> bytes:
    entry = stored or b""
    head = pack_words(_FAILED, request_id, 1 + len(entry)) + bytes((reason,))
    if len(entry) > messages.LONG_FRAME_SIZE:
        raise LongReply(head, entry)
    return head + entry


def _request_of(name: str, body: bytes) -> tuple[int, int, bytes]:
    """The epoch and partition of a GET or a WRITE, and the key of a GET or the entry of a WRITE.
    Raises MALFORMED."""
    if len(body) < KEY_AT:
        raise malformed(f"the body of {name} is too short")
    epoch, partition, key_size = unpack_request(body)
    there = len(body) - KEY_AT
    if (
        not 0 < key_size <= KEY_SIZE_MAX
        or key_size > there
        or (name == "GET" and key_size != there)
    ):
        raise _bad_key(name, key_size, there)
    return epoch, partition, body[KEY_AT if name == "GET" else KEY_AT + key_size :]


def _bad_key(name: str, announced: int, there: int) -> RemoteProtocolError:
    if not 0 < announced <= KEY_SIZE_MAX:
        return malformed(f"a key has 1 to {KEY_SIZE_MAX} bytes, not {announced}")
    return malformed(
        f"{name} announces a key of {announced} bytes, which does not fit the {there} bytes there"
    )


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
