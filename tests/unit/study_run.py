"""A small run of one dataset of qa, as `prepare`, `mine` and `label` would have left it, for the study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from embedder.data.ledger import Ledger
from embedder.data.records import GROUP, LABELLED, PASSAGE, QUERY, group_id, write_table

WORDS = ["fox", "dog", "forest", "bridge", "market", "station", "capital", "city"]
SCORES = {"base_scores": [-2.0, -1.0, -3.0], "scores": [[-3.0, -1.0, -2.0], [-1.0, -2.0, -3.0]]}


def write_study_run(folder: Path, encoder: Path, llm: Path) -> Path:
    """A run file with prepared tables and labels of one dataset of qa below a folder."""
    work = folder / "work"
    passages = [
        {"task": "qa", "dataset": "docs", "id": f"p{i}", "text": f"the {word} is behind the bridge", "title": None}
        for i, word in enumerate(WORDS)
    ]
    write_table(passages, PASSAGE, work / "prepared" / "corpus" / "docs" / "part-00000.parquet")
    empty = dict.fromkeys(QUERY.names)
    for split in ("train", "dev", "test"):
        rows = [
            {
                **empty,
                "task": "qa",
                "dataset": "docs",
                "query_id": f"{split}{i}",
                "query": f"{split} where is the {word}",
                "answers": ["Paris"],
                "positive_ids": [f"p{i}"],
            }
            for i, word in enumerate(WORDS)
        ]
        write_table(rows, QUERY, work / "prepared" / "queries" / split / "docs.parquet")
        if split == "train":
            groups = [group_row(row, i) for i, row in enumerate(rows)]
            write_table(groups, GROUP, work / "candidates" / "docs.parquet")
            kept = [label_row(group) for group in groups]
            Ledger(work / "labelled" / "blocks", LABELLED, "row_id").commit(kept)
    run = {
        "paths": {"work": str(work), "cache": str(folder / "cache")},
        "encoder": {"model": str(encoder), "pooling": "mean", "max_tokens": 32, "instructions": False},
        "llm": {"model": str(llm), "max_prefix_tokens": 100, "batch_tokens": 1024},
        "train": {"steps": 3, "batch_size": 4, "num_workers": 1, "learning_rate": 1e-3, "task_weights": {"qa": 1}},
        "evaluate": {"llm_queries": 2, "passages": {"qa": 1}, "unit_queries": 2},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def group_row(row: dict[str, Any], number: int) -> dict[str, Any]:
    """A candidate group of a query: its passage and the next one."""
    both = [number, (number + 1) % len(WORDS)]
    return {
        **dict.fromkeys(GROUP.names),
        **{key: row[key] for key in ("task", "dataset", "query_id", "query", "answers") if key in GROUP.names},
        "candidate_ids": [f"p{i}" for i in both],
        "candidate_texts": [f"the {WORDS[i]} is behind the bridge" for i in both],
        "relevance": [1, 0],
    }


def label_row(group: dict[str, Any]) -> dict[str, Any]:
    """The same, labelled."""
    known = {"row_id": group_id(group), "reward": "rank", "rewards": [1.0, -1.0], "label_fingerprint": "f", **SCORES}
    return {**dict.fromkeys(LABELLED.names), **{k: v for k, v in group.items() if k in LABELLED.names}, **known}
