"""Seeded outputs of the LLM for many prompts at once.

Each prompt draws from a random stream of its own, so in float32 its outputs do not depend on which prompts share its
batch. In bfloat16 they depend on the shape of the batch: how many prompts it has and to which length they are padded
decides by which kernels sums are rounded, and a rounding may change which token a random number falls on. The same
prompts in the same order give the same outputs on one kind of device.

B prompts, N samples of each, S steps, L tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from embedder.models.causal_lm import CausalLm
from embedder.models.encoder import length_batches
from embedder.models.memory import BatchLimit, halving_on_memory_error

SeededPrompt = tuple[list[int], int]
"""Token ids of a prompt, and the seed of its samples."""
SampledTokens = list[list[int]]
"""Token ids of each sample of a prompt."""


@dataclass(frozen=True)
class Sampling:
    """How outputs are drawn; `num_samples` 1 with `top_k` 1 is greedy decoding."""

    num_samples: int
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float = 1.0
    end_ids: frozenset[int] = frozenset()
    """Tokens that end an output and do not belong to it."""
    stop: tuple[str, ...] = ()
    """Texts before which an output ends; for a backend that knows no tokens."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end an output and do belong to it: what stands before a stop text in them is part of the output."""


class Decoder(Protocol):
    """Another way to sample a batch than step by step in memory that grows."""

    limit: BatchLimit
    """The batches that memory has room for."""

    def size(self, prompts: list[SeededPrompt], sampling: Sampling) -> int:
        """What a batch takes, in the unit of the limit."""

    def decode(self, prompts: list[SeededPrompt], sampling: Sampling) -> list[SampledTokens]:
        """Samples of prompts, each with its seed."""


