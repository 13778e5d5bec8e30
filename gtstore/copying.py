"""How a node that joins a partition gets what is stored there: rule N6 of docs/REPLICATION.md.

Both ends, without sockets, clocks or threads. ``answer`` is the source's: it serves the owner that
follows it in the partition's list. ``copy`` is the copier's: an operation like a client's, which
asks for one batch after the other; ``report`` then tells the manager. Meanwhile the copier takes
part in every write, so keys that arrive during the scan need no visit, and nothing has to stand
still. Before each batch it pauses, so that clients get their share of the processors (``Pace``).

A node that comes back with its disk copies only what differs. Before it asks for a batch it looks
at what it had before it joined (``Replica.former``), and names that: keys, versions, checksums.
Where the source has the same, it answers with the flags alone, and the copier completes the entry.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from .errors import DeadlineExceeded
from .keyed_entries import COUNT, IDENTITY, Batch, pack_held, take_apart, take_held
from .operations import MANAGER, Limited, Lost, Operation, Pause, Reply
from .read_modify_write import FLAGS_AT, VERSION_SIZE
from .replica import Replica, Replicas
from .wire import messages
from .wire.codec import HEADER_WORDS, encode, head_word
from .wire.fields import fields_of, malformed
from .wire.messages import (
    COMMITTED,
    COPY_SIZE,
    ENTRY_HEAD_SIZE,
    FLAGS_SIZE,
    HELD_SIZE,
    KEYS_A_REPLY_MAX,
    Copied,
    Copy,
    Join,
    Noted,
    Row,
)

_COPIED_HEAD: Final = struct.Struct(">QB16s")  # a test holds it against Copied's fields
_COPIED: Final = head_word(Copied.kind)
BYTES_A_SECOND: Final = 9 * messages.MIB // 2
"""What a node asks for at most, with all that it copies at once (``Pace``). bench/fail_over.py
measures what clients feel of it."""
_NO_FLOOR: Final = bytes(VERSION_SIZE)
_MORE_KEYS: Final = 16
_PAUSE_FIRST_S: Final = 0.005
_PAUSE_MAX_S: Final = 0.5
PATIENCE_S: Final = 10.0
_PATIENCE_MAX_S: Final = 80.0
"""How long an answer is awaited: a connection may have died without a sign. Then another one is
tried, and awaited twice as long, up to that time: a source that is slow gets to answer."""
_COPY: Final = head_word(Copy.kind)
_COPY_FIELDS: Final = fields_of(Copy)[:-1]  # without what it names
_UNCOMMITTED: Final = tuple(bytes((flags & ~COMMITTED,)) for flags in range(256))


def identity(entry: bytes) -> bytes:
    """Version and checksum: two entries that have them in common are the same, but for the flag
    committed.

    The version alone does not tell. What a primary computes (N4) has the version of the request,
    and if that primary dies before a backup has the result, the next one computes it anew, perhaps
    from another value; then the first one comes back, with its result still on its disk.
    """
    head = entry[:FLAGS_AT] + _UNCOMMITTED[entry[FLAGS_AT]]
    checksum = zlib.crc32(entry[ENTRY_HEAD_SIZE:], zlib.crc32(head))
    return IDENTITY.pack(entry[:VERSION_SIZE], checksum)


# --- the source ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A COPY. ``held`` are the keys that it names, in order, and the identities of their
    entries."""

    node: int
    row: Row
    after: bytes
    held: dict[bytes, bytes]


def request_of(body: bytes) -> Request:
    """The COPY of this body. Raises RemoteProtocolError, MALFORMED."""
    values: dict[str, Any] = {}
    at = 0
    for field in _COPY_FIELDS:
        values[field.name], at = field.wire_type.take(body, at, values)
    return Request(values["node"], values["row"], values["after"], take_held(body, at))


