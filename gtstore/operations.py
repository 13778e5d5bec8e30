"""Each client operation, written once, as a generator: it yields what to send and is sent the
replies.

The rules are those of docs/REPLICATION.md (C1 to C9), cited here by their names. This module knows
no sockets, clocks or threads, so that the same code runs under the client's selector loop, under an
asyncio client and on the simulated network of the tests.

What an operation yields, and what it is sent back:

``(peers, request_id, frame)``
    Send this frame to each of these peers at once: numbers of nodes, or MANAGER. The answer is a
    list of one reply a peer, in the same order, once each peer has answered or failed: the reply's
    frame, or Lost.
``Limited((peers, request_id, frame), limit_s)``
    The same, but whoever has not answered after that time is Lost: for operations that may take
    long, so that no peer's silence lasts as long as the whole.
``Pause(seconds)``
    Wait that long. The answer is an empty list.

What a client owes to nodes without waiting for a reply (C7) is put into ``Source.owed``.

When the call's deadline has passed, the shell throws DeadlineExceeded in at each further yield,
never before it has handed over the replies that were awaited, with a Lost for each missing one: so
an operation always knows which of its requests may have been done.
"""

from __future__ import annotations

import dataclasses
import logging
import struct
from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias, TypeVar

from .cluster_time import ASK_AGAIN_S, ClusterTime
from .errors import (
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    GTStoreError,
    NetworkError,
    OperationFailed,
    OutcomeUnknown,
    RemoteError,
    RemoteProtocolError,
    Unavailable,
    VersionMismatch,
    printable,
)
from .placement import (
    LABEL,
    Route,
    Routes,
    begun_anew,
    cluster_of,
    format_address,
    is_serving,
    under_replicated,
)
from .results import ClusterStatus, Location, NodeStatus, PutResult, StoredEntry, Version
from .turns import Ticket
from .wire import messages
from .wire.codec import (
    ACK,
    COMMIT,
    COMMIT_BODY,
    COMMIT_FRAME,
    ENTRY,
    ENTRY_HEAD,
    ERROR,
    EXECUTED,
    FAILED,
    GET,
    HEADER_WORDS,
    MAGIC_VERSION,
    NOT_FOUND,
    SUPERSEDED,
    WRITE,
    WRITE_BODY,
    Frame,
    decode,
    encode,
    error_detail,
    head_word,
)
from .wire.fields import malformed
from .wire.messages import (
    CLOCK_AHEAD_MAX_S,
    COMMITTED,
    ENTRY_HEAD_SIZE,
    EXPIRES,
    FULL,
    HASHES,
    HEADER_SIZE,
    ORDERED,
    STATES,
    TIME_END_US,
    TOMBSTONE,
)

logger = logging.getLogger("gtstore.client")

MANAGER: Final = 0
"""The manager's number as a peer; nodes are numbered from 1."""

_VERSION_SIZE: Final = 16
_FLAGS_AT: Final = 20
_RID: Final = slice(8, 20)
"""Where an entry has the identity of its operation: client and counter."""
KIND_AT: Final = 2  # in a frame
_REPLY_FLAGS_AT: Final = HEADER_SIZE + _FLAGS_AT
_REPLY_VALUE_AT: Final = HEADER_SIZE + ENTRY_HEAD_SIZE
_REPLY_EXPIRING_VALUE_AT: Final = _REPLY_VALUE_AT + 8
_ACK_WORD: Final = head_word(ACK)
_GET_WORD: Final = head_word(GET)
_WRITE_WORD: Final = head_word(WRITE)
_KEY_AT: Final = WRITE_BODY.size
"""Where the key of GET and WRITE stands in the body: after the label and its own size."""
_UNPLAIN: Final = COMMITTED | TOMBSTONE | EXPIRES
_pack_labeled: Final[Callable[[int, int, int, bytes, int], bytes]] = struct.Struct(
    f"{HEADER_WORDS.format}{LABEL.size}sH"
).pack
"""A GET or WRITE up to its key: the header's three words, a route's label, the key's size."""
_pack_words: Final[Callable[[int, int, int], bytes]] = HEADER_WORDS.pack
_pack_head: Final[Callable[[int, int, int, int], bytes]] = ENTRY_HEAD.pack
_COMMIT_FIXED: Final = COMMIT_BODY.size
_CLOCK_AHEAD_MAX_US: Final = CLOCK_AHEAD_MAX_S * 1_000_000
_CLOCK_LEAP_MAX_US: Final = _CLOCK_AHEAD_MAX_US // 2
_NUMBER_MAX: Final = 0xFFFF_FFFF
_NO_VERSION: Final = (0, 0)
_FOR_LONG: Final = (messages.NO_SPACE, messages.BUSY, messages.TOO_FAR, messages.TOO_OLD)
"""Refusals of a write that would be the same the next time."""
_LATE_MAX: Final = 200
"""So many COMMITs wait for the same backups before they are sent to them."""
MEASURE_TIMEOUT_S: Final = 0.25
"""Who only wants to know cluster time better (``measure``) waits no longer for the manager."""
_PAUSE_FIRST_S: Final = 0.001
_PAUSE_MAX_S: Final = 0.050
_ASKED_US: Final = 250_000
"""So long others wait for the answer to what one operation has asked the manager. Then they ask,
too: that one may be what a signal handler has interrupted, and not go on before they have ended."""


class Lost(NamedTuple):
    """In the place of a reply: there is none. ``sent`` is False if the peer surely saw nothing of
    the request. The ``kind`` is 0, which no frame has."""

    kind: int
    peer: int
    sent: bool
    error: NetworkError


class Pause(NamedTuple):
    """Wait this long, or until the ticket is called, then go on."""

    seconds: float
    ticket: Ticket | None = None


class Limited(tuple[tuple[int, ...], int, bytes]):
    """What to send, where the answer has a time limit of its own, ``limit_s``."""

    limit_s: float

    def __new__(cls, send: Send, limit_s: float) -> Limited:
        limited = super().__new__(cls, send)
        limited.limit_s = limit_s
        return limited


ACKED: Final[Frame] = (ACK, 0, 0, b"")
"""Any request's ACK, as the hot path returns it."""

Reply: TypeAlias = Frame | Lost
Send: TypeAlias = tuple[tuple[int, ...], int, bytes]
Step: TypeAlias = Send | Pause
Result = TypeVar("Result")
Operation: TypeAlias = Generator[Step, Sequence[Reply], Result]


class Changed(NamedTuple):
    """What a read-modify-write made: the new value, its version, and where it is, primary first."""

    value: bytes
    version: Version
    nodes: tuple[int, ...]


_tuple: Final[Any] = tuple.__new__
"""Makes a named tuple without a call of its Python-level constructor, for the hot path."""


class Identity:
    """The second half of versions, and the highest time that they have had with it: so none is
    used twice, whatever became of the identity's source meanwhile (H16)."""

    __slots__ = ("client", "time")

    def __init__(self, client: int) -> None:
        self.client = client
        self.time = 0


