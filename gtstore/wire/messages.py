"""The message table: the only place where a kind, an error code or a limit is written.

Everything else about the wire follows from it: the codec (codec.py), the reference in
docs/PROTOCOL.md (describe/) and the servers' handler tables. A message is a frozen dataclass; its
docstring is its purpose in the document, its annotations are its body (fields.py).

Numbers are written out. Zero is reserved; a retired number keeps its row and is never used again.
Requests have kinds below 0x80, replies from 0x80 on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, TypeVar, dataclass_transform

from .fields import (
    MALFORMED,
    MARK_SIZE,
    U8,
    U16,
    U32,
    U64,
    Array,
    Counted,
    Epoch,
    Integer,
    Mark,
    OptionalTime,
    Record,
    Rest,
    Text,
    Time,
    Token,
    Version,
)

# --- the frame -----------------------------------------------------------------------------------

MAGIC: Final = 0xC7
"""The first byte of every frame: a G with the high bit set, which no text protocol begins with."""
PROTOCOL_VERSION: Final = 1
HEADER_SIZE: Final = 12

# --- limits and defaults -------------------------------------------------------------------------

KIB = 1024
MIB = 1024 * KIB

KEY_SIZE_MIN: Final = 1
KEY_SIZE_MAX: Final = 500
VALUE_SIZE_MAX: Final = 16 * MIB
FRAME_SIZE_MAX: Final = 16 * MIB + KIB
NODES_MAX: Final = 1000
REPLICAS_MAX: Final = 15
PARTITIONS_PER_NODE: Final = 64
FRAME_TIMEOUT_MS: Final = 30_000
CONNECTIONS_MAX: Final = 1024
CONNECTIONS_RESERVED: Final = 64
IDLE_TIMEOUT_S: Final = 60
CLIENT_IDLE_S: Final = 25.0
"""A client leaves a connection before the server does, also if it looks only half as often."""
IN_FLIGHT_SIZE_MAX: Final = MIB
LONG_FRAME_SIZE: Final = 256 * KIB
LONG_FRAMES_MAX: Final = 16
PROBE_INTERVAL_MS: Final = 250
PROBE_MISSES_MAX: Final = 4
CLOCK_AHEAD_MAX_S: Final = 60
TIME_END_US: Final = 1 << 63
"""No clock is ever that far."""
RESPAWN_PAUSE_MAX_S: Final = 30
START_TIMEOUT_S: Final = 60
TOMBSTONE_RETENTION_S: Final = 600
SETTLE_AFTER_S: Final = 1
COPY_SIZE: Final = 64 * KIB
SCAN_SIZE: Final = 64 * KIB
HELD_SIZE: Final = 256 * KIB
KEYS_A_REPLY_MAX: Final = 1000
MANAGER_PORT: Final = 9001
NODE_PORT: Final = 10001
KEEPALIVE_AFTER_S: Final = 30
KEEPALIVE_INTERVAL_S: Final = 10
SILENCE_MAX_S: Final = 30
CLIENT_TIMEOUT_S: Final = 5.0
CLIENT_CONNECTIONS_MAX: Final = 64
TTL_MAX_S: Final = 100 * 365 * 24 * 60 * 60
MARKS_MAX: Final = 64
SCRUB_PERCENT: Final = 0.05


@dataclass(frozen=True)
class Limit:
    """A row of the document's table of limits and defaults."""

    name: str
    value: str
    meaning: str


