"""What gtclient top and the tables make of the answers; no cluster here."""

from __future__ import annotations

import io
from typing import Any

import pytest

from gtstore import tables
from gtstore.results import ClusterStatus, Location, NodeStatus
from gtstore.text_table import aligned
from gtstore.top import Answer, Sample, as_json, as_view, rates
from gtstore.wire.messages import Statistics


def node(number: int, state: str = "alive") -> NodeStatus:
    return NodeStatus(
        id=number,
        address=f"127.0.0.1:{10000 + number}",
        pid=4000 + number,
        incarnation=1,
        state=state,
        entries=10,
        bytes=1000,
        full="disk" if state == "full" else None,
        partitions=64,
        primaries=32,
        syncing=0,
    )


def status(*states: str, begun_anew: int = 0) -> ClusterStatus:
    return ClusterStatus(
        cluster="5eed0001",
        epoch=7,
        replicas=2,
        hash="additive",
        nodes=[node(number, state) for number, state in enumerate(states, start=1)],
        under_replicated=[],
        begun_anew=list(range(begun_anew)),
        troubles=[],
    )


def sample(at: float, *counts: int | None, incarnation: int = 1) -> Sample:
    """Nodes with so many gets; None: it did not answer."""
    answers = {
        number: Answer(Statistics(incarnation, count, 2 * count, 0), number / 1000)
        for number, count in enumerate(counts, start=1)
        if count is not None
    }
    states = ("dead" if count is None else "alive" for count in counts)
    return Sample(at, status(*states), answers)


def test_rates() -> None:
    """The difference of two answers; unknown where a process is another one, or does not answer."""
    before, now = sample(10, 100, 100, None), sample(12, 300, None, 50)
    assert rates(before, now, 1) == {"gets": 100, "writes": 200, "executes": 0}
    unknown = dict.fromkeys(("gets", "writes", "executes"))
    assert rates(before, now, 2) == rates(before, now, 3) == rates(None, now, 1) == unknown
    assert rates(before, sample(12, 5, incarnation=2), 1) == unknown


def test_figures() -> None:
    """Totals, and each node as in status."""
    figures = as_json(sample(10, 100, 100), sample(12, 300, None))
    assert (figures["alive"], figures["requests"], figures["epoch"]) == (1, 300, 7)
    first, second = figures["nodes"]
    assert first == {**node(1), "gets": 100, "writes": 200, "executes": 0, "rtt_ms": 1.0}
    assert (second["state"], second["gets"], second["rtt_ms"]) == ("dead", None, None)
    assert as_json(None, sample(12, 300))["requests"] is None


def test_view() -> None:
    figures = as_json(sample(10, 100, 100), sample(12, 30_100, None))
    text = list(tables.plain(as_view(figures)))
    assert text[0] == "1 of 2 nodes alive, epoch 7, 45,000 requests/s, rtt 1.00 ms, longest 1.00 ms"
    assert text[3].split()[:6] == ["1", "alive", "127.0.0.1:10001", "15,000", "30,000", "0"]
    assert text[4].split()[:7] == ["2", "dead", "127.0.0.1:10002", "-", "-", "-", "-"]
    nothing = as_json(None, sample(12, None))
    assert next(tables.plain(as_view(nothing))).endswith("- requests/s, rtt -")


def test_status_as_text() -> None:
    """As programs have always read it."""
    view = tables.of_status(status("alive", "full", begun_anew=3))
    lines = list(tables.plain(view))
    assert lines.pop(2) == "node 2 refuses writes: its disk is full"
    assert lines[0] == "epoch 7, 2 replicas, hash additive, under-replicated partitions: 0"
    assert lines[1] == "3 partitions have lost all their copies, and began anew, empty"
    assert lines[2:] == list(aligned(view.titles, view.rows))
    assert lines[2].split() == [
        "node", "state", "address", "pid", "incarnation", "entries", "bytes", "partitions",
        "primaries", "syncing",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [1, 40, 60, 80, 100, 200])
def test_narrow_terminals(width: int) -> None:
    """What tells a node from another one is always there; the rest as far as there is room."""
    view = tables.of_status(status("alive", "suspect"))
    fitted = tables.fitted(view, width)
    assert list(fitted.titles[:3]) == ["node", "state", "address"]
    widest = max(len(line) for line in aligned(fitted.titles, fitted.rows))
    assert widest <= width or set(fitted.titles).isdisjoint(view.optional)
    if width == 200:
        assert fitted == view


def test_long_addresses() -> None:
    """They are never cut: numbers make room for them."""
    address = "[2001:db8:1111:2222:3333:4444:5555:6666]:10001"
    found = sample(1, 0)
    found.status["nodes"][0]["address"] = address
    for view in (tables.of_status(found.status), as_view(as_json(None, found))):
        fitted = tables.fitted(view, 60)
        assert list(fitted.titles[:3]) == ["node", "state", "address"]
        assert max(len(line) for line in aligned(fitted.titles, fitted.rows)) <= 60
        assert address in printed(view, width=60, color_system=None)


def printed(view: tables.View, width: int = 100, **options: Any) -> str:
    console = pytest.importorskip("rich.console")
    out = io.StringIO()
    shown = console.Console(
        file=out, width=width, force_terminal=True, highlight=False, markup=False, **options
    )
    shown.print(tables.drawn(view, shown))
    return out.getvalue()


def test_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """States have colours; with NO_COLOR nothing has."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    view = tables.of_status(status("alive", "dead"))
    text = printed(view, color_system="standard")
    assert "\x1b[32malive" in text
    assert "\x1b[31mdead" in text
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(view, color_system="standard")
    assert "alive" in text
    assert "\x1b[3" not in text


def test_markup_is_text() -> None:
    """A key is shown as it is, whatever it looks like."""
    view = tables.of_location("[red]key[/red]", Location(3, (2, 1), (1,)))
    text = printed(view, color_system=None)
    assert "key [red]key[/red]: partition 3" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["2", "primary", "in", "sync"] in rows
    assert ["1", "backup", "syncing"] in rows
