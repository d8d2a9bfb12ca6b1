"""Slow and obvious versions of what the package does fast, and how many examples hypothesis tries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import settings

from embedder.labelling.scorer import PackedPrompt
from embedder.lm import CausalLm

quick = settings(max_examples=40, deadline=None, database=None, derandomize=True)
"""Decorator of a property: few examples, always the same ones, nothing written to disk."""


@torch.inference_mode()
def plain_scores(lm: CausalLm, prompts: Sequence[PackedPrompt]) -> list[list[float]]:
    """Mean token log-likelihoods, one sequence at a time, the softmax in float64."""
    return [[_plain_score(lm, prompt.prefix, output) for output in prompt.outputs] for prompt in prompts]


def _plain_score(lm: CausalLm, prefix: list[int], output: list[int]) -> float:
    logits = lm.model(input_ids=torch.tensor([prefix + output])).logits[0].double()
    likelihoods = torch.log_softmax(logits, dim=-1)
    values = [float(likelihoods[len(prefix) + i - 1, token]) for i, token in enumerate(output)]
    return sum(values) / len(values)
