"""Whose turn it is at a key that several calls of one client want."""

from __future__ import annotations

from gtstore.turns import (
    _KEYS_MAX,
    PACE_FIRST_S,
    PACE_MAX_S,
    PATIENCE_S,
    TURN_MAX_S,
    TURN_MIN_S,
    Ticket,
    Turns,
)

KEY = b"key1"


def test_first_come_first_served() -> None:
    turns = Turns()
    assert KEY not in turns
    first, second, third = (turns.join(KEY) for _ in range(3))
    assert KEY in turns
    assert turns.wait_s(KEY, first) == 0
    assert 0 < turns.wait_s(KEY, second) < turns.wait_s(KEY, third)
    turns.leave(KEY, first)
    assert turns.wait_s(KEY, second) == 0
    assert turns.wait_s(KEY, third) > 0
    turns.leave(KEY, third)
    turns.leave(KEY, second)
    assert KEY not in turns
    turns.leave(KEY, second)
    assert turns.wait_s(KEY, second) == 0


def test_turns_that_take_long() -> None:
    """Who waits looks less often then, and again more often when it goes on."""
    turns = Turns()
    tickets = [turns.join(KEY) for _ in range(4)]
    last = tickets[-1]
    waits = [turns.wait_s(KEY, last) for _ in range(8)]
    assert waits[0] == TURN_MIN_S * 2.5
    assert waits == sorted(waits)
    assert waits[-1] == TURN_MAX_S * 2.5
    turns.leave(KEY, tickets[0])
    assert turns.wait_s(KEY, last) < waits[-1] / 3


def test_one_that_was_abandoned_is_skipped() -> None:
    """Whatever became of the first: it holds the others up for a moment only."""
    turns = Turns()
    first, second, third = (turns.join(KEY) for _ in range(3))
    waited_s = 0.0
    while pause_s := turns.wait_s(KEY, second):
        waited_s += pause_s
        assert waited_s < 2 * PATIENCE_S
    assert waited_s > PATIENCE_S
    assert turns.wait_s(KEY, first) == 0
    assert turns.wait_s(KEY, third) > 0
    turns.leave(KEY, first)
    assert turns.wait_s(KEY, Ticket()) == 0


def test_the_pace_where_other_clients_win() -> None:
    """It rises with each call that loses again and again, and falls with those that win at once."""
    turns = Turns()
    turns.lost(KEY, 5, True)
    turns.won(KEY, 5, True)
    assert turns.known(KEY) == (0, 0)
    ticket = turns.join(KEY)
    turns.lost(KEY, 7, False)
    assert turns.known(KEY) == (0, 7)
    turns.lost(KEY, 6, True)
    assert turns.known(KEY) == (PACE_FIRST_S, 7)
    for _ in range(10):
        turns.lost(KEY, 9, True)
    assert turns.known(KEY) == (PACE_MAX_S, 9)
    turns.won(KEY, 11, False)
    turns.leave(KEY, ticket)
    assert turns.known(KEY) == (PACE_MAX_S, 11)
    for _ in range(30):
        turns.won(KEY, 12, True)
    assert turns.known(KEY) == (0, 12)
    turns.leave(KEY, turns.join(KEY))
    assert KEY not in turns


def test_so_many_keys_are_remembered() -> None:
    turns = Turns()
    for number in range(_KEYS_MAX + 1):
        key = b"%d" % number
        turns.join(key)
        turns.lost(key, 1, True)
    assert b"0" not in turns
