"""log_store.py: a Store in a real directory, its log, and what goes from there into LMDB."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gtstore import lmdb_store, log_store
from gtstore.disk import sealed
from gtstore.errors import ClusterError, StoreDamaged, StoreError, StoreFailed, StoreFull
from gtstore.log_store import LogStore

from .killed_process import last_before_kill

pytest.importorskip("lmdb", reason="entries on disk need py-lmdb (the extra durable)")


def name(partition: int, key: bytes, generation: int = 0) -> bytes:
    return partition.to_bytes(4, "big") + generation.to_bytes(4, "big") + key


ONE, TWO, OTHER = name(1, b"one"), name(1, b"two"), name(2, b"other")


class Directory:
    """A store, and what becomes of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = LogStore(path)

    def commit(self, changes: dict[bytes, bytes | None]) -> None:
        self.store.commit(changes)
        self.store.refresh()

    def open_again(self) -> None:
        """As the next process does."""
        self.store.close()
        self.store = LogStore(self.path)

    def crash(self, at: Path) -> Directory:
        """What is found if the process is killed now: the same files."""
        at.mkdir()
        for file in self.path.iterdir():
            if file.name != "lock.mdb":
                (at / file.name).write_bytes(file.read_bytes())
        return Directory(at)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    directory = Directory(tmp_path / "node-1")
    yield directory
    directory.store.close()


def test_what_was_committed_is_there(directory: Directory) -> None:
    """Shown after a refresh, in byte order; and to the next one that opens it, whether it has got
    into LMDB or not."""
    directory.store.commit({TWO: b"2", OTHER: b"3"})
    assert directory.store.get(TWO) is None
    directory.store.refresh()
    for is_flushed in (False, True):
        if is_flushed:
            directory.store.flush()
        directory.open_again()
        assert (directory.store.get(TWO), directory.store.get(ONE)) == (b"2", None)
        assert list(directory.store.names(b"")) == [TWO, OTHER, b"L"]
        assert list(directory.store.names(ONE[:4])) == [TWO]
    directory.commit({ONE: b"1", TWO: None, b"P\0\0\0\1": b"state"})
    assert list(directory.store.names(ONE[:4])) == [ONE]
    assert list(directory.store.names(b"P")) == [b"P\0\0\0\1"]
    assert directory.store.get(TWO) is None
    assert [file.stat().st_mode & 0o777 for file in directory.path.glob("log-*")] == [0o600] * 2


def test_one_synced_write_makes_a_commit(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = []
    write = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda *a: flags.append(a[3]) or write(*a))
    directory.commit({ONE: b"1", TWO: b"2"})
    assert flags == [os.RWF_DSYNC]


def test_a_short_write_is_continued(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda file, data, *a: write(file, [data[0][:7]], *a))
    directory.commit({ONE: b"1" * 100})
    directory.open_again()
    assert directory.store.get(ONE) == b"1" * 100


