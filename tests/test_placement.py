"""Where keys live: against a deliberately dumb second version, and against the report's figures."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Collection

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gtstore.cluster_time import ClusterTime
from gtstore.errors import RemoteProtocolError
from gtstore.placement import (
    HASH_FUNCTIONS,
    PartitionMap,
    Route,
    Routes,
    additive,
    begun_anew,
    cluster_of,
    crc16,
    epoch_of,
    home_owners,
    is_serving,
    partition_count,
    row_begun_anew,
    row_without,
    under_replicated,
)
from gtstore.wire.messages import (
    ALIVE,
    DEAD,
    HASH_ADDITIVE,
    HASH_CRC16,
    HASHES,
    LEFT,
    SUSPECT,
    Cluster,
    Member,
    Owner,
    Row,
)

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

CLUSTER_ID = 0xC0FFEE01

keys = st.binary(min_size=1, max_size=500)

# --- a dumb second version -----------------------------------------------------------------------


def dumb_additive(key: bytes) -> int:
    total = 0
    for byte in key:
        total += byte
    return total


def dumb_crc16(key: bytes) -> int:
    """CRC-16/XMODEM bit by bit, from its definition."""
    crc = 0
    for byte in key:
        crc ^= byte << 8
        for _ in range(8):
            crc = ((crc << 1) ^ 0x1021) & 0xFFFF if crc & 0x8000 else crc << 1
    return crc


def dumb_owners(partition: int, nodes: int, replicas: int) -> list[int]:
    """Walk around the circle of nodes, one step at a time."""
    node = 1
    for _ in range(partition):
        node = node + 1 if node < nodes else 1
    owners: list[int] = []
    while len(owners) < replicas:
        owners.append(node)
        node = node + 1 if node < nodes else 1
    return owners


def report_owners(key: bytes, nodes: int, replicas: int) -> tuple[int, ...]:
    """The report's formula: the sum of the bytes modulo the number of nodes, then clockwise."""
    return tuple((dumb_additive(key) + i) % nodes + 1 for i in range(replicas))


def dumb_without(row: Row, node: int, epoch: int) -> Row:
    """The rules of a death for one row, in so many words."""
    was_owner = False
    others_in_sync = 0
    for owner in row.owners:
        if owner.node == node:
            was_owner = True
        elif owner.in_sync:
            others_in_sync += 1
    if not was_owner or not others_in_sync:
        return row
    left = []
    for owner in row.owners:
        if owner.node != node:
            left.append(owner)
    primary_died = row.owners[0].node == node
    return Row(row.partition, epoch, epoch if primary_died else row.primary_epoch, tuple(left))


def dumb_is_last(rows: Collection[Row], node: int, gone: Collection[int]) -> bool:
    for row in rows:
        left = []
        for owner in row.owners:
            if owner.in_sync and owner.node not in gone:
                left.append(owner.node)
        if left == [node]:
            return True
    return False


# --- maps to try it with -------------------------------------------------------------------------


@st.composite
def rows(draw: st.DrawFn, partition: int) -> Row:
    """A row as the rules allow it: distinct owners, those in sync first and at least one."""
    nodes = draw(st.permutations(range(1, 6)))[: draw(st.integers(1, 5))]
    in_sync = draw(st.integers(1, len(nodes)))
    epochs = st.integers(1, 9).map(lambda counter: epoch_of(CLUSTER_ID, counter))
    primary_epoch, list_epoch = sorted((draw(epochs), draw(epochs)))
    return Row(
        partition,
        list_epoch,
        primary_epoch,
        tuple(Owner(node, 1, list_epoch, int(at < in_sync)) for at, node in enumerate(nodes)),
    )


@st.composite
def maps(draw: st.DrawFn) -> PartitionMap:
    count = draw(st.integers(1, 6))
    all_rows = [draw(rows(partition)) for partition in range(count)]
    return PartitionMap(max(row.list_epoch for row in all_rows), all_rows)


def first_map(nodes: int, replicas: int) -> PartitionMap:
    return PartitionMap.first(
        CLUSTER_ID, nodes, replicas, {node: 10 + node for node in range(1, nodes + 1)}
    )


def nodes_of(row: Row) -> tuple[int, ...]:
    return tuple(owner.node for owner in row.owners)


