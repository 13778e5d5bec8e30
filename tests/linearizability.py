"""Whether a history is linearizable: each operation takes effect at one instant, key by key.

``violations(history)`` looks for an order of each key's operations in which each one lies between
its start and its end and has the result that it had (Wing and Gong, "Testing and Verifying
Concurrent Objects", 1993). What was tried is remembered as the set of operations that have taken
effect and the key's state (Lowe, "Testing for Linearizability", 2017). That set is all operations
up to some place in the order of their starts and a few more, so it is a number and a short bitmask,
and a history of thousands of operations of a few clients is checked in a moment.

A write whose outcome is unknown may take effect at any time after its start, or never. It stays
open for ever, so a plain search would try it everywhere. Here it takes effect only where an
operation is about to happen that is not possible without it, and only if it leads to what that
operation saw; and of two ways to the same place, one that has used more of the unknown writes than
the other is given up.

What is not checked: that all operations whose versions are not known (appends, increments, unknown
writes) had different ones.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

What: TypeAlias = Literal["get", "put", "delete", "append", "increment", "compare"]
Version: TypeAlias = tuple[int, int]
Size: TypeAlias = Callable[[bytes], int]

NEVER: Version = (0, 0)
"""The version of a key that nobody has written yet."""
ATTEMPTS_MAX = 500_000
"""After so many for one key, the search is given up."""
TAIL = 12
"""How much of the longest prefix an account shows."""
_NUMBER = re.compile(rb"[+-]?[0-9]{1,20}")


@dataclass(slots=True)
class Done:
    """One operation of a history.

    Left out of a history are gets that failed, and writes that surely did not happen. A comparison
    that failed is no such write: it has seen something.

    Attributes:
        value: what a put writes, a comparison wants to put, an append or an increment adds; and
            what a get returned (None: no value).
        start, end: when, on one clock of all clients. ``end`` is None for a write whose outcome is
            unknown.
        expected: what a comparison wants to see: a value, a version, or None for no value.
        result: for an append, the new length, or the new value; for an increment, the new number;
            for a comparison, whether it succeeded.
        version: of what was written, or of what a get or a failed comparison saw; None: not known.
        client: who did it, for the account.
    """

    what: What
    key: bytes
    value: bytes | None
    start: int
    end: int | None
    expected: bytes | Version | None = None
    result: bytes | int | None = None
    version: Version | None = None
    client: int = 0

    def __str__(self) -> str:
        words = [f"{self.start}-{'?' if self.end is None else self.end}", f"client {self.client}:"]
        words += [self.what] if self.what in ("get", "delete") else [self.what, _short(self.value)]
        if self.what == "compare":
            words += ["if", _short(self.expected)]
        if self.end is None:
            words.append("-> outcome unknown")
        elif self.what == "get":
            words += ["->", _short(self.value)]
        elif self.what == "compare":
            words.append("-> done" if self.result else "-> something else was there")
        elif self.result is not None:
            words += ["->", _short(self.result)]
        if self.version is not None:
            words.append(f"version {_short(self.version)}")
        return " ".join(words)


@dataclass(frozen=True)
class Violation:
    """A key whose history is not linearizable.

    Attributes:
        prefix: the longest order of operations that was found, and ``value``, what it leads to.
        stuck: of the others, the one that ended first, so the next one should have come before
            its end.
        pending: the other operations that might have been next.
        unknown: the unknown writes that had started and are not in the prefix.
        is_proven: whether every order was tried; if not, the search was given up, which takes a
            history with many unknown writes.
    """

    key: bytes
    prefix: tuple[Done, ...]
    value: bytes | None
    stuck: Done
    pending: tuple[Done, ...]
    unknown: tuple[Done, ...]
    is_proven: bool

    def __str__(self) -> str:
        verdict = "is not linearizable" if self.is_proven else "may not be linearizable"
        lines = [f"key {_short(self.key)} {verdict}; {len(self.prefix)} operations are:"]
        lines += ["  ..."] * (len(self.prefix) > TAIL)
        lines += [f"  {done}" for done in self.prefix[-TAIL:]]
        lines.append(f"then its value is {_short(self.value)}, and this one is not possible:")
        lines.append(f"  {self.stuck}")
        lines += ["nor is any of these before its end:"] * bool(self.pending)
        lines += [f"  {done}" for done in self.pending]
        lines += ["and these, which may have happened, do not help:"] * bool(self.unknown)
        lines += [f"  {done}" for done in self.unknown]
        return "\n".join(lines)


def violations(history: Iterable[Done], size_of: Size = len) -> list[Violation]:
    """The keys whose operations are not linearizable, each with an account.

    Args:
        size_of: how long a value is, if not as long as it stands here: a history may have short
            forms of values, if the form of two values joined is their two forms joined.
    """
    of_keys: dict[bytes, list[Done]] = defaultdict(list)
    for done in history:
        of_keys[done.key].append(done)
    found = (_Search(key, operations, size_of).run() for key, operations in of_keys.items())
    return [violation for violation in found if violation is not None]


def without_versions(history: Iterable[Done]) -> list[Done]:
    """The same operations as far as values tell, where keys may have been touched (rule C6): a
    touch gives what is stored another version, which no operation of the history made. A comparison
    by version that failed has seen only that; one that succeeded has put a value."""
    found = []
    for done in history:
        if isinstance(done.expected, tuple):
            if not done.result and done.end is not None:
                continue
            done = replace(done, what="put", expected=None, result=None)
        found.append(replace(done, version=None))
    return found


# --- the model -----------------------------------------------------------------------------------


class _State(NamedTuple):
    """What a key has. ``version`` is None if it is that of a write that does not say."""

    value: bytes | None
    version: Version | None


def _after(done: Done, state: _State, owned: frozenset[Version], size_of: Size) -> _State | None:
    """The state after an operation that takes effect in ``state``; None if it cannot.

    ``owned`` are the versions of the writes that said theirs: no other write has one of these. An
    unknown comparison that would fail is not done at all.
    """
    match done.what:
        case "get":
            return _seen(done, state, owned) if done.value == state.value else None
        case "put":
            return _State(done.value, done.version)
        case "delete":
            return _State(None, done.version)
        case "append":
            assert done.value is not None
            before = state.value or b""
            # The size first: it tells most that are not possible, and a long value costs time.
            size = size_of(before) + size_of(done.value)
            if done.end is not None and isinstance(done.result, int) and done.result != size:
                return None
            new = before + done.value
            is_same = isinstance(done.result, int) or done.result == new
        case "increment":
            assert done.value is not None
            old = 0 if state.value is None else _number(state.value)
            if old is None:
                return None
            number = old + int(done.value)
            new = b"%d" % number
            is_same = done.result == number
        case "compare":
            return _after_comparison(done, state, owned)
    is_possible = done.end is None or done.result is None or is_same
    return _State(new, done.version) if is_possible else None


def _after_comparison(done: Done, state: _State, owned: frozenset[Version]) -> _State | None:
    fails = done.end is not None and not done.result
    if isinstance(done.expected, tuple):
        # In a state of unknown version, both may be.
        is_unknown = state.version is None
        can_be_same = done.expected not in owned if is_unknown else done.expected == state.version
        can_differ = is_unknown or not can_be_same
        if fails and done.version == done.expected:
            return None
    else:
        can_be_same = done.expected == state.value
        can_differ = not can_be_same
    if fails:
        return _seen(done, state, owned) if can_differ else None
    return _State(done.value, done.version) if can_be_same else None


def _seen(done: Done, state: _State, owned: frozenset[Version]) -> _State | None:
    """The state as a reader saw it: it may tell the version of a write that did not."""
    if done.version is None or done.version == state.version:
        return state
    if state.version is None and done.version not in owned:
        return _State(state.value, done.version)
    return None


# --- the search ----------------------------------------------------------------------------------


class _Place(NamedTuple):
    """How far an order has come: all operations before the ``low``-th, those of the bits of
    ``more`` from there on, and those of the bits of ``unknown``."""

    low: int
    more: int
    state: _State
    unknown: int


class _Path(NamedTuple):
    """An order of operations, the last one first."""

    done: Done
    before: _Path | None


class _TooManyAttempts(Exception):
    pass


class _Step(NamedTuple):
    place: _Place
    path: _Path | None


class _Search:
    """The search for one key."""

    def __init__(self, key: bytes, history: Sequence[Done], size_of: Size) -> None:
        self._key = key
        self._size_of = size_of
        ordered = sorted(history, key=lambda done: done.start)
        self._done = [done for done in ordered if done.end is not None]
        self._ends = [done.end for done in self._done if done.end is not None]
        self._unknown = [done for done in ordered if done.end is None]
        self._unknown_starts = [done.start for done in self._unknown]
        self._owned = frozenset(
            done.version for done in self._done if done.version is not None and _is_write(done)
        )
        self._values_of = {
            done.version: done.value
            for done in self._done
            if done.what == "get" and done.version is not None
        }
        # What was seen in full, in the order of bytes.
        self._seen = sorted(
            value
            for done in self._done
            for value in (
                done.value if done.what == "get" else None,
                done.result,
                done.expected if done.result else None,
            )
            if isinstance(value, bytes)
        )
        self._attempts = 0
        self._is_seen_only = False
        self._goals_of: dict[int, _Goals] = {}
        # Once two unknown writes that do the same have started, one is as good as the other.
        same: dict[tuple[object, ...], int] = {}
        self._twins: list[int | None] = []
        for index, done in enumerate(self._unknown):
            work = (done.what, done.value, done.expected)
            self._twins.append(same.get(work))
            same[work] = index
        # For each set of operations and state, the fewest unknown writes that lead there.
        self._tried: dict[tuple[int, int, _State], list[int]] = {}
        self._longest: tuple[int, _Place, _Path | None] = (-1, _Place(0, 0, _START, 0), None)

    def run(self) -> Violation | None:
        """First along values that somebody saw, where unknown appends are concerned, which have too
        many orders otherwise; then everywhere."""
        is_proven = False
        for self._is_seen_only in (True, False):
            self._tried.clear()
            self._attempts = 0
            try:
                if self._find():
                    return None
                is_proven = True
            except _TooManyAttempts:
                is_proven = False
        return self._account(is_proven)

    def _find(self) -> bool:
        """Depth first, without recursion: histories are longer than Python's stack."""
        later = [_Step(_Place(0, 0, _START, 0), None)]
        while later:
            now, later = later, []
            if self._search(now, later):
                return True
        return False

    def _search(self, first: Sequence[_Step], guesses: list[_Step]) -> bool:
        """Go on from some steps; whether there is an order of all operations. Mere guesses are left
        for later."""
        stack = [iter(first)]
        while stack:
            step = next(stack[-1], None)
            if step is None:
                stack.pop()
                continue
            place = step.place
            if place.low == len(self._done):
                return True
            if self._is_new(place):
                self._count()
                count = place.low + place.more.bit_count()
                if count > self._longest[0]:
                    self._longest = count, place, step.path
                stack.append(self._next_steps(place, step.path, guesses))
        return False

    def _count(self) -> None:
        self._attempts += 1
        if self._attempts > ATTEMPTS_MAX:
            raise _TooManyAttempts

    def _is_new(self, place: _Place) -> bool:
        """Whether nothing as good was tried."""
        return _add(place.unknown, self._tried.setdefault(place[:3], []))

    def _open(self, place: _Place) -> tuple[list[int], int]:
        """The operations that may be next, and when the first of them ends: each one that has not
        taken effect and started before any such ended."""
        found = []
        first_end = self._ends[place.low]
        for index in range(place.low, len(self._done)):
            if self._done[index].start > first_end:
                break
            if not place.more >> (index - place.low) & 1:
                found.append(index)
                first_end = min(first_end, self._ends[index])
        return [index for index in found if self._done[index].start <= first_end], first_end

    def _next_steps(
        self, place: _Place, path: _Path | None, guesses: list[_Step]
    ) -> Iterator[_Step]:
        indices, first_end = self._open(place)
        possible: list[tuple[int, _State]] = []
        wanting: list[int] = []
        for index in indices:
            done = self._done[index]
            state = _after(done, place.state, self._owned, self._size_of)
            if state is None or _keeps_more_than_it_tells(done):
                wanting.append(index)
            if state is None:
                continue
            if state == place.state and (not _is_write(done) or _adds_nothing(done)):
                # What is possible now and changes nothing stands in nobody's way.
                yield _Step(_advanced(place, index, state), _Path(done, path))
                return
            possible.append((index, state))
        # In the order of versions, if they are known, the first attempt is mostly the right one.
        possible.sort(key=lambda pair: (self._done[pair[0]].version or NEVER, self._ends[pair[0]]))
        for index, state in possible:
            yield _Step(_advanced(place, index, state), _Path(self._done[index], path))
        if wanting:
            for before, its_path in self._with_unknown(place, path, wanting, first_end):
                for index in wanting:
                    done = self._done[index]
                    state = _after(done, before.state, self._owned, self._size_of)
                    if state is None:
                        continue
                    step = _Step(_advanced(before, index, state), _Path(done, its_path))
                    if self._is_guess(done, state):
                        guesses.append(step)
                    else:
                        yield step

    def _with_unknown(
        self, place: _Place, path: _Path | None, wanting: Sequence[int], first_end: int
    ) -> Iterator[tuple[_Place, _Path]]:
        """Let unknown writes take effect, as few as will do, for an operation that is not possible
        without them, or leads elsewhere.

        That is enough: one that makes no difference to the next operation may as well come later,
        or never.
        """
        count = bisect_right(self._unknown_starts, first_end)
        level: list[tuple[_Place, _Path | None]] = [(place, path)]
        tried = {place.state: [place.unknown]}
        while level:
            above, level = level, []
            for before, its_path in above:
                for number in range(count):
                    twin = self._twins[number]
                    if before.unknown >> number & 1 or not (
                        twin is None or before.unknown >> twin & 1
                    ):
                        continue
                    write = self._unknown[number]
                    state = _after(write, before.state, self._owned, self._size_of)
                    used = before.unknown | 1 << number
                    if state is None or not _add(used, tried.setdefault(state, [])):
                        continue
                    is_seen = write.what != "append" or self._was_seen(state)
                    if self._is_seen_only and not is_seen:
                        continue
                    self._count()
                    here = before._replace(state=state, unknown=used)
                    here_path = _Path(write, its_path)
                    yield here, here_path
                    if any(self._goals(index).has(state.value, self._size_of) for index in wanting):
                        level.append((here, here_path))

    def _is_guess(self, done: Done, state: _State) -> bool:
        """Whether nobody saw a value that begins with the one that an operation led to, though what
        it told would fit other values too."""
        return _tells_little(done) and not self._was_seen(state)

    def _was_seen(self, state: _State) -> bool:
        """Whether somebody saw a value that begins so."""
        value = state.value or b""
        at = bisect_left(self._seen, value)
        return at < len(self._seen) and self._seen[at].startswith(value)

    def _goals(self, index: int) -> _Goals:
        goals = self._goals_of.get(index)
        if goals is None:
            until = bisect_right(self._unknown_starts, self._ends[index])
            goals = _Goals.of(
                self._done[index], self._unknown[:until], self._values_of, self._size_of
            )
            self._goals_of[index] = goals
        return goals

    def _account(self, is_proven: bool) -> Violation:
        _, place, path = self._longest
        prefix = []
        while path is not None:
            prefix.append(path.done)
            path = path.before
        indices, first_end = self._open(place)
        indices.sort(key=lambda index: self._ends[index])
        stuck, *pending = (self._done[index] for index in indices)
        unknown = (
            done
            for number, done in enumerate(self._unknown)
            if done.start <= first_end and not place.unknown >> number & 1
        )
        return Violation(
            self._key,
            tuple(reversed(prefix)),
            place.state.value,
            stuck,
            tuple(pending),
            tuple(unknown),
            is_proven,
        )


