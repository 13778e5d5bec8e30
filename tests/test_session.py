"""Session and Connection against peers that misbehave: threads here, with plain sockets."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from gtstore import copying
from gtstore.connection import PATIENCE_S, Connection, Deadline, call_once, parse_address
from gtstore.errors import (
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    GTStoreError,
    InvalidInput,
    OperationFailed,
)
from gtstore.operations import ACKED, Begun, Identity, Limited, Lost, Operation, Pause, Reply
from gtstore.placement import format_address
from gtstore.server import FrameServer
from gtstore.session import Session, Unfinished, as_frame
from gtstore.testing import wait_until
from gtstore.turns import Ticket, Turns
from gtstore.wire import messages
from gtstore.wire.codec import ACK, encode, error_frame
from gtstore.wire.stream import FrameBuffer

from .peers import PONG, Peer, Script, answer, frames_of, hold, one_reply

UNREADABLE = b"\xc7\x01\xff" + bytes(9)
"""An ERROR about the connection itself, without its fields."""


def session_of(*peers: Peer) -> Session:
    def locate(node: int) -> tuple[str, str, int]:
        return f"node {node}", "127.0.0.1", peers[node - 1].port

    return Session(locate)


def send(nodes: Sequence[int], request_id: int, frame: bytes) -> Operation[list[Reply]]:
    replies = yield tuple(nodes), request_id, frame
    return list(replies)


def ping(request_id: int = 1) -> bytes:
    return encode(messages.Ping(), request_id)


def write(request_id: int, size: int = 10) -> bytes:
    return encode(messages.Write(1, 1, b"key", bytes(21 + size)), request_id)


Begin = Callable[..., list[Reply]]


def in_exchange(
    session: Session, nodes: Sequence[int], request_id: int, frame: bytes, timeout_s: float = 5
) -> list[Reply]:
    """The hot path, and go_on where it does not finish: as Client.put does."""
    started = time.monotonic()
    try:
        ack = encode(messages.Ack(), request_id)
        if len(nodes) == 1:
            return [as_frame(session.ask(nodes[0], request_id, frame))]
        return list(session.exchange(tuple(nodes), request_id, frame, ack))
    except Unfinished as unfinished:
        operation = send(nodes, request_id, frame)
        return session.go_on(operation, unfinished.slots, started, timeout_s)


def first_round(request_id: int, frame: bytes) -> Begun:
    route: Any = None
    return route, request_id, frame, (0, 0), b"", encode(messages.Ack(), request_id), Identity(1)


def in_round(
    session: Session, nodes: Sequence[int], request_id: int, frame: bytes, timeout_s: float = 5
) -> list[Reply]:
    """The hot path of a batch, and go_on_many where it does not finish: as batches.py does."""
    started = time.monotonic()
    round_ = session.send_many([first_round(request_id, frame)], [tuple(nodes)])
    session.receive_many(round_, started + timeout_s)
    (slots,) = round_.slots()
    slots = [as_frame(slot) if isinstance(slot, bytes) else slot for slot in slots]
    assert round_.is_acked == (slots == [ACKED] * len(nodes))
    begun = [(send(nodes, request_id, frame), slots)]
    (outcome,) = session.go_on_many(begun, (), 0, timeout_s, started)
    assert not isinstance(outcome, GTStoreError)
    return outcome


def in_loop(
    session: Session, nodes: Sequence[int], request_id: int, frame: bytes, timeout_s: float = 5
) -> list[Reply]:
    return session.run(send(nodes, request_id, frame), timeout_s)


@pytest.fixture(params=[in_exchange, in_round, in_loop])
def begin(request: pytest.FixtureRequest) -> Begin:
    """Each way of a request."""
    way: Begin = request.param
    return way


def test_replies_come_in_the_order_of_the_nodes(peers: Callable[..., Peer], begin: Begin) -> None:
    session = session_of(peers(answer), peers(answer), peers(answer))
    for number in range(1, 5):
        replies = begin(session, (3, 1, 2), number, write(number))
        assert [reply[0] for reply in replies] == [ACK] * 3
    session.close()


PIECES = {
    "at once": lambda data: [data],
    "in the middle of frames": lambda data: [data[:5], data[5:40], data[40:]],
    "and one after the other": lambda data: [data[at : at + 12] for at in range(0, len(data), 12)],
}


def paced(pieces: Callable[[bytes], list[bytes]], pause_s: float) -> Script:
    """ACKs for all that have come, in pieces, with a pause before each but the first."""

    def script(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = FrameBuffer()
        while data := sock.recv(65536):
            acks = [encode(messages.Ack(), frame[2]) for frame in buffer.feed(data)]
            for number, piece in enumerate(pieces(b"".join(acks))):
                if number:
                    time.sleep(pause_s)
                sock.sendall(piece)

    return script


def round_of(
    session: Session, numbers: Sequence[int], *nodes: int, time_s: float = 5
) -> list[list[str]]:
    """A round of WRITEs, each to all nodes; what the replies are."""
    begun = [first_round(number, write(number)) for number in numbers]
    round_ = session.send_many(begun, [nodes] * len(numbers))
    session.receive_many(round_, time.monotonic() + time_s)
    left = [
        (
            send(nodes, number, write(number)),
            [as_frame(slot) if isinstance(slot, bytes) else slot for slot in slots],
        )
        for number, slots in zip(numbers, round_.slots(), strict=True)
    ]
    names = {ACK: "ack", messages.Error.kind: "error"}
    outcomes = session.go_on_many(left, (), 0, 5, time.monotonic())
    return [
        ["lost" if isinstance(reply, Lost) else names[reply[0]] for reply in outcome]
        for outcome in outcomes
        if not isinstance(outcome, GTStoreError)
    ]


def test_a_round_whose_time_is_over(peers: Callable[..., Peer]) -> None:
    """It receives no more, however steadily replies come: the selector loop has exact deadlines."""
    session = session_of(peers(answer), peers(answer))
    for first in (1, 10, 20):
        outcomes = round_of(session, range(first, first + 5), 1, 2, time_s=0)
        assert outcomes == [["ack", "ack"]] * 5
    session.close()


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("pause_s", [0, 2 * PATIENCE_S])
def test_a_round_with_a_peer_whose_replies_come_in_pieces(
    peers: Callable[..., Peer], pieces: Callable[[bytes], list[bytes]], pause_s: float
) -> None:
    session = session_of(peers(answer), peers(paced(pieces, pause_s)))
    assert round_of(session, [1], 1, 2) == [["ack", "ack"]], "it connects"
    for first in (2, 8):
        outcomes = round_of(session, range(first, first + 5), 1, 2)
        assert outcomes == [["ack", "ack"]] * 5
    session.close()


def busy(number: int) -> bytes:
    return error_frame(number, messages.BUSY, "full", messages.BusyDetail(1))


@pytest.mark.parametrize(
    ("third", "expected"),
    [
        (lambda n: error_frame(n, messages.NOT_READY, ""), ["ack", "ack", "error", "ack", "ack"]),
        (lambda n: encode(messages.Ack(), n + 90), ["ack", "ack", "lost", "lost", "lost"]),
        (lambda _: b"garbage of some length", ["ack", "ack", "lost", "lost", "lost"]),
        (busy, ["ack", "ack", "error", "lost", "lost"]),
        (
            lambda _: error_frame(0, messages.BUSY, "", messages.BusyDetail(1)),
            ["ack", "ack", "error", "error", "error"],
        ),
    ],
)
def test_a_round_in_which_one_reply_is_unusual(
    peers: Callable[..., Peer], third: Callable[[int], bytes], expected: list[str]
) -> None:
    """What came before it counts; what follows is as in the selector loop; the other peer's
    replies have nothing to do with it."""

    def script(sock: socket.socket) -> None:
        for number, (_, request_id) in enumerate(frames_of(sock)):
            if number == 3:
                sock.sendall(third(request_id))
                if third is busy:
                    return
            else:
                sock.sendall(encode(messages.Ack(), request_id))

    session = session_of(peers(answer), peers(script, answer))
    round_of(session, [1], 1, 2)
    outcomes = round_of(session, range(2, 7), 1, 2)
    assert [first for first, _ in outcomes] == ["ack"] * 5
    assert [second for _, second in outcomes] == expected
    assert round_of(session, [9], 1, 2) == [["ack", "ack"]]
    session.close()


def test_a_round_with_a_peer_that_is_gone(peers: Callable[..., Peer]) -> None:
    """Sent to a connection that was closed, it may have been done; unless the end was seen before.
    The next one is new."""

    def closes(sock: socket.socket) -> None:
        sock.sendall(encode(messages.Ack(), next(frames_of(sock))[1]))

    session = session_of(peers(answer), peers(closes, answer))
    round_of(session, [1], 1, 2)
    outcomes = round_of(session, range(2, 7), 1, 2)
    assert outcomes in ([["ack", "lost"]] * 5, [["ack", "ack"]] * 5)
    assert round_of(session, [9], 1, 2) == [["ack", "ack"]]
    session.close()


def test_long_frames_to_slow_readers(peers: Callable[..., Peer], begin: Begin) -> None:
    """A short send goes on in the selector loop, for all peers at once."""
    session = session_of(peers(answer), peers(answer))
    for number, size in enumerate((1000, 8_000_000, 60_000, 16_000_000), start=1):
        replies = begin(session, (1, 2), number, write(number, size))
        assert [reply[0] for reply in replies] == [ACK, ACK]
    session.close()


def test_refused_connection_means_nothing_was_sent(
    peers: Callable[..., Peer], begin: Begin
) -> None:
    """Lost.sent is False, which rules C3 and C4 rely on."""
    gone = peers()
    gone.listener.close()
    good = peers(answer)
    session = session_of(good, gone)
    first, second = begin(session, (1, 2), 1, write(1))
    assert first[0] == ACK
    assert isinstance(second, Lost)
    assert (second.peer, second.sent) == (2, False)
    assert isinstance(second.error, ConnectError)
    session.close()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda _: b"", "was closed"),
        (lambda number: encode(PONG, number)[:20], "closed within a reply"),
        (lambda number: encode(PONG, number + 1), "not sent"),
        (lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n", "no frame"),
        (lambda number: b"\xc7\x01\x81\x01" + encode(PONG, number)[4:], "the flags 1"),
    ],
)
def test_a_connection_that_failed_is_never_used_again(
    peers: Callable[..., Peer], data: Callable[[int], bytes], reason: str, begin: Begin
) -> None:
    """Cut replies, wrong request ids, garbage, two replies for one request: closed, a Lost that may
    have been done, and the next request goes over a new connection."""
    peer = peers(one_reply(data), answer)
    session = session_of(peer)
    assert isinstance(reply := begin(session, (1,), 1, ping(1))[0], Lost)
    assert reply.sent
    assert isinstance(reply.error, ConnectionLost)
    assert reason in str(reply.error)
    assert begin(session, (1,), 2, ping(2))[0][0] == messages.Pong.kind
    assert peer.accepted == 2
    session.close()


def test_a_surplus_reply_closes_the_connection(peers: Callable[..., Peer]) -> None:
    """Nobody waits for the second one, so nothing later on that connection can be trusted."""

    def surplus(sock: socket.socket) -> None:
        for count, (_, request_id) in enumerate(frames_of(sock), start=1):
            sock.sendall(encode(PONG, request_id) * count)

    peer = peers(surplus, answer)
    session = session_of(peer)
    assert in_exchange(session, (1,), 1, ping(1))[0][0] == messages.Pong.kind
    assert isinstance(in_exchange(session, (1,), 2, ping(2))[0], Lost)
    assert in_exchange(session, (1,), 3, ping(3))[0][0] == messages.Pong.kind
    session.close()


def then(data: Callable[[int], bytes]) -> Script:
    """Answer the first request well, the second one with these bytes, and then nothing."""

    def script(sock: socket.socket) -> None:
        requests = frames_of(sock)
        sock.sendall(encode(PONG, next(requests)[1]))
        sock.sendall(data(next(requests)[1]))
        next(requests)

    return script


@pytest.mark.parametrize("surplus", [b"garbage", b"\xc7", encode(PONG, 9)[:-1]])
def test_more_than_a_reply_closes_the_connection(
    peers: Callable[..., Peer], begin: Begin, surplus: bytes
) -> None:
    """The reply counts; the next request goes over a new connection, or it would be lost."""
    peer = peers(then(lambda number: encode(PONG, number) + surplus), answer)
    session = session_of(peer)
    for number in (1, 2, 3):
        assert begin(session, (1,), number, ping(number))[0][0] == messages.Pong.kind
    assert peer.accepted == 2
    session.close()


def test_refusals_that_cannot_be_read(peers: Callable[..., Peer]) -> None:
    """Two errors about the connection, whose texts are cut: lost, and nothing is raised."""
    session = session_of(peers(then(lambda _: 2 * UNREADABLE), answer))
    assert in_exchange(session, (1,), 1, ping(1))[0][0] == messages.Pong.kind
    reply = in_exchange(session, (1,), 2, ping(2))[0]
    assert isinstance(reply, Lost)
    assert "why cannot be read" in str(reply.error)
    assert in_exchange(session, (1,), 3, ping(3))[0][0] == messages.Pong.kind
    session.close()


def test_too_many_open_files_while_a_reply_is_awaited(
    peers: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch, begin: Begin
) -> None:
    """The request was sent, so its reply is waited for, without a file for the waiting."""

    def slowly(sock: socket.socket) -> None:
        for _, request_id in frames_of(sock):
            sock.sendall(encode(PONG, request_id)[:20])
            time.sleep(3 * PATIENCE_S)
            sock.sendall(encode(PONG, request_id)[20:])

    def none_left() -> selectors.BaseSelector:
        raise OSError(errno.EMFILE, "too many open files")

    session = session_of(peers(slowly))
    assert begin(session, (1,), 1, ping(1))[0][0] == messages.Pong.kind
    monkeypatch.setattr(selectors, "DefaultSelector", none_left)
    assert begin(session, (1,), 2, ping(2))[0][0] == messages.Pong.kind
    session.close()


def test_bytewise_replies(peers: Callable[..., Peer], begin: Begin) -> None:
    """A reply that comes in pieces is put together."""

    def bytewise(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _, request_id in frames_of(sock):
            for byte in encode(PONG, request_id):
                sock.sendall(bytes((byte,)))

    session = session_of(peers(bytewise))
    for number in range(1, 20):
        assert begin(session, (1,), number, ping(number))[0][0] == messages.Pong.kind
    session.close()


def test_an_error_that_closes_is_handed_over_and_the_connection_dropped(
    peers: Callable[..., Peer], begin: Begin
) -> None:
    """BUSY closes: the reply counts, and the next request takes a new connection."""

    peer = peers(one_reply(busy), answer)
    session = session_of(peer)
    assert begin(session, (1,), 1, ping(1))[0][0] == messages.Error.kind
    assert begin(session, (1,), 2, ping(2))[0][0] == messages.Pong.kind
    session.close()


def test_deadline(peers: Callable[..., Peer], begin: Begin) -> None:
    """What was sent may have been done; the connection is closed; then comes DeadlineExceeded."""
    silent = peers(hold, answer)
    session = session_of(silent, peers(answer))
    for node in (1, 2):
        session._known.add(node)
    seen: list[Reply] = []

    def operation() -> Operation[None]:
        seen.extend((yield (1, 2), 1, write(1)))
        yield (1,), 2, write(2)

    with pytest.raises(DeadlineExceeded, match=r"node 1: no answer within 0.05 s"):
        session.run(operation(), 0.05)
    assert isinstance(seen[0], Lost)
    assert seen[0].sent
    assert seen[1][0] == ACK
    assert begin(session, (1,), 3, ping(3))[0][0] == messages.Pong.kind
    session.close()


def test_a_send_that_fails_has_something_sent_to_others(peers: Callable[..., Peer]) -> None:
    """A WRITE goes first to one of two that are not known; that its connection is broken shows when
    it is sent, and then it goes to the other one."""
    session = session_of(peers(answer), peers(answer))
    for node in (1, 2):
        session.run(send((node,), node, ping(node)), 5)
    session._known.clear()
    session._connections[1].sock.shutdown(socket.SHUT_RDWR)
    lost, acked = session.run(send((1, 2), 3, write(3)), 5)
    assert isinstance(lost, Lost)
    assert acked[0] == ACK
    session.close()


def test_an_operation_may_finish_after_its_deadline_passed(peers: Callable[..., Peer]) -> None:
    """The replies that were awaited are handed over before anything is thrown."""
    session = session_of(peers(hold))
    assert isinstance(session.run(send((1,), 1, ping()), 0.02)[0], Lost)
    session.close()


def test_who_closes_its_connection_is_not_known_any_more(peers: Callable[..., Peer]) -> None:
    """Its next connection may be refused, so nobody else is to have the next WRITE before it."""

    def broken(sock: socket.socket) -> None:
        requests = frames_of(sock)
        sock.sendall(encode(messages.Ack(), next(requests)[1]))
        sock.sendall(error_frame(next(requests)[1], messages.INTERNAL, "an error"))

    asked: list[int] = []

    def note(sock: socket.socket) -> None:
        for _, request_id in frames_of(sock):
            asked.append(request_id)
            sock.sendall(encode(messages.Ack(), request_id))

    def full(sock: socket.socket) -> None:
        busy = error_frame(next(frames_of(sock))[1], messages.BUSY, "", messages.BusyDetail(1))
        sock.sendall(busy)

    session = session_of(peers(note), peers(broken, full))
    for request_id in (1, 2):
        in_exchange(session, (1, 2), request_id, write(request_id))
    assert 2 not in session._known
    in_exchange(session, (1, 2), 3, write(3))
    assert asked == [1, 2]
    session.close()


@pytest.mark.parametrize("when", ["write", "read"])
def test_a_fork_in_the_middle_of_an_exchange(
    peers: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A handler forks there, and the child goes on: its connections are closed (after_fork), and
    the operation learns that they are lost."""
    session = session_of(peers(answer, answer), peers(answer, answer))
    in_exchange(session, (1, 2), 1, write(1))

    def forked(*_: object) -> bytes:
        session.abort()
        raise OSError(errno.EBADF, "bad file descriptor")

    real = os.write
    sent: list[int] = []

    def second(descriptor: int, data: bytes) -> int:
        if sent and when == "write":
            forked()
        sent.append(descriptor)
        return real(descriptor, data)

    monkeypatch.setattr("gtstore.session.write", second)
    monkeypatch.setattr("gtstore.session.read", forked)
    with pytest.raises(Unfinished) as unfinished:
        session.exchange((1, 2), 2, write(2), encode(messages.Ack(), 2))
    lost, other = unfinished.value.slots
    assert isinstance(lost, Lost)
    assert lost.sent
    assert "fork" in str(lost.error)
    assert other is None if when == "write" else other[0]
    session.close()


