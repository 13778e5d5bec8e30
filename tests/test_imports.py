"""Imports point one way, and the pure core does no input or output.

The import statements are read, not run: one inside a function or under TYPE_CHECKING counts too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import gtstore

ROOT = Path(gtstore.__file__).parent

LAYERS = (
    (
        "gtstore.results",
        "gtstore.cluster_time",
        "gtstore.version",
        "gtstore.exit_codes",
        "gtstore.living",
        "gtstore.wire",
        "gtstore.bench",
    ),
    ("gtstore.errors",),
    ("gtstore.text_table", "gtstore.lifeline", "gtstore.threads"),
    ("gtstore.logs",),
    ("gtstore.wire.fields",),
    ("gtstore.wire.messages",),
    ("gtstore.wire.codec",),
    ("gtstore.wire.stream",),
    ("gtstore.wire.explain",),
    ("gtstore.wire.json_form",),
    (
        "gtstore.wire.describe",
        "gtstore.wire.describe.blocks",
        "gtstore.wire.describe.examples",
    ),
    ("gtstore.wire.describe.document",),
    ("gtstore.wire.describe.lua",),
    ("gtstore.wire.describe.__main__",),
    ("gtstore.key_order", "gtstore.keyed_entries", "gtstore.turns"),
    # The interface that replica.py stores through is declared next to the engines that have it.
    ("gtstore.placement", "gtstore.engine", "gtstore.read_modify_write"),
    ("gtstore.disk",),
    ("gtstore.write_ahead_log",),
    ("gtstore.format_2",),
    ("gtstore.replica", "gtstore.operations", "gtstore.membership", "gtstore.frame_words"),
    ("gtstore.copying", "gtstore.scan_operation", "gtstore.scanning", "gtstore.settling"),
    ("gtstore.scrubbing",),
    ("gtstore.json_lines", "gtstore.progress", "gtstore.inputs"),
    ("gtstore.mapping",),
    ("gtstore.addresses",),
    ("gtstore.connection", "gtstore.steady_clock", "gtstore.allocator", "gtstore.lmdb_store"),
    ("gtstore.session", "gtstore.server", "gtstore.tap", "gtstore.log_store", "gtstore.inspection"),
    ("gtstore.reactor",),
    # What the daemons share: how processes are started, and their command lines and logs.
    ("gtstore.upkeep", "gtstore.committer"),
    ("gtstore.lanes", "gtstore.batches", "gtstore.async_session"),
    ("gtstore.nursery", "gtstore.command_line", "gtstore.state_file", "gtstore.data_directory"),
    ("gtstore.manager", "gtstore.storage", "gtstore.client", "gtstore.async_client"),
    ("gtstore.backup", "gtstore.transfer", "gtstore.tables"),
    ("gtstore.top",),
    # The public names.
    ("gtstore",),
    ("gtstore.testing",),
    ("gtstore.pytest_plugin",),
    # What gtclient bench does; its options are in cli's tables, the rest is loaded when it runs.
    ("gtstore.bench.zipfian", "gtstore.bench.balance", "gtstore.bench.stopping"),
    ("gtstore.bench.workloads", "gtstore.bench.report", "gtstore.bench.processor_time"),
    ("gtstore.bench.latencies", "gtstore.bench.clients", "gtstore.bench.chart"),
    ("gtstore.bench.measuring", "gtstore.bench.arguments"),
    ("gtstore.bench.command",),
    # Entry points: `python -m` would load them a second time if somebody imported them.
    ("gtstore.managerd", "gtstore.storaged", "gtstore.cli", "gtstore.bench.worker"),
)
"""A module imports only from layers before its own, so never from a neighbour either."""

LAYER_OF = {module: number for number, layer in enumerate(LAYERS) for module in layer}

PURE = {
    "gtstore.results",
    "gtstore.cluster_time",
    "gtstore.errors",
    "gtstore.text_table",
    "gtstore.bench.zipfian",
    "gtstore.bench.workloads",
    "gtstore.bench.balance",
    "gtstore.bench.report",
    "gtstore.wire.fields",
    "gtstore.wire.messages",
    "gtstore.wire.codec",
    "gtstore.wire.stream",
    "gtstore.wire.explain",
    "gtstore.wire.json_form",
    "gtstore.frame_words",
    "gtstore.json_lines",
    "gtstore.inputs",
    "gtstore.mapping",
    "gtstore.key_order",
    "gtstore.keyed_entries",
    "gtstore.placement",
    "gtstore.turns",
    "gtstore.read_modify_write",
    "gtstore.disk",
    "gtstore.write_ahead_log",
    "gtstore.format_2",
    "gtstore.replica",
    "gtstore.operations",
    "gtstore.membership",
    "gtstore.copying",
    "gtstore.scan_operation",
    "gtstore.scanning",
    "gtstore.settling",
    "gtstore.scrubbing",
}

WALL_CLOCKS = {"time", "time_ns", "CLOCK_REALTIME"}
"""What the module time has that changes when a clock is set."""
WALL_CLOCK_READERS = {
    "gtstore.steady_clock": 1,  # for those below
    "gtstore.backup": 2,  # for people: when a backup was made
}
"""Modules that look at the wall clock, and in how many places."""
WALL_CLOCK_USERS = {
    "gtstore.manager": 2,  # cluster time begins with it; since when something is wrong, for people
    # Expiries that leave the cluster, or come into it; and twice to notice that it has jumped.
    "gtstore.client": 3,
    "gtstore.async_client": 3,
}
"""And those that do so through steady_clock.wall_us."""

IMPURE_LIBRARIES = {
    "asyncio",
    "multiprocessing",
    "os",
    "random",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "socketserver",
    "ssl",
    "subprocess",
    "threading",
    "time",
}

ENTRY_POINTS = set(LAYERS[-1])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(module: str, source: str, is_package: bool = False) -> Iterator[tuple[str, str]]:
    """(module, name taken from it, or "") for each import statement."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join(
                [*(parts if node.level else []), *([node.module] if node.module else [])]
            )
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner, "") if inner in LAYER_OF else (base, alias.name)


