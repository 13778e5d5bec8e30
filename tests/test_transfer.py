"""Many values into a store: batches, lines that are none, values that cannot be put; progress."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from contextlib import redirect_stderr
from typing import Any

import pytest

from gtstore import progress, transfer
from gtstore.errors import BatchFailed, GTStoreError, InvalidInput, OperationFailed, OutcomeUnknown
from gtstore.progress import shown_count, shown_progress, shown_size
from gtstore.results import ScannedEntry, Version


def entry(key: bytes, value: bytes = b"") -> ScannedEntry:
    return ScannedEntry(key, value, Version(0, 0), None)


class Store:
    """Takes what it is given, except some keys."""

    def __init__(self, **errors: GTStoreError) -> None:
        self.batches: list[list[ScannedEntry]] = []
        self.errors = {key.encode(): error for key, error in errors.items()}

    def put_entries(self, entries: Iterable[ScannedEntry]) -> None:
        self.batches.append(list(entries))
        keys = [entry.key for entry in self.batches[-1]]
        errors = {key: self.errors[key] for key in keys if key in self.errors}
        if errors:
            raise BatchFailed({key: None for key in keys if key not in errors}, errors)  # type: ignore[arg-type]


def store_all(store: Store, entries: Iterable[ScannedEntry]) -> int:
    noted: list[ScannedEntry] = []
    count = transfer.store_all(store, entries, noted.append)  # type: ignore[arg-type]
    assert len(noted) == count
    return count


def test_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded in keys and in bytes; of two with the same key the later is put later."""
    monkeypatch.setattr(transfer, "_BATCH_KEYS", 3)
    monkeypatch.setattr(transfer, "_BATCH_SIZE", 10)
    store = Store()
    entries = [entry(b"%d" % i) for i in range(7)]
    entries += [entry(b"long", bytes(20)), entry(b"a"), entry(b"b"), entry(b"a", b"later")]
    assert store_all(store, entries) == 11
    assert [len(batch) for batch in store.batches] == [3, 3, 2, 2, 1]
    assert [one for batch in store.batches for one in batch] == entries
    assert store_all(Store(), []) == 0


def test_values_that_cannot_be_put() -> None:
    """How many were stored is said, and whether some may have been."""
    with pytest.raises(OperationFailed, match="values stored so far: 1"):
        store_all(Store(b=OperationFailed("no")), [entry(b"a"), entry(b"b")])
    errors = {"b": OperationFailed("no"), "c": OutcomeUnknown("maybe", acks=1, required=3)}
    with pytest.raises(OutcomeUnknown, match="2 of 3 keys failed") as caught:
        store_all(Store(**errors), [entry(b"a"), entry(b"b"), entry(b"c")])
    assert (caught.value.acks, caught.value.required) == (1, 3)


def test_lines() -> None:
    """Empty ones count, and are passed over; what came before a wrong one is stored."""
    text = b'{"key": "a", "value": "1"}\n\n  \r\n{"key": "b", "value": "2"}'
    assert [one.key for one in transfer.lines_of(io.BytesIO(text), "file")] == [b"a", b"b"]
    store = Store()
    wrong = io.BytesIO(text + b"\nwrong\n" + text)
    with pytest.raises(InvalidInput, match=r"file, line 5: it is no JSON.* before it: 2"):
        store_all(store, transfer.lines_of(wrong, "file"))
    assert [[one.key for one in batch] for batch in store.batches] == [[b"a", b"b"]]


def test_lines_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is too long is not read to its end; nor is a file that fails."""
    monkeypatch.setattr(transfer, "LINE_SIZE_MAX", 10)
    with pytest.raises(InvalidInput, match="line 1: it is longer"):
        list(transfer.lines_of(io.BytesIO(b" " * 50), "file"))

    class Broken(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:  # noqa: ARG002
            raise OSError(5, "Input/output error")

    with pytest.raises(InvalidInput, match="file cannot be read: Input/output error"):
        list(transfer.lines_of(Broken(), "file"))


# --- progress ------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """One for which nothing has to be waited: it is always time for the next line."""
    monkeypatch.setattr(progress, "_PAUSE_S", 0.0)
    monkeypatch.setattr(progress, "_BAR_PAUSE_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def note_many(what: str, total: int | None, **options: Any) -> None:
    with shown_progress(what, total, **options) as note:
        for _ in range(1000):
            note(entry(b"k", bytes(99)))


def test_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    note_many("working", 10)
    assert capsys.readouterr() == ("", "")


def test_nothing_where_it_is_not_wanted(terminal: Terminal) -> None:
    """Standard output is the same terminal."""
    with redirect_stderr(terminal):
        note_many("working", 10, is_wanted=False)
    assert terminal.getvalue() == ""


def test_lines_without_rich(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Now and then, with the rate."""
    monkeypatch.setitem(sys.modules, "rich.console", None)  # to import it is an ImportError
    with redirect_stderr(terminal):
        note_many("working", 10)
    lines = terminal.getvalue().splitlines()
    assert len(lines) == 1000 // 64
    assert lines[0].startswith("working: 64 values, 6.4 kB, ")
    assert " a second, " in lines[0]


@pytest.mark.parametrize("total", [None, 0, 500, 2000])
def test_a_bar_with_rich(terminal: Terminal, total: int | None) -> None:
    """A guess of the total that is too low does not matter."""
    with redirect_stderr(terminal):
        note_many("working", total)
    assert "working" in terminal.getvalue()
    assert "1,000 values, 100.0 kB" in terminal.getvalue()


@pytest.mark.parametrize("has_rich", [True, False])
def test_what_is_counted_elsewhere(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, has_rich: bool
) -> None:
    """The number that is told is the one that is shown, with what it counts."""
    if not has_rich:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    with redirect_stderr(terminal), shown_count("measuring", 900, "operations") as note:
        note(400)
        note(800)
    assert "measuring" in terminal.getvalue()
    assert "800 operations, " in terminal.getvalue()
    assert " a second" in terminal.getvalue()


def test_no_count_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_count("measuring", 900, "operations") as note:
        note(400)
    assert capsys.readouterr() == ("", "")


def test_sizes() -> None:
    assert [shown_size(size) for size in (0, 999, 1500, 2_500_000, 7e12)] == [
        "0 bytes", "999 bytes", "1.5 kB", "2.5 MB", "7,000.0 GB",
    ]  # fmt: skip
