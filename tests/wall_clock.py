"""A wall clock that tests can set, of their own process and of processes that they start."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

_STEP = "GTSTORE_TESTS_WALL_STEP"
_SHIM = f"""
import os, time
_real_ns = time.time_ns
def _step_s():
    try:
        with open(os.environ[{_STEP!r}]) as file:
            return float(file.read())
    except (KeyError, OSError, ValueError):  # none is set, or it is just being written
        return 0.0
time.time_ns = lambda: _real_ns() + int(_step_s() * 1e9)
time.time = lambda: time.time_ns() / 1e9
"""


class WallClock:
    """What ``time.time`` and ``time.time_ns`` tell: of this process, and of those that it starts
    from now on; each may be set apart from the true time, at any moment."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._step_s = 0.0
        self._file = directory / "step"
        real_ns = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(self._step_s * 1e9))
        monkeypatch.setattr(time, "time", lambda: time.time_ns() / 1e9)
        (directory / "sitecustomize.py").write_text(_SHIM)
        path = os.pathsep.join([str(directory), *filter(None, [os.environ.get("PYTHONPATH")])])
        monkeypatch.setenv("PYTHONPATH", path)
        monkeypatch.setenv(_STEP, str(self._file))

    def step_ours(self, step_s: float) -> None:
        """Set this process's to the true time and so much."""
        self._step_s = step_s

    def step_theirs(self, step_s: float) -> None:
        """Set that of the processes that were started, and will be."""
        whole = self._file.with_suffix(".new")
        whole.write_text(str(step_s))
        whole.replace(self._file)