# --- hashes and home owners ----------------------------------------------------------------------


@quick
@given(keys)
def test_hashes_are_those_of_their_definition(key: bytes) -> None:
    """The library's functions agree with plain loops."""
    assert additive(key) == dumb_additive(key)
    assert crc16(key) == dumb_crc16(key)


def test_known_hashes() -> None:
    """The check values that every description of CRC-16/XMODEM gives, and the report's keys."""
    assert crc16(b"123456789") == 0x31C3
    assert additive(b"key1") == 378
    assert additive(b"\xff" * 500) == 127500


def test_every_hash_of_the_protocol_has_a_function() -> None:
    """A code without a function would leave a client without placement."""
    assert set(HASH_FUNCTIONS) == set(HASHES) == {HASH_ADDITIVE, HASH_CRC16}
    assert HASH_FUNCTIONS[HASH_ADDITIVE] is additive
    assert HASH_FUNCTIONS[HASH_CRC16] is crc16


@quick
@given(st.data())
def test_home_owners_are_the_next_nodes_clockwise(data: st.DataObject) -> None:
    """As many as there are replicas, all different, all of them nodes, the same at each call."""
    nodes = data.draw(st.integers(1, 30))
    replicas = data.draw(st.integers(1, nodes))
    partition = data.draw(st.integers(0, partition_count(nodes) - 1))
    owners = home_owners(partition, nodes, replicas)
    assert list(owners) == dumb_owners(partition, nodes, replicas)
    assert owners == home_owners(partition, nodes, replicas)
    assert len(set(owners)) == replicas
    assert all(1 <= node <= nodes for node in owners)


@pytest.mark.parametrize("nodes", range(1, 31))
def test_the_additive_hash_places_keys_as_the_report_does(nodes: int) -> None:
    """Partitions between hash and node change nothing, for any number of nodes and replicas."""
    source = random.Random(nodes)
    for _ in range(50):
        key = source.randbytes(source.randint(1, 40))
        replicas = source.randint(1, nodes)
        partition = additive(key) % partition_count(nodes)
        assert home_owners(partition, nodes, replicas) == report_owners(key, nodes, replicas)


@pytest.mark.parametrize(
    ("nodes", "replicas", "expected"),
    [
        (5, 3, "451 512 123"),
        (3, 2, "12 23 31 12 23 31 12"),
        (
            7,
            3,
            "123 234 345 456 567 671 712 123 234 712 123 234 345 456 567 671 712 123 234 123",
        ),
    ],
)
def test_placements_of_the_reports_transcripts(nodes: int, replicas: int, expected: str) -> None:
    """key1, key2, ... of the report's tests 2, 3 and 4, in a new cluster."""
    partition_map = first_map(nodes, replicas)
    placed = []
    for number in range(1, len(expected.split()) + 1):
        row = partition_map.rows[additive(f"key{number}".encode()) % len(partition_map.rows)]
        placed.append("".join(map(str, nodes_of(row))))
    assert " ".join(placed) == expected


@pytest.mark.parametrize("hash_function", [additive, crc16], ids=["additive", "crc16"])
def test_random_keys_spread_evenly(hash_function: Callable[[bytes], int]) -> None:
    """The report's second figure: 100,000 random keys on 7 nodes, each within 3 % of the mean."""
    source = random.Random(2023)
    count = partition_count(7)
    partitions = Counter(hash_function(source.randbytes(16)) % count for _ in range(100_000))
    for replicas in (1, 3, 5):
        held: Counter[int] = Counter()
        for partition, size in partitions.items():
            held.update(dict.fromkeys(home_owners(partition, 7, replicas), size))
        mean = 100_000 * replicas / 7
        assert set(held) == set(range(1, 8))
        assert all(abs(size - mean) < 0.03 * mean for size in held.values())


def test_additive_hash_and_structured_keys() -> None:
    """Why there is a second hash: k0, k9, k18, ... pile up with the additive one only."""
    names = [b"k%d" % number for number in range(0, 9000, 9)]
    spread = {}
    for name, function in (("additive", additive), ("crc16", crc16)):
        primaries = Counter(function(key) % partition_count(9) % 9 for key in names)
        spread[name] = max(primaries.values()) / (len(names) / 9)
    assert spread["additive"] > 4
    assert spread["crc16"] < 1.5