_Goal: TypeAlias = bytes | int | None
"""A value, or all values that stand for a number."""
SUMS_MAX = 10_000


@dataclass(frozen=True)
class _Goals:
    """The values from which unknown writes may lead to one that makes an operation possible; rather
    too many than too few.

    Attributes:
        values: these, and all that stand for these numbers; None: every one.
        size_max: and all that are not longer.
    """

    values: frozenset[_Goal] | None
    size_max: int = -1

    @classmethod
    def of(
        cls,
        done: Done,
        unknown: Sequence[Done],
        values_of: Mapping[Version, bytes | None],
        size_of: Size,
    ) -> _Goals:
        """Those of one operation. ``values_of`` tells which values some versions have."""
        kinds = {write.what for write in unknown}
        if kinds | {done.what} >= {"append", "increment"}:
            return cls(None)  # then 0 and 5 may become 05
        size_max = -1
        todo: list[_Goal] = []
        expected = done.expected
        match done.what:
            case "get":
                todo = [done.value]
            case "compare" if not done.result and done.version not in (None, *values_of):
                # It saw an unknown write, and what that one stood on counts for later operations.
                return cls(None)
            case "compare" if not done.result:
                pass  # if anything helps, a single write does
            case "compare" if not isinstance(expected, tuple):
                todo = [expected]
            case "compare" if isinstance(expected, tuple) and expected in values_of:
                todo = [values_of[expected]]
            case "append" if isinstance(done.result, bytes):
                todo = _before_append(done, done.result)
            case "append" if isinstance(done.result, int) and "increment" not in kinds:
                assert done.value is not None
                size_max = done.result - size_of(done.value)
                for write in unknown:
                    if write.what == "compare" and not isinstance(write.expected, tuple):
                        todo.append(write.expected)
            case "increment" if isinstance(done.result, int):
                todo = _before_increment(done, done.result)
            case _:
                return cls(None)
        sums = _sums(int(write.value or b"0") for write in unknown if write.what == "increment")
        if sums is None:
            return cls(None)
        values: set[_Goal] = set()
        seeds: set[_Goal] = set()
        while todo:
            goal = todo.pop()
            if goal in seeds:
                continue
            seeds.add(goal)
            values.add(goal)
            if "increment" in kinds:
                number = goal if isinstance(goal, int) else _number(goal)
                if number is not None:
                    values.update(number - total for total in sums)
                    values.update([None] if number in sums else [])
            for write in unknown:
                if write.what == "append" and isinstance(goal, bytes):
                    todo += _before_append(write, goal)
                elif write.what == "compare" and values & {write.value, _number(write.value)}:
                    if not isinstance(write.expected, tuple):
                        todo.append(write.expected)
                    elif write.expected in values_of:
                        todo.append(values_of[write.expected])
                    else:
                        return cls(None)
        return cls(frozenset(values), size_max)

    def has(self, value: bytes | None, size_of: Size) -> bool:
        if self.values is None or size_of(value or b"") <= self.size_max or value in self.values:
            return True
        number = _number(value)
        return number is not None and number in self.values


