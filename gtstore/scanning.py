"""What a node answers to a scan (PROTOCOL.md section 10.13); scan_operation.py is the client's end.

Only the primary answers, under the list_epoch at which a GET would be answered (N1). It holds the
lock for one answer of bounded size at a time, so that a scan never keeps others waiting, and keeps
nothing about it: the client says how far it has got.
"""

from __future__ import annotations

import struct
from typing import Final

from .keyed_entries import Batch
from .read_modify_write import FLAGS_AT
from .replica import Replicas
from .wire.codec import HEADER_WORDS, head_word
from .wire.messages import (
    COMMITTED,
    ENTRY_HEAD_SIZE,
    EXPIRES,
    KEYS_A_REPLY_MAX,
    SCAN_SIZE,
    TOMBSTONE,
    Scan,
    Scanned,
)

_SCANNED: Final = head_word(Scanned.kind)
_HEAD: Final = struct.Struct(">BH")  # a test holds it against Scanned's fields


def answer(replicas: Replicas, request_id: int, request: Scan) -> bytes:
    """The reply to SCAN; the replicas' lock is held.

    A key is told with its entry if that is complete, so that a reader may believe it, and not long;
    complete tombstones are left out. Of any other key only the name is told, also where the pending
    entry is a tombstone: until that is complete, the key may still have its value (C5).
    """
    partition = request.partition
    is_known = partition < len(replicas)
    if not is_known or request.epoch != replicas[partition].read_epoch:
        return replicas.refuse(request_id, partition, request.epoch)
    replica = replicas[partition]
    assert replica.row is not None
    is_single = len(replica.row.owners) == 1
    first = max(request.after + b"\0", request.prefix)  # the lowest key that may come next
    keys = replica.keys.from_key(first, KEYS_A_REPLY_MAX)
    is_last = keys is not None and len(keys) < KEYS_A_REPLY_MAX
    after = request.after
    batch = Batch(SCAN_SIZE)
    for key in keys or ():
        if not key.startswith(request.prefix):
            is_last = True
            break
        entry = replicas.look_up(replica, key)
        if entry is None:
            after = key
            continue  # its first write was not acknowledged yet
        flags = entry[FLAGS_AT]
        if not (is_single or flags & COMMITTED):
            entry = b""
        elif flags & TOMBSTONE:
            after = key
            continue
        elif not request.with_values:
            entry = entry[: ENTRY_HEAD_SIZE + (8 if flags & EXPIRES else 0)]
        elif len(entry) > SCAN_SIZE:
            entry = b""
        if not batch.add(key, entry):
            is_last = False
            break
        after = key
    head = _HEAD.pack(is_last, len(after)) + after
    entries = batch.packed()
    header = HEADER_WORDS.pack(_SCANNED, request_id, len(head) + len(entries))
    return b"".join((header, head, entries))