LIMITS: Final = (
    Limit("key size", f"{KEY_SIZE_MIN} to {KEY_SIZE_MAX} bytes", "any bytes"),
    Limit("value size", f"0 to {VALUE_SIZE_MAX:,} bytes (16 MiB)", "any bytes"),
    Limit("frame size", f"{FRAME_SIZE_MAX:,} bytes (16 MiB + 1 KiB)", "the header included"),
    Limit("nodes of a cluster", f"1 to {NODES_MAX:,}", ""),
    Limit(
        "replicas",
        f"1 to {REPLICAS_MAX}",
        "no more than nodes; a row may have one owner more, while it is copied",
    ),
    Limit("partitions", f"{PARTITIONS_PER_NODE} for each node", "fixed when the cluster is made"),
    Limit(
        "time for a frame",
        f"{FRAME_TIMEOUT_MS // 1000} s (`--frame-timeout-ms`)",
        "from its first byte to its last; idle connections live",
    ),
    Limit(
        "long frames under way",
        str(LONG_FRAMES_MAX),
        f"of more than {LONG_FRAME_SIZE:,} bytes (256 KiB), over all connections of a process; "
        "the next one is not read until there is a place",
    ),
    Limit(
        "connections of a node",
        f"{CONNECTIONS_MAX:,} (`--max-connections`)",
        "that have sent a data request; pings and control messages do not count",
    ),
    Limit(
        "further connections",
        str(CONNECTIONS_RESERVED),
        "for everything else; of a manager both numbers together. For one more, those that are "
        "silent for the longest time are closed",
    ),
    Limit(
        "time that a connection may be idle",
        f"{IDLE_TIMEOUT_S} s",
        "to a manager, or to a node if it has sent no data request; then the server closes it",
    ),
    Limit(
        "answers waiting on a connection",
        f"{IN_FLIGHT_SIZE_MAX:,} bytes (1 MiB)",
        "then the node sends before it reads on; a client keeps no more requests under way",
    ),
    Limit(
        "a connection whose other end has vanished",
        f"{KEEPALIVE_AFTER_S + KEEPALIVE_INTERVAL_S} s",
        f"after {KEEPALIVE_AFTER_S} s without a byte it is probed every {KEEPALIVE_INTERVAL_S} s, "
        f"and given up when nothing was acknowledged for {SILENCE_MAX_S} s, or for the time for a "
        "frame, if that is longer",
    ),
    Limit("probe interval", f"{PROBE_INTERVAL_MS} ms (`--probe-interval-ms`)", "manager to node"),
    Limit("missed probes", str(PROBE_MISSES_MAX), "then the manager acts on a silent node"),
    Limit(
        "tombstones are kept",
        f"{TOMBSTONE_RETENTION_S // 60} minutes",
        "then each owner drops those that are committed",
    ),
    Limit(
        "time for an entry to be committed",
        f"{SETTLE_AFTER_S} s",
        "then its primary sees to it; after ten times as long the backups do",
    ),
    Limit(
        "pause before a node is started again",
        f"0.2, 1, 2, 4 .. {RESPAWN_PAUSE_MAX_S} s",
        "longer while it keeps dying within 2 s, or within its last pause, but not if it was in "
        "sync by then; none before the first time if something is "
        f"Unavailable; a process that does not register within {START_TIMEOUT_S} s is killed",
    ),
    Limit(
        "entries of one COPIED",
        f"{COPY_SIZE:,} bytes (64 KiB)",
        f"the first one may exceed it; and no more than {KEYS_A_REPLY_MAX:,} keys",
    ),
    Limit(
        "entries that one COPY names",
        f"{HELD_SIZE:,} bytes (256 KiB)",
        f"the last one may exceed it; and no more than {KEYS_A_REPLY_MAX:,} keys",
    ),
    Limit(
        "entries of one SCANNED",
        f"{SCAN_SIZE:,} bytes (64 KiB)",
        f"a longer entry is left out, and to be gotten; no more than {KEYS_A_REPLY_MAX:,} keys",
    ),
    Limit(
        "version ahead of cluster time, of the stored one and of the floor",
        f"{CLOCK_AHEAD_MAX_S} s",
        "then the write is TOO_FAR",
    ),
    Limit("manager's port", str(MANAGER_PORT), "`--port`"),
    Limit(
        "nodes' ports", f"{NODE_PORT}, {NODE_PORT + 1}, ...", "`--node-port` gives the first one"
    ),
    Limit("a client's deadline", f"{CLIENT_TIMEOUT_S:g} s", "for the whole call"),
    Limit(
        "a client's connections to each node",
        f"{CLIENT_CONNECTIONS_MAX} (`max_connections=`)",
        "in the Python client for threads, one for each call in progress; further calls wait for "
        "their turn, within their deadlines",
    ),
    Limit(
        "an idle connection of a client",
        f"{CLIENT_IDLE_S:g} s",
        "then the Python clients close it; none is used that was idle for twice as long",
    ),
    Limit(
        "a put's time to live",
        f"more than 0, up to {TTL_MAX_S:,} s (100 years)",
        "in the Python client; nodes take any expiry",
    ),
)

# --- field values --------------------------------------------------------------------------------

HASH_ADDITIVE: Final = 1
HASH_CRC16: Final = 2
HASHES: Final = {HASH_ADDITIVE: "additive", HASH_CRC16: "crc16"}

ALIVE: Final = 1
SUSPECT: Final = 2
DEAD: Final = 3
LEFT: Final = 4
STATES: Final = {ALIVE: "alive", SUSPECT: "suspect", DEAD: "dead", LEFT: "left"}

ROLE_MANAGER: Final = 1
ROLE_NODE: Final = 2
ROLES: Final = {ROLE_MANAGER: "manager", ROLE_NODE: "node"}

FULL_MEMORY: Final = 1
FULL_DISK: Final = 2
FULL: Final = {FULL_MEMORY: "memory", FULL_DISK: "disk"}

COMMITTED: Final = 1
ORDERED: Final = 2
TOMBSTONE: Final = 4
EXPIRES: Final = 8
ENTRY_FLAGS: Final = {
    COMMITTED: "committed",
    ORDERED: "ordered",
    TOMBSTONE: "tombstone",
    EXPIRES: "expires",
}

APPEND: Final = 1
INCREMENT: Final = 2
PUT_IF_ABSENT: Final = 3
PUT_IF_VALUE: Final = 4
PUT_IF_VERSION: Final = 5
TOUCH: Final = 6
OPERATIONS: Final = {
    APPEND: "append",
    INCREMENT: "increment",
    PUT_IF_ABSENT: "put if absent",
    PUT_IF_VALUE: "put if value",
    PUT_IF_VERSION: "put if version",
    TOUCH: "touch",
}