def answer(replicas: Replicas, request_id: int, request: Request) -> bytes:
    """The reply to COPY; the replicas' lock is held.

    The source first goes by the copier's row, so that it takes no more writes that leave the copier
    out; then it answers only as an owner in sync, to the one right behind it.
    """
    replicas.adopt_row(request.row)
    partition = request.row.partition
    row = replicas[partition].row if partition < len(replicas) else None
    join_epoch = 0
    for source, copier in zip(row.owners, row.owners[1:], strict=False) if row else ():
        is_able = source.in_sync and not replicas[partition].is_suspended
        if replicas.is_mine(source) and is_able and copier.node == request.node:
            join_epoch = copier.join_epoch
    if row and _is_to_tell(replicas, row, request):
        join_epoch = row.owners[0].join_epoch
    if not join_epoch:
        return replicas.refuse(request_id, partition, 0)
    replica = replicas[partition]
    held = request.held
    # As many as may be in the answer: who names few entries wants a short one.
    count = min(KEYS_A_REPLY_MAX, 2 * len(held) + _MORE_KEYS) if held else KEYS_A_REPLY_MAX
    keys = replica.keys.from_key(request.after + b"\0", count)  # the next possible key
    end = next(reversed(held), None)
    batch = Batch(COPY_SIZE)
    is_last = keys is not None and len(keys) < count
    looked_at = 0  # bytes: short answers may be about long entries
    for key in keys or ():
        if batch.size and (looked_at > HELD_SIZE or (end is not None and key > end)):
            is_last = False
            break
        entry = replicas.entry_of(partition, key)
        looked_at += len(entry)
        if key in held and held[key] == identity(entry):
            entry = entry[FLAGS_AT : FLAGS_AT + FLAGS_SIZE]
        if not batch.add(key, entry):
            is_last = False
            break
    head = _COPIED_HEAD.pack(join_epoch, is_last, replica.floor * is_last)
    entries = batch.packed()
    header = HEADER_WORDS.pack(_COPIED, request_id, len(head) + len(entries))
    return b"".join((header, head, entries))


def _is_to_tell(replicas: Replicas, row: Row, request: Request) -> bool:
    """N2a: whether this node holds, as no owner, what the first owner of a partition asks for that
    is not open, because nobody's log ends whole."""
    return (
        row.list_epoch == request.row.list_epoch
        and row.owners[0].node == request.node
        and replicas[row.partition].is_doubtful
        and replicas.is_awaited(row.partition)
    )


# --- the copier ----------------------------------------------------------------------------------


class _Source(NamedTuple):
    """From whom a partition is to be copied, usually the owner before ours, and as what we
    joined."""

    node: int
    incarnation: int
    join_epoch: int
    row: Row


def _source_of(replicas: Replicas, partition: int) -> _Source | None:
    """None if there is nothing to copy, or not yet: the owner before is syncing too (H8)."""
    row = replicas[partition].row
    for before, owner in zip(row.owners, row.owners[1:], strict=False) if row else ():
        if replicas.is_mine(owner) and before.in_sync and not owner.in_sync:
            assert row is not None
            return _Source(before.node, before.incarnation, owner.join_epoch, row)
    return None


class Pace:
    """Spreads what is copied over time: no more than so many bytes a second, all copies of a node
    taken together. Guarded by the replicas' lock.

    Before a batch is asked for nobody knows how long it is: it is presumed to be as long as the
    last one. To pay afterwards only would let all copies begin at one moment.

    Args:
        clock: seconds; only goes forward.
    """

    def __init__(self, bytes_a_second: float, clock: Callable[[], float]) -> None:
        self._bytes_a_second = bytes_a_second
        self._clock = clock
        self._paid_at = -math.inf
        """When the time of everything that was asked for so far is over."""
        self._presumed = COPY_SIZE

    def pause_before(self) -> float:
        """How many seconds to wait before the next batch is asked for."""
        now = self._clock()
        begins_at = max(self._paid_at, now)
        self._paid_at = begins_at + self._presumed / self._bytes_a_second
        return begins_at - now

    def came(self, size: int) -> None:
        """A batch has come, and had so many bytes."""
        self._paid_at += (size - self._presumed) / self._bytes_a_second
        self._presumed = size


