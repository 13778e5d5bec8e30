"""Who is next at a key that several calls want to change at once.

Each call draws a version, and the key's primary takes only one that is higher than the last (N3,
N4). So calls that are under way together make each other lose, and one that has lost meets those
that have begun since, with later versions. As long as no call has lost, nobody waits.

- Of one client, those that have lost, and those that come to such a key later, go one after the
  other, in this order. So a client's own calls make each other lose no more.
- Between clients, who has lost goes on at once, and who comes waits: for as long as ``pace_s``,
  which grows with each call that other clients make lose more than once, and falls with each one
  that wins at once.

Nothing depends on it: a call that does not wait is only likely to lose. So there is no lock, and
what belongs to a call that was abandoned, in whatever way, holds the others up for a moment only.
"""

from __future__ import annotations

from typing import Final

TURN_MIN_S: Final = 0.0005
TURN_MAX_S: Final = 0.008
"""How long a turn is taken to last, at least and at most: who waits looks again when it is likely
to be its turn."""
PATIENCE_S: Final = 1.0
"""So long a call waits while nobody in front of it gets ready; then the first one is skipped."""
PACE_FIRST_S: Final = 0.002
PACE_MAX_S: Final = 0.016
PACE_FALLS: Final = 0.8
_KEYS_MAX: Final = 1000
"""Of so many keys is known that other clients want them, too."""


class Ticket:
    """A call's place in a queue."""

    __slots__ = ("front", "pause_s", "place", "turn_s", "waited_s")

    def __init__(self) -> None:
        self.front: Ticket | None = None  # who was the first when it looked last
        self.place = 0  # then
        self.pause_s = 0.0  # since then
        self.turn_s = TURN_MIN_S
        self.waited_s = 0.0  # since that one is the first

    def look(self, front: Ticket, place: int) -> float:
        """How long to wait before the next look."""
        if place < self.place:
            self.turn_s = max(self.turn_s / 4, TURN_MIN_S)
        elif self.place:
            self.turn_s = min(self.turn_s * 2, TURN_MAX_S)
        self.waited_s = 0.0 if front is not self.front else self.waited_s + self.pause_s
        self.front, self.place = front, place
        self.pause_s = self.turn_s * (place - 0.5)
        return self.pause_s


class _Key:
    """A key at which somebody has lost: who waits, and the highest time that was met there."""

    __slots__ = ("pace_s", "tickets", "time")

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.pace_s = 0.0
        self.time = 0


class Turns:
    """The turns of one client. A list's append, index and remove are one step for threads."""

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        self._keys: dict[bytes, _Key] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def join(self, key: bytes) -> Ticket:
        """Take the last place."""
        ticket = Ticket()
        self._keys.setdefault(key, _Key()).tickets.append(ticket)
        return ticket

    def wait_s(self, key: bytes, ticket: Ticket) -> float:
        """How long to wait before looking again; 0: it is its turn."""
        at = self._keys.get(key)
        tickets = at.tickets if at else []
        try:
            place = tickets.index(ticket)
            front = tickets[0]
        except (ValueError, IndexError):
            return 0.0  # it was skipped, or the key was given up when it came
        if not place:
            return 0.0
        pause_s = ticket.look(front, place)
        if ticket.waited_s > PATIENCE_S:
            self._remove(tickets, front)
        return pause_s

    def leave(self, key: bytes, ticket: Ticket) -> None:
        """Give the place up."""
        at = self._keys.get(key)
        if at is not None:
            self._remove(at.tickets, ticket)
            if not at.tickets and not at.pace_s:
                self._keys.pop(key, None)

    @staticmethod
    def _remove(tickets: list[Ticket], ticket: Ticket) -> None:
        try:
            tickets.remove(ticket)
        except ValueError:
            pass  # it was skipped

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
