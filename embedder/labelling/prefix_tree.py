"""Prompts that begin alike, as one tree of tokens in which no shared prefix stands twice.

The prefixes of all prompts form a trie: worked examples, a passage or a query that several prompts begin with are one
branch. Where a prompt's prefix ends hangs its `OutputTrie`, the trie of its outputs. A token sees its ancestors and
itself only, so the path to it reads as the plain sequence would. All tokens of a tree lie in one flat row, parents
before children. An index counts along this row; a position counts along a path, as the model's position encoding does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

CHUNK_NODES = 64
"""Tokens that attend together on a CPU: enough for a matrix product, few enough that not most of it is masked."""
LEAST_BATCH = 256
"""Tokens below which a batch is not cut only to give every lane one."""


@dataclass(frozen=True)
class PackedPrompt:
    """A prefix and its outputs, all as token ids; none of them empty."""

    prefix: list[int]
    outputs: list[list[int]]
    unscored: list[int] = field(default_factory=list)
    """How many of each output's first tokens are read and not scored, being the prefix's own; empty: none of any."""

    @property
    def first_scored(self) -> list[int]:
        return self.unscored or [0] * len(self.outputs)

    @property
    def scored_tokens(self) -> list[int]:
        return [len(output) - first for output, first in zip(self.outputs, self.first_scored, strict=True)]


def check_prompts(prompts: Sequence[PackedPrompt]) -> None:
    """Refuse a prompt that cannot be scored.

    Raises:
        ValueError: a prefix or output has no token.
    """
    for prompt in prompts:
        if not prompt.prefix or not prompt.outputs or min(prompt.scored_tokens) < 1:
            raise ValueError("a prompt has an empty prefix or an empty output")


@dataclass(frozen=True)
class OutputTrie:
    """The outputs behind one prefix as a tree: equal beginnings are one branch.

    The last token of an output is predicted but never read, so it is no node unless another output goes on from it.
    An edge is a predicted token.
    """

    tokens: list[int]
    """Token of each node, parents first."""
    depths: list[int]
    """Tokens between the prefix and the node."""
    subtree_ends: list[int]
    """One past the last node below each node: node i sees node j where j <= i < subtree_ends[j]."""
    edge_parents: list[int]
    """For each edge the node that predicts it; -1 is the end of the prefix."""
    edge_tokens: list[int]
    paths: list[list[int]]
    """The edges of each output."""

    def chunks(self, size: int = CHUNK_NODES) -> list[tuple[int, int]]:
        """Ranges of nodes that do not see each other: whole branches, together about `size` long."""
        # A branch from the root is never cut, because all of its nodes see its first one.
        cuts, node = [0], 0
        while node < len(self.subtree_ends):
            if self.subtree_ends[node] - cuts[-1] > size and node > cuts[-1]:
                cuts.append(node)
            node = self.subtree_ends[node]
        return list(zip(cuts, [*cuts[1:], len(self.tokens)], strict=True)) if self.tokens else []

    def visible(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Who sees whom among the nodes of a chunk, (stop - start, stop - start)."""
        # A subtree is a range, because its nodes follow each other; so one comparison finds all ancestors.
        nodes = np.arange(start, stop)
        ends = np.array(self.subtree_ends[start:stop], dtype=np.int64)
        seen: NDArray[np.bool_] = (nodes[None, :] <= nodes[:, None]) & (nodes[:, None] < ends[None, :])
        return seen


def build_output_trie(outputs: Sequence[Sequence[int]]) -> OutputTrie:
    """The trie of some outputs, none of them empty."""
    children: list[dict[int, int]] = [{}]
    parents, tokens, paths = [-1], [-1], []
    for output in outputs:
        entry, path = 0, []
        for token in output:
            if token not in children[entry]:
                children[entry][token] = len(children)
                children.append({})
                parents.append(entry)
                tokens.append(token)
            entry = children[entry][token]
            path.append(entry)
        paths.append(path)
    # Entries so far are numbered as they were met, and leaves among them; nodes are the entries that are read.
    order = [entry for entry in _preorder(children) if children[entry]]
    nodes = {0: -1} | {entry: node for node, entry in enumerate(order)}
    depths, sizes = {0: -1}, dict.fromkeys(order, 1)
    for entry in order:  # parents first, so that the parent's depth is known
        depths[entry] = depths[parents[entry]] + 1
    for entry in reversed(order):  # children first, so that the child's size is complete
        if parents[entry]:
            sizes[parents[entry]] += sizes[entry]
    return OutputTrie(
        tokens=[tokens[entry] for entry in order],
        depths=[depths[entry] for entry in order],
        subtree_ends=[nodes[entry] + sizes[entry] for entry in order],
        edge_parents=[nodes[parent] for parent in parents[1:]],
        edge_tokens=tokens[1:],
        paths=[[entry - 1 for entry in path] for path in paths],  # entry n is reached by edge n - 1
    )