class Outcome(NamedTuple):
    """What has become of copying a partition: how many entries came from the source, how many more
    were here already, and as what this node has them all; None: there is nothing to copy any
    more."""

    moved: int
    present: int
    join: Join | None


def pending(replicas: Replicas) -> dict[int, int]:
    """The partitions that this node can copy now, and the node that each is copied from."""
    sources = ((partition, _source_of(replicas, partition)) for partition in range(len(replicas)))
    return {partition: source.node for partition, source in sources if source is not None}


def let_go(replicas: Replicas) -> None:
    """What this node had before it joined is of no use any more where it is in sync now, and
    nowhere once it is in sync wherever it is an owner: to be called now and then.

    Where it is no owner, it may still be about to join: a node that comes back joins some
    partitions at a time.
    """
    rows = [replicas[partition].row for partition in range(len(replicas))]
    is_in_sync = {
        row.partition: bool(owner.in_sync)
        for row in rows
        if row is not None
        for owner in row.owners
        if replicas.is_mine(owner)
    }
    is_done = all(is_in_sync.values())
    for partition in range(len(replicas)):
        if is_in_sync.get(partition, is_done):
            replicas[partition].former.let_go()


def copy(
    replicas: Replicas,
    lock: AbstractContextManager[object],
    partition: int,
    token: bytes,
    next_number: Callable[[], int],
    pace: Pace,
) -> Operation[Outcome]:
    """Copy one partition (N6).

    It ends early, without a join, when there is nothing to copy any more; what came so far is kept
    as long as the join lasts, and does no harm.

    Args:
        lock: guards the replicas; taken around each look at them, never while waiting.
        next_number: a new request id.
        pace: that of all copies of this node.
    """
    return _fetch(
        replicas, lock, partition, token, next_number, pace, _source_of, _former, replicas.merge
    )


def to_gather(replicas: Replicas) -> list[int]:
    """The partitions that this node is to open, once it has what their other owners have, whose
    logs do not end whole either (N2a)."""
    return [p for p in range(len(replicas)) if _others(replicas, p) is not None]


def _others(replicas: Replicas, partition: int) -> tuple[int, ...] | None:
    row = replicas[partition].row
    if row is None or not (replicas[partition].is_doubtful and replicas.is_awaited(partition)):
        return None
    first, *others = [owner.node for owner in row.owners if owner.in_sync]
    return tuple(others) if first == replicas.node else None


def gather(
    replicas: Replicas,
    lock: AbstractContextManager[object],
    partition: int,
    token: bytes,
    next_number: Callable[[], int],
    pace: Pace,
) -> Operation[Join | None]:
    """Take over what other owners have of a partition that is not open, where it is newer (N2a).
    None: it need not be done any more. For the arguments see copy."""
    join = None
    with lock:
        others = _others(replicas, partition)
        if others is not None:
            join = Join(partition, replicas[partition].join_epoch)
    for other in others or ():
        source_of = partial(_gathered_from, other)
        take = partial(_take_gathered, replicas)
        outcome = yield from _fetch(
            replicas, lock, partition, token, next_number, pace, source_of, _own, take
        )
        join = outcome.join
        if join is None:
            break
    return join


def _gathered_from(node: int, replicas: Replicas, partition: int) -> _Source | None:
    """Another owner of a partition that this node is to open; None if that is not to be any
    more."""
    row = replicas[partition].row
    if row is None or node not in (_others(replicas, partition) or ()):
        return None
    return _Source(node, 0, replicas[partition].join_epoch, row)