def sample_outputs(
    lm: CausalLm,
    prefixes: Sequence[list[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    batch_tokens: int,
    decoder: Decoder | None = None,
) -> list[SampledTokens]:
    """Token ids of `num_samples` outputs a prefix.

    A batch holds at most `batch_tokens` prompt tokens, or as many sampled ones; out of memory halves it.
    """
    outputs: list[SampledTokens] = [[] for _ in prefixes]
    # Sampled tokens fill the cache as prompt tokens do, so a batch of short prompts is limited by its samples.
    lengths = [max(len(prefix), sampling.num_samples * sampling.max_tokens) for prefix in prefixes]
    for indices in length_batches(lengths, batch_tokens):
        batch = [(prefixes[i], seeds[i]) for i in indices]
        if decoder is None:
            drawn = halving_on_memory_error(lambda part: _decode(lm, part, sampling), batch)
        else:
            decode, size = partial(decoder.decode, sampling=sampling), partial(decoder.size, sampling=sampling)
            drawn = halving_on_memory_error(decode, batch, decoder.limit, size)
        for index, tokens in zip(indices, drawn, strict=True):
            outputs[index] = tokens
    return outputs


@torch.inference_mode()
def _decode(lm: CausalLm, prompts: list[SeededPrompt], sampling: Sampling) -> list[SampledTokens]:
    """Samples of prompts, each with its seed.

    Each prompt is read once; then its N samples go on as N tokens of its row, which see the prompt and themselves. So
    the cache holds a prompt once and not N times. A prompt whose samples have all ended leaves the batch.
    """
    count = sampling.num_samples
    prefixes = [prefix for prefix, _ in prompts]
    uniform_SBN = torch.stack([uniform_numbers(seed, sampling) for _, seed in prompts], dim=1).to(lm.device)
    end_ids, stop_ids = (
        torch.tensor(sorted(ids), dtype=torch.long, device=lm.device) for ids in (sampling.end_ids, sampling.stop_ids)
    )
    ids_BL, visible_BL, position_BL = left_padded(prefixes, max(map(len, prefixes)), lm.device)
    # A cache of the model's own choice may keep a window only, which the N samples side by side would overrun.
    cache = DynamicCache()
    out = lm.model(
        input_ids=ids_BL,
        attention_mask=visible_BL.long(),
        position_ids=position_BL,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    position_B1 = position_BL[:, -1:]
    logits_BNV = out.logits.expand(-1, count, -1)
    rows = torch.arange(len(prefixes), device=lm.device)
    tokens_SBN = torch.full((sampling.max_tokens, len(prefixes), count), -1, device=lm.device)
    ended_BN = torch.zeros((len(prefixes), count), dtype=torch.bool, device=lm.device)
    for step in range(sampling.max_tokens):
        token_BN = draw(logits_BNV.flatten(0, 1).float(), uniform_SBN[step, rows].flatten(), sampling).view(-1, count)
        # An end token is left out of the output and a stop token is kept, so one is looked for before and one after.
        ended_BN = ended_BN | torch.isin(token_BN, end_ids)
        tokens_SBN[step, rows] = token_BN.masked_fill(ended_BN, -1)
        ended_BN = ended_BN | torch.isin(token_BN, stop_ids)
        alive_B = ~ended_BN.all(1)
        if step == sampling.max_tokens - 1 or not bool(alive_B.any()):
            break
        if not bool(alive_B.all()):
            keep = alive_B.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            rows, token_BN, ended_BN = rows[keep], token_BN[keep], ended_BN[keep]
            position_B1, visible_BL = position_B1[keep], visible_BL[keep]
        position_B1 = position_B1 + 1
        out = lm.model(
            input_ids=token_BN,
            attention_mask=branch_mask(visible_BL, count, step + 1),
            position_ids=position_B1.expand(-1, count),
            past_key_values=cache,
            use_cache=True,
        )
        logits_BNV = out.logits
    drawn: list[SampledTokens] = tokens_SBN.permute(1, 2, 0).tolist()
    return [[[token for token in sample if token >= 0] for sample in samples] for samples in drawn]


def left_padded(prefixes: Sequence[list[int]], length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts in rows of one length: token ids, which of them are no padding, and positions, (B, L) each."""
    # Padded on the left, so that the last token of every prompt is in the last column.
    padded_BL = torch.full((len(prefixes), length), -1)
    for row_L, prefix in zip(padded_BL, prefixes, strict=True):
        row_L[length - len(prefix) :] = torch.tensor(prefix)
    padded_BL = padded_BL.to(device)
    visible_BL = padded_BL >= 0
    # Positions count from the first token of the prompt, because the padding is no part of the text.
    return padded_BL.clamp(min=0), visible_BL, (visible_BL.long().cumsum(1) - 1).clamp(min=0)


def branch_mask(visible_BL: Tensor, count: int, steps: int) -> Tensor:
    """Who sees whom at a step: (B, 1, N, L + N x steps); sample n sees its prompt and each n-th token after it."""
    own_NK = torch.eye(count, dtype=torch.bool, device=visible_BL.device).repeat(1, steps)
    rows = len(visible_BL)
    prompt_BNL = visible_BL.unsqueeze(1).expand(-1, count, -1)
    return torch.cat([prompt_BNL, own_NK.unsqueeze(0).expand(rows, -1, -1)], dim=2).unsqueeze(1)


def uniform_numbers(seed: int, sampling: Sampling) -> Tensor:
    """The random numbers of one prompt, (S, N) in [0, 1)."""
    # By NumPy and not by torch, whose streams differ between CPU and GPU.
    return torch.from_numpy(np.random.default_rng(seed).random((sampling.max_tokens, sampling.num_samples)))


def draw(logits_RV: Tensor, uniform_R: Tensor, sampling: Sampling) -> Tensor:
    """One token a row, by the inverse of the cumulative distribution at a uniform number.

    The distribution is that of the `top_k` likeliest tokens at the temperature, of which the likeliest are kept until
    their probabilities reach `top_p`.
    """
    # In float64, because a float32 sum over many tokens is off by more than the rarest of them.
    top_RK, token_RK = logits_RV.topk(min(sampling.top_k, logits_RV.shape[1]), dim=-1)
    probability_RK = (top_RK.double() / sampling.temperature).softmax(-1)
    cumulative_RK = probability_RK.cumsum(-1)
    # A token is kept if those before it do not reach `top_p` yet, so the first always is.
    kept_RK = cumulative_RK - probability_RK < sampling.top_p
    total_R1 = (probability_RK * kept_RK).sum(-1, keepdim=True)
    # The number is scaled to the kept probability instead of every probability to 1.
    choice_R1 = torch.searchsorted(cumulative_RK, uniform_R.double().unsqueeze(1) * total_R1)
    last_R1 = (kept_RK.sum(-1, keepdim=True) - 1).clamp(min=0)  # logits that are no numbers keep none
    return token_RK.gather(1, torch.minimum(choice_R1, last_R1)).squeeze(1)
