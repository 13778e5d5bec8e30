"""Every method of an asyncio client, and the type of what it returns.

Never run: tests/test_typing.py has mypy and pyright read it.
"""

from collections.abc import AsyncGenerator
from typing import assert_type

import gtstore
from gtstore import (
    AsyncClient,
    ClusterStatus,
    Location,
    PutResult,
    ScannedEntry,
    StoredEntry,
    Version,
)


async def connecting() -> None:
    assert_type(gtstore.connect_async(), AsyncClient)
    async with gtstore.connect_async("127.0.0.1:9001", timeout=5.0) as store:
        assert_type(store, AsyncClient)
    other = await gtstore.connect_async()
    assert_type(other, AsyncClient)
    assert_type(await other.close(), None)


async def one_key(store: AsyncClient, version: Version) -> None:
    assert_type(await store.put("key", b"value"), PutResult)
    assert_type(await store.put(b"key", "value", ttl=60), PutResult)
    assert_type(await store.get("key"), bytes | None)
    assert_type(await store.get("key", b""), bytes)
    assert_type(await store.get("key", default=0), bytes | int)
    assert_type(await store.get_entry("key"), StoredEntry | None)
    assert_type(await store.delete("key"), PutResult)
    assert_type(await store.append("key", "more"), int)
    assert_type(await store.increment("key", 2), int)
    assert_type(await store.compare_and_put("key", b"new", expected=None), PutResult)
    assert_type(await store.compare_and_put("key", "new", version=version), PutResult)
    assert_type(await store.where("key"), Location)
    assert_type(await store.status(), ClusterStatus)


async def many_keys(store: AsyncClient, entries: list[ScannedEntry]) -> None:
    assert_type(await store.put_many({"a": b"1", "b": "2"}), dict[str, PutResult])
    assert_type(await store.put_many({b"a": b"1"}, ttl=1), dict[bytes, PutResult])
    assert_type(await store.get_many(["a", "b"]), dict[str, bytes | None])
    assert_type(await store.get_many({b"a"}, b""), dict[bytes, bytes])
    assert_type(await store.put_entries(entries), dict[bytes, PutResult])


async def all_keys(store: AsyncClient) -> None:
    assert_type(store.scan(), AsyncGenerator[tuple[bytes, bytes], None])
    assert_type(store.scan_keys("prefix"), AsyncGenerator[bytes, None])
    assert_type(store.scan_entries(b"prefix"), AsyncGenerator[ScannedEntry, None])
    async for key, value in store.scan():
        assert_type(key, bytes)
        assert_type(value, bytes)


async def refused(store: AsyncClient) -> None:
    (await store.get("key")).decode()  # type: ignore[union-attr]  # it may be None
    store.get("key").decode()  # type: ignore[attr-defined]  # it is not awaited
    await store.put("key", 1)  # type: ignore[arg-type]
    await store.scan()  # type: ignore[misc]  # it is iterated over
    with store:  # type: ignore[attr-defined]
        pass
