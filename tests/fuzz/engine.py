"""Makes damaged frames, sends them, and watches what the processes make of them.

A case is some bytes for one connection: valid frames with bytes changed, cut out, doubled or put
in, with lengths and counts at their edges, or two frames grown together. They are sent, the sending
side is closed, and everything that comes back must be whole, valid frames. After each case the
process answers PING; in the end its threads, files and memory are what they were, and keys that no
case names have their values.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from gtstore.connection import call_once
from gtstore.testing import Cluster, wait_until
from gtstore.wire import messages
from gtstore.wire.codec import decode, encode, encode_record
from gtstore.wire.messages import (
    HEADER_SIZE,
    Commit,
    Entry,
    Execute,
    Get,
    Message,
    NextPrimary,
    Write,
)
from gtstore.wire.stream import FrameBuffer

Item = TypeVar("Item")

NODES, REPLICAS = 3, 2
GUARDED = 50
MEMORY_MARGIN = 24 * messages.MIB
"""A process keeps some of what it has freed; a leak of some bytes a case would show beyond."""
TIMEOUT_S = 10.0


class Chance(Protocol):
    """Where decisions come from: a seeded random.Random, or hypothesis."""

    def randint(self, low: int, high: int) -> int: ...
    def choice(self, items: Sequence[Item]) -> Item: ...


class Violation(AssertionError):
    """A process did what it must not do. ``data`` is the case that it did it after."""

    def __init__(self, text: str, data: bytes) -> None:
        super().__init__(f"{text}; after the bytes {data[:2000].hex()}")


def valid_frames(epoch: int, time_us: int) -> list[bytes]:
    """Requests as clients send them, of keys that are there and that are not; some that are others'
    or wrong."""
    keys = [b"fuzz%d" % i for i in range(4)]
    requests: list[Message] = [messages.Ping(), messages.ClusterInfo(), messages.GetMap(epoch)]
    for i, key in enumerate(keys):
        partition = sum(key) % (NODES * messages.PARTITIONS_PER_NODE)
        entry = encode_record(Entry(time_us + i, i, i, 4 * (i == 3), None, b"v" * i * (i < 3)))
        requests += [
            Get(epoch, partition, key),
            Get(0, 0, key),
            Write(epoch, partition, key, entry),
            Commit(partition, entry[:16], key),
            Execute(epoch, partition, key, 1 + i, b"", entry[:20] + b"\0" + b"7"),
            messages.Scan(epoch, partition, key, b"fu" * (i % 2), i % 2),
            messages.KeyNodes(key),
            NextPrimary(i, key),
        ]
    token = bytes(16)
    requests += [
        messages.Register(token, 1, 1, 1, 1, ()),
        messages.MapUpdate(token, epoch, ()),
        messages.Pong(2, 1, 1, 1, epoch, time_us, 1, 1, 0),
    ]
    return [encode(request, i) for i, request in enumerate(requests, 1)]


EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF)
LENGTHS = (0, 1, 11, 12, 500, 501, 0xFFFF, messages.FRAME_SIZE_MAX, 0xFFFF_FFFF)


def damage(frames: Sequence[bytes], chance: Chance) -> bytes:
    """A case: one to three frames, some of them damaged."""
    out = bytearray()
    for _ in range(chance.randint(1, 3)):
        frame = bytearray(chance.choice(frames))
        for _ in range(chance.randint(0, 3)):
            chance.choice(DAMAGES)(frame, frames, chance)
        out += frame
    return bytes(out)


def _change_a_byte(frame: bytearray, _: Sequence[bytes], chance: Chance) -> None:
    if frame:
        frame[chance.randint(0, len(frame) - 1)] = chance.choice(EDGES)


def _flip_a_bit(frame: bytearray, _: Sequence[bytes], chance: Chance) -> None:
    if frame:
        frame[chance.randint(0, len(frame) - 1)] ^= 1 << chance.randint(0, 7)


def _cut(frame: bytearray, _: Sequence[bytes], chance: Chance) -> None:
    del frame[chance.randint(0, len(frame)) :]


def _take_out(frame: bytearray, _: Sequence[bytes], chance: Chance) -> None:
    at = chance.randint(0, len(frame))
    del frame[at : at + chance.randint(1, 8)]


def _put_in(frame: bytearray, _: Sequence[bytes], chance: Chance) -> None:
    at = chance.randint(0, len(frame))
    frame[at:at] = bytes([chance.choice(EDGES)]) * chance.randint(1, 300)


def _double(frame: bytearray, _: Sequence[bytes], chance: Chance) -> None:
    at = chance.randint(0, len(frame))
    frame[at:at] = frame[at : at + chance.randint(1, 40)]


def _grow_together(frame: bytearray, frames: Sequence[bytes], chance: Chance) -> None:
    other = chance.choice(frames)
    frame[chance.randint(0, len(frame)) :] = other[chance.randint(0, len(other)) :]


def _change_a_number(frame: bytearray, _: Sequence[bytes], chance: Chance) -> None:
    """Lengths, sizes and counts at their edges, wherever they may stand."""
    size = chance.choice((2, 4, 8))
    if len(frame) >= size:
        at = chance.randint(0, len(frame) - size)
        frame[at : at + size] = (chance.choice(LENGTHS) % 256**size).to_bytes(size, "big")


def _lengthen(frame: bytearray, _: Sequence[bytes], chance: Chance) -> None:
    """The header's length: right for what stands there, or another one."""
    if len(frame) >= HEADER_SIZE:
        right = len(frame) - HEADER_SIZE
        length = chance.choice((right, right, right + 1, max(right - 1, 0), *LENGTHS))
        frame[8:12] = length.to_bytes(4, "big")


