"""Latencies in histograms of hdrhistogram: to pack those of one process, and to add up several."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

try:
    from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]
except ImportError:  # the extra ``bench`` is not installed
    HdrHistogram = None

from .report import Latencies

INSTALL_HINT: Final = "latency percentiles need hdrhistogram: pip install 'gtstore[bench]'"

_LOW_NS: Final = 100
_HIGH_NS: Final = 3600 * 10**9
_DIGITS: Final = 3


def is_installed() -> bool:
    """Whether there is hdrhistogram."""
    return HdrHistogram is not None


def packed(latencies_ns: Iterable[int]) -> str:
    """A histogram of these, in HdrHistogram's own encoding (V2, base64)."""
    histogram = HdrHistogram(_LOW_NS, _HIGH_NS, _DIGITS)
    for latency in latencies_ns:
        histogram.record_value(min(latency, _HIGH_NS))
    text: bytes = histogram.encode()
    return text.decode()


def added_up(histograms: Iterable[str]) -> Latencies:
    """What all of these hold together; of no operation at all, zeros."""
    total = HdrHistogram(_LOW_NS, _HIGH_NS, _DIGITS)
    for text in histograms:
        total.decode_and_add(text)
    count: int = total.get_total_count()
    if not count:
        return Latencies(0, 0.0, 0.0, 0.0, 0.0, 0.0)

    def at(percentile: float) -> float:
        return float(total.get_value_at_percentile(percentile)) / 1000

    return Latencies(
        count, total.get_mean_value() / 1000, at(50), at(99), at(99.9), total.get_max_value() / 1000
    )
