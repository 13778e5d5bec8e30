"""What ends a cluster with the program that started it, however that program ends.

The program holds the writing end of a pipe; each process of the cluster holds the reading end, and
has the kernel send it a signal when the writing end is closed, as it is when the program was
killed, or when a byte is written. A signal from the kernel reaches also a process that is busy or
stopped (SIGSTOP), which a thread that waits for the end of the pipe would not notice. In the other
direction, a pipe that nobody can read any more says that all of these processes have ended.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import signal
import stat
import weakref

from .living import Living

# --- the program ---------------------------------------------------------------------------------


class Lifeline:
    """The program's side.

    It is cut when it is not used any more, and when the program ends. Forks of the program have no
    part in it: one that lives longer would keep the cluster alive.
    """

    def __init__(self) -> None:
        """Raises OSError for too many open files."""
        # Programs that are started do not inherit these, unless they are meant to.
        self.reader, self._writer = os.pipe()
        self._open = [self._writer, self.reader]
        weakref.finalize(self, _close, self._open)
        _lifelines.add(self)

    def cut(self, timeout_s: float) -> bool:
        """End whoever holds the reader, and wait until nobody does any more, which is a moment
        before the ends of the processes; return whether it came to that in time. Nothing happens
        the second time."""
        if not self._open:
            return True
        try:
            os.write(self._writer, b".")
            os.close(self._open.pop())  # our own reader
            poll = select.poll()
            poll.register(self._writer, 0)  # POLLERR is always told: no reader is left
            return bool(poll.poll(timeout_s * 1000))
        finally:
            _close(self._open)


def _close(numbers: list[int]) -> None:
    while numbers:
        os.close(numbers.pop())


_lifelines: Living[Lifeline] = Living()


def _forget_all() -> None:
    for lifeline in _lifelines:
        _close(lifeline._open)


os.register_at_fork(after_in_child=_forget_all)


# --- the cluster's processes ---------------------------------------------------------------------


def pipe_reader(text: str) -> int:
    """An argument type: the number of an open file that is the reading end of a pipe."""
    try:
        number = int(text)
        is_pipe = stat.S_ISFIFO(os.fstat(number).st_mode)
        is_reader = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    except (ValueError, OverflowError, OSError):
        is_pipe = is_reader = False
    if not (is_pipe and is_reader):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the number of an open file that is the reading end of a pipe"
        )
    return number


def hold_on(reader: int, *numbers: signal.Signals) -> None:
    """Have these signals sent to this process when the lifeline is cut, or at once if it is.

    Raises OSError if that cannot be had.
    """
    for number in numbers:
        # Opened anew: whom to signal, and how, is a property of what is open, not of its number,
        # and what was inherited is shared with the other processes. It is never closed.
        own = os.open(f"/proc/self/fd/{reader}", os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(own, fcntl.F_SETSIG, number)
        fcntl.fcntl(own, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    poll = select.poll()
    poll.register(reader, select.POLLIN)  # POLLHUP is always told
    if poll.poll(0):
        for number in numbers:
            os.kill(os.getpid(), number)
