"""gevent in the place of sockets, threads and selectors: deadlines hold, and greenlets take turns.

Each program runs in a process of its own: what gevent has replaced stays so.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from .peers import Peer, answer, hold

pytest.importorskip("gevent")

START = """
from gevent import monkey
monkey.patch_all()
import sys, time, gevent
from gtstore.connection import Connection, Deadline, call_once
from gtstore.errors import DeadlineExceeded, NetworkError
from gtstore.operations import Lost
from gtstore.session import Session, Unfinished
from gtstore.wire import messages
from gtstore.wire.codec import encode
good, silent = map(int, sys.argv[1:])
turns = 0

def take_turns():
    global turns
    while True:
        turns += 1
        gevent.sleep(0.001)

gevent.spawn(take_turns)
session = Session(lambda node: (f"node {node}", "127.0.0.1", (good, silent)[node - 1]))

def send(nodes, number):
    replies = yield nodes, number, encode(messages.Ping(), number)
    return replies
"""


def run(program: str, *peers: Peer) -> None:
    ports = [str(peer.port) for peer in peers]
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", START + program, *ports],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0


def test_a_silent_node(peers: Callable[..., Peer]) -> None:
    """The hot path waits no longer than it does without gevent, and the rest of the call until its
    deadline, while other greenlets have their turns."""
    run(
        """
assert not any(isinstance(reply, Lost) for reply in session.run(send((1,), 1), 5))
began_at = time.monotonic()
(first, second) = session.run(send((1, 2), 2), 0.3)
assert isinstance(second.error, DeadlineExceeded), second
session.close()
session.run(send((1,), 3), 5)
session._connections[2] = Connection.open("node 2", "127.0.0.1", silent, Deadline(5))
session._connections[2].node = 2
for node in (1, 2):
    session._known.add(node)
turns = 0
frame = encode(messages.Ping(), 4)
began_at = time.monotonic()
try:
    session.exchange((1, 2), 4, frame, encode(messages.Ack(), 4))
    raise SystemExit("it has answered")
except Unfinished as unfinished:
    slots = unfinished.slots
(first, second) = session.go_on(send((1, 2), 4), slots, began_at, 0.5)
assert not isinstance(first, Lost), first
assert isinstance(second.error, DeadlineExceeded), second
assert turns > 10, turns
session.close()
""",
        peers(answer, answer),
        peers(hold, hold),
    )


def test_one_request_at_a_time(peers: Callable[..., Peer]) -> None:
    run(
        """
call_once("a node", "127.0.0.1", good, messages.Ping(), 5)
try:
    call_once("a node", "localhost", silent, messages.Ping(), 0.2)
    raise SystemExit("it has answered")
except DeadlineExceeded:
    pass
assert turns > 10, turns
""",
        peers(answer),
        peers(hold),
    )


def test_a_silent_name_server(peers: Callable[..., Peer]) -> None:
    run(
        """
import socket
real = socket.getaddrinfo
def silent_about_names(host, *arguments, **options):
    if host == "a.name" and not options.get("flags"):
        gevent.sleep(20)
    return real(host, *arguments, **options)
socket.getaddrinfo = silent_about_names
try:
    call_once("a node", "a.name", good, messages.Ping(), 0.2)
    raise SystemExit("it has answered")
except NetworkError as error:
    assert "no answer from the name server" in str(error), error
assert turns > 10, turns
""",
        peers(answer),
        peers(hold),
    )
