"""Servers of other stores, as processes on free ports: Redis and memcached.

``find_redis`` and ``find_memcached`` say in one line what is missing; the benchmarks then leave
those rows out.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Self

import machine
from gtstore.testing import wait_until

redis = machine.optional("redis")

HOST = "127.0.0.1"
MEMCACHED_MB = 1024

IN_MEMORY: Mapping[str, object] = {"appendonly": "no"}
DURABLE: Mapping[str, object] = {
    "appendonly": "yes",
    "appendfsync": "always",
    "auto-aof-rewrite-percentage": 0,
}
"""Redis gets what is best for it: it never rewrites its log."""


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Servers:
    """So many processes, each with a port of its own; stopped in the end."""

    def __init__(self, count: int) -> None:
        self.ports = [free_port() for _ in range(count)]
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def command(self, number: int) -> list[str]:
        raise NotImplementedError

    def is_ready(self, port: int) -> bool:
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            for number in range(len(self.ports)):
                self._processes.append(subprocess.Popen(self.command(number)))
            for port in self.ports:
                name = f"{type(self).__name__}: the server on port {port}"
                wait_until(partial(self.is_ready, port), name)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()

    def bind(self) -> Self:
        """To the CPUs in turn, as GT Store's manager does it with its nodes."""
        for number, pid in enumerate(self.pids):
            machine.bind(pid, number)
        return self


class RedisServers(Servers):
    """They know nothing of each other, or the others follow the first one if it ``replicates``.
    No snapshots are made."""

    def __init__(
        self,
        binary: str,
        count: int,
        *,
        replicates: bool = False,
        settings: Mapping[str, object] = IN_MEMORY,
        place: Path | None = None,
    ) -> None:
        super().__init__(count)
        self._binary = binary
        self._replicates = replicates
        self._settings = settings
        self._given = place

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory(prefix="redis-")
        self._place = self._given or Path(self._scratch.name)
        return super().__enter__()

    def stop(self) -> None:
        super().stop()
        self._scratch.cleanup()

    def command(self, number: int) -> list[str]:
        place = self._place / str(number)
        place.mkdir(parents=True)
        options = {
            "port": self.ports[number], "bind": HOST, "dir": place, "save": "",
            "repl-diskless-sync-delay": 0, "logfile": place / "log", **self._settings,
        }  # fmt: skip
        if self._replicates and number:
            options["replicaof"] = f"{HOST} {self.ports[0]}"
        command = [self._binary]
        for name, value in options.items():
            command += [f"--{name}", *(str(value).split() or [""])]
        return command

    def is_ready(self, port: int) -> bool:
        try:
            with redis.Redis(HOST, port) as server:
                for name in self._settings:
                    assert server.config_get(name) == {name: str(self._settings[name])}
                is_follower = self._replicates and port != self.ports[0]
                link: str = server.info("replication").get("master_link_status", "")
                return not is_follower or link == "up"
        except redis.ConnectionError:
            return False


class Memcacheds(Servers):
    """With enough memory that nothing is thrown out."""

    def __init__(self, binary: str, count: int) -> None:
        super().__init__(count)
        self._binary = binary

    def command(self, number: int) -> list[str]:
        options = {"l": HOST, "p": self.ports[number], "U": 0, "m": MEMCACHED_MB}
        user = os.geteuid()
        if not user:  # it refuses to be root unless that is said
            options["u"] = pwd.getpwuid(user).pw_name
        return [self._binary, *(word for k, v in options.items() for word in (f"-{k}", str(v)))]

    def is_ready(self, port: int) -> bool:
        try:
            with socket.create_connection((HOST, port)) as connection:
                connection.sendall(b"version\r\n")
                return connection.recv(64).startswith(b"VERSION")
        except OSError:
            return False


# --- what is there -------------------------------------------------------------------------------


def find_redis(given: str) -> str | None:
    """The server's path, or None, having said in one line what is missing."""
    missing = []
    found = shutil.which(given)
    if found is None:
        missing.append(f"the program {given} (on Debian: apt install redis-server)")
    if redis is None:
        missing.append("the Python package redis")
    if missing:
        print("without the rows of Redis: missing", " and ".join(missing))
        return None
    assert found is not None
    parser = "hiredis" if redis.utils.HIREDIS_AVAILABLE else "in Python (hiredis is not there)"
    version = " ".join(_version(found).split()[:3])
    print(f"{version}, redis-py {redis.__version__}, its parser {parser}")
    return found


def find_memcached(given: str) -> str | None:
    """The same for memcached."""
    found = shutil.which(given)
    if found is None:
        print(
            f"without the rows of memcached: missing the program {given} "
            "(on Debian: apt install memcached)"
        )
        return None
    print(_version(found).strip())
    return found


def _version(program: str) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True).stdout