class Source:
    """One client's identity, clock and counters. Any number of its operations may be under way, in
    one thread.

    Args:
        new_client: returns 64 random bits.
        steady_ns: the steady clock, in nanoseconds. ``offset_us`` of the methods is how far cluster
            time is ahead of it (T1).
        random: returns a number from 0 to 1.

    ``identity`` is that of the operations that begin now; each one keeps the one that it has begun
    with. Request ids and the counters of operations are drawn from the same numbers: with the
    client, an operation's counter is its own identity, its rid. They have 32 bits; when they are
    used up, the source takes a new identity.

    ``owed`` maps a node to the frames that it is owed (C7). The shell sends them in front of its
    next request to that node: nobody waits for them.
    """

    __slots__ = (
        "_late", "_learned_us", "_new_client", "_number", "_steady_ns", "identity", "owed",
        "random",
    )  # fmt: skip

    def __init__(
        self,
        new_client: Callable[[], int],
        steady_ns: Callable[[], int],
        random: Callable[[], float],
    ) -> None:
        self.identity = Identity(new_client())
        self.owed: dict[int, bytes] = {}
        self.random = random
        self._late: dict[tuple[int, ...], list[bytes]] = {}  # by a key's owners
        self._new_client = new_client
        self._steady_ns = steady_ns
        self._learned_us = 0
        self._number = 0

    def next_number(self) -> int:
        """A new request id, and, if it begins an operation, the counter of its rid."""
        self._number = number = self._number + 1
        if number == _NUMBER_MAX:
            self._number = 0
            self.identity = Identity(self._new_client())
        return number

    def owe(self, nodes: tuple[int, ...], frame: bytes) -> None:
        """C7: owe a COMMIT to a key's owners. The primary's goes in front of the next request to
        it, because the next reader comes there. The others' wait until there are many for them:
        a node handles them cheaper together, and only a change of the primary makes them matter."""
        primary = nodes[0]
        owed = self.owed
        owed[primary] = owed[primary] + frame if primary in owed else frame
        late = self._late.get(nodes)
        if late is None:
            self._late[nodes] = [frame]
            return
        late.append(frame)
        if len(late) == _LATE_MAX:
            self._owe_backups(nodes, late)

    def owe_now(self) -> None:
        """Let nothing that is owed wait any longer."""
        for nodes, late in self._late.items():
            if late:
                self._owe_backups(nodes, late)

    def _owe_backups(self, nodes: tuple[int, ...], late: list[bytes]) -> None:
        frames = b"".join(late)
        late.clear()
        for node in nodes[1:]:
            self.owed[node] = self.owed.get(node, b"") + frames

    def steady_us(self) -> int:
        """The steady clock as it is."""
        return self._steady_ns() // 1000

    def now_us(self, offset_us: int) -> int:
        """Cluster time, and what was learned on top of it (N9)."""
        return self._steady_ns() // 1000 + offset_us + self._learned_us

    def next_time(self, identity: Identity, offset_us: int, above: int = 0) -> int:
        """The time of a new version: they rise with each identity, and it is higher than
        ``above``."""
        time = self._steady_ns() // 1000 + offset_us + self._learned_us
        if time <= identity.time:
            time = identity.time + 1
        if time <= above:
            if above - time > _CLOCK_LEAP_MAX_US and identity is self.identity:
                # One key whose version is far ahead must not take the times of all others there,
                # where nodes refuse them.
                self.identity = Identity(self._new_client())
            time = above + 1
        identity.time = time
        return time

    def learn(self, time: int, offset_us: int) -> None:
        """Take over the lead of a version that refused ours: an offset, not a point, else the same
        clock would be behind again after the next round trip. Nothing is learned beyond N9's
        bound."""
        ahead = time - self.now_us(offset_us)
        if ahead > 0 and self._learned_us + ahead <= _CLOCK_AHEAD_MAX_US:
            self._learned_us += ahead

    def forget(self) -> None:
        """A node finds our time too far ahead (N9): what was learned was wrong. The next times are
        lower, so they need another identity."""
        self.identity = Identity(self._new_client())
        self._learned_us = 0

    def backoff_s(self, attempt: int) -> float:
        """A random pause before the attempt with this number (from 0), longer each time."""
        longest: float = min(_PAUSE_FIRST_S * 2 ** min(attempt, 10), _PAUSE_MAX_S)
        return longest * (0.5 + self.random() / 2)


# --- put, delete ---------------------------------------------------------------------------------


Begun: TypeAlias = tuple[Route, int, bytes, tuple[int, int], bytes, bytes, Identity]
"""An operation's first round: its route, its request id, the frame that goes to ``route.nodes`` (a
get's to ``route.primary``), and for a put its version (time, client), its entry's head, the frame
that is its ACK, and whose version it is."""


def begin_put(routes: Routes, source: Source, key: bytes, value: bytes, flags: int = 0) -> Begun:
    """Place the key, draw a version and make the frame of a put. The map must be known."""
    rows = routes.by_partition  # as find does it
    route = rows[routes.hash(key) % len(rows)]
    # As next_number and next_time do it.
    source._number = number = source._number + 1
    if number == _NUMBER_MAX:
        source._number = 0
        source.identity = Identity(source._new_client())
    identity = source.identity
    time = source._steady_ns() // 1000 + routes.clock.offset_us + source._learned_us
    if time <= identity.time:
        time = identity.time + 1
    identity.time = time
    client = identity.client
    head = _pack_head(time, client, number, flags)
    # As _write_frame does it.
    key_size = len(key)
    size = _KEY_AT + key_size + ENTRY_HEAD_SIZE + len(value)
    fixed = _pack_labeled(_WRITE_WORD, number, size, route.label, key_size)
    frame = b"".join((fixed, key, head, value))
    ack = _pack_words(_ACK_WORD, number, 0)
    return route, number, frame, (time, client), head, ack, identity


def end_put(source: Source, key: bytes, begun: Begun) -> PutResult:
    """All owners have ACKed the first round: the put is complete (C1)."""
    nodes = begun[0].nodes
    if len(nodes) > 1:
        _owe_commit(source, begun[0], key, begun[4])
    result: PutResult = _tuple(PutResult, (nodes, _tuple(Version, begun[3])))
    return result


def put(
    routes: Routes,
    source: Source,
    key: bytes,
    value: bytes,
    flags: int = 0,
    begun: Begun | None = None,
) -> Operation[PutResult]:
    """Store a value on all owners of the key at once (C3). A delete is a put of a tombstone.

    With the flag EXPIRES ``value`` begins with the expiry (``expiry_after``), as in an entry.
    ``begun`` is the first round, if it was made already; then the first step yields it again.

    Raises:
        OperationFailed, Unavailable: it did not happen.
        OutcomeUnknown: it may have happened, at most once.
    """
    try:
        if not routes.cluster_id:
            yield from initialize(routes, source)
        begun = begun or begin_put(routes, source, key, value, flags)
        route, number, frame, _, head, _, identity = begun
        replies = yield route.nodes, number, frame
        for reply in replies:
            if reply[0] != ACK:
                write = _Write(routes, source, identity, key, value, head)
                return (yield from write.settle(route, replies))
        return end_put(source, key, begun)
    except DeadlineExceeded as error:
        raise OperationFailed(f"the write of {shown(key)} did not happen: {error}") from error


