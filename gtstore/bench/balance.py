"""How many keys each node holds, worked out from a partition map: the report's figure 3."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from ..placement import home_owners, partition_count

_CHARACTERS: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_SIZE_MIN, _SIZE_MAX = 8, 24


class Spread(NamedTuple):
    """Keys per node: the least, the mean, the most, the standard deviation over all nodes, and that
    as a part of the mean."""

    low: int
    mean: float
    high: int
    stddev: float
    relative_stddev: float


def random_keys(count: int, below: Callable[[int], int]) -> Iterator[bytes]:
    """Keys of 8 to 24 letters and digits; ``below(n)`` returns a number from 0 to n - 1."""
    for _ in range(count):
        size = _SIZE_MIN + below(_SIZE_MAX - _SIZE_MIN + 1)
        yield bytes([_CHARACTERS[below(len(_CHARACTERS))] for _ in range(size)])


def keys_per_partition(
    keys: Iterable[bytes], hash_function: Callable[[bytes], int], partitions: int
) -> list[int]:
    counts = Counter(hash_function(key) % partitions for key in keys)
    return [counts[partition] for partition in range(partitions)]


def home_map(nodes: int, replicas: int) -> list[tuple[int, ...]]:
    """The owners of each partition of a new cluster."""
    return [home_owners(part, nodes, replicas) for part in range(partition_count(nodes))]


def keys_per_node(
    per_partition: Sequence[int], owners: Sequence[Sequence[int]], nodes: Iterable[int]
) -> dict[int, int]:
    """How many keys each of the nodes holds, as primary or as backup; by the node's number."""
    result = dict.fromkeys(nodes, 0)
    for count, row in zip(per_partition, owners, strict=True):
        for node in row:
            result[node] = result.get(node, 0) + count
    return dict(sorted(result.items()))


def spread(counts: Sequence[int]) -> Spread:
    """Of at least one node."""
    mean = sum(counts) / len(counts)
    stddev = math.sqrt(sum((count - mean) ** 2 for count in counts) / len(counts))
    return Spread(min(counts), mean, max(counts), stddev, stddev / mean if mean else 0.0)
