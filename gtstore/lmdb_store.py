"""Names and values in LMDB: one file of a node's data directory, read through the page cache.

LMDB makes a commit atomic and synced, keeps nothing private in memory, and opens in less than a
millisecond however much there is. log_store.py puts a log in front of it.
"""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

try:
    import lmdb
except ImportError:  # the extra ``durable`` is not installed
    lmdb = None  # type: ignore[assignment]

from .errors import ClusterError, StoreError, StoreFailed, StoreFull
from .wire.messages import MIB

INSTALL_HINT: Final = (
    "entries on disk need py-lmdb: pip install 'gtstore[durable]' (or keep them in memory: "
    "--engine memory)"
)

_FORMAT: Final = 2
"""1 had no log in front of LMDB (log_store.py)."""
_ABOUT: Final = b"A"
"""The name under which the store says what it is; disk.py has the others."""
_MAP_SIZES: Final = tuple(1 << bits for bits in (40, 38, 36, 34, 32, 30))
"""What LMDB maps of its file, which grows only as it is filled: a tebibyte, or what the system
gives."""
_ROOM_MIN: Final = 4 * MIB
"""So much stays free: LMDB writes every page that it changes anew, so that at the very end of a
disk not even a delete could be stored."""
_COPIES_MAX: Final = 4
"""How many times the bytes of a batch its pages may take."""


def is_installed() -> bool:
    return lmdb is not None


class LmdbStore:
    """A node's entries in one LMDB environment.

    Args:
        path: its directory; it is made if it is not there.

    Raises ClusterError if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path / "data.mdb"
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._environment = _open(path)
            self._view = self._environment.begin()
            self._get = self._view.get
        except (OSError, lmdb.Error) as error:
            raise ClusterError(f"cannot open the data in {path}: {error}") from error

    def claim(self, about: dict[str, Any]) -> None:
        """Say in it whose it is, in JSON, or find that said already.

        Raises ClusterError if it says something else, is of a newer format, or cannot be written.
        """
        form = {"format": _FORMAT, **about}
        found = self.get(_ABOUT)
        if found is None:
            self._say(form)
            return
        theirs = json.loads(found)
        if theirs["format"] > _FORMAT:
            raise ClusterError(
                f"the data in {self._path} has format {theirs['format']}, and this version of GT "
                f"Store knows none above {_FORMAT}: a newer version has written it"
            )
        if {**theirs, "format": _FORMAT} != form:
            raise ClusterError(f"the data in {self._path} is not this node's, but of {theirs}")
        if theirs != form:
            self._say(form)

    def _say(self, about: dict[str, Any]) -> None:
        try:
            self.commit([(_ABOUT, json.dumps(about).encode())])
        except StoreError as error:
            raise ClusterError(f"cannot write to {self._path}: {error}") from error
        self.refresh()

    def get(self, name: bytes) -> bytes | None:
        """The value, or None."""
        value: bytes | None = self._get(name)
        return value

    def names(self, prefix: bytes, first: bytes = b"") -> Iterator[bytes]:
        """The names that begin so, from ``first`` on, in byte order. Not to be used after a
        refresh."""
        with self._view.cursor() as cursor:
            is_there = cursor.set_range(max(prefix, first))
            while is_there:
                name: bytes = cursor.key()
                if not name.startswith(prefix):
                    return
                yield name
                is_there = cursor.next()

    def commit(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """All of these names and values or none of them, on disk when it returns. In byte order
        they cost the least.

        Raises StoreFull if there is no room for them, StoreFailed for any other reason.
        """
        size = 0
        try:
            with (
                self._environment.begin(write=True) as transaction,
                transaction.cursor() as cursor,  # which finds its next place from the last one
            ):
                put = cursor.put
                for name, value in changes:
                    size += len(name) + len(value or b"")
                    if value is None:
                        transaction.delete(name)
                    else:
                        put(name, value)
        except lmdb.MapFullError as error:
            raise StoreFull(f"{self._file} has its greatest size: {error}") from error
        except (OSError, lmdb.Error) as error:
            # A write that the system cut short is called an input/output error, too.
            if self._room() < _ROOM_MIN + _COPIES_MAX * size:
                raise StoreFull(f"{self._file}: {error}") from error
            raise StoreFailed(f"{self._file}: {error}") from error

    def has_room(self) -> bool:
        """Whether there is some room left."""
        return self._room() >= _ROOM_MIN

    def _room(self) -> int:
        """How many bytes the file may still grow by."""
        disk = os.statvfs(self._path)
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        room = disk.f_bavail * disk.f_frsize
        if limit == resource.RLIM_INFINITY:
            return room
        return min(room, limit - self._file.stat().st_size)

    def refresh(self) -> None:
        """See what was committed since."""
        self._view.abort()
        self._view = self._environment.begin()
        self._get = self._view.get

    def close(self) -> None:
        self._view.abort()
        self._environment.close()


def _open(path: Path) -> Any:
    for size in _MAP_SIZES:
        try:
            return lmdb.open(str(path), map_size=size, mode=0o600, readahead=False, meminit=False)
        except (lmdb.Error, MemoryError) as error:
            is_too_much = os.strerror(errno.ENOMEM) in str(error) or isinstance(error, MemoryError)
            if not is_too_much or size == _MAP_SIZES[-1]:
                raise
    raise AssertionError
