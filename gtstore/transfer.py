"""Many keys at once into a cluster: what ``gtclient import`` and ``restore`` do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import IO, Final

from .client import Client
from .errors import BatchFailed, InvalidInput, OperationFailed, OutcomeUnknown
from .json_lines import LINE_SIZE_MAX, entry_of
from .results import ScannedEntry

_BATCH_KEYS: Final = 500
_BATCH_SIZE: Final = 1024 * 1024


def store_all(
    store: Client, entries: Iterable[ScannedEntry], note: Callable[[ScannedEntry], None]
) -> int:
    """Put all of them, some in parallel at a time, and return how many. Of two with the same key
    the later one stays.

    Whatever ends it, also what ``entries`` raises, what came before was put, and stays.

    Raises InvalidInput from ``entries``, with how many were stored; OperationFailed or
    OutcomeUnknown if some could not be put.
    """
    stored = 0
    batch: dict[bytes, ScannedEntry] = {}
    size = 0

    def put() -> None:
        nonlocal stored, size
        try:
            store.put_entries(batch.values())
        except BatchFailed as error:
            raise _failure(stored, error) from error
        stored += len(batch)
        for entry in batch.values():
            note(entry)
        batch.clear()
        size = 0

    try:
        for entry in entries:
            is_full = len(batch) >= _BATCH_KEYS or size >= _BATCH_SIZE
            if is_full or entry.key in batch:  # the later one is put after the first
                put()
            batch[entry.key] = entry
            size += len(entry.value)
    except InvalidInput as error:
        put()
        raise InvalidInput(f"{error}; values stored before it: {stored:,}") from error
    put()
    return stored


def _failure(stored: int, error: BatchFailed) -> OperationFailed | OutcomeUnknown:
    stored += len(error.results)
    unknown = [one for one in error.errors.values() if isinstance(one, OutcomeUnknown)]
    text = f"{error}; values stored so far: {stored:,}"
    if unknown:
        return OutcomeUnknown(text, acks=unknown[0].acks, required=unknown[0].required)
    return OperationFailed(text)


def lines_of(file: IO[bytes], name: str) -> Iterator[ScannedEntry]:
    """What the lines of a file stand for; empty ones are passed over. Raises InvalidInput, with the
    line's number."""
    number = 0
    while line := _line(file, name):
        number += 1
        if len(line) == LINE_SIZE_MAX:
            raise InvalidInput(f"{name}, line {number}: it is longer than any value")
        if not line.isspace():
            try:
                yield entry_of(line)
            except InvalidInput as error:
                raise InvalidInput(f"{name}, line {number}: {error}") from error


def _line(file: IO[bytes], name: str) -> bytes:
    try:
        return file.readline(LINE_SIZE_MAX)
    except OSError as error:
        raise InvalidInput(f"{name} cannot be read: {error.strerror}") from error