def test_much_goes_into_lmdb(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, and commits go on in the other file meanwhile; then the first one is written
    again."""
    monkeypatch.setattr(log_store, "_FLUSH_NAMES", 10)
    for number in range(100):
        directory.commit({name(1, b"%02d" % number): b"%d" % number, OTHER: b"%d" % number})
    size = max(file.stat().st_size for file in directory.path.glob("log-*"))
    assert size < 100 * 60
    assert len(list(directory.store._below.names(name(1, b"")))) > 10
    assert len(list(directory.store.names(name(1, b"")))) == 100
    directory.open_again()
    assert directory.store.get(OTHER) == b"99"
    assert len(list(directory.store.names(name(1, b"")))) == 100


def test_a_crash_in_the_middle_of_a_flush(
    directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both files are needed then: nothing is overwritten before it is in LMDB."""
    directory.commit({ONE: b"old", TWO: b"2"})
    monkeypatch.setattr(log_store._Flush, "run", lambda _: None)  # it never gets there
    directory.store._start_flush()
    directory.commit({ONE: b"new"})
    monkeypatch.undo()
    after = directory.crash(tmp_path / "crashed")
    assert (after.store.get(ONE), after.store.get(TWO)) == (b"new", b"2")
    assert after.store._flush is None
    assert not after.store._recent
    for number in range(3):
        after.commit({OTHER: b"%d" % number})
        after = after.crash(tmp_path / f"crashed-{number}")
    found = [after.store.get(each) for each in (ONE, TWO, OTHER)]
    assert found == [b"new", b"2", b"2"]


def test_an_amended_value_needs_no_commit(directory: Directory, tmp_path: Path) -> None:
    """It is seen at once, a crash takes it back, and with the rest it gets into LMDB. What is there
    already cannot be amended."""
    assert not directory.store.amend(ONE, b"1")
    directory.commit({ONE: b"1"})
    assert directory.store.amend(ONE, b"one")
    assert directory.store.get(ONE) == b"one"
    assert directory.crash(tmp_path / "crashed").store.get(ONE) == b"1"
    directory.store.flush()
    assert not directory.store.amend(ONE, b"ONE")
    directory.open_again()
    assert directory.store.get(ONE) == b"one"


def test_a_damaged_entry_is_not_served(directory: Directory) -> None:
    directory.commit({ONE: b"1", TWO: b"2", b"P\0\0\0\1": b"state"})
    directory.store.flush()
    ((_, damaged),) = sealed({ONE: b"1"})
    assert damaged
    directory.store._below.commit([(ONE, damaged[:-1] + b"?")])
    directory.store._below.refresh()
    with pytest.raises(StoreDamaged, match="key one, in partition 1, is damaged"):
        directory.store.get(ONE)
    assert (directory.store.get(TWO), directory.store.get(b"P\0\0\0\1")) == (b"2", b"state")


def test_a_damaged_log_is_not_passed_by(directory: Directory, tmp_path: Path) -> None:
    """What follows a damaged record was acknowledged, so the record was, too."""
    directory.commit({ONE: b"1"})
    first = directory.store._at
    directory.commit({TWO: b"2"})
    file = directory.path / "log-0"
    data = bytearray(file.read_bytes())
    data[first - 1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ClusterError, match=r"is damaged: record 1 is missing, and record 2 is"):
        directory.crash(tmp_path / "crashed")


def test_an_unfinished_record_is_written_again(directory: Directory, tmp_path: Path) -> None:
    directory.commit({ONE: b"1"})
    first = directory.store._at
    directory.commit({TWO: b"2" * 100})
    file = directory.path / "log-0"
    file.write_bytes(file.read_bytes()[: first + 50])
    after = directory.crash(tmp_path / "crashed")
    assert (after.store.get(ONE), after.store.get(TWO)) == (b"1", None)
    after.commit({OTHER: b"3"})
    after.open_again()
    assert (after.store.get(ONE), after.store.get(TWO), after.store.get(OTHER)) == (
        b"1",
        None,
        b"3",
    )


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOSPC, StoreFull), (errno.EFBIG, StoreFull), (errno.EIO, StoreFailed)],
)
def test_the_log_cannot_be_written(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[StoreError]
) -> None:
    """Nothing of the batch is there, also if a part of it was written; then it goes on."""
    directory.commit({ONE: b"1"})
    write = os.pwritev

    def fail(file: int, data: tuple[bytes], at: int, flags: int) -> int:
        write(file, (data[0][:30],), at, flags)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(kind, match="log-0"):
        directory.store.commit({TWO: b"2" * 100})
    monkeypatch.undo()
    directory.store.refresh()
    assert directory.store.get(TWO) is None
    directory.commit({OTHER: b"3"})
    directory.open_again()
    found = [directory.store.get(each) for each in (ONE, TWO, OTHER)]
    assert found == [b"1", None, b"3"]


