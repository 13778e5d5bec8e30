"""committer.py: answers wait until what they depend on is on disk (N2), and no longer."""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from gtstore import committer as module
from gtstore.committer import DISK_FAILED_EXIT, Committer
from gtstore.disk import DiskEngine
from gtstore.engine import Remembered
from gtstore.errors import StoreFailed, StoreFull
from gtstore.server import TokenLock
from gtstore.testing import wait_until

from .forgetful_store import ForgetfulStore


class Node:
    """As much of a node as the committer knows."""

    def __init__(self, store: ForgetfulStore) -> None:
        self.store = store
        self.lock = TokenLock()
        self.engine = DiskEngine(store)
        self.entries = self.engine.partition(0).entries
        self.committer = Committer(
            self.engine, store, self.lock, lambda _: Remembered(1, b"", 0, 0, 0)
        )

    def write(self, key: bytes) -> None:
        """As a connection's thread does it: handle, then wait before the answer is sent."""
        with self.lock:
            self.entries[key] = b"entry of " + key
            self.engine.depend()
        self.committer.wait()

    def on_disk(self, key: bytes) -> bool:
        """Whether a crash now would leave the key there."""
        name = b"\0" * 8 + key
        value = self.store.synced.get(name)
        return value == b"entry of " + key


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node(ForgetfulStore())
    node.committer.start()
    yield node
    node.store.error = None
    node.committer.stop()


