"""The client's operations on a simulated cluster: rules C1 to C7, and the holes that they close."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import pytest

from gtstore import operations
from gtstore.errors import (
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    GTStoreError,
    OperationFailed,
    OutcomeUnknown,
    RemoteError,
    RemoteProtocolError,
    Unavailable,
)
from gtstore.operations import MANAGER, Lost, Pause, Source
from gtstore.placement import Routes, epoch_of, row_without
from gtstore.results import Location, Version
from gtstore.wire import messages
from gtstore.wire.codec import (
    ACK,
    ENTRY,
    HEADER,
    MAGIC_VERSION,
    decode_entry,
    encode,
    encode_record,
)
from gtstore.wire.messages import (
    ALIVE,
    CLOCK_AHEAD_MAX_S,
    COMMITTED,
    EXPIRES,
    ORDERED,
    TOMBSTONE,
    Ack,
    Cluster,
    ClusterInfo,
    Commit,
    Entry,
    EntryReply,
    Get,
    GetMap,
    KeyNodes,
    Map,
    Member,
    NextPrimary,
    NotFound,
    Owner,
    Ping,
    Pong,
    Row,
    StaleDetail,
    Superseded,
    Write,
)

from .sim.network import (
    CLUSTER,
    Client,
    Fault,
    Network,
    after,
    answer,
    answer_raw,
    frames_of,
    message_of,
    refuse,
)

KEY = b"key1"
"""In partition 186 of 192: its owners are nodes 1, 2 and 3, in this order."""
PARTITION = 186
OTHER_CLUSTER = 0xDEADBEEF
SECOND_US = 1_000_000


def cluster(replicas: int = 2) -> tuple[Network, Client]:
    """Three nodes, and a client that knows the map."""
    network = Network(3, replicas)
    return network, Client(network).know()


def another(network: Network, seed: int = 2, ahead_s: float = 1) -> Client:
    """A client whose clock is ahead, so that its versions are higher."""
    client = Client(network, seed=seed).know()
    client.skew_us = round(ahead_s * SECOND_US)
    return client


def writes(client: Client) -> list[tuple[tuple[int, ...], Entry]]:
    """What a client wrote, step by step: to whom, and the entry."""
    return [(sent.peers, decode_entry(sent.message.entry)) for sent in client.sent(Write)]


def choose(network: Network, kind: type[Any], action: Any) -> None:
    """Let this become of all requests of a kind."""
    network.choose = lambda _, request: action if isinstance(request, kind) else Fault.NONE


def values(network: Network, key: bytes = KEY) -> list[bytes | None]:
    """What nodes 1, 2 and 3 hold."""
    found = [network.nodes[node].held(key) for node in (1, 2, 3)]
    return [None if entry is None else entry.value for entry in found]


def owed(client: Client) -> dict[int, list[Commit]]:
    """The COMMITs that a client owes."""
    client.source.owe_now()
    found: dict[int, list[Commit]] = {}
    for node, frames in client.source.owed.items():
        if frames:
            found[node] = []
        for frame in frames_of(frames):
            message = message_of(frame)
            assert isinstance(message, Commit)
            found[node].append(message)
    return found


def version_bytes(version: Version) -> bytes:
    return version.time.to_bytes(8, "big") + version.client.to_bytes(8, "big")


# --- C1, C2, C3: put and delete ------------------------------------------------------------------


def test_put_writes_to_all_owners_at_once() -> None:
    """C2: one parallel round trip to the owners, none to the manager; C1: all have it."""
    network, client = cluster(replicas=3)
    result = client.put(KEY, b"v")
    assert result.nodes == (1, 2, 3)
    ((peers, entry),) = writes(client)
    assert peers == (1, 2, 3)
    assert (entry.flags, entry.value) == (0, b"v")
    assert result.version == (entry.time, entry.client)
    assert entry.client == client.source.identity.client
    assert values(network) == [b"v", b"v", b"v"]
    assert len(client.steps) == 1


def test_delete_is_a_put_of_a_tombstone() -> None:
    """C3: and a get of it finds nothing."""
    network, client = cluster()
    client.put(KEY, b"v")
    assert client.get(KEY) == b"v"
    assert client.delete(KEY).nodes == (1, 2)
    assert writes(client)[-1][1].flags == TOMBSTONE
    assert values(network) == [b"", b"", None]
    assert client.get(KEY) is None


def test_put_goes_on_from_a_first_round_that_was_made_already() -> None:
    """``begun``: the first step yields it again; end_put ends it if all owners ACKed."""
    _, client = cluster()
    begun = operations.begin_put(client.routes, client.source, KEY, b"v")
    operation = operations.put(client.routes, client.source, KEY, b"v", 0, begun)
    result = client.run(operation)
    assert client.steps == [(begun[0].nodes, begun[1], begun[2])]
    assert result == operations.end_put(client.source, KEY, begun)
    assert result.version == Version(*begun[3])
    get_begun = operations.begin_get(client.routes, client.source, KEY)
    entry = client.run(operations.get(client.routes, client.source, KEY, get_begun))
    assert entry == (b"v", result.version, 1)
    assert client.steps[1] == (get_begun[0].primary, get_begun[1], get_begun[2])


def next_number(_: Routes, source: operations.Source, __: bytes) -> tuple[None, int]:
    return None, source.next_number()


@pytest.mark.parametrize("begin", [operations.begin_get, operations.begin_put, next_number])
def test_the_last_of_an_identitys_numbers(begin: Callable[..., Any]) -> None:
    """Request ids have 32 bits and are used once by each identity: then comes another one."""
    _, client = cluster()
    source = client.source
    source._number = 0xFFFF_FFFD
    value = [b"v"] if begin is operations.begin_put else []
    first = source.identity
    numbers = [begin(client.routes, source, KEY, *value)[1] for _ in range(3)]
    assert numbers == [0xFFFF_FFFE, 0xFFFF_FFFF, 1]
    assert source.identity is not first


def test_superseded_by_a_backup_counts() -> None:
    """C3: the primary ACKs; a backup that holds a higher version answered too."""
    network, client = cluster()
    other = another(network)
    call = other.call(operations.put(other.routes, other.source, KEY, b"stray"))
    network.script(1, Write, Fault.DROP)
    for _ in range(3):
        call.advance()
    assert values(network) == [None, b"stray", None]
    assert client.put(KEY, b"v").nodes == (1, 2)
    assert len(client.steps) == 1
    assert values(network) == [b"v", b"stray", None]
    call.run()


def test_superseded_after_the_ack_is_success() -> None:
    """C3: the primary had it; somebody else has written over it since."""
    network, client = cluster()
    other = another(network)
    network.script(2, Write, Fault.DROP)
    network.script(1, Write, Fault.NONE, after(lambda: other.put(KEY, b"later")))
    result = client.put(KEY, b"v")
    (_, first), (_, second) = writes(client)
    assert first == second
    assert result.version == (first.time, first.client)
    assert values(network) == [b"later", b"later", None]


def test_superseded_while_unresolved_is_unknown() -> None:
    """C3, hole H6: the write may have been there before the one that refuses it now."""
    network, client = cluster()
    other = another(network)
    network.script(1, Write, Fault.DROP_REPLY, after(lambda: other.put(KEY, b"later")))
    with pytest.raises(OutcomeUnknown, match="another client wrote key1") as caught:
        client.put(KEY, b"v")
    assert (caught.value.acks, caught.value.required) == (0, 2)
    assert len({entry.time for _, entry in writes(client)}) == 1
    assert client.get(KEY) == b"later"
    assert network.is_script_done


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_superseded_is_answered_with_a_higher_version(replicas: int) -> None:
    """C3, C2: same rid, ordered, so to one owner after the other."""
    network, client = cluster(replicas)
    other = another(network)
    before = other.put(KEY, b"old")
    result = client.put(KEY, b"new")
    owners = (1, 2, 3)[:replicas]
    (first_peers, first), *rest = writes(client)
    assert first_peers == owners
    assert first.flags == 0
    assert [peers for peers, _ in rest] == [(owner,) for owner in owners]
    second = rest[0][1]
    assert all(entry == second for _, entry in rest)
    assert second.flags == ORDERED
    assert (second.client, second.counter) == (first.client, first.counter)
    assert second.time > before.version.time > first.time
    assert result == (owners, (second.time, second.client))
    assert values(network)[:replicas] == [b"new"] * replicas
    assert client.pauses == []


def test_a_superseded_delete_stays_a_delete() -> None:
    """C3: the second version keeps the tombstone flag."""
    network, client = cluster()
    another(network).put(KEY, b"old")
    client.delete(KEY)
    assert writes(client)[-1][1].flags == TOMBSTONE | ORDERED
    assert client.get(KEY) is None


def test_an_overtaken_client_jumps_further_each_time() -> None:
    """Liveness: it goes on at once, and its versions' lead over the one that refused it grows."""
    network, client = cluster()
    other = another(network)
    stored: list[int] = []

    def overtake() -> None:
        time = writes(client)[-1][1].time
        other.skew_us = max(other.skew_us, time - network.now_us + 1000)
        stored.append(other.put(KEY, b"other").version.time)
        if len(stored) < 5:
            network.script(1, Write, after(overtake))

    network.script(1, Write, after(overtake))
    client.put(KEY, b"mine")
    entries = list(dict.fromkeys(entry for _, entry in writes(client)))
    assert len(entries) == 6
    assert client.pauses == []
    assert all(entry.flags == ORDERED for entry in entries[1:])
    assert client.get(KEY) == b"mine"
    leads = [mine.time - theirs for mine, theirs in zip(entries[1:], stored, strict=True)]
    assert leads == sorted(leads)
    assert leads[-1] > 256


