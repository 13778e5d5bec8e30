"""inspection.py, and what a node does with a damaged directory when it starts."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from gtstore import inspection, lmdb_store, storage
from gtstore.errors import ClusterError
from gtstore.inspection import damage_in
from gtstore.log_store import LogStore
from gtstore.storage import NodeOptions

pytest.importorskip("lmdb", reason="entries on disk need py-lmdb (the extra durable)")

PAGE = 4096
LEAF, BRANCH, OVERFLOW = 2, 1, 4


def name(key: bytes) -> bytes:
    return bytes(8) + key


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node's directory, in which everything was brought into LMDB more than once."""
    path = tmp_path_factory.mktemp("whole") / "node-1"
    store = LogStore(path)
    draw = random.Random(1)
    for round_ in range(10):
        store.commit(
            {
                name(b"%05d" % draw.randrange(5000)): draw.randbytes(draw.choice((20, 300, 9000)))
                if draw.random() < 0.9
                else None
                for _ in range(700)
            }
        )
        store.refresh()
        if round_ % 2:
            store.flush()
    store.close()
    return path


@pytest.fixture
def node(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "node-1"))


def options(path: Path, *, is_suspect: bool = False) -> NodeOptions:
    return NodeOptions(
        1, 1, "127.0.0.1", 0, ("127.0.0.1", 1), bytes(16), 10, None,
        data_dir=path, is_suspect=is_suspect,
    )  # fmt: skip


def pages(path: Path, *kinds: int) -> list[int]:
    """The numbers of the pages that are of these kinds, or were once."""
    data = (path / "data.mdb").read_bytes()
    return [
        at // PAGE
        for at in range(2 * PAGE, len(data), PAGE)
        if int.from_bytes(data[at + 10 : at + 12], "little") in kinds
    ]


def overwrite(path: Path, page: int, data: bytes) -> None:
    with (path / "data.mdb").open("r+b") as file:
        file.seek(page * PAGE)
        file.write(data)


def test_a_whole_store_is_found_whole(node: Path) -> None:
    before = (node / "data.mdb").read_bytes()
    assert damage_in(node) == ""
    assert (node / "data.mdb").read_bytes() == before


@pytest.mark.parametrize("what", ["zeros", "garbage"])
@pytest.mark.parametrize("kind", [LEAF, BRANCH])
def test_damaged_pages_are_found(node: Path, kind: int, what: str) -> None:
    """Whatever LMDB does when it meets them."""
    for page in pages(node, kind):
        overwrite(
            node, page, bytes(PAGE) if what == "zeros" else random.Random(page).randbytes(PAGE)
        )
    assert damage_in(node)


@pytest.mark.parametrize("size", [2 * PAGE, 3 * PAGE, 10 * PAGE + 7])
def test_a_file_that_was_cut_is_found_to_be_short(node: Path, size: int) -> None:
    """Before anybody reads what is not there."""
    assert not lmdb_store.is_short(node)
    file = node / "data.mdb"
    os.truncate(file, size)
    assert lmdb_store.is_short(node)
    assert damage_in(node) == "whoever read it was ended by SIGBUS"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_the_end_of_the_child_is_an_answer(
    node: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(inspection, "LmdbStore", lambda *_, **__: os.kill(os.getpid(), number))
    assert damage_in(node) == f"whoever read it was ended by {number.name}"


def test_a_child_that_hangs(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "START_TIMEOUT_S", 0.05)
    monkeypatch.setattr(inspection, "LmdbStore", lambda *_, **__: signal.pause())
    assert "got no further" in damage_in(node)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "too many")])
def test_what_is_no_damage(node: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Nobody knows, then; and so after a SIGKILL by somebody else."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(inspection, "LmdbStore", fail)
    assert damage_in(node) == ""
    monkeypatch.setattr(
        inspection, "LmdbStore", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    )
    assert damage_in(node) == ""


DAMAGES = {
    "the first page": lambda path: overwrite(path, 0, bytes(PAGE)),
    "both first pages": lambda path: overwrite(path, 0, random.Random(1).randbytes(2 * PAGE)),
    "another file": lambda path: (path / "data.mdb").write_bytes(b"something else" * 1000),
    "an empty file": lambda path: (path / "data.mdb").write_bytes(b""),
    "no file": lambda path: (path / "data.mdb").unlink(),
    "half a file": lambda path: os.truncate(path / "data.mdb", 40 * PAGE),
    "its first byte": lambda path: os.truncate(path / "data.mdb", 1),
    "less than its first pages": lambda path: os.truncate(path / "data.mdb", PAGE + 100),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_directory_is_set_aside(
    node: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And kept, with a line that says where; the node begins without it. Twice, if need be."""
    for number in (1, 2):
        DAMAGES[damage](node)
        before = {
            file.name: data
            for file in node.iterdir()
            if file.name != "lock.mdb" and (data := file.read_bytes())
        }
        store = storage._open_store(options(node))
        aside = node.with_name(f"node-1.damaged-{number}")
        assert store.get(name(b"key")) is None
        assert (store.not_whole, list(store.names(b""))) == ("", [b"L"])
        store.commit({name(b"key"): b"value"})
        store.flush()
        store.close()
        kept = {file.name: file.read_bytes() for file in aside.iterdir() if file.name in before}
        assert kept == before
        assert f"it is set aside as {aside}" in caplog.text
        for _ in range(30):  # so that the next one finds enough to damage
            again = LogStore(node)
            again.commit({name(b"%d" % _): bytes(9000)})
            again.flush()
            again.close()


def test_a_suspect_is_looked_through(node: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The process before has met something; what that is a start does not meet."""
    storage._open_store(options(node, is_suspect=True)).close()
    assert not caplog.records
    for page in pages(node, LEAF)[::2]:
        overwrite(node, page, bytes(PAGE))
    store = storage._open_store(options(node, is_suspect=True))
    assert list(store.names(b"")) == [b"L"]
    store.close()
    assert "is damaged" in caplog.text


def test_what_the_system_does_not_give_is_no_damage(
    node: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line, and nothing is set aside: the next start may find everything."""
    caplog.set_level(logging.DEBUG)
    before = sorted(node.parent.iterdir())

    for error, place in (
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "gtstore.inspection.os.pipe"),
        (OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "gtstore.inspection.os.fork"),
        (MemoryError(), "gtstore.lmdb_store.lmdb.open"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "gtstore.log_store.os.open"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), "gtstore.lmdb_store.lmdb.open"),
        (MemoryError(), "gtstore.write_ahead_log.read"),
    ):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(place, fail)
            is_suspect = "inspection" in place
            with pytest.raises(ClusterError, match="cannot open the data in") as caught:
                storage._open_store(options(node, is_suspect=is_suspect))
            assert "\n" not in str(caught.value)
        assert sorted(node.parent.iterdir()) == before
    storage._open_store(options(node)).close()
    assert not caplog.records


def test_what_cannot_be_set_aside(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (node / "data.mdb").write_bytes(b"garbage" * PAGE)

    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ClusterError, match="cannot be set aside: read-only file system"):
        storage._open_store(options(node))


@pytest.mark.parametrize("what", [b"", b"garbage", bytes(8192)])
def test_the_lock_file_does_not_matter(node: Path, what: bytes) -> None:
    """LMDB makes it anew whenever nobody has it."""
    (node / "lock.mdb").write_bytes(what)
    storage._open_store(options(node)).close()
    (node / "lock.mdb").unlink()
    storage._open_store(options(node)).close()
