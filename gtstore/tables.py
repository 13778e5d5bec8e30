"""What gtclient shows of a cluster: lines and a table, for a terminal or as plain text.

On a terminal, with ``rich`` (the extra ``cli``), tables are drawn, states have colours (but for
NO_COLOR, which rich respects), and columns that matter less are left out where there is no room.
Everywhere else it is plain text, as programs read it.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final, NamedTuple

from .errors import printable
from .results import ClusterStatus, Location
from .text_table import aligned

STYLES: Final = {"alive": "green", "suspect": "yellow", "dead": "red", "left": "dim"}
_GAP: Final = 2  # between columns


class View(NamedTuple):
    """Lines, and a table below them.

    Args:
        right: titles of columns that go to the right, though they are text.
        optional: titles of columns that may be left out, the first ones first.
    """

    lines: Sequence[str]
    titles: Sequence[str]
    rows: Sequence[Sequence[object]]
    right: Collection[str] = ()
    optional: Sequence[str] = ()


def of_status(status: ClusterStatus) -> View:
    """``gtclient status``."""
    lines = [
        f"epoch {status['epoch']}, {status['replicas']} replicas, hash {status['hash']}, "
        f"under-replicated partitions: {len(status['under_replicated'])}"
    ]
    if status["begun_anew"]:
        lines.append(
            f"{len(status['begun_anew'])} partitions have lost all their copies, and began anew, "
            "empty"
        )
    for trouble in status["troubles"]:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(trouble["since"]))
        lines.append(printable(f"{trouble['what']} since {since}: {trouble['reason']}"))
    lines += [
        f"node {node['id']} refuses writes: its {node['full']} is full"
        for node in status["nodes"]
        if node["full"]
    ]
    rows = [
        (
            node["id"], node["state"], node["address"], node["pid"], node["incarnation"],
            node["entries"], node["bytes"], node["partitions"], node["primaries"],
            node["syncing"],
        )
        for node in status["nodes"]
    ]  # fmt: skip
    titles = (
        "node", "state", "address", "pid", "incarnation", "entries", "bytes", "partitions",
        "primaries", "syncing",
    )  # fmt: skip
    optional = (
        "incarnation", "pid", "bytes", "primaries", "partitions", "syncing", "entries",
    )  # fmt: skip
    return View(lines, titles, rows, (), optional)


def of_location(key: str, location: Location) -> View:
    """``gtclient where``, on a terminal."""
    rows = [
        (
            node,
            "backup" if at else "primary",
            "syncing" if node in location.syncing else "in sync",
        )
        for at, node in enumerate(location.owners)
    ]
    return View([f"key {key}: partition {location.partition}"], ("node", "role", "copy"), rows)


def plain(view: View) -> Iterator[str]:
    """The lines of a view as text."""
    yield from view.lines
    yield from aligned(view.titles, view.rows, view.right)


def fitted(view: View, width: int) -> View:
    """The view without as many of its optional columns as there is no room for."""
    for title in view.optional:
        widths = [len(name) for name in view.titles]
        for row in view.rows:
            widths = [max(w, len(str(cell))) for w, cell in zip(widths, row, strict=True)]
        if sum(widths) + _GAP * len(widths) <= width:
            break
        at = list(view.titles).index(title)
        view = view._replace(
            titles=[name for i, name in enumerate(view.titles) if i != at],
            rows=[[cell for i, cell in enumerate(row) if i != at] for row in view.rows],
        )
    return view


def terminal() -> Any:
    """A rich Console, if standard output is a terminal that can have tables, or None."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what its encoding does not have
    console = Console(highlight=False, markup=False, emoji=False)
    return None if console.is_dumb_terminal else console


def drawn(view: View, console: Any) -> Any:
    """A view for that Console."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    view = fitted(view, console.width)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for at, title in enumerate(view.titles):
        is_right = title in view.right or all(isinstance(row[at], int) for row in view.rows)
        table.add_column(title, justify="right" if is_right else "left", no_wrap=True)
    for row in view.rows:
        cells = [printable(str(cell)) for cell in row]
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in cells))
    return Group(*(Text(printable(line)) for line in view.lines), Text(""), table)
