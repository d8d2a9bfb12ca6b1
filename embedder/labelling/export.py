"""Labelled groups for other tools: JSON Lines as FlagEmbedding's `research/llm_embedder` reads them.

A line holds `task`, `dataset`, `query_id`, `query`, `answers`, `pos`, `neg`, `pos_index` and `neg_index` (ids of the
candidates) and `teacher_scores` (one a candidate: pos, then neg). A source with `teacher_scores: true` reads it back. A
file whose name ends in `.gz` is compressed.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext

from embedder.data.fields import Row
from embedder.errors import DataError
from embedder.storage.object_store import AnyPath, replacing


def write_reference(rows: Iterable[Row], path: AnyPath) -> Counter[str]:
    """Write labelled groups, one a line, and put the file in place when all are written.

    Candidates are ordered known positives first, otherwise as in the group. Every row is written; one without rewards
    has no `teacher_scores`. Returns how many are `rewarded`, `failed` (rows with an `error`) and `plain` (of tasks
    without a reward).

    Raises:
        DataError: a reward is not finite, or there is not one for each candidate.
    """
    counts: Counter[str] = Counter()
    with replacing(path) as file:
        # Without a name and a time in its header, so that the same groups give the same bytes.
        packed = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) if path.suffix == ".gz" else None
        with packed or nullcontext(file) as sink:
            for row in rows:
                try:
                    sink.write(_json_line(_reference_row(row)))
                except ValueError as error:
                    raise DataError(
                        f"{path}: group {row['query_id']!r} of dataset {row['dataset']!r} cannot be written ({error}); "
                        "label it again"
                    ) from error
                kind = "rewarded" if row["rewards"] is not None else "failed" if row["error"] else "plain"
                counts[kind] += 1
    return counts


def _reference_row(group: Row) -> Row:
    """The reference's row of a labelled group."""
    known = [i for i, relevance in enumerate(group["relevance"]) if relevance]
    others = [i for i, relevance in enumerate(group["relevance"]) if not relevance]
    ids, texts, rewards = group["candidate_ids"], group["candidate_texts"], group["rewards"]
    row = {
        **{name: group[name] for name in ("task", "dataset", "query_id", "query", "answers")},
        "pos": [texts[i] for i in known],
        "neg": [texts[i] for i in others],
        "pos_index": [ids[i] for i in known],
        "neg_index": [ids[i] for i in others],
    }
    if rewards is None:
        return row
    if len(rewards) != len(texts):
        raise ValueError(f"{len(rewards)} rewards for {len(texts)} candidates")
    return {**row, "teacher_scores": [rewards[i] for i in known + others]}


def _json_line(value: Row) -> bytes:
    """One line of JSON; ValueError for a number or text that JSON and UTF-8 cannot hold."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