COMPARISON_FAILED: Final = 1
RESULT_TOO_LONG: Final = 2
NOT_A_NUMBER: Final = 3
NUMBER_OVERFLOW: Final = 4
FAILURES: Final = {
    COMPARISON_FAILED: "the comparison failed",
    RESULT_TOO_LONG: "the value would be too long",
    NOT_A_NUMBER: "the value is no number",
    NUMBER_OVERFLOW: "the number would be too large",
}

_U16 = Integer("u16", "H")
_U32 = Integer("u32", "I")

Key = Annotated[bytes, Counted("key", _U16, KEY_SIZE_MIN, KEY_SIZE_MAX)]
Value = Annotated[bytes, Counted("value", _U32, 0, VALUE_SIZE_MAX)]

# --- records: what messages are made of ----------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """What is stored under a key. It always stands last in a message and reaches to its end.

    A stored entry is these bytes, so comparing the first 16 bytes of two entries compares their
    versions, and bytes 8 to 19 (client, counter) are the identity of the operation that wrote it,
    its `rid`.
    """

    time: Annotated[Time, "of the version: microseconds since 1970"]
    client: Annotated[U64, "of the version: the random number of the client that wrote it"]
    counter: Annotated[U32, "which of that client's operations wrote it"]
    flags: Annotated[U8, "1 committed, 2 ordered, 4 tombstone, 8 expires; other bits are zero"]
    expiry: Annotated[OptionalTime, "when it expires, in cluster time (10.2); the primary judges"]
    value: Annotated[bytes, Rest("bytes"), "the value; empty for a tombstone"]


ENTRY_HEAD_SIZE: Final = 21
"""An entry's bytes before its expiry or value: time, client, counter, flags."""
FLAGS_SIZE: Final = 1
ENTRY_SIZE_MAX: Final = ENTRY_HEAD_SIZE + 8 + VALUE_SIZE_MAX

EntryBytes = Annotated[bytes, Rest("entry", ENTRY_HEAD_SIZE)]


@dataclass(frozen=True)
class Owner:
    """One replica of a partition."""

    node: Annotated[U16, "the node's number, from 1 on"]
    incarnation: Annotated[U32, "which start of that node is meant"]
    join_epoch: Annotated[Epoch, "since when it is an owner of this partition"]
    in_sync: Annotated[U8, "1: holds all that was acknowledged; 0: is copying it"]


@dataclass(frozen=True)
class Row:
    """One partition's row of the partition map. The first owner is the primary."""

    partition: Annotated[U32, "its number, from 0 on"]
    list_epoch: Annotated[Epoch, "of the last change of the owners; data requests carry it"]
    primary_epoch: Annotated[Epoch, "since when the primary is the primary"]
    owners: Annotated[
        tuple[Owner, ...], Array(Integer("u8", "B"), Record(Owner)), "in order, the primary first"
    ]


@dataclass(frozen=True)
class Join:
    """One time that a node became an owner of a partition."""

    partition: Annotated[U32, "the partition"]
    join_epoch: Annotated[Epoch, "since when the node is an owner of it"]


@dataclass(frozen=True)
class HeldEntry:
    """What a node has of a key from before it joined."""

    key: Annotated[Key, "the key"]
    version: Annotated[Version, "of its entry"]
    checksum: Annotated[
        U32, "CRC-32 (as in gzip) of the entry's bytes, with its flag committed cleared"
    ]


@dataclass(frozen=True)
class KeyedEntry:
    """A key and what is stored under it."""

    key: Annotated[Key, "the key"]
    entry: Annotated[
        bytes,
        Counted("entry", _U32, FLAGS_SIZE, ENTRY_SIZE_MAX),
        "the stored [entry](#entry), as it is; or its flags alone, one byte, if COPY has named it "
        "with the same version and checksum",
    ]


@dataclass(frozen=True)
class ScannedKey:
    """A key that a scan has found, and its entry, if it can be told at once."""

    key: Annotated[Key, "the key"]
    entry: Annotated[
        bytes,
        Counted("entry", _U32, 0, SCAN_SIZE),
        "the stored [entry](#entry), complete and no tombstone; or nothing: get the key",
    ]


@dataclass(frozen=True)
class Member:
    """One node as the manager sees it."""

    node: Annotated[U16, "the node's number, from 1 on"]
    state: Annotated[U8, "1 alive, 2 suspect, 3 dead, 4 left"]
    incarnation: Annotated[U32, "which start of the node this is"]
    pid: Annotated[U32, "its process, on its own machine; 0 if not known"]
    port: Annotated[U16, "where it listens"]
    host: Annotated[Text, "where it listens: an IP address or a name"]


