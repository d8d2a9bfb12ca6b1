"""Three files of 1,000 mixed rows, good, awkward and bad, through all jobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedder.config.load import load_run
from embedder.data.records import LABELLED, QUERY, parquet_files, read_tables
from embedder.index.bundle import verify
from tests.cluster.conftest import Cluster
from tests.cluster.results import served_bundle

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROWS = 1000
AWKWARD = [
    "巴黎是法国的首都吗?",
    "パリはどこですか",
    "أين باريس؟",
    "cafe\u0301 cre\u0300me 👩\u200d👩\u200d👧",
    "null \0 byte",
    "<|im_end|>\n<|im_start|>assistant\nyes [SEP] [PAD]",
    "line\u2028separator\x85and\x0btabs\t\t",
    "word " * 20_000,
    "\U0001f600" * 300,
    "C++ os.path.join snake_case R",
    "{query} {answer} {{}} %s",
    "ﬁ ½ \u202e reversed",
]
"""Texts that are good, but unlike others."""


def text(i: int) -> str:
    """Every fifth is awkward; all differ."""
    return f"where is place {i}" if i % 5 else f"{AWKWARD[i // 5 % len(AWKWARD)]} {i}"


def line(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


BAD: list[Callable[[int], bytes]] = [
    lambda i: b'{"query": "caf\xe9", "answers": ["a"]}',
    lambda i: b'{"query": "cut of',
    lambda i: b"[" * 5000,
    lambda i: line([i]),
    lambda i: line({"question": "who", "answers": ["a"]}),
    lambda i: line({"query": i, "answers": ["a"], "text": 3, "_id": None}),
    lambda i: b'{"query": "x", "query": "y"}',
    lambda i: b'{"query": "\\ud800", "answers": ["a"]}',
    lambda i: line({"query": f"who {i}", "answers": [{"deep": [1]}]}),
    lambda i: line({"query": f"who {i}", "answers": ["a"], "pos_ids": ["gone"], "pos": [{"deep": 7}]}),
]


def mixed(good: Callable[[int], dict[str, Any]]) -> bytes:
    """1,000 rows: every tenth is bad, every twentieth adds a positive to an earlier one."""
    rows = []
    for i in range(ROWS):
        rows.append(BAD[i // 10 % len(BAD)](i) if i % 10 == 9 else line(good(i - 10 if i % 20 == 10 else i)))
    return b"\xef\xbb\xbf" + b"\r\n".join(rows) + b"\r\n\r\n"


def write_sources(folder: Path) -> list[dict[str, Any]]:
    """A source of each format."""
    passages = [{"id": i, "text": f"passage of {text(i)}", "title": text(i + 1)[:300]} for i in range(60)]
    judged = "".join(f"{i}\t{i % 60}\t{i % 3}.0\n" for i in range(ROWS))
    layout = mixed(lambda i: {"query_id": i, "query": text(i), "answers": [text(i + 2)[:200]], "pos_ids": [i % 60]})
    files = {
        "layout/corpus.jsonl": b"\n".join(map(line, passages)),
        "layout/train.jsonl": layout,
        "layout/test.jsonl": layout[: layout.index(b"\r\n", 3000) + 2],
        "reference/rows.jsonl": mixed(
            lambda i: {"query": text(i), "history": [text(j)[:500] for j in range(i, i + 6)], "answers": [text(i + 7)]}
        ),
        "beir/corpus.jsonl": b"\n".join(line({**row, "_id": row["id"], "metadata": {"a": None}}) for row in passages),
        "beir/queries.jsonl": mixed(lambda i: {"_id": i, "text": text(i), "metadata": {}}),
        "beir/qrels/train.tsv": judged.encode(),
        "beir/qrels/test.tsv": b"\xef\xbb\xbfquery-id\tcorpus-id\tscore\r\n" + judged[:200].encode() + b"1\t2\tx\r\n",
    }
    for name, raw in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    limits = {"train_queries": 40, "test_queries": 6}
    return [
        {"task": "qa", "dataset": "own", "path": str(folder / "layout"), **limits},
        {"task": "chat", "dataset": "turns", "path": str(folder / "reference/rows.jsonl"), "format": "reference"}
        | limits,
        {"task": "tool", "dataset": "judged", "path": str(folder / "beir"), "format": "beir", **limits},
    ]


def test_mixed_rows_go_through_all_jobs(cluster: Cluster, run_file: Path, tmp_path: Path) -> None:
    run = yaml.safe_load(run_file.read_text(encoding="utf-8"))
    run["paths"] = {"work": str(tmp_path / "work"), "cache": str(tmp_path / "cache")}
    run["prepare"] = {"sources": write_sources(tmp_path), "max_rejected_share": 0.5}
    run["train"] |= {"steps": 3, "num_workers": 1}
    run["label"] |= {"num_samples": 2, "block_rows": 40}
    run["index"] = {"num_shards": 1}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    job = cluster.start("pipeline", path)
    output, _ = job.communicate(timeout=400)
    assert job.returncode == 0, output[-6000:]

    config = load_run(path)
    counts = json.loads((tmp_path / "work/reports/prepare.json").read_text(encoding="utf-8"))["details"]
    for name in ("own", "turns", "judged"):
        count = counts[name]
        assert count["rows_in"] == sum(count[each] for each in ("rows_out", "merged", "left_out", "rejected"))
        rejected = json.loads((tmp_path / f"work/prepared/rejected/{name}.json").read_text(encoding="utf-8"))
        assert len(rejected) == count["rejected"] >= ROWS // 10
        assert count["merged"] >= ROWS // 25
        assert count["train"] == 40
    queries = read_tables(parquet_files(config.paths.queries / "train"), QUERY).to_pylist()
    assert any(AWKWARD[0] in row["query"] for row in queries)
    labelled = read_tables(parquet_files(config.paths.labelled / "blocks"), LABELLED).to_pylist()
    assert len(labelled) == 120
    errors = [row["error"] for row in labelled if row["error"] is not None]
    assert len(errors) <= 24, errors[:5]
    verify(served_bundle(config))
    assert (tmp_path / "work/evaluation").is_dir()
