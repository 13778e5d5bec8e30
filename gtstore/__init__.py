"""GT Store: a fault-tolerant, replicated key-value store for Python programs.

::

    import gtstore

    with gtstore.connect("127.0.0.1:9001") as store:
        store.put("key1", b"value1")
        store.get("key1")
"""

from typing import TYPE_CHECKING, Any

from .client import Client, connect
from .errors import (
    BatchFailed,
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
    RemoteError,
    RemoteProtocolError,
    Unavailable,
    VersionMismatch,
)
from .mapping import StoreMapping
from .results import (
    ClusterStatus,
    Location,
    NodeStatus,
    PutResult,
    ScannedEntry,
    StoredEntry,
    Version,
)
from .version import __version__

if TYPE_CHECKING:
    from .async_client import AsyncClient, connect_async

__all__ = [
    "AsyncClient",
    "BatchFailed",
    "Client",
    "ClusterError",
    "ClusterStatus",
    "ConnectError",
    "ConnectionLost",
    "DeadlineExceeded",
    "GTStoreError",
    "InvalidInput",
    "LocalProtocolError",
    "Location",
    "NetworkError",
    "NodeStatus",
    "OperationFailed",
    "OutcomeUnknown",
    "ProtocolError",
    "PutResult",
    "RemoteError",
    "RemoteProtocolError",
    "ScannedEntry",
    "StoreMapping",
    "StoredEntry",
    "Unavailable",
    "Version",
    "VersionMismatch",
    "__version__",
    "connect",
    "connect_async",
]


# Not for type checkers: to them it would mean that there is every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """asyncio is loaded when it is asked for: it takes a third of the time of all other
        imports, also in gtclient and in each node."""
        if name in ("AsyncClient", "connect_async"):
            from . import async_client

            return getattr(async_client, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