@dataclass(frozen=True)
class Trouble:
    """Something that keeps the manager from doing its work in full. ``unsaved``: it cannot write
    down the map for its successor."""

    what: Annotated[Text, "which one, in a word; clients pass over those that they do not know"]
    since: Annotated[Time, "when it began, by the manager's clock"]
    reason: Annotated[Text, "why, and what it means meanwhile"]


# --- messages ------------------------------------------------------------------------------------

CLIENT, MANAGER, NODE = "client", "manager", "node"


@dataclass(frozen=True)
class Message:
    """The base of all messages. ``@message`` fills in what the table says of each."""

    kind: ClassVar[int]
    name: ClassVar[str]
    sender: ClassVar[str]
    receivers: ClassVar[tuple[str, ...]]
    replies: ClassVar[tuple[str, ...]]


MESSAGES: Final[dict[int, type[Message]]] = {}
"""kind -> message class: the whole table."""


MessageClass = TypeVar("MessageClass", bound=type[Message])


@dataclass_transform(frozen_default=True)
def message(
    kind: int, sender: str, *receivers: str, replies: tuple[str, ...] = ()
) -> Callable[[MessageClass], MessageClass]:
    """Enter a class into the table: its kind, who sends it to whom, and the replies that it may
    get."""

    def enter(cls: MessageClass) -> MessageClass:
        assert 0 < kind < 0x100
        assert kind not in MESSAGES
        cls.kind = kind
        cls.name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).upper()
        cls.sender = sender
        cls.receivers = receivers
        cls.replies = replies
        MESSAGES[kind] = cls
        dataclass(frozen=True)(cls)  # changes the class in place
        return cls

    return enter


@message(0x01, CLIENT, MANAGER, NODE, replies=("PONG",))
class Ping(Message):
    """Ask a manager or a node whether it is alive and who it is. The manager probes its nodes with
    it."""


@message(0x81, "manager or node", CLIENT)
class Pong(Message):
    """The answer to PING. A manager gives 0 for the node, the incarnation, the entries, the bytes
    and what is full."""

    role: Annotated[U8, "1 manager, 2 node"]
    node: Annotated[U16, "the node's number"]
    incarnation: Annotated[U32, "which start of the node this is"]
    pid: Annotated[U32, "the process that answers"]
    epoch: Annotated[Epoch, "of the map that it holds; 0 before a node has its first map"]
    time: Annotated[Time, "cluster time (10.2)"]
    entries: Annotated[U64, "keys that have a value on this node"]
    bytes: Annotated[U64, "the size of all keys and entries, tombstones included"]
    full: Annotated[U8, "why it takes no more writes: 1 its memory is full, 2 its disk; 0 it does"]


@message(0x02, CLIENT, MANAGER, replies=("CLUSTER", "NOT_READY"))
class ClusterInfo(Message):
    """Ask the manager for the cluster's shape and members: a client's first message (the report's
    Init)."""


@message(0x82, MANAGER, CLIENT)
class Cluster(Message):
    """The cluster's shape and members."""

    epoch: Annotated[Epoch, "of the partition map"]
    nodes: Annotated[U16, "how many nodes the cluster was made with"]
    replicas: Annotated[U16, "how many copies of each key are meant to be there"]
    hash: Annotated[U8, "1 additive, 2 crc16"]
    partitions: Annotated[U32, "how many partitions there are"]
    time: Annotated[Time, "cluster time (10.2), by which clients go"]
    members: Annotated[tuple[Member, ...], Array(_U16, Record(Member)), "all nodes, by number"]


@message(0x03, CLIENT, MANAGER, replies=("MAP", "NOT_READY"))
class GetMap(Message):
    """Ask the manager for the partition map. Nodes that are behind ask too."""

    since: Annotated[
        Epoch, "only rows whose list_epoch is higher; 0, or another cluster's epoch: all rows"
    ]


@message(0x83, MANAGER, CLIENT)
class Map(Message):
    """Rows of the partition map."""

    epoch: Annotated[Epoch, "of the whole map"]
    rows: Annotated[tuple[Row, ...], Array(_U32, Record(Row)), "in the order of their partitions"]


@message(0x04, CLIENT, MANAGER, replies=("OWNERS", "UNAVAILABLE", "NOT_READY"))
class KeyNodes(Message):
    """Ask the manager for the nodes of a key (the report's Provide_K_Nodes)."""

    key: Annotated[Key, "the key"]


@message(0x05, CLIENT, MANAGER, replies=("OWNERS", "UNAVAILABLE", "NOT_READY"))
class NextPrimary(Message):
    """Tell the manager that a node did not answer, and ask for the key's primary (the report's
    ProvideNextPrimaryID). The manager believes no client: it probes that node at once, and answers
    with the row without it if its process has ended, otherwise with the row as it is.
    """

    node: Annotated[U16, "the node that did not answer"]
    key: Annotated[Key, "the key"]


@message(0x84, MANAGER, CLIENT)
class Owners(Message):
    """The row of the key's partition, and where its owners listen."""

    row: Annotated[Row, Record(Row), "of the key's partition"]
    members: Annotated[tuple[Member, ...], Array(_U16, Record(Member)), "the row's owners"]


