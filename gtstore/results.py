"""What the client's methods return: values alone, without any of the rules behind them.

They stand below errors.py, because a VersionMismatch carries a Version.
"""

from __future__ import annotations

from typing import NamedTuple, TypedDict


class Version(NamedTuple):
    """A place in the order of a key's writes: later writes have higher versions."""

    time: int
    client: int


class PutResult(NamedTuple):
    """Where a put or a delete was stored, primary first, and under which version."""

    nodes: tuple[int, ...]
    version: Version


class StoredEntry(NamedTuple):
    """A key's value, its version, and the node that answered."""

    value: bytes
    version: Version
    node: int


class ScannedEntry(NamedTuple):
    """What a scan has found: a key, its value (empty if only keys were asked for), its version, and
    when the value expires, or None: in microseconds since 1970 by this machine's clock, to the
    second if that is not the cluster's."""

    key: bytes
    value: bytes
    version: Version
    expiry_us: int | None


class Location(NamedTuple):
    """Where a key is: its partition and the nodes that own it, primary first. Those that are
    ``syncing`` are owners too, but copy what they do not have yet."""

    partition: int
    owners: tuple[int, ...]
    syncing: tuple[int, ...] = ()


class NodeStatus(TypedDict):
    """A node in a ClusterStatus: alive, suspect, dead or left; the entries and bytes that it says
    it has (0 if it does not answer); "memory" or "disk" if that is full, so that it refuses writes
    and joins no further partitions, else None; of how many partitions it is an owner, the primary,
    or one that still copies."""

    id: int
    address: str
    pid: int
    incarnation: int
    state: str
    entries: int
    bytes: int
    full: str | None
    partitions: int
    primaries: int
    syncing: int


class Trouble(TypedDict):
    """Something that keeps the manager from doing its work in full: in a word, since when (in
    seconds since 1970, by its clock), and why, with what that means. ``unsaved``: it cannot write
    down the map."""

    what: str
    since: float
    reason: str


class ClusterStatus(TypedDict):
    """The cluster as its manager sees it: the object that ``gtclient --json status`` prints. The
    lists at the end have the partitions that lack copies, those that have lost all and began anew,
    empty, and what somebody should look at."""

    cluster: str
    epoch: int
    replicas: int
    hash: str
    nodes: list[NodeStatus]
    under_replicated: list[int]
    begun_anew: list[int]
    troubles: list[Trouble]
