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
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from . import backup, frame_words, tables
from .bench import arguments as bench_arguments
from .client import Client, connect
from .command_line import DONE, USAGE, OneLineParser, integer
from .connection import call_once, parse_address
from .errors import (
    ClusterError,
    ConnectError,
    GTStoreError,
    InvalidInput,
    LocalProtocolError,
    OperationFailed,
    OutcomeUnknown,
    RemoteError,
    VersionMismatch,
    printable,
)
from .json_lines import field, line_of
from .placement import format_address
from .progress import shown_progress, shown_size
from .read_modify_write import NUMBER_MAX, NUMBER_MIN
from .results import PutResult
from .tap import Taps
from .top import as_view, watch
from .transfer import lines_of, store_all
from .version import __version__
from .wire import messages
from .wire.codec import decode, encode, encode_record
from .wire.explain import explain
from .wire.json_form import to_json
from .wire.messages import (
    CLIENT_TIMEOUT_S,
    KEY_SIZE_MAX,
    MANAGER_PORT,
    NOT_ALLOWED,
    TTL_MAX_S,
    VALUE_SIZE_MAX,
)
from .wire.stream import FrameBuffer

NO_VALUE, FAILED, UNKNOWN, REFUSED = 1, 3, 4, 5  # 1: a comparison or a verification failed, too
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
        result = store.put(options.key, value, ttl=options.ttl)
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
        _print_json(field("key", options.key), field("value", entry.value), {"node": entry.node})
    else:
        _write(entry.value)
        if sys.stdout.isatty():
            _write(b"\n")
    return DONE


def append(options: argparse.Namespace) -> int:
    value = _value(options.value)
    with _connect(options) as store:
        length = store.append(options.key, value)
    if options.json:
        _print_json(field("key", options.key), {"length": length})
    else:
        _print(f"key {_shown(options.key)} has {length} byte{'s' * (length != 1)} now")
    return DONE


def increment(options: argparse.Namespace) -> int:
    with _connect(options) as store:
        number = store.increment(options.key, options.n)
    if options.json:
        _print_json(field("key", options.key), {"value": number})
    else:
        _print(str(number))
    return DONE


def compare_and_put(options: argparse.Namespace) -> int:
    if (options.new is None) != options.absent:
        raise InvalidInput("write cas KEY EXPECTED NEW, or cas KEY --absent NEW")
    first = _value(options.expected)
    with _connect(options) as store:
        if options.absent:
            result = store.compare_and_put(options.key, first, expected=None, ttl=options.ttl)
        else:
            new = os.fsencode(options.new)
            result = store.compare_and_put(options.key, new, expected=first, ttl=options.ttl)
    return _report_write(options, "stored", result)


def delete(options: argparse.Namespace) -> int:
    with _connect(options) as store:
        result = store.delete(options.key)
    return _report_write(options, "deleted", result)


def where(options: argparse.Namespace) -> int:
    with _connect(options) as store:
        location = store.where(options.key)
    if options.json:
        _print_json(
            field("key", options.key),
            {
                "partition": location.partition,
                "owners": location.owners,
                **({"syncing": location.syncing} if location.syncing else {}),
            },
        )
    elif tables.terminal() is not None:
        _print_view(tables.of_location(_shown(options.key), location))
    else:
        _print(
            f"key {_shown(options.key)}: partition {location.partition}, "
            f"storage nodes {_listed(location.owners)} (primary first)"
            + (f", syncing: {_listed(location.syncing)}" if location.syncing else "")
        )
    return DONE


def status(options: argparse.Namespace) -> int:
    with _connect(options) as store:
        cluster = store.status()
    if options.json:
        _print_json(cluster)
    else:
        _print_view(tables.of_status(cluster))
    return DONE


def top(options: argparse.Namespace) -> int:
    found = watch(lambda: _connect(options), options.interval, options.count)
    try:
        if options.json:
            for figures in found:
                _print_json(figures)
        elif (console := tables.terminal()) is not None:
            _show_live(found, console)
        else:
            for number, figures in enumerate(found):
                _print("\n" * (number > 0) + "\n".join(_top_lines(figures)))
    except KeyboardInterrupt:
        pass  # that is how it is left
    return DONE


