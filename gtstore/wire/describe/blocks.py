"""Rewrites the generated blocks of a file.

A block stands between two comments, in Markdown::

    <!-- generated: messages -->
    ...
    <!-- end -->
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Marks(NamedTuple):
    """How a block begins, before and after its name, and how it ends."""

    begin: str
    begin_end: str
    end: str


MARKDOWN = Marks("<!-- generated: ", " -->", "<!-- end -->")
LUA = Marks("-- generated: ", "", "-- end")


def rewrite(
    text: str, blocks: Mapping[str, Callable[[], list[str]]], marks: Marks = MARKDOWN
) -> tuple[str, list[str]]:
    """Return the text with every block as it is made now, and what was wrong with it before: one
    line each block that differs, is not known, has no end, or is missing.
    """
    wrong: list[str] = []
    out: list[str] = []
    missing = set(blocks)
    lines = iter(text.split("\n"))
    for line in lines:
        out.append(line)
        if not line.startswith(marks.begin):
            continue
        name = line.removeprefix(marks.begin).removesuffix(marks.begin_end)
        old = []
        for old_line in lines:
            old.append(old_line)
            if old_line == marks.end:
                break
        make = blocks.get(name)
        if make is None or not old or old[-1] != marks.end:
            wrong.append(f"block {name!r} has no end" if make else f"block {name!r} is not known")
            out += old
            continue
        new = ["", *make(), "", marks.end]
        missing.discard(name)
        if new != old:
            wrong.append(f"block {name!r} differs from the table: {_first_difference(old, new)}")
        out += new
    wrong += [f"block {name!r} is missing" for name in blocks if name in missing]
    return "\n".join(out), wrong


def _first_difference(old: list[str], new: list[str]) -> str:
    # There is one: both end with the same line, and have it nowhere else.
    pairs = enumerate(zip(old, new, strict=False), 1)
    return next(f"line {i} is {was!r}, not {is_!r}" for i, (was, is_) in pairs if was != is_)
