"""The manager as a process: starting, refusing, stopping, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

import gtstore
from gtstore.connection import call_once
from gtstore.manager import describe_holders
from gtstore.state_file import StateFile
from gtstore.testing import Cluster, wait_until
from gtstore.wire import messages

pytestmark = pytest.mark.cluster


def managerd(*arguments: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    """Run managerd until it ends by itself."""
    command = [sys.executable, "-m", "gtstore.managerd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def children_of(pid: int) -> list[int]:
    """A process's children and theirs."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found += [int(name), *children_of(int(name))]
    return found


def is_gone(pids: Sequence[int]) -> bool:
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def free_ports(count: int) -> int:
    """The first of some ports that are free one after the other."""
    for first in range(20_001, 30_000, count):
        sockets = []
        try:
            for port in range(first, first + count):
                sockets.append(socket.create_server(("127.0.0.1", port)))
            return first
        except OSError:
            continue
        finally:
            for sock in sockets:
                sock.close()
    raise AssertionError("no free ports")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["0", "1"], "'0' is no whole number from 1 to 1000"),
        (["3", "0"], "'0' is no whole number from 1 to 15"),
        (["2", "3"], "3 replicas need at least as many nodes, not 2"),
        (["x", "1"], "'x' is no whole number"),
        (["3"], "REPLICAS"),
        (["3", "2", "--node-port", "65534"], "above 65535"),
        (["3", "2", "--host", "0.0.0.0"], "one that they can use"),
        (["3", "2", "--engine", "lmdb"], "needs a directory: --data-dir DIR"),
        (["3", "2", "--lifeline", "x"], "'x' is not the number of an open file"),
        (["3", "2", "--lifeline", "99"], "'99' is not the number of an open file"),
        (["3", "2", "--lifeline", "1"], "that is the reading end of a pipe"),
        (["3", "2", "--host", "192.0.2.1", "--port", "0", "--node-port", "0"], "cannot listen"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], reason: str) -> None:
    done = managerd(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_ready_line_and_default_ports() -> None:
    first = free_ports(4)
    with Cluster(3, 2, port=first, node_port=first + 1) as cluster:
        assert cluster.ready_line == (
            f"gtstore: manager ready on 127.0.0.1:{first}, 3 storage nodes on ports "
            f"{first + 1}-{first + 3}, 2 replicas"
        )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_leaves_nothing_behind(number: signal.Signals) -> None:
    """SIGTERM and SIGINT stop the nodes too, also one that is stopped; exit code 0."""
    cluster = Cluster(3, 2).start()
    children = children_of(cluster.manager_pid)
    assert set(cluster.node_pids.values()) < set(children)
    cluster.pause_node(2)
    os.kill(cluster.manager_pid, number)
    assert cluster.stop() == 0
    wait_until(lambda: is_gone(children), "the end of all processes")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_while_starting(number: signal.Signals) -> None:
    command = [
        sys.executable,
        "-m",
        "gtstore.managerd",
        "50",
        "2",
        "--port",
        "0",
        "--node-port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(lambda: len(children_of(process.pid)) > 5, "the first nodes")
        children = children_of(process.pid)
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == 0
        wait_until(lambda: is_gone(children), "the end of all processes")


def test_a_killed_manager_and_its_successor() -> None:
    """M4: the nodes go on; the next manager on the same port takes them over, and starts those that
    died meanwhile. Epochs go on, and no node is started twice."""
    with Cluster(3, 2) as cluster, cluster.connect() as store:
        for i in range(100):
            store.put(f"key{i}", b"%d" % i)
        cluster.kill_node(3)
        cluster.wait_in_sync()
        before = store.status()
        cluster.kill_manager()
        assert store.get("key1") == b"1"
        cluster.kill_node(2)
        cluster.start()
        cluster.wait_in_sync()
        after = store.status()
        assert after["cluster"] == before["cluster"]
        assert after["epoch"] > before["epoch"]
        assert [node["incarnation"] for node in after["nodes"]] == [1, 2, 2]
        for node in (0, 2):
            assert after["nodes"][node]["pid"] == before["nodes"][node]["pid"]
        for i in range(100):
            assert store.get(f"key{i}") == b"%d" % i
            store.put(f"key{i}", b"again")
        assert "took over the cluster of a manager that is gone: nodes 1 3 run" in cluster.log()
        # And once more, with nothing else happening.
        cluster.kill_manager()
        cluster.start()
        assert store.status()["epoch"] == after["epoch"]
        assert store.get("key1") == b"again"
        cluster.kill_node(1)
        cluster.wait_in_sync()
    wait_until(lambda: is_gone(list(cluster.node_pids.values())), "the end of all processes")


def test_a_successor_of_another_shape(cluster: Cluster) -> None:
    """One line, exit 2; the nodes are left alone, and the right one still takes over."""
    port = cluster.address.rpartition(":")[2]
    cluster.kill_manager()
    done = managerd("4", "2", "--port", port, "--node-port", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "3 nodes, 2 replicas, --hash additive, --engine memory; start it " in done.stderr
    cluster.start()
    with cluster.connect() as store:
        assert [node["incarnation"] for node in store.status()["nodes"]] == [1, 1, 1]


def test_a_damaged_state_file() -> None:
    """It is named; nothing is guessed (M4)."""
    with Cluster(1, 1) as cluster:
        port = cluster.address.rpartition(":")[2]
        path = StateFile.of_address("127.0.0.1", int(port)).path
        assert path.stat().st_mode & 0o777 == 0o600
        cluster.kill_manager()
        text = path.read_text()
        path.write_text(text[:1000])
        done = managerd("1", "1", "--port", port, "--node-port", "0")
        assert (done.returncode, done.stdout) == (2, "")
        assert str(path) in done.stderr
        assert done.stderr.count("\n") == 1
        path.write_text(text)
        cluster.start()
    assert not path.exists()


@pytest.mark.gtstore(options=["--probe-interval-ms", "50"])
def test_a_manager_that_was_stopped_kills_nobody(cluster: Cluster, store: gtstore.Client) -> None:
    """M1: its own pause is no silence of the nodes."""
    before = store.status()
    cluster.pause_manager()
    time.sleep(1.0)  # what is tested is that nothing comes of the time
    cluster.resume_manager()
    wait_until(lambda: "probes start anew" in cluster.log(), "the manager's own finding")
    assert store.status()["nodes"] == before["nodes"]


def test_without_a_state_file_nothing_is_guessed() -> None:
    """A manager that finds nodes of a killed one but not its file says which processes they are and
    how to stop them, and leaves them alone (exit 2)."""
    first = free_ports(4)
    with Cluster(3, 2, port=first, node_port=first + 1) as cluster, cluster.connect() as store:
        store.put("key", b"value")
        cluster.kill_manager()
        StateFile.of_address("127.0.0.1", first).remove()
        pids = list(cluster.node_pids.values())
        arguments = ["--port", str(first), "--node-port", str(first + 1)]
        done = managerd("3", "2", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert f"kill {' '.join(map(str, pids))}" in done.stderr
        assert f"port {first + 1}-{first + 3} of 127.0.0.1" in done.stderr
        assert store.get("key") == b"value"


@pytest.mark.gtstore(nodes=1, replicas=1)
def test_two_managers(cluster: Cluster) -> None:
    """The second one names the first one's process."""
    port = cluster.address.rpartition(":")[2]
    done = managerd("1", "1", "--port", port, "--node-port", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"kill {cluster.manager_pid}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_foreign_program_holds_a_node_port() -> None:
    first = free_ports(3)
    with socket.create_server(("127.0.0.1", first + 1)):
        done = managerd("3", "2", "--port", "0", "--node-port", str(first))
        assert done.returncode == 2
        assert f"cannot listen on port {first + 1} of 127.0.0.1" in done.stderr
        assert "--node-port" in done.stderr
        assert done.stderr.count("\n") == 1
        assert describe_holders("127.0.0.1", [first + 1]) == ""


@pytest.mark.gtstore(nodes=2, replicas=1)
def test_registering_needs_the_token(cluster: Cluster, store: gtstore.Client) -> None:
    """And so does giving a node a map: a control message without it changes nothing."""
    addresses = [cluster.address, *(node["address"] for node in store.status()["nodes"])]
    register = messages.Register(bytes(16), 1, 2, 1, 1, ())
    update = messages.MapUpdate(bytes(16), 1 << 63, ())
    for address, request in zip(addresses, (register, update, update), strict=True):
        host, _, port = address.rpartition(":")
        reply = call_once("it", host, int(port), request, 5)
        assert isinstance(reply, messages.Error)
        assert reply.code == messages.NOT_ALLOWED
    store.put("key", b"value")
    assert store.get("key") == b"value"
    assert "token" not in cluster.log()


def test_memory_limit() -> None:
    """--max-memory-mb: writes that would grow the node are refused; gets and deletes go on."""
    with Cluster(1, 1, ["--max-memory-mb", "1"]) as cluster, cluster.connect(timeout=0.3) as store:
        store.put("kept", b"x" * 1000)
        with pytest.raises(gtstore.OperationFailed, match="memory is full"):
            store.put("large", bytes(2_000_000))
        keys = (f"key{i}" for i in range(100_000))
        with pytest.raises(gtstore.OperationFailed, match="memory is full"):
            all(store.put(key, b"x" * 1000) for key in keys)
        assert 500 < store.status()["nodes"][0]["entries"] < 1100
        assert store.get("kept") == b"x" * 1000
        for j in range(20):
            store.delete(f"key{j}")
        store.put("new", b"y" * 1000)
        assert store.get("new") == b"y" * 1000


@pytest.mark.gtstore(
    nodes=1, replicas=1, options=["--max-connections", "2", "--probe-interval-ms", "20"]
)
def test_connection_limit(cluster: Cluster) -> None:
    """--max-connections: more clients than that get BUSY, and the node does not look dead."""
    with cluster.connect(0.3) as one, cluster.connect(0.3) as two, cluster.connect(0.3) as more:
        one.put("key", b"1")
        two.put("key", b"2")
        with pytest.raises(gtstore.GTStoreError, match="all 2 connections are taken"):
            more.get("key")
        assert more.status()["nodes"][0]["state"] == "alive"
    with cluster.connect() as again:
        assert again.get("key") == b"2"


@pytest.mark.gtstore(nodes=2, options=["--log-format", "json"], respawn=False)
def test_node_deaths_are_told_and_counted(cluster: Cluster, store: gtstore.Client) -> None:
    """status and log say which node died, how, and what has no owner any more."""
    assert store.status()["under_replicated"] == []
    epoch = store.status()["epoch"]
    cluster.kill_node(2)
    wait_until(lambda: store.status()["epoch"] > epoch, "the next map")
    status = store.status()
    dead = status["nodes"][1]
    assert (dead["state"], dead["entries"], dead["primaries"]) == ("dead", 0, 0)
    assert len(status["under_replicated"]) == 128
    records = [json.loads(line) for line in cluster.log().splitlines()]
    told = [record["message"] for record in records if record["level"] == "warning"]
    assert "node 2 is dead: its process was killed by SIGKILL" in told


def test_nursery_is_killed() -> None:
    """The process that started the nodes is not needed any more: they go on, and are stopped."""
    cluster = Cluster(3, 2).start()
    with cluster.connect() as store:
        store.put("key1", b"value")
        (nursery,) = set(children_of(cluster.manager_pid)) - set(cluster.node_pids.values())
        os.kill(nursery, signal.SIGKILL)
        assert store.get("key1") == b"value"
        cluster.kill_node(1)
        assert store.get("key1") == b"value"
        wait_until(lambda: store.status()["nodes"][0]["incarnation"] == 2, "a new node 1")
    assert cluster.stop() == 0
    wait_until(lambda: is_gone(list(cluster.node_pids.values())), "the end of the nodes")


@pytest.mark.gtstore(nodes=4, replicas=3, options=["--hash", "crc16"])
def test_where_and_report_calls_agree(store: gtstore.Client) -> None:
    """Provide_K_Nodes of a key is what its put answered."""
    assert store.status()["hash"] == "crc16"
    for i in range(20):
        assert store.put(f"key{i}", b"x").nodes == store.where(f"key{i}").owners


def test_a_node_started_by_hand_says_what_to_do() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gtstore.storaged", "--node", "1"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert re.search("is missing; a manager starts nodes", done.stderr)
    assert done.stderr.count("\n") == 1
