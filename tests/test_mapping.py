"""mapping.py alone, over a store in memory that counts its calls, and in which others may write
between two of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, MutableMapping

import pytest

from gtstore.errors import BatchFailed, InvalidInput, Unavailable, VersionMismatch
from gtstore.mapping import StoreMapping
from gtstore.results import StoredEntry, Version

PREFIX = "user/"
OTHERS = {b"user": b"no", b"usf": b"no", b"\xff": b"no"}
"""Keys beside the prefix: no test may see or change them."""


class MemoryStore:
    """As a Client would do it, one call after another."""

    def __init__(self, entries: Mapping[bytes, bytes] = OTHERS) -> None:
        self.values = dict(entries)
        self.versions = {name: Version(1, 0) for name in entries}
        self.calls: list[str] = []
        self.seen = 0  # entries that scans have yielded
        self.before_compare: list[Callable[[], object]] = []
        """What other clients do, one before each comparison."""

    def get(self, key: bytes) -> bytes | None:
        self.calls.append("get")
        return self.values.get(_checked(key))

    def get_entry(self, key: bytes) -> StoredEntry | None:
        self.calls.append("get_entry")
        if _checked(key) not in self.values:
            return None
        return StoredEntry(self.values[key], self.versions[key], 1)

    def put(self, key: bytes, value: str | bytes) -> None:
        self.calls.append("put")
        self._put(key, value)

    def delete(self, key: bytes) -> None:
        self.calls.append("delete")
        self.values.pop(key, None)

    def compare_and_put(
        self,
        key: bytes,
        value: str | bytes,
        *,
        expected: None,
    ) -> None:
        self.calls.append("compare_and_put")
        self._compare(key, expected)
        self._put(key, value)

    def _remove(self, key: bytes, version: Version) -> None:
        self.calls.append("remove")
        self._compare(key, version)
        del self.values[key]

    def _compare(self, key: bytes, version: Version | None) -> None:
        if self.before_compare:
            self.before_compare.pop(0)()
        there = self.versions[key] if key in self.values else None
        if there != version:
            raise VersionMismatch("other", version=there, is_absent=there is None)

    def put_many(self, items: Mapping[bytes, str | bytes]) -> None:
        self.calls.append(f"put_many {len(items)}")
        for key, value in items.items():
            if value == b"refused":
                raise BatchFailed({}, {key: Unavailable("dead", required=1, alive=0)})
            self._put(key, value)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        self.calls.append("scan")
        return ((name, self.values[name]) for name in self._names(prefix))

    def scan_keys(self, prefix: bytes) -> Iterator[bytes]:
        self.calls.append("scan_keys")
        return self._names(prefix)

    def _put(self, key: bytes, value: str | bytes) -> None:
        if not isinstance(value, str | bytes):
            raise InvalidInput("a value is str or bytes")
        time = self.versions[key].time + 1 if key in self.versions else 1
        self.values[_checked(key)] = value.encode() if isinstance(value, str) else value
        self.versions[key] = Version(time, 0)

    def _names(self, prefix: bytes) -> Iterator[bytes]:
        for name in list(self.values):
            if name.startswith(prefix):
                self.seen += 1
                yield name


def _checked(key: bytes) -> bytes:
    if not 0 < len(key) <= 500:
        raise InvalidInput("a key has 1 to 500 bytes")
    return key


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    memory = MemoryStore()
    yield memory
    assert OTHERS.items() <= memory.values.items()


@pytest.fixture
def users(store: MemoryStore) -> StoreMapping[str]:
    return StoreMapping(store, PREFIX)


# --- one key -------------------------------------------------------------------------------------


def test_one_key_after_another(store: MemoryStore, users: StoreMapping[str]) -> None:
    """Keys are stored with the prefix, values are read as bytes; a miss is KeyError(key)."""
    assert isinstance(users, MutableMapping)
    users["ann"] = "1"
    users["bob"] = b"2"
    assert (store.values[b"user/ann"], users["ann"], users["bob"]) == (b"1", b"1", b"2")
    assert "ann" in users
    assert (users.get("ann"), users.get("cat"), users.get("cat", b"-")) == (b"1", None, b"-")
    del users["ann"]
    assert "ann" not in users
    with pytest.raises(KeyError) as missed:
        users["ann"]
    assert missed.value.args == ("ann",)
    with pytest.raises(KeyError):
        del users["ann"]
    assert users == {"bob": b"2"}


@pytest.mark.parametrize("key", [3, None, b"ann", ("a",), [], "k" * 500, "\ud800", "\udcc3\udca9"])
def test_what_cannot_be_a_key(users: StoreMapping[str], key: str) -> None:
    """It is missed where one looks for it, as in a dict, and refused where it is to be stored."""
    assert key not in users
    assert users.get(key) is None
    assert users.pop(key, b"none") == b"none"
    with pytest.raises(KeyError):
        users[key]
    with pytest.raises(KeyError):
        del users[key]
    with pytest.raises(KeyError):
        users.pop(key)
    with pytest.raises(InvalidInput):
        users[key] = b"1"
    with pytest.raises(InvalidInput):
        users.setdefault(key, b"1")
    with pytest.raises(InvalidInput):
        users.update({key: b"1"} if isinstance(key, str | bytes) else [(key, b"1")])
    assert not users


def test_no_key_is_empty_without_a_prefix() -> None:
    """With one, the empty key is the prefix itself."""
    store = MemoryStore({})
    everything, some = StoreMapping(store, ""), StoreMapping(store, "a")
    assert "" not in everything
    with pytest.raises(InvalidInput):
        everything[""] = b"1"
    some[""] = b"2"
    assert (dict(some), dict(everything)) == ({"": b"2"}, {"a": b"2"})


@pytest.mark.parametrize("prefix", [3, None, bytearray(b"a"), "k" * 501, "\ud800"])
def test_what_cannot_be_a_prefix(store: MemoryStore, prefix: str) -> None:
    with pytest.raises(InvalidInput):
        StoreMapping(store, prefix)


def test_keys_that_are_not_text(store: MemoryStore, users: StoreMapping[str]) -> None:
    """What iterating yields can be read: each key of the store has exactly one spelling."""
    names = [b"\xff", b"\xc3\xa9", b"\xc3", b"a\x80b", b"\x00"]
    store.put_many({b"user/" + name: name for name in names})
    assert set(users) == {name.decode("utf-8", "surrogateescape") for name in names}
    for key, value in users.items():
        assert users[key] == value == key.encode("utf-8", "surrogateescape")
    users["\udcff"] = b"new"
    assert store.values[b"user/\xff"] == b"new"
    with pytest.raises(InvalidInput, match="the key is 'é'"):
        users["\udcc3\udca9"] = b"1"
    assert len(users) == len(names)


def test_a_mapping_of_bytes(store: MemoryStore) -> None:
    """Of a bytes prefix; then a str is no key."""
    users = StoreMapping(store, b"user/")
    users.update(
        {b"\xff": "1"},
    )
    assert list(users.items()) == [(b"\xff", b"1")]
    assert "\udcff" not in users
    with pytest.raises(InvalidInput, match="are bytes, not str"):
        users.update(ann=b"1")
    assert repr(users) == "StoreMapping(prefix=b'user/')"


# --- one key, and others at the same time --------------------------------------------------------


def test_pop(store: MemoryStore, users: StoreMapping[str]) -> None:
    users["ann"] = b"1"
    assert users.pop("ann") == b"1"
    assert store.calls == ["put", "get_entry", "remove"]
    assert users.pop("ann", None) is None
    with pytest.raises(KeyError):
        users.pop("ann")


def test_pop_takes_what_it_returns(store: MemoryStore, users: StoreMapping[str]) -> None:
    """A value that is put between the look and the removal is looked at; one that another has
    removed meanwhile is not popped twice."""
    users["ann"] = b"1"
    store.before_compare = [lambda: store.put(b"user/ann", b"2")]
    assert users.pop("ann") == b"2"
    users["ann"] = b"3"
    store.before_compare = [lambda: store.delete(b"user/ann")]
    with pytest.raises(KeyError):
        users.pop("ann")


def test_popitem(store: MemoryStore, users: StoreMapping[str]) -> None:
    """Each item once; a key that another has removed meanwhile is passed over."""
    users.update(ann=b"1", bob=b"2", cat=b"3")
    store.before_compare = [lambda: store.delete(b"user/ann")]
    assert [users.popitem(), users.popitem()] == [("bob", b"2"), ("cat", b"3")]
    with pytest.raises(KeyError, match="empty"):
        users.popitem()


def test_setdefault(store: MemoryStore, users: StoreMapping[str]) -> None:
    """All get the value that the first one has put, also if that happens just now."""
    assert users.setdefault("ann", "é") == "é".encode()
    assert users.setdefault("ann", b"2") == "é".encode()
    store.before_compare = [lambda: store.put(b"user/bob", b"theirs")]
    assert users.setdefault("bob", b"mine") == b"theirs"


def test_setdefault_while_others_put_and_delete(
    store: MemoryStore, users: StoreMapping[str]
) -> None:
    """If the other value is gone again, the default is put."""

    def put_and_delete_later() -> None:
        store.put(b"user/ann", b"theirs")
        get = store.get

        def get_after_delete(key: bytes) -> bytes | None:
            store.delete(key)
            return get(key)

        store.get = get_after_delete  # type: ignore[method-assign]

    store.before_compare = [put_and_delete_later]
    assert users.setdefault("ann", b"mine") == b"mine"
    assert store.values[b"user/ann"] == b"mine"


# --- all keys ------------------------------------------------------------------------------------


def test_what_each_look_costs(store: MemoryStore, users: StoreMapping[str]) -> None:
    """One scan, of the keys alone where they are enough; none for repr; bool does not count."""
    users.update({f"key{i}": b"%d" % i for i in range(10)})
    store.calls.clear()
    assert len(users) == 10
    assert sorted(iter(users)) == sorted(f"key{i}" for i in range(10))
    assert store.calls == ["scan_keys"] * 2
    store.calls.clear()
    found = dict(users.items())
    assert found["key7"] == b"7"
    assert b"%d" % 7 in users.values()
    assert b"none" not in users.values()
    assert set(users.values()) == set(found.values())
    assert users == found
    assert store.calls == ["scan"] * 5
    store.calls.clear()
    store.seen = 0
    assert users
    assert (store.calls, store.seen) == (["scan_keys"], 1)
    store.calls.clear()
    assert repr(users) == "StoreMapping(prefix='user/')"
    assert repr(users.items()) == "_Items(StoreMapping(prefix='user/'))"
    assert store.calls == []
    assert ("key7", b"7") in users.items()
    assert store.calls == ["get"]


def test_equality(store: MemoryStore, users: StoreMapping[str]) -> None:
    """By value, as any Mapping; and so it has no hash."""
    users.update(ann=b"1")
    assert users == {"ann": b"1"}
    assert users == StoreMapping(store, "user/")
    assert users != StoreMapping(store, b"user/")
    assert users != {"ann": b"2"}
    assert users != [("ann", b"1")]
    with pytest.raises(TypeError):
        hash(users)


def test_clear(store: MemoryStore, users: StoreMapping[str]) -> None:
    """Every key with the prefix, and no other."""
    users.update(ann=b"1", bob=b"2")
    users.clear()
    assert store.values == OTHERS
    assert not users


def test_update_takes_what_a_dict_takes(store: MemoryStore, users: StoreMapping[str]) -> None:
    """A mapping, what has keys(), pairs, keywords: some hundred in one put_many; of a key that is
    given twice, the later value stays."""
    database = sqlite3.connect(":memory:")
    database.row_factory = sqlite3.Row
    row = database.execute("select '3' as cat").fetchone()
    database.close()
    users.update({"ann": "1"}, other=b"")
    users.update([("bob", b"1"), ("bob", b"2")])
    users.update(row)
    assert dict(users.items()) == {"ann": b"1", "other": b"", "bob": b"2", "cat": b"3"}
    store.calls.clear()
    users.update((f"key{i}", b"") for i in range(1001))
    assert store.calls == ["put_many 500", "put_many 500", "put_many 1"]
    users.update()
    assert len(store.calls) == 3


def test_an_update_that_fails(users: StoreMapping[str]) -> None:
    """BatchFailed passes through; what came before its batch is stored."""
    pairs = [(f"key{i}", b"") for i in range(600)]
    with pytest.raises(BatchFailed) as failed:
        users.update([*pairs, ("bad", b"refused"), ("ann", b"1")])
    assert list(failed.value.errors) == [b"user/bad"]
    assert {key for key, _ in pairs[:500]} <= set(users)
