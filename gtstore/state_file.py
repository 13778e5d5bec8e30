"""What a manager leaves for its successor: rule M4 of docs/REPLICATION.md.

A manager that was killed, and is started again on the same port, goes on where the last one was: it
finds here the cluster's identity and shape, the newest map that anybody has seen, and which
processes the nodes are. The file is written before a map is made known, so no epoch is ever used
twice. Without a data directory it is in the user's runtime directory, readable to the user alone,
since it has the control token; it is removed when the cluster is stopped, and of no use once no
node runs any more. A logout may take that directory away: there is a second place.

The next content is written into a spare file, which then takes the name. What had the name before
becomes the next spare. So there is always room for one more state, also on a disk that others have
filled, and what counts is never written to.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .cluster_time import Reached
from .errors import ClusterError, RemoteProtocolError
from .placement import PartitionMap, partition_count
from .wire import messages
from .wire.codec import RowEncoder, decode
from .wire.fields import TOKEN_SIZE
from .wire.messages import HASHES, NODES_MAX, REPLICAS_MAX, TIME_END_US, Member

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
    reached: Reached | None = None
    """Cluster time when this was written (T1)."""
    marks: Mapping[int, bytes] = field(default_factory=dict)
    """The last mark that each node has put on its disk (M6a)."""
    address: tuple[str, int] | None = None
    """Where the manager listens, which is where its nodes report to. None: not known."""


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
        "reached": state.reached and state.reached._asdict(),
        "marks": {str(node): mark.hex() for node, mark in sorted(state.marks.items())},
        "address": state.address,
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
            # Versions before have no "held", no "reached", no "marks", or no "address".
            tuple(form.get("held", ())),
            Reached(**form["reached"]) if form.get("reached") else None,
            {int(node): bytes.fromhex(mark) for node, mark in form.get("marks", {}).items()},
            tuple(form["address"]) if form.get("address") else None,
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
        and all(node in numbers for node in (*state.held, *state.marks))
        and (state.reached is None or _is_reached(state.reached))
    ):
        raise ValueError("its parts do not fit together")


def _is_reached(reached: Reached) -> bool:
    times: tuple[Any, ...] = reached.time_us, reached.steady_us
    boot: Any = reached.boot
    return isinstance(boot, str) and all(
        isinstance(time, int) and 0 <= time < TIME_END_US for time in times
    )


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and 0 < number <= NODES_MAX


class StateFile:
    """The file of one manager.

    Args:
        places: where it may be, the best one first. It is in one of them.
        is_synced: whether it has to outlive the machine.
    """

    def __init__(self, *places: Path, is_synced: bool = False) -> None:
        self._places = places
        self._is_synced = is_synced
        self._encoder = RowEncoder()
        self.path = places[0]
        """Where it was last written, or is to be written first."""

    @classmethod
    def of_address(cls, host: str, port: int) -> StateFile:
        """That of the manager that listens there, and has no data directory.

        Raises ClusterError if no directory for it can be had.
        """
        directories = _runtime_directories()
        failures = []
        for directory in directories:
            try:
                _make_own(directory)
            except OSError as error:
                failures.append(f"{directory}: {error.strerror}")
        if len(failures) == len(directories):
            text = "no directory for the manager's state file can be had"
            raise ClusterError(f"{text} ({'; '.join(failures)})")
        name = f"manager-{host.replace(':', '_')}-{port}.json"
        return cls(*(directory / name for directory in directories))

    def read(self) -> list[SavedState]:
        """What is there: a state for each place that has one.

        Raises ClusterError if one of them cannot be understood.
        """
        return [state for path in self._places if (state := self._read(path)) is not None]

    def _read(self, path: Path) -> SavedState | None:
        try:
            # Somebody else may have left something in a place that is not there yet.
            if not self._is_synced and not _is_own(path.parent):
                return None
            return from_text(path.read_text(encoding="ascii"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ClusterError(
                f"the manager's state file {path} cannot be read ({error}); "
                + (
                    "without it nobody knows what the nodes' data is worth: docs/OPERATIONS.md"
                    if self._is_synced
                    else "if no storage node of that cluster runs any more, remove it"
                )
            ) from error

    def is_there(self) -> bool:
        """Whether it is still where it was written."""
        return self.path.exists()

    def write(self, state: SavedState) -> None:
        """Replace what is there, at once, in the first place that takes it. Raises OSError: then
        what was there is there as before."""
        data = to_text(state, self._encoder).encode("ascii")
        for at, path in enumerate(self._places, 1):
            try:
                # What cleans up old files may have taken the directory, too.
                if self._is_synced:
                    path.parent.mkdir(mode=0o700, exist_ok=True)
                else:
                    _make_own(path.parent)
                self._replace(path, data)
            except OSError:
                if at == len(self._places):
                    raise
            else:
                self.path = path
                break
        # One that cannot be removed there does no harm: the one with the higher epoch counts.
        for path in self._places:
            if path != self.path:
                with contextlib.suppress(OSError):
                    _remove(path)

    def _replace(self, path: Path, data: bytes) -> None:
        spare, last = _beside(path)
        with _opened_spare(spare, _with_room(len(data))) as number:
            # What is read is JSON: it may be followed by newlines, and so it keeps its size.
            size = max(len(data), os.fstat(number).st_size)
            _write_all(number, data.ljust(size, b"\n"))
            if self._is_synced:
                os.fsync(number)
        last.unlink(missing_ok=True)  # of a manager that was killed in the midst of this
        with contextlib.suppress(OSError):  # there is none yet, or no room for another name
            os.link(path, last)
        os.replace(spare, path)
        try:
            if self._is_synced:
                _sync_directory(path.parent)  # the name, too, must be on disk
        except OSError:
            # Nobody knows which of the two the name means after a crash: neither is written to.
            last.unlink(missing_ok=True)
            raise
        with contextlib.suppress(OSError):
            os.replace(last, spare)
        with contextlib.suppress(OSError), _opened_spare(spare, _with_room(len(data))):
            pass  # its room may be too small by now

    def remove(self) -> None:
        """The cluster has ended; or what is there must not be taken for the newest any more.

        Raises OSError if it stays.
        """
        for path in self._places:
            _remove(path)


def _with_room(size: int) -> int:
    """A state of the same cluster may have one owner more in each row; that is less than half."""
    return size + size // 2


def _beside(path: Path) -> tuple[Path, Path]:
    """The spare file, and the name that the last state has until it is the spare."""
    return path.with_name(f"{path.name}.spare"), path.with_name(f"{path.name}.last")


@contextlib.contextmanager
def _opened_spare(path: Path, size: int) -> Iterator[int]:
    """The spare file, with so much room if that can be had. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    number = os.open(path, flags, 0o600)
    if os.fstat(number).st_nlink != 1:
        # It has another name, so it may be what counts, and must not be written to.
        os.close(number)
        path.unlink()
        number = os.open(path, flags | os.O_EXCL, 0o600)
    try:
        if os.fstat(number).st_size < size:
            with contextlib.suppress(OSError):  # then what is there has to do
                os.posix_fallocate(number, 0, size)
        yield number
    finally:
        os.close(number)


