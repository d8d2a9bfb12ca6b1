"""Sampled outputs: seeded, alone or in company, and greedy as transformers decodes."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from embedder.config import LlmConfig
from embedder.labelling.sampling import Sampling, draw, sample_outputs
from embedder.lm import load_lm

SAMPLING = Sampling(num_samples=3, max_tokens=6, temperature=1.0, top_k=50)
GREEDY = Sampling(num_samples=1, max_tokens=8, temperature=1.0, top_k=1)


@pytest.fixture(scope="module", params=["tiny_llama_folder", "tiny_gpt2_folder"])
def lm(request, tmp_path_factory):
    config = LlmConfig(model=str(request.getfixturevalue(request.param)))
    return load_lm(config, tmp_path_factory.mktemp("cache"), device="cpu")


@pytest.fixture(scope="module")
def prefixes():
    random = np.random.default_rng(0)
    return [random.integers(3, 600, length).tolist() for length in (1, 3, 3, 8, 20, 31)]


def test_the_same_seeds_give_the_same_outputs(lm, prefixes):
    seeds = list(range(6))
    first = sample_outputs(lm, prefixes, seeds, SAMPLING, 2048)
    assert sample_outputs(lm, prefixes, seeds, SAMPLING, 2048) == first
    assert sample_outputs(lm, prefixes, [seed + 9 for seed in seeds], SAMPLING, 2048) != first
    assert all(len(samples) == 3 for samples in first)
    assert all(len(tokens) <= 6 for samples in first for tokens in samples)


def test_outputs_do_not_depend_on_batch_mates_or_batch_size(lm, prefixes):
    seeds = list(range(6))
    together = sample_outputs(lm, prefixes, seeds, SAMPLING, 100_000)
    assert sample_outputs(lm, prefixes, seeds, SAMPLING, 64) == together
    assert sample_outputs(lm, prefixes[::-1], seeds[::-1], SAMPLING, 128)[::-1] == together
    for prefix, seed, samples in zip(prefixes, seeds, together, strict=True):
        assert sample_outputs(lm, [prefix], [seed], SAMPLING, 64) == [samples]


def test_samples_of_one_prompt_differ(lm, prefixes):
    samples = sample_outputs(lm, prefixes[-1:], [0], SAMPLING, 2048)[0]
    assert len({tuple(tokens) for tokens in samples}) == 3


def test_greedy_outputs_equal_those_of_transformers(lm, prefixes):
    outputs = sample_outputs(lm, prefixes, [0] * 6, GREEDY, 64)
    end = lm.tokenizer.eos_token_id
    for prefix, (found,) in zip(prefixes, outputs, strict=True):
        ids = torch.tensor([prefix])
        options = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": end, "pad_token_id": 0}
        expected = lm.model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prefix) :].tolist()
        assert found == (expected[: expected.index(end)] if end in expected else expected)


def test_an_output_ends_before_the_end_token(lm, prefixes):
    whole = sample_outputs(lm, prefixes, [0] * 6, GREEDY, 2048)
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(whole[-1][0][2])
    end = tokenizer.eos_token_id
    assert end in whole[-1][0]
    cut = sample_outputs(replace(lm, tokenizer=tokenizer), prefixes, [0] * 6, GREEDY, 2048)
    for (before,), (after,) in zip(whole, cut, strict=True):
        assert after == (before[: before.index(end)] if end in before else before)


def test_no_prompts_have_no_outputs(lm):
    assert sample_outputs(lm, [], [], SAMPLING, 2048) == []


@pytest.mark.parametrize(
    ("uniform", "top_k", "temperature", "token"),
    [
        pytest.param(0.00, 4, 1.0, 3, id="lowest number, likeliest token"),
        pytest.param(0.39, 4, 1.0, 3, id="within 0.4"),
        pytest.param(0.41, 4, 1.0, 2, id="past 0.4"),
        pytest.param(0.69, 4, 1.0, 2, id="within 0.7"),
        pytest.param(0.71, 4, 1.0, 1, id="past 0.7"),
        pytest.param(0.95, 4, 1.0, 0, id="past 0.9"),
        pytest.param(1.00, 4, 1.0, 0, id="highest number, unlikeliest token"),
        pytest.param(0.56, 2, 1.0, 3, id="of two, within 4/7"),
        pytest.param(0.58, 2, 1.0, 2, id="of two, past 4/7"),
        pytest.param(0.99, 1, 1.0, 3, id="greedy"),
        pytest.param(0.52, 4, 0.5, 3, id="cold, within 16/30"),
        pytest.param(0.54, 4, 0.5, 2, id="cold, past 16/30"),
        pytest.param(0.95, 99, 1.0, 0, id="more than the vocabulary"),
    ],
)
def test_a_draw_worked_by_hand(uniform, top_k, temperature, token):
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    drawn = draw(logits, torch.tensor([uniform]), Sampling(1, 1, temperature, top_k))
    assert drawn.tolist() == [token]


def test_rows_are_drawn_apart():
    logits = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    assert draw(logits, torch.tensor([0.5, 0.95]), Sampling(1, 1, 1.0, 2)).tolist() == [0, 0]
