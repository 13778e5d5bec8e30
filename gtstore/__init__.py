"""GT Store: a fault-tolerant, replicated key-value store for Python programs.

::

    import gtstore

    with gtstore.connect("127.0.0.1:9001") as store:
        store.put("key1", b"value1")
        store.get("key1")
"""

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

__all__ = [
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
]
