"""Owners that compare what they hold: rule N10, on a simulated cluster with disks."""

from __future__ import annotations

import contextlib

import pytest

from gtstore import copying, scrubbing
from gtstore.errors import StoreDamaged
from gtstore.scrubbing import Difference, Portion, Wrong, differences, lacks, look
from gtstore.wire import messages
from gtstore.wire.codec import encode_record
from gtstore.wire.messages import COMMITTED, TOMBSTONE, Copy, Entry

from .sim.network import TOKEN, Client, Fault, Network, after, refuse

KEY = b"key1"
PARTITION = 186  # of 192; its owners are nodes 1, 2 and 3, in this order
KEYS = [KEY, b"1yek", b"e1ky", b"yek1"]  # of the same partition
LATER_US = 2 * scrubbing.QUIET_S * 1_000_000


def entry(time: int, value: bytes = b"v", flags: int = COMMITTED) -> bytes:
    return encode_record(Entry(time, 7, 1, flags, None, value))


def version(time: int) -> bytes:
    return entry(time)[:16]


@pytest.mark.parametrize(
    ("ours", "theirs", "wrong"),
    [
        pytest.param(entry(5), None, None, id="the same"),
        pytest.param(entry(5), entry(5, b"w"), Wrong.UNKNOWN, id="another content"),
        pytest.param(entry(4), entry(5), Wrong.HERE, id="an older one here"),
        pytest.param(entry(5), entry(4), Wrong.THERE, id="an older one there"),
        pytest.param(b"", entry(5), Wrong.HERE, id="nothing here"),
        pytest.param(entry(5), b"", Wrong.THERE, id="nothing there"),
        pytest.param(b"", entry(3), Wrong.UNKNOWN, id="nothing here, below the floor"),
        pytest.param(entry(2), entry(3), Wrong.HERE, id="an older one here, below the floor"),
        pytest.param(b"", entry(5, b"", COMMITTED | TOMBSTONE), None, id="dropped here"),
        pytest.param(entry(5, b"", COMMITTED | TOMBSTONE), b"", None, id="dropped there"),
        pytest.param(entry(4), entry(5, b"", COMMITTED | TOMBSTONE), Wrong.HERE, id="not deleted"),
        pytest.param(entry(4), entry(5, flags=0), None, id="pending there"),
        pytest.param(entry(5, flags=0), entry(4), None, id="pending here"),
        pytest.param(entry(4), entry(20), None, id="not quiet"),
        pytest.param(entry(20), b"", None, id="not quiet here"),
    ],
)
def test_who_is_wrong(ours: bytes, theirs: bytes | None, wrong: Wrong | None) -> None:
    """What is committed at one owner must be, or something newer, at every other one."""
    own = {KEY: ours} if ours else {}
    others = {} if theirs == b"" else {KEY: theirs}
    found = differences(own, others, version(3), (10).to_bytes(8, "big"))
    assert [difference.wrong for difference in found] == ([wrong] if wrong else [])


def cluster(replicas: int = 2) -> Network:
    """With a value under each key, which is committed everywhere, and quiet."""
    network = Network(3, replicas, is_durable=True)
    client = Client(network).know()
    for key in KEYS:
        client.put(key, b"of " + key)
    client.source.owe_now()
    network.deliver_owed(client.source.owed)
    for node in network.nodes.values():
        node.save()
    network.now_us += LATER_US
    return network


def scrub(network: Network, node: int) -> list[Difference]:
    """A node's look at the whole partition."""
    found: list[Difference] = []
    at: bytes | None = b""
    while at is not None:
        portion: Portion = step(network, node, at)
        found += portion.differences
        at = portion.after
    return found


def step(network: Network, node: int, at: bytes) -> Portion:
    client = Client(network)
    operation = look(
        network.nodes[node].replicas,
        contextlib.nullcontext(),
        PARTITION,
        at,
        TOKEN,
        client.source.next_number,
        lambda: network.now_us,
    )
    return client.call(operation).run()


