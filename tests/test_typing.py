"""The annotations, as a user's type checker sees them: tests/typing has programs, right and wrong
ones, and mypy and pyright judge them with the strictest settings of a user, not with ours.

They find the package as an installed one, with its py.typed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gtstore
import gtstore.errors
import gtstore.testing

ROOT = Path(gtstore.__file__).parents[1]
PROGRAMS = [path for folder in ("tests/typing", "examples") for path in ROOT.glob(f"{folder}/*.py")]
PUBLIC = sorted(
    {"gtstore.errors", "gtstore.testing"}
    | {
        f"{value.__module__}.{value.__qualname__}"
        for value in (getattr(gtstore, name) for name in gtstore.__all__)
        if value is not gtstore.__version__
    }
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's directory, with all the programs."""
    for path in PROGRAMS:
        shutil.copy(path, tmp_path)
    return tmp_path


def check(directory: Path, *command: str) -> str:
    """Run a checker there; what it prints."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        # Otherwise pyright asks the network whether there is a newer one.
        "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout or done.stderr


def test_mypy(project: Path) -> None:
    """Right programs pass, wrong ones are refused: an ignored line that is right is an error."""
    said = check(project, "mypy", "--strict", "--config-file=", ".")
    assert said == f"Success: no issues found in {len(PROGRAMS)} source files\n"


def test_pyright(project: Path) -> None:
    """The same for pyright."""
    settings = {"typeCheckingMode": "strict", "reportUnnecessaryTypeIgnoreComment": True}
    (project / "pyrightconfig.json").write_text(json.dumps(settings))
    said = json.loads(check(project, "pyright", "--outputjson", "--pythonpath", sys.executable))
    assert said["generalDiagnostics"] == []
    assert said["summary"]["filesAnalyzed"] == len(PROGRAMS)


@pytest.fixture(scope="module")
def symbols(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What pyright knows of all modules, by full names."""
    report = check(
        tmp_path_factory.mktemp("verify"),
        "pyright", "--verifytypes", "gtstore", "--ignoreexternal", "--outputjson",
        "--pythonpath", sys.executable,
    )  # fmt: skip
    return {symbol["name"]: symbol for symbol in json.loads(report)["typeCompleteness"]["symbols"]}


@pytest.mark.parametrize("name", PUBLIC)
def test_types_are_complete(symbols: dict[str, dict[str, object]], name: str) -> None:
    """Every public name, and all that belongs to it, has a type that no checker has to guess. (The
    modules of nodes and manager are no programs' business.)"""
    found = {
        symbol: known
        for symbol, known in symbols.items()
        if symbol == name or symbol.startswith(f"{name}.")
    }
    assert found
    for symbol, known in found.items():
        assert known["isTypeKnown"] is True, (symbol, known["diagnostics"])
        assert known["isTypeAmbiguous"] is False, (symbol, known["diagnostics"])


@pytest.mark.parametrize(
    "thing", [gtstore, gtstore.Client, gtstore.AsyncClient, gtstore.testing.Cluster]
)
def test_every_public_name_is_in_a_program(thing: object) -> None:
    """Whoever adds one shows its type in tests/typing."""
    text = "".join(path.read_text() for path in PROGRAMS if path.parent.name == "typing")
    words = set(re.findall(r"\w+", text))
    names = getattr(thing, "__all__", None) or [name for name in vars(thing) if name[0] != "_"]
    assert set(names) - words == set()
