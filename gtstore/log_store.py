"""The Store of disk.py on disk: a log in front of LMDB.

A commit appends one record to a log and syncs that, once, where LMDB would write a page for each
name and sync twice. What was committed is also kept in memory, until there is enough of it to go
into LMDB together, sorted, each name once (``_Flush``): by a thread of its own, while commits go on
in the other one of two log files. When it is there, the first file can be written from its start
again: without new blocks a sync is cheaper. After a crash what LMDB does not have yet is read from
the log (write_ahead_log.py).

Entries get their checksums on the way into LMDB, whose pages have none.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeAlias

from . import write_ahead_log
from .disk import Changes, changed_names, sealed, unsealed
from .errors import ClusterError, StoreError, StoreFailed, StoreFull
from .lmdb_store import LmdbStore
from .wire.messages import KIB, MIB

_FLUSHED: Final = b"L"
"""The name under which LMDB has the number of the last record that it holds, and the salt."""
_FLUSHED_FIELDS: Final = struct.Struct(f">Q{write_ahead_log.SALT_SIZE}s")
_FLUSH_NAMES: Final = 20_000
_FLUSH_SIZE: Final = 8 * MIB
"""So much in memory goes into LMDB: the more, the fewer pages are written for each name."""
_WAITING_MAX: Final = 4
"""Commits wait for a flush that is under way when that many times as much has come meanwhile."""
_LOOK_SIZE: Final = 64 * KIB
"""After so much has been written it is looked again whether there is room."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GROUP_SIZE: Final = 4
"""Names are looked for by prefixes of that length, a partition's, or longer ones."""
_ABSENT: Final[Any] = object()
_NO_GROUP: Final[dict[bytes, bytes | None]] = {}

_Layer: TypeAlias = dict[bytes, dict[bytes, bytes | None]]
"""Changes, grouped by the beginnings of their names."""


class _Flush(threading.Thread):
    """Brings a layer into LMDB. ``error``: why it could not."""

    def __init__(self, below: LmdbStore, layer: _Layer, number: int, salt: bytes) -> None:
        super().__init__(name="flush", daemon=True)
        self._below = below
        self._salt = salt
        self.layer = layer
        self.number = number
        self.error: StoreError | None = None

    def run(self) -> None:
        flushed = _FLUSHED_FIELDS.pack(self.number, self._salt)
        # One by one: much of this memory has not been used for long, so each look at it counts.
        groups = (self.layer[group] for group in sorted(self.layer))
        changes = chain(chain.from_iterable(map(sealed, groups)), [(_FLUSHED, flushed)])
        try:
            self._below.commit(changes)
        except StoreError as error:
            self.error = error
        except Exception as error:  # or it would look as if everything were there
            self.error = StoreFailed(f"what was committed cannot be brought into LMDB: {error!r}")


