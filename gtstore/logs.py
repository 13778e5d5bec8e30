"""The daemons' logs, of which nobody ever waits for the reader.

Standard error may be a pipe that nobody reads, a terminal that is held (Control-S), a file on a
disk that hangs. A thread that waited there with a lock would hold up the cluster. So lines go into
a queue, and one thread of the process writes them, in order. When the queue is full, further lines
are dropped; how many is said where they are missing. A line of the level CRITICAL, after which the
process may end at once, is waited for, a moment.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, TextIO

from .threads import GO_ON, supervised

logger = logging.getLogger("gtstore.logs")

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("text", "json")

QUEUE_SIZE_MAX: Final = 1 << 20
"""Bytes that may wait to be written."""
DRAIN_S: Final = 0.5
"""So long the end of a process waits for them to be taken."""


class LineWriter:
    """A text stream whose whole lines are written to an open file by a thread of its own.

    It is no io.TextIOBase, which would be closed, and flushed, when the interpreter ends: threads
    do not go on then.

    Args:
        number: the file's.
        path: where it is, if it can be opened anew.
        tell_loss: makes a line, without its end, that says how many were dropped.
    """

    def __init__(
        self,
        number: int,
        path: Path | None = None,
        tell_loss: Callable[[int], str] = "{} lines were dropped: nobody took them".format,
    ) -> None:
        self.path = path
        self.error: OSError | None = None
        """Of the last line, if it could not be written."""
        self._number = number
        self._tell_loss = tell_loss
        self._changed = threading.Condition()
        # Guarded by _changed:
        self._begun = ""  # a line without its end
        self._lines: deque[tuple[bytes, int]] = deque()  # with how many lines each stands for
        self._size = 0
        self._dropped = 0
        supervised("log", self._write_forever, GO_ON)

    @classmethod
    def at(cls, path: Path, tell_loss: Callable[[int], str]) -> LineWriter:
        """One that appends to a file. Raises OSError."""
        return cls(_opened(path), path, tell_loss)

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        """Take it; nothing is waited for."""
        with self._changed:
            whole, end, self._begun = (self._begun + text).rpartition("\n")
            if end:
                self._put(whole + end, whole.count("\n") + 1)
        return len(text)

    def _put(self, text: str, count: int) -> None:
        if self._dropped and not self._lines:
            notice = self._tell_loss(self._dropped) + "\n"
            self._append(notice.encode("utf-8", "backslashreplace"), self._dropped)
            self._dropped = 0
        data = text.encode("utf-8", "backslashreplace")
        # What has begun to be dropped is dropped to the end of what waits: then it stands there.
        if self._dropped or self._size + len(data) > QUEUE_SIZE_MAX:
            self._dropped += count
        else:
            self._append(data, count)

    def _append(self, data: bytes, count: int) -> None:
        self._lines.append((data, count))
        self._size += len(data)
        self._changed.notify_all()

    def drain(self, timeout_s: float = DRAIN_S) -> bool:
        """Wait until everything is written; return whether that is so."""
        with self._changed:
            if self._begun:
                self.write("\n")
            return self._changed.wait_for(lambda: not self._lines, timeout_s)

    def flush(self) -> None:
        """Wait a moment until everything is written."""
        self.drain()

    def reopen(self) -> None:
        """Go on in a new file of the same name: the old one was moved away. Raises OSError."""
        assert self.path is not None
        number = _opened(self.path)
        os.dup2(number, self._number, inheritable=False)
        os.close(number)

    def _write_forever(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                data, count = self._lines[0]
            try:
                _write_all(self._number, data)
                error = None
            except OSError as failure:
                error = failure
            with self._changed:
                self.error = error
                self._dropped += count if error else 0
                self._lines.popleft()
                self._size -= len(data)
                self._changed.notify_all()


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def _write_all(number: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(number, data) :]
        except BlockingIOError:  # another program that has this file open wants it so
            poll = select.poll()
            poll.register(number, select.POLLOUT)
            poll.poll()


class _Handler(logging.Handler):
    """Gives records to a LineWriter."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.writer: LineWriter | None = None

    def emit(self, record: logging.LogRecord) -> None:
        assert self.writer is not None
        try:
            self.writer.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)
        if record.levelno >= logging.CRITICAL:
            self.flush()

    def flush(self) -> None:
        if self.writer is not None:
            self.writer.drain()

    def tell_loss(self, count: int) -> str:
        text = "%d lines of this log were dropped: nobody took them"
        return self.format(
            logging.LogRecord(logger.name, logging.WARNING, __file__, 0, text, (count,), None)
        )


def of_daemon(
    level: str, log_format: str, who: str, path: str | Path | None = None
) -> LineWriter | None:
    """Send the program's logs to a file, or to standard error, one line a record; ``who`` names the
    process. Whatever else is written to standard error is waited for no more, either. Return what
    writes the log, if that can be opened anew.

    Logs of what cannot be opened go to standard error. From now on no process may be forked without
    an exec after it: what writes is a thread.
    """
    formatter = _JsonFormatter(who) if log_format == "json" else _TextFormatter(who)
    root = logging.getLogger()
    root.setLevel(level.upper())
    handler = _Handler(formatter)
    errors = _take_standard_error(handler.tell_loss)
    handler.writer = errors
    root.addHandler(handler if errors else _at_once(formatter))
    if path is not None:
        try:
            handler.writer = LineWriter.at(Path(path), handler.tell_loss)
        except OSError as error:
            logger.error("cannot open the log file %s: %s", path, error.strerror)
        else:
            root.handlers = [handler]
            return handler.writer
    return None


def check_file(path: Path) -> None:
    """Raises OSError if no log can be written there."""
    os.close(_opened(path))


def reopen(log: LineWriter | None) -> None:
    """At SIGHUP."""
    if log is None:
        logger.info("SIGHUP: there is no log file to be opened anew (--log-file)")
        return
    try:
        log.reopen()
    except OSError as error:
        logger.error("cannot open the log file %s anew: %s", log.path, error.strerror)
    else:
        logger.info("SIGHUP: the log file is opened anew")


def _at_once(formatter: logging.Formatter) -> logging.Handler:
    """For a standard error that is no file: nobody has to be waited for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    return handler


def _take_standard_error(tell_loss: Callable[[int], str]) -> LineWriter | None:
    """Have a LineWriter in the place of sys.stderr; None if that is no open file."""
    before = sys.stderr
    try:
        number = before.fileno()
    except (AttributeError, OSError, ValueError):
        return None
    writer = LineWriter(number, None, tell_loss)
    sys.stderr = writer
    atexit.register(_give_back_standard_error, before)
    return writer


def _give_back_standard_error(before: TextIO) -> None:
    """The interpreter's end flushes it when threads do not go on any more."""
    sys.stderr.flush()
    sys.stderr = before


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
