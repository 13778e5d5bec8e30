"""Cluster time: rule T1, on clocks that the tests turn as they like."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtstore.cluster_time import DRIFT_PPM, ClusterTime, Reached, offset_at_start

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
NOW_US = 1_700_000_000 * SECOND_US

# --- what a node or a client knows ---------------------------------------------------------------


def measured() -> ClusterTime:
    """At the reading 1,000, to within 20 us and what was rounded."""
    clock = ClusterTime()
    clock.take(980, 1_000, NOW_US)
    return clock


def test_one_answer() -> None:
    """The manager read its clock between the question and the answer."""
    clock = measured()
    assert (clock.earliest_us(1_000), clock.latest_us(1_000)) == (NOW_US - 2, NOW_US + 22)
    assert 1_000 + clock.offset_us == NOW_US + 10


def test_it_goes_on_by_the_steady_clock() -> None:
    """T1: and what is not known of it grows with what two clocks may drift apart."""
    clock = measured()
    later = 1_000 + HOUR_US
    drift_us = HOUR_US * DRIFT_PPM // SECOND_US
    assert later + clock.offset_us == NOW_US + 10 + HOUR_US
    assert clock.earliest_us(later) == NOW_US - 2 + HOUR_US - drift_us
    assert clock.latest_us(later) == NOW_US + 22 + HOUR_US + drift_us


def test_the_quickest_answer_tells_most() -> None:
    """A slow one takes nothing away from what is known."""
    clock = measured()
    clock.take(2_000, 2_000 + SECOND_US, NOW_US + 1_000 + SECOND_US // 2)
    later = 2_000 + SECOND_US
    assert clock.latest_us(later) - clock.earliest_us(later) == 24 + 2 * (DRIFT_PPM + 1)
    clock.take(later, later + 4, NOW_US + 1_012 + SECOND_US)
    assert clock.latest_us(later + 4) - clock.earliest_us(later + 4) == 8


def test_what_cannot_be_true_is_given_up_for_the_answer() -> None:
    """T1: the machine was paused, or moved, so that its steady clock has stood still or leapt."""
    clock = measured()
    for ahead_us in (-HOUR_US, HOUR_US, 0):
        clock.take(1_000, 1_000, NOW_US + ahead_us)
        assert clock.earliest_us(1_000) == NOW_US + ahead_us - 1
        assert clock.latest_us(1_000) == NOW_US + ahead_us + 1
        assert 1_000 + clock.offset_us == NOW_US + ahead_us


def test_when_the_manager_is_asked() -> None:
    """At first, and some time after the last answer or question, whichever was later. A steady
    clock that goes back is another machine's: the process was moved."""
    clock = ClusterTime()
    assert clock.is_due(1_000, 30)
    assert not clock.is_due(2_000, 30)
    clock.take(2_000, 3_000, NOW_US)
    assert not clock.is_due(3_000 + 30 * SECOND_US - 1, 30)
    assert clock.is_due(3_000 + 30 * SECOND_US, 30)
    assert not clock.is_due(3_000 + 31 * SECOND_US, 30), "one question at a time"
    assert clock.is_due(3_000 + 31 * SECOND_US, 1)
    assert clock.is_due(10, 30)


def test_a_time_to_live_is_not_shorter() -> None:
    """T1, C8: what is not known is added; but to what is to be gone at once no more than that."""
    clock = measured()
    assert clock.expiry_us(1_000, SECOND_US) == NOW_US + 22 + SECOND_US
    early = ClusterTime()
    early.take(980, 1_000, 0)
    assert early.expiry_us(1_000, 1) == 2, "there is no time before 1970"
    assert clock.expiry_us(1_000, 1) == NOW_US - 2 + 2


