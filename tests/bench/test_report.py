"""What a benchmark prints: names that scripts rely on, and tables for people."""

from __future__ import annotations

from gtstore.bench.balance import spread
from gtstore.bench.report import Latencies, Placement, Run, of_placements, of_runs
from gtstore.text_table import aligned

LATENCIES = Latencies(1000, 61.25, 60.04, 101.0, 250.0, 3450.04)
RUN = Run(3, 2000, 0.5, 37.123, 46.018, "", 0, {"put": LATENCIES, "get": LATENCIES})
ELSEWHERE = RUN._replace(
    replicas=5,
    node_cpu_us=None,
    node_cpu_unknown="they run on another machine",
    retries=1234,
    latencies={"read_modify_write": LATENCIES},
)


def test_json_of_runs() -> None:
    report = of_runs("title", {"benchmark": "throughput", "nodes": 7}, [RUN, ELSEWHERE])
    found = {
        "operations": 1000, "mean_us": 61.2, "p50_us": 60.0, "p99_us": 101.0, "p999_us": 250.0,
        "max_us": 3450.0,
    }  # fmt: skip
    run = {
        "replicas": 3,
        "operations": 2000,
        "duration_s": 0.5,
        "operations_per_s": 4000.0,
        "client_cpu_us_per_operation": 37.12,
        "node_cpu_us_per_operation": 46.02,
        "retries": 0,
        "latencies": {"put": found, "get": found},
    }
    elsewhere = {
        "replicas": 5,
        "node_cpu_us_per_operation": None,
        "node_cpu_unknown": "they run on another machine",
        "retries": 1234,
        "latencies": {"read_modify_write": found},
    }
    assert report.form == {
        "benchmark": "throughput",
        "nodes": 7,
        "runs": [run, {**run, **elsewhere}],
    }


def test_lines_of_runs() -> None:
    lines = of_runs("title", {}, [RUN, ELSEWHERE]).lines
    assert lines == [
        "title",
        "",
        "k  operations/s  client CPU us/operation  node CPU us/operation",
        "3         4,000                     37.1                   46.0",
        "5         4,000                     37.1                unknown",
        "",
        "k  kind               operations  mean us  p50 us  p99 us  p999 us   max us",
        "3  put                     1,000     61.2    60.0   101.0    250.0  3,450.0",
        "3  get                     1,000     61.2    60.0   101.0    250.0  3,450.0",
        "5  read-modify-write       1,000     61.2    60.0   101.0    250.0  3,450.0",
        "",
        "CPU time of the nodes is unknown: they run on another machine",
        "k = 5: 1,234 comparisons were repeated, because another client had come first",
    ]
    assert of_runs("title", {}, [RUN]).lines[-1].startswith("3  get ")


def placement(keys: dict[int, int]) -> Placement:
    return Placement("crc16", 2, keys, spread(list(keys.values())))


def test_placements() -> None:
    report = of_placements("title", {"keys": 3000}, [placement({1: 1000, 2: 2000})])
    assert report.form == {
        "keys": 3000,
        "runs": [
            {
                "hash": "crc16",
                "replicas": 2,
                "min": 1000,
                "mean": 1500.0,
                "max": 2000,
                "stddev": 500.0,
                "relative_stddev": 0.33333,
                "nodes": [{"id": 1, "keys": 1000}, {"id": 2, "keys": 2000}],
            }
        ],
    }
    assert report.lines == [
        "title",
        "",
        "hash   k    min   mean    max  stddev/mean  node 1  node 2",
        "crc16  2  1,000  1,500  2,000       33.33%   1,000   2,000",
    ]


def test_many_nodes_have_no_columns() -> None:
    lines = of_placements("title", {}, [placement(dict.fromkeys(range(1, 100), 5))]).lines
    assert lines[2].endswith("stddev/mean")


def test_a_table() -> None:
    """Numbers to the right, text to the left, and numbers that are text where it is said so; a cell
    keeps to its line."""
    assert list(aligned(("a", "long", "c"), [(1, "x\ny", "2.5"), (20, "z", "10")], ("c",))) == [
        " a  long    c",
        " 1  x\\ny  2.5",
        "20  z      10",
    ]
