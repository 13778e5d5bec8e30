"""What clients do: kinds in their shares, keys that are there, inserts that are not shared."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import pytest

from gtstore.bench.workloads import (
    GET,
    INSERT,
    PUT,
    READ,
    READ_MODIFY_WRITE,
    UPDATE,
    WORKLOADS,
    put_get_steps,
    record_key,
    share,
    ycsb_steps,
)


def test_shares() -> None:
    assert [share(10, 4, client) for client in range(4)] == [3, 3, 2, 2]
    assert [share(2, 3, client) for client in range(3)] == [1, 1, 0]


def test_put_and_get_in_turn() -> None:
    """Each key is put once, then gotten; no two clients have the same."""
    steps = list(islice(put_get_steps(b"p/", 1), 4))
    assert steps == [(PUT, b"p/1-0"), (GET, b"p/1-0"), (PUT, b"p/1-1"), (GET, b"p/1-1")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a", {READ: 0.5, UPDATE: 0.5}),
        ("b", {READ: 0.95, UPDATE: 0.05}),
        ("c", {READ: 1.0}),
        ("d", {READ: 0.95, INSERT: 0.05}),
        ("f", {READ: 0.5, READ_MODIFY_WRITE: 0.5}),
    ],
)
def test_mixes(name: str, expected: dict[str, float]) -> None:
    """As YCSB's workload files have them; the seed is fixed."""
    count = 4000
    work = ycsb_steps(WORKLOADS[name], b"", 100, 0, 1, random.Random(1).random)
    kinds = Counter(kind for kind, _ in islice(work, count))
    assert set(kinds) == set(expected)
    for kind, part in expected.items():
        assert kinds[kind] / count == pytest.approx(part, abs=0.02)


@pytest.mark.parametrize("name", WORKLOADS)
def test_what_is_read_is_there(name: str) -> None:
    """Of three clients each reads what was loaded and what it has inserted itself; what it inserts
    was never there, and no other client inserts it."""
    loaded = {record_key(b"p/", number) for number in range(50)}
    inserted: list[bytes] = []
    for client in range(3):
        there = set(loaded)
        chance = random.Random(client).random
        for kind, key in islice(ycsb_steps(WORKLOADS[name], b"p/", 50, client, 3, chance), 2000):
            if kind == INSERT:
                assert key not in there
                there.add(key)
                inserted.append(key)
            assert key in there
    assert len(set(inserted)) == len(inserted)
    assert bool(inserted) == (name == "d")


def test_the_newest_are_read() -> None:
    """Workload d: more than half of all reads take one of the 10 % that were the newest then."""
    work = ycsb_steps(WORKLOADS["d"], b"", 1000, 0, 1, random.Random(1).random)
    order = [record_key(b"", number) for number in range(1000)]
    ages = []
    for kind, key in islice(work, 1000):
        if kind == INSERT:
            order.append(key)
        else:
            ages.append(order[::-1].index(key))
    assert sum(age < 100 for age in ages) > len(ages) / 2


def test_keys() -> None:
    assert record_key(b"bench/1/", 0).startswith(b"bench/1/user")
    assert len({record_key(b"", number) for number in range(10_000)}) == 10_000
