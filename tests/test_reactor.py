"""The reactor, which serves a crowd of connections: it leaves to a connection's thread what is not
usual, but nothing that it has done already."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gtstore import server
from gtstore.engine import MemoryEngine
from gtstore.reactor import Reactor
from gtstore.replica import Replicas
from gtstore.server import FrameServer, TokenLock
from gtstore.wire import messages
from gtstore.wire.codec import decode_entry, encode
from gtstore.wire.messages import APPEND, INCREMENT, LONG_FRAME_SIZE, PUT_IF_ABSENT

from .peers import Talk
from .test_durable_answers import CLUSTER, EPOCH, NOW_US, ROWS, Node, entry, execute, get, write


class MemoryNode:
    """As much of a node without a disk as answers requests."""

    def __init__(self) -> None:
        self.replicas = Replicas(1, 1, CLUSTER, 2, 1, MemoryEngine(), lambda: NOW_US)
        lock = TokenLock()
        handlers = self.replicas.handlers
        reactor = Reactor(lock, handlers)
        self.server = FrameServer("127.0.0.1", 0, handlers, lock=lock, outbox=reactor)
        reactor.start()
        self.server.start()
        with lock:
            self.replicas.adopt(EPOCH, ROWS)

    def stop(self) -> None:
        self.server.drain()


@pytest.fixture(params=[MemoryNode, Node])
def node(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MemoryNode | Node]:
    monkeypatch.setattr(server, "_CROWD", 1)
    node = request.param()
    yield node
    node.stop()


@pytest.mark.parametrize("size", [1, LONG_FRAME_SIZE - 100, LONG_FRAME_SIZE + 100])
def test_each_request_is_handled_once(node: MemoryNode | Node, size: int) -> None:
    """N4: an append with a long result once was handled by the reactor, and again by the
    connection's thread. If another client's came between, the second time it was refused, and its
    client, which had been told of no first time, did it anew."""
    with Talk(node.server.port) as talk:
        talk.send(encode(write(b"key", entry(bytes(size))), 1))
        assert talk.reply() == (1, messages.Ack())
        for number, byte in enumerate((b"a", b"b", b"c"), 2):
            talk.send(encode(execute(b"key", APPEND, byte, NOW_US + number), number))
            answer = talk.reply()
            assert answer is not None
            request_id, executed = answer
            assert request_id == number
            assert isinstance(executed, messages.Executed)
            assert len(decode_entry(executed.entry).value or b"") == size + number - 1
        assert node.replicas.executes == 3
        # Those that change nothing, too, and the answers come in their order.
        refused = execute(b"key", PUT_IF_ABSENT, b"", NOW_US + 9)
        many = [get(b"key"), refused, get(b"key"), execute(b"key", INCREMENT, b"1", NOW_US + 9)]
        gets = node.replicas.gets
        talk.send(*(encode(one, number) for number, one in enumerate(many, 10)))
        answers = [talk.reply() for _ in many]
        assert [answer and answer[0] for answer in answers] == [10, 11, 12, 13]
        assert node.replicas.gets == gets + 2
        assert node.replicas.executes == 5
