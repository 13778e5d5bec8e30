"""The client for asyncio: what client.py is for threads, over async_session.py.

A put's way: ``AsyncClient.put`` checks key and value; ``operations.begin_put`` places the key and
makes the frame; ``AsyncSession.exchange`` sends it to all owners, together with those of other
tasks, and wakes the task when all have answered. What is not usual goes on as
``operations.put``, the same code that the other client runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import (
    AsyncGenerator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Final, NoReturn, TypeAlias, TypeVar, overload

from . import operations
from .async_session import AsyncSession, Exchange
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
    as_number,
    as_prefix,
    as_timeout,
    as_ttl_us,
    as_value,
    by_key,
    no_copy,
    with_expiry,
)
from .operations import ACKED, Begun, Operation, Source
from .placement import Routes, format_address
from .results import ClusterStatus, Location, PutResult, ScannedEntry, StoredEntry, Version
from .scan_operation import Scanner
from .session import locate
from .steady_clock import steady_ns, steady_us, wall_us
from .wire import messages
from .wire.messages import CLIENT_TIMEOUT_S, EXPIRES

Result = TypeVar("Result")
Default = TypeVar("Default")
Key = TypeVar("Key", bound=str | bytes)

_AT_ONCE: Final = 250
"""How many operations of a batch are under way at once, as of the other client's."""
_AT_ONCE_SIZE: Final = messages.IN_FLIGHT_SIZE_MAX
"""How many bytes of keys and values they have, unless one alone has more."""
_PATIENCE_S: Final = 0.05
"""How long the next ones of a batch wait for those that are under way."""


