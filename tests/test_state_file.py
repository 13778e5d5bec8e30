"""What a manager leaves for its successor (M4)."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from gtstore import state_file
from gtstore.errors import ClusterError
from gtstore.placement import PartitionMap, row_without
from gtstore.state_file import LMDB, MEMORY, Process, SavedState, StateFile, from_text, to_text
from gtstore.wire.messages import ALIVE, DEAD, HASH_CRC16, Member


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
        first.changed_by(lambda row, epoch: row_without(row, 2, epoch)),
        tuple(
            Member(n, DEAD if n == 2 else ALIVE, 1, 100 + n, 10000 + n, "127.0.0.1")
            for n in numbers
        ),
        tuple(Process(n, 1 + (n == 2), 100 + n, 5000 + n) for n in numbers),
        held=(2,),
    )


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateFile:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return StateFile.of_address("127.0.0.1", 9001)


def test_a_round_trip(file: StateFile) -> None:
    """All of it comes back, but for which rows changed when: who is behind gets all of them."""
    state = a_state()
    assert file.read() is None
    file.write(state)
    found = file.read()
    assert found is not None
    assert found.map.rows == state.map.rows
    assert found.map.epoch == state.map.epoch
    assert found.map.rows_since(found.map.epoch) == ()
    assert found.map.rows_since(found.map.epoch - 1) == found.map.rows
    assert dataclasses.replace(found, map=state.map) == state
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(file.path.parent) == [file.path.name], "nothing else is left there"
    file.remove()
    assert file.read() is None
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
    assert os.listdir(file.path.parent) == [file.path.name]


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
    with pytest.raises(ClusterError, match="cannot make the directory"):
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
    file.write(dataclasses.replace(a_state(), engine=LMDB))
    assert done == ["file", "replace", "directory"]
    found = file.read()
    assert found is not None
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
