"""Frames as people type and paste them, for ``gtclient frame``.

``message_of`` makes a message from words: its name, and its fields in their order, or by name::

    ping
    key_nodes key1
    get epoch=0 partition=0 key=key1
    write epoch=5eed0001:1 partition=186 key=key1 entry.time=1 entry.client=2 entry.counter=3
          entry.flags=0 entry.value=hello

``bytes_of`` takes hexadecimal digits as they are written, or as xxd and hexdump print them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from .errors import InvalidInput
from .placement import epoch_of
from .wire import messages
from .wire.explain import DETAIL_TYPE, ENTRY_TYPE, NAMES
from .wire.fields import Array, Field, IfFlag, Integer, Record, fields_of
from .wire.json_form import from_json

BY_NAME: Final = {cls.name: cls for cls in messages.MESSAGES.values()}

_NAMED: Final = re.compile(r"([a-z_]+(?:\.[a-z_]+)*)=(.*)", re.DOTALL)
_EPOCH: Final = re.compile(r"([0-9a-fA-F]{1,8}):([0-9]{1,10})")


def message_of(words: Sequence[str]) -> messages.Message:
    """The message that these words stand for. Raises InvalidInput."""
    cls = BY_NAME.get(words[0].upper().replace("-", "_"))
    if cls is None:
        raise InvalidInput(
            f"there is no message {words[0]!r}; there are {' '.join(sorted(BY_NAME)).lower()}"
        )
    form: dict[str, Any] = {}
    fields = list(fields_of(cls))
    for i, word in enumerate(words[1:]):
        match = _NAMED.fullmatch(word)
        if match:
            _put(cls, form, match[1], match[2])
        elif i < len(fields):
            form[fields[i].name] = _form_of(cls, fields[i], word, fields[i].name)
        else:
            raise InvalidInput(f"{cls.name} has {len(fields)} fields: {word!r} is one too many")
    message: messages.Message = from_json(cls, form)
    return message


def _put(cls: type[Any], form: dict[str, Any], path: str, text: str) -> None:
    """Enter a value under a name such as ``entry.time``."""
    name, _, rest = path.partition(".")
    fields = {field.name: field for field in fields_of(cls)}
    if name not in fields:
        raise InvalidInput(f"{cls.__name__} has no field {name}; it has {', '.join(fields)}")
    inner = _record_of(fields[name])
    if not rest:
        form[name] = _form_of(cls, fields[name], text, name)
    elif inner is None:
        raise InvalidInput(f"{name} has no fields of its own")
    else:
        _put(inner, form.setdefault(name, {}), rest, text)


def _record_of(field: Field) -> type[Any] | None:
    if field.wire_type is ENTRY_TYPE:
        return messages.Entry
    return field.wire_type.cls if isinstance(field.wire_type, Record) else None


def _form_of(cls: type[Any], field: Field, text: str, name: str) -> Any:
    """A field's value, in the form of json_form, from what was typed."""
    wire_type = field.wire_type
    if isinstance(wire_type, Array) or _record_of(field) or wire_type is DETAIL_TYPE:
        try:
            return json.loads(text)
        except ValueError as error:
            raise InvalidInput(f"{name} is JSON, in the form of tests/vectors: {error}") from error
    if isinstance(wire_type, Integer | IfFlag):
        return _number_of(cls, field, text, name)
    if wire_type.name == "text":
        return text
    if text.startswith("0x"):
        return text[2:]
    # As os.fsencode does it: what was no UTF-8 on the command line goes back to its bytes.
    return text.encode("utf-8", "surrogateescape").hex()


def _number_of(cls: type[Any], field: Field, text: str, name: str) -> int:
    for value, word in NAMES.get((cls, field.name), {}).items():
        if text == word:
            return value
    epoch = _EPOCH.fullmatch(text)
    if epoch and field.wire_type.name == "epoch":
        return epoch_of(int(epoch[1], 16), int(epoch[2]))
    try:
        return int(text, 0)
    except ValueError as error:
        raise InvalidInput(f"{name} is a whole number, not {text!r}") from error


# --- hexadecimal digits --------------------------------------------------------------------------

_DUMP_LINES: Final = (
    # xxd and xxd -g1: an offset with a colon, groups of digits, two blanks, the characters.
    re.compile(r"[0-9a-f]{8,}: ((?:[0-9a-f]{2,8} ){1,16}) .*", re.DOTALL),
    # hexdump -C: an offset, two groups of eight, the characters between bars.
    re.compile(r"[0-9a-f]{8}  ((?:[0-9a-f]{2} {1,2}){1,16}) *\|.*\|"),
)
_DUMP_END: Final = re.compile(r"[0-9a-f]{8}")  # hexdump's last line is an offset


def bytes_of(given: bytes) -> bytes:
    """The bytes that hexadecimal digits stand for: with blanks, line ends, colons or 0x between
    them, or as xxd or hexdump -C print them. What begins with the magic byte, as no digit does, is
    taken for frames as they are. Raises InvalidInput."""
    if given.startswith(bytes((messages.MAGIC,))):
        return given
    text = given.decode("ascii", "replace")
    lines = [line for line in text.splitlines() if line.strip()]
    dumped = _dumped(lines)
    if dumped is None:
        dumped = re.sub(r"0x|[\s:,]", "", "\n".join(lines))
    try:
        return bytes.fromhex(dumped)
    except ValueError as error:
        raise InvalidInput(f"these are no hexadecimal digits: {error}") from error


def _dumped(lines: list[str]) -> str | None:
    """The digits in the lines of a dump; None if they are no dump."""
    for form in _DUMP_LINES:
        body = [line for line in lines if not _DUMP_END.fullmatch(line)]
        matches = [form.fullmatch(line) for line in body]
        if matches and None not in matches:
            return "".join(match[1] for match in matches if match)
    return None
