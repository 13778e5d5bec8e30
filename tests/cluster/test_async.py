"""AsyncClient where it differs from Client: cancelled calls, event loops, one connection a node."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator

import pytest

import gtstore
from gtstore.testing import Cluster, wait_until

pytestmark = pytest.mark.cluster

CALLS = 10_000
GROWTH_MAX = 3 << 20
"""Bytes that a node may take more after further calls of the same kind, on the same keys."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(3, 2) as running:
        yield running


def inodes_of(pid: int) -> set[str]:
    """The sockets that a process has open."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue  # it was closed meanwhile
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def connections_of(pid: int) -> int:
    """How many connections a process has with this one, as the kernel knows them."""
    with open("/proc/net/tcp") as file:
        rows = [line.split() for line in file][1:]
    ours = {row[1]: row[2] for row in rows if row[9] in inodes_of(os.getpid())}
    theirs = inodes_of(pid)
    return sum(row[9] in theirs and ours.get(row[2]) == row[1] for row in rows)


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def cancelled_midway(store: gtstore.AsyncClient, seed: int) -> tuple[int, int]:
    """Begin CALLS operations, and cancel those that are under way once a tenth has ended. Returns
    how many ended, and how many were cancelled."""
    drawn = random.Random(seed)
    ended = 0

    async def call(number: int) -> None:
        nonlocal ended
        key = f"cancel/{number % 500}"
        match drawn.randrange(4):
            case 0:
                await store.get(key)
            case 1:
                await store.increment(f"{key}/n")
            case 2:
                await store.get_many([key, f"{key}/n"])
            case _:
                await store.put(key, b"x" * 100)
        ended += 1

    tasks = [asyncio.create_task(call(number)) for number in range(CALLS)]
    while ended < CALLS // 10:
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    cancelled = [one for one in outcomes if isinstance(one, asyncio.CancelledError)]
    assert [one for one in outcomes if one is not None and one not in cancelled] == []
    return ended, len(cancelled)


def test_ten_thousand_cancelled_calls() -> None:
    """The client works on, over the same connections, and takes no late reply for another's; the
    nodes have no connection more, and no memory."""
    with Cluster(3, 2) as cluster:

        async def main() -> None:
            async with gtstore.connect_async(cluster.address, timeout=20) as store:
                await store.put_many({f"key{i}": f"value {i}" for i in range(300)})
                before = {pid: connections_of(pid) for pid in cluster.node_pids.values()}
                assert set(before.values()) == {1}
                await cancelled_midway(store, 1)
                memory = {pid: resident(pid) for pid in cluster.node_pids.values()}
                for seed in range(2, 6):
                    ended, cancelled = await cancelled_midway(store, seed)
                    assert ended < CALLS
                    assert cancelled > 0
                    found = await asyncio.gather(*(store.get(f"key{i}") for i in range(300)))
                    assert found == [b"value %d" % i for i in range(300)]
                await store.put("after", b"1")
                assert await store.get("after") == b"1"
                assert {pid: connections_of(pid) for pid in before} == before
                for pid, size in memory.items():
                    assert resident(pid) - size < GROWTH_MAX
                connections = store._session._connections.values()
                assert all(not connection.awaiting for connection in connections)

        asyncio.run(main())
        assert cluster.status()["under_replicated"] == []


def test_cancelled_puts_are_completed(cluster: Cluster) -> None:
    """C7: a put that all owners have is committed, though its caller did not wait: nobody has to
    complete it later."""

    async def main() -> None:
        async with gtstore.connect_async(cluster.address) as store:
            await store.put_many({f"late{i}": b"before" for i in range(50)})  # all are connected
            tasks = [asyncio.create_task(store.put(f"late{i}", b"x")) for i in range(50)]
            await asyncio.sleep(0)  # begun
            await asyncio.sleep(0)  # sent
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            found = await store.get_many([f"late{i}" for i in range(50)])
            assert set(found.values()) == {b"x"}
            assert store._session._source._late

    asyncio.run(main())


def test_what_was_not_sent_is_not_done(cluster: Cluster) -> None:
    """A call that is cancelled in the turn in which it began has done nothing."""

    async def main() -> None:
        async with gtstore.connect_async(cluster.address) as store:
            await store.put("unsent", b"before")
            tasks = [asyncio.create_task(store.put("unsent", b"after")) for _ in range(50)]
            asyncio.get_running_loop().call_soon(lambda: [task.cancel() for task in tasks])
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(one, asyncio.CancelledError) for one in outcomes)
            assert await store.get("unsent") == b"before"

    asyncio.run(main())


def test_another_event_loop(cluster: Cluster) -> None:
    """The error says what is wrong; the loop is that of the first call, not that of the import or
    of the construction."""
    store = gtstore.connect_async(cluster.address)

    async def put() -> None:
        await store.put("loop", b"1")

    with asyncio.Runner() as runner:
        runner.run(put())
        with pytest.raises(gtstore.GTStoreError, match="another event loop"):
            asyncio.run(put())
        with pytest.raises(gtstore.GTStoreError, match="another event loop"):
            asyncio.run(store.close())
        runner.run(store.close())
        with pytest.raises(gtstore.GTStoreError, match="was closed"):
            runner.run(put())
    other = gtstore.connect_async(cluster.address)

    async def get() -> bytes | None:
        return await other.get("loop")

    with asyncio.Runner() as runner:
        assert runner.run(get()) == b"1"
        loop = runner.get_loop()
        connections = list(other._session._connections.values())
    assert loop.is_closed()
    with pytest.raises(gtstore.GTStoreError, match="which is closed"):
        asyncio.run(get())
    asyncio.run(other.close())
    assert [connection.sock.fileno() for connection in connections] == [-1, -1]


def test_one_connection_a_node(cluster: Cluster) -> None:
    """However many tasks there are; and small frames of one turn go together."""

    async def main() -> None:
        async with gtstore.connect_async(cluster.address, timeout=30) as store:
            await asyncio.gather(*(store.put(f"many{i}", b"x") for i in range(2000)))
            found = await asyncio.gather(*(store.get(f"many{i}") for i in range(2000)))
            assert set(found) == {b"x"}
            assert len(store._session._connections) == 4  # the manager's, too
            largest = await asyncio.gather(
                *(store.put("large", b"x" * (5 << 20)) for _ in range(8))
            )
            assert len({result.version for result in largest}) == 8
            assert await store.get("large") == b"x" * (5 << 20)

    asyncio.run(main())


def test_tasks_on_one_key(cluster: Cluster) -> None:
    """The tasks of one client are as good as clients of their own: nothing is lost."""

    async def main() -> None:
        async with gtstore.connect_async(cluster.address, timeout=30) as store:
            numbers = await asyncio.gather(*(store.increment("sum") for _ in range(500)))
            assert sorted(numbers) == list(range(1, 501))
            lengths = await asyncio.gather(*(store.append("text", b"x") for _ in range(200)))
            assert sorted(lengths) == list(range(1, 201))
            outcomes = await asyncio.gather(
                *(store.compare_and_put("once", f"{i}", expected=None) for i in range(100)),
                return_exceptions=True,
            )
            won = [one for one in outcomes if isinstance(one, gtstore.PutResult)]
            assert len(won) == 1
            assert all(
                isinstance(one, gtstore.VersionMismatch | gtstore.PutResult) for one in outcomes
            )

    asyncio.run(main())


def test_a_hung_node_keeps_nothing(cluster: Cluster) -> None:
    """A node stands still, and calls for it are cancelled again and again: what is kept for it
    goes with its connection, once it was silent for a whole timeout."""
    with Cluster(1, 1) as cluster:

        async def main() -> None:
            async with gtstore.connect_async(cluster.address, timeout=0.7) as store:
                await store.put("key", b"before")
                first = store._session._connections[1]
                cluster.pause_node(1)
                for _ in range(20):
                    tasks = [asyncio.create_task(store.get("key")) for _ in range(100)]
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                with pytest.raises(gtstore.DeadlineExceeded, match="no answer within"):
                    await store.get("key")
                assert not first.awaiting
                assert first.sock.fileno() == -1
                cluster.resume_node(1)
                assert await store.get("key") == b"before"

        asyncio.run(main())


def test_close_ends_what_is_under_way() -> None:
    """A write that was sent may have happened: OutcomeUnknown, at once."""
    with Cluster(1, 1) as cluster:

        async def main() -> None:
            store = await gtstore.connect_async(cluster.address, timeout=60)
            await store.put("key", b"before")
            cluster.pause_node(1)
            put = asyncio.create_task(store.put("key", b"after"))
            get = asyncio.create_task(store.get("key"))
            while not store._session._connections[1].awaiting:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            await store.close()
            with pytest.raises(gtstore.OutcomeUnknown, match="it was closed"):
                await put
            with pytest.raises(gtstore.GTStoreError, match="it was closed"):
                await get

        asyncio.run(main())
        cluster.resume_node(1)
        with cluster.connect() as store:
            wait_until(lambda: store.get("key") in (b"before", b"after"), "an answer")


def test_close_in_the_middle_of_batches(cluster: Cluster) -> None:
    """They end, each key with its own outcome, and nothing is opened any more."""

    async def main() -> None:
        for turns in range(2, 12, 3):
            store = await gtstore.connect_async(cluster.address)
            items = {f"close{i}": b"x" for i in range(2000)}
            batch = asyncio.create_task(store.put_many(items))
            for _ in range(turns):
                await asyncio.sleep(0)
            await store.close()
            with pytest.raises(gtstore.BatchFailed) as failed:
                await batch
            assert len(failed.value.results) + len(failed.value.errors) == len(items)
            assert not store._session._connections

    asyncio.run(main())


def test_a_silent_node_and_a_batch() -> None:
    """It fails its own keys; those of the others are as good as ever."""
    with Cluster(4, 1) as cluster:

        async def main() -> None:
            async with gtstore.connect_async(cluster.address, timeout=1.5) as store:
                items = {f"key{i}": b"x" for i in range(800)}
                owners = {
                    key: result.nodes[0] for key, result in (await store.put_many(items)).items()
                }
                cluster.pause_node(1)
                theirs = {key for key in items if owners[key] == 1}
                assert len(theirs) < 250
                for call in (store.get_many(list(items)), store.put_many(items)):
                    with pytest.raises(gtstore.BatchFailed) as failed:
                        await call
                    assert set(failed.value.errors) == theirs
                cluster.resume_node(1)

        asyncio.run(main())


def test_cancelled_values_are_not_kept() -> None:
    """A node stands still: what waits to be sent to it, or for its answer, and is cancelled, keeps
    no value in memory."""
    with Cluster(1, 1) as cluster:

        async def main() -> None:
            async with gtstore.connect_async(cluster.address, timeout=30) as store:
                await store.put("key", b"x")
                cluster.pause_node(1)
                value = bytes(4 << 20)
                calls = [
                    lambda: store.put("key", value),
                    lambda: store.put_many({"key": value}),
                    lambda: store.append("key", value),
                ]
                for call in calls * 3:
                    task = asyncio.create_task(call())
                    await asyncio.sleep(0.01)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                connection = store._session._connections[1]
                left = [exchange for exchange, _, _ in connection.awaiting.values()]
                assert len(left) == len(calls) * 3
                assert not any(exchange.frame for exchange in left)
                cluster.resume_node(1)

        asyncio.run(main())


def test_awaited_twice(cluster: Cluster) -> None:
    """One of two tasks that connect the client is cancelled: it is the other's all the same."""

    async def main() -> None:
        store = gtstore.connect_async(cluster.address)

        async def use() -> bytes | None:
            await store
            return await store.get("nothing here")

        tasks = [asyncio.create_task(use()) for _ in range(2)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outcomes[0], asyncio.CancelledError)
        assert outcomes[1] is None
        await store.close()

    asyncio.run(main())