def delete(routes: Routes, source: Source, key: bytes) -> Operation[PutResult]:
    """Remove a key's value; see put."""
    return put(routes, source, key, b"", TOMBSTONE)


LONG_EXPIRED: Final = bytes(8)
"""An expiry that is over by any clock, as it stands in an entry."""


def expiry_after(routes: Routes, source: Source, ttl_us: int) -> bytes:
    """When a value expires that is put now and lives so long, as it stands in an entry (C8).

    What was learned from versions has no part in it: that is other clients' lead, of which the
    primary, which will judge, knows nothing.
    """
    return routes.clock.expiry_us(source.steady_us(), ttl_us).to_bytes(8, "big")


def _write_frame(
    request_id: int, route: Route, key: bytes, head: bytes, value: bytes = b""
) -> bytes:
    """A WRITE of the entry that consists of ``head`` and ``value``."""
    key_size = len(key)
    size = _KEY_AT + key_size + len(head) + len(value)
    fixed = _pack_labeled(_WRITE_WORD, request_id, size, route.label, key_size)
    return b"".join((fixed, key, head, value))


def _owe_commit(source: Source, route: Route, key: bytes, entry: bytes) -> None:
    """C7: the entry is complete, so its owners are owed COMMIT. A single owner has no use for it: a
    reader needs no round trip to complete a pending entry there."""
    nodes = route.nodes
    if len(nodes) == 1:
        return
    size = len(key)
    # The struct takes the version, which is the entry's first bytes, and leaves the rest.
    fixed = COMMIT_FRAME.pack(
        MAGIC_VERSION, COMMIT, 0, 0, _COMMIT_FIXED + size, route.partition, entry, size
    )
    source.owe(nodes, fixed + key)


class _Mutation:
    """What a put and a read-modify-write under way have in common.

    ``touched`` says that some owner holds the write, or may. While it is False every request is
    known to have done nothing, and the write is as if it had not begun.
    """

    kind: ClassVar[str]
    """For messages."""

    def __init__(self, routes: Routes, source: Source, identity: Identity, key: bytes) -> None:
        self._routes = routes
        self._source = source
        self._identity = identity
        self._key = key
        self._time = 0
        self._counter = 0
        self._flags = 0
        self._touched = False
        self._ticket: Ticket | None = None
        self._is_clock_right = False  # the manager was asked for it since this began

    @property
    def _what(self) -> str:
        return f"the {self.kind} of {shown(self._key)}"

    def _head(self) -> bytes:
        """How its entry begins."""
        return ENTRY_HEAD.pack(self._time, self._identity.client, self._counter, self._flags)

    def _begin_again(
        self, route: Route, replies: Sequence[Reply]
    ) -> Generator[Step, Sequence[Reply], None]:
        """Look for refusals that sending again does not mend. Where nobody holds the write, it may
        begin again under a version that is not too far ahead (N9) or too old (N7).

        Args:
            replies: the primary's, and perhaps those of the others.

        Raises OperationFailed if that does not help, or there is no room: at once, not at the
        deadline; and OutcomeUnknown if the primary knows nothing any more of a write that it may
        have done, or one that has no room cannot be undone.
        """
        for at, reply in enumerate(replies):
            if not _is_error(reply, *_FOR_LONG):
                continue
            assert not isinstance(reply, Lost)
            code = _error_code(reply)
            if code == messages.TOO_FAR:
                self._source.forget()
            if self._touched and code == messages.TOO_OLD and not at:
                raise OutcomeUnknown(
                    f"{self._what} may have happened, and have been followed by a delete, long ago",
                    acks=0,
                    required=len(replies),
                )
            refusal = refusal_of(reply)
            if self._touched:
                self._check_room(route, replies[1:])
                if code == messages.NO_SPACE and not at:
                    is_undone = yield from self._undo(route)
                    error = (
                        self._not_done(refusal) if is_undone else self._unfinished(route, refusal)
                    )
                    raise error from refusal
                continue
            above = 0
            if code == messages.TOO_OLD:
                above = int.from_bytes(reply[3][-_VERSION_SIZE:][:8], "big")
            no_place = code in (messages.NO_SPACE, messages.BUSY)
            if no_place or above >= TIME_END_US or self._is_clock_right:
                raise self._not_done(refusal) from refusal
            self._is_clock_right = True
            yield from _correct_clock(self._routes, self._source)
            self._identity = self._source.identity
            self._take_time(above)
            return

    def _take_turn(self) -> Generator[Step, Sequence[Reply], None]:
        """Wait until none of this client's calls that have lost before is in front of this one."""
        ticket = self._ticket
        if ticket is None:
            # Held before it joins: wherever this is interrupted, it is left.
            self._ticket = ticket = self._routes.turns.ticket(self._key)
            ticket.join()
        while wait_s := ticket.wait_s():
            yield Pause(wait_s, ticket)

    def _end_turn(self) -> None:
        if self._ticket is not None:
            self._routes.turns.leave(self._key, self._ticket)
            self._ticket = None

    def _check_room(self, route: Route, replies: Sequence[Reply]) -> None:
        """Raise OutcomeUnknown if a backup in sync has no room: the primary has the write, and that
        will not change soon. One that still copies leaves then (M7)."""
        for owner, reply in zip(route.row.owners[1:], replies, strict=False):
            if owner.in_sync and _is_error(reply, messages.NO_SPACE):
                assert not isinstance(reply, Lost)
                refusal = refusal_of(reply)
                raise self._unfinished(route, refusal) from refusal

    def _undo(self, route: Route) -> Generator[Step, Sequence[Reply], bool]:  # noqa: ARG002
        """The primary has refused the write, and others may hold it: see to it that it never takes
        effect. Say whether that is sure."""
        yield from ()
        return False

    def _not_done(self, error: GTStoreError) -> OperationFailed:
        return OperationFailed(f"{self._what} did not happen: {error}")

    @abstractmethod
    def _unfinished(self, route: Route, error: GTStoreError) -> GTStoreError:
        """What to raise when it cannot go on."""

    def _take_time(self, above: int) -> None:
        """Take another version, of a time above that one."""
        self._time = self._source.next_time(self._identity, self._routes.clock.offset_us, above)

    def _rise(self, reply: Reply, versions: int) -> Generator[Step, Sequence[Reply], None]:
        """Take another version, above that of a SUPERSEDED; ``versions`` were used so far."""
        assert not isinstance(reply, Lost)
        yield from self._take_turn()
        above = int.from_bytes(reply[3][:8], "big")
        if len(reply[3]) != _VERSION_SIZE or above >= TIME_END_US:
            raise malformed(f"SUPERSEDED with the version {reply[3].hex()}")
        self._routes.turns.lost(self._key, above, versions > 1)
        above = max(above, self._routes.turns.known(self._key)[1])
        self._source.learn(above, self._routes.clock.offset_us)
        # One client may lose this race again and again, so its versions jump further each time; not
        # as far as the clock goes meanwhile, or the versions of a busy key would run away from it.
        jump = 0 if versions == 1 else 16 << min(versions, 10)
        self._take_time(above + jump)