def _top_lines(figures: dict[str, Any]) -> Iterator[str]:
    if "error" in figures:
        yield f"no answer for {figures['since_s']:g} s: {printable(figures['error'])}"
    else:
        yield from tables.plain(as_view(figures))


def _show_live(found: Iterator[dict[str, Any]], console: Any) -> None:
    """Draw each state of the cluster over the one before."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    last: Any = ""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for figures in found:
            if "error" in figures:
                note = Text("\n".join(_top_lines(figures)), style="red")
                live.update(Group(note, last), refresh=True)
            else:
                last = tables.drawn(as_view(figures), console)
                live.update(last, refresh=True)


def scan(options: argparse.Namespace) -> int:
    with _connect(options) as store:
        if options.values:
            for entry in islice(store.scan_entries(options.prefix), options.limit):
                if options.json:
                    _write(line_of(entry))
                else:
                    _print(f"{_shown(entry.key)}\t{_shown(entry.value)}")
        else:
            for key in islice(store.scan_keys(options.prefix), options.limit):
                if options.json:
                    _print_json(field("key", key))
                else:
                    _print(_shown(key))
    return DONE


def export(options: argparse.Namespace) -> int:
    is_output = options.file == "-"
    with _connect(options) as store, _export_file(options.file) as write:
        total = None if options.option_prefix else _expected(store)
        is_bar_wanted = not (is_output and sys.stdout is not None and sys.stdout.isatty())
        with shown_progress("exporting", total, is_bar_wanted) as note:
            for entry in store.scan_entries(options.option_prefix):
                write(line_of(entry))
                note(entry)
    return DONE


@contextmanager
def _export_file(name: str) -> Iterator[Callable[[bytes], object]]:
    """What writes to a file, which gets its name when it is whole, or to standard output."""
    if name == "-":
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    path = Path(name).resolve()
    try:
        # A pipe or a device is written to, not replaced.
        is_special = path.exists() and not path.is_file()
        with path.open("wb") if is_special else backup.written_whole(path) as file:
            yield file.write
    except OSError as error:
        raise OperationFailed(f"cannot write {name}: {error.strerror}") from error


def import_lines(options: argparse.Namespace) -> int:
    with (
        _import_file(options.file) as (file, name),
        _connect(options) as store,
        shown_progress("importing", None) as note,
    ):
        stored = store_all(store, lines_of(file, name), note)
    _report_count(options, stored, f"stored {_values(stored)}")
    return DONE


@contextmanager
def _import_file(name: str) -> Iterator[tuple[IO[bytes], str]]:
    if name == "-":
        if sys.stdin is None:
            raise InvalidInput("standard input is closed")
        yield sys.stdin.buffer, "standard input"
        return
    try:
        with open(name, "rb") as file:
            yield file, name
    except OSError as error:
        raise InvalidInput(f"cannot read {name}: {error.strerror}") from error


def back_up(options: argparse.Namespace) -> int:
    directory = Path(options.dir)
    if options.verify:
        return _verify(options, directory)
    with _connect(options) as store:
        cluster = store.status()["cluster"]
        with shown_progress("backing up", _expected(store)) as note:
            manifest = backup.write(directory, store.scan_entries(), cluster, note)
    if options.json:
        _print_json(manifest)
    else:
        _print(f"backed up {_contents(manifest)} to {directory}")
    return DONE


def _verify(options: argparse.Namespace, directory: Path) -> int:
    manifest = _verified(directory)
    if manifest is None:
        return NO_VALUE
    if options.json:
        _print_json(manifest)
    else:
        _print(f"{directory} is a whole backup: {_contents(manifest)}")
    return DONE


def _verified(directory: Path) -> dict[str, Any] | None:
    """A backup's manifest, after all of it was read; None, and complaints, if it is damaged."""
    try:
        total = backup.read_manifest(directory)["keys"]
        with shown_progress("verifying", total) as note:
            return backup.verify(directory, note)
    except backup.Damaged as error:
        for problem in error.problems:
            _complain(problem)
        return None


