"""committer.py: answers wait until what they depend on is on disk (N2), and no longer."""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from gtstore import committer as module
from gtstore import exit_codes
from gtstore.committer import Committer
from gtstore.disk import DiskEngine
from gtstore.engine import Remembered
from gtstore.errors import StoreFailed, StoreFull
from gtstore.server import TokenLock, pack_timeout
from gtstore.testing import wait_until
from gtstore.wire.codec import ACK, COMMIT, ENTRY, EXECUTE, GET, HEADER_WORDS, WRITE, head_word

from .forgetful_store import ForgetfulStore


def frame(kind: int, request_id: int, body: bytes = b"") -> bytes:
    return HEADER_WORDS.pack(head_word(kind), request_id, len(body)) + body


class Node:
    """As much of a node as the committer knows."""

    def __init__(self, store: ForgetfulStore) -> None:
        self.store = store
        self.lock = TokenLock()
        self.engine = DiskEngine(store)
        self.partition = self.engine.partition(0)
        self.entries = self.partition.entries
        self.committer = Committer(
            self.engine,
            store,
            self.lock,
            lambda _: Remembered(1, b"", 0, 0, 0),
            {GET: self.on_get, WRITE: self.on_write, COMMIT: self.on_commit},
        )

    def write(self, key: bytes) -> None:
        """As a connection's thread does it: handle, then wait before the answer is sent."""
        with self.lock:
            self.entries[key] = b"entry of " + key
            self.engine.depend()
        self.committer.wait()

    def on_write(self, request_id: int, key: bytes) -> bytes:
        """As its handlers do it, with shorter bodies."""
        if key.endswith(b"trouble"):
            if key == b"late trouble":
                self.entries[key] = b"entry"
                self.engine.depend()
            raise ValueError(key)
        self.entries[key] = b"entry of " + key
        self.engine.depend()
        return frame(ACK, request_id)

    def on_commit(self, request_id: int, key: bytes) -> bytes:  # noqa: ARG002
        return b""

    def on_get(self, request_id: int, key: bytes) -> bytes:
        return frame(ENTRY, request_id, self.partition.shown(key) or b"")

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
    assert codes == [exit_codes.DISK_FAILED]
    assert "the disk failed: input/output error: this node ends" in caplog.text


def test_an_error_of_the_program_ends_the_node_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And is not called one of the disk."""
    ended = threading.Event()
    codes: list[int] = []
    monkeypatch.setattr(module.os, "_exit", lambda code: (codes.append(code), ended.set()))
    node = Node(ForgetfulStore())
    monkeypatch.setattr(node.engine, "take", lambda _: 1 / 0)
    node.committer.start()
    with node.lock:
        node.entries[b"key"] = b"entry"
    assert ended.wait(20)
    assert codes == [70]
    assert "ZeroDivisionError" in caplog.text
    assert "the disk failed" not in caplog.text


# --- connections that are lent -------------------------------------------------------------------


class Connection:
    """Its node's end and its peer's, and its thread, which gets what the committer does not
    handle."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.sock, self.peer = socket.socketpair()
        self.peer.settimeout(20)
        self.received: list[bytes] = []
        self.error: OSError | None = None
        self.thread = threading.Thread(target=self._receive)

    def write(self, key: bytes, answer: bytes, is_whole: bool = True) -> None:
        """A request that its thread has handled; from now on it receives."""
        with self.node.lock:
            self.node.entries[key] = b"entry of " + key
            self.node.engine.depend()
        if not self.node.committer.lend(self.sock, answer, is_whole):
            self.sock.sendall(answer)
        self.thread.start()

    def be_lent(self, key: bytes) -> None:
        self.write(key, b"answer")
        assert self.peer.recv(100) == b"answer"

    def _receive(self) -> None:
        try:
            self.received.append(self.node.committer.receive(self.sock, 100))
        except OSError as error:
            self.error = error

    def ask(self, *frames: bytes) -> None:
        self.peer.sendall(b"".join(frames))

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
        self.peer.close()
        if self.thread.ident:
            self.thread.join()
        self.sock.close()


@pytest.fixture
def connection(node: Node) -> Iterator[Connection]:
    connection = Connection(node)
    yield connection
    connection.close()


