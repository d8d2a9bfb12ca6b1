"""Two other ways to make the same steps: a plain padded loop, and sentence-transformers' own trainer."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.distributed as dist
from accelerate import DistributedType
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Transformer
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback

from embedder.config.train import TrainConfig
from embedder.models.encoder import load_encoder, set_dropout
from embedder.models.locate import locate_model
from embedder.training.job import TrainingJob
from embedder.training.objective import Objective
from embedder.training.training_rows import Batch

WHOLE_BATCH = 2**40
"""Tokens of a forward pass that no batch reaches."""


class PaddedLoop:
    """Queries in one padded forward pass, candidates in another, stock layers, AdamW."""

    def __init__(self, job: TrainingJob) -> None:
        """Load the encoder the job starts from."""
        self._job = job
        self._objective = Objective.of(job.tasks, job.config)
        whole = job.encoder.model_copy(update={"batch_tokens": WHOLE_BATCH})
        self.encoder = load_encoder(whole, "cpu").train()
        config = job.config
        self._adam = torch.optim.AdamW(
            self.encoder.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def loss(self, batch: Batch) -> Tensor:
        """The batch's loss with its graph."""
        rows = self.encoder.tokenize(batch.prompted(self._job.tasks))
        count = len(batch.queries)
        vectors = torch.cat([self.encoder(rows[:count]), self.encoder(rows[count:])])
        return self._objective.batch_losses(vectors, batch).mean()

    def step(self, batch: Batch) -> None:
        """Forward, backward, update."""
        self.loss(batch).backward()
        nn.utils.clip_grad_norm_(self.encoder.parameters(), self._job.config.gradient_clip)
        self._adam.step()
        self._adam.zero_grad()


def peer_model(job: TrainingJob, device: str = "cpu") -> SentenceTransformer:
    """The same encoder as sentence-transformers loads it, without dropout."""
    backbone = Transformer(str(locate_model(job.encoder.model)), max_seq_length=job.encoder.max_tokens)
    pooling = Pooling(backbone.get_embedding_dimension(), job.encoder.pooling)
    model = SentenceTransformer(modules=[backbone, pooling, Normalize()], device=device)
    set_dropout(model, 0.0)
    return model


def peer_loss(model: SentenceTransformer, job: TrainingJob, task: str) -> nn.Module:
    """Its loss that is the like of the task's: KL within the group, or InfoNCE over the batch."""
    if job.tasks[task].loss == "kl":
        warmth = job.tasks[task].alpha
        return DistillKLDivLoss(model, student_temperature=job.config.temperature, teacher_temperature=warmth)
    return MultipleNegativesRankingLoss(model, scale=1 / job.config.temperature)


def peer_columns(job: TrainingJob, batches: Sequence[Batch]) -> dict[str, list[Any]]:
    """The batches' rows as its trainer wants them: a column for the query, one a candidate, one of rewards for KL."""
    columns: dict[str, list[Any]] = {"query": []}
    for batch in batches:
        texts = [str(text) for text in batch.prompted(job.tasks)]
        count = len(batch.queries)
        columns["query"] += texts[:count]
        size = len(batch.candidates) // count
        for i in range(size):
            columns.setdefault(f"candidate_{i}", []).extend(texts[count + i :: size])
        if job.tasks[batch.tasks[0]].loss == "kl":
            columns.setdefault("label", []).extend(batch.reward_BM.tolist())
    return columns


class _Turns(TrainerCallback):
    """Times each step from the end of the one before it, and lets the other ways take their turn in between."""

    def __init__(self, turn: Callable[[int, float], None]) -> None:
        self._turn, self._began = turn, 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ANN401
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ANN401
        if not args.use_cpu:
            torch.cuda.synchronize()  # a GPU has only been told what to do
        self._turn(state.global_step - 1, time.perf_counter() - self._began)
        self._began = time.perf_counter()


def _in_order(dataset: Dataset, **settings: Any) -> DefaultBatchSampler:  # noqa: ANN401
    return DefaultBatchSampler(SequentialSampler(dataset), **settings)


@contextmanager
def no_process_group() -> Iterator[None]:
    """Hide the process group that DeepSpeed needs: in it the other trainer would synchronise with itself."""
    with patch.object(dist, "is_initialized", return_value=False), patch.dict(os.environ):
        os.environ.pop("LOCAL_RANK", None)
        yield


def train_peer(
    job: TrainingJob,
    batches: Sequence[Batch],
    turn: Callable[[int, float], None],
    device: str = "cpu",
    loaders: int = 0,
) -> None:
    """Make the steps with sentence-transformers' trainer; `turn(step, seconds)` is called after each.

    `loaders`: processes that read and tokenise ahead; 0: it does so itself between two steps.
    """
    model = peer_model(job, device)
    with tempfile.TemporaryDirectory() as folder:
        with no_process_group():
            trainer = SentenceTransformerTrainer(
                model=model,
                args=peer_settings(job.config, folder, device, loaders),
                train_dataset=Dataset.from_dict(peer_columns(job, batches)),
                loss=peer_loss(model, job, batches[0].tasks[0]),
                callbacks=[_Turns(turn)],
            )
        if trainer.accelerator.distributed_type != DistributedType.NO:
            raise RuntimeError(f"sentence-transformers would train as {trainer.accelerator.distributed_type}")
        trainer.train()


def peer_settings(
    config: TrainConfig, folder: str, device: str = "cpu", loaders: int = 0
) -> SentenceTransformerTrainingArguments:
    """Its settings: those of ours, one process, nothing written."""
    return SentenceTransformerTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=config.batch_size,
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_share,
        max_grad_norm=config.gradient_clip,
        batch_sampler=_in_order,
        use_cpu=device == "cpu",
        bf16=config.precision == "bfloat16",
        dataloader_num_workers=loaders,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