def restore(options: argparse.Namespace) -> int:
    directory = Path(options.dir)
    manifest = _verified(directory)
    if manifest is None:
        _complain("nothing was restored")
        return NO_VALUE
    with _connect(options) as store:
        if not options.force and next(store.scan_keys(), None) is not None:
            raise OperationFailed(
                f"the cluster at {options.manager} is not empty, and nothing was restored; with "
                "--force, values of the backup replace those of the same keys, and other keys stay"
            )
        with shown_progress("restoring", manifest["keys"]) as note:
            stored = store_all(store, backup.entries(directory, manifest), note)
    _report_count(options, stored, f"restored {_contents(manifest)} from {directory}")
    return DONE


def _expected(store: Client) -> int:
    """About how many keys there are."""
    cluster = store.status()
    return int(sum(node["entries"] for node in cluster["nodes"]) / max(cluster["replicas"], 1))


def _contents(manifest: dict[str, Any]) -> str:
    return f"{_values(manifest['keys'])} ({shown_size(manifest['bytes'])})"


def _values(count: int) -> str:
    return f"{count:,} value{'s' * (count != 1)}"


def _report_count(options: argparse.Namespace, stored: int, text: str) -> None:
    if options.json:
        _print_json({"stored": stored})
    else:
        _print(text)


def encode_frame(options: argparse.Namespace) -> int:
    words = options.words
    if len(words) == _SENT_BY_CLIENTS.get(words[0]):
        message = _data_request(options, *words)
    else:
        message = frame_words.message_of(words)
    has_reply = bool(message.replies) or message.kind >= 0x80
    request_id = int(has_reply) if options.request_id is None else options.request_id
    _print(encode(message, request_id).hex())
    return DONE


_SENT_BY_CLIENTS = {"get": 2, "put": 3, "delete": 2}
"""Words of ``frame encode`` that stand for what a client would send now, with their number."""


def _data_request(
    options: argparse.Namespace, command: str, key_text: str, value: str = ""
) -> messages.Message:
    """A GET or WRITE with the epoch that the manager tells, and a WRITE with a new version."""
    try:
        key = _key(key_text)
    except argparse.ArgumentTypeError as error:
        raise InvalidInput(str(error)) from error
    manager = ("the manager", *parse_address(options.manager))
    owners = call_once(*manager, messages.KeyNodes(key), options.timeout)
    cluster = call_once(*manager, messages.ClusterInfo(), options.timeout)
    if not isinstance(owners, messages.Owners) or not isinstance(cluster, messages.Cluster):
        text = owners.message if isinstance(owners, messages.Error) else f"{owners.name}"
        raise OperationFailed(f"the manager does not tell where the key is: {text}")
    row = owners.row
    at = {member.node: format_address(member.host, member.port) for member in owners.members}
    places = [f"node {owner.node} ({at[owner.node]})" for owner in row.owners]
    if command == "get":
        print(f"to {places[0]}, the primary", file=sys.stderr)
        return messages.Get(row.list_epoch, row.partition, key)
    print(f"to {', '.join(places)}; all must answer ACK", file=sys.stderr)
    is_delete = command == "delete"
    entry = messages.Entry(
        cluster.time,
        secrets.randbits(64),
        1,
        messages.TOMBSTONE if is_delete else 0,
        None,
        b"" if is_delete else _value(value),
    )
    return messages.Write(row.list_epoch, row.partition, key, encode_record(entry))


def decode_frame(options: argparse.Namespace) -> int:
    typed = options.hex
    data = frame_words.bytes_of(_standard_input() if typed in (None, "-") else typed.encode())
    lines = explain(data)
    is_wrong = lines[-1].startswith("wrong: ")
    if options.json and not is_wrong:
        for kind, _, request_id, body in FrameBuffer().feed(data):
            message = decode(kind, body)
            fields = {"name": message.name, "request_id": request_id, "fields": to_json(message)}
            _print_json(fields)
    else:
        _print("\n".join(map(printable, lines)))
    return FAILED if is_wrong else DONE


