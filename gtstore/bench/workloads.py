"""What a client asks of the cluster, step by step: the report's puts and gets, YCSB's workloads.

Of YCSB's core workloads (github.com/brianfrankcooper/YCSB, workloads/) these are here; E, which
scans ranges of keys in order, needs ordered keys, and those of a cluster are in no order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from .zipfian import Latest, ScrambledZipfian, fnv_hash

PUT, GET = "put", "get"
READ, UPDATE, INSERT = "read", "update", "insert"
READ_MODIFY_WRITE = "read_modify_write"

Step = tuple[str, bytes]
"""The kind of an operation, and its key."""


class Workload(NamedTuple):
    """One of YCSB's: kinds of operations with their shares, and which records they take."""

    title: str
    mix: tuple[tuple[str, float], ...]
    is_latest: bool = False


WORKLOADS: Final = {
    "a": Workload("half read, half update, zipfian", ((READ, 0.5), (UPDATE, 0.5))),
    "b": Workload("95 % read, 5 % update, zipfian", ((READ, 0.95), (UPDATE, 0.05))),
    "c": Workload("all read, zipfian", ((READ, 1.0),)),
    "d": Workload("95 % read, 5 % insert, latest", ((READ, 0.95), (INSERT, 0.05)), True),
    "f": Workload(
        "half read, half read-modify-write, zipfian", ((READ, 0.5), (READ_MODIFY_WRITE, 0.5))
    ),
}


def share(total: int, clients: int, client: int) -> int:
    """How many of all operations one client does, the clients counted from 0."""
    return total // clients + (client < total % clients)


def put_get_steps(prefix: bytes, client: int) -> Iterator[Step]:
    """The report's figure 2, without end: put a new key, get it, put the next one."""
    number = 0
    while True:
        key = b"%s%d-%d" % (prefix, client, number)
        yield PUT, key
        yield GET, key
        number += 1


def record_key(prefix: bytes, number: int) -> bytes:
    """The key of a record: hashed, as YCSB has it (insertorder=hashed)."""
    return b"%suser%d" % (prefix, fnv_hash(number))


def ycsb_steps(
    workload: Workload,
    prefix: bytes,
    records: int,
    client: int,
    clients: int,
    random: Callable[[], float],
) -> Iterator[Step]:
    """Operations of a YCSB workload, without end.

    Args:
        records: how many are there already, numbered from 0.
        client, clients: which of how many it is, from 0: each inserts records of its own, and reads
            those that are there already and its own.
        random: returns a number from 0 up to, but not including, 1.
    """
    latest = Latest(records, random)
    chooser = latest if workload.is_latest else ScrambledZipfian(records, random)

    keys: dict[int, bytes] = {}  # the popular ones come again and again

    def key_of(number: int) -> bytes:
        if number not in keys:
            is_own = number >= records
            at = records + client + (number - records) * clients if is_own else number
            keys[number] = record_key(prefix, at)
        return keys[number]

    while True:
        kind = _kind(workload.mix, random())
        yield kind, key_of(latest.insert() if kind == INSERT else chooser.next())


def _kind(mix: tuple[tuple[str, float], ...], u: float) -> str:
    for kind, part in mix[:-1]:
        if u < part:
            return kind
        u -= part
    return mix[-1][0]
