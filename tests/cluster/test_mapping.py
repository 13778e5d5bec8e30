"""as_mapping on a real cluster: like a dict, and exact where others are at work."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from gtstore import BatchFailed, Client, InvalidInput, StoreMapping
from gtstore.testing import Cluster

pytestmark = pytest.mark.cluster

WORKERS = 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(3, 2) as running:
        yield running


@pytest.fixture
def store(cluster: Cluster) -> Iterator[Client]:
    with cluster.connect(timeout=30) as client:
        client.as_mapping().clear()
        yield client


# --- like a dict ---------------------------------------------------------------------------------


def test_text_and_bytes(store: Client) -> None:
    """The same keys, seen through prefixes of both kinds and without one."""
    users = store.as_mapping("user/")
    users["ann"] = "é"
    store.put(b"user/\xff", b"odd")
    store.put("other", b"")
    assert users == {"ann": "é".encode(), "\udcff": b"odd"}
    assert store.as_mapping(b"user/") == {b"ann": "é".encode(), b"\xff": b"odd"}
    assert sorted(store.as_mapping()) == ["other", "user/ann", "user/\udcff"]
    users["\udcff"] = b"even"
    assert store.get(b"user/\xff") == b"even"
    with pytest.raises(InvalidInput):
        store.put("user/\udcff", b"")  # only the mapping takes such keys


def test_wrong_keys(store: Client) -> None:
    """What cannot be a key is not there, and cannot be stored."""
    mapping = store.as_mapping("p" * 400)
    for key in (3, b"a", "k" * 101, "\ud800", None):
        assert key not in mapping
        with pytest.raises(KeyError):
            mapping[key]  # type: ignore[index]
        with pytest.raises(InvalidInput):
            mapping[key] = b""  # type: ignore[index]
    for prefix in (3, None, "p" * 501):
        with pytest.raises(InvalidInput):
            store.as_mapping(prefix)  # type: ignore[call-overload]


def test_many_keys(store: Client) -> None:
    """More than one put_many, and more than one step of a scan."""
    mapping = store.as_mapping("many/")
    wanted = {f"key {i}": b"%d" % i for i in range(3000)}
    mapping.update(wanted)
    mapping.update({f"key {i}": b"new" for i in range(10)}, more="text")
    wanted |= {f"key {i}": b"new" for i in range(10)} | {"more": b"text"}
    assert len(mapping) == len(wanted)
    assert mapping == wanted
    assert sorted(mapping.values()) == sorted(wanted.values())
    mapping.clear()
    assert not mapping


def test_what_cannot_be_stored_ends_an_update(store: Client) -> None:
    """InvalidInput of a value, as for put_many: nothing of that batch is stored."""
    mapping = store.as_mapping("update/")
    with pytest.raises(InvalidInput):
        mapping.update({"a": b"1", "b": 5})  # type: ignore[dict-item]
    assert not mapping


def test_an_update_without_owners() -> None:
    """BatchFailed says which keys failed, as the store has them; the others are stored."""
    with Cluster(2, 1, ["--no-respawn"]) as cluster, cluster.connect(timeout=20) as store:
        cluster.kill_node(1)
        mapping = store.as_mapping("p/")
        with pytest.raises(BatchFailed) as failed:
            mapping.update({f"key{i}": b"" for i in range(20)})
        names = {f"p/key{i}".encode() for i in range(20)}
        assert failed.value.results.keys() | failed.value.errors.keys() == names
        assert failed.value.errors
        assert all(store.get(name) == b"" for name in failed.value.results)


def test_a_mapping_outlives_a_node(cluster: Cluster, store: Client) -> None:
    """It is the client's store: nothing is gone when a node is killed."""
    mapping = store.as_mapping("kept/")
    wanted = {f"key{i}": b"%d" % i for i in range(200)}
    mapping.update(wanted)
    cluster.kill_node(1)
    assert mapping == wanted
    cluster.wait_in_sync()
    assert mapping == wanted


KEYS = st.one_of(
    st.sampled_from(["a", "b", "é", "\udcff", "\udcc3", "a\udc80"]), st.text("ab", max_size=2)
)
VALUES = st.binary(max_size=3)
prefixes = itertools.count()