def test_a_mapping_that_changes_meanwhile(cluster: Cluster) -> None:
    """put_many stores what it was given."""

    async def main() -> None:
        store = gtstore.connect_async(cluster.address)
        items = {"change 1": b"1"}
        batch = asyncio.create_task(store.put_many(items))
        await asyncio.sleep(0)
        items["change 2"] = b"2"
        assert list(await batch) == ["change 1"]
        await store.close()

    asyncio.run(main())


def test_a_loop_that_was_closed_under_a_call() -> None:
    """The client can still be closed."""
    with Cluster(1, 1) as cluster:
        store = gtstore.connect_async(cluster.address)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(store.put("key", b"x"))
        connection = store._session._connections[1]
        cluster.pause_node(1)
        waiting = store.get("key")

        async def begin() -> None:
            waiting.send(None)

        loop.run_until_complete(begin())
        loop.close()
        asyncio.run(store.close())
        assert connection.sock.fileno() == -1
        waiting.close()
        cluster.resume_node(1)


def test_a_write_before_there_is_a_map() -> None:
    """The manager stands still: nothing was sent to a node, so a write did not happen, and says so;
    a read is late."""
    with Cluster(1, 1) as cluster:
        cluster.pause_manager()

        async def main() -> None:
            store = gtstore.connect_async(cluster.address, timeout=0.5)
            outcomes = await asyncio.gather(
                store.put("key", b"x"),
                store.put_many({"key": b"x"}),
                store.delete("key"),
                store.increment("key"),
                store.get("key"),
                return_exceptions=True,
            )
            kinds = [type(outcome) for outcome in outcomes]
            assert kinds == [gtstore.OperationFailed] * 4 + [gtstore.DeadlineExceeded]
            await store.close()

        asyncio.run(main())
        cluster.resume_manager()


def test_no_manager() -> None:
    """The error comes where it connects; before, nothing is done."""
    store = gtstore.connect_async("127.0.0.1:1")

    async def main() -> None:
        with pytest.raises(gtstore.ConnectError, match="connection refused"):
            async with store:
                raise AssertionError

    asyncio.run(main())
