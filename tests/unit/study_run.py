"""A small run of two datasets of qa, as `prepare`, `mine` and `label` would have left it, for the study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from embedder.data.ledger import Ledger
from embedder.data.records import GROUP, LABELLED, PASSAGE, QUERY, group_id, write_table

DATASETS = ("nq", "pubmedqa")
"""One for each direction of the study."""
WORDS = ["fox", "dog", "forest", "bridge", "market", "station", "capital", "city"]
OUTPUTS = ("Paris", "a sample of the LLM", "another one")
"""The desired output and its rivals."""
SCORES = {"base_scores": [-2.0, -1.0, -3.0], "scores": [[-3.0, -1.0, -2.0], [-1.0, -2.0, -3.0]]}


def write_study_run(folder: Path, encoder: Path, llm: Path) -> Path:
    """A run file with prepared tables and labels of two datasets of qa below a folder."""
    work = folder / "work"
    for dataset in DATASETS:
        write_dataset(work, dataset)
    run = {
        "paths": {"work": str(work), "cache": str(folder / "cache")},
        "encoder": {"model": str(encoder), "pooling": "mean", "max_tokens": 32, "instructions": False},
        "llm": {"model": str(llm), "max_prefix_tokens": 100, "batch_tokens": 1024},
        "train": {"steps": 2, "batch_size": 4, "num_workers": 1, "learning_rate": 1e-3, "task_weights": {"qa": 1}},
        "evaluate": {"llm_queries": 2, "passages": {"qa": 1}, "unit_queries": 2},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def write_dataset(work: Path, dataset: str) -> None:
    """The prepared tables, candidates and labels of one dataset."""
    passages = [
        {"task": "qa", "dataset": dataset, "id": f"p{i}", "text": f"the {word} is behind the bridge", "title": None}
        for i, word in enumerate(WORDS)
    ]
    write_table(passages, PASSAGE, work / "prepared" / "corpus" / dataset / "part-00000.parquet")
    for split in ("train", "dev", "test"):
        rows = [
            {
                **dict.fromkeys(QUERY.names),
                "task": "qa",
                "dataset": dataset,
                "query_id": f"{split}{i}",
                "query": f"{split} where is the {word} of {dataset}",
                "answers": ["Paris"],
                "positive_ids": [f"p{i}"],
            }
            for i, word in enumerate(WORDS)
        ]
        write_table(rows, QUERY, work / "prepared" / "queries" / split / f"{dataset}.parquet")
        if split == "train":
            groups = [group_row(row, i) for i, row in enumerate(rows)]
            write_table(groups, GROUP, work / "candidates" / f"{dataset}.parquet")
            Ledger(work / "labelled" / "blocks", LABELLED, "row_id").commit([label_row(group) for group in groups])


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
    known = {"row_id": group_id(group), "reward": "rank", "rewards": [1.0, -1.0], "outputs": list(OUTPUTS)}
    known |= {"label_fingerprint": "f", **SCORES}
    return {**dict.fromkeys(LABELLED.names), **{k: v for k, v in group.items() if k in LABELLED.names}, **known}
