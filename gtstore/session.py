"""Drives operations (operations.py) over many connections at once.

A Session has one connection to each peer. One thread at a time uses it. ``run`` is the way of a single
operation, ``run_many`` that of a batch; both have one deadline.

The hot path is ``_exchange``: send the frame to every peer with a plain blocking send, then receive from
every peer with a plain blocking receive: two system calls a peer, no selector. The sockets have a
short time limit of their own (connection.PATIENCE_S). Whatever does not fit in there, a peer that
is not connected yet, a short send, a long value, a slow answer, a failure, goes on in the selector
loop (``_drive``), from exactly the state that the hot path left.

A connection whose answer did not come in time, or that answered with a wrong request id, is closed:
its late answer can never be taken for another one's.
"""

from __future__ import annotations

import heapq
import math
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

from .connection import PATIENCE_S, Connection, Deadline, describe
from .errors import ConnectError, ConnectionLost, DeadlineExceeded, GTStoreError, NetworkError
from .operations import Lost, Operation, Pause, Reply, Step
from .wire import messages
from .wire.codec import ERROR, Frame
from .wire.stream import RECEIVE_SIZE

Result = TypeVar("Result")

_DIRECT_SIZE_MAX: Final = 64 * messages.KIB
"""A longer frame would make the blocking sends wait for one peer after the other."""
_DIRECT_TIMEOUT_MIN_S: Final = 0.25
"""A shorter deadline goes to the selector at once: the hot path may take 2 x k x PATIENCE_S."""
_CALLS_MAX: Final = 1000
"""How many operations of a batch are under way at once."""

_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE


class _Unfinished(Exception):
    """The hot path could not finish an exchange. For each peer ``slots`` holds its reply; or the
    Connection, if the reply is still to come; or None, if nothing was sent to it yet."""

    def __init__(self, slots: list[Any]) -> None:
        self.slots = slots


class _Call:
    """An operation in the selector loop."""

    __slots__ = ("error", "last_error", "missing", "operation", "replies", "result", "size")

    def __init__(self, operation: Operation[Any]) -> None:
        self.operation = operation
        self.replies: list[Any] | None = None  # None before the first step
        self.missing = 0  # replies that are awaited
        self.size = 0  # bytes of its frames that are under way
        self.result: Any = None
        self.error: GTStoreError | None = None
        self.last_error: NetworkError | None = None


