"""What is changed in the processes of a run from outside: skew.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .skew import FILE_VARIABLE, Skew

_DIRECTORY = str(Path(__file__).parent)


@contextmanager
def skewed(path: Path) -> Iterator[Skew]:
    """Let each process that is started meanwhile be one that a Skew, in a file at ``path``,
    changes."""
    before = {name: os.environ.get(name) for name in (FILE_VARIABLE, "PYTHONPATH")}
    skew = Skew(path)
    os.environ[FILE_VARIABLE] = str(path)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_DIRECTORY, before["PYTHONPATH"])))
    try:
        yield skew
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
