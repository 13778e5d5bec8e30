"""The daemons' logs: nobody waits for their reader, order is kept, and what is lost is counted."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gtstore import logs
from gtstore.errors import InvalidInput
from gtstore.logs import QUEUE_SIZE_MAX, LineWriter
from gtstore.testing import wait_until

# --- what a line looks like ----------------------------------------------------------------------


@contextmanager
def daemon(
    level: str, log_format: str, who: str, path: Path | None = None
) -> Iterator[logging.Logger]:
    """A logger of a process that has just configured its logs.

    A context and no fixture, because pytest gives the root logger handlers of its own for each
    phase of a test.
    """
    root = logging.getLogger()
    handlers, level_before = root.handlers, root.level
    root.handlers = []
    try:
        logs.of_daemon(level, log_format, who, path)
        yield logging.getLogger("gtstore.test")
    finally:
        for handler in root.handlers:
            handler.flush()
        root.handlers = handlers
        root.setLevel(level_before)


def test_logs_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """One line on standard error: time, level, who, what. Lower levels are left out."""
    with daemon("info", "text", "manager") as log:
        log.debug("too much")
        log.warning("node %d is %s", 3, "dead")
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} WARNING manager: node 3 is dead\n", output.err
    )


def test_logs_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """One object a line, even for a text of several lines."""
    with daemon("debug", "json", "node 3") as log:
        log.debug("two\nlines")
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert isinstance(record.pop("time"), float)
    assert record == {
        "level": "debug",
        "process": "node 3",
        "logger": "gtstore.test",
        "message": "two\nlines",
    }


def test_an_exception_in_a_json_log(capsys: pytest.CaptureFixture[str]) -> None:
    """The traceback is a field of the same line."""
    with daemon("info", "json", "manager") as log:
        try:
            raise InvalidInput("no key")
        except InvalidInput:
            log.exception("it failed")
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert record["level"] == "error"
    assert record["message"] == "it failed"
    assert record["exception"].endswith("InvalidInput: no key")
    assert "Traceback" in record["exception"]


def test_a_log_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is appended to; nothing is on standard error."""
    path = tmp_path / "log"
    path.write_text("before\n")
    with daemon("info", "json", "manager", path) as log:
        log.info("after")
    before, after = path.read_text().splitlines()
    assert (before, json.loads(after)["message"]) == ("before", "after")
    assert capsys.readouterr().err == ""


