"""A backup on disk: a directory of data files and a manifest.

``data-000001.jsonl.gz`` and so on are lines of JSON (json_lines.py), compressed with gzip, so that
``zcat`` shows them and ``zcat DIR/*.gz | gtclient import`` is a restore by hand. ``manifest.json``
names them with their sizes and SHA-256, as ``sha256sum`` prints it, and says what they hold; its
own SHA-256 stands behind it, over the manifest as compact JSON with sorted names.

A file gets its name when it is whole and on the disk, the manifest last of all: a directory without
a manifest is no backup, and one with it is a whole one. What a backup promises is what a scan
promises (scan_operation.py): each value as of some moment while it was made.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from .errors import InvalidInput, OperationFailed
from .json_lines import LINE_SIZE_MAX, entry_of, line_of
from .results import ScannedEntry

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
_FILE_SIZE: Final = 64 * 1024 * 1024
"""Bytes of lines in one data file, before they are compressed; damage is told by file."""
_COMPRESSION: Final = 1
"""Of gzip: more takes three times as long, for a tenth less."""
_NAME: Final = re.compile(r"data-[0-9]{6,}\.jsonl\.gz")
_CHUNK_SIZE: Final = 1024 * 1024
_MANIFEST_FIELDS: Final = {
    "format": int, "cluster": str, "began_at": float, "ended_at": float, "keys": int, "bytes": int,
    "files": list,
}  # fmt: skip
_FILE_FIELDS: Final = {"name": str, "size": int, "sha256": str, "keys": int}

Note = Callable[[ScannedEntry], None]
"""Told of each entry, for a progress bar."""


class Damaged(InvalidInput):
    """A directory is no backup, or not the one that was made. One line for each ``problem``."""

    def __init__(self, problems: list[str]) -> None:
        self._say("; ".join(problems), problems)
        self.problems = problems


class _Summed:
    """A file that is written, with its size and SHA-256."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._sum.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def sha256(self) -> str:
        return self._sum.hexdigest()


class _Part(NamedTuple):
    """A data file that is whole: its row in the manifest, and the bytes of its keys and values."""

    row: dict[str, Any]
    size: int
    is_last: bool


def write(
    directory: Path, entries: Iterable[ScannedEntry], cluster: str, note: Note
) -> dict[str, Any]:
    """Make a backup of these entries, and return its manifest.

    The directory must be empty, or not be there. What was written is removed again if that fails.

    Args:
        cluster: the cluster's id, 8 hexadecimal digits.

    Raises OperationFailed if the directory cannot be written, or is not empty, and whatever
    ``entries`` raises.
    """
    began_at = time.time()
    names: list[str] = []
    is_new = not directory.exists()
    try:
        directory.mkdir(exist_ok=True)
        if any(directory.iterdir()):
            raise OperationFailed(f"{directory} is not empty: name a new directory")
        try:
            return _write_all(directory, iter(entries), cluster, began_at, names, note)
        except BaseException:
            _remove(directory, names, is_new)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OperationFailed(f"cannot write to {directory}: {reason}") from error


def _write_all(
    directory: Path,
    entries: Iterator[ScannedEntry],
    cluster: str,
    began_at: float,
    names: list[str],
    note: Note,
) -> dict[str, Any]:
    files: list[dict[str, Any]] = []
    size = 0
    is_last = False
    while not is_last:
        names.append(f"data-{len(files) + 1:06}.jsonl.gz")
        part = _write_part(directory / names[-1], entries, note)
        files.append(part.row)
        size += part.size
        is_last = part.is_last
    manifest = {
        "format": FORMAT,
        "cluster": cluster,
        "began_at": round(began_at, 3),
        "ended_at": round(time.time(), 3),
        "keys": sum(row["keys"] for row in files),
        "bytes": size,
        "files": files,
    }
    names.append(MANIFEST)
    with written_whole(directory / MANIFEST) as file:
        signed = {"manifest": manifest, "sha256": _sum_of(manifest)}
        file.write(json.dumps(signed, indent=1).encode() + b"\n")
    return manifest


