"""What a run's cluster and clients have to live with, besides nodes and managers that fail."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class World:
    """The kinds of trouble of a run.

    Attributes:
        is_durable: with --data-dir; everything is killed at once, too, and disks are slow at times.
        is_async: every other client process is one of asyncio, with several tasks.
        has_long_values: values are up to 1 MiB long.
        has_full_disk: the data is on a small disk, which is full at times; durable, too.
        has_steps: wall clocks of clients, nodes and the manager step.
        has_bad_network: what clients and nodes send each other comes late or in pieces, or the
            connection is reset.
        busy: so many busy loops run beside.
        memory_mb: nodes' --max-memory-mb; 0: none.
    """

    is_durable: bool = False
    is_async: bool = False
    has_long_values: bool = False
    has_full_disk: bool = False
    has_steps: bool = False
    has_bad_network: bool = False
    busy: int = 0
    memory_mb: int = 0

    def mixed(self, seed: int) -> World:
        """With some more kinds, which the seed chooses; but none that needs another machine."""
        chance = random.Random(seed)
        drawn: dict[str, Any] = {
            field.name: True
            for field in fields(self)
            if field.type == "bool" and field.name != "has_full_disk" and chance.random() < 0.5
        }
        if chance.random() < 0.3:
            drawn["busy"] = 2
        if chance.random() < 0.3:
            drawn["memory_mb"] = 8
        return replace(self, **drawn)

    def __str__(self) -> str:
        """The variables of ``make chaos``."""
        values = {name: getattr(self, attribute) for attribute, name in VARIABLES.items()}
        return " ".join(f"{name}={int(value)}" for name, value in values.items() if value)


PLAIN = World()
VARIABLES = {
    "is_durable": "DURABLE",
    "is_async": "ASYNC",
    "has_long_values": "LONG",
    "has_full_disk": "FULL_DISK",
    "has_steps": "STEPS",
    "has_bad_network": "NETWORK",
    "busy": "BUSY",
    "memory_mb": "MEMORY_MB",
}
"""Those of ``make chaos``."""
