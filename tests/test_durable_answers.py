"""No answer leaves a node with a disk before everything is there that it depends on (N2): whatever
its request, its size, its way out of the server, and its place among others.

A server, a committer and the handlers of a node, over a store that forgets what was not synced. The
sync is held back, a request is sent, and then either its answer waits, or it left too early.
"""

from __future__ import annotations

import ast
import inspect
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from gtstore import committer as committer_module
from gtstore import copying, reactor, server
from gtstore.committer import Committer
from gtstore.disk import DiskEngine
from gtstore.errors import RemoteProtocolError
from gtstore.placement import epoch_of
from gtstore.read_modify_write import VERSION_SIZE
from gtstore.replica import Replicas
from gtstore.server import FrameServer, TokenLock, guarded
from gtstore.storage import on_disk
from gtstore.testing import wait_until
from gtstore.wire import messages
from gtstore.wire.codec import LongReply, encode, encode_record
from gtstore.wire.messages import (
    APPEND,
    COPY_SIZE,
    EXPIRES,
    INCREMENT,
    KIB,
    LONG_FRAME_SIZE,
    PUT_IF_ABSENT,
    PUT_IF_VALUE,
    PUT_IF_VERSION,
    TOUCH,
    Copy,
    Entry,
    Execute,
    Failed,
    Get,
    Message,
    Owner,
    Row,
    Write,
)
from gtstore.wire.stream import RECEIVE_SIZE, SHORT_RECEIVE_SIZE

from .forgetful_store import ForgetfulStore
from .peers import Talk

CLUSTER = 0xC0FFEE01
TOKEN = bytes(16)
NOW_US = 1_700_000_000_000_000
EPOCH = epoch_of(CLUSTER, 1)
OWNERS = (Owner(1, 1, EPOCH, 1), Owner(2, 1, EPOCH, 0))
ROWS = [Row(partition, EPOCH, EPOCH, OWNERS) for partition in range(128)]

LIMITS = sorted(
    {
        SHORT_RECEIVE_SIZE,
        reactor.HELD_SIZE_MAX,
        COPY_SIZE,
        RECEIVE_SIZE,
        LONG_FRAME_SIZE,
    }
)
SIZES = [1, *(size for limit in LIMITS for size in (limit - 100, limit + 100)), 1024 * KIB]
"""Values, on both sides of every size at which something is done in another way."""


class Node:
    """As much of a node as answers requests."""

    def __init__(self) -> None:
        self.store = ForgetfulStore()
        self.gate = threading.Event()
        self.gate.set()
        self.store.before_commit = self.gate.wait
        self.engine = DiskEngine(self.store)
        self.now_us = NOW_US
        self.replicas = Replicas(1, 1, CLUSTER, 2, 1, self.engine, lambda: self.now_us)
        lock = TokenLock()
        handlers = dict(self.replicas.handlers)
        handlers |= guarded({Copy.kind: self.copy}, TOKEN)
        handlers = on_disk(handlers, self.engine)
        self.committer = Committer(
            self.engine, self.store, lock, self.replicas.remembered, handlers
        )
        self.server = FrameServer(
            "127.0.0.1", 0, handlers, lock=lock, outbox=self.committer, holds_answers=True
        )
        self.committer.start()
        self.server.start()
        with lock:
            self.replicas.adopt(EPOCH, ROWS)
        self.committer.flush()

    def copy(self, request_id: int, body: bytes) -> bytes:
        return copying.answer(self.replicas, request_id, copying.request_of(body))

    def has_waiting(self) -> bool:
        """Whether somebody waits for a sync before an answer goes."""
        return bool(self.committer._waiting)

    def stop(self) -> None:
        self.gate.set()
        self.server.drain()
        self.committer.stop()


