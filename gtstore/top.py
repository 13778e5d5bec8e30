"""``gtclient top``: what the nodes are doing, every second.

How much each node does is the difference of two answers to GET_STATISTICS. The latency that is
shown is the round trip of that question to the node: what a client's smallest request would take
now, not what clients measure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from .client import Client
from .connection import Connection, Deadline, parse_address
from .errors import GTStoreError, NetworkError
from .results import ClusterStatus, NodeStatus
from .tables import View
from .wire import messages

NODE_TIMEOUT_S: Final = 1.0
"""How long a node may take to answer; one that does not is shown without figures."""
_FIRST_S: Final = 0.5
"""The first figures come after that, or there would be no rates in them."""
_COUNTS: Final = ("gets", "writes", "executes")
_TITLES: Final = (
    "node", "state", "address", "gets/s", "writes/s", "changes/s", "rtt ms", "entries", "bytes",
    "primaries", "syncing",
)  # fmt: skip


class Answer(NamedTuple):
    """A node's counts, and how long it took to tell them."""

    statistics: messages.Statistics
    rtt_s: float


class Sample(NamedTuple):
    """The cluster at one moment, on the monotonic clock."""

    at: float
    status: ClusterStatus
    answers: dict[int, Answer]


def take(store: Client) -> Sample:
    """Ask the manager and all nodes. Raises GTStoreError if the manager does not answer."""
    status = store.status()
    nodes = [node for node in status["nodes"] if node["state"] != "dead"]
    at = time.monotonic()
    # One after the other: side by side, each round trip would have the others' in it.
    answers = {node["id"]: _ask(node) for node in nodes}
    return Sample(at, status, {node: answer for node, answer in answers.items() if answer})


def _ask(node: NodeStatus) -> Answer | None:
    deadline = Deadline(NODE_TIMEOUT_S)
    try:
        connection = Connection.open(
            f"node {node['id']}", *parse_address(node["address"]), deadline
        )
        try:
            began_at = time.perf_counter()
            reply = connection.call(messages.GetStatistics(), deadline)
            rtt_s = time.perf_counter() - began_at
        finally:
            connection.close()
    except NetworkError:
        return None
    return Answer(reply, rtt_s) if isinstance(reply, messages.Statistics) else None


def rates(before: Sample | None, now: Sample, node: int) -> dict[str, int | None]:
    """A node's requests a second between two samples, by their kinds; None where nobody knows: at
    first, and in a process that was started in between."""
    new = now.answers.get(node)
    old = before.answers.get(node) if before else None
    if before is None or new is None or old is None:
        return dict.fromkeys(_COUNTS)
    if new.statistics.incarnation != old.statistics.incarnation:
        return dict.fromkeys(_COUNTS)
    seconds = max(now.at - before.at, 1e-3)
    return {
        name: round((getattr(new.statistics, name) - getattr(old.statistics, name)) / seconds)
        for name in _COUNTS
    }


def as_json(before: Sample | None, now: Sample) -> dict[str, Any]:
    """One object: the cluster's totals, and each node as in ``status`` with what it does."""
    nodes: list[dict[str, Any]] = []
    for node in now.status["nodes"]:
        answer = now.answers.get(node["id"])
        rtt_ms = round(answer.rtt_s * 1000, 3) if answer else None
        nodes.append({**node, **rates(before, now, node["id"]), "rtt_ms": rtt_ms})
    known = [node[name] for node in nodes for name in _COUNTS if node[name] is not None]
    return {
        "epoch": now.status["epoch"],
        "replicas": now.status["replicas"],
        "alive": sum(node["state"] == "alive" for node in nodes),
        "requests": sum(known) if known else None,
        "under_replicated": len(now.status["under_replicated"]),
        "syncing": sum(node["syncing"] for node in nodes),
        "nodes": nodes,
    }


def as_view(figures: dict[str, Any]) -> View:
    """The same for people."""
    nodes = figures["nodes"]
    rtts = sorted(node["rtt_ms"] for node in nodes if node["rtt_ms"] is not None)
    rtt = f"{rtts[len(rtts) // 2]:.2f} ms, longest {rtts[-1]:.2f} ms" if rtts else "-"
    lines = [
        f"{figures['alive']} of {len(nodes)} nodes alive, epoch {figures['epoch']}, "
        f"{_shown(figures['requests'])} requests/s, rtt {rtt}",
        f"partitions: {figures['under_replicated']} lack copies; copies being made: "
        f"{figures['syncing']}",
    ]
    rows = [
        (
            node["id"],
            node["state"],
            node["address"],
            *(_shown(node[name]) for name in _COUNTS),
            "-" if node["rtt_ms"] is None else f"{node['rtt_ms']:.2f}",
            *(node[name] for name in ("entries", "bytes", "primaries", "syncing")),
        )
        for node in nodes
    ]
    optional = (
        "bytes", "primaries", "entries", "rtt ms", "syncing", "changes/s", "writes/s", "gets/s",
    )  # fmt: skip
    return View(lines, _TITLES, rows, ("gets/s", "writes/s", "changes/s", "rtt ms"), optional)


def _shown(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def watch(
    connect: Callable[[], Client], interval_s: float, count: int | None
) -> Iterator[dict[str, Any]]:
    """Yield the figures once in each interval, ``count`` times or for ever; while the manager does
    not answer, an object with the ``error`` and for how long it has been so.

    Raises GTStoreError if there is no manager in the beginning.
    """
    failing_since = 0.0
    done = 0
    with connect() as store:
        before: Sample | None = take(store)
        time.sleep(min(interval_s, _FIRST_S))
        while True:
            began_at = time.monotonic()
            try:
                sample = take(store)
            except GTStoreError as error:
                failing_since = failing_since or began_at
                yield {"error": str(error), "since_s": round(time.monotonic() - failing_since, 1)}
            else:
                failing_since = 0.0
                yield as_json(before, sample)
                before = sample
            done += 1
            if done == count:
                return
            time.sleep(max(began_at + interval_s - time.monotonic(), 0))
