"""Sampled outputs: seeded, alone or in company, and greedy as transformers decodes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.run import LlmConfig
from embedder.labelling import sampling as module
from embedder.labelling.sampling import Sampling, branch_mask, draw, sample_outputs, uniform_numbers
from embedder.models.causal_lm import load_lm
from tests.unit.judges import exact_model, quick

SAMPLING = Sampling(num_samples=3, max_tokens=6, temperature=1.0, top_k=50)
GREEDY = Sampling(num_samples=1, max_tokens=8, temperature=1.0, top_k=1)


@pytest.fixture(scope="module", params=["tiny_llama_folder", "tiny_gpt2_folder"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def lm(folder, tmp_path_factory):
    return load_lm(LlmConfig(model=str(folder)), tmp_path_factory.mktemp("cache"), device="cpu")


@pytest.fixture(scope="module")
def prefixes():
    random = np.random.default_rng(0)
    return [random.integers(3, 600, length).tolist() for length in (1, 3, 3, 8, 20, 31)]


def test_sample_outputs_the_same_seeds_give_the_same_outputs(lm, prefixes):
    seeds = list(range(6))
    first = sample_outputs(lm, prefixes, seeds, SAMPLING, 2048)
    assert sample_outputs(lm, prefixes, seeds, SAMPLING, 2048) == first
    assert sample_outputs(lm, prefixes, [seed + 9 for seed in seeds], SAMPLING, 2048) != first
    assert all(len(samples) == 3 for samples in first)
    assert all(len(tokens) == 6 for samples in first for tokens in samples)


def test_sample_outputs_outputs_do_not_depend_on_batch_mates_or_batch_size(lm, prefixes):
    seeds = list(range(6))
    ending = replace(SAMPLING, end_ids=frozenset(range(3, 60)), stop_ids=frozenset(range(60, 120)), max_tokens=12)
    for sampling in (SAMPLING, ending):
        together = sample_outputs(lm, prefixes, seeds, sampling, 100_000)
        assert sample_outputs(lm, prefixes, seeds, sampling, 64) == together
        assert sample_outputs(lm, prefixes[::-1], seeds[::-1], sampling, 128)[::-1] == together
        for prefix, seed, samples in zip(prefixes, seeds, together, strict=True):
            assert sample_outputs(lm, [prefix], [seed], sampling, 64) == [samples]


def test_sample_outputs_samples_of_one_prompt_differ(lm, prefixes):
    samples = sample_outputs(lm, prefixes[-1:], [0], SAMPLING, 2048)[0]
    assert len({tuple(tokens) for tokens in samples}) == 3


@torch.inference_mode()
def test_sample_outputs_every_token_is_drawn_from_what_the_model_says_in_float64(lm, folder, prefixes):
    exact = exact_model(folder)
    for seed, (prefix, samples) in enumerate(
        zip(prefixes, sample_outputs(lm, prefixes, list(range(6)), SAMPLING, 2048), strict=True)
    ):
        uniform = uniform_numbers(seed, SAMPLING)
        for number, tokens in enumerate(samples):
            for step, token in enumerate(tokens):
                logits = exact(input_ids=torch.tensor([prefix + tokens[:step]])).logits[:, -1]
                assert draw(logits, uniform[step, number : number + 1], SAMPLING).tolist() == [token]


def greedy_tokens(lm, prefix, end_ids):
    ids = torch.tensor([prefix])
    options = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": sorted(end_ids) or None, "pad_token_id": 0}
    return lm.model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prefix) :].tolist()


def test_sample_outputs_greedy_outputs_equal_those_of_transformers(lm, prefixes):
    whole = sample_outputs(lm, prefixes, [0] * 6, GREEDY, 64)
    ends = frozenset(tokens[2] for (tokens,) in whole[::2])
    ended = sample_outputs(lm, prefixes, [0] * 6, replace(GREEDY, end_ids=ends), 64)
    stopped = sample_outputs(lm, prefixes, [0] * 6, replace(GREEDY, stop_ids=ends), 64)
    for prefix, (long,), (short,), (with_stop,) in zip(prefixes, whole, ended, stopped, strict=True):
        expected = greedy_tokens(lm, prefix, ends)
        assert long == greedy_tokens(lm, prefix, [])
        assert with_stop == expected
        assert short == (expected[:-1] if expected[-1] in ends else expected)
    assert all(len(tokens) < 8 for (tokens,) in ended[::2])


def test_sample_outputs_prompts_that_have_ended_leave_the_batch(lm, prefixes, monkeypatch):
    whole = sample_outputs(lm, prefixes, list(range(6)), SAMPLING, 100_000)
    ends = frozenset(token for samples in whole[:3] for tokens in samples for token in tokens[:3])
    sampling, rows, forward = replace(SAMPLING, end_ids=ends), [], lm.model.forward

    def watched(input_ids, **further):
        rows.append(len(input_ids))
        return forward(input_ids=input_ids, **further)

    monkeypatch.setattr(lm.model, "forward", watched)
    outputs = sample_outputs(lm, prefixes, list(range(6)), sampling, 100_000)
    assert rows[0] == 6
    assert rows[-1] <= 3
    assert rows == sorted(rows, reverse=True)
    for before, after in zip(whole, outputs, strict=True):
        for tokens, cut in zip(before, after, strict=True):
            first = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
            assert cut == tokens[:first]


def test_sample_outputs_a_batch_that_does_not_fit_is_halved_until_it_does(lm, prefixes, monkeypatch):
    expected = sample_outputs(lm, prefixes, list(range(6)), SAMPLING, 100_000)
    decode, sizes = module._decode, []

    def small_memory(lm, prompts, sampling):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("pretended")
        return decode(lm, prompts, sampling)

    monkeypatch.setattr(module, "_decode", small_memory)
    assert sample_outputs(lm, prefixes, list(range(6)), SAMPLING, 100_000) == expected
    assert sizes == [6, 3, 1, 2, 3, 1, 2]


def test_sample_outputs_one_prompt_that_does_not_fit_is_an_error(lm, prefixes, monkeypatch):
    def no_memory(*_):
        raise torch.OutOfMemoryError("pretended")

    monkeypatch.setattr(module, "_decode", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        sample_outputs(lm, prefixes, list(range(6)), SAMPLING, 100_000)


def test_sample_outputs_no_prompts_have_no_outputs(lm):
    assert sample_outputs(lm, [], [], SAMPLING, 2048) == []


def test_branch_mask_a_branch_sees_its_prompt_and_itself_by_hand():
    visible = torch.tensor([[False, True], [True, True]])
    assert branch_mask(visible, 2, 2).int().tolist() == [
        [[[0, 1, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]]],
        [[[1, 1, 1, 0, 1, 0], [1, 1, 0, 1, 0, 1]]],
    ]


@pytest.mark.parametrize(
    ("uniform", "top_k", "temperature", "top_p", "token"),
    [
        pytest.param(0.00, 4, 1.0, 1.0, 3, id="lowest number, likeliest token"),
        pytest.param(0.39, 4, 1.0, 1.0, 3, id="within 0.4"),
        pytest.param(0.41, 4, 1.0, 1.0, 2, id="past 0.4"),
        pytest.param(0.69, 4, 1.0, 1.0, 2, id="within 0.7"),
        pytest.param(0.71, 4, 1.0, 1.0, 1, id="past 0.7"),
        pytest.param(0.95, 4, 1.0, 1.0, 0, id="past 0.9"),
        pytest.param(1.00, 4, 1.0, 1.0, 0, id="highest number, unlikeliest token"),
        pytest.param(0.56, 2, 1.0, 1.0, 3, id="of two, within 4/7"),
        pytest.param(0.58, 2, 1.0, 1.0, 2, id="of two, past 4/7"),
        pytest.param(0.99, 1, 1.0, 1.0, 3, id="greedy"),
        pytest.param(0.52, 4, 0.5, 1.0, 3, id="cold, within 16/30"),
        pytest.param(0.54, 4, 0.5, 1.0, 2, id="cold, past 16/30"),
        pytest.param(0.95, 99, 1.0, 1.0, 0, id="more than the vocabulary"),
        pytest.param(0.99, 4, 1.0, 0.39, 3, id="0.4 reaches 0.39"),
        pytest.param(0.56, 4, 1.0, 0.41, 3, id="0.4 and 0.3 reach 0.41: within 4/7"),
        pytest.param(0.58, 4, 1.0, 0.41, 2, id="0.4 and 0.3 reach 0.41: past 4/7"),
        pytest.param(1.00, 4, 1.0, 0.69, 2, id="the highest number stays within top_p"),
        pytest.param(0.99, 4, 1.0, 0.01, 3, id="at least one token is kept"),
        pytest.param(0.77, 3, 1.0, 0.8, 2, id="of three, 4/9 and 3/9 do not reach 0.8: within 7/9"),
        pytest.param(0.79, 3, 1.0, 0.8, 1, id="of three, 4/9 and 3/9 do not reach 0.8: past 7/9"),
        pytest.param(0.55, 4, 0.5, 0.6, 3, id="cold, 16 and 9 of 30 reach 0.6: within 16/25"),
        pytest.param(0.65, 4, 0.5, 0.6, 2, id="cold, 16 and 9 of 30 reach 0.6: past 16/25"),
    ],
)
def test_draw_worked_by_hand(uniform, top_k, temperature, top_p, token):
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    drawn = draw(logits, torch.tensor([uniform]), Sampling(1, 1, temperature, top_k, top_p))
    assert drawn.tolist() == [token]


def brute_distribution(logits, sampling):
    """Probabilities by sorting, keeping and dividing, as plain numbers."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])[: sampling.top_k]
    weights = np.exp((np.array([logits[token] for token in order]) - max(logits)) / sampling.temperature)
    weights /= weights.sum()
    kept = 1 + int(np.sum(np.cumsum(weights)[:-1] < sampling.top_p))
    probabilities = np.zeros(len(logits))
    probabilities[order[:kept]] = weights[:kept] / weights[:kept].sum()
    return probabilities


