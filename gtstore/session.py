"""Drives operations (operations.py) over many connections at once.

A Session has one connection to each peer. One thread at a time uses it.

``exchange`` is the hot path: send a frame to each node, which never waits, then receive from each,
which waits for a short time (connection.PATIENCE_S); three system calls a node, no selector.
Whatever is not usual, a peer that is not connected yet, a short send, a long value, a slow answer,
an error, a failure, ends it with Unfinished, and ``go_on`` takes the operation from there, from
exactly that state, through the selector loop.
``run`` and ``run_many`` are the selector loop from the start, for one operation and for a batch.

A connection whose answer did not come in time, or that answered with a wrong request id, is closed:
its late answer can never be taken for another one's.
"""

from __future__ import annotations

import heapq
import selectors
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, repeat
from os import read, write
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from .connection import (
    Connection,
    Deadline,
    closes,
    code_of,
    describe,
    is_about_all,
    is_not_yet,
    is_reply,
)
from .errors import ConnectError, ConnectionLost, DeadlineExceeded, GTStoreError, NetworkError
from .operations import (
    ACKED,
    KIND_AT,
    MANAGER,
    Begun,
    Limited,
    Lost,
    Operation,
    Pause,
    Reply,
    Send,
    Step,
    refusal_of,
)
from .placement import Routes, format_address
from .turns import Ticket
from .wire import messages
from .wire.codec import ERROR, HEADER, HEADER_WORDS, WRITE, Frame, head_word
from .wire.messages import CLIENT_IDLE_S
from .wire.stream import HEADER_SIZE, RECEIVE_SIZE, SHORT_RECEIVE_SIZE

Result = TypeVar("Result")
Begins: TypeAlias = tuple[Operation[Result], list[Any]]
"""An operation, and what was begun of its first step: its slots, or none (see Unfinished)."""

_DIRECT_SIZE_MAX: Final = 64 * messages.KIB
"""A longer frame would seldom go out in one send."""
DIRECT_TIMEOUT_MIN_S: Final = 0.25
"""A call with less time than this goes without ``exchange``, which may take k x PATIENCE_S."""

unpack_words: Final = HEADER_WORDS.unpack_from
PLAIN_MASK: Final = 0xFFFF_00FF
"""What of a header's first word is not the kind."""
PLAIN_WORD: Final = head_word(0)  # magic and version, no flags
ERROR_WORD: Final = head_word(ERROR)
_CALLS_MAX: Final = 250
"""How many operations of a batch are under way at once. Twice as many make puts up to a tenth
faster, but each takes its time to end when the deadline has passed (bench/deadlines.py)."""

_LOOK_S: Final = 0.005
"""So often a call of a batch looks whether its ticket was called: what the selector waits for are
connections."""

_NO_PLACE: Final = (messages.BUSY, messages.NO_SPACE)
_NOTHING: Final[list[Any]] = []
_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE


Group: TypeAlias = tuple[tuple[Connection, ...], tuple[Connection, ...]]
"""The connections to some nodes, in their order, and the other way round."""


class Unfinished(Exception):
    """The hot path could not finish an exchange. For each node, ``slots`` holds its reply; or the
    Connection, if the reply is still to come; or None, if nothing was sent to it yet."""

    def __init__(self, slots: list[Any]) -> None:
        self.slots = slots


class Share:
    """What one node has to do with a round: what was sent to it, and what it has replied."""

    __slots__ = ("begun", "replies", "rest")

    def __init__(self) -> None:
        self.begun: list[Begun] = []
        self.replies: list[Any] = []
        """In the order of the requests: ACKED, or the whole frame."""
        self.rest: Any = None
        """What stands in the slots of those that are still to come: see Unfinished."""


class Round:
    """First rounds of operations that are under way together, to the nodes ``to`` each."""

    def __init__(self, begun: list[Begun], to: list[tuple[int, ...]]) -> None:
        self.begun = begun
        self.to = to
        self.shares: dict[int, Share] = {}

    @property
    def is_acked(self) -> bool:
        """Whether all replies have come, and are ACKs."""
        return all(share.replies.count(ACKED) == len(share.begun) for share in self.shares.values())

    def slots(self) -> Iterator[list[Any]]:
        """The slots of each operation: see Unfinished, but that replies are whole frames."""
        next_of = {
            node: chain(share.replies, repeat(share.rest)).__next__
            for node, share in self.shares.items()
        }
        for nodes in self.to:
            yield [next_of[node]() for node in nodes]


