"""``python -m gtstore.storaged``: one storage node, or the nursery that a manager forks nodes from.

The control token of a single node comes in the environment, where, unlike in the arguments, other
users of the machine cannot read it.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from . import exit_codes, logs, nursery
from .allocator import use_one_heap
from .command_line import (
    DONE,
    TOKEN_VARIABLE,
    USAGE,
    OneLineParser,
    StopSignals,
    add_daemon_options,
    argument,
    integer,
    raise_file_limit,
    share_processor,
)
from .connection import parse_address
from .errors import ClusterError, StoreError
from .lifeline import hold_on
from .placement import format_address
from .storage import NodeOptions, StorageNode
from .wire.messages import NODES_MAX

logger = logging.getLogger("gtstore.storaged")

_LOOK_EVERY_S = 3
_LOOKS = 3
"""So many times another cluster must have answered at the manager's address."""


def parser() -> OneLineParser:
    """The program's arguments."""
    result = OneLineParser(
        prog="gtstore-storaged", description="One storage node of GT Store; its manager starts it."
    )
    result.add_argument(
        "--nursery", action="store_true", help="start nodes as the manager says on standard input"
    )
    result.add_argument("--node", type=integer(1, NODES_MAX))
    result.add_argument("--incarnation", type=integer(1, 0xFFFF_FFFF))
    result.add_argument("--host", default="127.0.0.1")
    result.add_argument("--port", type=integer(0, 65535))
    result.add_argument("--manager", type=argument(parse_address))
    result.add_argument("--data-dir", metavar="DIR", help="keep the entries there, in LMDB")
    result.add_argument(
        "--clock-offset-us",
        type=int,
        help="how far cluster time is ahead of this machine's steady clock",
    )
    result.add_argument(
        "--suspect", action="store_true", help="look through the data before it is used"
    )
    result.add_argument("--cpu", type=integer(0, 1 << 16), help="run on this CPU only")
    add_daemon_options(result)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit code."""
    arguments_parser = parser()
    options = arguments_parser.parse_args(arguments)
    if options.nursery:
        nursery.serve(run_node)
        return DONE
    for name in ("node", "incarnation", "port", "manager", "clock_offset_us"):
        if getattr(options, name) is None:
            option = name.replace("_", "-")
            arguments_parser.error(
                f"--{option} is missing; a manager starts nodes: gtstore.managerd"
            )
    token = os.environ.pop(TOKEN_VARIABLE, "")
    if len(token) != 32 or not all(digit in "0123456789abcdef" for digit in token):
        arguments_parser.error(f"{TOKEN_VARIABLE} does not hold 32 hexadecimal digits")
    return run_node({**vars(options), "token": token, "parent": os.getppid()})


def run_node(arguments: dict[str, Any]) -> int:
    """Be a node, with the options of ``parser`` and its token, until SIGTERM; return the exit
    code."""
    options = argparse.Namespace(**arguments)
    stop = StopSignals(has_terminal=False)
    if options.lifeline is not None:
        hold_on(options.lifeline, signal.SIGKILL)
    log = logs.of_daemon(
        options.log_level, options.log_format, f"node {options.node}", options.log_file
    )
    # A node's own operations, of which nobody has asked to see the steps and the keys.
    logging.getLogger("gtstore.client").setLevel(logging.WARNING)
    raise_file_limit()
    share_processor()
    use_one_heap()
    _set_process_name(f"gtstore-node-{options.node}")
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    try:
        node = StorageNode(
            NodeOptions(
                options.node,
                options.incarnation,
                options.host,
                options.port,
                tuple(options.manager),
                bytes.fromhex(options.token),
                options.max_connections,
                options.max_memory_mb,
                options.frame_timeout_ms,
                Path(options.data_dir) if options.data_dir else None,
                options.clock_offset_us,
                options.suspect,
                options.scrub_percent / 100,
            )
        )
    except ClusterError as error:
        print(f"gtstore: storage node {options.node}: {error}", file=sys.stderr, flush=True)
        return USAGE
    except StoreError as error:
        print(
            f"gtstore: storage node {options.node}: its disk failed: {error}",
            file=sys.stderr,
            flush=True,
        )
        return exit_codes.DISK_FAILED
    node.start()

    seconds = itertools.count()
    others: list[int] = []  # clusters that have answered in the place of this one's manager

    def look_around() -> None:
        if os.getppid() == options.parent:
            return  # its manager is there
        # A node that has a map goes on without its manager; one that has none is of no use.
        if not node.has_map:
            logger.error("the manager is gone before it gave this node a map: stopping")
            sys.exit(1)
        if next(seconds) % _LOOK_EVERY_S:
            return
        if other := node.other_cluster():
            others.append(other)
        else:
            others.clear()
        # What it has in memory may be the only copy: once is not enough.
        if others[-_LOOKS:] == [other] * _LOOKS:
            where = format_address(*options.manager)
            logger.error("the manager of another cluster (%08x) answers at %s", other, where)
            stop.cause = "this cluster is over"

    stop.wait(look_around, lambda: logs.reopen(log))
    logger.info("stopping: %s", stop.cause)
    node.stop()
    logger.info("stopped")
    return DONE


def _set_process_name(name: str) -> None:
    """What ps and top show. Forked nodes have the arguments of their parent."""
    try:
        with open("/proc/self/comm", "w") as file:
            file.write(name)
    except OSError:
        pass


if __name__ == "__main__":
    sys.exit(main())
