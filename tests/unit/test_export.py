"""Labelled groups are exported as rows of the reference, all of them, and the file appears as a whole."""

from __future__ import annotations

import gzip
import json
import math

import pytest

from embedder.data.records import LABELLED, group_id
from embedder.errors import DataError, LabelError
from embedder.labelling.export import write_reference


def group(i: int = 1, **fields) -> dict[str, object]:
    row = {
        **dict.fromkeys(LABELLED.names),
        "task": "qa",
        "dataset": "d",
        "query_id": f"q{i}",
        "query": f"question {i}",
        "answers": [f"answer {i}"],
        "candidate_ids": ["n", "p", "m"],
        "candidate_texts": ["N", "P", "M"],
        "relevance": [0, 1, 0],
        "rewards": [-1.0, 2.5, 0.0],
        "reward": "rank",
        **fields,
    }
    return {**row, "row_id": group_id(row)}


def exported(path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_export_writes_positives_first(tmp_path):
    assert write_reference([group()], tmp_path / "new" / "out.jsonl") == {"rewarded": 1}
    assert exported(tmp_path / "new" / "out.jsonl") == [
        {
            "task": "qa",
            "dataset": "d",
            "query_id": "q1",
            "query": "question 1",
            "answers": ["answer 1"],
            "pos": ["P"],
            "neg": ["N", "M"],
            "pos_index": ["p"],
            "neg_index": ["n", "m"],
            "teacher_scores": [2.5, -1.0, 0.0],
        }
    ]


def test_export_writes_and_counts_groups_without_rewards(tmp_path):
    nothing = {"candidate_ids": [], "candidate_texts": [], "relevance": [], "rewards": None, "error": "no candidates"}
    groups = [group(1), group(2, rewards=None, reward="none"), group(3, **nothing)]
    assert write_reference(iter(groups), tmp_path / "out.jsonl") == {"rewarded": 1, "failed": 1, "plain": 1}
    rows = exported(tmp_path / "out.jsonl")
    assert ["teacher_scores" in row for row in rows] == [True, False, False]
    assert (rows[2]["pos"], rows[2]["neg"]) == ([], [])


def test_export_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out.jsonl"
    write_reference([group(1)], path)
    before = path.read_bytes()

    def failing():
        yield group(2)
        raise LabelError("lost")

    with pytest.raises(LabelError, match="lost"):
        write_reference(failing(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


BAD_GROUPS = {
    "no number": ({"rewards": [1.0, math.nan, 1.0]}, "not JSON compliant"),
    "too few": ({"rewards": [1.0]}, "1 rewards for 3 candidates"),
}


@pytest.mark.parametrize(("fields", "reason"), BAD_GROUPS.values(), ids=BAD_GROUPS.keys())
def test_export_names_a_group_that_cannot_be_written(tmp_path, fields, reason):
    with pytest.raises(DataError, match=rf"group 'q1' of dataset 'd' cannot be written \(.*{reason}"):
        write_reference([group(**fields)], tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_export_compressed_is_the_same_each_time(tmp_path):
    path = tmp_path / "out.jsonl.gz"
    write_reference([group(1), group(2)], path)
    first = path.read_bytes()
    write_reference([group(1), group(2)], path)
    assert path.read_bytes() == first
    assert first[4:8] == bytes(4), "the header holds the time"
    assert [json.loads(line)["query_id"] for line in gzip.decompress(first).splitlines()] == ["q1", "q2"]