class Known:
    """Nodes that have taken the last request over the connection that there is, and so are likely
    to take the next one. A WRITE goes first to an owner that is not known, alone: nobody is to have
    what that one refuses, because all its connections are taken, or because it is full.

    ``groups`` has the connections to a key's owners, in their order, where all of them are known:
    what the hot path needs, found in one step.
    """

    __slots__ = ("_nodes", "groups")

    def __init__(self) -> None:
        self._nodes: set[int] = set()
        self.groups: dict[tuple[int, ...], Group] = {}

    def __contains__(self, node: object) -> bool:
        return node in self._nodes

    def has_all(self, nodes: Iterable[int]) -> bool:
        return self._nodes.issuperset(nodes)

    def add(self, node: int) -> None:
        self._nodes.add(node)

    def discard(self, node: int) -> None:
        """To be called before the node's connection is another one, or none."""
        self._nodes.discard(node)
        self.groups.clear()

    def clear(self) -> None:
        self._nodes.clear()
        self.groups.clear()


class _Unusual(Exception):
    """Something else than one whole, plain reply was received, or not everything was sent."""


class _Call:
    """An operation in the selector loop."""

    __slots__ = (
        "begun", "error", "limit", "missing", "operation", "replies", "result", "size", "step",
        "trouble", "unsent",
    )  # fmt: skip

    def __init__(self, operation: Operation[Any], begun: list[Any] | None = None) -> None:
        self.operation = operation
        self.begun = begun or []  # what the hot path left of its first step: see go_on
        self.replies: list[Any] | None = None  # None before the first step
        self.step: Send = ((), 0, b"")
        self.unsent: list[int] = []  # the slots of nodes that are not asked yet
        self.missing = 0  # replies that are awaited
        self.limit = 0  # the number of the time limit that holds for them
        self.size = 0  # bytes of its frames that are under way
        self.result: Any = None
        self.error: GTStoreError | None = None
        self.trouble: GTStoreError | None = None  # the last failure or refusal, for its user


class _Paused(NamedTuple):
    """A call that pauses, until a time of the monotonic clock, or until its ticket is called."""

    at: float
    call: _Call
    ticket: Ticket | None

    def look_at(self, now: float) -> float:
        """When to look whether it is over."""
        return self.at if self.ticket is None else min(self.at, now + _LOOK_S)

    def is_over(self, now: float) -> bool:
        return self.at <= now or (self.ticket is not None and self.ticket.is_due)