def test_a_log_file_that_cannot_be_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node that is started again when the disk is full says so, and goes on."""
    with daemon("info", "text", "node 1", tmp_path / "missing" / "log") as log:
        log.info("it goes on")
    first, second = capsys.readouterr().err.splitlines()
    assert "cannot open the log file" in first
    assert first.endswith("log: No such file or directory")
    assert second.endswith("node 1: it goes on")


# --- who takes the lines -------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for number in (reader, writer):
        try:
            os.close(number)
        except OSError:
            pass  # by the test


def read_until(reader: int, end: bytes) -> list[bytes]:
    data = b""
    while not data.endswith(end):
        data += os.read(reader, 1 << 20)
    return data.splitlines()


def test_lines_come_whole_and_in_order(pipe: tuple[int, int]) -> None:
    """Also what is written in pieces, as print does; the rest comes at the end."""
    writer = LineWriter(pipe[1])
    print("one", "two", file=writer)  # type: ignore[call-overload]
    writer.write("three\nfo")
    assert writer.drain()
    writer.write("five")
    writer.flush()
    assert os.read(pipe[0], 100) == b"one two\nthree\nfo\nfive\n"


def test_nobody_reads(pipe: tuple[int, int]) -> None:
    """Whoever writes goes on at once. Later there is what was taken, in order and without a gap,
    then how many lines are missing, then what comes after."""
    writer = LineWriter(pipe[1])
    count = 2 * QUEUE_SIZE_MAX // 100
    for number in range(count):
        writer.write(f"{number:99}\n")
    assert not writer.drain(0.01)
    waiting: list[bytes] = []
    while len(waiting) * 100 < QUEUE_SIZE_MAX // 2:
        waiting += read_until(pipe[0], b"\n")
    writer.write("this one is dropped, too\n")
    while not writer.drain(0.01):
        waiting += read_until(pipe[0], b"\n")
    writer.write("the next\n")
    *rest, notice, last = waiting + read_until(pipe[0], b"next\n")
    assert last == b"the next"
    assert [int(line) for line in rest] == list(range(len(rest)))
    assert notice == b"%d lines were dropped: nobody took them" % (count + 1 - len(rest))


def test_what_cannot_be_written_is_counted(pipe: tuple[int, int]) -> None:
    """On a full disk, for example: the lines are lost, nothing else happens; with room again it is
    said how many."""
    number = os.open("/dev/full", os.O_WRONLY)
    writer = LineWriter(number)
    for _ in range(3):
        writer.write("lost\n")
        assert writer.drain()
        assert writer.error is not None
        assert writer.error.errno == errno.ENOSPC
    os.dup2(pipe[1], number)
    writer.write("there\n")
    lines = read_until(pipe[0], b"there\n")
    assert lines == [b"3 lines were dropped: nobody took them", b"there"]
    assert writer.drain()
    assert writer.error is None
    os.close(number)


def test_a_reader_that_is_gone(pipe: tuple[int, int]) -> None:
    """Lines are lost, and nothing else happens."""
    os.close(pipe[0])
    writer = LineWriter(pipe[1])
    for _ in range(3):
        writer.write("lost\n")
        assert writer.drain()
        assert isinstance(writer.error, BrokenPipeError)


def test_another_program_makes_it_not_block(pipe: tuple[int, int]) -> None:
    """The pipe is shared, and so is that flag of it: all lines come all the same."""
    os.set_blocking(pipe[1], False)
    writer = LineWriter(pipe[1])
    for number in range(5000):
        writer.write(f"{number:99}\n")
    assert [int(line) for line in read_until(pipe[0], b" 4999\n")] == list(range(5000))


def test_a_log_file_is_moved_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It goes on in a new file of its name; if there can be none, in the old one."""
    caplog.set_level(logging.INFO)
    path, old = tmp_path / "logs" / "log", tmp_path / "old"
    path.parent.mkdir()
    writer = LineWriter.at(path, str)
    writer.write("one\n")
    assert writer.drain()
    path.rename(old)
    path.parent.rmdir()
    logs.reopen(writer)
    assert f"cannot open the log file {path} anew: No such file or directory" in caplog.text
    writer.write("two\n")
    assert writer.drain()
    path.parent.mkdir()
    logs.reopen(writer)
    writer.write("three\n")
    assert writer.drain()
    assert (old.read_text(), path.read_text()) == ("one\ntwo\n", "three\n")
    assert "the log file is opened anew" in caplog.text
    logs.reopen(None)
    assert "there is no log file to be opened anew (--log-file)" in caplog.text
    os.close(writer.fileno())


# --- a process and its end -----------------------------------------------------------------------

PROGRAM = """
import logging, os, sys
from gtstore import logs
logs.of_daemon("info", "text", "node 1")
log = logging.getLogger("gtstore.test")
log.info("first")
print("second", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("end", "last"),
    [
        ('log.critical("last"); os._exit(7)', "last"),
        ('log.info("last"); sys.exit(7)', "last"),
        ('print("last", file=sys.stderr); sys.exit(7)', "last"),
        ('sys.stderr.write("last"); sys.exit(7)', "last"),
        ('raise SystemExit("last")', "last"),
        ('raise ValueError("last")', "ValueError: last"),
        (
            "import threading; logs.sys.exitcode = 7\n"
            "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()",
            "ZeroDivisionError: division by zero",
        ),
    ],
)
def test_the_last_words_of_a_process(end: str, last: str) -> None:
    """They come out, and in order, whoever writes them, and however the process ends."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + end], capture_output=True, text=True, timeout=60
    )
    first, second, *rest = done.stderr.splitlines()
    assert first.endswith("INFO    node 1: first")
    assert second == "second"
    assert rest[-1].endswith(last)


@pytest.mark.parametrize("end", ['log.critical("x"); os._exit(7)', "sys.exit(7)"])
def test_nobody_reads_the_last_words(pipe: tuple[int, int], end: str) -> None:
    """The process ends all the same."""
    os.set_blocking(pipe[1], False)
    try:
        while True:
            os.write(pipe[1], bytes(4096))
    except BlockingIOError:
        os.set_blocking(pipe[1], True)
    with subprocess.Popen([sys.executable, "-c", PROGRAM + end], stderr=pipe[1]) as process:
        wait_until(lambda: process.poll() is not None, "its end", 60)
        assert process.returncode == 7
