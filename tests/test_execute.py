"""Read-modify-write by a client: rule C4, line by line, and the holes that it closes."""

from __future__ import annotations

from typing import Any

import pytest

from gtstore import operations
from gtstore.errors import (
    OperationFailed,
    OutcomeUnknown,
    RemoteError,
    RemoteProtocolError,
    Unavailable,
    VersionMismatch,
)
from gtstore.results import Version
from gtstore.turns import PACE_MAX_S
from gtstore.wire import messages
from gtstore.wire.codec import encode_record
from gtstore.wire.messages import (
    APPEND,
    COMMITTED,
    INCREMENT,
    ORDERED,
    PUT_IF_ABSENT,
    PUT_IF_VALUE,
    Ack,
    Entry,
    Execute,
    Executed,
    Failed,
    Get,
    Superseded,
    Write,
)

from .sim.network import Call, Client, Fault, Network, after, answer, refuse
from .test_operations import (
    KEY,
    PARTITION,
    SECOND_US,
    another,
    choose,
    cluster,
    owed,
    values,
    writes,
)


def begin(client: Client, operation: int, operand: bytes, expected: bytes = b"") -> Call[Any]:
    return client.call(
        operations.execute(client.routes, client.source, KEY, operation, operand, expected)
    )


def kill(network: Network, node: int) -> None:
    network.kill(node)
    network.notice(node)


def stored(network: Network, node: int) -> Entry:
    entry = network.nodes[node].held(KEY)
    assert entry is not None
    return entry


# --- the usual way -------------------------------------------------------------------------------


def test_the_primary_first_and_then_the_others_in_order() -> None:
    """C4, C2: EXECUTE at the primary, the result to the backups in turn; C7: COMMIT to all."""
    network, client = cluster(replicas=3)
    client.put(KEY, b"a")
    client.steps.clear()
    changed = client.execute(KEY, APPEND, b"b")
    assert changed.value == b"ab"
    assert changed.nodes == (1, 2, 3)
    sent = [(sent.peers, type(sent.message)) for sent in client.sent()]
    assert sent == [((1,), Execute), ((2,), Write), ((3,), Write)]
    entry = stored(network, 3)
    assert (entry.flags, entry.value) == (ORDERED, b"ab")
    assert Version(entry.time, entry.client) == changed.version
    assert set(owed(client)) == {1, 2, 3}
    assert client.get(KEY) == b"ab"


def test_a_single_owner() -> None:
    network, client = cluster(replicas=1)
    assert client.append(KEY, b"a") == b"a"
    assert client.append(KEY, b"b") == b"ab"
    assert values(network) == [b"ab", None, None]


def test_a_new_client_asks_for_the_map_first() -> None:
    network, _ = cluster()
    client = Client(network)
    assert client.append(KEY, b"a") == b"a"


def test_a_result_that_somebody_completed_needs_no_more() -> None:
    """The primary answers as before, with the flag committed: so all owners have it."""
    network, client = cluster()
    reader = another(network)

    def read() -> None:
        assert reader.get(KEY) == b"a"
        reader.source.owe_now()
        network.deliver_owed(reader.source.owed)

    network.script(1, Execute, Fault.DROP_REPLY, after(read))
    assert client.append(KEY, b"a") == b"a"
    assert [sent.peers for sent in client.sent(Write)] == []
    assert stored(network, 2).flags == ORDERED | COMMITTED


# --- silence, new lists --------------------------------------------------------------------------


def test_silence_is_asked_again() -> None:
    """C4: same version and rid; the primary answers as before, and it is done once."""
    network, client = cluster()
    network.script(1, Execute, Fault.DROP_REPLY)
    assert client.append(KEY, b"a") == b"a"
    first, second = (sent.message for sent in client.sent(Execute))
    assert first == second
    assert values(network) == [b"a", b"a", None]


def test_a_backup_that_is_lost_makes_the_client_execute_again() -> None:
    """C4: silence at any point. The answer is as before."""
    network, client = cluster()
    network.script(2, Write, Fault.DROP)
    assert client.append(KEY, b"a") == b"a"
    assert [sent.peers for sent in client.sent()] == [(1,), (2,), (1,), (2,)]


