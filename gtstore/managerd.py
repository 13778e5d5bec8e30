"""``python -m gtstore.managerd NODES REPLICAS``: a manager and its storage nodes."""

from __future__ import annotations

import json
import logging
import signal
import sys
from functools import partial
from pathlib import Path

from . import lmdb_store, logs
from .allocator import use_one_heap
from .command_line import (
    DONE,
    USAGE,
    OneLineParser,
    StopSignals,
    add_daemon_options,
    have_standard_files,
    integer,
    raise_file_limit,
    share_processor,
)
from .errors import ClusterError
from .lifeline import hold_on
from .manager import Manager, ManagerOptions
from .state_file import ENGINES, LMDB, MEMORY
from .threads import OVER, supervised
from .wire.messages import (
    HASHES,
    MANAGER_PORT,
    NODE_PORT,
    NODES_MAX,
    PROBE_INTERVAL_MS,
    REPLICAS_MAX,
)

logger = logging.getLogger("gtstore.managerd")


def parser() -> OneLineParser:
    """The program's arguments."""
    result = OneLineParser(
        prog="gtstore-managerd",
        description="Start a GT Store cluster: a manager and its storage nodes. It prints one line "
        "when all are ready, and stops them at SIGTERM or SIGINT, and when its terminal is closed.",
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
    result.add_argument(
        "--accept-data-loss",
        action="store_true",
        help="with --data-dir, for this start: open partitions also with an older copy of a disk, "
        "or with what is left of a damaged log, where nothing better is there",
    )
    result.add_argument(
        "--commands",
        action="store_true",
        help='for programs: stop and start nodes as lines on standard input say, {"stop": 3}',
    )
    add_daemon_options(result)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit code."""
    have_standard_files()
    stop = StopSignals()
    options = (arguments_parser := parser()).parse_args(arguments)
    if options.lifeline is not None:
        # It may be stopped (SIGSTOP), and must go on to see to its own end.
        hold_on(options.lifeline, signal.SIGTERM, signal.SIGCONT)
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
    if options.log_file:
        options.log_file = options.log_file.absolute()
        try:
            logs.check_file(options.log_file)
        except OSError as error:
            arguments_parser.error(f"--log-file {options.log_file}: {error.strerror}")
    stop.has_log_file = bool(options.log_file)
    log = logs.of_daemon(options.log_level, options.log_format, "manager", options.log_file)
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
                options.lifeline,
                options.log_file,
                options.accept_data_loss,
                options.scrub_percent,
            ),
            stop.was_asked,
        )
        ready_line = manager.start()
    except ClusterError as error:
        if stop.was_asked():
            logger.info("stopped before it was ready: %s", stop.cause)
            return DONE
        print(f"gtstore: {error}", file=sys.stderr)
        return USAGE
    try:
        _print(ready_line)
        if options.commands:
            supervised("commands", partial(obey, manager), OVER)

        def hang_up() -> None:
            logs.reopen(log)
            if log is not None:
                manager.reopen_logs()

        stop.wait(hang_up=hang_up)
        logger.info("stopping: %s", stop.cause)
    except OSError as error:
        print(f"gtstore: cannot print the ready line: {error.strerror}", file=sys.stderr)
        return USAGE
    finally:
        manager.stop()
    logger.info("stopped")
    return DONE


def _print(line: str) -> None:
    """Print a line on standard output, which may be held up, as long as that takes. Raises OSError
    if it cannot be printed."""
    if sys.stdout is None:
        return  # it was closed from the beginning
    writer = logs.LineWriter(sys.stdout.fileno())
    writer.write(line + "\n")
    if not writer.drain():
        logger.warning("nobody reads standard output, with the ready line")
    if writer.error is not None:
        raise writer.error


def obey(manager: Manager) -> None:
    """Do what the lines on standard input say, each a JSON object, until its end; answer each with
    a line on standard output.

    ``{"stop": N}`` is answered when node N has ended, and stays away; ``{"start": N}`` when its
    start is on its way, which its state in the status tells. The answer is ``{}``, or
    ``{"error": TEXT}``.
    """
    # Not sys.stdin: the interpreter would wait at its end for this thread, which reads.
    with open(0, closefd=False) as lines:
        for line in lines:
            print(json.dumps(_answer(manager, line)), flush=True)


def _answer(manager: Manager, line: str) -> dict[str, str]:
    try:
        ((verb, node),) = json.loads(line).items()
        command, node = {"stop": manager.stop_node, "start": manager.start_node}[verb], int(node)
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"error": f"this is no command: {line.strip()}"}
    try:
        command(node)
    except ClusterError as error:
        return {"error": str(error)}
    except Exception as error:
        logger.exception("the command cannot be carried out: %s", line.strip())
        return {"error": f"internal error: {error!r}"}
    return {}


if __name__ == "__main__":
    sys.exit(main())
