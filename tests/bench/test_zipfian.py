"""The distributions of YCSB: against the exact one, and against values worked out by hand."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from gtstore.bench.zipfian import (
    SCRAMBLED_ITEMS,
    SCRAMBLED_ZETA,
    THETA,
    Latest,
    ScrambledZipfian,
    Zipfian,
    fnv_hash,
    zeta,
)

ITEMS = 1000
GRID = 200_000


def evenly(count: int) -> Callable[[], float]:
    """Instead of chance: each of so many equal parts of 0 to 1 once, so that how often a number
    comes is its probability, to within a part of the grid for each border."""
    return iter([(part + 0.5) / count for part in range(count)]).__next__


def shares(next_number: Callable[[], int], count: int) -> dict[int, float]:
    return {number: n / count for number, n in Counter(next_number() for _ in range(count)).items()}


def exact(rank: int) -> float:
    """The zipfian probability of a rank, counted from 0."""
    return (rank + 1) ** -THETA / zeta(ITEMS)


def test_zeta() -> None:
    assert zeta(1) == 1.0
    assert zeta(2) == 1 + 0.5**THETA
    assert zeta(1000, 400, zeta(400)) == pytest.approx(zeta(1000))


def test_the_zeta_of_ycsb() -> None:
    """Its constant, by the Euler-Maclaurin formula: the terms up to 1,000 one by one, the others as
    an integral with half of the first and last term."""
    first, power = 1000, 1 - THETA
    rest = (SCRAMBLED_ITEMS**power - first**power) / power
    ends = (SCRAMBLED_ITEMS**-THETA - first**-THETA) / 2
    assert zeta(first) + rest + ends == pytest.approx(SCRAMBLED_ZETA, abs=1e-6)


def test_the_first_two_ranks_are_exact() -> None:
    found = shares(Zipfian(ITEMS, evenly(GRID)).next, GRID)
    assert found[0] == pytest.approx(exact(0), abs=2 / GRID)
    assert found[1] == pytest.approx(exact(1), abs=2 / GRID)


def test_all_ranks_are_close() -> None:
    """The generator is an approximation: all ranks come, and half of the sum of all differences,
    the part of requests that take another rank than they should, is below 3 %."""
    found = shares(Zipfian(ITEMS, evenly(GRID)).next, GRID)
    assert sorted(found) == list(range(ITEMS))
    assert sum(abs(found[rank] - exact(rank)) for rank in range(ITEMS)) / 2 < 0.03


def test_chance() -> None:
    """With a random source, chi-square over the ranks 0 and 1 and 20 groups of the others, against
    the approximation's own probabilities. The seed is fixed, so this cannot fail by chance."""
    count = 50_000
    numbers = Zipfian(ITEMS, random.Random(1).random)
    found = Counter(numbers.next() for _ in range(count))
    eta = (1 - (2 / ITEMS) ** (1 - THETA)) / (1 - zeta(2) / zeta(ITEMS))

    def below(rank: int) -> float:
        """The probability of all ranks below this one: the inverse of the generator's power."""
        return ((rank / ITEMS) ** (1 - THETA) - 1 + eta) / eta

    borders = sorted({round(2 * (ITEMS / 2) ** (part / 20)) for part in range(21)})
    expected = [exact(0), exact(1)]
    observed = [found[0], found[1]]
    before = zeta(2) / zeta(ITEMS)
    for low, high in pairwise(borders):
        expected.append(below(high) - before)
        before = below(high)
        observed.append(sum(found[rank] for rank in range(low, high)))
    assert sum(expected) == pytest.approx(1)
    chi_square = sum(
        (seen - count * part) ** 2 / (count * part)
        for seen, part in zip(observed, expected, strict=True)
    )
    degrees = len(expected) - 1
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("items", [1, 2, 3])
def test_few_items(items: int) -> None:
    """Each of them comes, and no other, also at the ends of the random source."""
    found = shares(Zipfian(items, evenly(1000)).next, 1000)
    assert sorted(found) == list(range(items))
    ends = iter([0.0, 1 - 2**-53])
    numbers = Zipfian(items, ends.__next__)
    assert [numbers.next(), numbers.next()] == [0, items - 1]


def test_the_last_of_very_many() -> None:
    """Where the power is rounded to 1, the last one is taken, not the one behind it."""
    assert Zipfian(SCRAMBLED_ITEMS, lambda: 1.0, SCRAMBLED_ZETA).next() == SCRAMBLED_ITEMS - 1


def test_growing() -> None:
    """As if it had been made with so many items."""
    grown = Zipfian(10, evenly(1000))
    grown.grow(500)
    made = Zipfian(500, evenly(1000))
    assert [grown.next() for _ in range(1000)] == [made.next() for _ in range(1000)]


def test_the_hash() -> None:
    """FNV-1a of eight zero bytes, one of them worked out step by step, and the absolute value of a
    signed number."""

    def by_hand(number: int) -> int:
        value = 14695981039346656037
        for shift in range(0, 64, 8):
            value ^= number >> shift & 0xFF
            value = value * 1099511628211 % 2**64
        return abs(value - 2**64 if value >= 2**63 else value)

    numbers = [0, 1, 255, 256, 10**10, 2**63]
    assert [fnv_hash(number) for number in numbers] == [by_hand(number) for number in numbers]
    assert fnv_hash(0) == 0xA8C7F832281A39C5 - 2 * (0xA8C7F832281A39C5 - 2**63)


def test_scrambled() -> None:
    """The most popular rank, and with it the record that its hash names, is taken by 1 request of
    zeta; the second rank's by half of that; and every record is taken."""
    count, records = 100_000, 100
    found = shares(ScrambledZipfian(records, evenly(count)).next, count)
    assert sorted(found) == list(range(records))
    first, second = fnv_hash(0) % records, fnv_hash(1) % records
    assert first != second
    ranked = sorted(found, key=lambda record: -found[record])
    assert ranked[:2] == [first, second]
    assert 1 / SCRAMBLED_ZETA <= found[first] < 1 / SCRAMBLED_ZETA + 0.02


def test_latest() -> None:
    """The newest one the most often, and another one is the newest after it was inserted."""
    latest = Latest(10, iter([0.0, 0.0, 1 - 2**-53]).__next__)
    assert latest.next() == 9
    assert latest.insert() == 10
    assert latest.next() == 10
    assert latest.next() == 0