def without(partition_map: PartitionMap, node: int) -> PartitionMap:
    """The next map after a node's death, all others being alive."""

    def change(row: Row, epoch: int) -> Row:
        living = {owner.node: owner.incarnation for owner in row.owners if owner.node != node}
        return row_without(row, node, living, epoch)

    return partition_map.changed_by(change)


# --- epochs --------------------------------------------------------------------------------------


@quick
@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF))
def test_an_epoch_names_its_cluster(cluster_id: int, counter: int) -> None:
    """The cluster id stands above, the counter below, in 64 bits."""
    epoch = epoch_of(cluster_id, counter)
    assert cluster_of(epoch) == cluster_id
    assert epoch - epoch_of(cluster_id, 0) == counter
    assert 0 <= epoch < 1 << 64


# --- the partition map ---------------------------------------------------------------------------


def test_the_first_map() -> None:
    """64 partitions for each node, each with its home owners, all in sync, all at epoch 1."""
    partition_map = first_map(3, 2)
    epoch = epoch_of(CLUSTER_ID, 1)
    assert partition_map.epoch == epoch
    assert len(partition_map.rows) == 192
    for partition, row in enumerate(partition_map.rows):
        expected = tuple(Owner(node, 10 + node, epoch, 1) for node in dumb_owners(partition, 3, 2))
        assert row == Row(partition, epoch, epoch, expected)


@quick
@given(maps(), st.integers(1, 6))
def test_a_death_changes_what_the_dead_node_owned(before: PartitionMap, node: int) -> None:
    """Each row is what the dumb version makes of it, and the old map still stands."""
    old_rows = before.rows
    after = without(before, node)
    assert after.rows == tuple(dumb_without(row, node, before.epoch + 1) for row in old_rows)
    assert before.rows is old_rows


@quick
@given(maps(), st.integers(1, 6))
def test_a_death_moves_nothing_else(before: PartitionMap, node: int) -> None:
    """Rows without the node stay; the others keep their owners' order and lose only that one."""
    after = without(before, node)
    for old, new in zip(before.rows, after.rows, strict=True):
        if node not in nodes_of(old):
            assert new == old
        elif new != old:
            assert new.owners == tuple(owner for owner in old.owners if owner.node != node)


@quick
@given(maps(), st.lists(st.integers(1, 5), max_size=7))
def test_any_deaths_one_after_another(partition_map: PartitionMap, deaths: list[int]) -> None:
    """Epochs only grow, and every row keeps an owner in sync: the last one stays (M5)."""
    for node in deaths:
        after = without(partition_map, node)
        changed = after.rows != partition_map.rows
        assert after.epoch == partition_map.epoch + changed
        assert (after is partition_map) == (not changed)
        for old, new in zip(partition_map.rows, after.rows, strict=True):
            # list_epoch follows the owners, primary_epoch the first of them.
            owners_changed = nodes_of(old) != nodes_of(new)
            primary_changed = nodes_of(old)[0] != nodes_of(new)[0]
            assert new.list_epoch == (after.epoch if owners_changed else old.list_epoch)
            assert new.primary_epoch == (after.epoch if primary_changed else old.primary_epoch)
            flags = [owner.in_sync for owner in new.owners]
            assert flags[0] == 1, "the primary is in sync"
            assert flags == sorted(flags, reverse=True), "those in sync are a prefix"
        partition_map = after


def test_the_last_owner_in_sync_stays() -> None:
    """A syncing owner is no successor: nobody else may answer for the partition (M5)."""
    owners = (Owner(1, 1, 5, 1), Owner(2, 1, 7, 0))
    partition_map = PartitionMap(7, [Row(0, 7, 5, owners)])
    assert without(partition_map, 1) is partition_map
    assert nodes_of(without(partition_map, 2).rows[0]) == (1,)
    assert without(partition_map, 2).rows[0].primary_epoch == 5


def test_a_second_death_of_the_same_node_changes_nothing() -> None:
    """The map and its epoch stay."""
    once = without(first_map(3, 2), 2)
    assert without(once, 2) is once


