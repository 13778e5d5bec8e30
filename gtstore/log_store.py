"""The Store of disk.py on disk: a log in front of LMDB.

A commit appends one record to a log and syncs that, once, where LMDB would write a page for each
name and sync twice. What was committed is also kept in memory, until there is enough of it to go
into LMDB together, sorted, each name once (``_Flush``): by a thread of its own, while commits go on
in the other one of two log files. When it is there, the first file can be written from its start
again: without new blocks a sync is cheaper. After a crash what LMDB does not have yet is read from
the log (write_ahead_log.py).

Values get their checksums on the way into LMDB, whose pages have none. What the store says of
itself stands under names of one letter:

- ``A``: whose it is, and its format, in JSON
- ``L``: the number of the last record of the log that LMDB has, and the log's salt
- ``W``: why the log did not end whole, when it was opened; until somebody removes it
"""

from __future__ import annotations

import errno
import json
import logging
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeAlias

from . import format_2, write_ahead_log
from .disk import Changes, changed_names, sealed, unsealed
from .errors import (
    ClusterError,
    RecordDamaged,
    StoreCorrupt,
    StoreError,
    StoreFailed,
    StoreFull,
)
from .lmdb_store import LmdbStore
from .threads import END, OVER, Supervised, supervised
from .wire.messages import KIB, MIB

logger = logging.getLogger("gtstore.storage")

NOT_WHOLE: Final = b"W"
"""Whoever has drawn the conclusions of it removes it, in the same commit."""
_ABOUT: Final = b"A"
_FLUSHED: Final = b"L"
_FLUSHED_FIELDS: Final = struct.Struct(f">Q{write_ahead_log.SALT_SIZE}s")
_FORMAT: Final = 3
"""1 had no log in front of LMDB; 2 no end marks in the log, and checksums for entries only."""
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


class _Flush(Supervised):
    """Brings a layer into LMDB. ``error``: why it could not."""

    def __init__(self, below: LmdbStore, layer: _Layer, number: int, salt: bytes) -> None:
        super().__init__("flush", self.run, END)
        self._below = below
        self._salt = salt
        self.layer = layer
        self.number = number
        self.error: StoreError | MemoryError | None = None

    def run(self) -> None:
        flushed = _FLUSHED_FIELDS.pack(self.number, self._salt)
        # One by one: much of this memory has not been used for long, so each look at it counts.
        groups = (self.layer[group] for group in sorted(self.layer))
        layers: Iterator[Changes] = chain(groups, [{_FLUSHED: flushed}])
        changes = chain.from_iterable(map(sealed, layers))
        try:
            self._below.commit(changes)
        except (StoreError, MemoryError) as error:
            self.error = error
        except Exception as error:  # or it would look as if everything were there
            self.error = StoreFailed(f"what was committed cannot be brought into LMDB: {error!r}")