def test_a_flush_that_fails_is_tried_again(
    directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything else is committed, and nothing is lost meanwhile."""
    directory.commit({ONE: b"1"})
    commit = lmdb_store.LmdbStore.commit

    def fail(*_: Any) -> None:
        raise StoreFull("no room")

    monkeypatch.setattr(lmdb_store.LmdbStore, "commit", fail)
    directory.store._start_flush()
    assert directory.store._flush
    directory.store._flush.join()
    for _ in range(2):
        with pytest.raises(StoreFull, match="no room"):
            directory.store.commit({TWO: b"2"})
        directory.store.refresh()
        assert (directory.store.get(ONE), directory.store.get(TWO)) == (b"1", None)
        monkeypatch.setattr(lmdb_store.LmdbStore, "commit", commit)
        assert directory.crash(tmp_path / f"crashed-{_}").store.get(ONE) == b"1"
        monkeypatch.setattr(lmdb_store.LmdbStore, "commit", fail)
    monkeypatch.undo()
    directory.commit({TWO: b"2"})
    assert directory.store._flush is None
    directory.open_again()
    assert (directory.store.get(ONE), directory.store.get(TWO)) == (b"1", b"2")


def test_a_flush_that_breaks_off_is_no_flush(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: nothing is let go that LMDB does not have."""
    directory.commit({ONE: b"1"})

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(lmdb_store.LmdbStore, "commit", fail)
    directory.store._start_flush().join()
    directory.store.refresh()
    assert directory.store.get(ONE) == b"1"
    with pytest.raises(StoreFailed, match="MemoryError"):
        directory.store.commit({TWO: b"2"})
    monkeypatch.undo()


def test_commits_wait_for_a_flush_that_is_far_behind(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what is in memory, and in the log, stays bounded."""
    monkeypatch.setattr(log_store, "_FLUSH_NAMES", 5)
    directory.commit({ONE: b"1"})
    directory.store._start_flush()
    assert directory.store._flush
    joined = []
    monkeypatch.setattr(directory.store._flush, "join", lambda: joined.append(True))
    monkeypatch.setattr(directory.store._flush, "is_alive", lambda: True)
    for number in range(20):
        directory.commit({name(1, b"%d" % number): b""})
    assert not joined
    directory.commit({OTHER: b""})
    assert joined


def test_room_is_looked_for_now_and_then(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_room = [True, False, False, True]
    monkeypatch.setattr(directory.store._below, "has_room", lambda: has_room.pop(0))
    assert [directory.store.has_room() for _ in range(3)] == [True] * 3
    directory.commit({ONE: bytes(100_000)})
    assert [directory.store.has_room() for _ in range(4)] == [False, False, True, True]


def test_it_belongs_to_one_node(directory: Directory) -> None:
    directory.store.claim({"node": 1})
    directory.open_again()
    with pytest.raises(ClusterError, match="not this node's"):
        directory.store.claim({"node": 2})


def test_a_directory_without_a_log_is_taken_over(tmp_path: Path) -> None:
    """As the version before left it."""
    before = lmdb_store.LmdbStore(tmp_path)
    before.commit(sealed({ONE: b"1"}))
    before.close()
    directory = Directory(tmp_path)
    assert directory.store.get(ONE) == b"1"
    directory.store.close()


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "log-0").mkdir(parents=True)
    with pytest.raises(ClusterError, match=f"cannot open the data in {tmp_path}"):
        LogStore(tmp_path)


NAMES = [name(partition, key) for partition in (1, 2) for key in (b"a", b"b", b"c")]
steps = st.lists(
    st.tuples(
        st.sampled_from(["commit", "commit", "commit", "flush", "open again", "begin a flush"]),
        st.dictionaries(st.sampled_from(NAMES), st.none() | st.binary(max_size=3), max_size=3),
    ),
    max_size=15,
)


@given(steps)
@settings(max_examples=60, deadline=None)
def test_it_is_as_if_it_were_a_dict(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, dict[bytes, bytes | None]]]
) -> None:
    directory = Directory(tmp_path_factory.mktemp("store"))
    model: dict[bytes, bytes] = {}
    for step, changes in steps:
        if step == "commit":
            directory.commit(changes)
            model.update({key: value or b"" for key, value in changes.items()})
            for key, value in changes.items():
                if value is None:
                    model.pop(key, None)
        elif step == "open again":
            directory.open_again()
        elif step == "flush" and not directory.store._flush:
            directory.store.flush()
        elif step == "begin a flush" and not directory.store._flush:
            directory.store._start_flush()
        for prefix in (NAMES[0][:4], NAMES[3][:4], NAMES[1]):
            expected = sorted(key for key in model if key.startswith(prefix))
            assert list(directory.store.names(prefix)) == expected
        assert {each: directory.store.get(each) for each in NAMES} == {
            each: model.get(each) for each in NAMES
        }
    directory.store.close()


def test_a_kill_in_the_middle_leaves_whole_batches(tmp_path: Path) -> None:
    """A batch is there as a whole, or not at all, and all that were reported are."""
    path = tmp_path / "node-1"

    def commit_on(results: Connection) -> None:
        log_store._FLUSH_NAMES = 50  # type: ignore[misc]
        store = LogStore(path)
        for number in range(1_000_000):
            store.commit({name(1, b"%d" % i): b"%d" % number for i in range(100)})
            results.send(number)
            store.refresh()

    draw = random.Random(1)
    for _ in range(6):
        last = last_before_kill(commit_on, draw.randrange(5, 60))
        store = LogStore(path)
        found = {store.get(name(1, b"%d" % i)) for i in range(100)}
        assert len(found) == 1
        (number,) = found
        assert number is not None
        assert int(number) in (last, last + 1)
        store.close()
