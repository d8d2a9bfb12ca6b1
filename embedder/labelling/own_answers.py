"""The prompt with which the LLM answers by itself: all candidates of a query at once, known positives unmarked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embedder.hashing import row_seed
from embedder.labelling.prompts import Prefix, PromptBuilder, Shot

SHORTER = 0.8
"""Part that is kept of texts that do not fit into the prompt."""


def evidence_prompt(builder: PromptBuilder, row: Mapping[str, Any], shots: Sequence[Shot], seed: int) -> Prefix:
    """The prompt with all candidates of a group; where they do not fit, the longest ones lose their ends."""
    # In an order that says nothing: known positives stand first in a group, and the LLM heeds what it reads first.
    seeds = (row_seed(seed, "evidence", row["dataset"], row["query_id"], each) for each in row["candidate_ids"])
    texts = [text for _, text in sorted(zip(seeds, row["candidate_texts"], strict=True))]
    prefix, most = builder.prefix(row["query"], texts, shots), max(map(len, texts))
    while prefix.passage_cut and most > 1:
        most = int(SHORTER * most)
        texts = [text[:most] for text in texts]
        prefix = builder.prefix(row["query"], texts, shots)
    return prefix