def test_after_silence_the_same_version_is_sent_to_all() -> None:
    """C3: same version and rid; a lost reply is no reason to write twice."""
    for fault in (Fault.DROP, Fault.DROP_REPLY, Fault.REFUSE):
        for node in (1, 2):
            network, client = cluster()
            network.script(node, Write, fault)
            result = client.put(KEY, b"v")
            (peers, first), (peers_again, second) = writes(client)
            assert peers == peers_again == (1, 2)
            assert first == second
            assert result.version == (first.time, first.client)
            assert values(network) == [b"v", b"v", None]


def test_stale_epoch_in_the_same_tenure() -> None:
    """C3: the same version goes to all owners of the new list, the syncing one included."""
    network, client = cluster()
    network.change(PARTITION, *network.map.rows[PARTITION].owners, network.owner(3, in_sync=0))
    result = client.put(KEY, b"v")
    (peers, first), (peers_again, second) = writes(client)
    assert (peers, peers_again) == ((1, 2), (1, 2, 3))
    assert first == second
    assert result.nodes == (1, 2, 3)
    assert values(network) == [b"v", b"v", b"v"]


def test_an_ack_counts_through_the_tenure_but_completes_in_one_list() -> None:
    """C1, C3: what the old list acknowledged is asked again of the new one."""
    network, client = cluster()
    owners = network.map.rows[PARTITION].owners
    grow = after(lambda: network.change(PARTITION, *owners, network.owner(3, in_sync=0)))
    network.script(2, Write, grow)
    client.put(KEY, b"v")
    assert [peers for peers, _ in writes(client)] == [(1, 2), (1, 2, 3)]
    assert values(network) == [b"v", b"v", b"v"]


def test_another_tenure_with_one_version() -> None:
    """C3: the same version and rid go to the new list."""
    network, client = cluster()
    network.script(1, Write, after(lambda: network.kill(1)))
    result = client.put(KEY, b"v")
    (_, first), (peers, second) = writes(client)
    assert first == second
    assert peers == (2,)
    assert result.nodes == (2,)
    assert client.get(KEY) == b"v"


def test_another_tenure_in_which_it_is_superseded() -> None:
    """C3, hole H1: the old primary's ACK does not count for the new one."""
    network, client = cluster()
    other = another(network)

    def change() -> None:
        network.kill(1)
        network.notice(1)
        other.know().put(KEY, b"later")

    network.script(2, Write, Fault.DROP)
    network.script(1, Write, Fault.NONE, after(change))
    with pytest.raises(OutcomeUnknown):
        client.put(KEY, b"v")
    assert client.get(KEY) == b"later"


def test_another_tenure_of_the_same_primary() -> None:
    """C3: a tenure is the primary and the epoch since when it is the primary."""
    network, client = cluster()
    other = another(network)
    owners = network.map.rows[PARTITION].owners

    def change() -> None:
        network.change(PARTITION, *owners, new_tenure=True)
        other.know().put(KEY, b"later")

    network.script(2, Write, Fault.DROP)
    network.script(1, Write, Fault.NONE, after(change))
    with pytest.raises(OutcomeUnknown):
        client.put(KEY, b"v")


def test_another_tenure_after_more_than_one_version() -> None:
    """C3, hole H3: the first version may be on a backup, so the second would be applied twice."""
    network, client = cluster()
    other = another(network)
    # Only the primary has the other client's version.
    network.script(2, Write, Fault.SILENT)
    with pytest.raises(OutcomeUnknown):
        other.put(KEY, b"other", timeout_s=0.01)
    late: list[bytes | None] = []

    def change() -> None:
        network.kill(1)
        network.notice(1)
        late.append(Client(network, seed=5).know().get(KEY))
        another(network, seed=6, ahead_s=2).put(KEY, b"d")

    network.script(1, Write, Fault.NONE, after(change))
    network.script(2, Write, Fault.NONE, Fault.REFUSE)
    with pytest.raises(OutcomeUnknown, match="the primary of key1 changed"):
        client.put(KEY, b"b")
    assert late == [b"b"]  # the stray first version, completed by its reader
    assert client.get(KEY) == b"d"


def test_another_tenure_after_versions_that_nobody_took() -> None:
    """C3: while each request was refused, the write is as if it had not begun."""
    network, client = cluster()
    another(network).put(KEY, b"old")
    network.script(1, Write, Fault.NONE, after(lambda: network.kill(1)))
    network.script(2, Write, Fault.NONE, Fault.REFUSE)
    assert client.put(KEY, b"v").nodes == (2,)
    assert client.get(KEY) == b"v"


def test_a_dead_backup_is_removed() -> None:
    """C3: the tenure goes on, and so does the primary's ACK."""
    network, client = cluster()
    network.kill(2)
    result = client.put(KEY, b"v")
    assert result.nodes == (1,)
    assert values(network) == [b"v", None, None]


def test_an_ordered_write_stops_where_it_is_not_answered() -> None:
    """C2, hole H7: the third owner never has what the second one lacks."""
    network, client = cluster(replicas=3)
    another(network).put(KEY, b"old")
    network.script(2, Write, Fault.NONE, Fault.DROP)
    call = client.call(operations.put(client.routes, client.source, KEY, b"new"))
    while values(network)[0] != b"new":
        call.advance()
    call.advance()  # the answer
    call.advance()  # node 2 is lost
    call.advance()
    assert values(network) == [b"new", b"old", b"old"]
    call.run()
    assert [peers for peers, _ in writes(client)] == [(1, 2, 3), (1,), (2,), (1,), (2,), (3,)]
    assert values(network) == [b"new", b"new", b"new"]


def test_an_ordered_write_that_its_primary_refuses_goes_no_further() -> None:
    """C2: a second SUPERSEDED makes a third version; the backups never see the second."""
    network, client = cluster(replicas=3)
    other = another(network)
    other.put(KEY, b"old")
    network.script(1, Write, Fault.NONE, after(lambda: other.put(KEY, b"newer")))
    other.skew_us += SECOND_US
    client.put(KEY, b"mine")
    assert [peers for peers, _ in writes(client)] == [(1, 2, 3), (1,), (1,), (2,), (3,)]
    assert client.get(KEY) == b"mine"


def test_an_ordered_write_that_was_acknowledged_goes_on_after_superseded() -> None:
    """C3: acked, then SUPERSEDED: the others are asked all the same."""
    network, client = cluster(replicas=3)
    other = another(network)
    other.put(KEY, b"old")
    other.skew_us += SECOND_US
    network.script(3, Write, Fault.NONE, Fault.DROP)
    network.script(1, Write, Fault.NONE, Fault.NONE, after(lambda: other.put(KEY, b"newer")))
    client.put(KEY, b"mine")
    assert [peers for peers, _ in writes(client)][1:] == [(1,), (2,), (3,), (1,), (2,), (3,)]
    assert values(network) == [b"newer"] * 3


# --- C3: the deadline ----------------------------------------------------------------------------


def test_deadline_before_anything_was_sent() -> None:
    """C3: it did not happen."""
    network, client = cluster()
    with pytest.raises(OperationFailed, match="the write of key1 did not happen") as caught:
        client.put(KEY, b"v", timeout_s=0)
    assert isinstance(caught.value.__cause__, DeadlineExceeded)
    assert network.asked == []


def test_deadline_before_the_manager_answered() -> None:
    """C3: nor if the map is not known yet."""
    network = Network()
    client = Client(network)
    network.script(MANAGER, ClusterInfo, Fault.SILENT)
    with pytest.raises(OperationFailed):
        client.put(KEY, b"v")
    with pytest.raises(DeadlineExceeded):
        client.get(KEY, timeout_s=0)
    assert values(network) == [None] * 3


@pytest.mark.parametrize(
    "action",
    [
        Fault.REFUSE,
        refuse(messages.NOT_READY),
        refuse(messages.BEHIND),
    ],
)
def test_deadline_after_refusals_only(action: Any) -> None:
    """C3: each one says that this request did nothing, so the write did not happen."""
    network, client = cluster()
    choose(network, Write, action)
    with pytest.raises(OperationFailed) as caught:
        client.put(KEY, b"v", timeout_s=0.2)
    assert type(caught.value) is OperationFailed
    assert len(writes(client)) > 3
    assert values(network) == [None] * 3


NO_SPACE = refuse(messages.NO_SPACE)


BUSY = refuse(messages.BUSY, messages.BusyDetail(7))
TOO_FAR = refuse(messages.TOO_FAR, messages.TimeDetail(1))


@pytest.mark.parametrize("action", [NO_SPACE, BUSY, TOO_FAR])
def test_a_refusal_that_waiting_does_not_mend(action: Any) -> None:
    """C3: if nobody can hold the write, it is given up at once."""
    network, client = cluster()
    times = 2 if action is TOO_FAR else 1  # a clock is corrected once
    network.script(1, Write, *[action] * times)
    network.script(2, Write, *[action] * times)
    with pytest.raises(OperationFailed):
        client.put(KEY, b"v")
    assert len(writes(client)) == times
    assert values(network) == [None] * 3


@pytest.mark.parametrize("action", [BUSY, TOO_FAR])
def test_a_refusal_of_what_others_hold(action: Any) -> None:
    """C3: then it is as silence, until the deadline."""
    network, client = cluster()
    network.script(1, Write, *[action] * 50)
    with pytest.raises(OutcomeUnknown) as caught:
        client.put(KEY, b"v", 0.2)
    assert (caught.value.acks, caught.value.required) == (1, 2)
    assert len(writes(client)) > 3
    # Not every owner refuses: the write goes on once that has ended.
    network, client = cluster()
    network.script(1, Write, action)
    assert client.put(KEY, b"v").nodes == (1, 2)


