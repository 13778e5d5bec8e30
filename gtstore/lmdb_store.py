"""Names and values in LMDB: one file of a node's data directory, read through the page cache.

LMDB makes a commit atomic and synced, keeps nothing private in memory, and opens in less than a
millisecond however much there is. log_store.py puts a log in front of it.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

try:
    import lmdb
except ImportError:  # the extra ``durable`` is not installed
    lmdb = None  # type: ignore[assignment]

from .errors import StoreCorrupt, StoreError, StoreFailed, StoreFull
from .threads import OVER, supervised
from .wire.messages import MIB

INSTALL_HINT: Final = (
    "entries on disk need py-lmdb: pip install 'gtstore[durable]' (or keep them in memory: "
    "--engine memory)"
)

_MAP_SIZES: Final = tuple(1 << bits for bits in (40, 38, 36, 34, 32, 30))
"""What LMDB maps of its file, which grows only as it is filled: a tebibyte, or what the system
gives."""
_LOOKED_AT_ONCE: Final = 1000
_ROOM_MIN: Final = 4 * MIB
"""So much stays free: LMDB writes every page that it changes anew, so that at the very end of a
disk not even a delete could be stored."""
_COPIES_MAX: Final = 4
"""How many times the bytes of a batch its pages may take."""
_DAMAGES: Final = tuple(
    getattr(lmdb, name)
    for name in (
        "CorruptedError",
        "InvalidError",
        "MapResizedError",  # pages that are not in the file
        "PageFullError",
        "PageNotFoundError",
        "ProblemError",
    )
    if hasattr(lmdb, name)
)
"""What LMDB says when it finds something that it has not written. The other errors are of the
system, or of this program."""


def is_installed() -> bool:
    return lmdb is not None


def is_short(path: Path) -> bool:
    """Whether a store's file has fewer bytes than it has pages: to read the others ends a
    process."""
    try:
        with _open(path, is_read_only=True) as environment:
            pages = environment.info()["last_pgno"] + 1
            size: int = pages * environment.stat()["psize"]
            return (path / "data.mdb").stat().st_size < size
    except (OSError, lmdb.Error):
        return False  # whoever opens it says why that cannot be done


class LmdbStore:
    """Names and values in one LMDB environment, as they are given.

    Args:
        path: its directory; it is made if it is not there.
        is_read_only: only to look at what is there: nothing of it is changed, and no lock taken.

    Whatever LMDB or the system says comes out as a StoreError: StoreFull if there is no room,
    StoreCorrupt if the file is not what was written, StoreFailed for any other reason. Before one
    of these two is raised, ``on_failure`` is called with it, so that nobody can pass over it.
    """

    def __init__(self, path: Path, is_read_only: bool = False) -> None:
        self._path = path
        self._file = path / "data.mdb"
        self.on_failure: Callable[[StoreFailed], object] = _nothing
        with self._translated():
            if not is_read_only:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._environment = _open(path, is_read_only)
            self._view = self._environment.begin()
            self._get = self._view.get

    def get(self, name: bytes) -> bytes | None:
        """The value, or None."""
        try:  # costs nothing, unlike a context manager, and a client waits
            value: bytes | None = self._get(name)
        except lmdb.Error as error:
            raise self._error(error) from error
        return value

    def names(self, prefix: bytes, first: bytes = b"") -> Iterator[bytes]:
        """The names that begin so, from ``first`` on, in byte order. Not to be used after a
        refresh."""
        with self._translated(), self._view.cursor() as cursor:
            is_there = cursor.set_range(max(prefix, first))
            while is_there:
                name: bytes = cursor.key()
                if not name.startswith(prefix):
                    return
                yield name
                is_there = cursor.next()

    def look_through(self) -> Iterator[None]:
        """Read everything, a portion at each step. Raises StoreCorrupt if that cannot be done, or
        what is there is not what LMDB itself would have written."""
        try:
            yield from self._walk()
            # Also the list of the free pages, which nothing else reads before it is needed.
            yield from self._copy()
        except lmdb.MemoryError as error:
            raise self._error(error) from error
        except (OSError, lmdb.Error) as error:  # bad addresses, for example
            raise self._failed(StoreCorrupt(f"{self._file}: {error}")) from error

    def _walk(self) -> Iterator[None]:
        count = self._view.stat()["entries"]
        before = b""
        with self._view.cursor() as cursor:
            for number, (name, _) in enumerate(cursor.iternext(), 1):
                if name <= before:
                    raise lmdb.CorruptedError("names that are not in their order")
                before = name
                count -= 1
                if number % _LOOKED_AT_ONCE == 0:
                    yield
        if count:
            raise lmdb.CorruptedError(f"{abs(count)} names more or less than there should be")

    def _copy(self) -> Iterator[None]:
        """Have LMDB write a compact copy of everything, and throw it away."""
        reader, writer = os.pipe()
        failures: list[Exception] = []

        def copy() -> None:
            try:
                self._environment.copyfd(writer, compact=True)
            except Exception as error:
                failures.append(error)
            finally:
                os.close(writer)

        copier = supervised("copier of all pages", copy, OVER)
        with open(reader, "rb", buffering=0) as file:
            while file.read(MIB):
                yield
        copier.join()
        for failure in failures:
            raise failure

    def commit(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """All of these names and values or none of them, on disk when it returns. In byte order
        they cost the least."""
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
        except (OSError, lmdb.Error) as error:
            # A write that the system cut short is called an input/output error, too.
            if not isinstance(error, _DAMAGES) and self._room() < _ROOM_MIN + _COPIES_MAX * size:
                raise StoreFull(f"{self._file}: {error}") from error
            raise self._error(error) from error

    def has_room(self) -> bool:
        """Whether there is some room left."""
        return self._room() >= _ROOM_MIN

    def _room(self) -> int:
        """How many bytes the file may still grow by."""
        with self._translated():
            disk = os.statvfs(self._path)
            limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
            room = disk.f_bavail * disk.f_frsize
            if limit == resource.RLIM_INFINITY:
                return room
            return min(room, limit - self._file.stat().st_size)

    def refresh(self) -> None:
        """See what was committed since."""
        with self._translated():
            self._view.abort()
            self._view = self._environment.begin()
            self._get = self._view.get

    def close(self) -> None:
        with self._translated():
            self._view.abort()
            self._environment.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (OSError, lmdb.Error) as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> StoreError:
        """What that of LMDB or of the system means here."""
        if isinstance(error, lmdb.MapFullError):
            return StoreFull(f"{self._file} has its greatest size: {error}")
        kind = StoreCorrupt if isinstance(error, _DAMAGES) else StoreFailed
        return self._failed(kind(f"{self._file}: {error}"))

    def _failed(self, failure: StoreFailed) -> StoreFailed:
        self.on_failure(failure)
        return failure


def _nothing(_: StoreFailed) -> None:
    pass


def _open(path: Path, is_read_only: bool) -> Any:
    for size in _MAP_SIZES:
        try:
            return lmdb.open(
                str(path),
                map_size=size,
                mode=0o600,
                readahead=False,
                meminit=False,
                readonly=is_read_only,
                lock=not is_read_only,
            )
        except MemoryError as error:
            failure: Exception = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            failure.__cause__ = error
        except lmdb.Error as error:
            if os.strerror(errno.ENOMEM) not in str(error):
                raise
            failure = error
    raise failure
