"""The fast backend: outputs are scored on trees of prompts in which a shared prefix is computed once.

T tokens of a flat row, D hidden width, V vocabulary, P tokens that predict one, E predicted tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from threading import Lock
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedder.config.run import CHUNKED, FLEX, TreeScorer
from embedder.labelling import tree_flex
from embedder.labelling.compute_cost import ModelWork, model_size
from embedder.labelling.graph_sampling import graph_sampler
from embedder.labelling.prefix_tree import (
    PackedPrompt,
    PrefixTree,
    build_tree,
    check_prompts,
    predictions,
    tree_batches,
    tree_tokens,
)
from embedder.labelling.sampling import Sampling, sample_outputs
from embedder.labelling.tree_attention import ChunkLayout, chunk_layout, plan_attention
from embedder.models.causal_lm import CausalLm
from embedder.models.compiled import compile_layers
from embedder.models.memory import BatchLimit, halving_on_memory_error, is_memory_error
from embedder.models.onednn import PackedLinear, pack_weight, packed_linear
from embedder.models.transfer import upload_numbers

Item = TypeVar("Item")
Result = TypeVar("Result")

LANE_TOKENS = 512
"""Least tokens of a lane's batch: with fewer, the products of weights and tokens are slow."""
VOCABULARY_SLICE = 4096
"""Vocabulary entries whose logits are held at once: small enough for the caches, whatever the vocabulary."""


