"""The settings of training: the run file's `train` section. Needs no torch, as all of the run file."""

from __future__ import annotations

from math import lcm
from typing import Annotated, Literal

from pydantic import Field, model_validator

from embedder.config.paths import AbsolutePath, Section


class SelfPacedConfig(Section):
    """Self-paced learning rate: a task's rate follows how much of its loss is left."""

    direction: Literal["off", "lossy_faster", "lossy_slower"] = "lossy_faster"
    """lossy_faster: factor L_now / L_checkpoint (the text of the paper); lossy_slower: its inverse (its formula)."""
    checkpoint_every: int = Field(default=1000, ge=1)
    """Steps between two checkpoints of the tasks' losses."""
    smoothing: float = Field(default=0.9, ge=0, lt=1)
    """Weight of the past in the running mean of a task's loss."""
    bounds: tuple[float, float] = (0.5, 2.0)
    """Least and greatest factor."""

    @model_validator(mode="after")
    def bounds_hold_one(self) -> SelfPacedConfig:
        """Refuse bounds that a task of the usual pace, factor 1, is outside of."""
        low, high = self.bounds
        if not 0 < low <= 1 <= high:
            raise ValueError(f"bounds is {list(self.bounds)}; it needs 0 < least <= 1 <= greatest")
        return self


class LoraConfig(Section):
    """Train low-rank additions to the weights and leave these alone; the exported model holds their sum."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    """The additions are multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Before each addition; 0 keeps the result independent of the number of workers."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Ends of the names of the linear modules that get one."""


class ValidationConfig(Section):
    """A split of the labelled groups that is never trained on; the encoder that ranks it best is the one exported."""

    share: float | None = Field(default=None, gt=0, le=0.5)
    """Of each task's queries."""
    queries: int | None = Field(default=None, ge=1)
    """The same as a number; give one of the two."""
    every: int = Field(default=100, ge=1)
    """Steps between two measurements; there is one before the first step and one after the last too."""
    cutoff: int = Field(default=10, ge=1)
    """k of NDCG@k."""
    patience: int | None = Field(default=None, ge=1)
    """Measurements without a new best after which the training stops; null: it never stops early."""
    seed: int = 0
    """Of the split."""

    @model_validator(mode="after")
    def size_is_one(self) -> ValidationConfig:
        """Refuse a split of two sizes or none."""
        if (self.share is None) == (self.queries is None):
            raise ValueError(f"share is {self.share} and queries is {self.queries}; give one of them")
        return self


class ReplayedRun(Section):
    """An earlier run whose labelled groups are trained on again."""

    work: AbsolutePath
    """Its `paths.work`."""
    round: int = Field(default=1, ge=1, le=99)
    """Its `paths.round`."""


class ReplayConfig(Section):
    """Groups of earlier runs among the new ones, so that new tasks or data do not push out what was learned."""

    runs: list[ReplayedRun] = Field(min_length=1)
    share: float = Field(gt=0, lt=1)
    """Of all groups, how many are replayed ones: a seeded choice, or all there are if they are fewer."""

    @model_validator(mode="after")
    def runs_differ(self) -> ReplayConfig:
        """Refuse a run that is named twice."""
        seen = [(str(run.work), run.round) for run in self.runs]
        for run in self.runs:
            if seen.count((str(run.work), run.round)) > 1:
                raise ValueError(f"runs names {run.work}, round {run.round}, twice")
        return self


NEUTRAL = {
    *("save_every", "max_failures", "num_workers", "min_workers", "gpus_per_worker"),
    *("zero_stage", "offload_optimizer", "chunk_tokens", "gradient_checkpointing"),
    *("tensorboard", "mlflow", "wandb"),
}
"""Settings of a training that change nothing of its result but rounding; it can be resumed with others of them."""