def test_a_backup_without_room() -> None:
    """C3: the primary has the write, so the outcome is unknown; at once, if the backup is in sync.
    One that still copies will leave (M7)."""
    network, client = cluster()
    network.script(2, Write, *[NO_SPACE] * 2)
    with pytest.raises(OutcomeUnknown, match="NO_SPACE") as caught:
        client.put(KEY, b"v")
    assert caught.value.acks == 1
    with pytest.raises(OutcomeUnknown, match="NO_SPACE"):
        client.append(KEY, b"v")
    assert len(client.sent(Write)) == 2
    network.change(PARTITION, *network.map.rows[PARTITION].owners[:1], network.owner(2, in_sync=0))
    client.know()
    network.script(2, Write, *[NO_SPACE] * 2)
    assert client.put(KEY, b"v").nodes == (1, 2)
    network.script(2, Write, *[NO_SPACE] * 2)
    assert client.append(KEY, b"w") == b"vw"


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_full_primary(old: bytes | None) -> None:
    """C3, hole H17: what its backups hold already is touched; so the write never takes effect, and
    that is said at once."""
    network, client = cluster()
    if old:
        client.put(KEY, old)
    network.nodes[1].limit_memory(1)
    with pytest.raises(
        OperationFailed, match=r"memory is full \(1 bytes, --max-memory-mb\)"
    ) as caught:
        client.put(KEY, b"longer")
    assert type(caught.value) is OperationFailed
    assert client.pauses == []
    assert values(network)[:2] == [old or b""] * 2
    assert version_at(network, 1) == version_at(network, 2)
    network.kill(1)
    assert another(network).get(KEY) == old


def test_a_full_primary_after_a_race() -> None:
    """C3: also where the write had several versions."""
    network, client = cluster()
    stopped = another(network, ahead_s=1)
    call = stopped.call(operations.put(stopped.routes, stopped.source, KEY, b"theirs"))
    call.advance()
    call.advance(0)
    network.nodes[1].limit_memory(1)
    with pytest.raises(OperationFailed):
        client.put(KEY, b"longer than theirs")
    assert [sent.peers for sent in client.sent(Write)] == [(1, 2), (1,), (2,)]
    assert client.get(KEY) == b"theirs"
    assert version_at(network, 1) == version_at(network, 2)


def test_a_full_primary_that_cannot_be_sure() -> None:
    """C3: unresolved, a request to it may be done yet; or the touch does not succeed, or not in the
    tenure of the refusal: at once, the outcome is unknown."""
    network, client = cluster()
    network.script(1, Write, Fault.DROP, NO_SPACE)
    with pytest.raises(OutcomeUnknown, match="NO_SPACE"):
        client.put(KEY, b"v")
    assert client.sent(messages.Execute) == []

    network, client = cluster()
    network.script(1, Write, NO_SPACE)
    network.script(1, messages.Execute, NO_SPACE)
    with pytest.raises(OutcomeUnknown, match=r"1 of 2 owners acknowledged it, then: .* NO_SPACE"):
        client.put(KEY, b"v")
    assert len(client.sent(messages.Execute)) == 1

    network, client = cluster()

    def die() -> None:
        network.kill(1)
        network.notice(1)

    network.script(1, Write, NO_SPACE)
    network.script(1, messages.Execute, after(die))
    with pytest.raises(OutcomeUnknown, match="NO_SPACE"):
        client.put(KEY, b"v")


def test_a_change_that_a_full_primary_may_have_done() -> None:
    """C4: at once, the outcome is unknown."""
    network, client = cluster()
    network.script(1, messages.Execute, Fault.DROP_REPLY, NO_SPACE)
    with pytest.raises(OutcomeUnknown, match="NO_SPACE"):
        client.append(KEY, b"v")
    network.script(1, messages.Execute, BUSY)
    with pytest.raises(OperationFailed, match="BUSY"):
        client.append(KEY, b"v")


def test_what_was_learned_is_forgotten_when_it_is_too_far() -> None:
    """N9: a client that learned from a clock that is far ahead starts anew, with another identity,
    since its times go back."""
    network, client = cluster()
    another(network, ahead_s=50).put(KEY, b"from the future")
    client.put(KEY, b"learned")
    before = client.source.identity.client
    network.script(1, Write, refuse(messages.TOO_FAR, messages.TimeDetail(1)))
    network.script(2, Write, refuse(messages.TOO_FAR, messages.TimeDetail(1)))
    result = client.put(b"1yek", b"v")
    assert client.source.identity.client == result.version.client != before
    assert abs(result.version.time - network.now_us) < SECOND_US


def test_a_clock_that_was_set_since_init() -> None:
    """N9: a client whose versions are too far ahead goes by the manager's clock, asked for anew,
    once in a call; for puts and changes alike."""
    network, client = cluster()
    client.skew_us = 3600 * SECOND_US
    result = client.put(KEY, b"v")
    assert abs(result.version.time - network.now_us) < SECOND_US
    assert len(client.sent(ClusterInfo)) == 1
    client.skew_us = 7200 * SECOND_US
    assert client.append(KEY, b"+") == b"v+"
    client.put(KEY, b"w")
    assert len(client.sent(ClusterInfo)) == 2
    # If the manager does not tell, that is all that can be done.
    client.skew_us = 10_800 * SECOND_US
    network.script(MANAGER, ClusterInfo, Fault.REFUSE)
    with pytest.raises(OperationFailed, match="TOO_FAR"):
        client.put(b"1yek", b"v")


def test_cluster_time_is_measured_again_but_not_at_once() -> None:
    """T1: a node may disagree as often as it likes; once a second the manager is asked."""
    network, client = cluster()
    refusal = refuse(messages.TOO_FAR, messages.TimeDetail(1))
    for times in (0, 0, 1):
        for node in (1, 2):
            network.script(node, Write, refusal)
        client.put(KEY, b"v")
        assert len(client.sent(ClusterInfo)) == times
        network.now_us += SECOND_US // 2


def test_another_clusters_time_is_not_taken() -> None:
    """T1: whose it is, the next request will tell."""
    network, client = cluster()
    offset_us = client.routes.clock.offset_us
    for cluster_id, time_us in ((OTHER_CLUSTER, 5), (CLUSTER, network.now_us + 9 * SECOND_US)):
        answered = shape(epoch=epoch_of(cluster_id, 1), time=time_us)
        network.script(MANAGER, ClusterInfo, answered)
        assert client.routes.clock.offset_us == offset_us
        client.run(operations.measure(client.routes, client.source))
    assert abs(client.routes.clock.offset_us - offset_us - 9 * SECOND_US) < 1000


@pytest.mark.parametrize("late", [ClusterInfo, GetMap])
def test_no_time_to_live_is_short_by_the_length_of_init(late: Any) -> None:
    """T1, C8: cluster time is measured around CLUSTER_INFO alone; and what is not known of it then,
    because the answer was slow, is added."""
    network = Network()
    client = Client(network, skew_us=-5 * SECOND_US)
    slow_us = 140_000

    def wait() -> None:
        network.now_us += slow_us

    network.script(MANAGER, late, after(wait))
    client.run(operations.initialize(client.routes, client.source))
    expiry = operations.expiry_after(client.routes, client.source, SECOND_US)
    excess_us = int.from_bytes(expiry, "big") - network.now_us - SECOND_US
    assert 0 <= excess_us < (1000 if late is GetMap else slow_us + 1000)


def too_old(seconds_ago: int, network: Network) -> Any:
    version = (network.now_us - seconds_ago * SECOND_US).to_bytes(8, "big") + bytes(8)
    return refuse(messages.TOO_OLD, messages.FloorDetail(version))


def test_a_version_that_is_too_old() -> None:
    """N7: where nobody holds the write, it begins again above what was dropped; once."""
    network, client = cluster()
    client.skew_us = -3600 * SECOND_US
    for node in (1, 2):
        network.script(node, Write, too_old(600, network))
    result = client.put(KEY, b"v")
    assert abs(result.version.time - network.now_us) < SECOND_US
    assert values(network)[:2] == [b"v", b"v"]
    # Also if the manager's clock is behind.
    for node in (1, 2):
        network.script(node, Write, too_old(-3, network))
    assert client.put(b"1yek", b"v").version.time > network.now_us + 2 * SECOND_US
    beyond = refuse(messages.TOO_OLD, messages.FloorDetail(b"\xff" * 16))
    network.script(1, Write, beyond)
    network.script(2, Write, beyond)
    with pytest.raises(OperationFailed, match="TOO_OLD"):
        client.put(b"1yek", b"w")


def test_a_pending_entry_that_backups_find_too_old() -> None:
    """N7, C6: a reader touches it, or it could never be completed."""
    network, client = cluster()
    call = client.call(operations.put(client.routes, client.source, KEY, b"v"))
    call.advance()
    call.advance()
    reader = Client(network, seed=5).know()
    network.script(2, Write, too_old(0, network))
    assert reader.get(KEY) == b"v"
    assert [sent.message.operation for sent in reader.sent(messages.Execute)] == [messages.TOUCH]
    assert values(network)[:2] == [b"v", b"v"]
    # If that fails too, it is looked at again.
    call = client.call(operations.put(client.routes, client.source, KEY, b"w"))
    call.advance()
    call.advance()
    network.script(2, Write, too_old(0, network))
    network.script(1, messages.Execute, *[refuse(messages.NO_SPACE)] * 2)
    assert reader.get(KEY) == b"w"


def settle(client: Client, key: bytes, held: bytes) -> bool:
    return client.run(operations.settle(client.routes, client.source, key, held))


def version_at(network: Network, node: int) -> bytes:
    entry = network.nodes[node].held(KEY)
    return b"" if entry is None else encode_record(entry)[:16]


@pytest.mark.parametrize("node", [1, 2])
def test_settling_what_is_half_done(node: int) -> None:
    """N8: what the primary holds is completed; what only a backup holds is superseded (C6)."""
    network, client = cluster()
    client.put(KEY, b"old")
    stopped = another(network)
    call = stopped.call(operations.put(stopped.routes, stopped.source, KEY, b"new"))
    call.advance()
    call.advance(node - 1)
    settler = Client(network, seed=9).know()
    held = version_at(network, node)
    assert settle(settler, KEY, held) is (node == 1)
    assert version_at(network, 1) == version_at(network, 2)
    assert values(network)[:2] == [b"new" if node == 1 else b"old"] * 2
    assert settle(settler, KEY, version_at(network, 1))
    assert not settle(settler, KEY, held) or node == 1