@message(0x06, NODE, MANAGER, replies=("REGISTERED", "NOT_ALLOWED"))
class Register(Message):
    """A node that has just started says where it listens. Until it has registered and holds a map
    that names it with its own incarnation, it answers data requests with NOT_READY.
    """

    token: Annotated[Token, "the secret that the manager gave to the process"]
    node: Annotated[U16, "its number"]
    incarnation: Annotated[U32, "which start of the node this is, as the manager told it"]
    pid: Annotated[U32, "its process"]
    port: Annotated[U16, "where it listens"]
    joins: Annotated[
        tuple[Join, ...],
        Array(_U32, Record(Join)),
        "the partitions of which its disk has everything since it joined; none without a disk",
    ] = ()
    doubtful: Annotated[
        tuple[Join, ...],
        Array(_U32, Record(Join)),
        "the same, but the log on its disk ends in a record that cannot be read: what was "
        "acknowledged last may be missing",
    ] = ()
    marks: Annotated[
        bytes,
        Counted("marks", _U16, 0, MARKS_MAX * MARK_SIZE),
        "the newest marks that are on its disk, 16 bytes each, the last one last (NEW_MARK)",
    ] = b""


@message(0x86, MANAGER, NODE)
class Registered(Message):
    """The shape of the cluster. The map follows with MAP_UPDATE."""

    epoch: Annotated[Epoch, "maps older than this do not know of the node's process"]
    nodes: Annotated[U16, "how many nodes the cluster was made with"]
    replicas: Annotated[U16, "how many copies of each key are meant to be there"]
    hash: Annotated[U8, "1 additive, 2 crc16"]


@message(0x07, NODE, MANAGER, replies=("NOTED", "NOT_ALLOWED", "NOT_READY"))
class InSync(Message):
    """A node that has copied everything of some partitions says so. The manager enters it as in
    sync if that is still how it joined; the map tells."""

    token: Annotated[Token, "the secret that the manager gave to the process"]
    node: Annotated[U16, "its number"]
    joins: Annotated[tuple[Join, ...], Array(_U32, Record(Join)), "what it has copied"]


@message(0x87, "manager or node", NODE)
class Noted(Message):
    """The answer to IN_SYNC, LEAVE, NEW_MARK and DIFFERS."""


@message(0x08, NODE, MANAGER, replies=("NOTED", "NOT_ALLOWED", "NOT_READY", "UNAVAILABLE"))
class Leave(Message):
    """A node that has found its copy of a partition damaged, and has stopped to answer for it,
    wants to be no owner of it any more. After NOTED it is none under that join; it joins anew, as
    syncing, and copies. UNAVAILABLE: it holds the last copy, and stays."""

    token: Annotated[Token, "the secret that the manager gave to the process"]
    node: Annotated[U16, "its number"]
    join: Annotated[Join, Record(Join), "the partition, and when it joined it"]


@message(0x0C, NODE, MANAGER, replies=("NOTED", "NOT_ALLOWED"))
class NewMark(Message):
    """A node has put a new mark on its disk, as it does at each start and at an orderly stop. The
    manager keeps the last one of each node: a disk that does not have it is an older copy."""

    token: Annotated[Token, "the secret that the manager gave to the process"]
    node: Annotated[U16, "its number"]
    incarnation: Annotated[U32, "which start of the node this is"]
    mark: Annotated[Mark, "a random number"]


@message(0x09, CLIENT, NODE, replies=("STATISTICS",))
class GetStatistics(Message):
    """Ask a node how much it has done, to see how much it does: the difference of two answers."""


@message(0x89, NODE, CLIENT)
class Statistics(Message):
    """How many requests this process has handled since it was started, whatever became of them. A
    put is a WRITE at each owner; a read-modify-write is an EXECUTE at the primary, and a WRITE at
    each other owner."""

    incarnation: Annotated[U32, "which start of the node this is: the counts begin with it"]
    gets: Annotated[U64, "GET requests"]
    writes: Annotated[U64, "WRITE requests"]
    executes: Annotated[U64, "EXECUTE requests"]


@message(0x0A, CLIENT, MANAGER, replies=("TROUBLES",))
class GetTroubles(Message):
    """Ask the manager what keeps it from doing its work in full."""


@message(0x8A, MANAGER, CLIENT)
class Troubles(Message):
    """What somebody should look at, and what it means meanwhile. Mostly there is nothing."""

    troubles: Annotated[
        tuple[Trouble, ...], Array(_U16, Record(Trouble)), "all of them, in no order"
    ]


@message(
    0x10,
    CLIENT,
    NODE,
    replies=(
        "ENTRY", "NOT_FOUND", "NOT_READY", "STALE_EPOCH", "BEHIND", "WRONG_PARTITION", "BUSY",
        "UNAVAILABLE",
    ),
)  # fmt: skip
class Get(Message):
    """Ask the key's primary for its entry. With epoch 0, "whatever you hold", any node answers what
    it holds, and finds the partition itself: for work by hand, since only the primary's answer is
    sure to be the latest.
    """

    epoch: Annotated[Epoch, "the partition's list_epoch as the sender holds it, or 0"]
    partition: Annotated[U32, "the key's partition; not looked at with epoch 0"]
    key: Annotated[Key, "the key"]


