"""Long texts: how likely the next chunk is after earlier chunks with their continuations, then the latest chunk."""

from __future__ import annotations

from collections.abc import Sequence

from embedder.evaluation.base import PERPLEXITY, Evaluation, Passage, score_answer, weigh_tokens

LEAST_OVERLAP = 16
"""Characters that neighbours must share to be taken for one text."""


def in_order(passages: Sequence[Passage]) -> list[str]:
    """The texts in the order of the document; neighbours that share a chunk become one text, which has it once."""
    texts: list[str] = []
    last: Passage | None = None
    for passage in sorted(passages, key=lambda passage: passage.place or 0):
        neighbours = last is not None and (passage.place or 0) == (last.place or 0) + 1
        shared = overlap(texts[-1], passage.text) if neighbours else 0
        if shared >= LEAST_OVERLAP:
            texts[-1] += passage.text[shared:]
        else:
            texts.append(passage.text)
        last = passage
    return texts


def overlap(first: str, second: str) -> int:
    """Characters of the longest end of one text with which the other begins."""
    return next((n for n in range(min(len(first), len(second)), 0, -1) if first.endswith(second[:n])), 0)


LRLM = Evaluation(
    name="lrlm",
    describes="Long texts: perplexity of the next chunk given earlier chunks of the text with their continuations, in "
    "the order of the text, and the latest chunk.",
    headline=("perplexity",),
    rankings=(),
    measures=(PERPLEXITY,),
    ask=score_answer,
    judge=weigh_tokens,
    arrange=in_order,
    whole_passages=True,
    has_history=True,
)
