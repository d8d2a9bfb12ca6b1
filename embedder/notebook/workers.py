"""Who does the work of this package: this process, or workers elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from embedder.errors import ConfigError
from embedder.training.job import TrainingJob

P = TypeVar("P")
R = TypeVar("R")


class Workers(Protocol):
    """Processes elsewhere, each with a model of its own; `ray_jobs.ray_workers.RayWorkers` are such."""

    def map(self, make: Callable[[float], Callable[[P], R]], parts: Sequence[P], gpus: float) -> list[R]:
        """The result of each part, in their order.

        Args:
            make: Called once in each worker with its number of GPUs; what it returns is called with each part.
            parts: What is shared among the workers.
            gpus: GPUs of a worker.
        """

    def train(self, job: TrainingJob) -> None:
        """Train to the end, or go on where an earlier call stopped."""


def refuse_single_text(texts: object, name: str) -> None:
    """Refuse a text where several are wanted: Python would take each of its letters for one.

    Raises:
        ConfigError: it is one.
    """
    if isinstance(texts, str):
        raise ConfigError(f"{name} is one text, {texts[:40]!r}; give a list of texts")
