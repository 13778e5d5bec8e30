"""A small disk: a tmpfs in a mount namespace of its own, which goes with the run's processes."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, NoReturn

DISK_MB: Final = 256
_OUTSIDE_VARIABLE: Final = "GTSTORE_CHAOS_MOUNTS"
"""The mount namespace that the run was started in."""
_BLOCK_SIZE: Final = 4096


def why_impossible() -> str:
    """Why no such disk can be had here; "" if it can."""
    if os.geteuid():
        return "a file system can be mounted by root alone"
    if shutil.which("unshare") is None:
        return "the program unshare (util-linux) is missing"
    tried = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"],
        capture_output=True,
        text=True,
    )
    return tried.stderr.strip()


def is_outside() -> bool:
    """Whether this process may still have the mount namespace of others."""
    return os.environ.get(_OUTSIDE_VARIABLE, _namespace()) == _namespace()


def go_inside(arguments: list[str]) -> NoReturn:
    """Begin again in a mount namespace of its own."""
    environment = {**os.environ, _OUTSIDE_VARIABLE: _namespace()}
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, *arguments]
    os.execvpe(command[0], command, environment)


def _namespace() -> str:
    return os.readlink("/proc/self/ns/mnt")


class SmallDisk:
    """The disk, mounted at ``path``, which is made."""

    def __init__(self, path: Path) -> None:
        assert not is_outside()
        path.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "none", str(path)], check=True
        )
        self.data = path / "data"
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Take all room that is left."""
        with self._ballast.open("wb") as file:
            size = DISK_MB << 20
            at = 0
            while size >= _BLOCK_SIZE:
                try:
                    os.posix_fallocate(file.fileno(), at, size)
                    at += size
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2

    def clear(self) -> None:
        """Let there be room again."""
        self._ballast.unlink(missing_ok=True)
