"""Whether a service is deployed together or apart: by sizes, and never without saying why."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedder.config.serve import ServeConfig
from embedder.index.bundle import bundle_sizes
from serve.deployments.replica_layout import Node, choose_layout, replica_bytes

MIB = 2**20


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """One with a model of 2 MiB and an index of 3 MiB: 7 MiB in a replica that holds the model twice."""
    for name, size in (("model/weights", 2), ("shards/00000/qa/index", 3)):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(size * MIB))
    return tmp_path


def test_model_counts_twice_in_a_replica_that_does_all(bundle: Path) -> None:
    assert replica_bytes(bundle_sizes(bundle)) == 7 * MIB


@pytest.mark.parametrize(
    ("memory", "cpus", "is_together"),
    [
        (168, 64, True),  # 4 replicas of 3 versions of 7 MiB are 84, half of it
        (167, 64, False),
        (42, 1, True),  # one replica alone has a CPU there
        (41, 1, False),
        (0, 4, False),
    ],
)
def test_service_is_together_while_its_replicas_fit_half_of_the_memory(
    bundle: Path, memory: int, cpus: int, is_together: bool
) -> None:
    # The smallest node counts: a replica may be started on any.
    nodes = [Node(cpus, memory * MIB), Node(cpus, 10**6 * MIB if memory else 0)]
    layout = choose_layout(ServeConfig(), bundle_sizes(bundle), nodes)
    assert layout.is_together == is_together, layout
    if memory:
        assert str(layout).startswith(f"layout: {'together' if is_together else 'apart'} (") and "7 MiB" in str(layout)


def test_layout_that_is_set_is_taken_and_gpus_are_apart(bundle: Path) -> None:
    tiny, huge = [Node(1, MIB)], [Node(1, 2**40)]
    assert choose_layout(ServeConfig(layout="together"), bundle_sizes(bundle), tiny).is_together
    assert not choose_layout(ServeConfig(layout="apart"), bundle_sizes(bundle), huge).is_together
    assert choose_layout(ServeConfig(), bundle_sizes(bundle), huge).is_together
    assert not choose_layout(ServeConfig(gpus_per_replica=0.5), bundle_sizes(bundle), huge).is_together
