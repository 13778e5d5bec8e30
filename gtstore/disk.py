"""Entries on disk: what is stored waits in memory until it was committed together with others.

A put may be acknowledged only when it is on disk (N2), and a sync takes as long for a hundred
entries as for one. So what is stored is *staged*: the requests after it find it, and whoever was
answered because of it waits. A committer (committer.py) takes what is staged as one *batch*,
commits it with one sync, and then lets the answers go. Meanwhile the next batch is gathered.

Readers are *shown* only what is committed: as long as a write's answer has not left, it is as if it
had not been done, so a GET never waits for the disk.

What is committed is in a Store: names and values, both bytes, changed in atomic steps. The names:

- partition (u32), generation (u32), key: an entry
- ``P``, partition (u32): its generation, and Remembered
- ``M``: marks, which tell this disk from an older copy of itself
- other letters: what log_store.py keeps of the store itself

Where a value stays it gets a checksum of its name and of itself (``sealed``), whatever it is. If
that of a partition's record is wrong, it is as if there were none: the partition begins with a
generation of which nothing is there, and nothing is remembered of it.

To discard a partition's entries is to count its generation up: a step of its own as short as any
other. One older generation stays readable until it is let go of (``FormerEntries``); what is left
of the others is removed when there is nothing else to do (``garbage``).

This module knows no threads: the caller holds one lock around every call, but ``sealed`` and
``Store.commit``.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from heapq import merge
from itertools import chain, islice, takewhile
from typing import Any, Final, Protocol

from .engine import Partition, Remembered
from .errors import RecordDamaged, StoreDamaged
from .wire.fields import MARK_SIZE
from .wire.messages import MARKS_MAX, Join

Changes = Mapping[bytes, bytes | None]
"""Names, and their new values; None removes one."""

_PREFIX: Final = struct.Struct(">II")
_CHECKSUM: Final = struct.Struct(">I")
_STATE_NAME: Final = struct.Struct(">sI")
_STATE: Final = struct.Struct(">IQ16sQQQ?")
_MARKS: Final = b"M"
_NO_FLOOR: Final = bytes(16)
_GENERATION_MAX: Final = 0xFFFF_FFFF
_GARBAGE_AT_ONCE: Final = 1000
_ABSENT: Final = b""  # no entry is that short


class Store(Protocol):
    """What is on disk. ``get`` and ``names`` see what was committed before the last ``refresh``;
    the names are those with a prefix, from ``first`` on, in byte order.

    ``commit`` makes all changes or none of them, and returns when they are on disk. It raises
    StoreFull if there is no room for them, StoreFailed if the disk fails. It may run while the
    others are called; one commit at a time. ``has_room`` says whether there is room for more.

    ``amend`` replaces a value so that ``get`` sees it at once, and a crash may take it back; it
    returns False if that is not possible.
    """

    def get(self, name: bytes, /) -> bytes | None: ...
    def names(self, prefix: bytes, first: bytes = b"", /) -> Iterator[bytes]: ...
    def commit(self, changes: Changes, /) -> None: ...
    def refresh(self) -> None: ...
    def amend(self, name: bytes, value: bytes, /) -> bool: ...
    def has_room(self) -> bool: ...
    def close(self) -> None: ...


class DiskEngine:
    """A node's entries in a Store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._staged: dict[bytes, bytes | None] = {}
        self._taken: dict[bytes, bytes | None] = {}
        """The batch that is being committed."""
        self._changed: dict[int, DiskEntries] = {}
        """Partitions with something staged."""
        self._partitions: list[DiskEntries] = []
        self._may_have_garbage = True
        self.batch = 1
        """The number of the batch that is being gathered."""
        self.committed = 0
        """All batches up to this one are on disk."""
        self.is_full = False
        """Whether writes are to be refused, because there is no room for them."""
        self.on_depend: Callable[[int], None] = lambda _: None
        """Told of the batch that has to be on disk before the answer that is being made leaves."""

    def partition(self, number: int) -> Partition:
        state = _state_of(self._store, _STATE_NAME.pack(b"P", number))
        remembered = None
        if state is not None:
            generation, join_epoch, floor, *counts = state
            remembered = Remembered(join_epoch, b"" if floor == _NO_FLOOR else floor, *counts)
        else:
            generation = _unused_generation(self._store, number)
        entries = DiskEntries(self, self._store, number, generation)
        if generation and state is None:
            self.note(entries)
        self._partitions.append(entries)
        note = partial(self.note, entries)
        amend, former = entries.amend, entries.former
        return Partition(entries, entries, entries.shown, amend, remembered, note, former)

    def depend(self) -> None:
        if self._staged or self._changed:
            self.on_depend(self.batch)
        elif self._taken:
            self.on_depend(self.batch - 1)

    # --- batches ---------------------------------------------------------------------------------

    @property
    def has_staged(self) -> bool:
        return bool(self._staged or self._changed)

    def take(self, remembered: Callable[[int], Remembered]) -> Changes:
        """End the batch that is being gathered, and return what is to be committed. ``remembered``
        tells a partition's state as of now."""
        assert not self._taken
        staged = self._staged
        for number, entries in self._changed.items():
            # An absent floor is packed as zeros, and these are taken for one again.
            staged[entries.state_name] = _STATE.pack(entries.generation, *remembered(number))
        self._changed = {}
        self._taken, self._staged = self._staged, {}
        self.batch += 1
        return self._taken

    def settle(self) -> None:
        """The batch that was taken is on disk, and the store shows it."""
        self._taken = {}
        self.committed = self.batch - 1

    def put_back(self) -> None:
        """The batch that was taken could not be committed: it is a part of the next one. What is in
        it was not acknowledged, and may happen yet."""
        self._staged = {**self._taken, **self._staged}
        self._taken = {}

    def garbage(self) -> Changes:
        """Some names of older generations that nobody needs, to be removed; none while anything is
        staged, since what was discarded must be so on disk first."""
        if not self._may_have_garbage or self.has_staged or self._taken:
            return {}
        found: dict[bytes, bytes | None] = {}
        for entries in self._partitions:
            for name in entries.older_names():
                if len(found) == _GARBAGE_AT_ONCE:
                    return found
                found[name] = None
        self._may_have_garbage = bool(found)
        return found

    # --- for the partitions ----------------------------------------------------------------------

    def note(self, entries: DiskEntries) -> None:
        """Something of this partition's has changed."""
        self._changed[entries.number] = entries

    def stage(self, entries: DiskEntries, name: bytes, entry: bytes | None) -> None:
        self._staged[name] = entry
        self._changed[entries.number] = entries

    def amend(self, name: bytes, entry: bytes) -> None:
        """Without a commit of its own, where that is possible."""
        is_waiting = name in self._staged or name in self._taken
        if is_waiting or not self._store.amend(name, entry):
            self._staged[name] = entry

    def found(self, name: bytes) -> bytes | None:
        """What the next request finds: staged, or else taken, or else committed."""
        entry = self._staged.get(name, _ABSENT)
        if entry is _ABSENT:
            entry = self._taken.get(name, _ABSENT)
        return self._store.get(name) if entry is _ABSENT else entry

    def names(self, prefix: bytes, first: bytes = b"") -> Iterator[bytes]:
        """From ``first`` on, in byte order."""
        names = self._store.names(prefix, first)
        return changed_names(names, {**self._taken, **self._staged}, prefix, first)

    def discard(self, entries: DiskEntries) -> None:
        entries.former.keep(entries.generation)
        entries.generation += 1
        self.collect()
        self.note(entries)

    def collect(self) -> None:
        """There is something of which nobody has need any more."""
        self._may_have_garbage = True


