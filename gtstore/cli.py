"""``gtclient``: put, get, delete and look, from a shell.

It reads arguments, calls ``gtstore.Client``, prints what came of it, and turns each error into one
line and an exit code; the table COMMANDS has all commands. What happens between client and nodes
is operations.py's; with ``-v`` its log is shown, one line a step.

Keys and values are bytes, so what a shell hands over is taken back to the bytes that were typed
(``os.fsencode``), and a value goes to standard output as it is. Everything else that is printed is
text on one line: what cannot be printed in a key is shown escaped.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import math
import os
import signal
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from .client import Client, connect
from .command_line import DONE, USAGE, OneLineParser
from .errors import (
    ConnectError,
    GTStoreError,
    InvalidInput,
    OutcomeUnknown,
    RemoteError,
    printable,
)
from .operations import PutResult
from .version import __version__
from .wire.messages import (
    CLIENT_TIMEOUT_S,
    KEY_SIZE_MAX,
    MANAGER_PORT,
    NOT_ALLOWED,
    VALUE_SIZE_MAX,
)

NO_VALUE, FAILED, UNKNOWN, REFUSED = 1, 3, 4, 5
INTERRUPTED = 128 + signal.SIGINT
READER_LEFT = 128 + signal.SIGPIPE

MANAGER_VARIABLE = "GTSTORE_MANAGER"
_TIMEOUT_MAX_S = 1_000_000

# Below the client's logger, so that its steps and ours come out in one place.
logger = logging.getLogger("gtstore.client.command")


class Command(NamedTuple):
    """One row of COMMANDS."""

    run: Callable[[argparse.Namespace], int]
    help: str
    arguments: tuple[str, ...]
    is_write: bool


# --- commands ------------------------------------------------------------------------------------


def put(options: argparse.Namespace) -> int:
    value = _value(options.value)
    with _connect(options) as store:
        result = store.put(options.key, value)
    return _report_write(options, "stored", result)


def get(options: argparse.Namespace) -> int:
    with _connect(options) as store:
        entry = store.get_entry(options.key)
    if entry is None:
        return _report_no_value(options)
    logger.info(
        "storage node %d, the primary of key %s, answered: value of %d byte%s",
        entry.node,
        _shown(options.key),
        size := len(entry.value),
        "s" * (size != 1),
    )
    if options.json:
        _print_json(_field("key", options.key), _field("value", entry.value), {"node": entry.node})
    else:
        _write(entry.value)
        if sys.stdout.isatty():
            _write(b"\n")
    return DONE


def delete(options: argparse.Namespace) -> int:
    with _connect(options) as store:
        result = store.delete(options.key)
    return _report_write(options, "deleted", result)


def where(options: argparse.Namespace) -> int:
    with _connect(options) as store:
        location = store.where(options.key)
    if options.json:
        _print_json(
            _field("key", options.key),
            {"partition": location.partition, "owners": location.owners},
        )
    else:
        _print(
            f"key {_shown(options.key)}: partition {location.partition}, "
            f"storage nodes {_listed(location.owners)} (primary first)"
        )
    return DONE


def status(options: argparse.Namespace) -> int:
    with _connect(options) as store:
        cluster = store.status()
    if options.json:
        _print_json(cluster)
    else:
        _print("\n".join(_status_lines(cluster)))
    return DONE


COMMANDS = {
    "put": Command(put, "store a value under a key", ("KEY", "VALUE"), True),
    "get": Command(get, "print a key's latest value", ("KEY",), False),
    "delete": Command(delete, "remove a key's value", ("KEY",), True),
    "where": Command(where, "tell which storage nodes have a key", ("KEY",), False),
    "status": Command(status, "tell how nodes and partitions are", (), False),
}


def _connect(options: argparse.Namespace) -> Client:
    logger.info("asking the manager at %s for the partition map", options.manager)
    return connect(options.manager, options.timeout)


def _value(argument: str) -> bytes:
    """The bytes that an argument stands for. Standard input is read as far as a value may go."""
    if argument != "-":
        return os.fsencode(argument)
    if sys.stdin is None:
        raise InvalidInput("VALUE is -, but standard input is closed")
    try:
        value = sys.stdin.buffer.read(VALUE_SIZE_MAX + 1)
    except OSError as error:
        raise InvalidInput(f"standard input cannot be read: {error.strerror}") from error
    if len(value) > VALUE_SIZE_MAX:
        raise InvalidInput(f"standard input is longer than a value's {VALUE_SIZE_MAX} bytes")
    return value


def _report_write(options: argparse.Namespace, done: str, result: PutResult) -> int:
    logger.info(
        "storage nodes %s (primary first) acknowledged key %s",
        _listed(result.nodes),
        _shown(options.key),
    )
    if options.json:
        _print_json(_field("key", options.key), {"nodes": result.nodes})
    else:
        _print(f"key {_shown(options.key)} {done} at storage nodes: {_listed(result.nodes)}")
    return DONE


def _report_no_value(options: argparse.Namespace) -> int:
    logger.info("the primary of key %s answered: no value", _shown(options.key))
    if options.json:
        _print_json(_field("key", options.key), {"value": None, "node": None})
    else:
        _complain(f"key {_shown(options.key)} not found")
    return NO_VALUE


# --- output --------------------------------------------------------------------------------------


def _write(data: bytes) -> None:
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _print(text: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    _write(f"{text}\n".encode(encoding, "backslashreplace"))


def _print_json(*parts: dict[str, Any]) -> None:
    _print(json.dumps({name: value for part in parts for name, value in part.items()}))


def _complain(text: str) -> None:
    if sys.stderr is not None:  # or else print would take standard output
        print(f"gtclient: {printable(text)}", file=sys.stderr)


def _field(name: str, data: bytes) -> dict[str, str]:
    """A JSON object's field for bytes: text, or base64 where they are not UTF-8."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": b64encode(data).decode()}


