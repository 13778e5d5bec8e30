"""Damaged frames, chosen by hypothesis, against a running node and manager (see tests/fuzz)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gtstore.testing import Cluster

from ..fuzz.engine import NODES, REPLICAS, Fuzzer

pytestmark = pytest.mark.cluster

Item = TypeVar("Item")


class Drawn:
    """Hypothesis's choices, in the shape of random.Random."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def randint(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))

    def choice(self, items: Sequence[Item]) -> Item:
        return items[self._data.draw(st.integers(0, len(items) - 1))]


@pytest.fixture(scope="module")
def fuzzer() -> Iterator[Fuzzer]:
    with Cluster(NODES, REPLICAS) as cluster:
        fuzzer = Fuzzer(cluster)
        yield fuzzer
        fuzzer.after()


@settings(
    max_examples=1000,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_damaged_frames_do_no_harm(fuzzer: Fuzzer, data: st.DataObject) -> None:
    """Each gets valid frames for answers, or none; a PING is answered after each; in the end
    threads, files and memory are what they were, and guarded keys have their values."""
    fuzzer.fire(Drawn(data))


def test_the_fuzzer_reaches_far(fuzzer: Fuzzer) -> None:
    """It is worth something: cases are answered in many different ways."""
    assert len(fuzzer.answers) > 8, fuzzer.answers
    assert set(fuzzer.errors) >= {"BAD_MAGIC", "FRAME_TOO_LONG", "MALFORMED", "UNKNOWN_KIND"}
