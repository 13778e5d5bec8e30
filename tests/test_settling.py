"""What a node finds to be done among its own entries: rules N7, N8 and C8."""

from __future__ import annotations

import pytest

from gtstore import copying, operations, settling
from gtstore.wire.codec import encode_record
from gtstore.wire.messages import (
    COMMITTED,
    EXPIRES,
    SETTLE_AFTER_S,
    TOMBSTONE_RETENTION_S,
    TOO_OLD,
    Ack,
    Entry,
    Error,
    Superseded,
    Write,
)

from .sim.network import Client, Network, message_of
from .sim.network import encode as frame_of_message

KEY = b"key1"
PARTITION = 186  # of 192; its owners are nodes 1, 2 and 3, in this order
SECOND_US = 1_000_000
RETENTION_US = (TOMBSTONE_RETENTION_S + 1) * SECOND_US


def cluster(replicas: int = 2) -> tuple[Network, Client]:
    network = Network(3, replicas)
    return network, Client(network).know()


def look(network: Network, node: int, later_us: int = 0, partition: int = PARTITION) -> list[bytes]:
    """What is to be settled at a node."""
    replicas = network.nodes[node].replicas
    return [key for key, _ in settling.look_through(replicas, partition, network.now_us + later_us)]


def commit(network: Network, client: Client) -> None:
    """All that is owed arrives."""
    client.source.owe_now()
    network.deliver_owed(client.source.owed)


def write(network: Network, node: int, key: bytes, entry: Entry) -> object:
    epoch = network.map.rows[PARTITION].list_epoch
    request = Write(epoch, PARTITION, key, encode_record(entry))
    return message_of(network.handle(node, frame_of_message(request)))


