"""Every method of a client, as a user's program calls it, and the type of what it returns.

Never run: tests/test_typing.py has mypy and pyright read it.
"""

from collections.abc import Generator
from typing import assert_type

import gtstore
from gtstore import (
    Client,
    ClusterStatus,
    Location,
    NodeStatus,
    PutResult,
    ScannedEntry,
    StoredEntry,
    StoreMapping,
    Trouble,
    Version,
)


def connecting() -> None:
    assert_type(gtstore.__version__, str)
    assert_type(gtstore.connect(), Client)
    assert_type(Client("127.0.0.1:9001", timeout=1), Client)
    with gtstore.connect("127.0.0.1:9001", timeout=5.0, max_connections=8) as store:
        assert_type(store, Client)
        assert_type(store.close(), None)


def one_key(store: Client) -> None:
    assert_type(store.put("key", b"value"), PutResult)
    assert_type(store.put(b"key", "value", ttl=60), PutResult)
    assert_type(store.get("key"), bytes | None)
    assert_type(store.get(b"key", None), bytes | None)
    assert_type(store.get("key", b""), bytes)
    assert_type(store.get("key", default="none"), bytes | str)
    assert_type(store.get("key", 0), bytes | int)
    assert_type(store.get_entry("key"), StoredEntry | None)
    assert_type(store.delete("key"), PutResult)
    assert_type(store.append("key", "more"), int)
    assert_type(store.increment("key"), int)
    assert_type(store.increment(b"key", -2), int)
    assert_type(store.where("key"), Location)


def comparing(store: Client, version: Version) -> None:
    assert_type(store.compare_and_put("key", b"new", expected=None), PutResult)
    assert_type(store.compare_and_put("key", b"new", expected=b"old", ttl=1.5), PutResult)
    assert_type(store.compare_and_put(b"key", "new", expected="old"), PutResult)
    assert_type(store.compare_and_put("key", "new", version=version), PutResult)


def many_keys(store: Client, names: list[str], entries: list[ScannedEntry]) -> None:
    assert_type(store.put_many({"a": b"1", "b": "2"}), dict[str, PutResult])
    assert_type(store.put_many({b"a": b"1"}, ttl=1), dict[bytes, PutResult])
    assert_type(store.put_many(dict.fromkeys(names, b"")), dict[str, PutResult])
    assert_type(store.get_many(["a", "b"]), dict[str, bytes | None])
    assert_type(store.get_many({b"a"}), dict[bytes, bytes | None])
    assert_type(store.get_many(names, b""), dict[str, bytes])
    assert_type(store.get_many((name for name in names), default=0), dict[str, bytes | int])
    assert_type(store.put_entries(entries), dict[bytes, PutResult])


def all_keys(store: Client) -> None:
    assert_type(store.scan(), Generator[tuple[bytes, bytes], None, None])
    assert_type(store.scan_keys("prefix"), Generator[bytes, None, None])
    assert_type(store.scan_entries(b"prefix"), Generator[ScannedEntry, None, None])
    assert_type(dict(store.scan("prefix")), dict[bytes, bytes])
    assert_type(store.as_mapping(), StoreMapping[str])
    assert_type(store.as_mapping("prefix"), StoreMapping[str])
    assert_type(store.as_mapping(prefix=b""), StoreMapping[bytes])


def the_cluster(store: Client) -> None:
    status = store.status()
    assert_type(status, ClusterStatus)
    assert_type(status["cluster"], str)
    assert_type(status["epoch"], int)
    assert_type(status["replicas"], int)
    assert_type(status["hash"], str)
    assert_type(status["under_replicated"], list[int])
    assert_type(status["begun_anew"], list[int])
    for trouble in status["troubles"]:
        assert_type(trouble, Trouble)
        assert_type(trouble["what"], str)
        assert_type(trouble["since"], float)
        assert_type(trouble["reason"], str)
    for node in status["nodes"]:
        assert_type(node, NodeStatus)
        assert_type(node["id"], int)
        assert_type(node["address"], str)
        assert_type(node["pid"], int)
        assert_type(node["incarnation"], int)
        assert_type(node["state"], str)
        assert_type(node["entries"], int)
        assert_type(node["bytes"], int)
        assert_type(node["partitions"], int)
        assert_type(node["primaries"], int)
        assert_type(node["syncing"], int)