def test_the_primary_dies_before_the_result_is_anywhere_else() -> None:
    """C4: the new primary computes anew, from what it has."""
    network, client = cluster()
    client.put(KEY, b"a")
    network.script(2, Write, after(lambda: kill(network, 1)))
    assert client.append(KEY, b"b") == b"ab"
    assert values(network)[1] == b"ab"
    assert [sent.peers for sent in client.sent(Execute)] == [(1,), (2,)]


def test_overtaken_after_it_was_executed() -> None:
    """C4: SUPERSEDED, was executed in this tenure: the known result goes to the others."""
    network, client = cluster()
    other = another(network)
    network.script(2, Write, Fault.DROP)
    network.script(1, Execute, Fault.NONE, after(lambda: other.put(KEY, b"later")))
    changed = client.execute(KEY, APPEND, b"a")
    assert changed.value == b"a"
    assert [entry.value for _, entry in writes(client)] == [b"a", b"a"]
    assert values(network) == [b"later", b"later", None]


def test_overtaken_while_an_answer_was_missing() -> None:
    """C4: SUPERSEDED, unresolved: it may have been done before that."""
    network, client = cluster()
    other = another(network)
    network.script(1, Execute, Fault.DROP_REPLY, after(lambda: other.put(KEY, b"later")))
    with pytest.raises(OutcomeUnknown, match="another client wrote it"):
        client.append(KEY, b"a")


def test_overtaken_before_it_was_executed() -> None:
    """C4: SUPERSEDED otherwise: a new version, above that one."""
    network, client = cluster()
    another(network).put(KEY, b"a")
    assert client.append(KEY, b"b") == b"ab"
    first, second = (sent.message.entry for sent in client.sent(Execute))
    assert second[:16] > first[:16]
    assert second[8:20] == first[8:20]


def test_overtaken_again_and_again() -> None:
    """Liveness: it goes on at once; who comes to that key next waits, until calls win again."""
    network, client = cluster()
    other = another(network)
    calls = [after(lambda i=i: other.put(KEY, b"%d" % i)) for i in range(4)]
    network.script(1, Execute, *calls)
    assert client.append(KEY, b"!") == b"3!"
    assert client.pauses == []
    for _ in range(20):
        client.append(KEY, b"+")
    pauses = client.pauses
    assert 1 <= len(pauses) < 19
    assert max(pauses) <= PACE_MAX_S
    client.append(KEY, b"+")
    assert client.pauses == pauses


def test_calls_of_one_client_go_in_turn() -> None:
    """Liveness: who has lost goes first, and newcomers behind; nobody loses to them any more."""
    network, client = cluster()
    lost = client.call(operations.execute(client.routes, client.source, KEY, APPEND, b"1"))
    lost.advance()
    another(network, ahead_s=1).put(KEY, b"0")
    lost.advance()
    lost.advance()
    assert KEY in client.routes.turns
    fellow = Client(network, routes=client.routes, seed=7)
    later = fellow.call(operations.execute(fellow.routes, fellow.source, KEY, APPEND, b"2"))
    for _ in range(5):
        later.advance()
    assert len(fellow.pauses) > 1
    assert fellow.sent(Execute) == []
    assert lost.run().value == b"01"
    assert later.run().value == b"012"
    assert len(fellow.sent(Execute)) == 1
    assert KEY not in client.routes.turns


# --- failures ------------------------------------------------------------------------------------


def test_a_failed_comparison() -> None:
    """C4: FAILED on a committed entry, and on none."""
    network, client = cluster()
    with pytest.raises(VersionMismatch, match="key1 has no value") as caught:
        client.execute(KEY, PUT_IF_VALUE, b"new", b"old")
    assert (caught.value.version, caught.value.is_absent) == (None, True)
    put = client.put(KEY, b"a")
    network.deliver_owed(client.source.owed)
    with pytest.raises(VersionMismatch, match="another value or version") as caught:
        client.execute(KEY, PUT_IF_ABSENT, b"new")
    assert (caught.value.version, caught.value.is_absent) == (put.version, False)
    assert client.sent(Write)[1:] == []
    gone = client.delete(KEY)
    with pytest.raises(VersionMismatch, match="key1 has no value") as caught:
        client.execute(KEY, PUT_IF_VALUE, b"new", b"a")
    assert (caught.value.version, caught.value.is_absent) == (gone.version, True)


