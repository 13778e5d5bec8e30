"""Messages as plain values that JSON can carry: numbers, texts, lists and objects.

The form of tests/vectors/messages.json: bytes are hexadecimal digits, records are objects, arrays
are lists; an entry is taken apart into its fields, and so is the detail of an ERROR whose code has
one. ``gtclient frame`` reads and prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidInput
from . import messages
from .codec import decode_entry, encode_record, error_detail
from .explain import DETAIL_TYPE, ENTRY_TYPE
from .fields import Array, Field, IfFlag, Integer, Record, fields_of


def to_json(value: Any) -> Any:
    """A message or record, or a field's value, in that form."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    if not hasattr(value, "__dataclass_fields__"):
        return value
    form = {}
    for field in fields_of(type(value)):
        item = getattr(value, field.name)
        if field.wire_type is ENTRY_TYPE:
            item = decode_entry(item)
        elif field.wire_type is DETAIL_TYPE and isinstance(value, messages.Error):
            item = error_detail(value)
        form[field.name] = to_json(item)
    return form


def from_json(cls: type[Any], form: Any, prefix: str = "") -> Any:
    """The message or record of this class that the form stands for.

    Raises InvalidInput, which names the field. Whether the values are allowed, encoding tells.
    """
    if not isinstance(form, Mapping):
        raise InvalidInput(f"{prefix.rstrip('.') or cls.__name__} is an object with fields")
    fields = {field.name: field for field in fields_of(cls)}
    for name in form:
        if name not in fields:
            raise InvalidInput(f"there is no field {prefix}{name}; there are {', '.join(fields)}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in form and isinstance(field.wire_type, IfFlag):
            values[name] = None
        elif name not in form:
            raise InvalidInput(f"the field {prefix}{name} is missing")
        else:
            values[name] = _value(cls, field, form[name], values, prefix + name)
    return cls(**values)


def _value(cls: type[Any], field: Field, form: Any, values: Mapping[str, Any], name: str) -> Any:
    wire_type = field.wire_type
    if wire_type is DETAIL_TYPE and cls is messages.Error:
        row = messages.ERRORS.get(values["code"])
        if form is None or row is None or row.detail is None:
            return b""
        return encode_record(from_json(row.detail, form, f"{name}."))
    if wire_type is ENTRY_TYPE:
        return encode_record(from_json(messages.Entry, form, f"{name}."))
    if isinstance(wire_type, Record):
        return from_json(wire_type.cls, form, f"{name}.")
    if isinstance(wire_type, Array):
        if not isinstance(form, list):
            raise InvalidInput(f"{name} is a list")
        item = wire_type.item.cls
        return tuple(from_json(item, one, f"{name}[{i}].") for i, one in enumerate(form))
    if wire_type.name == "text":
        if not isinstance(form, str):
            raise InvalidInput(f"{name} is a text")
        return form
    if isinstance(wire_type, Integer | IfFlag):
        is_left_out = form is None and isinstance(wire_type, IfFlag)
        if not is_left_out and (not isinstance(form, int) or isinstance(form, bool)):
            raise InvalidInput(f"{name} is a whole number, not {form!r}")
        return form
    try:
        return bytes.fromhex(form)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} is bytes, as hexadecimal digits, not {form!r}") from error
