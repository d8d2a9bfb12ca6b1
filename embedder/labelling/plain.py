"""Scoring and sampling for an LLM whose attention cannot be replaced: one plain sequence an output, nothing shared.

Right for every causal language model, state-space ones included, and about ten times slower than the tree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.sampling import Sampling, draw, uniform_numbers
from embedder.labelling.scorer import check_prompts
from embedder.labelling.work import ModelWork
from embedder.lm import CausalLm, one_memory_error


class PlainScorer:
    """As `scorer.TreeScorer`, one output at a time."""

    def __init__(self, lm: CausalLm) -> None:
        self.lm = lm
        self.work = ModelWork()

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
            logits_TV = self.lm.model(input_ids=ids, use_cache=False).logits[0, len(prefix) - 1 : -1].float()
        target_T = ids[0, len(prefix) :].to(logits_TV.device)
        likelihood_T = logits_TV.gather(1, target_T.unsqueeze(1)).squeeze(1) - logits_TV.logsumexp(-1)
        length = ids.shape[1]
        self.work.add(length, len(target_T), length * (length + 1) // 2)
        return float(likelihood_T.double().mean())


@torch.inference_mode()
def sample_plainly(
    lm: CausalLm, prefixes: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling
) -> list[list[list[int]]]:
    """As `sampling.sample_outputs`, each token from the whole sequence before it."""
    outputs = []
    for prefix, seed in zip(prefixes, seeds, strict=True):
        uniform_SN = uniform_numbers(seed, sampling)
        samples = []
        for sample in range(sampling.num_samples):
            tokens: list[int] = []
            for step in range(sampling.max_tokens):
                ids = torch.tensor([prefix + tokens], device=lm.device)
                logits_1V = lm.model(input_ids=ids, use_cache=False).logits[:, -1].float()
                token = int(draw(logits_1V, uniform_SN[step, sample : sample + 1].to(logits_1V.device), sampling))
                if token in sampling.end_ids:
                    break
                tokens.append(token)
                if token in sampling.stop_ids:
                    break
            samples.append(tokens)
        outputs.append(samples)
    return outputs
