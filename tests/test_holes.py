"""The holes of docs/REPLICATION.md stay closed, and it is the rules that close them."""

from __future__ import annotations

import pytest

from .sim.holes import HOLES, Hole, Wrong
from .sim.network import is_linearizable

each_hole = pytest.mark.parametrize("hole", HOLES, ids=str)


@each_hole
def test_the_hole_is_closed(hole: Hole) -> None:
    """As shipped, users see nothing wrong."""
    hole.scenario()


@each_hole
def test_the_rule_is_what_closes_it(hole: Hole, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rule switched off, the same trace shows users what they must not see."""
    hole.switch_off(monkeypatch)
    with pytest.raises(Wrong, match=hole.symptom) as caught:
        hole.scenario()
    assert not is_linearizable(caught.value.history)
