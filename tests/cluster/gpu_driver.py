"""A driver with actors on GPUs that Ray believes in; prints as JSON what they were given, and how a broken one ends.

python -m tests.cluster.gpu_driver FOLDER ENCODER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from threading import Barrier
from typing import Any

import pyarrow as pa
import ray

from embedder.config.cluster import ClusterConfig
from embedder.config.run import EncoderConfig
from embedder.data.ledger import Ledger
from embedder.errors import DeviceError, EmbedderError
from ray_jobs.cluster.blocks import Block, BlockActor, actor_pool, run_blocks
from ray_jobs.cluster.machines import try_gpu
from ray_jobs.cluster.session import connect
from ray_jobs.retrieval.shards import check_shard_gpus
from ray_jobs.retrieval.vectors import CALLS_AT_ONCE, EncodeBlocks, VectorStore
from tests.waiting import wait_until

SEEN = pa.schema([("row_id", pa.string()), ("gpus", pa.string()), ("threads", pa.string()), ("cpus", pa.float64())])


class Seeing(BlockActor):
    """Notes what its process was given."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger(folder, SEEN, "row_id")

    def row_ids(self, block: Block) -> list[str]:
        return [block["row_id"]]

    def compute(self, block: Block) -> list[dict[str, Any]]:
        gpus, threads = os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]
        cpus = ray.get_runtime_context().get_assigned_resources()["CPU"]
        return [{"row_id": block["row_id"], "gpus": gpus, "threads": threads, "cpus": cpus}]


class Meeting(Seeing):
    """Goes on with a block when as many as an actor may have in hand are there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.barrier = Barrier(CALLS_AT_ONCE)

    def compute(self, block: Block) -> list[dict[str, Any]]:
        self.barrier.wait(60)
        return super().compute(block)


def blocks(count: int) -> list[pa.Table]:
    """Blocks of one row each."""
    return [pa.table({"row_id": [f"{i}"], "rows": [1]}) for i in range(count)]


def main(folder: Path, encoder: str) -> None:
    """Run both pools."""
    connect(ClusterConfig())
    wait_until(lambda: ray.cluster_resources().get("GPU", 0) > 0, 60)
    run_blocks(blocks(8), Seeing, (folder / "seen",), actor_pool(4, 0.5), "see")
    told: dict[str, Any] = {"seen": Ledger(folder / "seen", SEEN, "row_id").read().to_pylist()}
    pool = actor_pool(1, 0.5, calls=CALLS_AT_ONCE)
    run_blocks(blocks(CALLS_AT_ONCE), Meeting, (folder / "met",), pool, "meet")
    told["met"] = Ledger(folder / "met", SEEN, "row_id").read().num_rows
    config = EncoderConfig(model=encoder, pooling="mean", gpus_per_actor=1)
    try:
        run_blocks(blocks(1), EncodeBlocks, (config, VectorStore(folder, {}), 1.0), actor_pool(1, 1.0), "encode")
    except EmbedderError as error:
        told["pool"] = str(error)
    for name, attempt in (("tried", try_gpu), ("faiss", check_shard_gpus)):
        try:
            attempt(1.0)
        except DeviceError as error:
            told[name] = str(getattr(error, "cause", error))
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
