"""--data-dir: what was acknowledged is there after everything was killed."""

from __future__ import annotations

import multiprocessing
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from gtstore import GTStoreError, OperationFailed, OutcomeUnknown, Unavailable, connect
from gtstore.manager import Manager
from gtstore.state_file import LMDB
from gtstore.testing import Cluster, wait_until
from gtstore.wire import messages

from .managers import a_manager, address_of

lmdb = pytest.importorskip("lmdb", reason="entries on disk need py-lmdb (the extra durable)")

pytestmark = pytest.mark.cluster

FORK = multiprocessing.get_context("fork")
WRITERS = 4
KEYS_A_WRITER = 50
PAGE = 4096
BRANCH, LEAF = 1, 2
"""Kinds of LMDB's pages."""


def on_disk(directory: Path) -> Cluster:
    return Cluster(5, 3, ["--data-dir", str(directory / "data")])


def test_stop_and_start(tmp_path: Path) -> None:
    """Everything is back, in sync, without a copy; deleted keys have no value."""
    with on_disk(tmp_path) as cluster, cluster.connect() as client:
        client.put_many({f"key{i}": f"value{i}" for i in range(300)})
        for i in range(100):
            client.delete(f"key{i}")
        before = client.status()
    with on_disk(tmp_path) as cluster, cluster.connect() as client:
        after = client.status()
        assert after["under_replicated"] == []
        assert not any(node["syncing"] for node in after["nodes"])
        assert after["cluster"] == before["cluster"]
        assert after["epoch"] > before["epoch"]
        assert [node["entries"] for node in after["nodes"]] == [
            node["entries"] for node in before["nodes"]
        ]
        values = client.get_many([f"key{i}" for i in range(300)])
        assert values == {f"key{i}": None if i < 100 else f"value{i}".encode() for i in range(300)}
        assert "copied" not in cluster.log()


def write_on(address: str, writer: int, results: Connection) -> None:
    """Overwrite one's own keys in turn with rising numbers, until a call fails for long; send what
    each may hold: the last acknowledged number, and all that were tried since."""
    allowed: dict[str, set[bytes]] = {}
    number = 0
    end = time.monotonic() + 60
    with connect(address, timeout=2.0) as client:
        while time.monotonic() < end:
            number += 1
            key, value = f"w{writer}-{number % KEYS_A_WRITER}", b"%d" % number
            try:
                client.put(key, value)
                allowed[key] = {value}
            except GTStoreError as error:
                if isinstance(error, OutcomeUnknown):
                    allowed.setdefault(key, set()).add(value)
                break
            if number == KEYS_A_WRITER:
                results.send(None)
    results.send((allowed, number))


def test_everything_is_killed_while_clients_write(tmp_path: Path) -> None:
    """SIGKILL of manager and nodes, five times: every acknowledged write is there."""
    with on_disk(tmp_path) as cluster:
        print(f"{sum(round_of(cluster) for _ in range(5))} writes")


def round_of(cluster: Cluster) -> int:
    writes = 0
    pipes, processes = [], []
    for writer in range(WRITERS):
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=write_on, args=(cluster.address, writer, theirs))
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        assert pipe.recv() is None, "it writes"
    cluster.kill_everything()
    told = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    cluster.start()
    with cluster.connect() as client:
        for allowed, number in told:
            writes += number
            found = client.get_many(list(allowed))
            wrong = {key: found[key] for key in found if found[key] not in allowed[key]}
            assert not wrong
    return writes


def test_some_nodes_are_killed(tmp_path: Path) -> None:
    """They come back with their disks, and copy what they missed."""
    with on_disk(tmp_path) as cluster, cluster.connect() as client:
        client.put_many({f"key{i}": b"old" for i in range(200)})
        for node in (1, 4):
            cluster.kill_node(node)
            client.put_many({f"key{i}": b"new%d" % node for i in range(node, 200, 7)})
            cluster.wait_in_sync()
        expected = {f"key{i}": b"old" for i in range(200)}
        for node in (1, 4):
            expected |= {f"key{i}": b"new%d" % node for i in range(node, 200, 7)}
        assert client.get_many(list(expected)) == expected


