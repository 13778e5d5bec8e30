"""The commands of ``gtclient bench`` and their options, for cli.py's tables.

It is loaded with every command, so it loads little itself.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any, Final

from ..command_line import integer
from ..wire.messages import HASHES, NODES_MAX, REPLICAS_MAX, VALUE_SIZE_MAX

GROUP: Final = (
    "measure a cluster: the one that --manager names, as it is, or without --manager one that is "
    "started for it and stopped again"
)

MANAGER_HELP: Final = (
    "the manager of the cluster to measure; the keys that are put there are removed again "
    "(default: none, a cluster is started and stopped again)"
)

_CLUSTER: Final = ("--nodes", "--replicas", "--hash")
_LOAD: Final = ("--operations", "--warmup", "--clients", "--value-size")

COMMANDS: Final = {
    "bench throughput": (
        "operations a second, half put, half get, by k",
        (*_LOAD, *_CLUSTER, "--plot"),
    ),
    "bench balance": (
        "keys per node, by k and hash; without --manager worked out without a cluster",
        ("--keys", *_CLUSTER, "--seed", "--plot"),
    ),
    "bench ycsb": (
        "operations a second of a YCSB workload, with latencies",
        ("--workload", "--records", *_LOAD, *_CLUSTER, "--seed", "--plot"),
    ),
}
"""Name -> help, names of arguments."""


def _replicas(text: str) -> tuple[int, ...]:
    parse = integer(1, REPLICAS_MAX)
    counts = tuple(parse(part) for part in text.split(","))
    if len(set(counts)) < len(counts):
        raise ArgumentTypeError(f"{text!r} names a number twice")
    return counts


ARGUMENTS: Final[dict[str, dict[str, Any]]] = {
    "--operations": {
        "metavar": "N",
        "type": integer(1, 10_000_000),
        "help": "how many, of all clients together, after the warm-up (default: 200000; ycsb: "
        "100000)",
    },
    "--warmup": {
        "metavar": "N",
        "type": integer(0, 10_000_000),
        "help": "operations before that, which are not measured (default: a tenth of --operations)",
    },
    "--clients": {
        "metavar": "N",
        "type": integer(1, 1000),
        "default": 1,
        "help": "client processes, each with one operation at a time (default: %(default)s)",
    },
    "--value-size": {
        "metavar": "BYTES",
        "type": integer(0, VALUE_SIZE_MAX),
        "help": "of each value (default: 100; ycsb: 1000)",
    },
    "--nodes": {
        "metavar": "N",
        "type": integer(1, NODES_MAX),
        "help": "storage nodes of the own cluster (default: 7)",
    },
    "--replicas": {
        "metavar": "K[,K...]",
        "type": _replicas,
        "help": "copies of each key, for one cluster after the other (default: 1,3,5; ycsb: 3)",
    },
    "--hash": {
        "choices": tuple(HASHES.values()),
        "help": "how keys are spread (default: additive; balance: both)",
    },
    "--keys": {
        "metavar": "N",
        "type": integer(1, 10_000_000),
        "default": 100_000,
        "help": "random keys, of 8 to 24 letters and digits (default: %(default)s)",
    },
    "--workload": {
        "choices": ("a", "b", "c", "d", "f"),
        "required": True,
        "help": "a: half read, half update; b: 95%% read, 5%% update; c: read; d: 95%% read, 5%% "
        "insert, and the newest are read; f: half read, half read-modify-write, which is "
        "get_entry, then compare_and_put with the version that was read, and both again if another "
        "client came first. a, b, c, f: zipfian",
    },
    "--records": {
        "metavar": "N",
        "type": integer(1, 10_000_000),
        "default": 10_000,
        "help": "loaded before the warm-up (default: %(default)s)",
    },
    "--seed": {
        "metavar": "N",
        "type": integer(0, 1 << 62),
        "default": 1,
        "help": "the same one draws the same keys and operations (default: %(default)s)",
    },
    "--plot": {
        "metavar": "FILE.png",
        "type": Path,
        "help": "write a bar chart too; needs matplotlib: pip install 'gtstore[bench]'",
    },
}
