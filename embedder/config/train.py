"""Settings of the job `train`."""

from __future__ import annotations

from math import lcm
from typing import Annotated, Literal

from pydantic import Field, model_validator

from embedder.config.paths import AbsolutePath, Section


class SelfPacedConfig(Section):
    """Self-paced learning rate: the rate of a task follows how much of its loss is left."""

    direction: Literal["off", "lossy_faster", "lossy_slower"] = "lossy_faster"
    """Factor of the rate. `lossy_faster`: loss now / loss at the checkpoint, as the text of the paper and the method
    that it cites. `lossy_slower`: the inverse, as its formula. `off`: none."""
    checkpoint_every: int = Field(default=1000, ge=1)
    """Steps between two checkpoints of the losses, with which later losses are compared."""
    smoothing: float = Field(default=0.9, ge=0, lt=1)
    """Weight of the past in the running mean of a task's loss. High, because the loss of a single small batch says
    little."""
    bounds: tuple[float, float] = (0.5, 2.0)
    """Least and greatest factor; 1 must lie between them."""

    @model_validator(mode="after")
    def bounds_hold_one(self) -> SelfPacedConfig:
        """Refuse bounds that leave out 1, the factor of a task whose loss has not changed."""
        low, high = self.bounds
        if not 0 < low <= 1 <= high:
            raise ValueError(f"bounds is {list(self.bounds)}; it needs 0 < least <= 1 <= greatest")
        return self


class LoraConfig(Section):
    """Low-rank additions (LoRA) that are trained in place of the weights; the exported model holds their sum."""

    rank: int = Field(default=16, ge=1)
    """Rank of the additions."""
    alpha: int = Field(default=32, ge=1)
    """The additions are multiplied by `alpha` / `rank`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before each addition. 0 keeps the result independent of the number of workers."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Linear modules that get an addition, by the ends of their names; `all-linear`: all of them."""


class ValidationConfig(Section):
    """A split of the labelled groups that is never trained on; the encoder that ranks it best is the one exported."""

    share: float | None = Field(default=None, gt=0, le=0.5)
    """Share of each task's queries that is kept apart. Give this or `queries`."""
    queries: int | None = Field(default=None, ge=1)
    """Number of each task's queries that is kept apart. Give this or `share`."""
    every: int = Field(default=100, ge=1)
    """Steps between two measurements. There is also a measurement before the first step and one after the last."""
    cutoff: int = Field(default=10, ge=1)
    """k of NDCG@k."""
    patience: int | None = Field(default=None, ge=1)
    """Measurements without a new best after which the training stops. null: it never stops early."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the split."""

    @model_validator(mode="after")
    def size_is_one(self) -> ValidationConfig:
        """Refuse a split of two sizes or none."""
        if (self.share is None) == (self.queries is None):
            raise ValueError(f"share is {self.share} and queries is {self.queries}; give one of them")
        return self


class GuardConfig(Section):
    """After the training, the exported weights go only so far from the base's to the trained ones as harms no task of
    the validation split."""

    shares: list[Annotated[float, Field(gt=0, le=1)]] = Field(default=[0.25, 0.5, 0.75, 1.0], min_length=1)
    """Shares of the way that are tried. The base itself, share 0, is always among the choices."""
    tolerance: float = Field(default=0.0, ge=0, lt=1)
    """By how much NDCG of a task may fall below the base's. On a split of few queries a task that the training left
    alone falls below by chance; a tolerance of about the standard error lets the others keep what they gained."""


class ReplayedRun(Section):
    """An earlier run whose labelled groups are trained on again."""

    work: AbsolutePath
    """`paths.work` of that run."""
    round: int = Field(default=1, ge=1, le=99)
    """`paths.round` of that run."""


class ReplayConfig(Section):
    """Groups of earlier runs among the new ones, so that new tasks or data do not replace what was learned."""

    runs: list[ReplayedRun] = Field(min_length=1)
    """The earlier runs."""
    share: float = Field(gt=0, lt=1)
    """Share of all groups that are replayed ones (seeded choice); fewer if there are fewer. With `train.task_weights`
    or `train.mix_temperature` these decide how often a task is trained."""

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
    *("zero_stage", "offload_optimizer", "chunk_tokens", "gradient_checkpointing", "compile_layers"),
    *("tensorboard", "mlflow", "wandb"),
}
"""Settings that change nothing of the result but rounding; a training can be resumed with other values of them."""


