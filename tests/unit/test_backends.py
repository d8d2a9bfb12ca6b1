"""Which LLMs are read as trees, which one sequence at a time, and that both are right."""

from __future__ import annotations

import logging
import re
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import GPTNeoXConfig, LlamaConfig

from embedder.config.run import CHUNKED, FLEX, LlmConfig
from embedder.config.run import SEQUENTIAL as ONE_BY_ONE
from embedder.errors import ConfigError, ModelError
from embedder.labelling import backends
from embedder.labelling.backends import TRIAL, best_scorer, choose_backend, full_attention_length
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.sampling import Sampling
from embedder.labelling.sequential_backend import SequentialBackend
from embedder.labelling.tree_attention import ATTENTION, ChunkLayout, FurtherTerms, chunk_layout
from embedder.labelling.tree_backend import TreeBackend
from embedder.models.causal_lm import load_lm
from tests.unit.judges import exact_model, farthest, plain_scores, random_prompts
from tests.unit.tiny_llms import CAPPED, FAMILIES, GROUPED, SEQUENTIAL, SHARING, WIDE, family_config, save_tiny

SAMPLING = Sampling(num_samples=3, max_tokens=6, temperature=1.0, top_k=50)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A backend for at most 60 tokens, and the folder of its model, by name; each is made once."""
    made = {}

    def make(name):
        if name not in made:
            folder = save_tiny((SHARING | SEQUENTIAL)[name], tmp_path_factory.mktemp("llm"))
            config = LlmConfig(model=str(folder), max_prefix_tokens=50, batch_tokens=64)
            made[name] = choose_backend(load_lm(config, folder / "cache", device="cpu"), config, 10), folder
        return made[name]

    return make


@pytest.mark.parametrize("name", [*SHARING, *SEQUENTIAL])
def test_choose_backend_scores_of_every_architecture_equal_float64_sequences(load, name):
    backend, folder = load(name)
    assert isinstance(backend, TreeBackend) == (name in SHARING)
    assert (backend.lm.model.config._attn_implementation == ATTENTION) == (name in SHARING)
    exact = exact_model(folder)
    for seed in range(3):
        prompts = random_prompts(6, seed)
        assert farthest(backend.score(prompts), plain_scores(exact, prompts)) < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_choose_backend_scores_of_every_family_equal_a_plain_forward_pass(name, tmp_path):
    """Case 50-llm-families: windows of 8 tokens below prompts of 50, soft caps, attention sinks, experts."""
    folder = save_tiny(family_config(name), tmp_path)
    config = LlmConfig(model=str(folder), max_prefix_tokens=50, batch_tokens=64)
    backend = choose_backend(load_lm(config, tmp_path / "cache", device="cpu"), config, 10)
    prompts = random_prompts(6, seed=1)
    # Routers of experts choose in float32, so in float64 they may choose another where two are nearly equal.
    experts = "moe" in name or name == "gpt_oss"
    dtype = torch.float32 if experts else torch.float64
    assert farthest(backend.score(prompts), plain_scores(exact_model(folder).to(dtype), prompts)) < 1e-3


def test_choose_backend_tokens_of_an_output_that_belong_to_the_prefix_are_read_and_not_scored(load):
    """Where an output changes the prefix's last token, the tokens before it stand in each output."""
    for name in ("qwen2", "gemma2, capped logits"):
        backend, folder = load(name)
        plain = [PackedPrompt(prompt.prefix, prompt.outputs * 2) for prompt in random_prompts(8, seed=5)]
        unscored = [[i % len(output) for i, output in enumerate(prompt.outputs)] for prompt in plain]
        prompts = [replace(prompt, unscored=first) for prompt, first in zip(plain, unscored, strict=True)]
        assert any(any(prompt.unscored) for prompt in prompts)
        exact = plain_scores(exact_model(folder), prompts)
        assert farthest(backend.score(prompts), exact) < 1e-4
        assert farthest(backend.score([*plain, *prompts])[len(plain) :], exact) < 1e-4
    with pytest.raises(ValueError, match="empty output"):
        backend.score([PackedPrompt([5], [[6]], [1])])


@pytest.mark.parametrize("name", SHARING)
def test_choose_backend_samples_of_every_architecture_equal_plain_ones(load, name):
    backend, _ = load(name)
    prefixes = [prompt.prefix for prompt in random_prompts(4, seed=1)]
    assert backend.sample(prefixes, [1, 2, 3, 4], SAMPLING) == SequentialBackend(backend.lm).sample(
        prefixes, [1, 2, 3, 4], SAMPLING
    )


def test_choose_backend_samples_side_by_side_may_outgrow_the_window_that_each_fits_into(tmp_path):
    """50 prompt tokens and 6 x 10 sampled ones: more than the 60 that are seen, which each sample alone fits into."""
    folder = save_tiny(SHARING["mistral"].__class__(**GROUPED, sliding_window=60), tmp_path)
    config = LlmConfig(model=str(folder), max_prefix_tokens=50)
    backend = choose_backend(load_lm(config, tmp_path / "cache", device="cpu"), config, 10)
    assert isinstance(backend, TreeBackend)
    prefixes = [[*range(100, 150)], [*range(200, 230)], [*range(300, 347)]]
    many = Sampling(num_samples=6, max_tokens=10, temperature=1.0, top_k=50)
    assert backend.sample(prefixes, [1, 2, 3], many) == SequentialBackend(backend.lm).sample(prefixes, [1, 2, 3], many)


