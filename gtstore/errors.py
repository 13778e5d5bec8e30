"""Every exception of GT Store.

::

    GTStoreError
      InvalidInput (also ValueError)   a key, a value or an address breaks a limit; nothing was sent
      ProtocolError                    abstract
        LocalProtocolError             this program tried to send something illegal: a bug here
        RemoteProtocolError            the peer did
      NetworkError                     an OSError, translated; carries .peer
        ConnectError                   no connection came about, so nothing was sent
        ConnectionLost                 the connection ended before the answer
        DeadlineExceeded               the call's time was up; a read only, or nothing was sent
      RemoteError                      the peer answered with an ERROR reply
      OperationFailed                  it did NOT happen
        Unavailable                    no owner of the key's partition is alive
      OutcomeUnknown                   it MAY have happened, at most once, now or later
      BatchFailed                      put_many, get_many: some keys failed; .results and .errors
      ClusterError                     a daemon could not start or go on
      StoreError                       a node's disk; abstract, and never raised to a client
        StoreFull                      there is no room for what is to be stored
        StoreFailed                    it cannot be written to or read
          StoreCorrupt                 what it needs to find anything is not what was written
            RecordDamaged              one of its own records is not
        StoreDamaged                   what was read is not what was written

What an error says to a person: what happened, to which address, after how long, whether the
operation took effect, and what to do next.

Errors pass from one process to another, as pools of processes and task queues have them do: each
one comes out of pickle and copy as it went in, and so do those that others derive from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .results import Version


def printable(text: str) -> str:
    """The text on one line, harmless to a terminal and to a log: what a peer or a key says could
    otherwise look like lines of ours."""
    return "".join(
        # Not with a codec: the first use of it would open its file, and files may have run out.
        character if character.isprintable() else ascii(character)[1:-1]
        for character in text
    )


class GTStoreError(Exception):
    """The base of all errors of this package.

    ``args`` are what its constructor was given, in that order: who has only the class and these, as
    a task queue that speaks JSON, makes the same error again.
    """

    _text = None

    # A class whose message is not its only argument calls this, and not Exception's constructor.
    def _say(self, text: str, *args: object) -> None:
        self._text = text
        self.args = args

    def __str__(self) -> str:
        return super().__str__() if self._text is None else self._text

    def __repr__(self) -> str:
        return (
            super().__repr__() if self._text is None else f"{type(self).__name__}({self._text!r})"
        )

    # For pickle and copy, of derived classes too: without their constructors, of which nobody knows
    # what they take.
    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args), vars(self)


def _again(kind: type[GTStoreError], args: tuple[Any, ...]) -> GTStoreError:
    error = kind.__new__(kind, *args)
    error.args = args  # what an OSError makes of them is left to its constructor
    return error


class InvalidInput(GTStoreError, ValueError):
    """The caller's key, value or option breaks a limit. Nothing was sent; correct it and call
    again."""


class ProtocolError(GTStoreError):
    """Somebody broke the protocol (docs/PROTOCOL.md). See the two subclasses."""


class LocalProtocolError(ProtocolError):
    """This program tried to send something that the protocol does not allow: a bug on this side."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow.

    ``error_code`` is the code of the ERROR reply that answers it (PROTOCOL.md section 8),
    ``closes`` says whether the connection is of no use afterwards (the frames' borders are lost),
    and ``detail`` holds the reply's typed fields, if the code has any.
    """

    def __init__(
        self, error_code: int, message: str, closes: bool = False, detail: Any = None
    ) -> None:
        self._say(message, error_code, message, closes, detail)
        self.error_code = error_code
        self.closes = closes
        self.detail = detail


class NetworkError(GTStoreError):
    """The network failed. ``peer`` is who was at the other end, in words: ``node 3
    (HOST:PORT)``."""

    def __init__(self, peer: str, message: str) -> None:
        self._say(f"{printable(peer)}: {printable(message)}", peer, message)
        self.peer = peer
        self.reason = message


class ConnectError(NetworkError):
    """No connection came about, so nothing was sent."""


class ConnectionLost(NetworkError):
    """The connection ended before the answer was there. A request that was sent may have been
    done."""


class DeadlineExceeded(NetworkError):
    """The time given for the whole call passed. Only reads raise it: they change nothing."""


class RemoteError(GTStoreError):
    """The peer answered with an ERROR reply.

    ``code`` is its number, ``name`` its name and ``detail`` its typed fields or None
    (PROTOCOL.md section 8).
    """

    def __init__(self, peer: str, code: int, name: str, message: str, detail: Any = None) -> None:
        text = f"{peer} answered {name}: {printable(message)}"
        self._say(text, peer, code, name, message, detail)
        self.peer = peer
        self.code = code
        self.name = name
        self.detail = detail


class OperationFailed(GTStoreError):
    """The operation did not happen and never will. It may be called again."""


class VersionMismatch(OperationFailed):
    """The comparison of a compare_and_put failed, and nothing was changed.

    ``version`` is that of the stored value, or None if there is none, and
    ``is_absent`` says whether the key has no value.
    """

    def __init__(self, message: str, version: Version | None, is_absent: bool) -> None:
        self._say(message, message, version, is_absent)
        self.version = version
        self.is_absent = is_absent


class Unavailable(OperationFailed):
    """No owner of the key's partition is alive: ``alive`` of ``required`` owners."""

    def __init__(self, message: str, required: int, alive: int) -> None:
        self._say(message, message, required, alive)
        self.required = required
        self.alive = alive


class OutcomeUnknown(GTStoreError):
    """The write may have happened, at most once: before, now, later or never.

    ``acks`` of ``required`` owners are known to hold it. A ``get`` tells what is stored; a put or a
    delete may be repeated if it does not matter that another client's write came in between.
    """

    def __init__(self, message: str, acks: int, required: int) -> None:
        self._say(message, message, acks, required)
        self.acks = acks
        self.required = required


class BatchFailed(GTStoreError):
    """Some keys of a batch failed, each on its own.

    ``results`` maps the keys that were done to what the single call would have returned, ``errors``
    the others to what it would have raised.
    """

    def __init__(
        self, results: Mapping[str | bytes, Any], errors: Mapping[str | bytes, GTStoreError]
    ) -> None:
        key, error = next(iter(errors.items()))
        count = len(results) + len(errors)
        text = f"{len(errors)} of {count} keys failed; the first is {key!r}: {error}"
        self._say(text, results, errors)
        self.results = results
        self.errors = errors


class ClusterError(GTStoreError):
    """A daemon could not start or go on; the message is the one line that its user reads."""


class StoreError(GTStoreError):
    """A node's disk does not do what it should. See the subclasses."""


class StoreFull(StoreError):
    """There is no room on the disk for what is to be stored; nothing of it was."""


class StoreFailed(StoreError):
    """The disk cannot be written to or read. What it holds is not known."""


class StoreCorrupt(StoreFailed):
    """What a node's files need in order to find anything in them is not what was written there: a
    page of LMDB, a record of the log. Nothing that they say can be relied upon."""


class RecordDamaged(StoreCorrupt):
    """One of the records that a node keeps of itself and its partitions is not the one that was
    stored."""

    def __init__(self, name: bytes) -> None:
        self._say(f"the record {name!r} is damaged", name)


class StoreDamaged(StoreError):
    """An entry on the disk is not the one that was stored there. ``partition`` and ``key`` tell
    which one, ``what`` how that shows."""

    def __init__(self, partition: int, key: bytes, what: str = "is damaged") -> None:
        name = printable(key.decode("utf-8", "backslashreplace"))
        text = f"the stored entry of key {name}, in partition {partition}, {what}"
        self._say(text, partition, key, what)
        self.partition = partition
        self.key = key
