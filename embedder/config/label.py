"""Settings of the job `label`, and of the reranker that can label in the LLM's place."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from embedder.config.paths import AnyAbsolutePath, ModelReference, Section
from embedder.config.train import SelfPacedConfig, TrainConfig, ValidationConfig, check_worker_gpus

CPU_UNIT, GPU_UNIT = 8, 32
"""Groups of a unit. A step of sampling took 26 ms for 8 prompts of a 7B LLM and 28 for 32 (H100 80GB, at 58ef2b1)."""


class LabelConfig(Section):
    """Who rewards the candidates, how outputs are sampled, and how many actors work."""

    teacher: Literal["llm", "reranker", "imported"] = "llm"
    """Who rewards: the LLM; a cross-encoder trained on the LLM's rewards; or rewards made elsewhere (`imported`), which
    `prepare` keeps of sources with `teacher_scores: true`."""
    export: AnyAbsolutePath | None = None
    """File to which the labelled groups are also written, as JSON Lines of the paper's released code. null: none."""
    recompute: bool = False
    """Recompute the rewards from the stored log-likelihoods, after the `reward` of a task was changed. Needs no LLM."""
    corpus_outputs: int = Field(default=0, ge=0)
    """So many desired outputs of other training queries of the dataset (seeded choice) rival a query's own, beside the
    sampled ones: real text against real text, which an LLM mostly finds less likely than samples of its own."""
    num_samples: int = Field(default=10, ge=0)
    """Outputs sampled for each query without a candidate, among which the desired output is ranked (N). 10 as in the
    paper; 5 halves the cost and coarsens the ranks. 0 needs `corpus_outputs`."""
    sample_length: Literal["setting", "desired"] = "setting"
    """Most tokens of a sampled output: the task's `max_output_tokens`, or as many as the `desired` output has."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the sampling. The paper gives no sampling settings."""
    top_k: int = Field(default=50, ge=1)
    """Sampling draws from so many of the likeliest tokens. The paper gives no sampling settings."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sampling draws from the likeliest tokens whose probabilities sum to this, within `top_k`."""
    unit_groups: int | None = Field(default=None, ge=1)
    """Groups that are sampled and scored together: more share more of their prompts and take more memory. null: 8 on a
    CPU and 32 on GPUs, where a step of sampling takes hardly longer for 32 prompts than for 8. For one value the labels
    are the same bit for bit, whatever the blocks, the actors and their order. Of a unit only the groups that have no
    label yet are read; such later labels may differ in the last bits from those of a labelling in one go."""
    block_rows: int = Field(default=8, ge=1)
    """Groups that are committed together, rounded up to whole units. A kill costs at most this many of each actor."""
    max_error_share: float = Field(default=0.05, ge=0, le=1)
    """The job ends with an error when a larger share of the groups could not be scored."""
    dry_run_groups: int = Field(default=2, ge=0)
    """Groups of each task that `--dry-run` labels on this machine to estimate the time. 0 estimates from sizes
    alone."""
    rounding_groups: int = Field(default=24, ge=0)
    """Groups that are scored once more in float32 after a run in bfloat16, to tell how many rank rewards it changes.
    0: none."""
    num_actors: int = Field(default=2, ge=1)
    """Greatest number of actors; each holds a copy of the LLM."""
    min_actors: int | None = Field(default=None, ge=1)
    """Number of actors from which the pool grows while work waits. null: `num_actors` from the start."""
    cpus_per_actor: float = Field(default=1, gt=0)
    """CPUs, and threads, of an actor; one with a GPU gets its share of the machine's, up to 4, if that is more. Labels
    of a CPU are bit-identical for one value only, because batches depend on the number of threads."""
    gpus_per_actor: float = Field(default=0, ge=0)
    """GPUs of each actor. 0 labels on the CPU; 0.5 puts two actors on a GPU; 2 or more with `llm.device_map: auto`
    divide the LLM between them."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the sampling and of the choice of worked examples."""

    @model_validator(mode="after")
    def parts_fit(self) -> LabelConfig:
        """Refuse a pool whose least size exceeds its greatest."""
        if self.min_actors is not None and self.min_actors > self.num_actors:
            raise ValueError(f"min_actors {self.min_actors} exceeds num_actors {self.num_actors}")
        return self

    @field_validator("num_samples")
    @classmethod
    def outputs_have_rivals(cls, value: int, info: ValidationInfo) -> int:
        """Refuse settings under which a desired output would be ranked among none."""
        if not value and not info.data.get("corpus_outputs"):
            raise ValueError("num_samples is 0, and so is corpus_outputs, so that no rank could change; raise one")
        return value

    @property
    def groups_per_unit(self) -> int:
        """`unit_groups`, or what it is where the run file leaves it open."""
        return self.unit_groups or (GPU_UNIT if self.gpus_per_actor else CPU_UNIT)

    @property
    def num_rivals(self) -> int:
        """Greatest number of outputs among which a desired one is ranked."""
        return self.num_samples + self.corpus_outputs


class RerankerConfig(Section):
    """The cross-encoder that learns the LLM's rewards and labels in its place, for `label.teacher: reranker`."""

    model: ModelReference
    """Encoder from which the training starts, as `encoder.model`."""
    llm_groups: int | None = Field(default=None, ge=1)
    """Groups of each dataset that the LLM labels for it (seeded choice). null: all."""
    steps: int = Field(default=500, ge=1)
    """Steps of its training."""
    batch_size: int = Field(default=16, ge=1)
    """Groups of a global batch, over all workers, all of one task. Must be a multiple of `num_workers`."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Greatest learning rate."""
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the rate rises from 0; then it falls to 0."""
    max_tokens: int = Field(default=256, ge=8)
    """Tokens of a query with its candidate; a longer candidate is cut."""
    validation_share: float = Field(default=0.1, gt=0, le=0.5)
    """Share of each task's queries whose groups are kept out of its training, on which its agreement with the LLM is
    reported."""
    num_workers: int = Field(default=1, ge=1)
    """Workers that train it."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs of each worker and of each actor that labels with it. 0: the CPU."""
    save_every: int = Field(default=100, ge=1)
    """Steps between two checkpoints."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of its training and of the choice of groups."""

    def training(self, validation: ValidationConfig, max_failures: int) -> TrainConfig:
        """The same as settings of a training, which knows nothing of paces by task."""
        shared = self.model_dump(exclude={"model", "llm_groups", "max_tokens", "validation_share"})
        paced = SelfPacedConfig(direction="off")
        return TrainConfig(**shared, validation=validation, max_failures=max_failures, self_paced=paced)

    @model_validator(mode="after")
    def workers_fit(self) -> RerankerConfig:
        """Refuse a batch that the workers cannot share evenly, and GPUs that they cannot use."""
        if self.batch_size % self.num_workers:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of num_workers {self.num_workers}")
        check_worker_gpus(self.gpus_per_worker)
        return self
