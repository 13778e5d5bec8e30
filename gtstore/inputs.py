"""What a caller may give to a client: checked, and turned into what goes over the wire.

Both clients (client.py, async_client.py) take the same, and refuse the same: with InvalidInput,
before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from .errors import BatchFailed, GTStoreError, InvalidInput
from .read_modify_write import NUMBER_MAX, NUMBER_MIN
from .results import ScannedEntry, Version
from .wire import messages
from .wire.messages import EXPIRES, KEY_SIZE_MAX, TTL_MAX_S, VALUE_SIZE_MAX

_EXPIRY_MAX_US: Final = (1 << 64) - 1
_TIMEOUT_MAX_S: Final = 1_000_000.0
_CONNECTIONS_MAX: Final = 10_000


class Unset:
    """The type of an argument that was not given, where None means something."""


UNSET: Final = Unset()

Item: TypeAlias = tuple[bytes, bytes, int]
"""A key, and what operations.put takes as value and flags."""


def as_timeout(timeout: Any) -> float:
    if isinstance(timeout, int | float) and 0 < timeout <= _TIMEOUT_MAX_S:
        return float(timeout)
    raise InvalidInput(
        f"timeout={timeout!r}: it is a number of seconds, from 0 to {_TIMEOUT_MAX_S:g}"
    )


def as_max_connections(count: Any) -> int:
    if isinstance(count, int) and 0 < count <= _CONNECTIONS_MAX:
        return count
    raise InvalidInput(
        f"max_connections={count!r}: it is a whole number from 1 to {_CONNECTIONS_MAX:,}"
    )


def no_copy(name: str, connect: str, address: str) -> TypeError:
    """What to raise when a client is pickled or copied."""
    return TypeError(
        f"{name} objects cannot be pickled or copied: their connections belong to this process. "
        f"Make one in each process, as with {connect}({address!r})"
    )


def as_ttl_us(ttl: Any) -> int:
    """A time to live in microseconds."""
    if isinstance(ttl, int | float) and 0 < ttl <= TTL_MAX_S:
        return max(1, round(ttl * 1e6))
    raise InvalidInput(f"ttl={ttl!r}: it is a number of seconds, more than 0, up to {TTL_MAX_S:,}")


def as_key(key: str | bytes) -> bytes:
    if key.__class__ is str:
        try:
            key = key.encode()
        except UnicodeEncodeError:
            key = _encoded(key, "key")
    elif key.__class__ is not bytes:
        key = _as_bytes(key, "key")
    if not 0 < len(key) <= KEY_SIZE_MAX:
        raise InvalidInput(f"a key has 1 to {KEY_SIZE_MAX} bytes, not {len(key)}")
    return key


def as_prefix(prefix: Any) -> bytes:
    if isinstance(prefix, str | bytes) and not prefix:
        return b""
    return as_key(prefix)


def as_value(value: str | bytes) -> bytes:
    if value.__class__ is str:
        value = _encoded(value, "value")
    elif value.__class__ is not bytes:
        value = _as_bytes(value, "value")
    if len(value) > VALUE_SIZE_MAX:
        raise InvalidInput(f"a value has at most {VALUE_SIZE_MAX} bytes, not {len(value)}")
    return value


def as_number(number: Any) -> bytes:
    if not isinstance(number, int) or not NUMBER_MIN <= number <= NUMBER_MAX:
        raise InvalidInput(f"{number!r} is no whole number of 64 bits")
    return b"%d" % number


def as_comparison(
    value: str | bytes, expected: str | bytes | Unset | None, version: Version | None
) -> tuple[int, bytes, bytes]:
    """The arguments of compare_and_put as EXECUTE has them: operation, operand, expected."""
    new = as_value(value)
    if (version is None) == isinstance(expected, Unset):
        raise InvalidInput("compare_and_put takes either expected or version")
    if version is not None:
        return messages.PUT_IF_VERSION, new, _as_version(version)
    if expected is None:
        return messages.PUT_IF_ABSENT, new, b""
    old = as_value(expected)  # type: ignore[arg-type]  # it is not UNSET
    if len(old) + len(new) > VALUE_SIZE_MAX:
        raise InvalidInput(
            f"the expected and the new value have more than {VALUE_SIZE_MAX} bytes "
            "together: compare by version"
        )
    return messages.PUT_IF_VALUE, new, old


def _as_version(version: Version) -> bytes:
    """A version's bytes on the wire."""
    try:
        time, client = version
        return time.to_bytes(8, "big") + client.to_bytes(8, "big")
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise InvalidInput(f"{version!r} is no version: it is (time, client)") from error


