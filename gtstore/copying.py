"""How a node that joins a partition gets what is stored there: rule N6 of docs/REPLICATION.md.

Both ends, without sockets, clocks or threads. ``answer`` is the source's: it serves the owner that
follows it in the partition's list. ``copy`` is the copier's: an operation like a client's, which
asks for one batch after the other; ``report`` then tells the manager. Meanwhile the copier takes
part in every write, so keys that arrive during the scan need no visit, and nothing has to stand
still. Before each batch it pauses, so that clients get their share of the processors (``Pace``).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

from .keyed_entries import Batch, take_apart
from .operations import MANAGER, Lost, Operation, Pause
from .read_modify_write import VERSION_SIZE
from .replica import Replica, Replicas
from .wire import messages
from .wire.codec import HEADER_WORDS, encode, head_word
from .wire.fields import malformed
from .wire.messages import (
    COPY_SIZE,
    ENTRY_HEAD_SIZE,
    KEYS_A_REPLY_MAX,
    Copied,
    Copy,
    Join,
    Noted,
    Row,
)

_COPIED_HEAD: Final = struct.Struct(">QB16s")  # a test holds it against Copied's fields
_COPIED: Final = head_word(Copied.kind)
BYTES_A_SECOND: Final = 19 * messages.MIB // 4
"""What a node asks for at most, with all that it copies at once (``Pace``). bench/fail_over.py
measures what clients feel of it."""
_PAUSE_FIRST_S: Final = 0.005
_PAUSE_MAX_S: Final = 0.5


# --- the source ----------------------------------------------------------------------------------


def answer(replicas: Replicas, request_id: int, request: Copy) -> bytes:
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
    if not join_epoch:
        return replicas.refuse(request_id, partition, 0)
    replica = replicas[partition]
    keys = replica.keys.from_key(request.after + b"\0", KEYS_A_REPLY_MAX)  # the next possible key
    batch = Batch(COPY_SIZE)
    is_last = keys is not None and len(keys) < KEYS_A_REPLY_MAX
    for key in keys or ():
        entry = replica.entries.get(key)
        assert entry is not None
        if not batch.add(key, entry):
            is_last = False
            break
    head = _COPIED_HEAD.pack(join_epoch, is_last, replica.floor * is_last)
    entries = batch.packed()
    header = HEADER_WORDS.pack(_COPIED, request_id, len(head) + len(entries))
    return b"".join((header, head, entries))


# --- the copier ----------------------------------------------------------------------------------


class _Source(NamedTuple):
    """From whom a partition is to be copied: the owner before ours, and as what we joined."""

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


def pending(replicas: Replicas) -> dict[int, int]:
    """The partitions that this node can copy now, and the node that each is copied from."""
    sources = ((partition, _source_of(replicas, partition)) for partition in range(len(replicas)))
    return {partition: source.node for partition, source in sources if source is not None}


def copy(
    replicas: Replicas,
    lock: AbstractContextManager[object],
    partition: int,
    token: bytes,
    next_number: Callable[[], int],
    pace: Pace,
) -> Operation[tuple[int, Join | None]]:
    """Copy one partition; return how many entries came from the source, and as what we have them.

    It ends early, with None, when there is nothing to copy any more; what came so far is kept as
    long as the join lasts, and does no harm.

    Args:
        lock: guards the replicas; taken around each look at them, never while waiting.
        next_number: a new request id.
        pace: that of all copies of this node.
    """
    received: set[bytes] = set()
    after = b""
    previous: tuple[int, int, int] | None = None
    attempt = 0
    while True:
        with lock:
            pause_s = pace.pause_before()
        yield Pause(pause_s)
        with lock:
            source = _source_of(replicas, partition)
        if source is None:
            return len(received), None
        if source[:3] != previous:
            previous, after = source[:3], b""  # another source: begin again
            received.clear()
        request = Copy(token, replicas.node, source.row, after)
        request_id = next_number()
        (reply,) = yield (source.node,), request_id, encode(request, request_id)
        if reply[0] != Copied.kind or isinstance(reply, Lost):
            # It may not have its map yet, or be dead, or our row is old: the next map will tell.
            yield Pause(min(_PAUSE_FIRST_S * 2 ** min(attempt, 10), _PAUSE_MAX_S))
            attempt += 1
            continue
        attempt = 0
        with lock:
            pace.came(len(reply[3]))
            after, is_last = _take_batch(replicas, partition, source, after, reply[3], received)
        if is_last:
            return len(received), Join(partition, source.join_epoch)


def _take_batch(
    replicas: Replicas,
    partition: int,
    source: _Source,
    after: bytes,
    body: bytes,
    received: set[bytes],
) -> tuple[bytes, bool]:
    """Store one batch, and add its keys to those that were received; return its last key, and
    whether it was the last one. A batch of another join is ignored."""
    if len(body) < _COPIED_HEAD.size:
        raise malformed("COPIED is too short")
    join_epoch, is_last, floor = _COPIED_HEAD.unpack_from(body)
    entries = take_apart(body, _COPIED_HEAD.size)
    if not all(len(entry) >= ENTRY_HEAD_SIZE for _, entry in entries):
        raise malformed("COPIED with an entry that is too short")
    last = entries[-1][0] if entries else after
    if last < after or (entries and last == after):
        raise malformed("COPIED that does not go on")
    replica = replicas[partition]
    if not replica.join_epoch == source.join_epoch == join_epoch:
        return b"", False
    for key, entry in entries:
        replicas.merge(replica, key, entry)
        received.add(key)
    if is_last:
        _take_floor(replicas, replica, floor, received)
    return last, bool(is_last)


def _take_floor(replicas: Replicas, replica: Replica, floor: bytes, received: set[bytes]) -> None:
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
    attempt = 0
    while True:
        (reply,) = yield (MANAGER,), request_id, frame
        if reply[0] == Noted.kind:
            return
        yield Pause(min(_PAUSE_FIRST_S * 2 ** min(attempt, 10), _PAUSE_MAX_S))
        attempt += 1
