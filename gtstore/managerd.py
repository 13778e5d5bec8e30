"""``python -m gtstore.managerd NODES REPLICAS``: a manager and its storage nodes."""

from __future__ import annotations

import sys
from pathlib import Path

from . import lmdb_store
from .allocator import use_one_heap
from .command_line import (
    DONE,
    USAGE,
    OneLineParser,
    StopSignals,
    add_daemon_options,
    configure_logs,
    integer,
    raise_file_limit,
    share_processor,
)
from .errors import ClusterError
from .manager import Manager, ManagerOptions
from .state_file import ENGINES, LMDB, MEMORY
from .wire.messages import (
    HASHES,
    MANAGER_PORT,
    NODE_PORT,
    NODES_MAX,
    PROBE_INTERVAL_MS,
    REPLICAS_MAX,
)


def parser() -> OneLineParser:
    """The program's arguments."""
    result = OneLineParser(
        prog="gtstore-managerd",
        description="Start a GT Store cluster: a manager and its storage nodes. It prints one line "
        "when all are ready, and stops them at SIGTERM or SIGINT.",
    )
    result.add_argument("nodes", metavar="NODES", type=integer(1, NODES_MAX), help="storage nodes")
    result.add_argument(
        "replicas", metavar="REPLICAS", type=integer(1, REPLICAS_MAX), help="copies of each key"
    )
    result.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    result.add_argument(
        "--port",
        type=integer(0, 65535),
        default=MANAGER_PORT,
        help="the manager's port, 0 for a free one (%(default)s)",
    )
    result.add_argument(
        "--node-port",
        type=integer(0, 65535),
        default=NODE_PORT,
        help="the first node's port, the others follow; 0 for free ones (%(default)s)",
    )
    result.add_argument(
        "--data-dir",
        metavar="DIR",
        type=Path,
        help="keep everything in this directory: what was acknowledged is on disk",
    )
    result.add_argument(
        "--engine",
        choices=ENGINES,
        help="where entries are (lmdb with --data-dir, memory without)",
    )
    result.add_argument(
        "--hash", choices=tuple(HASHES.values()), default="additive", help="(%(default)s)"
    )
    result.add_argument(
        "--probe-interval-ms",
        type=integer(10, 60_000),
        default=PROBE_INTERVAL_MS,
        metavar="N",
        help="how often each node is probed (%(default)s)",
    )
    result.add_argument(
        "--no-respawn",
        action="store_true",
        help="leave dead nodes dead; others take over what they held",
    )
    result.add_argument(
        "--no-pin", action="store_true", help="do not pin each node to one CPU (slower)"
    )
    add_daemon_options(result)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit code."""
    stop = StopSignals()
    options = (arguments_parser := parser()).parse_args(arguments)
    if options.replicas > options.nodes:
        arguments_parser.error(
            f"{options.replicas} replicas need at least as many nodes, not {options.nodes}"
        )
    if options.host in ("", "0.0.0.0", "::"):
        arguments_parser.error(
            f"--host {options.host!r}: clients are told this address, so give one that they can use"
        )
    if options.node_port + options.nodes - 1 > 65535:
        arguments_parser.error("--node-port: the last node's port would be above 65535")
    if 0 <= options.port - options.node_port < options.nodes and options.node_port:
        arguments_parser.error(f"--port {options.port} is the port of a storage node too")
    engine = options.engine or (LMDB if options.data_dir else MEMORY)
    if engine == LMDB and not options.data_dir:
        arguments_parser.error("--engine lmdb needs a directory: --data-dir DIR")
    if engine == LMDB and not lmdb_store.is_installed():
        arguments_parser.error(lmdb_store.INSTALL_HINT)
    raise_file_limit()
    share_processor()
    use_one_heap()
    configure_logs(options.log_level, options.log_format, "manager")
    try:
        manager = Manager(
            ManagerOptions(
                options.nodes,
                options.replicas,
                options.host,
                options.port,
                options.node_port,
                next(code for code, name in HASHES.items() if name == options.hash),
                options.probe_interval_ms,
                not options.no_respawn,
                not options.no_pin,
                options.max_connections,
                options.max_memory_mb,
                options.frame_timeout_ms,
                options.log_level,
                options.log_format,
                engine,
                options.data_dir.absolute() if options.data_dir else None,
            ),
            stop.was_asked,
        )
        ready_line = manager.start()
    except ClusterError as error:
        if stop.was_asked():
            return DONE
        print(f"gtstore: {error}", file=sys.stderr)
        return USAGE
    try:
        print(ready_line, flush=True)
        stop.wait()
    except OSError as error:
        print(f"gtstore: cannot print the ready line: {error.strerror}", file=sys.stderr)
        return USAGE
    finally:
        manager.stop()
    return DONE


if __name__ == "__main__":
    sys.exit(main())
