"""Backups on disk: written whole or not at all, and any damage is found."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gtstore import backup
from gtstore.backup import Damaged
from gtstore.errors import DeadlineExceeded, OperationFailed
from gtstore.results import ScannedEntry, Version

ENTRIES = [ScannedEntry(b"key%d" % i, b"v" * i, Version(0, 0), None) for i in range(100)]
ENTRIES[7] = ScannedEntry(b"\xff\0", b"\x80", Version(0, 0), 1_700_000_000_000_001)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "backup"


@pytest.fixture
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "_FILE_SIZE", 2000)


def nothing(entry: ScannedEntry) -> None:
    pass


def write(directory: Path, entries: Any = ENTRIES) -> dict[str, Any]:
    return backup.write(directory, entries, "5eed0001", nothing)


def problems(directory: Path) -> list[str]:
    """What is wrong with a backup."""
    with pytest.raises(Damaged) as caught:
        backup.verify(directory, nothing)
    return caught.value.problems


def sign(directory: Path, **changes: Any) -> None:
    """Change the manifest, with a checksum that fits."""
    path = directory / backup.MANIFEST
    manifest = json.loads(path.read_text())["manifest"] | changes
    path.write_text(json.dumps({"manifest": manifest, "sha256": backup._sum_of(manifest)}))


@pytest.mark.usefixtures("_small_files")
def test_there_and_back(directory: Path) -> None:
    """In several files; nothing else lies there; the progress is told of each entry."""
    noted: list[ScannedEntry] = []
    manifest = backup.write(directory, ENTRIES, "5eed0001", noted.append)
    assert noted == ENTRIES
    names = [row["name"] for row in manifest["files"]]
    assert len(names) > 2
    assert sorted(os.listdir(directory)) == [*names, "manifest.json"]
    assert (manifest["keys"], manifest["cluster"], manifest["format"]) == (100, "5eed0001", 1)
    assert manifest["bytes"] == sum(len(entry.key) + len(entry.value) for entry in ENTRIES)
    assert manifest["began_at"] <= manifest["ended_at"]
    noted.clear()
    assert backup.verify(directory, noted.append) == manifest
    assert noted == ENTRIES
    assert list(backup.entries(directory, manifest)) == ENTRIES


def test_by_hand(directory: Path) -> None:
    """sha256sum and zcat are enough."""
    manifest = write(directory)
    (row,) = manifest["files"]
    data = (directory / row["name"]).read_bytes()
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (row["sha256"], row["size"])
    lines = gzip.decompress(data).splitlines()
    assert json.loads(lines[3]) == {"key": "key3", "value": "vvv"}


def test_nothing_to_back_up(directory: Path) -> None:
    """That is a backup too."""
    manifest = write(directory, [])
    assert backup.verify(directory, nothing)["keys"] == 0
    assert list(backup.entries(directory, manifest)) == []


def test_the_directory_must_be_empty(directory: Path) -> None:
    """An empty one that is there will do; nothing is ever written over."""
    directory.mkdir()
    write(directory)
    before = {path: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(OperationFailed, match="is not empty"):
        write(directory)
    assert {path: path.read_bytes() for path in directory.iterdir()} == before
    with pytest.raises(OperationFailed, match="cannot write to"):
        write(directory / "manifest.json")
    with pytest.raises(OperationFailed, match="No such file or directory"):
        write(directory / "a" / "b")


@pytest.mark.usefixtures("_small_files")
@pytest.mark.parametrize("is_there", [False, True])
def test_what_fails_leaves_nothing(directory: Path, is_there: bool) -> None:
    """The scan fails after some files were written."""

    def entries() -> Iterator[ScannedEntry]:
        yield from ENTRIES[:90]
        raise DeadlineExceeded("node 1", "no answer")

    if is_there:
        directory.mkdir()
    with pytest.raises(DeadlineExceeded):
        write(directory, entries())
    assert directory.exists() == is_there
    assert not is_there or not os.listdir(directory)


def test_one_that_was_killed(directory: Path) -> None:
    """Without a manifest it is no backup."""
    write(directory)
    (directory / backup.MANIFEST).unlink()
    (problem,) = problems(directory)
    assert "no manifest.json" in problem
    assert "no manifest.json" in problems(directory / "nowhere")[0]


@pytest.mark.usefixtures("_small_files")
def test_any_flipped_bit_is_found(directory: Path) -> None:
    """Wherever it is, in the data or in the manifest; and which file it is, is said."""
    write(directory)
    chosen = random.Random(1)
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        for at in {0, len(data) - 2, *(chosen.randrange(len(data) - 1) for _ in range(40))}:
            damaged = bytearray(data)
            damaged[at] ^= 1 << chosen.randrange(8)
            path.write_bytes(damaged)
            try:
                found = problems(directory)
            except BaseException:
                # White space within the manifest is no part of what it says.
                assert path.name == backup.MANIFEST
                assert data[at : at + 1].isspace()
                continue
            assert path.name in found[0]
        path.write_bytes(data)
    backup.verify(directory, nothing)


@pytest.mark.usefixtures("_small_files")
def test_all_damage_is_told(directory: Path) -> None:
    """A file that is cut, one that is gone, one that is another: one line each."""
    names = [row["name"] for row in write(directory, ENTRIES[:70])["files"]]
    assert len(names) == 3
    os.truncate(directory / names[0], 5)
    (directory / names[1]).unlink()
    os.rename(directory / names[2], directory / names[1])
    os.truncate(directory / names[1], 76)
    found = problems(directory)
    assert [name in line for name, line in zip(names, found, strict=True)] == [True] * len(names)
    assert [line.partition("gz ")[2][:26] for line in found] == [
        "is damaged: it has 5 bytes",
        "is damaged: it has 76 byte",
        "cannot be read: No such fi",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "format 2: another version"),
        ({"keys": "5"}, "lacks what belongs"),
        ({"files": [{}]}, "lacks what belongs"),
        ({"files": [{"name": "../../etc/passwd", "size": 1, "sha256": "", "keys": 1}]}, "lacks"),
    ],
)
def test_manifests_that_are_none(directory: Path, changes: dict[str, Any], said: str) -> None:
    """Signed or not: nothing is read that is no data file of the directory."""
    write(directory)
    sign(directory, **changes)
    assert said in problems(directory)[0]


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"manifest": 5}', b"\xff", b"[" * 100_000])
def test_manifests_that_are_no_json(directory: Path, text: bytes) -> None:
    directory.mkdir()
    (directory / backup.MANIFEST).write_bytes(text)
    assert "is damaged" in problems(directory)[0]


def test_what_is_within_the_files(directory: Path) -> None:
    """A manifest that fits files which are none: the lines are read too."""
    for text, said in ((b"no line\n", "line 1: it is no JSON"), (b"", "has 0 keys, not 100")):
        if directory.exists():
            for path in directory.iterdir():
                path.unlink()
        (row,) = write(directory)["files"]
        path = directory / row["name"]
        path.write_bytes(gzip.compress(text))
        data = path.read_bytes()
        row |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        sign(directory, files=[row])
        assert said in problems(directory)[0]
    path.write_bytes(data[:-5])
    with pytest.raises(Damaged, match="cannot be read"):
        list(backup.entries(directory, {"files": [row]}))