CPU_CHUNK_TOKENS = 65_536
"""`chunk_tokens` of a CPU where nothing else is said."""


def check_worker_gpus(gpus: float) -> None:
    """Refuse GPUs that a training worker would leave idle.

    Raises:
        ValueError: a worker gets more than one.
    """
    if gpus > 1:
        raise ValueError(f"gpus_per_worker is {gpus:g}, but a worker trains on one; raise num_workers instead")


class TrainConfig(Section):
    """How the encoder is trained on the labelled groups."""

    steps: int = Field(ge=1, le=1_000_000_000)
    """Optimiser steps."""
    batch_size: int = Field(default=16, ge=1)
    """Queries of a global batch, over all workers. Negatives come from the batch, so a larger one teaches more. Must be
    a multiple of every number of workers there may be."""
    batches: Literal["one_task", "mixed"] = "one_task"
    """`one_task`: all queries of a batch are of the same task, as in the paper; better in `icl`, `chat` and `qa` and
    nowhere worse (benchmarks/STUDY.md). `mixed`: of all tasks, each by its own loss, with the candidates of all as
    negatives."""
    learning_rate: float = Field(default=5e-6, gt=0, le=1e30)
    """Greatest learning rate. 5e-6 is the paper's for BGE-base; small encoders take 1e-5 to 3e-5."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW. The default is the paper's."""
    warmup_share: float = Field(default=0.2, ge=0, lt=1)
    """Share of the steps in which the rate rises from 0; then it falls to 0. The default is the paper's."""
    temperature: float = Field(default=0.01, gt=0)
    """Temperature of the cosine in the losses (tau). 0.01 is the paper's, for large batches; small batches take 0.02 to
    0.05."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the encoder in training. 0 keeps the result independent of the number of workers."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Greatest norm of the gradient; a longer one is scaled to it."""
    task_weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default={})
    """Share of the training that each task gets, relative to the others. Empty: by the numbers of groups."""
    mix_temperature: float = Field(default=1.0, ge=1)
    """T of the shares `n ** (1 / T)` of tasks with n groups. 1: in proportion to n; larger values lift small tasks."""
    exhausted: Literal["repeat", "drop"] = "repeat"
    """Once all groups of a task were trained: `repeat` begins again in a new order, `drop` leaves the steps to the
    other tasks."""
    matryoshka_dimensions: list[Annotated[int, Field(ge=1)]] = Field(default=[])
    """Lengths of prefixes of the vector that are trained as vectors of their own, so that it may be cut to them. The
    loss is the mean over these and the whole vector. Empty: the whole vector alone."""
    self_paced: SelfPacedConfig = SelfPacedConfig()
    """Learning rate by task."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the matrix products; `bfloat16` is four times as fast on a GPU that has it (Ampere and
    later). Weights, gradients, optimiser and losses stay in float32."""
    lora: LoraConfig | None = None
    """Train low-rank additions in place of the weights. null: all weights are trained."""
    chunk_tokens: int | None = Field(default=None, ge=64)
    """Padded tokens of a worker whose activations are kept at once, so that any `batch_size` fits the memory. A larger
    batch is encoded twice, chunk by chunk, with the same gradient and about a third more time. null: on a GPU as many
    as its free memory holds, on the CPU 65,536."""
    compile_layers: bool = False
    """Compile the layers by torch.compile, which makes one kernel of several operations between two matrix products.
    For GPUs, `zero_stage` 0 to 2; the workers need Triton and a C compiler, and the first steps take longer."""
    gradient_checkpointing: bool = False
    """Compute the activations of each layer again in the backward pass, in place of keeping them."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What DeepSpeed spreads over the workers: 1 the state of the optimiser, 2 the gradients too, 3 the weights too."""
    offload_optimizer: bool = False
    """Keep the state of the optimiser in the memory of the CPU. Needs `zero_stage` 1, 2 or 3."""
    validation: ValidationConfig | None = None
    """Keep a split apart and export the encoder that ranks it best. null: the encoder of the last step is exported."""
    guard: GuardConfig | None = None
    """Export weights between the base's and the trained ones (the best of `validation`, which it needs): those of the
    best mean NDCG among those with which no task is ranked worse than by the base. null: off."""
    control: bool = False
    """Train a second encoder, the control, in the same way but with the rewards of each group shuffled, and write it to
    `control/`. What it gains needs no LLM; what the trained encoder gains beyond it is the LLM's share, which
    `evaluate` tells where `control` is among its retrievers. Costs as much as the training."""
    export_task: str | None = Field(default=None, min_length=1)
    """Task whose instructions stand in the model's folder as the prompts `query` and `document`, which
    `encode_query` and `encode_document` of sentence-transformers take. null: the first of the trained tasks, in the
    order qa, convsearch, chat, lrlm, icl, tool, then others by name."""
    replay: ReplayConfig | None = None
    """Train on groups of earlier runs too. null: on the groups of this run alone."""
    tensorboard: bool = False
    """Write event files to `training/RUN/tensorboard`."""
    mlflow: str | None = Field(default=None, min_length=1)
    """Tracking address of an MLflow server that follows the training; needs the package mlflow. It holds no user or
    password: these are MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment of the workers. null:
    none."""
    wandb: str | None = Field(default=None, min_length=1)
    """Project of Weights & Biases that follows the training; needs the package wandb, and its key in the environment of
    the workers. null: none."""
    num_workers: int = Field(default=2, ge=1)
    """Workers that train; the result does not depend on their number."""
    min_workers: int | None = Field(default=None, ge=1)
    """Least number of workers. With fewer nodes free than `num_workers` needs, the training goes on with as few as
    this, and with more once there are more. null: wait for all."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs of each worker. 0: the CPU. Below 1: several workers share a GPU, by way of the host's memory, which is for
    trying out and not for speed. More than 1 is refused, because a worker trains on one."""
    save_every: int = Field(default=100, ge=1)
    """Steps between two checkpoints. A kill costs at most this many steps."""
    max_failures: int = Field(default=3, ge=0)
    """Failures of workers without a new checkpoint between them after which the job gives up. After each one it resumes
    from the last checkpoint; spot nodes may be lost as often as they like while it gets on."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the order of the batches."""

    @property
    def drops(self) -> bool:
        """True if there is dropout anywhere."""
        return self.dropout > 0 or (self.lora is not None and self.lora.dropout > 0)

    @property
    def worker_counts(self) -> range:
        """The numbers of workers that there may be."""
        return range(self.min_workers or self.num_workers, self.num_workers + 1)

    @model_validator(mode="after")
    def workers_fit(self) -> TrainConfig:
        """Refuse a batch that the workers, however many there may be, cannot share, and GPUs that they cannot use."""
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers {self.min_workers} exceeds num_workers {self.num_workers}")
        # Every count, because Ray Train may resume with any number of workers between the two.
        for count in self.worker_counts:
            if self.batch_size % count:
                named = "num_workers" if count == self.num_workers else "the possible number of workers"
                raise ValueError(
                    f"batch_size {self.batch_size} is not a multiple of {named} {count}; {lcm(*self.worker_counts)} "
                    "and its multiples are"
                )
        check_worker_gpus(self.gpus_per_worker)
        return self

    @model_validator(mode="after")
    def compiler_has_its_device(self) -> TrainConfig:
        """Refuse to compile layers for a CPU, and layers whose weights ZeRO fetches one by one."""
        if self.compile_layers and (not self.gpus_per_worker or self.zero_stage == 3):
            raise ValueError(
                f"compile_layers needs a GPU a worker and zero_stage 0, 1 or 2, but gpus_per_worker is "
                f"{self.gpus_per_worker:g} and zero_stage {self.zero_stage}; leave it out"
            )
        return self

    @model_validator(mode="after")
    def offload_has_a_stage(self) -> TrainConfig:
        """Refuse an offload that DeepSpeed would pass over."""
        if self.offload_optimizer and not self.zero_stage:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3: at stage 0 DeepSpeed holds no optimiser")
        return self

    @model_validator(mode="after")
    def guard_has_a_split(self) -> TrainConfig:
        """Refuse a guard that has nothing to measure on."""
        if self.guard is not None and self.validation is None:
            raise ValueError("guard needs validation, on whose split it measures; give validation: {share: 0.1}")
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
