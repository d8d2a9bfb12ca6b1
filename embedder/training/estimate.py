"""What a training will do and need, from sizes alone: no model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from embedder.config.run import RunConfig
from embedder.config.train import CPU_CHUNK_TOKENS, TrainConfig
from embedder.models.loader import read_config
from embedder.models.locate import count_parameters, locate_model
from embedder.run.cost import Work, forward_flops
from embedder.training.batch_plan import BatchPlan
from embedder.training.objective import prefix_widths

BYTES = 4
"""A float32 number takes so many."""
BFLOAT16_SHARE = 0.7
"""Of the activations of float32 that are left in bfloat16: 0.69 in a BERT of 6 layers; norms stay in float32."""
USED_SHARE = 0.75
"""Of a GPU's free memory that activations are planned for. By the rule of `activation_bytes` a token of BERT-base takes
0.42 MB in bfloat16 and 0.60 in float32; 0.42 and 0.74 were measured, with weights, gradient and optimiser (H100 80GB,
commit 58ef2b1)."""
BUCKET_BYTES = 2e9
"""Of the buffer in which DeepSpeed's ZeRO gathers gradients, by its default."""
LEAST_TOKENS = 64
"""The smallest `chunk_tokens`."""
INNER = ("intermediate_size", "d_ff", "n_inner", "hidden_dim")
"""What model families call the width inside of a layer; for all else transformers knows one name."""


class ModelShape(NamedTuple):
    """The sizes that activations depend on."""

    width: int
    layers: int
    inner: int

    @classmethod
    def of(cls, model: Path) -> ModelShape:
        """The sizes that the configuration of a model folder says."""
        config = read_config(model).get_text_config()
        width: int = config.hidden_size
        inner = next((size for name in INNER if (size := getattr(config, name, None))), 4 * width)
        return cls(width, config.num_hidden_layers, inner)


class MemoryEstimate(NamedTuple):
    """Bytes of one worker."""

    weights: float
    gradients: float
    optimizer: float
    activations: float


def activation_bytes(shape: ModelShape, config: TrainConfig, tokens: float, batch_tokens: float) -> float:
    """What autograd keeps of so many tokens: in each layer eight states and two inner ones a token.

    Counted on BERT: 151 KB a token of MiniLM (6 layers of width 384) for 147 KB by this rule.
    """
    layer = 8 * shape.width + 2 * shape.inner
    if config.gradient_checkpointing:
        numbers = (shape.layers + 2) * shape.width * tokens + layer * min(tokens, batch_tokens)
    else:
        numbers = (shape.layers * layer + 2 * shape.width) * tokens
    return numbers * BYTES * (BFLOAT16_SHARE if config.precision == "bfloat16" else 1)


def memory_of(
    parameters: int, shape: ModelShape, config: TrainConfig, tokens: float, batch_tokens: int
) -> MemoryEstimate:
    """The memory of a worker whose share of a batch has so many tokens."""
    trained = parameters if config.lora is None else lora_parameters(shape, config.lora.rank)
    workers, stage = config.num_workers, config.zero_stage
    most = known_chunk_tokens(config)
    kept = tokens if most is None else min(tokens, max(most, batch_tokens))
    master = 0 if stage == 0 else trained  # DeepSpeed's own copy of what it updates
    return MemoryEstimate(
        weights=BYTES * parameters / (workers if stage == 3 else 1),
        gradients=BYTES * trained / (workers if stage >= 2 else 1),
        optimizer=BYTES * (2 * trained + master) / (workers if stage else 1),
        activations=activation_bytes(shape, config, kept, batch_tokens),
    )


def known_chunk_tokens(config: TrainConfig) -> int | None:
    """`chunk_tokens`, or what stands for null on a CPU; None where a GPU's free memory will decide."""
    return config.chunk_tokens or (None if config.gpus_per_worker else CPU_CHUNK_TOKENS)


def tokens_that_fit(free: float, trained: int, shape: ModelShape, config: TrainConfig, batch_tokens: int) -> int:
    """Padded tokens whose activations fit into so many free bytes, beside what an update of the weights needs.

    `free` is counted when weights and optimiser are there already; `trained`: how many weights get a gradient.
    """
    room = USED_SHARE * (free - BYTES * trained - (BUCKET_BYTES if config.zero_stage else 0))
    first = activation_bytes(shape, config, batch_tokens, batch_tokens)
    if room <= first:
        return max(LEAST_TOKENS, int(batch_tokens * room / first))
    # Recomputed activations of a layer are needed for one pass at a time, so that further ones take less.
    each = activation_bytes(shape, config, batch_tokens + 1, batch_tokens) - first
    return batch_tokens + int((room - first) / each)


def lora_parameters(shape: ModelShape, rank: int) -> int:
    """Weights of the additions to all linear layers of a BERT-like encoder: four square ones a layer and two wider."""
    return shape.layers * rank * (8 * shape.width + 2 * (shape.width + shape.inner))


def work_of(
    run: RunConfig, sizes: Counter[str], tokens: float, candidates: int, apart: int, notes: Sequence[str]
) -> Work:
    """The training on so many rows by task, of so many tokens each and up to so many candidates.

    Measured on `apart` groups; `notes` come before its lines.

    Raises:
        ConfigError: there is nothing to train on, or a prefix is longer than the encoder's vectors.
    """
    encoder, tasks, config = run.encoder, run.tasks, run.needed_train
    plan = BatchPlan(sizes, config)
    lines = [*notes]
    lines += [
        f"{task}: {sizes[task]:,} groups, trained {plan.rows_of(task) / sizes[task]:.1f} times, loss {tasks[task].loss}"
        for task in plan.tasks
    ]
    lines += [
        f"{task}: {sizes[task]:,} groups, not trained: no weight" for task in sorted(set(sizes) - set(plan.tasks))
    ]
    lines += [
        f"{task}: train.task_weights gives it {weight:g}, but it has no group to train on"
        for task, weight in config.task_weights.items()
        if weight and not sizes[task]
    ]
    lines.append(
        f"{config.steps:,} steps of {config.batch_size:,} queries with up to {candidates} candidates on "
        f"{config.num_workers} workers; up to {config.batch_size * candidates - 1:,} negatives a query"
    )
    if config.validation is not None:
        exported = "is exported" if config.guard is None else "is where train.guard goes from the base"
        lines.append(
            f"{apart:,} groups are kept apart and ranked every {config.validation.every:,} steps; what ranks them "
            f"best (NDCG@{config.validation.cutoff}) {exported}"
        )
    share = tokens * config.batch_size / config.num_workers
    passes = 3 + config.gradient_checkpointing
    most = known_chunk_tokens(config)
    if most is None:
        lines.append(
            f"about {share:,.0f} tokens a worker and step, which are encoded twice, in chunks, should the GPU's free "
            "memory not hold their activations (train.chunk_tokens)"
        )
    elif share > most:
        passes += 1
        lines.append(f"about {share:,.0f} tokens a worker and step, which are encoded twice in chunks of {most:,}")
    model = locate_model(encoder.model)
    parameters, shape = count_parameters(model), ModelShape.of(model)
    prefix_widths(config.matryoshka_dimensions, shape.width)
    memory = memory_of(parameters, shape, config, share, encoder.batch_tokens)
    parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in memory._asdict().items())
    lines.append(f"about {sum(memory) / 2**30:.2f} GiB a worker ({parts})")
    trained = tokens * config.batch_size * config.steps
    return Work("train", lines, passes * forward_flops(parameters, trained), trained)