class _Write(_Mutation):
    """A put or delete whose first round did not simply succeed: the table of rule C3.

    ``acked`` and ``unresolved`` are the two facts about the current tenure: its primary ACKed this
    version; a request was left behind without its primary's answer.
    """

    kind = "write"

    def __init__(
        self,
        routes: Routes,
        source: Source,
        identity: Identity,
        key: bytes,
        value: bytes,
        head: bytes,
    ) -> None:
        super().__init__(routes, source, identity, key)
        self._value = value
        self._time, _, self._counter, self._flags = ENTRY_HEAD.unpack(head)
        self._versions = 1
        self._acked = False
        self._unresolved = False
        self._acks: set[int] = set()

    def settle(self, route: Route, replies: Sequence[Reply]) -> Operation[PutResult]:
        """Go on from the replies of the first round until the outcome is known or the time is
        up."""
        attempt = 0
        try:
            while True:
                answered = self._take_in(route, replies)
                yield from self._begin_again(route, replies)
                if self._acked and answered:
                    _owe_commit(self._source, route, self._key, self._entry())
                    return PutResult(route.nodes, Version(self._time, self._identity.client))
                yield from recover(self._routes, self._source, self._key, route, replies, attempt)
                attempt += 1
                following = self._routes.find(self._key)
                if following.tenure != route.tenure:
                    self._enter_tenure(route)
                elif replies[0][0] == SUPERSEDED and not self._acked:
                    yield from self._raise_version(route, replies[0])
                route = following
                replies = yield from self._send(route)
        except (DeadlineExceeded, Unavailable, RemoteError, RemoteProtocolError) as error:
            raise self._unfinished(route, error) from error
        finally:
            self._end_turn()

    def _take_in(self, route: Route, replies: Sequence[Reply]) -> bool:
        """Learn the facts from one round's replies; say whether every owner answered ACK or
        SUPERSEDED in this list_epoch (C1)."""
        answered = len(replies) == len(route.nodes)
        for node, reply in zip(route.nodes, replies, strict=False):
            if reply[0] == ACK:
                self._touched = True
                self._acks.add(node)
            elif reply[0] == SUPERSEDED:
                self._acks.discard(node)
            else:
                answered = False
                if may_be_done(reply):
                    self._touched = True
                    if node == route.nodes[0]:
                        self._unresolved = True
        if replies[0][0] == ACK:
            self._acked = True
        return answered

    def _undo(self, route: Route) -> Generator[Step, Sequence[Reply], bool]:
        """C3, NO_SPACE: what backups hold of a write that its primary has never held is superseded
        (C6) by what the primary holds, under a version above all that this write had. If that is
        complete in the same tenure, nobody has read the write, and nobody ever will: until then
        only this primary was asked, and from then on all owners refuse it."""
        if self._acked or self._unresolved:
            return False
        self._end_turn()  # or the touch would wait for it
        touch = _Change(self._routes, self._source, self._key, messages.TOUCH, b"", b"", 0)
        touch.go_above(self._time)
        try:
            yield from touch.settle()
        except (OperationFailed, OutcomeUnknown) as error:
            logger.info("%s", error)
            return False
        return touch.tenure == route.tenure

    def _enter_tenure(self, route: Route) -> None:
        """C3: another primary, or the same one anew."""
        self._acked = False
        self._unresolved = self._touched
        if self._touched and self._versions > 1:
            raise OutcomeUnknown(
                f"the primary of {shown(self._key)} changed while the write was being repeated; "
                "it may have happened: read the key to see",
                acks=len(self._acks.intersection(route.nodes)),
                required=len(route.nodes),
            )

    def _raise_version(self, route: Route, reply: Reply) -> Generator[Step, Sequence[Reply], None]:
        """C3: the primary holds a higher version and has not seen this write: go above it."""
        if self._unresolved:
            raise OutcomeUnknown(
                f"another client wrote {shown(self._key)} while an answer of its primary was "
                "missing; the write may have happened before that: read the key to see",
                acks=len(self._acks.intersection(route.nodes)),
                required=len(route.nodes),
            )
        yield from self._rise(reply, self._versions)
        self._versions += 1
        self._flags |= ORDERED
        self._acks.clear()

    def _entry(self) -> bytes:
        return self._head() + self._value

    def _send(self, route: Route) -> Generator[Step, Sequence[Reply], Sequence[Reply]]:
        """Send the write by rule C2. The list of replies is short if an ordered write stopped
        early."""
        request_id = self._source.next_number()
        frame = _write_frame(request_id, route, self._key, self._entry())
        return (
            yield from send_in_order(self._flags, route.nodes, request_id, frame, not self._acked)
        )

    def _unfinished(self, route: Route, error: GTStoreError) -> GTStoreError:
        """What to raise when the write cannot go on (C3, deadline)."""
        if self._touched:
            required = len(route.nodes)
            acks = len(self._acks.intersection(route.nodes))
            return OutcomeUnknown(
                f"{self._what} may have happened: {acks} of {required} owners "
                f"acknowledged it, then: {error}; read the key to see",
                acks=len(self._acks.intersection(route.nodes)),
                required=required,
            )
        if isinstance(error, Unavailable):
            return error
        return self._not_done(error)


def _correct_clock(routes: Routes, source: Source) -> Generator[Step, Sequence[Reply], None]:
    """A node disagrees with our clock: measure cluster time again, unless that was just done."""
    if routes.clock.is_due(source.steady_us(), ASK_AGAIN_S):
        yield from measure(routes, source)


def measure(routes: Routes, source: Source) -> Generator[Step, Sequence[Reply], None]:
    """Ask the manager for cluster time (T1). If it does not answer, what was known goes on."""
    try:
        cluster, measured = yield from _ask_cluster(source)
    except (NetworkError, RemoteError, RemoteProtocolError) as error:
        logger.info("the manager does not tell the time: %s", error)
        return
    if cluster_of(cluster.epoch) == routes.cluster_id:
        routes.clock.take(*measured)


def send_in_order(
    flags: int,
    nodes: tuple[int, ...],
    request_id: int,
    frame: bytes,
    needs_primary: bool = False,
) -> Generator[Step, Sequence[Reply], Sequence[Reply]]:
    """Send a WRITE to these owners by rule C2: to all at once, or, if the entry is ordered, to one
    after the other in the order of the list, each answered before the next is sent.

    The list of replies ends with the first one that is neither ACK nor SUPERSEDED; if the primary's
    own ACK is still needed, also with a SUPERSEDED of the primary.
    """
    if not flags & ORDERED:
        return (yield nodes, request_id, frame)
    replies: list[Reply] = []
    for node in nodes:
        try:
            replies += yield (node,), request_id, frame
        except DeadlineExceeded:
            if not replies:
                raise
            break  # what was answered counts; the shell throws again at the next yield
        is_refused = needs_primary and len(replies) == 1 and replies[0][0] != ACK
        if is_refused or replies[-1][0] not in (ACK, SUPERSEDED):
            break
    return replies


# --- append, increment, compare and put ----------------------------------------------------------


