"""A store as a dict: ``Client.as_mapping`` makes one.

Only the manners of a dict are here; every rule is the client's. What the mapping needs of it is
declared below, in Store, so that this module stands beneath client.py, and a test can give it a
store of its own.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    ValuesView,
)
from itertools import chain, islice
from typing import Any, AnyStr, Final, Protocol, TypeVar, overload

from .errors import InvalidInput, VersionMismatch
from .inputs import UNSET, Unset
from .results import StoredEntry, Version
from .wire.messages import KEY_SIZE_MAX

Default = TypeVar("Default")
Found = TypeVar("Found")

_UPDATE_KEYS: Final = 500
"""Keys of one put_many: the timeout is for so many, not for all that update is given."""


class Store(Protocol):
    """What a mapping needs of a Client."""

    def get(self, key: bytes, /) -> bytes | None: ...
    def get_entry(self, key: bytes, /) -> StoredEntry | None: ...
    def put(self, key: bytes, value: str | bytes, /) -> object: ...
    def delete(self, key: bytes, /) -> object: ...
    def compare_and_put(self, key: bytes, value: str | bytes, /, *, expected: None) -> object: ...
    def _remove(self, key: bytes, version: Version, /) -> None: ...
    def put_many(self, items: Mapping[bytes, str | bytes], /) -> object: ...
    def scan(self, prefix: bytes, /) -> Iterator[tuple[bytes, bytes]]: ...
    def scan_keys(self, prefix: bytes, /) -> Iterator[bytes]: ...


class StoreMapping(MutableMapping[AnyStr, bytes]):
    """The keys of a store that begin with a prefix, as a dict without the prefix.

    Each operation on one key is what the client's is, with its errors, and as safe with many
    threads and other clients. What goes through several keys (iteration, ``len``, ``==``,
    ``clear``, ``update``) is no snapshot and no transaction: see ``Client.scan``. Keys come in no
    order.

    With a str prefix, keys are str. A key of the store that is not UTF-8 comes with its odd bytes
    as lone surrogates ("surrogateescape", as file names in ``os.listdir``), and finds its way back.
    With a bytes prefix, keys are bytes. Values are always bytes; a str that is put counts as its
    UTF-8 bytes.

    What cannot be a key is never found, and raises InvalidInput where it is to be stored.

    ``list(d)`` and ``list(d.items())`` ask for ``len`` first, which is one more scan of the keys,
    and ``dict(d)`` gets each key on its own: ``dict(d.items())`` is one scan.
    """

    def __init__(self, store: Store, prefix: AnyStr) -> None:
        self._store = store
        self._kind: type[str | bytes]
        self._shown: Callable[[bytes], AnyStr]
        if isinstance(prefix, str):
            self._kind, self._shown = str, _to_text
        elif isinstance(prefix, bytes):
            self._kind, self._shown = bytes, bytes
        else:
            raise InvalidInput(f"a prefix is str or bytes, not {type(prefix).__name__}")
        self._prefix = _to_bytes(prefix)
        if len(self._prefix) > KEY_SIZE_MAX:
            raise InvalidInput(f"a prefix has at most {KEY_SIZE_MAX} bytes: no key is longer")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(prefix={self._shown(self._prefix)!r})"

    # --- one key ---------------------------------------------------------------------------------

    def __getitem__(self, key: AnyStr) -> bytes:
        value = self._find(key, self._store.get)
        if value is None:
            raise KeyError(key)
        return value

    def __contains__(self, key: object) -> bool:
        """Whether the key has a value; to tell, the value is read."""
        return self._find(key, self._store.get) is not None

    def __setitem__(self, key: AnyStr, value: str | bytes) -> None:
        self._store.put(self._stored_key(key), value)

    def __delitem__(self, key: AnyStr) -> None:
        """Remove a key. Of two that remove it at once, both may succeed, and a value that is put
        between the look and the removal goes too: ``pop`` is exact."""
        if key not in self:
            raise KeyError(key)
        self._store.delete(self._stored_key(key))

    @overload
    def pop(self, key: AnyStr) -> bytes: ...
    @overload
    def pop(self, key: AnyStr, default: Default) -> bytes | Default: ...
    def pop(self, key: AnyStr, default: Any = UNSET) -> Any:
        """Remove a key and return its value. One value is popped once, whoever else tries, and no
        other value is removed with it. After OutcomeUnknown the value may be gone, and nobody has
        it.
        """
        while (entry := self._find(key, self._store.get_entry)) is not None:
            try:
                self._store._remove(self._stored_key(key), entry.version)
            except VersionMismatch:
                continue  # somebody has changed or removed it meanwhile
            return entry.value
        if isinstance(default, Unset):
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[AnyStr, bytes]:
        """Remove any key, and return it with its value, as ``pop`` does.

        KeyError says that no key was found that nobody else removed first; it does not say that
        there was none at any one moment, since others may put some meanwhile.
        """
        for key in self:
            value = self.pop(key, None)
            if value is not None:
                return key, value
        raise KeyError("popitem(): the mapping is empty")

    def setdefault(self, key: AnyStr, default: str | bytes) -> bytes:
        """Return the key's value; if it has none, store the default and return that. All who do
        this at once return the same value. (A dict's own default is None, which is no value.)"""
        name = self._stored_key(key)
        while (value := self._store.get(name)) is None:
            try:
                self._store.compare_and_put(name, default, expected=None)
            except VersionMismatch:
                continue  # another was faster
            return default.encode() if isinstance(default, str) else bytes(default)
        return value

    # --- all keys --------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[AnyStr]:
        return map(self._shown_key, self._store.scan_keys(self._prefix))

    def __len__(self) -> int:
        """Count the keys, by a scan of all of them."""
        return sum(1 for _ in self._store.scan_keys(self._prefix))

    def __bool__(self) -> bool:
        """Whether there is any key; the scan ends with the first one."""
        return any(True for _ in self._store.scan_keys(self._prefix))

    def items(self) -> ItemsView[AnyStr, bytes]:
        """Keys and values; each iteration is one scan."""
        return _Items(self)

    def values(self) -> ValuesView[bytes]:
        """The values; each iteration is one scan."""
        return _Values(self)

    def clear(self) -> None:
        """Remove every key that a scan finds. Those that others put meanwhile may stay."""
        for name in self._store.scan_keys(self._prefix):
            self._store.delete(name)

    # The types of the values are wider here than in MutableMapping, as in __setitem__.
    def update(  # type: ignore[override]
        self,
        other: Mapping[AnyStr, str | bytes] | Iterable[tuple[AnyStr, str | bytes]] = (),
        /,
        **more: str | bytes,
    ) -> None:
        """Put many keys, some hundred at a time in parallel over the nodes.

        Raises BatchFailed as ``Client.put_many`` does, with the keys as the store has them: bytes,
        with the prefix. What came before that batch is stored, what follows is not.
        """
        given = chain(_pairs(other), more.items())
        checked = ((self._stored_key(key), value) for key, value in given)
        while batch := dict(islice(checked, _UPDATE_KEYS)):
            self._store.put_many(batch)

    def _scan(self) -> Iterator[tuple[AnyStr, bytes]]:
        for name, value in self._store.scan(self._prefix):
            yield self._shown_key(name), value

    # --- keys ------------------------------------------------------------------------------------

    def _find(self, key: object, read: Callable[[bytes], Found | None]) -> Found | None:
        try:
            return read(self._stored_key(key))
        except InvalidInput:
            return None  # it is too long or empty or of another type, so nothing is stored there

    def _stored_key(self, key: object) -> bytes:
        if not isinstance(key, self._kind):
            raise InvalidInput(
                f"the keys of this mapping are {self._kind.__name__}, not {type(key).__name__}"
            )
        return self._prefix + _to_bytes(key)

    def _shown_key(self, name: bytes) -> AnyStr:
        return self._shown(name[len(self._prefix) :])


class _Items(ItemsView[AnyStr, bytes]):
    _mapping: StoreMapping[AnyStr]

    def __iter__(self) -> Iterator[tuple[AnyStr, bytes]]:
        return self._mapping._scan()


class _Values(ValuesView[bytes]):
    _mapping: StoreMapping[Any]

    def __iter__(self) -> Iterator[bytes]:
        return (value for _, value in self._mapping._scan())

    def __contains__(self, value: object) -> bool:
        return any(value == found for found in self)


def _pairs(other: Any) -> Iterable[tuple[Any, Any]]:
    """What dict.update takes, as pairs."""
    if isinstance(other, Mapping):
        return other.items()
    if hasattr(other, "keys"):
        keys: Iterable[Any] = other.keys()
        return ((key, other[key]) for key in keys)
    pairs: Iterable[tuple[Any, Any]] = other
    return pairs


def _to_bytes(key: str | bytes) -> bytes:
    """A key's bytes; those that cannot be UTF-8 are lone surrogates in a str.

    Each key has one spelling, or else two keys of the mapping would be one of the store.
    """
    if isinstance(key, bytes):
        return key
    try:
        return key.encode()
    except UnicodeEncodeError:
        pass
    try:
        name = key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the key cannot be written in UTF-8: {error}") from error
    if _to_text(name) != key:
        raise InvalidInput(f"{key!r} spells UTF-8 with surrogates: the key is {_to_text(name)!r}")
    return name


def _to_text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
