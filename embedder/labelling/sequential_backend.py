"""The slow backend for an LLM whose attention cannot be replaced: one sequence an output, nothing shared.

It is right for every causal language model, state-space ones included, and about ten times slower than the tree.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from embedder.config.run import SEQUENTIAL, Scorer
from embedder.labelling.compute_cost import ModelWork, model_size
from embedder.labelling.prefix_tree import PackedPrompt, check_prompts
from embedder.labelling.sampling import Sampling, draw, uniform_numbers
from embedder.models.causal_lm import CausalLm
from embedder.models.memory import BatchLimit, one_memory_error


class SequentialBackend:
    """Scores one output at a time, and samples for one prefix at a time, with the model's own attention and cache."""

    scorer: Scorer = SEQUENTIAL
    how: str = SEQUENTIAL
    limits: Sequence[BatchLimit] = ()

    def __init__(self, lm: CausalLm) -> None:
        self.lm = lm
        self.work = ModelWork(model_size(lm.model))
        self._keeps_logits = "logits_to_keep" in inspect.signature(lm.model.forward).parameters

    @torch.inference_mode()
    def score(self, prompts: Sequence[PackedPrompt]) -> list[list[float]]:
        """For each prompt the mean log-likelihood (nats) of the scored tokens of each of its outputs.

        Raises:
            ValueError: a prefix or output has no token.
        """
        check_prompts(prompts)
        return [
            [
                self._likelihood(prompt.prefix + output[:first], output[first:])
                for output, first in zip(prompt.outputs, prompt.first_scored, strict=True)
            ]
            for prompt in prompts
        ]

    def _likelihood(self, prefix: list[int], output: list[int]) -> float:
        ids = torch.tensor([prefix + output], device=self.lm.device)
        with one_memory_error():
            # Logits over the prefix are asked for in vain, and would take vocabulary x length x 4 bytes.
            kept = {"logits_to_keep": len(output) + 1} if self._keeps_logits else {}
            logits_TV = self.lm.model(input_ids=ids, use_cache=False, **kept).logits[0, -len(output) - 1 : -1].float()
        target_T = ids[0, len(prefix) :].to(logits_TV.device)
        likelihood_T = logits_TV.gather(1, target_T.unsqueeze(1)).squeeze(1) - logits_TV.logsumexp(-1)
        length = ids.shape[1]
        self.work.add(length, len(target_T), length * (length + 1) // 2)
        return float(likelihood_T.double().mean())

    @torch.inference_mode()
    def sample(self, prefixes: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[list[list[int]]]:
        """Token ids of `num_samples` outputs a prefix, drawn with the seed of the prefix, one prefix at a time."""
        settings = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            eos_token_id=sorted(sampling.end_ids | sampling.stop_ids) or None,
            pad_token_id=0,
        )
        # `generate` fills what is not given from the model's own settings, penalties and forbidden words among them.
        own, self.lm.model.generation_config = self.lm.model.generation_config, GenerationConfig()
        try:
            return [
                self._samples(prefix, seed, sampling, settings) for prefix, seed in zip(prefixes, seeds, strict=True)
            ]
        finally:
            self.lm.model.generation_config = own

    def _samples(self, prefix: list[int], seed: int, sampling: Sampling, settings: GenerationConfig) -> list[list[int]]:
        ids = torch.tensor([prefix] * sampling.num_samples, device=self.lm.device)
        processor = _SeededDraw(uniform_numbers(seed, sampling), sampling, len(prefix))
        with one_memory_error():
            generated: Tensor = self.lm.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                logits_processor=LogitsProcessorList([processor]),
            )
        return [_until_end(tokens, sampling) for tokens in generated[:, len(prefix) :].tolist()]


class _SeededDraw(LogitsProcessor):
    """Leaves `generate` one token a row to choose: the one that the sample's own random numbers draw.

    The sampling of `generate` itself has one random stream for the whole batch, so that samples would depend on it.
    """

    def __init__(self, uniform_SN: Tensor, sampling: Sampling, prefix_tokens: int) -> None:
        self.uniform_SN, self.sampling, self.prefix_tokens = uniform_SN, sampling, prefix_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform_N = self.uniform_SN[input_ids.shape[1] - self.prefix_tokens].to(scores.device)
        token_N = draw(scores.float(), uniform_N, self.sampling)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_N.unsqueeze(1), 0.0)


def _until_end(tokens: list[int], sampling: Sampling) -> list[int]:
    """The tokens before the first end token, or up to and with the first stop token."""
    # `generate` pads the samples that end before the longest one.
    for i, token in enumerate(tokens):
        if token in sampling.end_ids:
            return tokens[:i]
        if token in sampling.stop_ids:
            return tokens[: i + 1]
    return tokens
