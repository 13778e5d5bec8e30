"""Fixtures of several modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from .peers import Peer, Script


@pytest.fixture
def peers() -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def make(*scripts: Script) -> Peer:
        made.append(Peer(*scripts))
        return made[-1]

    yield make
    for peer in made:
        peer.close()
