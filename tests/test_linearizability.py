"""The checker of histories: against histories that are known to be good or bad, and against a plain
one that tries every order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from . import linearizability
from .linearizability import Done, Version, What, violations

KEY = b"key"
V1, V2, V3 = (1, 7), (2, 7), (3, 7)


def get(value: bytes | None, start: int, end: int, version: Version | None = None) -> Done:
    return Done("get", KEY, value, start, end, version=version)


def put(value: bytes, start: int, end: int | None, version: Version | None = None) -> Done:
    return Done("put", KEY, value, start, end, version=version)


def delete(start: int, end: int | None, version: Version | None = None) -> Done:
    return Done("delete", KEY, None, start, end, version=version)


def append(value: bytes, start: int, end: int | None, result: bytes | int | None = None) -> Done:
    return Done("append", KEY, value, start, end, result=result)


def add(amount: int, start: int, end: int | None, result: int | None = None) -> Done:
    return Done("increment", KEY, b"%d" % amount, start, end, result=result)


def compare(
    expected: bytes | Version | None,
    value: bytes,
    start: int,
    end: int | None,
    is_done: bool = False,
    version: Version | None = None,
) -> Done:
    return Done("compare", KEY, value, start, end, expected, is_done, version)


def is_good(*history: Done) -> bool:
    """The answer does not depend on the order in which the history is given."""
    answers = {not violations(order) for order in (history, history[::-1])}
    assert len(answers) == 1
    return answers.pop()


GOOD = {
    "nothing": [],
    "one after the other": [put(b"a", 1, 2), get(b"a", 3, 4), delete(5, 6), get(None, 7, 8)],
    "read while it is written, before": [put(b"a", 1, 4), get(None, 2, 3)],
    "read while it is written, after": [put(b"a", 1, 4), get(b"a", 2, 3)],
    "two writers at once": [put(b"a", 1, 9), put(b"b", 2, 8), get(b"b", 3, 4), get(b"a", 5, 6)],
    "ends when the other starts": [put(b"a", 1, 2), get(None, 2, 3)],
    "appends in either order": [
        append(b"x", 1, 5, 2),
        append(b"y", 2, 4, 1),
        get(b"yx", 6, 7),
    ],
    "increments at once": [add(1, 1, 9, 3), add(2, 2, 8, 2), get(b"3", 10, 11)],
    "increment of what was put": [put(b"-5", 1, 2), add(7, 3, 4, 2)],
    "only one comparison wins": [
        compare(None, b"a", 1, 9, True),
        compare(None, b"b", 2, 8, False),
        get(b"a", 10, 11),
    ],
    "a comparison by version": [
        put(b"a", 1, 2, V1),
        compare(V1, b"b", 3, 4, True, V2),
        compare(V1, b"c", 5, 6, False, V2),
        get(b"b", 7, 8, V2),
    ],
    "a comparison with the version of a delete": [
        delete(1, 2, V1),
        compare(V1, b"a", 3, 4, True, V2),
    ],
    "the version of a write that did not say its own": [
        append(b"x", 1, 2, 1),
        get(b"x", 3, 4, V1),
        compare(V1, b"y", 5, 6, True, V2),
    ],
    "an unknown write never happens": [put(b"a", 1, None), get(None, 2, 3), get(None, 4, 5)],
    "an unknown write happens late": [
        put(b"a", 1, None),
        put(b"b", 2, 3),
        get(b"b", 4, 5),
        get(b"a", 6, 7),
    ],
    "an unknown write makes a comparison fail": [
        put(b"a", 1, 2),
        put(b"b", 1, None),
        compare(b"a", b"c", 3, 4, False),
    ],
    "an unknown write was overwritten": [
        put(b"a", 1, 2),
        append(b"x", 1, None),
        append(b"y", 3, 4, 3),
        put(b"b", 5, 6),
        get(b"b", 7, 8),
    ],
    "of two unknown increments, one": [
        add(1, 1, None),
        add(1, 2, None),
        get(b"1", 3, 4),
        get(b"1", 5, 6),
    ],
    "unknown writes that build on each other": [
        put(b"a", 1, None),
        append(b"b", 1, None),
        compare(b"ab", b"c", 1, None),
        append(b"d", 2, 3, b"cd"),
    ],
    "one of two unknown puts under an append of known length": [
        put(b"abc", 1, 2),
        put(b"xyz", 1, None),
        append(b"!", 3, 4, 4),
        get(b"xyz!", 5, 6),
    ],
    "an unknown comparison that failed, or not": [
        put(b"a", 1, 2),
        compare(b"b", b"c", 1, None),
        get(b"a", 3, 4),
    ],
    "an increment of what unknown writes made": [
        put(b"1", 1, None),
        append(b"2", 1, None),
        add(1, 2, 3, 13),
    ],
    "two keys do not hinder each other": [
        put(b"a", 1, 2),
        Done("get", b"another", None, 3, 4),
    ],
}

BAD = {
    "a stale read": [put(b"a", 1, 2), get(None, 3, 4)],
    "a read goes back": [
        put(b"a", 1, 2),
        put(b"b", 3, 10),
        get(b"b", 4, 5),
        get(b"a", 6, 7),
    ],
    "an overwritten value returns": [
        put(b"a", 1, 2),
        put(b"b", 3, 4),
        get(b"b", 5, 6),
        get(b"a", 7, 8),
    ],
    "a value from the future": [get(b"a", 1, 2), put(b"a", 3, 4)],
    "an unknown value from the future": [get(b"a", 1, 2), put(b"a", 3, None)],
    "a failed write is seen": [put(b"a", 1, 2), get(b"failed", 3, 4)],
    "a deleted value returns": [put(b"a", 1, 2), delete(3, 4), get(None, 5, 6), get(b"a", 7, 8)],
    "a lost update": [add(1, 1, 2, 1), add(1, 3, 4, 1)],
    "a lost append": [append(b"x", 1, 2, 1), append(b"y", 3, 4, 2), get(b"y", 5, 6)],
    "a double append": [append(b"x", 1, 2), get(b"xx", 3, 4)],
    "an unknown append twice": [append(b"x", 1, None), get(b"x", 2, 3), get(b"xx", 4, 5)],
    "an unknown increment twice": [add(1, 1, None), get(b"1", 2, 3), get(b"2", 4, 5)],
    "an unknown write is seen and then unseen": [
        put(b"a", 1, None),
        get(b"a", 2, 3),
        get(None, 4, 5),
    ],
    "an unknown write happens twice": [
        put(b"a", 1, None),
        get(b"a", 2, 3),
        put(b"b", 4, 5),
        get(b"b", 6, 7),
        get(b"a", 8, 9),
    ],
    "two comparisons win": [compare(None, b"a", 1, 9, True), compare(None, b"b", 2, 8, True)],
    "a comparison fails for no reason": [put(b"a", 1, 2), compare(b"a", b"b", 3, 4, False)],
    "a comparison wins wrongly": [put(b"a", 1, 2), compare(b"b", b"c", 3, 4, True)],
    "a comparison by version wins wrongly": [
        put(b"a", 1, 2, V1),
        put(b"b", 3, 4, V2),
        compare(V1, b"c", 5, 6, True, V3),
    ],
    "a comparison by version fails for no reason": [
        put(b"a", 1, 2, V1),
        compare(V1, b"c", 3, 4, False),
    ],
    "a failed comparison saw what it wanted": [
        append(b"x", 1, 2, 1),
        compare(V1, b"c", 3, 4, False, V1),
    ],
    "a comparison with a version nobody wrote": [compare(V1, b"a", 1, 2, True)],
    "the same value in another version": [put(b"a", 1, 2, V1), get(b"a", 3, 4, V2)],
    "the version of another write": [
        append(b"x", 1, 2, 1),
        get(b"x", 3, 4, V1),
        put(b"y", 5, 6, V1),
    ],
    "two versions of one write": [append(b"x", 1, 2), get(b"x", 3, 4, V1), get(b"x", 5, 6, V2)],
    "an append of the wrong length": [append(b"x", 1, 2, 1), append(b"y", 3, 4, 1)],
    "an increment of what is no number": [put(b"a", 1, 2), add(1, 3, 4, 1)],
    "the second key": [
        put(b"a", 1, 2),
        Done("get", b"another", b"a", 3, 4),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_good_histories(name: str) -> None:
    assert is_good(*GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_bad_histories(name: str) -> None:
    assert not is_good(*BAD[name])


def test_the_account() -> None:
    """It names the key, the longest order that was found, and where it ends."""
    good = [Done("put", b"other", b"x", 1, 2)]
    steps = [put(b"%d" % i, 10 * i, 10 * i + 1, (i, 7)) for i in range(20)]
    lost = delete(500, None)
    late = put(b"late", 1000, 1009)
    stale = get(b"7", 1001, 1002)
    after = get(b"late", 1010, 1011)
    (violation,) = violations([*good, *steps, lost, late, stale, after])
    assert (violation.key, violation.stuck, violation.value) == (KEY, stale, b"late")
    assert violation.prefix == (*steps, late)
    assert (violation.pending, violation.unknown) == ((), (lost,))
    text = str(violation)
    assert "b'key' is not linearizable; 21 operations are:\n  ...\n" in text
    assert "190-191 client 0: put b'19' version 13.7" in text
    assert text.endswith(
        "then its value is b'late', and this one is not possible:\n"
        "  1001-1002 client 0: get -> b'7'\n"
        "and these, which may have happened, do not help:\n"
        "  500-? client 0: delete -> outcome unknown"
    )


def test_how_operations_are_shown() -> None:
    assert [str(done) for done in GOOD["only one comparison wins"]] == [
        "1-9 client 0: compare b'a' if None -> done",
        "2-8 client 0: compare b'b' if None -> something else was there",
        "10-11 client 0: get -> b'a'",
    ]
    assert str(delete(1, None)) == "1-? client 0: delete -> outcome unknown"
    assert str(append(b"x" * 100, 1, 2, 100)) == (
        f"1-2 client 0: append b'{'x' * 26}...{'x' * 27}' (100 bytes) -> 100"
    )


# --- against every order -------------------------------------------------------------------------


class Register:
    """What a key does, said once more and more simply: no versions."""

    def __init__(self) -> None:
        self.value: bytes | None = None

    def does(self, done: Done) -> bool:
        """Take a step; whether its result is right."""
        old = self.value
        is_known = done.end is not None
        if done.what == "get":
            return old == done.value
        if done.what in ("put", "delete"):
            self.value = done.value
        elif done.what == "append":
            self.value = (old or b"") + (done.value or b"")
            if isinstance(done.result, bytes):
                return self.value == done.result
            return not is_known or done.result is None or len(self.value) == done.result
        elif done.what == "increment":
            if old is not None and not old.isdigit():
                return False
            self.value = str(int(old or b"0") + int(done.value or b"")).encode()
            return not is_known or done.result is None or int(self.value) == done.result
        elif old == done.expected:
            self.value = done.value
            return not is_known or done.result is True
        else:
            return is_known and done.result is False
        return True


def orders(history: Sequence[Done]) -> Iterator[Sequence[Done]]:
    """Every order of all operations that are known and any of the others."""
    known = [done for done in history if done.end is not None]
    unknown = [done for done in history if done.end is None]
    for count in range(len(unknown) + 1):
        for some in itertools.combinations(unknown, count):
            yield from itertools.permutations([*known, *some])


def is_in_time(order: Sequence[Done]) -> bool:
    return all(
        later.end is None or later.end >= earlier.start
        for earlier, later in itertools.combinations(order, 2)
    )


def is_linearizable(history: Sequence[Done]) -> bool:
    for order in orders(history):
        register = Register()
        if is_in_time(order) and all(register.does(done) for done in order):
            return True
    return False


WHATS: tuple[What, ...] = ("get", "put", "delete", "append", "increment", "compare")


@st.composite
def histories(draw: st.DrawFn) -> list[Done]:
    """Few values, so that much is possible; mostly a history that is good but for a little."""
    chance = draw(st.randoms(use_true_random=False))
    whats = chance.sample(WHATS, chance.randint(2, len(WHATS)))
    return random_history(chance, chance.randint(1, 6), chance.choice((0.2, 0.5, 0.8)), whats)


def random_history(
    chance: random.Random, count: int, unknown: float, whats: Sequence[What]
) -> list[Done]:
    """A history as a register gives it, of which some results may be changed."""
    register = Register()
    values = [b"1", b"2", b"12", b""]
    results: list[bytes | int | None]
    history: list[Done] = []
    for at in range(count):
        what = chance.choice(whats)
        value = None if what in ("get", "delete") else chance.choice(values)
        if what == "increment":
            value = chance.choice(values[:-1])
        start = 10 * at - chance.randint(0, 25)
        end = 10 * at + chance.randint(0, 25)
        done = Done(what, KEY, value, start, end)
        if what == "compare":
            done.expected = chance.choice([None, register.value, *values])
        is_unknown = what != "get" and chance.random() < unknown
        if not is_unknown or chance.random() < 0.5:
            old = register.value
            if what == "compare":
                done.result = old == done.expected
            if what == "get":
                done.value = old
            elif not register.does(done):
                register.value = old
            if what == "increment":
                done.result = int(register.value or b"0")
            elif what == "append":
                new = register.value or b""
                results = [new, len(new), None]
                done.result = chance.choice(results)
        if is_unknown:
            done.end = done.result = None
        history.append(done)
    if chance.random() < 0.5:
        victim = chance.choice(history)
        if victim.what == "get":
            victim.value = chance.choice([None, *values])
        elif victim.what == "compare" and victim.end is not None:
            victim.result = not victim.result
        elif victim.what == "append" and victim.end is not None:
            results = [1, 2, 3, b"1", b"12", b"21"]
            victim.result = chance.choice(results)
        elif victim.what == "increment" and victim.end is not None:
            victim.result = chance.randint(1, 4)
    return history


@settings(max_examples=1000, deadline=None)
@given(histories())
def test_against_every_order(history: list[Done]) -> None:
    assert is_linearizable(history) == (not violations(history))


def test_the_comparison_sees_both() -> None:
    """It is worth something: good and bad histories are both frequent."""
    chance = random.Random(1)
    answers = [is_linearizable(random_history(chance, 4, 0.3, WHATS)) for _ in range(300)]
    assert answers.count(False) > 40
    assert answers.count(True) > 150


# --- size ----------------------------------------------------------------------------------------


def long_history(
    chance: random.Random, clients: int, count: int, unknown: float, whats: Sequence[What]
) -> list[Done]:
    """``count`` operations of some kinds, each by a client that has none in progress, with the
    results and versions that they have when each takes effect at some instant between start and
    end."""
    register = Register()
    history: list[Done] = []
    free = [0] * clients
    points = []
    for number in range(count):
        client = min(range(clients), key=lambda client: free[client])
        start = free[client] + chance.randint(1, 10)
        end = start + chance.randint(2, 100)
        free[client] = end
        points.append((chance.randint(start + 1, end - 1), start, end, client, number))
    version: Version | None = None
    for at, start, end, client, number in sorted(points):
        what = chance.choice(whats)
        text = b"%d" % (10**6 + number)
        done = Done(what, KEY, None, start, end, client=client)
        if done.what not in ("get", "delete"):
            done.value = text
        if what == "compare":
            by_version = version is not None and chance.random() < 0.5
            there = version if by_version else register.value
            other = (at, clients) if by_version else text
            done.expected = chance.choice((there, other))
            done.result = done.expected == there
            done.version = None if done.result else version
        is_write = done.what != "get" and done.result is not False
        if is_write and chance.random() < unknown:
            done.end = None
        if is_write and (done.end is not None or chance.random() < 0.5):
            if what == "compare":
                register.value = text
            else:
                assert register.does(done)
            version = (at, client)
        if done.what == "get":
            done.value = register.value
            done.version = version if register.value is not None else None
        elif done.what in ("put", "delete", "compare"):
            done.version = version if done.end is not None else None
        elif done.end is not None and register.value is not None:
            is_number = done.what == "increment"
            done.result = int(register.value) if is_number else len(register.value)
        if done.end is None:
            done.result = None
        history.append(done)
    return history


TEXT: tuple[What, ...] = ("get", "put", "delete", "append", "compare")
LIST: tuple[What, ...] = ("get", "append")
NUMBER: tuple[What, ...] = ("get", "increment")


def test_good_histories_with_versions() -> None:
    """Whatever is unknown, what has really happened is found to be possible."""
    for seed in range(200):
        chance = random.Random(seed)
        history = long_history(chance, 4, chance.randint(5, 40), 0.2, TEXT)
        assert violations(history) == [], seed


@pytest.mark.parametrize("whats", [TEXT, LIST, NUMBER], ids=["text", "list", "number"])
@pytest.mark.parametrize(("count", "unknown"), [(1500, 0.0), (1000, 0.005), (200, 0.08)])
def test_long_histories(whats: Sequence[What], count: int, unknown: float) -> None:
    """8 clients on one key; a search that tries too much would not come to an end."""
    history = long_history(random.Random(count), 8, count, unknown, whats)
    assert violations(history) == []
    late = max(done.end or 0 for done in history)
    history.append(get(b"nobody's", late + 1, late + 2))
    (violation,) = violations(history)
    assert violation.is_proven
    assert violation.stuck == history[-1]
    assert len(violation.prefix) >= count - sum(done.end is None for done in history)


def test_a_search_that_is_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and that is not taken for a proof."""
    history = long_history(random.Random(1), 8, 100, 0.0, TEXT)
    monkeypatch.setattr(linearizability, "ATTEMPTS_MAX", 50)
    (violation,) = violations(history)
    assert not violation.is_proven
    assert "may not be linearizable" in str(violation)


