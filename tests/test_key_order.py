"""The keys of a dict in the order of their bytes, held against sorted()."""

from __future__ import annotations

import random
import time

import pytest

from gtstore import key_order
from gtstore.key_order import KeyOrder


@pytest.fixture(autouse=True)
def _small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_order, "_RUN_SIZE", 8)


def ask(order: KeyOrder, first: bytes, count: int) -> list[bytes]:
    """What it answers once everything is sorted."""
    while (keys := order.from_key(first, count)) is None:
        pass
    return keys


def expected(entries: dict[bytes, bytes], first: bytes, count: int) -> list[bytes]:
    return sorted(key for key in entries if key >= first)[:count]


def test_nothing() -> None:
    """A partition without keys, and one that gets its first."""
    entries: dict[bytes, bytes] = {}
    order = KeyOrder(entries)
    assert order.from_key(b"", 5) == []
    entries[b"a"] = b""
    assert order.from_key(b"", 5) == [b"a"]
    assert order.from_key(b"a", 5) == [b"a"]
    assert order.from_key(b"a\0", 5) == []


def test_a_portion_is_sorted_with_each_question() -> None:
    """Until nothing is left; then keys that come are there at once."""
    entries = dict.fromkeys((b"%02d" % (i * 7 % 40) for i in range(40)), b"")
    order = KeyOrder(entries)
    answers = [order.from_key(b"", 3) for _ in range(6)]
    assert answers == [None] * 4 + [[b"00", b"01", b"02"]] * 2
    entries[b"01x"] = b""
    assert order.from_key(b"01", 3) == [b"01", b"01x", b"02"]
    assert ask(order, b"38", 9) == [b"38", b"39"]


def test_a_key_that_was_dropped_and_came_again() -> None:
    """It stands behind keys that are not known yet; they are found all the same, and each once."""
    entries = dict.fromkeys((b"a", b"b"), b"")
    order = KeyOrder(entries)
    ask(order, b"", 9)
    for newest, other in ((b"b", b"c"), (b"b", b"d")):
        order.will_drop(newest)
        del entries[newest]
        entries[other] = b""
        entries[newest] = b""
        assert ask(order, b"", 9) == sorted(entries)
    order.will_drop(b"a")
    del entries[b"a"]
    assert ask(order, b"", 9) == sorted(entries)
    entries[b"a"] = b""
    assert ask(order, b"", 9) == sorted(entries)


def test_it_lets_go() -> None:
    """After some rests without a question between them, and when it is told to."""
    entries = dict.fromkeys((b"%02d" % i for i in range(40)), b"")
    order = KeyOrder(entries)
    ask(order, b"", 9)
    for _ in range(10):
        order.rest()
        assert order.from_key(b"", 1) == [b"00"]
    for _ in range(10):
        order.rest()
    assert not order._runs
    assert order.from_key(b"", 1) is None
    entries.clear()
    order.forget()
    assert order.from_key(b"", 1) == []


def test_what_was_dropped_is_not_kept_for_ever() -> None:
    """Somebody asks again and again while keys come and go: little more is remembered than there
    is."""
    entries: dict[bytes, bytes] = {}
    order = KeyOrder(entries)
    for i in range(300):
        entries[b"%d" % i] = b""
        assert ask(order, b"", 1)
        if i >= 10:
            order.will_drop(b"%d" % (i - 10))
            del entries[b"%d" % (i - 10)]
        assert sum(map(len, order._runs)) <= 20 + key_order._RUN_SIZE


@pytest.mark.parametrize("seed", range(50))
def test_at_random(seed: int) -> None:
    """Keys come and go in any order, and several readers ask from anywhere."""
    chosen = random.Random(seed)
    entries: dict[bytes, bytes] = {}
    order = KeyOrder(entries)
    for _ in range(300):
        draw = chosen.random()
        key = b"%d" % chosen.randrange(10 ** chosen.randint(1, 3))
        if draw < 0.6:
            entries[key] = b""
        elif draw < 0.8 and key in entries:
            order.will_drop(key)
            del entries[key]
        elif draw < 0.81:
            entries.clear()
            order.forget()
        elif draw < 0.9:
            order.rest()
        else:
            count = chosen.randint(1, 20)
            assert ask(order, key, count) == expected(entries, key, count)


def test_no_question_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest one, of 100,000 keys, against sorting them all at once."""
    monkeypatch.undo()
    keys = [b"user/%d" % i for i in range(100_000)]
    random.Random(1).shuffle(keys)
    order = KeyOrder(dict.fromkeys(keys, b""))
    took = []
    first: bytes | None = b""
    while first is not None:
        began = time.perf_counter()
        found = order.from_key(first, 1000)
        took.append(time.perf_counter() - began)
        if found is not None:
            first = found[-1] + b"\0" if found else None
    began = time.perf_counter()
    sorted(keys)
    at_once = time.perf_counter() - began
    longest = sorted(took)[-3:]
    print(f"{len(took)} questions, the longest {longest[-1] * 1e3:.2f} ms; {at_once * 1e3:.0f} ms")
    assert longest[0] < at_once / 3, "the second but one: the machine may be busy"
