"""Many puts or gets in one call: the way of the hot path (session.py), for a round of them at once.

A round sends each node all of its frames together, and receives its replies together: what the
system calls and the switches between processes cost is shared by all of them. While a round is
under way, the next one is made. What does not go as usual, of whatever operation, goes on from
there as a single operation does, in the selector loop, and beside the others of its round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice, starmap
from typing import Any, Final

from . import operations
from .errors import GTStoreError
from .operations import ACKED, Begun, PutResult, Source
from .placement import Routes
from .session import DIRECT_TIMEOUT_MIN_S, Round, Session, as_frame
from .wire.messages import KEY_SIZE_MAX, KIB

_ROUND: Final = 250
"""Operations of a round, at most: fewer than a Session has under way at once, so that all of them
can go on together."""
_ROUND_SIZE: Final = 64 * KIB
"""Bytes of a round, at most; see Session.send_many."""
_ROUND_MIN: Final = 8
"""Of longer values, of which fewer would be a round, the selector loop has more under way."""

Outcome = Any  # a result, or the GTStoreError that was raised


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
    longest = max((len(value) for _, value, _ in items), default=0)
    at_once = min(_ROUND, _ROUND_SIZE // (longest + 2 * KEY_SIZE_MAX))

    def put(item: tuple[bytes, bytes, int], begun: Begun | None = None) -> Any:
        return operations.put(routes, source, *item, begun)

    if timeout_s < DIRECT_TIMEOUT_MIN_S or at_once < _ROUND_MIN:
        return session.run_many(map(put, items), timeout_s, len(items), started)

    begins = starmap(partial(operations.begin_put, routes, source), items)
    end = partial(operations.end_put, source)
    outcomes: list[Outcome] = []
    with closing(_rounds(session, begins, _owners, at_once, started + timeout_s)) as rounds:
        for round_ in rounds:
            begun = round_.begun
            some = items[len(outcomes) : len(outcomes) + len(begun)]
            if round_.is_acked:
                outcomes += [end(item[0], one) for item, one in zip(some, begun, strict=True)]
                continue
            left = []
            for item, one, replies in zip(some, begun, round_.slots(), strict=True):
                if replies.count(ACKED) == len(replies):
                    outcomes.append(end(item[0], one))
                else:
                    left.append((len(outcomes), put(item, one), replies))
                    outcomes.append(None)
            _go_on(session, left, outcomes, timeout_s, started)
    if rest := items[len(outcomes) :]:
        outcomes += session.run_many(map(put, rest), timeout_s, len(rest), started)
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

    def get(key: bytes, begun: Begun | None = None) -> Any:
        entry = yield from operations.get(routes, source, key, begun)
        return default if entry is None else entry.value

    if timeout_s < DIRECT_TIMEOUT_MIN_S:
        return session.run_many(map(get, keys), timeout_s, len(keys), started)

    begins = map(partial(operations.begin_get, routes, source), keys)
    plain_value = operations.plain_value
    outcomes: list[Outcome] = []
    with closing(_rounds(session, begins, _primary, _ROUND, started + timeout_s)) as rounds:
        for round_ in rounds:
            begun = round_.begun
            some = keys[len(outcomes) : len(outcomes) + len(begun)]
            left = []
            for key, one, replies in zip(some, begun, round_.slots(), strict=True):
                reply = replies[0]
                value = plain_value(one, reply) if reply.__class__ is bytes else None
                if value is None:
                    left.append((len(outcomes), get(key, one), replies))
                outcomes.append(value)
            if left:
                _go_on(session, left, outcomes, timeout_s, started)
    if rest := keys[len(outcomes) :]:
        outcomes += session.run_many(map(get, rest), timeout_s, len(rest), started)
    return outcomes


def _owners(begun: Begun) -> tuple[int, ...]:
    return begun[0].nodes


def _primary(begun: Begun) -> tuple[int, ...]:
    return begun[0].primary


def _rounds(
    session: Session,
    begins: Iterator[Begun],
    to: Callable[[Begun], tuple[int, ...]],
    at_once: int,
    ends_at: float,
) -> Generator[Round]:
    """Send and receive one round after the other, as long as there is time. Where it is yielded
    nothing is under way but what its slots say."""
    under_way = None
    try:
        while True:
            begun = list(islice(begins, at_once)) if time.monotonic() < ends_at else []
            if under_way is not None:
                session.receive_many(under_way)
                yield under_way
            if not begun:
                return
            under_way = session.send_many(begun, [to(one) for one in begun])
    except BaseException:
        session.abort()  # interrupted between requests and their replies
        raise


def _go_on(
    session: Session,
    left: Sequence[tuple[int, Any, list[Any]]],
    outcomes: list[Outcome],
    timeout_s: float,
    started: float,
) -> None:
    """Finish what a round has left: for each the place of its outcome, the operation, its slots."""
    begun = [
        (operation, [as_frame(slot) if slot.__class__ is bytes else slot for slot in slots])
        for _, operation, slots in left
    ]
    for (at, *_), outcome in zip(left, session.go_on_many(begun, timeout_s, started), strict=True):
        outcomes[at] = outcome
