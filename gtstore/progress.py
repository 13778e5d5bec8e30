"""How far a long command has got: a bar on a terminal, with the rate.

With ``rich`` (the extra ``cli``) it is a bar; without it, a line every now and then; and nothing if
standard error is no terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from .results import ScannedEntry

_PAUSE_S: Final = 2.0
_BAR_PAUSE_S: Final = 0.1


class _Count:
    """Counts entries and their bytes, or whatever else, and shows them at times."""

    def __init__(self, pause_s: float, show: Callable[[_Count], None], unit: str = "") -> None:
        self.keys = 0
        self.size = 0
        self._unit = unit
        self._show = show
        self._pause_s = pause_s
        self._began_at = time.monotonic()
        self._next_at = self._began_at + pause_s

    def note(self, entry: ScannedEntry) -> None:
        """One more is done."""
        self.keys += 1
        self.size += len(entry.key) + len(entry.value)
        # A look at the clock costs as much as the rest of this.
        if not self.keys & 63 and time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + self._pause_s
            self._show(self)

    def set(self, done: int) -> None:
        """So many are done."""
        self.keys = done
        if time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + self._pause_s
            self._show(self)

    def words(self) -> str:
        seconds = max(time.monotonic() - self._began_at, 1e-3)
        if self._unit:
            return f"{self.keys:,} {self._unit}, {self.keys / seconds:,.0f} a second"
        return (
            f"{self.keys:,} values, {shown_size(self.size)}, "
            f"{self.keys / seconds:,.0f} a second, {shown_size(self.size / seconds)}/s"
        )


def shown_size(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def _note_nothing(done: object) -> None:
    pass


@contextmanager
def shown_progress(
    what: str, total: int | None, is_wanted: bool = True
) -> Iterator[Callable[[ScannedEntry], None]]:
    """Show meanwhile how many entries are done; what is yielded is to be called for each.

    Args:
        what: the work, in one or two words.
        total: about how many there will be, or None.
        is_wanted: False shows nothing, wherever standard error goes.
    """
    with _shown(what, total, "", is_wanted) as count:
        yield count.note if count else _note_nothing


@contextmanager
def shown_count(what: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """The same for what is counted elsewhere; what is yielded is to be called with how many are
    done in all. ``unit`` says what they are."""
    with _shown(what, total, unit, True) as count:
        yield count.set if count else _note_nothing


@contextmanager
def _shown(what: str, total: int | None, unit: str, is_wanted: bool) -> Iterator[_Count | None]:
    if not is_wanted or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
    except ImportError:
        yield _Count(
            _PAUSE_S, lambda count: print(f"{what}: {count.words()}", file=sys.stderr), unit
        )
        return
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}")
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total or None, words="")

        def show(count: _Count) -> None:
            done = min(count.keys, total) if total else None  # the total may be a guess
            bar.update(task, completed=done, words=count.words())

        count = _Count(_BAR_PAUSE_S, show, unit)
        yield count
        show(count)