def test_settling_what_the_primary_never_had() -> None:
    """C6: a key of which only a backup has something gets a tombstone."""
    network, _ = cluster()
    stopped = another(network)
    call = stopped.call(operations.put(stopped.routes, stopped.source, KEY, b"new"))
    call.advance()
    call.advance(1)
    settler = Client(network, seed=9).know()
    assert not settle(settler, KEY, version_at(network, 2))
    assert version_at(network, 1) == version_at(network, 2)
    assert settler.get(KEY) is None


def test_a_refusal_that_is_malformed() -> None:
    network, client = cluster()
    no_detail = answer(messages.Error(messages.TOO_FAR, "no", b""))
    network.script(1, Write, no_detail)
    network.script(2, Write, no_detail)
    with pytest.raises(OperationFailed) as caught:
        client.put(KEY, b"v")
    assert isinstance(caught.value.__cause__, RemoteProtocolError)


def test_deadline_after_stale_answers_only() -> None:
    """C3: STALE_EPOCH too."""
    network, client = cluster()
    row = network.map.rows[PARTITION]
    choose(network, Write, refuse(messages.STALE_EPOCH, StaleDetail(row)))
    with pytest.raises(OperationFailed):
        client.put(KEY, b"v", timeout_s=0.2)
    assert len(client.pauses) > 3


@pytest.mark.parametrize(
    ("first", "second", "acks"),
    [
        (Fault.SILENT, Fault.NONE, 1),
        (Fault.NONE, Fault.SILENT, 1),
        (Fault.SILENT, Fault.SILENT, 0),
    ],
)
def test_deadline_after_a_write_was_sent(first: Fault, second: Fault, acks: int) -> None:
    """C3: it may have happened; the error says how many owners acknowledged it."""
    network, client = cluster()
    network.script(2, Write, second)
    network.script(1, Write, first)
    call = client.call(operations.put(client.routes, client.source, KEY, b"v"), 5)
    if first is Fault.SILENT and second is Fault.NONE:
        call.advance()
        call.advance(1)  # the backup answers first
    with pytest.raises(OutcomeUnknown, match=f"{acks} of 2 owners acknowledged it") as caught:
        call.run()
    assert (caught.value.acks, caught.value.required) == (acks, 2)
    assert isinstance(caught.value.__cause__, DeadlineExceeded)


def test_deadline_between_the_steps_of_an_ordered_write() -> None:
    """C3: the primary has acknowledged it, and the time is up before the next owner is asked."""
    network, client = cluster(replicas=3)
    another(network).put(KEY, b"old")
    call = client.call(operations.put(client.routes, client.source, KEY, b"new"))
    while values(network)[0] != b"new":
        call.advance()
    call.expire()
    with pytest.raises(OutcomeUnknown) as caught:
        call.run()
    assert (caught.value.acks, caught.value.required) == (1, 3)


def test_deadline_before_the_second_version_was_sent() -> None:
    """C3: every owner refused the first one, so nobody holds the write."""
    network, client = cluster(replicas=3)
    another(network).put(KEY, b"old")
    call = client.call(operations.put(client.routes, client.source, KEY, b"new"))
    for _ in range(4):
        call.advance()
    call.expire()
    with pytest.raises(OperationFailed):
        call.run()
    assert client.get(KEY) == b"old"


def test_what_was_acknowledged_before_the_last_round_counts() -> None:
    """OutcomeUnknown.acks: owners that are known to hold it."""
    network, client = cluster()
    network.script(2, Write, Fault.DROP, Fault.SILENT)
    network.script(1, Write, Fault.NONE, Fault.DROP)
    with pytest.raises(OutcomeUnknown) as caught:
        client.put(KEY, b"v")
    assert caught.value.acks == 1


def test_a_read_ends_at_its_deadline() -> None:
    network, client = cluster()
    network.script(1, Get, Fault.SILENT)
    with pytest.raises(DeadlineExceeded):
        client.get(KEY)
    with pytest.raises(DeadlineExceeded):
        client.get(KEY, timeout_s=0)


def test_a_refusal_that_cannot_be_mended() -> None:
    """A write that every owner refuses for good did not happen; a read says what was refused."""
    network, client = cluster()
    wrong = refuse(messages.WRONG_PARTITION, messages.PartitionDetail(1))
    network.script(1, Write, wrong)
    network.script(2, Write, wrong)
    with pytest.raises(OperationFailed, match="WRONG_PARTITION"):
        client.put(KEY, b"v")
    network.script(2, Write, wrong)
    with pytest.raises(OutcomeUnknown, match="WRONG_PARTITION"):
        client.put(KEY, b"v")
    network.script(1, Get, wrong)
    with pytest.raises(RemoteError) as caught:
        client.get(KEY)
    assert (caught.value.code, caught.value.name) == (messages.WRONG_PARTITION, "WRONG_PARTITION")
    assert caught.value.detail.partition == 1


# --- C5: get -------------------------------------------------------------------------------------


def test_a_committed_entry_is_returned_at_once() -> None:
    """C5: one round trip to the primary."""
    _, client = cluster()
    result = client.put(KEY, b"v")
    entry = client.run(operations.get(client.routes, client.source, KEY))
    assert entry == (b"v", result.version, 1)
    assert [sent.peers for sent in client.sent()] == [(1, 2), (1,)]


def test_no_entry() -> None:
    _, client = cluster()
    assert client.get(KEY) is None
    assert len(client.steps) == 1


def pending(network: Network, value: bytes = b"v", flags: int = 0, reaches: int = 1) -> Entry:
    """An entry that only the first owners have; its writer is gone."""
    client = Client(network, seed=77).know()
    begun = operations.begin_put(client.routes, client.source, KEY, value, flags)
    for node in begun[0].nodes[:reaches]:
        network.handle(node, begun[2])
    return decode_entry(begun[4] + value)


@pytest.mark.parametrize("flags", [0, ORDERED, TOMBSTONE, TOMBSTONE | ORDERED])
@pytest.mark.parametrize("replicas", [2, 3])
def test_a_pending_entry_is_helped(flags: int, replicas: int) -> None:
    """C5: with its own version, rid and flags, to the other owners, by C2; then it is committed."""
    network, client = cluster(replicas)
    value = b"" if flags & TOMBSTONE else b"v"
    entry = pending(network, value, flags)
    assert client.get(KEY) == (None if flags & TOMBSTONE else b"v")
    assert all(sent == entry for _, sent in writes(client))
    three = [(2,), (3,)] if flags & ORDERED else [(2, 3)]
    peers = three if replicas == 3 else [(2,)]
    assert [to for to, _ in writes(client)] == peers
    assert values(network)[:replicas] == [value] * replicas
    version = version_bytes(Version(entry.time, entry.client))
    nodes = range(1, replicas + 1)
    assert owed(client) == {node: [Commit(PARTITION, version, KEY)] for node in nodes}
    # The next reader has one round trip.
    steps = len(client.steps)
    client.get(KEY)
    assert len(client.steps) == steps + 1


def test_superseded_help_is_help() -> None:
    """C5, C1: a backup that holds a higher version answered."""
    network, client = cluster()
    pending(network)
    other = another(network)
    network.script(1, Write, Fault.DROP)
    call = other.call(operations.put(other.routes, other.source, KEY, b"stray"))
    call.advance()
    call.advance()
    call.advance()
    assert client.get(KEY) == b"v"
    assert values(network) == [b"v", b"stray", None]


def test_ordered_help_stops_where_it_is_not_answered() -> None:
    """C2, hole H7: helpers keep the order too."""
    network, client = cluster(replicas=3)
    pending(network, flags=ORDERED)
    network.script(2, Write, Fault.DROP)
    call = client.call(operations.get(client.routes, client.source, KEY))
    for _ in range(5):
        call.advance()
    assert values(network) == [b"v", None, None]
    assert call.run() is not None
    assert values(network) == [b"v", b"v", b"v"]
    assert [sent.peers for sent in client.sent()] == [(1,), (2,), (1,), (2,), (3,)]


def test_help_is_not_carried_into_a_new_list() -> None:
    """C5, hole H2: a new list_epoch during the help makes the reader ask again."""
    network, client = cluster()
    pending(network)

    def change() -> None:
        network.kill(1)
        network.notice(1)

    network.script(2, Write, after(change))
    assert client.get(KEY) is None
    assert [sent.peers for sent in client.sent()] == [(1,), (2,), (MANAGER,), (2,)]
    assert len(writes(client)) == 1
    assert values(network)[1] is None
    assert owed(client) == {}


def test_help_that_is_lost_is_begun_again_with_a_get() -> None:
    """C5: silence: GET again; what it returns then is helped."""
    network, client = cluster()
    pending(network)
    other = another(network)
    network.script(2, Write, Fault.DROP)
    network.script(1, Get, Fault.NONE, after(lambda: other.put(KEY, b"later")))
    assert client.get(KEY) == b"later"
    assert client.sent()[-1].peers == (2,)


def test_a_single_owner_needs_no_help() -> None:
    """C5, C1: a list of one owner: what it returns is complete."""
    network, client = cluster(replicas=1)
    client.put(KEY, b"v")
    assert network.nodes[1].held(KEY).flags == 0  # type: ignore[union-attr]
    assert client.get(KEY) == b"v"
    assert len(client.steps) == 2
    assert owed(client) == {}


def test_a_value_that_expires_is_returned_without_its_expiry() -> None:
    _, client = cluster()
    expiry = (1 << 60).to_bytes(8, "big")
    client.run(operations.put(client.routes, client.source, KEY, expiry + b"v", EXPIRES))
    assert client.get(KEY) == b"v"