def _shown(key: bytes) -> str:
    return printable(key.decode(errors="backslashreplace"))


def _listed(nodes: Sequence[int]) -> str:
    return " ".join(map(str, nodes))


def _status_lines(cluster: dict[str, Any]) -> Iterator[str]:
    yield (
        f"epoch {cluster['epoch']}, {cluster['replicas']} replicas, hash {cluster['hash']}, "
        f"under-replicated partitions: {len(cluster['under_replicated'])}"
    )
    columns = (
        ("id", "node"), ("state", "state"), ("address", "address"), ("pid", "pid"),
        ("incarnation", "incarnation"), ("entries", "entries"), ("bytes", "bytes"),
        ("partitions", "partitions"), ("primaries", "primaries"),
    )  # fmt: skip
    rows = [[node[field] for field, _ in columns] for node in cluster["nodes"]]
    yield from _table([title for _, title in columns], rows)


def _table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Aligned columns: text to the left, numbers to the right."""
    is_number = [all(isinstance(row[index], int) for row in rows) for index in range(len(titles))]
    cells = [list(titles), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(titles))]
    for line in cells:
        aligned = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        )
        yield "  ".join(aligned).rstrip()


@contextmanager
def _steps_shown(wanted: bool) -> Iterator[None]:
    """Show the client's steps on standard error meanwhile, if they are wanted."""
    if not wanted:
        yield
        return
    client_logger = logging.getLogger("gtstore.client")
    handler = logging.StreamHandler()
    level = client_logger.level
    client_logger.addHandler(handler)
    client_logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        client_logger.removeHandler(handler)
        client_logger.setLevel(level)


# --- arguments -----------------------------------------------------------------------------------


