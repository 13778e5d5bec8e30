"""What a manager leaves for its successor (M4)."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from gtstore import state_file
from gtstore.cluster_time import Reached
from gtstore.errors import ClusterError
from gtstore.placement import PartitionMap, row_without
from gtstore.state_file import LMDB, MEMORY, Process, SavedState, StateFile, from_text, to_text
from gtstore.wire.messages import ALIVE, DEAD, HASH_CRC16, Member, Owner


def a_state() -> SavedState:
    """Three nodes, of which the second one is dead."""
    numbers = (1, 2, 3)
    first = PartitionMap.first(0xC0FFEE01, 3, 2, dict.fromkeys(numbers, 1))
    return SavedState(
        0xC0FFEE01,
        3,
        2,
        HASH_CRC16,
        MEMORY,
        bytes(range(16)),
        first.changed_by(lambda row, epoch: row_without(row, 2, {1: 1, 3: 1}, epoch)),
        tuple(
            Member(n, DEAD if n == 2 else ALIVE, 1, 100 + n, 10000 + n, "127.0.0.1")
            for n in numbers
        ),
        tuple(Process(n, 1 + (n == 2), 100 + n, 5000 + n) for n in numbers),
        held=(2,),
        reached=Reached(1_700_000_000_000_000, 5_000, "a boot"),
        address=("::1", 9001),
    )


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateFile:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return StateFile.of_address("127.0.0.1", 9001)


def test_a_round_trip(file: StateFile) -> None:
    """All of it comes back, but for which rows changed when: who is behind gets all of them."""
    state = a_state()
    assert file.read() == []
    file.write(state)
    (found,) = file.read()
    assert found.map.rows == state.map.rows
    assert found.map.epoch == state.map.epoch
    assert found.map.rows_since(found.map.epoch) == ()
    assert found.map.rows_since(found.map.epoch - 1) == found.map.rows
    assert dataclasses.replace(found, map=state.map) == state
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(file.path.parent)) == [file.path.name, f"{file.path.name}.spare"]
    file.remove()
    assert file.read() == []
    assert os.listdir(file.path.parent) == [], "nothing else is left there"
    file.remove()


def damaged(**changes: Any) -> str:
    """With a right checksum, so that the other checks are tried too."""
    form = json.loads(to_text(a_state())) | changes
    del form["sha256"]
    return json.dumps({**form, "sha256": state_file._checksum(form)})


def without(name: str) -> str:
    form = json.loads(to_text(a_state()))
    del form[name]
    return json.dumps(form)


def test_a_file_of_a_version_without_cluster_time() -> None:
    """T1: nothing is known of what was reached."""
    form = json.loads(damaged())
    del form["sha256"], form["reached"]
    found = from_text(json.dumps({**form, "sha256": state_file._checksum(form)}))
    assert found.reached is None


def test_one_wrong_character_is_found() -> None:
    """Wherever it is."""
    text = to_text(a_state())
    for at in range(0, len(text), 97):
        other = "1" if text[at] != "1" else "2"
        with pytest.raises(ValueError, match=r"."):
            from_text(text[:at] + other + text[at + 1 :])


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "1", '"text"', "null", to_text(a_state())[:-20],
        damaged(format=3), damaged(engine="tape"),
        damaged(nodes=4), damaged(nodes=0), damaged(nodes="3"),
        damaged(replicas=4), damaged(replicas=0), damaged(hash="sha"), damaged(token="00"),
        damaged(token="zz"), damaged(members=[]), damaged(processes=[{}]), damaged(processes=[]),
        damaged(map="00"), damaged(map=5), damaged(members=[1, 2, 3]), damaged(replicas="2"),
        damaged(held=[4]), damaged(held=2), without("cluster"), without("map"),
        damaged(reached=5), damaged(reached={"time_us": 1}),
        damaged(reached={"time_us": -1, "steady_us": 1, "boot": ""}),
        damaged(reached={"time_us": 1, "steady_us": 1 << 63, "boot": ""}),
        damaged(reached={"time_us": 1, "steady_us": 1, "boot": 1}),
    ],
)  # fmt: skip
def test_damage_is_found(file: StateFile, text: str) -> None:
    """It is named, with the file, and nothing is guessed."""
    file.path.write_text(text)
    with pytest.raises(ClusterError, match=r"cannot be read .*remove it") as caught:
        file.read()
    assert str(file.path) in str(caught.value)
    with pytest.raises(ValueError, match=r"."):
        from_text(text)


def test_a_write_that_fails_changes_nothing(
    file: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write(a_state())
    before = file.path.read_text()

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(state_file.os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        file.write(a_state())
    assert file.path.read_text() == before
    monkeypatch.undo()
    file.write(a_state())
    assert sorted(os.listdir(file.path.parent)) == [file.path.name, f"{file.path.name}.spare"]


def test_the_directory_is_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a runtime directory it is one of the user's own in the temporary one; if somebody
    else may write there, it is not used."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(state_file.tempfile, "gettempdir", lambda: str(tmp_path))
    path = StateFile.of_address("::1", 9001).path
    assert path == tmp_path / f"gtstore-{os.getuid()}" / "manager-__1-9001.json"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.parent.chmod(0o777)
    with pytest.raises(ClusterError, match="not a directory of this user alone"):
        StateFile.of_address("127.0.0.1", 9001)
    path.parent.rmdir()
    path.parent.symlink_to(tmp_path)
    with pytest.raises(ClusterError, match="not a directory of this user alone"):
        StateFile.of_address("127.0.0.1", 9001)
    path.parent.unlink()
    path.parent.write_text("")
    with pytest.raises(ClusterError, match=r"no directory .* can be had \(.*: File exists\)"):
        StateFile.of_address("127.0.0.1", 9001)


def test_a_synced_file_is_on_disk_before_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First its content, then its name takes the old one's place, then the directory."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(number: int) -> None:
        is_directory = os.path.isdir(f"/proc/self/fd/{number}")
        size = os.fstat(number).st_size
        done.append("directory" if is_directory else "file" if size > 1000 else "nothing")
        fsync(number)

    def note_replace(old: str, new: Path) -> None:
        done.append("replace")
        replace(old, new)

    monkeypatch.setattr(state_file.os, "fsync", note_fsync)
    monkeypatch.setattr(state_file.os, "replace", note_replace)
    file = StateFile(tmp_path / "manager" / "state.json", is_synced=True)
    for _ in range(3):
        file.write(dataclasses.replace(a_state(), engine=LMDB))
        # The last state is the next spare after that, and not before.
        assert done[:3] == ["file", "replace", "directory"]
        assert done[3:] in ([], ["replace"])
        done.clear()
    (found,) = file.read()
    assert found.engine == LMDB
    file.path.write_text("{")
    with pytest.raises(ClusterError, match=r"nobody knows .*OPERATIONS"):
        file.read()


def test_the_first_format_is_read() -> None:
    """It knew no engines: entries were in memory. Nor could a node be held."""
    form = json.loads(damaged(format=1))
    del form["engine"], form["held"], form["sha256"]
    text = json.dumps({**form, "sha256": state_file._checksum(form)})
    assert (from_text(text).engine, from_text(text).held) == (MEMORY, ())


# --- room ----------------------------------------------------------------------------------------


def names(directory: Path) -> set[str]:
    return set(os.listdir(directory))


@pytest.fixture
def disk(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "manager" / "state.json", is_synced=True)


def a_longer_state(version: int) -> SavedState:
    """With one owner more in each row, as while everything is copied."""
    state = a_state()
    return dataclasses.replace(
        state,
        map=state.map.changed_by(
            lambda row, epoch: dataclasses.replace(
                row, list_epoch=epoch + version, owners=(*row.owners, Owner(3, 1, epoch, 0))
            )
        ),
    )


def test_a_full_disk_has_room_for_the_next_state(
    disk: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number of states, also longer ones, are written over the bytes of the spare file: no
    file grows."""
    disk.write(a_state())
    sizes = {path.stat().st_size for path in disk.path.parent.iterdir()}

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state_file.os, "posix_fallocate", no_room)
    pwrite = os.pwrite

    def write_in_place(number: int, data: bytes, at: int) -> int:
        if at + len(data) > os.fstat(number).st_size:
            no_room()
        return pwrite(number, data, at)

    monkeypatch.setattr(state_file.os, "pwrite", write_in_place)
    for version in range(5):
        state = a_longer_state(version) if version % 2 == 0 else a_state()
        disk.write(state)
        (found,) = disk.read()
        assert found.map.rows == state.map.rows
    assert {path.stat().st_size for path in disk.path.parent.iterdir()} == sizes


