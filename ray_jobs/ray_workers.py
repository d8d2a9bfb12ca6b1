"""The work of a notebook on Ray: `workers=RayWorkers()` for the functions of `embedder.notebook` (docs/python.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from embedder.config.cluster import ClusterConfig
from embedder.errors import EmbedderError
from embedder.run.gpu_shares import gpu_cpus
from embedder.training.job import TrainingJob

P = TypeVar("P")
R = TypeVar("R")


class _Made:
    """An actor: what `make` made once, called with one part after another."""

    def __init__(self, make: Callable[[float], Callable[[Any], Any]], gpus: float) -> None:
        self._work = make(gpus)

    def do(self, part: object) -> object:
        return self._work(part)


class RayWorkers:
    """Actors and training workers on the cluster that RAY_ADDRESS names, or on a local Ray of this process."""

    def __init__(self, actors: int = 2, settings: ClusterConfig | None = None) -> None:
        """Connect.

        Raises:
            ConfigError: the cluster asks for no token, or others can read the token.
        """
        from ray_jobs.cluster.session import connect

        self.actors = actors
        connect(settings or ClusterConfig())

    def map(self, make: Callable[[float], Callable[[P], R]], parts: Sequence[P], gpus: float) -> list[R]:
        """As `embedder.notebook.workers.Workers.map`; an actor that dies is started anew, with the part it had.

        Raises:
            EmbedderError: what `make` or its result raised.
        """
        import ray
        from ray.util import ActorPool

        from ray_jobs.cluster.machines import machines

        cpus = gpu_cpus(gpus, machines()) if gpus else 1
        kind = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=-1)(_Made)
        actors = [kind.remote(make, gpus) for _ in range(min(self.actors, len(parts)))]
        if not actors:
            return []
        try:
            return list(ActorPool(actors).map(lambda actor, part: actor.do.remote(part), parts))
        except ray.exceptions.RayTaskError as error:
            # Ray's own error tells a remote traceback; the user needs the one line.
            if isinstance(error.cause, EmbedderError):
                raise error.cause from None
            raise
        finally:
            for actor in actors:
                ray.kill(actor)

    def train(self, job: TrainingJob) -> None:
        """Train by Ray Train with `num_workers` of the settings."""
        from ray_jobs.training.worker import run_workers

        run_workers(job, "train")