class AsyncClient:
    """A connection to a GT Store cluster, for the tasks of one event loop;
    ``gtstore.connect_async`` makes one.

    Use it in an ``async with`` statement, or await it and close it. Any number of tasks may use it
    at once: it has one connection to each node, whatever their number, and what they send in one
    turn of the loop goes together. The methods are those of ``Client``; they take, return and raise
    the same.

    A call that is cancelled ends at once. If it was a write, it may have happened, or happen yet,
    at most once, as after OutcomeUnknown.

    It belongs to the event loop in which it is used first, wherever it was made; used in another
    one it raises GTStoreError. It is not for several threads, and not for a forked child; it cannot
    be pickled or copied.

    Args:
        manager: ``HOST:PORT`` of the cluster's manager.
        timeout: seconds that each call may take in all.
    """

    def __init__(self, manager: str = "127.0.0.1:9001", timeout: float = CLIENT_TIMEOUT_S) -> None:
        self._manager = parse_address(manager)
        self._routes = Routes()
        self._source = Source(lambda: secrets.randbits(64), steady_ns, random.random)
        self._session = AsyncSession(
            partial(locate, self._routes, self._manager), self._source, as_timeout(timeout)
        )
        self._users = 0  # that have connected it, or are about to
        self._first = asyncio.Lock()  # whoever holds it asks for the map that nobody has yet

    # --- single keys -----------------------------------------------------------------------------

    async def put(
        self, key: str | bytes, value: str | bytes, *, ttl: float | None = None
    ) -> PutResult:
        """Store a value under a key, on all nodes that own the key; see Client.put."""
        key = as_key(key)
        value = as_value(value)
        began_at = await self._begin_write()
        flags = 0
        if ttl is not None:
            value = await self._expiry(ttl) + value
            flags = EXPIRES
        routes, source = self._routes, self._source
        begun = operations.begin_put(routes, source, key, value, flags)
        exchange = self._send(begun, begun[0].nodes, began_at)
        try:
            replies = await exchange.future
        except asyncio.CancelledError:
            # It may be complete all the same; then its owners are owed that they learn it.
            exchange.leave(partial(operations.end_put, source, key, _without_frame(begun)))
            raise
        if replies.count(ACKED) == len(replies):
            return operations.end_put(source, key, begun)
        operation = operations.put(routes, source, key, value, flags, begun)
        return await self._session.go_on(operation, replies, began_at)

    @overload
    async def get(self, key: str | bytes) -> bytes | None: ...
    @overload
    async def get(self, key: str | bytes, default: Default) -> bytes | Default: ...
    async def get(self, key: str | bytes, default: Any = None) -> Any:
        """Return the latest value of a key, or ``default`` if it has none."""
        key = as_key(key)
        began_at = await self._begin()
        begun = operations.begin_get(self._routes, self._source, key)
        exchange = self._send(begun, begun[0].primary, began_at)
        try:
            replies = await exchange.future
        except asyncio.CancelledError:
            exchange.leave()
            raise
        if replies[0].__class__ is bytes:
            value = operations.plain_value(begun, replies[0])
            if value is not None:
                return value
        operation = operations.get(self._routes, self._source, key, begun)
        entry = await self._session.go_on(operation, replies, began_at)
        return default if entry is None else entry.value

    async def get_entry(self, key: str | bytes) -> StoredEntry | None:
        """Return a key's value, its version and the node that answered, or None if it has none."""
        key = as_key(key)
        return await self._run(lambda: operations.get(self._routes, self._source, key))

    async def delete(self, key: str | bytes) -> PutResult:
        """Remove a key's value, if it has one."""
        key = as_key(key)
        return await self._run_write(lambda: operations.delete(self._routes, self._source, key))

    async def append(self, key: str | bytes, value: str | bytes) -> int:
        """Add to the end of a key's value, and return the new length in bytes; see
        Client.append."""
        changed = await self._execute(key, messages.APPEND, as_value(value))
        return len(changed.value)

    async def increment(self, key: str | bytes, amount: int = 1) -> int:
        """Add to the number that a key's value is, and return the new number; see
        Client.increment."""
        changed = await self._execute(key, messages.INCREMENT, as_number(amount))
        return int(changed.value)

    async def compare_and_put(
        self,
        key: str | bytes,
        value: str | bytes,
        *,
        expected: str | bytes | Unset | None = UNSET,
        version: Version | None = None,
        ttl: float | None = None,
    ) -> PutResult:
        """Store a value only if what is stored is what is expected; see Client.compare_and_put.

        Raises VersionMismatch if something else is there.
        """
        operation, operand, old = as_comparison(value, expected, version)
        changed = await self._execute(key, operation, operand, old, ttl)
        return PutResult(changed.nodes, changed.version)

    async def _execute(
        self,
        key: str | bytes,
        operation: int,
        operand: bytes,
        expected: bytes = b"",
        ttl: float | None = None,
    ) -> operations.Changed:
        key = as_key(key)
        began_at = await self._begin_write()
        expiry = b"" if ttl is None else await self._expiry(ttl)
        flags = EXPIRES if expiry else 0
        change = operations.execute(
            self._routes, self._source, key, operation, expiry + operand, expected, flags
        )
        return await self._session.run(change, began_at)

    async def _expiry(self, ttl: float) -> bytes:
        """When what is put now expires, as it stands in an entry. Now and then the manager is asked
        for the time before, but not for long."""
        ttl_us = as_ttl_us(ttl)
        routes, source = self._routes, self._source
        now_us = source.steady_us()
        if routes.clock.has_jumped(now_us, wall_us()) or routes.clock.is_due(
            now_us, MEASURE_AGAIN_S
        ):
            timeout_s = min(operations.MEASURE_TIMEOUT_S, self._session.timeout_s / 2)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    measuring = operations.measure(routes, source)
                    await self._session.run(measuring, time.monotonic())
        return operations.expiry_after(routes, source, ttl_us)

    def _wall_lead_us(self) -> int:
        return self._routes.clock.wall_lead_us(steady_us(), wall_us())

    # --- many keys -------------------------------------------------------------------------------

    async def put_many(
        self, items: Mapping[Key, str | bytes], *, ttl: float | None = None
    ) -> dict[Key, PutResult]:
        """Store many values, each key on its own; see Client.put_many.

        Raises BatchFailed if some keys failed; its ``results`` and ``errors`` say which.
        """
        checked, keys = as_items(items), list(items)
        began_at = await self._begin_write()
        expiry = b"" if ttl is None else await self._expiry(ttl)
        entries = with_expiry(checked, expiry)
        return by_key(keys, await self._put_many(entries, began_at))

    async def put_entries(self, entries: Iterable[ScannedEntry]) -> dict[bytes, PutResult]:
        """Store what a scan has found, each value with its own expiry; see Client.put_entries."""
        began_at = await self._begin_write()
        items = as_entries(entries, self._wall_lead_us())
        return by_key([key for key, _, _ in items], await self._put_many(items, began_at))

    async def _put_many(self, items: list[Item], began_at: float) -> list[Any]:
        routes, source = self._routes, self._source

        def end(item: Item, begun: Begun, replies: list[Any]) -> Any:
            is_done = replies.count(ACKED) == len(replies)
            return operations.end_put(source, item[0], begun) if is_done else UNSET

        return await self._run_many(
            items,
            partial(operations.begin_put, routes, source),
            lambda begun: begun[0].nodes,
            end,
            partial(operations.put, routes, source),
            began_at,
        )

    @overload
    async def get_many(self, keys: Iterable[Key]) -> dict[Key, bytes | None]: ...
    @overload
    async def get_many(
        self, keys: Iterable[Key], default: Default
    ) -> dict[Key, bytes | Default]: ...
    async def get_many(self, keys: Iterable[Any], default: Any = None) -> dict[Any, Any]:
        """Return the latest values of many keys; ``default`` stands for those that have none.

        Raises BatchFailed if some keys failed; its ``results`` and ``errors`` say which.
        """
        given, checked = as_keys(keys)
        began_at = await self._begin()
        routes, source = self._routes, self._source

        def end(_: tuple[bytes], begun: Begun, replies: list[Any]) -> Any:
            reply = replies[0]
            if reply.__class__ is not bytes:
                return UNSET
            value = operations.plain_value(begun, reply)
            if value is None:
                return default if operations.is_absence(reply) else UNSET
            return value

        def get(key: bytes, begun: Begun) -> Operation[Any]:
            entry = yield from operations.get(routes, source, key, begun)
            return default if entry is None else entry.value

        outcomes = await self._run_many(
            [(key,) for key in checked],
            partial(operations.begin_get, routes, source),
            lambda begun: begun[0].primary,
            end,
            get,
            began_at,
        )
        return by_key(given, outcomes)

    async def _run_many(
        self,
        items: Sequence[Any],
        begin: Callable[..., Begun],
        to: Callable[[Begun], tuple[int, ...]],
        end: Callable[[Any, Begun, list[Any]], Any],
        operation: Callable[..., Operation[Any]],
        began_at: float,
    ) -> list[Any]:
        """Run an operation for each item; return the results or GTStoreErrors in their order.

        Args:
            items: the arguments of ``begin`` and ``operation``; the latter also takes what was
                begun.
            to: which peers a first round goes to.
            end: the result that a first round's replies give; UNSET if that needs more.
        """
        batch = _Batch(self._session, end, operation, began_at)
        rest = iter(items)
        try:
            while some := await batch.next_items(rest):
                begun = [begin(*item) for item in some]
                exchanges = [self._send(one, to(one), began_at) for one in begun]
                await batch.take(list(zip(some, begun, exchanges, strict=True)))
            return await batch.finish(len(items))
        except asyncio.CancelledError:
            batch.leave()
            raise

    # --- all keys --------------------------------------------------------------------------------

    async def scan(self, prefix: str | bytes = b"") -> AsyncGenerator[tuple[bytes, bytes]]:
        """Yield every key that has a value, with the value: all keys, or those that begin with a
        prefix; Client.scan says what is promised."""
        async for entry in self.scan_entries(prefix):
            yield entry.key, entry.value

    async def scan_keys(self, prefix: str | bytes = b"") -> AsyncGenerator[bytes]:
        """The same for the keys alone; the values stay where they are."""
        async for entry in self._scan(as_prefix(prefix), with_values=False):
            yield entry.key

    def scan_entries(self, prefix: str | bytes = b"") -> AsyncGenerator[ScannedEntry]:
        """The same with all that is known of each value: its version, and when it expires."""
        return self._scan(as_prefix(prefix), with_values=True)

    async def _scan(self, prefix: bytes, with_values: bool) -> AsyncGenerator[ScannedEntry]:
        await self._begin()
        scanner = Scanner(self._routes, prefix, with_values, self._wall_lead_us())
        while steps := scanner.steps(self._source):
            began_at = await self._begin()
            outcomes = await _outcomes([self._session.run(step, began_at) for step in steps])
            for outcome in outcomes:
                if isinstance(outcome, GTStoreError):
                    raise outcome
            for outcome in outcomes:
                for entry in outcome:
                    yield entry

    # --- the cluster -----------------------------------------------------------------------------

    async def where(self, key: str | bytes) -> Location:
        """Return a key's partition and the nodes that own it, primary first, as the manager
        says."""
        key = as_key(key)
        return await self._run(lambda: operations.where(self._routes, self._source, key))

    async def status(self) -> ClusterStatus:
        """Return the object that ``gtclient --json status`` prints; see Client.status."""
        return await self._run(lambda: operations.status(self._routes, self._source))

    async def close(self) -> None:
        """Close all connections. Calls in progress in other tasks end with what is known of
        them: of a write, OutcomeUnknown if it may have happened."""
        self._session.close()

    def __await__(self) -> Generator[Any, None, AsyncClient]:
        return self._connected().__await__()

    async def __aenter__(self) -> AsyncClient:
        return await self._connected()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __reduce__(self) -> NoReturn:
        raise no_copy("AsyncClient", "gtstore.connect_async", format_address(*self._manager))

    # --- calls -----------------------------------------------------------------------------------

    async def _connected(self) -> AsyncClient:
        self._users += 1
        try:
            await self._begin()
        except BaseException:
            self._users -= 1
            if not self._users:
                await self.close()
            raise
        return self

    async def _begin(self) -> float:
        """Begin a call: return the time on the monotonic clock. Raises GTStoreError if this is not
        the time or the place for one, and what the first call's Init may raise."""
        self._session.enter()
        began_at = time.monotonic()
        if not self._routes.cluster_id:
            async with self._first:
                if not self._routes.cluster_id:
                    await self._session.run(
                        operations.initialize(self._routes, self._source), began_at
                    )
                    self._routes.clock.has_jumped(steady_us(), wall_us())
        return began_at

    async def _begin_write(self) -> float:
        """The same for a write: that nothing was sent in time means that it did not happen."""
        try:
            return await self._begin()
        except DeadlineExceeded as error:
            raise OperationFailed(f"the write did not happen: {error}") from error

    def _send(self, begun: Begun, nodes: tuple[int, ...], began_at: float) -> Exchange:
        return self._session.exchange(
            nodes, begun[1], begun[2], began_at, began_at + self._session.timeout_s
        )

    async def _run(self, make: Callable[[], Operation[Result]]) -> Result:
        began_at = await self._begin()
        return await self._session.run(make(), began_at)

    async def _run_write(self, make: Callable[[], Operation[Result]]) -> Result:
        began_at = await self._begin_write()
        return await self._session.run(make(), began_at)


