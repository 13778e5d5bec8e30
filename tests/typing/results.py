"""What methods return, and its fields.

Never run: tests/test_typing.py has mypy and pyright read it.
"""

import json
from typing import assert_type

from gtstore import (
    Client,
    ClusterStatus,
    Location,
    NodeStatus,
    PutResult,
    ScannedEntry,
    StoredEntry,
    Version,
)


def versions(older: Version, newer: Version) -> None:
    assert_type(older.time, int)
    assert_type(older.client, int)
    assert_type(older < newer, bool)
    assert_type(max(older, newer), Version)
    assert_type(Version(1, 2), Version)


def results(put: PutResult, stored: StoredEntry, location: Location) -> None:
    assert_type(put.nodes, tuple[int, ...])
    assert_type(put.version, Version)
    assert_type(stored.value, bytes)
    assert_type(stored.version, Version)
    assert_type(stored.node, int)
    assert_type(location.partition, int)
    assert_type(location.owners, tuple[int, ...])
    assert_type(location.syncing, tuple[int, ...])
    nodes, version = put
    assert_type(nodes, tuple[int, ...])
    assert_type(version, Version)


def scanned(entry: ScannedEntry) -> None:
    assert_type(entry.key, bytes)
    assert_type(entry.value, bytes)
    assert_type(entry.version, Version)
    assert_type(entry.expiry_us, int | None)


def statuses(status: ClusterStatus) -> dict[int, NodeStatus]:
    print(json.dumps(status))
    return {node["id"]: node for node in status["nodes"] if node["state"] == "alive"}


def read_and_compare(store: Client) -> PutResult:
    entry = store.get_entry("key")
    if entry is None:
        return store.compare_and_put("key", b"first", expected=None)
    return store.compare_and_put("key", entry.value + b"!", version=entry.version)
