"""A real cluster for some seconds: for tests, demonstrations and measurements.

::

    with Cluster(nodes=3, replicas=2) as cluster, cluster.connect() as store:
        store.put("key", b"value")
        cluster.kill_node(1)
        assert store.get("key") == b"value"

It starts ``python -m gtstore.managerd`` on free ports and stops everything in the end. Only
processes that it started itself are ever signalled.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from .client import Client, connect
from .errors import ClusterError
from .results import ClusterStatus

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 15.0


def wait_until(
    condition: Callable[[], object], what: str, timeout_s: float = 20.0, pause_s: float = 0.01
) -> None:
    """Wait for a condition, not for a duration. Raises TimeoutError that names ``what``."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(pause_s)


class Cluster:
    """A manager and its nodes, as processes of their own.

    Args:
        nodes, replicas: the cluster's shape.
        options: further options of managerd, as on its command line.
        port, node_port: fixed ports; 0 takes free ones.
    """

    def __init__(
        self,
        nodes: int = 3,
        replicas: int = 2,
        options: Sequence[str] = (),
        port: int = 0,
        node_port: int = 0,
    ) -> None:
        self._command = [
            sys.executable, "-m", "gtstore.managerd", str(nodes), str(replicas),
            "--port", str(port), "--node-port", str(node_port), *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile("a+")  # noqa: SIM115  # closed in stop
        self.ready_line: str = ""
        self.address: str = ""
        self.node_pids: dict[int, int] = {}
        self._doomed: dict[int, int] = {}  # nodes that were killed or stopped, and their processes

    def start(self) -> Cluster:
        """Start the cluster, or the successor of a killed manager, and wait until it is ready.

        Raises ClusterError, with its log.
        """
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        assert self._process.stdout is not None
        self.ready_line = self._process.stdout.readline().rstrip("\n")
        match = re.search(r"ready on ([^ ,]+)", self.ready_line)
        if not match:
            self._process.wait(_START_TIMEOUT_S)
            log = self.log()
            self.stop()
            raise ClusterError(f"the cluster did not start: {log}")
        self.address = match[1]
        # A successor must listen where the killed one did.
        at = self._command.index("--port") + 1
        self._command[at] = self.address.rpartition(":")[2]
        self._learn_pids()
        return self

    def stop(self) -> int:
        """Stop manager and nodes, whatever state they are in; return the manager's exit code."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            code = self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        for pid in self.node_pids.values():  # of a manager that was killed
            self._signal(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: not _is_running(pid), f"the end of process {pid}")  # type: ignore[misc]
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()
        self._process = None
        return code

    def __enter__(self) -> Cluster:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # --- looking ---------------------------------------------------------------------------------

    @property
    def manager_pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def connect(self, timeout: float = 5.0) -> Client:
        return connect(self.address, timeout)

    def status(self) -> ClusterStatus:
        with self.connect() as client:
            return client.status()

    def wait_in_sync(self, timeout_s: float = 60.0) -> None:
        """Wait until every partition has all its copies again, and none is being copied."""
        with self.connect() as client:

            def is_in_sync() -> bool:
                status = client.status()
                # The manager may not have noticed yet what was done to a node.
                is_noticed = all(
                    self._doomed.get(node["id"]) != node["pid"] or node["state"] == "dead"
                    for node in status["nodes"]
                )
                is_syncing = any(node["syncing"] for node in status["nodes"])
                return is_noticed and not is_syncing and not status["under_replicated"]

            wait_until(is_in_sync, "all copies of all partitions", timeout_s)

    def log(self) -> str:
        """What manager and nodes have written to standard error."""
        self._log.flush()
        with open(self._log.fileno(), closefd=False) as file:
            file.seek(0)
            return file.read()

    # --- trouble ---------------------------------------------------------------------------------

    def kill_node(self, node: int) -> None:
        """SIGKILL a node; that process is gone when this returns. Unless the cluster has the option
        --no-respawn, its manager starts the node again."""
        pid = self._doomed[node] = self._pid_of(node)
        self._signal(pid, signal.SIGKILL)
        wait_until(lambda: not _is_running(pid), f"the end of node {node}")

    def pause_node(self, node: int) -> None:
        """SIGSTOP a node: it is there, and answers nothing from the return of this call on."""
        pid = self._doomed[node] = self._pid_of(node)
        self._signal(pid, signal.SIGSTOP)
        wait_until(lambda: _state(pid) in "TZ", f"the stop of node {node}")

    def resume_node(self, node: int) -> None:
        """SIGCONT a node."""
        self._doomed.pop(node, None)
        self._signal(self.node_pids[node], signal.SIGCONT)

    def kill_manager(self) -> None:
        """SIGKILL the manager; the nodes go on. ``start`` then starts another one, which takes them
        over."""
        assert self._process is not None
        self._learn_pids()
        self._process.kill()
        self._process.wait()

    def kill_everything(self) -> None:
        """SIGKILL manager and nodes, all at once. With --data-dir, ``start`` brings them back."""
        self.kill_manager()
        for pid in self.node_pids.values():
            self._signal(pid, signal.SIGKILL)
        for node, pid in self.node_pids.items():
            wait_until(lambda pid=pid: not _is_running(pid), f"the end of node {node}")  # type: ignore[misc]

    def pause_manager(self) -> None:
        """SIGSTOP the manager."""
        os.kill(self.manager_pid, signal.SIGSTOP)
        wait_until(lambda: _state(self.manager_pid) in "TZ", "the stop of the manager")

    def resume_manager(self) -> None:
        """SIGCONT the manager."""
        os.kill(self.manager_pid, signal.SIGCONT)

    def _learn_pids(self) -> None:
        self.node_pids = {node["id"]: node["pid"] for node in self.status()["nodes"]}

    def _pid_of(self, node: int) -> int:
        """A node's newest process, if the manager is there to ask."""
        if self._process is not None and self._process.poll() is None:
            self._learn_pids()
        return self.node_pids[node]

    def _signal(self, pid: int, number: int) -> None:
        if _is_running(pid):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass


def _state(pid: int) -> str:
    """A process's state as the kernel names it: T is stopped, Z is dead and not reaped."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def _is_running(pid: int) -> bool:
    """Whether a process is there and is a storage node: its number may belong to another by now."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"gtstore.storaged" in file.read()  # empty once the process is a zombie
    except OSError:
        return False
