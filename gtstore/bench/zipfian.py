"""Which record an operation takes: the distributions of YCSB.

The generator is that of Gray et al., "Quickly Generating Billion-Record Synthetic Databases",
SIGMOD 1994 (an inverse of the distribution function, exact for the first two ranks and close for
the others), with the constants of YCSB (Cooper et al., "Benchmarking Cloud Serving Systems with
YCSB", SoCC 2010; its ZipfianGenerator, ScrambledZipfianGenerator and SkewedLatestGenerator).

``random`` is always a function that returns a number from 0 up to, but not including, 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

THETA: Final = 0.99
"""YCSB's zipfian constant: the item of rank r is taken in proportion to 1 / r ** THETA."""

SCRAMBLED_ITEMS: Final = 10_000_000_000
SCRAMBLED_ZETA: Final = 26.46902820178302
"""zeta(SCRAMBLED_ITEMS), which YCSB has worked out once."""

_FNV_OFFSET_BASIS: Final = 0xCBF2_9CE4_8422_2325
_FNV_PRIME: Final = 0x100_0000_01B3


def zeta(items: int, above: int = 0, so_far: float = 0.0) -> float:
    """The sum of 1 / r ** THETA for the ranks r from 1 to ``items``.

    Args:
        above, so_far: the sum for the ranks up to ``above`` is known to be ``so_far``.
    """
    return so_far + sum(math.pow(rank, -THETA) for rank in range(above + 1, items + 1))


def fnv_hash(number: int) -> int:
    """YCSB's hash of a number of 64 bits: FNV-1a of its bytes, lowest first, and of the result,
    taken as a signed number, the absolute value."""
    result = _FNV_OFFSET_BASIS
    for octet in number.to_bytes(8, "little"):
        result = (result ^ octet) * _FNV_PRIME & 0xFFFF_FFFF_FFFF_FFFF
    return min(result, (1 << 64) - result)


class Zipfian:
    """Numbers from 0 to items - 1, the lower the more often.

    Args:
        items: how many there are, at least 1.
        zeta_of_items: ``zeta(items)``, if it is known; it takes time in proportion to them.
    """

    def __init__(
        self, items: int, random: Callable[[], float], zeta_of_items: float | None = None
    ) -> None:
        self._random = random
        self._set(items, zeta(items) if zeta_of_items is None else zeta_of_items)

    def grow(self, items: int) -> None:
        """Have so many items from now on, no fewer than before."""
        self._set(items, zeta(items, self._items, self._zeta))

    def _set(self, items: int, zeta_of_items: float) -> None:
        self._items = items
        self._zeta = zeta_of_items
        self._eta = 0.0  # of two items or one, each is a rank that next() takes by itself
        if items > 2:
            self._eta = (1 - (2 / items) ** (1 - THETA)) / (1 - _ZETA_OF_TWO / zeta_of_items)

    def next(self) -> int:
        u = self._random()
        scaled = u * self._zeta
        if scaled < 1:
            return 0
        if scaled < _ZETA_OF_TWO:
            return 1
        number = int(self._items * (self._eta * u - self._eta + 1) ** _ALPHA)
        return min(number, self._items - 1)  # the power may be rounded up to 1


_ALPHA: Final = 1 / (1 - THETA)
_ZETA_OF_TWO: Final = zeta(2)


class ScrambledZipfian:
    """The same with the popular items spread over all of them: YCSB's "zipfian" requests.

    As in YCSB the ranks are those of ten thousand million items, whatever ``items`` is, and their
    hashes choose among the items: the most popular one is taken by about 1 request of 26.
    """

    def __init__(self, items: int, random: Callable[[], float]) -> None:
        self._items = items
        self._ranks = Zipfian(SCRAMBLED_ITEMS, random, SCRAMBLED_ZETA)

    def next(self) -> int:
        return fnv_hash(self._ranks.next()) % self._items


class Latest:
    """The newest item the most often: YCSB's "latest" requests. ``insert`` makes another one."""

    def __init__(self, items: int, random: Callable[[], float]) -> None:
        self._items = items
        self._ranks = Zipfian(items, random)

    def insert(self) -> int:
        self._items += 1
        self._ranks.grow(self._items)
        return self._items - 1

    def next(self) -> int:
        return self._items - 1 - self._ranks.next()
