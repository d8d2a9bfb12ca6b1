"""Makes a Ray Train trainer, and runs it while the driver shows the steps that its workers have made."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ray.train import Result, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from embedder.training.job import Metrics, MetricsReader
from ray_jobs.cluster.metrics import track_progress

POLL_S = 1.0
"""How often the driver looks for new steps."""
T = TypeVar("T")
M = TypeVar("M", bound=Metrics)


def make_trainer(
    work: Callable[[dict[str, T]], None], job: T, run: RunConfig, *, workers: int | tuple[int, int], gpus: float
) -> TorchTrainer:
    """A trainer whose workers each call `work` with {"job": job}.

    Args:
        work: What a worker does.
        job: All it needs.
        run: Name, storage and what failures are forgiven.
        workers: How many; or at least and at most so many, as the cluster has room.
        gpus: GPUs a worker; 0: it computes on a CPU.
    """
    return TorchTrainer(
        work,
        train_loop_config={"job": job},
        # NCCL knows GPUs alone.
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=bool(gpus),
            resources_per_worker={"GPU": gpus, "CPU": 1} if gpus else {"CPU": 1},
        ),
        run_config=run,
    )


def fit_with_progress(
    trainer: TorchTrainer, label: str, steps: int, reader: MetricsReader[M], note: Callable[[], str]
) -> Result:
    """Fit, and show how many of `steps` are made, as the metrics of the first worker tell.

    `note` gives what stands behind the counts.
    """
    finished = threading.Event()
    with track_progress(label, steps) as counter:
        counter.skip(reader.steps_done())

        def watch() -> None:
            is_going = False
            while not finished.wait(POLL_S):
                new = reader.steps_done() - counter.count
                if new and not is_going:
                    # Until now the workers were started, which may take longer than many steps.
                    is_going = True
                    counter.skip(new)
                else:
                    counter.advance(new, note())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            return trainer.fit()
        finally:
            # The counter must not be touched once its line is closed.
            finished.set()
            watcher.join()
