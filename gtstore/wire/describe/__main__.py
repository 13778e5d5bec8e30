"""``python -m gtstore.wire.describe``: rewrite what is generated from the message table.

With ``--check`` it changes nothing, and fails if something differs from the table. The only module
of this package that touches a file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from .document import rewrite

PROTOCOL: Final = Path(__file__).parents[3] / "docs" / "PROTOCOL.md"


def main(arguments: list[str] | None = None, path: Path = PROTOCOL) -> int:
    """Run the program; return its exit code: 1 if a block differs, or cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python -m gtstore.wire.describe",
        description="Rewrite the generated blocks of docs/PROTOCOL.md.",
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail if one differs")
    options = parser.parse_args(arguments)
    text = path.read_text(encoding="utf-8")
    new_text, wrong = rewrite(text)
    if not options.check:
        path.write_text(new_text, encoding="utf-8")
        wrong = rewrite(new_text)[1]
    for what in wrong:
        print(f"{path.name}: {what}", file=sys.stderr)
    if wrong and options.check:
        print("to rewrite them: python -m gtstore.wire.describe", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