class Session:
    """Connections to a cluster's peers.

    Args:
        locate: returns a peer's name for people, its host and its port; raises ConnectError if
            nobody knows.
    """

    def __init__(self, locate: Callable[[int], tuple[str, str, int]]) -> None:
        self._locate = locate
        self._connections: dict[int, Connection] = {}
        # The selector loop's state, empty between runs.
        self._selector: selectors.BaseSelector | None = None
        self._ready: deque[_Call] = deque()
        self._pauses: list[tuple[float, int, _Call]] = []
        self._pause_count = 0
        self._deadline = Deadline(0)
        self._active = 0  # calls that have begun and not ended
        self._in_flight_size = 0  # bytes of their frames
        self._unsent: set[Connection] = set()  # have something in outgoing that was not tried yet

    def run(self, operation: Operation[Result], timeout_s: float) -> Result:
        """Run one operation and return its result, or raise its error."""
        started = time.monotonic()
        slots: list[Any] | None = None
        try:
            step = operation.send(None)  # type: ignore[arg-type]  # how a generator is started
            # Long waits need the selector's exact deadline.
            while step.__class__ is not Pause and timeout_s >= _DIRECT_TIMEOUT_MIN_S:
                nodes, request_id, frame = step  # type: ignore[misc]  # no Pause, so a Send
                if not request_id:
                    self._owe(nodes, frame)
                    step = operation.send([])
                elif slots is not None and time.monotonic() - started > timeout_s / 2:
                    break
                elif len(frame) > _DIRECT_SIZE_MAX:
                    break
                else:
                    slots = self._exchange(nodes, request_id, frame)
                    step = operation.send(slots)
            return self._go_on(operation, step, [], started, timeout_s)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        except _Unfinished as unfinished:
            return self._go_on(operation, step, unfinished.slots, started, timeout_s)
        except GTStoreError:
            raise
        except BaseException:
            self.abort()  # interrupted between a request and its reply
            raise

    def run_many(
        self, operations: Iterable[Operation[Result]], timeout_s: float
    ) -> list[Result | GTStoreError]:
        """Run operations at once, a bounded number at a time. Each one's result, or the error that it
        raised, stands at its place in the list."""
        calls: list[_Call] = []

        def start() -> Iterator[_Call]:
            for operation in operations:
                calls.append(_Call(operation))
                yield calls[-1]

        self._drive(start(), Deadline(timeout_s))
        return [call.result if call.error is None else call.error for call in calls]

    def close(self) -> None:
        """Send what is owed (C7) and close all connections."""
        for connection in self._connections.values():
            if connection.owed and not connection.is_connecting:
                try:
                    connection.send(connection.owed)
                except OSError:
                    pass  # a COMMIT may be lost (N5)
        self.abort()

    def abort(self) -> None:
        """Close all connections as they are."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    # --- the hot path ----------------------------------------------------------------------------

    def _owe(self, nodes: tuple[int, ...], frame: bytes) -> None:
        connections = self._connections
        for node in nodes:
            connection = connections.get(node)
            if connection is not None:
                connection.owed += frame

    def _exchange(self, nodes: tuple[int, ...], request_id: int, frame: bytes) -> list[Any]:
        """Send to all, then receive from all; return the replies.

        Raises _Unfinished if some of them have to be awaited with a selector.
        """
        connections = self._connections
        slots: list[Any] = []
        is_finished = True
        for node in nodes:
            connection = connections.get(node)
            if connection is None:
                slots.append(None)
                is_finished = False
                continue
            data = frame
            if connection.owed:
                data = connection.owed + frame
                connection.owed = b""
            try:
                size = connection.send(data)
            except BlockingIOError:
                size = 0
            except OSError as error:
                # The kernel took no byte of it.
                slots.append(self._drop(connection, describe(error), sent=False))
                continue
            if size != len(data):
                _queue(connection, data[size:])
                is_finished = False
            slots.append(connection)
        for i, connection in enumerate(slots):
            if connection.__class__ is not Connection:
                continue
            try:
                data = connection.recv(RECEIVE_SIZE)
            except BlockingIOError:
                is_finished = False
                continue
            except OSError as error:
                slots[i] = self._drop(connection, describe(error), sent=True)
                continue
            frames = connection.buffer.feed(data)
            if len(frames) == 1 and frames[0][2] == request_id:
                slots[i] = frames[0]
                if _closes(frames[0]):
                    # Or the next request would be lost.
                    del self._connections[connection.node]
                    connection.close()
            elif frames or not data or connection.buffer.error is not None:
                reason = str(connection.ended(data, frames))
                slots[i] = self._drop(connection, reason, sent=True)
            else:
                is_finished = False  # a part of a long reply
        if not is_finished:
            raise _Unfinished(slots)
        return slots

    def _drop(self, connection: Connection, reason: str, sent: bool) -> Lost:
        """Close a connection that failed under the hot path; the Lost stands in for its reply."""
        self._connections.pop(connection.node, None)
        connection.close()
        return Lost(0, connection.node, sent, ConnectionLost(connection.peer, reason))

    # --- the selector loop -----------------------------------------------------------------------

    def _go_on(
        self,
        operation: Operation[Result],
        step: Step,
        slots: list[Any],
        started: float,
        timeout_s: float,
    ) -> Result:
        """Finish an operation in the selector loop, from what the hot path left of its last step."""
        deadline = Deadline(timeout_s)
        deadline.at = started + timeout_s
        call = _Call(operation)
        self._drive(iter(()), deadline, (call, step, slots))
        if call.error is not None:
            raise call.error
        result: Result = call.result
        return result

    def _drive(
        self,
        calls: Iterator[_Call],
        deadline: Deadline,
        begun: tuple[_Call, Step, list[Any]] | None = None,
    ) -> None:
        """Run all calls to their ends, results or errors."""
        self._deadline = deadline
        self._active = 0
        self._in_flight_size = 0
        self._selector = selectors.DefaultSelector()
        try:
            if begun is not None:
                self._active += 1
                self._take_step(*begun)
            self._loop(calls)
        except BaseException:
            self.abort()
            raise
        finally:
            self._selector.close()
            self._selector = None
            self._ready.clear()
            self._pauses.clear()
            self._unsent.clear()
            for connection in self._connections.values():
                connection.watched = 0

    def _loop(self, calls: Iterator[_Call]) -> None:
        assert self._selector is not None
        while True:
            # Frames are gathered while calls go on, and sent together.
            while call := self._next_call(calls):
                self._advance(call)
            if not self._active:
                return
            for connection in self._unsent:
                self._flush(connection)
            self._unsent.clear()
            if self._ready:
                continue
            wake_at = min(self._deadline.at, self._pauses[0][0] if self._pauses else math.inf)
            for key, events in self._selector.select(max(wake_at - time.monotonic(), 0)):
                self._on_events(key.data, events)
            if self._deadline.has_passed():
                self._expire()
            while self._pauses and self._pauses[0][0] <= time.monotonic():
                self._ready.append(heapq.heappop(self._pauses)[2])

    def _next_call(self, calls: Iterator[_Call]) -> _Call | None:
        """A call that has its replies; or the next one of a batch, if few enough are under way."""
        if self._ready:
            return self._ready.popleft()
        if self._active >= _CALLS_MAX or self._in_flight_size >= messages.IN_FLIGHT_SIZE_MAX:
            return None
        call = next(calls, None)
        if call is not None:
            self._active += 1
        return call

    def _advance(self, call: _Call) -> None:
        """Hand a call its replies and take its next step."""
        self._in_flight_size -= call.size
        call.size = 0
        try:
            step = call.operation.send(call.replies)  # type: ignore[arg-type]  # None starts it
            while True:
                if step.__class__ is not Pause and not step[1]:  # type: ignore[misc]
                    self._owe(step[0], step[2])  # type: ignore[misc, arg-type]
                    step = call.operation.send([])
                elif self._deadline.has_passed():
                    step = call.operation.throw(self._too_late(call))
                else:
                    break
        except StopIteration as stop:
            call.result = stop.value
            self._active -= 1
        except GTStoreError as error:
            call.error = error
            self._active -= 1
        else:
            self._take_step(call, step, [])

    def _too_late(self, call: _Call) -> DeadlineExceeded:
        timeout_s = self._deadline.timeout_s
        error = call.last_error
        if error is None:
            return DeadlineExceeded("the call", f"no time was left after {timeout_s:g} s")
        if isinstance(error, DeadlineExceeded):
            return error
        return DeadlineExceeded(error.peer, f"{error.reason}; gave up after {timeout_s:g} s")

    def _take_step(self, call: _Call, step: Step, slots: list[Any]) -> None:
        """Begin a step, or what the hot path left of it (see _exchange for the slots)."""
        if isinstance(step, Pause):
            call.replies = []
            self._pause_count += 1  # so that the heap never compares two calls
            at = time.monotonic() + step.seconds
            heapq.heappush(self._pauses, (at, self._pause_count, call))
            return
        nodes, request_id, frame = step
        call.replies = slots or [None] * len(nodes)
        call.missing = 0
        for slot, (node, state) in enumerate(zip(nodes, call.replies, strict=True)):
            if state is None:
                call.missing += 1
                self._send(call, slot, node, request_id, frame)
            elif isinstance(state, Connection):
                call.missing += 1
                state.awaiting[request_id] = (call, slot, -1)
                if state.outgoing:
                    self._unsent.add(state)
                self._watch(state)
        if not nodes:
            self._ready.append(call)

    def _send(self, call: _Call, slot: int, node: int, request_id: int, frame: bytes) -> None:
        connection = self._connections.get(node)
        if connection is None:
            try:
                peer, host, port = self._locate(node)
                connection = Connection.start(node, peer, host, port)
            except ConnectError as error:
                self._answer(call, slot, Lost(0, node, False, error))
                return
            self._connections[node] = connection
        connection.awaiting[request_id] = (
            call,
            slot,
            connection.queued_size + len(connection.owed),
        )
        if connection.owed:
            _queue(connection, connection.owed)
            connection.owed = b""
        _queue(connection, frame)
        call.size += len(frame)
        self._in_flight_size += len(frame)
        self._unsent.add(connection)

    def _answer(self, call: _Call, slot: int, reply: Reply) -> None:
        assert call.replies is not None
        call.replies[slot] = reply
        call.missing -= 1
        if isinstance(reply, Lost):
            call.last_error = reply.error
        if not call.missing:
            self._ready.append(call)

    def _watch(self, connection: Connection) -> None:
        """Tell the selector what this connection waits for."""
        assert self._selector is not None
        wanted = _READ
        if connection.outgoing or connection.is_connecting:
            wanted |= _WRITE
        if not connection.watched:
            self._selector.register(connection.sock, wanted, connection)
        elif wanted != connection.watched:
            self._selector.modify(connection.sock, wanted, connection)
        connection.watched = wanted

    def _on_events(self, connection: Connection, events: int) -> None:
        if self._connections.get(connection.node) is not connection:
            return  # it has failed while other events were handled
        if connection.is_connecting:
            try:
                connection.finish_connecting()
            except ConnectError as error:
                self._fail(connection, error)
                return
        if events & _READ:
            self._receive(connection)
        if events & _WRITE and self._connections.get(connection.node) is connection:
            self._flush(connection)

    def _flush(self, connection: Connection) -> None:
        """Send as much as the kernel takes, many small frames together."""
        if self._connections.get(connection.node) is not connection:
            return  # it has failed in the meantime
        outgoing = connection.outgoing
        try:
            while outgoing and not connection.is_connecting:
                if len(outgoing) > 1 and len(outgoing[0]) < _DIRECT_SIZE_MAX:
                    gathered = _gather(outgoing)
                    outgoing.appendleft(gathered)
                size = connection.send(outgoing[0], socket.MSG_DONTWAIT)
                connection.sent_size += size
                if size == len(outgoing[0]):
                    outgoing.popleft()
                else:
                    outgoing[0] = memoryview(outgoing[0])[size:]
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(connection, ConnectionLost(connection.peer, describe(error)))
            return
        self._watch(connection)

    def _receive(self, connection: Connection) -> None:
        try:
            size = connection.buffer.receive_size
            data = connection.recv(size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(connection, ConnectionLost(connection.peer, describe(error)))
            return
        is_told_to_close = False
        for frame in connection.buffer.feed(data):
            waiter = connection.awaiting.pop(frame[2], None)
            if waiter is None:
                self._fail(connection, connection.ended(data, [frame]))
                return
            self._answer(waiter[0], waiter[1], frame)
            is_told_to_close |= _closes(frame)
        if is_told_to_close or not data or connection.buffer.error is not None:
            self._fail(connection, connection.ended(b"", []))

    def _fail(self, connection: Connection, error: NetworkError) -> None:
        """Close a connection. Whoever waits for a reply on it gets a Lost."""
        assert self._selector is not None
        if connection.watched:
            self._selector.unregister(connection.sock)
            connection.watched = 0
        if self._connections.get(connection.node) is connection:
            del self._connections[connection.node]
        connection.close()
        for call, slot, begin in connection.awaiting.values():
            sent = connection.sent_size > begin
            self._answer(call, slot, Lost(0, connection.node, sent, error))
        connection.awaiting.clear()

    def _expire(self) -> None:
        """The deadline has passed: nobody waits any longer."""
        text = f"no answer within {self._deadline.timeout_s:g} s"
        for connection in list(self._connections.values()):
            if connection.awaiting:
                self._fail(connection, DeadlineExceeded(connection.peer, text))
        self._ready += [call for _, _, call in self._pauses]
        self._pauses.clear()


def _queue(connection: Connection, data: bytes) -> None:
    connection.outgoing.append(data)
    connection.queued_size += len(data)


def _gather(outgoing: deque[bytes | memoryview]) -> bytes:
    """Take frames off the queue, together at most about _DIRECT_SIZE_MAX bytes, at least one."""
    parts: list[bytes | memoryview] = []
    size = 0
    while outgoing and (not parts or size + len(outgoing[0]) <= _DIRECT_SIZE_MAX):
        parts.append(outgoing.popleft())
        size += len(parts[-1])
    return b"".join(parts)


def _closes(frame: Frame) -> bool:
    """Whether the peer closes the connection after this reply."""
    if frame[0] != ERROR:
        return False
    row = messages.ERRORS.get(int.from_bytes(frame[3][:2], "big"))
    return row is not None and row.closes
