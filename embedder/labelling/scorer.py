"""Mean token log-likelihoods of many outputs behind a shared prefix.

A prefix and its outputs are packed into one row: the prefix is computed once and each output sees the prefix and
itself only (a block mask), at positions that go on where the prefix ends. Vocabulary logits are made only where an
output token is predicted.

R rows, L tokens of the longest row, D hidden width, V vocabulary, T output tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embedder.lm import CausalLm
from embedder.model import length_batches

LOGIT_ROWS = 1024
"""Positions whose logits are held at once: 1,024 x 49k x 4 bytes = 200 MB."""


@dataclass(frozen=True)
class PackedPrompt:
    """A prefix and its outputs, all as token ids; none of them empty."""

    prefix: list[int]
    outputs: list[list[int]]

    def __len__(self) -> int:
        """Tokens of the packed row; the last token of an output is predicted but never read."""
        return len(self.prefix) + sum(len(output) - 1 for output in self.outputs)


class PackedScorer:
    """Scores packed prompts with one LLM, in batches of at most `batch_tokens` padded tokens."""

    def __init__(self, lm: CausalLm, batch_tokens: int) -> None:
        self.lm = lm
        self.batch_tokens = batch_tokens

    def score(self, prompts: Sequence[PackedPrompt]) -> list[list[float]]:
        """For each prompt the mean token log-likelihood (nats) of each of its outputs.

        A batch that runs out of memory is halved until single rows.

        Raises:
            ValueError: a prefix or output has no token.
        """
        for prompt in prompts:
            if not prompt.prefix or not all(prompt.outputs):
                raise ValueError("a prompt has an empty prefix or an empty output")
        scores: list[list[float]] = [[] for _ in prompts]
        for indices in length_batches([len(prompt) for prompt in prompts], self.batch_tokens):
            for index, values in zip(indices, self._score_batch([prompts[i] for i in indices]), strict=True):
                scores[index] = values
        return scores

    def _score_batch(self, batch: list[PackedPrompt]) -> list[list[float]]:
        try:
            return self._forward(batch)
        except torch.cuda.OutOfMemoryError:
            if len(batch) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(batch) // 2
        return self._score_batch(batch[:half]) + self._score_batch(batch[half:])

    @torch.inference_mode()
    def _forward(self, batch: list[PackedPrompt]) -> list[list[float]]:
        ids_RL, position_RL, mask_R1LL = (tensor.to(self.lm.device) for tensor in pack(batch))
        state_RLD = self.lm.model.base_model(
            input_ids=ids_RL, attention_mask=mask_R1LL, position_ids=position_RL, use_cache=False
        ).last_hidden_state
        row_T, place_T, target_T = (tensor.to(self.lm.device) for tensor in predictions(batch))
        likelihood_T = self._token_likelihoods(state_RLD[row_T, place_T], target_T).double().cpu()
        lengths = [len(output) for prompt in batch for output in prompt.outputs]
        means = iter([part.mean().item() for part in likelihood_T.split(lengths)])
        return [[next(means) for _ in prompt.outputs] for prompt in batch]

    def _token_likelihoods(self, state_TD: Tensor, target_T: Tensor) -> Tensor:
        head = self.lm.model.get_output_embeddings()
        parts = []
        for state, target in zip(state_TD.split(LOGIT_ROWS), target_T.split(LOGIT_ROWS), strict=True):
            logits_TV = head(state).float()
            parts.append(logits_TV.gather(1, target.unsqueeze(1)).squeeze(1) - logits_TV.logsumexp(-1))
        return torch.cat(parts)


def pack(batch: Sequence[PackedPrompt]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (R, L), positions (R, L) and who may see whom (R, 1, L, L) as booleans."""
    length = max(len(prompt) for prompt in batch)
    ids_RL = torch.zeros((len(batch), length), dtype=torch.long)
    position_RL = torch.zeros((len(batch), length), dtype=torch.long)
    segment_RL = torch.full((len(batch), length), -1, dtype=torch.long)
    for row, prompt in enumerate(batch):
        prefix = len(prompt.prefix)
        ids, positions, segments = list(prompt.prefix), list(range(prefix)), [0] * prefix
        for branch, output in enumerate(prompt.outputs, start=1):
            read = output[:-1]
            ids += read
            positions += range(prefix, prefix + len(read))
            segments += [branch] * len(read)
        ids_RL[row, : len(ids)] = torch.tensor(ids)
        position_RL[row, : len(ids)] = torch.tensor(positions)
        segment_RL[row, : len(ids)] = torch.tensor(segments)
    same_RLL = segment_RL.unsqueeze(2) == segment_RL.unsqueeze(1)
    prefix_RLL = (segment_RL == 0).unsqueeze(1) & (segment_RL >= 0).unsqueeze(2)
    causal_LL = torch.ones((length, length), dtype=torch.bool).tril()
    return ids_RL, position_RL, ((same_RLL | prefix_RLL) & causal_LL).unsqueeze(1)


def predictions(batch: Sequence[PackedPrompt]) -> tuple[Tensor, Tensor, Tensor]:
    """For each output token of the batch: its row, the place that predicts it, and the token (each of length T)."""
    rows, places, targets = [], [], []
    for row, prompt in enumerate(batch):
        start = len(prompt.prefix)
        for output in prompt.outputs:
            rows += [row] * len(output)
            places += [len(prompt.prefix) - 1, *range(start, start + len(output) - 1)]
            targets += output
            start += len(output) - 1
    return torch.tensor(rows), torch.tensor(places), torch.tensor(targets)