def test_choose_backend_a_tree_is_less_than_half_the_work_of_plain_sequences(load):
    backend, _ = load("qwen2")
    prompts = random_prompts(8, seed=2)
    plain = SequentialBackend(backend.lm)
    plain.score(prompts)
    before = backend.work.tokens
    backend.score(prompts)
    assert backend.work.tokens - before < plain.work.tokens / 2
    assert backend.work.flops > 0


def test_choose_backend_the_trial_is_no_work_that_counts(load, tiny_llm, tmp_path):
    backend = choose_backend(load_lm(tiny_llm, tmp_path, device="cpu"), tiny_llm, 10)
    assert (backend.work.tokens, backend.work.flops) == (0, 0)
    assert choose_backend(load("mamba, no attention")[0].lm, tiny_llm, 10).work.tokens == 0


def fresh(tiny_llm, folder, **changes):
    return load_lm(tiny_llm.model_copy(update=changes), folder, device="cpu")


def test_choose_backend_a_half_precision_llm_is_read_as_a_tree(tiny_llm, tmp_path):
    backend = choose_backend(fresh(tiny_llm, tmp_path, dtype="bfloat16"), tiny_llm, 10)
    assert isinstance(backend, TreeBackend)
    prompts = random_prompts(6, seed=0)
    assert farthest(backend.score(prompts), SequentialBackend(backend.lm).score(prompts)) < 0.2


def test_choose_backend_a_tree_that_is_wrong_is_not_used_and_the_log_says_so(tiny_llm, tmp_path, monkeypatch, caplog):
    lm = fresh(tiny_llm, tmp_path)
    before = lm.model.config._attn_implementation
    tree_scores = TreeBackend.score
    monkeypatch.setattr(TreeBackend, "score", lambda *given: [[x + 0.1 for x in row] for row in tree_scores(*given)])
    with caplog.at_level(logging.WARNING):
        backend = choose_backend(lm, tiny_llm, 10)
    assert "differ by 0.1 nats" in caplog.text
    assert isinstance(backend, SequentialBackend)
    assert lm.model.config._attn_implementation == before


@pytest.mark.parametrize(
    "error",
    [ValueError, RuntimeError, IndexError, AssertionError, NotImplementedError, OSError, subprocess.SubprocessError],
)
@pytest.mark.parametrize("part", ["plan_attention", "sample_outputs"])
def test_choose_backend_a_model_that_fails_on_trees_is_read_sequentially(tiny_llm, tmp_path, monkeypatch, error, part):
    def fail(*_):
        raise error("pretended")

    monkeypatch.setattr(f"embedder.labelling.tree_backend.{part}", fail)
    backend = choose_backend(fresh(tiny_llm, tmp_path), tiny_llm, 10)
    assert not isinstance(backend, TreeBackend)
    assert backend.score(TRIAL) == SequentialBackend(backend.lm).score(TRIAL)
    assert backend.sample([[5, 6]], [1], SAMPLING) == SequentialBackend(backend.lm).sample([[5, 6]], [1], SAMPLING)


