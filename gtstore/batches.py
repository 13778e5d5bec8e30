"""Many puts or gets in one call: the way of the hot path (session.py), for a round of them at once.

A round sends each node all of its frames together, and receives its replies together: what the
system calls and the switches between processes cost is shared by all of them. While a round is
under way, the next one is made. What does not go as usual, of whatever operation, goes on from
there as a single operation does, in the selector loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice, starmap, zip_longest
from typing import Any, Final

from . import operations
from .connection import Connection
from .errors import GTStoreError
from .operations import ACKED, Begun, Operation, Source
from .placement import Routes
from .results import PutResult
from .session import DIRECT_TIMEOUT_MIN_S, Begins, Round, Session, as_frame
from .wire.messages import KIB

_ROUND: Final = 250
"""Operations of a round, at most: fewer than a Session has under way at once, so that all of them
can go on together."""
_ROUND_SIZE: Final = 64 * KIB
"""Bytes of a round, at most; see Session.send_many."""
_FRAME_SIZE: Final = 64  # of a WRITE, at most, beside key and value
_ROUND_MIN: Final = 8
"""Of longer values, of which fewer would be a round, the selector loop has more under way."""


def put_many(
    session: Session,
    routes: Routes,
    source: Source,
    items: Sequence[tuple[bytes, bytes, int]],
    timeout_s: float,
    started: float,
) -> list[PutResult | GTStoreError]:
    """Store many values; return the outcomes in the same order.

    Args:
        items: keys, and what operations.put takes as value and flags.
        started: when the call began, on the monotonic clock; it has ``timeout_s`` in all.
    """
    longest = max((len(key) + len(value) for key, value, _ in items), default=0)
    batch = _Batch(
        session,
        items,
        partial(operations.begin_put, routes, source),
        partial(operations.put, routes, source),
        _owners,
        timeout_s,
        started,
    )
    end = partial(operations.end_put, source)
    outcomes = batch.outcomes
    with closing(batch.rounds(_ROUND_SIZE // (longest + _FRAME_SIZE))) as rounds:
        for round_, some in rounds:
            if round_.is_acked:
                outcomes += [
                    end(item[0], one) for item, one in zip(some, round_.begun, strict=True)
                ]
                continue
            for item, one, slots in zip(some, round_.begun, round_.slots(), strict=True):
                if slots.count(ACKED) == len(slots):
                    outcomes.append(end(item[0], one))
                else:
                    batch.leave(item, one, slots)
    return outcomes


def get_many(
    session: Session,
    routes: Routes,
    source: Source,
    keys: Sequence[bytes],
    default: Any,
    timeout_s: float,
    started: float,
) -> list[Any]:
    """The values of many keys, or errors, in the same order; ``default`` for those that have none.
    For the other arguments see put_many."""

    def get(key: bytes, begun: Begun | None = None) -> Operation[Any]:
        entry = yield from operations.get(routes, source, key, begun)
        return default if entry is None else entry.value

    batch = _Batch(
        session,
        [(key,) for key in keys],
        partial(operations.begin_get, routes, source),
        get,
        _primary,
        timeout_s,
        started,
    )
    outcomes = batch.outcomes
    plain_value = operations.plain_value
    with closing(batch.rounds(_ROUND)) as rounds:
        for round_, some in rounds:
            for item, one, slots in zip(some, round_.begun, round_.slots(), strict=True):
                reply = slots[0]
                if reply.__class__ is not bytes:
                    batch.leave(item, one, slots)
                elif (value := plain_value(one, reply)) is not None:
                    outcomes.append(value)
                elif operations.is_absence(reply):
                    outcomes.append(default)
                else:
                    batch.leave(item, one, slots)
    return outcomes


def _owners(begun: Begun) -> tuple[int, ...]:
    return begun[0].nodes


def _primary(begun: Begun) -> tuple[int, ...]:
    return begun[0].primary


class _Batch:
    """The rounds of one call.

    Args:
        items: what ``begin`` and ``operation`` are given, for each operation.
        operation: also takes what was begun, after an item.
        to: which nodes a first round goes to.
    """

    def __init__(
        self,
        session: Session,
        items: Sequence[tuple[Any, ...]],
        begin: Callable[..., Begun],
        operation: Callable[..., Operation[Any]],
        to: Callable[[Begun], tuple[int, ...]],
        timeout_s: float,
        started: float,
    ) -> None:
        self.outcomes: list[Any] = []
        """In the order of the items: a result, or the GTStoreError that was raised."""
        self._session = session
        self._items = items
        self._begin = begin
        self._operation = operation
        self._to = to
        self._timeout_s = timeout_s
        self._started = started
        self._left: list[tuple[int, Begins[Any]]] = []  # the places of their outcomes
        self._under_way: list[tuple[int, Begins[Any]]] = []

    def rounds(self, at_once: int) -> Generator[tuple[Round, Sequence[Any]]]:
        """Yield each round, and its items, for whose outcomes the caller sees; at the end all
        outcomes are there. What the caller leaves waits for the last round. That is the one in
        which a reply is still to come, or until which much was left: then the rest of the items
        goes through the selector loop, too, or one node that is silent would hold them all up."""
        begun: list[Begun] = []
        try:
            if self._timeout_s >= DIRECT_TIMEOUT_MIN_S and at_once >= _ROUND_MIN:
                begun = yield from self._rounds(min(at_once, _ROUND))
            self._finish(begun)
        except BaseException:
            self._session.abort()  # interrupted between requests and their replies
            raise

    def _rounds(self, at_once: int) -> Generator[tuple[Round, Sequence[Any]], None, list[Begun]]:
        """Return those that were begun ahead, and nothing was sent of."""
        session = self._session
        to = self._to
        ends_at = self._started + self._timeout_s
        begins = starmap(self._begin, self._items)
        round_ = None
        at = 0
        while True:
            begun = list(islice(begins, at_once)) if time.monotonic() < ends_at else []
            if round_ is not None:
                session.receive_many(round_, ends_at)
                yield round_, self._items[at : at + len(round_.begun)]
                at += len(round_.begun)
            if not begun or self._under_way or len(self._left) >= _ROUND:
                return begun
            round_ = session.send_many(begun, [to(one) for one in begun])

    def leave(self, item: tuple[Any, ...], begun: Begun, slots: list[Any]) -> None:
        """An operation whose replies are not the usual ones: it goes on later."""
        is_under_way = False
        for at, slot in enumerate(slots):
            if slot.__class__ is bytes:
                slots[at] = as_frame(slot)
            elif slot is None or isinstance(slot, Connection):
                is_under_way = True
        left = self._under_way if is_under_way else self._left
        left.append((len(self.outcomes), (self._operation(*item, begun), slots)))
        self.outcomes.append(None)

    def _finish(self, ahead: list[Begun]) -> None:
        first = len(self.outcomes)
        rest = self._items[first:]
        if not (self._under_way or self._left or rest):
            return
        outcomes = self._session.go_on_many(
            [begins for _, begins in self._under_way],
            chain(
                (begins for _, begins in self._left),
                ((self._operation(*item, one), []) for item, one in zip_longest(rest, ahead)),
            ),
            len(self._left) + len(rest),
            self._timeout_s,
            self._started,
        )
        left = self._under_way + self._left
        for (at, _), outcome in zip(left, outcomes[: len(left)], strict=True):
            self.outcomes[at] = outcome
        self.outcomes += outcomes[len(left) :]