def execute(
    routes: Routes,
    source: Source,
    key: bytes,
    operation: int,
    operand: bytes,
    expected: bytes = b"",
    flags: int = 0,
) -> Operation[Changed]:
    """Have the key's primary compute a new entry from the one that it holds, then give the result
    to the other owners (C4).

    Args:
        operation: messages.APPEND, ...; ``operand`` and ``expected`` are those of EXECUTE.
        flags: 0, or EXPIRES for a comparison: then ``operand`` begins with the expiry, as for put.

    Raises:
        VersionMismatch: the comparison failed; nothing was changed.
        OperationFailed, Unavailable: it did not happen.
        OutcomeUnknown: it may have happened, at most once.
    """
    try:
        if not routes.cluster_id:
            yield from initialize(routes, source)
        change = _Change(routes, source, key, operation, operand, expected, flags)
        return (yield from change.settle())
    except DeadlineExceeded as error:
        raise OperationFailed(f"the change of {shown(key)} did not happen: {error}") from error


class _Change(_Mutation):
    """A read-modify-write under way: the table of rule C4.

    ``executed`` is the result that the primary of the current tenure has stored, ``unresolved``
    that a request was left behind without that primary's answer, ``unanswered_epoch`` the
    list_epoch in which that last happened. ``touched``: some owner holds the result, or may.
    """

    kind = "change"

    def __init__(
        self,
        routes: Routes,
        source: Source,
        key: bytes,
        operation: int,
        operand: bytes,
        expected: bytes,
        flags: int,
    ) -> None:
        # Its first version is drawn below, of what is the source's identity then.
        super().__init__(routes, source, source.identity, key)
        self._operation = operation
        self._operand = operand
        self._expected = expected
        self._flags = flags
        self._counter = source.next_number()
        self._identity = source.identity
        self._time = source.next_time(self._identity, routes.clock.offset_us)
        self._versions = 1
        self._executed = b""
        self._unresolved = False
        self._unanswered_epoch = 0
        self.tenure: tuple[int, int] | None = None
        """In which it was complete."""

    def go_above(self, time: int) -> None:
        """Begin with a version above that time."""
        self._take_time(time)

    def settle(self) -> Operation[Changed]:
        """Go on until the outcome is known or the time is up."""
        attempt = 0
        route = self._routes.find(self._key)
        try:
            if self._key in self._routes.turns:
                yield from self._take_turn()
                pace_s, time = self._routes.turns.known(self._key)
                if pace_s:
                    yield Pause(pace_s * self._source.random())
                self._take_time(max(time, self._time))
                route = self._routes.find(self._key)
            while True:
                replies = yield from self._ask_primary(route)
                reply = replies[0]
                if reply[0] == EXECUTED:
                    self._executed = self._result_of(reply)
                    self._touched = True
                elif reply[0] == FAILED:
                    replies = yield from self._help_before_failing(route, reply)
                elif reply[0] != SUPERSEDED and may_be_done(reply):
                    self._touched = self._unresolved = True
                    self._unanswered_epoch = route.epoch
                yield from self._begin_again(route, [reply])
                if reply[0] in (EXECUTED, SUPERSEDED) and self._executed:
                    replies = yield from self._give_to_others(route)
                    self._check_room(route, replies)
                    if len(replies) == len(route.nodes) - 1 and _all_hold(replies):
                        return self._succeed(route)
                elif reply[0] == SUPERSEDED:
                    yield from self._raise_version(reply)
                yield from recover(self._routes, self._source, self._key, route, replies, attempt)
                attempt += 1
                following = self._routes.find(self._key)
                if following.tenure != route.tenure:
                    self._executed = b""
                    self._unresolved = self._touched
                route = following
        except (DeadlineExceeded, Unavailable, RemoteError, RemoteProtocolError) as error:
            raise self._unfinished(route, error) from error
        finally:
            self._end_turn()

    def _ask_primary(self, route: Route) -> Generator[Step, Sequence[Reply], Sequence[Reply]]:
        entry = self._head() + self._operand
        request = messages.Execute(
            route.epoch, route.partition, self._key, self._operation, self._expected, entry
        )
        request_id = self._source.next_number()
        return (yield route.primary, request_id, encode(request, request_id))

    def _result_of(self, reply: Reply) -> bytes:
        entry: bytes = reply[3]  # type: ignore[assignment]  # a Lost has another kind
        rid = self._head()[_RID]
        if len(entry) < ENTRY_HEAD_SIZE or entry[_RID] != rid:
            raise malformed(f"EXECUTED with another operation's entry: {entry[:20].hex()}")
        return entry

    def _give_to_others(self, route: Route) -> Generator[Step, Sequence[Reply], Sequence[Reply]]:
        """WRITE the result to the backups, in the list_epoch of the primary's answer and in no
        other (hole H2). A committed one they have."""
        if self._executed[_FLAGS_AT] & COMMITTED:
            return [ACKED] * (len(route.nodes) - 1)
        return (yield from _write_to_backups(self._source, route, self._key, self._executed))

    def _succeed(self, route: Route) -> Changed:
        self.tenure = route.tenure
        self._routes.turns.won(self._key, self._time, self._versions == 1)
        _owe_commit(self._source, route, self._key, self._executed)
        time, client, _, flags = ENTRY_HEAD.unpack_from(self._executed)
        value_at = ENTRY_HEAD_SIZE + (8 if flags & EXPIRES else 0)
        return Changed(self._executed[value_at:], Version(time, client), route.nodes)

    def _help_before_failing(
        self, route: Route, reply: Reply
    ) -> Generator[Step, Sequence[Reply], Sequence[Reply]]:
        """FAILED: report it, once the entry that it is about is complete (hole H4). Returns the
        backups' replies if they are not all as they should be."""
        if self._unanswered_epoch == route.epoch:
            # That EXECUTE may be done yet, and find something else (hole H5).
            raise self._unknown(route, "an earlier request to its primary went unanswered")
        body: bytes = reply[3]  # type: ignore[assignment]  # a Lost has another kind
        if not body or 1 < len(body) <= ENTRY_HEAD_SIZE:
            raise malformed(f"FAILED with {len(body)} bytes")
        entry = body[1:]
        replies: Sequence[Reply] = []
        if entry and not entry[_FLAGS_AT] & COMMITTED:
            replies = yield from _help(self._source, route, self._key, entry)
            if len(replies) < len(route.nodes) - 1 or not _all_hold(replies):
                return replies
        raise _failure(self._key, body[0], entry)

    def _raise_version(self, reply: Reply) -> Generator[Step, Sequence[Reply], None]:
        """The primary holds a higher version: go above it."""
        if self._unresolved:
            raise self._unknown(
                self._routes.find(self._key),
                "another client wrote it while an answer of its primary was missing",
            )
        yield from self._rise(reply, self._versions)
        self._versions += 1

    def _unknown(self, route: Route, why: str) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"{self._what} may have happened: {why}; read the key to see",
            acks=1 if self._executed else 0,
            required=len(route.nodes),
        )

    def _unfinished(self, route: Route, error: GTStoreError) -> GTStoreError:
        if self._touched:
            return self._unknown(route, str(error))
        if isinstance(error, Unavailable):
            return error
        return self._not_done(error)


