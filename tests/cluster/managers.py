"""A manager in this process, for tests that reach into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gtstore.manager import Manager, ManagerOptions
from gtstore.wire import messages


@contextmanager
def a_manager(
    prepare: Callable[[Manager], None] | None = None, **changes: Any
) -> Iterator[Manager]:
    """One that has started a cluster, or opened it again; ``prepare`` comes before that."""
    options: dict[str, Any] = {
        "nodes": 2,
        "replicas": 2,
        "host": "127.0.0.1",
        "port": 0,
        "node_port": 0,
        "hash_code": messages.HASH_ADDITIVE,
        "probe_interval_ms": 100,
        "respawns": True,
        "pin": False,
        "max_connections": 10,
        "max_memory_mb": None,
        "frame_timeout_ms": 1000,
        "log_level": "warning",
        "log_format": "text",
    }
    made = Manager(ManagerOptions(**(options | changes)))
    if prepare is not None:
        prepare(made)
    made.start()  # if it fails it stops all by itself
    try:
        yield made
    finally:
        made.stop()
        made._push_session.abort()  # what is left to the end of the process


def address_of(manager: Manager) -> str:
    return f"127.0.0.1:{manager._server.port}"
