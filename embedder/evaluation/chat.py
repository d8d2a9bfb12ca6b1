"""Long conversations (MSC): how likely the true reply is after the turn that was found; template A.4."""

from __future__ import annotations

from embedder.evaluation.base import PERPLEXITY, Evaluation, in_time, score_answer, weigh_tokens

CHAT = Evaluation(
    name="chat",
    describes="Conversations: perplexity of the true reply given the earlier turns found. Where annotators linked "
    "messages, also how many of the linked ones were found.",
    headline=("perplexity", "nDCG@10"),
    rankings=("R@1", "R@5", "nDCG@10"),
    measures=(PERPLEXITY,),
    ask=score_answer,
    judge=weigh_tokens,
    arrange=in_time,
    whole_passages=True,
    has_history=True,
)