class _Parser(OneLineParser):
    """Its errors have the form of all errors of gtclient, also those of a command's own parser."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"gtclient: {printable(message)} (see {self.prog} --help)\n")


def _key(text: str) -> bytes:
    key = os.fsencode(text)
    if not 0 < len(key) <= KEY_SIZE_MAX:
        raise argparse.ArgumentTypeError(f"a key has 1 to {KEY_SIZE_MAX} bytes, not {len(key)}")
    return key


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _TIMEOUT_MAX_S:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of seconds above 0 and up to {_TIMEOUT_MAX_S}"
        )
    return seconds


_ARGUMENTS: dict[str, dict[str, Any]] = {
    "KEY": {"type": _key, "help": f"1 to {KEY_SIZE_MAX} bytes"},
    "VALUE": {"help": "what to store; - reads standard input"},
}


def parser() -> OneLineParser:
    """The program's arguments."""
    result = _Parser(
        prog="gtclient",
        description="Put and get values in a GT Store cluster.",
        epilog="Exit codes: 0 done; 1 key not found; 2 usage or invalid input; 3 it did not "
        "happen; 4 outcome unknown, it may have happened; 5 not allowed. "
        "Write -- before a key or a value that begins with -.",
        allow_abbrev=False,
    )
    result.add_argument("--version", action="version", version=f"gtclient {__version__}")
    default_manager = os.environ.get(MANAGER_VARIABLE) or f"127.0.0.1:{MANAGER_PORT}"
    _add_options(result, manager=default_manager, timeout=CLIENT_TIMEOUT_S, flag=False)
    commands = result.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name, help=command.help, description=command.help, allow_abbrev=False
        )
        for argument in command.arguments:
            subparser.add_argument(argument.lower(), metavar=argument, **_ARGUMENTS[argument])
        # SUPPRESS: an option that is not repeated here keeps what stood before the command.
        unset = argparse.SUPPRESS
        _add_options(subparser, manager=unset, timeout=unset, flag=unset)
    return result


def _add_options(
    target: argparse.ArgumentParser, manager: str, timeout: float | str, flag: bool | str
) -> None:
    """The options that may stand before and after the command."""
    target.add_argument(
        "--manager",
        default=manager,
        metavar="HOST:PORT",
        help=f"the cluster's manager (default: ${MANAGER_VARIABLE} or 127.0.0.1:{MANAGER_PORT})",
    )
    target.add_argument(
        "--timeout",
        type=_seconds,
        default=timeout,
        metavar="SECONDS",
        help=f"time to connect, and then for the command (default: {CLIENT_TIMEOUT_S:g})",
    )
    target.add_argument("--json", action="store_true", default=flag, help="print one JSON object")
    target.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=flag,
        help="tell each step on standard error",
    )


# --- the program ---------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit code. Usage errors leave through SystemExit, with code 2."""
    try:
        options = parser().parse_args(arguments)
        with _steps_shown(options.verbose):
            return _run(COMMANDS[options.command], options)
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(command: Command, options: argparse.Namespace) -> int:
    try:
        return command.run(options)
    except GTStoreError as error:
        _complain(_explained(error))
        return _exit_code(error)
    except BrokenPipeError:
        _discard_output()
        return READER_LEFT
    except OSError as error:
        _complain(f"cannot write to standard output: {(error.strerror or str(error)).lower()}")
        _discard_output()
        return UNKNOWN if command.is_write else FAILED
    except Exception as error:
        if options.verbose:
            raise
        _complain(f"internal error, -v shows where: {type(error).__name__}: {error}")
        return UNKNOWN if command.is_write else FAILED


def _explained(error: GTStoreError) -> str:
    if isinstance(error, ConnectError) and error.peer.startswith("the manager"):
        return (
            f"{error}; is a manager running there? start one with: python -m gtstore.managerd 7 3"
        )
    return str(error)


def _exit_code(error: GTStoreError) -> int:
    if isinstance(error, InvalidInput):
        return USAGE
    if isinstance(error, OutcomeUnknown):  # whatever ended it
        return UNKNOWN
    # The error of a write has the reply that ended it as its cause.
    for one in (error, error.__cause__):
        if isinstance(one, RemoteError) and one.code == NOT_ALLOWED:
            return REFUSED
    return FAILED


def _discard_output() -> None:
    """Let what is in the buffer go nowhere; at its end Python would try again, and complain."""
    if sys.stdout is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