def test_a_node_copies_only_what_differs(tmp_path: Path) -> None:
    """The rest of what it is to hold is on its disk: only what was changed meanwhile is moved."""
    values = {f"key{i}": f"value{i}" * 100 for i in range(600)}
    options = ["--data-dir", str(tmp_path / "data")]
    with Cluster(3, 2, options) as cluster, cluster.connect() as client:
        client.put_many(values)
        its_own = {key for key in values if 1 in client.where(key).owners}
        assert len(its_own) > 300
        cluster.kill_node(1)
        changed = {f"key{i}": "changed" for i in range(0, 600, 20)}
        client.put_many(changed)
        client.delete("key1")
        cluster.wait_in_sync()
        told = r"node 1.*copied (\d+) entries of (\d+) partitions; (\d+) more were here already"

        def partitions() -> int:
            return sum(int(count) for _, count, _ in re.findall(told, cluster.log()))

        wait_until(lambda: partitions() >= 128, "that node 1 tells what it has copied")
        moved, present = (
            sum(int(line[at]) for line in re.findall(told, cluster.log())) for at in (0, 2)
        )
        print(f"{moved} entries were moved, {present} were there already")
        assert moved + present == len(its_own)
        assert 0 < moved <= len(its_own & {*changed, "key1"})
        cluster.kill_node(2)
        expected = {key: value.encode() for key, value in {**values, **changed}.items()}
        assert client.get_many(list(values)) == {**expected, "key1": None}


def test_a_node_has_lost_its_directory(tmp_path: Path) -> None:
    """It comes back by copying."""
    with on_disk(tmp_path) as cluster, cluster.connect() as client:
        client.put_many({f"key{i}": b"value" for i in range(200)})
        before = client.status()
    shutil.rmtree(tmp_path / "data" / "node-2")
    with on_disk(tmp_path) as cluster, cluster.connect() as client:
        cluster.wait_in_sync()
        after = client.status()
        assert [node["entries"] for node in after["nodes"]] == [
            node["entries"] for node in before["nodes"]
        ]
        cluster.kill_node(1)
        cluster.kill_node(3)
        keys = [f"key{i}" for i in range(200)]
        assert client.get_many(keys) == dict.fromkeys(keys, b"value")


def test_the_only_copy_is_away(tmp_path: Path) -> None:
    """M5: Unavailable, and never empty, until its directory is back."""
    options = ["--data-dir", str(tmp_path / "data")]
    with Cluster(2, 1, options) as cluster, cluster.connect() as client:
        client.put("key1", "value1")  # on node 1
        client.put("key2", "value2")
    (tmp_path / "data" / "node-1").rename(tmp_path / "elsewhere")
    with Cluster(2, 1, options) as cluster, cluster.connect() as client:
        assert client.get("key2") == b"value2"
        with pytest.raises(Unavailable, match="those that are back may not have everything"):
            client.get("key1")
        assert "node 1 is back without its data of 64 partitions" in cluster.log()
        assert len(client.status()["under_replicated"]) == 64
    shutil.rmtree(tmp_path / "data" / "node-1")
    (tmp_path / "elsewhere").rename(tmp_path / "data" / "node-1")
    with Cluster(2, 1, options) as cluster, cluster.connect() as client:
        assert client.get("key1") == b"value1"


def test_a_killed_manager_is_succeeded(tmp_path: Path) -> None:
    """The nodes go on; a node that died meanwhile comes back with its disk."""
    with on_disk(tmp_path) as cluster, cluster.connect() as client:
        client.put("key1", "value1")
        cluster.kill_manager()
        assert client.get("key1") == b"value1"
        cluster.kill_node(4)
        cluster.start()
        cluster.wait_in_sync()
        assert client.get("key1") == b"value1"
        assert "took over the cluster" in cluster.log()


