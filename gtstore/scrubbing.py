"""How the owners of a partition find out that a disk has changed what it holds: rule N10 of
docs/REPLICATION.md.

A pure operation of a node. It reads its own entries, a few at a time, so that a wrong checksum is
found though nobody reads what has it; and of each portion it asks the owner before it in the row
what is not the same there. That is COPY, in which it names what it has: nothing that is the same is
sent.

Only what is committed and quiet on both sides counts: that must be the same, or newer, at every
owner in sync. What differs is looked at again after a pause, as something may just have been under
way between the two; only what differs each time is told.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Final, NamedTuple

from .copying import PATIENCE_S, copy_frame, taken_apart
from .operations import Limited, Lost, Operation, Pause
from .read_modify_write import FLAGS_AT, VERSION_SIZE
from .replica import Replicas
from .wire.messages import COMMITTED, KIB, TOMBSTONE, Copied, Copy, Row

QUIET_S: Final = 60
"""What was written since may still be on its way to somebody."""
PORTION_KEYS: Final = 16
_PORTION_SIZE: Final = 64 * KIB
"""A portion is read under the lock, and every client waits for that."""
_LOOKS: Final = 3
_LOOK_AGAIN_S: Final = 1.0
_SECOND_US: Final = 1_000_000


class Wrong(enum.Enum):
    """Who does not hold what it must."""

    HERE = "this node"
    THERE = "the other owner"
    UNKNOWN = "nobody can tell"


class Difference(NamedTuple):
    """A key of which two owners do not hold the same; ``version`` is the higher one's."""

    key: bytes
    version: bytes
    wrong: Wrong


class Portion(NamedTuple):
    """What was looked at: up to which key, or None at the partition's end; who the other owner is,
    or 0 if there is none to compare with; and what was found."""

    after: bytes | None
    other: int
    differences: frozenset[Difference]


def look(
    replicas: Replicas,
    lock: AbstractContextManager[object],
    partition: int,
    after: bytes,
    token: bytes,
    next_number: Callable[[], int],
    now_us: Callable[[], int],
) -> Operation[Portion]:
    """Look at the next entries above a key.

    Raises StoreDamaged for one with a wrong checksum.

    Args:
        lock: guards the replicas; taken around each look at them, never while waiting.
        next_number: a new request id.
        now_us: cluster time.
    """
    look_once = partial(_look_once, replicas, lock, partition, after, token, next_number, now_us)
    portion = yield from look_once()
    for _ in range(_LOOKS - 1):
        if not portion.differences:
            break
        yield Pause(_LOOK_AGAIN_S)
        again = yield from look_once()
        portion = portion._replace(differences=portion.differences & again.differences)
    return portion


def _look_once(
    replicas: Replicas,
    lock: AbstractContextManager[object],
    partition: int,
    after: bytes,
    token: bytes,
    next_number: Callable[[], int],
    now_us: Callable[[], int],
) -> Operation[Portion]:
    with lock:
        row, other, is_mine = _owner_before(replicas, partition)
        if not is_mine or row is None:
            return Portion(None, 0, frozenset())
        own, end = _own(replicas, partition, after)
        floor, join_epoch = replicas[partition].floor, replicas[partition].join_epoch
    if not other:
        return Portion(end, 0, frozenset())
    request_id = next_number()
    frame = copy_frame(Copy(token, replicas.node, row, after, ()), own, request_id)
    (reply,) = yield Limited(((other,), request_id, frame), PATIENCE_S)
    if reply[0] != Copied.kind or isinstance(reply, Lost):
        return Portion(end, 0, frozenset())  # another time
    copied = taken_apart(reply[3], after, own)
    if copied.join_epoch != join_epoch:
        return Portion(end, 0, frozenset())  # we have left, and joined anew: our row is old
    theirs = {key: None if is_here else entry for key, entry, is_here in copied.entries}
    ends = [key for key in (end, None if copied.is_last else copied.entries[-1][0]) if key]
    bound = min(ends, default=None)
    if bound is not None:
        own = {key: entry for key, entry in own.items() if key <= bound}
        theirs = {key: entry for key, entry in theirs.items() if key <= bound}
    quiet_before = (now_us() - QUIET_S * _SECOND_US).to_bytes(8, "big")
    return Portion(bound, other, frozenset(differences(own, theirs, floor, quiet_before)))


def _owner_before(replicas: Replicas, partition: int) -> tuple[Row | None, int, bool]:
    """The partition's row, and the owner in sync before this one, or 0; and whether this node is an
    owner in sync itself."""
    row = replicas[partition].row
    other = 0
    for owner in row.owners if row is not None else ():
        if replicas.is_mine(owner):
            return row, other, bool(owner.in_sync) and not replicas[partition].is_suspended
        other = owner.node
    return row, 0, False


def _own(
    replicas: Replicas, partition: int, after: bytes
) -> tuple[dict[bytes, bytes], bytes | None]:
    """The next entries, and the last one's key, or None if there are no more."""
    entries: dict[bytes, bytes] = {}
    size = 0
    keys = replicas[partition].keys.from_key(after + b"\0", PORTION_KEYS) or []
    for key in keys:
        entries[key] = entry = replicas.entry_of(partition, key)
        size += len(key) + len(entry)
        if size > _PORTION_SIZE:
            return entries, key
    return entries, keys[-1] if len(keys) == PORTION_KEYS else None


def differences(
    own: Mapping[bytes, bytes],
    theirs: Mapping[bytes, bytes | None],
    floor: bytes,
    quiet_before: bytes,
) -> list[Difference]:
    """What two owners do not hold in common of the same keys.

    Args:
        own: our entries.
        theirs: those of the owner before us; None for one that is the same.
        floor: ours (N7).
        quiet_before: the time before which a version is quiet, its eight bytes.
    """
    found = []
    for key in own.keys() | theirs.keys():
        ours, other = own.get(key), theirs.get(key, b"")
        if other is None or any(entry and entry >= quiet_before for entry in (ours, other)):
            continue
        wrong = _judge(ours, other or None, floor)
        if wrong is not None:
            found.append(Difference(key, max(ours or b"", other)[:VERSION_SIZE], wrong))
    return found


def _judge(ours: bytes | None, theirs: bytes | None, floor: bytes) -> Wrong | None:
    """Who is wrong, if anybody: what one owner in sync has committed, every other one holds, or
    something newer, or it has dropped a tombstone that is newer (invariants 4 and 5)."""
    our_version, their_version = (ours or b"")[:VERSION_SIZE], (theirs or b"")[:VERSION_SIZE]
    higher = ours if our_version > their_version else theirs
    assert higher is not None
    if not higher[FLAGS_AT] & COMMITTED:
        return None  # its primary sees to it (N8)
    if our_version == their_version:
        return Wrong.UNKNOWN
    if higher[FLAGS_AT] & TOMBSTONE and not (ours and theirs):
        return None  # the other one has dropped it
    if higher is ours:
        return Wrong.THERE  # which knows its own floor
    return Wrong.UNKNOWN if ours is None and their_version <= floor else Wrong.HERE


def lacks(replicas: Replicas, partition: int, key: bytes, version: bytes) -> bool | None:
    """Whether this node does not hold what another owner has committed, and must have lost it: what
    DIFFERS says. None: nobody can tell. The lock is held."""
    _, _, is_mine = _owner_before(replicas, partition)
    if not is_mine:
        return False
    replica = replicas[partition]
    stored = replica.entries.get(key)
    if stored is not None:
        return stored[:VERSION_SIZE] < version
    return None if version <= replica.floor else True
