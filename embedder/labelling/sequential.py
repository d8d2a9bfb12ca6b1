"""Scoring and sampling for an LLM whose attention cannot be replaced: one plain sequence an output, nothing shared.

Right for every causal language model, state-space ones included, and about ten times slower than the tree.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from embedder.labelling.compute_cost import ModelWork
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.sampling import Sampling, draw, uniform_numbers
from embedder.labelling.scorer import check_prompts
from embedder.models.causal_lm import CausalLm, one_memory_error


class PlainScorer:
    """As `scorer.TreeScorer`, one output at a time."""

    def __init__(self, lm: CausalLm) -> None:
        self.lm = lm
        self.work = ModelWork()
        self._keeps_logits = "logits_to_keep" in inspect.signature(lm.model.forward).parameters

    @torch.inference_mode()
    def score(self, prompts: Sequence[PackedPrompt]) -> list[list[float]]:
        """For each prompt the mean token log-likelihood (nats) of each of its outputs.

        Raises:
            ValueError: a prefix or output has no token.
        """
        check_prompts(prompts)
        return [[self._likelihood(prompt.prefix, output) for output in prompt.outputs] for prompt in prompts]

    def _likelihood(self, prefix: list[int], output: list[int]) -> float:
        ids = torch.tensor([prefix + output], device=self.lm.device)
        with one_memory_error():
            # Over the prefix they would take vocabulary x length x 4 bytes, for nothing.
            kept = {"logits_to_keep": len(output) + 1} if self._keeps_logits else {}
            logits_TV = self.lm.model(input_ids=ids, use_cache=False, **kept).logits[0, -len(output) - 1 : -1].float()
        target_T = ids[0, len(prefix) :].to(logits_TV.device)
        likelihood_T = logits_TV.gather(1, target_T.unsqueeze(1)).squeeze(1) - logits_TV.logsumexp(-1)
        length = ids.shape[1]
        self.work.add(length, len(target_T), length * (length + 1) // 2)
        return float(likelihood_T.double().mean())


class _SeededDraw(LogitsProcessor):
    """Leaves `generate` one token a row to choose: the one that the sample's own random numbers draw."""

    def __init__(self, uniform_SN: Tensor, sampling: Sampling, prefix_tokens: int) -> None:
        self.uniform_SN, self.sampling, self.prefix_tokens = uniform_SN, sampling, prefix_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform_N = self.uniform_SN[input_ids.shape[1] - self.prefix_tokens].to(scores.device)
        token_N = draw(scores.float(), uniform_N, self.sampling)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_N.unsqueeze(1), 0.0)


@torch.inference_mode()
def sample_plainly(
    lm: CausalLm, prefixes: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling
) -> list[list[list[int]]]:
    """As `sampling.sample_outputs`, the N samples of one prefix after those of another, with the model's own cache."""
    settings = GenerationConfig(
        max_new_tokens=sampling.max_tokens,
        do_sample=False,
        eos_token_id=sorted(sampling.end_ids | sampling.stop_ids) or None,
        pad_token_id=0,
    )
    # `generate` fills what is not given from the model's own settings, penalties and forbidden words among them.
    own, lm.model.generation_config = lm.model.generation_config, GenerationConfig()
    try:
        return [_samples(lm, prefix, seed, sampling, settings) for prefix, seed in zip(prefixes, seeds, strict=True)]
    finally:
        lm.model.generation_config = own


def _samples(
    lm: CausalLm, prefix: list[int], seed: int, sampling: Sampling, settings: GenerationConfig
) -> list[list[int]]:
    ids = torch.tensor([prefix] * sampling.num_samples, device=lm.device)
    drawing = _SeededDraw(uniform_numbers(seed, sampling), sampling, len(prefix))
    with one_memory_error():
        generated: Tensor = lm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            logits_processor=LogitsProcessorList([drawing]),
        )
    return [_until_end(tokens, sampling) for tokens in generated[:, len(prefix) :].tolist()]


def _until_end(tokens: list[int], sampling: Sampling) -> list[int]:
    """Without the first end token and with the first stop token, and without what follows."""
    for place, token in enumerate(tokens):
        if token in sampling.end_ids:
            return tokens[:place]
        if token in sampling.stop_ids:
            return tokens[: place + 1]
    return tokens