def run_machine(store: Client) -> None:
    """Compare a mapping with a dict, operation by operation. Each run has a prefix of its own,
    between others' keys."""

    class Machine(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            prefix = f"machine {next(prefixes)}"
            store.put(prefix, b"not mine")
            store.put(f"{prefix}./a", b"not mine")
            self.mapping = store.as_mapping(f"{prefix}/")
            self.model: dict[str, bytes] = {}

        @rule(key=KEYS, value=VALUES)
        def put(self, key: str, value: bytes) -> None:
            self.mapping[key] = self.model[key] = value

        @rule(key=KEYS)
        def read(self, key: str) -> None:
            assert (key in self.mapping) == (key in self.model)
            assert self.mapping.get(key, b"none") == self.model.get(key, b"none")
            assert same(lambda: self.mapping[key], lambda: self.model[key])

        @rule(key=KEYS)
        def delete(self, key: str) -> None:
            assert same(lambda: self.mapping.__delitem__(key), lambda: self.model.__delitem__(key))

        @rule(key=KEYS)
        def pop(self, key: str) -> None:
            assert same(lambda: self.mapping.pop(key), lambda: self.model.pop(key))

        @rule(key=KEYS)
        def pop_or_none(self, key: str) -> None:
            assert self.mapping.pop(key, None) == self.model.pop(key, None)

        @rule()
        def popitem(self) -> None:
            if self.model:
                key, value = self.mapping.popitem()
                assert self.model.pop(key) == value
            else:
                with pytest.raises(KeyError):
                    self.mapping.popitem()

        @rule(key=KEYS, value=VALUES)
        def setdefault(self, key: str, value: bytes) -> None:
            assert self.mapping.setdefault(key, value) == self.model.setdefault(key, value)

        @rule(items=st.dictionaries(KEYS, VALUES, max_size=4))
        def update(self, items: dict[str, bytes]) -> None:
            self.mapping.update(items)
            self.model.update(items)

        @rule()
        def clear(self) -> None:
            self.mapping.clear()
            self.model.clear()

        @invariant()
        def is_the_same(self) -> None:
            assert self.mapping == self.model

        @rule()
        def look_in_other_ways(self) -> None:
            assert len(self.mapping) == len(self.model)
            assert bool(self.mapping) == bool(self.model)
            assert set(self.mapping) == set(self.model)
            assert sorted(self.mapping.values()) == sorted(self.model.values())

        def teardown(self) -> None:
            self.mapping.clear()

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=15,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def same(mapping: Callable[[], object], model: Callable[[], object]) -> bool:
    """Whether both return the same, or raise the same."""

    def outcome(call: Callable[[], object]) -> object:
        try:
            return call()
        except KeyError as error:
            return error.args

    return outcome(mapping) == outcome(model)


def test_it_is_like_a_dict(store: Client) -> None:
    """Whatever is done to both, a mapping and a dict say the same; popped keys are gone at once,
    and other keys of the store stay."""
    run_machine(store)
    others = dict(store.scan())
    assert set(others.values()) == {b"not mine"}


# --- with others at work -------------------------------------------------------------------------


def at_once(cluster: Cluster, work: Callable[[int, StoreMapping[str]], None]) -> None:
    """Run it in threads, each with a client of its own, and raise what any of them has raised."""
    failures: list[BaseException] = []
    start = threading.Barrier(WORKERS)

    def run(number: int) -> None:
        try:
            with cluster.connect(timeout=30) as store:
                start.wait()
                work(number, store.as_mapping("shared/"))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_each_value_is_popped_once(cluster: Cluster, store: Client) -> None:
    """Several clients empty the same mapping by popitem: all that was put comes out once, and
    nothing else, such as the empty value that stands for a popped one."""
    wanted = {f"key{i}": b"%d" % i for i in range(300)}
    store.as_mapping("shared/").update(wanted)
    popped: list[tuple[str, bytes]] = []

    def work(_: int, mapping: StoreMapping[str]) -> None:
        while True:
            try:
                popped.append(mapping.popitem())
            except KeyError:
                return

    at_once(cluster, work)
    assert Counter(popped) == Counter(wanted.items())
    assert not store.as_mapping("shared/")


def test_what_is_put_while_others_pop_is_not_lost(cluster: Cluster, store: Client) -> None:
    """Half of the clients put values under one key, if it has none; the others pop it: each value
    that was put is popped once, in the end by this test."""
    put: list[bytes] = []
    popped: list[bytes] = []

    def work(number: int, mapping: StoreMapping[str]) -> None:
        for i in range(100):
            mine = b"%d %d" % (number, i)
            if number % 2 == 0:
                if mapping.setdefault("key", mine) == mine:
                    put.append(mine)
            elif (value := mapping.pop("key", None)) is not None:
                popped.append(value)

    at_once(cluster, work)
    if (last := store.as_mapping("shared/").pop("key", None)) is not None:
        popped.append(last)
    assert Counter(put) == Counter(popped)
    assert put


def test_setdefault_has_one_winner(cluster: Cluster, store: Client) -> None:
    """All who set a default at once are given the same value."""
    given: list[tuple[int, bytes]] = []

    def work(number: int, mapping: StoreMapping[str]) -> None:
        for i in range(50):
            given.append((i, mapping.setdefault(f"default {i}", b"%d" % number)))

    at_once(cluster, work)
    assert len(set(given)) == 50
    assert set(given) == {(i, store.as_mapping("shared/")[f"default {i}"]) for i in range(50)}
