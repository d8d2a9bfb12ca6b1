"""Seeded outputs of the LLM for many prompts at once.

Each prompt draws from a random stream of its own, so its outputs do not depend on which prompts share its batch.
B prompts, N samples of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from embedder.lm import CausalLm
from embedder.model import length_batches


@dataclass(frozen=True)
class Sampling:
    """How outputs are drawn; `num_samples` 1 with `top_k` 1 is greedy decoding."""

    num_samples: int
    max_tokens: int
    temperature: float
    top_k: int


def sample_outputs(
    lm: CausalLm, prefixes: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling, batch_tokens: int
) -> list[list[list[int]]]:
    """Token ids of `num_samples` outputs a prefix, without the end token."""
    outputs: list[list[list[int]]] = [[] for _ in prefixes]
    lengths = [(len(prefix) + sampling.max_tokens) * sampling.num_samples for prefix in prefixes]
    for indices in length_batches(lengths, batch_tokens * sampling.num_samples):
        drawn = _sample_batch(lm, [prefixes[i] for i in indices], [seeds[i] for i in indices], sampling)
        for index, tokens in zip(indices, drawn, strict=True):
            outputs[index] = tokens
    return outputs


@torch.inference_mode()
def _sample_batch(
    lm: CausalLm, prefixes: list[list[int]], seeds: list[int], sampling: Sampling
) -> list[list[list[int]]]:
    """Prefill each prefix once, then decode its samples side by side on copies of its cache."""
    count, steps = sampling.num_samples, sampling.max_tokens
    uniform_steps_BN = torch.tensor(
        np.stack([np.random.default_rng(seed).random((steps, count)) for seed in seeds], axis=1).reshape(steps, -1)
    ).to(lm.device)
    ids_BL, mask_BL = (tensor.to(lm.device) for tensor in _pad_left(prefixes))
    position_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)
    base, head = lm.model.base_model, lm.model.get_output_embeddings()
    out = base(input_ids=ids_BL, attention_mask=mask_BL, position_ids=position_BL, use_cache=True)
    cache = out.past_key_values
    cache.batch_repeat_interleave(count)
    logits = head(out.last_hidden_state[:, -1]).repeat_interleave(count, 0)
    mask = mask_BL.repeat_interleave(count, 0)
    position = position_BL[:, -1:].repeat_interleave(count, 0)
    finished = torch.zeros(len(logits), dtype=torch.bool, device=lm.device)
    drawn: list[Tensor] = []
    for step in range(steps):
        token = draw(logits.float(), uniform_steps_BN[step], sampling)
        token = torch.where(finished, torch.full_like(token, _end_id(lm)), token)
        finished = finished | (token == _end_id(lm))
        drawn.append(token)
        if step == steps - 1 or bool(finished.all()):
            break
        mask = torch.cat([mask, mask.new_ones((len(mask), 1))], dim=1)
        position = position + 1
        out = base(
            input_ids=token.unsqueeze(1),
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        logits = head(out.last_hidden_state[:, -1])
    rows = torch.stack(drawn, dim=1).tolist()
    trimmed = [row[: row.index(_end_id(lm))] if _end_id(lm) in row else row for row in rows]
    return [trimmed[i : i + count] for i in range(0, len(trimmed), count)]


def draw(logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling) -> Tensor:
    """One token a row: the inverse of the cumulative distribution of the `top_k` likeliest at a uniform number."""
    top_BK, token_BK = logits_BV.topk(min(sampling.top_k, logits_BV.shape[1]), dim=-1)
    cumulative_BK = (top_BK.double() / sampling.temperature).softmax(-1).cumsum(-1)
    place_B1 = torch.searchsorted(cumulative_BK, uniform_B.double().unsqueeze(1)).clamp(max=token_BK.shape[1] - 1)
    return token_BK.gather(1, place_B1).squeeze(1)


def _end_id(lm: CausalLm) -> int:
    """The token that ends an output; -1, which is never drawn, for a tokenizer without one."""
    end = lm.tokenizer.eos_token_id
    return -1 if end is None else int(end)


def _pad_left(prefixes: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    length = max(len(prefix) for prefix in prefixes)
    ids_BL = torch.zeros((len(prefixes), length), dtype=torch.long)
    mask_BL = torch.zeros((len(prefixes), length), dtype=torch.long)
    for row, prefix in enumerate(prefixes):
        ids_BL[row, length - len(prefix) :] = torch.tensor(prefix)
        mask_BL[row, length - len(prefix) :] = 1
    return ids_BL, mask_BL
