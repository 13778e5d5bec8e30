"""TUTORIAL.md is right: it is worked through from its first line to its last.

Its blocks are done in their order, in a temporary directory:

- ``python`` blocks have a comment before them, ``<!-- file: NAME -->``, and become that file;
- ``console`` blocks have commands, ``$ ...``, and what they print;
- ``pycon`` blocks are typed at one Python prompt (doctest).

In what is printed, ``...`` stands for anything in its line, and alone in a line for any lines.

The commands of PREPARED are not run. In place of ``make run``, the managerd that it starts runs on
free ports, which stand in for the default ones wherever the tutorial has these. GTSTORE_MANAGER has
its address, for gtclient.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gtstore.testing import Cluster
from gtstore.wire.describe.__main__ import DOCS

from .test_by_hand import needs_tools, ports_of, with_ports

pytestmark = pytest.mark.cluster

TUTORIAL = (DOCS / "TUTORIAL.md").read_text(encoding="utf-8")
MAKEFILE = (DOCS.parent / "Makefile").read_text(encoding="utf-8")

PREPARED = (
    "git clone REPOSITORY gtstore && cd gtstore",
    ". .venv/bin/activate",
    "mkdir ../hits && cd ../hits",
    "pip install --quiet pytest",
)
"""What has been done where this test runs."""


class Block(NamedTuple):
    file: str
    kind: str
    text: str


def blocks_of(document: str) -> list[Block]:
    pattern = r"(?:^<!-- file: (\S+) -->\n)?^```(\w+)\n(.*?)^```$"
    return [Block(*found) for found in re.findall(pattern, document, re.MULTILINE | re.DOTALL)]


def steps_of(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with what it prints."""
    assert text.startswith("$ ")
    for step in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, printed = step.partition("\n")
        yield command, printed


def assert_printed(printed: str, text: str) -> None:
    """The text is what the tutorial prints; how wide its columns are does not matter."""
    if text and not text.endswith("\n"):
        text += "\n"  # gtclient get adds it on a terminal only
    pattern = re.escape(re.sub(" +", " ", printed))
    pattern = re.sub(r"^\\\.\\\.\\\.\\\n", r"(?:.*\\n)*", pattern, flags=re.MULTILINE)
    pattern = pattern.replace(r"\.\.\.", ".*")
    text = re.sub(" +", " ", text)
    assert re.fullmatch(pattern, text), f"the tutorial says:\n{printed}\nnow it prints:\n{text}"


def type_in(session: str, names: dict[str, Any]) -> None:
    """Type a pycon block at a Python prompt that has these names."""
    test = doctest.DocTestParser().get_doctest(session, {}, "TUTORIAL.md", None, None)
    test.globs = names  # not a copy: the next block goes on with them
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(test, out=said.append, clear_globs=False)
    assert not said, "".join(said)


def run(command: str, folder: Path, cluster: Cluster, ports: dict[str, str]) -> str:
    """Run a command of the tutorial; return what it prints."""
    if command == "make run":
        nodes = sorted(map(int, ports))[1:]  # without the manager's
        line = re.sub(r"ports [\d -]+", f"ports {nodes[0]}-{nodes[-1]}", cluster.ready_line)
        return with_ports(line, {port: default for default, port in ports.items()})
    done = subprocess.run(
        ["bash", "-c", with_ports(command, ports)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "GTSTORE_MANAGER": cluster.address,
        },
        timeout=60,
    )
    return with_ports(done.stdout, {port: default for default, port in ports.items()})


@needs_tools
def test_the_tutorial(tmp_path: Path) -> None:
    """Everything that it tells the reader to do, in its order."""
    nodes, replicas = re.findall(r"^(?:NODES|REPLICAS) \?= (\d+)$", MAKEFILE, re.MULTILINE)
    names: dict[str, Any] = {"exit": lambda: None}
    not_run = []
    with Cluster(int(nodes), int(replicas)) as cluster:
        ports = ports_of(cluster)
        for file, kind, text in blocks_of(TUTORIAL):
            if kind == "python":
                (tmp_path / file).write_text(with_ports(text, ports))
            elif kind == "pycon":
                type_in(with_ports(text, ports), names)
            else:
                assert kind == "console"
                for command, printed in steps_of(text):
                    if command in PREPARED:
                        not_run.append(command)
                    else:
                        assert_printed(printed, run(command, tmp_path, cluster, ports))
    assert tuple(not_run) == PREPARED


@pytest.mark.parametrize(
    ("printed", "text"),
    [
        ("blue\n", "red\n"),
        ("blue\n", "blue\nred\n"),
        ("blue\n...\n", "red\nblue\n"),
        ("node ... is\n", "node 1\n2 is\n"),
        ("", "blue"),
        ("blue\n", ""),
    ],
)
def test_it_notices_what_is_wrong(printed: str, text: str) -> None:
    with pytest.raises(AssertionError, match="the tutorial says"):
        assert_printed(printed, text)


@pytest.mark.parametrize(
    ("printed", "text"),
    [
        ("blue\n", "blue"),
        ("...\nblue\n", "blue"),
        ("...\nblue\n", "red\ngreen\nblue\n"),
        ("a  ... b\n...\nc ...\n", "a   x   b\nc d\n"),
    ],
)
def test_it_lets_pass_what_is_right(printed: str, text: str) -> None:
    assert_printed(printed, text)


def test_it_notices_a_wrong_prompt() -> None:
    type_in(">>> 1 + 1\n2\n", {})
    with pytest.raises(AssertionError, match="Expected"):
        type_in(">>> 1 + 1\n3\n", {})