@pytest.mark.parametrize(
    ("operation", "operand", "reason"),
    [(INCREMENT, b"1", "no number"), (77, b"", "failure 9")],
)
def test_other_failures(operation: int, operand: bytes, reason: str) -> None:
    network, client = cluster()
    client.put(KEY, b"text")
    if operation == 77:
        network.script(1, Execute, answer(Failed(9, b"")))
    with pytest.raises(OperationFailed, match=reason):
        client.execute(KEY, operation, operand)
    assert values(network) == [b"text", b"text", None]


def test_a_failure_on_a_pending_entry_helps_it_first() -> None:
    """C4, hole H4: else the primary dies, and a read finds nothing, after the comparison did."""
    network, client = cluster()
    other = another(network)
    network.script(2, Write, Fault.SILENT)
    with pytest.raises(OutcomeUnknown):
        other.put(KEY, b"a", timeout_s=0.01)
    assert values(network) == [b"a", None, None]
    client.skew_us = 2 * SECOND_US
    with pytest.raises(VersionMismatch):
        client.execute(KEY, PUT_IF_ABSENT, b"b")
    kill(network, 1)
    assert client.get(KEY) == b"a"


def test_help_that_does_not_succeed_makes_it_execute_again() -> None:
    """C4: the list changes during the help; now the comparison may succeed."""
    network, client = cluster()
    network.script(2, Write, Fault.SILENT)
    with pytest.raises(OutcomeUnknown):
        another(network).put(KEY, b"a", timeout_s=0.01)
    client.skew_us = 2 * SECOND_US
    network.script(2, Write, after(lambda: kill(network, 1)))
    changed = client.execute(KEY, PUT_IF_ABSENT, b"b")
    assert changed.value == b"b"
    assert values(network)[1] == b"b"


def test_a_failure_after_a_request_without_an_answer() -> None:
    """C4, hole H5: the first EXECUTE may be done later, and succeed."""
    network, client = cluster()
    network.script(1, Execute, Fault.LATE)
    with pytest.raises(OutcomeUnknown, match="went unanswered"):
        client.execute(KEY, PUT_IF_VALUE, b"b", b"a")
    another(network, ahead_s=-1).put(KEY, b"a")
    network.deliver_late()
    assert values(network)[0] == b"b"  # as it says


def test_a_failure_in_a_new_list_is_sure() -> None:
    """C4: what went unanswered in an older list is refused by now."""
    network, client = cluster()
    network.script(1, Execute, Fault.LATE)
    network.script(1, Execute, after(lambda: kill(network, 2)))
    with pytest.raises(VersionMismatch):
        client.execute(KEY, PUT_IF_VALUE, b"b", b"a")
    another(network, ahead_s=-1).put(KEY, b"a")
    network.deliver_late()
    assert values(network)[0] == b"a"


# --- holes ---------------------------------------------------------------------------------------


def test_a_result_is_not_carried_into_a_new_list() -> None:
    """C4, hole H2: the same version would have two values."""
    network, client = cluster()
    call = begin(client, APPEND, b"a")
    while not isinstance(values(network)[0], bytes):
        call.advance()
    call.advance()  # the answer: it is executed
    kill(network, 1)
    another(network, ahead_s=-1).put(KEY, b"b")
    assert call.run().value == b"ba"
    assert client.get(KEY) == b"ba"


def test_a_lost_put_is_not_built_on_twice() -> None:
    """C3, hole H6: a put whose ACK was lost, and an append over it."""
    network, client = cluster()
    other = another(network)
    network.script(1, Write, Fault.DROP_REPLY)
    network.script(1, Write, after(lambda: other.append(KEY, b"!")))
    with pytest.raises(OutcomeUnknown):
        client.put(KEY, b"a")
    assert client.get(KEY) == b"a!"


