"""Wrong programs. Each line that is ignored here is one that a checker must refuse: otherwise it
finds the comment to be of no use, and says so.

Never run: tests/test_typing.py has mypy and pyright read it.
"""

from collections.abc import MutableMapping

import gtstore
from gtstore import BatchFailed, Client, OutcomeUnknown, StoreMapping, VersionMismatch
from gtstore.testing import Cluster


def connecting() -> None:
    gtstore.conect()  # type: ignore[attr-defined]
    gtstore.connect(9001)  # type: ignore[arg-type]
    gtstore.connect("127.0.0.1:9001", timeout="5")  # type: ignore[arg-type]
    gtstore.connect("127.0.0.1", 9001, 5)  # type: ignore[call-arg]


def one_key(store: Client) -> None:
    store.put(1, b"value")  # type: ignore[arg-type]
    store.put("key", 1)  # type: ignore[arg-type]
    store.put("key", None)  # type: ignore[arg-type]
    store.put("key", b"value", 60)  # type: ignore[call-arg]  # ttl is given by name
    store.put("key", b"value", ttl="60")  # type: ignore[arg-type]
    store.get("key").decode()  # type: ignore[union-attr]  # it may be None
    store.get(None)  # type: ignore[call-overload]
    store.get_entry("key").value  # type: ignore[union-attr]  # noqa: B018
    store.delete("key").value  # type: ignore[attr-defined]  # noqa: B018
    store.append("key", 1)  # type: ignore[arg-type]
    store.increment("key", 1.5)  # type: ignore[arg-type]
    store.compare_and_put("key", b"new", b"old")  # type: ignore[call-arg]  # which comparison?
    store.compare_and_put("key", b"new", expected=1)  # type: ignore[arg-type]
    store.compare_and_put("key", b"new", version=1)  # type: ignore[arg-type]


def many_keys(store: Client) -> None:
    store.put_many({1: b"value"})  # type: ignore[type-var]
    store.put_many([("key", b"value")])  # type: ignore[arg-type]
    store.put_many({"key": 1})  # type: ignore[dict-item]
    store.get_many([1, 2])  # type: ignore[type-var]
    store.get_many(["key"])["key"].decode()  # type: ignore[union-attr]
    store.scan(1)  # type: ignore[arg-type]
    store.as_mapping(1)  # type: ignore[call-overload]


def the_cluster(store: Client, cluster: Cluster) -> None:
    store.status()["node"]  # type: ignore[typeddict-item]
    store.status()["nodes"][0]["id"].upper()  # type: ignore[attr-defined]
    store.where("key").primary  # type: ignore[attr-defined]  # noqa: B018
    cluster.kill_node("1")  # type: ignore[arg-type]
    Cluster(nodes=3, replica=2)  # type: ignore[call-arg]


def mappings(users: StoreMapping[str], store: Client) -> None:
    users["ann"] = 1  # type: ignore[assignment]
    users[b"ann"]  # type: ignore[index]
    users.setdefault("ann", None)  # type: ignore[arg-type]
    users["ann"].encode()  # type: ignore[attr-defined]
    text: MutableMapping[str, bytes] = store.as_mapping(b"")  # type: ignore[assignment]
    print(text)


def failures(unknown: OutcomeUnknown, failed: BatchFailed, mismatch: VersionMismatch) -> None:
    unknown.alive  # type: ignore[attr-defined]  # noqa: B018
    failed.errors["key"].code  # type: ignore[attr-defined]  # noqa: B018
    mismatch.version.time  # type: ignore[union-attr]  # noqa: B018  # there may be none