def _failure(key: bytes, reason: int, entry: bytes) -> OperationFailed:
    """What a FAILED reply says."""
    if reason == messages.COMPARISON_FAILED:
        time, client, _, flags = ENTRY_HEAD.unpack_from(entry) if entry else (0, 0, 0, TOMBSTONE)
        is_absent = bool(flags & TOMBSTONE)
        return VersionMismatch(
            f"{shown(key)} has {'no value' if is_absent else 'another value or version'}",
            version=Version(time, client) if entry else None,
            is_absent=is_absent,
        )
    what = messages.FAILURES.get(reason, f"failure {reason}")
    return OperationFailed(f"{shown(key)} was not changed: {what}")


# --- get -----------------------------------------------------------------------------------------


def begin_get(routes: Routes, source: Source, key: bytes) -> Begun:
    """Place the key and make the frame of a get. The map must be known."""
    rows = routes.by_partition  # as find does it
    route = rows[routes.hash(key) % len(rows)]
    # As next_number does it.
    source._number = number = source._number + 1
    if number == _NUMBER_MAX:
        source._number = 0
        source.identity = Identity(source._new_client())
    size = len(key)
    frame = _pack_labeled(_GET_WORD, number, _KEY_AT + size, route.label, size) + key
    return route, number, frame, _NO_VERSION, b"", b"", source.identity


def plain_value(begun: Begun, reply: bytes) -> bytes | None:
    """The value in a get's first reply, a whole frame, if there is nothing more to do: the entry is
    complete, and it is no tombstone. Otherwise None: ``get`` goes on."""
    if reply[KIND_AT] != ENTRY:
        return None
    if len(reply) < _REPLY_VALUE_AT:
        return None
    flags = reply[_REPLY_FLAGS_AT] & _UNPLAIN
    if flags != COMMITTED and (flags or len(begun[0].nodes) > 1):
        if flags != COMMITTED | EXPIRES or len(reply) < _REPLY_EXPIRING_VALUE_AT:
            return None
        return reply[_REPLY_EXPIRING_VALUE_AT:]
    return reply[_REPLY_VALUE_AT:]


def is_absence(reply: bytes) -> bool:
    """Whether a get's first reply, a whole frame, says that the key has never had a value."""
    return reply[KIND_AT] == NOT_FOUND


def get(
    routes: Routes, source: Source, key: bytes, begun: Begun | None = None
) -> Operation[StoredEntry | None]:
    """Read a key's latest value from its primary (C5). ``begun``: see put.

    Nothing here looks at an expiry: in the place of an entry that has expired, the primary answers
    with a pending tombstone (C8), which is completed as any other pending entry.

    Raises:
        Unavailable: no owner of the key is alive.
        DeadlineExceeded: the time was up.
    """
    found = yield from read(routes, source, key, begun)
    return None if found is None else _stored_entry(*found)


def read(
    routes: Routes, source: Source, key: bytes, begun: Begun | None
) -> Operation[tuple[bytes, int] | None]:
    """The entry that the key's primary holds, complete, and that node; None if it holds none."""
    if not routes.cluster_id:
        yield from initialize(routes, source)
    attempt = 0
    while True:
        begun = begun or begin_get(routes, source, key)
        route, number, frame, *_ = begun
        begun = None
        replies = yield route.primary, number, frame
        reply = replies[0]
        if reply[0] == ENTRY:
            entry: bytes = reply[3]  # type: ignore[assignment]  # a Lost has another kind
            if len(entry) < ENTRY_HEAD_SIZE:
                raise malformed(f"an entry of {len(entry)} bytes from node {route.nodes[0]}")
            is_complete = bool(entry[_FLAGS_AT] & COMMITTED)
            if not is_complete:
                replies = yield from _help(source, route, key, entry)
                is_complete = len(replies) == len(route.nodes) - 1 and _all_hold(replies)
            if is_complete:
                if attempt:
                    logger.info("value of %s from node %d", shown(key), route.nodes[0])
                return entry, route.nodes[0]
            if any(_is_error(reply, messages.TOO_OLD) for reply in replies):
                yield from _touch(routes, source, key)
        elif reply[0] == NOT_FOUND:
            return None
        elif reply[0] in (ACK, SUPERSEDED):
            raise _odd_reply(reply)  # type: ignore[arg-type]  # a Lost has another kind
        yield from recover(routes, source, key, route, replies, attempt)
        attempt += 1


def _touch(
    routes: Routes, source: Source, key: bytes, above: int = 0
) -> Generator[Step, Sequence[Reply], None]:
    """C6: give what the primary holds a new version, of a time ``above`` that one, by a
    read-modify-write that changes nothing else. Whether that succeeded, the next look at the key
    tells."""
    try:
        change = _Change(routes, source, key, messages.TOUCH, b"", b"", 0)
        change.go_above(above)
        yield from change.settle()
    except (OperationFailed, OutcomeUnknown) as error:
        logger.info("%s", error)


def settle(routes: Routes, source: Source, key: bytes, held: bytes) -> Operation[bool]:
    """N8: see to an entry that an owner has held as pending for some time, as a reader would (C5).

    Args:
        held: the version of that entry, 16 bytes.

    Returns whether all owners hold it by now, so that it is committed. If the primary has a lower
    one, it never saw this one: the key is touched (C6), so that this one is superseded. Nothing is
    ever pushed to the primary.
    """
    found = yield from read(routes, source, key, None)
    version = found[0][:_VERSION_SIZE] if found else bytes(_VERSION_SIZE)
    if version < held:
        yield from _touch(routes, source, key, int.from_bytes(held[:8], "big"))
    return version == held


def _stored_entry(entry: bytes, node: int) -> StoredEntry | None:
    time, client, _, flags = ENTRY_HEAD.unpack_from(entry)
    if flags & TOMBSTONE:
        return None
    value_at = ENTRY_HEAD_SIZE + (8 if flags & EXPIRES else 0)
    if len(entry) < value_at:
        raise malformed(f"an entry from node {node} is too short for its expiry")
    return StoredEntry(entry[value_at:], Version(time, client), node)


def _all_hold(replies: Sequence[Reply]) -> bool:
    """Whether all of these owners hold the version or a higher one."""
    return all(reply[0] in (ACK, SUPERSEDED) for reply in replies)


def _help(
    source: Source, route: Route, key: bytes, entry: bytes
) -> Generator[Step, Sequence[Reply], Sequence[Reply]]:
    """C5: complete a pending entry before its value is believed. That the primary returned it is
    its ACK, so the entry goes to the other owners only, as it is."""
    replies = yield from _write_to_backups(source, route, key, entry)
    if len(replies) == len(route.nodes) - 1 and _all_hold(replies):
        _owe_commit(source, route, key, entry)
    return replies


def _write_to_backups(
    source: Source, route: Route, key: bytes, entry: bytes
) -> Generator[Step, Sequence[Reply], Sequence[Reply]]:
    """WRITE an entry that the primary holds to the other owners, by C2; return their replies."""
    backups = route.nodes[1:]
    if not backups:
        return []
    request_id = source.next_number()
    frame = _write_frame(request_id, route, key, entry)
    return (yield from send_in_order(entry[_FLAGS_AT], backups, request_id, frame))


