"""Short names for the fixtures of gtstore.pytest_plugin; the marker gtstore gives the shape."""

from __future__ import annotations

import pytest

from gtstore.client import Client
from gtstore.testing import Cluster


@pytest.fixture
def cluster(gtstore_cluster: Cluster) -> Cluster:
    return gtstore_cluster


@pytest.fixture
def store(gtstore_store: Client) -> Client:
    return gtstore_store
