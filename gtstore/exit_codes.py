"""How a node's process says why it has ended, in numbers of sysexits.h; the manager puts them in
words."""

from __future__ import annotations

from typing import Final

INTERNAL_ERROR: Final = 70
"""A thread has ended it (EX_SOFTWARE)."""
NO_MEMORY: Final = 71
"""The same, and what that thread lacked was memory (EX_OSERR)."""
DISK_FAILED: Final = 74
"""Its disk has failed (EX_IOERR)."""
