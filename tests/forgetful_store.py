"""A Store that forgets, at a crash, what was not synced.

After kill -9 the page cache is still there, so that cannot show a missing sync.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from gtstore.disk import Changes
from gtstore.errors import RecordDamaged, StoreDamaged, StoreError


class ForgetfulStore:
    """In memory.

    ``shown`` is what a refresh shows, ``synced`` what a crash leaves. A commit syncs, unless
    ``syncs`` says that it does not. ``error`` is raised by the next commits.
    """

    def __init__(self, synced: dict[bytes, bytes] | None = None, *, syncs: bool = True) -> None:
        self.synced = dict(synced or {})
        self._before_last = dict(self.synced)
        self.written = dict(self.synced)
        self.shown = dict(self.synced)
        self.syncs = syncs
        self.error: StoreError | None = None
        self.damaged: set[bytes] = set()
        """Names whose values have wrong checksums."""
        self.commits: list[Changes] = []
        self.before_commit: Callable[[], object] = lambda: None

    def get(self, name: bytes) -> bytes | None:
        if name in self.damaged:
            if name[0]:
                raise RecordDamaged(name)
            raise StoreDamaged(*struct.unpack_from(">I", name), name[8:])
        return self.shown.get(name)

    def names(self, prefix: bytes, first: bytes = b"") -> Iterator[bytes]:
        names = sorted(name for name in self.shown if name.startswith(prefix))
        return (name for name in names if name >= first)

    def commit(self, changes: Changes) -> None:
        self.before_commit()
        if self.error is not None:
            raise self.error
        self.commits.append(dict(changes))
        for name, value in changes.items():
            if value is None:
                self.written.pop(name, None)
            else:
                self.written[name] = value
        if self.syncs:
            self._before_last, self.synced = self.synced, dict(self.written)

    def refresh(self) -> None:
        self.shown = dict(self.written)

    def amend(self, name: bytes, value: bytes) -> bool:
        if name not in self.shown or self.shown[name] != self.written.get(name):
            return False
        self.shown[name] = self.written[name] = value
        return True

    def has_room(self) -> bool:
        return self.error is None

    def close(self) -> None:
        pass

    def after_crash(self, *, loses_last: bool = False) -> ForgetfulStore:
        """What the next process finds; also if the last commit cannot be read any more."""
        synced = self._before_last if loses_last else self.synced
        store = ForgetfulStore(synced, syncs=self.syncs)
        store.damaged |= self.damaged
        return store