def _before_append(done: Done, value: bytes) -> list[_Goal]:
    """What may have been there before an append that led to ``value``."""
    assert done.value is not None
    if not value.endswith(done.value):
        return []
    before = value.removesuffix(done.value)
    return [before] if before else [b"", None]


def _before_increment(done: Done, number: int) -> list[_Goal]:
    assert done.value is not None
    before = number - int(done.value)
    return [before] if before else [0, None]


def _sums(amounts: Iterable[int]) -> set[int] | None:
    """What any of these numbers may be together; None if that is too much."""
    sums = {0}
    for amount in amounts:
        sums |= {total + amount for total in sums}
        if len(sums) > SUMS_MAX:
            return None
    return sums


def _number(value: bytes | None) -> int | None:
    return int(value) if value is not None and _NUMBER.fullmatch(value) else None


_START = _State(None, NEVER)


def _advanced(place: _Place, index: int, state: _State) -> _Place:
    """The place after one operation more."""
    low, more = place.low, place.more | 1 << (index - place.low)
    while more & 1:
        low, more = low + 1, more >> 1
    return _Place(low, more, state, place.unknown)


def _add(used: int, tried: list[int]) -> bool:
    """Add a set of unknown writes to those that were tried, unless one of these needs no others."""
    if any(other & ~used == 0 for other in tried):
        return False
    tried[:] = [other for other in tried if used & ~other]
    tried.append(used)
    return True


def _is_write(done: Done) -> bool:
    """Whether it may change something. A comparison that failed does not."""
    return done.what not in ("get", "compare") or (done.what == "compare" and bool(done.result))


def _adds_nothing(done: Done) -> bool:
    """Whether it is an append that changes nothing wherever it is possible. One of nothing to no
    value changes that."""
    return done.what == "append" and not done.value and bool(done.result)


def _tells_little(done: Done) -> bool:
    """Whether what it told fits many values: a length, or that something else was there."""
    return _keeps_more_than_it_tells(done) or (done.what == "compare" and not done.result)


def _keeps_more_than_it_tells(done: Done) -> bool:
    """Whether it may be possible in two states and lead to different ones: an append of which only
    the length is known."""
    return done.what in ("append", "increment") and (
        done.result is None or (done.what == "append" and isinstance(done.result, int))
    )


def _short(value: object) -> str:
    """A value on one line, long ones with their ends only."""
    if isinstance(value, tuple):
        return ".".join(f"{part:x}" for part in value)
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:28]}...{text[-28:]} ({len(value)} bytes)"  # type: ignore[arg-type]
