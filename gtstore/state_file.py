"""What a manager leaves for its successor: rule M4 of docs/REPLICATION.md.

A manager that was killed, and is started again on the same port, goes on where the last one was: it
finds here the cluster's identity and shape, the newest map that anybody has seen, and which
processes the nodes are. The file is written before a map is made known, so no epoch is ever used
twice. It is in the user's runtime directory, readable to the user alone, since it has the control
token; it is removed when the cluster is stopped, and of no use once no node runs any more.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import ClusterError, RemoteProtocolError
from .placement import PartitionMap, partition_count
from .wire import messages
from .wire.codec import RowEncoder, decode
from .wire.fields import TOKEN_SIZE
from .wire.messages import HASHES, NODES_MAX, REPLICAS_MAX, Member

MEMORY = "memory"
LMDB = "lmdb"
ENGINES = (MEMORY, LMDB)
"""Where entries are."""

_FORMAT = 2
_FIRST_FORMAT = 1
"""It has no ``engine``: entries were in memory only."""


@dataclass(frozen=True)
class Process:
    """A node's newest process: its number, when it was started (so that another one with the same
    number is not taken for it), and as which incarnation."""

    node: int
    incarnation: int
    pid: int
    started: int


@dataclass(frozen=True)
class SavedState:
    """All that a successor has to know."""

    cluster_id: int
    nodes: int
    replicas: int
    hash_code: int
    engine: str
    token: bytes
    map: PartitionMap
    members: tuple[Member, ...]
    processes: tuple[Process, ...]
    held: tuple[int, ...] = ()
    """Nodes that are to stay away, as somebody has said to the manager."""


def to_text(state: SavedState, encoder: RowEncoder | None = None) -> str:
    """The file's content: a JSON object. The map is the body of MAP (PROTOCOL.md section 7)."""
    body = (encoder or RowEncoder()).body(messages.Map(state.map.epoch, state.map.rows))
    form = {
        "format": _FORMAT,
        "cluster": state.cluster_id,
        "nodes": state.nodes,
        "replicas": state.replicas,
        "hash": HASHES[state.hash_code],
        "engine": state.engine,
        "token": state.token.hex(),
        "members": [asdict(member) for member in state.members],
        "processes": [asdict(process) for process in state.processes],
        "held": state.held,
        "map": body.hex(),
    }
    return json.dumps({**form, "sha256": _checksum(form)})


def _checksum(form: dict[str, Any]) -> str:
    """Of all other fields: an epoch with one wrong digit must not be believed."""
    return hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()


def from_text(text: str) -> SavedState:
    """Raises ValueError, with a reason, if that is no state, or none that fits together."""
    try:
        form = json.loads(text)
        if form.pop("sha256") != _checksum(form):
            raise ValueError("it is damaged")
        if form["format"] == _FIRST_FORMAT:
            form |= {"format": _FORMAT, "engine": MEMORY}
        if form["format"] != _FORMAT:
            raise ValueError(
                f"its format is {form['format']!r}, and this version of GT Store knows {_FORMAT}"
            )
        body = decode(messages.Map.kind, bytes.fromhex(form["map"]))
        assert isinstance(body, messages.Map)
        state = SavedState(
            form["cluster"],
            form["nodes"],
            form["replicas"],
            next(code for code, name in HASHES.items() if name == form["hash"]),
            next(name for name in ENGINES if name == form["engine"]),
            bytes.fromhex(form["token"]),
            # Who holds an older map gets all rows: which of them changed since is not kept.
            PartitionMap(body.epoch, body.rows, [body.epoch] * len(body.rows)),
            tuple(Member(**member) for member in form["members"]),
            tuple(Process(**process) for process in form["processes"]),
            tuple(form.get("held", ())),  # versions before have none
        )
    except (KeyError, TypeError, StopIteration, AttributeError, RemoteProtocolError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    _check(state)
    return state


def _check(state: SavedState) -> None:
    numbers: list[Any] = list(range(1, state.nodes + 1)) if _is_count(state.nodes) else []
    if not (
        numbers
        and _is_count(state.replicas)
        and state.replicas <= min(REPLICAS_MAX, state.nodes)
        and len(state.token) == TOKEN_SIZE
        and [row.partition for row in state.map.rows] == list(range(partition_count(state.nodes)))
        and [member.node for member in state.members] == numbers
        and [process.node for process in state.processes] == numbers
        and all(node in numbers for node in state.held)
    ):
        raise ValueError("its parts do not fit together")


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and 0 < number <= NODES_MAX


class StateFile:
    """The file of one manager.

    Args:
        path: where it is.
        is_synced: whether it has to outlive the machine.
    """

    def __init__(self, path: Path, is_synced: bool = False) -> None:
        self.path = path
        self._is_synced = is_synced
        self._encoder = RowEncoder()

    @classmethod
    def of_address(cls, host: str, port: int) -> StateFile:
        """That of the manager that listens there, and has no data directory.

        Raises ClusterError if the directory for it cannot be had.
        """
        return cls(_runtime_directory() / f"manager-{host.replace(':', '_')}-{port}.json")

    def read(self) -> SavedState | None:
        """What is there, or None. Raises ClusterError if it cannot be understood."""
        try:
            return from_text(self.path.read_text(encoding="ascii"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ClusterError(
                f"the manager's state file {self.path} cannot be read ({error}); "
                + (
                    "without it nobody knows what the nodes' data is worth: docs/OPERATIONS.md"
                    if self._is_synced
                    else "if no storage node of that cluster runs any more, remove it"
                )
            ) from error

    def write(self, state: SavedState) -> None:
        """Replace what is there, at once. Raises OSError."""
        # What cleans up old files may have taken the directory too.
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        # mkstemp gives the mode 600.
        number, name = tempfile.mkstemp(dir=self.path.parent, prefix=".manager-")
        try:
            with open(number, "w", encoding="ascii") as file:
                file.write(to_text(state, self._encoder))
                if self._is_synced:
                    file.flush()
                    os.fsync(number)
            os.replace(name, self.path)
        except BaseException:
            os.unlink(name)
            raise
        if self._is_synced:
            # The name, too, must be on disk.
            directory = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def remove(self) -> None:
        """The cluster has ended."""
        self.path.unlink(missing_ok=True)


def _runtime_directory() -> Path:
    """The user's own directory for what lives as long as processes do.

    Raises ClusterError if it belongs to somebody else.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.path.isdir(base):
        path = Path(base) / "gtstore"
    else:
        path = Path(tempfile.gettempdir()) / f"gtstore-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise ClusterError(f"cannot make the directory {path}: {error.strerror}") from error
    # In a directory that everybody may write to, somebody else may have been faster.
    if status.st_uid != os.getuid() or status.st_mode & 0o022 or not path.is_dir():
        raise ClusterError(f"{path} is not a directory of this user alone")
    return path
