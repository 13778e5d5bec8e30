"""The Python of README.md does what is written behind it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gtstore.testing import Cluster
from gtstore.wire.describe.__main__ import DOCS

from .test_by_hand import ports_of, with_ports
from .test_tutorial import blocks_of

pytestmark = pytest.mark.cluster

README = (DOCS.parent / "README.md").read_text(encoding="utf-8")
BLOCKING, ASYNCIO, TESTING = (block.text for block in blocks_of(README) if block.kind == "python")

RESULT = re.compile(r" {4}(\w.*?)  # ((?:[A-Z]\w+\(|b'|\{|\d|None).*)")
"""A line with what it returns, and perhaps words behind that."""


@pytest.mark.gtstore(nodes=7, replicas=3)
def test_the_client(cluster: Cluster) -> None:
    """Each line, and what it returns: of a version, it says nothing."""
    first, empty, head, *lines = BLOCKING.splitlines()
    assert (first, empty, head[:20]) == ("import gtstore", "", "with gtstore.connect")
    results = 0
    with cluster.connect() as store:
        for line in lines:
            match = RESULT.fullmatch(line)
            if not match:
                exec(line.strip(), {"store": store})
                continue
            returned = repr(eval(match[1], {"store": store}))
            returned = re.sub(r"Version\([^)]*\)", "Version(...)", returned)
            returned = returned.replace(", syncing=()", "")
            assert match[2].startswith(returned), line
            results += 1
    assert results > 10


@pytest.mark.gtstore(nodes=7, replicas=3)
def test_the_client_for_asyncio(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    with cluster.connect() as store:
        store.put("apple", b"1")
    exec(with_ports(ASYNCIO, ports_of(cluster)), {})
    assert capsys.readouterr().out == "[b'value2', 1]\nb'apple'\n"


def test_the_fixtures(tmp_path: Path) -> None:
    """What stands in the section Testing is a file of tests that pass."""
    (tmp_path / "test_it.py").write_text(TESTING)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "\n2 passed in " in done.stdout, done.stdout + done.stderr
