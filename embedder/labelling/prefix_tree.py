"""Prompts that begin alike, as one tree of tokens in which nothing stands twice.

Stems hold what prompts share: worked examples, a passage, a query. Where a prompt ends hangs its trie, the tree of its
outputs. A token sees its ancestors and itself only, so every path through the tree reads as the plain sequence would.
All tokens of a tree lie in one flat row, parents before children.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

CHUNK_NODES = 64
"""Tokens that attend together: enough for a matrix product, few enough that not most of it is masked."""
LEAST_BATCH = 256
"""Tokens below which a batch is not cut only to give every lane one."""


@dataclass(frozen=True)
class PackedPrompt:
    """A prefix and its outputs, all as token ids; none of them empty."""

    prefix: list[int]
    outputs: list[list[int]]


@dataclass(frozen=True)
class OutputTrie:
    """The outputs behind one prefix as a tree: equal beginnings are one branch.

    The last token of an output is predicted but never read, so it is no node unless another output goes on from it.
    """

    tokens: list[int]
    """Token of each node that is read, parents first."""
    depths: list[int]
    """Tokens between the prefix and the node."""
    ends: list[int]
    """One past the last node below each node: node i sees node j where j <= i < ends[j]."""
    edge_places: list[int]
    """For each predicted token the node that predicts it; -1 is the end of the prefix."""
    edge_tokens: list[int]
    paths: list[list[int]]
    """The edges of each output."""

    def chunks(self) -> list[tuple[int, int]]:
        """Ranges of nodes that do not see each other: whole branches, together about `CHUNK_NODES` long."""
        cuts, place = [0], 0
        while place < len(self.ends):
            if self.ends[place] - cuts[-1] > CHUNK_NODES and place > cuts[-1]:
                cuts.append(place)
            place = self.ends[place]
        return list(zip(cuts, [*cuts[1:], len(self.tokens)], strict=True)) if self.tokens else []

    def visible(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Who sees whom among the nodes of a chunk, (stop - start, stop - start)."""
        places = np.arange(start, stop)
        ends = np.array(self.ends[start:stop], dtype=np.int64)
        seen: NDArray[np.bool_] = (places[None, :] <= places[:, None]) & (places[:, None] < ends[None, :])
        return seen


def build_output_trie(outputs: Sequence[Sequence[int]]) -> OutputTrie:
    """The tree of some outputs, none of them empty."""
    children: list[dict[int, int]] = [{}]
    parents, tokens, ways = [-1], [-1], []
    for output in outputs:
        node, way = 0, []
        for token in output:
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
                parents.append(node)
                tokens.append(token)
            node = children[node][token]
            way.append(node)
        ways.append(way)
    order = [node for node in _preorder(children) if children[node]]
    places = {0: -1} | {node: place for place, node in enumerate(order)}
    depths, sizes = {0: -1}, dict.fromkeys(order, 1)
    for node in order:
        depths[node] = depths[parents[node]] + 1
    for node in reversed(order):
        if parents[node]:
            sizes[parents[node]] += sizes[node]
    return OutputTrie(
        tokens=[tokens[node] for node in order],
        depths=[depths[node] for node in order],
        ends=[places[node] + sizes[node] for node in order],
        edge_places=[places[parent] for parent in parents[1:]],
        edge_tokens=tokens[1:],
        paths=[[node - 1 for node in way] for way in ways],
    )


def _preorder(children: Sequence[dict[int, int]]) -> Iterator[int]:
    """Every node but the root, parents first, what is below a node right after it."""
    stack = list(reversed(children[0].values()))
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(children[node].values()))


@dataclass(frozen=True)
class Span:
    """Tokens of the flat row that attend together: a chunk of a stem or of a trie."""

    start: int
    stop: int
    sees: list[tuple[int, int]]
    """Ranges of ancestors, all of which are visible, in order."""
    trie: OutputTrie | None = None
    """None: a stem, whose tokens see those before them in it."""
    chunk: tuple[int, int] = (0, 0)
    """Which nodes of the trie these are."""


@dataclass(frozen=True)
class PrefixTree:
    """One flat row of tokens."""

    tokens: list[int]
    positions: list[int]
    spans: list[Span]
    ends: list[int]
    """For each prompt the place of its prefix's last token."""
    tries: list[OutputTrie]
    """For each prompt the tree of its outputs."""
    trie_starts: list[int]
    """For each prompt the place of its trie's first token."""