class DiskEntries:
    """The entries of one partition, and their keys. See Entries and Keys."""

    def __init__(self, engine: DiskEngine, store: Store, number: int, generation: int) -> None:
        self.number = number
        self._engine = engine
        self._store = store
        self._get = store.get
        self._generation = generation
        self._prefix = _PREFIX.pack(number, generation)
        self.former = FormerEntries(engine, store, number)
        self.state_name: Final = _STATE_NAME.pack(b"P", number)

    @property
    def generation(self) -> int:
        return self._generation

    @generation.setter
    def generation(self, generation: int) -> None:
        self._generation = generation
        self._prefix = _PREFIX.pack(self.number, generation)

    def get(self, key: bytes) -> bytes | None:
        return self._engine.found(self._prefix + key)

    def shown(self, key: bytes) -> bytes | None:
        """As it is on disk."""
        return self._get(self._prefix + key)

    def __setitem__(self, key: bytes, entry: bytes) -> None:
        self._engine.stage(self, self._prefix + key, entry)

    def amend(self, key: bytes, entry: bytes) -> None:
        self._engine.amend(self._prefix + key, entry)

    def __delitem__(self, key: bytes) -> None:
        self._engine.stage(self, self._prefix + key, None)

    def from_key(self, first: bytes, count: int) -> list[bytes]:
        """See Keys; the store has the names in order anyway."""
        at = len(self._prefix)
        names = self._engine.names(self._prefix, self._prefix + first)
        return [name[at:] for name in islice(names, count)]

    def will_drop(self, key: bytes) -> None:
        pass

    def forget(self) -> None:
        pass

    def rest(self) -> None:
        pass

    def __iter__(self) -> Iterator[bytes]:
        at = len(self._prefix)
        return (name[at:] for name in self._engine.names(self._prefix))

    def clear(self) -> None:
        self._engine.discard(self)

    def older_names(self) -> Iterator[bytes]:
        """What is on disk of older generations, but for the one that is kept."""
        kept = self.former.generation
        ends = (self._generation,) if kept is None else (kept, self._generation)
        firsts = (0,) if kept is None else (0, kept + 1)
        return chain.from_iterable(map(self._names_between, firsts, ends))

    def _names_between(self, first: int, end: int) -> Iterator[bytes]:
        """The names of the generations from ``first`` on, up to ``end``, without that one."""
        from_first, at_end = (_PREFIX.pack(self.number, generation) for generation in (first, end))
        names = self._store.names(from_first[:4], from_first)
        return takewhile(lambda name: name < at_end, names)


