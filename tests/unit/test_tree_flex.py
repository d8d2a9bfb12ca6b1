"""Attention as an interval test: the mask against who sees whom, and scores on a CPU, where nothing is compiled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from transformers import MistralConfig

from embedder.config.run import FLEX, LlmConfig
from embedder.labelling.backends import choose_backend
from embedder.labelling.prefix_tree import build_tree
from embedder.labelling.sampling import Sampling
from embedder.labelling.sequential_backend import SequentialBackend
from embedder.labelling.tree_attention import ATTENTION
from embedder.labelling.tree_backend import TreeBackend
from embedder.labelling.tree_flex import BLOCK, interval_mask, read_tree, subtree_ends
from embedder.models.causal_lm import load_lm
from embedder.models.compiled import compile_layers
from tests.unit.judges import exact_model, farthest, many_prompts, plain_scores, quick, random_prompts
from tests.unit.test_tree_attention import brute_mask
from tests.unit.tiny_llms import GROUPED, SHARING, save_tiny

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


def loaded(config, folder, **settings):
    """A model in a new folder, how it is read, and the folder."""
    model = save_tiny(config, folder)
    llm = LlmConfig(model=str(model), max_prefix_tokens=50, batch_tokens=400, scorer=FLEX, **settings)
    return load_lm(llm, folder / "cache", "cpu"), llm, model


def allowed(ends):
    """Who sees whom by the test that the kernel makes in partial blocks."""
    mask, places = interval_mask(ends, CPU), torch.arange(len(ends))
    return mask.mask_mod(0, 0, places[:, None], places[None, :])


@quick
@given(many_prompts())
def test_subtree_ends_let_every_token_see_its_path_alone(prompts):
    tree = build_tree(prompts)
    fill = -len(tree.tokens) % BLOCK
    seen = allowed(subtree_ends([*tree.positions, *[0] * fill]))
    length = len(tree.tokens)
    assert torch.equal(seen[:length, :length], brute_mask(tree))
    assert torch.equal(seen[length:], torch.eye(length + fill, dtype=torch.bool)[length:])


def test_interval_mask_passes_over_hidden_blocks_alone():
    tree = build_tree([*random_prompts(60, seed=1), *random_prompts(40, seed=2)])
    ends = subtree_ends([*tree.positions, *[0] * (-len(tree.tokens) % BLOCK)])
    blocks = len(ends) // BLOCK
    seen = allowed(ends).reshape(blocks, BLOCK, blocks, BLOCK).transpose(1, 2)
    mask = interval_mask(ends, CPU)
    listed = {}
    for kind, counts, order in (
        ("partial", mask.kv_num_blocks, mask.kv_indices),
        ("full", mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        listed[kind] = torch.zeros(blocks, blocks, dtype=torch.bool)
        for row in range(blocks):
            listed[kind][row, order[0, 0, row, : counts[0, 0, row]]] = True
    assert blocks > 4 and torch.equal(listed["full"] | listed["partial"], seen.any(3).any(2))
    assert torch.equal(listed["full"], seen.all(3).all(2))
    assert not (listed["full"] & listed["partial"]).any()


def test_interval_mask_of_a_long_prefix_has_blocks_without_a_test():
    mask = interval_mask([4 * BLOCK] * (4 * BLOCK), CPU)
    assert mask.full_kv_num_blocks.flatten().tolist() == [0, 1, 2, 3]
    assert mask.kv_num_blocks.flatten().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("name", ["qwen2", "opt", "gpt_neox", "tied llama"])
def test_choose_backend_by_flex_scores_equal_float64_sequences(name, tmp_path):
    lm, llm, folder = loaded(SHARING[name], tmp_path)
    backend = choose_backend(lm, llm, 10)
    assert isinstance(backend, TreeBackend) and backend.scorer == FLEX
    prompts = random_prompts(40, seed=3)
    assert farthest(backend.score(prompts), plain_scores(exact_model(folder), prompts)) < 1e-4
    prefixes, sampling = [prompt.prefix for prompt in prompts[:3]], Sampling(3, 4, 1.0, 50)
    assert backend.sample(prefixes, [1, 2, 3], sampling) == SequentialBackend(lm).sample(prefixes, [1, 2, 3], sampling)


def test_tree_backend_by_flex_counts_the_work_of_real_tokens(tmp_path):
    lm, llm, _ = loaded(SHARING["mistral"], tmp_path)
    flex, prompts = choose_backend(lm, llm, 10), random_prompts(12, seed=5)
    chunked = TreeBackend(lm, 400)
    for backend in (flex, chunked):
        backend.score(prompts)
    assert flex.work == chunked.work and flex.work.tokens > 0


LAYERS = 10
"""More than the eight graphs that torch makes of one piece of code, before it runs what is left uncompiled."""


def test_compile_layers_compiles_once_for_all_layers_and_trees_of_all_lengths(tmp_path):
    """A new test function for each batch, and lengths of two blocks and more, are no reason to compile again."""
    deep = MistralConfig(**{**GROUPED, "num_hidden_layers": LAYERS}, sliding_window=None)
    lm, _, _ = loaded(deep, tmp_path)
    graphs = []

    def count(module, inputs):
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    lm.model.set_attn_implementation(ATTENTION)
    compile_layers(lm.model.base_model)
    sizes, compiled = [], []
    with torch.compiler.set_stance("default", force_backend=count), torch.inference_mode():
        for prompts in (3, 30, 45, 38):
            tree = build_tree(random_prompts(prompts, seed=prompts))
            sizes.append(len(tree.tokens))
            assert read_tree(lm.model, tree, CPU).shape == (len(tree.tokens), 32)
            compiled.append(len(graphs))
    torch._dynamo.reset()
    assert sizes[0] < 2 * BLOCK < sizes[1] < sizes[3] < sizes[2]
    # Of the first layer alone: the others are run by its graph.
    assert compiled == [1, 1, 1, 1]
