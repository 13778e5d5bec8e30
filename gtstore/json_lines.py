"""Keys and values as lines of JSON: what ``gtclient export`` writes, ``import`` reads, and backups
are made of.

A line is an object with ``key`` and ``value``, both text, or ``key_base64`` and ``value_base64``
where they are not UTF-8; and ``expires_at``, in seconds since 1970, where the value expires.
"""

from __future__ import annotations

import binascii
import json
from base64 import b64decode, b64encode
from typing import Any, Final

from .errors import InvalidInput
from .results import ScannedEntry, Version
from .wire.messages import KEY_SIZE_MAX, KEY_SIZE_MIN, VALUE_SIZE_MAX

LINE_SIZE_MAX: Final = 6 * (VALUE_SIZE_MAX + KEY_SIZE_MAX) + 1000
"""In bytes: each byte of a value may take six characters, as a control character does."""
_FIELDS: Final = frozenset(("key", "key_base64", "value", "value_base64", "expires_at"))
_NO_VERSION: Final = Version(0, 0)
_TIME_MAX_US: Final = (1 << 64) - 1


def field(name: str, data: bytes) -> dict[str, str]:
    """A JSON object's field for bytes: text, or base64 where they are not UTF-8."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": b64encode(data).decode()}


def object_of(entry: ScannedEntry) -> dict[str, Any]:
    """The object for what a scan has found. Its version is not part of it: a value that is stored
    again gets a new one."""
    expiry = {} if entry.expiry_us is None else {"expires_at": entry.expiry_us / 1e6}
    return field("key", entry.key) | field("value", entry.value) | expiry


def line_of(entry: ScannedEntry) -> bytes:
    """The same as a line, with its newline."""
    return json.dumps(object_of(entry)).encode() + b"\n"


def entry_of(line: bytes) -> ScannedEntry:
    """What a line stands for. Raises InvalidInput, which says what is wrong with it."""
    try:
        form = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"it is no JSON: {error}") from error
    if not isinstance(form, dict):
        raise InvalidInput("it is no object with key and value")
    if unknown := form.keys() - _FIELDS:
        raise InvalidInput(f"there is no field {min(unknown)!r}; there are {sorted(_FIELDS)}")
    key, value = _bytes(form, "key"), _bytes(form, "value")
    if not KEY_SIZE_MIN <= len(key) <= KEY_SIZE_MAX:
        raise InvalidInput(f"a key has 1 to {KEY_SIZE_MAX} bytes, not {len(key)}")
    if len(value) > VALUE_SIZE_MAX:
        raise InvalidInput(f"a value has at most {VALUE_SIZE_MAX} bytes, not {len(value)}")
    return ScannedEntry(key, value, _NO_VERSION, _expiry_us(form.get("expires_at")))


def _bytes(form: dict[str, Any], name: str) -> bytes:
    coded = f"{name}_base64"
    if (name in form) == (coded in form):
        raise InvalidInput(f"it needs either {name} or {coded}")
    text = form[name] if name in form else form[coded]
    if not isinstance(text, str):
        raise InvalidInput(f"{name} is a text, not {text!r}")
    try:
        return text.encode() if name in form else b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:  # a lone surrogate is a ValueError
        raise InvalidInput(f"{name if name in form else coded} is none: {error}") from error


def _expiry_us(seconds: Any) -> int | None:
    if seconds is None:
        return None
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 <= seconds <= _TIME_MAX_US / 1e6:
        raise InvalidInput(f"expires_at is seconds since 1970, not {seconds!r}")
    return min(int(seconds * 1e6 + 0.5), _TIME_MAX_US)