def test_an_old_primarys_ack_does_not_count() -> None:
    """C3, hole H1, with an append over the old base."""
    network, client = cluster()
    client.put(KEY, b"base")
    other = another(network)

    def change() -> None:
        kill(network, 1)
        assert other.know().append(KEY, b"+b") == b"base+b"

    network.script(2, Write, Fault.DROP, after(change))
    with pytest.raises(OutcomeUnknown):
        client.put(KEY, b"a")
    assert client.get(KEY) == b"base+b"


def test_the_third_owner_never_has_what_the_second_one_lacks() -> None:
    """C2, hole H7: results go in list order."""
    network, client = cluster(replicas=3)
    network.script(2, Write, Fault.DROP)
    call = begin(client, APPEND, b"a")
    for _ in range(5):
        call.advance()
    assert values(network) == [b"a", None, None]
    call.run()
    assert values(network) == [b"a", b"a", b"a"]


# --- refusals, deadlines, nonsense ---------------------------------------------------------------


TOO_FAR = refuse(messages.TOO_FAR, messages.TimeDetail(1))


@pytest.mark.parametrize("refusal", [refuse(messages.NO_SPACE), TOO_FAR])
def test_a_refusal_is_reported_at_once(refusal: Any) -> None:
    network, client = cluster()
    network.script(1, Execute, refusal)
    if refusal is TOO_FAR:
        network.script(1, Execute, refusal)  # the clock is corrected once
    with pytest.raises(OperationFailed, match="the change of key1 did not happen"):
        client.append(KEY, b"a")
    assert client.append(KEY, b"a") == b"a"


def test_a_refusal_that_no_retry_mends() -> None:
    network, client = cluster()
    network.script(1, Execute, refuse(messages.MALFORMED))
    with pytest.raises(OperationFailed, match="MALFORMED") as caught:
        client.append(KEY, b"a")
    assert isinstance(caught.value.__cause__, RemoteError)


def test_the_deadline() -> None:
    """Nothing sent or all refused: it did not happen. Otherwise: unknown."""
    network, client = cluster()
    choose(network, Execute, refuse(messages.BUSY, messages.BusyDetail(1)))
    with pytest.raises(OperationFailed, match="did not happen"):
        client.append(KEY, b"a", timeout_s=0.05)
    choose(network, Execute, Fault.SILENT)
    with pytest.raises(OutcomeUnknown, match="may have happened"):
        client.append(KEY, b"a", timeout_s=0.05)
    choose(network, Write, Fault.SILENT)
    with pytest.raises(OutcomeUnknown) as caught:
        client.append(KEY, b"a", timeout_s=0.05)
    assert (caught.value.acks, caught.value.required) == (1, 2)


def test_the_deadline_before_the_first_step() -> None:
    network, _ = cluster()
    client = Client(network)
    choose(network, messages.ClusterInfo, Fault.SILENT)
    with pytest.raises(OperationFailed, match="did not happen"):
        client.append(KEY, b"a", timeout_s=0.01)


def test_no_owner_is_alive() -> None:
    network, client = cluster()
    for node in (1, 2):
        kill(network, node)
    with pytest.raises(Unavailable):
        client.append(KEY, b"a")


@pytest.mark.parametrize(
    "reply",
    [
        Executed(encode_record(Entry(1, 2, 3, 0, None, b"another operation's"))),
        Failed(1, b"short"),
        Superseded(b"\xff" * 16),
        Ack(),
    ],
)
def test_nonsense(reply: Any) -> None:
    network, client = cluster()
    network.script(1, Execute, answer(reply))
    if isinstance(reply, Ack):
        assert client.append(KEY, b"a") == b"a"
        return
    with pytest.raises(OperationFailed) as caught:
        client.append(KEY, b"a")
    assert isinstance(caught.value.__cause__, RemoteProtocolError)


def test_a_partition_is_the_same_for_all_of_its_requests() -> None:
    _, client = cluster()
    client.append(KEY, b"a")
    assert {sent.message.partition for sent in client.sent()} == {PARTITION}
    assert client.sent(Get) == []
