"""Slow and obvious versions of what the package does fast, and how many examples hypothesis tries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedModel

from embedder.labelling.prefix_tree import PackedPrompt

quick = settings(max_examples=25, deadline=None, database=None, derandomize=True)
"""Decorator of a property: few examples, always the same ones, nothing written to disk."""


def exact_model(folder: Path | str) -> PreTrainedModel:
    """A model of its own in float64, with the attention that transformers writes out step by step."""
    written_out = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **written_out)
    return model.eval()


@torch.inference_mode()
def plain_scores(model: PreTrainedModel, prompts: Sequence[PackedPrompt]) -> list[list[float]]:
    """Mean token log-likelihoods, one sequence at a time, the softmax in float64."""
    return [
        [
            _plain_score(model, prompt.prefix + output[:unscored], output[unscored:])
            for output, unscored in zip(prompt.outputs, prompt.unscored or [0] * len(prompt.outputs), strict=True)
        ]
        for prompt in prompts
    ]


def _plain_score(model: PreTrainedModel, prefix: list[int], output: list[int]) -> float:
    logits = model(input_ids=torch.tensor([prefix + output]), use_cache=False).logits[0].double()
    likelihoods = torch.log_softmax(logits, dim=-1)
    values = [float(likelihoods[len(prefix) + i - 1, token]) for i, token in enumerate(output)]
    return sum(values) / len(values)


def farthest(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> float:
    """Greatest difference of two tables of scores of one shape."""
    assert [len(row) for row in first] == [len(row) for row in second]
    pairs = [pair for one, other in zip(first, second, strict=True) for pair in zip(one, other, strict=True)]
    return max((abs(one - other) for one, other in pairs), default=0.0)


@st.composite
def many_prompts(draw: st.DrawFn, most: int = 7) -> list[PackedPrompt]:
    """Prompts that share beginnings: of prefixes and of outputs, with duplicates, and now and then a long output."""
    few = st.lists(st.integers(3, 5), max_size=4)
    shared = draw(st.lists(st.integers(3, 599), min_size=1, max_size=30))
    trunk = draw(st.lists(st.integers(3, 599), min_size=1, max_size=draw(st.sampled_from([1, 6, 90]))))
    prompts = []
    for _ in range(draw(st.integers(1, most))):
        prefix = shared[: draw(st.integers(0, len(shared)))] + draw(few)
        outputs = [trunk[: draw(st.integers(0, len(trunk)))] + draw(few) for _ in range(draw(st.integers(1, 6)))]
        prompts.append(PackedPrompt(prefix or [7], [output or [8] for output in outputs]))
    return prompts + prompts[: draw(st.integers(0, 2))]


def random_prompts(count: int, seed: int) -> list[PackedPrompt]:
    """Prompts that share the beginning of one text, outputs that share that of another."""
    random = np.random.default_rng(seed)
    text, said = random.integers(3, 600, 40).tolist(), random.integers(3, 600, 9).tolist()

    def tokens(shared, low, high):
        return shared[: random.integers(0, high)] + random.integers(3, 600, random.integers(low, high)).tolist()

    return [
        PackedPrompt(tokens(text, 1, 40), [tokens(said, 1, 9) for _ in range(random.integers(1, 6))])
        for _ in range(count)
    ]
