"""The examples do what they say, and what they teach is right."""

from __future__ import annotations

import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gtstore
from gtstore import Client, InvalidInput, OutcomeUnknown, StoredEntry, Unavailable
from gtstore.testing import Cluster, wait_until

pytestmark = pytest.mark.cluster

FOLDER = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(path.name for path in FOLDER.glob("*.py"))
WITH_A_MANAGER = sorted(
    path.name for path in FOLDER.glob("*.py") if "--manager" in path.read_text()
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(3, 2) as running:
        yield running


@pytest.fixture
def store(cluster: Cluster) -> Iterator[Client]:
    with cluster.connect(timeout=30) as client:
        yield client


def run(name: str, *arguments: str) -> list[str]:
    """The lines that an example prints."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


def example(name: str) -> Any:
    """What an example defines."""
    return runpy.run_path(str(FOLDER / name))


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_starts_a_cluster_of_its_own(name: str) -> None:
    """It ends with code 0, and its last line says that all went well."""
    assert run(name)[-1].startswith("OK")


@pytest.mark.parametrize("name", WITH_A_MANAGER)
def test_an_example_with_a_cluster_that_is_there(cluster: Cluster, name: str) -> None:
    """It kills nothing there."""
    before = dict(cluster.node_pids)
    said = run(name, "--manager", cluster.address)
    assert said[-1].startswith("OK")
    assert {node["id"]: node["pid"] for node in cluster.status()["nodes"]} == before


# --- lock.py -------------------------------------------------------------------------------------


@pytest.fixture
def lock() -> Any:
    return example("lock.py")


def test_one_of_two_contenders_holds_a_lock(store: Client, lock: Any) -> None:
    """The other one gets it once it is released, under a higher fence."""
    one, other = (lock["Lock"](store, "two", ttl=100) for _ in range(2))
    assert one.try_acquire()
    assert not other.try_acquire()
    assert not one.try_acquire()  # not even its holder, twice
    one.release()
    assert other.try_acquire()
    assert other.fence > one.fence
    other.release()
    with one:
        assert one.fence > other.fence
        assert not other.try_acquire()
    assert other.try_acquire()


def test_whoever_waits_gets_the_lock(cluster: Cluster, store: Client, lock: Any) -> None:
    """acquire returns after the release."""
    holder = lock["Lock"](store, "waiting", ttl=100)
    holder.acquire()
    fences = []

    def wait() -> None:
        with cluster.connect() as own, lock["Lock"](own, "waiting", ttl=100) as held:
            fences.append(held.fence)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    holder.release()
    for thread in threads:
        thread.join()
    assert len(set(fences)) == 3
    assert min(fences) > holder.fence


def test_a_lock_that_is_not_renewed_expires(store: Client, lock: Any) -> None:
    """Then it is another's, with a higher fence; a renewal moves the end away."""
    one, other = (lock["Lock"](store, "expiring", ttl) for ttl in (100, 0.2))
    with one:
        (before,) = store.scan_entries("lock/expiring")
        one.renew()
        (after,) = store.scan_entries("lock/expiring")
        assert (before.value, after.value) == (one._token, one._token)
        assert before.expiry_us is not None
        assert after.expiry_us is not None
        assert before.expiry_us < after.expiry_us
    other.acquire()
    wait_until(one.try_acquire, "the end of the lock that nobody renews")
    assert one.fence > other.fence


def test_a_former_holder_changes_nothing(store: Client, lock: Any) -> None:
    """Neither its release nor its renewal touches the lock that another has by now."""
    former, holder = (lock["Lock"](store, "former", ttl) for ttl in (0.000001, 100))
    former.acquire()
    holder.acquire()
    held = store.get_entry("lock/former")
    for late in (former.release, former.renew):
        with pytest.raises(lock["NotHeld"], match="lock/former is not held"):
            late()
    assert store.get_entry("lock/former") == held
    holder.renew()
    holder.release()
    with pytest.raises(lock["NotHeld"]):
        holder.release()
    assert store.get("lock/former") == lock["RELEASED"]


def test_a_lock_knows_its_token_not_its_version(store: Client, lock: Any) -> None:
    """A renewal that was done, though its outcome was unknown, does not lose the lock."""
    holder = lock["Lock"](store, "token", ttl=100)
    with holder:
        store.put("lock/token", holder._token, ttl=100)
        holder.renew()


# --- session_store.py ----------------------------------------------------------------------------


class LogsOut:
    """A store in which somebody deletes what was just read."""

    def __init__(self, store: Client) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get_entry(self, key: str) -> StoredEntry | None:
        entry = self._store.get_entry(key)
        self._store.delete(key)
        return entry


def test_a_look_does_not_bring_a_session_back(store: Client) -> None:
    """Whoever logs out while another request looks at the session is logged out."""
    make = example("session_store.py")["Sessions"]
    sessions = make(store, 100)
    cookie = sessions.log_in("ann")
    with pytest.raises(KeyError):
        make(LogsOut(store), 100)[cookie]
    assert cookie not in sessions
    assert list(sessions) == []


def test_a_look_prolongs_a_session(store: Client) -> None:
    """Sliding expiry: each look begins the time to live anew, without losing what is in it."""
    sessions = example("session_store.py")["Sessions"](store, 100, "sliding/")
    cookie = sessions.log_in("ann")
    sessions.change(cookie, cart=["apples"])
    (before,) = store.scan_entries("sliding/")
    assert sessions[cookie] == {"user": "ann", "cart": ["apples"]}
    (after,) = store.scan_entries("sliding/")
    assert before.expiry_us is not None
    assert after.expiry_us is not None
    assert before.expiry_us < after.expiry_us
    assert dict(sessions) == {cookie: {"user": "ann", "cart": ["apples"]}}
    del sessions[cookie]
    del sessions[cookie]
    assert not sessions


@pytest.mark.parametrize("cookie", ["", "x" * 1000, "\ud800", "../other"])
def test_what_is_no_cookie(store: Client, cookie: str) -> None:
    """A browser may send anything: there is no such session."""
    sessions = example("session_store.py")["Sessions"](store, 100)
    assert cookie not in sessions
    with pytest.raises(KeyError):
        sessions[cookie]


# --- counter_service.py --------------------------------------------------------------------------


class Failing:
    """A store that fails as it is told to."""

    def __init__(self, error: gtstore.GTStoreError) -> None:
        self.error = error

    def increment(self, _: bytes) -> int:
        raise self.error

    def get(self, *_: bytes) -> bytes:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (OutcomeUnknown("late", acks=1, required=2), 503, "may have counted"),
        (Unavailable("dead", required=2, alive=0), 503, "not counted: dead"),
        (InvalidInput("too long"), 400, "too long"),
    ],
)
def test_what_a_counter_answers_to_errors(
    error: gtstore.GTStoreError, status: int, text: str
) -> None:
    """The caller learns whether it was counted, was not, or may have been."""
    service = example("counter_service.py")
    with service["CounterServer"](Failing(error)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert service["request"](server.port, "POST", "name") == (status, text)
            assert service["request"](server.port, "GET", "name")[0] == status
        finally:
            server.shutdown()
            thread.join()


def test_counters(cluster: Cluster) -> None:
    """Every name has one, and two instances share it."""
    service = example("counter_service.py")
    request = service["request"]
    with service["serving"](cluster.address) as one, service["serving"](cluster.address) as other:
        assert request(one, "GET", "%C3%A9") == (200, "0")
        assert request(one, "POST", "%C3%A9") == (200, "1")
        assert request(other, "POST", "%C3%A9") == (200, "2")
        assert request(one, "GET", "%C3%A9") == (200, "2")
        assert request(one, "POST", "x" * 600)[0] == 400
        assert request(one, "POST", "%FF") == (200, "1")
