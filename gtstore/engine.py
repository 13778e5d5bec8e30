"""Where a node keeps its entries: what replica.py needs of an engine, and the engine in memory.

An engine keeps, for each partition, a mapping key -> entry, both bytes, the entry as it stands on
the wire. A partition is the unit that is copied and discarded, so it is the unit here too. The
rules of what may be stored over what are replica.py's; an engine only keeps.

The engine in memory keeps plain dicts: nothing in them is tracked by the garbage collector, so full
collections stay short however many keys there are. A dict has no order of its own, and scans and
copies read in the order of keys: that is what an engine's ``Keys`` are for. The engine on disk is
in disk.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from .key_order import KeyOrder


class Entries(Protocol):
    """The entries of one partition, as the next request finds them."""

    def get(self, key: bytes, /) -> bytes | None: ...
    def __setitem__(self, key: bytes, entry: bytes, /) -> None: ...
    def __delitem__(self, key: bytes, /) -> None: ...
    def __iter__(self) -> Iterator[bytes]: ...
    def clear(self) -> None: ...


class Keys(Protocol):
    """The keys of one partition in the order of their bytes."""

    def from_key(self, first: bytes, count: int, /) -> list[bytes] | None:
        """The lowest ``count`` keys that are not below ``first``, or as many as there are; None:
        they are not known yet, ask again."""
        ...

    def will_drop(self, key: bytes, /) -> None:
        """A key is about to be removed."""
        ...

    def forget(self) -> None:
        """All keys have been removed."""
        ...

    def rest(self) -> None:
        """Called every second or so: what nobody asks for any more need not be kept."""
        ...


class Former(Protocol):
    """What a partition had before it was discarded, as long as it may be of use: a node that joins
    anew need not copy what it still has (N6). Nothing vouches for it but what others say."""

    def get(self, key: bytes, /) -> bytes | None:
        """None also if the entry is damaged."""
        ...

    def from_key(self, first: bytes, count: int, /) -> list[bytes]:
        """The lowest ``count`` keys that are not below ``first``, or as many as there are."""
        ...

    def let_go(self) -> None:
        """It is of no use any more."""
        ...


class Remembered(NamedTuple):
    """What is kept of a partition beside its entries; see Replica, whose fields these are."""

    join_epoch: int
    floor: bytes
    stored: int
    tombstones: int
    size: int
    is_doubtful: bool = False


class Partition(NamedTuple):
    """What an engine has for one partition.

    ``keys`` are the keys of the entries, in order. ``shown(key)`` is the entry as nothing can take
    it away any more, ``remembered`` what the engine still knows from before, if it does.
    ``amend(key, entry)`` replaces an entry by one of which it does not matter if it is lost and the
    one before is found again.
    ``changed()`` is to be called when a field of Remembered changes, but no entry. ``former`` is
    what the partition had before it was discarded.
    """

    entries: Entries
    keys: Keys
    shown: Callable[[bytes], bytes | None]
    amend: Callable[[bytes, bytes], None]
    remembered: Remembered | None
    changed: Callable[[], None]
    former: Former


class Engine(Protocol):
    """Where all entries of a node are.

    ``is_full``: nothing more is to be stored, because there is no room for it."""

    is_full: bool

    def partition(self, number: int) -> Partition: ...

    def depend(self) -> None:
        """The answer that is being made depends on what was stored so far: it must not leave before
        that can not be lost any more (N2)."""


class MemoryEngine:
    """Entries in memory: gone when the process ends, so there is nothing to wait for."""

    is_full = False

    def partition(self, number: int) -> Partition:  # noqa: ARG002  # one dict is like the other
        entries: dict[bytes, bytes] = {}
        put = entries.__setitem__
        return Partition(entries, KeyOrder(entries), entries.get, put, None, _nothing, _Nothing())

    def depend(self) -> None:
        pass


def _nothing() -> None:
    pass


class _Nothing:
    """What was discarded is gone. See Former."""

    def get(self, key: bytes) -> None:
        pass

    def from_key(self, first: bytes, count: int) -> list[bytes]:  # noqa: ARG002
        return []

    def let_go(self) -> None:
        pass
