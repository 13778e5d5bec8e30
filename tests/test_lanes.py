"""The lanes of a client: how many there are, who waits for one, and that anything may come between.

The peers are those of test_hostile_peers.py, and behave well.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import gtstore
from gtstore import client, lanes, session
from gtstore.errors import DeadlineExceeded, GTStoreError, InvalidInput, OperationFailed
from gtstore.lanes import Lane
from gtstore.living import Living
from gtstore.testing import wait_until
from gtstore.wire.messages import CLIENT_CONNECTIONS_MAX, CLIENT_IDLE_S, IDLE_TIMEOUT_S

from .blocking import set_timeout
from .test_hostile_peers import FakeCluster


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    running = FakeCluster(gtstore.connect)
    yield running
    running.close()


def lose_all(store: gtstore.Client) -> None:
    """The lanes that no call uses, as calls lose them that are interrupted."""
    for lane in list(store._idle):
        store._idle.remove(lane)
        lane.session.abort()


def lanes_of(store: gtstore.Client) -> list[Lane]:
    return list(store._lanes._living)


# --- how many there are --------------------------------------------------------------------------


def test_a_burst_of_threads(cluster: FakeCluster) -> None:
    """So many connections to a node as max_connections says, however many threads call; all of them
    get their turn."""
    with gtstore.connect(cluster.address, 30, max_connections=3) as store:
        barrier = threading.Barrier(40)
        failures: list[BaseException] = []

        def work(number: int) -> None:
            barrier.wait()
            try:
                for round_ in range(5):
                    store.put(f"key{number}", f"{round_}")
                    assert store.get(f"key{number}") == b"%d" % round_
                    assert store.get_many([f"key{number}"]) == {f"key{number}": b"%d" % round_}
                    store.get_entry(f"key{number}")
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(lanes_of(store)) <= 3
        assert len(cluster.nodes[0]._open) <= 3
        assert not store._wanted, "nobody waits any more"


def test_first_come_first_served(cluster: FakeCluster) -> None:
    """Whoever has waited longest gets the lane that is given back."""
    with gtstore.connect(cluster.address, 30, max_connections=1) as store:
        lane = store._lanes.take(time.monotonic(), 1)
        served: list[int] = []

        def work(number: int) -> None:
            got = store._take_lane(time.monotonic())
            served.append(number)
            store._lanes.give_back(got)

        threads = []
        for number in range(5):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            wait_until(lambda n=number: len(store._wanted) == n + 1, "one more that waits")  # type: ignore[misc]
        store._lanes.give_back(lane)
        for thread in threads:
            thread.join()
        assert served == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda store: store.get("key"), DeadlineExceeded),
        (lambda store: store.get_entry("key"), DeadlineExceeded),
        (lambda store: store.get_many(["key"]), DeadlineExceeded),
        (lambda store: list(store.scan()), DeadlineExceeded),
        (lambda store: store.put("key", "value"), OperationFailed),
        (lambda store: store.delete("key"), OperationFailed),
        (lambda store: store.increment("key"), OperationFailed),
        (lambda store: store.put_many({"key": "value"}), OperationFailed),
        (lambda store: store.put_entries([]), OperationFailed),
    ],
    ids=[
        "get",
        "get_entry",
        "get_many",
        "scan",
        "put",
        "delete",
        "increment",
        "put_many",
        "put_entries",
    ],
)
def test_no_lane_in_time(
    cluster: FakeCluster, call: Callable[[gtstore.Client], Any], error: type[GTStoreError]
) -> None:
    """A call waits no longer than it may take in all, and says what to do; a write did not
    happen. Then all is as before."""
    with gtstore.connect(cluster.address, 30, max_connections=1) as store:
        store.get("key")
        lane = store._lanes.take(time.monotonic(), 1)  # as a call of this very thread has it
        set_timeout(store, 0.25)
        with pytest.raises(error, match=r"calls for 0\.25 s; give it a larger max_connections, or"):
            call(store)
        assert not store._wanted
        store._lanes.give_back(lane)
        set_timeout(store, 30)
        assert store.get("key") is None


def test_a_call_that_has_waited_long(cluster: FakeCluster) -> None:
    """What is left of its time is all it has: it goes where deadlines are exact."""
    with gtstore.connect(cluster.address, 30, max_connections=1) as store:
        assert store._has_much_time(time.monotonic())
        assert not store._has_much_time(time.monotonic() - 29.9)


def test_a_handler_that_waits_goes_first(cluster: FakeCluster) -> None:
    """The call that it has interrupted waits, too, and cannot go on before the handler does."""
    with gtstore.connect(cluster.address, 30, max_connections=1) as store:
        lane = store._lanes.take(time.monotonic(), 1)
        order: list[str] = []
        real_wait = lanes._Waiter.wait
        is_inside = False

        def wait(waiter: lanes._Waiter, seconds: float) -> None:
            nonlocal is_inside
            if not is_inside:
                is_inside = True
                giver = threading.Timer(0.05, store._lanes.give_back, (lane,))
                giver.start()
                got = store._take_lane(time.monotonic())
                order.append("the handler")
                giver.join()
                store._lanes.give_back(got)
            real_wait(waiter, seconds)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lanes._Waiter, "wait", wait)
            store._lanes.give_back(store._take_lane(time.monotonic()))
            order.append("the call")
        assert order == ["the handler", "the call"]


def test_a_lost_lane_gives_its_place_back(cluster: FakeCluster) -> None:
    """A call that is interrupted between two steps may lose it; who waits learns of it, too."""
    with gtstore.connect(cluster.address, 30, max_connections=1) as store:
        store.put("key", "value")
        for _ in range(3):
            store._idle.pop().session.abort()
            assert store.get("key") == b"value"
        held = [store._lanes.take(time.monotonic(), 1)]
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(store.get("key")))
        thread.start()
        wait_until(lambda: store._wanted, "one that waits")
        held.pop().session.abort()
        thread.join()
        assert found == [b"value"]


def test_who_waits_when_the_client_is_closed(cluster: FakeCluster) -> None:
    """It waits no more; what is in progress ends, and its connections with it."""
    store = gtstore.connect(cluster.address, 30, max_connections=1)
    lane = store._lanes.take(time.monotonic(), 1)
    errors: list[str] = []

    def work() -> None:
        try:
            store.get("key")
        except GTStoreError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: store._wanted, "one that waits")
    store.close()
    thread.join()
    assert errors == ["this client was closed"]
    assert lane.session._connections
    store._lanes.give_back(lane)
    assert not lane.session._connections
    store.close()


@pytest.mark.parametrize("count", [0, -1, 1.5, "4", None, 1 << 40])
def test_no_number_of_connections(count: Any) -> None:
    with pytest.raises(InvalidInput, match="max_connections="):
        gtstore.connect("127.0.0.1:1", max_connections=count)


# --- what is idle --------------------------------------------------------------------------------


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._ahead_s = 0.0
        self._real = time.monotonic
        patch.setattr(time, "monotonic", lambda: self._real() + self._ahead_s)

    def move(self, seconds: float) -> None:
        self._ahead_s += seconds


def test_lanes_of_a_burst_are_closed(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that no call has used for a while: the next calls close them."""
    clock = Clock(monkeypatch)
    with gtstore.connect(cluster.address) as store:
        burst = [store._lanes.take(time.monotonic(), 1) for _ in range(20)]
        for lane in burst:
            store._lanes.give_back(lane)
        for _ in range(20):
            store.get("key")
        del lane
        burst.clear()
        for _ in range(4):
            clock.move(CLIENT_IDLE_S * 0.75)
            store.get("key")
        assert len(lanes_of(store)) == 1
        wait_until(lambda: len(cluster.nodes[0]._open) == 1, "the ends of the others")


