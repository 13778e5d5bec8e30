"""``python -m gtstore.storaged``: one storage node. The manager starts it; see managerd.

The control token comes in the environment, where, unlike in the arguments, other users of the machine
cannot read it.
"""

from __future__ import annotations

import logging
import os
import sys

from .command_line import (
    DONE,
    TOKEN_VARIABLE,
    USAGE,
    OneLineParser,
    add_daemon_options,
    argument,
    configure_logs,
    integer,
    wait_for_stop,
)
from .connection import parse_address
from .errors import ClusterError
from .storage import NodeOptions, StorageNode
from .wire.messages import NODES_MAX

logger = logging.getLogger("gtstore.storaged")


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = OneLineParser(
        prog="gtstore-storaged", description="One storage node of GT Store; its manager starts it."
    )
    parser.add_argument("--node", type=integer(1, NODES_MAX), required=True)
    parser.add_argument("--incarnation", type=integer(1, 0xFFFF_FFFF), required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=integer(0, 65535), required=True)
    parser.add_argument("--manager", type=argument(parse_address), required=True)
    parser.add_argument("--cpu", type=integer(0, 1 << 16), help="run on this CPU only")
    add_daemon_options(parser)
    options = parser.parse_args(arguments)
    configure_logs(options.log_level, options.log_format, f"node {options.node}")
    try:
        token = bytes.fromhex(os.environ.pop(TOKEN_VARIABLE, ""))
        if len(token) != 16:
            raise ValueError
    except ValueError:
        parser.error(
            f"{TOKEN_VARIABLE} does not hold 32 hexadecimal digits; start a manager instead"
        )
    if options.cpu is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.cpu})
    try:
        node = StorageNode(
            NodeOptions(
                options.node,
                options.incarnation,
                options.host,
                options.port,
                options.manager,
                token,
                options.max_connections,
                options.max_memory_mb,
            )
        )
    except ClusterError as error:
        print(f"gtstore: storage node {options.node}: {error}", file=sys.stderr)
        return USAGE
    node.start()
    parent = os.getppid()

    def leave_if_orphaned() -> None:
        # A node that has a map goes on without its manager; one that has none is of no use to anybody.
        if not node.has_map and os.getppid() != parent:
            logger.error("the manager is gone before it gave this node a map: stopping")
            sys.exit(1)

    wait_for_stop(leave_if_orphaned)
    node.stop()
    return DONE


if __name__ == "__main__":
    sys.exit(main())
