"""How many tokens of a step a worker's memory has room for at once: planned at the start, halved where it was short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from embedder.errors import ConfigError
from embedder.models.locate import locate_model
from embedder.models.memory import BatchLimit, free_bytes, one_memory_error
from embedder.storage.object_store import replacing
from embedder.training.deepspeed_engine import TrainingEngine
from embedder.training.distributed import greatest_over_workers
from embedder.training.estimate import ModelShape, known_chunk_tokens, tokens_that_fit
from embedder.training.job import TrainingJob
from embedder.training.token_batches import TokenLimits

Result = TypeVar("Result")


class StepRoom:
    """The limits of a step, the same on all workers."""

    def __init__(self, job: TrainingJob, engine: TrainingEngine) -> None:
        """Plan once weights and optimiser are in memory; all workers must do so."""
        self._job, self._engine = job, engine
        self._learnt = BatchLimit("training", "tokens")
        chunk = known_chunk_tokens(job.config) or planned_tokens(job, engine)
        if job.short_memory.is_file():
            self._learnt.most = int(job.short_memory.read_text(encoding="utf-8"))
            chunk = min(chunk, self._learnt.most)
        # Of all workers the least, because in lockstep they must agree on what is encoded twice.
        (negative,) = greatest_over_workers([-chunk])
        self.limits = TokenLimits(job.encoder.batch_tokens, -negative)

    def run_fitting(self, work: Callable[[TokenLimits], Result], tokens: int) -> Result:
        """What `work` returns; where memory is short, it is begun anew with half of the tokens at once.

        `tokens`: how many it takes without limits. What did not fit is remembered, also by the workers of a resumed
        training, which goes on from its last checkpoint where a step cannot be begun anew.

        Raises:
            torch.OutOfMemoryError: it cannot.
            ConfigError: a single text does not fit.
        """
        while True:
            limits = self.limits
            try:
                with one_memory_error():
                    return work(limits)
            except torch.OutOfMemoryError as error:
                reason = str(error).partition("\n")[0]
            # Outside of `except`, because until its end the error's traceback keeps the activations alive.
            self._halve(min(tokens, limits.chunk_tokens or tokens), reason)

    def _halve(self, tried: int, reason: str) -> None:
        if tried <= self._job.encoder.max_tokens:
            raise ConfigError(
                f"training: not even {tried:,} tokens at once fit into memory ({reason}); turn on "
                "train.gradient_checkpointing or offload_optimizer, or lower encoder.max_tokens"
            )
        self._learnt.lower(tried)
        self.limits = replace(self.limits, chunk_tokens=self._learnt.most)
        with replacing(self._job.short_memory) as file:
            file.write(str(self._learnt.most).encode())
        if not self._engine.can_repeat:
            raise torch.OutOfMemoryError(
                f"training: {tried:,} tokens at once do not fit into memory ({reason}); it resumes from its last "
                f"checkpoint with {self._learnt.most:,}"
            )
        self._engine.forget()
        torch.cuda.empty_cache()

    def told(self) -> str | None:
        """A line for the report, if memory was short."""
        most = self._learnt.most
        return None if most is None else f"memory was short, so steps were cut to {most:,} tokens at once"


def planned_tokens(job: TrainingJob, engine: TrainingEngine) -> int:
    """Padded tokens whose activations the free memory of the engine's GPU holds."""
    shape = ModelShape.of(locate_model(job.encoder.model))
    return tokens_that_fit(free_bytes(engine.device), engine.size, shape, job.config, job.encoder.batch_tokens)
