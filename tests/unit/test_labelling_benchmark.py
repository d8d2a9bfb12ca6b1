"""The labelling benchmark: baselines that are right, necessary work counted once, ratios round by round."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks import labelling, labelling_rounds
from benchmarks.labelling_baselines import exact_scores, generated_tokens, padded_scores, stock_model
from benchmarks.labelling_groups import Group
from benchmarks.labelling_limit import necessary_flops, product_rates, time_shares
from benchmarks.labelling_random import Shape, measure
from benchmarks.labelling_rounds import ForeignLoad, Spread, machine, ratios, time_each
from benchmarks.real_data import find_data
from embedder.labelling.backends import choose_backend
from embedder.labelling.compute_cost import ModelSize
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.sampling import Sampling
from embedder.models.causal_lm import load_lm
from tests.unit.judges import exact_model, farthest, plain_scores, random_prompts


@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_the_baselines_score_what_we_score(tiny_llama_folder, batch_size):
    prompts = random_prompts(4, seed=0)
    expected = plain_scores(exact_model(tiny_llama_folder), prompts)
    assert farthest(padded_scores(stock_model(tiny_llama_folder), prompts, batch_size), expected) < 1e-4
    assert farthest(exact_scores(exact_model(tiny_llama_folder), prompts), expected) < 1e-12


def test_generated_tokens_are_counted_up_to_the_end(tiny_llama_folder):
    model = stock_model(tiny_llama_folder)
    never = Sampling(1, 6, temperature=1.0, top_k=50, end_ids=frozenset({0}))
    assert 0 < generated_tokens(model, [[5, 6], [7]], 2, 0, never) <= 2 * 2 * 6
    at_once = Sampling(1, 6, temperature=1.0, top_k=600, end_ids=frozenset(range(600)))
    assert generated_tokens(model, [[5, 6]], 3, 0, at_once) == 0


def test_necessary_work_is_counted_once_by_hand():
    """1 2 3, then 20, and 4: five tokens are read; 3, 20 and 4 predict."""
    prompts = [PackedPrompt([1, 2, 3], [[20, 21], [20, 22]]), PackedPrompt([1, 2, 4], [[5]])]
    assert necessary_flops(ModelSize(layers=100, head=7, attention=9), prompts) == 2 * (100 * 5 + 7 * 3)


def test_a_group_asks_for_all_outputs_or_for_the_desired_one():
    group = Group("q", [[1], [2, 1], [3, 1]], [9, 1], [5, 6, 7], ([8, 8, 8], [9]))
    assert group.pairs == 2
    assert group.ranked(2) == [PackedPrompt(prefix, [[5, 6], [8, 8], [9]]) for prefix in ([1], [2, 1], [3, 1])]
    assert group.alone(1) == [PackedPrompt([2, 1], [[5]]), PackedPrompt([3, 1], [[5]])]


def test_ratios_are_taken_within_a_round():
    rounds = [{"A": 2.0, "C": 1.0}, {"A": 9.0, "C": 3.0}, {"C": 5.0}]
    assert ratios(rounds, "A", "C").values == [2.0, 3.0]
    assert str(Spread([2.0, 3.0, 10.0])) == "3 (2 to 10, 3 rounds)"
    assert list(time_each({"A": list, "B": dict})) == ["A", "B"]


def test_the_machine_is_told_and_an_idle_one_is_not_called_busy(monkeypatch):
    assert {"processor", "cores", "threads", "commit", "torch"} <= machine().keys()
    monkeypatch.setattr(labelling_rounds, "_busy_seconds", lambda: 0.0)
    assert ForeignLoad().cores() == 0.0


def test_rates_and_time_shares_are_positive_and_sum_up(tiny_llm, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.labelling_limit.SECONDS", 0.001)
    monkeypatch.setattr("benchmarks.labelling_limit.SQUARES", (32,))
    rates = product_rates(lanes=2)
    assert all(rate > 0 for rate in rates.values())
    assert "torch.mm 32" in rates
    backend = choose_backend(load_lm(tiny_llm, tmp_path, device="cpu"), tiny_llm, 10)
    prompts = random_prompts(6, seed=0)
    before = backend.score(prompts)
    shares = time_shares(backend, prompts)
    assert sum(shares.values()) == pytest.approx(1)
    assert {"linear layers", "norms and activations", "attention", "output layer", "rest"} == shares.keys()
    assert backend.score(prompts) == before


def test_the_random_llama_runs_without_a_gpu():
    tiny = Shape(hidden=32, between=64, layers=2, heads=4, vocabulary=512, prefix=30, groups=2, batch_tokens=512)
    found = measure(torch.device("cpu"), tiny)
    assert all(math.isfinite(value) and value > 0 for value in found.values())


def test_without_data_it_says_so(tmp_path, capsys):
    assert find_data(tmp_path) is None
    assert labelling.main(["--data", str(tmp_path)]) == 1
    assert "no data" in capsys.readouterr().out


def test_headlines_are_medians_and_the_lower_share():
    part = {"rank_vs_naive": [5.0, 7.0, 6.0], "rank_vs_reference": [1.5], "likelihood_vs_reference": [2.0]}
    found = {
        "cap8": part | {"share_of_limit": [0.7]},
        "cap32": part | {"share_of_limit": [0.8]},
        "accuracy": {"C": {"mean": 1e-6}},
    }
    assert labelling.headlines(found) == {
        "rank_vs_naive_cap32": 6.0,
        "rank_vs_naive_cap8": 6.0,
        "rank_vs_reference_cap8": 1.5,
        "likelihood_vs_reference": 2.0,
        "share_of_limit": 0.7,
        "max_error_float64": 1e-6,
    }