def test_a_comparison_that_saw_an_unknown_write_on_another_one() -> None:
    """It would be possible with the append alone; the read after it needs the put before that."""
    unknown = [put(b"31", 2, None), append(b"4", 48, None)]
    failed = compare(b"31", b"30", 124, 234, version=(7, 1))
    assert is_good(*unknown, failed, get(b"314", 278, 279))
    assert not is_good(*unknown, failed, get(b"43", 278, 279))


def test_short_forms_of_values() -> None:
    """A history may tell of each value in a short form, if it tells how long the value is: an
    append's length is then checked against that."""

    def size_of(short: bytes) -> int:
        return 1000 * len(short)

    history = [put(b"a", 1, 2), append(b"b", 3, 4, 2000), get(b"ab", 5, 6), append(b"", 7, 8, 2000)]
    assert violations(history, size_of) == []
    assert violations(history) != []
    unknown = [append(b"a", 1, None), append(b"b", 2, 3, 2000), get(b"ab", 5, 6)]
    assert violations(unknown, size_of) == []
    assert violations([*unknown, append(b"c", 7, 8, 2999)], size_of) != []


def test_many_unknown_appends_that_were_seen() -> None:
    """They have a great many orders, of which a value that somebody saw tells the right one: also
    where the next operation that is known tells a length only."""
    values = [b"%d," % number for number in range(10)]
    seen = b"".join(values[7:] + values[:7])
    history = [append(value, 1, None) for value in values]
    history += [append(b"last", 2, 4, len(seen) + 4), get(seen, 3, 5), get(seen + b"last", 6, 7)]
    assert violations(history) == []
