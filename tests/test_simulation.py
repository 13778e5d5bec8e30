"""The shipped replica.py, operations.py, membership.py and copying.py, simulated at random."""

from __future__ import annotations

import pytest

from .sim.run import SMALL, DurableRun, TightRun, run_many

RUNS = 1000


def test_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linearizable for each key, and the invariants hold after each event, whatever happens."""
    for module, name, value in SMALL:
        monkeypatch.setattr(module, name, value)
    outcomes = run_many(range(RUNS))
    # The runs are worth something: most operations end well, and the rare ends occur too.
    assert outcomes["complete"] > 5 * RUNS
    assert outcomes["unknown"] > RUNS // 20
    assert outcomes["returned"] > RUNS // 2
    assert outcomes["copied"] > RUNS // 2
    assert outcomes["in vain"] > RUNS // 20


def test_at_random_with_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where entries are on disk, and any nodes, or all at once, die and come back."""
    for module, name, value in SMALL:
        monkeypatch.setattr(module, name, value)
    outcomes = run_many(range(RUNS), DurableRun)
    assert outcomes["complete"] > 5 * RUNS
    assert outcomes["returned"] > RUNS // 2
    assert outcomes["reopened"] > RUNS // 4
    assert outcomes["present"] > RUNS // 4
    assert outcomes["in vain"] > RUNS // 20


def test_at_random_with_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """C3: what a full primary refuses never takes effect, whoever has it already, once the client
    says that it did not happen."""
    for module, name, value in SMALL:
        monkeypatch.setattr(module, name, value)
    outcomes = run_many(range(RUNS), TightRun)
    assert outcomes["complete"] > 4 * RUNS
    assert outcomes["failed"] > RUNS // 5
