"""Takes the pictures of `gtclient status` and `gtclient top` that README.md shows, as text.

It starts a cluster of five nodes with three replicas, lets a client work on it, and captures what a
terminal of 100 columns shows (tmux) while a node is killed, is away, and has returned. What stands
between the two markers of README.md is replaced.

    python docs/screenshots.py [README.md]
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gtstore
from gtstore.testing import Cluster, wait_until

BEGIN = "<!-- screenshots: made by docs/screenshots.py -->"
END = "<!-- end of screenshots -->"
COLUMNS, LINES = 100, 14
NODE = 2


class Terminal:
    """Runs one command at a time, each in a tmux server of its own: one that ends cannot be asked
    for a new session yet, and says so only then."""

    def __init__(self, address: str, directory: str) -> None:
        self._runs = 0
        self._environment = {
            **os.environ,
            "GTSTORE_MANAGER": address,
            "LANG": "C.UTF-8",
            "TERM": "screen",
            "TMUX_TMPDIR": directory,  # its sockets stay there
        }

    def _tmux(self, *arguments: str) -> str:
        name = f"gtstore-screenshots-{os.getpid()}-{self._runs}"
        done = subprocess.run(
            ["tmux", "-L", name, "-f", os.devnull, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    @contextmanager
    def running(self, command: str) -> Iterator[Callable[[], str]]:
        """Run gtclient with these arguments; yields what returns the screen's text."""
        self._runs += 1
        program = f"{sys.executable} -m gtstore.cli {command}; sleep 1000"
        size = ("-x", str(COLUMNS), "-y", str(LINES))
        self._tmux("new-session", "-d", "-s", "it", *size, program)
        try:
            yield lambda: self._tmux("capture-pane", "-p", "-t", "it").rstrip()
        finally:
            self._tmux("kill-server")


def is_drawn(screen: str, state: str, requests: bool = False) -> bool:
    """Whether the whole table is there, with the node in this state, and clients at work."""
    rows = [line.split() for line in screen.splitlines()]
    by_node = {row[0]: row[1] for row in rows if row and row[0].isdecimal()}
    is_idle = requests and " 0 requests/s" in screen
    return len(by_node) == 5 and by_node.get(str(NODE)) == state and not is_idle


def captured(terminal: Terminal, command: str, state: str) -> str:
    """The screen of a command once it shows the node in this state, as a block of Markdown."""
    last = ""

    def is_there() -> bool:
        nonlocal last
        last = screen()
        return is_drawn(last, state, command.startswith("top"))

    with terminal.running(command) as screen:
        wait_until(is_there, f"{command} with node {NODE} {state}", pause_s=0.05)
    text = "\n".join(line.rstrip() for line in last.splitlines())
    return f"```text\n$ gtclient {command}\n{text}\n```\n"


def work(address: str, stop: threading.Event) -> None:
    """Half puts, half gets, as fast as one thread can."""
    with gtstore.connect(address, timeout=20) as store:
        number = 0
        while not stop.is_set():
            number += 1
            store.put(f"user{number % 1000}", b"x" * 100)
            store.get(f"user{number * 7 % 1000}")


def pictures(cluster: Cluster, terminal: Terminal) -> Iterator[str]:
    yield "Five nodes, three replicas, and one client at work:\n"
    yield captured(terminal, "top", "alive")
    cluster.kill_node(NODE)
    cluster.stop_node(NODE)
    yield (
        f"Node {NODE} was killed (`kill -9`), and is kept from returning. The others stand in for "
        "it, and soon hold three copies of everything again:\n"
    )
    yield captured(terminal, "top", "dead")
    yield captured(terminal, "status", "dead")
    cluster.restart_node(NODE)
    cluster.wait_in_sync()
    yield (
        "It has returned, empty, and has copied what it is to hold; it is a backup now, so it gets "
        "writes, and no gets:\n"
    )
    yield captured(terminal, "top", "alive")
    yield captured(terminal, "status", "alive")


def is_free(*ports: int) -> bool:
    for port in ports:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def main() -> int:
    if shutil.which("tmux") is None:
        print("docs/screenshots.py needs tmux", file=sys.stderr)
        return 2
    readme = Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")
    before, _, rest = readme.read_text().partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        print(f"{readme} has no markers: {BEGIN} and {END}", file=sys.stderr)
        return 2
    ports = (9001, 10001) if is_free(9001, *range(10001, 10006)) else (0, 0)
    stop = threading.Event()
    with Cluster(5, 3, port=ports[0], node_port=ports[1]) as cluster:
        client = threading.Thread(target=work, args=(cluster.address, stop))
        client.start()
        try:
            with tempfile.TemporaryDirectory() as directory:
                text = "\n".join(pictures(cluster, Terminal(cluster.address, directory)))
        finally:
            stop.set()
            client.join()
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
