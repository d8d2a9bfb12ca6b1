"""What a job will cost, from sizes alone: no model is loaded and no GPU is taken."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from embedder.run.gpu_shares import GpuShare

CHARACTERS_A_TOKEN = 4
"""Rule of thumb for English text and subword vocabularies, where no tokenizer can be asked."""
SAMPLE_TEXTS = 64
"""Texts on which a tokenizer is asked instead."""
GPU_PEAK = 989e12
"""Operations a second of an H100 in bfloat16, by its data sheet."""
GPU_SHARE = 0.4
"""Share of this peak that is assumed, not measured, as in docs/scaling.md."""
CPU_SHARE = 0.6
"""Share of the rate of this machine's matrix product that is assumed, too."""


@dataclass(frozen=True)
class Work:
    """The work ahead of a job, as its dry run prints it."""

    stage: str
    lines: list[str]
    """The work for the user, a line each."""
    flops: float
    """Floating-point operations of the models, 2 x parameters x tokens forward."""
    tokens: float = 0.0
    """Tokens that a model reads, where that is what the work is measured by."""
    shares: tuple[GpuShare, ...] = ()
    """What the stages of a pipeline that are not done will ask for."""

    @property
    def gpu_hours(self) -> float:
        """Hours of one H100."""
        return self.flops / (GPU_SHARE * GPU_PEAK) / 3600

    def estimate(self) -> str:
        """The cost as the user reads it before the work begins; empty where no model works."""
        if not self.flops:
            return ""
        rate, tokens = measured_rate(), f"{self.tokens:,.0f} tokens, " if self.tokens else ""
        return (
            f"about {tokens}{_size(self.flops)} of model work, {self.gpu_hours:,.2g} GPU-hours at "
            f"{GPU_SHARE:.0%} of an H100's bfloat16; this machine's matrix product runs at {rate / 1e9:,.0f} GFLOP/s, "
            f"so at {CPU_SHARE:.0%} of it {self.flops / (CPU_SHARE * rate) / 60:,.1f} minutes here"
        )

    def told(self, measured: Sequence[str] = ()) -> list[str]:
        """The work and what it costs, a line each; what was `measured` takes the place of what sizes tell."""
        estimate = "" if measured else self.estimate()
        return [*self.lines, *measured, *([estimate] if estimate else [])]


def _size(flops: float) -> str:
    """Operations with a unit in which they are no rounded zero."""
    unit, name = (1e12, "TFLOP") if flops >= 1e11 else (1e9, "GFLOP")
    return f"{flops / unit:,.2g} {name}" if flops < 10 * unit else f"{flops / unit:,.0f} {name}"


def tokens_of(characters: int, a_token: float = CHARACTERS_A_TOKEN) -> float:
    """Estimated tokens of a text."""
    return characters / a_token


def characters_a_token(model: Path, texts: Sequence[str]) -> float:
    """Characters that a model's tokenizer puts into a token of such texts; the rule of thumb where it cannot be asked.

    Chinese has one or two, and a small vocabulary has fewer than a large one.
    """
    path, sample = model / "tokenizer.json", [text for text in texts[:SAMPLE_TEXTS] if text]
    if not path.is_file() or not sample:
        return CHARACTERS_A_TOKEN
    encoded = Tokenizer.from_file(str(path)).encode_batch(sample, add_special_tokens=False)
    return sum(map(len, sample)) / max(1, sum(len(tokens.ids) for tokens in encoded))


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
