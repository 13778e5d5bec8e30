"""The report's test 4, step by step: 7 storage nodes, 3 replicas, two nodes killed with kill -9.

    python examples/fail_over.py            (or: make demo)

It starts a cluster of its own on free ports, puts 20 keys, overwrites 3 of them, kills nodes 2 and
5, and reads and writes on, also once both are back. A client that lives through all of it shows
what it does when a primary is gone. The last line is the verdict; the exit code is 0 if all went
well, else 1.
"""

from __future__ import annotations

import logging
import sys
import time

from gtstore import Client, GTStoreError
from gtstore.testing import Cluster

NODES, REPLICAS = 7, 3
KEYS = [f"key{number}" for number in range(1, 21)]
OVERWRITTEN = ("key1", "key5", "key12")
KILLED = (2, 5)


def main() -> int:
    show_steps_of_the_client()
    say(f"Start a manager with {NODES} storage nodes and {REPLICAS} replicas")
    try:
        with Cluster(NODES, REPLICAS) as cluster, cluster.connect() as store:
            print(cluster.ready_line)
            failures = run(cluster, store)
    except GTStoreError as error:
        failures = [str(error)]
    say("Verdict")
    for failure in failures:
        print(failure)
    if failures:
        print("FAILED")
        return 1
    print(
        f"OK: nodes {listed(KILLED)} of {NODES} were killed, {len(KEYS)} of {len(KEYS)} keys had "
        "their latest value, and puts went on"
    )
    return 0


def run(cluster: Cluster, store: Client) -> list[str]:
    """The steps. Returns what went wrong."""
    values: dict[str, str] = {}
    say(f"Put {len(KEYS)} keys; the first node of each list is the key's primary")
    for key in KEYS:
        put(store, values, key, f"value of {key}")
    say(f"Overwrite {len(OVERWRITTEN)} of them")
    for key in OVERWRITTEN:
        put(store, values, key, f"new value of {key}")

    for node in KILLED:
        say(f"kill -9 {cluster.node_pids[node]}: storage node {node} is gone")
        cluster.kill_node(node)
    say("Get every key; the lines with an arrow are what the client does on the way")
    failures = get_all(store, values)

    say("Put goes on")
    for key in (*OVERWRITTEN, "key21"):
        put(store, values, key, f"newer value of {key}")
    failures += get_all(store, {key: values[key] for key in (*OVERWRITTEN, "key21")})

    say("The manager has started both nodes again, and they copy what they are to hold")
    cluster.wait_in_sync()
    status = store.status()
    for member in status["nodes"]:
        print(
            f"storage node {member['id']}: {member['state']}, {member['entries']} entries, "
            f"started {member['incarnation']} times"
        )
    print(f"partitions with fewer than {REPLICAS} copies: {len(status['under_replicated'])}")
    return failures + get_all(store, values)


def put(store: Client, values: dict[str, str], key: str, value: str) -> None:
    result = store.put(key, value)
    values[key] = value
    print(f"key {key} stored at storage nodes: {listed(result.nodes)}")


def get_all(store: Client, values: dict[str, str]) -> list[str]:
    failures: list[str] = []
    for key, value in values.items():
        began = time.monotonic()
        entry = store.get_entry(key)
        took_ms = (time.monotonic() - began) * 1000
        if entry is None or entry.value != value.encode():
            failures.append(f"key {key}: expected {value!r}, got {entry!r}")
            print(failures[-1])
        else:
            print(f"key {key}: {value!r} from storage node {entry.node}, {took_ms:.1f} ms")
    return failures


def show_steps_of_the_client() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("    -> %(message)s"))
    logger = logging.getLogger("gtstore.client")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def say(what: str) -> None:
    print(f"\n== {what}", flush=True)


def listed(nodes: tuple[int, ...]) -> str:
    return " ".join(map(str, nodes))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
