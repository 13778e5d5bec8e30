"""tests/vectors/scenarios.json: what a client does next, and how the call ends, in this client too.

The operations are driven by hand: each step is compared with the scenario's next round, and gets
the answers that stand there. Pauses may come anywhere. GET_MAP is this client's own way to learn of
other rows, so it is answered with none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gtstore import operations
from gtstore.cluster_time import ClusterTime
from gtstore.errors import (
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    GTStoreError,
    OperationFailed,
    OutcomeUnknown,
)
from gtstore.operations import MANAGER, Lost, Operation, Pause, Reply, Source
from gtstore.placement import Routes, epoch_of
from gtstore.wire import messages
from gtstore.wire.codec import COMMIT, decode, decode_entry, encode, encode_record, error_frame
from gtstore.wire.messages import Entry
from gtstore.wire.stream import FrameBuffer

SCENARIOS = json.loads((Path(__file__).parent / "vectors" / "scenarios.json").read_text())

CLUSTER = 0x5EED0001
KEY, VALUE = b"key1", b"value1"
PARTITION = 186
NOW_US = 1_700_000_000_000_000
DETAILS = {
    "TOO_OLD": messages.FloorDetail(bytes(16)),
    "BUSY": messages.BusyDetail(1),
    "UNAVAILABLE": messages.AliveDetail(2, 0),
}
CODES = {row.name: code for code, row in messages.ERRORS.items()}


def row_of(given: dict[str, Any]) -> messages.Row:
    return messages.Row(
        PARTITION,
        epoch_of(CLUSTER, given["list_epoch"]),
        epoch_of(CLUSTER, given["primary_epoch"]),
        tuple(messages.Owner(node, 1, epoch_of(CLUSTER, 1), 1) for node in given["owners"]),
    )


def entry_of(given: dict[str, Any]) -> Entry:
    flags = given["flags"]
    value = bytes.fromhex(given["value"])
    return Entry(given["version"], 9, 1, flags, given.get("expiry"), value)


def frame_of(data: bytes) -> Reply:
    [frame] = FrameBuffer().feed(data)
    return frame


class Play:
    """One scenario, with this client in it."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        self.rounds = iter(scenario["rounds"])
        self.versions: list[tuple[int, int]] = []
        self.source = Source(lambda: 77, lambda: NOW_US * 1000, lambda: 0.5)
        self.routes = Routes()
        epoch = epoch_of(CLUSTER, 1)
        members = tuple(messages.Member(n, 1, 1, 1, 10000 + n, "127.0.0.1") for n in (1, 2, 3))
        cluster = messages.Cluster(epoch, 3, 2, messages.HASH_ADDITIVE, 192, NOW_US, members)
        others = messages.Owner(3, 1, epoch, 1)
        rows = [messages.Row(p, epoch, epoch, (others,)) for p in range(192)]
        rows[PARTITION] = row_of(scenario["row"])
        clock = ClusterTime()
        clock.take(NOW_US, NOW_US, NOW_US)
        self.routes.replace(cluster, rows, clock)

    def run(self, operation: Operation[Any]) -> Any:
        """Return the result, or the error."""
        try:
            step = next(operation)
            while True:
                if isinstance(step, Pause):
                    step = operation.send([])
                    continue
                peers, _, data = step
                request = decode(data[2], data[messages.HEADER_SIZE :])
                if peers == (MANAGER,) and isinstance(request, messages.GetMap):
                    epoch = epoch_of(CLUSTER, 9)
                    step = operation.send([frame_of(encode(messages.Map(epoch, ())))])
                    continue
                expected = next(self.rounds, None)
                assert expected is not None, f"{request} to {peers} after the last round"
                if "deadline" in expected:
                    step = operation.throw(DeadlineExceeded("the call", "no time was left"))
                    continue
                self.compare(peers, request, expected)
                step = operation.send(
                    [
                        self.reply(peer, answer, request)
                        for peer, answer in zip(peers, expected["answers"], strict=True)
                    ]
                )
        except StopIteration as stop:
            return stop.value
        except GTStoreError as error:
            return error

    def compare(self, peers: tuple[int, ...], request: Any, expected: dict[str, Any]) -> None:
        assert request.name == expected["request"]
        assert ["manager" if peer == MANAGER else peer for peer in peers] == expected["to"]
        if isinstance(request, messages.NextPrimary):
            assert request.node == expected["node"]
            return
        assert request.epoch == epoch_of(CLUSTER, expected["list_epoch"])
        assert (request.partition, request.key) == (PARTITION, KEY)
        if "entry" in expected:
            assert decode_entry(request.entry) == entry_of(expected["entry"])
        elif isinstance(request, messages.Write):
            entry = decode_entry(request.entry)
            version = (entry.time, entry.client)
            if version not in self.versions:
                assert version > max(self.versions, default=(0, 0)), "versions rise"
                self.versions.append(version)
            assert self.versions.index(version) + 1 == expected["version"]
            assert bool(entry.flags & messages.ORDERED) == expected["ordered"]
            assert entry.counter == 1, "the operation's identity stays the same"

    def reply(self, peer: int, answer: Any, request: Any) -> Reply:
        if answer == "lost":
            return Lost(0, peer, True, ConnectionLost(f"node {peer}", "reset"))
        if answer == "refused":
            return Lost(0, peer, False, ConnectError(f"node {peer}", "refused"))
        if answer in ("ACK", "NOT_FOUND"):
            return frame_of(encode(messages.Ack() if answer == "ACK" else messages.NotFound()))
        [(name, given)] = answer.items()
        match name:
            case "SUPERSEDED":
                time = self.versions[-1][0] if self.versions else NOW_US
                version = Entry(time + given, 8, 1, 0, None, b"")
                return frame_of(encode(messages.Superseded(encode_record(version)[:16])))
            case "EXECUTED":
                flags = bytes((given["flags"],))
                return frame_of(encode(messages.Executed(request.entry[:20] + flags)))
            case "ENTRY":
                return frame_of(encode(messages.EntryReply(encode_record(entry_of(given)))))
            case "STALE_EPOCH":
                detail = messages.StaleDetail(row_of(given))
                return frame_of(error_frame(1, messages.STALE_EPOCH, "another list", detail))
            case "OWNERS":
                return frame_of(encode(messages.Owners(row_of(given), ())))
        return frame_of(error_frame(1, CODES[given], "refused", DETAILS.get(given)))

    def owed(self) -> list[int]:
        """Who is owed a COMMIT."""
        self.source.owe_now()
        return sorted(node for node, frames in self.source.owed.items() if frames[2] == COMMIT)


def outcomes_of(result: Any, operation: str) -> Iterator[str]:
    """What the scenario may call this result."""
    match result:
        case OutcomeUnknown():
            yield "unknown"
        case OperationFailed():
            yield "did not happen"
        case GTStoreError():
            yield "failed"
        case None:
            yield "no value"
        case _:
            yield "value" if operation == "get" else "done"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["description"][:60])
def test_scenario(scenario: dict[str, Any]) -> None:
    play = Play(scenario)
    place = (play.routes, play.source, KEY)
    is_get = scenario["operation"] == "get"
    result = play.run(operations.get(*place) if is_get else operations.put(*place, VALUE))
    assert next(play.rounds, None) is None, "the call ended too early"
    assert scenario["outcome"] in outcomes_of(result, scenario["operation"]), result
    assert play.owed() == scenario["commit"]
    if "value" in scenario:
        assert result.value == bytes.fromhex(scenario["value"])