def change(network: Network, node: int, key: bytes, value: bytes | None) -> None:
    """As a disk does that has gone wrong, and whose checksums are right."""
    replicas = network.nodes[node].replicas
    replica = replicas[PARTITION]
    if value is None:
        replicas.drop(replica, key)
    else:
        old = replica.entries.get(key)
        assert old is not None
        replica.entries[key] = old[:21] + value
    network.nodes[node].save()


@pytest.mark.parametrize("portion", [1, 2, 3, 4, 32])
def test_nothing_differs(monkeypatch: pytest.MonkeyPatch, portion: int) -> None:
    monkeypatch.setattr(scrubbing, "PORTION_KEYS", portion)
    network = cluster()
    assert scrub(network, 1) == scrub(network, 2) == []
    asked = [request for _, request in network.asked if isinstance(request, Copy)]
    assert {held.key for request in asked for held in request.held} == set(KEYS)


def test_what_is_missing_at_a_backup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "PORTION_KEYS", 1)
    network = cluster()
    for key in KEYS[1:]:
        change(network, 2, key, None)
    assert {found.key: found.wrong for found in scrub(network, 2)} == dict.fromkeys(
        KEYS[1:], Wrong.HERE
    )


@pytest.mark.parametrize("size", [1, 100_000])
def test_what_is_missing_at_the_primary(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backup finds it; the primary, when it is told, finds the same."""
    monkeypatch.setattr(scrubbing, "_PORTION_SIZE", size)
    network = cluster()
    change(network, 1, KEY, None)
    (found,) = scrub(network, 2)
    assert found[::2] == (KEY, Wrong.THERE)
    one = network.nodes[1].replicas
    assert lacks(one, PARTITION, KEY, found.version)
    one.raise_floor(one[PARTITION], found.version)
    assert lacks(one, PARTITION, KEY, found.version) is None
    assert lacks(one, PARTITION, KEYS[1], found.version) is False
    assert lacks(one, PARTITION, KEYS[1], b"\xff" * 16)
    one.suspend(PARTITION)
    assert lacks(one, PARTITION, KEYS[1], b"\xff" * 16) is False


def test_nobody_can_tell() -> None:
    """Both have it with right checksums."""
    network = cluster()
    change(network, 2, KEY, b"another")
    assert [found[::2] for found in scrub(network, 2)] == [(KEY, Wrong.UNKNOWN)]


def test_something_was_just_under_way() -> None:
    """It is looked at again, and then it is the same."""
    network = cluster()
    change(network, 1, KEY, b"late")

    network.script(1, Copy, Fault.NONE, after(lambda: change(network, 1, KEY, b"of " + KEY)))
    assert scrub(network, 2) == []


def test_a_damaged_entry_is_met() -> None:
    network = cluster()
    store = network.nodes[1].store
    assert store
    store.damaged |= {name for name in store.shown if name.endswith(KEY)}
    with pytest.raises(StoreDamaged):
        scrub(network, 1)


def test_who_cannot_be_asked() -> None:
    """Another time."""
    network = cluster()
    change(network, 1, KEY, None)
    network.script(1, Copy, Fault.REFUSE)
    assert step(network, 2, b"") == Portion(None, 0, frozenset())
    network.script(1, Copy, refuse(messages.NOT_READY))
    assert step(network, 2, b"") == Portion(None, 0, frozenset())


def test_who_does_not_compare() -> None:
    """Who copies, or is no owner, or has no map."""
    network = cluster()
    network.kill(2)
    network.notice(2)
    assert scrub(network, 3) == []
    network.bring_back(2)
    assert copying.pending(network.nodes[2].replicas)
    asked = len(network.asked)
    assert scrub(network, 2) == scrub(network, 3) == []
    assert len(network.asked) == asked


def test_who_does_not_know_yet_that_it_joins_anew() -> None:
    """What the others have written without it is not missing: it is about to be copied."""
    network = cluster()
    network.membership.left(
        2, messages.Join(PARTITION, network.nodes[2].replicas[PARTITION].join_epoch)
    )
    network.nodes[1].replicas.adopt(network.membership.map.epoch, network.membership.map.rows)
    change(network, 2, KEY, None)
    assert step(network, 2, b"") == Portion(None, 0, frozenset())
