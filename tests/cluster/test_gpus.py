"""Actors on a node with GPUs that Ray believes in: each sees its own, and what torch cannot use is told in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from embedder.run.gpu_shares import gpu_cpus
from ray_jobs.retrieval.vectors import CALLS_AT_ONCE
from tests.cluster.conftest import ROOT, Cluster, free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NODE = {"CPU": 9.0, "GPU": 2.0}


def unbound(cluster: Cluster) -> dict[str, str]:
    """The environment without a number of threads, which Ray would leave as it is."""
    return {name: value for name, value in cluster.environment.items() if name != "OMP_NUM_THREADS"}


@pytest.fixture
def gpu_node(cluster: Cluster) -> Iterator[None]:
    """A node that joins the session's cluster and says that it has two GPUs."""
    command = ["ray", "start", f"--address={cluster.address}", f"--num-cpus={NODE['CPU']:g}", "--num-gpus=2", "--block"]
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={free_port()}"]
    node = subprocess.Popen(command, env=unbound(cluster), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        node.terminate()
        node.wait(timeout=60)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPUs of the node must be none that torch can use")
def test_actors_on_gpus_see_their_own_have_cpus_beside_and_end_in_one_line_where_torch_has_none(
    cluster: Cluster, gpu_node: None, tmp_path: Path, tiny_encoder_folder: Path
) -> None:
    command = [sys.executable, "-m", "tests.cluster.gpu_driver", str(tmp_path), str(tiny_encoder_folder)]
    environment = {**unbound(cluster), "RAY_ADDRESS": cluster.address}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    expected = gpu_cpus(0.5, [NODE])
    assert expected == 2
    assert len(told["seen"]) == 8
    assert {row["gpus"] for row in told["seen"]} <= {"0", "1"}
    assert {(row["threads"], row["cpus"]) for row in told["seen"]} == {(str(expected), float(expected))}
    for message in (told["pool"], told["tried"]):
        assert message.startswith("a GPU was asked for (1), but this process cannot use one (")
        assert torch.__version__ in message and "\n" not in message
    assert told["met"] == CALLS_AT_ONCE
    assert told["faiss"].startswith("index.gpus_per_shard asks for a GPU, but FAISS ")
    assert "Specifying both" not in done.stdout + done.stderr
