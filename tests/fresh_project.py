"""``python -m tests.fresh_project DIR``: what a project gets that installs the wheel in DIR.

In a directory and a virtual environment of its own, outside of this checkout, the wheel is
installed with pytest, mypy and pyright, and nothing else. The project there has a module and a
test, with the fixtures that came with the wheel, which kills a node; it passes, and both checkers
accept it in their strict modes. ``make test`` runs this after it has built the wheel.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

FILES = {
    "pyproject.toml": """\
[tool.pytest.ini_options]
addopts = ["--strict-markers", "--strict-config", "-p", "no:cacheprovider"]
filterwarnings = ["error"]

[tool.mypy]
strict = true

[tool.pyright]
typeCheckingMode = "strict"
venvPath = "."
venv = ".venv"
""",
    "hits.py": """\
import asyncio

import gtstore


class Hits:
    def __init__(self, store: gtstore.Client) -> None:
        self._store = store
        self._names = store.as_mapping("hits/")

    def add(self, page: str) -> int:
        return self._store.increment(f"hits/{page}")

    def pages(self) -> dict[str, int]:
        return {page: int(count) for page, count in self._names.items()}


async def add_many(address: str, page: str, count: int) -> int:
    async with gtstore.connect_async(address) as store:
        numbers = await asyncio.gather(*(store.increment(f"hits/{page}") for _ in range(count)))
    return max(numbers)
""",
    "test_hits.py": """\
import asyncio

import pytest

import gtstore
from gtstore.testing import Cluster
from hits import Hits, add_many


def test_pages(gtstore_store: gtstore.Client) -> None:
    hits = Hits(gtstore_store)
    assert [hits.add("index"), hits.add("index"), hits.add("about")] == [1, 2, 1]
    assert hits.pages() == {"index": 2, "about": 1}


@pytest.mark.gtstore(nodes=4, replicas=3)
def test_a_node_dies(gtstore_cluster: Cluster, gtstore_store: gtstore.Client) -> None:
    hits = Hits(gtstore_store)
    hits.add("index")
    primary = gtstore_store.where("hits/index").owners[0]
    gtstore_cluster.kill_node(primary)
    assert hits.add("index") == 2
    assert asyncio.run(add_many(gtstore_cluster.address, "index", 50)) == 52
    gtstore_cluster.wait_in_sync()
    assert hits.pages() == {"index": 52}
""",
}


def main() -> None:
    (wheel,) = Path(sys.argv[1]).resolve().glob("*.whl")
    with tempfile.TemporaryDirectory(prefix="fresh-project-") as name:
        directory = Path(name)
        for file, text in FILES.items():
            (directory / file).write_text(text)
        venv.create(directory / ".venv", with_pip=True)
        python = str(directory / ".venv/bin/python")
        # Whatever leads to this checkout is left behind.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

        def run(*arguments: str) -> None:
            subprocess.run([python, "-m", *arguments], cwd=directory, env=environment, check=True)

        run(
            *("pip", "install", "--quiet", "--disable-pip-version-check"),
            *(str(wheel), "pytest", "mypy", "pyright[nodejs]>=1.1.390"),
        )
        run("pytest", "-q")
        run("mypy", "hits.py", "test_hits.py")
        run("pyright", "hits.py", "test_hits.py")
    print("a fresh project that installs the wheel: its tests and both type checkers pass")


if __name__ == "__main__":
    main()