@quick
@given(maps(), st.integers(0, 10))
def test_rows_since(partition_map: PartitionMap, counter: int) -> None:
    """Those that changed later than the epoch; all for 0; none for the map's own."""
    epoch = epoch_of(CLUSTER_ID, counter)
    newer = []
    for row in partition_map.rows:
        if row.list_epoch > epoch:
            newer.append(row)
    assert list(partition_map.rows_since(epoch)) == newer
    assert partition_map.rows_since(0) == partition_map.rows
    assert partition_map.rows_since(partition_map.epoch) == ()


def test_rows_since_a_death() -> None:
    """Exactly the dead node's rows travel to those who hold the map before."""
    before = first_map(7, 3)
    after = without(before, 4)
    assert [row.partition for row in after.rows_since(before.epoch)] == [
        row.partition for row in before.rows if 4 in nodes_of(row)
    ]


@quick
@given(maps(), st.integers(1, 6), st.sets(st.integers(1, 6)))
def test_is_last_in_sync(partition_map: PartitionMap, node: int, gone: set[int]) -> None:
    """Owners that sync, or that are on their way out, are no copies to rely on (M1)."""
    expected = dumb_is_last(partition_map.rows, node, gone)
    assert partition_map.is_last_in_sync(node, gone) == expected
    assert partition_map.is_last_in_sync(node) == dumb_is_last(partition_map.rows, node, ())


def test_the_survivor_of_two_is_the_last() -> None:
    """With two replicas, once a neighbour is being killed, the node is the last somewhere."""
    partition_map = first_map(3, 2)
    assert not partition_map.is_last_in_sync(1)
    assert partition_map.is_last_in_sync(1, {2})
    assert first_map(3, 1).is_last_in_sync(1)


@quick
@given(maps(), st.integers(1, 5), st.dictionaries(st.integers(1, 5), st.integers(1, 2)))
def test_under_replicated(
    partition_map: PartitionMap, replicas: int, alive: dict[int, int]
) -> None:
    """Those partitions that have fewer living copies in sync than replicas. A later incarnation of
    an owner is none."""
    expected = []
    for row in partition_map.rows:
        copies = 0
        for owner in row.owners:
            if owner.in_sync and alive.get(owner.node) == owner.incarnation:
                copies += 1
        if copies < replicas:
            expected.append(row.partition)
    members = [Member(node, ALIVE, number, 1, 1, "") for node, number in alive.items()]
    assert list(under_replicated(partition_map.rows, replicas, members)) == expected


def test_begun_anew() -> None:
    """A partition that lost all copies (M5); neither a new one, nor one with another primary."""
    partition_map = first_map(3, 2)
    assert list(begun_anew(partition_map.rows)) == []
    after = partition_map.changed_by(
        lambda row, epoch: row_begun_anew(row, [2, 1], {1: 5, 2: 6}, epoch), [7]
    )
    assert list(begun_anew(after.rows)) == [7]
    assert [(o.node, o.incarnation, o.in_sync) for o in after.rows[7].owners] == [
        (2, 6, 1), (1, 5, 1),
    ]  # fmt: skip
    assert list(begun_anew(without(after, 2).rows)) == []
    assert list(begun_anew(without(partition_map, 2).rows)) == []


@pytest.mark.parametrize(
    ("state", "serves"), [(ALIVE, True), (SUSPECT, True), (DEAD, False), (LEFT, False)]
)
def test_who_may_still_answer(state: int, serves: bool) -> None:
    """Silence is not death: a suspect may answer."""
    assert is_serving(Member(1, state, 1, 1, 1, "")) == serves


# --- routes --------------------------------------------------------------------------------------


def routes_for(partition_map: PartitionMap, hash_code: int = HASH_ADDITIVE) -> Routes:
    members = tuple(Member(node, ALIVE, 1, 1, 10000 + node, "127.0.0.1") for node in (1, 2, 3))
    cluster = Cluster(partition_map.epoch, 3, 2, hash_code, len(partition_map.rows), 1_000, members)
    routes = Routes()
    clock = ClusterTime()
    clock.take(1_007, 1_007, cluster.time)
    routes.replace(cluster, partition_map.rows, clock)
    return routes


