"""Settings of the job `mine`."""

from __future__ import annotations

from pydantic import Field, model_validator

from embedder.config.paths import Section


class MineConfig(Section):
    """How each training query gets its candidates."""

    group_size: int = Field(default=8, ge=2)
    """Candidates of a query, known positives included."""
    window: tuple[int, int] = (2, 50)
    """First and last rank, counted from 0, between which negatives are drawn from the rankings. A wider window gives
    candidates that differ more, so fewer groups whose rewards are all equal. The paper draws from ranks 2 to 200."""
    lexical_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the drawn candidates that comes from the lexical ranking; the rest comes from the dense one."""
    duplicate_overlap: float = Field(default=0.9, gt=0, le=1)
    """A passage whose words overlap those of a known positive by this share (Jaccard) is left out as its duplicate."""
    positive_share: float | None = Field(default=0.95, gt=0, le=1)
    """A passage whose dense score is above this share of that of the query's best known positive is left out, because
    it may be a positive that nobody has marked (arXiv 2407.15831); where too few others are left to fill the group,
    the farthest of these are taken. null: none is left out for its score. Queries without a known positive, whose
    candidates the LLM alone judges, keep all."""
    seed: int = 0
    """Seed of the draw."""

    @model_validator(mode="after")
    def window_is_ordered(self) -> MineConfig:
        """Refuse an empty window."""
        first, last = self.window
        if not 0 <= first < last:
            raise ValueError(f"window is {list(self.window)}; it needs 0 <= first < last")
        return self