def reply_of(flags: int, value: bytes = b"v") -> bytes:
    expiry = 9 if flags & EXPIRES else None
    return encode(EntryReply(encode_record(Entry(5, 6, 7, flags, expiry, value))), 1)


@pytest.mark.parametrize(
    ("replicas", "reply", "value"),
    [
        (2, reply_of(COMMITTED), b"v"),
        (2, reply_of(COMMITTED | ORDERED), b"v"),
        (2, reply_of(COMMITTED | ORDERED, b""), b""),
        (2, reply_of(0), None),
        (2, reply_of(ORDERED), None),
        (2, reply_of(COMMITTED | TOMBSTONE, b""), None),
        (2, reply_of(COMMITTED | EXPIRES), b"v"),
        (2, reply_of(COMMITTED | EXPIRES, b""), b""),
        (2, reply_of(EXPIRES), None),
        (2, reply_of(COMMITTED | EXPIRES)[:-2], None),
        (1, reply_of(0), b"v"),
        (1, reply_of(TOMBSTONE, b""), None),
        (1, reply_of(COMMITTED), b"v"),
        (2, encode(NotFound(), 1), None),
    ],
)
def test_plain_value(replicas: int, reply: Any, value: bytes | None) -> None:
    """C5: the hot path takes only what is complete and plain; all else goes on in get."""
    _, client = cluster(replicas)
    begun = operations.begin_get(client.routes, client.source, KEY)
    assert operations.plain_value(begun, reply) == value


# --- C7: commit ----------------------------------------------------------------------------------


def test_after_success_commit_is_owed_to_every_owner() -> None:
    """C7: for each key in the order of its operations; it marks the entries."""
    network, client = cluster()
    client.pays = False
    first = client.put(KEY, b"1")
    network.script(1, Write, Fault.DROP)
    second = client.put(KEY, b"2")  # by the longer way
    other = client.put(b"key2", b"3")
    commits = [Commit(PARTITION, version_bytes(r.version), KEY) for r in (first, second)]
    third = Commit(PARTITION + 1, version_bytes(other.version), b"key2")
    found = owed(client)
    assert (found[1], found[3]) == (commits, [third])
    assert third in found[2]
    assert [commit for commit in found[2] if commit != third] == commits
    network.deliver_owed(client.source.owed)
    assert owed(client) == {}
    for node in (1, 2):
        entry = network.nodes[node].held(KEY)
        assert entry is not None
        assert entry.flags == COMMITTED


def test_the_backups_commits_wait_until_there_are_many() -> None:
    """C7: the primary's go with the next request to it; the others' together."""
    network, client = cluster()
    client.put(KEY, b"v")
    assert set(client.source.owed) == {1}
    for _ in range(1000):
        if 2 in client.source.owed:
            break
        client.put(KEY, b"v")
    version = network.nodes[2].held(KEY)
    assert version is not None
    commits = owed(client)[2]
    assert len(commits) > 1
    assert commits[-1].version == version_bytes(Version(version.time, version.client))


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_write_that_failed_owes_nothing(replicas: int) -> None:
    network, client = cluster(replicas)
    network.script(1, Write, Fault.SILENT)
    with pytest.raises(OutcomeUnknown):
        client.put(KEY, b"v")
    assert owed(client) == {}


def test_one_owner_is_owed_nothing() -> None:
    """C7: there, a reader needs no round trip to complete a pending entry."""
    network, client = cluster(replicas=1)
    network.script(1, Write, Fault.NONE, Fault.DROP)
    client.put(KEY, b"1")
    client.put(KEY, b"2")
    assert owed(client) == {}


# --- the holes -----------------------------------------------------------------------------------


def test_hole_11_a_primary_that_was_started_again_empty() -> None:
    """N0, H11: it does not answer for the one that died, whatever map its client has."""
    network, client = cluster()
    client.put(KEY, b"v")
    network.kill(1)
    network.start(1)
    network.script(1, Get, Fault.NONE, Fault.NONE, after(lambda: network.publish(new_map)))
    new_map = network.map.changed_by(lambda row, epoch: row_without(row, 1, {2: 1, 3: 1}, epoch))
    assert client.get(KEY) == b"v"
    assert network.seen[-1][0] == 2
    assert network.is_script_done


def test_hole_12_a_row_is_one_partitions_row() -> None:
    """N1a, H12: STALE_EPOCH for p does not relabel q, so q's syncing owner gets its write."""
    network, client = cluster()
    p, q = b"key1", b"key4"  # both with owners 1 and 2
    for key in (p, q):
        row = network.row_of(key)
        assert [owner.node for owner in row.owners] == [1, 2]
    q_row = network.row_of(q)
    network.change(q_row.partition, *q_row.owners, network.owner(3, in_sync=0))
    p_row = network.row_of(p)
    network.change(p_row.partition, *p_row.owners, network.owner(3, in_sync=0))
    network.script(MANAGER, GetMap, Fault.REFUSE)
    client.put(p, b"p")
    assert client.routes.find(q).epoch == q_row.list_epoch
    assert client.put(q, b"q").nodes == (1, 2, 3)
    assert values(network, q) == [b"q", b"q", b"q"]


def test_one_stale_epoch_brings_all_that_has_changed() -> None:
    """Else each of a node's many partitions would cost a refusal. The manager is asked once for
    each map, whether it answers or not."""
    network, client = cluster()
    network.kill(3)
    network.notice(3)
    assert client.put(b"key2", b"v").nodes == (2,)  # its owners were 2 and 3
    assert client.put(b"key5", b"v").nodes == (2,)
    assert len(client.sent(GetMap)) == 1
    assert client.routes.epoch == network.map.epoch
    network.bring_back(3)
    network.script(MANAGER, GetMap, Fault.REFUSE)
    assert client.put(b"key2", b"v").nodes == (2, 3)
    assert client.put(b"key5", b"v").nodes == (2, 3)
    assert len(client.sent(GetMap)) == 2
    # By then there is another cluster, whose rows are of no use here.
    network.kill(1)
    network.notice(1)
    other = Map(epoch_of(OTHER_CLUSTER, 9), network.map.rows)
    network.script(MANAGER, GetMap, answer(other))
    assert client.put(b"key1", b"v").nodes == (2,)
    assert client.routes.epoch == client.routes.find(b"key1").epoch
    assert client.put(b"key1", b"v").nodes == (2,)


# --- fail-over -----------------------------------------------------------------------------------


def test_fail_over_of_a_get(caplog: pytest.LogCaptureFixture) -> None:
    """The report's steps: the primary is gone, the manager is asked, the next one has the value."""
    network, client = cluster()
    client.put(KEY, b"v")
    network.kill(1)
    with caplog.at_level(logging.INFO, "gtstore.client"):
        assert client.get(KEY) == b"v"
    assert [record.message for record in caplog.records] == [
        "primary unavailable (node 1: connection refused), asking the manager",
        "the manager answers: key1 is at storage nodes 2",
        "value of key1 from node 2",
    ]
    kinds = [(sent.peers, type(sent.message)) for sent in client.sent()[1:]]
    assert kinds == [
        ((1,), Get),
        ((MANAGER,), NextPrimary),
        ((MANAGER,), GetMap),
        ((2,), Get),
    ]
    # The other rows of the node that is gone are known too.
    asked = len(network.asked)
    client.put(b"key3", b"w")
    assert [peer for peer, _ in network.asked[asked:]] == [3]


def test_fail_over_of_a_put(caplog: pytest.LogCaptureFixture) -> None:
    network, client = cluster()
    network.kill(2)
    with caplog.at_level(logging.INFO, "gtstore.client"):
        client.put(KEY, b"v")
        client.put(b"key2", b"w")
    assert [record.message for record in caplog.records] == [
        "backup unavailable (node 2: connection refused), asking the manager",
        "the manager answers: key1 is at storage nodes 1",
    ]
    assert client.routes.members[1].state == messages.ALIVE


def test_the_primary_is_another_process() -> None:
    """It listens where the last one did, and has nothing of what that one held. It cannot say that
    nobody has it, so at the second time the manager is asked."""
    network, client = cluster()
    client.put(KEY, b"v")
    row = network.row_of(KEY)
    stale = messages.Error(messages.STALE_EPOCH, "not the process", encode_record(StaleDetail(row)))
    for _ in range(2):
        network.script(1, Get, answer(stale))
    assert client.get(KEY) == b"v"
    kinds = [sent.peers for sent in client.sent()[1:]]
    assert kinds == [(1,), (1,), (MANAGER,), (1,)]


def test_a_damaged_entry_without_another_copy() -> None:
    """The node says so, and it is final."""
    network, client = cluster()
    client.put(KEY, b"v")
    network.script(1, Get, refuse(messages.UNAVAILABLE, messages.AliveDetail(2, 0)))
    with pytest.raises(Unavailable) as caught:
        client.get(KEY)
    assert (caught.value.required, caught.value.alive) == (2, 0)


def test_a_connection_that_was_lost_is_tried_again_first() -> None:
    """It may only have been old: the manager is asked after the second loss."""
    network, client = cluster()
    network.script(1, Get, Fault.DROP)
    client.get(KEY)
    assert [sent.peers for sent in client.sent()] == [(1,), (1,)]
    network.script(1, Get, Fault.DROP, Fault.DROP)
    client.get(KEY)
    assert [sent.peers for sent in client.sent()][2:] == [(1,), (1,), (MANAGER,), (1,)]
    assert len(client.pauses) == 1


def test_no_owner_is_alive() -> None:
    """Unavailable, as the manager says: of a get, and of a write that nobody took."""
    network, client = cluster(replicas=1)
    network.kill(1)
    for operation in (
        operations.get(client.routes, client.source, KEY),
        operations.put(client.routes, client.source, KEY, b"v"),
    ):
        with pytest.raises(Unavailable) as caught:
            client.run(operation)
        assert (caught.value.required, caught.value.alive) == (1, 0)