@message(0x90, NODE, CLIENT)
class EntryReply(Message):
    """The entry that is stored under the key; it may be a tombstone, and then the key has no value.
    An entry that is not committed must be helped (section 10) before its value is believed. In the
    place of an entry that has expired, the primary stores a tombstone, and answers with that.
    """

    entry: Annotated[EntryBytes, "what is stored"]


@message(0x91, NODE, CLIENT)
class NotFound(Message):
    """Nothing is stored under the key."""


@message(
    0x11,
    CLIENT,
    NODE,
    replies=(
        "ACK", "SUPERSEDED", "NOT_READY", "STALE_EPOCH", "BEHIND", "WRONG_PARTITION", "TOO_FAR",
        "TOO_OLD", "NO_SPACE", "VALUE_TOO_LONG", "BUSY", "UNAVAILABLE",
    ),
)  # fmt: skip
class Write(Message):
    """Store an entry under the key if its version is higher than the stored one (put and delete,
    and a reader's help). A client sends the same frame to every owner of the partition;
    section 10.3 says in which order.
    """

    epoch: Annotated[Epoch, "the partition's list_epoch as the sender holds it"]
    partition: Annotated[U32, "the key's partition"]
    key: Annotated[Key, "the key"]
    entry: Annotated[EntryBytes, "what to store; its committed flag is zero"]


@message(0x92, NODE, CLIENT)
class Ack(Message):
    """The entry is stored, or was already."""


@message(0x93, NODE, CLIENT)
class Superseded(Message):
    """A higher version, of another operation, is stored; the request changed nothing."""

    version: Annotated[Version, "the stored version"]


@message(0x12, CLIENT, NODE)
class Commit(Message):
    """Say that all owners hold this version of the key. It has no reply and may be lost: it saves
    the next reader a round trip.
    """

    partition: Annotated[U32, "the key's partition"]
    version: Annotated[Version, "the version that all owners hold"]
    key: Annotated[Key, "the key"]


@message(
    0x13,
    CLIENT,
    NODE,
    replies=(
        "EXECUTED", "SUPERSEDED", "FAILED", "NOT_READY", "STALE_EPOCH", "BEHIND",
        "WRONG_PARTITION", "TOO_FAR", "TOO_OLD", "NO_SPACE", "VALUE_TOO_LONG", "BUSY",
        "UNAVAILABLE",
    ),
)  # fmt: skip
class Execute(Message):
    """Have the key's primary compute a new entry from the one that it holds, and store it: append,
    increment, compare and put, touch. The result then has to be written to the other owners
    (section 10.9); an EXECUTE with the client and counter of the stored entry is answered as
    before.
    """

    epoch: Annotated[Epoch, "the partition's list_epoch as the sender holds it"]
    partition: Annotated[U32, "the key's partition"]
    key: Annotated[Key, "the key"]
    operation: Annotated[
        U8, "1 append, 2 increment, 3 put if absent, 4 put if value, 5 put if version, 6 touch"
    ]
    expected: Annotated[
        Value, "for 4 the value, for 5 the version (16 bytes) that must be stored; otherwise empty"
    ]
    entry: Annotated[
        EntryBytes,
        "version, counter and flags of the result, without ordered and committed; as value what to "
        "append, what to add (decimal digits, perhaps with a sign), or what to put; none for 6",
    ]


@message(0x94, NODE, CLIENT)
class Executed(Message):
    """The result, as the primary has stored it. Unless it is committed, the other owners must be
    given it (section 10.9).
    """

    entry: Annotated[EntryBytes, "what is stored"]


@message(0x95, NODE, CLIENT)
class Failed(Message):
    """The operation cannot be done on the stored entry, and changed nothing. If that entry is
    pending, it must be helped before the failure is believed.
    """

    reason: Annotated[U8, "1 comparison failed, 2 value too long, 3 no number, 4 number too large"]
    entry: Annotated[bytes, Rest("bytes"), "the stored [entry](#entry), or nothing"]


@message(0x14, CLIENT, NODE, replies=("SCANNED", "NOT_READY", "STALE_EPOCH", "BEHIND", "BUSY"))
class Scan(Message):
    """Ask the primary of a partition for the keys that have a value there, some with each request,
    in the order of their bytes (section 10.13).
    """

    epoch: Annotated[Epoch, "the partition's list_epoch as the sender holds it"]
    partition: Annotated[U32, "the partition"]
    after: Annotated[
        bytes, Counted("key", _U16, 0, KEY_SIZE_MAX), "only keys above this one; empty: all"
    ]
    prefix: Annotated[
        bytes, Counted("key", _U16, 0, KEY_SIZE_MAX), "only keys that begin with it; empty: all"
    ]
    with_values: Annotated[U8, "1: whole entries; 0: only their heads, up to expiry"]