class Session:
    """Connections to a cluster's peers.

    Args:
        locate: returns a peer's name for people, its host and its port; raises ConnectError if
            nobody knows.
        owed: the Source's ``owed``.
        calls_max: how many operations of a batch are under way at once.
    """

    def __init__(
        self,
        locate: Callable[[int], tuple[str, str, int]],
        owed: dict[int, bytes] | None = None,
        calls_max: int = _CALLS_MAX,
    ) -> None:
        self._locate = locate
        self._calls_max = calls_max
        self._owed = {} if owed is None else owed
        self._connections: dict[int, Connection] = {}
        self._known = Known()
        self._groups = self._known.groups
        self._receive_size = SHORT_RECEIVE_SIZE  # of exchange
        # The selector loop's state, empty between runs.
        self._selector: selectors.BaseSelector | None = None
        self._ready: deque[_Call] = deque()
        self._pauses: list[_Paused] = []
        self._limits: list[tuple[float, int, _Call, float]] = []  # of Limited steps
        self._limit_count = 0
        self._deadline = Deadline(0)
        self._active = 0  # calls that have begun and not ended
        self._in_flight_size = 0  # bytes of their frames
        self._unsent: set[Connection] = set()  # have something in outgoing that was not tried yet
        self._connecting: set[Connection] = set()
        self._unread: set[Connection] = set()  # have something that the hot path has received

    def run(self, operation: Operation[Result], timeout_s: float) -> Result:
        """Run one operation and return its result, or raise its error."""
        return self.go_on(operation, [], time.monotonic(), timeout_s)

    def go_on(
        self, operation: Operation[Result], slots: list[Any], started: float, timeout_s: float
    ) -> Result:
        """Run an operation whose first step was begun by ``exchange``: with these replies, or what
        Unfinished says of them. The call began at ``started``, on the monotonic clock."""
        deadline = Deadline(timeout_s)
        deadline.at = started + timeout_s
        call = _Call(operation, slots)
        try:
            self._drive(iter((call,)), deadline)
        finally:
            operation.close()  # or what it holds is held as long as the error of an interruption
        if call.error is not None:
            raise call.error
        result: Result = call.result
        return result

    def run_many(
        self,
        operations: Iterable[Operation[Result]],
        timeout_s: float,
        count: int,
        started: float | None = None,
    ) -> list[Result | GTStoreError]:
        """Run ``count`` operations at once, a bounded number at a time. Each one's result, or the
        error that it raised, stands at its place in the list. The call began at ``started``, or
        now."""
        rest = ((operation, _NOTHING) for operation in operations)
        return self.go_on_many(
            (), rest, count, timeout_s, time.monotonic() if started is None else started
        )

    def go_on_many(
        self,
        under_way: Iterable[Begins[Result]],
        rest: Iterable[Begins[Result]],
        count: int,
        timeout_s: float,
        started: float,
    ) -> list[Result | GTStoreError]:
        """Go on with what a round (``send_many``) has left, and with all that comes after it.

        Args:
            under_way: operations with slots, some of which are Connections: all of these begin at
                once, before anything is received, or nobody would know whose the replies are.
            rest: ``count`` operations with slots that are none: nothing is under way for them. They
                begin as those of ``run_many`` do; but what has slots does so in any case.

        Returns the outcomes of ``under_way`` and then of ``rest``, as run_many returns them.
        """
        calls = [_Call(operation, slots) for operation, slots in under_way]
        at_once = calls.copy()
        deadline = Deadline(timeout_s)
        deadline.at = started + timeout_s
        total = len(calls) + count

        def start() -> Iterator[_Call]:
            for operation, slots in rest:
                if deadline.has_passed() and not slots:
                    return
                calls.append(_Call(operation, slots))
                yield calls[-1]

        try:
            self._drive(start(), deadline, at_once)
        finally:
            for call in calls:
                call.operation.close()
        # One error serves all whose turn did not come: there may be very many.
        too_late = DeadlineExceeded("the batch", f"{timeout_s:g} s were over before its turn came")
        return [*map(_outcome, calls), *repeat(too_late, total - len(calls))]

    def close(self) -> None:
        """Send what is owed (C7) and close all connections."""
        for node, frames in self._owed.items():
            connection = self._connections.get(node)
            if connection is not None and not connection.is_connecting:
                try:
                    connection.send(frames)
                except OSError:
                    pass  # a COMMIT may be lost (N5)
        self.abort()

    def forget(self, node: int) -> None:
        """Close the connection to a node, if there is one: the next request opens another one."""
        self._known.discard(node)
        connection = self._connections.pop(node, None)
        if connection is not None:
            connection.close()

    def close_unused(self) -> None:
        """Close the connection to the manager if nothing was asked there for a while. All clients
        have one, and few need it for long."""
        connection = self._connections.get(MANAGER)
        if connection is not None and connection.used_at + CLIENT_IDLE_S <= time.monotonic():
            self.forget(MANAGER)

    def abort(self) -> None:
        """Close all connections as they are."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self._known.clear()
        self._owed.clear()

    def _close(self, connection: Connection) -> None:
        if self._connections.get(connection.node) is connection:
            del self._connections[connection.node]
            self._known.discard(connection.node)
        connection.close()

    # --- the hot path ----------------------------------------------------------------------------

    def exchange(
        self, nodes: tuple[int, ...], request_id: int, frame: bytes, ack: bytes
    ) -> list[Reply]:
        """Send a frame to all of these nodes, then receive from all; return their replies, ACKED
        for a reply that is just the frame ``ack``.

        Raises Unfinished if that did not simply work; see go_on.
        """
        if len(frame) > _DIRECT_SIZE_MAX:
            raise Unfinished([])
        try:
            there, back = self._groups[nodes]
        except KeyError:
            there, back = self._group(nodes)
        owed = self._owed
        data = frame
        size = sent = 0
        try:
            for connection in there:
                node = connection.node
                data = owed.pop(node) + frame if node in owed else frame
                size = write(connection.descriptor, data)
                if size != len(data):
                    raise _Unusual
                sent += 1
        except (_Unusual, OSError) as error:
            raise self._half_sent(nodes, sent, data[size:], error) from None
        except BaseException:
            self.abort()  # interrupted between a request and its reply
            raise
        replies: list[Reply] = []  # of the last node first
        receive_size = self._receive_size
        try:
            # The last one was sent to last, so it is likely to answer last: whoever waits for it
            # wakes up once, and finds the other answers there, without the system call that waits.
            for connection in back:
                if replies:
                    try:
                        data = read(connection.descriptor, receive_size)
                    except BlockingIOError:
                        data = connection.recv(receive_size)
                else:
                    data = connection.recv(receive_size)
                if data == ack:
                    replies.append(ACKED)
                    continue
                _check_plain(data, request_id)
                replies.append(as_frame(data))
        except (_Unusual, OSError, struct.error) as error:
            raise self._half_received(nodes, request_id, replies, data, error) from None
        except BaseException:
            self.abort()
            raise
        replies.reverse()
        return replies

    def _group(self, nodes: tuple[int, ...]) -> Group:
        """See Known. Raises Unfinished if one of these is not."""
        connections = self._connections
        if not self._known.has_all(nodes) or any(node not in connections for node in nodes):
            raise Unfinished([])
        there = tuple(connections[node] for node in nodes)
        self._groups[nodes] = there, there[::-1]
        return self._groups[nodes]

    def ask(self, node: int, request_id: int, frame: bytes, ack: bytes | None = None) -> bytes:
        """exchange with one node: the reply is returned as it is, a whole frame; ``ack`` is one
        that need not be looked at.

        The same steps without lists and loops. Nothing goes to others, so it does not matter how
        long the frame is, or whether the node may refuse it.
        """
        owed = self._owed
        data = frame
        size = 0
        try:
            connection = self._connections[node]
            if node in owed:
                data = owed.pop(node) + frame
            size = write(connection.descriptor, data)
            if size != len(data):
                raise _Unusual
        except (_Unusual, KeyError, OSError) as error:
            raise self._half_sent((node,), 0, data[size:], error) from None
        except BaseException:
            self.abort()  # interrupted between a request and its reply
            raise
        try:
            data = connection.recv(self._receive_size)
            if data == ack:
                return data
            # As _check_plain does; its call would cost more than what it looks at.
            word, reply_id, length = unpack_words(data)
            if (
                reply_id != request_id
                or length != len(data) - HEADER_SIZE
                or word & PLAIN_MASK != PLAIN_WORD
                or word == ERROR_WORD
            ):
                raise _Unusual
        except (_Unusual, OSError, struct.error) as error:
            raise self._half_received((node,), request_id, [], data, error) from None
        except BaseException:
            self.abort()
            raise
        return data

    # --- the same for a batch --------------------------------------------------------------------

    def send_many(self, begun: list[Begun], to: list[tuple[int, ...]]) -> Round:
        """Send each node all of its frames at once.

        Args:
            begun: operations' first rounds. Together they are as short as what the kernel takes
                before the peer does: else both could wait for each other.
            to: of each one the nodes that it goes to.
        """
        round_ = Round(begun, to)
        shares = round_.shares
        for one, nodes in zip(begun, to, strict=True):
            for node in nodes:
                if node not in shares:
                    shares[node] = Share()
                shares[node].begun.append(one)
        if not self._known.has_all(shares):
            return round_
        try:
            for node, share in shares.items():
                self._send_share(node, share)
        except BaseException:
            self.abort()  # interrupted between requests and their replies
            raise
        return round_

    def _send_share(self, node: int, share: Share) -> None:
        connection = self._connections.get(node)
        if connection is None or connection.is_connecting or connection.is_doubtful:
            return
        data = b"".join([self._owed.pop(node, b""), *[one[2] for one in share.begun]])
        try:
            size = connection.send(data)
        except BlockingIOError:
            size = 0
        except OSError as error:
            share.rest = self._drop(connection, describe(error), sent=False)
            return
        if size < len(data):
            _queue(connection, data[size:])
        share.rest = connection

    def receive_many(self, round_: Round, ends_at: float) -> None:
        """Receive the replies of what send_many has begun, as far as they simply come, and before
        that time of the monotonic clock."""
        try:
            # As in exchange: the last one is likely to answer last.
            for share in reversed(round_.shares.values()):
                if isinstance(share.rest, Connection) and not share.rest.outgoing:
                    self._receive_share(share.rest, share, ends_at)
        except BaseException:
            self.abort()
            raise

    def _receive_share(self, connection: Connection, share: Share, ends_at: float) -> None:
        begun = share.begun
        acks = b"".join([one[5] for one in begun])
        count = len(begun)
        replies = share.replies
        data = b""
        at = 0
        try:
            while len(replies) < count and time.monotonic() < ends_at:
                received = connection.recv(RECEIVE_SIZE)
                if not received:
                    break
                if received == acks and not data and not replies:
                    replies += repeat(ACKED, count)
                    return
                data = data[at:] + received
                at = 0
                while len(replies) < count and len(data) - at >= HEADER_SIZE:
                    word, request_id, length = unpack_words(data, at)
                    end = at + HEADER_SIZE + length
                    if end > len(data) and length < RECEIVE_SIZE:
                        break
                    one = begun[len(replies)]
                    if (
                        end > len(data)
                        or request_id != one[1]
                        or word & PLAIN_MASK != PLAIN_WORD
                        or word == ERROR_WORD
                    ):
                        return  # the selector loop sees to this one, and to all that follow
                    reply = data[at:end]
                    replies.append(ACKED if reply == one[5] else reply)
                    at = end
        except OSError as error:
            if not is_not_yet(error):
                share.rest = self._drop(connection, describe(error), sent=True)
        finally:
            connection.unread = data[at:]
        if len(replies) == count and connection.unread:
            # More than the replies: the next request would not be answered by what comes.
            self._close(connection)

    def _half_sent(
        self, nodes: tuple[int, ...], sent: int, rest: bytes, error: Exception
    ) -> Unfinished:
        """The first ``sent`` nodes were sent to; at the next one there was an error."""
        slots: list[Any] = [self._state_of(node) for node in nodes[:sent]]
        slots += [None] * (len(nodes) - sent)
        connection = self._connections.get(nodes[sent])
        if connection is not None:
            if isinstance(error, _Unusual):  # the kernel took only a part
                _queue(connection, rest)
                slots[sent] = connection
            elif isinstance(error, OSError) and not is_not_yet(error):
                slots[sent] = self._drop(connection, describe(error), sent=False)
        return Unfinished(slots)

    def _half_received(
        self,
        nodes: tuple[int, ...],
        request_id: int,
        replies: list[Reply],
        data: bytes,
        error: Exception,
    ) -> Unfinished:
        """The replies of the last nodes are here, the last one's first; that of the node before
        them is not, or is unusual: ``data``."""
        waiting = nodes[: len(nodes) - len(replies)]
        slots = [*map(self._state_of, waiting), *reversed(replies)]
        at = len(waiting) - 1
        connection = slots[at]
        if not isinstance(connection, Connection):
            pass  # it is lost
        elif is_not_yet(error):
            pass  # the selector waits for it
        elif isinstance(error, OSError):
            slots[at] = self._drop(connection, describe(error), sent=True)
        else:
            if len(data) == SHORT_RECEIVE_SIZE:
                self._receive_size = RECEIVE_SIZE  # replies are long: from now on in one piece
            frames = connection.buffer.feed(data)
            if len(frames) == 1 and (is_reply(frames[0], request_id) or is_about_all(frames[0])):
                slots[at] = reply = frames[0]
                connection.is_doubtful = code_of(reply) == messages.STALE_EPOCH
                if closes(reply) or connection.buffer.size:
                    # Or the next request would be lost; or more came than the reply.
                    self._close(connection)
            elif frames or not data or connection.buffer.error is not None:
                reason = connection.ended(data, frames).reason
                slots[at] = self._drop(connection, reason, sent=True)
        return Unfinished(slots)

    def _state_of(self, node: int) -> Connection | Lost:
        """What stands for the reply of a node that was sent to."""
        connection = self._connections.get(node)
        if connection is None:
            error = ConnectionLost(f"node {node}", "this process is a fork, made meanwhile")
            return Lost(0, node, True, error)
        return connection

    def _drop(self, connection: Connection, reason: str, sent: bool) -> Lost:
        """Close a connection that failed under the hot path; the Lost stands in for its reply."""
        self._close(connection)
        return Lost(0, connection.node, sent, ConnectionLost(connection.peer, reason))

    # --- the selector loop -----------------------------------------------------------------------

    def _drive(
        self, calls: Iterator[_Call], deadline: Deadline, at_once: Sequence[_Call] = ()
    ) -> None:
        """Run all calls to their ends, results or errors; some of them begin before all else."""
        self._deadline = deadline
        self._active = len(at_once)
        self._in_flight_size = 0
        try:
            self._clear()  # what an interrupt of the end below has left
            self._ready.extend(at_once)
            self._selector = _new_selector()
            self._loop(calls)
        except OSError as error:  # of a socket it would have been handled: too many open files
            self.abort()
            raise ConnectError("this process", describe(error)) from error
        except BaseException:
            self.abort()
            raise
        finally:
            if self._selector is not None:
                self._selector.close()
            self._clear()

    def _clear(self) -> None:
        self._selector = None
        self._ready.clear()
        self._pauses.clear()
        self._limits.clear()
        self._unsent.clear()
        self._unread.clear()
        for connection in self._connecting:  # nobody waits for it any more
            self.forget(connection.node)
        self._connecting.clear()
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
            while self._unread:
                connection = self._unread.pop()
                data, connection.unread = connection.unread, b""
                if self._connections.get(connection.node) is connection:
                    self._take_in(connection, data)
            while self._unsent:  # one that fails may have something sent over others
                self._flush(self._unsent.pop())
            if self._ready:
                continue
            now = time.monotonic()
            wake_at = self._deadline.at
            if self._pauses and self._active == 1:
                # Nothing is awaited, and a selector would wait a millisecond at least.
                self._sleep(min(wake_at, self._pauses[0].at) - now, self._pauses[0].ticket)
                wake_at = now
            for paused in self._pauses:
                wake_at = min(wake_at, paused.look_at(now))
            for connection in self._connecting:
                wake_at = min(wake_at, connection.try_until)
            if self._limits:
                wake_at = min(wake_at, self._limits[0][0])
            left_s = max(wake_at - now, 0)
            for key, events in self._selector.select(left_s):
                self._on_events(key.data, events)
            for connection in [one for one in self._connecting if one.is_due()]:
                self._go_on_connecting(connection)
            if self._deadline.has_passed():
                self._expire()
            if self._pauses:
                self._end_pauses()
            while self._limits and self._limits[0][0] <= time.monotonic():
                self._on_limit(*heapq.heappop(self._limits)[1:])

    def _end_pauses(self) -> None:
        now = time.monotonic()
        over = [paused for paused in self._pauses if paused.is_over(now)]
        for paused in over:
            self._pauses.remove(paused)
            self._ready.append(paused.call)

    @staticmethod
    def _sleep(seconds: float, ticket: Ticket | None) -> None:
        """So long; or until another thread calls the ticket."""
        if seconds <= 0:
            return
        if ticket is None:
            time.sleep(seconds)
            return
        bell = threading.Lock()
        bell.acquire()

        def wake() -> None:
            with suppress(RuntimeError):  # it was woken before
                bell.release()

        ticket.wake = wake
        if not ticket.is_due:
            bell.acquire(timeout=seconds)

    def _next_call(self, calls: Iterator[_Call]) -> _Call | None:
        """A call that has its replies; or the next one of a batch, if few enough are under way."""
        if self._ready:
            return self._ready.popleft()
        if self._active >= self._calls_max or self._in_flight_size >= messages.IN_FLIGHT_SIZE_MAX:
            return None
        call = next(calls, None)
        if call is not None:
            self._active += 1
        return call

    def _advance(self, call: _Call) -> None:
        """Hand a call its replies and take its next step."""
        self._in_flight_size -= call.size
        call.size = 0
        slots, call.begun = call.begun, []
        try:
            step = call.operation.send(call.replies)  # type: ignore[arg-type]  # None starts it
            while self._deadline.has_passed() and not slots:
                step = call.operation.throw(too_late(call.trouble, self._deadline.timeout_s))
        except StopIteration as stop:
            call.result = stop.value
            self._end(call)
        except GTStoreError as error:
            call.error = error
            self._end(call)
        else:
            self._take_step(call, step, slots)

    def _end(self, call: _Call) -> None:
        call.replies = None  # a batch's calls wait for each other, and replies may be large
        self._active -= 1

    def _take_step(self, call: _Call, step: Step, slots: list[Any]) -> None:
        """Begin a step, or what the hot path left of it (see Unfinished for the slots)."""
        if isinstance(step, Pause):
            call.replies = []
            self._pauses.append(_Paused(time.monotonic() + step.seconds, call, step.ticket))
            return
        if isinstance(step, Limited):
            self._limit_count += 1  # so that the heap never compares two calls
            call.limit = self._limit_count
            at = time.monotonic() + step.limit_s
            heapq.heappush(self._limits, (at, self._limit_count, call, step.limit_s))
        nodes, request_id, _ = call.step = step
        call.replies = slots or [None] * len(nodes)
        call.missing = len(nodes)
        call.unsent = [slot for slot, state in enumerate(call.replies) if state is None]
        self._send_next(call)
        for slot, state in enumerate(slots):
            if state is None:
                continue
            if isinstance(state, Connection):
                state.awaiting[request_id] = (call, slot, -1)
                if state.outgoing:
                    self._unsent.add(state)
                if state.unread:
                    self._unread.add(state)
                self._watch(state)
            else:
                self._answer(call, slot, state)
        if not nodes:
            self._ready.append(call)

    def _send_next(self, call: _Call) -> None:
        """Send to the nodes that are left; but a WRITE to one that is not known alone."""
        nodes, _, frame = call.step
        slots, call.unsent = call.unsent, []
        assert call.replies is not None
        while len(slots) > 1 and frame[KIND_AT] == WRITE:
            first = stranger(nodes, slots, self._known)
            if first is None:
                break
            slots.remove(first)
            self._send(call, first)
            if call.replies[first] is None:
                call.unsent = slots
                return
        for slot in slots:
            self._send(call, slot)

    def _send(self, call: _Call, slot: int) -> None:
        nodes, request_id, frame = call.step
        node = nodes[slot]
        connection = self._connections.get(node)
        if node == MANAGER and connection is not None:
            # The manager is about to close one that was idle for long; or has, on the way to us.
            now = time.monotonic()
            if connection.used_at + CLIENT_IDLE_S <= now and not connection.awaiting:
                self._fail(connection, ConnectionLost(connection.peer, "it was idle"))
                connection = None
            else:
                connection.used_at = now
        if connection is None or connection.is_doubtful:
            try:
                connection = self._connect(node)
            except ConnectError as error:
                self._answer(call, slot, Lost(0, node, False, error))
                return
        if node in self._owed:
            _queue(connection, self._owed.pop(node))
        connection.awaiting[request_id] = (call, slot, connection.queued_size)
        _queue(connection, frame)
        call.size += len(frame)
        self._in_flight_size += len(frame)
        self._unsent.add(connection)

    def _connect(self, node: int) -> Connection:
        """A new connection to a node; or the one that there is, if it still leads there."""
        peer, host, port = self._locate(node)
        connection = self._connections.get(node)
        if connection is not None and connection.address == (host, port):
            connection.is_doubtful = False
            return connection
        if connection is not None:
            self._fail(connection, ConnectionLost(connection.peer, f"node {node} is elsewhere now"))
        connection = Connection.start(node, peer, host, port, self._deadline.at)
        self._connections[node] = connection
        self._connecting.add(connection)
        return connection

    def _answer(self, call: _Call, slot: int, reply: Reply) -> None:
        assert call.replies is not None
        call.replies[slot] = reply
        call.missing -= 1
        call.trouble = trouble_in(reply, call.trouble)
        if is_refusal(reply):
            self._known.discard(call.step[0][slot])
        elif reply[0] and call.step[0][slot] in self._connections:
            self._known.add(call.step[0][slot])
        if call.unsent and is_end(reply):
            unasked = not_asked(call.step[0], call.unsent)
            call.missing -= len(unasked)
            for at, lost in unasked:
                call.replies[at] = lost
            call.unsent = []
        elif call.unsent:
            self._send_next(call)
            return
        if not call.missing:
            self._ready.append(call)

    def _watch(self, connection: Connection) -> None:
        """Tell the selector what this connection waits for."""
        assert self._selector is not None
        wanted = _READ
        if connection.is_connecting and not connection.is_resolving:
            wanted = _WRITE
        elif connection.outgoing and not connection.is_connecting:
            wanted |= _WRITE
        if not connection.watched:
            self._selector.register(connection.descriptor, wanted, connection)
        elif wanted != connection.watched:
            self._selector.modify(connection.descriptor, wanted, connection)
        connection.watched = wanted

    def _unwatch(self, connection: Connection) -> None:
        assert self._selector is not None
        if connection.watched:
            self._selector.unregister(connection.descriptor)
            connection.watched = 0

    def _on_events(self, connection: Connection, events: int) -> None:
        if self._connections.get(connection.node) is not connection:
            return  # it has failed while other events were handled
        if connection.is_connecting:
            self._go_on_connecting(connection)
            return
        if events & _READ:
            self._receive(connection)
        if events & _WRITE and self._connections.get(connection.node) is connection:
            self._flush(connection)

    def _go_on_connecting(self, connection: Connection) -> None:
        self._unwatch(connection)  # it may go on with another descriptor
        try:
            connection.go_on_connecting()
        except ConnectError as error:
            self._fail(connection, error)
            return
        if not connection.is_connecting:
            self._connecting.discard(connection)
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
                size = connection.send(outgoing[0])
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
            data = connection.recv_now(size)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(connection, ConnectionLost(connection.peer, describe(error)))
            return
        self._take_in(connection, data)

    def _take_in(self, connection: Connection, data: bytes) -> None:
        """Hand out what was received; nothing means the end."""
        error = connection.take_in(data, self._answer_waiter)
        if error is not None:
            self._fail(connection, error)

    def _answer_waiter(self, waiter: tuple[_Call, int, int], frame: Frame) -> None:
        self._answer(waiter[0], waiter[1], frame)

    def _fail(self, connection: Connection, error: NetworkError) -> None:
        """Close a connection. Whoever waits for a reply on it gets a Lost."""
        self._unwatch(connection)
        self._connecting.discard(connection)
        self._close(connection)
        for call, slot, begin in connection.awaiting.values():
            sent = connection.sent_size > begin
            self._answer(call, slot, Lost(0, connection.node, sent, error))
        connection.awaiting.clear()

    def _on_limit(self, number: int, call: _Call, limit_s: float) -> None:
        """A step's own time is over. Whoever has not answered it is not heard any more."""
        if call.limit != number or not call.missing:
            return  # it was answered
        text = f"no answer within {limit_s:g} s"
        for connection in list(self._connections.values()):
            if any(waiter[0] is call for waiter in connection.awaiting.values()):
                self._fail(connection, DeadlineExceeded(connection.peer, text))

    def _expire(self) -> None:
        """The deadline has passed: nobody waits any longer."""
        for connection in list(self._connections.values()):
            if connection.awaiting:
                text = f"{connection.waits_for()} within {self._deadline.timeout_s:g} s"
                self._fail(connection, DeadlineExceeded(connection.peer, text))
        self._ready += [paused.call for paused in self._pauses]
        self._pauses.clear()


