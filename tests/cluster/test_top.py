"""gtclient's tables and top over a real cluster, in pipes and on a terminal (tmux)."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from gtstore import cli
from gtstore.connection import call_once, parse_address
from gtstore.testing import Cluster, wait_until
from gtstore.top import watch
from gtstore.wire.messages import GetStatistics, Statistics

pytestmark = pytest.mark.cluster

SCREENSHOTS = Path(__file__).parents[2] / "docs" / "screenshots.py"


def test_nodes_count(gtstore_cluster: Cluster) -> None:
    """Each request is counted at the nodes that it goes to."""
    with gtstore_cluster.connect() as store:
        nodes = store.put("key1", b"1").nodes
        for _ in range(5):
            store.get("key1")
        store.append("key1", b"2")
        found = {}
        for node in store.status()["nodes"]:
            host, port = parse_address(node["address"])
            reply = call_once("a node", host, port, GetStatistics(), 5)
            assert isinstance(reply, Statistics)
            found[node["id"]] = (reply.gets, reply.writes, reply.executes)
    assert found[nodes[0]] == (5, 1, 1)
    assert found[nodes[1]] == (0, 2, 0)


def test_blocks(gtstore_cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    """In a pipe, a block of text for each look; with --json, a line."""
    command = ["--manager", gtstore_cluster.address, "top", "--count", "2", "--interval", "0.01"]
    assert cli.main(command) == 0
    first, second = capfd.readouterr().out.split("\n\n")
    for block in (first, second):
        assert block.startswith("3 of 3 nodes alive, epoch 1, ")
        assert "\x1b" not in block
    assert cli.main(["--json", *command]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [json.loads(line)["alive"] for line in lines] == [3, 3]


def test_without_the_manager(gtstore_cluster: Cluster) -> None:
    """It says so, and goes on when there is one again."""
    with gtstore_cluster.connect() as store:
        found = watch(lambda: store, 0.01, None)
        assert next(found)["alive"] == 3
        gtstore_cluster.kill_manager()
        assert "connection refused" in next(found)["error"]
        assert next(found)["since_s"] >= 0
        gtstore_cluster.start()
        wait_until(lambda: next(found).get("alive") == 3, "the nodes, as before")
        found.close()


def test_no_manager(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--manager", "127.0.0.1:1", "top"]) == 3
    assert "connection refused" in capfd.readouterr().err


class Screen:
    """A terminal with gtclient at the other end."""

    def __init__(self, cluster: Cluster, *command: str, **environment: str) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        unset = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PYTHONIOENCODING"}
        inherited = {name: value for name, value in os.environ.items() if name not in unset}
        self._ours = ours
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gtstore.cli", "--manager", cluster.address, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=inherited | {"TERM": "xterm", "PYTHONIOENCODING": "utf-8"} | environment,
        )
        os.close(theirs)
        self._shown = b""

    def read(self, until: str = "") -> str:
        """What has been shown when that is there, or when the program has ended."""
        while not (until and until in self.text) and select.select([self._ours], [], [], 30)[0]:
            try:
                self._shown += os.read(self._ours, 65536)
            except OSError:
                break  # the other end is closed
        return self.text

    @property
    def text(self) -> str:
        return self._shown.decode(errors="replace").replace("\r", "")

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """The exit code."""
        try:
            return self._process.wait(30)
        finally:
            self._process.kill()
            os.close(self._ours)


def test_status_on_a_terminal(gtstore_shared_cluster: Cluster) -> None:
    """A table, with colours; with NO_COLOR without, and a terminal that is dumb gets plain text."""
    pytest.importorskip("rich")
    looks = {}
    for name, environment in (
        ("usual", {}),
        ("colourless", {"NO_COLOR": "1"}),
        ("dumb", {"TERM": "dumb"}),
    ):
        screen = Screen(gtstore_shared_cluster, "status", **environment)
        looks[name] = screen.read()
        assert screen.end() == 0
    assert "\x1b[32malive" in looks["usual"]
    assert "\u2500" in looks["usual"]
    assert "\u2500" in looks["colourless"]
    assert not re.search(r"\x1b\[[0-9;]*[34][0-9]", looks["colourless"])
    assert "alive" in looks["dumb"]
    assert "\x1b" not in looks["dumb"]
    assert "\u2500" not in looks["dumb"]


def test_a_terminal_without_unicode(gtstore_shared_cluster: Cluster) -> None:
    """What it cannot show is escaped, and its tables are of ASCII."""
    pytest.importorskip("rich")
    for command, shown in (
        (("where", "k\u00e9y"), "key k\\xe9y: partition"),
        (("where", "[red]k\x1b[31m"), "key [red]k\\x1b[31m: partition"),
        (("status",), "alive"),
        (("top", "--count", "1", "--interval", "0.01"), "alive"),
    ):
        screen = Screen(gtstore_shared_cluster, *command, PYTHONIOENCODING="ascii")
        text = screen.read()
        assert screen.end() == 0, text
        assert shown in text
        assert text.isascii()


def test_control_c_leaves_top(gtstore_shared_cluster: Cluster) -> None:
    """With exit code 0, and the terminal as it was: its own screen, and the cursor."""
    pytest.importorskip("rich")
    screen = Screen(gtstore_shared_cluster, "top", "--interval", "0.05")
    assert "\x1b[?1049h" in screen.read("requests/s")
    screen.interrupt()
    text = screen.read()
    assert screen.end() == 0
    assert "\x1b[?1049l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "Traceback" not in text


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_the_pictures_of_the_readme(tmp_path: Path) -> None:
    """The script that takes them, into a file of its own."""
    spec = importlib.util.spec_from_file_location("screenshots", SCREENSHOTS)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{script.BEGIN}\nearlier pictures\n{script.END}\nafter\n")
    done = subprocess.run(
        [sys.executable, SCREENSHOTS, readme],
        env={**os.environ, "TERM": "dumb"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "earlier pictures" not in text
    assert text.count("$ gtclient top") == 3
    assert text.count("$ gtclient status") == 2
    assert " dead " in text