def _preorder(children: Sequence[dict[int, int]]) -> Iterator[int]:
    """Every entry but the root, parents first, what is below an entry right after it."""
    # A stack and no recursion, because an output may be longer than Python's recursion limit.
    stack = list(reversed(children[0].values()))
    while stack:
        entry = stack.pop()
        yield entry
        stack.extend(reversed(children[entry].values()))


@dataclass(frozen=True)
class Span:
    """Tokens of the flat row that attend together: a chunk of a shared prefix or of an output trie."""

    start: int
    stop: int
    sees: list[tuple[int, int]]
    """Ranges of ancestors, all of which are visible, in order."""
    trie: OutputTrie | None = None
    """None: a piece of a prefix, whose tokens see those before them in it."""
    chunk: tuple[int, int] = (0, 0)
    """The nodes of the trie that these are."""


@dataclass(frozen=True)
class PrefixTree:
    """One flat row of tokens."""

    tokens: list[int]
    positions: list[int]
    spans: list[Span]
    prefix_ends: list[int]
    """For each prompt the index of its prefix's last token."""
    tries: list[OutputTrie]
    """For each prompt the trie of its outputs."""
    trie_starts: list[int]
    """For each prompt the index of its trie's first token."""
    chunk_nodes: int = CHUNK_NODES
    """Tokens of a span: so many of a prefix, about so many of a trie."""


def build_tree(prompts: Sequence[PackedPrompt], chunk_nodes: int = CHUNK_NODES) -> PrefixTree:
    """The tree of some prompts; prompts with the same outputs share the description of their trie."""
    # Sharing it is what lets the attention share the masks: a query's candidates are scored with the same outputs.
    known: dict[tuple[tuple[int, ...], ...], OutputTrie] = {}
    tries = []
    for prompt in prompts:
        key = tuple(map(tuple, prompt.outputs))
        tries.append(known[key] if key in known else known.setdefault(key, build_output_trie(prompt.outputs)))
    tree = PrefixTree([], [], [], [0] * len(prompts), tries, [0] * len(prompts), chunk_nodes)
    owners = sorted(range(len(prompts)), key=lambda i: prompts[i].prefix)
    _grow_prefixes([prompts[i].prefix for i in owners], owners, tree)
    return tree


def _grow_prefixes(prefixes: list[list[int]], owners: list[int], tree: PrefixTree) -> None:
    """Lay out a branch: what sorted prefixes share, the outputs behind those that end, then the branches that go on.

    `owners` are the prompts that the prefixes belong to.
    """
    # A stack and no recursion, because thousands of prefixes may each go on from the one before.
    waiting: list[tuple[range, int, list[tuple[int, int]]]] = [(range(len(prefixes)), 0, [])]
    while waiting:
        members, depth, above = waiting.pop()
        prefix = prefixes[members[0]]
        # Of sorted sequences the first and the last share what all share.
        shared = common_length(prefix, prefixes[members[-1]])
        start = len(tree.tokens)
        if shared > depth:
            tree.tokens.extend(prefix[depth:shared])
            tree.positions.extend(range(depth, shared))
            stop = start + shared - depth
            for first in range(start, stop, tree.chunk_nodes):
                sees = join_ranges([*above, (start, first)]) if first > start else above
                tree.spans.append(Span(first, min(first + tree.chunk_nodes, stop), sees))
            above = join_ranges([*above, (start, stop)])
        going_on: dict[int, list[int]] = {}
        for i in members:
            if len(prefixes[i]) == shared:
                _attach_outputs(owners[i], shared, above, tree)
            else:
                going_on.setdefault(prefixes[i][shared], []).append(i)
        # Sorted prefixes with the same next token follow each other, so each branch is a range of them.
        branches = [range(each[0], each[-1] + 1) for each in going_on.values()]
        waiting.extend((branch, shared, above) for branch in reversed(branches))


