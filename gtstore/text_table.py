"""Tables for people, as lines of text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from .errors import printable


def aligned(
    titles: Sequence[str], rows: Sequence[Sequence[object]], right: Collection[str] = ()
) -> Iterator[str]:
    """Yield the lines of a table: text to the left, numbers to the right.

    Args:
        right: titles of further columns that go to the right: numbers that are text already.
    """
    is_number = [
        title in right or all(isinstance(row[index], int) for row in rows)
        for index, title in enumerate(titles)
    ]
    cells = [list(titles), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(titles))]
    for line in cells:
        padded = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, is_number, strict=True)
        )
        yield "  ".join(padded).rstrip()