def test_no_owner_is_alive_after_a_write_was_sent() -> None:
    """C3: then it may have happened."""
    network, client = cluster(replicas=1)
    network.script(1, Write, Fault.DROP_REPLY, after(lambda: network.kill(1)))
    with pytest.raises(OutcomeUnknown) as caught:
        client.put(KEY, b"v")
    assert isinstance(caught.value.__cause__, Unavailable)


def test_the_manager_is_gone_too(caplog: pytest.LogCaptureFixture) -> None:
    """The old map goes on to hold; the client asks again until its deadline."""
    network, client = cluster()
    network.kill(1)
    network.script(MANAGER, NextPrimary, Fault.REFUSE, Fault.DROP, Fault.DROP)
    with caplog.at_level(logging.INFO, "gtstore.client"):
        client.put(KEY, b"v")
    text = "the manager does not answer: the manager: "
    assert text + "connection refused" in caplog.messages
    assert text + "the connection was lost" in caplog.messages
    assert len(client.pauses) == 2
    assert not client.routes.asked_about
    network.kill(2)
    choose(network, messages.Message, Fault.REFUSE)
    with pytest.raises(DeadlineExceeded):
        client.get(KEY, timeout_s=0.1)


def test_the_manager_answers_with_the_row_that_is_known() -> None:
    """It has seen the node alive: no more is asked, and there is a pause."""
    network, client = cluster()
    network.script(1, Get, Fault.REFUSE)
    client.get(KEY)
    assert [type(sent.message) for sent in client.sent()] == [Get, NextPrimary, Get]
    assert len(client.pauses) == 1


def test_one_operation_asks_about_a_node_for_all() -> None:
    """``asked_about``: the others wait for its answer."""
    network, client = cluster()
    friend = Client(network, routes=client.routes, seed=3)
    network.kill(1)
    first = client.call(operations.put(client.routes, client.source, KEY, b"1"))
    second = friend.call(operations.put(friend.routes, friend.source, b"key4", b"2"))
    for call in (first, second):
        for _ in range(4):
            call.advance()
    assert set(client.routes.asked_about) == {1}
    assert isinstance(friend.steps[-1], Pause)
    first.run()
    assert not client.routes.asked_about
    assert second.run().nodes == (2,)
    assert [type(message) for _, message in network.asked].count(NextPrimary) == 1


def test_who_has_waited_for_anothers_answer_asks_too() -> None:
    """That other one may be a call which a signal handler has interrupted, to make this one."""
    network, client = cluster()
    handler = Client(network, routes=client.routes, seed=3)
    network.kill(1)
    first = client.call(operations.put(client.routes, client.source, KEY, b"1"))
    for _ in range(4):
        first.advance()
    assert set(client.routes.asked_about) == {1}
    handler.put(b"key4", b"2")
    assert [type(message) for _, message in network.asked].count(NextPrimary) == 1
    assert sum(handler.pauses) > 0.25
    assert first.run().nodes == (2,)
    assert not client.routes.asked_about
    client.routes.asked_about[1] = 0
    client.routes.after_fork()
    assert not client.routes.asked_about


def test_an_operation_that_is_given_up_asks_no_longer() -> None:
    """``asked_about`` is cleared when the operation ends in any way."""
    network, client = cluster()
    network.kill(1)
    network.script(MANAGER, NextPrimary, Fault.SILENT)
    with pytest.raises(DeadlineExceeded):
        client.get(KEY)
    assert not client.routes.asked_about
    call = client.call(operations.get(client.routes, client.source, KEY))
    for _ in range(3):
        call.advance()
    assert set(client.routes.asked_about) == {1}
    call.operation.close()
    assert not client.routes.asked_about


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        (messages.NOT_READY, None),
        (messages.BEHIND, None),
        (messages.BUSY, messages.BusyDetail(5)),
    ],
)
def test_refusals_are_tried_again_after_growing_pauses(
    code: int, detail: Any, caplog: pytest.LogCaptureFixture
) -> None:
    network, client = cluster()
    network.script(1, Get, *[refuse(code, detail)] * 9)
    with caplog.at_level(logging.INFO, "gtstore.client"):
        client.put(KEY, b"v")
        assert client.get(KEY) == b"v"
    assert len(client.pauses) == 9
    for attempt, pause in enumerate(client.pauses):
        longest = min(0.001 * 2**attempt, 0.050)
        assert longest / 2 <= pause <= longest
    assert len(caplog.messages) == 10
    assert f"answered {messages.ERRORS[code].name}" in caplog.messages[0]


def test_a_node_that_is_behind_fetches_the_map() -> None:
    """N1c: without a word to the client."""
    network, client = cluster()
    network.publishes_at_once = False
    row = network.change(PARTITION, network.owner(1), network.owner(2))
    client.routes.patch(row)
    client.put(KEY, b"v")
    assert len(client.steps) == 1
    assert network.nodes[1].replicas.epoch == network.map.epoch
    network.change(PARTITION, *row.owners)
    client.know()
    network.nodes[1].fetches = False
    network.script(1, Get, Fault.NONE, Fault.NONE, after(network.nodes[1].adopt))
    assert client.get(KEY) == b"v"
    assert len(client.pauses) == 2


# --- another cluster -----------------------------------------------------------------------------


def test_another_cluster_on_the_old_addresses(caplog: pytest.LogCaptureFixture) -> None:
    """M4: its nodes answer STALE_EPOCH with its rows: everything is asked anew."""
    network, client = cluster()
    client.put(KEY, b"old")
    network.create(5, 3, OTHER_CLUSTER)
    with caplog.at_level(logging.INFO, "gtstore.client"):
        assert client.get(KEY) is None
    assert "another cluster answers: asking the manager for everything anew" in caplog.messages
    assert (client.routes.nodes, client.routes.cluster_id) == (5, OTHER_CLUSTER)
    client.put(KEY, b"new")
    assert client.get(KEY) == b"new"


def test_another_cluster_under_a_put() -> None:
    """C3: its tenure is another one too; the old cluster's nodes took nothing."""
    network, client = cluster()
    network.create(3, 2, OTHER_CLUSTER)
    network.script(MANAGER, ClusterInfo, Fault.REFUSE, refuse(messages.NOT_READY), Fault.DROP)
    assert client.put(KEY, b"new").nodes == (1, 2)
    assert client.routes.cluster_id == OTHER_CLUSTER
    assert network.is_script_done


def test_the_manager_names_another_cluster() -> None:
    """M4: in its answer about a node that is gone."""
    network, client = cluster()
    network.create(3, 2, OTHER_CLUSTER)
    network.script(1, Get, Fault.REFUSE)
    assert client.get(KEY) is None
    assert client.routes.cluster_id == OTHER_CLUSTER


# --- initialize ----------------------------------------------------------------------------------


def test_initialize_learns_shape_members_map_and_clock() -> None:
    """The report's Init; put and get begin with it if need be."""
    network = Network()
    client = Client(network, skew_us=-5 * SECOND_US)
    assert client.put(KEY, b"v").nodes == (1, 2)
    assert [type(sent.message) for sent in client.sent()] == [ClusterInfo, GetMap, Write]
    routes = client.routes
    assert (routes.nodes, routes.replicas, sorted(routes.members)) == (3, 2, [1, 2, 3])
    assert abs(routes.clock.offset_us - 5 * SECOND_US) < 1000
    again = Client(network)
    assert again.get(KEY) == b"v"
    assert [type(sent.message) for sent in again.sent()][:3] == [ClusterInfo, GetMap, Get]


def test_initialize_tries_again() -> None:
    """While the manager's nodes are starting; when a connection is lost, first without a pause."""
    network = Network()
    client = Client(network)
    network.script(
        MANAGER, ClusterInfo, refuse(messages.NOT_READY), Fault.DROP, Fault.DROP, Fault.DROP_REPLY
    )
    network.script(MANAGER, GetMap, refuse(messages.NOT_READY))
    client.run(operations.initialize(client.routes, client.source))
    assert len(client.pauses) == 3
    assert client.routes.cluster_id == network.cluster_id
    assert network.is_script_done


def test_initialize_with_a_map() -> None:
    """A node has one: it asks for the rest only, and later for what has changed since its own."""
    network = Network()
    client = Client(network)
    known = network.nodes[1].replicas.map()
    network.nodes[2].is_alive = False
    network.notice(2)
    client.run(operations.initialize(client.routes, client.source, known=known))
    assert not client.sent(GetMap)
    assert client.routes.epoch == known.epoch < network.map.epoch
    assert [client.routes.of(row.partition).row for row in known.rows] == list(known.rows)


def test_initialize_without_a_manager() -> None:
    """It fails at once, unless it is patient."""
    network = Network()
    client = Client(network)
    network.script(MANAGER, ClusterInfo, Fault.REFUSE)
    with pytest.raises(ConnectError):
        client.run(operations.initialize(client.routes, client.source))
    network.script(MANAGER, ClusterInfo, Fault.REFUSE, Fault.REFUSE)
    client.run(operations.initialize(client.routes, client.source, patient=True))
    assert client.routes.cluster_id


def test_initialize_is_refused() -> None:
    network = Network()
    client = Client(network)
    network.script(MANAGER, ClusterInfo, refuse(messages.NOT_ALLOWED))
    with pytest.raises(RemoteError):
        client.run(operations.initialize(client.routes, client.source))


def test_initialize_takes_no_halves_of_two_clusters() -> None:
    """A cluster that is made anew between the two answers is asked again."""
    network = Network()
    client = Client(network)
    network.script(MANAGER, GetMap, after(lambda: network.create(3, 2, OTHER_CLUSTER)))
    client.run(operations.initialize(client.routes, client.source))
    assert client.routes.cluster_id == OTHER_CLUSTER
    short = Map(network.map.epoch, network.map.rows[:-1])
    network.script(MANAGER, GetMap, answer(short))
    client.run(operations.initialize(client.routes, client.source))
    assert len(client.pauses) == 2