def tap_frames(options: argparse.Namespace) -> int:
    target = parse_address(options.address or options.manager)
    host, port = parse_address(options.listen, 0) if options.listen else ("127.0.0.1", 0)
    taps = Taps(lambda line: _print(printable(line)), options.verbose, not options.only)
    tap = taps.open(format_address(*target), target, host, port)
    here = format_address(tap.host, tap.port)
    _print(f"tap of {tap.name} on {here}; for example: gtclient --manager {here} put key1 value1")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    return DONE


def bench(options: argparse.Namespace) -> int:
    from .bench import command  # it loads what no other command needs

    report, draw = command.run(options)
    if options.json:
        _print_json(report.form)
    else:
        _print("\n".join(report.lines))
    draw()
    return DONE


COMMANDS = {
    "put": Command(put, "store a value under a key", ("KEY", "VALUE", "--ttl"), True),
    "get": Command(get, "print a key's latest value", ("KEY",), False),
    "append": Command(append, "add to the end of a key's value", ("KEY", "VALUE"), True),
    "incr": Command(increment, "add to a key's number, and print it", ("KEY", "N"), True),
    "cas": Command(
        compare_and_put,
        "store a value if what is stored is as expected",
        ("KEY", "EXPECTED", "NEW", "--absent", "--ttl"),
        True,
    ),
    "delete": Command(delete, "remove a key's value", ("KEY",), True),
    "where": Command(where, "tell which storage nodes have a key", ("KEY",), False),
    "status": Command(status, "tell how nodes and partitions are", (), False),
    "top": Command(
        top,
        "show what the nodes do, again and again, until Ctrl-C; the latency is the round trip of a "
        "question to the node, not what clients measure",
        ("--interval", "--count"),
        False,
    ),
    "scan": Command(
        scan,
        "print all keys that have a value, or those with a prefix, in no order",
        ("PREFIX", "--values", "--limit"),
        False,
    ),
    "export": Command(
        export, "write keys and values as lines of JSON", ("FILE", "--prefix"), False
    ),
    "import": Command(import_lines, "put what export has written", ("FILE",), True),
    "backup": Command(
        back_up,
        "write all keys and values to a new directory, or verify such a backup",
        ("DIR", "--verify"),
        False,
    ),
    "restore": Command(
        restore,
        "verify a backup and put all of it, into a cluster of any shape",
        ("DIR", "--force"),
        True,
    ),
    "frame encode": Command(
        encode_frame,
        "print a frame in hexadecimal digits: put KEY VALUE, get KEY, delete KEY as a client would "
        "send it now; or any message by its name, with its fields in their order or as name=value",
        ("WORDS", "--request-id"),
        False,
    ),
    "frame decode": Command(
        decode_frame, "explain frames, byte by byte; exit code 3 if they are wrong", ("HEX",), False
    ),
    "frame tap": Command(
        tap_frames,
        "show every frame that passes between a client and an address, by default the manager and "
        "its nodes",
        ("HOST:PORT", "--listen", "--only"),
        False,
    ),
    **{
        name: Command(bench, told, arguments, False)
        for name, (told, arguments) in bench_arguments.COMMANDS.items()
    },
}


def _connect(options: argparse.Namespace) -> Client:
    logger.info("asking the manager at %s for the partition map", options.manager)
    return connect(options.manager, options.timeout)


def _value(argument: str) -> bytes:
    """The bytes that an argument stands for. Standard input is read as far as a value may go."""
    if argument != "-":
        return os.fsencode(argument)
    value = _standard_input(VALUE_SIZE_MAX + 1)
    if len(value) > VALUE_SIZE_MAX:
        raise InvalidInput(f"standard input is longer than a value's {VALUE_SIZE_MAX} bytes")
    return value


def _standard_input(size_max: int = -1) -> bytes:
    if sys.stdin is None:
        raise InvalidInput("standard input is closed")
    try:
        return sys.stdin.buffer.read(size_max)
    except OSError as error:
        raise InvalidInput(f"standard input cannot be read: {error.strerror}") from error


