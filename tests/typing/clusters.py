"""The cluster of a test.

Never run: tests/test_typing.py has mypy and pyright read it.
"""

from typing import assert_type

from gtstore import Client, ClusterStatus
from gtstore.testing import Cluster, wait_until


def with_a_cluster() -> None:
    with Cluster(nodes=3, replicas=2, options=["--no-respawn"]) as cluster:
        assert_type(cluster, Cluster)
        assert_type(cluster.address, str)
        assert_type(cluster.ready_line, str)
        assert_type(cluster.node_pids, dict[int, int])
        assert_type(cluster.manager_pid, int)
        assert_type(cluster.connect(timeout=1), Client)
        assert_type(cluster.status(), ClusterStatus)
        assert_type(cluster.log(), str)
        cluster.kill_node(1)
        cluster.stop_node(2)
        cluster.restart_node(2)
        cluster.pause_node(2)
        cluster.resume_node(2)
        cluster.wait_in_sync(timeout_s=10)
        cluster.kill_manager()
        assert_type(cluster.start(), Cluster)
        cluster.pause_manager()
        cluster.resume_manager()
        cluster.kill_everything()
        wait_until(lambda: cluster.log(), "a line in the log", timeout_s=1)
        assert_type(cluster.stop(), int)
