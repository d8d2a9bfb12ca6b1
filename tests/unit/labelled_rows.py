"""Labelled rows by hand, and what is counted of them, for the tests of the label statistics and their report."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

from embedder.labelling.label_statistics import LabelCost, TaskStatistics
from embedder.labelling.rewards import group_rewards

THIRD, SECOND, FIRST = (-3.0, -1.0, -2.0), (-1.5, -1.0, -2.0), (-0.5, -1.0, -2.0)
"""Log-likelihoods that put the desired output there among three."""
COST = LabelCost(seconds=20.0, pairs=50, tokens=4000, flops=3e9, peak_flops=1e9, actors=2)
EVIL = "<script>alert(1)</script> \"'> &amp; \ud800 \x00 https://evil.example/x.png"


def counted(rows, seed=0):
    """Statistics of all of the rows, by task."""
    tasks = defaultdict(partial(TaskStatistics, seed))
    for one in rows:
        tasks[one["task"]].add(one)
    return tasks


def row(scores, relevance, base=THIRD, **changed):
    """A row whose rewards are those of its log-likelihoods."""
    reward = changed.get("reward", "rank")
    fields = {
        "task": "qa",
        "dataset": "nq",
        "query_id": "q1",
        "query": "when",
        "answers": ["now"],
        "candidate_ids": [f"c{i}" for i in range(len(relevance))],
        "candidate_texts": [f"text {i}" for i in range(len(relevance))],
        "relevance": relevance,
        "row_id": f"{scores}{relevance}{base}",
        "rewards": group_rewards(reward, base, scores),
        "outputs": ["now", *(f"sample {i}" for i in range(len(base) - 1))],
        "base_scores": list(base),
        "scores": [list(values) for values in scores],
        "reward": reward,
        "label_fingerprint": "f",
        "error": None,
    }
    return fields | changed


def unlabelled(relevance=(1, 0), **changed):
    empty = dict.fromkeys(("rewards", "outputs", "base_scores", "scores"))
    return row([THIRD for _ in relevance], list(relevance)) | empty | changed


GROUPS = [
    row([FIRST, THIRD, THIRD], [1, 0, 0]),  # rewards 2 0 0
    row([THIRD, THIRD, THIRD], [1, 0, 0]),  # 0 0 0
    row([FIRST, SECOND], [0, 1], base=FIRST),  # 0 -1
    row([SECOND, SECOND, THIRD], [1, 0, 0]),  # 1 1 0
    row([FIRST, SECOND, THIRD], [0, 0, 0]),  # 2 1 0
    unlabelled(error="no candidates"),
    unlabelled(row_id="none"),
]


def statistics_of(rows, task="qa"):
    return counted(rows)[task]


def evil_rows():
    texts = {"dataset": EVIL, "query_id": EVIL, "query": EVIL, "answers": [EVIL], "candidate_texts": [EVIL, EVIL]}
    rewarded = row([FIRST, THIRD], [1, 0], task=EVIL, **texts) | {"outputs": [EVIL] * 3}
    return [rewarded, unlabelled(task=EVIL, error=EVIL, **texts)]