def build_tree(prompts: Sequence[PackedPrompt]) -> PrefixTree:
    """The tree of some prompts; prompts with the same outputs share the description of their trie."""
    known: dict[tuple[tuple[int, ...], ...], OutputTrie] = {}
    tries = []
    for prompt in prompts:
        key = tuple(map(tuple, prompt.outputs))
        tries.append(known[key] if key in known else known.setdefault(key, build_output_trie(prompt.outputs)))
    tree = PrefixTree([], [], [], [0] * len(prompts), tries, [0] * len(prompts))
    owners = sorted(range(len(prompts)), key=lambda i: prompts[i].prefix)
    _grow_prefixes([prompts[i].prefix for i in owners], owners, tree)
    return tree


def _grow_prefixes(prefixes: list[list[int]], owners: list[int], tree: PrefixTree) -> None:
    """Lay what sorted prefixes share, the tries that hang there, then in the same way the stems that go on from it."""
    waiting: list[tuple[range, int, list[tuple[int, int]]]] = [(range(len(prefixes)), 0, [])]
    while waiting:
        members, depth, above = waiting.pop()
        prefix = prefixes[members[0]]
        shared = common_length(prefix, prefixes[members[-1]])
        start = len(tree.tokens)
        if shared > depth:
            tree.tokens.extend(prefix[depth:shared])
            tree.positions.extend(range(depth, shared))
            stop = start + shared - depth
            for first in range(start, stop, CHUNK_NODES):
                sees = join_ranges([*above, (start, first)]) if first > start else above
                tree.spans.append(Span(first, min(first + CHUNK_NODES, stop), sees))
            above = join_ranges([*above, (start, stop)])
        going_on: dict[int, list[int]] = {}
        for i in members:
            if len(prefixes[i]) == shared:
                _attach_outputs(owners[i], shared, above, tree)
            else:
                going_on.setdefault(prefixes[i][shared], []).append(i)
        stems = [range(each[0], each[-1] + 1) for each in going_on.values()]
        waiting.extend((stem, shared, above) for stem in reversed(stems))


def _attach_outputs(owner: int, depth: int, above: list[tuple[int, int]], tree: PrefixTree) -> None:
    trie = tree.tries[owner]
    start = len(tree.tokens)
    tree.ends[owner] = above[-1][1] - 1
    tree.trie_starts[owner] = start
    tree.tokens.extend(trie.tokens)
    tree.positions.extend(depth + below for below in trie.depths)
    tree.spans.extend(Span(start + first, start + last, above, trie, (first, last)) for first, last in trie.chunks())


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of equal tokens at the beginning."""
    length = min(len(first), len(second))
    for i in range(length):
        if first[i] != second[i]:
            return i
    return length


def join_ranges(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same places with neighbouring ranges as one."""
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def tree_batches(prompts: Sequence[PackedPrompt], batch_tokens: int, lanes: int = 1) -> list[list[int]]:
    """Indices of the prompts, neighbours beginning alike, in batches of about one size and at most `batch_tokens`.

    A longer prompt is a batch of its own. The number of batches is a multiple of `lanes` unless that makes them small.
    Depends on the prompts alone, not on their order.
    """
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i].prefix, prompts[i].outputs))
    ranked = [prompts[i] for i in order]
    whole = [len(prompt.prefix) + sum(len(output) - 1 for output in prompt.outputs) for prompt in ranked]
    shared = [common_length(before.prefix, after.prefix) for before, after in pairwise(ranked)]
    fewest = len(_cut(whole, shared, batch_tokens))
    wanted = min(-(-fewest // lanes) * lanes, max(fewest, (sum(whole) - sum(shared)) // LEAST_BATCH))
    limits = range(1, batch_tokens + 1)
    limit = limits[bisect_left(limits, True, key=lambda each: len(_cut(whole, shared, each)) <= wanted)]
    starts = _cut(whole, shared, limit)
    return [order[start:stop] for start, stop in pairwise([*starts, len(order)])]


def _cut(whole: list[int], shared: list[int], limit: int) -> list[int]:
    """Where batches begin: `whole` are the tokens of each prompt, `shared` those that it has from the one before."""
    starts: list[int] = []
    tokens = 0
    for i, own in enumerate(whole):
        added = own - shared[i - 1] if i else own
        if starts and tokens + added <= limit:
            tokens += added
        else:
            starts.append(i)
            tokens = own
    return starts
