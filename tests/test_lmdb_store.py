"""lmdb_store.py: a Store in a real directory."""

from __future__ import annotations

import resource
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from gtstore import lmdb_store
from gtstore.errors import StoreCorrupt, StoreFailed, StoreFull
from gtstore.wire.messages import MIB

from .killed_process import last_before_kill

lmdb = pytest.importorskip("lmdb", reason="entries on disk need py-lmdb (the extra durable)")


def test_what_was_committed_is_there(tmp_path: Path) -> None:
    """Shown after a refresh, in byte order, and to the next one that opens it."""
    store = lmdb_store.LmdbStore(tmp_path / "node-1")
    store.commit({b"b": b"2", b"a": b"1", b"c": b"3", b"\xff": b"4"}.items())
    assert store.get(b"a") is None
    store.refresh()
    assert (store.get(b"a"), list(store.names(b""))) == (b"1", [b"a", b"b", b"c", b"\xff"])
    store.commit({b"a": None, b"b": b"22", b"z": None}.items())
    store.refresh()
    assert [list(store.names(prefix)) for prefix in (b"b", b"\xff", b"d")] == [
        [b"b"],
        [b"\xff"],
        [],
    ]
    store.close()
    again = lmdb_store.LmdbStore(tmp_path / "node-1")
    assert (again.get(b"a"), again.get(b"b")) == (None, b"22")
    again.close()
    assert (tmp_path / "node-1").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "node-1" / "data.mdb").stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    """What is no store is told from what the system does not give."""
    (tmp_path / "data.mdb").write_bytes(b"something else" * 1000)
    with pytest.raises(StoreCorrupt, match=r"data\.mdb"):
        lmdb_store.LmdbStore(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFailed) as caught:
        lmdb_store.LmdbStore(tmp_path / "file")
    assert not isinstance(caught.value, StoreCorrupt)


class Broken:
    """An LMDB environment, transaction or cursor of which nothing works."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        raise self.error


PUBLIC = [name for name in vars(lmdb_store.LmdbStore) if not name.startswith("_")]


@pytest.mark.parametrize("kind", ["CorruptedError", "PageNotFoundError", "DiskError", "Error"])
@pytest.mark.parametrize("name", PUBLIC)
def test_every_error_is_translated(
    tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is called: nothing of LMDB's own comes out, and nobody can pass over it."""
    store = lmdb_store.LmdbStore(tmp_path)
    store.close()
    broken: Any = Broken(getattr(lmdb, kind)("a page"))
    store._environment = store._view = broken
    monkeypatch.setattr(store, "_get", lambda _: broken.get)
    monkeypatch.setattr(lmdb_store.os, "statvfs", lambda _: broken.f_bavail)
    told: list[StoreFailed] = []
    store.on_failure = told.append
    calls = {
        "get": lambda: store.get(b"a"),
        "names": lambda: list(store.names(b"")),
        "look_through": lambda: list(store.look_through()),
        "commit": lambda: store.commit([(b"a", b"1")]),
    }
    with pytest.raises(StoreFailed, match="a page") as caught:
        calls.get(name, getattr(store, name))()
    assert told[-1] is caught.value
    is_damage = kind in ("CorruptedError", "PageNotFoundError") or name == "look_through"
    assert isinstance(caught.value, StoreCorrupt) is is_damage


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit that does not fit is undone as a whole; reads go on; with room, so do commits."""
    monkeypatch.setattr(lmdb_store, "_ROOM_MIN", MIB // 4)
    store = lmdb_store.LmdbStore(tmp_path)
    store.commit({b"%d" % i: bytes(100) for i in range(1000)}.items())
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "data.mdb").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + MIB // 2, most))
    try:
        assert store.has_room()
        with pytest.raises(StoreFull):
            store.commit({b"big%d" % i: bytes(3000) for i in range(1000)}.items())
        store.refresh()
        assert store.get(b"0") == bytes(100)
        assert not list(store.names(b"big"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
        assert not store.has_room()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    store.commit({b"big%d" % i: bytes(3000) for i in range(1000)}.items())
    store.refresh()
    assert len(list(store.names(b"big"))) == 1000
    store.close()


def test_any_other_error_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = lmdb_store.LmdbStore(tmp_path)
    with pytest.raises(StoreFailed):
        store.commit({b"n" * 5000: b"a name that is too long for LMDB"}.items())
    monkeypatch.setattr(lmdb_store, "_MAP_SIZES", (1 << 20,))
    store.close()
    store = lmdb_store.LmdbStore(tmp_path)
    with pytest.raises(StoreFull, match="has its greatest size"):
        store.commit({b"big%d" % i: bytes(3000) for i in range(1000)}.items())
    store.close()


def test_a_kill_in_the_middle_leaves_whole_batches(tmp_path: Path) -> None:
    """A batch is there as a whole, or not at all, and all that were reported are."""

    def commit_on(results: Connection) -> None:
        store = lmdb_store.LmdbStore(tmp_path)
        for number in range(1_000_000):
            store.commit({b"%d" % i: b"%d" % number for i in range(100)}.items())
            results.send(number)

    for _ in range(3):
        last = last_before_kill(commit_on, 20)
        store = lmdb_store.LmdbStore(tmp_path)
        found = {store.get(b"%d" % i) for i in range(100)}
        assert len(found) == 1
        (number,) = found
        assert number is not None
        assert int(number) in (last, last + 1)
        store.close()
