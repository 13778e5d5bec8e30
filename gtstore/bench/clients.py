"""The client processes of a benchmark, as the program that has started them sees them."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from ..errors import OperationFailed
from .stopping import Stopping

_PAUSE_S: Final = 0.1
_READ_SIZE: Final = 65536


class Plan(NamedTuple):
    """What one client process is to do.

    ``workload`` is a key of WORKLOADS, or None for puts and gets in turn. ``warmup`` operations
    come before the ``operations`` that are measured. All keys begin with ``prefix``.
    """

    manager: str
    timeout_s: float
    prefix: str
    workload: str | None
    records: int
    client: int
    clients: int
    warmup: int
    operations: int
    value_size: int
    seed: int


class _Process:
    """One of them: its process, what it has said in part, and what in whole lines."""

    def __init__(self, plan: Plan) -> None:
        self.number = plan.client + 1
        self.operations = 0
        self.said: dict[str, dict[str, Any]] = {}
        self._rest = b""
        # A session of its own: a terminal's Ctrl-C is for gtclient, which ends it.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gtstore.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.tell(plan._asdict())

    def tell(self, what: dict[str, Any]) -> None:
        """Send it a line. If it is gone, its end of the other pipe says so."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(what).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass

    def read(self) -> None:
        """Take what it says. Raises OperationFailed if it has failed or ended."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), _READ_SIZE)
        if not data:
            code = self.process.wait()
            raise OperationFailed(
                f"client process {self.number} ended too early, with exit code {code}, after "
                f"{self.operations:,} operations"
            )
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            self.operations = said.get("operations", self.operations)
            if said["state"] == "failed":
                raise OperationFailed(
                    f"client process {self.number} failed after {said['operations']:,} operations "
                    f"and {said['after_s']:g} s: {said['error']}"
                )
            self.said[said["state"]] = said

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass


class Clients:
    """Client processes, one for each plan. When the context ends, they have ended.

    Args:
        note: called now and then with how many operations they have done in all.
    """

    def __init__(
        self, plans: Sequence[Plan], stopping: Stopping, note: Callable[[int], None]
    ) -> None:
        self._plans = plans
        self._stopping = stopping
        self._note = note
        self._processes: list[_Process] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Clients:
        try:
            for plan in self._plans:
                self._processes.append(process := _Process(plan))
                assert process.process.stdout is not None
                self._selector.register(process.process.stdout, selectors.EVENT_READ, process)
        except OSError as error:
            self._end()
            raise OperationFailed(
                f"cannot start client process {len(self._processes) + 1}: {error.strerror}"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        for process in self._processes:
            process.end()
        self._selector.close()

    def begin(self) -> None:
        """Let them measure."""
        for process in self._processes:
            process.tell({})

    def wait(self, state: str) -> list[dict[str, Any]]:
        """Wait until each has said that it is in this state, and return what they said.

        Raises OperationFailed if one has failed; and what ``Stopping.check`` does.
        """
        while any(state not in process.said for process in self._processes):
            ready = self._selector.select(_PAUSE_S)
            self._stopping.check()  # first: what stops us may have stopped the cluster too
            for key, _ in ready:
                key.data.read()
            self._note(sum(process.operations for process in self._processes))
        return [process.said[state] for process in self._processes]
