"""put_many and get_many on a real cluster: long ones, and what goes wrong in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from gtstore import Client, connect
from gtstore.errors import BatchFailed, DeadlineExceeded
from gtstore.session import Round, Session
from gtstore.testing import Cluster

COUNT = 20_000


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(4, 2) as running:
        yield running


@pytest.fixture
def store(cluster: Cluster) -> Iterator[Client]:
    with connect(cluster.address) as client:
        yield client


@pytest.mark.parametrize("size", [0, 100, 900, 8000, 30_000])
def test_a_long_batch(store: Client, size: int) -> None:
    """Of short values, many rounds; of longer ones, a few at a time, or through the selector."""
    count = min(COUNT, 40_000_000 // (size + 1))
    items = {f"key{i}": (b"%d " % i) + bytes(size) for i in range(count)}
    results = store.put_many(items)
    assert list(results) == list(items)
    assert len({result.version for result in results.values()}) == count
    assert store.get_many(list(items)) == items
    wanted = [f"key{i}" for i in range(count - 100, count + 100)]
    found = store.get_many(wanted, default=b"none")
    assert found == {key: items.get(key, b"none") for key in wanted}


def test_a_node_that_dies_between_two_batches(cluster: Cluster, store: Client) -> None:
    """What was sent to it is sent to those who take its place; no key fails, none is lost."""
    first = {f"key{i}": b"1" for i in range(3000)}
    second = {f"key{i}": b"2" for i in range(0, 3000, 2)}
    store.put_many(first)
    cluster.kill_node(2)
    store.put_many(second)
    assert store.get_many(list(first)) == {**first, **second}


def test_a_node_that_stands_still(cluster: Cluster) -> None:
    """Its keys fail by the deadline, each with an error of its own; the others are there, though
    they are many rounds, and the client goes on."""
    keys = [f"key{i}" for i in range(900)]
    with connect(cluster.address, timeout=0.7) as store:
        store.put_many(dict.fromkeys(keys, b"before"))
        silent = {key for key in keys if store.where(key).owners[0] == 2}
        pid = cluster.node_pids[2]
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(BatchFailed) as failed:
                store.get_many(keys)
        finally:
            os.kill(pid, signal.SIGCONT)
        errors = failed.value.errors
        assert len(errors) + len(failed.value.results) == len(keys)
        assert set(failed.value.results.values()) == {b"before"}
        # Those of which node 2 is the primary, and none that only came after them.
        assert errors.keys() <= silent
        assert {type(error) for error in errors.values()} == {DeadlineExceeded}
    with connect(cluster.address) as store:
        assert set(store.get_many(keys).values()) == {b"before"}


def test_a_batch_of_many_long_pending_values(cluster: Cluster) -> None:
    """Each has to be given to the other owner first: more than is under way at once."""
    values = {f"pending{i}": b"%d" % i + bytes(30_000) for i in range(150)}
    for key, value in values.items():
        with connect(cluster.address) as writer:
            writer.put(key, value)
            writer._idle[0].source.owed.clear()  # it never says that the put is complete
            writer._idle[0].source._late.clear()
    with connect(cluster.address) as store:
        store.put_many({f"other{i}": bytes(100) for i in range(1000)})  # connects
        assert store.get_many(list(values)) == values
        assert store.get_many(list(values)) == values


def test_an_interrupted_batch(store: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """No reply to it is taken for one to a later request."""
    store.put_many({f"key{i}": b"%d" % i for i in range(1000)})
    receive_many = Session.receive_many
    rounds = 0

    def interrupted(session: Session, round_: Round, ends_at: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 2:
            raise KeyboardInterrupt
        receive_many(session, round_, ends_at)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "receive_many", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.get_many([f"key{i}" for i in range(1000)])
    for number in (7, 300, 999):
        assert store.get(f"key{number}") == b"%d" % number
    assert store.get_many(["key1", "key2"]) == {"key1": b"1", "key2": b"2"}


def test_the_way_of_a_usual_batch(store: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it takes the way through the selector loop, once there are connections."""
    items = {f"key{i}": b"v" for i in range(1000)}
    store.put_many(items)

    def refuse(*_: object) -> None:
        raise AssertionError("the selector loop is used")

    monkeypatch.setattr(Session, "go_on_many", refuse)
    store.put_many(items)
    store.put_many(items, ttl=100)
    assert store.get_many(list(items)) == items
