"""A real cluster for some seconds: for tests, demonstrations and measurements.

::

    with Cluster(nodes=3, replicas=2) as cluster, cluster.connect() as store:
        store.put("key", b"value")
        cluster.kill_node(1)
        assert store.get("key") == b"value"

It starts ``python -m gtstore.managerd`` on free ports and stops everything in the end. Only
processes that it started itself are ever signalled. They end with the program that uses them, also
if that is interrupted or killed, or forgets to stop them: lifeline.py. With pytest there are
fixtures for this: pytest_plugin.py.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from .client import Client, connect
from .errors import ClusterError
from .lifeline import Lifeline
from .results import ClusterStatus, NodeStatus

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 15.0


def wait_until(
    condition: Callable[[], object], what: str, timeout_s: float = 20.0, pause_s: float = 0.01
) -> None:
    """Wait for a condition, not for a duration: it is called again and again until it returns
    something true. Raises TimeoutError that names ``what``."""
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
        respawn: whether the manager starts dead nodes again.

    As a context manager it is started on entry and stopped on exit. ``address`` is its manager's.
    """

    def __init__(
        self,
        nodes: int = 3,
        replicas: int = 2,
        options: Sequence[str] = (),
        port: int = 0,
        node_port: int = 0,
        *,
        respawn: bool = True,
    ) -> None:
        self._lifeline = Lifeline()
        self._command = [
            sys.executable, "-m", "gtstore.managerd", str(nodes), str(replicas),
            "--port", str(port), "--node-port", str(node_port),
            "--commands", "--lifeline", str(self._lifeline.reader),
            *(() if respawn else ("--no-respawn",)), *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile("a+")  # noqa: SIM115  # closed in stop
        self._last_log = ""
        self.ready_line: str = ""
        self.address: str = ""
        self.node_pids: dict[int, int] = {}
        self._doomed: dict[int, int] = {}  # nodes that were killed or stopped, and their processes

    def start(self) -> Cluster:
        """Start the cluster, or the successor of a killed manager, and wait until it is ready.

        Raises ClusterError, with its log, if it does not start, and whatever interrupts the wait;
        nothing is left running then, and this object is of no use any more.
        """
        try:
            self._start_manager()
            self._learn_pids()
        except BaseException:
            self.stop()
            raise
        return self

    def _start_manager(self) -> None:
        self._close_pipes()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            pass_fds=(self._lifeline.reader,),
        )
        assert self._process.stdout is not None
        self.ready_line = self._process.stdout.readline().rstrip("\n")
        match = re.search(r"ready on ([^ ,]+)", self.ready_line)
        if not match:
            self._process.wait(_START_TIMEOUT_S)
            raise ClusterError(f"the cluster did not start: {self.log().strip()}")
        self.address = match[1]
        # A successor must listen where the killed one did.
        at = self._command.index("--port") + 1
        self._command[at] = self.address.rpartition(":")[2]

    def stop(self) -> int:
        """Stop manager and nodes, whatever state they are in; return the manager's exit code. It
        can be called again, and then does nothing.

        Raises TimeoutError if not even SIGKILL ends them.
        """
        code = 0
        process = self._process
        try:
            if process is not None:
                code = self._stop_manager(process)
        finally:
            # The nodes of a manager that was killed, or all, if that was interrupted.
            have_ended = self._lifeline.cut(_STOP_TIMEOUT_S)
            if process is not None:
                if not have_ended:
                    process.kill()
                process.wait()
            self._close_pipes()
            self._process = None
            if not self._log.closed:
                self._last_log = self.log()
                self._log.close()
        if not have_ended:
            raise TimeoutError(f"not within {_STOP_TIMEOUT_S:g} s: the end of all processes")
        return code

    def _stop_manager(self, process: subprocess.Popen[str]) -> int:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            return process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _close_pipes(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdout.close()
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # a command that nobody has read

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
        """The manager's process, of a cluster that was started."""
        assert self._process is not None
        return self._process.pid

    def connect(self, timeout: float = 5.0) -> Client:
        """Return a new client of this cluster. Close it, or use it in a ``with`` statement."""
        return connect(self.address, timeout)

    def status(self) -> ClusterStatus:
        """Return what ``Client.status`` does."""
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
        """What manager and nodes have written to standard error so far."""
        if self._log.closed:
            return self._last_log
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

    def stop_node(self, node: int) -> None:
        """Stop a node in an orderly way; its process has ended when this returns, and the node is
        dead, and stays so until ``restart_node``. A successor of the manager keeps to that;
        ``kill_everything`` ends it. If it is dead already, it stays so too.

        Raises ClusterError if there is no such node, or the manager does not answer.
        """
        self._ask({"stop": node})

    def restart_node(self, node: int) -> None:
        """Start a node that is stopped or dead, or stop it and start it again; its new process
        serves when this returns. What it holds it copies meanwhile: ``wait_in_sync``.

        Raises ClusterError as stop_node does, TimeoutError if the node does not come back.
        """
        self.stop_node(node)
        with self.connect() as client:

            def row() -> NodeStatus:
                return next(row for row in client.status()["nodes"] if row["id"] == node)

            before = row()["incarnation"]
            self._ask({"start": node})
            wait_until(
                lambda: row()["state"] == "alive" and row()["incarnation"] > before,
                f"the return of node {node}",
                _START_TIMEOUT_S,
            )
        self._learn_pids()

    def _ask(self, command: dict[str, int]) -> None:
        """Have the manager carry out a command: managerd.obey."""
        process = self._process
        if process is None or process.poll() is not None:
            raise ClusterError("the cluster has no manager that could do this")
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(json.dumps(command), file=process.stdin, flush=True)
        except BrokenPipeError as error:
            raise ClusterError("the manager has ended") from error
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        if not poll.poll(_STOP_TIMEOUT_S * 1000):
            raise ClusterError(f"the manager did not answer within {_STOP_TIMEOUT_S:g} s")
        answer = process.stdout.readline()
        if not answer:
            raise ClusterError("the manager has ended")
        refusal = json.loads(answer).get("error")
        if refusal:
            raise ClusterError(refusal)

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
