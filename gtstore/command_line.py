"""What the three programs have in common: arguments, logs, and errors in one line."""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from .errors import InvalidInput
from .lifeline import pipe_reader
from .server import TURN_S

DONE, USAGE = 0, 2

TOKEN_VARIABLE = "GTSTORE_CONTROL_TOKEN"
"""Where a manager puts the token of the node that it starts: 32 hexadecimal digits."""

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")


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
    from .wire.messages import CONNECTIONS_MAX, FRAME_TIMEOUT_MS

    parser.add_argument(
        "--max-connections",
        type=integer(1, 1_000_000),
        default=CONNECTIONS_MAX,
        metavar="N",
        help="connections of each node (default: %(default)s)",
    )
    parser.add_argument(
        "--max-memory-mb",
        type=integer(1, 1 << 30),
        metavar="N",
        help="memory of each node's entries, in MiB; beyond it, writes that grow it are refused "
        "(default: unlimited)",
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
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="info")
    parser.add_argument("--log-format", choices=LOG_FORMATS, default="text")


def configure_logs(level: str, log_format: str, who: str) -> None:
    """Send the program's logs to standard error, one line a record; ``who`` names the process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(who) if log_format == "json" else _TextFormatter(who))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def raise_file_limit() -> None:
    """Allow this process as many open files as it may have: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def share_processor() -> None:
    """Let this process's threads take turns more often than Python does by itself (every 5 ms).

    A thread with much to do keeps the others waiting for its whole turn: with many connections that
    send without a pause, a PING on another one may take seconds. Where there is less to do the
    threads wait for the network before their turns end, and nothing changes.
    """
    sys.setswitchinterval(TURN_S)


class StopSignals:
    """SIGTERM, SIGINT and SIGHUP (the terminal was closed): the wish that the program stops.

    They count from the making on. Only the main thread may make one. A signal writes to a pipe, and
    whoever waits reads from it: a wait on a lock could miss a signal that comes just before it, or
    that another thread is given.
    """

    def __init__(self) -> None:
        self._was_asked = False
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # nohup ignores SIGHUP, and a shell's background job SIGINT: they know why.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def was_asked(self) -> bool:
        """Whether one has come."""
        return self._was_asked

    def wait(self, poll: Callable[[], None] | None = None) -> None:
        """Wait until one comes; meanwhile call ``poll`` once a second."""
        while not self._was_asked:
            select.select([self._reader], [], [], 1.0 if poll else None)
            if poll and not self._was_asked:
                poll()

    def _note(self, *_: object) -> None:
        self._was_asked = True


class _TextFormatter(logging.Formatter):
    def __init__(self, who: str) -> None:
        super().__init__(f"%(asctime)s.%(msecs)03d %(levelname)-7s {who}: %(message)s")
        self.default_time_format = "%Y-%m-%dT%H:%M:%S"
        self.default_msec_format = ""

    def formatTime(  # noqa: N802  # the base class's name
        self, record: logging.LogRecord, datefmt: str | None = None
    ) -> str:
        return time.strftime(datefmt or self.default_time_format, time.localtime(record.created))


class _JsonFormatter(logging.Formatter):
    def __init__(self, who: str) -> None:
        super().__init__()
        self._who = who

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "process": self._who,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