def imports_of_file(module: str) -> list[tuple[str, str]]:
    path = FILES[module]
    return list(imports_of(module, path.read_text(), path.name == "__init__.py"))


def test_the_public_names() -> None:
    """They are loaded from elsewhere when they are asked for; each is what it is there."""
    declared = [
        (module, name) for module, name in imports_of_file("gtstore") if name in gtstore.__all__
    ]
    assert sorted(name for _, name in declared) == sorted(gtstore.__all__)
    for module, name in declared:
        assert getattr(gtstore, name) is getattr(import_module(module), name)
    assert {*gtstore.__all__} <= {*dir(gtstore)}
    with pytest.raises(AttributeError, match="module 'gtstore' has no attribute 'conect'"):
        gtstore.conect  # type: ignore[attr-defined]  # noqa: B018


each_module = pytest.mark.parametrize("module", FILES)


def test_the_reader_of_imports() -> None:
    """All forms of the statement are understood, wherever they stand."""
    source = """
import os.path, time as clock
from . import codec
from .messages import Row, Owner
from ..errors import InvalidInput
from .. import placement
from gtstore.wire import stream
def late():
    if TYPE_CHECKING:
        from selectors import DefaultSelector
"""
    assert list(imports_of("gtstore.wire.explain", source)) == [
        ("os.path", ""),
        ("time", ""),
        ("gtstore.wire.codec", ""),
        ("gtstore.wire.messages", "Row"),
        ("gtstore.wire.messages", "Owner"),
        ("gtstore.errors", "InvalidInput"),
        ("gtstore.placement", ""),
        ("gtstore.wire.stream", ""),
        ("selectors", "DefaultSelector"),
    ]
    assert list(imports_of("gtstore", "from .client import Client", is_package=True)) == [
        ("gtstore.client", "Client")
    ]


@each_module
def test_every_module_has_a_layer(module: str) -> None:
    """Whoever adds a module says in LAYERS where it belongs."""
    assert module in LAYER_OF


@each_module
def test_imports_point_one_way(module: str) -> None:
    """A module imports from the layers below its own and from no others."""
    for imported, _ in imports_of_file(module):
        if imported.partition(".")[0] == "gtstore":
            assert LAYER_OF[imported] < LAYER_OF[module], f"{module} must not import {imported}"


@pytest.mark.parametrize("module", sorted(PURE))
def test_the_core_is_pure(module: str) -> None:
    """No input, output, clock, thread or chance; and only pure modules, so all the way down."""
    for imported, name in imports_of_file(module):
        package = imported.partition(".")[0]
        assert package not in IMPURE_LIBRARIES, f"{module} must not import {imported}"
        if imported == "gtstore.engine":
            assert name != "MemoryEngine", "the interface, not an engine"
        elif package == "gtstore":
            assert imported in PURE, f"{imported} is not pure"


@each_module
def test_who_looks_at_the_wall_clock(module: str) -> None:
    """T1: cluster time once, when it begins; so nobody's time changes when a wall clock is set."""
    imports = imports_of_file(module)
    assert "datetime" not in {imported for imported, _ in imports}
    assert {name for imported, name in imports if imported == "time"} <= {""}, "say time.NAME"
    taken = [
        node.attr
        for node in ast.walk(ast.parse(FILES[module].read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "time"
        and ("time", "") in imports
    ]
    assert len([name for name in taken if name in WALL_CLOCKS]) == WALL_CLOCK_READERS.get(module, 0)
    calls = FILES[module].read_text().count("wall_us()") - (module == "gtstore.steady_clock")
    assert calls == WALL_CLOCK_USERS.get(module, 0)


@each_module
def test_nobody_imports_an_entry_point(module: str) -> None:
    """Not even another entry point."""
    assert not {imported for imported, _ in imports_of_file(module)} & ENTRY_POINTS
