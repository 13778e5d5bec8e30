"""A look at everything that a node has in LMDB, in a process of its own.

Where a page is damaged LMDB may return an error; or it may end the process, by an assertion of its
own or by a signal, since it believes what it reads. So whoever wants to know whether all is well
lets a child look, and an end of the child is an answer, too.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import time
from pathlib import Path
from typing import Final, NoReturn

from .errors import StoreCorrupt
from .lmdb_store import LmdbStore
from .wire.messages import START_TIMEOUT_S

_WHOLE: Final = 0
_DAMAGED: Final = 1
_UNKNOWN: Final = 2
"""The child's exit codes."""
_SIGN_EACH_S: Final = 0.5
_REASON_SIZE_MAX: Final = 4096


def damage_in(path: Path) -> str:
    """What is wrong with a node's directory, in words; "" if everything in it can be read, or
    nobody can say (there is too little memory, for example)."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _look(path, writer)
    os.close(writer)
    reason, is_hung = _listen(reader)
    os.close(reader)
    if is_hung:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if is_hung:
        return f"whoever read it got no further for {START_TIMEOUT_S} s"
    if code == -signal.SIGKILL:
        return ""  # by somebody else, or for want of memory
    if code < 0:
        return f"whoever read it was ended by {signal.Signals(-code).name}"
    return reason if code == _DAMAGED else ""


def _listen(reader: int) -> tuple[str, bool]:
    """What the child says in the end, and whether it gave no sign of life for too long. What is
    read here shows the manager that this process is at work."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    said = b""
    while poll.poll(START_TIMEOUT_S * 1000):
        some = os.read(reader, _REASON_SIZE_MAX)
        if not some:
            return said.strip(b".").decode(), False
        said = (said + some)[-_REASON_SIZE_MAX:]
    return "", True


def _look(path: Path, writer: int) -> NoReturn:
    """Be the child."""
    code = _UNKNOWN
    sign_at = 0.0
    try:
        # What would be said at a bad end is of no use to anybody.
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        for _ in LmdbStore(path, is_read_only=True).look_through():
            if time.monotonic() > sign_at:
                os.write(writer, b".")
                sign_at = time.monotonic() + _SIGN_EACH_S
        code = _WHOLE
    except StoreCorrupt as error:
        code = _DAMAGED
        os.write(writer, str(error).encode())
    finally:
        # Whatever was raised: nobody is to go on as the parent.
        os._exit(code)