@pytest.fixture(params=["a thread", "a crowd"])
def node(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    if request.param == "a crowd":
        monkeypatch.setattr(server, "_CROWD", 1)
    node = Node()
    yield node
    node.stop()


def partition_of(key: bytes) -> int:
    return sum(key) % len(ROWS)


def entry(value: bytes, time: int = NOW_US, flags: int = 0, expiry: int | None = None) -> bytes:
    return encode_record(Entry(time, 7, time & 0xFFFF, flags, expiry, value))


def write(key: bytes, entry: bytes) -> Write:
    return Write(EPOCH, partition_of(key), key, entry)


def execute(
    key: bytes, operation: int, operand: bytes, time: int = NOW_US, expected: bytes = b""
) -> Execute:
    return Execute(EPOCH, partition_of(key), key, operation, expected, entry(operand, time))


def get(key: bytes) -> Get:
    return Get(EPOCH, partition_of(key), key)


def requests_of(key: bytes, size: int) -> dict[str, tuple[list[Message], Message]]:
    """For each kind: what is stored before, without a sync, and then the request whose answer must
    wait for it."""
    value = bytes(size)
    whole = write(key, entry(value))
    append = execute(key, APPEND, value)
    return {
        "write": ([], whole),
        "the same write": ([whole], whole),
        "superseded": ([whole], write(key, entry(b"", NOW_US - 1))),
        "append": ([], append),
        "append to what is there": ([whole], execute(key, APPEND, b"more", NOW_US + 1)),
        "append once more": ([append], append),
        "increment": ([write(key, entry(b"1"))], execute(key, INCREMENT, b"2", NOW_US + 1)),
        "put if absent": ([], execute(key, PUT_IF_ABSENT, value)),
        "put if value": ([whole], execute(key, PUT_IF_VALUE, value, NOW_US + 1, value)),
        "put if version": (
            [whole],
            execute(key, PUT_IF_VERSION, value, NOW_US + 1, whole.entry[:VERSION_SIZE]),
        ),
        "touch": ([whole], execute(key, TOUCH, b"", NOW_US + 1)),
        "failed": ([whole], execute(key, PUT_IF_ABSENT, b"", NOW_US + 1)),
        "copy": ([whole], Copy(TOKEN, 2, ROWS[partition_of(key)], b"", ())),
    }


@pytest.mark.parametrize("kind", requests_of(b"key", 1))
def test_an_answer_waits_for_what_it_depends_on(node: Node, kind: str) -> None:
    """N2, hole H15. A result of more than 256 KiB once left without it, because it left by an
    exception."""
    with Talk(node.server.port) as writer, Talk(node.server.port) as talk:
        for each in (writer, talk):  # or a crowd's thread would sync by itself, for just one
            each.send(encode(get(b"key"), 1))
            each.reply()
        for size in SIZES:
            key = b"key %d" % size
            before, request = requests_of(key, size)[kind]
            node.gate.clear()
            for one in before:
                writer.send(encode(one, 1))
                wait_until(node.has_waiting, "what is stored before")
                wait_until(lambda: not node.engine.has_staged, "that it is being written")
            waiting = len(node.committer._waiting)
            talk.send(encode(request, size))
            wait_until(
                lambda waiting=waiting: (  # type: ignore[misc]
                    has_answer(talk) or len(node.committer._waiting) > waiting
                ),
                "the answer",
            )
            assert not has_answer(talk), f"it left before the sync: {size} bytes"
            node.gate.set()
            for each in [talk, *[writer] * len(before)]:
                answer = each.reply()
                assert answer is not None
                assert kind == "failed" or not isinstance(answer[1], Failed)
            assert key in {name[8:] for name in node.store.synced}


@pytest.mark.parametrize("size", [1, LONG_FRAME_SIZE + 1])
def test_an_expired_value_is_gone_for_good_before_anybody_is_told(node: Node, size: int) -> None:
    """C8, N2: a GET is shown what is on disk, and needs no sync; but where it finds that the time
    of that is over, it stores a tombstone, and its answer waits for this."""
    with Talk(node.server.port) as talk:
        talk.send(encode(write(b"key", entry(bytes(size), NOW_US, EXPIRES, NOW_US + 1)), 1))
        assert talk.reply() == (1, messages.Ack())
        node.gate.clear()
        talk.send(encode(get(b"key"), 2))
        answer = talk.reply()
        assert answer is not None
        assert answer[0] == 2
        node.now_us += 2
        talk.send(encode(get(b"key"), 3))
        wait_until(lambda: has_answer(talk) or node.has_waiting(), "the answer")
        assert not has_answer(talk)
        node.gate.set()
        answer = talk.reply()
        assert answer is not None
        assert answer[0] == 3


@pytest.mark.parametrize("place", ["first", "last", "before a part of a frame", "before a refusal"])
def test_among_others(node: Node, place: str) -> None:
    """The same where several requests come at once: no answer behind it leaves before it either."""
    other = encode(get(b"kye"), 2)
    for size in SIZES:
        request = encode(execute(b"key %d" % size, APPEND, bytes(size)), 1)
        malformed = encode(execute(b"key", 200, b""), 3)
        frames, expected = {
            "first": (request + other * 5, [1, 2, 2, 2, 2, 2]),
            "last": (other * 5 + request, [2, 2, 2, 2, 2, 1]),
            "before a part of a frame": (request + other[:-3], [1, 2]),
            "before a refusal": (request + malformed, [1, 3]),
        }[place]
        node.gate.clear()
        with Talk(node.server.port) as talk:
            talk.send(frames)
            wait_until(lambda: node.has_waiting() or has_answer_to(talk, 1), "the answer")
            assert not has_answer_to(talk, 1), f"it left before the sync: {size} bytes"
            node.gate.set()
            if place == "before a part of a frame":
                talk.send(other[-3:])
            answers = [talk.reply() for _ in expected]
            assert [answer and answer[0] for answer in answers] == expected


def has_answer(talk: Talk) -> bool:
    return bool(select.select([talk.sock], [], [], 0)[0])


def has_answer_to(talk: Talk, request_id: int) -> bool:
    """Whether an answer to that request has come, nothing being taken from the socket."""
    if not has_answer(talk):
        return False
    data = talk.sock.recv(64 * KIB, socket.MSG_PEEK)
    return any(
        data[at + 4 : at + 8] == request_id.to_bytes(4, "big")
        for at in range(len(data))
        if data[at : at + 2] == b"\xc7\x01"
    )


@pytest.mark.parametrize(
    "error", [LongReply(b"", b""), RemoteProtocolError(messages.MALFORMED, ""), ZeroDivisionError()]
)
def test_however_a_handler_ends(error: Exception) -> None:
    """What it has stored before is what the answer depends on."""
    engine = DiskEngine(ForgetfulStore())
    depends: list[int] = []
    engine.on_depend = depends.append
    entries = engine.partition(0).entries

    def handler(request_id: int, body: bytes) -> bytes:  # noqa: ARG001
        entries[b"key"] = b"entry"
        raise error

    with pytest.raises(type(error)):
        on_disk({Write.kind: handler}, engine)[Write.kind](1, b"")
    assert depends == [1]


def test_there_are_few_ways_out() -> None:
    """Whoever sends on a connection must have waited: so only these do it at all."""
    senders = {
        function.name
        for module in (server, reactor, committer_module)
        for function in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr in ("send", "sendall", "sendmsg")
    }
    assert senders == {
        "_serve",  # takes the socket's own method where nothing has to wait
        "_leave",
        "_send",
        "receive",  # what is left of answers that were lent, once they may go
        "_go_on",
    }
