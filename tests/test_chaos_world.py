"""Which troubles a seed chooses."""

from __future__ import annotations

from .chaos.world import PLAIN, VARIABLES, World


def test_each_kind_is_chosen_by_some_seeds_and_not_by_others() -> None:
    worlds = [PLAIN.mixed(seed) for seed in range(100)]
    for kind in VARIABLES:
        chosen = sum(bool(getattr(world, kind)) for world in worlds)
        # It needs a file system of its own, which not every machine allows.
        assert 0 < chosen < 100 if kind != "has_full_disk" else chosen == 0
    assert worlds == [PLAIN.mixed(seed) for seed in range(100)]


def test_what_was_asked_for_stays() -> None:
    asked = World(is_durable=True, has_full_disk=True, memory_mb=4)
    for seed in range(20):
        world = asked.mixed(seed)
        assert world.is_durable
        assert world.has_full_disk
        assert world.memory_mb
