"""``python -m gtstore.wire.describe``: rewrite what is generated from the message table.

That is the blocks of docs/PROTOCOL.md and of docs/gtstore.lua. With ``--check`` it changes nothing,
and fails if something differs from the table. The only module of this package that touches a file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from . import document, lua
from .blocks import LUA, MARKDOWN, rewrite

DOCS: Final = Path(__file__).parents[3] / "docs"
FILES: Final = (
    ("PROTOCOL.md", document.BLOCKS, MARKDOWN),
    ("gtstore.lua", lua.BLOCKS, LUA),
)


def main(arguments: list[str] | None = None, docs: Path = DOCS) -> int:
    """Run the program; return its exit code: 1 if a block differs, or cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python -m gtstore.wire.describe",
        description="Rewrite the generated blocks of docs/PROTOCOL.md and docs/gtstore.lua.",
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail if one differs")
    options = parser.parse_args(arguments)
    is_wrong = False
    for name, blocks, marks in FILES:
        path = docs / name
        new_text, wrong = rewrite(path.read_text(encoding="utf-8"), blocks, marks)
        if not options.check:
            path.write_text(new_text, encoding="utf-8")
            wrong = rewrite(new_text, blocks, marks)[1]
        for what in wrong:
            print(f"{name}: {what}", file=sys.stderr)
        is_wrong = is_wrong or bool(wrong)
    if is_wrong and options.check:
        print("to rewrite them: python -m gtstore.wire.describe", file=sys.stderr)
    return 1 if is_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
