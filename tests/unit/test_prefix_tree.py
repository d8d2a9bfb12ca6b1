"""The tree of prompts: every token once, every token sees its own path and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.labelling.prefix_tree import (
    CHUNK_NODES,
    LEAST_BATCH,
    PackedPrompt,
    PrefixTree,
    build_output_trie,
    build_tree,
    common_length,
    join_ranges,
    predictions,
    tree_batches,
)
from tests.unit.judges import many_prompts, quick


def seen_tokens(tree: PrefixTree) -> list[list[int]]:
    """For each token the indices of those it sees, from the description of the spans."""
    seen: list[list[int]] = [[] for _ in tree.tokens]
    for span in tree.spans:
        above = [i for start, stop in span.sees for i in range(start, stop)]
        for index in range(span.start, span.stop):
            own = range(span.start, index + 1)
            if span.trie is not None:
                first = span.chunk[0]
                ends = span.trie.subtree_ends
                own = [j for j in own if index - span.start + first < ends[j - span.start + first]]
            seen[index] = [*above, *own]
    return seen


@quick
@given(many_prompts())
def test_prefix_tree_every_token_is_predicted_from_exactly_the_sequence_before_it(prompts):
    tree = build_tree(prompts)
    seen = seen_tokens(tree)
    asked = predictions(tree)
    for prompt, paths in zip(prompts, asked.paths, strict=True):
        for output, path in zip(prompt.outputs, paths, strict=True):
            assert [asked.edge_tokens[edge] for edge in path] == output
            for read, edge in enumerate(path):
                before = seen[asked.tokens[asked.edges[edge]]]
                assert [tree.tokens[i] for i in before] == prompt.prefix + output[:read]
                assert [tree.positions[i] for i in before] == list(range(len(before)))


@quick
@given(many_prompts())
def test_prefix_tree_no_shared_token_stands_twice_and_no_last_token_is_read(prompts):
    prefixes = {tuple(prompt.prefix[:length]) for prompt in prompts for length in range(1, len(prompt.prefix) + 1)}
    tries = [{tuple(output[:i]) for output in prompt.outputs for i in range(1, len(output))} for prompt in prompts]
    tree = build_tree(prompts)
    assert len(tree.tokens) == len(tree.positions) == len(prefixes) + sum(map(len, tries))


@quick
@given(many_prompts())
def test_prefix_tree_spans_cover_the_row_once_and_ancestors_come_first(prompts):
    tree = build_tree(prompts)
    assert [span.start for span in tree.spans] == [0, *(span.stop for span in tree.spans)][:-1]
    assert tree.spans[-1].stop == len(tree.tokens)
    for span in tree.spans:
        assert all(start < stop for start, stop in [*span.sees, (span.start, span.stop)])
        assert all(stop < start for (_, stop), (start, _) in zip(span.sees, span.sees[1:], strict=False))
        assert not span.sees or span.sees[-1][1] <= span.start


def test_prefix_tree_worked_by_hand():
    prompts = [
        PackedPrompt([1, 2, 3], [[20, 21, 22], [20, 23]]),
        PackedPrompt([1, 2], [[30]]),
        PackedPrompt([1, 2, 4, 5], [[40, 41]]),
    ]
    tree = build_tree(prompts)
    assert tree.tokens == [1, 2, 3, 20, 21, 4, 5, 40]
    assert tree.positions == [0, 1, 2, 3, 4, 2, 3, 4]
    assert [(span.start, span.stop, span.sees) for span in tree.spans] == [
        (0, 2, []),
        (2, 3, [(0, 2)]),
        (3, 5, [(0, 3)]),
        (5, 7, [(0, 2)]),
        (7, 8, [(0, 2), (5, 7)]),
    ]
    assert (tree.prefix_ends, tree.trie_starts) == ([2, 1, 6], [3, 2, 7])


def test_output_trie_worked_by_hand():
    """1 is read by four outputs; 2 because [1, 2, 3] goes on from it; 3, 5 and 6 are predicted only."""
    trie = build_output_trie([[1, 2, 3], [1, 2], [6], [1, 4, 5], [1, 2, 3]])
    assert (trie.tokens, trie.depths, trie.subtree_ends) == ([1, 2, 4], [0, 1, 1], [3, 2, 3])
    assert trie.edge_tokens == [1, 2, 3, 6, 4, 5]
    assert trie.edge_parents == [-1, 0, 1, -1, 0, 2]
    assert trie.paths == [[0, 1, 2], [0, 1], [3], [0, 4, 5], [0, 1, 2]]
    assert trie.visible(0, 3).astype(int).tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]


def test_output_trie_outputs_of_one_token_have_an_empty_trie():
    trie = build_output_trie([[5], [6], [5]])
    assert (trie.tokens, trie.chunks(), trie.edge_parents) == ([], [], [-1, -1])
    assert trie.paths == [[0], [1], [0]]


outputs = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=40), min_size=1, max_size=12)


@quick
@given(outputs, st.sampled_from([1, 4, 64]))
def test_output_trie_chunks_are_whole_branches_that_do_not_see_each_other(outputs, long):
    trie = build_output_trie([output * long for output in outputs])
    whole = trie.visible(0, len(trie.tokens)).copy()
    chunks = trie.chunks()
    assert [node for start, stop in chunks for node in range(start, stop)] == list(range(len(trie.tokens)))
    for start, stop in chunks:
        assert start < stop
        assert (trie.visible(start, stop) == whole[start:stop, start:stop]).all()
        assert (
            stop - start <= CHUNK_NODES
            or trie.subtree_ends[start] == stop
            or trie.subtree_ends[start] - start > CHUNK_NODES
        )
        whole[start:stop, start:stop] = False
    assert not whole.any()


def test_output_trie_many_short_outputs_attend_in_chunks_and_a_long_one_is_a_chunk_of_its_own():
    trie = build_output_trie([[i, 1, 2, 3] for i in range(10, 50)])
    assert trie.chunks() == [(0, 63), (63, 120)]
    trie = build_output_trie([[1, 2, 3], list(range(10, 200)), [4, 5, 6]])
    assert trie.chunks() == [(0, 2), (2, 191), (191, 193)]
    assert build_output_trie([list(range(10, 200)), [4, 5, 6]]).chunks() == [(0, 189), (189, 191)]


def test_prefix_tree_prompts_with_the_same_outputs_share_one_trie():
    same = [[7, 8, 9], [7, 5]]
    tree = build_tree([PackedPrompt([1], same), PackedPrompt([2], [list(output) for output in same])])
    assert tree.tries[0] is tree.tries[1]


def test_prefix_tree_thousands_of_prefixes_may_each_go_on_from_the_one_before():
    prompts = [PackedPrompt([1] * length, [[2]]) for length in range(1, 3001)]
    tree = build_tree(prompts)
    assert tree.tokens == [1] * 3000
    assert tree.prefix_ends == list(range(3000))


@quick
@given(many_prompts(most=12), st.sampled_from([1, 20, 100, 10_000]))
def test_tree_batches_are_a_partition_and_no_larger_than_asked_for(prompts, batch_tokens):
    batches = list(tree_batches(prompts, batch_tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(prompts)))
    for batch in batches:
        assert len(batch) == 1 or len(build_tree([prompts[i] for i in batch]).tokens) <= batch_tokens


@quick
@given(many_prompts(most=12), st.integers(0, 99))
def test_tree_batches_do_not_depend_on_the_order_of_the_prompts(prompts, seed):
    order = np.random.default_rng(seed).permutation(len(prompts))
    other = [prompts[i] for i in order]
    batches = [[prompts[i] for i in batch] for batch in tree_batches(prompts, 60)]
    assert [[other[i] for i in batch] for batch in tree_batches(other, 60)] == batches


@quick
@given(many_prompts(most=12), st.sampled_from([300, 1000]), st.integers(1, 4))
def test_tree_batches_lanes_have_equally_many_batches_unless_these_are_small(prompts, batch_tokens, lanes):
    batches = tree_batches(prompts, batch_tokens, lanes)
    assert sorted(index for batch in batches for index in batch) == list(range(len(prompts)))
    fewest = len(tree_batches(prompts, batch_tokens))
    wanted = -(-fewest // lanes) * lanes
    assert fewest <= len(batches) <= wanted
    tokens = len(build_tree(prompts).tokens)
    assert len(batches) <= max(fewest, tokens // LEAST_BATCH)


def test_tree_batches_are_of_one_size():
    """Ten prompts of 100 tokens, 400 a batch at most: three batches, of which none is nearly empty."""
    prompts = [PackedPrompt([i, *range(99)], [[7]]) for i in range(10)]
    assert [len(batch) for batch in tree_batches(prompts, 400)] == [4, 4, 2]
    assert [len(batch) for batch in tree_batches(prompts, 500)] == [5, 5]
    assert [len(batch) for batch in tree_batches(prompts, 1000, lanes=2)] == [5, 5]
    assert [len(batch) for batch in tree_batches(prompts[:5], 1000, lanes=2)] == [5]


def test_prefix_tree_long_prefixes_attend_in_chunks():
    tree = build_tree([PackedPrompt([*range(2 * CHUNK_NODES + 3)], [[7, 8]])])
    assert [(span.start, span.stop, span.sees) for span in tree.spans] == [
        (0, 64, []),
        (64, 128, [(0, 64)]),
        (128, 131, [(0, 128)]),
        (131, 132, [(0, 131)]),
    ]


def test_tree_batches_prompts_that_begin_alike_are_neighbours():
    prompts = [PackedPrompt([i % 2, 5, i], [[7]]) for i in range(6)]
    assert [sorted(batch) for batch in tree_batches(prompts, 5)] == [[0, 2, 4], [1, 3, 5]]


def test_tree_batches_no_prompts_make_no_batch():
    assert list(tree_batches([], 100)) == []


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2], [1, 2, 3], 2), ([1, 2], [2, 2], 0), ([1, 2], [1, 3], 1)],
)
def test_common_length_by_hand(first, second, length):
    assert common_length(first, second) == common_length(second, first) == length


def test_join_ranges_ranges_that_touch_are_joined():
    assert join_ranges([(0, 2), (2, 5), (6, 7), (7, 8)]) == [(0, 5), (6, 8)]
    assert join_ranges([]) == []
