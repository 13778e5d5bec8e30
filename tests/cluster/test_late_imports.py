"""Once there is a client, nothing is loaded any more: a module is a file, and files may have run
out where somebody says ``except gtstore.GTStoreError``."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gtstore.testing import Cluster

pytestmark = pytest.mark.cluster

WITHOUT_FILES = """
import asyncio, os, resource, signal, sys
import gtstore

IMPOSSIBLE_HOST = "x" * 64 + ".localhost:9001"  # is not looked up

class NoFiles:
    def find_spec(self, name, path=None, target=None):
        raise OSError(24, f"too many open files: {name} was to be loaded")

def fails(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except gtstore.GTStoreError as error:
        return str(error)
    raise AssertionError("it did not fail")

def kill(status, where):
    (pid,) = (node["pid"] for node in status["nodes"] if node["id"] == where.owners[0])
    os.kill(pid, signal.SIGKILL)

def use(address):
    {first}
    sys.meta_path.insert(0, NoFiles())
    for name in ("OutcomeUnknown", "BatchFailed", "Version", "PutResult"):
        getattr(gtstore, name)
    assert "is no host name" in fails(Client, IMPOSSIBLE_HOST)
    with Client(address) as store:
        store.put("a", b"1", ttl=100)
        assert store.increment("a") == 2
        fails(store.compare_and_put, "a", b"2", expected=b"1")
        fails(store.put, "\\x1b", 5)
        assert set(store.put_many({str(i): b"v" for i in range(500)})) and list(store.scan())
        kill(store.status(), store.where("a"))
        assert store.get("a") == b"2"
        store.delete("a")
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 100))
        assert "too many open files" in fails(Client, address)

async def use_async(address):
    {first}
    sys.meta_path.insert(0, NoFiles())
    async def fails_async(call, *arguments, **options):
        try:
            await call(*arguments, **options)
        except gtstore.GTStoreError as error:
            return str(error)
        raise AssertionError("it did not fail")
    async def connect(address):
        await Client(address)
    await fails_async(connect, IMPOSSIBLE_HOST)
    async with Client(address) as store:
        await store.put("a", b"1", ttl=100)
        assert await store.increment("a") == 2
        await fails_async(store.compare_and_put, "a", b"2", expected=b"1")
        assert await store.put_many({str(i): b"v" for i in range(500)})
        kill(await store.status(), await store.where("a"))
        assert await store.get("a") == b"2"
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 100))
        assert "too many open files" in await fails_async(connect, address)

{run}
"""


@pytest.mark.parametrize(
    ("first", "run"),
    [
        ("Client = gtstore.connect", "use(sys.argv[1])"),
        ("from gtstore.client import Client", "use(sys.argv[1])"),
        (
            "from gtstore.async_client import AsyncClient as Client",
            "asyncio.run(use_async(sys.argv[1]))",
        ),
    ],
    ids=["connect", "Client", "AsyncClient"],
)
def test_nothing_is_loaded_late(cluster: Cluster, first: str, run: str) -> None:
    code = WITHOUT_FILES.replace("{first}", first).replace("{run}", run)
    command = [sys.executable, "-c", code, cluster.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
