"""``--data-dir``: what one cluster keeps on disk, and who may use it.

- ``manager/state.json``: the cluster's identity, shape, map and incarnations (state_file.py)
- ``manager/lock``: held by the manager that uses the directory
- ``node-1``, ``node-2`` ..: the nodes' entries (log_store.py)
- ``node-1.damaged-1`` ..: what was found damaged, and set aside

A directory belongs to one cluster for good: entries placed for another shape would not be found.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from itertools import count
from pathlib import Path

from .connection import describe
from .errors import ClusterError

_PID_SIZE = 20
"""So many bytes of the lock file are a process number; spaces are in front of it."""


class DataDirectory:
    """A cluster's directory, locked for this process.

    Raises ClusterError if it cannot be made, or another manager uses it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state_path = path / "manager" / "state.json"
        try:
            for directory in (path, self.state_path.parent):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(
                self.state_path.parent / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise ClusterError(f"cannot use the directory {path}: {describe(error)}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._lock, _PID_SIZE, 0).decode("ascii", "replace").strip()
            os.close(self._lock)
            raise ClusterError(
                f"the directory {path} is in use by the manager that is process {holder}; stop it "
                f"with: kill {holder}"
            ) from error
        # Over what is there, so that a full disk has room for it. It is only to be read by people.
        with contextlib.suppress(OSError):
            os.pwrite(self._lock, f"{os.getpid()}\n".rjust(_PID_SIZE).encode(), 0)

    def node_path(self, node: int) -> Path:
        """Where a node's entries are."""
        return self.path / f"node-{node}"

    def check_is_new(self) -> None:
        """Raises ClusterError if there are entries, but no state of a manager that knows them."""
        nodes = sorted(path.name for path in self.path.glob("node-*"))
        if nodes:
            raise ClusterError(
                f"{self.path} has the data of nodes ({nodes[0]} ..), but {self.state_path} is "
                "missing, without which nobody knows what it is worth: docs/OPERATIONS.md"
            )

    def release(self) -> None:
        """Let others use it."""
        os.close(self._lock)


def set_aside(path: Path) -> Path:
    """Give a node's damaged directory another name, which is returned: somebody may want to look at
    it, or have its data back. Raises ClusterError."""
    names = (path.with_name(f"{path.name}.damaged-{number}") for number in count(1))
    aside = next(name for name in names if not name.exists())
    try:
        path.rename(aside)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise ClusterError(f"{path} cannot be set aside: {describe(error)}") from error
    return aside
