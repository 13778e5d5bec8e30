"""pytest fixtures with a real cluster, in every project that has gtstore installed.

- ``gtstore_cluster``: a cluster (testing.Cluster) for this test alone, of 3 nodes and 2 replicas,
  or as a marker says: ``@pytest.mark.gtstore(nodes=5, replicas=3, options=("--hash", "crc16"))``;
- ``gtstore_store``: a client that is connected to it;
- ``gtstore_shared_cluster``: one cluster for the whole session, for tests that do not hurt nodes
  and do not mind other tests' keys. It has the default shape.

If a test fails that has a cluster, from here or from a fixture of its own, the report has that
cluster's log.

pytest loads this module in each of its runs, so what it needs is loaded by the fixtures.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .client import Client
    from .testing import Cluster

_LOG_LINES_MAX = 300
"""Of the end of a cluster's log: a shared cluster has all that came before in it."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "gtstore(nodes=3, replicas=2, options=(), respawn=True): the cluster of the fixture "
        "gtstore_cluster, as for gtstore.testing.Cluster",
    )


@pytest.fixture
def gtstore_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A GT Store cluster for this test alone, stopped afterwards; the marker gtstore shapes it."""
    marker = request.node.get_closest_marker("gtstore")
    yield from _run(_shape_of(marker) if marker else {})


@pytest.fixture
def gtstore_store(gtstore_cluster: Cluster) -> Iterator[Client]:
    """A GT Store client, connected to the cluster of gtstore_cluster."""
    with gtstore_cluster.connect() as store:
        yield store


@pytest.fixture(scope="session")
def gtstore_shared_cluster() -> Iterator[Cluster]:
    """One GT Store cluster for the whole session: do not hurt its nodes."""
    yield from _run({})


def _shape_of(marker: pytest.Mark) -> dict[str, Any]:
    known = ("nodes", "replicas", "options", "respawn")
    wrong = [*map(repr, marker.args), *(name for name in marker.kwargs if name not in known)]
    if wrong:
        pytest.fail(
            f"@pytest.mark.gtstore takes {', '.join(f'{name}=' for name in known)}; "
            f"not: {', '.join(wrong)}",
            pytrace=False,
        )
    return dict(marker.kwargs)


def _run(shape: dict[str, Any]) -> Iterator[Cluster]:
    from .errors import GTStoreError
    from .testing import Cluster

    cluster = Cluster(**shape)
    try:
        cluster.start()
    except GTStoreError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    testing = sys.modules.get("gtstore.testing")
    if report.failed and testing is not None:
        values = getattr(item, "funcargs", {}).items()
        # Each once: a fixture may only give another name to what it gets.
        named = {value: name for name, value in values if isinstance(value, testing.Cluster)}
        for cluster, name in named.items():
            text = f"{cluster.ready_line}\n{_last_lines(cluster.log())}"
            report.sections.append((f"Cluster log of {name}", text))
    return report


def _last_lines(log: str) -> str:
    lines = log.splitlines(keepends=True)
    left_out = len(lines) - _LOG_LINES_MAX
    if left_out <= 0:
        return log
    return f"({left_out} lines before)\n{''.join(lines[left_out:])}"