def test_no_answer_leaves_before_the_sync(node: Node) -> None:
    """Of many threads at once."""
    wrong = []

    def write_many(thread: int) -> None:
        for i in range(50):
            key = b"%d-%d" % (thread, i)
            node.write(key)
            if not node.on_disk(key):
                wrong.append(key)

    threads = [threading.Thread(target=write_many, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(node.store.commits) < 400, "they share syncs"


def test_the_double_shows_a_missing_sync() -> None:
    """The test above could fail: a store that does not sync loses what was acknowledged."""
    node = Node(ForgetfulStore(syncs=False))
    node.committer.start()
    node.write(b"key")
    assert not node.on_disk(b"key")
    node.committer.stop()


def test_one_sync_serves_all_who_wait(node: Node) -> None:
    """While one batch is being committed, the next one is gathered, and it is one."""
    gate = threading.Event()
    node.store.before_commit = gate.wait
    threads = [threading.Thread(target=node.write, args=(b"%d" % i,)) for i in range(10)]
    threads[0].start()
    wait_until(lambda: node.engine.batch == 2, "the first batch")
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: len(node.committer._waiting) == 10, "all that wait")
    gate.set()
    for thread in threads:
        thread.join()
    assert [len(changes) for changes in node.store.commits] == [2, 10]  # with the state of each


def test_who_depends_on_nothing_does_not_wait(node: Node) -> None:
    node.committer.wait()
    node.committer.flush()
    with node.lock:
        node.engine.depend()
    node.committer.wait()
    assert node.store.commits == []


def test_what_nobody_waits_for_is_committed_all_the_same(node: Node) -> None:
    with node.lock:
        node.entries[b"key"] = b"entry of key"
    wait_until(lambda: node.on_disk(b"key"), "the commit")


def test_a_stop_commits_what_is_left() -> None:
    node = Node(ForgetfulStore())
    node.committer.start()
    with node.lock:
        node.entries[b"key"] = b"entry of key"
    node.committer.stop()
    assert node.on_disk(b"key")


def test_a_full_disk(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """Who waits is not answered; writes are to be refused until there is room, which is noticed by
    itself. What was not stored then may happen yet."""
    node.store.error = StoreFull("no room")
    with pytest.raises(ConnectionAbortedError):
        node.write(b"first")
    assert node.engine.is_full
    with pytest.raises(ConnectionAbortedError):
        node.committer.flush()
    assert caplog.text.count("writes are refused until there is room again: no room") == 1
    with caplog.at_level(logging.INFO):
        node.store.error = None
        wait_until(lambda: not node.engine.is_full, "room")
    assert node.on_disk(b"first")
    node.write(b"second")
    assert "there is room again" in caplog.text


def test_little_room_is_noticed_before_it_is_too_late(node: Node) -> None:
    """Nobody's answer is lost then."""
    room = [False]
    node.store.has_room = lambda: room[0]  # type: ignore[method-assign]
    node.write(b"key")
    wait_until(lambda: node.engine.is_full, "that it is noticed")
    room[0] = True
    wait_until(lambda: not node.engine.is_full, "room")


def test_a_disk_that_fails_ends_the_node(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """M6: nothing is answered any more."""
    ended = threading.Event()
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(module.os, "_exit", end)
    node = Node(ForgetfulStore())
    node.store.error = StoreFailed("input/output error")
    node.committer.start()
    with node.lock:
        node.entries[b"key"] = b"entry"
    assert ended.wait(20)
    assert codes == [DISK_FAILED_EXIT]
    assert "the disk failed: input/output error: this node ends" in caplog.text


# --- answers that are left to the committer ------------------------------------------------------


class Connection:
    """Its node's end and its peer's, and what its thread does with an answer."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.sock, self.peer = socket.socketpair()
        self.peer.settimeout(20)

    def write(self, key: bytes, answer: bytes) -> None:
        with self.node.lock:
            self.node.entries[key] = b"entry of " + key
            self.node.engine.depend()
        self.answer(answer)

    def answer(self, answer: bytes) -> None:
        if not self.node.committer.hold(self.sock, answer):
            self.sock.sendall(answer)

    def has_answers(self) -> bool:
        return bool(select.select([self.peer], [], [], 0)[0])

    def fill(self) -> int:
        """Send until no more can be sent without the peer; return how much that was."""
        sent = 0
        try:
            while True:
                sent += self.sock.send(bytes(4096), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return sent

    def close(self) -> None:
        self.sock.close()
        self.peer.close()


@pytest.fixture
def connection(node: Node) -> Iterator[Connection]:
    connection = Connection(node)
    yield connection
    connection.close()


def test_a_thread_goes_on_while_its_answer_waits_for_the_sync(connection: Connection) -> None:
    gate = threading.Event()
    connection.node.store.before_commit = gate.wait
    connection.write(b"key", b"answer")
    assert not connection.has_answers()
    gate.set()
    assert connection.peer.recv(100) == b"answer"
    assert connection.node.on_disk(b"key")


def test_answers_leave_in_the_order_of_the_requests(connection: Connection) -> None:
    """Also one that depends on nothing, and the end of the connection."""
    gate = threading.Event()
    connection.node.store.before_commit = gate.wait
    connection.write(b"key", b"first ")
    thread = threading.Thread(target=connection.answer, args=(b"second",))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    assert not connection.has_answers()
    gate.set()
    thread.join()
    assert connection.peer.recv(100) == b"first second"
    connection.write(b"key 2", b"third")
    connection.node.committer.wait(connection.sock)
    assert connection.has_answers()


def test_long_answers_are_sent_by_their_own_thread(connection: Connection) -> None:
    connection.write(b"key", b"x" * 5000)
    assert connection.node.on_disk(b"key")
    assert len(connection.peer.recv(10_000)) == 5000


def test_a_peer_that_does_not_read_holds_nobody_up(node: Node, connection: Connection) -> None:
    before = connection.fill()
    connection.write(b"key", b"answer")
    node.write(b"another's")
    received = b""
    while len(received) < before + len(b"answer"):
        received += connection.peer.recv(65536)
    assert received.endswith(b"\0answer")
    node.committer.wait(connection.sock)


@pytest.mark.parametrize("is_full", [False, True])
def test_a_peer_that_is_gone_holds_nobody_up(
    node: Node, connection: Connection, is_full: bool
) -> None:
    if is_full:
        connection.fill()
    gate = threading.Event()
    node.store.before_commit = gate.wait
    connection.write(b"key", b"answer")
    if not is_full:
        connection.peer.close()
    gate.set()
    node.write(b"another's")
    connection.peer.close()
    node.committer.wait(connection.sock)


def test_what_could_not_be_stored_is_not_answered(node: Node, connection: Connection) -> None:
    node.store.error = StoreFull("no room")
    connection.write(b"key", b"answer")
    assert connection.peer.recv(100) == b""
    node.store.error = None


def test_those_who_shared_a_sync_are_waited_for(node: Node) -> None:
    """Two halves of the clients would take turns otherwise, with half as many for each sync."""
    gate = threading.Event()
    node.store.before_commit = gate.wait
    threads = [threading.Thread(target=node.write, args=(b"%d" % i,)) for i in range(10)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(node.committer._waiting) == 10, "all that wait")
    gate.set()
    for thread in threads:
        thread.join()
    assert node.committer._expected > 1
    node.committer._commit_s = 10.0
    commits = len(node.store.commits)
    node.write(b"alone")
    assert len(node.store.commits) == commits + 1
    assert node.committer._expected == 1
