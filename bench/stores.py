"""A client of each store that is compared, all with the same methods.

How each one keeps k copies of a value: GT Store does it by itself. The others are 7 servers that
know nothing of each other, and their clients choose k of them by a hash of the key, set the value
on each, and get it from the first; so nobody promises that two clients agree on the latest value.
WAIT is one Redis primary with k-1 replicas.

- Redis, redis-py as documented: redis.Redis objects; one set after the other; pipelines for batches
- Redis, bare connections: redis.Connection objects, the command packed once, sent to all k, then
  the k answers are read; a batch is sent to all servers, then read from all
- Redis, WAIT: the same bare connections; SET and WAIT k-1 sent together, get from the primary
- memcached, pymemcache and pylibmc: one set after the other; set_many, set_multi for batches.
  pymemcache gets TCP_NODELAY, as the others have it; pylibmc is there with its documentation's
  binary protocol, and with memcached's text protocol
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple
from zlib import crc32

from gtstore import Client
from machine import optional

redis = optional("redis")
pymemcache = optional("pymemcache")
pylibmc = optional("pylibmc")

NODES = 7
VALUE = b"x" * 100
HOST = "127.0.0.1"

Put = Callable[[str, bytes], object]
Get = Callable[[str], object]
PutMany = Callable[[dict[str, bytes]], object]
GetMany = Callable[[list[str]], Mapping[str, bytes | None]]


class Times(NamedTuple):
    """Of single calls, in nanoseconds."""

    puts: array[int]
    gets: array[int]

    def extend(self, more: Times) -> None:
        self.puts.extend(more.puts)
        self.gets.extend(more.gets)


def no_times() -> Times:
    return Times(array("Q"), array("Q"))


class Connected:
    """One client and its connections."""

    put: Put
    get: Get
    put_many: PutMany
    get_many: GetMany
    server_pids: list[int]

    def client_cpu_s(self) -> float:
        """CPU time that the client has had so far."""
        return time.process_time()

    def run(self, pairs: int) -> None:
        """Put, then get, of key0, key1, ..."""
        put, get = self.put, self.get
        for i in range(pairs):
            key = f"key{i}"
            put(key, VALUE)
            get(key)

    def run_timed(self, pairs: int) -> Times:
        """The same, each call timed."""
        times = no_times()
        for i in range(pairs):
            time_pair(self, f"key{i}", times)
        return times

    def close(self) -> None:
        pass


def time_pair(client: Connected, key: str, times: Times) -> None:
    now = time.perf_counter_ns
    start = now()
    client.put(key, VALUE)
    middle = now()
    client.get(key)
    end = now()
    times.puts.append(middle - start)
    times.gets.append(end - middle)


# --- GT Store ------------------------------------------------------------------------------------


class Ours(Connected):
    def __init__(self, client: Client, server_pids: list[int]) -> None:
        self.put = client.put
        self.get = client.get
        self.put_many = client.put_many
        self.get_many = client.get_many
        self.close = client.close  # type: ignore[method-assign]
        self.server_pids = server_pids


# --- clients that choose the servers -------------------------------------------------------------


class Hashing(Connected):
    """Chooses k of its servers by a hash of the key."""

    def __init__(self, servers: Sequence[Any], copies: int, server_pids: list[int]) -> None:
        count = len(servers)
        self._rings = [[servers[(at + j) % count] for j in range(copies)] for at in range(count)]
        self._servers = servers
        self.server_pids = server_pids

    def owners(self, key: str) -> list[Any]:
        return self._rings[crc32(key.encode()) % len(self._rings)]

    def shares(self, items: dict[str, bytes]) -> Iterator[tuple[Any, dict[str, bytes]]]:
        """Each server with what it gets of a batch."""
        shares: dict[int, dict[str, bytes]] = {}
        by_number = {}
        for key, value in items.items():
            for server in self.owners(key):
                by_number[id(server)] = server
                shares.setdefault(id(server), {})[key] = value
        for number, share in shares.items():
            yield by_number[number], share

    def key_shares(self, keys: list[str]) -> Iterator[tuple[Any, list[str]]]:
        """Each server with the keys that are read from it."""
        shares: dict[int, tuple[Any, list[str]]] = {}
        for key in keys:
            server = self.owners(key)[0]
            shares.setdefault(id(server), (server, []))[1].append(key)
        yield from shares.values()


class DocumentedRedis(Hashing):
    def __init__(self, ports: Sequence[int], copies: int, server_pids: list[int]) -> None:
        super().__init__([redis.Redis(host=HOST, port=port) for port in ports], copies, server_pids)

    def put(self, key: str, value: bytes) -> None:
        for server in self.owners(key):
            server.set(key, value)

    def get(self, key: str) -> Any:
        return self.owners(key)[0].get(key)

    def put_many(self, items: dict[str, bytes]) -> None:
        for server, share in self.shares(items):
            pipeline = server.pipeline(transaction=False)
            for key, value in share.items():
                pipeline.set(key, value)
            pipeline.execute()

    def get_many(self, keys: list[str]) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        for server, share in self.key_shares(keys):
            pipeline = server.pipeline(transaction=False)
            for key in share:
                pipeline.get(key)
            found.update(zip(share, pipeline.execute(), strict=True))
        return found

    def close(self) -> None:
        for server in self._servers:
            server.close()


class BareRedis(Hashing):
    def __init__(self, ports: Sequence[int], copies: int, server_pids: list[int]) -> None:
        connections = [redis.Connection(host=HOST, port=port) for port in ports]
        for connection in connections:
            connection.connect()
        super().__init__(connections, copies, server_pids)
        self._pack = connections[0].pack_command
        self._pack_all = connections[0].pack_commands

    def put(self, key: str | bytes, value: bytes) -> None:
        command = self._pack("SET", key, value)
        data = key if isinstance(key, bytes) else key.encode()
        owners = self._rings[crc32(data) % len(self._rings)]
        for owner in owners:
            owner.send_packed_command(command)
        for owner in owners:
            assert owner.read_response() == b"OK"

    def get(self, key: str) -> Any:
        owner = self.owners(key)[0]
        owner.send_packed_command(self._pack("GET", key))
        return owner.read_response()

    def put_many(self, items: dict[str, bytes]) -> None:
        shares = list(self.shares(items))
        for server, share in shares:
            commands = [("SET", key, value) for key, value in share.items()]
            server.send_packed_command(self._pack_all(commands))
        for server, share in shares:
            for _ in share:
                assert server.read_response() == b"OK"

    def get_many(self, keys: list[str]) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        shares = list(self.key_shares(keys))
        for server, share in shares:
            server.send_packed_command(self._pack_all([("GET", key) for key in share]))
        for server, share in shares:
            for key in share:
                found[key] = server.read_response()
        return found

    def close(self) -> None:
        for server in self._servers:
            server.disconnect()


class WaitingRedis(Connected):
    """SET, and WAIT for the replicas, sent together to the primary."""

    def __init__(self, ports: Sequence[int], copies: int, server_pids: list[int]) -> None:
        self._primary = redis.Connection(host=HOST, port=ports[0])
        self._primary.connect()
        self._others = copies - 1
        self.server_pids = server_pids

    def put(self, key: str | bytes, value: bytes) -> None:
        primary = self._primary
        commands = [("SET", key, value), ("WAIT", self._others, 0)]
        primary.send_packed_command(primary.pack_commands(commands))
        assert primary.read_response() == b"OK"
        assert primary.read_response() >= self._others

    def get(self, key: str) -> Any:
        primary = self._primary
        primary.send_packed_command(primary.pack_command("GET", key))
        return primary.read_response()

    def put_many(self, items: dict[str, bytes]) -> None:
        primary = self._primary
        commands: list[tuple[Any, ...]] = [("SET", key, value) for key, value in items.items()]
        commands.append(("WAIT", self._others, 0))
        primary.send_packed_command(primary.pack_commands(commands))
        for _ in items:
            assert primary.read_response() == b"OK"
        assert primary.read_response() >= self._others

    def get_many(self, keys: list[str]) -> dict[str, bytes | None]:
        primary = self._primary
        primary.send_packed_command(primary.pack_commands([("GET", key) for key in keys]))
        return {key: primary.read_response() for key in keys}

    def close(self) -> None:
        self._primary.disconnect()


class Pymemcache(Hashing):
    def __init__(self, ports: Sequence[int], copies: int, server_pids: list[int]) -> None:
        servers = [pymemcache.Client((HOST, port), no_delay=True) for port in ports]
        super().__init__(servers, copies, server_pids)

    def put(self, key: str, value: bytes) -> None:
        for server in self.owners(key):
            server.set(key, value, noreply=False)  # or it does not wait until the value is there

    def get(self, key: str) -> Any:
        return self.owners(key)[0].get(key)

    def put_many(self, items: dict[str, bytes]) -> None:
        for server, share in self.shares(items):
            assert not server.set_many(share, noreply=False)

    def get_many(self, keys: list[str]) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        for server, share in self.key_shares(keys):
            found.update(server.get_many(share))
        return found

    def close(self) -> None:
        for server in self._servers:
            server.close()


class Pylibmc(Hashing):
    """With what its documentation begins with."""

    IS_BINARY = True

    def __init__(self, ports: Sequence[int], copies: int, server_pids: list[int]) -> None:
        behaviors = {"tcp_nodelay": True, "ketama": True}
        make = partial(pylibmc.Client, binary=self.IS_BINARY, behaviors=behaviors)
        super().__init__([make([f"{HOST}:{port}"]) for port in ports], copies, server_pids)

    def put(self, key: str, value: bytes) -> None:
        for server in self.owners(key):
            assert server.set(key, value)

    def get(self, key: str) -> Any:
        return self.owners(key)[0].get(key)

    def put_many(self, items: dict[str, bytes]) -> None:
        for server, share in self.shares(items):
            assert not server.set_multi(share)

    def get_many(self, keys: list[str]) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        for server, share in self.key_shares(keys):
            found.update(server.get_multi(share))
        return found

    def close(self) -> None:
        for server in self._servers:
            server.disconnect_all()


class TextPylibmc(Pylibmc):
    IS_BINARY = False