class TreeBackend:
    """Scores and samples with one LLM whose attention is `tree_attention`, `batch_tokens` tokens at a time.

    On a CPU several trees are read at once, each by a thread of its own: threads that share every operation of one
    tree would wait for each other some thousand times a second.
    """

    def __init__(
        self, lm: CausalLm, batch_tokens: int, scorer: TreeScorer = CHUNKED, layout: ChunkLayout | None = None
    ) -> None:
        """`layout` is that of the chunked form; by default the one for the LLM's device."""
        self.lm = lm
        self.batch_tokens = batch_tokens
        self.scorer = scorer
        self.layout = layout or chunk_layout(lm.device.type, lm.model.config.get_text_config())
        self.head = OutputHead(lm.model.get_output_embeddings())
        self.work = ModelWork(model_size(lm.model))
        self.limit = BatchLimit("scoring")
        # The processes of a divided LLM wait for each other in one order, which threads would mix up. Each of them can
        # tell by its model that it is one.
        threads = torch.get_num_threads() if lm.device.type == "cpu" and lm.model.tp_size is None else 1
        self.lanes = max(1, min(threads, batch_tokens // LANE_TOKENS))
        self._counting = Lock()
        # Before the layers are compiled, which it runs as they are written.
        self.sampler = graph_sampler(lm)
        """None on a CPU."""
        if scorer == FLEX:
            compile_layers(lm.model.base_model)

    @property
    def how(self) -> str:
        """How outputs are scored, on which the last digits depend."""
        most = self.limit.most
        # A limit that has grown again to what a batch may have cuts none.
        cuts = most is not None and most < self.batch_tokens // self.lanes
        return f"{self.scorer}, at most {most:,} tokens at once" if cuts else self.scorer

    @property
    def limits(self) -> list[BatchLimit]:
        """The limits of scoring and, on a GPU, of sampling."""
        return [self.limit] if self.sampler is None else [self.limit, self.sampler.limit]

    def score(self, prompts: Sequence[PackedPrompt]) -> list[list[float]]:
        """For each prompt the mean log-likelihood (nats) of the scored tokens of each of its outputs.

        Depends on the set of prompts alone, not on their order. A tree that runs out of memory is halved until it
        holds one prompt, and later trees are no larger than what fitted.

        Raises:
            ValueError: a prefix or output has no token.
        """
        check_prompts(prompts)
        # Equal prompts are scored once: apart, in batches of their own, they could differ in the last bit.
        keys = [(tuple(prompt.prefix), tuple(map(tuple, prompt.outputs)), tuple(prompt.unscored)) for prompt in prompts]
        distinct = dict(zip(keys, prompts, strict=True))
        distinct_keys, distinct_prompts = list(distinct), list(distinct.values())
        # The lanes are at work at the same time, so they share the tokens that memory allows.
        most = self.batch_tokens // self.lanes
        if self.limit.most is not None:
            most = min(most, self.limit.most)
        batches = tree_batches(distinct_prompts, most, self.lanes)
        score_batch = partial(halving_on_memory_error, self._score_tree, limit=self.limit, size=tree_tokens)
        scored = in_lanes(score_batch, [[distinct_prompts[i] for i in batch] for batch in batches], self.lanes)
        scores = {
            distinct_keys[i]: row
            for batch, rows in zip(batches, scored, strict=True)
            for i, row in zip(batch, rows, strict=True)
        }
        return [list(scores[key]) for key in keys]

    def sample(self, prefixes: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[list[list[int]]]:
        """Token ids of `num_samples` outputs a prefix, drawn with the seed of the prefix, many prefixes at once."""
        # The layers are compiled for trees; for the cache of sampling they would be once more.
        plain = torch.compiler.set_stance("force_eager") if self.scorer == FLEX else nullcontext()
        with plain:
            drawn = sample_outputs(self.lm, prefixes, seeds, sampling, self.batch_tokens, self.sampler)
        if self.sampler is not None:
            self.sampler.make_room()
        return drawn

    def _score_tree(self, prompts: list[PackedPrompt]) -> list[list[float]]:
        try:
            return self._tree_scores(prompts)
        except (RuntimeError, MemoryError) as error:
            # Or else batches would be halved for ever, for the sake of memory that sampling keeps and does not use.
            if self.sampler is not None and is_memory_error(error):
                self.sampler.release()
            raise

    @torch.inference_mode()
    def _tree_scores(self, prompts: list[PackedPrompt]) -> list[list[float]]:
        tree = build_tree(prompts, self.layout.nodes)
        state_TD = self._read(tree)
        asked = predictions(tree)
        device = state_TD.device
        state_PD = state_TD[upload_numbers(asked.tokens, device)]
        edge_E, target_E = upload_numbers(asked.edges, device), upload_numbers(asked.edge_tokens, device)
        likelihood_E = self.head.logits(state_PD[edge_E], target_E) - self.head.log_normalisers(state_PD)[edge_E]
        with self._counting:  # `+=` of two lanes could lose one of the sums
            # A token at position p sees p tokens before it and itself.
            self.work.add(len(tree.tokens), len(asked.tokens), sum(tree.positions) + len(tree.tokens))
        values = likelihood_E.cpu().numpy()
        return [
            [float(values[path[first:]].mean()) for path, first in zip(paths, prompt.first_scored, strict=True)]
            for paths, prompt in zip(asked.paths, prompts, strict=True)
        ]

    def _read(self, tree: PrefixTree) -> Tensor:
        """The last hidden state of each token of a tree, (T, D)."""
        model, device = self.lm.model, self.lm.device
        if self.scorer == FLEX:
            return tree_flex.read_tree(model, tree, device)
        states: Tensor = model.base_model(
            input_ids=upload_numbers([tree.tokens], device),
            position_ids=upload_numbers([tree.positions], device),
            # A mask of four dimensions is passed on as it is; otherwise the model builds a causal one of T x T.
            attention_mask=torch.zeros((1, 1, 1, 1), device=device),
            tree_plan=plan_attention(tree, model.dtype, device, self.layout),
            use_cache=False,
        ).last_hidden_state
        return states[0]


class OutputHead:
    """log p(token) from slices of the vocabulary, because logits of all tokens would take P x V x 4 bytes at once."""

    def __init__(self, head: nn.Module) -> None:
        weight, bias = head.weight, head.bias
        if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
            raise TypeError(f"{type(head).__name__} is no linear output layer")
        self.weight, self.bias = weight, bias
        packs = isinstance(head, PackedLinear)
        # Packed weights cannot be sliced, so each slice of the plain weight is packed by itself.
        self._slices = [pack_weight(part) if packs else part for part in weight.split(VOCABULARY_SLICE)]
        self._biases = [None] * len(self._slices) if bias is None else list(bias.split(VOCABULARY_SLICE))
        # On a CPU this product is not to be had.
        wide = weight.device.type == "cuda" and weight.dtype in {torch.bfloat16, torch.float16}
        self._linear = packed_linear if packs else wide_linear if wide else F.linear

    def log_normalisers(self, state_PD: Tensor) -> Tensor:
        """log of the sum of exponentials over the vocabulary, (P,) in float64."""
        parts = [
            self._linear(state_PD, part, bias).float().logsumexp(-1)
            for part, bias in zip(self._slices, self._biases, strict=True)
        ]
        # The sum over slices is taken in float64, because float32 would round it once more.
        return torch.stack(parts).double().logsumexp(0)

    def logits(self, state_ED: Tensor, token_E: Tensor) -> Tensor:
        """The logit of one token a row, (E,) in float64."""
        # The slices' logits are not kept, so those of the targets are computed again: E products of two vectors.
        products_E = (state_ED.float() * self.weight[token_E].float()).sum(-1).double()
        return products_E if self.bias is None else products_E + self.bias[token_E].double()


def wide_linear(state: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer whose results are not rounded to the narrow format of its inputs, but float32."""
    product = torch.mm(state, weight.t(), out_dtype=torch.float32)
    return product if bias is None else product + bias


def in_lanes(function: Callable[[Item], Result], items: Sequence[Item], lanes: int) -> list[Result]:
    """`function` of each item, `lanes` of them at a time, between which PyTorch's threads are divided."""
    if min(lanes, len(items)) <= 1:
        return [function(item) for item in items]
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(max(1, threads // lanes),)) as pool:
            return list(pool.map(function, items))
    finally:
        # The number set last, here by a lane, also holds for threads that are yet to come.
        torch.set_num_threads(threads)
