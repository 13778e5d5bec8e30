"""Scans over real processes, and what gtclient makes of them: export, import, backup, restore."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import gtstore
from gtstore import cli
from gtstore.testing import Cluster

pytestmark = pytest.mark.cluster

KEYS = 3000


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Full of values, and one that expires; nobody changes them."""
    with Cluster(5, 3) as running, running.connect() as store:
        store.put_many({f"user/{i}": f"value {i}" for i in range(KEYS)})
        store.put_many({b"\xff\n": b"\x80", "long": b"v" * 300_000, "empty": b""})
        store.put("short", "lived", ttl=1000)
        yield running


@pytest.fixture
def empty() -> Iterator[Cluster]:
    """A cluster of another shape."""
    with Cluster(2, 1, ["--hash", "crc16"]) as running:
        yield running


def everything(cluster: Cluster) -> dict[bytes, tuple[bytes, int | None]]:
    with cluster.connect() as store:
        found = list(store.scan_entries())
    assert len({entry.key for entry in found}) == len(found)
    return {entry.key: (entry.value, entry.expiry_us) for entry in found}


def command(cluster: Cluster | None, *arguments: str) -> list[str]:
    address = cluster.address if cluster else "127.0.0.1:1"
    return [sys.executable, "-m", "gtstore.cli", "--manager", address, *arguments]