def test_a_route_is_what_the_hot_path_needs_of_a_row() -> None:
    """The label and the nodes come from the same row (H12)."""
    row = without(first_map(3, 2), 2).rows[1]
    route = Route(row)
    assert route.row is row
    assert (route.partition, route.epoch) == (1, row.list_epoch)
    assert route.label == row.list_epoch.to_bytes(8, "big") + bytes([0, 0, 0, 1])
    assert route.nodes == (3,)
    assert route.primary == (3,)
    assert route.tenure == (3, row.primary_epoch)


def test_routes_start_over_with_what_the_manager_says() -> None:
    """Everything about the cluster is taken over."""
    routes = routes_for(first_map(3, 2))
    assert (routes.cluster_id, routes.nodes, routes.replicas) == (CLUSTER_ID, 3, 2)
    assert (routes.hash, routes.hash_code) == (additive, HASH_ADDITIVE)
    assert routes.clock.offset_us == -7
    assert {node: member.port for node, member in routes.members.items()} == {
        1: 10001,
        2: 10002,
        3: 10003,
    }


@quick
@given(keys, st.sampled_from([HASH_ADDITIVE, HASH_CRC16]))
def test_a_key_is_found_by_the_clusters_hash(key: bytes, hash_code: int) -> None:
    """One hash, one look-up, the same at each call."""
    routes = routes_for(first_map(3, 2), hash_code)
    dumb = dumb_additive if hash_code == HASH_ADDITIVE else dumb_crc16
    partition = dumb(key) % 192
    assert routes.find(key).partition == partition
    assert routes.find(key) is routes.find(key)
    assert list(routes.find(key).nodes) == dumb_owners(partition, 3, 2)


@quick
@given(st.lists(rows(0), max_size=8))
def test_a_partitions_row_never_goes_backwards(given_rows: list[Row]) -> None:
    """Whatever the order of the answers, the newest row stays and its neighbours do not change."""
    routes = routes_for(first_map(1, 1))
    neighbour = routes.find(b"\x01")
    for row in given_rows:
        before = routes.find(b"\x00")
        newer = row.list_epoch > before.epoch
        assert routes.patch(row) == newer
        after = routes.find(b"\x00")
        assert after.row is row if newer else after is before
    assert routes.find(b"\x01") is neighbour


@pytest.mark.parametrize(
    "change",
    [
        {"list_epoch": epoch_of(CLUSTER_ID + 1, 9)},
        {"list_epoch": epoch_of(0, 9)},
        {"list_epoch": epoch_of(CLUSTER_ID, 1)},
        {"partition": 192},
        {"owners": ()},
        {"owners": (Owner(1, 1, 1, 1), Owner(2, 1, 1, 1), Owner(1, 1, 1, 1))},
        {"owners": (Owner(1, 1, 1, 1), Owner(0, 1, 1, 1))},
    ],
    ids=[
        "later cluster",
        "no cluster",
        "same epoch",
        "no such partition",
        "no owners",
        "an owner twice",
        "an owner that is no node",
    ],
)
def test_rows_that_do_not_count(change: dict[str, object]) -> None:
    """Another cluster's rows, rows that are no news, and rows that lead nowhere."""
    partition_map = first_map(3, 2)
    routes = routes_for(partition_map)
    good = dataclasses.replace(partition_map.rows[0], list_epoch=epoch_of(CLUSTER_ID, 9))
    before = routes.find(b"\xc0")  # 192: partition 0
    assert not routes.patch(dataclasses.replace(good, **change))  # type: ignore[arg-type]
    assert routes.find(b"\xc0") is before
    assert routes.patch(good)
    assert routes.find(b"\xc0").row is good


def test_a_map_in_another_order_is_none() -> None:
    """A key's partition is its row's place in the map."""
    rows = first_map(3, 2).rows
    for wrong in (rows[::-1], rows[1:], (*rows[:-1], rows[0])):
        with pytest.raises(RemoteProtocolError, match="not in the order"):
            routes_for(PartitionMap(rows[0].list_epoch, wrong))


def test_routes_before_any_cluster() -> None:
    """A row of nobody's cluster has no place to go."""
    assert not Routes().patch(Row(0, 1, 1, (Owner(1, 1, 1, 1),)))