def test_what_is_pending_for_long_is_found() -> None:
    """After a second at the primary, after ten at a backup; not what is committed."""
    network, client = cluster()
    client.put(KEY, b"v")
    after_us = SETTLE_AFTER_S * SECOND_US
    assert look(network, 1, after_us - SECOND_US // 2) == []
    assert look(network, 1, after_us + 1000) == [KEY]
    assert look(network, 2, after_us + 1000) == []
    assert look(network, 2, 10 * after_us + 1000) == [KEY]
    assert look(network, 3, RETENTION_US) == [], "it is no owner"
    commit(network, client)
    assert look(network, 1, RETENTION_US) == look(network, 2, RETENTION_US) == []
    assert client.get(KEY) == b"v"


def test_one_that_copies_looks_at_nothing() -> None:
    network, client = cluster()
    client.put(KEY, b"v")
    network.kill(2)
    network.bring_back(2)
    assert look(network, 2, RETENTION_US) == []


def test_with_one_owner_nothing_is_pending() -> None:
    """A single owner's entries are complete as they are; its tombstones go too."""
    network, client = cluster(replicas=1)
    client.put(KEY, b"v")
    client.delete(b"1yek")
    assert look(network, 1, RETENTION_US) == []
    assert network.nodes[1].held(b"1yek") is None
    assert client.get(KEY) == b"v"


def test_only_what_is_unsettled_is_looked_at() -> None:
    """However many keys a partition has: what is committed and plain costs nothing any more."""
    network, client = cluster()
    replica = network.nodes[1].replicas[PARTITION]
    client.put(KEY, b"v")
    assert replica.unsettled == {KEY}
    commit(network, client)
    assert replica.unsettled == set()
    expires = Entry(network.now_us + 1, 1, 1, EXPIRES, network.now_us * 2, b"v")
    assert write(network, 1, KEY, expires) == Ack()
    commit(network, client)
    assert look(network, 1) == []
    assert replica.unsettled == {KEY}, "it is to expire"
    client.delete(KEY)
    commit(network, client)
    assert look(network, 1) == []
    assert replica.unsettled == {KEY}, "its tombstone is to be dropped"
    assert look(network, 1, RETENTION_US) == []
    assert look(network, 1, RETENTION_US) == []
    assert replica.unsettled == set()


def test_very_many_unsettled_keys_are_not_remembered() -> None:
    """Of a partition whose keys are all to expire, all are looked at, and no set has them."""
    network, _ = cluster()
    replica = network.nodes[1].replicas[PARTITION]
    for number in range(300):
        entry = Entry(network.now_us + 1, 1, number, EXPIRES | COMMITTED, 2**60, b"v")
        replica.entries[b"%d" % number] = encode_record(entry)
        replica.stored += 1
        replica.unsettled.add(b"%d" % number)
    assert look(network, 1) == []
    assert (len(replica.unsettled), replica.all_unsettled) == (0, True)
    for number in range(10, 300):
        network.nodes[1].replicas.drop(replica, b"%d" % number)
    assert look(network, 1) == []
    assert (len(replica.unsettled), replica.all_unsettled) == (10, False)


def test_what_a_single_owner_left_pending_is_found_when_there_are_more() -> None:
    network, client = cluster()
    network.kill(2)
    client.put(KEY, b"v")
    assert look(network, 1, RETENTION_US) == [], "with one owner nothing is pending"
    assert network.nodes[1].replicas[PARTITION].unsettled == set()
    network.bring_back(2)
    assert look(network, 1, RETENTION_US) == [KEY]


def test_old_tombstones_are_dropped() -> None:
    """Only those that are committed, after the retention; and then what may come late is refused,
    whatever its key (N7)."""
    network, client = cluster()
    client.put(KEY, b"v")
    result = client.delete(KEY)
    assert look(network, 1, RETENTION_US) == [KEY], "it is pending"
    commit(network, client)
    assert look(network, 1, 0) == []
    one = network.nodes[1].replicas
    assert one.size > 0
    assert look(network, 1, RETENTION_US) == []
    assert network.nodes[1].held(KEY) is None
    assert (one.size, one.count) == (0, 0)
    version = result.version
    floor = one[PARTITION].floor
    assert floor == version.time.to_bytes(8, "big") + version.client.to_bytes(8, "big")
    for key in (KEY, b"1yek"):
        for time in (version.time, version.time - 1):
            reply = write(network, 1, key, Entry(time, version.client, 9, 0, None, b"late"))
            assert isinstance(reply, Error)
            assert (reply.code, reply.detail) == (TOO_OLD, floor)
        later = Entry(version.time + 1, 0, 9, 0, None, b"new")
        assert write(network, 1, key, later) == Ack()
    # What is stored is above anything that was dropped of its key.
    older = Entry(version.time, 0, 8, 0, None, b"old")
    assert isinstance(write(network, 1, KEY, older), Superseded)


def test_a_floor_never_falls() -> None:
    network, client = cluster()
    for key in (KEY, b"1yek"):
        client.put(key, b"v")
        client.delete(key)
    commit(network, client)
    replica = network.nodes[1].replicas[PARTITION]
    look(network, 1, RETENTION_US)
    floor = replica.floor
    older = Entry(1, 1, 1, COMMITTED | 4, None, b"")
    network.nodes[1].replicas.merge(replica, b"k1ey", encode_record(older))
    look(network, 1, RETENTION_US)
    assert replica.floor == floor
    assert len(replica.entries) == 0
    # It goes with the partition.
    network.change(PARTITION, *network.map.rows[PARTITION].owners[1:])
    assert replica.floor == b""


def test_a_floor_of_a_clock_that_was_an_hour_ahead() -> None:
    """N7, N9: there may be such a floor on a disk. New keys are stored above it, at once, also
    where it was copied; and all that depends on their versions goes on."""
    network, client = cluster()
    floor = (network.now_us + 3600 * SECOND_US).to_bytes(8, "big") + bytes(8)
    for node in (1, 2):
        replicas = network.nodes[node].replicas
        replicas.raise_floor(replicas[PARTITION], floor)
    client.put(KEY, b"v")
    assert len(client.sent(Write)) == 2
    assert client.append(b"1yek", b"v") == b"v"
    assert client.append(KEY, b"+") == b"v+"
    network.kill(2)
    network.notice(2)
    network.now_us += 3 * SECOND_US
    network.tick()
    network.copy_all()
    assert network.nodes[3].replicas[PARTITION].floor == floor
    network.kill(1)
    network.notice(1)
    another = Client(network, seed=2).know()
    assert another.get(KEY) == b"v+"
    another.delete(KEY)
    another.put(b"k1ey", b"v")
    assert (another.get(KEY), another.get(b"k1ey")) == (None, b"v")
    # Keys of other partitions have their versions from the clock, as always.
    assert abs(another.put(b"key4", b"v").version.time - network.now_us) < SECOND_US


@pytest.mark.parametrize("node", [1, 2])
def test_expired_values_go_though_nobody_asks(node: int) -> None:
    """C8: the primary puts tombstones in their place, which are then settled as any others."""
    network, client = cluster()
    expiry = operations.expiry_after(client.routes, client.source, 1000)
    client.run(operations.put(client.routes, client.source, KEY, expiry + b"v", EXPIRES))
    commit(network, client)
    assert look(network, node, 0) == []
    network.now_us += SECOND_US
    assert look(network, node, 0) == []
    entry = network.nodes[node].held(KEY)
    assert entry is not None
    assert bool(entry.value) == (node == 2), "a backup judges nothing"
    if node == 1:
        assert look(network, node, 3 * SECOND_US) == [KEY]


def test_nothing_is_dropped_while_a_node_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A floor that rose during a scan would take from the copier what came to both meanwhile, with
    a version from a clock that is behind: the copier would count as in sync without it (N7)."""
    monkeypatch.setattr(copying, "COPY_SIZE", 1)
    network, client = cluster()
    for key in (KEY, b"1yek", b"yek1"):
        client.put(key, b"v")
    client.delete(b"yek1")
    commit(network, client)
    network.kill(2)
    network.notice(2)
    behind = Client(network, seed=7).know()
    behind.skew_us -= SECOND_US
    network.bring_back(2)
    call = network.copy(2, PARTITION)
    for _ in range(3):
        call.advance()
    behind.put(b"1key", b"of a clock behind")
    look(network, 1, RETENTION_US)
    call.run()
    network.kill(1)
    network.notice(1)
    assert behind.get(b"1key") == b"of a clock behind"
    # Once nobody copies, it goes.
    assert network.nodes[2].held(b"yek1") is not None
    look(network, 2, RETENTION_US)
    assert network.nodes[2].held(b"yek1") is None