def content(directory: Path) -> dict[str, bytes]:
    """Every file but the locks, which say who holds them."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and "lock" not in path.name
    }


def refused(directory: Path, *arguments: str) -> str:
    """The one line of a managerd that does not start."""
    command = [
        sys.executable, "-m", "gtstore.managerd", *arguments, "--data-dir", str(directory),
        "--port", "0", "--node-port", "0",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_directory_belongs_to_one_cluster(tmp_path: Path) -> None:
    """Another shape is refused, with what is there and what was asked for; nothing is touched."""
    data = tmp_path / "data"
    with on_disk(tmp_path) as cluster, cluster.connect() as client:
        client.put("key1", "value1")
        assert f"the directory {data} is in use by the manager" in refused(data, "5", "3")
    before = content(data)
    for arguments in (["7", "3"], ["5", "2"], ["5", "3", "--hash", "crc16"]):
        text = refused(data, *arguments)
        assert "holds a cluster of 5 nodes, 3 replicas, --hash additive, --engine lmdb" in text
        assert f"asked for was {arguments[0]} nodes, {arguments[1]} replicas" in text
    assert "--engine memory" in refused(data, "5", "3", "--engine", "memory")
    assert content(data) == before
    with on_disk(tmp_path) as cluster, cluster.connect() as client:
        assert client.get("key1") == b"value1"


def test_the_managers_file_is_torn_or_missing(tmp_path: Path) -> None:
    """No epoch is guessed."""
    data = tmp_path / "data"
    state = data / "manager" / "state.json"
    with on_disk(tmp_path) as cluster, cluster.connect() as client:
        client.put("key1", "value1")
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    before = content(data)
    text = refused(data, "5", "3")
    assert str(state) in text
    assert "cannot be read" in text
    assert content(data) == before
    state.unlink()
    assert "has the data of nodes (node-1 ..), but" in refused(data, "5", "3")
    state.write_bytes(whole)
    with on_disk(tmp_path) as cluster, cluster.connect() as client:
        assert client.get("key1") == b"value1"


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot use the directory" in refused(tmp_path / "file" / "data", "3", "2")


def test_the_map_alone_on_disk(tmp_path: Path) -> None:
    """--engine memory: the shape and the epochs are kept, the entries are not."""
    options = ["--data-dir", str(tmp_path / "data"), "--engine", "memory"]
    with Cluster(3, 2, options) as cluster, cluster.connect() as client:
        client.put("key1", "value1")
    assert "3 nodes" in refused(tmp_path / "data", "4", "2", "--engine", "memory")
    with Cluster(3, 2, options) as cluster, cluster.connect() as client:
        assert client.get("key1") is None
        client.put("key1", "value2")


def test_a_full_disk(tmp_path: Path) -> None:
    """Writes are refused with a reason, and did not happen; reads go on; and when there is room,
    so do writes."""
    with Cluster(3, 2, ["--data-dir", str(tmp_path / "data")]) as cluster:
        with cluster.connect(timeout=2.0) as client:
            client.put("key1", "value1")

            def limit(size: int) -> None:
                for pid in cluster.node_pids.values():
                    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, most))

            def is_refused() -> bool:
                try:
                    client.put("key1", "value2")
                except OperationFailed as error:
                    return "no room on this node's disk" in str(error)
                except OutcomeUnknown:
                    pass  # what was being written when the disk became full
                return False

            limit(1 << 20)
            wait_until(is_refused, "that writes are refused")
            assert client.get("key1") in (b"value1", b"value2")
            with pytest.raises(OperationFailed, match="no room"):
                client.append("key2", "x")
            limit(resource.RLIM_INFINITY)

            def is_back() -> bool:
                try:
                    client.put("key1", "value3")
                except (OperationFailed, OutcomeUnknown):
                    return False
                return True

            wait_until(is_back, "that writes go on")
            assert client.get("key1") == b"value3"
        assert cluster.log().count("there is room again") >= 2


def flip_a_byte(node: Path, value: bytes) -> None:
    """In the node's data, wherever that value is: also in pages that are not used any more."""
    path = node / "data.mdb"
    data = path.read_bytes()
    assert value in data
    path.write_bytes(data.replace(value, bytes([value[0] ^ 1]) + value[1:]))


def test_a_flipped_byte(tmp_path: Path) -> None:
    """The damaged entry is noticed when it is read, never served, and fetched from another node."""
    with on_disk(tmp_path) as cluster, cluster.connect() as client:
        client.put_many({f"key{i}": b"the value of key %d." % i for i in range(100)})
        nodes = client.where("key7").owners
    flip_a_byte(tmp_path / "data" / f"node-{nodes[0]}", b"the value of key 7.")
    with on_disk(tmp_path) as cluster, cluster.connect() as client:
        assert client.get("key7") == b"the value of key 7."
        assert client.where("key7").owners[0] == nodes[1]
        cluster.wait_in_sync()
        assert sorted(client.where("key7").owners) == sorted(nodes)
        assert "the stored entry of key key7, in partition" in cluster.log()
        # The node has a good copy again.
        for node in nodes[1:]:
            cluster.kill_node(node)
        assert client.get("key7") == b"the value of key 7."
        assert client.get_many([f"key{i}" for i in range(100)]) == {
            f"key{i}": b"the value of key %d." % i for i in range(100)
        }


