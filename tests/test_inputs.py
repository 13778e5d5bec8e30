"""What both clients take, and what they refuse before anything is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gtstore import inputs
from gtstore.errors import BatchFailed, InvalidInput, Unavailable
from gtstore.results import ScannedEntry, Version
from gtstore.wire import messages
from gtstore.wire.messages import EXPIRES, KEY_SIZE_MAX, VALUE_SIZE_MAX

VERSION = Version(1, 2)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("k\xe4", b"k\xc3\xa4"),
        (b"\xff", b"\xff"),
        (bytearray(b"a"), b"a"),
        (memoryview(b"b"), b"b"),
    ],
)
def test_keys_and_values(given: Any, wanted: bytes) -> None:
    assert inputs.as_key(given) == inputs.as_value(given) == inputs.as_prefix(given) == wanted


def test_what_is_empty() -> None:
    assert inputs.as_value("") == inputs.as_value(b"") == b""
    assert inputs.as_prefix("") == inputs.as_prefix(b"") == b""


class Text(str):
    """No str itself, but as good."""


def test_subclasses() -> None:
    assert inputs.as_key(Text("a")) == inputs.as_value(Text("a")) == b"a"


@pytest.mark.parametrize(
    "call",
    [
        lambda: inputs.as_key(""),
        lambda: inputs.as_key(b"k" * (KEY_SIZE_MAX + 1)),
        lambda: inputs.as_key("\ud800"),
        lambda: inputs.as_key(Text("\ud800")),
        lambda: inputs.as_key(1),  # type: ignore[arg-type]
        lambda: inputs.as_prefix(1),
        lambda: inputs.as_value("\ud800"),
        lambda: inputs.as_value(None),  # type: ignore[arg-type]
        lambda: inputs.as_value(bytes(VALUE_SIZE_MAX + 1)),
        lambda: inputs.as_timeout(0),
        lambda: inputs.as_timeout("1"),
        lambda: inputs.as_timeout(float("nan")),
        lambda: inputs.as_ttl_us(0),
        lambda: inputs.as_ttl_us(float("inf")),
        lambda: inputs.as_number(1.5),
        lambda: inputs.as_number(1 << 63),
        lambda: inputs.as_comparison("x", inputs.UNSET, None),
        lambda: inputs.as_comparison("x", "y", VERSION),
        lambda: inputs.as_comparison("x", bytes(VALUE_SIZE_MAX), None),
        lambda: inputs.as_comparison("x", inputs.UNSET, "1"),  # type: ignore[arg-type]
        lambda: inputs.as_items([("k", "v")]),  # type: ignore[arg-type]
        lambda: inputs.as_items({"a": "1", b"a": "2"}),
        lambda: inputs.as_keys("abc"),
        lambda: inputs.as_keys(3),  # type: ignore[arg-type]
        lambda: inputs.as_keys([3]),
        lambda: inputs.as_keys(["a", b"a"]),
        lambda: inputs.as_entries([ScannedEntry(b"k", b"", VERSION, -1)]),
    ],
)
def test_what_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(InvalidInput):
        call()


def test_numbers_and_times() -> None:
    assert inputs.as_timeout(3) == 3.0
    assert inputs.as_ttl_us(0.0000001) == 1
    assert inputs.as_ttl_us(1.5) == 1_500_000
    assert inputs.as_number(-7) == b"-7"


def test_comparisons() -> None:
    assert inputs.as_comparison("n", None, None) == (messages.PUT_IF_ABSENT, b"n", b"")
    assert inputs.as_comparison("n", "o", None) == (messages.PUT_IF_VALUE, b"n", b"o")
    version = (1).to_bytes(8, "big") + (2).to_bytes(8, "big")
    found = inputs.as_comparison("n", inputs.UNSET, VERSION)
    assert found == (messages.PUT_IF_VERSION, b"n", version)


def test_many() -> None:
    assert inputs.as_items({"a": "1", b"b": b"2"}) == [(b"a", b"1"), (b"b", b"2")]
    assert inputs.with_expiry([(b"a", b"1")], b"") == [(b"a", b"1", 0)]
    assert inputs.with_expiry([(b"a", b"1")], b"x") == [(b"a", b"x1", EXPIRES)]
    assert inputs.as_keys(["a", b"b"]) == (["a", b"b"], [b"a", b"b"])
    assert inputs.as_keys([Text("a")]) == (["a"], [b"a"])
    entries = [ScannedEntry(b"a", b"1", VERSION, None), ScannedEntry(b"b", b"2", VERSION, 3)]
    assert inputs.as_entries(entries) == [(b"a", b"1", 0), (b"b", bytes(7) + b"\x032", EXPIRES)]
    # By a clock that is ahead of cluster time or behind; there is nothing before 1970.
    for lead_us, expiry in ((1, bytes(7) + b"\x02"), (-1, bytes(7) + b"\x04"), (9, bytes(8))):
        assert inputs.as_entries(entries, lead_us)[1] == (b"b", expiry + b"2", EXPIRES)
    beyond = ScannedEntry(b"k", b"", VERSION, (1 << 64) - 1)
    assert inputs.as_entries([beyond], -1) == [(b"k", b"\xff" * 8, EXPIRES)]


def test_outcomes_of_a_batch() -> None:
    assert inputs.by_key(["a", "b"], [1, None]) == {"a": 1, "b": None}
    error = Unavailable("none is alive", required=1, alive=0)
    with pytest.raises(BatchFailed) as failed:
        inputs.by_key(["a", "b"], [1, error])
    assert (failed.value.results, failed.value.errors) == ({"a": 1}, {"b": error})
