"""What a node finds to be done among its own entries: rules N7, N8 and C8 of docs/REPLICATION.md.

A pure look at one partition at a time, at those of its keys that were stored since the last look,
or that it was not done with. What it finds pending for too long, the node sees to as a reader would
(operations.settle), so that a quiet partition becomes equal and committed on all its owners though
nobody reads it. Tombstones that everybody has known of for long are dropped.
"""

from __future__ import annotations

from .read_modify_write import FLAGS_AT, VERSION_SIZE, has_expired
from .replica import NEVER_SETTLED, Replica, Replicas
from .wire.messages import COMMITTED, SETTLE_AFTER_S, TOMBSTONE, TOMBSTONE_RETENTION_S

_SECOND_US = 1_000_000
_BACKUPS_WAIT = 10
"""How many times longer backups wait: most of what they hold as pending is complete, and the client
that wrote it has just not said so yet (operations.Source.owe)."""
_REMEMBERED_MIN = 256


def _most(replica: Replica) -> int:
    """How many keys are worth remembering: of more, a look at all costs not much more, and a set of
    them would take memory, where the entries may be on disk."""
    return _REMEMBERED_MIN + replica.stored // 8


def look_through(replicas: Replicas, partition: int, now_us: int) -> list[tuple[bytes, bytes]]:
    """Drop what may be dropped, and return the key and the version of each entry that is to be
    settled. The replicas' lock is held.

    Only an owner in sync does so: a syncing one is about to get what the others have.

    Args:
        now_us: cluster time (T1). Correctness does not depend on it, nor on the order in which the
            owners drop (N7): what is dropped raises the floor.
    """
    replica = replicas[partition]
    replica.keys.rest()
    if len(replica.unsettled) > _most(replica):
        replica.unsettled, replica.all_unsettled = set(), True
    row = replica.row
    mine = [owner for owner in row.owners if replicas.is_mine(owner)] if row else []
    if not mine or not mine[0].in_sync or replica.is_suspended:
        return []
    assert row is not None
    is_primary = mine[0] is row.owners[0]
    is_single = len(row.owners) == 1
    # N7: a floor that rose during a scan would take from the copier, with the last batch, what came
    # to source and copier meanwhile.
    may_drop = all(owner.in_sync for owner in row.owners)
    settle_after_s = SETTLE_AFTER_S if is_primary else SETTLE_AFTER_S * _BACKUPS_WAIT
    settle_before = (now_us - settle_after_s * _SECOND_US).to_bytes(8, "big")
    drop_before = (now_us - TOMBSTONE_RETENTION_S * _SECOND_US).to_bytes(8, "big")
    pending: list[tuple[bytes, bytes]] = []
    old: list[bytes] = []
    expired: list[bytes] = []
    still: set[bytes] = set()  # to be looked at again
    for key in replica.entries if replica.all_unsettled else replica.unsettled:
        entry = replica.entries.get(key)
        if entry is None:
            continue  # it was dropped
        flags = entry[FLAGS_AT]
        if flags & NEVER_SETTLED or not (flags & COMMITTED or is_single):
            still.add(key)
        if not flags & COMMITTED and not is_single:
            if entry < settle_before:  # it begins with the time of its version
                pending.append((key, entry[:VERSION_SIZE]))
        elif flags & TOMBSTONE:
            if may_drop and entry < drop_before:
                old.append(key)
        elif is_primary and has_expired(entry, now_us):
            expired.append(key)
    is_short = len(still) <= _most(replica)
    replica.unsettled, replica.all_unsettled = still if is_short else set(), not is_short
    for key in old:
        entry = replica.entries.get(key)
        assert entry is not None
        replicas.raise_floor(replica, entry[:VERSION_SIZE])
        replicas.drop(replica, key)
    for key in expired:
        entry = replica.entries.get(key)
        assert entry is not None
        replicas.expire(replica, key, entry)
    return pending