def test_clocks_that_jump_apart() -> None:
    """T1: a step of the wall clock, or a pause of the machine; noticed once."""
    clock = measured()
    steady_us, wall_us = 1_000, NOW_US
    for paused_us, has_jumped in ((0, 0), (0, 0), (HOUR_US, 1), (0, 0), (-HOUR_US, 1), (10, 0)):
        steady_us += SECOND_US
        wall_us += SECOND_US + paused_us
        assert clock.has_jumped(steady_us, wall_us) == has_jumped


def test_how_far_a_wall_clock_is_ahead() -> None:
    """In whole seconds: so where clocks agree, an expiry is the same in a file and in the store."""
    clock = measured()
    ahead_us = {0: 0, 400_000: 0, -400_000: 0, 600_000: SECOND_US, -HOUR_US: -HOUR_US}
    for wall_us, lead_us in ahead_us.items():
        assert clock.wall_lead_us(2_000, NOW_US + 1_010 + wall_us) == lead_us


@given(st.integers(min_value=0))
def test_it_is_between_the_earliest_and_the_latest(seed: int) -> None:
    """T1: whatever answers take, each way, and however the steady clock drifts within its bound."""
    chance = random.Random(seed)
    clock = ClusterTime()
    speed = 1 + chance.uniform(-DRIFT_PPM, DRIFT_PPM) * 0.99 / SECOND_US
    true_us, base_us = float(NOW_US), chance.randrange(HOUR_US)

    def steady_us() -> int:
        return base_us + int((true_us - NOW_US) * speed)

    reached = 0
    for number in range(20):
        asked_us = steady_us()
        true_us += chance.choice((0, 40, 3_000, SECOND_US)) * chance.random()
        time_us = int(true_us)
        true_us += chance.choice((0, 40, 3_000, SECOND_US)) * chance.random()
        if number == 0 or chance.random() < 0.5:
            clock.take(asked_us, steady_us(), time_us)
        earliest_us = clock.earliest_us(steady_us())
        assert reached <= earliest_us <= true_us + 1
        assert true_us - 1 <= clock.latest_us(steady_us())
        reached = earliest_us
        true_us += chance.choice((0, 1_000, 60 * SECOND_US)) * chance.random()


# --- the manager's -------------------------------------------------------------------------------

BOOT = "a boot"
REACHED = Reached(NOW_US, 5_000, BOOT)


def start(
    wall_us: int,
    steady_us: int = 6_000,
    boot: str = BOOT,
    reached: Reached | None = REACHED,
    has_nodes: bool = False,
) -> int:
    """What cluster time is at once."""
    return steady_us + offset_at_start(wall_us, steady_us, boot, reached, has_nodes)


def test_a_new_cluster_begins_with_the_wall_clock() -> None:
    assert start(NOW_US, reached=None) == NOW_US


@pytest.mark.parametrize("wall_us", [NOW_US - HOUR_US, NOW_US, NOW_US + HOUR_US])
def test_a_successor_goes_on_where_the_nodes_are(wall_us: int) -> None:
    """M4, T1: whatever became of the wall clock, what has a time to live keeps it."""
    assert start(wall_us, has_nodes=True) == NOW_US + 1_000


def test_a_whole_cluster_may_catch_up_with_the_wall_clock() -> None:
    """T1: but it never goes back."""
    assert start(NOW_US + HOUR_US) == NOW_US + HOUR_US
    assert start(NOW_US - HOUR_US) == NOW_US + 1_000
    assert start(NOW_US - HOUR_US, steady_us=4_000) == NOW_US, "a steady clock that went back"


@pytest.mark.parametrize("has_nodes", [False, True])
@pytest.mark.parametrize("boots", [(BOOT, "another"), ("", "")])
def test_after_a_boot_only_what_was_recorded_is_known(
    boots: tuple[str, str], has_nodes: bool
) -> None:
    """T1: and the steady clock begins anew. A wall clock that begins in 1970 takes nothing back."""
    reached = REACHED._replace(boot=boots[0])
    assert start(0, 1, boots[1], reached, has_nodes) == NOW_US
    assert start(NOW_US + 5, 1, boots[1], reached, has_nodes) == NOW_US + 5