def test_a_connection_that_was_idle_for_long_is_not_used(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody on the way may have forgotten it, without a word."""
    clock = Clock(monkeypatch)
    with gtstore.connect(cluster.address) as store:
        store.put("key", "value")
        (lane,) = lanes_of(store)
        before = dict(lane.session._connections)
        clock.move(2 * CLIENT_IDLE_S)
        assert store.get("key") == b"value"
        assert lane.session._connections[1] is not before[1]
        assert all(connection.sock.fileno() == -1 for connection in before.values())


def test_the_manager_is_left_alone(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that works with nodes only closes its connection to the manager, not theirs; and
    makes another one when it needs it."""
    clock = Clock(monkeypatch)
    with gtstore.connect(cluster.address) as store:
        store.get("key")
        (lane,) = lanes_of(store)
        nodes = lane.session._connections[1]
        for _ in range(6):
            clock.move(CLIENT_IDLE_S / 2)
            store.get("key")
        assert list(lane.session._connections) == [1]
        assert lane.session._connections[1] is nodes
        wait_until(lambda: not cluster.manager._open, "the end of the connection to the manager")
        for _ in range(6):
            store.where("key")
            clock.move(CLIENT_IDLE_S / 2)
        assert 0 in lane.session._connections
        assert 2 * CLIENT_IDLE_S < IDLE_TIMEOUT_S, "the client goes before the manager closes"


def test_the_manager_is_asked_over_a_fresh_connection(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a client that works with nodes all the time: no connection to the manager is used
    that it may have closed meanwhile."""
    clock = Clock(monkeypatch)
    with gtstore.connect(cluster.address) as store:
        store.where("key")
        (lane,) = lanes_of(store)
        before = lane.session._connections[0]
        clock.move(CLIENT_IDLE_S * 0.9)
        store.where("key")
        assert lane.session._connections[0] is before
        lane.look_at += 1000  # nobody looks in between
        clock.move(CLIENT_IDLE_S)
        store.where("key")
        assert lane.session._connections[0] is not before
        assert before.sock.fileno() == -1


# --- calls that are interrupted ------------------------------------------------------------------


@pytest.mark.parametrize("where", ["in the frame", "in the loop", "in the batch"])
def test_an_interrupted_call_gives_no_lane_back(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Ctrl-C, or a handler that raises, after a part of a frame has left: what comes next over that
    connection would be taken for the rest of it, and stored with another key's value."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with gtstore.connect(cluster.address) as store:
        store.put("key", "value")
        calls: dict[str, list[Callable[[], object]]] = {
            "in the frame": [lambda: store.put("key", bytes(1000)), lambda: store.get("key")],
            "in the loop": [
                lambda: store.get_entry("key"),
                lambda: store.delete("key"),
                lambda: store.put_many({"key": "value"}),
                lambda: list(store.scan()),
            ],
            "in the batch": [
                lambda: store.put_many({"key": "value"}),
                lambda: store.get_many(["key"]),
            ],
        }
        for call in calls[where]:
            with monkeypatch.context() as patch:
                if where == "in the frame":
                    patch.setattr(session, "write", lambda fd, data: os.write(fd, data[:20]))
                    patch.setattr(session.Session, "_half_sent", interrupted)
                elif where == "in the loop":
                    patch.setattr(session.Session, "send_many", lambda *_: session.Round([], []))
                    patch.setattr(session.Session, "_loop", interrupted)
                else:
                    patch.setattr(session.Session, "receive_many", interrupted)
                with pytest.raises(KeyboardInterrupt) as kept:
                    call()
            assert store._idle == []
            assert len(store._lanes._places) == CLIENT_CONNECTIONS_MAX, "the traceback keeps none"
            del kept
            store.put("other", "another value")
            assert store.get("other") == b"another value"
            assert store.get("key") == b"value"
            gc.collect()
            assert len(lanes_of(store)) == 1


def test_a_threads_own_calls_know_each_other(cluster: FakeCluster) -> None:
    """A handler's call at a busy key goes in front of the call that it has interrupted."""
    with gtstore.connect(cluster.address) as store:
        assert store._routes.turns.ticket(b"key").owner == threading.get_ident()
        store._after_fork()
        assert store._routes.turns.ticket(b"key").owner == threading.get_ident()


# --- anything may come between -------------------------------------------------------------------


def test_a_call_between_any_two_steps(cluster: FakeCluster) -> None:
    """A finalizer's or a handler's call, in the middle of what takes a lane, makes one, gives it
    back or closes it, ends like any other: nothing there waits for what cannot go on."""
    files = {module.__file__ for module in (lanes, client, sys.modules[Living.__module__])}
    count = 0
    is_inside = False

    def at_each_line(frame: Any, event: str, _: object) -> Any:
        nonlocal count, is_inside
        if frame.f_code.co_filename not in files:
            return None
        if event == "line" and not is_inside:
            is_inside = True
            try:
                assert store.get("other") == b"value"
                count += 1
            finally:
                is_inside = False
        return at_each_line

    with gtstore.connect(cluster.address, 5, max_connections=4) as store:
        store.put("other", "value")
        before = sys.gettrace()
        sys.settrace(at_each_line)
        try:
            for _ in range(3):
                lose_all(store)  # so that it takes a new one
                store.put("key", "value")
                assert store.get_many(["key"]) == {"key": b"value"}
                with gtstore.connect(cluster.address) as another:
                    assert another.get("key") == b"value"
        finally:
            sys.settrace(before)
        assert count > 100
        assert not store._wanted
        gc.collect()
        assert len(lanes_of(store)) <= 4


def test_things_that_join_while_they_are_gone_through() -> None:
    """Also what a fork goes through in the child, where an error would leave the parent's
    connections in use by both."""

    class Thing:
        pass

    things = [Thing(), Thing(), Thing()]
    living: Living[Thing] = Living()
    for thing in things:
        living.add(thing)
    seen = 0
    for thing in living:
        assert thing in things
        seen += 1
        things.append(Thing())
        living.add(things[-1])
    assert seen == 3
    assert set(living) == set(things)
    things.clear()
    del thing
    assert list(living) == []


# --- no copies -----------------------------------------------------------------------------------


def test_a_client_is_not_copied(cluster: FakeCluster) -> None:
    """It says what to do instead; so does whatever holds one."""
    with gtstore.connect(cluster.address) as store:
        mapping = store.as_mapping("a/")
        address = cluster.address
        for thing in (store, mapping, {"store": store}, gtstore.connect_async(address)):
            for copied in (pickle.dumps, copy.deepcopy):
                with pytest.raises(TypeError, match=rf"Make one in each process.*{address}"):
                    copied(thing)
        with pytest.raises(TypeError, match="Client objects cannot be pickled or copied"):
            copy.copy(store)
        assert copy.copy(mapping)._store is store
