"""What the three programs have in common: arguments, signals, and errors in one line."""

from __future__ import annotations

import argparse
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from . import logs
from .errors import InvalidInput
from .lifeline import pipe_reader
from .server import TURN_S

DONE, USAGE = 0, 2

TOKEN_VARIABLE = "GTSTORE_CONTROL_TOKEN"
"""Where a manager puts the token of the node that it starts: 32 hexadecimal digits."""


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def integer(low: int, high: int) -> Callable[[str], int]:
    """An argument type: a whole number between two bounds."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")
        return number

    return parse


def percent(text: str) -> float:
    """An argument type: a number from 0 to 100."""
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 100")
    return number


def argument(parse: Callable[[str], object]) -> Callable[[str], object]:
    """An argument type from a function that raises InvalidInput."""

    def parse_argument(text: str) -> object:
        try:
            return parse(text)
        except InvalidInput as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_argument


def add_daemon_options(parser: argparse.ArgumentParser) -> None:
    """The options that managers and nodes share; a manager passes them on."""
    from .wire.messages import CONNECTIONS_MAX, FRAME_TIMEOUT_MS, SCRUB_PERCENT

    parser.add_argument(
        "--max-connections",
        type=integer(1, 1_000_000),
        default=CONNECTIONS_MAX,
        metavar="N",
        help="connections of each node, and of the manager (default: %(default)s)",
    )
    parser.add_argument(
        "--max-memory-mb",
        type=integer(1, 1 << 30),
        metavar="N",
        help="memory of each node's entries, in MiB; beyond it, writes that grow it are refused "
        "(default: unlimited)",
    )
    parser.add_argument(
        "--scrub-percent",
        type=percent,
        default=SCRUB_PERCENT,
        metavar="N",
        help="share of a processor's time in which each node with a disk reads what it has, and "
        "compares it with what others have; 0: never (default: %(default)s)",
    )
    parser.add_argument(
        "--frame-timeout-ms",
        type=integer(10, 3_600_000),
        default=FRAME_TIMEOUT_MS,
        metavar="N",
        help="how long a peer may take to send a whole frame, or to take anything of its answers "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--lifeline",
        type=pipe_reader,
        metavar="FD",
        help="for programs: end with whoever holds the other end of this pipe",
    )
    parser.add_argument(
        "--log-file",
        metavar="PATH",
        type=Path,
        help="append the log to this file, opened anew at SIGHUP (default: standard error)",
    )
    parser.add_argument("--log-level", choices=logs.LEVELS, default="info")
    parser.add_argument("--log-format", choices=logs.FORMATS, default="text")


def raise_file_limit() -> None:
    """Allow this process as many open files as it may have: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def have_standard_files() -> None:
    """Have something open as standard input, output and error, if nothing is: sockets and files of
    ours would get these numbers, and whatever is printed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def share_processor() -> None:
    """Let this process's threads take turns more often than Python does by itself (every 5 ms).

    A thread with much to do keeps the others waiting for its whole turn: with many connections that
    send without a pause, a PING on another one may take seconds. Where there is less to do the
    threads wait for the network before their turns end, and nothing changes.
    """
    sys.setswitchinterval(TURN_S)


class StopSignals:
    """SIGTERM and SIGINT: the wish that the program stops. SIGHUP: that its log file is opened
    anew, or, where a terminal was closed, that it stops.

    They count from the making on. Only the main thread may make one. A signal writes to a pipe, and
    whoever waits reads from it: a wait on a lock could miss a signal that comes just before it, or
    that another thread is given.

    Args:
        has_terminal: whether the program ends with the terminal that it was started on.
    """

    def __init__(self, has_terminal: bool = True) -> None:
        self.has_log_file = False
        """Then a SIGHUP may mean that, also on a terminal, as long as the terminal is there."""
        self._terminals = [n for n in (0, 1, 2) if has_terminal and os.isatty(n)]
        self.cause: str | None = None
        """Why the program is to stop; None: it is not."""
        self._is_hung_up = False  # a SIGHUP is to be answered
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # nohup ignores SIGHUP, and a shell's background job SIGINT: they know why.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def was_asked(self) -> bool:
        """Whether the program is to stop."""
        return self.cause is not None

    def wait(
        self, poll: Callable[[], None] | None = None, hang_up: Callable[[], None] = lambda: None
    ) -> None:
        """Wait until one comes that asks to stop; meanwhile call ``poll`` once a second, which may
        set the cause, too, and ``hang_up`` when a SIGHUP has come that does not ask for that."""
        while True:
            if self._is_hung_up:
                self._is_hung_up = False
                hang_up()
            if self.was_asked():
                return
            select.select([self._reader], [], [], 1.0 if poll else None)
            try:
                os.read(self._reader, 512)
            except BlockingIOError:
                pass
            if poll and not self.was_asked():
                poll()

    def _note(self, number: int, _: object) -> None:
        if number == signal.SIGHUP and not self._is_terminal_closed():
            self._is_hung_up = True
        elif self.cause is None:
            is_hang_up = number == signal.SIGHUP
            self.cause = (
                "SIGHUP: its terminal was closed" if is_hang_up else signal.Signals(number).name
            )

    def _is_terminal_closed(self) -> bool:
        """Standard error is one, so nobody rotates it; or one is no terminal any more."""
        is_gone = any(not os.isatty(number) for number in self._terminals)
        return is_gone or (2 in self._terminals and not self.has_log_file)
