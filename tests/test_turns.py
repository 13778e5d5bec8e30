"""Whose turn it is at a key that several calls of one client want."""

from __future__ import annotations

from gtstore.turns import (
    _KEYS_MAX,
    LOOK_S,
    PACE_FIRST_S,
    PACE_MAX_S,
    PATIENCE_S,
    Ticket,
    Turns,
)

KEY = b"key1"


def joined(turns: Turns, key: bytes = KEY) -> Ticket:
    ticket = turns.ticket(key)
    ticket.join()
    return ticket


def test_first_come_first_served() -> None:
    turns = Turns()
    assert KEY not in turns
    first, second, third = (joined(turns) for _ in range(3))
    assert KEY in turns
    assert [ticket.wait_s() for ticket in (first, second, third)] == [0, LOOK_S, LOOK_S]
    turns.leave(KEY, first)
    assert second.is_due
    assert not third.is_due
    assert [ticket.wait_s() for ticket in (second, third)] == [0, LOOK_S]
    turns.leave(KEY, third)
    turns.leave(KEY, second)
    assert not third.is_due
    assert KEY not in turns
    turns.leave(KEY, second)
    assert second.wait_s() == 0


def test_who_waits_is_woken_when_it_is_the_first() -> None:
    turns = Turns()
    first, second, third = (joined(turns) for _ in range(3))
    woken: list[int] = []
    second.wake = lambda: woken.append(2)
    third.wake = lambda: woken.append(3)
    turns.leave(KEY, first)
    assert woken == [2]
    turns.leave(KEY, second)
    assert woken == [2, 3]


def test_one_that_was_abandoned_is_skipped() -> None:
    """Whatever became of the first: it holds the others up for a moment only."""
    turns = Turns()
    first, second, third = (joined(turns) for _ in range(3))
    waited_s = 0.0
    while pause_s := second.wait_s():
        waited_s += pause_s
        assert waited_s < 2 * PATIENCE_S
    assert waited_s > PATIENCE_S
    assert first.wait_s() == 0
    assert third.wait_s() > 0
    turns.leave(KEY, first)
    assert third.wait_s() > 0


def test_one_that_was_made_and_never_joined() -> None:
    """Its call was interrupted at that moment."""
    turns = Turns()
    made, other = turns.ticket(KEY), joined(turns)
    turns.leave(KEY, made)
    assert made.wait_s() == 0
    assert other.wait_s() == 0
    turns.leave(KEY, other)
    assert KEY not in turns


def test_who_cannot_go_on_before_a_call_has_ended_lets_it_go_first() -> None:
    """A signal handler's call, in the middle of one that waits, or is at its turn."""
    owner = "main"
    turns = Turns(lambda: owner)
    main = joined(turns)
    owner = "another thread"
    other = joined(turns)
    owner = "main"
    inside = joined(turns)
    assert inside.wait_s() == 0
    assert main.wait_s() > 0
    turns.leave(KEY, inside)
    assert main.is_due
    assert main.wait_s() == 0
    assert other.wait_s() > 0


def test_who_comes_while_a_queue_is_given_up() -> None:
    """It waits for those that are in that queue, and nobody is forgotten there."""
    turns = Turns()
    first = joined(turns)
    at = turns._keys[KEY]
    turns.leave(KEY, first)
    turns._keys[KEY] = at  # as two threads had it that were about to join
    second, third = joined(turns), joined(turns)
    del turns._keys[KEY]
    turns.leave(KEY, second)
    assert third.is_due
    turns.leave(KEY, third)
    assert KEY not in turns


def test_the_pace_where_other_clients_win() -> None:
    """It rises with each call that loses again and again, and falls with those that win at once."""
    turns = Turns()
    turns.lost(KEY, 5, True)
    turns.won(KEY, 5, True)
    assert turns.known(KEY) == (0, 0)
    ticket = joined(turns)
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
    turns.leave(KEY, joined(turns))
    assert KEY not in turns


def test_so_many_keys_are_remembered() -> None:
    turns = Turns()
    for number in range(_KEYS_MAX + 1):
        key = b"%d" % number
        joined(turns, key)
        turns.lost(key, 1, True)
    assert b"0" not in turns
