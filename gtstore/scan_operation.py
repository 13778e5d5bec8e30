"""A client's scan: every key that has a value, or those with a prefix, partition by partition.

What it promises: a key that has a value all the time from the scan's begin to its end is returned,
and no key twice; each value is one that a get of that key could have returned at some moment in
between. Keys that come or go meanwhile may be there or not, and nothing holds for several keys
together: a scan is no snapshot.

Why that holds, whatever happens to nodes: a partition's keys are asked for in the order of their
bytes, each time above the last one, of the partition's primary under its list_epoch, which has
every key whose put is complete (C1). A change of the owners makes no difference, because the next
primary has the same keys in the same order. An entry that is not complete is believed only as a get
believes it, by doing one (C5).

This module knows no sockets, clocks or threads; see operations.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from . import operations
from .errors import OperationFailed
from .keyed_entries import take_apart
from .operations import Lost, Operation, Source
from .placement import Routes, key_in
from .read_modify_write import FLAGS_AT
from .results import ScannedEntry, Version
from .wire import messages
from .wire.codec import ENTRY_HEAD, encode
from .wire.fields import malformed
from .wire.messages import ENTRY_HEAD_SIZE, EXPIRES, KIB, SCAN_SIZE, TOMBSTONE, Scan, Scanned

PARTITIONS_AT_ONCE: Final = 8
"""Each of them may have one answer's keys and values in memory, and one long value."""
_GET_COST: Final = KIB
"""What a key that has to be gotten counts, besides its bytes: one step must not have many such."""
_AFTER_AT: Final = 3  # in SCANNED: after is_last and its own size


class _Cursor:
    """How far the scan has got in one partition."""

    __slots__ = ("after", "is_done", "partition")

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.after = b""
        self.is_done = False


class Scanner:
    """One scan. The map must be known.

    ``steps`` returns the next operations, to be run at once; each returns some entries of one
    partition, in the order of their keys. There are no more when ``steps`` returns none. A step
    that failed may be taken again: the next ``steps`` begins where it began.

    Args:
        prefix: only keys that begin with it; empty: all.
        with_values: False leaves the values on the nodes.
        wall_lead_us: how far the caller's wall clock is ahead of cluster time: its expiries are by
            that.
    """

    def __init__(
        self, routes: Routes, prefix: bytes, with_values: bool, wall_lead_us: int = 0
    ) -> None:
        self._routes = routes
        self._prefix = prefix
        self._with_values = with_values
        self._wall_lead_us = wall_lead_us
        self._cluster_id = routes.cluster_id
        self._waiting: Iterator[int] = iter(range(routes.partitions))
        self._cursors: list[_Cursor] = []

    def steps(self, source: Source) -> list[Operation[list[ScannedEntry]]]:
        self._cursors = [cursor for cursor in self._cursors if not cursor.is_done]
        while len(self._cursors) < PARTITIONS_AT_ONCE:
            partition = next(self._waiting, None)
            if partition is None:
                break
            self._cursors.append(_Cursor(partition))
        return [self._step(source, cursor) for cursor in self._cursors]

    def _step(self, source: Source, cursor: _Cursor) -> Operation[list[ScannedEntry]]:
        """Some entries above the cursor, none only at the partition's end; move the cursor.

        Raises OperationFailed if there is another cluster now, Unavailable if no owner is alive,
        DeadlineExceeded if the time was up.
        """
        after = cursor.after
        found: list[ScannedEntry] = []
        is_last = False
        while not found and not is_last:
            is_last, reply_after, told = yield from self._ask(source, cursor.partition, after)
            size = 0
            for at, (key, entry) in enumerate(told):
                if not entry:
                    gotten = yield from operations.read(self._routes, source, key, None)
                    entry = gotten[0] if gotten else b""
                    size += len(entry) + _GET_COST
                if entry and not entry[FLAGS_AT] & TOMBSTONE:
                    found.append(self._scanned_entry(key, entry))
                if size > SCAN_SIZE and at + 1 < len(told):
                    # The rest will be asked for again.
                    is_last, reply_after = False, key
                    break
            after = reply_after
        cursor.after, cursor.is_done = after, is_last
        return found

    def _ask(
        self, source: Source, partition: int, after: bytes
    ) -> Operation[tuple[bool, bytes, list[tuple[bytes, bytes]]]]:
        """One SCANNED of the partition's primary, taken apart: is_last, after, keys."""
        routes = self._routes
        attempt = 0
        while True:
            if routes.cluster_id != self._cluster_id:
                raise OperationFailed("there is another cluster now: begin the scan again")
            route = routes.of(partition)
            request_id = source.next_number()
            request = Scan(route.epoch, partition, after, self._prefix, int(self._with_values))
            replies = yield route.primary, request_id, encode(request, request_id)
            reply = replies[0]
            if reply[0] == Scanned.kind and not isinstance(reply, Lost):
                return self._taken_apart(after, reply[3])
            # What it asks the manager it asks by a key.
            key = key_in(partition, routes.hash_code)
            yield from operations.recover(routes, source, key, route, replies, attempt)
            attempt += 1

    def _taken_apart(
        self, after: bytes, body: bytes
    ) -> tuple[bool, bytes, list[tuple[bytes, bytes]]]:
        keys_at = _AFTER_AT + int.from_bytes(body[1:_AFTER_AT], "big")
        reply_after = body[_AFTER_AT:keys_at]
        told = take_apart(body, keys_at)
        last = after
        for key, entry in told:
            if key <= last or not key.startswith(self._prefix):
                raise malformed("SCANNED with a key that was not asked for, or is not in order")
            if 0 < len(entry) < ENTRY_HEAD_SIZE:
                raise malformed(f"SCANNED with an entry of {len(entry)} bytes")
            last = key
        if reply_after < last or len(reply_after) > messages.KEY_SIZE_MAX:
            raise malformed("SCANNED that does not go on")
        return bool(body[0]), reply_after, told

    def _scanned_entry(self, key: bytes, entry: bytes) -> ScannedEntry:
        time, client, _, flags = ENTRY_HEAD.unpack_from(entry)
        value_at, expiry_us = ENTRY_HEAD_SIZE, None
        if flags & EXPIRES:
            value_at += 8
            if len(entry) < value_at:
                raise malformed("an entry that is too short for its expiry")
            at_us = int.from_bytes(entry[ENTRY_HEAD_SIZE:value_at], "big")
            expiry_us = max(0, at_us + self._wall_lead_us)
        value = entry[value_at:] if self._with_values else b""
        return ScannedEntry(key, value, Version(time, client), expiry_us)