def _take_gathered(replicas: Replicas, replica: Replica, key: bytes, entry: bytes) -> None:
    """N7: what is not here, and not above the floor, was deleted here; only the other owner's log
    has lost that."""
    if replica.entries.get(key) is not None or entry[:VERSION_SIZE] > replica.floor:
        replicas.merge(replica, key, entry)


def _fetch(
    replicas: Replicas,
    lock: AbstractContextManager[object],
    partition: int,
    token: bytes,
    next_number: Callable[[], int],
    pace: Pace,
    source_of: Callable[[Replicas, int], _Source | None],
    named: Callable[[Replica, bytes], dict[bytes, bytes]],
    take: Callable[[Replica, bytes, bytes], None],
) -> Operation[Outcome]:
    """Get all that a source has of a partition. ``named(replica, after)`` is what the source need
    not send if it has the same: entries of the next keys; ``take(replica, key, entry)`` stores
    one."""
    received: dict[bytes, bool] = {}  # key -> whether its entry was here already
    after = b""
    previous: tuple[int, int, int] | None = None
    patience_s = PATIENCE_S
    attempt = 0
    while True:
        with lock:
            pause_s = pace.pause_before()
        yield Pause(pause_s)
        with lock:
            source = source_of(replicas, partition)
            if source is not None and source[:3] != previous:
                previous, after = source[:3], b""  # another source: begin again
                received.clear()
            former = {} if source is None else named(replicas[partition], after)
        if source is None:
            return _outcome(received, None)
        request_id = next_number()
        frame = copy_frame(Copy(token, replicas.node, source.row, after, ()), former, request_id)
        (reply,) = yield Limited(((source.node,), request_id, frame), patience_s)
        if reply[0] != Copied.kind or isinstance(reply, Lost):
            patience_s = _patience_after(reply, patience_s)
            # It may not have its map yet, or be dead, or our row is old: the next map will tell.
            yield Pause(min(_PAUSE_FIRST_S * 2 ** min(attempt, 10), _PAUSE_MAX_S))
            attempt += 1
            continue
        attempt = 0
        batch = taken_apart(reply[3], after, former)
        with lock:
            pace.came(batch.size)
            after, is_last = _take_batch(replicas, partition, source, after, batch, received, take)
        if is_last:
            return _outcome(received, Join(partition, source.join_epoch))


def _patience_after(reply: Reply, patience_s: float) -> float:
    is_late = isinstance(reply, Lost) and isinstance(reply.error, DeadlineExceeded)
    return min(2 * patience_s, _PATIENCE_MAX_S) if is_late else patience_s


def copy_frame(request: Copy, former: Mapping[bytes, bytes], request_id: int) -> bytes:
    """The request, with these entries named."""
    held = pack_held({key: identity(entry) for key, entry in former.items()})
    body = encode(request)[messages.HEADER_SIZE : -COUNT.size] + held
    return HEADER_WORDS.pack(_COPY, request_id, len(body)) + body


def _outcome(received: Mapping[bytes, bool], join: Join | None) -> Outcome:
    present = sum(received.values())
    return Outcome(len(received) - present, present, join)


def _former(replica: Replica, after: bytes) -> dict[bytes, bytes]:
    """What we had of the next keys before we joined: not so much that others wait for it."""
    return _some(replica.former.from_key(after + b"\0", KEYS_A_REPLY_MAX), replica.former.get)


def _own(replica: Replica, after: bytes) -> dict[bytes, bytes]:
    """The same of what we have."""
    keys = replica.keys.from_key(after + b"\0", KEYS_A_REPLY_MAX)
    return _some(keys or (), replica.entries.get)


def _some(keys: Iterable[bytes], entry_of: Callable[[bytes], bytes | None]) -> dict[bytes, bytes]:
    entries = {}
    size = 0
    for key in keys:
        entry = entry_of(key)
        if entry is not None:
            entries[key] = entry
            size += len(key) + len(entry)
            if size > HELD_SIZE:
                break
    return entries