# --- failures ------------------------------------------------------------------------------------


def may_be_done(reply: Reply) -> bool:
    """Whether a request that got this instead of its own reply may have been done, or be done
    yet."""
    if isinstance(reply, Lost):
        return reply.sent
    if reply[0] != ERROR:
        return True
    row = messages.ERRORS.get(_error_code(reply))
    return row is None or row.outcome != "no"


def _is_error(reply: Reply, *codes: int) -> bool:
    """Whether a reply is an ERROR with one of these codes."""
    return not isinstance(reply, Lost) and reply[0] == ERROR and _error_code(reply) in codes


def _error_code(reply: Frame) -> int:
    return int.from_bytes(reply[3][:2], "big")


def remote_error(peer: str, reply: Frame) -> RemoteError:
    """The exception for an ERROR reply. Raises RemoteProtocolError if it is none, or malformed."""
    message = decode(reply[0], reply[3])
    if not isinstance(message, messages.Error):
        raise RemoteProtocolError(messages.UNKNOWN_KIND, f"{peer} answered with {message.name}")
    row = messages.ERRORS.get(message.code)
    name = row.name if row else f"error {message.code}"
    return RemoteError(peer, message.code, name, message.message, error_detail(message))


def refusal_of(reply: Frame) -> GTStoreError:
    """What an ERROR reply of a storage node says; it may be malformed."""
    try:
        return remote_error("a storage node", reply)
    except RemoteProtocolError as error:
        return error


def recover(
    routes: Routes,
    source: Source,
    key: bytes,
    route: Route,
    replies: Sequence[Reply],
    attempt: int,
) -> Generator[Step, Sequence[Reply], None]:
    """Do what a round's replies ask for before the next round: patch the map from STALE_EPOCH, ask
    the manager about a node that is gone (as the report does), start over with another cluster, or
    pause.

    Raises:
        Unavailable: the manager says that no owner is alive, or a node that its entry is damaged.
        RemoteError: a node refused for a reason that sending again cannot mend.
    """
    # Who has only lost a race goes on at once: others begin meanwhile (turns.py).
    pause = attempt > 0 and not _all_hold(replies)
    for reply in replies:
        if isinstance(reply, Lost):
            # A connection that was lost may only have been old: try a new one before asking.
            if isinstance(reply.error, ConnectError) or attempt > 0:
                role = "primary" if reply.peer == route.nodes[0] else "backup"
                why = f"{role} unavailable ({reply.error})"
                yield from _ask_next_primary(routes, source, key, reply.peer, why)
                pause = True
        elif reply[0] == ERROR:
            error = remote_error("a storage node", reply)
            if error.code == messages.STALE_EPOCH:
                yield from _take_row(routes, source, error.detail.row)
                if attempt > 0 and routes.find(key).epoch == route.epoch:
                    # A later process on its address is no owner of what it has lost.
                    why = "the primary is not the process that the map names"
                    yield from _ask_next_primary(routes, source, key, route.nodes[0], why)
                    pause = True
            elif error.code == messages.UNAVAILABLE:
                raise _unavailable(error)
            elif messages.ERRORS.get(error.code) and messages.ERRORS[error.code].retry == "no":
                raise error
            else:
                logger.info("%s", error)
                pause = True
        elif reply[0] not in (ACK, SUPERSEDED):
            raise _odd_reply(reply)
    # Epochs, not routes: Init makes new ones also where it has brought nothing new.
    if pause and routes.find(key).epoch == route.epoch:
        yield Pause(source.backoff_s(attempt))


def _odd_reply(reply: Frame) -> RemoteProtocolError:
    return RemoteProtocolError(
        messages.UNKNOWN_KIND, f"a node answered with a message of kind 0x{reply[0]:02x}"
    )


def _take_row(
    routes: Routes, source: Source, row: messages.Row
) -> Generator[Step, Sequence[Reply], None]:
    if cluster_of(row.list_epoch) == routes.cluster_id:
        routes.patch(row)
        yield from _catch_up(routes, source, row.list_epoch)
    else:
        logger.info("another cluster answers: asking the manager for everything anew")
        yield from initialize(routes, source, patient=True)


def _catch_up(routes: Routes, source: Source, epoch: int) -> Generator[Step, Sequence[Reply], None]:
    """Where one row has changed, many have, since each node owns many partitions: get them all,
    once for each map, instead of one by one with STALE_EPOCH."""
    since = routes.epoch
    if epoch <= since or cluster_of(since) != cluster_of(epoch):
        return
    routes.epoch = epoch  # now, so that the other calls do not ask too; if it fails, it is no harm
    try:
        news = yield from _ask_manager(source, messages.GetMap(since))
    except (NetworkError, RemoteError) as error:
        logger.info("the manager does not tell what has changed: %s", error)
        return
    assert isinstance(news, messages.Map)
    if cluster_of(news.epoch) == routes.cluster_id:
        for row in news.rows:
            routes.patch(row)
        routes.epoch = max(routes.epoch, news.epoch)


def _ask_next_primary(
    routes: Routes, source: Source, key: bytes, node: int, why: str
) -> Generator[Step, Sequence[Reply], None]:
    """The report's ProvideNextPrimaryID: tell the manager which node failed, and take the row that
    it answers with once it has looked for itself."""
    now_us = source.steady_us()
    if 0 <= now_us - routes.asked_about.get(node, now_us - _ASKED_US) < _ASKED_US:
        return  # another operation is asking about this node: wait for its answer
    logger.info("%s, asking the manager", why)
    routes.asked_about[node] = now_us
    try:
        owners = yield from _ask_manager(source, messages.NextPrimary(node, key))
        assert isinstance(owners, messages.Owners)
        if cluster_of(owners.row.list_epoch) != routes.cluster_id:
            yield from _take_row(routes, source, owners.row)
            return
        routes.members = {**routes.members, **{member.node: member for member in owners.members}}
        if routes.patch(owners.row):
            nodes = " ".join(str(owner.node) for owner in owners.row.owners)
            logger.info("the manager answers: %s is at storage nodes %s", shown(key), nodes)
            yield from _catch_up(routes, source, owners.row.list_epoch)
    except NetworkError as error:
        logger.info("the manager does not answer: %s", error)
    except RemoteError as error:
        if error.code != messages.NOT_READY:
            raise
        logger.info("the cluster is still starting")
    finally:
        routes.asked_about.pop(node, None)


def shown(key: bytes) -> str:
    """A key for people to read, on one line."""
    return printable(key.decode("utf-8", "backslashreplace"))


# --- the manager's answers -----------------------------------------------------------------------