def _write_all(number: int, data: bytes) -> None:
    """From the beginning of the file."""
    at = 0
    while at < len(data):
        at += os.pwrite(number, data[at:], at)


def _sync_directory(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _remove(path: Path) -> None:
    """Remove a state, and its spare file. Raises OSError if the state stays."""
    for each in (path, *_beside(path)):
        try:
            each.unlink(missing_ok=True)
        except OSError:
            # A file system that is read-only refuses also where there is nothing.
            if each == path and os.path.lexists(path):
                raise


def _runtime_directories() -> list[Path]:
    """The user's own directories for what lives as long as processes do, the best one first. A
    logout may take the first one away, and programs that clean up the second one."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    temporary = Path(tempfile.gettempdir()) / f"gtstore-{os.getuid()}"
    return [Path(base) / "gtstore", temporary] if base else [temporary]


def _is_own(path: Path) -> bool:
    """Whether that is a directory, and of this user alone: in one that everybody may write to,
    somebody else may have made it."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
    )


def _make_own(path: Path) -> None:
    """Make a directory, unless it is there, of this user alone. Raises OSError."""
    path.mkdir(mode=0o700, exist_ok=True)
    if not _is_own(path):
        raise PermissionError(errno.EPERM, "it is not a directory of this user alone", str(path))
