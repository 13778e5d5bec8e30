"""The client: the public operations, over operations.py (the rules) and session.py (the sockets).

A put's way: ``Client.put`` checks key and value and takes a lane; ``operations.begin_put`` places
the key, draws a version and makes the frame; ``Session.exchange`` sends it to all owners and
receives from all; on each node ``server.py`` cuts out the frame and ``replica.Replicas.write``
stores the entry. What does not simply work, ``operations.put`` sees to, and ``Session.go_on``
drives it.
"""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, TypeVar, overload

from . import batches, operations
from .cluster_time import MEASURE_AGAIN_S
from .connection import parse_address
from .errors import DeadlineExceeded, GTStoreError, OperationFailed
from .inputs import (
    UNSET,
    Item,
    Unset,
    as_comparison,
    as_entries,
    as_items,
    as_key,
    as_keys,
    as_max_connections,
    as_number,
    as_prefix,
    as_timeout,
    as_ttl_us,
    as_value,
    by_key,
    no_copy,
    with_expiry,
)
from .lanes import Lane, Lanes
from .living import Living
from .mapping import StoreMapping
from .operations import (
    ACKED,
    Operation,
    Source,
    begin_get,
    begin_put,
    end_put,
    plain_value,
)
from .placement import Routes, format_address
from .results import ClusterStatus, Location, PutResult, ScannedEntry, StoredEntry, Version
from .scan_operation import Scanner
from .session import DIRECT_TIMEOUT_MIN_S, Session, Unfinished, as_frame, locate
from .steady_clock import steady_ns, steady_us, wall_us
from .wire import messages
from .wire.messages import CLIENT_CONNECTIONS_MAX, CLIENT_TIMEOUT_S, EXPIRES, VALUE_SIZE_MAX

Result = TypeVar("Result")
Default = TypeVar("Default")
Key = TypeVar("Key", bound=str | bytes)


