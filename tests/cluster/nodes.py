"""Several nodes of Ray on this machine, of which a test may kill some."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ray._common.utils import get_default_ray_temp_dir
from ray.cluster_utils import Cluster

from tests.cluster.conftest import free_port

FAST_DETECTION = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 2,
}
"""So that the death of a raylet is known in a second and not in half a minute."""


def start_nodes(head_cpus: int, node_cpus: list[int]) -> Cluster:
    """A head and further nodes, with so many CPUs."""
    # A folder and a port of its own, so that it can stand beside another Ray.
    head = {"temp_dir": tempfile.mkdtemp(prefix="ray-"), "dashboard_agent_listen_port": free_port()}
    head |= {"num_cpus": head_cpus, "include_dashboard": False, "_system_config": FAST_DETECTION}
    # In spite of it Ray notes the head's address in its default folder, which a machine that is new does not have.
    Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for cpus in node_cpus:
        cluster.add_node(num_cpus=cpus)
    return cluster