class LogStore:
    """A node's entries.

    Args:
        path: their directory; it is made if it is not there.

    Raises ClusterError if it cannot be opened, or its log is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._below = LmdbStore(path)
        self._recent: _Layer = {}
        self._recent_names = 0
        self._recent_size = 0
        self._unseen: list[Changes] = []
        """Committed, and not shown yet."""
        self._flush: _Flush | None = None
        self._had_room = False
        self._unlooked = 0  # bytes written since it was last looked for room
        self._files = []
        try:
            for file in (0, 1):
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                self._files.append(os.open(path / f"log-{file}", flags, 0o600))
            _sync_directory(path)
            self._recover()
        except (OSError, StoreError) as error:
            raise ClusterError(f"cannot open the data in {path}: {error}") from error

    def _recover(self) -> None:
        """Take in what the log has, and go on behind it."""
        flushed = self._below.get(_FLUSHED)
        if flushed is None:
            self._number, self._salt = 0, os.urandom(write_ahead_log.SALT_SIZE)
            self._below.commit([(_FLUSHED, _FLUSHED_FIELDS.pack(0, self._salt))])
            self._below.refresh()
        else:
            self._number, self._salt = _FLUSHED_FIELDS.unpack(flushed)
        files = [(self._path / f"log-{file}").read_bytes() for file in (0, 1)]
        records, after_gap = write_ahead_log.read(files, self._salt, self._number)
        if after_gap:
            raise ClusterError(
                f"the log in {self._path} is damaged: record {self._number + len(records) + 1} is "
                f"missing, and record {after_gap} is there (docs/OPERATIONS.md)"
            )
        self._number += len(records)
        self._file, self._at = records[-1][:2] if records else (0, 0)
        self._unseen += [record.changes for record in records]
        self._see()
        if len({record.file for record in records}) > 1:
            # No file is free: a flush was under way when the process ended.
            self.flush()

    def claim(self, about: dict[str, Any]) -> None:
        """See LmdbStore."""
        self._below.claim(about)

    # --- what is there ---------------------------------------------------------------------------

    def get(self, name: bytes) -> bytes | None:
        """The value, or None. Raises StoreDamaged."""
        group = self._recent.get(name[:_GROUP_SIZE], _NO_GROUP)
        value: bytes | None = group.get(name, _ABSENT)
        if value is _ABSENT and self._flush:
            value = self._flush.layer.get(name[:_GROUP_SIZE], _NO_GROUP).get(name, _ABSENT)
        if value is not _ABSENT:
            return value
        sealed_value = self._below.get(name)
        return None if sealed_value is None else unsealed(name, sealed_value)

    def names(self, prefix: bytes, first: bytes = b"") -> Iterator[bytes]:
        """The names that begin so, from ``first`` on, in byte order. Not to be used after a
        refresh."""
        recent: dict[bytes, bytes | None] = {}
        for layer in reversed(self._layers()):
            for group in _groups(layer, prefix):
                recent.update(layer[group])
        return changed_names(self._below.names(prefix, first), recent, prefix, first)

    def _layers(self) -> tuple[_Layer, ...]:
        """What LMDB does not show yet, the newest first."""
        return (self._recent, self._flush.layer) if self._flush else (self._recent,)

    # --- commits ---------------------------------------------------------------------------------

    def commit(self, changes: Changes) -> None:
        """All of these or none of them, on disk when it returns.

        Raises StoreFull if there is no room for them, StoreFailed for any other reason.
        """
        if self._flush:
            if self._is_much(_WAITING_MAX):
                self._flush.join()
            if self._flush.error:
                self._flush_again(self._flush)
        record = write_ahead_log.packed(self._number + 1, changes, self._salt)
        try:
            _write_synced(self._files[self._file], record, self._at)
        except OSError as error:
            kind = StoreFull if error.errno in _FULL else StoreFailed
            raise kind(f"{self._path / f'log-{self._file}'}: {error}") from error
        self._number += 1
        self._at += len(record)
        self._unlooked += len(record)
        self._unseen.append(changes)

    def _flush_again(self, failed: _Flush) -> None:
        """What has failed before. Raises why it fails again."""
        self._flush = _Flush(self._below, failed.layer, failed.number, self._salt)
        self._flush.start()
        self._flush.join()
        if self._flush.error:
            raise self._flush.error

    def refresh(self) -> None:
        """See what was committed since."""
        self._see()
        if self._flush and not self._flush.is_alive() and not self._flush.error:
            self._below.refresh()
            # Takes its time, which nobody has to wait for.
            threading.Thread(target=_clear, args=(self._flush.layer,), daemon=True).start()
            self._flush = None
        if not self._flush and self._is_much():
            self._start_flush()

    def _see(self) -> None:
        for changes in self._unseen:
            for name, value in changes.items():
                group = self._recent.setdefault(name[:_GROUP_SIZE], {})
                if name not in group:
                    self._recent_names += 1
                self._recent_size += len(name) + len(value or b"")
                group[name] = value
        self._unseen.clear()

    def _is_much(self, times: int = 1) -> bool:
        return (
            self._recent_names >= _FLUSH_NAMES * times or self._recent_size >= _FLUSH_SIZE * times
        )

    def _start_flush(self) -> _Flush:
        """What comes next goes to the other file, which has nothing that LMDB does not have."""
        self._flush = _Flush(self._below, self._recent, self._number, self._salt)
        self._recent, self._recent_names, self._recent_size = {}, 0, 0
        self._file, self._at = 1 - self._file, 0
        self._flush.start()
        return self._flush

    def flush(self) -> None:
        """Bring everything into LMDB. Raises StoreError; then nothing is lost."""
        if self._flush:
            self._end_flush(self._flush)
        if self._recent:
            self._end_flush(self._start_flush())

    def _end_flush(self, flush: _Flush) -> None:
        flush.join()
        if flush.error:
            raise flush.error
        self._below.refresh()
        self._flush = None

    def amend(self, name: bytes, value: bytes) -> bool:
        """Replace a value that LMDB does not have yet: it goes there as it is then."""
        group = self._recent.get(name[:_GROUP_SIZE], {})
        if name not in group:
            return False
        group[name] = value
        return True

    def has_room(self) -> bool:
        """Whether there is some room left; looked at now and then while there was."""
        if not self._had_room or self._unlooked >= _LOOK_SIZE:
            self._had_room = self._below.has_room()
            self._unlooked = 0
        return self._had_room

    def close(self) -> None:
        if self._flush:
            self._flush.join()
        for file in self._files:
            os.close(file)
        self._below.close()


def _write_synced(file: int, data: bytes, at: int) -> None:
    """Returns when everything is on disk. Raises OSError; a write that is cut short is tried again,
    and says then why.

    One call, which writes as with O_DSYNC, costs less than a write and fdatasync after it: a thread
    gives the interpreter lock away at each, and has to wait for it again.
    """
    while data:
        written = os.pwritev(file, (data,), at, os.RWF_DSYNC)
        at += written
        data = data[written:]


def _clear(layer: _Layer) -> None:
    for group in layer.values():
        group.clear()


def _groups(layer: _Layer, prefix: bytes) -> list[bytes]:
    """Those that may have names with that prefix."""
    if len(prefix) >= _GROUP_SIZE:
        return [prefix[:_GROUP_SIZE]] if prefix[:_GROUP_SIZE] in layer else []
    return [group for group in layer if group.startswith(prefix)]


def _sync_directory(path: Path) -> None:
    """So that the files are found again."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