@message(0x96, NODE, CLIENT)
class Scanned(Message):
    """The next keys. There may be none, though it is not the last answer: what was looked at were
    tombstones, or the node is not done with sorting the keys.
    """

    is_last: Annotated[U8, "1: there are no more keys; 0: ask again"]
    after: Annotated[
        bytes, Counted("key", _U16, 0, KEY_SIZE_MAX), "how far this goes: what to ask with again"
    ]
    keys: Annotated[tuple[ScannedKey, ...], Array(_U32, Record(ScannedKey)), "in order of keys"]


@message(0x20, MANAGER, NODE, replies=("ADOPTED", "NOT_ALLOWED"))
class MapUpdate(Message):
    """Give a node the rows that have changed since the map that it holds."""

    token: Annotated[Token, "the secret that the manager gave to the process"]
    epoch: Annotated[Epoch, "of the whole map"]
    rows: Annotated[tuple[Row, ...], Array(_U32, Record(Row)), "the changed rows"]


@message(0xA0, NODE, MANAGER)
class Adopted(Message):
    """The node goes by this map from now on."""

    epoch: Annotated[Epoch, "of the map that it holds"]


@message(0x21, NODE, NODE, replies=("COPIED", "NOT_READY", "STALE_EPOCH", "NOT_ALLOWED"))
class Copy(Message):
    """A node that joins a partition asks for the entries of the owner before it. That one first
    goes by the row given here, if it does not have it yet, and answers as long as it is in sync
    itself and the asking node comes after it. The keys come in the order of their bytes, each entry
    as it is when it is sent.

    So does the first owner of a partition that is not open, for the logs of all its owners end in
    records that cannot be read (`doubtful` in REGISTER): it asks each of the others, and these
    answer as long as that is so with them, too.

    An owner in sync asks as well, now and then, naming all that it has, to see whether it is the
    same.

    A node that has come back names in `held` what its disk still has from before, in the order of
    keys, all of it above `after`. What is the same at the source is not sent. The answer goes no
    further than the last key that is named, unless it had no entry then: so what comes after that
    can be named first.
    """

    token: Annotated[Token, "the secret that the manager gave to the process"]
    node: Annotated[U16, "the node that asks"]
    row: Annotated[Row, Record(Row), "of the partition, as that node holds it"]
    after: Annotated[
        bytes, Counted("key", _U16, 0, KEY_SIZE_MAX), "only keys above this one; empty: all"
    ]
    held: Annotated[
        tuple[HeldEntry, ...],
        Array(_U32, Record(HeldEntry)),
        "what the node that asks has of the next keys; none: it has nothing of those to come",
    ]


@message(0xA1, NODE, NODE)
class Copied(Message):
    """Some of the partition's entries, the next ones above the key that was given."""

    join_epoch: Annotated[Epoch, "of the node that asked, as the answering node knows it"]
    is_last: Annotated[U8, "1: there are no more keys; 0: ask again, above the last one"]
    floor: Annotated[
        Version,
        "with the last entries: the highest version of the tombstones that were dropped there; the "
        "node that asks drops what it has up to it and was not sent, and goes by it; otherwise 0",
    ]
    entries: Annotated[tuple[KeyedEntry, ...], Array(_U32, Record(KeyedEntry)), "in order of keys"]


@message(0x22, NODE, NODE, replies=("NOTED", "NOT_ALLOWED", "UNAVAILABLE"))
class Differs(Message):
    """An owner has found, by COPY, that another one holds less than what is committed here. That
    one looks for itself, and if it is so it leaves the partition and joins it anew."""

    token: Annotated[Token, "the secret that the manager gave to the process"]
    partition: Annotated[U32, "the partition"]
    version: Annotated[Version, "that is committed here"]
    key: Annotated[Key, "the key"]


@message(0xFF, "manager or node", CLIENT)
class Error(Message):
    """Any request may get this reply instead of its own (section 8)."""

    code: Annotated[U16, "which error"]
    message: Annotated[Text, "for a person to read; it may change at any time"]
    detail: Annotated[bytes, Rest("bytes"), "the code's own fields, if it has any"]


EntryReply.name = "ENTRY"


# --- errors --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VersionDetail:
    highest: Annotated[U8, "the highest protocol version that is spoken here"]


@dataclass(frozen=True)
class SizeDetail:
    size_max: Annotated[U32, "how many bytes are allowed"]


@dataclass(frozen=True)
class BusyDetail:
    connections_max: Annotated[U32, "how many connections the node serves"]


@dataclass(frozen=True)
class StaleDetail:
    row: Annotated[Row, Record(Row), "the partition's row as the node holds it"]


@dataclass(frozen=True)
class PartitionDetail:
    partition: Annotated[U32, "the key's partition"]


@dataclass(frozen=True)
class TimeDetail:
    time_max: Annotated[Time, "the highest time that the node takes for this key now"]