def _report_write(options: argparse.Namespace, done: str, result: PutResult) -> int:
    logger.info(
        "storage nodes %s (primary first) acknowledged key %s",
        _listed(result.nodes),
        _shown(options.key),
    )
    if options.json:
        _print_json(field("key", options.key), {"nodes": result.nodes})
    else:
        _print(f"key {_shown(options.key)} {done} at storage nodes: {_listed(result.nodes)}")
    return DONE


def _report_no_value(options: argparse.Namespace) -> int:
    logger.info("the primary of key %s answered: no value", _shown(options.key))
    if options.json:
        _print_json(field("key", options.key), {"value": None, "node": None})
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


def _print_json(*parts: Mapping[str, object]) -> None:
    _print(json.dumps({name: value for part in parts for name, value in part.items()}))


def _complain(text: str) -> None:
    if sys.stderr is not None:  # or else print would take standard output
        print(f"gtclient: {printable(text)}", file=sys.stderr)


def _shown(key: bytes) -> str:
    return printable(key.decode(errors="backslashreplace"))


def _listed(nodes: Sequence[int]) -> str:
    return " ".join(map(str, nodes))


def _print_view(view: tables.View) -> None:
    console = tables.terminal()
    if console is None:
        _print("\n".join(tables.plain(view)))
    else:
        console.print(tables.drawn(view, console))


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


def _seconds(longest: int) -> Callable[[str], float]:
    """An argument type: a time above 0 and up to the longest."""

    def parse(text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= longest:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no number of seconds above 0 and up to {longest}"
            )
        return seconds

    return parse


def _prefix(text: str) -> bytes:
    return _key(text) if text else b""


_MANAGER_HELP = f"the cluster's manager (default: ${MANAGER_VARIABLE} or 127.0.0.1:{MANAGER_PORT})"

_GROUPS = {
    "frame": "make, explain and watch frames of the protocol (docs/PROTOCOL.md)",
    "bench": bench_arguments.GROUP,
}

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "KEY": {"metavar": "KEY", "type": _key, "help": f"1 to {KEY_SIZE_MAX} bytes"},
    "VALUE": {"metavar": "VALUE", "help": "what to store; - reads standard input"},
    "N": {
        "metavar": "N",
        "type": integer(NUMBER_MIN, NUMBER_MAX),
        "nargs": "?",
        "default": 1,
        "help": "what to add (default: 1)",
    },
    "EXPECTED": {
        "metavar": "EXPECTED",
        "help": "the value that must be stored; - reads standard input",
    },
    "NEW": {"metavar": "NEW", "nargs": "?", "help": "what to store then"},
    "WORDS": {"metavar": "WORD", "nargs": "+", "help": "for example: put key1 value1; ping"},
    "HEX": {
        "metavar": "HEX",
        "nargs": "?",
        "help": "hexadecimal digits, or what xxd or hexdump -C print, or frames as they are; "
        "- or none: standard input",
    },
    "HOST:PORT": {
        "dest": "address",
        "metavar": "HOST:PORT",
        "nargs": "?",
        "help": "where the frames go (default: the manager)",
    },
    "PREFIX": {
        "metavar": "PREFIX",
        "type": _prefix,
        "nargs": "?",
        "default": b"",
        "help": "what the keys begin with (default: all keys)",
    },
    "--prefix": {
        "dest": "option_prefix",
        "metavar": "PREFIX",
        "type": _prefix,
        "default": b"",
        "help": "only keys that begin with it",
    },
    "--values": {"action": "store_true", "help": "print the values too, behind a tab"},
    "--interval": {
        "metavar": "SECONDS",
        "type": _seconds(3600),
        "default": 1.0,
        "help": "from one look to the next (%(default)s)",
    },
    "--count": {
        "metavar": "N",
        "type": integer(1, 1 << 60),
        "help": "end after so many looks",
    },
    "--limit": {
        "metavar": "N",
        "type": integer(0, 1 << 60),
        "help": "stop after so many (default: print all)",
    },
    "FILE": {
        "metavar": "FILE",
        "nargs": "?",
        "default": "-",
        "help": "- or none: standard output, or for import standard input",
    },
    "DIR": {"metavar": "DIR", "help": "a directory, which backup makes, or finds empty"},
    "--verify": {
        "action": "store_true",
        "help": "only read the backup that is there, without a cluster, and compare the checksums",
    },
    "--force": {"action": "store_true", "help": "also into a cluster that is not empty"},
    "--request-id": {
        "type": integer(0, 0xFFFF_FFFF),
        "metavar": "N",
        "help": "default: 1, or 0 for a request without reply",
    },
    "--listen": {"metavar": "HOST:PORT", "help": "where the tap listens (default: a free port)"},
    "--only": {"action": "store_true", "help": "do not open taps for a manager's nodes"},
    "--ttl": {
        "type": _seconds(TTL_MAX_S),
        "metavar": "SECONDS",
        "help": "after which the key has no value any more (default: it stays)",
    },
    "--absent": {"action": "store_true", "help": "the key must have no value: KEY --absent NEW"},
    **bench_arguments.ARGUMENTS,
}