class _Copied(NamedTuple):
    """A COPIED. Each entry is whole, and goes with whether it was here already."""

    join_epoch: int
    is_last: bool
    floor: bytes
    entries: list[tuple[bytes, bytes, bool]]

    @property
    def size(self) -> int:
        """Bytes of all entries. Those that were here count like those that were moved: they are
        stored anew, and to compare them takes both ends as long as to move them."""
        return sum(len(key) + len(entry) for key, entry, _ in self.entries)


def taken_apart(body: bytes, after: bytes, former: Mapping[bytes, bytes]) -> _Copied:
    """Raises MALFORMED, and nothing of the batch is stored then.

    Args:
        after, former: what was asked for, and what was named.
    """
    if len(body) < _COPIED_HEAD.size:
        raise malformed("COPIED is too short")
    join_epoch, is_last, floor = _COPIED_HEAD.unpack_from(body)
    pairs = take_apart(body, _COPIED_HEAD.size)
    if pairs and pairs[-1][0] <= after:
        raise malformed("COPIED that does not go on")
    entries = []
    for key, entry in pairs:
        is_here = len(entry) == FLAGS_SIZE
        if is_here:
            entry = _with_flags(former.get(key), entry)
        elif len(entry) < ENTRY_HEAD_SIZE:
            raise malformed("COPIED with an entry that is too short")
        entries.append((key, entry, is_here))
    return _Copied(join_epoch, bool(is_last), floor, entries)


def _with_flags(ours: bytes | None, flags: bytes) -> bytes:
    """What we had, as it is at the source."""
    if ours is None:
        raise malformed("COPIED with the flags of an entry that was not named")
    if (ours[FLAGS_AT] ^ flags[0]) & ~COMMITTED:
        raise malformed("COPIED with the flags of another entry than was named")
    return ours[:FLAGS_AT] + flags + ours[ENTRY_HEAD_SIZE:]


def _take_batch(
    replicas: Replicas,
    partition: int,
    source: _Source,
    after: bytes,
    batch: _Copied,
    received: dict[bytes, bool],
    take: Callable[[Replica, bytes, bytes], None],
) -> tuple[bytes, bool]:
    """Store one batch, and add its keys to those that were received; return its last key, and
    whether it was the last one. A batch of another join is ignored."""
    replica = replicas[partition]
    if not replica.join_epoch == source.join_epoch == batch.join_epoch:
        return b"", False
    for key, entry, is_here in batch.entries:
        take(replica, key, entry)
        received[key] = is_here
    if batch.is_last and batch.floor != _NO_FLOOR:
        _take_floor(replicas, replica, batch.floor, received)
    return batch.entries[-1][0] if batch.entries else after, batch.is_last


def _take_floor(
    replicas: Replicas, replica: Replica, floor: bytes, received: Container[bytes]
) -> None:
    """N7: late writes of keys whose tombstones the source has dropped may have come here: they go
    too."""
    for key in list(replica.entries):
        entry = replica.entries.get(key)
        if key not in received and entry is not None and entry[:VERSION_SIZE] <= floor:
            replicas.drop(replica, key)
    replicas.raise_floor(replica, floor)


def report(
    token: bytes, node: int, joins: Iterable[Join], next_number: Callable[[], int]
) -> Operation[None]:
    """Tell the manager that this node has copied everything of these joins."""
    request_id = next_number()
    frame = encode(messages.InSync(token, node, tuple(joins)), request_id)
    patience_s = PATIENCE_S
    attempt = 0
    while True:
        (reply,) = yield Limited(((MANAGER,), request_id, frame), patience_s)
        if reply[0] == Noted.kind:
            return
        patience_s = _patience_after(reply, patience_s)
        yield Pause(min(_PAUSE_FIRST_S * 2 ** min(attempt, 10), _PAUSE_MAX_S))
        attempt += 1
