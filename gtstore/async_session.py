"""Drives operations (operations.py) under asyncio: many at once over one connection to each peer.

A task that has begun a step waits for a future; replies are matched by their request ids, in
whatever order, and the last one that was missing wakes the task. Frames of all tasks that ran in
one turn of the event loop are sent together, one send a peer.

Who waits may go away. A call that was cancelled, or whose deadline has passed, takes its frames
back where they were not sent yet; otherwise its request ids stay known until the replies come, so
that a late reply is dropped, and never taken for another call's. The connection stays as it is,
because others use it. But a peer that has answered nothing for a whole timeout, or none of the
requests that are left there and nobody waits for, has its connection closed: so what is kept for it
is bounded, and the next request finds out what became of it.

Everything here runs in the thread of one event loop, the one in which the first call was made. What
outlives a call, as connections and the timer do, is begun in an empty context: what a caller keeps
in its context variables is not kept here for ever.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from contextvars import Context
from functools import partial
from typing import Any, Final, TypeVar

from .connection import Connection, describe
from .errors import ConnectError, ConnectionLost, DeadlineExceeded, GTStoreError
from .operations import ACKED, KIND_AT, Lost, Operation, Pause, Source
from .session import (
    ERROR_WORD,
    PLAIN_MASK,
    PLAIN_WORD,
    as_frame,
    is_end,
    is_refusal,
    not_asked,
    stranger,
    too_late,
    trouble_in,
    unpack_words,
)
from .turns import Ticket
from .wire import messages
from .wire.codec import ACK, WRITE, Frame, head_word
from .wire.messages import CLIENT_IDLE_S
from .wire.stream import HEADER_SIZE

Result = TypeVar("Result")

_ACK_WORD: Final = head_word(ACK)
_TOGETHER_SIZE: Final = 64 * messages.KIB
"""Frames are joined up to about this size; longer ones are sent as they are."""


class Exchange:
    """One step of an operation: a frame that goes to some peers, and their replies.

    ``future`` is done once all replies are there: then it has the list ``replies``, in the order of
    the peers, each one a whole frame as bytes, a Frame, ACKED or a Lost. To cancel it is to go
    away.
    """

    __slots__ = (
        "_late", "began_at", "deadline", "frame", "future", "missing", "replies", "request_id",
        "rest", "size",
    )  # fmt: skip

    def __init__(
        self,
        future: asyncio.Future[list[Any]],
        count: int,
        request_id: int,
        frame: bytes,
        began_at: float,
        deadline: float,
    ) -> None:
        self.future = future
        self.replies: list[Any] = [None] * count
        self.missing = count
        self.request_id = request_id
        self.frame = frame  # empty once nobody waits any more
        self.size = len(frame)
        self.began_at = began_at
        self.deadline = deadline
        self._late: Callable[[], object] | None = None
        self.rest: Callable[[Any], None] | None = None
        """Sees to the peers that are not asked before another one's reply."""

    def answer(self, slot: int, reply: Any) -> None:
        """Take a reply, unless the place has one: a Lost, since the deadline has passed."""
        if self.replies[slot] is not None:
            return
        self.replies[slot] = reply
        self.missing -= 1
        if self.missing:
            if self.rest is not None:
                rest, self.rest = self.rest, None
                rest(reply)
            return
        self.frame = b""
        if not self.future.done():
            self.future.set_result(self.replies)
        elif self._late is not None:
            self.leave(self._late)

    def leave(self, late: Callable[[], object] | None = None) -> None:
        """Nobody waits any more: what was not sent never is, and takes no memory. If all replies
        come after all, and are ACKs, do ``late``."""
        self.future.cancel()
        self.frame = b""
        self._late = late
        if late and not self.missing and self.replies.count(ACKED) == len(self.replies):
            late()


