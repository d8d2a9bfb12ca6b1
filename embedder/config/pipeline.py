"""Settings of the job `pipeline`."""

from __future__ import annotations

from pydantic import Field

from embedder.config.paths import Section


class PipelineConfig(Section):
    """How often the job `pipeline` repeats its stages."""

    rounds: int = Field(default=1, ge=1, le=99)
    """Rounds of `mine`, `label` and `train`. Each round starts from the encoder that the round before has trained: its
    mistakes are better negatives."""