class TrainConfig(Section):
    """Rewards to a trained encoder."""

    steps: int = Field(ge=1)
    batch_size: int = Field(default=16, ge=1)
    """Queries of a global batch, over all workers."""
    batches: Literal["one_task", "mixed"] = "one_task"
    """one_task: the queries of a batch are of one task, as the paper has it; mixed: of all tasks, each by its own loss,
    with the candidates of all as in-batch negatives."""
    learning_rate: float = Field(default=5e-6, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_share: float = Field(default=0.2, ge=0, lt=1)
    """Share of the steps in which the rate rises from 0; then it falls to 0."""
    temperature: float = Field(default=0.01, gt=0)
    """Of the cosine in the losses (tau)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """0 keeps the result independent of the number of workers."""
    gradient_clip: float = Field(default=1.0, gt=0)
    task_weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default={})
    """Share of the training a task gets, relative to the others; empty: by its number of groups."""
    mix_temperature: float = Field(default=1.0, ge=1)
    """T of the shares by number of groups n, n ** (1 / T): 1 in proportion, larger ones lift the small tasks."""
    exhausted: Literal["repeat", "drop"] = "repeat"
    """What a task does once all its groups were trained: begin again in a new order, or leave the mix to the others."""
    matryoshka_dimensions: list[Annotated[int, Field(ge=1)]] = Field(default=[])
    """Prefixes of the vector that are trained as vectors of their own, so that it may be cut to them: the loss is the
    mean over these and the whole vector. Empty: the whole alone."""
    self_paced: SelfPacedConfig = SelfPacedConfig()
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: of the matrix products; weights, gradients and optimiser stay in float32."""
    lora: LoraConfig | None = None
    """null: all weights are trained."""
    chunk_tokens: int | None = Field(default=65_536, ge=64)
    """Padded tokens a worker whose activations are kept at once. A batch of more is encoded twice, chunk by chunk, with
    the same gradient for about a third more time; null: never."""
    gradient_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What DeepSpeed shares out among the workers: 1 the optimiser's state, 2 gradients too, 3 weights too."""
    offload_optimizer: bool = False
    """Keep the optimiser's state in the memory of the CPU."""
    validation: ValidationConfig | None = None
    """null: no split is kept apart, and the encoder of the last step is exported."""
    replay: ReplayConfig | None = None
    """null: the groups of this run alone."""
    tensorboard: bool = False
    """Write event files to `training/RUN/tensorboard`."""
    mlflow: str | None = Field(default=None, min_length=1)
    """Tracking address of the MLflow server that follows the training; needs the package mlflow."""
    wandb: str | None = Field(default=None, min_length=1)
    """Project of Weights & Biases that follows the training; needs the package wandb, and its key in the workers'
    environment."""
    num_workers: int = Field(default=2, ge=1)
    min_workers: int | None = Field(default=None, ge=1)
    """With fewer nodes free than `num_workers` needs, train with as few workers as this, and with more once there are
    more; null: wait for all."""
    gpus_per_worker: float = Field(default=0, ge=0)
    save_every: int = Field(default=100, ge=1)
    """Steps between two checkpoints."""
    max_failures: int = Field(default=3, ge=0)
    """Worker failures after which the job gives up; each resumes from the last checkpoint."""
    seed: int = 0

    @property
    def drops(self) -> bool:
        """Whether there is dropout anywhere."""
        return self.dropout > 0 or (self.lora is not None and self.lora.dropout > 0)

    @property
    def worker_counts(self) -> range:
        """How many workers there may be."""
        return range(self.min_workers or self.num_workers, self.num_workers + 1)

    @model_validator(mode="after")
    def batch_divides(self) -> TrainConfig:
        """Refuse a batch that the workers, however many there may be, cannot share evenly."""
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers {self.min_workers} exceeds num_workers {self.num_workers}")
        for count in self.worker_counts:
            if self.batch_size % count:
                named = "num_workers" if count == self.num_workers else "the possible number of workers"
                raise ValueError(
                    f"batch_size {self.batch_size} is not a multiple of {named} {count}; {lcm(*self.worker_counts)} "
                    "and its multiples are"
                )
        return self

    @model_validator(mode="after")
    def worker_has_a_device(self) -> TrainConfig:
        """Refuse GPUs that a worker would leave idle, and two workers on one."""
        if self.gpus_per_worker > 1:
            raise ValueError(
                f"gpus_per_worker is {self.gpus_per_worker:g}, but a worker trains on one; raise num_workers instead"
            )
        if 0 < self.gpus_per_worker < 1 < self.num_workers:
            raise ValueError(
                f"gpus_per_worker is {self.gpus_per_worker:g} with {self.num_workers} workers, but NCCL refuses two "
                "workers on one GPU; give each a whole one"
            )
        return self

    @model_validator(mode="after")
    def offload_has_a_stage(self) -> TrainConfig:
        """Refuse an offload that DeepSpeed would pass over."""
        if self.offload_optimizer and not self.zero_stage:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3: at stage 0 DeepSpeed holds no optimiser")
        return self

    @model_validator(mode="after")
    def mix_is_one(self) -> TrainConfig:
        """Refuse a mix by weights and by temperature at once, and weights without a task."""
        if self.task_weights and self.mix_temperature != 1:
            raise ValueError(
                f"task_weights are given, so mix_temperature {self.mix_temperature} says nothing; leave one of them out"
            )
        if self.task_weights and not any(self.task_weights.values()):
            raise ValueError(f"task_weights {self.task_weights} leave no task to train; give one of them a weight")
        return self