def connect_async(
    manager: str = "127.0.0.1:9001", timeout: float = CLIENT_TIMEOUT_S
) -> AsyncClient:
    """Connect to the cluster whose manager listens at ``HOST:PORT``, for asyncio::

        async with gtstore.connect_async("127.0.0.1:9001") as store:
            await store.put("key1", b"value1")

    ``store = await gtstore.connect_async(...)`` does it without the block; then close it. It may be
    called anywhere: nothing is done, and no event loop is looked for, before the block is entered,
    or it is awaited, or a method is.

    Args:
        manager: the manager's address.
        timeout: seconds that each call may take in all.

    Raises:
        InvalidInput: the address or the timeout is none.
        ConnectError: no manager answers there; when it connects.
        DeadlineExceeded: it did not answer in time; when it connects.
    """
    return AsyncClient(manager, timeout)


class _Batch:
    """The operations of one call on many keys: some hundred are under way at once. Most end with
    their first round; those that do not go on beside the next ones, so that one silent node holds
    up none but its own keys, as long as these are not too many.

    Args:
        end, operation: see AsyncClient._run_many.
    """

    def __init__(
        self,
        session: AsyncSession,
        end: Callable[[Any, Begun, list[Any]], Any],
        operation: Callable[..., Operation[Any]],
        began_at: float,
    ) -> None:
        self._outcomes: list[Any] = []
        self._session = session
        self._end = end
        self._operation = operation
        self._began_at = began_at
        self._rounds: list[_First] = []  # those that are waited for now
        self._going_on: dict[asyncio.Task[Any], tuple[int, int]] = {}
        """Tasks, with the places of their outcomes and the bytes of their keys and values."""

    async def next_items(self, rest: Iterator[Any]) -> list[Any]:
        """Items that may begin now; none if there are no more, or no time."""
        while len(self._going_on) >= _AT_ONCE or self._size >= _AT_ONCE_SIZE:
            await self._await_one()
        some: list[Any] = []
        if time.monotonic() >= self._began_at + self._session.timeout_s:
            return some
        size = self._size
        for item in islice(rest, _AT_ONCE - len(self._going_on)):
            some.append(item)
            size += _size_of(item)
            if size >= _AT_ONCE_SIZE:
                break
        return some

    @property
    def _size(self) -> int:
        return sum(size for _, size in self._going_on.values())

    async def _await_one(self) -> None:
        done, _ = await asyncio.wait(self._going_on, return_when=asyncio.FIRST_COMPLETED)
        self._collect(done)

    def _collect(self, done: Iterable[asyncio.Task[Any]]) -> None:
        for task in done:
            at, _ = self._going_on.pop(task)
            self._outcomes[at] = task.result()

    async def take(self, rounds: list[_First]) -> None:
        """Wait for these first rounds; the slow ones are left to tasks."""
        self._rounds = rounds
        await asyncio.wait([exchange.future for _, _, exchange in rounds], timeout=_PATIENCE_S)
        for item, begun, exchange in rounds:
            outcome = UNSET
            if exchange.future.done():
                outcome = self._end(item, begun, exchange.replies)
            if outcome is UNSET:
                task = asyncio.create_task(self._go_on(item, begun, exchange))
                self._going_on[task] = len(self._outcomes), _size_of(item)
            self._outcomes.append(outcome)
        self._rounds = []

    async def _go_on(self, item: Any, begun: Begun, exchange: Exchange) -> Any:
        try:
            replies = await exchange.future
        except asyncio.CancelledError:
            self._leave(item, begun, exchange)
            raise
        outcome = self._end(item, begun, replies)
        if outcome is not UNSET:
            return outcome
        try:
            operation = self._operation(*item, begun)
            return await self._session.go_on(operation, replies, self._began_at)
        except GTStoreError as error:
            return error

    async def finish(self, count: int) -> list[Any]:
        """All outcomes."""
        while self._going_on:
            await self._await_one()
        # One error serves all whose turn did not come: there may be very many.
        text = f"{self._session.timeout_s:g} s were over before its turn came"
        missing = count - len(self._outcomes)
        return self._outcomes + [DeadlineExceeded("the batch", text)] * missing

    def _leave(self, item: Any, begun: Begun, exchange: Exchange) -> None:
        late = partial(self._end, item[:1], _without_frame(begun), exchange.replies)
        exchange.leave(late)

    def leave(self) -> None:
        """Nobody waits for any of them any more."""
        for item, begun, exchange in self._rounds:
            self._leave(item, begun, exchange)
        for task in self._going_on:
            task.cancel()


_First: TypeAlias = tuple[Any, Begun, Exchange]
"""An item, what was begun of it, and its first round."""


def _without_frame(begun: Begun) -> Begun:
    """What is left to know of a round that nobody waits for: values may be large."""
    route, number, _, version, head, ack, identity = begun
    return route, number, b"", version, head, ack, identity


def _size_of(item: Any) -> int:
    """Of an item's key and value, if it has one."""
    return len(item[0]) + (len(item[1]) if len(item) > 1 else 0)


async def _outcomes(coroutines: Iterable[Any]) -> list[Any]:
    """Results and GTStoreErrors, in the same order."""
    outcomes = await asyncio.gather(*coroutines, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, GTStoreError):
            raise outcome
    return outcomes
