"""Connections to the manager that nobody uses: they keep no client out, and no node."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
from collections.abc import Iterator

import pytest

import gtstore
from gtstore.connection import parse_address
from gtstore.testing import Cluster, wait_until
from gtstore.wire import messages
from gtstore.wire.codec import encode

pytestmark = pytest.mark.cluster

IDLE = messages.CONNECTIONS_MAX + messages.CONNECTIONS_RESERVED + 100


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * IDLE:
        pytest.skip("this process may not have so many open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_idle_clients_of_the_manager(cluster: Cluster) -> None:
    """More of them than there are places: new clients start, a dead node returns, and the clients
    that were there before go on, though their connections to the manager are closed."""
    address = parse_address(cluster.address)
    with contextlib.ExitStack() as stack:
        before = [stack.enter_context(cluster.connect(20)) for _ in range(3)]
        before[0].put("key", b"value")
        for _ in range(IDLE):
            idle = stack.enter_context(socket.create_connection(address, 20))
            idle.sendall(encode(messages.ClusterInfo(), 1))
            assert idle.recv(1) == b"\xc7"
        with gtstore.connect(cluster.address, 20) as late:
            assert late.get("key") == b"value"
        cluster.kill_node(2)
        wait_until(
            lambda: before[1].status()["nodes"][1]["incarnation"] == 2, "the return of node 2"
        )
        cluster.wait_in_sync()
        assert before[0].where("key") == before[2].where("key")
        assert before[2].get("key") == b"value"


@pytest.mark.gtstore(nodes=1, replicas=1, options=["--max-connections", "2"])
def test_the_option_is_for_the_manager_too(cluster: Cluster) -> None:
    """--max-connections: so many, and the reserve; the most silent ones make room for others."""
    address = parse_address(cluster.address)
    with contextlib.ExitStack() as stack:
        socks = [
            stack.enter_context(socket.create_connection(address, 20))
            for _ in range(2 + messages.CONNECTIONS_RESERVED + 1)
        ]
        closed, _, _ = select.select(socks, [], [], 20)
        assert closed[0].recv(1) == b""
        last = stack.enter_context(socket.create_connection(address, 20))
        last.sendall(encode(messages.Ping(), 1))
        assert last.recv(1) == b"\xc7"
