"""log_store.py: a Store in a real directory, its log, and what goes from there into LMDB."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import threading
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gtstore import lmdb_store, log_store
from gtstore.disk import Changes, sealed, unsealed
from gtstore.errors import (
    ClusterError,
    RecordDamaged,
    StoreCorrupt,
    StoreDamaged,
    StoreError,
    StoreFailed,
    StoreFull,
)
from gtstore.log_store import LogStore

from .killed_process import last_before_kill
from .test_format_2 import former_log

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

    def crash(self, at: Path, cut: Mapping[str, int] | None = None) -> Directory:
        """What is found if the process is killed now: the same files, some of them cut."""
        at.mkdir()
        for file in self.path.iterdir():
            if file.name != "lock.mdb":
                size = (cut or {}).get(file.name)
                (at / file.name).write_bytes(file.read_bytes()[:size])
        return Directory(at)

    def damage(self, name: bytes, sealed_value: bytes) -> None:
        """In LMDB."""
        self.store._below.commit([(name, sealed_value)])
        self.store._below.refresh()


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
    directory.damage(ONE, damaged[:-1] + b"?")
    with pytest.raises(StoreDamaged, match="key one, in partition 1, is damaged"):
        directory.store.get(ONE)
    assert (directory.store.get(TWO), directory.store.get(b"P\0\0\0\1")) == (b"2", b"state")


@pytest.mark.parametrize("record", [b"P\0\0\0\1", b"W"])
def test_a_damaged_record_is_not_served(directory: Directory, record: bytes) -> None:
    """Every bit of what is not an entry counts, too; and that of its name. Who reads it is told,
    and first of all whoever ends the node."""
    directory.commit({record: b"state"})
    directory.store.flush()
    sealed_value = directory.store._below.get(record)
    assert sealed_value
    told: list[StoreFailed] = []
    directory.store.on_failure(told.append)
    for at in range(len(sealed_value) * 8):
        flipped = bytearray(sealed_value)
        flipped[at // 8] ^= 1 << at % 8
        directory.damage(record, bytes(flipped))
        with pytest.raises(RecordDamaged, match="is damaged"):
            directory.store.get(record)
    other = record[:-1] + bytes([record[-1] ^ 4])
    directory.damage(other, sealed_value)
    with pytest.raises(RecordDamaged) as caught:
        directory.store.get(other)
    assert told[-1] is caught.value
    assert len(told) == len(sealed_value) * 8 + 1


@pytest.mark.parametrize("record", [b"A", b"L"])
def test_a_store_that_does_not_know_itself_is_not_opened(
    directory: Directory, record: bytes
) -> None:
    directory.store.claim({"node": 1})
    directory.commit({ONE: b"1"})
    directory.store.flush()
    sealed_value = directory.store._below.get(record)
    assert sealed_value
    directory.store.close()

    def change(value: bytes) -> None:
        below = lmdb_store.LmdbStore(directory.path)
        below.commit([(record, value)])
        below.close()

    for at in range(len(sealed_value)):
        change(sealed_value[:at] + bytes([sealed_value[at] ^ 1]) + sealed_value[at + 1 :])
        with pytest.raises(RecordDamaged, match=f"'{record.decode()}' is damaged"):
            LogStore(directory.path)
    change(sealed_value)
    directory.store = LogStore(directory.path)
    assert directory.store.get(ONE) == b"1"


def test_a_store_is_not_begun_anew_where_something_was(directory: Directory) -> None:
    """The file of LMDB is empty, or does not have its first record, and there was more."""
    directory.commit({ONE: b"1"})
    directory.store.flush()
    directory.store._below.commit([(b"L", None)])
    directory.store.close()
    with pytest.raises(StoreCorrupt, match="what it had is not there any more"):
        LogStore(directory.path)
    (directory.path / "data.mdb").write_bytes(b"")
    with pytest.raises(StoreCorrupt, match="what it had is not there any more"):
        LogStore(directory.path)
    for file in (0, 1):  # as if the process had ended before it had begun
        (directory.path / f"log-{file}").write_bytes(b"")
    directory.store = LogStore(directory.path)
    assert not directory.store.not_whole
    assert directory.store.get(ONE) is None


def test_a_damaged_log_is_not_passed_by(directory: Directory, tmp_path: Path) -> None:
    """What follows a damaged record was acknowledged, so the record was, too."""
    directory.commit({ONE: b"1"})
    first = directory.store._at
    for _ in range(2):
        directory.commit({TWO: b"2"})
    file = directory.path / "log-0"
    data = bytearray(file.read_bytes())
    data[first - 1] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreCorrupt, match=r"is damaged: record 1 is missing, and record 3 is"):
        directory.crash(tmp_path / "crashed")


def test_a_log_that_does_not_end_whole(
    directory: Directory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, also by later processes, though the next record is written over what is not
    whole; until somebody says that all is well."""
    directory.commit({ONE: b"1"})
    first = directory.store._at
    directory.commit({TWO: b"2" * 100})
    assert not directory.crash(tmp_path / "whole").store.not_whole
    file = directory.path / "log-0"
    file.write_bytes(file.read_bytes()[: first + 50])
    after = directory.crash(tmp_path / "crashed")
    assert (after.store.get(ONE), after.store.get(TWO)) == (b"1", None)
    assert after.store.not_whole == "log-0 has no end mark behind record 1"
    assert "does not end whole: log-0 has no end mark behind record 1" in caplog.text
    for is_flushed in (False, True):
        after.commit({OTHER: b"3"})
        if is_flushed:
            after.store.flush()
        after.open_again()
        assert [after.store.get(each) for each in (ONE, TWO, OTHER)] == [b"1", None, b"3"]
        assert after.store.not_whole == "log-0 has no end mark behind record 1"
    after.commit({log_store.NOT_WHOLE: None})
    after.open_again()
    assert not after.store.not_whole