# --- where, status -------------------------------------------------------------------------------


def test_where() -> None:
    """The manager says where a key is, and what it says is used."""
    network, client = cluster()
    assert client.run(operations.where(client.routes, client.source, KEY)) == Location(
        PARTITION, (1, 2)
    )
    network.kill(1)
    network.notice(1)
    assert client.run(operations.where(client.routes, client.source, KEY)) == (PARTITION, (2,), ())
    assert client.routes.find(KEY).nodes == (2,)
    network.bring_back(1)
    found = client.run(operations.where(client.routes, client.source, KEY))
    assert found == (PARTITION, (2, 1), (1,))
    network.kill(1)
    network.notice(1)
    network.kill(2)
    with pytest.raises(Unavailable):
        client.run(operations.where(client.routes, client.source, KEY))
    network.script(MANAGER, KeyNodes, Fault.REFUSE)
    with pytest.raises(ConnectError):
        client.run(operations.where(client.routes, client.source, KEY))
    network.script(MANAGER, KeyNodes, refuse(messages.NOT_READY))
    with pytest.raises(RemoteError):
        client.run(operations.where(client.routes, client.source, KEY))


def test_status() -> None:
    """The cluster as the manager sees it; each living node counts its own entries."""
    network, client = cluster()
    client.put(KEY, b"v")
    network.kill(3)
    network.notice(3)
    network.script(2, Ping, Fault.DROP, Fault.DROP)
    report = client.run(operations.status(client.routes, client.source))
    assert report["cluster"] == "c0ffee01"
    assert report["epoch"] == 2
    assert report["replicas"] == 2
    assert report["hash"] == "additive"
    assert client.sent(Ping)[0].peers == (1, 2)
    one, two, three = report["nodes"]
    assert one == {
        "id": 1,
        "address": "127.0.0.1:10001",
        "pid": 1001,
        "incarnation": 1,
        "state": "alive",
        "entries": 1,
        "bytes": len(KEY) + 21 + 1,
        "full": None,
        "partitions": 128,
        "primaries": 128,
        "syncing": 0,
    }
    assert (two["state"], two["entries"], two["partitions"], two["primaries"]) == (
        "alive",
        0,
        128,
        64,
    )
    assert (three["state"], three["partitions"], three["primaries"]) == ("dead", 0, 0)
    # 64 partitions have nodes 1 and 2, the others have lost their copy on node 3.
    assert len(report["under_replicated"]) == 128
    network.script(MANAGER, ClusterInfo, Fault.REFUSE)
    with pytest.raises(ConnectError):
        client.run(operations.status(client.routes, client.source))


def test_status_of_another_cluster_on_the_old_address() -> None:
    """M4: the client goes over to it, so that it asks the right nodes."""
    network, client = cluster()
    network.create(5, 3, OTHER_CLUSTER)
    report = client.run(operations.status(client.routes, client.source))
    assert report["cluster"] == "deadbeef"
    assert len(report["nodes"]) == 5
    assert client.sent(Ping)[0].peers == (1, 2, 3, 4, 5)
    assert client.routes.cluster_id == OTHER_CLUSTER
    assert sorted(client.routes.members) == [1, 2, 3, 4, 5]


def test_status_of_a_node_that_answers_something_else() -> None:
    network, client = cluster()
    network.script(1, Ping, answer(Ack()))
    network.script(2, Ping, answer(Pong(2, 2, 1, 5, 6, 7, 8, 9, 2)))
    report = client.run(operations.status(client.routes, client.source))
    assert [node["entries"] for node in report["nodes"]] == [0, 8, 0]
    assert [node["full"] for node in report["nodes"]] == [None, "disk", None]
    network.script(1, Ping, answer(Pong(2, 2, 1, 5, 6, 7, 8, 9, 2)))  # another node's
    network.script(2, Ping, Fault.REFUSE)
    report = client.run(operations.status(client.routes, client.source))
    assert [node["entries"] for node in report["nodes"]] == [0, 0, 0]


# --- what peers should not answer ----------------------------------------------------------------

STALE_GARBAGE = messages.Error(messages.STALE_EPOCH, "no", b"garbage")
ODD_REPLIES = {
    "a kind that is not known": answer_raw(0xEE, b"abc"),
    "a request": answer(Get(1, 2, b"k")),
    "a reply to something else": answer(Pong(2, 2, 1, 5, 6, 7, 8, 9, 2)),
    "an error of no bytes": answer_raw(0xFF, b""),
    "an error of one byte": answer_raw(0xFF, b"\0"),
    "an error that is not known": answer_raw(0xFF, b"\x7f\xff\0\0"),
    "an error whose text is cut": answer_raw(0xFF, b"\0\x0c\0\x09abc"),
    "an error whose detail is garbage": answer(STALE_GARBAGE),
    "a row without owners": refuse(
        messages.STALE_EPOCH, StaleDetail(Row(PARTITION, epoch_of(0xC0FFEE01, 9), 1, ()))
    ),
    "a row that does not exist": refuse(
        messages.STALE_EPOCH, StaleDetail(Row(99999, epoch_of(0xC0FFEE01, 9), 1, ()))
    ),
    "SUPERSEDED without a version": answer_raw(0x93, b""),
    "SUPERSEDED by nothing": answer(Superseded(bytes(16))),
    "ACK": answer(Ack()),
    "ACK with a body": answer_raw(0x92, b"abc"),
    "NOT_FOUND": answer(NotFound()),
    "INTERNAL": refuse(messages.INTERNAL),
    "an entry": answer(EntryReply(encode_record(Entry(1, 2, 3, 0, None, b"v")))),
    "an entry with all flags": answer_raw(0x90, bytes(20) + b"\xff" + bytes(8)),
}
SHORT_ENTRIES = {
    "an entry without any byte": answer_raw(0x90, b""),
    "an entry that is cut in its head": answer_raw(0x90, bytes(20)),
    "a committed entry that is cut in its expiry": answer_raw(0x90, bytes(20) + b"\x09abc"),
}
HIGHEST = answer(Superseded(b"\xff" * 16))


def run_with(kind: type[Any], action: Any, make: Callable[[Client], Any]) -> Any:
    """Run an operation whose requests of a kind are all answered so, or by the manager; the result,
    or the error, which must be one of ours."""
    network, client = cluster()
    choose(network, kind, action)
    try:
        return client.run(make(client), 0.1)
    except GTStoreError as error:
        return error


def put_of(client: Client) -> Any:
    return operations.put(client.routes, client.source, KEY, b"v")


def get_of(client: Client) -> Any:
    return operations.get(client.routes, client.source, KEY)


@pytest.mark.parametrize("name", ODD_REPLIES)
def test_odd_replies_of_a_node(name: str) -> None:
    """Whatever a node answers, the caller gets a result or a GTStoreError (Call checks that)."""
    action = ODD_REPLIES[name]
    outcome = run_with(Write, action, put_of)
    if not name.startswith("ACK"):
        assert isinstance(outcome, OperationFailed | OutcomeUnknown)
    outcome = run_with(Get, action, get_of)
    if "entry" not in name and name != "NOT_FOUND":
        assert isinstance(outcome, GTStoreError)


@pytest.mark.parametrize(
    ("kind", "make", "name", "error"),
    [
        (Get, get_of, "ACK", RemoteProtocolError),
        (Get, get_of, "SUPERSEDED by nothing", RemoteProtocolError),
        (Write, put_of, "NOT_FOUND", OutcomeUnknown),
        (Write, put_of, "an entry", OutcomeUnknown),
    ],
)
def test_a_reply_to_another_request_ends_the_call(
    kind: type[Any], make: Any, name: str, error: type[GTStoreError]
) -> None:
    """At once and with the reason, not at the deadline."""
    outcome = run_with(kind, ODD_REPLIES[name], make)
    assert isinstance(outcome, error)
    assert "a node answered with a message of kind 0x9" in str(outcome)


@pytest.mark.parametrize("name", list(SHORT_ENTRIES)[:2])
def test_an_entry_that_is_too_short(name: str) -> None:
    assert isinstance(run_with(Get, SHORT_ENTRIES[name], get_of), RemoteProtocolError)


def test_an_entry_whose_expiry_is_cut() -> None:
    action = SHORT_ENTRIES["a committed entry that is cut in its expiry"]
    assert isinstance(run_with(Get, action, get_of), RemoteProtocolError)


def test_plain_value_of_an_entry_that_is_too_short() -> None:
    _, client = cluster()
    begun = operations.begin_get(client.routes, client.source, KEY)
    assert operations.plain_value(begun, HEADER.pack(MAGIC_VERSION, ENTRY, 0, 1, 0)) is None


def test_superseded_by_the_highest_version() -> None:
    """There is no version above it, so it is no version of ours."""
    assert isinstance(run_with(Write, HIGHEST, put_of), OperationFailed)


ODD_ANSWERS = {
    "an error that is cut": answer_raw(0xFF, b"\0"),
    "a kind that is not known": answer_raw(0xEE, b"abc"),
    "a reply to something else": answer(Pong(2, 2, 1, 5, 6, 7, 8, 9, 2)),
    "a reply that is cut": answer_raw(0x84, b"\0"),
    "an error that is not known": answer_raw(0xFF, b"\x7f\xff\0\0"),
    "Unavailable without its detail": answer(messages.Error(messages.UNAVAILABLE, "no", b"")),
    "INTERNAL": refuse(messages.INTERNAL),
}