def test_pauses_and_their_deadline() -> None:
    session = session_of()

    def sleepy(seconds: float) -> Operation[str]:
        yield Pause(seconds)
        return "awake"

    assert session.run(sleepy(0.001), 5) == "awake"
    assert session.run_many([sleepy(0.003), sleepy(0.001)], 5, 2) == ["awake", "awake"]
    assert session.run(sleepy(60), 0.02) == "awake"  # nobody waits beyond the deadline


@pytest.mark.parametrize("beside", [0, 1], ids=["alone", "in a batch"])
def test_a_pause_that_ends_when_its_ticket_is_called(beside: int) -> None:
    """By another thread: before, or while the call waits."""
    session = session_of()

    def patient(ticket: Ticket) -> Operation[str]:
        yield Pause(60, ticket)
        return "called"

    def sleepy() -> Operation[str]:
        yield Pause(0.05)
        return "awake"

    turns = Turns()
    first, second, third = (turns.ticket(b"key1") for _ in range(3))
    for ticket in (first, second, third):
        ticket.join()
    first.leave()
    others = ["awake"] * beside
    todo = [patient(second), *(sleepy() for _ in others)]
    assert session.run_many(todo, 30, len(todo)) == ["called", *others]
    waker = threading.Timer(0.02, second.leave)
    waker.start()
    todo = [patient(third), *(sleepy() for _ in others)]
    assert session.run_many(todo, 30, len(todo)) == ["called", *others]
    waker.join()
    assert not session._pauses