def test_a_flipped_byte_in_the_only_copy(tmp_path: Path) -> None:
    """It is Unavailable; everything else is there."""
    options = ["--data-dir", str(tmp_path / "data")]
    with Cluster(1, 1, options) as cluster, cluster.connect() as client:
        client.put_many({f"key{i}": b"the value of key %d." % i for i in range(100)})
    flip_a_byte(tmp_path / "data" / "node-1", b"the value of key 7.")
    with Cluster(1, 1, options) as cluster, cluster.connect() as client:
        for _ in range(2):
            with pytest.raises(Unavailable, match="damaged, and there is no other copy"):
                client.get("key7")
        others = [f"key{i}" for i in range(100) if i != 7]
        assert all(client.get(key) == b"the value of key %s." % key[3:].encode() for key in others)
        assert "this is the last copy of partition" in cluster.log()


def test_a_damaged_log(tmp_path: Path) -> None:
    """The node sets it aside, and comes back by copying from the others, which have everything."""
    values = {f"key{i}": b"value%d" % i for i in range(50)}
    with on_disk(tmp_path) as cluster, cluster.connect() as client:
        for key, value in values.items():
            client.put(key, value)
        cluster.kill_everything()
    node = tmp_path / "data" / "node-2"
    log = bytearray((node / "log-0").read_bytes())
    log[100] ^= 1  # in the second record: the state of its partitions
    (node / "log-0").write_bytes(log)
    with on_disk(tmp_path) as cluster, cluster.connect() as client:
        wait_until(lambda: "node-2 is damaged: record 2 is missing" in cluster.log(), "its report")
        assert client.get_many(list(values)) == values
        wait_until(lambda: client.status()["nodes"][1]["state"] == "alive", "its return")
        cluster.wait_in_sync()
        assert client.get_many(list(values)) == values
        aside = node.with_name("node-2.damaged-1")
        assert (aside / "log-0").read_bytes() == log
        assert f"it is set aside as {aside}" in cluster.log()


def test_pages_that_go_bad(tmp_path: Path) -> None:
    """While a node serves: it ends, and others answer for it; its next process finds what is wrong,
    sets it aside, and copies what the others have."""
    values = {f"key-{i:05}": b"%05d" % i * 20 for i in range(6000)}
    options = ["--data-dir", str(tmp_path / "data")]
    with Cluster(3, 3, options) as cluster, cluster.connect() as client:
        client.put_many(values)
    path = tmp_path / "data" / "node-1"
    with Cluster(3, 3, options) as cluster, cluster.connect(timeout=20.0) as client:
        data = (path / "data.mdb").read_bytes()
        with (path / "data.mdb").open("r+b") as file:
            for at in range(2 * PAGE, len(data), PAGE):
                if int.from_bytes(data[at + 10 : at + 12], "little") in (LEAF, BRANCH):
                    file.seek(at)
                    file.write(bytes(PAGE))
        # One after the other: a batch would hide how long each of them takes.
        assert {key: client.get(key) for key in list(values)[::31]} == {
            key: values[key] for key in list(values)[::31]
        }
        wait_until(lambda: "it is set aside as" in cluster.log(), "what becomes of the damage")
        cluster.wait_in_sync()
        assert client.get_many(list(values)) == values
        assert path.with_name("node-1.damaged-1").is_dir()
        assert "internal error" not in cluster.log()
        assert "Traceback" not in cluster.log()
        for node in (2, 3):
            cluster.kill_node(node)
        assert client.get_many(list(values)) == values


