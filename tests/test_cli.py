"""gtclient over a real cluster: what it prints, its exit codes, its errors in one line."""

from __future__ import annotations

import errno
import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from gtstore import (
    ConnectionLost,
    DeadlineExceeded,
    GTStoreError,
    InvalidInput,
    OperationFailed,
    OutcomeUnknown,
    RemoteError,
    Unavailable,
    __version__,
    cli,
    tables,
)
from gtstore.testing import Cluster
from gtstore.wire.messages import BUSY, NOT_ALLOWED, VALUE_SIZE_MAX

pytestmark = pytest.mark.cluster

NO_MANAGER = "127.0.0.1:1"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=5, replicas=3) as started:
        yield started


@pytest.fixture
def manager(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> str:
    """The cluster is gtclient's default, and the manager's address is returned."""
    monkeypatch.setenv("GTSTORE_MANAGER", cluster.address)
    return cluster.address


def run(
    *arguments: str | bytes, stdin: bytes = b"", **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """gtclient as a process of its own, with pipes."""
    return subprocess.run(
        [sys.executable, "-m", "gtstore.cli", *arguments],
        input=stdin,
        capture_output=True,
        timeout=30,
        check=False,
        **options,
    )


def usage_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a usage error."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert caught.value.code == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("gtclient: ")
    assert error.count("\n") == 1
    return error


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("gtclient: ")
    assert error.count("\n") == 1
    return error.removeprefix("gtclient: ").removesuffix("\n")


# --- the commands --------------------------------------------------------------------------------


@pytest.mark.usefixtures("manager")
def test_put_get_delete(capsys: pytest.CaptureFixture[str]) -> None:
    """The contract's words; placements from the report: 5 nodes, 3 replicas, key1 4 5 1."""
    assert cli.main(["put", "key1", "value1"]) == 0
    assert capsys.readouterr() == ("key key1 stored at storage nodes: 4 5 1\n", "")
    assert cli.main(["get", "key1"]) == 0
    assert capsys.readouterr() == ("value1", "")
    assert cli.main(["where", "key1"]) == 0
    assert capsys.readouterr() == (
        "key key1: partition 58, storage nodes 4 5 1 (primary first)\n",
        "",
    )
    assert cli.main(["delete", "key1"]) == 0
    assert capsys.readouterr() == ("key key1 deleted at storage nodes: 4 5 1\n", "")
    assert cli.main(["get", "key1"]) == 1
    assert capsys.readouterr() == ("", "gtclient: key key1 not found\n")


@pytest.mark.usefixtures("manager")
def test_append_incr_cas(capsys: pytest.CaptureFixture[str]) -> None:
    """What they print, and the exit code of a failed comparison."""

    def printed(*arguments: str, code: int = 0) -> tuple[str, str]:
        assert cli.main([*arguments]) == code
        return capsys.readouterr()

    assert printed("append", "log", "ab") == ("key log has 2 bytes now\n", "")
    assert printed("append", "log", "c", "--json") == ('{"key": "log", "length": 3}\n', "")
    assert printed("incr", "hits") == ("1\n", "")
    assert printed("incr", "hits", "-5") == ("-4\n", "")
    assert printed("--json", "incr", "hits", "5") == ('{"key": "hits", "value": 1}\n', "")
    _, error = printed("incr", "log", code=3)
    assert error == "gtclient: log was not changed: the value is no number\n"
    stored = "key key1 stored at storage nodes: 4 5 1\n"
    assert printed("cas", "key1", "--absent", "one") == (stored, "")
    assert printed("cas", "key1", "one", "two") == (stored, "")
    _, error = printed("cas", "key1", "one", "three", code=1)
    assert error == "gtclient: key1 has another value or version\n"
    assert printed("get", "key1") == ("two", "")
    assert printed("delete", "key1")


@pytest.mark.usefixtures("manager")
def test_ttl(capsys: pytest.CaptureFixture[str]) -> None:
    """It prints the same; a value that lives a microsecond is gone by the time of the get."""
    for ttl, code in (("100", 0), ("0.000001", 1)):
        assert cli.main(["put", "short", "value", "--ttl", ttl]) == 0
        assert capsys.readouterr() == ("key short stored at storage nodes: 1 2 3\n", "")
        assert cli.main(["get", "short"]) == code
        capsys.readouterr()
        assert cli.main(["cas", "short", "value", "new", "--ttl", ttl]) == code
        capsys.readouterr()
    for ttl in ("0.000001", "100"):
        assert cli.main(["cas", "short", "--absent", "value", "--ttl", ttl]) == 0
    assert cli.main(["cas", "short", "--absent", "value"]) == 1
    capsys.readouterr()
    assert cli.main(["get", "short"]) == 0
    assert capsys.readouterr().out == "value"


@pytest.mark.usefixtures("manager")
def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """One object a command, with the contract's names."""

    def printed(*arguments: str, code: int = 0) -> object:
        assert cli.main(["--json", *arguments]) == code
        output, error = capsys.readouterr()
        assert error == ""
        assert output.count("\n") == 1
        return json.loads(output)

    assert printed("put", "key2", "zwei ✓") == {"key": "key2", "nodes": [5, 1, 2]}
    assert printed("get", "key2") == {"key": "key2", "value": "zwei ✓", "node": 5}
    assert printed("where", "key2") == {"key": "key2", "partition": 59, "owners": [5, 1, 2]}
    assert printed("delete", "key2") == {"key": "key2", "nodes": [5, 1, 2]}
    assert printed("get", "key2", code=1) == {"key": "key2", "value": None, "node": None}


def test_json_status(cluster: Cluster, manager: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The contract's names, the cluster's own id beside them, and the object of Client.status."""
    assert cli.main(["status", "--json", "--manager", manager]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status == cluster.status()
    assert set(status) - {"cluster"} == {
        "epoch", "replicas", "hash", "nodes", "under_replicated", "begun_anew",
        "troubles",
    }  # fmt: skip
    assert (status["epoch"], status["replicas"], status["hash"]) == (1, 3, "additive")
    assert status["under_replicated"] == status["troubles"] == []
    assert [node["id"] for node in status["nodes"]] == [1, 2, 3, 4, 5]
    assert {tuple(node) for node in status["nodes"]} == {
        (
            "id", "address", "pid", "incarnation", "state", "entries", "bytes", "full",
            "partitions", "primaries", "syncing",
        )
    }  # fmt: skip


def test_status_of_a_manager_that_lies() -> None:
    """What it says of a node's address is shown escaped, and stays in its line."""
    node = dict.fromkeys(
        ("id", "pid", "incarnation", "entries", "bytes", "partitions", "primaries", "syncing"), 1
    )
    node |= {"full": None, "state": "alive", "address": "host\n\x1b[2Jnode 2 is dead:1"}
    shape: Any = {
        "epoch": 1,
        "replicas": 1,
        "hash": "additive",
        "under_replicated": [],
        "begun_anew": [],
        "troubles": [{"what": "unsaved", "since": 1.7e9, "reason": "a\nb"}],
    }
    lines = list(tables.plain(tables.of_status({**shape, "nodes": [node]})))
    assert len(lines) == 4
    assert lines[1].startswith("unsaved since 2023-11-1")
    assert lines[1].endswith(": a\\nb")
    assert "host\\n\\x1b[2Jnode 2 is dead:1" in lines[3]


def test_errors_are_one_line() -> None:
    """Also if the peer's words have several."""
    lost = ConnectionLost("node 1 (a\nb:1)", "it says\r\nmuch")
    assert str(lost) == "node 1 (a\\nb:1): it says\\r\\nmuch"
    refused = RemoteError("node 1", 99, "error 99", "\x1b[31mred\x07")
    assert str(refused) == "node 1 answered error 99: \\x1b[31mred\\x07"


def test_status(cluster: Cluster, manager: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line about the cluster, then an aligned table of the nodes."""
    assert cli.main(["status", "--manager", manager]) == 0
    first, titles, *rows = capsys.readouterr().out.splitlines()
    assert first == "epoch 1, 3 replicas, hash additive, under-replicated partitions: 0"
    assert titles.split() == [
        "node", "state", "address", "pid", "incarnation", "entries", "bytes", "partitions",
        "primaries",
        "syncing",
    ]  # fmt: skip
    assert [row.split()[:2] for row in rows] == [[str(node), "alive"] for node in range(1, 6)]
    assert [int(row.split()[3]) for row in rows] == list(cluster.node_pids.values())
    assert {len(row) for row in rows} == {len(titles)}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--json", "--manager", "{}", "--timeout", "4", "where", "key1"),
        ("where", "key1", "--json", "--manager", "{}", "--timeout", "4"),
        ("--manager", NO_MANAGER, "where", "--manager", "{}", "--json", "key1"),
    ],
)
def test_options_stand_before_and_after(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], arguments: Sequence[str]
) -> None:
    assert cli.main([argument.format(cluster.address) for argument in arguments]) == 0
    assert json.loads(capsys.readouterr().out)["owners"] == [4, 5, 1]


@pytest.mark.usefixtures("manager")
def test_minus_signs(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """After --, keys and values may look like options; a lone - is a key like any other."""
    assert cli.main(["put", "--", "-k", "--json"]) == 0
    assert cli.main(["put", "-", "-5"]) == 0
    capfdbinary.readouterr()
    assert cli.main(["get", "--", "-k"]) == 0
    assert cli.main(["get", "-"]) == 0
    assert capfdbinary.readouterr() == (b"--json-5", b"")


@pytest.mark.usefixtures("manager")
def test_bytes_pass_unchanged() -> None:
    """Arguments that are not UTF-8, standard input, and no newline into a pipe."""
    key, value = b"k\xff", b"\0\xfe\r\n\xff"
    done = run("put", key, "-", stdin=value)
    assert (done.returncode, done.stdout) == (0, b"key k\\xff stored at storage nodes: 3 4 5\n")
    done = run("get", key)
    assert (done.returncode, done.stdout, done.stderr) == (0, value, b"")
    done = run("get", key, "--json")
    assert json.loads(done.stdout) == {
        "key_base64": "a/8=",
        "value_base64": "AP4NCv8=",
        "node": 3,
    }
    done = run("put", key, b"\xfd")
    assert done.returncode == 0
    assert run("get", key).stdout == b"\xfd"
    done = run("get", b"none\n\xff")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"gtclient: key none\\n\\xff not found\n"


@pytest.mark.usefixtures("manager")
def test_a_terminal_gets_a_newline() -> None:
    assert cli.main(["put", "key3", "value3"]) == 0
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "gtstore.cli", "get", "key3"], stdout=theirs, timeout=30, check=False
    )
    assert done.returncode == 0
    assert os.read(ours, 100) == b"value3\r\n"  # the terminal makes \r\n of \n
    os.close(ours)
    os.close(theirs)


@pytest.mark.usefixtures("manager")
def test_a_long_value() -> None:
    value = bytes(range(256)) * (VALUE_SIZE_MAX // 256)
    assert run("put", "long", "-", stdin=value).returncode == 0
    assert run("get", "long").stdout == value
    done = run("put", "long", "-", stdin=value + b"x")
    assert done.returncode == 2
    assert done.stderr == b"gtclient: standard input is longer than a value's 16777216 bytes\n"


def test_verbose(manager: str, capsys: pytest.CaptureFixture[str]) -> None:
    """-v tells the steps on standard error, and only while the command runs."""
    logger = logging.getLogger("gtstore.client")
    before = logger.level, list(logger.handlers)
    asking = f"asking the manager at {manager} for the partition map\n"

    def told(*arguments: str) -> str:
        cli.main(list(arguments))
        return capsys.readouterr().err.removeprefix(asking)

    assert told("-v", "put", "key3", "x") == (
        "storage nodes 1 2 3 (primary first) acknowledged key key3\n"
    )
    assert told("get", "key3", "-v") == (
        "storage node 1, the primary of key key3, answered: value of 1 byte\n"
    )
    assert told("-v", "get", "none") == (
        "the primary of key none answered: no value\ngtclient: key none not found\n"
    )
    assert told("get", "key3") == ""
    assert (logger.level, list(logger.handlers)) == before


def test_kill_the_primary() -> None:
    """The very next get after a kill -9 has the value, with no error on the way; puts go on."""
    with Cluster(nodes=2, replicas=2, options=["--no-respawn"]) as cluster:
        options = ("--manager", cluster.address)
        assert run(*options, "put", "key1", "old").stdout.endswith(b": 1 2\n")
        assert run(*options, "put", "key1", "new").returncode == 0
        cluster.kill_node(1)
        done = run(*options, "get", "key1")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"new", b"")
        done = run(*options, "put", "key1", "newer")
        assert (done.returncode, done.stderr) == (0, b"")
        assert run(*options, "get", "key1").stdout == b"newer"
        status = run(*options, "status").stdout.decode()
        assert "under-replicated partitions: 128" in status
        assert "dead" in status.splitlines()[2]


def test_no_owner_left() -> None:
    """Unavailable is 3: it did not happen."""
    with Cluster(nodes=1, replicas=1, options=["--no-respawn"]) as cluster:
        cluster.kill_node(1)
        for arguments in (("put", "key1", "x"), ("get", "key1"), ("where", "key1")):
            done = run("--manager", cluster.address, *arguments)
            assert (done.returncode, done.stdout) == (3, b"")
            assert done.stderr.startswith(b"gtclient: ")
            assert done.stderr.count(b"\n") == 1


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "required: COMMAND"),
        (("frobnicate",), "invalid choice: 'frobnicate'"),
        (("get",), "required: KEY"),
        (("put", "key1"), "required: VALUE"),
        (("get", "key1", "key2\n"), "unrecognized arguments: key2\\n"),
        (("get", ""), "a key has 1 to 500 bytes, not 0"),
        (("get", "ü" * 251), "a key has 1 to 500 bytes, not 502"),
        (("--timeout", "0", "get", "key1"), "'0' is no number of seconds"),
        (("get", "key1", "--timeout", "nan"), "'nan' is no number of seconds"),
        (("get", "key1", "--timeout", "soon"), "'soon' is no number of seconds"),
        (("get", "key1", "--js"), "unrecognized arguments: --js"),
        (("put", "key1", "value", "--ttl", "0"), "'0' is no number of seconds above 0"),
        (("cas", "key1", "a", "b", "--ttl", "4e9"), "'4e9' is no number of seconds above 0"),
        (("incr", "key1", "x"), "'x' is no whole number"),
        (("incr", "key1", "9223372036854775808"), "is no whole number from -9223372036854775808"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], arguments: Sequence[str], said: str) -> None:
    assert said in usage_error(capsys, *arguments)


@pytest.mark.usefixtures("manager")
@pytest.mark.parametrize("arguments", [("old",), ("old", "new", "--absent")])
def test_cas_usage(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> None:
    assert cli.main(["cas", "key1", *arguments]) == 2
    assert "write cas KEY EXPECTED NEW, or cas KEY --absent NEW" in complaint(capsys)


def test_no_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--manager", "here:there", "get", "key1"]) == 2
    assert complaint(capsys).startswith("'here:there' is no address; write HOST:PORT")


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    helps = ([*command, "--help"] for command in ([], ["put"], ["frame"], ["bench"]))
    for arguments in (["--version"], *helps):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 0
    output = capsys.readouterr().out
    assert output.startswith(f"gtclient {__version__}\n")
    for command in cli.COMMANDS:
        assert re.search(rf"\n    {command.rpartition(' ')[2]}\s", output)


@pytest.mark.parametrize("arguments", [("get", "key1"), ("put", "key1", "x"), ("status",)])
def test_no_manager(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> None:
    """Nothing was sent: 3, at once, and what to do about it."""
    assert cli.main(["--manager", NO_MANAGER, *arguments]) == 3
    assert complaint(capsys) == (
        f"the manager at {NO_MANAGER}: connection refused; "
        "is a manager running there? start one with: python -m gtstore.managerd 7 3"
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("no"), 2),
        (OperationFailed("no"), 3),
        (Unavailable("no", required=3, alive=0), 3),
        (ConnectionLost("node 1", "no"), 3),
        (DeadlineExceeded("node 1", "no"), 3),
        (OutcomeUnknown("no", acks=1, required=3), 4),
        (RemoteError("node 1", NOT_ALLOWED, "NOT_ALLOWED", "no"), 5),
        (RemoteError("node 1", BUSY, "BUSY", "no"), 3),
        (GTStoreError("no\nno"), 3),
        (ZeroDivisionError("a bug"), 3),
    ],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
) -> None:
    monkeypatch.setattr(cli, "connect", _raises(error))
    assert cli.main(["get", "key1"]) == code
    complaint(capsys)


@pytest.mark.parametrize(
    ("kind", "code"),
    [(OperationFailed("no"), 5), (OutcomeUnknown("no", acks=0, required=3), 4)],
)
def test_a_refused_write(monkeypatch: pytest.MonkeyPatch, kind: GTStoreError, code: int) -> None:
    """A write's error has the node's refusal as its cause; one that may have happened stays so."""
    kind.__cause__ = RemoteError("node 1", NOT_ALLOWED, "NOT_ALLOWED", "no")
    monkeypatch.setattr(cli, "connect", _raises(kind))
    assert cli.main(["put", "key1", "x"]) == code


def test_a_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A write that a bug of ours ended may have happened; -v gives the traceback."""
    monkeypatch.setattr(cli, "connect", _raises(ZeroDivisionError("a bug")))
    assert cli.main(["put", "key1", "x"]) == 4
    assert complaint(capsys) == "internal error, -v shows where: ZeroDivisionError: a bug"
    with pytest.raises(ZeroDivisionError):
        cli.main(["-v", "put", "key1", "x"])


def test_control_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "connect", _raises(KeyboardInterrupt()))
    assert cli.main(["get", "key1"]) == 130
    assert capsys.readouterr() == ("", "")


def _raises(error: BaseException) -> Any:
    def connect(*_: object) -> None:
        raise error

    return connect


@pytest.mark.usefixtures("manager")
def test_output_that_nobody_reads() -> None:
    """A pipe that was closed is quiet; a full disk is said, and the write's outcome left open."""
    assert run("put", "long", "-", stdin=b"x" * (1 << 20)).returncode == 0
    reader, writer = os.pipe()
    os.close(reader)
    assert _to(writer, "get", "long") == (141, b"")
    os.close(writer)
    full = os.open("/dev/full", os.O_WRONLY)
    said = f"gtclient: cannot write to standard output: {os.strerror(errno.ENOSPC).lower()}\n"
    assert _to(full, "get", "long") == (3, said.encode())
    assert _to(full, "put", "key1", "x") == (4, said.encode())
    os.close(full)


def _to(output: int, *arguments: str) -> tuple[int, bytes]:
    done = subprocess.run(
        [sys.executable, "-m", "gtstore.cli", *arguments],
        stdout=output,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.usefixtures("manager")
def test_closed_streams() -> None:
    """Started without standard input or output, as some supervisors do."""
    gtclient = f"{sys.executable} -m gtstore.cli"
    for command, code, said in (
        (f"{gtclient} put key1 - <&-", 2, "standard input is closed"),
        (f"{gtclient} status >&-", 3, "cannot write to standard output: bad file descriptor"),
        (f"{gtclient} get none >&-", 1, "key none not found"),
    ):
        done = subprocess.run(
            ["sh", "-c", command], stderr=subprocess.PIPE, timeout=30, check=False
        )
        assert (done.returncode, done.stderr.decode()) == (code, f"gtclient: {said}\n")
    done = subprocess.run(
        ["sh", "-c", f"{gtclient} get none 2>&-"], stdout=subprocess.PIPE, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.usefixtures("manager")
def test_unreadable_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(read=read)))
    assert cli.main(["put", "key1", "-"]) == 2