@pytest.fixture
def lent(connection: Connection) -> Connection:
    """One whose thread sleeps."""
    connection.be_lent(b"first")
    return connection


@pytest.fixture
def other(node: Node) -> Iterator[Connection]:
    """Another one."""
    other = Connection(node)
    other.be_lent(b"other")
    yield other
    other.close()


def ask_while_the_disk_hangs(lent: Connection, request: bytes) -> threading.Event:
    """Return once what it stores is being written; it goes on when the event is set."""
    gate = threading.Event()
    lent.node.store.before_commit = gate.wait
    lent.ask(request)
    engine = lent.node.engine
    wait_until(lambda: engine.batch > engine.committed + 1, "the sync")
    return gate


def test_an_answer_waits_for_the_sync(connection: Connection) -> None:
    gate = threading.Event()
    connection.node.store.before_commit = gate.wait
    connection.write(b"key", b"answer")
    assert not connection.has_answers()
    gate.set()
    assert connection.peer.recv(100) == b"answer"
    assert connection.node.on_disk(b"key")


@pytest.mark.parametrize("answer", [b"x" * 5000, b"answer"])
def test_answers_that_their_own_thread_sends(connection: Connection, answer: bytes) -> None:
    """Long ones, and those before a part of a frame that only it knows of."""
    connection.write(b"key", answer, is_whole=len(answer) > 100)
    assert connection.node.on_disk(b"key")
    assert len(connection.peer.recv(10_000)) == len(answer)
    connection.ask(b"more")
    connection.thread.join()
    assert connection.received == [b"more"]


def test_what_comes_next_is_handled_without_the_thread(node: Node, lent: Connection) -> None:
    for number in range(3):
        key = b"%d" % number
        lent.ask(frame(COMMIT, 0, b"first"), frame(WRITE, number, key))
        assert lent.peer.recv(100) == frame(ACK, number)
        assert node.on_disk(key)
        lent.ask(frame(GET, 7, key))
        assert lent.peer.recv(100) == frame(ENTRY, 7, b"entry of " + key)
    assert lent.thread.is_alive()


def test_a_sync_is_shared_by_those_who_are_lent(node: Node) -> None:
    connections = [Connection(node) for _ in range(8)]
    for number, each in enumerate(connections):
        each.write(b"%d" % number, b"answer")
    for each in connections:
        assert each.peer.recv(100) == b"answer"
    before = len(node.store.commits)
    for turn in range(20):
        for number, each in enumerate(connections):
            each.ask(frame(WRITE, turn, b"%d %d" % (number, turn)))
        for number, each in enumerate(connections):
            assert each.peer.recv(100) == frame(ACK, turn)
            assert node.on_disk(b"%d %d" % (number, turn))
    assert len(node.store.commits) - before < 80
    for each in connections:
        each.close()


def test_a_get_does_not_wait_for_the_disk(lent: Connection, other: Connection) -> None:
    gate = ask_while_the_disk_hangs(lent, frame(WRITE, 1, b"key"))
    other.ask(frame(GET, 2, b"first"))
    assert other.peer.recv(100) == frame(ENTRY, 2, b"entry of first")
    assert not lent.has_answers()
    gate.set()
    assert lent.peer.recv(100) == frame(ACK, 1)


def test_a_get_does_not_wait_for_another_threads_commit(node: Node, lent: Connection) -> None:
    gate = threading.Event()
    node.store.before_commit = gate.wait
    thread = threading.Thread(target=node.write, args=(b"key",))
    thread.start()
    wait_until(lambda: node.engine.batch > node.engine.committed + 1, "the sync")
    lent.ask(frame(GET, 2, b"first"))
    assert lent.peer.recv(100) == frame(ENTRY, 2, b"entry of first")
    assert thread.is_alive()
    gate.set()
    thread.join()


def test_a_request_that_waits_for_its_thread_is_not_overtaken(
    lent: Connection, other: Connection
) -> None:
    """What depends on a sync, and then is its thread's: the next one does not come first."""
    gate = ask_while_the_disk_hangs(lent, frame(WRITE, 1, b"late trouble"))
    lent.ask(frame(GET, 2, b"first"))
    other.ask(frame(GET, 3, b"first"))
    assert other.peer.recv(100) == frame(ENTRY, 3, b"entry of first")
    gate.set()
    lent.thread.join()
    assert lent.received == [frame(WRITE, 1, b"late trouble")]
    assert lent.sock.recv(100) == frame(GET, 2, b"first")
    assert not lent.has_answers()