def _write_part(path: Path, entries: Iterator[ScannedEntry], note: Note) -> _Part:
    keys = size = written = 0
    is_last = True
    with written_whole(path) as file:
        summed = _Summed(file)
        # No name and no time in it: the same entries make the same bytes.
        with gzip.GzipFile("", "wb", _COMPRESSION, summed, mtime=0) as lines:
            for entry in entries:
                line = line_of(entry)
                written += lines.write(line)
                keys += 1
                size += len(entry.key) + len(entry.value)
                note(entry)
                if written >= _FILE_SIZE:
                    is_last = False
                    break
    row = {"name": path.name, "size": summed.size, "sha256": summed.sha256, "keys": keys}
    return _Part(row, size, is_last)


class written_whole:  # noqa: N801  # it is used as open is
    """A file that gets its name when it is whole and on the disk; if that fails, there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")

    def __enter__(self) -> IO[bytes]:
        self._file = self._part.open("wb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._file:
                self._file.flush()
                os.fsync(self._file.fileno())
            if kind is None:
                self._part.rename(self._path)
                _sync(self._path.parent)
        finally:
            self._part.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    """Have the directory's names on the disk too."""
    number = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _remove(directory: Path, names: list[str], is_new: bool) -> None:
    try:
        for name in names:
            (directory / name).unlink(missing_ok=True)
        if is_new:
            directory.rmdir()
    except OSError:
        pass  # what failed before matters more


# --- reading -------------------------------------------------------------------------------------


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a backup. Raises Damaged if there is none, or it is not what was written."""
    path = directory / MANIFEST
    try:
        signed = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        text = f"{directory} has no {MANIFEST}: it is no backup, or one that was not finished"
        raise Damaged([text]) from error
    except OSError as error:
        raise Damaged([f"{path} cannot be read: {error.strerror}"]) from error
    except (ValueError, RecursionError) as error:
        raise Damaged([f"{path} is damaged: {error}"]) from error
    manifest = signed.get("manifest") if isinstance(signed, dict) else None
    if not isinstance(manifest, dict) or signed.get("sha256") != _sum_of(manifest):
        raise Damaged([f"{path} is damaged: its checksum is another one"])
    if manifest.get("format") != FORMAT:
        text = f"{path} has the format {manifest.get('format')!r}: another version has made it"
        raise Damaged([text])
    if not _has(manifest, _MANIFEST_FIELDS) or not all(map(_is_file_row, manifest["files"])):
        raise Damaged([f"{path} is damaged: it lacks what belongs into it"])
    return manifest


def _has(form: Any, fields: dict[str, type]) -> bool:
    return isinstance(form, dict) and all(
        isinstance(form.get(name), kind) for name, kind in fields.items()
    )


def _is_file_row(row: Any) -> bool:
    return _has(row, _FILE_FIELDS) and bool(_NAME.fullmatch(row["name"]))


def _sum_of(manifest: dict[str, Any]) -> str:
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def verify(directory: Path, note: Note) -> dict[str, Any]:
    """Read all of a backup, and return its manifest. Raises Damaged, with all that is wrong."""
    manifest = read_manifest(directory)
    problems = []
    for row in manifest["files"]:
        try:
            _verify_file(directory, row, note)
        except Damaged as error:
            problems += error.problems
    if problems:
        raise Damaged(problems)
    return manifest


def _verify_file(directory: Path, row: dict[str, Any], note: Note) -> None:
    path = directory / row["name"]
    total = hashlib.sha256()
    size = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_SIZE):
                total.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise Damaged([f"{path} cannot be read: {error.strerror}"]) from error
    if size != row["size"]:
        raise Damaged([f"{path} is damaged: it has {size:,} bytes, not {row['size']:,}"])
    if total.hexdigest() != row["sha256"]:
        raise Damaged([f"{path} is damaged: its checksum is another one"])
    keys = 0
    for entry in _entries(path):
        keys += 1
        note(entry)
    if keys != row["keys"]:
        raise Damaged([f"{path} has {keys:,} keys, not {row['keys']:,}"])


def entries(directory: Path, manifest: dict[str, Any]) -> Iterator[ScannedEntry]:
    """All that a backup holds. Raises Damaged where it cannot be read."""
    for row in manifest["files"]:
        yield from _entries(directory / row["name"])


def _entries(path: Path) -> Iterator[ScannedEntry]:
    number = 0
    try:
        with gzip.open(path) as lines:
            while line := lines.readline(LINE_SIZE_MAX):
                number += 1
                yield entry_of(line)
    except (OSError, EOFError, zlib.error) as error:
        raise Damaged([f"{path} cannot be read: {error}"]) from error
    except InvalidInput as error:
        raise Damaged([f"{path}, line {number}: {error}"]) from error
