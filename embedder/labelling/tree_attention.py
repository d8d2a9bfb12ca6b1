"""Attention over the flat row of a prefix tree, for every model that takes its attention from transformers' registry.

H heads, G heads of keys and values (H is a multiple of G), T tokens of the row, D width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from embedder.labelling.prefix_tree import PrefixTree, Span, join_ranges

ATTENTION = "prefix_tree"
"""What `set_attn_implementation` is called with."""

UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""Further terms of some models' attention, which this one does not compute."""


@dataclass(frozen=True)
class TreeSpan:
    """Queries [start, stop) and the ranges of keys they see; `mask` (queries, keys) is added to the scores.

    Without a mask the queries see each other causally and there are no ancestors.
    """

    start: int
    stop: int
    keys: list[tuple[int, int]]
    mask: Tensor | None


def plan_attention(tree: PrefixTree, dtype: torch.dtype, device: torch.device) -> list[TreeSpan]:
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
                masks[key] = _mask(span, above, dtype).to(device)
            mask = masks[key]
        plan.append(TreeSpan(span.start, span.stop, keys, mask))
    return plan


def _mask(span: Span, above: int, dtype: torch.dtype) -> Tensor:
    """0 where a query sees a key and minus infinity elsewhere, (queries, `above` + queries)."""
    own = span.stop - span.start
    causal = torch.ones((own, own), dtype=torch.bool).tril()
    seen = causal if span.trie is None else torch.from_numpy(span.trie.visible(*span.chunk))
    mask = torch.zeros((own, above + own), dtype=dtype)
    mask[:, above:].masked_fill_(~seen, float("-inf"))
    return mask


def tree_attention(  # noqa: PLR0913  (the signature is that of transformers' registry)
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree_plan: list[TreeSpan] | None = None,
    **further: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    """Outputs (1, T, H, D) of queries (1, H, T, D) over keys and values (1, G, T, D).

    Without a plan this is transformers' own attention, as sampling needs it.
    """
    plain = all(further.get(name) is None for name in UNSUPPORTED)
    # Steps of sampling: a few queries over a long cache, which the attention of transformers would copy for every head.
    if tree_plan is None and plain and attention_mask is not None and key.shape[1] < query.shape[1] and not dropout:
        return _grouped_attention(query, key, value, attention_mask, scaling), None
    if tree_plan is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **further
        )
        return out, None
    if not plain:
        raise NotImplementedError(f"{type(module).__name__} has attention with one of {', '.join(UNSUPPORTED)}")
    # One product for all spans would need a mask of T x T, of which nearly all is hidden.
    parts = []
    for span in tree_plan:
        keys, values = (_gather(tensor, span.keys) for tensor in (key, value))
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, span.start : span.stop],
                keys,
                values,
                # With `device_map: auto` a layer may lie on another device than the plan.
                attn_mask=None if span.mask is None else span.mask.to(query.device),
                is_causal=span.mask is None,
                scale=scaling,
                enable_gqa=key.shape[1] != query.shape[1],
            ).transpose(1, 2)
        )
    return torch.cat(parts, dim=1), None


def _grouped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Attention with the queries of all heads that share keys as one longer row: the cache is not copied for each head.

    Queries (B, H, Q, D), keys and values (B, G, K, D) and a mask (B, 1, Q, K) give (B, Q, H, D).
    """
    rows, heads, length, width = query.shape
    shared = heads // key.shape[1]
    grouped = query.reshape(rows, key.shape[1], shared * length, width)
    out = F.scaled_dot_product_attention(grouped, key, value, mask.repeat(1, 1, shared, 1), scale=scaling)
    return out.view(rows, heads, length, width).transpose(1, 2)


def _gather(tensor: Tensor, ranges: list[tuple[int, int]]) -> Tensor:
    # A single range stays a view; several have to be copied, because the kernel needs one tensor.
    slices = [tensor[:, :, start:stop] for start, stop in ranges]
    return slices[0] if len(slices) == 1 else torch.cat(slices, dim=2)


# At import, because `set_attn_implementation` looks the name up.
AttentionInterface.register(ATTENTION, tree_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