def run(
    cluster: Cluster | None, *arguments: str, code: int = 0, stdin: bytes = b""
) -> tuple[str, str]:
    """gtclient as a process of its own: what it prints, and its complaints."""
    done = subprocess.run(
        command(cluster, *arguments), input=stdin, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    return done.stdout.decode(), done.stderr.decode()


# --- from Python ---------------------------------------------------------------------------------


def test_all_three_ways(cluster: Cluster) -> None:
    """Values, keys, all that is known; with a prefix, text or bytes."""
    with cluster.connect() as store:
        found = dict(store.scan())
        assert len(found) == KEYS + 4
        assert (found[b"user/7"], found[b"\xff\n"], found[b"empty"]) == (b"value 7", b"\x80", b"")
        assert found[b"long"] == b"v" * 300_000
        assert sorted(store.scan_keys()) == sorted(found)
        keys = sorted([b"user/299", *(b"user/299%d" % i for i in range(10))])
        assert sorted(store.scan_keys("user/299")) == keys
        assert dict(store.scan(b"user/299")) == {key: found[key] for key in keys}
        (entry,) = store.scan_entries("short")
        assert entry.expiry_us is not None
        assert 0 < entry.expiry_us / 1e6 - time.time() <= 1000
        assert entry.version == store.get_entry("short").version  # type: ignore[union-attr]
        for prefix in ("k" * 501, 5, None):
            with pytest.raises(gtstore.InvalidInput):
                store.scan(prefix)  # type: ignore[arg-type]


def test_a_scan_that_is_left(cluster: Cluster) -> None:
    """It holds nothing of the client between its steps; and it ends with the client."""
    with cluster.connect() as store:
        for _ in range(50):
            assert len(list(itertools.islice(store.scan(), 10))) == 10
        half = store.scan()
        next(half)
        assert len(list(store._lanes._living)) == 1
    with pytest.raises(gtstore.GTStoreError, match="closed"):
        list(half)


def test_entries_of_one_cluster_into_another(cluster: Cluster, empty: Cluster) -> None:
    """put_entries takes what scan_entries yields, expiry and all."""
    with cluster.connect() as source, empty.connect() as target:
        entries = source.scan_entries()
        while some := list(itertools.islice(entries, 1000)):
            target.put_entries(some)
        with pytest.raises(gtstore.InvalidInput):
            target.put_entries([gtstore.ScannedEntry(b"k", b"v", gtstore.Version(0, 0), -1)])
    assert everything(empty) == everything(cluster)


def test_many_scans_and_writes_at_once() -> None:
    """Keys that nobody touches are found by each scan, once, with their values."""
    with Cluster(3, 2) as cluster, cluster.connect(timeout=30) as store:
        still = {b"still/%d" % i: b"%d" % i for i in range(2000)}
        store.put_many(still)
        is_over = threading.Event()
        failures: list[BaseException] = []

        def write() -> None:
            for i in itertools.count():
                if is_over.is_set():
                    return
                store.put(f"moving/{i % 500}", f"{i}")
                store.delete(f"moving/{i * 7 % 500}")

        def scan() -> None:
            try:
                for _ in range(3):
                    keys = list(store.scan_keys())
                    assert len(keys) == len(set(keys))
                    assert still.keys() <= set(keys)
                    assert dict(store.scan("still/")) == still
            except BaseException as error:
                failures.append(error)

        writer = threading.Thread(target=write)
        scanners = [threading.Thread(target=scan) for _ in range(4)]
        for thread in (writer, *scanners):
            thread.start()
        for thread in scanners:
            thread.join()
        is_over.set()
        writer.join()
        assert failures == []


def test_a_scan_while_nodes_die_and_return() -> None:
    """It goes on with the next primary, and misses nothing."""
    with Cluster(5, 3) as cluster, cluster.connect(timeout=20) as store:
        values = {b"user/%d" % i: b"%d" % i for i in range(KEYS)}
        store.put_many(values)
        found: list[tuple[bytes, bytes]] = []
        scan = store.scan()
        for node in (1, 3):
            found += itertools.islice(scan, KEYS // 4)
            cluster.kill_node(node)
        found += itertools.islice(scan, KEYS // 4)
        cluster.wait_in_sync()
        cluster.kill_node(2)
        found += scan
        assert len(found) == KEYS
        assert dict(found) == values


def test_a_scan_of_what_is_on_disk(tmp_path: Path) -> None:
    """What was acknowledged is found, also after everything was stopped."""
    still = {b"still/%d" % i: b"%d" % i for i in range(KEYS)}
    options = ["--data-dir", str(tmp_path)]
    with Cluster(3, 2, options) as cluster, cluster.connect() as store:
        for at in range(0, KEYS, 500):
            some = dict(list(still.items())[at : at + 500])
            store.put_many(some)
            found = dict(store.scan())
            assert some.items() <= found.items() <= still.items()
    with Cluster(3, 2, options) as cluster, cluster.connect() as store:
        assert dict(store.scan()) == still
        keys = sorted([b"still/77", *(b"still/77%d" % i for i in range(10))])
        assert sorted(store.scan_keys("still/77")) == keys


# --- gtclient ------------------------------------------------------------------------------------


def test_scan_prints(cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    """Keys on lines of their own, escaped where they must be; JSON as export has it."""

    def printed(*arguments: str) -> list[str]:
        assert cli.main(["--manager", cluster.address, *arguments]) == 0
        output, error = capfd.readouterr()
        assert error == ""
        return output.splitlines()

    assert len(printed("scan")) == KEYS + 4
    assert r"\xff\n" in printed("scan")
    assert printed("scan", "user/2999") == ["user/2999"]
    assert printed("scan", "user/2999", "--values") == ["user/2999\tvalue 2999"]
    assert printed("--json", "scan", "user/2999") == ['{"key": "user/2999"}']
    (line,) = printed("--json", "scan", "--values", "short")
    form = json.loads(line)
    assert 0 < form.pop("expires_at") - time.time() <= 1000
    assert form == {"key": "short", "value": "lived"}
    assert len(printed("scan", "--limit", "7")) == 7
    assert printed("scan", "--limit", "0") == []
    assert printed("scan", "nothing like it") == []


def test_export_into_import(cluster: Cluster, empty: Cluster) -> None:
    """Through a pipe, into a cluster of another shape: the same values, and expiries."""
    with subprocess.Popen(command(cluster, "export"), stdout=subprocess.PIPE) as source:
        done = subprocess.run(
            command(empty, "import"), stdin=source.stdout, capture_output=True, check=True
        )
    assert source.returncode == 0
    assert done.stdout.decode() == f"stored {KEYS + 4:,} values\n"
    assert done.stderr == b""
    assert everything(empty) == everything(cluster)


def test_export_to_a_file(cluster: Cluster, tmp_path: Path) -> None:
    """It is there when it is whole; a device or a pipe is written to, not replaced."""
    path = tmp_path / "values.jsonl"
    path.write_text("old")
    assert run(cluster, "export", str(path), "--prefix", "user/29") == ("", "")
    assert len(path.read_bytes().splitlines()) == 111
    assert os.listdir(tmp_path) == [path.name]
    assert run(None, "export", str(path), code=3)[0] == ""
    assert len(path.read_bytes().splitlines()) == 111
    assert os.listdir(tmp_path) == [path.name]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(command(cluster, "export", str(pipe))) as source:
        assert len(pipe.read_bytes().splitlines()) == KEYS + 4
    assert source.returncode == 0
    assert pipe.is_fifo()
    _, error = run(cluster, "export", str(tmp_path / "no" / "file"), code=3)
    assert error == f"gtclient: cannot write {tmp_path}/no/file: No such file or directory\n"


def test_import_of_wrong_lines(empty: Cluster, tmp_path: Path) -> None:
    """The line and the reason; what stood before it is stored, and nothing of what follows."""
    lines = b'{"key": "a", "value": "1"}\n{"key": "a", "value": "2"}\n{"key": "b"}\n'
    path = tmp_path / "lines"
    path.write_bytes(lines + b'{"key": "c", "value": "3"}\n')
    for arguments, stdin, name in (
        (["import", str(path)], b"", str(path)),
        (["import", "-"], path.read_bytes(), "standard input"),
    ):
        output, error = run(empty, *arguments, code=2, stdin=stdin)
        assert output == ""
        assert error == (
            f"gtclient: {name}, line 3: it needs either value or value_base64; "
            "values stored before it: 2\n"
        )
    assert {key: value for key, (value, _) in everything(empty).items()} == {b"a": b"2"}
    assert run(empty, "--json", "import", stdin=b"")[0] == '{"stored": 0}\n'
    _, error = run(empty, "import", str(tmp_path / "nothing"), code=2)
    assert "cannot read" in error
    _, error = run(empty, "import", str(tmp_path), code=2)
    assert "Is a directory" in error


def test_backup_and_restore(cluster: Cluster, empty: Cluster, tmp_path: Path) -> None:
    """Into another shape, expiries too; not into a cluster that holds something, unless forced;
    not a damaged one."""
    directory = tmp_path / "backup"
    output, _ = run(cluster, "backup", str(directory))
    assert output.startswith(f"backed up {KEYS + 4:,} values (")
    _, error = run(cluster, "backup", str(directory), code=3)
    assert error == f"gtclient: {directory} is not empty: name a new directory\n"
    output, _ = run(None, "backup", "--verify", str(directory))
    assert output.startswith(f"{directory} is a whole backup: {KEYS + 4:,} values (")
    manifest = json.loads(run(None, "--json", "backup", "--verify", str(directory))[0])
    assert manifest["keys"] == KEYS + 4
    assert manifest["cluster"] == cluster.status()["cluster"]
    output, _ = run(empty, "restore", str(directory))
    assert output.startswith(f"restored {KEYS + 4:,} values (")
    assert everything(empty) == everything(cluster)

    with empty.connect() as store:
        store.put("user/7", "changed")
        store.put("another", "one")
    _, error = run(empty, "restore", str(directory), code=3)
    assert "is not empty, and nothing was restored" in error
    output, _ = run(empty, "--json", "restore", str(directory), "--force")
    assert json.loads(output) == {"stored": KEYS + 4}
    found = everything(empty)
    assert found.pop(b"another") == (b"one", None)
    assert found == everything(cluster)

    path = directory / manifest["files"][0]["name"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    _, error = run(None, "backup", "--verify", str(directory), code=1)
    assert error == f"gtclient: {path} is damaged: its checksum is another one\n"
    _, error = run(empty, "restore", str(directory), "--force", code=1)
    assert error.splitlines()[1] == "gtclient: nothing was restored"
    _, error = run(empty, "restore", str(tmp_path), code=1)
    assert "no manifest.json: it is no backup" in error


def test_a_backup_while_a_node_dies(tmp_path: Path) -> None:
    """And a restore: both go on."""
    with Cluster(3, 2) as cluster:
        with cluster.connect() as store:
            store.put_many({f"user/{i}": "v" * 100 for i in range(20_000)})
        before = everything(cluster)
        directory = tmp_path / "backup"
        with subprocess.Popen(
            command(cluster, "--timeout", "20", "backup", str(directory)), stdout=subprocess.DEVNULL
        ) as backup:
            while not directory.exists():
                time.sleep(0.001)
            cluster.kill_node(2)
        assert backup.returncode == 0
        run(None, "backup", "--verify", str(directory))
        cluster.wait_in_sync()
        with subprocess.Popen(
            command(cluster, "--timeout", "20", "restore", "--force", str(directory)),
            stdout=subprocess.DEVNULL,
        ) as restore:
            time.sleep(0.5)
            cluster.kill_node(1)
        assert restore.returncode == 0
        assert everything(cluster) == before


def test_no_cluster(tmp_path: Path) -> None:
    """One line, and no file or directory that was not there."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    for arguments in (
        ["scan"],
        ["export"],
        ["export", str(tmp_path / "other")],
        ["import", str(path)],
        ["backup", str(tmp_path / "backup")],
    ):
        _, error = run(None, *arguments, code=3)
        assert error.startswith("gtclient: the manager at 127.0.0.1:1: ")
        assert error.count("\n") == 1
    assert os.listdir(tmp_path) == [path.name]
