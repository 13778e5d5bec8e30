"""Keys per node: against a slow count of each key's nodes, and figures worked out by hand."""

from __future__ import annotations

import random

import pytest

from gtstore.bench.balance import (
    home_map,
    keys_per_node,
    keys_per_partition,
    random_keys,
    spread,
)
from gtstore.placement import additive, crc16


def test_random_keys() -> None:
    """Letters and digits, of every size there may be; the same ones from the same source."""
    keys = list(random_keys(2000, random.Random(1).randrange))
    assert keys == list(random_keys(2000, random.Random(1).randrange))
    assert {len(key) for key in keys} == set(range(8, 25))
    assert all(key.isalnum() for key in keys)
    assert len(set(keys)) == 2000


@pytest.mark.parametrize("replicas", [1, 3, 5])
def test_against_the_report_s_rule(replicas: int) -> None:
    """The additive hash: the sum of the bytes modulo the nodes is the primary, and the replicas
    follow clockwise."""
    nodes = 7
    keys = list(random_keys(500, random.Random(2).randrange))
    counted = keys_per_node(
        keys_per_partition(keys, additive, nodes * 64), home_map(nodes, replicas), range(1, 8)
    )
    slowly = dict.fromkeys(range(1, 8), 0)
    for key in keys:
        for step in range(replicas):
            slowly[(sum(key) + step) % nodes + 1] += 1
    assert counted == slowly
    assert sum(counted.values()) == 500 * replicas


def test_structured_keys() -> None:
    """Keys k0, k9, k18, ... on 9 nodes: the additive hash leaves nodes empty, CRC-16 none."""
    keys = [b"k%d" % number for number in range(0, 9000, 9)]
    owners = home_map(9, 1)
    by_sum = keys_per_node(keys_per_partition(keys, additive, 9 * 64), owners, range(1, 10))
    by_crc = keys_per_node(keys_per_partition(keys, crc16, 9 * 64), owners, range(1, 10))
    assert 0 in by_sum.values()
    assert min(by_crc.values()) > 0


def test_a_map_in_trouble() -> None:
    """A partition may have fewer owners, and a node none; a node that is not counted on counts."""
    assert keys_per_node([3, 4], [[2], [2, 4]], [1, 2]) == {1: 0, 2: 7, 4: 4}


def test_spread() -> None:
    assert spread([2, 4, 4, 4, 5, 5, 7, 9]) == (2, 5.0, 9, 2.0, 0.4)
    assert spread([0, 0]) == (0, 0.0, 0, 0.0, 0.0)
