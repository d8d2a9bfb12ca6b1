"""Which LLMs are read as trees, which plainly, and that both are right."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import GPTNeoXConfig, LlamaConfig

from embedder.config.run import LlmConfig
from embedder.errors import ConfigError
from embedder.labelling import backends as engines
from embedder.labelling.backends import TRIAL, Engine, plain_reach
from embedder.labelling.sampling import Sampling
from embedder.labelling.scorer import TreeScorer
from embedder.labelling.sequential import PlainScorer, sample_plainly
from embedder.labelling.tree_attention import NAME
from embedder.models.causal_lm import load_lm
from tests.unit.judges import exact_model, farthest, plain_scores
from tests.unit.test_scorer import random_prompts
from tests.unit.tiny_llms import GROUPED, PLAIN, SHARING, WIDE, save_tiny

SAMPLING = Sampling(num_samples=3, max_tokens=6, temperature=1.0, top_k=50)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """An engine for at most 60 tokens, and the folder of its model, by name; each is made once."""
    made = {}

    def make(name):
        if name not in made:
            folder = save_tiny((SHARING | PLAIN)[name], tmp_path_factory.mktemp("llm"))
            config = LlmConfig(model=str(folder), max_prefix_tokens=50, batch_tokens=64)
            made[name] = Engine(load_lm(config, folder / "cache", device="cpu"), config, 10), folder
        return made[name]

    return make


@pytest.mark.parametrize("name", [*SHARING, *PLAIN])
def test_scores_of_every_architecture_equal_float64_sequences(load, name):
    engine, folder = load(name)
    assert engine.shares_prefixes == (name in SHARING)
    assert (engine.lm.model.config._attn_implementation == NAME) == (name in SHARING)
    exact = exact_model(folder)
    for seed in range(3):
        prompts = random_prompts(6, seed)
        assert farthest(engine.score(prompts), plain_scores(exact, prompts)) < 1e-4


@pytest.mark.parametrize("name", SHARING)
def test_samples_of_every_architecture_equal_plain_ones(load, name):
    engine, _ = load(name)
    prefixes = [prompt.prefix for prompt in random_prompts(4, seed=1)]
    assert engine.sample(prefixes, [1, 2, 3, 4], SAMPLING) == sample_plainly(
        engine.lm, prefixes, [1, 2, 3, 4], SAMPLING
    )


def test_samples_side_by_side_may_outgrow_the_window_that_each_fits_into(tmp_path):
    """50 prompt tokens and 6 x 10 sampled ones: more than the 60 that are seen, which each sample alone fits into."""
    folder = save_tiny(SHARING["mistral"].__class__(**GROUPED, sliding_window=60), tmp_path)
    config = LlmConfig(model=str(folder), max_prefix_tokens=50)
    engine = Engine(load_lm(config, tmp_path / "cache", device="cpu"), config, 10)
    assert engine.shares_prefixes
    prefixes = [[*range(100, 150)], [*range(200, 230)], [*range(300, 347)]]
    many = Sampling(num_samples=6, max_tokens=10, temperature=1.0, top_k=50)
    assert engine.sample(prefixes, [1, 2, 3], many) == sample_plainly(engine.lm, prefixes, [1, 2, 3], many)


def test_a_tree_is_less_than_half_the_work_of_plain_sequences(load):
    engine, _ = load("qwen2")
    prompts = random_prompts(8, seed=2)
    plain = PlainScorer(engine.lm)
    plain.score(prompts)
    before = engine.computed_tokens
    engine.score(prompts)
    assert engine.computed_tokens - before < plain.work.tokens / 2
    assert engine.flops > 0


def test_the_trial_is_no_work_that_counts(load, tiny_llm, tmp_path):
    engine = Engine(load_lm(tiny_llm, tmp_path, device="cpu"), tiny_llm, 10)
    assert (engine.computed_tokens, engine.flops) == (0, 0)
    assert Engine(load("mamba, no attention")[0].lm, tiny_llm, 10).computed_tokens == 0


def fresh(tiny_llm, folder, **changes):
    return load_lm(tiny_llm.model_copy(update=changes), folder, device="cpu")


def test_a_half_precision_llm_is_read_as_a_tree(tiny_llm, tmp_path):
    engine = Engine(fresh(tiny_llm, tmp_path, dtype="bfloat16"), tiny_llm, 10)
    assert engine.shares_prefixes
    prompts = random_prompts(6, seed=0)
    assert farthest(engine.score(prompts), PlainScorer(engine.lm).score(prompts)) < 0.2


def test_a_tree_that_is_wrong_is_not_used_and_the_log_says_so(tiny_llm, tmp_path, monkeypatch, caplog):
    lm = fresh(tiny_llm, tmp_path)
    before = lm.model.config._attn_implementation
    scores = TreeScorer.score
    monkeypatch.setattr(TreeScorer, "score", lambda *given: [[x + 0.1 for x in row] for row in scores(*given)])
    with caplog.at_level(logging.WARNING):
        engine = Engine(lm, tiny_llm, 10)
    assert "differ by 0.1 nats" in caplog.text
    assert isinstance(engine.scorer, PlainScorer)
    assert lm.model.config._attn_implementation == before


@pytest.mark.parametrize("error", [ValueError, RuntimeError, IndexError, AssertionError, NotImplementedError])
@pytest.mark.parametrize("part", ["plan_attention", "sample_outputs"])
def test_a_model_that_fails_on_trees_is_read_plainly(tiny_llm, tmp_path, monkeypatch, error, part):
    def fail(*_):
        raise error("pretended")

    monkeypatch.setattr(f"embedder.labelling.{'scorer' if part == 'plan_attention' else 'backends'}.{part}", fail)
    engine = Engine(fresh(tiny_llm, tmp_path), tiny_llm, 10)
    assert not engine.shares_prefixes
    assert engine.score(TRIAL) == PlainScorer(engine.lm).score(TRIAL)
    assert engine.sample([[5, 6]], [1], SAMPLING) == sample_plainly(engine.lm, [[5, 6]], [1], SAMPLING)


def test_memory_that_is_exhausted_in_the_trial_says_nothing_about_the_model(tiny_llm, tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("pretended")

    monkeypatch.setattr(engines, "sample_outputs", fail)
    with pytest.raises(torch.OutOfMemoryError):
        Engine(fresh(tiny_llm, tmp_path), tiny_llm, 10)


def test_scores_that_are_no_numbers_do_not_pass_the_trial(tiny_llm, tmp_path):
    lm = fresh(tiny_llm, tmp_path)
    lm.model.model.norm.weight.data.fill_(float("nan"))
    assert not Engine(lm, tiny_llm, 10).shares_prefixes


def test_more_tokens_than_the_llm_has_positions_are_refused(tiny_llm, tiny_gpt2_folder, tmp_path):
    config = LlmConfig(model=str(tiny_gpt2_folder), max_prefix_tokens=500)
    lm = load_lm(config, tmp_path, device="cpu")
    assert Engine(lm, config, 12).shares_prefixes
    with pytest.raises(ConfigError, match=r"500 and outputs of 13 tokens need 513 positions, but .* has 512"):
        Engine(lm, config, 13)


@pytest.mark.parametrize(
    ("config", "reach"),
    [
        (LlamaConfig(**GROUPED), None),
        (SHARING["mistral, long window"], 400),
        (SHARING["qwen2 that is no sliding one"], None),
        (SHARING["qwen2 with experts, window 0"], None),
        (PLAIN["llama, dynamic positions"], 32),
        (LlamaConfig(**GROUPED, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), 512),
        (GPTNeoXConfig(**WIDE), None),
    ],
)
def test_how_far_a_model_sees_plainly(config, reach):
    assert plain_reach(config) == reach