def test_choose_backend_out_of_memory_in_the_trial_says_nothing_about_the_model(tiny_llm, tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("pretended")

    monkeypatch.setattr(TreeBackend, "sample", fail)
    with pytest.raises(torch.OutOfMemoryError):
        choose_backend(fresh(tiny_llm, tmp_path), tiny_llm, 10)


def test_choose_backend_scores_that_are_no_numbers_do_not_pass_the_trial(tiny_llm, tmp_path):
    lm = fresh(tiny_llm, tmp_path)
    lm.model.model.norm.weight.data.fill_(float("nan"))
    assert not isinstance(choose_backend(lm, tiny_llm, 10), TreeBackend)


def test_choose_backend_more_tokens_than_the_llm_has_positions_are_refused(tiny_llm, tiny_gpt2_folder, tmp_path):
    config = LlmConfig(model=str(tiny_gpt2_folder), max_prefix_tokens=500)
    lm = load_lm(config, tmp_path, device="cpu")
    assert isinstance(choose_backend(lm, config, 12), TreeBackend)
    with pytest.raises(ConfigError, match=r"500 and outputs of 13 tokens need 513 positions, but .* has 512"):
        choose_backend(lm, config, 13)


@pytest.mark.parametrize(
    ("config", "reach"),
    [
        (LlamaConfig(**GROUPED), None),
        (SHARING["mistral, long window"], 400),
        (SHARING["qwen2 that is no sliding one"], None),
        (SHARING["qwen2 with experts, window 0"], None),
        (SEQUENTIAL["llama, dynamic positions"], 32),
        (LlamaConfig(**GROUPED, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), 512),
        (GPTNeoXConfig(**WIDE), None),
    ],
)
def test_full_attention_length_how_far_a_model_sees_all_tokens(config, reach):
    assert full_attention_length(config) == reach


@pytest.mark.parametrize("scorer", [CHUNKED, ONE_BY_ONE])
def test_choose_backend_takes_the_scorer_that_is_named(tiny_llm, tmp_path, scorer):
    named = tiny_llm.model_copy(update={"scorer": scorer})
    assert choose_backend(fresh(tiny_llm, tmp_path), named, 10).scorer == scorer
    assert choose_backend(fresh(tiny_llm, tmp_path), tiny_llm, 10).scorer == CHUNKED


def test_choose_backend_a_named_scorer_that_is_wrong_is_an_error_of_one_line(load, tmp_path):
    lm = load("cohere, scaled logits")[0].lm
    config = LlmConfig(model="cohere", max_prefix_tokens=50, scorer=CHUNKED)
    with pytest.raises(ModelError) as raised:
        choose_backend(lm, config, 10)
    assert re.fullmatch(
        r"llm.model 'cohere' cannot be scored by 'chunked tree' on cpu: with shared prefixes scores differ by .* nats; "
        r"set llm.scorer to 'one sequence at a time', which is about ten times slower",
        str(raised.value),
    )
    assert choose_backend(lm, config.model_copy(update={"scorer": "auto"}), 10).scorer == ONE_BY_ONE
    window = load("mistral, short window")[0].lm
    with pytest.raises(ModelError, match="more than 8 tokens otherwise"):
        choose_backend(window, config, 10)


@pytest.mark.parametrize("scorer", [CHUNKED, FLEX])
def test_choose_backend_a_named_scorer_for_attention_with_further_terms_is_refused_without_wrong_advice(
    tmp_path, scorer
):
    """The chunked form is no way out for what both forms lack; and no layer stays compiled."""
    lm = load_lm(LlmConfig(model=str(save_tiny(CAPPED, tmp_path))), tmp_path / "cache", device="cpu")
    before = lm.model.config._attn_implementation
    config = LlmConfig(model="gemma", max_prefix_tokens=50, scorer=scorer)
    with pytest.raises(
        ModelError, match=r"lack \(softcap\); set llm.scorer to [^,]*, which is about ten times slower$"
    ):
        choose_backend(lm, config, 10)
    assert lm.model.config._attn_implementation == before
    assert all(layer._compiled_call_impl is None for layer in lm.model.base_model.layers)


def on_cuda(lm, dtype=torch.bfloat16):
    """An LLM that says that it is on a GPU, of which nothing more can be asked here."""
    model = SimpleNamespace(config=lm.model.config, dtype=dtype)
    return SimpleNamespace(model=model, device=torch.device("cuda"), followers=None)


def test_choose_backend_a_trial_that_fails_on_a_gpu_is_an_error_and_no_slow_run(load, monkeypatch):
    monkeypatch.setattr(backends, "lacking_compiler", lambda: None)
    monkeypatch.setattr(backends, "try_tree", lambda *_: (None, "pretended"))
    config = LlmConfig(model="qwen", max_prefix_tokens=50)
    with pytest.raises(ModelError, match=r"'flex' on cuda: pretended; set llm.scorer to .*, or to 'chunked tree'"):
        choose_backend(on_cuda(load("qwen2")[0].lm), config, 10)


def test_choose_backend_attention_with_further_terms_is_read_one_by_one_on_a_gpu_too(load, monkeypatch, caplog):
    def refuse(*_):
        raise FurtherTerms("Gemma2Attention has a term")

    monkeypatch.setattr(backends, "lacking_compiler", lambda: None)
    monkeypatch.setattr(backends, "try_tree", refuse)
    monkeypatch.setattr(backends, "SequentialBackend", lambda lm: SimpleNamespace(lm=lm, how=ONE_BY_ONE))
    config = LlmConfig(model="gemma", max_prefix_tokens=50)
    assert choose_backend(on_cuda(load("qwen2")[0].lm), config, 10).how == ONE_BY_ONE
    assert "Gemma2Attention has a term: outputs are scored one by one" in caplog.text


def test_best_scorer_is_flex_for_half_precision_on_a_gpu_with_a_compiler(load, monkeypatch, caplog):
    lm = load("qwen2")[0].lm
    monkeypatch.setattr(backends, "lacking_compiler", lambda: None)
    assert best_scorer(lm) == CHUNKED
    assert best_scorer(on_cuda(lm)) == FLEX
    assert best_scorer(on_cuda(lm, dtype=torch.float32)) == CHUNKED
    monkeypatch.setattr(backends, "lacking_compiler", lambda: "Triton")
    assert best_scorer(on_cuda(lm)) == CHUNKED
    assert "Triton is missing" in caplog.text


def test_chunk_layout_for_cuda_knows_how_many_heads_share_keys():
    assert chunk_layout("cpu", SHARING["qwen2"]) == ChunkLayout()
    assert chunk_layout("cuda", SHARING["qwen2"]) == ChunkLayout(1024, 8, shared=2)
    assert chunk_layout("cuda", SHARING["gpt_neox"]) == ChunkLayout(1024, 8, shared=1)
