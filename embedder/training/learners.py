"""What the loop trains: the encoder, or the cross-encoder of the teacher `reranker`.

Each is a network over rows of tokens, with what the rows of a batch are, what its outputs cost, how they rank the
candidates, and the folder it is exported to. B groups of this worker, M candidates of the largest group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from embedder.config.tasks import TaskSpec
from embedder.errors import ConfigError, DeviceError
from embedder.models.compiled import INDUCTOR, compile_tried, lacking_compiler
from embedder.models.device import check_bfloat16
from embedder.models.encoder import SIGHT, TextEncoder, TokenRow, load_encoder
from embedder.models.encoder_export import export_encoder
from embedder.models.gpu_encoder import SAME_LAYERS, reads_key_masks
from embedder.models.onednn import has_onednn, train_linear_layers
from embedder.models.transfer import upload
from embedder.training.cross_encoder import CrossEncoder, bare_query, export_cross_encoder, load_cross_encoder
from embedder.training.job import TrainingJob
from embedder.training.lora import add_adapters, merge_adapters
from embedder.training.losses import group_kl
from embedder.training.objective import Objective
from embedder.training.ranking_quality import gains_of, ndcg, pair_agreement
from embedder.training.training_rows import Batch


class Learner(Protocol):
    """A network to train, and what its outputs mean."""

    @property
    def network(self) -> TextEncoder | CrossEncoder:
        """Rows of tokens to one output each: a vector, or a score."""

    def rows(self, batch: Batch) -> list[TokenRow]:
        """The rows of tokens that a batch is read as."""

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """One loss a group, shape (B,), from the outputs of its rows."""

    def scores(self, outputs: Tensor, batch: Batch) -> Tensor:
        """What the candidates of each group are ranked by, shape (B, M)."""

    def quality(self, scores: list[float], positives: list[bool], rewards: list[float]) -> float | None:
        """How well one group is ranked, more is better; null where any ranking is as good as another."""

    def export(self, folder: Path, plain_task: str) -> None:
        """Write the network as a folder that other tools read too, an encoder with the plain prompts of a task."""


@dataclass(frozen=True)
class EncoderLearner:
    """The encoder, by the losses of its tasks; measured by NDCG."""

    network: TextEncoder
    objective: Objective
    cutoff: int = 10

    def rows(self, batch: Batch) -> list[TokenRow]:
        return self.network.tokenize(batch.prompted(self.objective.tasks))

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self.objective.batch_losses(outputs, batch)

    def scores(self, outputs: Tensor, batch: Batch) -> Tensor:
        count = len(batch.queries)
        return torch.einsum("bd,bmd->bm", outputs[:count], outputs[count:].view(*batch.valid_BM.shape, -1))

    def quality(self, scores: list[float], positives: list[bool], rewards: list[float]) -> float | None:
        gains = gains_of(positives, rewards)
        return None if gains is None else ndcg(scores, gains, self.cutoff)

    def export(self, folder: Path, plain_task: str) -> None:
        merge_adapters(self.network)
        export_encoder(self.network, folder, self.objective.tasks, plain_task)


@dataclass(frozen=True)
class CrossEncoderLearner:
    """The cross-encoder, by the softmax of its group's rewards; measured by the pairs it orders as they do.

    After `run_ranker.py` of the reference, whose released qa labels came from such a model.
    """

    network: CrossEncoder
    tasks: Mapping[str, TaskSpec]
    """Their `reward_temperature` (alpha) divides the rewards before the softmax; their `query_cut` holds here too."""

    def rows(self, batch: Batch) -> list[TokenRow]:
        size = batch.valid_BM.shape[1]
        queries = [bare_query(self.tasks[task], query) for task, query in zip(batch.tasks, batch.queries, strict=True)]
        return self.network.tokenize([(queries[k // size], text) for k, text in enumerate(batch.candidates)])

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        alphas = [[self.tasks[task].alpha] for task in batch.tasks]
        known = (torch.tensor(alphas), batch.reward_BM, batch.valid_BM)
        temperature_B1, reward_BM, valid_BM = (upload(values, outputs.device) for values in known)
        return group_kl(self.scores(outputs, batch), reward_BM / temperature_B1, valid_BM)

    def scores(self, outputs: Tensor, batch: Batch) -> Tensor:
        return outputs.view(batch.valid_BM.shape)

    def quality(self, scores: list[float], positives: list[bool], rewards: list[float]) -> float | None:
        return pair_agreement(scores, rewards)

    def export(self, folder: Path, plain_task: str) -> None:
        export_cross_encoder(self.network, folder)


def load_learner(job: TrainingJob, device: torch.device | str) -> Learner:
    """What a job trains, with the weights it starts from, on a device.

    Raises:
        ConfigError: it cannot be trained as the run file wants.
        ModelError: the folder is missing or has no weights.
    """
    if job.network == "cross_encoder":
        encoder = job.encoder
        network = load_cross_encoder(encoder.model, encoder.max_tokens, encoder.batch_tokens, device)
        return CrossEncoderLearner(network, job.tasks)
    cutoff = job.config.validation.cutoff if job.config.validation else 10
    return EncoderLearner(trainable_encoder(job, device), Objective.of(job.tasks, job.config), cutoff)


def trainable_encoder(job: TrainingJob, device: torch.device | str) -> TextEncoder:
    """The encoder to train: with adapters if they are wanted, and without gradient where nothing would reach.

    Raises:
        ConfigError: it cannot be trained as the run file wants.
    """
    config = job.config
    encoder = load_encoder(job.encoder, device=device, dropout=config.dropout)
    on_gpu = encoder.device.type == "cuda"
    if on_gpu:
        if config.precision == "bfloat16":
            check_bfloat16("train.precision")
        # Before the number format, because in bfloat16 a wrong mask could pass for rounding.
        encoder.masks_keys = reads_key_masks(encoder, encoder.tokenize(SIGHT))
    encoder.in_bfloat16 = config.precision == "bfloat16"
    pooler = getattr(encoder.backbone, "pooler", None)
    if isinstance(pooler, nn.Module):
        # Some families have one, for other pooling than ours: DeepSpeed waits for the gradient of every weight.
        pooler.requires_grad_(False)
    if config.gradient_checkpointing:
        if not encoder.backbone.supports_gradient_checkpointing:
            raise ConfigError(f"train.gradient_checkpointing: {job.encoder.model} does not support it; turn it off")
        encoder.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    if config.lora is not None:
        add_adapters(encoder, config.lora)
    if not on_gpu and has_onednn():
        train_linear_layers(encoder.backbone)
    # The network that is loaded for the export is on the CPU.
    if on_gpu and config.compile_layers:
        compile_for_training(encoder, drops=config.drops)
    return encoder.train()


def compile_for_training(encoder: TextEncoder, *, drops: bool = False, compiler: str = INDUCTOR) -> None:
    """Compile the layers, unless that fails or they then give other vectors; it is left in evaluation mode.

    `drops`: there is dropout somewhere.

    Raises:
        DeviceError: there is no compiler.
    """
    lacking = lacking_compiler()
    if lacking is not None:
        raise DeviceError(
            f"train.compile_layers: there is no {lacking} on the machine of a worker; install it, or leave it out"
        )
    rows = encoder.tokenize(SIGHT)
    # Not in inference mode, in which other layers would be compiled than those that are trained and measured.
    with torch.no_grad():
        wanted_ND = encoder.eval()(rows)

    def is_right() -> bool:
        found = list[Tensor]()
        # A single row too, and in all ways that a training reads rows, because other code is compiled for each.
        for some in (rows, rows[:1]):
            learning_ND = encoder.train()(some)
            learning_ND.sum().backward()
            with torch.no_grad():
                chunked_ND, measured_ND = encoder(some), encoder.eval()(some)
            found += [measured_ND] if drops else [measured_ND, chunked_ND, learning_ND.detach()]
        return all(bool(((each_ND * wanted_ND[: len(each_ND)]).sum(1) >= SAME_LAYERS).all()) for each_ND in found)

    try:
        compile_tried(encoder.backbone, is_right, compiler)
    finally:
        encoder.eval()
        encoder.zero_grad()


def trained_weights(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights of a network that are trained."""
    return {name: weight.detach().clone() for name, weight in network.named_parameters() if weight.requires_grad}


def put_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give the trained weights of a network these values."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.requires_grad:
                weight.copy_(weights[name])
