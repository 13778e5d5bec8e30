"""Every error, and what it carries.

Never run: tests/test_typing.py has mypy and pyright read it.
"""

from collections.abc import Mapping
from typing import Any, assert_type

from gtstore import (
    BatchFailed,
    Client,
    ClusterError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    GTStoreError,
    InvalidInput,
    LocalProtocolError,
    NetworkError,
    OperationFailed,
    OutcomeUnknown,
    ProtocolError,
    PutResult,
    RemoteError,
    RemoteProtocolError,
    Unavailable,
    Version,
    VersionMismatch,
)

every_kind: list[type[GTStoreError]] = [
    BatchFailed,
    ClusterError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    InvalidInput,
    LocalProtocolError,
    NetworkError,
    OperationFailed,
    OutcomeUnknown,
    ProtocolError,
    RemoteError,
    RemoteProtocolError,
    Unavailable,
    VersionMismatch,
]


def one_key(store: Client) -> PutResult | None:
    try:
        return store.put("key", b"value")
    except OutcomeUnknown as error:
        assert_type(error.acks, int)
        assert_type(error.required, int)
    except Unavailable as error:
        assert_type(error.required, int)
        assert_type(error.alive, int)
        failed: OperationFailed = error
        print(failed)
    except (ConnectError, ConnectionLost, DeadlineExceeded) as error:
        assert_type(error.peer, str)
        assert_type(error.reason, str)
        network: NetworkError = error
        print(network)
    except RemoteError as error:
        assert_type(error.peer, str)
        assert_type(error.code, int)
        assert_type(error.name, str)
        assert_type(error.detail, Any)
    except RemoteProtocolError as error:
        assert_type(error.error_code, int)
        assert_type(error.closes, bool)
        assert_type(error.detail, Any)
        protocol: ProtocolError = error
        print(protocol)
    except InvalidInput as error:
        value_error: ValueError = error
        print(value_error)
    return None


def comparing(store: Client) -> PutResult:
    try:
        return store.compare_and_put("key", b"new", expected=b"old")
    except VersionMismatch as error:
        assert_type(error.version, Version | None)
        assert_type(error.is_absent, bool)
        if error.version is None:
            return store.put("key", b"new")
        return store.compare_and_put("key", b"new", version=error.version)


def many_keys(store: Client, items: dict[str, bytes]) -> None:
    try:
        store.put_many(items)
    except BatchFailed as error:
        assert_type(error.results, Mapping[str | bytes, Any])
        assert_type(error.errors, Mapping[str | bytes, GTStoreError])
        store.put_many({key: items[key] for key in items if key in error.errors})