DAMAGES = (
    _change_a_byte, _flip_a_bit, _cut, _take_out, _put_in, _double, _grow_together,
    _change_a_number, _lengthen, _lengthen,
)  # fmt: skip


@dataclass
class State:
    """What a process takes of its machine."""

    threads: int
    files: int
    memory: int

    @classmethod
    def of(cls, pid: int) -> State:
        with open(f"/proc/{pid}/status") as file:
            status = dict(line.split(":", 1) for line in file)
        files = len(os.listdir(f"/proc/{pid}/fd"))
        return cls(int(status["Threads"]), files, int(status["VmRSS"].split()[0]) * 1024)


@dataclass
class Target:
    """A process under fire."""

    name: str
    host: str
    port: int
    pid: int

    def ping(self) -> messages.Pong:
        reply = call_once(self.name, self.host, self.port, messages.Ping(), TIMEOUT_S)
        assert isinstance(reply, messages.Pong)
        return reply


@dataclass
class Fuzzer:
    """Fires at a cluster's first node and its manager by turns."""

    cluster: Cluster
    cases: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    without_answer: int = 0
    resets: int = 0

    def __post_init__(self) -> None:
        status = self.cluster.status()
        self.targets = [
            self._target("node 1", status["nodes"][0]["address"], self.cluster.node_pids[1]),
            self._target("manager", self.cluster.address, self.cluster.manager_pid),
        ]
        self.epoch = int(status["cluster"], 16) << 32 | status["epoch"]
        with self.cluster.connect(timeout=30) as client:
            client.put_many(self.guarded())
        self.frames = valid_frames(self.epoch, self.targets[0].ping().time)
        self.before = {target.name: State.of(target.pid) for target in self.targets}

    @staticmethod
    def _target(name: str, address: str, pid: int) -> Target:
        host, _, port = address.rpartition(":")
        return Target(name, host, int(port), pid)

    @staticmethod
    def guarded() -> dict[str, bytes]:
        """Keys that no case comes near, with their values."""
        return {f"a guarded key {i}": b"value %d" % i for i in range(GUARDED)}

    def fire(self, chance: Chance) -> None:
        """One case, at one of the targets, and the probe after it. Raises Violation."""
        self.try_bytes(self.targets[self.cases % 2], damage(self.frames, chance))

    def try_bytes(self, target: Target, data: bytes) -> None:
        """Send these bytes; look at what comes back, and whether the process is well after it."""
        self.cases += 1
        try:
            self._look_at(target, data, self._exchange(target, data))
            target.ping()
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"{target.name}: {error!r}", data) from error

    def _exchange(self, target: Target, data: bytes) -> bytes:
        came = bytearray()
        with socket.create_connection((target.host, target.port), TIMEOUT_S) as sock:
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                while part := sock.recv(65536):
                    came += part
            except ConnectionError:
                self.resets += 1  # it had closed while we were still sending
        return bytes(came)

    def _look_at(self, target: Target, data: bytes, came: bytes) -> None:
        buffer = FrameBuffer()
        frames = buffer.feed(came)
        if buffer.size:
            raise Violation(f"{target.name} answered with {came[-100:].hex()}", data)
        self.without_answer += not frames
        for kind, flags, _, body in frames:
            message = decode(kind, body)
            if kind < 0x80 or flags:
                raise Violation(f"{target.name} answered with {message}", data)
            self.answers[message.name] += 1
            if isinstance(message, messages.Error):
                self.errors[messages.ERRORS[message.code].name] += 1
                if message.code == messages.INTERNAL:
                    raise Violation(f"{target.name} has an internal error", data)

    def after(self) -> dict[str, State]:
        """The processes' states in the end. Raises AssertionError if they are not as before."""
        with self.cluster.connect(timeout=30) as client:
            assert client.get_many(list(self.guarded())) == self.guarded(), "a guarded key changed"
        for target in self.targets:
            before = self.before[target.name]
            stored = target.ping().bytes
            wait_until(
                lambda target=target, before=before, stored=stored: _is_as(  # type: ignore[misc]
                    before, State.of(target.pid), 3 * stored
                ),
                f"threads, files and memory of {target.name} as before: {before}",
            )
        for word in ("Traceback", "internal error"):
            assert word not in self.cluster.log(), self.cluster.log()[-3000:]
        return {target.name: State.of(target.pid) for target in self.targets}


def _is_as(before: State, now: State, stored: int) -> bool:
    return (
        now.threads <= before.threads + 1  # one for the client that has just asked
        and now.files <= before.files + 1
        and now.memory <= before.memory + stored + MEMORY_MARGIN
    )
