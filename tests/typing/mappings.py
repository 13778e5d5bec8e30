"""A store as a dict: a MutableMapping that takes text as values, too.

Never run: tests/test_typing.py has mypy and pyright read it.
"""

from collections.abc import ItemsView, Iterator, KeysView, MutableMapping, ValuesView
from typing import assert_type

from gtstore import Client, StoreMapping


def kinds(store: Client) -> tuple[MutableMapping[str, bytes], MutableMapping[bytes, bytes]]:
    return store.as_mapping("user/"), store.as_mapping(b"user/")


def of_text(users: StoreMapping[str]) -> None:
    users["ann"] = b"1"
    users["ann"] = "1"
    assert_type(users["ann"], bytes)
    assert_type("ann" in users, bool)
    assert_type(len(users), int)
    assert_type(iter(users), Iterator[str])
    assert_type(users.keys(), KeysView[str])
    assert_type(users.values(), ValuesView[bytes])
    assert_type(users.items(), ItemsView[str, bytes])
    assert_type(dict(users.items()), dict[str, bytes])
    assert_type(users.get("ann"), bytes | None)
    assert_type(users.get("ann", b""), bytes)
    assert_type(users.pop("ann"), bytes)
    assert_type(users.pop("ann", None), bytes | None)
    assert_type(users.popitem(), tuple[str, bytes])
    assert_type(users.setdefault("ann", "1"), bytes)
    users.update({"ann": b"1"})
    users.update({"ann": "1"}, bob=b"2", cat="3")
    users.update([("ann", "1")])
    del users["ann"]
    users.clear()
    for name, value in users.items():
        assert_type(name, str)
        assert_type(value, bytes)


def of_bytes(users: StoreMapping[bytes]) -> None:
    users[b"ann"] = "1"
    assert_type(users[b"ann"], bytes)
    assert_type(list(users), list[bytes])
    assert_type(users.popitem(), tuple[bytes, bytes])
    users.update({b"ann": "1"})