def _outcome(call: _Call) -> Any:
    return call.result if call.error is None else call.error


def _new_selector() -> selectors.BaseSelector:
    """The best one there is; with too many open files, one that needs none: what was sent before
    may have been done, so the call cannot end here as if it had never begun."""
    try:
        return selectors.DefaultSelector()
    except OSError:
        return selectors.PollSelector()


def _check_plain(data: bytes, request_id: int) -> None:
    """Raise _Unusual or struct.error unless this is one whole reply to this request, no ERROR."""
    word, reply_id, length = unpack_words(data)
    if reply_id != request_id or length != len(data) - HEADER_SIZE:
        raise _Unusual
    if word & PLAIN_MASK != PLAIN_WORD or word == ERROR_WORD:
        raise _Unusual


def as_frame(data: bytes) -> Frame:
    """A whole plain frame in its parts."""
    _, kind, flags, request_id, _ = HEADER.unpack_from(data)
    return kind, flags, request_id, data[HEADER_SIZE:]


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


def stranger(nodes: Sequence[int], slots: Iterable[int], known: Container[int]) -> int | None:
    """The slot of the first node that is not known."""
    return next((slot for slot in slots if nodes[slot] not in known), None)


def is_refusal(reply: Reply) -> bool:
    """Whether the node takes nothing: it has no place for this connection, or no room."""
    return reply[0] == ERROR and code_of(reply) in _NO_PLACE  # type: ignore[arg-type]  # no Lost


