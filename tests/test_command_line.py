"""What the programs have in common: one line for a mistake, bounds of numbers, logs."""

from __future__ import annotations

import argparse
import json
import logging
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gtstore import command_line
from gtstore.command_line import (
    OneLineParser,
    StopSignals,
    add_daemon_options,
    argument,
    configure_logs,
    integer,
)
from gtstore.errors import InvalidInput
from gtstore.wire.messages import CONNECTIONS_MAX, FRAME_TIMEOUT_MS

# --- arguments -----------------------------------------------------------------------------------


def parser() -> OneLineParser:
    result = OneLineParser(prog="gtstore-test")
    result.add_argument("nodes", type=integer(1, 1000))
    result.add_argument("--port", type=integer(0, 65535), default=9001)
    return result


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["0"],
        ["x"],
        ["1001"],
        ["3", "--port"],
        ["3", "--port", "65536"],
        ["3", "4"],
        ["3", "--no"],
    ],
    ids=" ".join,
)
def test_a_usage_error_is_one_line_and_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing on standard output, and the line says which program and where to read more."""
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(arguments)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"gtstore-test: .+ \(see gtstore-test --help\)\n", output.err)


def test_the_line_names_the_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    """A number beyond them is repeated, with what would be right."""
    with pytest.raises(SystemExit):
        parser().parse_args(["1001"])
    assert "'1001' is no whole number from 1 to 1000" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["1", "1000", " 7 ", "+7", "0007"])
def test_numbers_within_the_bounds(text: str) -> None:
    """Both bounds are legal."""
    assert integer(1, 1000)(text) == int(text)


@pytest.mark.parametrize("text", ["0", "1001", "-1", "", "1.0", "1e2", "0x10", "seven"])
def test_what_is_no_number_within_the_bounds(text: str) -> None:
    """One more, one less, or no whole number at all."""
    with pytest.raises(argparse.ArgumentTypeError, match="from 1 to 1000"):
        integer(1, 1000)(text)


def test_no_number_is_not_taken_for_the_lowest() -> None:
    """Neither where the lowest is zero, nor where it is negative."""
    for low in (0, -5):
        with pytest.raises(argparse.ArgumentTypeError):
            integer(low, 9)("x")


def test_an_argument_that_our_own_functions_refuse() -> None:
    """InvalidInput becomes argparse's own error, so its text ends up in the one line."""

    def parse(text: str) -> str:
        if text == "bad":
            raise InvalidInput("the key is too long")
        return text.upper()

    assert argument(parse)("good") == "GOOD"
    with pytest.raises(argparse.ArgumentTypeError, match="the key is too long"):
        argument(parse)("bad")


def test_daemon_options() -> None:
    """The defaults are those of the table of limits; every option can be given."""
    daemon = OneLineParser()
    add_daemon_options(daemon)
    assert vars(daemon.parse_args([])) == {
        "max_connections": CONNECTIONS_MAX,
        "max_memory_mb": None,
        "frame_timeout_ms": FRAME_TIMEOUT_MS,
        "lifeline": None,
        "log_level": "info",
        "log_format": "text",
    }
    given = (
        "--max-connections 5 --max-memory-mb 6 --frame-timeout-ms 700 --log-level debug "
        "--log-format json"
    )
    assert vars(daemon.parse_args(given.split())) == {
        "max_connections": 5,
        "max_memory_mb": 6,
        "frame_timeout_ms": 700,
        "lifeline": None,
        "log_level": "debug",
        "log_format": "json",
    }


@pytest.mark.parametrize(
    "option",
    [
        "--max-connections 0",
        "--frame-timeout-ms 9",
        "--max-memory-mb 0",
        "--log-level loud",
        "--log-format xml",
    ],
)
def test_daemon_options_out_of_bounds(option: str) -> None:
    """Each has its bounds or its choices."""
    daemon = OneLineParser()
    add_daemon_options(daemon)
    with pytest.raises(SystemExit) as caught:
        daemon.parse_args(option.split())
    assert caught.value.code == 2


# --- logs ----------------------------------------------------------------------------------------


@contextmanager
def logs(level: str, log_format: str, who: str) -> Iterator[logging.Logger]:
    """A logger of a process that has just configured its logs.

    A context and no fixture, because pytest gives the root logger handlers of its own for each
    phase of a test, and configure_logs leaves a root that has some as it is.
    """
    root = logging.getLogger()
    handlers, level_before = root.handlers, root.level
    root.handlers = []
    try:
        configure_logs(level, log_format, who)
        yield logging.getLogger("gtstore.test")
    finally:
        root.handlers = handlers
        root.setLevel(level_before)


def test_logs_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """One line on standard error: time, level, who, what. Lower levels are left out."""
    with logs("info", "text", "manager") as log:
        log.debug("too much")
        log.warning("node %d is %s", 3, "dead")
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} WARNING manager: node 3 is dead\n", output.err
    )


def test_logs_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """One object a line, even for a text of several lines."""
    with logs("debug", "json", "node 3") as log:
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
    with logs("info", "json", "manager") as log:
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


# --- the end -------------------------------------------------------------------------------------


@pytest.fixture
def stop() -> Iterator[StopSignals]:
    """What the programs wait for; the signals' handlers are put back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield StopSignals()
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_stop_a_program(stop: StopSignals, number: signal.Signals) -> None:
    """SIGTERM and SIGINT are noted, and nothing else happens; a wait after them ends at once."""
    assert not stop.was_asked()
    signal.raise_signal(number)
    assert stop.was_asked()
    stop.wait()


def test_a_wait_ends_with_a_signal(stop: StopSignals) -> None:
    """Also with one that the system gives to another thread."""

    def send() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    stop.wait()
    thread.join()


def test_waiting_with_something_to_do(stop: StopSignals, monkeypatch: pytest.MonkeyPatch) -> None:
    """``poll`` is called once a second until the signal comes, and not after it."""
    timeouts: list[float | None] = []
    monkeypatch.setattr(command_line.select, "select", lambda *a: timeouts.append(a[3]))
    polls: list[None] = []

    def poll() -> None:
        polls.append(None)
        if len(polls) == 2:
            signal.raise_signal(signal.SIGTERM)

    stop.wait(poll)
    assert len(polls) == 2
    assert timeouts == [1.0, 1.0]