class _Shared(Connection):
    """A connection that all calls share.

    ``outgoing`` has exchanges whose frame is to be sent, and frames that are owed. ``awaiting`` has
    for each request id an exchange, the reply's place in it, and where in the stream of sent bytes
    its frame begins.
    """

    __slots__ = ("answered_at", "timer", "unfinished")

    def __init__(self, node: int, peer: str, address: tuple[str, int]) -> None:
        super().__init__(node, peer, address)
        self.answered_at = -math.inf  # when the last whole reply came, on the monotonic clock
        self.timer: asyncio.TimerHandle | None = None  # when the next address is due
        self.unfinished: bytes | memoryview = b""  # what the kernel did not take yet

    def next_block(self) -> bytes:
        """Take frames off the queue to be sent together. What nobody waits for any more is not
        sent."""
        parts: list[bytes] = []
        size = 0
        outgoing = self.outgoing
        while outgoing and size < _TOGETHER_SIZE:
            item = outgoing.popleft()
            if item.__class__ is bytes:
                frame = item
            elif item.future.done():
                self.sent_size += item.size
                # It is not there if the peer has answered what it never saw.
                self.awaiting.pop(item.request_id, None)
                continue
            else:
                frame = item.frame
            size += len(frame)
            if parts and size > _TOGETHER_SIZE:
                outgoing.appendleft(item)
                break
            # From here on it counts as sent: nobody can take it back.
            self.sent_size += len(frame)
            parts.append(frame)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class AsyncSession:
    """Connections to a cluster's peers, for the tasks of one event loop.

    Args:
        locate: returns a peer's name for people, its host and its port; raises ConnectError if
            nobody knows.
        source: whose COMMITs are owed (C7).
        timeout_s: what a call may take in all.
    """

    def __init__(
        self, locate: Callable[[int], tuple[str, str, int]], source: Source, timeout_s: float
    ) -> None:
        self._locate = locate
        self._source = source
        self._owed = source.owed
        self.timeout_s = timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: dict[int, _Shared] = {}
        self._known: set[int] = set()  # see Session
        self._unsent: list[_Shared] = []  # have something in outgoing that was not tried yet
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf
        self._idle_timer: asyncio.TimerHandle | None = None
        self._pausing: set[asyncio.Future[None]] = set()  # of calls that wait for their turn
        self._is_closed = False

    def enter(self) -> None:
        """Check that calls can be made here and now.

        Raises GTStoreError if it was closed, or another event loop uses it.
        """
        loop = asyncio.get_running_loop()
        if self._is_closed:
            raise GTStoreError("this client was closed")
        if loop is not self._loop:
            if self._loop is not None:
                raise _of_another_loop(self._loop)
            self._loop = loop

    async def run(self, operation: Operation[Result], began_at: float) -> Result:
        """Run an operation of a call that began at ``began_at``, on the monotonic clock, and return
        its result, or raise its error."""
        return await self.go_on(operation, None, began_at)

    async def go_on(
        self, operation: Operation[Result], replies: list[Any] | None, began_at: float
    ) -> Result:
        """The same for an operation whose first step was done already, with these replies."""
        deadline = began_at + self.timeout_s
        trouble: GTStoreError | None = None
        try:
            step = next(operation)
            while True:
                if replies is None:
                    now = time.monotonic()
                    if now >= deadline or self._is_closed:
                        step = operation.throw(self._at_the_end(trouble))
                        continue
                    if isinstance(step, Pause):
                        await self._pause(min(step.seconds, deadline - now), step.ticket)
                        replies = []
                    else:
                        exchange = self.exchange(*step, now, deadline)
                        try:
                            replies = await exchange.future
                        except asyncio.CancelledError:
                            exchange.leave()
                            raise
                frames = [as_frame(one) if one.__class__ is bytes else one for one in replies]
                for at, frame in enumerate(frames):
                    trouble = trouble_in(frame, trouble)
                    if is_refusal(frame):
                        self._known.discard(step[0][at])  # type: ignore[index]
                replies = None
                step = operation.send(frames)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        finally:
            operation.close()

    async def _pause(self, seconds: float, ticket: Ticket | None) -> None:
        """So long; or until another task calls the ticket, or this is closed."""
        if ticket is None:
            await asyncio.sleep(seconds)
            return
        loop = asyncio.get_running_loop()
        called = loop.create_future()

        def wake() -> None:
            if not called.done():
                called.set_result(None)

        ticket.wake = wake
        if not ticket.is_due:
            timer = loop.call_later(seconds, wake, context=Context())
            self._pausing.add(called)
            try:
                await called
            finally:
                self._pausing.discard(called)
                timer.cancel()

    def _at_the_end(self, trouble: GTStoreError | None) -> DeadlineExceeded:
        if self._is_closed:
            return DeadlineExceeded("this client", "it was closed")
        return too_late(trouble, self.timeout_s)

    def exchange(
        self,
        nodes: tuple[int, ...],
        request_id: int,
        frame: bytes,
        began_at: float,
        deadline: float,
    ) -> Exchange:
        """Send a frame to all of these peers at the end of the loop's turn. Once the deadline has
        passed, a DeadlineExceeded takes the place of what is missing."""
        loop = self._loop
        assert loop is not None
        exchange = Exchange(loop.create_future(), len(nodes), request_id, frame, began_at, deadline)
        if self._known.issuperset(nodes) or frame[KIND_AT] != WRITE:
            self._enqueue(exchange, enumerate(nodes))
        else:
            self._ask_in_turn(exchange, nodes, [*range(len(nodes))])
        if deadline < self._wakes_at:
            Context().run(self._wake_at, deadline)
        if not nodes:
            exchange.future.set_result([])
        return exchange

    def _ask_in_turn(self, exchange: Exchange, nodes: tuple[int, ...], slots: list[int]) -> None:
        """Send a WRITE to the first one that is not known, alone; to the others after its reply."""
        while len(slots) > 1:
            first = stranger(nodes, slots, self._known)
            if first is None:
                break
            slots.remove(first)
            self._enqueue(exchange, ((first, nodes[first]),))
            if exchange.replies[first] is None:
                exchange.rest = partial(self._ask_others, exchange, nodes, slots)
                return
        self._enqueue(exchange, [(slot, nodes[slot]) for slot in slots])

    def _ask_others(
        self, exchange: Exchange, nodes: tuple[int, ...], slots: list[int], reply: Any
    ) -> None:
        if exchange.future.done() or (reply.__class__ is not bytes and is_end(reply)):
            for slot, lost in not_asked(nodes, slots):
                exchange.answer(slot, lost)
        else:
            self._ask_in_turn(exchange, nodes, slots)

    def _enqueue(self, exchange: Exchange, to: Iterable[tuple[int, int]]) -> None:
        """Queue its frame for these slots and nodes."""
        loop = self._loop
        assert loop is not None
        request_id, size = exchange.request_id, exchange.size
        for slot, node in to:
            connection = self._connections.get(node)
            if connection is None or connection.is_doubtful:
                try:
                    connection = Context().run(self._connect, node)
                except ConnectError as error:
                    exchange.answer(slot, Lost(0, node, False, error))
                    continue
            outgoing = connection.outgoing
            if not outgoing and not connection.watched:
                if not self._unsent:
                    loop.call_soon(self._flush_all, context=Context())
                self._unsent.append(connection)
            if node in self._owed:
                owed = self._owed.pop(node)
                outgoing.append(owed)
                connection.queued_size += len(owed)
            connection.awaiting[request_id] = (exchange, slot, connection.queued_size)
            connection.queued_size += size
            outgoing.append(exchange)

    def close(self) -> None:
        """Send what is owed, as far as that needs no waiting, and close all connections. Calls in
        progress end with what is known of them.

        Raises GTStoreError in another event loop, unless the one that uses it is closed.
        """
        loop = self._loop
        if loop and not loop.is_closed() and loop is not asyncio.get_running_loop():
            raise _of_another_loop(loop)
        self._is_closed = True
        if loop and loop.is_closed():  # nobody is there who could be told anything
            for shared in self._connections.values():
                shared.close()
            self._connections.clear()
            return
        self._source.owe_now()
        for node, frames in self._owed.items():
            connection = self._connections.get(node)
            if connection is not None and not connection.watched:
                try:
                    connection.send(frames)
                except OSError:
                    pass  # a COMMIT may be lost (N5)
        self._owed.clear()
        for connection in list(self._connections.values()):
            self._fail(connection, ConnectionLost(connection.peer, "this client was closed"))
        for pausing in self._pausing:
            if not pausing.done():
                pausing.set_result(None)
        for timer in (self._timer, self._idle_timer):
            if timer is not None:
                timer.cancel()

    # --- connections -----------------------------------------------------------------------------

    def _connect(self, node: int) -> _Shared:
        """A new connection to a peer; or the one that there is, if it still leads there."""
        peer, host, port = self._locate(node)
        if self._is_closed:  # a batch goes on to its end
            raise ConnectError(peer, "this client was closed")
        connection = self._connections.get(node)
        if connection is not None and connection.address == (host, port):
            connection.is_doubtful = False
            return connection
        if connection is not None:
            self._fail(connection, ConnectionLost(connection.peer, f"node {node} is elsewhere now"))
        connection = _Shared(node, peer, (host, port))
        connection.begin(time.monotonic() + self.timeout_s)
        connection.watched = 1  # until it can be written to
        self._connections[node] = connection
        self._await_connection(connection)
        if self._idle_timer is None:
            self._look_later()
        return connection

    def _await_connection(self, connection: _Shared) -> None:
        loop = self._loop
        assert loop is not None
        watch = loop.add_reader if connection.is_resolving else loop.add_writer
        watch(connection.descriptor, self._go_on_connecting, connection)
        if connection.try_until < math.inf:
            connection.timer = loop.call_later(
                max(connection.try_until - time.monotonic(), 0), self._go_on_connecting, connection
            )

    def _unwatch(self, connection: _Shared) -> None:
        assert self._loop is not None
        if connection.timer is not None:
            connection.timer.cancel()
            connection.timer = None
        if connection.descriptor >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(connection.descriptor)
            self._loop.remove_writer(connection.descriptor)

    def _go_on_connecting(self, connection: _Shared) -> None:
        assert self._loop is not None
        self._unwatch(connection)  # it may go on with another descriptor
        try:
            connection.go_on_connecting()
        except ConnectError as error:
            self._fail(connection, error)
            return
        if connection.is_connecting:
            self._await_connection(connection)
            return
        connection.watched = 0
        self._loop.add_reader(connection.descriptor, self._on_readable, connection)
        self._flush(connection)

    def _look_later(self) -> None:
        assert self._loop is not None
        self._idle_timer = self._loop.call_later(CLIENT_IDLE_S, self._close_idle)

    def _close_idle(self) -> None:
        """Close the connections over which nothing has come for a while, and nothing is to come."""
        self._idle_timer = None
        now = time.monotonic()
        for connection in list(self._connections.values()):
            is_used = connection.awaiting or connection.outgoing or connection.unfinished
            if not is_used and connection.answered_at + CLIENT_IDLE_S <= now:
                self._fail(connection, ConnectionLost(connection.peer, "it was idle"))
        if self._connections:
            self._look_later()

    def _fail(self, connection: _Shared, error: ConnectError | ConnectionLost) -> None:
        """Close a connection. Whoever waits for a reply on it gets a Lost."""
        if self._connections.get(connection.node) is not connection:
            return
        assert self._loop is not None
        del self._connections[connection.node]
        self._known.discard(connection.node)
        self._unwatch(connection)
        connection.close()
        connection.outgoing.clear()
        awaiting, connection.awaiting = connection.awaiting, {}
        for exchange, slot, begin in awaiting.values():
            exchange.answer(slot, Lost(0, connection.node, connection.sent_size > begin, error))

    # --- sending ---------------------------------------------------------------------------------

    def _flush_all(self) -> None:
        unsent, self._unsent = self._unsent, []
        for connection in unsent:
            if self._connections.get(connection.node) is connection:
                self._flush(connection)

    def _flush(self, connection: _Shared) -> None:
        """Send as much as the kernel takes; for the rest wait until it takes more."""
        assert self._loop is not None
        try:
            while connection.outgoing or connection.unfinished:
                block = connection.unfinished or connection.next_block()
                size = connection.send(block) if block else 0
                connection.unfinished = b"" if size == len(block) else memoryview(block)[size:]
        except BlockingIOError:
            connection.unfinished = block
            if not connection.watched:
                connection.watched = 1
                self._loop.add_writer(connection.descriptor, self._flush, connection)
        except OSError as error:
            self._fail(connection, ConnectionLost(connection.peer, describe(error)))
        else:
            if connection.watched:
                connection.watched = 0
                self._loop.remove_writer(connection.descriptor)

    # --- receiving -------------------------------------------------------------------------------

    def _on_readable(self, connection: _Shared) -> None:
        try:
            data = connection.recv_now(connection.buffer.receive_size)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(connection, ConnectionLost(connection.peer, describe(error)))
            return
        count = len(connection.awaiting)
        at = 0 if connection.buffer.size else _hand_out_plain(connection, data)
        end = None if at and at == len(data) else connection.take_in(data[at:], _answer)
        if len(connection.awaiting) < count:
            connection.answered_at = time.monotonic()
            self._known.add(connection.node)
        if end is not None:
            self._fail(connection, end)

    # --- deadlines -------------------------------------------------------------------------------

    def _wake_at(self, deadline: float) -> None:
        """See to deadlines when that one has passed."""
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = deadline
        self._timer = self._loop.call_later(max(deadline - time.monotonic(), 0), self._expire)

    def _expire(self) -> None:
        """Whoever waits for longer than its deadline waits no more. One look at all, whenever the
        earliest deadline that was known has passed: most calls end long before theirs."""
        self._timer = None
        self._wakes_at = next_at = math.inf
        now = time.monotonic()
        for connection in list(self._connections.values()):
            text = f"{connection.waits_for()} within {self.timeout_s:g} s"
            silent_at = math.inf  # when it will have been silent for a whole timeout
            is_awaited = False
            for exchange, slot, begin in list(connection.awaiting.values()):
                if exchange.deadline > now:
                    next_at = min(next_at, exchange.deadline)
                    is_awaited |= not exchange.future.done()
                    continue
                if connection.answered_at < exchange.began_at:
                    silent_at = min(silent_at, exchange.began_at + self.timeout_s)
                error = DeadlineExceeded(connection.peer, text)
                sent = connection.sent_size > begin
                exchange.answer(slot, Lost(0, connection.node, sent, error))
            # A call that had little time left says less of the peer than others may yet see.
            if silent_at <= now or (silent_at < math.inf and not is_awaited):
                self._fail(connection, ConnectionLost(connection.peer, text))
            else:
                next_at = min(next_at, silent_at)
        if next_at < self._wakes_at:
            self._wake_at(next_at)


def _of_another_loop(loop: asyncio.AbstractEventLoop) -> GTStoreError:
    return GTStoreError(
        f"this client is used by another event loop{', which is closed' * loop.is_closed()}: its "
        "connections belong to the loop in which the first call was made (asyncio.run makes a new "
        "one each time); make a client in each loop"
    )


def _hand_out_plain(connection: _Shared, data: bytes) -> int:
    """Hand out whole, plain replies that are awaited, and return where something else begins, or
    the end. The same as Connection.take_in, for the usual case."""
    awaiting = connection.awaiting
    size = len(data)
    at = 0
    while size - at >= HEADER_SIZE:
        word, request_id, length = unpack_words(data, at)
        end = at + HEADER_SIZE + length
        if word & PLAIN_MASK != PLAIN_WORD or word == ERROR_WORD or end > size:
            break
        if request_id not in awaiting:
            break
        exchange, slot, _ = awaiting.pop(request_id)
        exchange.answer(slot, ACKED if word == _ACK_WORD and not length else data[at:end])
        at = end
    return at


def _answer(waiter: tuple[Exchange, int, int], frame: Frame) -> None:
    waiter[0].answer(waiter[1], frame)