def is_end(reply: Reply) -> bool:
    """Whether after this reply no other node is to be asked."""
    is_late = isinstance(reply, Lost) and isinstance(reply.error, DeadlineExceeded)
    return is_late or is_refusal(reply)


def not_asked(nodes: Sequence[int], slots: Sequence[int]) -> list[tuple[int, Lost]]:
    """What stands in these slots after such a reply."""
    return [
        (
            slot,
            Lost(0, nodes[slot], False, NetworkError(f"node {nodes[slot]}", "it was not asked")),
        )
        for slot in slots
    ]


def trouble_in(reply: Reply, known: GTStoreError | None) -> GTStoreError | None:
    """The failure or refusal to tell a user of, after this reply."""
    if isinstance(reply, Lost):
        # That the time was up says less than why it was.
        return known if known and isinstance(reply.error, DeadlineExceeded) else reply.error
    return refusal_of(reply) if reply[0] == ERROR else known


def too_late(trouble: GTStoreError | None, timeout_s: float) -> DeadlineExceeded:
    """What to throw into an operation that asks for more time; ``trouble`` is why it took so
    long."""
    match trouble:
        case DeadlineExceeded() as error:
            return error
        case NetworkError(peer=peer, reason=reason):
            return DeadlineExceeded(peer, f"{reason}; gave up after {timeout_s:g} s")
        case GTStoreError() as error:
            return DeadlineExceeded("the cluster", f"{error}; gave up after {timeout_s:g} s")
    return DeadlineExceeded("the call", f"no time was left after {timeout_s:g} s")


def locate(routes: Routes, manager: tuple[str, int], node: int) -> tuple[str, str, int]:
    """Where a peer listens: its name for people, host and port. Raises ConnectError if nobody
    knows."""
    if node == MANAGER:
        return f"the manager at {format_address(*manager)}", *manager
    member = routes.members.get(node)
    if member is None:
        raise ConnectError(f"node {node}", "its address is not known")
    address = format_address(member.host, member.port)
    return f"node {node} ({address})", member.host, member.port