class Client:
    """A connection to a GT Store cluster; ``gtstore.connect`` makes one.

    It may be used by many threads at once, by signal handlers and finalizers, and after a fork, by
    parent and child: each call in progress has connections of its own, and a child makes new ones.
    It cannot be pickled or copied. Close it, or use it in a ``with`` statement.

    Keys are 1 to 500 bytes, values up to 16 MiB; a str counts as its UTF-8 bytes. Whatever a method
    raises is a GTStoreError (gtstore.errors draws the tree):

    Raises, of every method:
        InvalidInput: a key or value breaks a limit. Nothing was sent.
        OperationFailed, Unavailable, ConnectError: it did not happen.
        DeadlineExceeded: a read did not end in time.
        OutcomeUnknown: a write may have happened, at most once.

    Args:
        manager: ``HOST:PORT`` of the cluster's manager.
        timeout: seconds that each call may take in all.
        max_connections: to each node, at most; so many calls run at once. One more waits until
            another one has ended, within its own time.
    """

    def __init__(
        self,
        manager: str = "127.0.0.1:9001",
        timeout: float = CLIENT_TIMEOUT_S,
        *,
        max_connections: int = CLIENT_CONNECTIONS_MAX,
    ) -> None:
        self._timeout_s = as_timeout(timeout)
        self._manager = parse_address(manager)
        self._is_direct = self._timeout_s >= DIRECT_TIMEOUT_MIN_S
        self._routes = Routes(threading.get_ident)
        self._lanes = Lanes(
            partial(_new_lane, partial(locate, self._routes, self._manager)),
            as_max_connections(max_connections),
        )
        # The hot path takes and gives back lanes in place.
        self._idle = self._lanes.idle
        self._wanted = self._lanes.wanted
        _clients.add(self)
        try:
            self._run(lambda lane: operations.initialize(self._routes, lane.source))
            self._routes.clock.has_jumped(steady_us(), wall_us())
        except BaseException:
            self.close()
            raise

    # --- single keys -----------------------------------------------------------------------------

    def put(self, key: str | bytes, value: str | bytes, *, ttl: float | None = None) -> PutResult:
        """Store a value under a key, on all nodes that own the key.

        Args:
            ttl: its time to live, in seconds from now, at most 100 years; then the key has no value
                any more. None: it stays. That a clock is set, anywhere, does not change it. It may
                be longer by what this client does not know of the cluster's time: hundredths of a
                second, unless the network is slow; but it is not shorter.
        """
        key = as_key(key)
        if value.__class__ is not bytes or len(value) > VALUE_SIZE_MAX:
            value = as_value(value)
        started = time.monotonic()
        is_direct = self._is_direct
        lane: Lane | None
        try:
            lane = self._idle.pop()
        except IndexError:
            lane = self._take_lane_to_write(started)
            is_direct = self._has_much_time(started)
        if started >= lane.look_at:
            self._lanes.look(lane, started)
        try:
            session, source = lane.session, lane.source
            if ttl is None:
                begun = begin_put(self._routes, source, key, value)
            else:
                value = self._expiry(lane, ttl) + value
                begun = begin_put(self._routes, source, key, value, EXPIRES)
            replies: list[Any] = []
            if is_direct:
                nodes = begun[0].nodes
                try:
                    if len(nodes) == 1:
                        ack = begun[5]
                        reply = session.ask(nodes[0], begun[1], begun[2], ack)
                        if reply == ack:
                            return end_put(source, key, begun)
                        replies = [as_frame(reply)]
                    else:
                        replies = session.exchange(nodes, begun[1], begun[2], begun[5])
                        if replies.count(ACKED) == len(replies):
                            return end_put(source, key, begun)
                except Unfinished as unfinished:
                    replies = unfinished.slots
            operation = operations.put(self._routes, source, key, value, 0, begun)
            return session.go_on(operation, replies, started, self._timeout_s)
        except GTStoreError:
            raise
        except BaseException:  # interrupted: perhaps in the middle of a frame (Lanes)
            interrupted, lane = lane, None
            self._lanes.drop(interrupted)
            raise
        finally:
            if lane is not None:
                self._idle.append(lane)
                if self._wanted:
                    self._lanes.serve()

    @overload
    def get(self, key: str | bytes) -> bytes | None: ...
    @overload
    def get(self, key: str | bytes, default: Default) -> bytes | Default: ...
    def get(self, key: str | bytes, default: Any = None) -> Any:
        """Return the latest value of a key, or ``default`` if it has none."""
        key = as_key(key)
        started = time.monotonic()
        is_direct = self._is_direct
        lane: Lane | None
        try:
            lane = self._idle.pop()
        except IndexError:
            lane = self._take_lane(started)
            is_direct = self._has_much_time(started)
        if started >= lane.look_at:
            self._lanes.look(lane, started)
        try:
            session, source = lane.session, lane.source
            begun = begin_get(self._routes, source, key)
            replies: list[Any] = []
            if is_direct:
                try:
                    reply = session.ask(begun[0].nodes[0], begun[1], begun[2])
                    value = plain_value(begun, reply)
                    if value is not None:
                        return value
                    replies = [as_frame(reply)]
                except Unfinished as unfinished:
                    replies = unfinished.slots
            operation = operations.get(self._routes, source, key, begun)
            entry = session.go_on(operation, replies, started, self._timeout_s)
            return default if entry is None else entry.value
        except GTStoreError:
            raise
        except BaseException:  # interrupted: perhaps in the middle of a frame (Lanes)
            interrupted, lane = lane, None
            self._lanes.drop(interrupted)
            raise
        finally:
            if lane is not None:
                self._idle.append(lane)
                if self._wanted:
                    self._lanes.serve()

    def get_entry(self, key: str | bytes) -> StoredEntry | None:
        """Return a key's value, its version and the node that answered, or None if it has none."""
        key = as_key(key)
        return self._run(lambda lane: operations.get(self._routes, lane.source, key))

    def delete(self, key: str | bytes) -> PutResult:
        """Remove a key's value, if it has one."""
        key = as_key(key)
        return self._run_write(lambda lane: operations.delete(self._routes, lane.source, key))

    def append(self, key: str | bytes, value: str | bytes) -> int:
        """Add to the end of a key's value, and return the new length in bytes. A key that has no
        value counts as empty.

        Raises OperationFailed if the value would become longer than 16 MiB.
        """
        return len(self._execute(key, messages.APPEND, as_value(value)).value)

    def increment(self, key: str | bytes, amount: int = 1) -> int:
        """Add to the number that a key's value is, and return the new number.

        The value is decimal text of a signed number of 64 bits; a key that has no value counts
        as 0. Raises OperationFailed if the value is something else, or the sum would be too large.
        """
        step = as_number(amount)
        return int(self._execute(key, messages.INCREMENT, step).value)

    def compare_and_put(
        self,
        key: str | bytes,
        value: str | bytes,
        *,
        expected: str | bytes | Unset | None = UNSET,
        version: Version | None = None,
        ttl: float | None = None,
    ) -> PutResult:
        """Store a value only if what is stored is what is expected.

        Args:
            expected: the value that must be there; None: the key must have no value.
            version: instead of ``expected``, the version that must be there, as ``get_entry`` and
                the writes return it. That of a delete is known for ten minutes. A node that sees to
                what a client has left half done may give the same value another version.
            ttl: the new value's time to live, as for ``put``.

        Raises VersionMismatch if something else is there.
        """
        operation, operand, old = as_comparison(value, expected, version)
        changed = self._execute(key, operation, operand, old, ttl)
        return PutResult(changed.nodes, changed.version)

    def _execute(
        self,
        key: str | bytes,
        operation: int,
        operand: bytes,
        expected: bytes = b"",
        ttl: float | None = None,
    ) -> operations.Changed:
        key = as_key(key)

        def make(lane: Lane) -> Operation[operations.Changed]:
            expiry = b"" if ttl is None else self._expiry(lane, ttl)
            return operations.execute(
                self._routes,
                lane.source,
                key,
                operation,
                expiry + operand,
                expected,
                EXPIRES if expiry else 0,
            )

        return self._run_write(make)

    def _expiry(self, lane: Lane, ttl: float) -> bytes:
        """When what is put now expires, as it stands in an entry. Now and then the manager is asked
        for the time before, but not for long."""
        ttl_us = as_ttl_us(ttl)
        routes, source = self._routes, lane.source
        now_us = source.steady_us()
        if routes.clock.has_jumped(now_us, wall_us()) or routes.clock.is_due(
            now_us, MEASURE_AGAIN_S
        ):
            timeout_s = min(operations.MEASURE_TIMEOUT_S, self._timeout_s / 2)
            lane.session.run(operations.measure(routes, source), timeout_s)
        return operations.expiry_after(routes, source, ttl_us)

    def _wall_lead_us(self) -> int:
        return self._routes.clock.wall_lead_us(steady_us(), wall_us())

    def _remove(self, key: bytes, version: Version) -> None:
        """Remove a value if its version is still that one, for as_mapping. Raises VersionMismatch.

        There is no such operation. Instead it is replaced by an empty value that has expired since
        1970: by the clock of any node.
        """
        operation, operand, expected = as_comparison(b"", UNSET, version)
        operand = operations.LONG_EXPIRED + operand
        self._run_write(
            lambda lane: operations.execute(
                self._routes, lane.source, key, operation, operand, expected, EXPIRES
            )
        )

    # --- many keys -------------------------------------------------------------------------------

    def put_many(
        self, items: Mapping[Key, str | bytes], *, ttl: float | None = None
    ) -> dict[Key, PutResult]:
        """Store many values, in parallel over the nodes. Each key is stored on its own; ``ttl`` is
        the time to live of all of them, as for ``put``.

        Raises BatchFailed if some keys failed; its ``results`` and ``errors`` say which.
        """
        started = time.monotonic()
        checked = as_items(items)

        def put(lane: Lane) -> list[PutResult | GTStoreError]:
            expiry = b"" if ttl is None else self._expiry(lane, ttl)
            return self._put_many(lane, with_expiry(checked, expiry), started)

        lane = self._take_lane_to_write(started)
        return self._run_batch(lane, list(items), put)

    def _put_many(
        self, lane: Lane, items: list[Item], started: float
    ) -> list[PutResult | GTStoreError]:
        return batches.put_many(
            lane.session, self._routes, lane.source, items, self._timeout_s, started
        )

    @overload
    def get_many(self, keys: Iterable[Key]) -> dict[Key, bytes | None]: ...
    @overload
    def get_many(self, keys: Iterable[Key], default: Default) -> dict[Key, bytes | Default]: ...
    def get_many(self, keys: Iterable[Any], default: Any = None) -> dict[Any, Any]:
        """Return the latest values of many keys, read in parallel over the nodes; ``default``
        stands for those that have none.

        Raises BatchFailed if some keys failed; its ``results`` and ``errors`` say which.
        """
        started = time.monotonic()
        given, checked = as_keys(keys)

        def get(lane: Lane) -> list[Any]:
            return batches.get_many(
                lane.session,
                self._routes,
                lane.source,
                checked,
                default,
                self._timeout_s,
                started,
            )

        return self._run_batch(self._take_lane(started), given, get)

    def put_entries(self, entries: Iterable[ScannedEntry]) -> dict[bytes, PutResult]:
        """Store what a scan has found, perhaps in another cluster, each value with its own expiry;
        the versions are new ones. All of them are in memory at once: give it some at a time.

        Raises BatchFailed as put_many does.
        """
        started = time.monotonic()
        items = as_entries(entries, self._wall_lead_us())
        return self._run_batch(
            self._take_lane_to_write(started),
            [key for key, _, _ in items],
            lambda lane: self._put_many(lane, items, started),
        )

    # --- all keys --------------------------------------------------------------------------------

    def scan(self, prefix: str | bytes = b"") -> Generator[tuple[bytes, bytes]]:
        """Yield every key that has a value, with the value: all keys, or those that begin with a
        prefix. The keys of one partition come in the order of their bytes; all of them together
        are in no order.

        A key that has a value from the first step to the end is yielded, exactly once; each value
        is one that a get could have returned meanwhile. Keys that come or go in between may be
        there or not: this is no snapshot.

        It goes on while nodes die and return, and holds little at a time: some partitions' next
        keys, at most 64 KiB each, or a long value. It may be left at any point. The timeout is for
        each step, not for the whole.

        Raises, where the next key is asked for: DeadlineExceeded, Unavailable, OperationFailed if
        the manager's address leads to another cluster by now. Then begin again.
        """
        return ((entry.key, entry.value) for entry in self.scan_entries(prefix))

    def scan_keys(self, prefix: str | bytes = b"") -> Generator[bytes]:
        """The same for the keys alone; the values stay where they are."""
        return (entry.key for entry in self._scan(as_prefix(prefix), with_values=False))

    def scan_entries(self, prefix: str | bytes = b"") -> Generator[ScannedEntry]:
        """The same with all that is known of each value: its version, and when it expires."""
        return self._scan(as_prefix(prefix), with_values=True)

    def _scan(self, prefix: bytes, with_values: bool) -> Generator[ScannedEntry]:
        scanner = Scanner(self._routes, prefix, with_values, self._wall_lead_us())
        while True:
            # A lane for each step, not for the whole: the caller may never come back.
            started = time.monotonic()
            with self._lanes.lent(self._take_lane(started)) as lane:
                steps = scanner.steps(lane.source)
                if not steps:
                    return
                outcomes = lane.session.run_many(steps, self._timeout_s, len(steps), started)
            for outcome in outcomes:
                if isinstance(outcome, GTStoreError):
                    raise outcome
            for outcome in outcomes:
                assert not isinstance(outcome, GTStoreError)
                yield from outcome

    @overload
    def as_mapping(self, prefix: str = "") -> StoreMapping[str]: ...
    @overload
    def as_mapping(self, prefix: bytes) -> StoreMapping[bytes]: ...
    def as_mapping(self, prefix: Any = "") -> Any:
        """Return the keys that begin with a prefix as a dict without the prefix: a MutableMapping
        of str or bytes, as the prefix is, to bytes. It has nothing to close."""
        return StoreMapping(self, prefix)

    # --- the cluster -----------------------------------------------------------------------------

    def where(self, key: str | bytes) -> Location:
        """Return a key's partition and the nodes that own it, primary first, as the manager
        says."""
        key = as_key(key)
        return self._run(lambda lane: operations.where(self._routes, lane.source, key))

    def status(self) -> ClusterStatus:
        """Return the object that ``gtclient --json status`` prints: nodes, states, epoch,
        partitions that are not fully replicated."""
        return self._run(lambda lane: operations.status(self._routes, lane.source))

    def close(self) -> None:
        """Close all connections. Calls in progress in other threads end with their own results."""
        self._lanes.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise no_copy("Client", "gtstore.connect", format_address(*self._manager))

    # --- lanes -----------------------------------------------------------------------------------

    def _run(self, make: Callable[[Lane], Operation[Result]]) -> Result:
        started = time.monotonic()
        return self._run_on(self._take_lane(started), make, started)

    def _run_write(self, make: Callable[[Lane], Operation[Result]]) -> Result:
        started = time.monotonic()
        return self._run_on(self._take_lane_to_write(started), make, started)

    def _run_on(
        self, lane: Lane, make: Callable[[Lane], Operation[Result]], started: float
    ) -> Result:
        with self._lanes.lent(lane):
            return lane.session.go_on(make(lane), [], started, self._timeout_s)

    def _run_batch(
        self, lane: Lane, keys: list[Any], run: Callable[[Lane], Sequence[Any]]
    ) -> dict[Any, Any]:
        """The results by their keys; ``run`` returns the outcomes in the keys' order."""
        with self._lanes.lent(lane):
            outcomes = run(lane)
        return by_key(keys, outcomes)

    def _take_lane(self, started: float) -> Lane:
        """A lane for the call that began then. put and get take an idle one in place: there, two
        Python calls count."""
        lane = self._lanes.take(started, self._timeout_s)
        if started >= lane.look_at:
            self._lanes.look(lane, started)
        return lane

    def _take_lane_to_write(self, started: float) -> Lane:
        """The same for a write: that there was none in time means that it did not happen."""
        try:
            return self._take_lane(started)
        except DeadlineExceeded as error:
            raise OperationFailed(f"the write did not happen: {error}") from error

    def _has_much_time(self, started: float) -> bool:
        """Whether a call that may have waited for its lane can still go the direct way."""
        return time.monotonic() <= started + self._timeout_s - DIRECT_TIMEOUT_MIN_S

    def _after_fork(self) -> None:
        self._routes.after_fork()
        self._lanes.after_fork()


def _new_lane(locate: Callable[[int], tuple[str, str, int]]) -> Lane:
    source = Source(lambda: secrets.randbits(64), steady_ns, random.random)
    return Lane(source, Session(locate, source.owed))


_clients: Living[Client] = Living()


def _after_fork_in_child() -> None:
    for client in _clients:
        client._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


def connect(
    manager: str = "127.0.0.1:9001",
    timeout: float = CLIENT_TIMEOUT_S,
    *,
    max_connections: int = CLIENT_CONNECTIONS_MAX,
) -> Client:
    """Connect to the cluster whose manager listens at ``HOST:PORT``.

    Args:
        manager: the manager's address.
        timeout: seconds that each call may take in all.
        max_connections: to each node, at most: so many calls run at once, further ones wait.

    Raises:
        InvalidInput: the address or the timeout is none.
        ConnectError: no manager answers there.
        DeadlineExceeded: it did not answer in time.
    """
    return Client(manager, timeout, max_connections=max_connections)