@quick
@given(
    st.lists(st.floats(-4, 4), min_size=2, max_size=12, unique_by=lambda value: round(value, 3)),
    st.sampled_from([1, 3, 50]),
    st.sampled_from([0.3, 0.9, 1.0]),
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_draw_is_spread_as_the_distribution_says(logits, top_k, top_p, temperature):
    """Pearson's statistic of 4,000 draws: its mean is the number of kept tokens less one, 60 more is no chance."""
    sampling = Sampling(1, 1, temperature, top_k, top_p)
    expected = brute_distribution(np.float32(logits).tolist(), sampling) * 4000
    uniform = torch.from_numpy(np.random.default_rng(7).random(4000))
    drawn = draw(torch.tensor([logits], dtype=torch.float32).expand(4000, -1), uniform, sampling)
    counts = np.bincount(drawn.numpy(), minlength=len(logits))
    assert not counts[expected == 0].any()
    likely = expected > 1
    statistic = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert statistic < likely.sum() + 60


def test_draw_rows_are_drawn_apart():
    logits = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    assert draw(logits, torch.tensor([0.5, 0.95]), Sampling(1, 1, 1.0, 2)).tolist() == [0, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_draw_from_logits_that_are_no_numbers_does_not_crash(bad):
    """The scores of such a model are refused afterwards; an index out of range would end a GPU's process."""
    drawn = draw(torch.tensor([[bad] * 4, [0.0, 1.0, 2.0, 3.0]]), torch.tensor([0.5, 0.1]), Sampling(1, 1, 1.0, 3))
    assert 0 <= drawn[0] < 4
    assert drawn[1] == 3


def test_uniform_numbers_the_random_numbers_of_a_prompt_are_its_seeds():
    assert torch.equal(uniform_numbers(5, SAMPLING), uniform_numbers(5, SAMPLING))
    assert not torch.equal(uniform_numbers(5, SAMPLING), uniform_numbers(6, SAMPLING))
    assert uniform_numbers(5, SAMPLING).shape == (6, 3)