def test_many_bytes_of_answers_are_its_threads(node: Node, lent: Connection) -> None:
    with node.lock:
        node.entries[b"long"] = bytes(3000)
        node.engine.depend()
    node.committer.wait()
    lent.ask(*(frame(GET, n, b"long") for n in range(10)))
    lent.thread.join()
    assert lent.received == [b"".join(frame(GET, n, b"long") for n in range(2, 10))]


def test_a_peer_that_takes_nothing_is_closed(connection: Connection) -> None:
    """Or what is sent later would be taken for the rest of what it did not take."""
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, pack_timeout(0.1))
    connection.fill()
    connection.write(b"key", b"answer")
    connection.thread.join()
    assert isinstance(connection.error, TimeoutError)


def test_what_is_sent_before_the_last_answer(lent: Connection, other: Connection) -> None:
    """All answers come, in order."""
    gate = ask_while_the_disk_hangs(lent, frame(WRITE, 1, b"key"))
    lent.ask(frame(GET, 2, b"key"))
    other.ask(frame(GET, 3, b"key"))  # when it is answered the one before was seen
    assert other.peer.recv(100) == frame(ENTRY, 3)
    assert not lent.has_answers()
    gate.set()
    expected = frame(ACK, 1) + frame(ENTRY, 2, b"entry of key")
    received = b""
    while len(received) < len(expected):
        received += lent.peer.recv(100)
    assert received == expected


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(frame(EXECUTE, 5, b"key"), id="another kind"),
        pytest.param(frame(WRITE, 5, b"key")[:14], id="a part of a frame"),
        pytest.param(frame(WRITE, 5, b"key")[:3], id="a part of a header"),
        pytest.param(b"garbage which is no frame", id="no frame"),
        pytest.param(frame(WRITE, 5, b"trouble") + frame(GET, 6, b"key"), id="trouble"),
    ],
)
@pytest.mark.parametrize("before", [b"", frame(WRITE, 4, b"4"), frame(GET, 4, b"none")])
def test_everything_else_is_its_threads(lent: Connection, before: bytes, rest: bytes) -> None:
    """After the answers to what was handled before it."""
    lent.ask(before, rest)
    lent.thread.join()
    assert lent.received == [rest]
    if before:
        assert lent.peer.recv(100) in (frame(ACK, 4), frame(ENTRY, 4))


def test_much_at_once_is_its_threads(lent: Connection) -> None:
    frames = b"".join(frame(WRITE, n, b"%d" % n) for n in range(1000))
    lent.ask(frames)
    lent.thread.join()
    assert frames.startswith(lent.received[0])
    assert len(lent.received[0]) >= 1000


def test_the_end_is_its_threads(lent: Connection) -> None:
    lent.peer.shutdown(socket.SHUT_WR)
    lent.thread.join()
    assert lent.received == [b""]


def test_a_peer_that_does_not_read_holds_nobody_up(node: Node, connection: Connection) -> None:
    before = connection.fill()
    connection.write(b"key", b"answer")
    node.write(b"another's")
    received = b""
    while len(received) < before + len(b"answer"):
        received += connection.peer.recv(65536)
    assert received.endswith(b"\0answer")


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
    connection.thread.join()
    assert connection.error or connection.received == [b""]


@pytest.mark.parametrize("is_lent", [False, True])
def test_what_could_not_be_stored_is_not_answered(
    node: Node, connection: Connection, is_lent: bool
) -> None:
    if is_lent:
        connection.be_lent(b"first")
    node.store.error = StoreFull("no room")
    if is_lent:
        connection.ask(frame(WRITE, 1, b"key"))
    else:
        connection.write(b"key", b"answer")
    connection.thread.join()
    assert isinstance(connection.error, ConnectionAbortedError)
    assert not connection.has_answers()
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
    commits = len(node.store.commits)
    node.write(b"alone")
    assert len(node.store.commits) == commits + 1
    assert node.committer._expected == 1