def parser() -> OneLineParser:
    """The program's arguments."""
    result = _Parser(
        prog="gtclient",
        description="Put and get values in a GT Store cluster.",
        epilog="Exit codes: 0 done; 1 key not found, comparison or verification failed; 2 usage or "
        "invalid input; 3 it did not happen; 4 outcome unknown, it may have happened; "
        "5 not allowed. "
        "Write -- before a key or a value that begins with -.",
        allow_abbrev=False,
    )
    result.add_argument("--version", action="version", version=f"gtclient {__version__}")
    _add_options(result, manager=None, timeout=CLIENT_TIMEOUT_S, flag=False)
    commands = result.add_subparsers(dest="command", metavar="COMMAND", required=True)
    groups: dict[str, Any] = {"": commands}
    for full_name, command in COMMANDS.items():
        group, _, name = full_name.rpartition(" ")
        if group not in groups:
            inner = commands.add_parser(group, help=_GROUPS[group], description=_GROUPS[group])
            groups[group] = inner.add_subparsers(
                dest="subcommand", metavar="COMMAND", required=True
            )
        subparser = groups[group].add_parser(
            name, help=command.help, description=command.help, allow_abbrev=False
        )
        subparser.set_defaults(command=full_name)
        for argument in command.arguments:
            details = dict(_ARGUMENTS[argument])
            if not argument.startswith("-"):
                argument = details.pop("dest", argument.lower())
            subparser.add_argument(argument, **details)
        # SUPPRESS: an option that is not repeated here keeps what stood before the command.
        unset = argparse.SUPPRESS
        manager_help = bench_arguments.MANAGER_HELP if group == "bench" else _MANAGER_HELP
        _add_options(subparser, unset, timeout=unset, flag=unset, manager_help=manager_help)
    return result


def _add_options(
    target: argparse.ArgumentParser,
    manager: str | None,
    timeout: float | str,
    flag: bool | str,
    manager_help: str = _MANAGER_HELP,
) -> None:
    """The options that may stand before and after the command."""
    target.add_argument(
        "--manager",
        default=manager,
        metavar="HOST:PORT",
        help=manager_help,
    )
    target.add_argument(
        "--timeout",
        type=_seconds(_TIMEOUT_MAX_S),
        default=timeout,
        metavar="SECONDS",
        help="time to connect, and then for the command, or for each step of one that takes long "
        f"(default: {CLIENT_TIMEOUT_S:g})",
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
        # A benchmark is for a cluster that was named, not for one that happens to be the default.
        options.is_manager_given = options.manager is not None
        if not options.is_manager_given:
            default = os.environ.get(MANAGER_VARIABLE)
            options.manager = default or f"127.0.0.1:{MANAGER_PORT}"
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
    # What cannot be encoded was typed so; an address that is taken, too.
    if isinstance(error, InvalidInput | LocalProtocolError | ClusterError):
        return USAGE
    if isinstance(error, OutcomeUnknown):  # whatever ended it
        return UNKNOWN
    if isinstance(error, VersionMismatch):
        return NO_VALUE
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
