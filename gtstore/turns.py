"""Who is next at a key that several calls want to change at once.

Each call draws a version, and the key's primary takes only one that is higher than the last (N3,
N4). So calls that are under way together make each other lose, and one that has lost meets those
that have begun since, with later versions. As long as no call has lost, nobody waits.

- Of one client, those that have lost, and those that come to such a key later, go one after the
  other, in this order. So a client's own calls make each other lose no more.
- Between clients, who has lost goes on at once, and who comes waits: for as long as ``pace_s``,
  which grows with each call that other clients make lose more than once, and falls with each one
  that wins at once.

A call of a signal handler or a finalizer goes in front of the call that its thread was at, which
cannot go on before it.

Nothing depends on it: a call that does not wait is only likely to lose. So there is no lock, and
what belongs to a call that was abandoned, in whatever way, holds the others up for a moment only.

The first of a queue is called when it becomes the first. How a call is woken is its shell's: it
sets ``Ticket.wake`` while the call waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

LOOK_S: Final = 0.25
"""So long a call waits to be called; then it looks who is in front."""
PATIENCE_S: Final = 1.0
"""So long a call waits while the same one is the first; then that one is skipped."""
PACE_FIRST_S: Final = 0.002
PACE_MAX_S: Final = 0.016
PACE_FALLS: Final = 0.8
_KEYS_MAX: Final = 1000
"""Of so many keys is known that other clients want them, too."""


class _Key:
    """A key at which somebody has lost: who waits, and the highest time that was met there."""

    __slots__ = ("pace_s", "tickets", "time")

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.pace_s = 0.0
        self.time = 0


class Ticket:
    """A call's place in a queue, once it has joined it.

    Args:
        at: the key.
        owner: who cannot make another call before this one has ended, but from inside it; or None.
    """

    __slots__ = ("_at", "_front", "_has_left", "_waited_s", "is_due", "owner", "wake")

    def __init__(self, at: _Key, owner: object) -> None:
        self.owner = owner
        self.is_due = False
        """Whether it was called."""
        self.wake: Callable[[], object] | None = None
        """Ends the call's wait; set it first, then look whether it ``is_due``."""
        self._at = at
        self._has_left = False
        self._front: Ticket | None = None  # who was the first when it looked last
        self._waited_s = 0.0  # since that one is the first

    def join(self) -> None:
        """Take the last place."""
        tickets = self._at.tickets
        if self.owner is not None and any(other.owner == self.owner for other in list(tickets)):
            tickets.insert(0, self)
        else:
            tickets.append(self)

    def wait_s(self) -> float:
        """How long to wait before looking again, unless it is called before; 0: it is its turn."""
        tickets = self._at.tickets
        try:
            front = tickets[0]
            if front is self or self._has_left:  # it was skipped
                return 0.0
        except IndexError:
            return 0.0
        self._waited_s = 0.0 if front is not self._front else self._waited_s + LOOK_S
        self._front = front
        if self._waited_s >= PATIENCE_S:
            front.leave()
        return LOOK_S

    def leave(self) -> None:
        """Give the place up."""
        tickets = self._at.tickets
        self._has_left = True
        try:
            tickets.remove(self)
            tickets[0].call()
        except (ValueError, IndexError):
            pass  # it was skipped; or nobody waits

    def call(self) -> None:
        """It is the first now."""
        self.is_due = True
        wake = self.wake
        if wake is not None:
            wake()


class Turns:
    """The turns of one client. Each step with a list or a dict is one for threads, too.

    Args:
        owner: returns who is calling: see Ticket.
    """

    __slots__ = ("_keys", "_owner")

    def __init__(self, owner: Callable[[], object] = lambda: None) -> None:
        self._owner = owner
        self._keys: dict[bytes, _Key] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def ticket(self, key: bytes) -> Ticket:
        """One that is to join the key's queue."""
        return Ticket(self._keys.setdefault(key, _Key()), self._owner())

    def leave(self, key: bytes, ticket: Ticket) -> None:
        """Give the place up."""
        ticket.leave()
        at = self._keys.get(key)
        if at is not None and not at.tickets and not at.pace_s:
            self._keys.pop(key, None)

    def known(self, key: bytes) -> tuple[float, int]:
        """How long who comes now should wait at most, and the highest time that was met."""
        at = self._keys.get(key)
        return (at.pace_s, at.time) if at else (0.0, 0)

    def lost(self, key: bytes, time: int, is_again: bool) -> None:
        """A call whose turn it is has met a version of that time, above its own."""
        at = self._keys.get(key)
        if at is None:
            return
        at.time = max(at.time, time)
        if is_again:
            at.pace_s = min(max(2 * at.pace_s, PACE_FIRST_S), PACE_MAX_S)
            if len(self._keys) > _KEYS_MAX:
                self._keys.clear()

    def won(self, key: bytes, time: int, is_first: bool) -> None:
        """A call has changed it, under a version of that time; ``is_first``: its first one."""
        at = self._keys.get(key)
        if at is None:
            return
        at.time = max(at.time, time)
        if is_first:
            at.pace_s *= PACE_FALLS
            if at.pace_s < PACE_FIRST_S / 4:
                at.pace_s = 0.0