@pytest.mark.parametrize("call", ["open", "pwrite", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EMFILE])
def test_whatever_fails_leaves_the_last_state(
    disk: StateFile, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """At each step that can fail, with each error: what was there is there, or, once it has its
    name, the new one; and the next write goes well."""
    disk.write(a_state())
    disk.write(a_state())

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    state = a_longer_state(1)
    with monkeypatch.context() as patch:
        patch.setattr(state_file.os, call, fail)
        with pytest.raises(OSError, match=os.strerror(number)):
            disk.write(state)
        patch.undo()
        (found,) = disk.read()
        assert found.map.rows == a_state().map.rows
    disk.write(state)
    (found,) = disk.read()
    assert found.map.rows == state.map.rows
    assert names(disk.path.parent) == {"state.json", "state.json.spare"}


def test_a_directory_that_cannot_be_synced(
    disk: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows which of the two states counts after a crash, so neither is written over."""
    disk.write(a_state())
    before = disk.path.stat().st_ino

    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    # Keeps its number from being given to another file.
    with open(disk.path), monkeypatch.context() as patch:
        patch.setattr(state_file, "_sync_directory", fail)
        with pytest.raises(OSError, match="Input/output"):
            disk.write(a_longer_state(1))
        after = disk.path.stat().st_ino
        assert names(disk.path.parent) == {"state.json"}
        patch.undo()
        disk.write(a_longer_state(2))
        assert disk.path.stat().st_ino not in (before, after)


@pytest.mark.parametrize("at", ["spare", "last"])
def test_what_a_killed_manager_has_left(disk: StateFile, at: str) -> None:
    """Whatever has a second name may be what counts, and is not written to."""
    disk.write(a_state())
    other = disk.path.with_name(f"{disk.path.name}.{at}")
    other.unlink(missing_ok=True)
    os.link(disk.path, other)
    kept = disk.path.with_name("a copy of the operator's")
    os.link(disk.path, kept)
    before = kept.read_bytes()
    for version in range(4):
        disk.write(a_longer_state(version))
        assert kept.read_bytes() == before
    kept.unlink()
    assert names(disk.path.parent) == {"state.json", "state.json.spare"}


# --- two places ----------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The user's runtime directory, and the temporary one."""
    runtime, temporary = tmp_path / "run", tmp_path / "tmp"
    runtime.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setattr(state_file.tempfile, "gettempdir", lambda: str(temporary))
    return runtime, temporary


def test_a_logout_takes_the_runtime_directory_away(places: tuple[Path, Path]) -> None:
    """Then the file is written into the other place; a successor looks in both, also after a login,
    and there is only one of them."""
    runtime, temporary = places
    file = StateFile.of_address("127.0.0.1", 9001)
    file.write(a_state())
    assert file.path.parent == runtime / "gtstore"
    shutil.rmtree(runtime)
    assert not file.is_there()
    file.write(a_state())
    assert file.path.parent == temporary / f"gtstore-{os.getuid()}"
    assert file.is_there()
    assert len(StateFile.of_address("127.0.0.1", 9001).read()) == 1
    runtime.mkdir()
    assert len(StateFile.of_address("127.0.0.1", 9001).read()) == 1
    file.write(a_state())
    assert file.path.parent == runtime / "gtstore"
    assert len(file.read()) == 1
    assert names(temporary / f"gtstore-{os.getuid()}") == set()


def test_a_place_of_somebody_else_is_no_place(places: tuple[Path, Path]) -> None:
    """It is neither read nor written."""
    runtime, temporary = places
    other = temporary / f"gtstore-{os.getuid()}"
    other.mkdir(mode=0o777)
    other.chmod(0o777)
    file = StateFile.of_address("127.0.0.1", 9001)
    (other / file.path.name).write_text("{")
    assert file.read() == []
    shutil.rmtree(runtime)
    with pytest.raises(OSError, match="of this user alone"):
        file.write(a_state())


def test_a_state_that_cannot_be_removed(file: StateFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is told; of what is not there it is not."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", fail)
    file.remove()
    file.path.write_text("{")
    with pytest.raises(OSError, match="Read-only"):
        file.remove()
