"""GT Store: a fault-tolerant, replicated key-value store for Python programs.

::

    import gtstore

    with gtstore.connect("127.0.0.1:9001") as store:
        store.put("key1", b"value1")
        store.get("key1")
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .async_client import AsyncClient, connect_async
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
        Trouble,
        Version,
    )
    from .version import __version__

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
    "Trouble",
    "Unavailable",
    "Version",
    "VersionMismatch",
    "__version__",
    "connect",
    "connect_async",
]

_MODULES = ("version", "errors", "results", "mapping", "client", "async_client")
"""Where these names are from; asyncio comes last, for it takes long to load."""

# Not for type checkers: to them it would mean that there is every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Modules are loaded when they are asked for: pytest loads this package in each of its
        runs wherever it is installed (pytest_plugin.py), and daemons need no client.

        None is loaded for a name that another one has already: whoever uses a client can name its
        errors, though the process has no file left to open a module with."""
        if name in __all__:
            for module in sorted(
                _MODULES, key=lambda module: f"{__name__}.{module}" not in sys.modules
            ):
                names = vars(import_module(f".{module}", __name__))
                if name in names:
                    return globals().setdefault(name, names[name])
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
