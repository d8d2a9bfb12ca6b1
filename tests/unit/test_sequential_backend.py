"""The slow way that is right for every model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from embedder.config.run import LlmConfig
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.sampling import Sampling, sample_outputs
from embedder.labelling.sequential_backend import SequentialBackend
from embedder.models.causal_lm import load_lm
from tests.unit.judges import exact_model, farthest, plain_scores, random_prompts

SAMPLING = Sampling(num_samples=4, max_tokens=8, temperature=1.0, top_k=50)


@pytest.fixture(scope="module", params=["tiny_llama_folder", "tiny_gpt2_folder"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def lm(folder, tmp_path_factory):
    return load_lm(LlmConfig(model=str(folder)), tmp_path_factory.mktemp("cache"), device="cpu")


def test_sequential_backend_scores_equal_those_in_float64(lm, folder):
    prompts = random_prompts(8, seed=4)
    assert farthest(SequentialBackend(lm).score(prompts), plain_scores(exact_model(folder), prompts)) < 1e-4


def test_sequential_backend_the_work_counts_every_sequence_whole(lm):
    backend = SequentialBackend(lm)
    backend.score([PackedPrompt([1, 2, 3], [[4], [4, 5]])])
    assert (backend.work.tokens, backend.work.head_tokens, backend.work.attended) == (4 + 5, 1 + 2, 10 + 15)


def test_sequential_backend_an_empty_output_is_refused_and_no_prompt_is_none(lm):
    with pytest.raises(ValueError, match="empty"):
        SequentialBackend(lm).score([PackedPrompt([1], [[]])])
    assert SequentialBackend(lm).score([]) == SequentialBackend(lm).sample([], [], SAMPLING) == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top_p": 0.5},
        {"temperature": 0.3},
        {"num_samples": 1, "top_k": 1},
        {"end_ids": frozenset(range(3, 200))},
        {"stop_ids": frozenset(range(200, 400))},
        {"end_ids": frozenset(range(3, 100)), "stop_ids": frozenset(range(50, 200))},
    ],
    ids=str,
)
def test_sequential_backend_samples_equal_those_of_a_batch(lm, changes):
    sampling = replace(SAMPLING, **changes)
    prefixes, seeds = [prompt.prefix for prompt in random_prompts(6, seed=5)], list(range(6))
    assert SequentialBackend(lm).sample(prefixes, seeds, sampling) == sample_outputs(
        lm, prefixes, seeds, sampling, 2048
    )
