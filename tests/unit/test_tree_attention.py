"""Attention over a prefix tree against one dense mask over the whole row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from embedder.labelling.prefix_tree import PackedPrompt, build_tree
from embedder.labelling.tree_attention import ChunkLayout, FurtherTerms, plan_attention, tree_attention
from embedder.labelling.tree_flex import BLOCK, interval_mask
from tests.unit.judges import many_prompts, quick
from tests.unit.test_prefix_tree import seen_tokens


def brute_mask(tree):
    """Who sees whom, from the tokens that each token sees."""
    mask = torch.zeros((len(tree.tokens), len(tree.tokens)), dtype=torch.bool)
    for index, seen in enumerate(seen_tokens(tree)):
        mask[index, seen] = True
    return mask


def planned_mask(tree):
    """Who sees whom, from the ranges of keys and the masks that the attention uses."""
    mask = torch.zeros((len(tree.tokens), len(tree.tokens)), dtype=torch.bool)
    for span in plan_attention(tree, torch.float32, torch.device("cpu")):
        keys = [i for start, stop in span.keys for i in range(start, stop)]
        own = torch.ones((span.stop - span.start, len(keys))).tril() > 0 if span.mask is None else span.mask == 0
        mask[span.start : span.stop, keys] = own
    return mask


@quick
@given(many_prompts())
def test_plan_attention_lets_every_token_see_its_path_alone(prompts):
    tree = build_tree(prompts)
    assert torch.equal(planned_mask(tree), brute_mask(tree))


@quick
@given(many_prompts(), st.sampled_from([(4, 4), (4, 2), (6, 1)]), st.sampled_from([None, 0.3]))
def test_tree_attention_equals_one_softmax_under_a_dense_mask(prompts, heads, scaling):
    tree = build_tree(prompts)
    torch.manual_seed(len(tree.tokens))
    query = torch.randn(1, heads[0], len(tree.tokens), 8)
    key, value = (torch.randn(1, heads[1], len(tree.tokens), 8) for _ in range(2))
    plan = plan_attention(tree, torch.float32, torch.device("cpu"))
    found, _ = tree_attention(nn.Module(), query, key, value, None, scaling=scaling, tree_plan=plan)
    key, value = (tensor.double().repeat_interleave(heads[0] // heads[1], dim=1) for tensor in (key, value))
    scores = query.double() @ key.transpose(2, 3) * (scaling or 8**-0.5)
    expected = scores.masked_fill(~brute_mask(tree), float("-inf")).softmax(-1) @ value
    assert found.shape == (1, len(tree.tokens), heads[0], 8)
    assert torch.allclose(found.double(), expected.transpose(1, 2), atol=1e-5)


def test_tree_attention_without_a_plan_it_is_the_attention_of_transformers():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, 5, 8) for _ in range(3))
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = True, 1
    mask = torch.rand(2, 1, 5, 5) > 0.3
    mask[..., 0] = True
    for given_mask in (None, mask):
        expected, _ = sdpa_attention_forward(module, query, key, value, given_mask, scaling=0.5)
        assert torch.equal(tree_attention(module, query, key, value, given_mask, scaling=0.5)[0], expected)


@pytest.mark.parametrize("scaling", [None, 0.5])
def test_tree_attention_heads_that_share_keys_attend_as_with_keys_of_their_own(scaling):
    torch.manual_seed(0)
    query, mask = torch.randn(2, 6, 3, 8), torch.rand(2, 1, 3, 5) > 0.3
    key, value = (torch.randn(2, 2, 5, 8) for _ in range(2))
    mask[..., 0] = True
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = True, 3
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)
    found, _ = tree_attention(module, query, key, value, mask, scaling=scaling)
    assert found.shape == (2, 3, 6, 8)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("term", ["softcap", "s_aux", "position_bias"])
def test_tree_attention_with_a_further_term_is_refused(term):
    tensors = [torch.zeros(1, 1, 1, 8) for _ in range(3)]
    plan = plan_attention(build_tree([PackedPrompt([1], [[2]])]), torch.float32, torch.device("cpu"))
    assert tree_attention(nn.Module(), *tensors, None, tree_plan=plan, **{term: None})[0].shape == (1, 1, 1, 8)
    mask = interval_mask([BLOCK] * BLOCK, torch.device("cpu"))
    for further in ({"tree_plan": plan}, {}):
        for given_mask in (None, mask):
            with pytest.raises(FurtherTerms, match=term):
                tree_attention(nn.Module(), *tensors, given_mask, **further, **{term: 1.0})


def test_plan_attention_equal_tries_behind_prefixes_of_one_length_share_a_mask():
    outputs = [[7, 8, 9], [7, 5, 6]]
    tree = build_tree([PackedPrompt([1, 2], outputs), PackedPrompt([3, 4], outputs), PackedPrompt([5], outputs)])
    plan = plan_attention(tree, torch.bfloat16, torch.device("cpu"))
    prefixes, tries = plan[::2], plan[1::2]
    assert all(span.mask is None for span in prefixes)
    assert tries[0].mask is tries[1].mask
    assert tries[2].mask is not tries[0].mask
    assert tries[0].mask.dtype == torch.bfloat16


def test_plan_attention_chunks_of_one_length_may_differ_in_shape():
    """Two branches of 60 nodes below one prefix: a chain, and a fork of two."""
    outputs = [list(range(10, 71)), [100, *range(110, 140)], [100, *range(210, 241)]]
    tree = build_tree([PackedPrompt([1, 2], outputs)])
    assert [span.stop - span.start for span in tree.spans] == [2, 60, 60]
    assert torch.equal(planned_mask(tree), brute_mask(tree))


@pytest.fixture
def heads_side_by_side(monkeypatch):
    """Attention results as the memory-efficient kernel of CUDA lays them out: the heads of a token side by side."""
    plain = functional.scaled_dot_product_attention

    def laid_out(*given, **named):
        return plain(*given, **named).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", laid_out)


def test_tree_attention_of_shared_keys_takes_any_layout_of_the_kernel(heads_side_by_side):
    torch.manual_seed(0)
    query, mask = torch.randn(2, 6, 3, 8), torch.zeros(2, 1, 3, 5)
    key, value = (torch.randn(2, 2, 5, 8) for _ in range(2))
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = True, 3
    expected, _ = sdpa_attention_forward(module, query, key, value, mask)
    assert torch.allclose(tree_attention(module, query, key, value, mask)[0], expected, atol=1e-6)


@quick
@given(many_prompts(), st.sampled_from([(4, 4), (4, 2), (6, 1)]), st.sampled_from([5, 1024]))
def test_tree_attention_in_the_layout_for_cuda_equals_one_softmax_under_a_dense_mask(prompts, heads, nodes):
    shared = heads[0] // heads[1]
    layout = ChunkLayout(nodes, 8, shared)
    tree = build_tree(prompts, nodes)
    torch.manual_seed(len(tree.tokens))
    query = torch.randn(1, heads[0], len(tree.tokens), 8)
    key, value = (torch.randn(1, heads[1], len(tree.tokens), 8) for _ in range(2))
    plan = plan_attention(tree, torch.float32, torch.device("cpu"), layout)
    found, _ = tree_attention(nn.Module(), query, key, value, None, tree_plan=plan)
    key, value = (tensor.double().repeat_interleave(shared, dim=1) for tensor in (key, value))
    scores = query.double() @ key.transpose(2, 3) * 8**-0.5
    expected = scores.masked_fill(~brute_mask(tree), float("-inf")).softmax(-1) @ value
    assert torch.allclose(found.double(), expected.transpose(1, 2), atol=1e-5)
    masks = [span.mask for span in plan if span.mask is not None]
    assert all(mask.stride(0) % 8 == 0 and mask.stride(1) == 1 for mask in masks)
