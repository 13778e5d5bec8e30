"""Starts node processes by forking them from one process that has everything loaded.

The manager starts ``python -m gtstore.storaged --nursery`` as a subprocess: one process without
threads, which forks a node for each line on its standard input. (The manager itself has threads, so
it must not fork.) Nodes that were forked from one parent share its memory, and so the CPU's caches,
as long as they only read it: when it was introduced, the ratio of bench/floor.py at k = 1 rose from
0.25 to 0.29. And a cluster starts faster.

The nursery keeps a dead node's process entry until it is told to ``reap`` it, so a process number
means the same process until the manager has seen its end. If the manager dies, the nursery leaves
too; the nodes go on. The manager watches and signals nodes through a pidfd, which needs no
parenthood.

On the pipes: a JSON object a line. ``{"start": {...}}`` is answered with ``{"pid": N}``,
``{"reap": N}`` with ``{"code": N}``, negative for a signal, as subprocess has it.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .connection import describe
from .errors import ClusterError
from .membership import Evidence

_ANSWER_TIMEOUT_S = 5.0
_REAP_TIMEOUT_S = 1.0
_WORTH_MENTIONING_S = 1.0
_THREADS_LOOKED_AT = 256
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class NodeProcess:
    """A node's process, as the manager holds it.

    ``exited`` is set once it has ended. When it ``is_reaped`` too, ``exit_code`` says how; None if
    nobody knows.
    """

    def __init__(self, pid: int, incarnation: int, nursery: Nursery) -> None:
        """Raises ProcessLookupError if there is none with this number, OSError for too many
        open files."""
        self.pid = pid
        self.incarnation = incarnation
        self.exited = threading.Event()
        self.is_reaped = False
        self.exit_code: int | None = None
        self._nursery = nursery
        self._pidfd = os.pidfd_open(pid)
        self.started = start_time(pid)
        self._work = (0.0, 0)

    def __del__(self) -> None:
        # Not before nobody holds this any more: the number may be another file's next.
        if hasattr(self, "_pidfd"):
            os.close(self._pidfd)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to this process and no other; nothing happens if it has ended."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass

    def look(self) -> Look:
        """What its threads have done so far, and their states."""
        return Look.at(self.pid)

    def gets_on(self) -> bool:
        """Whether it has done anything worth mentioning since it last had when it was asked for, or
        since its start: used a processor, read or written."""
        ran_s, size = self._work
        work = sum(ran for ran, _ in self.look().threads.values()), _moved_size(self.pid)
        if work[0] <= ran_s + _WORTH_MENTIONING_S and work[1] <= size:
            return False
        self._work = work
        return True

    def has_ended(self) -> bool:
        """Also if nobody has reaped it yet."""
        return self._await_end(0)

    def _await_end(self, timeout_ms: int | None) -> bool:
        poll = select.poll()  # select.select takes no file number above 1023
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(timeout_ms))

    def wait(self) -> int | None:
        """Wait for its end, set ``exited``, and return its exit code; None if nobody knows it."""
        self._await_end(None)
        self.exited.set()
        self.exit_code = self._nursery.reap(self.pid)
        self.is_reaped = True
        return self.exit_code


class Look(NamedTuple):
    """What a process's threads have done up to a moment: by their numbers, how long each has run,
    and waited for a processor (None where the system does not tell); and their states then."""

    time: float
    threads: dict[str, tuple[float, float | None]]
    states: str

    @classmethod
    def at(cls, pid: int) -> Look:
        threads = {}
        states = ""
        for number in _thread_numbers(pid):
            try:
                with open(f"/proc/{pid}/task/{number}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
                threads[number] = _times(pid, number, fields)
            except OSError:
                continue  # it has ended meanwhile
            states += fields[0]
        return cls(time.monotonic(), threads, states)

    def since(self, before: Look | None) -> Evidence:
        """What was done since then; without that only the states tell."""
        if before is None:
            return Evidence(0.0, 0.0, 0.0, self.states)
        ran_s = waited_s = 0.0
        for number, (ran_now_s, waited_now_s) in self.threads.items():
            ran_before_s, waited_before_s = before.threads.get(number, (0.0, 0.0))
            ran_s += ran_now_s - ran_before_s
            waited_s += (waited_now_s or 0.0) - (waited_before_s or 0.0)
        is_told = all(waited is not None for _, waited in self.threads.values())
        seconds = self.time - before.time
        return Evidence(seconds, ran_s, waited_s if is_told else None, self.states)


def _moved_size(pid: int) -> int:
    """How many bytes a process has read and written, so far."""
    try:
        with open(f"/proc/{pid}/io") as file:
            return sum(int(line.split()[1]) for line in file)
    except OSError:
        return 0  # it has ended, or the system does not tell


def _thread_numbers(pid: int) -> list[str]:
    """Of its first threads, without which it does nothing; there may be thousands more, one for
    each connection."""
    try:
        return sorted(os.listdir(f"/proc/{pid}/task"), key=int)[:_THREADS_LOOKED_AT]
    except OSError:
        return []  # it has ended, and was reaped


def _times(pid: int, number: str, fields: list[str]) -> tuple[float, float | None]:
    """How long a thread has run and waited, in seconds; ``fields`` are those of its stat, which
    knows the first, in steps of 10 ms. Raises OSError if it has ended."""
    try:
        with open(f"/proc/{pid}/task/{number}/schedstat") as file:
            ran_ns, waited_ns, _ = file.read().split()
    except FileNotFoundError:  # the kernel was built without it
        return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND, None
    return int(ran_ns) / 1e9, int(waited_ns) / 1e9


def start_time(pid: int) -> int:
    """When a process was started, in the kernel's ticks since the machine was; 0 if it is gone.

    Raises OSError if that cannot be found out: it may be there.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0


