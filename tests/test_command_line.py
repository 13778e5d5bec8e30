"""What the programs have in common: one line for a mistake, bounds of numbers, logs."""

from __future__ import annotations

import argparse
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gtstore import command_line
from gtstore.command_line import (
    OneLineParser,
    StopSignals,
    add_daemon_options,
    argument,
    integer,
)
from gtstore.errors import InvalidInput
from gtstore.wire.messages import CONNECTIONS_MAX, FRAME_TIMEOUT_MS, SCRUB_PERCENT

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
        "scrub_percent": SCRUB_PERCENT,
        "frame_timeout_ms": FRAME_TIMEOUT_MS,
        "lifeline": None,
        "log_file": None,
        "log_level": "info",
        "log_format": "text",
    }
    given = (
        "--max-connections 5 --max-memory-mb 6 --frame-timeout-ms 700 --log-level debug "
        "--log-format json --log-file a.log --scrub-percent 0.5"
    )
    assert vars(daemon.parse_args(given.split())) == {
        "max_connections": 5,
        "max_memory_mb": 6,
        "scrub_percent": 0.5,
        "frame_timeout_ms": 700,
        "lifeline": None,
        "log_file": Path("a.log"),
        "log_level": "debug",
        "log_format": "json",
    }


@pytest.mark.parametrize(
    "option",
    [
        "--max-connections 0",
        "--frame-timeout-ms 9",
        "--max-memory-mb 0",
        "--scrub-percent 101",
        "--scrub-percent -1",
        "--scrub-percent much",
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


# --- signals -------------------------------------------------------------------------------------


@pytest.fixture
def make_stop() -> Iterator[Callable[..., StopSignals]]:
    """Makes what the programs wait for; the signals' handlers are put back."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield StopSignals
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def stop(make_stop: Callable[..., StopSignals]) -> StopSignals:
    """Of a program without a terminal, wherever the tests run."""
    return make_stop(has_terminal=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_stop_a_program(stop: StopSignals, number: signal.Signals) -> None:
    """SIGTERM and SIGINT are noted, and nothing else happens; a wait after them ends at once. The
    first one is the cause."""
    assert not stop.was_asked()
    signal.raise_signal(number)
    signal.raise_signal(signal.SIGTERM)
    assert stop.was_asked()
    stop.wait()
    assert stop.cause == number.name


def test_a_hang_up_stops_nothing(stop: StopSignals) -> None:
    """Where there is no terminal: whoever waits is told, once for each time it looks."""
    calls: list[None] = []

    def hang_up() -> None:
        calls.append(None)
        signal.raise_signal(signal.SIGTERM if len(calls) == 2 else signal.SIGHUP)

    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)
    assert not stop.was_asked()
    stop.wait(hang_up=hang_up)
    assert len(calls) == 2
    assert stop.cause == "SIGTERM"


@pytest.mark.parametrize("has_log_file", [False, True])
@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize("number", [0, 2])
def test_a_hang_up_of_a_terminal(
    make_stop: Callable[..., StopSignals],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    is_closed: bool,
    has_log_file: bool,
) -> None:
    """It stops the program if the terminal is not there any more, or if standard error is the
    terminal, and so nobody can have moved the log away."""
    terminals = {number}
    monkeypatch.setattr(command_line.os, "isatty", lambda number: number in terminals)
    stop = make_stop()
    stop.has_log_file = has_log_file
    if is_closed:
        terminals.clear()
    signal.raise_signal(signal.SIGHUP)
    assert stop.was_asked() == (is_closed or (number == 2 and not has_log_file))
    if stop.was_asked():
        assert stop.cause == "SIGHUP: its terminal was closed"


def test_a_signal_that_is_ignored(make_stop: Callable[..., StopSignals]) -> None:
    """As nohup does."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = make_stop()
    signal.raise_signal(signal.SIGHUP)
    assert not stop.was_asked()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


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