def _ask_manager(
    source: Source, request: messages.Message
) -> Generator[Step, Sequence[Reply], messages.Message]:
    """Return the manager's reply to a request.

    Raises NetworkError if there is none, Unavailable or RemoteError for an ERROR reply, and
    RemoteProtocolError for a reply that is not one of the request's own.
    """
    request_id = source.next_number()
    frame = encode(request, request_id)
    replies = yield (MANAGER,), request_id, frame
    if isinstance(replies[0], Lost) and isinstance(replies[0].error, ConnectionLost):
        replies = yield (MANAGER,), request_id, frame  # the connection may only have been old
    reply = replies[0]
    if isinstance(reply, Lost):
        raise reply.error
    if reply[0] == ERROR:
        error = remote_error("the manager", reply)
        if error.code == messages.UNAVAILABLE:
            raise _unavailable(error)
        raise error
    message = decode(reply[0], reply[3])
    if message.name not in request.replies:
        raise RemoteProtocolError(
            messages.UNKNOWN_KIND, f"the manager answered {request.name} with {message.name}"
        )
    return message


def _unavailable(error: RemoteError) -> Unavailable:
    return Unavailable(str(error), required=error.detail.required, alive=error.detail.alive)


def initialize(
    routes: Routes,
    source: Source,
    patient: bool = False,
    known: messages.Map | None = None,
) -> Generator[Step, Sequence[Reply], None]:
    """The report's Init: get the cluster's shape, members and map from the manager.

    Tries again until the deadline; without ``patient``, not if there is no manager at all. Who has
    a whole map already (``known``: a node) is told the rest.
    """
    attempt = 0
    while True:
        try:
            cluster, measured, partition_map = yield from _cluster_and_map(source, known)
        except ConnectError:
            if not patient:
                raise
        except NetworkError as error:
            logger.info("the manager does not answer: %s", error)
        except RemoteError as error:
            if error.code != messages.NOT_READY:
                raise
        else:
            # A cluster that is made anew between the two answers gives two halves: ask again.
            same = cluster_of(cluster.epoch) == cluster_of(partition_map.epoch)
            if same and len(partition_map.rows) == cluster.partitions:
                cluster = dataclasses.replace(cluster, epoch=partition_map.epoch)
                is_known = cluster_of(cluster.epoch) == routes.cluster_id
                clock = routes.clock if is_known else ClusterTime()
                clock.take(*measured)
                routes.replace(cluster, partition_map.rows, clock)
                return
        yield Pause(source.backoff_s(attempt))
        attempt += 1


class _Measured(NamedTuple):
    """What ClusterTime.take takes."""

    asked_us: int
    answered_us: int
    time_us: int


def _ask_cluster(
    source: Source,
) -> Generator[Step, Sequence[Reply], tuple[messages.Cluster, _Measured]]:
    """CLUSTER_INFO, and cluster time as its answer tells it: measured around this request alone, so
    that it is known as well as one round trip can tell."""
    asked_us = source.steady_us()
    cluster = yield from _ask_manager(source, messages.ClusterInfo())
    answered_us = source.steady_us()
    assert isinstance(cluster, messages.Cluster)
    if cluster.time >= TIME_END_US:
        raise malformed(f"the manager's clock says {cluster.time}")
    return cluster, _Measured(asked_us, answered_us, cluster.time)


def _cluster_and_map(
    source: Source, known: messages.Map | None = None
) -> Generator[Step, Sequence[Reply], tuple[messages.Cluster, _Measured, messages.Map]]:
    cluster, measured = yield from _ask_cluster(source)
    partition_map = known or (yield from _ask_manager(source, messages.GetMap(0)))
    assert isinstance(partition_map, messages.Map)
    if not cluster_of(cluster.epoch):
        raise malformed("a cluster without an id")
    nodes = {member.node for member in cluster.members}
    if 0 in nodes or len(nodes) < len(cluster.members):
        raise malformed("members of which one is no node, or there twice")
    return cluster, measured, partition_map


def where(routes: Routes, source: Source, key: bytes) -> Operation[Location]:
    """Ask the manager where a key is (the report's Provide_K_Nodes).

    Raises Unavailable if no owner is alive, NetworkError if the manager does not answer.
    """
    owners = yield from _ask_manager(source, messages.KeyNodes(key))
    assert isinstance(owners, messages.Owners)
    routes.patch(owners.row)
    row = owners.row
    nodes = tuple(owner.node for owner in row.owners)
    return Location(row.partition, nodes, tuple(o.node for o in row.owners if not o.in_sync))


def status(routes: Routes, source: Source) -> Operation[ClusterStatus]:
    """The cluster as the manager sees it, with each living node's own count of its entries.

    Raises NetworkError if the manager does not answer.
    """
    cluster, _, partition_map = yield from _cluster_and_map(source)
    if cluster_of(cluster.epoch) != routes.cluster_id:
        yield from initialize(routes, source, patient=True)
    routes.members = {member.node: member for member in cluster.members}
    serving = tuple(member.node for member in cluster.members if is_serving(member))
    request_id = source.next_number()
    frame = encode(messages.Ping(), request_id)
    troubles = yield from _troubles(source)  # before those who may not answer
    replies = list((yield serving, request_id, frame))
    for at, reply in enumerate(replies):
        if isinstance(reply, Lost) and isinstance(reply.error, ConnectionLost):
            # The connection may have been to the node's last process.
            (replies[at],) = yield (reply.peer,), request_id, frame
    pongs = {}
    for node, reply in zip(serving, replies, strict=True):
        if reply[0] == messages.Pong.kind and not isinstance(reply, Lost):
            pong = decode(reply[0], reply[3])
            if isinstance(pong, messages.Pong) and pong.node == node:
                pongs[node] = pong
    return {
        "cluster": f"{cluster_of(cluster.epoch):08x}",
        "epoch": partition_map.epoch & 0xFFFF_FFFF,
        "replicas": cluster.replicas,
        "hash": HASHES.get(cluster.hash, str(cluster.hash)),
        "nodes": [
            _node_status(member, pongs.get(member.node), partition_map.rows)
            for member in cluster.members
        ],
        "under_replicated": list(
            under_replicated(
                partition_map.rows, cluster.replicas, filter(is_serving, cluster.members)
            )
        ),
        "begun_anew": list(begun_anew(partition_map.rows)),
        "troubles": [
            {"what": each.what, "since": each.since / 1e6, "reason": each.reason}
            for each in troubles
        ],
    }


def _troubles(source: Source) -> Operation[tuple[messages.Trouble, ...]]:
    """What the manager says of itself; an earlier version of it says nothing."""
    try:
        reply = yield from _ask_manager(source, messages.GetTroubles())
    except RemoteError:
        return ()
    assert isinstance(reply, messages.Troubles)
    return reply.troubles


def _node_status(
    member: messages.Member, pong: messages.Pong | None, rows: Sequence[messages.Row]
) -> NodeStatus:
    owned = [row for row in rows if any(owner.node == member.node for owner in row.owners)]
    return {
        "id": member.node,
        "address": format_address(member.host, member.port),
        "pid": member.pid,
        "incarnation": member.incarnation,
        "state": STATES.get(member.state, str(member.state)),
        "entries": pong.entries if pong else 0,
        "bytes": pong.bytes if pong else 0,
        "full": FULL.get(pong.full) if pong else None,
        "partitions": len(owned),
        "primaries": sum(row.owners[0].node == member.node for row in owned),
        "syncing": sum(
            owner.node == member.node and not owner.in_sync for row in owned for owner in row.owners
        ),
    }
