"""Settings of the job `pipeline`."""

from __future__ import annotations

from pydantic import Field

from embedder.config.paths import Section


class PipelineConfig(Section):
    """All stages as one job."""

    rounds: int = Field(default=1, ge=1, le=99)
    """How often mine, label and train are repeated, each round with the encoder that the one before has trained."""