def _attach_outputs(owner: int, depth: int, above: list[tuple[int, int]], tree: PrefixTree) -> None:
    trie = tree.tries[owner]
    start = len(tree.tokens)
    tree.prefix_ends[owner] = above[-1][1] - 1
    tree.trie_starts[owner] = start
    tree.tokens.extend(trie.tokens)
    # Outputs side by side all begin at the position after the prefix, as if each stood there alone.
    tree.positions.extend(depth + below for below in trie.depths)
    chunks = trie.chunks(tree.chunk_nodes)
    tree.spans.extend(Span(start + first, start + last, above, trie, (first, last)) for first, last in chunks)


@dataclass(frozen=True)
class Predictions:
    """The tokens of a tree that are predicted, and by which."""

    tokens: list[int]
    """Indices of the tokens that predict one; a token from which several outputs go on is listed once."""
    edges: list[int]
    """For each predicted token which of `tokens` predicts it."""
    edge_tokens: list[int]
    """Each predicted token."""
    paths: list[list[list[int]]]
    """For each prompt and output its predicted tokens, in order."""


def predictions(tree: PrefixTree) -> Predictions:
    """What the output layer is asked: every edge of every output trie."""
    asked = Predictions([], [], [], [])
    for prefix_end, trie, start in zip(tree.prefix_ends, tree.tries, tree.trie_starts, strict=True):
        first_token, first_edge = len(asked.tokens), len(asked.edge_tokens)
        asked.tokens.extend([prefix_end, *range(start, start + len(trie.tokens))])
        # The end of the prefix, which a trie calls -1, comes first.
        asked.edges.extend(first_token + 1 + parent for parent in trie.edge_parents)
        asked.edge_tokens.extend(trie.edge_tokens)
        asked.paths.append([[first_edge + edge for edge in path] for path in trie.paths])
    return asked


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of equal tokens at the beginning."""
    length = min(len(first), len(second))
    for i in range(length):
        if first[i] != second[i]:
            return i
    return length


def join_ranges(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same indices with neighbouring ranges as one."""
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
    whole, shared = _whole_and_shared([prompts[i] for i in order])
    fewest = len(_batch_starts(whole, shared, batch_tokens))
    wanted = min(-(-fewest // lanes) * lanes, max(fewest, (sum(whole) - sum(shared)) // LEAST_BATCH))
    # The least limit that gives so many batches makes them of one size: the largest is as small as it can be.
    limits = range(1, batch_tokens + 1)
    limit = limits[bisect_left(limits, True, key=lambda each: len(_batch_starts(whole, shared, each)) <= wanted)]
    starts = _batch_starts(whole, shared, limit)
    return [order[start:stop] for start, stop in pairwise([*starts, len(order)])]


def tree_tokens(prompts: Sequence[PackedPrompt]) -> int:
    """Tokens that `tree_batches` counts for the tree of some prompts; outputs that begin alike make it smaller."""
    whole, shared = _whole_and_shared(sorted(prompts, key=lambda prompt: (prompt.prefix, prompt.outputs)))
    return sum(whole) - sum(shared)


def _whole_and_shared(ranked: Sequence[PackedPrompt]) -> tuple[list[int], list[int]]:
    """The tokens of each of sorted prompts, and those of each but the first that are also in the one before."""
    whole = [len(prompt.prefix) + sum(len(output) - 1 for output in prompt.outputs) for prompt in ranked]
    return whole, [common_length(before.prefix, after.prefix) for before, after in pairwise(ranked)]


def _batch_starts(whole: list[int], shared: list[int], limit: int) -> list[int]:
    """The first prompt of each batch; `whole` are the tokens of each prompt, `shared` those also in the one before."""
    starts: list[int] = []
    tokens = 0
    for i, own in enumerate(whole):
        added = own - shared[i - 1] if i else own
        if starts and tokens + added <= limit:
            tokens += added
        else:
            starts.append(i)
            tokens = own  # what the batch before shares with it has to be read again
    return starts