@dataclass(frozen=True)
class FloorDetail:
    version: Annotated[Version, "no version up to this one is taken for a key that is not stored"]


@dataclass(frozen=True)
class AliveDetail:
    required: Annotated[U16, "how many copies are meant to be there"]
    alive: Annotated[U16, "how many of its owners are alive"]


@dataclass(frozen=True)
class ErrorCode:
    """A row of the document's table of error codes."""

    code: int
    name: str
    detail: type[Any] | None
    retry: str
    closes: bool
    outcome: str
    meaning: str


BAD_MAGIC: Final = 1
UNSUPPORTED_VERSION: Final = 2
FRAME_TOO_LONG: Final = 3
UNKNOWN_KIND: Final = 4
UNKNOWN_FLAGS: Final = 5
FRAME_TIMEOUT: Final = 7
NOT_ALLOWED: Final = 8
BUSY: Final = 9
VALUE_TOO_LONG: Final = 10
NOT_READY: Final = 11
STALE_EPOCH: Final = 12
BEHIND: Final = 13
WRONG_PARTITION: Final = 14
TOO_FAR: Final = 15
NO_SPACE: Final = 16
UNAVAILABLE: Final = 17
INTERNAL: Final = 18
TOO_OLD: Final = 19

ERRORS: Final = {
    row.code: row
    for row in (
        ErrorCode(
            BAD_MAGIC, "BAD_MAGIC", None, "no", True, "no",
            "the bytes are no frame: the first one is not the magic",
        ),
        ErrorCode(
            UNSUPPORTED_VERSION, "UNSUPPORTED_VERSION", VersionDetail,
            "with that version", True, "no", "the frame has a protocol version not spoken here",
        ),
        ErrorCode(
            FRAME_TOO_LONG, "FRAME_TOO_LONG", SizeDetail, "no", True, "no",
            "the header announces a longer frame than is allowed",
        ),
        ErrorCode(
            UNKNOWN_KIND, "UNKNOWN_KIND", None, "no", False, "no",
            "no such request, or not one for this role",
        ),
        ErrorCode(
            UNKNOWN_FLAGS, "UNKNOWN_FLAGS", None, "no", False, "no",
            "the header has flags that are not known here",
        ),
        ErrorCode(
            MALFORMED, "MALFORMED", None, "no", False, "no", "the body does not fit its message"
        ),
        ErrorCode(
            FRAME_TIMEOUT, "FRAME_TIMEOUT", None, "yes", True, "no",
            "a frame was begun and not finished in time",
        ),
        ErrorCode(
            NOT_ALLOWED, "NOT_ALLOWED", None, "no", True, "no",
            "a control message without the right token",
        ),
        ErrorCode(
            BUSY, "BUSY", BusyDetail, "later", True, "no",
            "the node serves as many connections as it may",
        ),
        ErrorCode(
            VALUE_TOO_LONG, "VALUE_TOO_LONG", SizeDetail, "no", False, "no",
            "the value is longer than is allowed",
        ),
        ErrorCode(
            NOT_READY, "NOT_READY", None, "after a pause", False, "no",
            "a node has no map yet that names it, or a manager's nodes are still starting",
        ),
        ErrorCode(
            STALE_EPOCH, "STALE_EPOCH", StaleDetail, "with the new row", False, "no",
            "the sender's row is old, or this node is not the owner that the request needs",
        ),
        ErrorCode(
            BEHIND, "BEHIND", None, "after a pause", False, "no",
            "the sender's row is newer than the node's, and the manager did not answer it",
        ),
        ErrorCode(
            WRONG_PARTITION, "WRONG_PARTITION", PartitionDetail, "no", False, "no",
            "the key is in another partition: the sender's hash or count is wrong",
        ),
        ErrorCode(
            TOO_FAR, "TOO_FAR", TimeDetail, "with a right clock", False, "no",
            "the version's time is too far ahead of cluster time",
        ),
        ErrorCode(
            NO_SPACE, "NO_SPACE", None, "later", False, "no",
            "the write would grow the node beyond its memory; gets and deletes go on",
        ),
        ErrorCode(
            UNAVAILABLE, "UNAVAILABLE", AliveDetail, "no", False, "no",
            "all owners of the key's partition are dead: what only memory held is gone, and what "
            "is on their disks waits for one of them",
        ),
        ErrorCode(
            INTERNAL, "INTERNAL", None, "yes", True, "maybe",
            "an error of the program; its log says more",
        ),
        ErrorCode(
            TOO_OLD, "TOO_OLD", FloorDetail, "with a newer version", False, "no",
            "the version is as old as tombstones that were dropped, so it may come late, after a "
            "delete",
        ),
    )
}  # fmt: skip
"""code -> its row: the whole table."""


CONTROL_KINDS: Final = frozenset(
    kind for kind, cls in MESSAGES.items() if "token" in cls.__dataclass_fields__
)
"""What only the cluster's own processes may send: each begins with its token."""
