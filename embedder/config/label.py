"""Settings of the job `label`: who rewards, how outputs are sampled, how many actors work; and of the reranker."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from embedder.config.paths import AnyAbsolutePath, ModelReference, Section


class LabelConfig(Section):
    """Candidate groups to rewards."""

    teacher: Literal["llm", "reranker", "imported"] = "llm"
    """Who rewards: the LLM; a cross-encoder trained on the LLM's rewards; or rewards made elsewhere (`imported`), which
    `prepare` keeps of sources with `teacher_scores: true`."""
    export: AnyAbsolutePath | None = None
    """Where the labelled groups are also written as JSON Lines of the reference; null: nowhere."""
    recompute: bool = False
    """Recompute the rewards from the stored log-likelihoods, after a task's `reward` was changed; needs no LLM."""
    num_samples: int = Field(default=10, ge=1)
    """Outputs sampled per query without a candidate, among which the desired output is ranked (N)."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the sampling."""
    top_k: int = Field(default=50, ge=1)
    """Sampling draws from the k likeliest tokens."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Of these, from the likeliest whose probabilities sum to p."""
    unit_groups: int = Field(default=8, ge=1)
    """Groups that are sampled and scored together. For one value of it the labels are the same bit for bit, whatever
    the blocks, the actors and their order."""
    block_rows: int = Field(default=8, ge=1)
    """Groups that are committed together, rounded up to whole units; a kill costs at most this many an actor."""
    max_error_share: float = Field(default=0.05, ge=0, le=1)
    """The job ends with an error when a larger share of the groups could not be scored."""
    dry_run_groups: int = Field(default=2, ge=0)
    """Groups that `--dry-run` labels on this machine to estimate the time; 0 estimates from sizes alone."""
    num_actors: int = Field(default=2, ge=1)
    """Greatest number of actors."""
    min_actors: int | None = Field(default=None, ge=1)
    """The pool grows from this number as long as work waits; null: `num_actors` from the start."""
    cpus_per_actor: float = Field(default=1, gt=0)
    """Of an actor without a GPU; also its threads."""
    gpus_per_actor: float = Field(default=0, ge=0)
    """0.5 puts two actors on a GPU; 2 and more with `llm.device_map: auto` spreads the LLM over them."""
    seed: int = 0

    @model_validator(mode="after")
    def parts_fit(self) -> LabelConfig:
        """Refuse a pool whose least size exceeds its greatest."""
        if self.min_actors is not None and self.min_actors > self.num_actors:
            raise ValueError(f"min_actors {self.min_actors} exceeds num_actors {self.num_actors}")
        return self


class RerankerConfig(Section):
    """The cross-encoder that learns the LLM's rewards and labels in its place (`label.teacher: reranker`)."""

    model: ModelReference
    """Encoder it starts from, as `encoder.model`."""
    llm_groups: int | None = Field(default=None, ge=1)
    """Groups per dataset that the LLM labels for it (seeded choice); null: all."""
    steps: int = Field(default=500, ge=1)
    batch_size: int = Field(default=16, ge=1)
    """Groups of a global batch, over all workers; all of one task."""
    learning_rate: float = Field(default=2e-5, gt=0)
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    max_tokens: int = Field(default=256, ge=8)
    """Of a query with its candidate; the candidate is cut."""
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    """Groups kept out of its training, on which its agreement with the LLM is reported."""
    num_workers: int = Field(default=1, ge=1)
    gpus_per_worker: float = Field(default=0, ge=0)
    save_every: int = Field(default=100, ge=1)
    """Steps between two checkpoints."""
    seed: int = 0

    @model_validator(mode="after")
    def batch_divides(self) -> RerankerConfig:
        """Refuse a batch that the workers cannot share evenly."""
        if self.batch_size % self.num_workers:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of num_workers {self.num_workers}")
        return self
