"""Where a node keeps its entries.

An engine hands out one mapping for each partition: key -> entry, both bytes, the entry as it stands
on the wire. A partition is the unit that is copied and discarded, so it is the unit here too. The
rules of what may be stored over what are replica.py's; an engine only keeps.

The engine in memory keeps plain dicts: nothing in them is tracked by the garbage collector, so full
collections stay short however many keys there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Entries(Protocol):
    """The entries of one partition."""

    def get(self, key: bytes, /) -> bytes | None: ...
    def __setitem__(self, key: bytes, entry: bytes, /) -> None: ...
    def __delitem__(self, key: bytes, /) -> None: ...
    def __iter__(self) -> Iterator[bytes]: ...
    def __len__(self) -> int: ...
    def clear(self) -> None: ...


class Engine(Protocol):
    """Where all entries of a node are."""

    def partition(self, number: int) -> Entries: ...
    def close(self) -> None: ...


class MemoryEngine:
    """Entries in memory: gone when the process ends."""

    def partition(self, number: int) -> Entries:  # noqa: ARG002  # one dict is like the other
        return dict[bytes, bytes]()

    def close(self) -> None:
        pass