@pytest.mark.parametrize("is_flushed", [False, True])
@pytest.mark.parametrize("lost", [(0,), (1,), (0, 1)])
def test_a_log_that_is_not_there(
    directory: Directory, lost: tuple[int, ...], is_flushed: bool
) -> None:
    """Nobody can say what it had. What conclusions are drawn in the first commit, with which the
    mark is removed, are drawn for good."""
    directory.commit({ONE: b"1"})
    if is_flushed:
        directory.store.flush()
    for file in lost:
        (directory.path / f"log-{file}").unlink()
    directory.open_again()
    assert directory.store.not_whole.endswith("begins with is no record of this log")
    assert directory.store.get(ONE) == (b"1" if is_flushed or lost == (1,) else None)
    directory.commit({OTHER: b"3", log_store.NOT_WHOLE: None})
    directory.open_again()
    assert not directory.store.not_whole
    assert directory.store.get(OTHER) == b"3"


def test_a_store_of_an_older_time(directory: Directory, tmp_path: Path) -> None:
    """An older data.mdb beside newer logs: either they have all that came since, or it is said that
    something is missing."""
    older = []
    for number in range(12):
        directory.commit({name(1, b"%d" % number): b"%d" % number})
        if number % 3 == 2:
            directory.store.flush()
        older.append((directory.path / "data.mdb").read_bytes())
    directory.store.close()
    found = []
    for number, data in enumerate(older):
        at = Path(shutil.copytree(directory.path, tmp_path / f"{number}"))
        (at / "data.mdb").write_bytes(data)
        try:
            store = LogStore(at)
        except StoreCorrupt:
            found.append(None)
            continue
        assert [store.get(name(1, b"%d" % each)) for each in range(12)] == [
            b"%d" % each for each in range(12)
        ]
        found.append(store.not_whole)
        store.close()
    assert found == [None] * 5 + [""] * 7
    directory.store = LogStore(directory.path)


def test_a_flipped_name(directory: Directory) -> None:
    """What is found under it is damaged, and so its partition will be copied anew, once somebody
    looks through it; until then the right name is as if it had no value."""
    directory.commit({ONE: b"1", TWO: b"2"})
    directory.store.flush()
    directory.store.close()
    file = directory.path / "data.mdb"
    flipped = TWO[:-1] + bytes([TWO[-1] ^ 1])
    data = file.read_bytes()
    assert TWO in data
    file.write_bytes(data.replace(TWO, flipped))
    directory.store = LogStore(directory.path)
    assert list(directory.store.names(ONE[:4])) == [ONE, flipped]
    assert (directory.store.get(ONE), directory.store.get(TWO)) == (b"1", None)
    with pytest.raises(StoreDamaged):
        directory.store.get(flipped)


