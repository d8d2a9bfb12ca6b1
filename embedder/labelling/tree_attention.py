"""Attention over the flat row of a prefix tree, for every model that takes its attention from transformers' registry.

With a `BlockMask` (tree_flex.py) it is flex attention; with a plan the spans of the tree attend one after another, the
chunked form; with neither it is the model's usual attention, as sampling needs it. What sampling cannot compute is
refused in all of them.

H heads, G heads of keys and values (H is a multiple of G), T tokens of the row, D width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from embedder.labelling.prefix_tree import CHUNK_NODES, PrefixTree, Span, join_ranges

ATTENTION = "prefix_tree"
"""What `set_attn_implementation` is called with."""

UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""Further terms of some models' attention: caps of the scores, sinks, biases."""


class FurtherTerms(NotImplementedError):
    """The attention of the LLM has terms that are not computed here, however its prompts are read."""


@dataclass(frozen=True)
class ChunkLayout:
    """How the chunked form suits a device."""

    nodes: int = CHUNK_NODES
    """Tokens that attend together."""
    align: int = 1
    """Elements of a mask's row are a multiple of this in memory."""
    shared: int = 1
    """Heads whose queries become one longer row under a mask, because they share keys; 1: each has a row of its own."""


def chunk_layout(device: str, config: PreTrainedConfig) -> ChunkLayout:
    """The layout for an LLM on a kind of device."""
    if device != "cuda":
        return ChunkLayout()
    heads = getattr(config, "num_attention_heads", None) or 1
    shared = heads // (getattr(config, "num_key_value_heads", None) or heads)
    # Larger chunks are fewer kernels to launch. Rows of masks that are no multiple of 8 are copied by the kernel at
    # each call. No fused kernel takes a mask together with keys that heads share.
    return ChunkLayout(1024, 8, shared)


@dataclass(frozen=True)
class TreeSpan:
    """Queries [start, stop) and the ranges of keys they see; `mask` (queries, keys) is added to the scores.

    Without a mask the queries see each other causally and there are no ancestors. With `ChunkLayout.shared` above 1 the
    rows of the mask are repeated so often.
    """

    start: int
    stop: int
    keys: list[tuple[int, int]]
    mask: Tensor | None


def plan_attention(
    tree: PrefixTree, dtype: torch.dtype, device: torch.device, layout: ChunkLayout = ChunkLayout()
) -> list[TreeSpan]:
    """The spans of a tree with their masks; equal tries behind prefixes of one length share a mask."""
    # Tries are told apart by `id`, which is safe because `tree` holds them all along.
    masks: dict[tuple[int, tuple[int, int], int, int], Tensor] = {}
    plan = []
    for span in tree.spans:
        above = sum(stop - start for start, stop in span.sees)
        keys = join_ranges([*span.sees, (span.start, span.stop)])
        # A span of a prefix that nothing is above needs no mask: the kernel's own causal one is faster.
        mask = None
        if span.trie is not None or above:
            key = (id(span.trie), span.chunk, above, span.stop - span.start)
            if key not in masks:
                masks[key] = _mask(span, above, dtype, device, layout)
            mask = masks[key]
        plan.append(TreeSpan(span.start, span.stop, keys, mask))
    return plan


def _mask(span: Span, above: int, dtype: torch.dtype, device: torch.device, layout: ChunkLayout) -> Tensor:
    """0 where a query sees a key and minus infinity elsewhere, (queries, `above` + queries)."""
    own = span.stop - span.start
    causal = torch.ones((own, own), dtype=torch.bool).tril()
    seen = causal if span.trie is None else torch.from_numpy(span.trie.visible(*span.chunk))
    width = above + own
    mask = torch.zeros((own, width + -width % layout.align), dtype=dtype)
    mask[:, above:width].masked_fill_(~seen, float("-inf"))
    # Cut on the device, because a copy of a part would be packed densely again.
    return mask.repeat(layout.shared, 1).to(device)[:, :width]


def tree_attention(  # noqa: PLR0913  (the signature is that of transformers' registry)
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree_plan: list[TreeSpan] | None = None,
    **further: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor | None]:
    """Outputs (1, T, H, D) of queries (1, H, T, D) over keys and values (1, G, T, D).

    Raises:
        FurtherTerms: the model asks for some.
    """
    # Before all else, because transformers' own attention passes over sinks in silence.
    if terms := [name for name in UNSUPPORTED if further.get(name) is not None]:
        raise FurtherTerms(f"{type(module).__name__} has a term that trees of prompts lack ({', '.join(terms)})")
    if isinstance(attention_mask, BlockMask):
        out, sums = flex_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **further
        )
        return out, sums
    # Steps of sampling: a few queries over a long cache, which the attention of transformers would copy for every head.
    if tree_plan is None and attention_mask is not None and key.shape[1] < query.shape[1] and not dropout:
        repeated = attention_mask.repeat(1, 1, query.shape[1] // key.shape[1], 1)
        return _grouped_attention(query, key, value, repeated, scaling), None
    if tree_plan is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **further
        )
        return out, None
    # One product for all spans would need a mask of T x T, of which nearly all is hidden.
    parts = [_span_attention(span, query, key, value, scaling) for span in tree_plan]
    return torch.cat(parts, dim=1), None


def _span_attention(span: TreeSpan, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Outputs (1, Q, H, D) of the queries of a span."""
    own = query[:, :, span.start : span.stop]
    keys, values = (_gather(tensor, span.keys) for tensor in (key, value))
    mask = span.mask
    if mask is not None and len(mask) > own.shape[2]:
        return _grouped_attention(own, keys, values, mask, scaling)
    return F.scaled_dot_product_attention(
        own,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    ).transpose(1, 2)


def _grouped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Attention with the queries of all heads that share keys as one longer row: the cache is not copied for each head.

    Queries (B, H, Q, D), keys and values (B, G, K, D) and a mask (B, 1, H / G x Q, K), which repeats that of the
    queries H / G times, give (B, Q, H, D).
    """
    rows, heads, length, width = query.shape
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1] * length, width)
    out = F.scaled_dot_product_attention(grouped, key, value, mask, scale=scaling)
    # No `view`: on CUDA the memory-efficient kernel returns its heads side by side.
    return out.reshape(rows, heads, length, width).transpose(1, 2)


def _gather(tensor: Tensor, ranges: list[tuple[int, int]]) -> Tensor:
    # A single range stays a view; several have to be copied, because the kernel needs one tensor.
    slices = [tensor[:, :, start:stop] for start, stop in ranges]
    return slices[0] if len(slices) == 1 else torch.cat(slices, dim=2)


# At import, because `set_attn_implementation` looks the name up.
AttentionInterface.register(ATTENTION, tree_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
