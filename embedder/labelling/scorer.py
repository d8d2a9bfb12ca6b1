"""Mean token log-likelihoods of many outputs behind shared prefixes, each shared token computed once.

T tokens of a flat row, D hidden width, V vocabulary, P places that predict a token, E predicted tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedder.labelling.compute_cost import ModelWork
from embedder.labelling.prefix_tree import PackedPrompt, PrefixTree, build_tree, tree_batches
from embedder.labelling.tree_attention import plan_attention
from embedder.models.causal_lm import CausalLm, halving_on_memory_error
from embedder.models.onednn import PackedLinear, pack_weight, packed_linear

Item = TypeVar("Item")
Result = TypeVar("Result")

LANE_TOKENS = 512
"""Least tokens of a lane's batch: with fewer, the products of weights and tokens are slow."""
VOCABULARY_SLICE = 4096
"""Vocabulary entries whose logits are held at once: small enough for the caches, whatever the vocabulary."""


class OutputHead:
    """log p(token) at chosen places, from slices of the vocabulary: the logits of a place never stand all at once."""

    def __init__(self, head: nn.Module) -> None:
        weight, bias = head.weight, head.bias
        if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
            raise TypeError(f"{type(head).__name__} is no linear output layer")
        self.weight, self.bias = weight, bias
        packs = isinstance(head, PackedLinear)
        self._slices = [pack_weight(part) if packs else part for part in weight.split(VOCABULARY_SLICE)]
        self._biases = [None] * len(self._slices) if bias is None else list(bias.split(VOCABULARY_SLICE))
        self._linear = packed_linear if packs else F.linear

    def log_normalisers(self, state_PD: Tensor) -> Tensor:
        """log of the sum of exponentials over the vocabulary, (P,) in float64."""
        parts = [
            self._linear(state_PD, part, bias).float().logsumexp(-1)
            for part, bias in zip(self._slices, self._biases, strict=True)
        ]
        return torch.stack(parts).double().logsumexp(0)

    def logits(self, state_ED: Tensor, token_E: Tensor) -> Tensor:
        """The logit of one token a row, (E,) in float64."""
        products_E = (state_ED.float() * self.weight[token_E].float()).sum(-1).double()
        return products_E if self.bias is None else products_E + self.bias[token_E].double()


class TreeScorer:
    """Scores prompts with one LLM, `batch_tokens` tokens at a time; `work` counts what that took.

    On a CPU these are several trees, each read by a thread of its own: threads that share every operation of one tree
    would wait for each other some thousand times a second.
    """

    def __init__(self, lm: CausalLm, batch_tokens: int) -> None:
        self.lm = lm
        self.batch_tokens = batch_tokens
        self.head = OutputHead(lm.model.get_output_embeddings())
        self.work = ModelWork()
        threads = torch.get_num_threads() if lm.device.type == "cpu" else 1
        self.lanes = max(1, min(threads, batch_tokens // LANE_TOKENS))
        self._counting = Lock()

    def score(self, prompts: Sequence[PackedPrompt]) -> list[list[float]]:
        """For each prompt the mean token log-likelihood (nats) of each of its outputs.

        Depends on the set of prompts alone, not on their order. A tree that runs out of memory is halved until it
        holds one prompt.

        Raises:
            ValueError: a prefix or output has no token.
        """
        check_prompts(prompts)
        # Equal prompts once: apart, in batches of their own, they could differ in the last bit.
        keys = [(tuple(prompt.prefix), tuple(map(tuple, prompt.outputs))) for prompt in prompts]
        distinct = dict(zip(keys, prompts, strict=True))
        names, different = list(distinct), list(distinct.values())
        batches = tree_batches(different, self.batch_tokens // self.lanes, self.lanes)
        score_batch = partial(halving_on_memory_error, self._forward)
        scored = in_lanes(score_batch, [[different[i] for i in indices] for indices in batches], self.lanes)
        scores = {
            names[i]: row
            for indices, rows in zip(batches, scored, strict=True)
            for i, row in zip(indices, rows, strict=True)
        }
        return [list(scores[key]) for key in keys]

    @torch.inference_mode()
    def _forward(self, batch: list[PackedPrompt]) -> list[list[float]]:
        tree, device = build_tree(batch), self.lm.device
        state_TD = self.lm.model.base_model(
            input_ids=torch.tensor([tree.tokens], device=device),
            position_ids=torch.tensor([tree.positions], device=device),
            attention_mask=torch.zeros((1, 1, 1, 1), device=device),  # four dimensions: the model builds none itself
            tree_plan=plan_attention(tree, self.lm.model.dtype, device),
            use_cache=False,
        ).last_hidden_state[0]
        place_P, edge_E, token_E, paths = predictions(tree)
        state_PD = state_TD[torch.tensor(place_P, device=state_TD.device)].to(self.head.weight.device)
        edges, tokens = (torch.tensor(ids, device=state_PD.device) for ids in (edge_E, token_E))
        likelihood_E = self.head.logits(state_PD[edges], tokens) - self.head.log_normalisers(state_PD)[edges]
        with self._counting:
            self.work.add(len(tree.tokens), len(place_P), sum(tree.positions) + len(tree.tokens))
        values = likelihood_E.cpu().numpy()
        return [[float(values[path].mean()) for path in outputs] for outputs in paths]


def in_lanes(function: Callable[[Item], Result], items: Sequence[Item], lanes: int) -> list[Result]:
    """`function` of each item, `lanes` of them at a time, between which PyTorch's threads are divided."""
    if min(lanes, len(items)) <= 1:
        return [function(item) for item in items]
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(max(1, threads // lanes),)) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)  # the number set last also holds for threads that are yet to come


def predictions(tree: PrefixTree) -> tuple[list[int], list[int], list[int], list[list[list[int]]]]:
    """Places that predict, then for each predicted token which of them and which token, then the edges of each output.

    A place that several outputs go on from is listed once.
    """
    places: list[int] = []
    edge_places: list[int] = []
    edge_tokens: list[int] = []
    paths: list[list[list[int]]] = []
    for end, trie, start in zip(tree.ends, tree.tries, tree.trie_starts, strict=True):
        first_place, first_edge = len(places), len(edge_tokens)
        places += [end, *range(start, start + len(trie.tokens))]
        edge_places += [first_place + 1 + place for place in trie.edge_places]
        edge_tokens += trie.edge_tokens
        paths.append([[first_edge + edge for edge in path] for path in trie.paths])
    return places, edge_places, edge_tokens, paths


def check_prompts(prompts: Sequence[PackedPrompt]) -> None:
    """Refuse a prompt that cannot be scored.

    Raises:
        ValueError: a prefix or output has no token.
    """
    for prompt in prompts:
        if not prompt.prefix or not prompt.outputs or not all(prompt.outputs):
            raise ValueError("a prompt has an empty prefix or an empty output")
