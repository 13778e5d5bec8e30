"""Keys and values as lines of JSON: there and back, and what is no such line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtstore.errors import InvalidInput
from gtstore.json_lines import LINE_SIZE_MAX, entry_of, line_of
from gtstore.results import ScannedEntry, Version
from gtstore.wire.messages import KEY_SIZE_MAX, VALUE_SIZE_MAX

NO_VERSION = Version(0, 0)


@given(
    st.binary(min_size=1, max_size=20) | st.text(min_size=1, max_size=5).map(str.encode),
    st.binary(max_size=20) | st.text(max_size=5).map(str.encode),
    st.none() | st.integers(0, 4_000_000_000_000_000),
)
def test_round_trip(key: bytes, value: bytes, expiry_us: int | None) -> None:
    """One line each, whatever the bytes; an expiry to the microsecond."""
    entry = ScannedEntry(key, value, NO_VERSION, expiry_us)
    line = line_of(entry)
    assert entry_of(line) == entry
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")


def test_the_form() -> None:
    """The names that gtclient prints everywhere."""
    plain = ScannedEntry(b"key1", b"value1", Version(1, 2), None)
    assert json.loads(line_of(plain)) == {"key": "key1", "value": "value1"}
    other = ScannedEntry(b"\xff", b"\x80", Version(1, 2), 1_700_000_000_500_000)
    assert json.loads(line_of(other)) == {
        "key_base64": "/w==",
        "value_base64": "gA==",
        "expires_at": 1_700_000_000.5,
    }


def test_the_longest_line() -> None:
    """Six characters a byte."""
    longest = ScannedEntry(b"\x01" * KEY_SIZE_MAX, b"\x01" * VALUE_SIZE_MAX, NO_VERSION, 1 << 62)
    line = line_of(longest)
    assert len(line) < LINE_SIZE_MAX
    assert entry_of(line).value == longest.value


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"", "no JSON"),
        (b"key1 value1", "no JSON"),
        (b'{"key": "a", "value": "b"', "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'["a", "b"]', "no object"),
        (b'{"key": "a"}', "either value or value_base64"),
        (b'{"value": "a"}', "either key or key_base64"),
        (b'{"key": "a", "key_base64": "YQ==", "value": "b"}', "either key or key_base64"),
        (b'{"key": 1, "value": "b"}', "key is a text"),
        (b'{"key": "a", "value": null}', "value is a text"),
        (b'{"key": "a", "value_base64": "b"}', "value_base64 is none"),
        (b'{"key": "a", "value_base64": "\xc3\xbc"}', "value_base64 is none"),
        (b'{"key": "\\ud800", "value": "b"}', "key is none"),
        (b'{"key": "", "value": "b"}', "1 to 500 bytes, not 0"),
        (b'{"key": "%s", "value": "b"}' % (b"k" * 501), "1 to 500 bytes, not 501"),
        (b'{"key": "a", "value": "b", "ttl": 5}', "no field 'ttl'"),
        (b'{"key": "a", "value": "b", "expires_at": "5"}', "expires_at is seconds"),
        (b'{"key": "a", "value": "b", "expires_at": true}', "expires_at is seconds"),
        (b'{"key": "a", "value": "b", "expires_at": -1}', "expires_at is seconds"),
        (b'{"key": "a", "value": "b", "expires_at": NaN}', "expires_at is seconds"),
        (b'{"key": "a", "value": "b", "expires_at": 1e300}', "expires_at is seconds"),
    ],
)
def test_lines_that_are_none(line: bytes, said: str) -> None:
    """Each says what is wrong, and raises nothing else."""
    with pytest.raises(InvalidInput, match=said):
        entry_of(line)


def test_a_value_that_is_too_long() -> None:
    line = b'{"key": "a", "value": "' + b"x" * (VALUE_SIZE_MAX + 1) + b'"}'
    with pytest.raises(InvalidInput, match="at most 16777216 bytes, not 16777217"):
        entry_of(line)


def test_the_end_of_time() -> None:
    """The last number that an expiry can be."""
    assert entry_of(b'{"key": "a", "value": "", "expires_at": 0}').expiry_us == 0
    last = entry_of(b'{"key": "a", "value": "", "expires_at": 18446744073709.55}').expiry_us
    assert last is not None
    assert last < 1 << 64