# --- many keys -----------------------------------------------------------------------------------


def as_items(items: Mapping[Any, str | bytes]) -> list[tuple[bytes, bytes]]:
    """The keys and values of put_many, in their order."""
    if not isinstance(items, Mapping):
        raise InvalidInput(f"put_many takes a mapping, not {type(items).__name__}")
    checked = [(as_key(key), as_value(value)) for key, value in items.items()]
    if len(set(map(type, items))) > 1 and len(dict(checked)) < len(checked):
        raise InvalidInput("put_many: a key is given twice, as str and as bytes")
    return checked


def with_expiry(items: list[tuple[bytes, bytes]], expiry: bytes) -> list[Item]:
    """The same for operations.put: they expire then (operations.expiry_after), or, if that is
    nothing, never."""
    flags = EXPIRES if expiry else 0
    return [(key, expiry + value, flags) for key, value in items]


def as_keys(keys: Iterable[Any]) -> tuple[list[Any], list[bytes]]:
    """The keys of get_many as they were given, and their bytes."""
    if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
        raise InvalidInput("get_many takes several keys, not one")
    given = list(keys)
    if set(map(type, given)) - {str, bytes} and not all(
        isinstance(key, str | bytes) for key in given
    ):
        raise InvalidInput("get_many takes keys that are str or bytes")
    checked = [as_key(key) for key in given]
    if len(set(checked)) < len(checked):
        raise InvalidInput("get_many: a key is given twice")
    return given, checked


def as_entries(entries: Iterable[ScannedEntry], wall_lead_us: int = 0) -> list[Item]:
    """What put_entries puts: of a key that is there twice the last value.

    Args:
        wall_lead_us: how far the clock by which they expire is ahead of cluster time.
    """
    checked = {}
    for entry in entries:
        value, expiry_us = as_value(entry.value), entry.expiry_us
        if expiry_us is None:
            checked[as_key(entry.key)] = value, 0
        else:
            expiry = _as_expiry(expiry_us, wall_lead_us)
            checked[as_key(entry.key)] = expiry + value, EXPIRES
    return [(key, value, flags) for key, (value, flags) in checked.items()]


def _as_expiry(expiry_us: int, wall_lead_us: int) -> bytes:
    """When a value expires, as it stands in an entry."""
    try:
        at_us = int.from_bytes(expiry_us.to_bytes(8, "big"), "big") - wall_lead_us
        return min(max(0, at_us), _EXPIRY_MAX_US).to_bytes(8, "big")
    except (AttributeError, OverflowError) as error:
        raise InvalidInput(f"{expiry_us!r} are no microseconds since 1970") from error


def by_key(keys: Sequence[Any], outcomes: Sequence[Any]) -> dict[Any, Any]:
    """The results of a batch by their keys; the outcomes are in the keys' order. Raises BatchFailed
    if there are errors among them."""
    results = dict(zip(keys, outcomes, strict=True))
    errors = {key: one for key, one in results.items() if isinstance(one, GTStoreError)}
    if errors:
        raise BatchFailed({key: results[key] for key in keys if key not in errors}, errors)
    return results


def _encoded(text: Any, what: str) -> bytes:
    try:
        data: bytes = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the {what} cannot be written in UTF-8: {error}") from error
    return data


def _as_bytes(value: Any, what: str) -> bytes:
    if isinstance(value, str):
        return _encoded(value, what)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise InvalidInput(f"a {what} is str or bytes, not {type(value).__name__}")