class LogStore:
    """A node's entries.

    ``not_whole``: why something that was acknowledged may be missing, since the log does not end
    where it should; "" if nothing is. It stays so, over restarts, until the name NOT_WHOLE is
    removed.

    Args:
        path: their directory; it is made if it is not there.

    Raises StoreCorrupt if what is there is damaged, ClusterError if it cannot be opened for any
    other reason.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._recent: _Layer = {}
        self._recent_names = 0
        self._recent_size = 0
        self._unseen: list[Changes] = []
        """Committed, and not shown yet."""
        self._at_first: Changes = {}
        """What the next commit is to have with it."""
        self._strange: tuple[int, ...] = ()  # see write_ahead_log.Log
        self._flush: _Flush | None = None
        self._had_room = False
        self._unlooked = 0  # bytes written since it was last looked for room
        self._files: list[int] = []
        self._on_failure: Callable[[StoreFailed], object] = lambda _: None
        try:
            self._below = LmdbStore(path)
        except StoreCorrupt:
            raise
        except StoreError as error:
            raise ClusterError(f"cannot open the data in {path}: {error}") from error
        try:
            for file in (0, 1):
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                self._files.append(os.open(self._log(file), flags, 0o600))
            _sync_directory(path)
            self._recover()
        except BaseException as error:
            self.close()
            if isinstance(error, StoreCorrupt):
                raise
            if isinstance(error, OSError | StoreError | MemoryError):
                why = error if str(error) else "not enough memory"
                raise ClusterError(f"cannot open the data in {path}: {why}") from error
            raise

    def _log(self, file: int) -> Path:
        return self._path / f"log-{file}"

    def _recover(self) -> None:
        """Take in what the log has, and go on behind it."""
        about, flushed = self._below.get(_ABOUT), self._below.get(_FLUSHED)
        self._about, form = _form_of(about, flushed)
        if form > _FORMAT:
            raise ClusterError(
                f"the data in {self._path} has format {form}, and this version of GT Store knows "
                f"none above {_FORMAT}: a newer version has written it"
            )
        if form < _FORMAT:
            self._begin(*self._former_log(flushed))
        elif flushed is None:
            if next(self._below.names(b""), None) or any(map(self._has_records, (0, 1))):
                raise StoreCorrupt(f"{self._path / 'data.mdb'}: what it had is not there any more")
            self._begin(0, {})
        flushed = self._below.get(_FLUSHED)
        assert flushed is not None
        self._number, self._salt = _FLUSHED_FIELDS.unpack(unsealed(_FLUSHED, flushed))
        files = [self._log(file).read_bytes() for file in (0, 1)]
        try:
            log = write_ahead_log.read(files, self._salt, self._number)
        except StoreCorrupt as error:
            raise StoreCorrupt(f"the log in {self._path} is damaged: {error}") from error
        self._number += len(log.records)
        self._file, self._at = log.records[-1][:2] if log.records else (0, 0)
        self._unseen += [record.changes for record in log.records]
        if log.missing:
            self._at_first = {NOT_WHOLE: log.missing.encode()}
            self._strange = log.strange
            self._unseen.append(self._at_first)
        self._see()
        self.not_whole = (self.get(NOT_WHOLE) or b"").decode()
        if self.not_whole:
            logger.warning(
                "the log in %s does not end whole: %s: what was acknowledged last may be missing",
                self._path,
                self.not_whole,
            )
        if len({record.file for record in log.records}) > 1:
            # No file is free: a flush was under way when the process ended.
            self.flush()

    def _has_records(self, file: int) -> bool:
        return self._log(file).stat().st_size > write_ahead_log.END_SIZE

    def _begin(self, number: int, changes: Changes) -> None:
        """With nothing in the log, and these changes in LMDB."""
        salt = os.urandom(write_ahead_log.SALT_SIZE)
        mark = write_ahead_log.end_mark(number, salt)

        def begin_files() -> None:
            for file in self._files:
                os.ftruncate(file, 0)
                _write_synced(file, mark, 0)

        if not number:
            begin_files()  # so there is none that is empty, once there is a number
        self._below.commit(sealed({**changes, _FLUSHED: _FLUSHED_FIELDS.pack(number, salt)}))
        self._below.refresh()
        if number:
            begin_files()

    def _former_log(self, flushed: bytes | None) -> tuple[int, Changes]:
        """Of a directory of a former format: the number of its last record, and the changes that
        make it one of this format."""
        if flushed and len(flushed) != _FLUSHED_FIELDS.size:
            raise RecordDamaged(_FLUSHED)
        number, salt = _FLUSHED_FIELDS.unpack(flushed) if flushed else (0, b"")
        files = [self._log(file).read_bytes() for file in (0, 1)]
        batches, is_whole = format_2.read(files, salt, number)
        changes: dict[bytes, bytes | None] = {
            name: self._below.get(name) for name in self._below.names(b"P")
        }
        for batch in batches:
            changes |= batch
        for name, value in changes.items():
            if name[:1] == b"P" and value is not None:
                changes[name] = value + b"\0"  # is_doubtful: see NOT_WHOLE below
        if self._about is not None:
            self._about = {**self._about, "format": _FORMAT}
            changes[_ABOUT] = json.dumps(self._about).encode()
        if not is_whole:
            changes[NOT_WHOLE] = b"it is of a version that could not tell, and was not stopped"
        return number + len(batches), changes

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing that was acknowledged, as far as the log can tell."""
        return not self.not_whole

    def claim(self, about: dict[str, Any]) -> None:
        """Say in it whose it is, or find that said already.

        Raises ClusterError if it says something else, or cannot be written.
        """
        form = {"format": _FORMAT, **about}
        if self._about is None:
            try:
                self._below.commit(sealed({_ABOUT: json.dumps(form).encode()}))
                self._below.refresh()
            except StoreError as error:
                raise ClusterError(f"cannot write to {self._path}: {error}") from error
            self._about = form
        elif self._about != form:
            raise ClusterError(f"the data in {self._path} is not this node's, but of {self._about}")

    def on_failure(self, act: Callable[[StoreFailed], object]) -> None:
        """Have every failure told to ``act``, in the thread that meets it, before it is raised."""
        self._on_failure = self._below.on_failure = act

    def _failed(self, failure: StoreFailed) -> StoreFailed:
        self._on_failure(failure)
        return failure

    # --- what is there ---------------------------------------------------------------------------

    def get(self, name: bytes) -> bytes | None:
        """The value, or None. Raises StoreDamaged, RecordDamaged."""
        group = self._recent.get(name[:_GROUP_SIZE], _NO_GROUP)
        value: bytes | None = group.get(name, _ABSENT)
        if value is _ABSENT and self._flush:
            value = self._flush.layer.get(name[:_GROUP_SIZE], _NO_GROUP).get(name, _ABSENT)
        if value is not _ABSENT:
            return value
        sealed_value = self._below.get(name)
        if sealed_value is None:
            return None
        try:
            return unsealed(name, sealed_value)
        except RecordDamaged as error:
            raise self._failed(error) from None

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
        if self._at_first:
            changes = {**self._at_first, **changes}
        record = write_ahead_log.packed(self._number + 1, changes, self._salt)
        file = self._files[self._file]
        try:
            _write_synced(file, record, self._at)
        except OSError as error:
            text = f"{self._log(self._file)}: {error}"
            if error.errno not in _FULL:
                raise self._failed(StoreFailed(text)) from error
            # What was written of it is over the mark that says that the log ends here. Where there
            # was none, nothing says so, and no later process may take the log for whole.
            if not self._at_first:
                self._write_end(self._file, self._at)
            raise StoreFull(text) from error
        self._number += 1
        self._at += len(record) - write_ahead_log.END_SIZE
        self._unlooked += len(record)
        self._unseen.append(changes)
        if self._at_first:
            self._at_first = {}
            for strange in set(self._strange) - {self._file}:
                self._write_end(strange, 0)

    def _write_end(self, file: int, at: int) -> None:
        """If that fails it only looks as if something were missing."""
        with suppress(OSError):
            _write_synced(self._files[file], write_ahead_log.end_mark(self._number, self._salt), at)

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
            layer, self._flush = self._flush.layer, None
            try:
                # Takes its time, which nobody has to wait for.
                supervised("clear", partial(_clear, layer), OVER)
            except (RuntimeError, MemoryError):
                _clear(layer)
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
        self._see()
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
        while self._files:
            os.close(self._files.pop())
        self._below.close()


def _form_of(about: bytes | None, flushed: bytes | None) -> tuple[dict[str, Any] | None, int]:
    """What a store says of itself, if it does so yet, and its format. Raises RecordDamaged."""
    if about is None:
        is_former = flushed is not None and len(flushed) == _FLUSHED_FIELDS.size
        return None, 2 if is_former else _FORMAT
    try:
        said = json.loads(unsealed(_ABOUT, about))
    except RecordDamaged:
        try:
            said = json.loads(about)
        except ValueError:
            said = None
        if not isinstance(said, dict) or said.get("format") not in (1, 2):
            raise
    return said, said["format"]


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
