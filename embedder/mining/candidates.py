"""Makes the group of candidates of a query from its rankings: known positives first, then drawn negatives."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

from embedder.config.mine import MineConfig
from embedder.data.records import QUERY_CORE
from embedder.hashing import row_seed
from embedder.mining.ranking import Ranking
from embedder.words import folded, passage_words

JOINING = frozenset("-._/:@&>")
"""What joins the parts of a code word."""


def make_group(
    query: dict[str, Any],
    rankings: dict[str, Ranking],
    passages: Mapping[str, str],
    config: MineConfig,
    dense_scores: Mapping[str, float],
) -> tuple[dict[str, Any], Counter[str]]:
    """The group of one query, and how many ranked passages were kept out of it, by reason.

    A pure function of the rankings, the scores and the seed. `dense_scores`: of the positives and all ranked passages,
    by id.

    Known positives come first, at most group_size - 1 of them. The rest is drawn from ranks `window` of the lexical
    and the dense ranking. A query without positives (its rewards decide) takes half of its candidates from the head of
    the rankings and draws the others. Never drawn: positives, the query itself as a worked example, and texts that
    repeat a positive or an earlier candidate. What is so near the query that it may be a positive that nobody has
    marked (`positive_share`) is drawn where all else is not enough, the farthest first. A query that brings scores
    takes the candidates that these are for, all and in their order.
    """
    kept_out = Counter(known=0, near_positives=0, duplicates=0)
    if query["teacher_scores"] is not None:
        return _group(query, query["pool_ids"], query["positive_ids"], passages), kept_out
    # By query and not by position, so that the groups of other queries do not change this one.
    random = Random(row_seed(config.seed, query["dataset"], query["query_id"]))
    draw = partial(row_seed, config.seed, "draw", query["dataset"], query["query_id"])
    positives = query["positive_ids"][: config.group_size - 1]
    known = {*query["positive_ids"], *(query.get("example_ids") or [])}
    # Of all positives, also those that do not fit: a copy of one must not be taken for a negative.
    taken = {passage_id: normalise(passages[passage_id]) for passage_id in query["positive_ids"]}
    highest = highest_score(query["positive_ids"], dense_scores, config.positive_share)
    chosen = list(positives)
    drawn = dict.fromkeys(_draw_order(rankings, bool(positives), config, random, draw))
    near = {passage_id for passage_id in drawn if highest < math.inf and dense_scores[passage_id] > highest} - known
    far = [passage_id for passage_id in drawn if passage_id not in near]
    for passage_id in [*far, *sorted(near, key=lambda passage_id: (dense_scores[passage_id], passage_id))]:
        if len(chosen) == config.group_size:
            break
        if passage_id in known:
            kept_out["known"] += 1
            continue
        text = normalise(passages[passage_id])
        if is_duplicate(text, list(taken.values()), config.duplicate_overlap):
            kept_out["duplicates"] += 1
            continue
        taken[passage_id] = text
        chosen.append(passage_id)
    kept_out["near_positives"] = len(near.difference(chosen))
    return _group(query, chosen, positives, passages), kept_out


def _group(query: dict[str, Any], ids: list[str], positives: list[str], passages: Mapping[str, str]) -> dict[str, Any]:
    """A row of `records.GROUP`."""
    group = {name: query[name] for name in QUERY_CORE.names}
    group["candidate_ids"] = ids
    group["candidate_texts"] = [passages[passage_id] for passage_id in ids]
    group["relevance"] = [int(passage_id in set(positives)) for passage_id in ids]
    return group


def highest_score(positives: Sequence[str], dense_scores: Mapping[str, float], share: float | None) -> float:
    """The dense score above which a passage is no negative: a share of that of the best known positive.

    Without a share or a positive there is none (NV-Retriever, arXiv 2407.15831).
    """
    if share is None or not positives:
        return math.inf
    return share * max(dense_scores[passage_id] for passage_id in positives)


def _draw_order(
    rankings: dict[str, Ranking], has_positives: bool, config: MineConfig, random: Random, draw: Callable[[str], int]
) -> list[str]:
    """Ids in the order in which they are offered to the group; the same id may be offered twice.

    `random` draws whose turn it is, `draw` the order of the ids of a ranking.
    """
    first, last = config.window
    head = 0 if has_positives else config.group_size // 2
    start = first if has_positives else 0
    queues = {name: [passage_id for passage_id, _ in ranking[start : last + 1]] for name, ranking in rankings.items()}
    order: list[str] = []
    for rank in range(head):
        order.extend(queue[rank] for queue in queues.values() if rank < len(queue))
    order = order[:head]  # an odd head takes one more of the first ranking
    rest = {name: queue[head // 2 :] for name, queue in queues.items()}
    for queue in rest.values():
        # By hash and not shuffled, so that a new passage changes only the groups that draw it or lose one to it: a
        # shuffle orders positions, and one passage that enters a ranking moves all that stand behind it.
        queue.sort(key=draw)
    while any(rest.values()):
        wanted = "lexical" if random.random() < config.lexical_share else "dense"
        name = wanted if rest.get(wanted) else next(name for name, queue in rest.items() if queue)
        order.append(rest[name].pop())
    if has_positives:
        # A corpus or pool smaller than the window still fills the group, from the ranks before it: the last ones first,
        # because the first ones are likely to be positives that nobody has marked.
        order.extend(passage_id for ranking in rankings.values() for passage_id, _ in reversed(ranking[:first]))
    return order


def normalise(text: str) -> str:
    """The words joined by single spaces: texts that differ in layout, case and punctuation become equal.

    A text without any word (`+`, `?!`) stays, so that two of them are no copies of each other.
    """
    # Parts alone, so that `well-known` and `well known` stay copies.
    words = [word for word in passage_words(text) if JOINING.isdisjoint(word)]
    return " ".join(words or folded(text).split())


def word_overlap(first: str, second: str) -> float:
    """Jaccard overlap of the word sets of two normalised texts, 0 to 1."""
    words, others = set(first.split()), set(second.split())
    union = words | others
    return len(words & others) / len(union) if union else 1.0


def is_duplicate(text: str, others: Sequence[str], threshold: float) -> bool:
    """True if a text equals another one, or overlaps it by `threshold` or more (all normalised)."""
    return any(text == other or word_overlap(text, other) >= threshold for other in others)
