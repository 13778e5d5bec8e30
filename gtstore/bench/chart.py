"""Bar charts of what a benchmark has found, as PNG files; matplotlib draws them, without a
display."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Final

from ..backup import written_whole
from ..errors import InvalidInput, OperationFailed
from .report import Placement, Run

INSTALL_HINT: Final = "--plot needs matplotlib: pip install 'gtstore[bench]'"

_PERCENTILES: Final = (("p50", "p50_us"), ("p99", "p99_us"), ("p999", "p999_us"))
_BAR_ROOM: Final = 0.8
_LEGEND_ROOM: Final = 0.25


def check(path: Path) -> None:
    """Raise InvalidInput if no chart could be written there: better now than after the
    measurement."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidInput(INSTALL_HINT)
    if path.suffix.lower() != ".png":
        raise InvalidInput(f"--plot writes PNG files: {path} must end in .png")
    if not path.absolute().parent.is_dir():
        raise InvalidInput(f"--plot: there is no directory {path.parent}")
    if path.is_dir():
        raise InvalidInput(f"--plot: {path} is a directory")


def draw_runs(path: Path, title: str, runs: Sequence[Run]) -> None:
    """Operations a second by k, and beside it the percentiles of latencies. Raises OperationFailed
    if the file cannot be written."""
    figure = _figure(12, title)
    rates, latencies = figure.subplots(1, 2)
    names = [f"k = {run.replicas}" for run in runs]
    bars = rates.bar(names, [run.operations_per_s for run in runs], width=0.5)
    rates.bar_label(bars, fmt="{:,.0f}")
    rates.margins(x=0.2)
    rates.set_ylabel("operations per second")
    groups = [
        (f"k = {run.replicas}\n{kind.replace('_', '-')}", found)
        for run in runs
        for kind, found in run.latencies.items()
    ]
    width = _BAR_ROOM / len(_PERCENTILES)
    for index, (label, name) in enumerate(_PERCENTILES):
        places = [group + (index - 1) * width for group in range(len(groups))]
        times = [getattr(found, name) for _, found in groups]
        bars = latencies.bar(places, times, width, label=label)
        latencies.bar_label(bars, fmt="{:,.0f}")
    latencies.set_xticks(range(len(groups)), [name for name, _ in groups])
    latencies.set_yscale("log")  # or else the rarest ones would hide all others
    latencies.set_ylabel("latency, microseconds")
    latencies.legend(loc="upper center", ncols=len(_PERCENTILES))
    latencies.margins(y=_LEGEND_ROOM)
    _save(figure, path)


def draw_placements(path: Path, title: str, found: Sequence[Placement]) -> None:
    """Keys per node, bars of each k beside each other, a panel for each hash.

    Raises OperationFailed if the file cannot be written.
    """
    panels = [(name, list(ones)) for name, ones in groupby(found, lambda one: one.hash)]
    figure = _figure(6 * len(panels), title)
    for axes, (name, ones) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
    ):
        width = _BAR_ROOM / len(ones)
        for index, one in enumerate(ones):
            offset = (index - (len(ones) - 1) / 2) * width
            nodes = range(len(one.keys_per_node))
            counts = list(one.keys_per_node.values())
            axes.bar([at + offset for at in nodes], counts, width, label=f"k = {one.replicas}")
        axes.set_title(f"hash {name}")
        axes.set_xticks(range(len(ones[0].keys_per_node)), ones[0].keys_per_node)
        axes.set_xlabel("node")
        axes.set_ylabel("keys")
        axes.legend(loc="upper center", ncols=len(ones))
        axes.margins(y=_LEGEND_ROOM)
    _save(figure, path)


def _figure(width: int, title: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 5), layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot, which looks for a display
    figure.suptitle(title.replace("; ", "\n"), wrap=True)
    return figure


def _save(figure: Any, path: Path) -> None:
    file: IO[bytes]
    try:
        with written_whole(path) as file:
            figure.savefig(file, format="png")
    except OSError as error:
        reason = error.strerror or str(error)
        raise OperationFailed(f"cannot write the chart {path}: {reason}") from error