@pytest.mark.parametrize("name", ODD_ANSWERS)
def test_odd_answers_of_the_manager(name: str) -> None:
    """They end the operation with an error of ours."""
    action = ODD_ANSWERS[name]
    for kind, make in (
        (KeyNodes, lambda client: operations.where(client.routes, client.source, KEY)),
        (ClusterInfo, lambda client: operations.initialize(client.routes, client.source)),
        (GetMap, lambda client: operations.status(client.routes, client.source)),
    ):
        outcome = run_with(kind, action, make)
        assert isinstance(outcome, RemoteError | RemoteProtocolError)
    network, client = cluster()
    network.kill(1)
    network.script(MANAGER, NextPrimary, action, action)
    with pytest.raises((RemoteError, RemoteProtocolError)):
        client.get(KEY)
    with pytest.raises(OutcomeUnknown):  # its other owner took it
        client.run(operations.put(client.routes, client.source, b"key3", b"v"), 0.2)


def test_a_manager_that_is_not_ready_is_asked_again() -> None:
    """NOT_READY means "after a pause" (section 8), so fail-over waits for a manager that starts."""
    network, client = cluster()
    client.put(KEY, b"v")
    network.kill(1)
    network.script(MANAGER, NextPrimary, refuse(messages.NOT_READY))
    assert client.get(KEY) == b"v"


def shape(**changes: Any) -> Any:
    """The manager's CLUSTER with other fields."""
    values = vars(Network().cluster()) | changes
    return answer(Cluster(**values))


def test_a_hash_that_is_not_known_here() -> None:
    """A newer cluster: the client says that it is too old."""
    outcome = run_with(
        ClusterInfo, shape(hash=9), lambda c: operations.initialize(c.routes, c.source)
    )
    assert isinstance(outcome, RemoteProtocolError)
    assert "a newer client is needed" in str(outcome)


def test_status_of_a_newer_cluster() -> None:
    outcome = run_with(ClusterInfo, shape(hash=9), lambda c: operations.status(c.routes, c.source))
    assert isinstance(outcome, GTStoreError | dict)


def test_a_map_of_no_partitions() -> None:
    network = Network()
    client = Client(network)
    network.script(MANAGER, ClusterInfo, shape(partitions=0))
    network.script(MANAGER, GetMap, answer(Map(network.map.epoch, ())))
    with pytest.raises(RemoteProtocolError, match="without rows"):
        client.put(KEY, b"v")
    client.put(KEY, b"v")


@pytest.mark.parametrize("make", [put_of, get_of])
@pytest.mark.parametrize("nodes", [(), (1, 2, 1), (0,), (2, 0)])
def test_a_map_whose_rows_lead_nowhere(make: Any, nodes: tuple[int, ...]) -> None:
    """No owners, one that is named twice, or none that is a node: above all, a put is not reported
    as done if no node has it."""
    network = Network()
    client = Client(network)
    owners = tuple(Owner(node, 1, 1, 1) for node in nodes)
    rows = tuple(dataclasses.replace(row, owners=owners) for row in network.map.rows)
    network.script(MANAGER, GetMap, answer(Map(network.map.epoch, rows)))
    with pytest.raises(GTStoreError):
        client.run(make(client), 1)


@pytest.mark.parametrize("nodes", [(1, 2, 2), (0, 1, 2)])
@pytest.mark.parametrize("operation", [operations.initialize, operations.status])
def test_members_that_are_none(operation: Any, nodes: tuple[int, ...]) -> None:
    """Whoever is asked twice is awaited twice, and 0 is the manager itself."""
    network, client = cluster()
    members = tuple(Member(node, ALIVE, 1, 1, 1, "127.0.0.1") for node in nodes)
    network.script(MANAGER, ClusterInfo, shape(members=members))
    with pytest.raises(RemoteProtocolError, match="members of which one"):
        client.run(operation(client.routes, client.source))


def test_a_cluster_without_an_id() -> None:
    """Section 2: it is never 0, which stands for not knowing any."""
    network, client = cluster()
    network.script(MANAGER, ClusterInfo, shape(epoch=epoch_of(0, 1)))
    with pytest.raises(RemoteProtocolError, match="without an id"):
        client.run(operations.initialize(client.routes, client.source))


def test_a_managers_clock_at_the_end_of_time() -> None:
    network = Network()
    client = Client(network)
    network.script(MANAGER, ClusterInfo, shape(time=(1 << 64) - 1))
    with pytest.raises(RemoteProtocolError, match="clock"):
        client.put(KEY, b"v")
    client.put(KEY, b"v")


def test_remote_error_of_no_error() -> None:
    with pytest.raises(RemoteProtocolError, match="a node answered with ACK"):
        operations.remote_error("a node", (ACK, 0, 1, b""))


def test_may_be_done() -> None:
    """C3: which replies leave it open whether the request was done."""
    lost = ConnectionLost("node 1", "lost")
    assert operations.may_be_done(Lost(0, 1, True, lost))
    assert not operations.may_be_done(Lost(0, 1, False, lost))
    for code, row in messages.ERRORS.items():
        reply = (0xFF, 0, 1, code.to_bytes(2, "big") + b"\0\0")
        assert operations.may_be_done(reply) == (code == messages.INTERNAL)
        assert (row.outcome == "maybe") == (code == messages.INTERNAL)
    assert operations.may_be_done((0xFF, 0, 1, b"\x7f\xff\0\0"))
    assert operations.may_be_done((0xEE, 0, 1, b""))


# --- Source --------------------------------------------------------------------------------------


class Clock:
    def __init__(self, now_us: int = 1_000_000) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us * 1000 + 999


def new_source(clock: Clock, numbers: list[int] | None = None) -> Source:
    left = iter(numbers or [1, 2, 3])
    return Source(lambda: next(left), clock, lambda: 0.5)


def test_times_rise() -> None:
    """A version is never used twice, also when the clock stands still or goes back."""
    clock = Clock()
    source = new_source(clock)
    assert source.next_time(source.identity, 0) == 1_000_000
    assert source.next_time(source.identity, 0) == 1_000_001
    clock.now_us -= 500
    assert source.next_time(source.identity, 0) == 1_000_002
    assert source.next_time(source.identity, 100) == 1_000_003
    clock.now_us = 3_000_000
    assert source.next_time(source.identity, 100) == 3_000_100
    assert source.next_time(source.identity, 0, above=5_000_000) == 5_000_001
    assert source.next_time(source.identity, 0) == 5_000_002
    assert source.next_time(source.identity, 0, above=4_000_000) == 5_000_003


def test_a_lag_is_learned_as_an_offset() -> None:
    """C3's State: a client that lags learns how far, not a point in time."""
    clock = Clock()
    source = new_source(clock)
    source.learn(1_500_000, 0)
    assert source.now_us(0) == 1_500_000
    clock.now_us += 100
    assert source.next_time(source.identity, 0) == 1_500_100
    source.learn(1_400_000, 0)  # no lead
    source.learn(1_600_300, 100_000)
    assert source.now_us(0) == 1_500_300


def test_nothing_is_learned_beyond_the_bound() -> None:
    """N9: not by one version, nor by many."""
    clock = Clock()
    source = new_source(clock)
    bound = CLOCK_AHEAD_MAX_S * SECOND_US
    source.learn(clock.now_us + bound + 1, 0)
    assert source.now_us(0) == clock.now_us
    source.learn(clock.now_us + bound, 0)
    assert source.now_us(0) == clock.now_us + bound
    source.learn(clock.now_us + bound + 1, 0)
    assert source.now_us(0) == clock.now_us + bound


def test_numbers_that_are_used_up_renew_the_identity() -> None:
    """With the client, an operation's counter is its rid: it is never used twice."""
    _, client = cluster()
    old = client.source.identity.client
    client.source._number = 0xFFFF_FFFE
    client.put(KEY, b"1")
    client.put(KEY, b"2")
    (_, first), (_, second) = writes(client)
    assert (first.counter, second.counter) == (0xFFFF_FFFF, 1)
    assert first.client != old
    assert second.client == first.client == client.source.identity.client
    old = client.source.identity.client
    client.source._number = 0xFFFF_FFFE
    assert client.get(KEY) == b"2"
    assert client.source.identity.client != old


def test_times_rise_while_the_clock_stands() -> None:
    """A version is never used twice, however coarse the clock is."""
    source = Source(lambda: 1, lambda: 5_000_000, lambda: 0.5)
    assert [source.next_time(source.identity, 0) for _ in range(3)] == [5000, 5001, 5002]
    _, client = cluster()
    client.source._steady_ns = lambda: 5_000_000
    times = [operations.begin_put(client.routes, client.source, KEY, b"v")[3][0] for _ in range(3)]
    assert times == [times[0], times[0] + 1, times[0] + 2]


def test_backoff() -> None:
    """From half of the longest pause to all of it, and never more than 50 ms."""
    _, client = cluster()
    for attempt in range(30):
        longest = min(0.001 * 2**attempt, 0.050)
        for _ in range(20):
            assert longest / 2 <= client.source.backoff_s(attempt) <= longest


def test_one_key_that_is_far_ahead_does_not_lock_the_others() -> None:
    """N9: a client that goes above such a version still writes its other keys by the clock."""
    network, client = cluster()
    other = another(network, ahead_s=50)
    other.put(KEY, b"far")
    other.skew_us = 100 * SECOND_US
    other.put(KEY, b"farther")  # within 60 s of what is stored
    client.put(KEY, b"mine")
    client.put(b"key4", b"v", 1)


def test_shown() -> None:
    """On one line, whatever its bytes are."""
    assert operations.shown(b"key\xff\xc3\xa4") == "key\\xff\xe4"
    assert operations.shown(b"a\nb\x1b[2J") == "a\\nb\\x1b[2J"


def test_status_tells_the_managers_troubles() -> None:
    """What it says of itself; a manager of before cannot be asked, and has none."""
    network, client = cluster()
    network.troubles = (messages.Trouble("unsaved", 1_700_000_000_500_000, "no room"),)
    told = client.run(operations.status(client.routes, client.source))
    assert told["troubles"] == [{"what": "unsaved", "since": 1_700_000_000.5, "reason": "no room"}]
    network.script(MANAGER, messages.GetTroubles, refuse(messages.UNKNOWN_KIND))
    assert client.run(operations.status(client.routes, client.source))["troubles"] == []