def test_every_state_ends_whole_or_says_so(
    directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on disk after each step of a store's life, cut here and there: all that was committed
    is found, or it is said that it may not be. Uncut, it is found in any case."""
    model: dict[bytes, bytes] = {}
    states = 0

    def commit(key: bytes, value: bytes) -> None:
        directory.commit({key: value})
        model[key] = value
        look()

    def look() -> None:
        nonlocal states
        states += 1
        for file in (0, 1):
            size = (directory.path / f"log-{file}").stat().st_size
            for cut in {size, size - 1, size - 17, size // 2, 17, 1, 0}:
                at = tmp_path / f"{states}-{file}-{cut}"
                try:
                    after = directory.crash(at, {f"log-{file}": cut})
                except StoreCorrupt:
                    assert cut != size
                    continue
                found = {key: after.store.get(key) for key in model}
                assert found == model or after.store.not_whole
                assert cut != size or not after.store.not_whole
                after.store.close()
                shutil.rmtree(at)

    look()
    commit(ONE, b"1")
    commit(TWO, b"2")
    run, gate = log_store._Flush.run, threading.Event()

    def run_later(flush: log_store._Flush) -> None:
        if flush._below is directory.store._below:
            gate.wait()
        run(flush)

    monkeypatch.setattr(log_store._Flush, "run", run_later)
    flush = directory.store._start_flush()
    look()
    commit(ONE, b"11")
    commit(OTHER, b"3")
    gate.set()
    flush.join()
    look()
    directory.open_again()
    look()
    commit(ONE, b"111")
    directory.store.flush()
    look()
    directory.open_again()
    look()
    commit(TWO, b"2222")
    directory.store.flush()
    commit(OTHER, b"33")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EFBIG, StoreFull),
        (errno.EIO, StoreFailed),
        (errno.EROFS, StoreFailed),
    ],
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
    told: list[StoreFailed] = []
    directory.store.on_failure(told.append)
    with pytest.raises(kind, match="log-0") as caught:
        directory.store.commit({TWO: b"2" * 100})
    assert told == ([] if kind is StoreFull else [caught.value]), "that ends the node"
    monkeypatch.undo()
    directory.store.refresh()
    assert directory.store.get(TWO) is None
    directory.commit({OTHER: b"3"})
    directory.open_again()
    found = [directory.store.get(each) for each in (ONE, TWO, OTHER)]
    assert found == [b"1", None, b"3"]
    assert directory.store.is_whole


def test_where_there_was_no_room_the_log_still_ends(
    directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written of the record is over the end mark, which is then written again."""
    directory.commit({ONE: b"1"})
    write = os.pwritev

    def fail(file: int, data: tuple[bytes], at: int, flags: int) -> int:
        if len(data[0]) < 100:
            return write(file, data, at, flags)
        write(file, (data[0][:30],), at, flags)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for number in range(2):
        monkeypatch.setattr(os, "pwritev", fail)
        with pytest.raises(StoreFull):
            directory.store.commit({TWO: b"2" * 100})
        monkeypatch.undo()
        after = directory.crash(tmp_path / f"crashed-{number}")
        assert (after.store.get(ONE), after.store.not_whole) == (b"1", "")
        directory.store.flush()  # then it is at the start of a file


@pytest.mark.parametrize("written", [0, 20, 30, 200])
@pytest.mark.parametrize("kept", [0, 3, 50])
def test_where_there_was_no_room_a_log_that_does_not_end_whole_still_does_not(
    directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int, kept: int
) -> None:
    """N2a: the conclusions were not drawn, so the next process has to draw them."""
    directory.commit({ONE: b"1"})
    first = directory.store._at
    directory.commit({TWO: b"2" * 100})
    file = directory.path / "log-0"
    file.write_bytes(file.read_bytes()[: first + kept])
    directory.open_again()
    assert directory.store.not_whole
    write = os.pwritev

    def fail(file: int, data: tuple[bytes], at: int, flags: int) -> int:
        if len(data[0]) < 100:
            return write(file, data, at, flags)
        write(file, (data[0][:written],), at, flags)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(StoreFull):
        directory.store.commit({log_store.NOT_WHOLE: None, OTHER: b"3" * 200})
    monkeypatch.undo()
    after = directory.crash(tmp_path / "crashed")
    assert (after.store.get(ONE), after.store.get(OTHER)) == (b"1", None)
    assert after.store.not_whole
    after.commit({log_store.NOT_WHOLE: None, OTHER: b"3"})
    after.open_again()
    assert (after.store.not_whole, after.store.get(OTHER)) == ("", b"3")


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


@pytest.mark.parametrize(
    ("broken", "raised", "words"),
    [(ZeroDivisionError, StoreFailed, "ZeroDivisionError"), (MemoryError, MemoryError, "")],
)
def test_a_flush_that_breaks_off_is_no_flush(
    directory: Directory,
    monkeypatch: pytest.MonkeyPatch,
    broken: type[Exception],
    raised: type[Exception],
    words: str,
) -> None:
    """Whatever the reason: nothing is let go that LMDB does not have. That memory is short is no
    fault of the disk's, and it is tried again."""
    directory.commit({ONE: b"1"})

    def fail(*_: Any) -> None:
        raise broken

    monkeypatch.setattr(lmdb_store.LmdbStore, "commit", fail)
    directory.store._start_flush().join()
    directory.store.refresh()
    assert directory.store.get(ONE) == b"1"
    with pytest.raises(raised) as caught:
        directory.store.commit({TWO: b"2"})
    assert words in str(caught.value)
    monkeypatch.undo()
    directory.commit({TWO: b"2"})
    assert (directory.store.get(ONE), directory.store.get(TWO)) == (b"1", b"2")


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
    about = {"cluster": 5, "node": 1}
    directory.store.claim(about)
    directory.store.claim(about)
    directory.open_again()
    directory.store.claim(about)
    with pytest.raises(ClusterError, match=r"not this node's, but of .*'node': 1"):
        directory.store.claim({"cluster": 5, "node": 2})


def test_a_newer_format_is_refused(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_store, "_FORMAT", 4)
    directory.store.claim({"node": 1})
    monkeypatch.undo()
    directory.store.close()
    with pytest.raises(ClusterError, match=r"has format 4, .* none above 3: a newer version"):
        LogStore(directory.path)
    monkeypatch.setattr(log_store, "_FORMAT", 4)
    directory.store = LogStore(directory.path)


def former(path: Path, form: int, log: list[Changes], flushed: int, *, is_claimed: bool) -> None:
    """A directory as a former version left it."""
    store = lmdb_store.LmdbStore(path)
    store.commit(sealed({ONE: b"1", TWO: b"2"}))
    store.commit([(b"P\0\0\0\1", b"state"), (b"P\0\0\0\2", b"other")])
    if is_claimed:
        store.commit([(b"A", json.dumps({"format": form, "node": 1}).encode())])
    salt = bytes(range(16))
    if form == 2:
        store.commit([(b"L", flushed.to_bytes(8, "big") + salt)])
        (path / "log-0").write_bytes(former_log(1, log, salt))
        (path / "log-1").write_bytes(b"")
    store.close()


LOG: list[Changes] = [{ONE: b"new", TWO: None}, {b"P\0\0\0\1": b"new state", OTHER: b"3"}]


@pytest.mark.parametrize("is_claimed", [False, True])
@pytest.mark.parametrize("flushed", [0, 2])
def test_a_directory_of_format_2_is_rewritten(
    tmp_path: Path, flushed: int, is_claimed: bool
) -> None:
    """With everything that was in its log. Whether that was everything it can tell only if it was
    stopped in order."""
    former(tmp_path, 2, LOG, flushed, is_claimed=is_claimed)
    directory = Directory(tmp_path)
    for _ in range(2):
        names = (ONE, TWO, OTHER, b"P\0\0\0\1", b"P\0\0\0\2")
        expected = [b"1", b"2", None, b"state\0", b"other\0"]  # is_doubtful is new
        if not flushed:
            expected = [b"new", None, b"3", b"new state\0", b"other\0"]
        assert [directory.store.get(name) for name in names] == expected
        assert bool(directory.store.not_whole) is (flushed == 0)
        directory.store.claim({"node": 1})
        for record in (b"A", b"L", b"P\0\0\0\1"):
            value = directory.store._below.get(record)
            assert value
            assert unsealed(record, value)
        with pytest.raises(ClusterError, match="not this node's"):
            directory.store.claim({"node": 2})
        directory.open_again()
    directory.commit({ONE: b"newer"})
    directory.open_again()
    assert directory.store.get(ONE) == b"newer"
    directory.store.close()


def test_a_directory_without_a_log_is_rewritten(tmp_path: Path) -> None:
    """Of format 1."""
    former(tmp_path, 1, [], 0, is_claimed=True)
    directory = Directory(tmp_path)
    assert (directory.store.get(ONE), directory.store.get(b"P\0\0\0\1")) == (b"1", b"state\0")
    assert not directory.store.not_whole
    directory.store.close()


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system does not give is no damage."""
    (tmp_path / "log-0").mkdir(parents=True)
    with pytest.raises(ClusterError, match=f"cannot open the data in {tmp_path}"):
        LogStore(tmp_path)
    (tmp_path / "log-0").rmdir()

    def fail(*_: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(ClusterError, match="Too many open files"):
        LogStore(tmp_path)
    monkeypatch.undo()
    LogStore(tmp_path).close()


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
