"""Settings of the job `mine`: which candidates a query gets."""

from __future__ import annotations

from pydantic import Field, model_validator

from embedder.config.paths import Section


class MineConfig(Section):
    """Rows to candidate groups."""

    group_size: int = Field(default=8, ge=2)
    """Candidates of a query, known positives included."""
    window: tuple[int, int] = (2, 50)
    """Ranks (first, last), counted from 0, of the rankings from which negatives are drawn."""
    lexical_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the drawn candidates that comes from the lexical ranking, the rest from the dense one."""
    duplicate_overlap: float = Field(default=0.9, gt=0, le=1)
    """A passage whose words overlap a positive's by this share (Jaccard) is left out as a duplicate of it."""
    seed: int = 0

    @model_validator(mode="after")
    def window_is_ordered(self) -> MineConfig:
        """Refuse an empty window."""
        first, last = self.window
        if not 0 <= first < last:
            raise ValueError(f"window is {list(self.window)}; it needs 0 <= first < last")
        return self
