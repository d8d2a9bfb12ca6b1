"""What a job will cost, from sizes alone: no model is loaded and no GPU is taken."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

CHARACTERS_A_TOKEN = 4
"""Rule of thumb for English text and subword vocabularies."""
GPU_PEAK = 989e12
"""Operations a second of an H100 in bfloat16, by its data sheet."""
GPU_SHARE = 0.4
"""Share of this peak that is assumed, not measured, as in docs/scaling.md."""


@dataclass(frozen=True)
class Work:
    """The work ahead of a job, as its dry run prints it."""

    stage: str
    lines: list[str]
    """The work for the user, a line each."""
    flops: float
    """Floating-point operations of the models, 2 x parameters x tokens forward."""

    @property
    def gpu_hours(self) -> float:
        """Hours of one H100."""
        return self.flops / (GPU_SHARE * GPU_PEAK) / 3600

    def estimate(self) -> str:
        """The cost as the user reads it before the work begins."""
        return (
            f"about {self.flops / 1e12:,.1f} TFLOP of model work, {self.gpu_hours:,.2g} GPU-hours at "
            f"{GPU_SHARE:.0%} of an H100's bfloat16"
        )


def tokens_of(characters: int) -> float:
    """Estimated tokens of a text."""
    return characters / CHARACTERS_A_TOKEN


def forward_flops(parameters: int, tokens: float) -> float:
    """Operations of a forward pass."""
    return 2.0 * parameters * tokens


def measured_rate() -> float:
    """Float32 operations a second that this machine's matrix product reaches now, over 0.3 s."""
    size = 768
    matrix = np.ones((size, size), dtype=np.float32)
    matrix @ matrix  # not timed, because the first product also starts the threads
    began, rounds = time.perf_counter(), 0
    while time.perf_counter() - began < 0.3:
        matrix @ matrix
        rounds += 1
    return rounds * 2.0 * size**3 / (time.perf_counter() - began)