class FormerEntries:
    """What is on disk of the generation that a partition had when it was first discarded since the
    last ``let_go``. See Former.

    Not of the last one: a node that comes back discards once when it finds that it is no owner any
    more, and again when it joins, and perhaps again when it joins anew before it has copied
    everything. All these generations but the first one are empty or unfinished copies of it.

    Which one it is, the next process does not know: to it all are garbage but the present one.
    """

    def __init__(self, engine: DiskEngine, store: Store, number: int) -> None:
        self._engine = engine
        self._store = store
        self._number = number
        self.generation: int | None = None
        self._prefix = b""

    def keep(self, generation: int) -> None:
        """Keep this one, which is being discarded, unless an older one is kept, or it is empty."""
        prefix = _PREFIX.pack(self._number, generation)
        if self.generation is None and next(self._store.names(prefix), None) is not None:
            self.generation = generation
            self._prefix = prefix

    def get(self, key: bytes) -> bytes | None:
        """None also if the entry is damaged, or not on disk yet."""
        if self.generation is None:
            return None
        try:
            return self._store.get(self._prefix + key)
        except StoreDamaged:
            return None

    def from_key(self, first: bytes, count: int) -> list[bytes]:
        if self.generation is None:
            return []
        names = self._store.names(self._prefix, self._prefix + first)
        return [name[len(self._prefix) :] for name in islice(names, count)]

    def let_go(self) -> None:
        if self.generation is not None:
            self.generation = None
            self._engine.collect()


def remembered_joins(store: Store) -> tuple[tuple[Join, ...], tuple[Join, ...]]:
    """The partitions of which the store holds everything that was stored since it joined, and when
    that was (N0); and those of which the last of it may be missing (N2a)."""
    whole: list[Join] = []
    doubtful: list[Join] = []
    for name in store.names(b"P"):
        state = _state_of(store, name)
        if state is not None and state[1]:
            joins = doubtful if state[-1] else whole
            joins.append(Join(_STATE_NAME.unpack(name)[1], state[1]))
    return tuple(whole), tuple(doubtful)


def doubted(store: Store) -> Changes:
    """What is to be committed before anything else, where the log does not end whole: that the last
    of what was acknowledged may be missing (N2a). From then on the log does end whole. Where this
    node was no owner there is nothing to doubt."""
    states = ((name, _state_of(store, name)) for name in store.names(b"P"))
    return {name: _STATE.pack(*state[:-1], True) for name, state in states if state and state[1]}


def marks_on(store: Store) -> bytes:
    """The marks that were put on this disk, the last one last (M6a); none if they are damaged."""
    try:
        return store.get(_MARKS) or b""
    except RecordDamaged:
        return b""


def marked(store: Store, mark: bytes) -> Changes:
    """What is to be committed to put one more there. The manager knows one of the last ones, but
    not which."""
    return {_MARKS: (marks_on(store) + mark)[-MARKS_MAX * MARK_SIZE :]}


def _state_of(store: Store, name: bytes) -> tuple[Any, ...] | None:
    """The fields of a partition's record; None if there is none, or it is damaged."""
    try:
        state = store.get(name)
    except RecordDamaged:
        return None
    return None if state is None else _STATE.unpack(state)


def _unused_generation(store: Store, number: int) -> int:
    """One above all of which there are names, so that none of their entries is taken for one that
    holds. Raises RecordDamaged if there is no higher one."""
    generation = 0
    prefix = _PREFIX.pack(number, 0)[:4]
    while name := next(store.names(prefix, _PREFIX.pack(number, generation)), None):
        generation = int.from_bytes(name[4:8].ljust(4, b"\0"), "big") + 1
        if generation > _GENERATION_MAX:
            raise RecordDamaged(name)
    return generation


def changed_names(
    names: Iterator[bytes], changes: Changes, prefix: bytes, first: bytes
) -> Iterator[bytes]:
    """The names with that prefix, from ``first`` on, as they are after these changes, in byte
    order. ``names``: as they were before."""
    first = max(prefix, first)
    mine = {
        name: value for name, value in changes.items() if name >= first and name.startswith(prefix)
    }
    if not mine:
        return names
    added = sorted(name for name, value in mine.items() if value is not None)
    return merge(added, (name for name in names if name not in mine))


def sealed(changes: Changes) -> Iterator[tuple[bytes, bytes | None]]:
    """Changes in the byte order of their names, the values with their checksums."""
    for name in sorted(changes):
        value = changes[name]
        if value is None:
            yield name, value
        else:
            yield name, value + _CHECKSUM.pack(zlib.crc32(value, zlib.crc32(name)))


def unsealed(name: bytes, sealed_value: bytes) -> bytes:
    """A value without its checksum. If that is wrong: raises StoreDamaged for an entry,
    RecordDamaged for anything else."""
    value = sealed_value[:-4]
    if sealed_value[-4:] != _CHECKSUM.pack(zlib.crc32(value, zlib.crc32(name))):
        if name[0] or len(name) < _PREFIX.size:  # no partition's number begins with a letter
            raise RecordDamaged(name)
        raise StoreDamaged(_PREFIX.unpack_from(name)[0], name[_PREFIX.size :])
    return value