class Nursery:
    """The manager's end. Nodes inherit ``lifeline``, the number of an open file."""

    def __init__(self, lifeline: int | None = None) -> None:
        self._lifeline = lifeline
        self._lock = threading.Lock()  # guards the pipes: one question, then its answer
        self._is_silent = False  # it once did not answer; guarded by _lock
        self._process = self._launch()

    def _launch(self) -> subprocess.Popen[str]:
        # It must be this same package, wherever the program was started from.
        paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        return subprocess.Popen(
            [sys.executable, "-m", "gtstore.storaged", "--nursery"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=() if self._lifeline is None else (self._lifeline,),
            # Control-C on the terminal is for the manager, which then stops the nodes in order.
            start_new_session=True,
        )

    def start(self, options: dict[str, Any], incarnation: int) -> NodeProcess:
        """Start a node with these options (storaged's, as JSON). Raises ClusterError."""
        with self._lock:
            if self._is_silent:
                self._end()
                try:
                    self._process = self._launch()
                except OSError as error:
                    raise ClusterError(f"no process can be started: {describe(error)}") from error
                self._is_silent = False
        answer = self._ask({"start": options})
        if answer is None:
            raise ClusterError("the process that starts storage nodes does not answer")
        try:
            return NodeProcess(answer["pid"], incarnation, self)
        except OSError as error:
            # Nobody could see its end. The number is its own as long as it is not reaped.
            os.kill(answer["pid"], signal.SIGKILL)
            self.reap(answer["pid"])
            raise ClusterError(f"its process cannot be watched: {describe(error)}") from error

    def adopt(self, pid: int, incarnation: int, started: int) -> NodeProcess | None:
        """Take over a node that another manager has started (M4); None if it is gone."""
        try:
            process = NodeProcess(pid, incarnation, self)
        except ProcessLookupError:
            return None
        is_it = process.started == started and started and not process.has_ended()
        return process if is_it else None

    def reap(self, pid: int) -> int | None:
        # A death is told after this, so it must not wait for long.
        answer = self._ask({"reap": pid}, _REAP_TIMEOUT_S)
        return None if answer is None else answer["code"]

    def close(self) -> None:
        """Let the process end; nodes that still run go on."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()
            except OSError:
                pass  # it has ended already
        try:
            self._process.wait(_ANSWER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(
        self, question: dict[str, Any], timeout_s: float = _ANSWER_TIMEOUT_S
    ) -> dict[str, Any] | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            if self._is_silent:
                return None
            try:
                self._process.stdin.write(json.dumps(question) + "\n")
                self._process.stdin.flush()
                poll = select.poll()
                poll.register(self._process.stdout, select.POLLIN)
                # A late answer would be taken for that to the next question.
                self._is_silent = not poll.poll(timeout_s * 1000)
                if self._is_silent:
                    return None
                answer: dict[str, Any] = json.loads(self._process.stdout.readline())
            except (OSError, ValueError):
                self._is_silent = True  # it has ended
                return None
            return answer


def serve(run_node: Callable[[dict[str, Any]], int]) -> None:
    """The nursery's own loop. It returns at the end of its input; ``run_node`` runs in each
    child."""
    gc.collect()
    gc.freeze()  # or the first collection in a child would write to every shared page
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, int | None]
        if "start" in command:
            answer = {"pid": _fork(run_node, command["start"])}
        else:
            answer = {"code": _reap(command["reap"])}
        try:
            print(json.dumps(answer), flush=True)
        except BrokenPipeError:
            os._exit(0)  # the manager was killed meanwhile; a node that was started notices that


def _reap(pid: int) -> int | None:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return None  # it was started by another nursery, which has ended


def _fork(run_node: Callable[[dict[str, Any]], int], options: dict[str, Any]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        # The pipes are the nursery's: a node that held them open would hide its end.
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(2, 1)
        code = run_node({**options, "parent": parent})
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            # What the interpreter's end would do.
            logging.shutdown()
            sys.stderr.flush()
        finally:
            os._exit(code)