def test_a_step_with_a_time_limit_of_its_own(peers: Callable[..., Peer]) -> None:
    """A peer's silence does not last as long as the whole operation: it is Lost after that time,
    and the next request goes over a new connection."""
    session = session_of(peers(hold, answer), peers(answer))

    def patient() -> Operation[list[Reply]]:
        found = []
        for limit_s in (0.02, 60, 60):
            replies = yield Limited(((1, 2), len(found) + 1, ping(len(found) + 1)), limit_s)
            found += replies
            yield Pause(0.05)
        return found

    first, second, *rest = session.run(patient(), 30)
    assert isinstance(first, Lost)
    assert isinstance(first.error, DeadlineExceeded)
    assert "no answer within 0.02 s" in str(first.error)
    assert [reply[0] for reply in (second, *rest)] == [messages.Pong.kind] * 5
    session.close()


def test_a_report_that_is_not_answered_goes_over_another_connection(
    peers: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What tells the manager of a copy waits minutes in all, but not for one connection that has
    fallen silent."""
    monkeypatch.setattr(copying, "PATIENCE_S", 0.02)

    def note(sock: socket.socket) -> None:
        for _, request_id in frames_of(sock):
            sock.sendall(encode(messages.Noted(), request_id))

    peer = peers(hold, note)
    session = Session(lambda _: ("the manager", "127.0.0.1", peer.port))
    session.run(copying.report(bytes(16), 1, [], lambda: 1), 20)
    assert peer.accepted == 2
    session.close()


def test_nobody_to_send_to() -> None:
    assert session_of().run(send((), 1, b""), 5) == []


def test_batches_are_pipelined_and_bounded(peers: Callable[..., Peer]) -> None:
    """Thousands of operations over two connections; each has its own outcome."""
    session = session_of(peers(answer), peers(answer))

    def operation(number: int) -> Operation[int]:
        replies = yield (1 + number % 2,), number, write(number, number % 5000)
        if number % 100 == 0:
            raise OperationFailed(f"{number}")
        return replies[0][2]

    outcomes = session.run_many((operation(number) for number in range(1, 5001)), 30, 5000)
    assert len(outcomes) == 5000
    for number, outcome in enumerate(outcomes, start=1):
        if number % 100 == 0:
            assert isinstance(outcome, OperationFailed)
        else:
            assert outcome == number
    session.close()


def test_a_batch_whose_time_is_up(peers: Callable[..., Peer]) -> None:
    """Those that were sent get their own errors; those whose turn did not come share one."""
    session = session_of(peers(hold))

    def operation(number: int) -> Operation[None]:
        replies = yield (1,), number, write(number)
        assert isinstance(replies[0], Lost)
        raise OperationFailed("its own")

    outcomes = session.run_many((operation(number) for number in range(1, 3001)), 0.05, 3000)
    assert len(outcomes) == 3000
    assert {type(outcome) for outcome in outcomes} == {OperationFailed, DeadlineExceeded}
    assert isinstance(outcomes[-1], DeadlineExceeded)
    assert "before its turn" in str(outcomes[-1])
    session.close()


def test_what_is_owed_goes_first(peers: Callable[..., Peer], begin: Begin) -> None:
    """C7: in front of the next request to that node, and all that is left on close."""
    received: list[list[int]] = [[], []]

    def recorder(index: int) -> Script:
        def script(sock: socket.socket) -> None:
            for kind, request_id in frames_of(sock):
                received[index].append(kind)
                if kind == messages.Write.kind:
                    sock.sendall(encode(messages.Ack(), request_id))

        return script

    one, two = peers(recorder(0)), peers(recorder(1))
    owed: dict[int, bytes] = {}

    def locate(node: int) -> tuple[str, str, int]:
        return "a node", "127.0.0.1", (one, two)[node - 1].port

    session = Session(locate, owed)
    commit = encode(messages.Commit(1, bytes(16), b"key"))
    begin(session, (1, 2), 1, write(1))
    owed.update({1: commit, 2: commit})
    begin(session, (1,), 2, write(2))
    assert list(owed) == [2]
    session.close()
    one.close()
    two.close()
    kind_write, kind_commit = messages.Write.kind, messages.Commit.kind
    assert received[0] == [kind_write, kind_commit, kind_write]
    assert received[1] == [kind_write, kind_commit]


def test_an_interrupt_leaves_no_connection_behind(peers: Callable[..., Peer], begin: Begin) -> None:
    """A late reply must never be taken for the answer to a later request."""
    session = session_of(peers(answer, answer))

    def interrupted() -> Operation[None]:
        yield (1,), 1, ping()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.run(interrupted(), 5)
    assert begin(session, (1,), 2, ping(2))[0][0] == messages.Pong.kind
    session.close()


def test_unknown_hosts_and_nodes() -> None:
    for host in ("a..b", "x" * 70 + ".invalid"):
        with pytest.raises(ConnectError):
            Connection.open("node 1", host, 1, Deadline(5))

    def locate(node: int) -> tuple[str, str, int]:
        raise ConnectError(f"node {node}", "its address is not known")

    reply = Session(locate).run(send((1,), 1, ping()), 5)[0]
    assert isinstance(reply, Lost)
    assert not reply.sent


# --- signals -----------------------------------------------------------------------------------


@contextmanager
def many_signals() -> Iterator[None]:
    """A signal every two milliseconds, from a timer, as a profiler's. pytest-timeout's timer is the
    same one, and has the rest of its time afterwards: what is done here ends by itself."""
    handler = signal.signal(signal.SIGALRM, lambda *_: None)
    timer = signal.setitimer(signal.ITIMER_REAL, PATIENCE_S / 10, PATIENCE_S / 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def silent_for(seconds: float) -> Script:
    """Answer the first request, and then nothing, until the connection ends after that time."""

    def script(sock: socket.socket) -> None:
        sock.sendall(encode(messages.Ack(), next(frames_of(sock))[1]))
        sock.settimeout(seconds)
        while sock.recv(65536):
            pass

    return script


def test_signals_prolong_no_wait(peers: Callable[..., Peer], begin: Begin) -> None:
    """A call that is interrupted all the time has its deadline all the same, in each way of a
    request: whoever waits looks at the clock, and begins no wait anew (PEP 475 does)."""
    session = session_of(peers(silent_for(10)))
    assert begin(session, (1,), 1, write(1))[0][0] == ACK
    with many_signals():
        outcome = begin(session, (1,), 2, write(2), 0.3)[0]
    assert isinstance(outcome, Lost)
    assert isinstance(outcome.error, DeadlineExceeded), "not the end of the connection, later"
    session.close()


def test_signals_prolong_no_single_request(peers: Callable[..., Peer]) -> None:
    """The same of connecting, and of what nodes and managers ask each other."""
    peer = peers(silent_for(10))
    with many_signals():
        connection = Connection.open("a node", "127.0.0.1", peer.port, Deadline(30))
        connection.call(messages.ClusterInfo(), Deadline(30))
        with pytest.raises(DeadlineExceeded):
            connection.call(messages.ClusterInfo(), Deadline(0.3))


# --- one request at a time ---------------------------------------------------------------------


def test_call_once(peers: Callable[..., Peer]) -> None:
    peer = peers(answer)
    assert call_once("a node", "127.0.0.1", peer.port, messages.Ping(), 5) == PONG


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (hold, DeadlineExceeded),
        (one_reply(lambda _: b""), ConnectionLost),
        (one_reply(lambda number: encode(PONG, number)[:30]), ConnectionLost),
        (one_reply(lambda number: encode(PONG, number + 1)), ConnectionLost),
        (one_reply(lambda _: b"garbage"), ConnectionLost),
        (one_reply(lambda number: encode(PONG, number)[:11] + b"\0"), ConnectionLost),
        (one_reply(lambda _: UNREADABLE), ConnectionLost),
        (one_reply(lambda n: b"\xc7\x01\x81\x01" + encode(PONG, n)[4:]), ConnectionLost),
    ],
)
def test_call_once_fails(
    peers: Callable[..., Peer], script: Script, error: type[GTStoreError]
) -> None:
    peer = peers(script)
    with pytest.raises(error, match="a node: "):
        call_once("a node", "127.0.0.1", peer.port, messages.Ping(), 0.2)


def test_call_once_without_a_listener(peers: Callable[..., Peer]) -> None:
    peer = peers()
    peer.listener.close()
    with pytest.raises(ConnectError, match="connection refused"):
        call_once("a node", "127.0.0.1", peer.port, messages.Ping(), 5)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("127.0.0.1:9001", ("127.0.0.1", 9001)),
        ("localhost", ("localhost", 9001)),
        ("[::1]:7", ("::1", 7)),
        ("[::1]", ("::1", 9001)),
    ],
)
def test_addresses(text: str, parsed: tuple[str, int]) -> None:
    assert parse_address(text) == parsed
    assert parse_address(format_address(*parsed)) == parsed


@pytest.mark.parametrize(
    "text", ["", ":1", "a:", "a:b", "a:0", "a:65536", "a:-1", "[::1", "[::1]x", "a:\u0661", "::1"]
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_address(text)


# --- what a connection is set up with ------------------------------------------------------------


def set_up_of(sock: socket.socket) -> tuple[int, ...]:
    return tuple(
        sock.getsockopt(level, option)
        for level, option in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        )
    )


@pytest.mark.parametrize("frame_timeout_ms", [1000, 45_000])
def test_both_ends_notice_that_the_other_one_has_vanished(frame_timeout_ms: int) -> None:
    """Each end asks the other one's kernel now and then, and gives up when nothing comes back. No
    peer that is slow to take a long frame is given up before its time."""
    server = FrameServer("127.0.0.1", 0, {}, frame_timeout_ms=frame_timeout_ms)
    server.start()
    try:
        ours = Connection.open("a node", "127.0.0.1", server.port, Deadline(5))
        wait_until(lambda: server.open_sockets, "the other end")
        (theirs,) = server.open_sockets
        wait_until(lambda: theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "its set-up")
        wait_until(lambda: set_up_of(theirs)[-1], "all of it")
        assert set_up_of(ours.sock) == (1, 1, 30, 10, 30_000)
        assert set_up_of(theirs) == (1, 1, 30, 10, max(30_000, frame_timeout_ms))
        ours.close()
    finally:
        server.drain()


VANISHED = """
import fcntl, socket, struct, threading
from gtstore import connection
from gtstore.server import FrameServer
from gtstore.connection import Connection, Deadline
from gtstore.testing import wait_until

def switch(is_up):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sH14x", b"lo", is_up))  # SIOCSIFFLAGS

connection.KEEPALIVE_AFTER_S = connection.KEEPALIVE_INTERVAL_S = 1
connection.messages.SILENCE_MAX_S = 1
connection.set_up.__defaults__ = (1,)
switch(True)
server = FrameServer("127.0.0.1", 0, {}, frame_timeout_ms=1000)
server.start()
ours = Connection.open("a node", "127.0.0.1", server.port, Deadline(5))
ours.sock.settimeout(30)
wait_until(lambda: server.open_sockets, "the other end")
(theirs,) = server.open_sockets
wait_until(lambda: theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), "its set-up")
switch(False)  # from now on nothing arrives, and nobody says so
wait_until(lambda: not server.open_sockets, "the end of their end", 30)
try:
    raise SystemExit(f"received {ours.sock.recv(1)!r}")
except TimeoutError as error:
    assert error.errno, "our own time limit"
"""


def test_a_peer_that_vanishes() -> None:
    """In a network of its own, which is cut without a word: both ends are closed after a while."""
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    try:
        subprocess.run([*alone, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user cannot make a network")
    done = subprocess.run(
        [*alone, sys.executable, "-c", VANISHED],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