@pytest.mark.parametrize("damage", ["zeros", "half"])
def test_pages_that_are_bad_at_the_start(tmp_path: Path, damage: str) -> None:
    values = {f"key-{i:05}": b"%05d" % i * 20 for i in range(3000)}
    options = ["--data-dir", str(tmp_path / "data")]
    with Cluster(3, 2, options) as cluster, cluster.connect() as client:
        client.put_many(values)
    path = tmp_path / "data" / "node-1"
    data = (path / "data.mdb").read_bytes()
    if damage == "half":
        (path / "data.mdb").write_bytes(data[: len(data) // 2])
    else:
        (path / "data.mdb").write_bytes(data[: 2 * PAGE] + bytes(len(data) - 2 * PAGE))
    with Cluster(3, 2, options) as cluster, cluster.connect() as client:
        wait_until(lambda: "it is set aside as" in cluster.log(), "what becomes of the damage")
        cluster.wait_in_sync()
        assert client.get_many(list(values)) == values
        assert path.with_name("node-1.damaged-1").is_dir()
        assert "Traceback" not in cluster.log()


def test_values_that_look_like_a_log(tmp_path: Path) -> None:
    """A start takes a time that is proportional to what the log has, whatever that is. (It took
    minutes, and was given up each time, when lengths were believed that stood in values.)"""
    values = {}
    for magic in ("GTSL", "GTSR"):
        head = struct.pack(">4sQII", magic.encode(), 1 << 60, 1 << 20, 12345)
        for number in (1, 2):
            values[f"{magic}-{number}"] = head * ((2 << 20) // len(head))
    options = ["--data-dir", str(tmp_path / "data")]
    with Cluster(1, 1, options) as cluster, cluster.connect(timeout=20.0) as client:
        for key, value in values.items():
            client.put(key, value)
    for _ in range(2):  # stopped in order, and killed
        with Cluster(1, 1, options) as cluster, cluster.connect(timeout=20.0) as client:
            assert client.get_many(list(values)) == values
            client.put("GTSR-1", values["GTSR-1"])
            cluster.kill_everything()


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace: apt install strace")
def test_the_sync_comes_before_the_reply(tmp_path: Path) -> None:
    """As the kernel sees it: after the request came, its entry was written to the log, by a call
    that returns when it is synced, and only then the reply was sent."""
    trace = tmp_path / "trace"
    with Cluster(1, 1, ["--data-dir", str(tmp_path / "data")]) as cluster:
        pid = cluster.node_pids[1]
        tracer = subprocess.Popen(
            [
                "strace", "-f", "-y", "-s", "400", "-o", str(trace), "-p", str(pid),
                "-e", "trace=recvfrom,sendto,pwritev2",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert tracer.stderr is not None
        answer = tracer.stderr.readline()
        if "attached" not in answer:
            pytest.skip(f"strace may not look at a process here: {answer.strip()}")
        with cluster.connect() as client:
            client.put("the-key", "the-value")
        tracer.terminate()
        tracer.communicate()
    lines = trace.read_text().splitlines()
    came = next(at for at, line in enumerate(lines) if "the-value" in line and "recvfrom" in line)
    sent = next(at for at in range(came, len(lines)) if r"sendto(" in lines[at])
    assert r"\307\1\222" in lines[sent], "the first thing that is sent is the ACK"
    steps = iter(lines[came:sent])
    sync = next(line for line in steps if "the-value" in line and "/log-" in line)
    assert "pwritev2(" in sync
    if "unfinished" in sync:  # another thread's call came in between
        thread = sync.partition(" ")[0]
        sync = next(
            line for line in steps if line.startswith(thread) and "pwritev2 resumed" in line
        )
    assert "RWF_DSYNC) = " in sync


def test_a_node_ends_between_its_registration_and_the_first_map(tmp_path: Path) -> None:
    """While a cluster is opened again, a node that has registered dies before all have. It
    is dead in the first map, as it is in truth; its next process returns as usual."""
    shape: dict[str, Any] = {"engine": LMDB, "data_dir": tmp_path / "data"}
    with a_manager(**shape) as manager, connect(address_of(manager)) as client:
        client.put_many({f"key{i}": b"value" for i in range(100)})
    done: list[int] = []

    def kill_after_registration(manager: Manager) -> None:
        register = manager.on_register

        def on_register(request: messages.Register) -> messages.Registered:
            if request.node == 2:  # the first map waits for it
                wait_until(lambda: done, "the end of the other one")
            reply = register(request)
            if request.node == 1 and not done:
                membership = manager._membership
                assert membership is not None
                manager._processes[1].send_signal(signal.SIGKILL)
                wait_until(lambda: membership._early_deaths[1], "that its end was told")
                done.append(request.pid)
            return reply

        manager.on_register = on_register  # type: ignore[method-assign]

    with (
        a_manager(kill_after_registration, **shape) as manager,
        connect(address_of(manager)) as client,
    ):
        wait_until(
            lambda: (
                {node["state"] for node in client.status()["nodes"]} == {"alive"}
                and not client.status()["under_replicated"]
                and not any(node["syncing"] for node in client.status()["nodes"])
            ),
            "the return of all nodes",
        )
        assert client.status()["nodes"][0]["pid"] not in done
        keys = [f"key{i}" for i in range(100)]
        assert client.get_many(keys) == dict.fromkeys(keys, b"value")
