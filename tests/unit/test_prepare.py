"""What `prepare` counts, writes and refuses of one dataset."""

from __future__ import annotations

import json

import pytest

from embedder.config.paths import Paths
from embedder.config.prepare import PrepareConfig, Source
from embedder.config.tasks import BUILTIN_TASKS
from embedder.errors import DataError
from ray_jobs.prepare import prepare_dataset
from tests.unit.test_dataset import CORPUS, lines, question
from tests.unit.test_source_readers import write_beir


def prepare(folder, corpus=None, train=None, test=None, task="qa", form="layout", **fields):
    for name, rows in {"corpus": corpus, "train": train, "test": test}.items():
        if rows is not None:
            lines(folder / "source" / f"{name}.jsonl", rows)
    source = Source(task=task, dataset="d", path=folder / "source", format=form)
    settings = PrepareConfig(sources=[source], **fields)
    return prepare_dataset(source, BUILTIN_TASKS[task], settings, Paths(work=folder))


def rejected(folder):
    return json.loads((folder / "prepared/rejected/d.json").read_text(encoding="utf-8"))


def test_prepare_counts_every_row(tmp_path):
    rows = [question(0), question(0, pos_ids=["p1"]), question(1), "{", ""]
    counts = prepare(tmp_path, CORPUS, rows, max_rejected_share=0.2)
    numbers = {name: counts[name] for name in ("rows_in", "rows_out", "merged", "left_out", "rejected")}
    assert numbers == {"rows_in": 10, "rows_out": 8, "merged": 1, "left_out": 0, "rejected": 1}
    assert [row["line"] for row in rejected(tmp_path)] == [4]


NOTHING = {
    "no passage": ({"corpus": [{"id": True, "text": "a"}], "train": [question(0)]}, "no passage in .* can be used", 0),
    "no candidate": ({"train": [{"query": "q", "pos": [1]}]}, "no passage in .* can be used", 0),
    "no query of one file": (
        {"corpus": CORPUS * 20, "train": [question(0)], "test": [question(1, answers=[])]},
        r"no row of .*test\.jsonl can be used",
        0,
    ),
    "too many of them": ({"corpus": CORPUS, "train": [question(0), "{"]}, "1 of 8 rows rejected, more than", 0),
}


@pytest.mark.parametrize(("files", "said", "first"), NOTHING.values(), ids=NOTHING.keys())
def test_prepare_that_stops_quotes_the_first_reason_and_leaves_the_rejected_rows(tmp_path, files, said, first):
    with pytest.raises(DataError, match=said) as told:
        prepare(tmp_path, **files)
    row = rejected(tmp_path)[first]
    assert f"; first rejected {row['file']}:{row['line']}: {row['reason']}" in str(told.value)
    assert "\n" not in str(told.value)


def test_prepare_of_judgements_without_a_relevant_passage_is_refused(tmp_path):
    files = {"qrels/train.tsv": ["q0\ta\t0"], "qrels/test.tsv": ["q1\ta\t-1"]}
    write_beir(tmp_path / "source", **files)
    with pytest.raises(DataError, match=r"no query in .*; give rows with a query, or judgements above 0"):
        prepare(tmp_path, task="tool", form="beir")
    write_beir(tmp_path / "source", **files, **{"queries.jsonl": []})
    with pytest.raises(DataError, match=r"train\.tsv can be used; first rejected .*: query 'q0' is not in queries"):
        prepare(tmp_path, task="tool", form="beir", max_rejected_share=1.0)


def test_prepare_of_integer_ids_without_their_passages_says_so(tmp_path):
    """The reason is told, case 03-integer-ids."""
    rows = [{"query": "q", "query_id": 0, "answers": ["a"], "pos_ids": [9]}]
    with pytest.raises(DataError, match=r"train\.jsonl:1: pos_ids \['9'\] are not in the corpus"):
        prepare(tmp_path, CORPUS * 20, rows)


def test_prepare_removes_the_rejected_rows_of_an_earlier_run(tmp_path):
    prepare(tmp_path, CORPUS, [question(0), "{"], max_rejected_share=1.0)
    assert len(rejected(tmp_path)) == 1
    prepare(tmp_path, CORPUS, [question(0)])
    assert not (tmp_path / "prepared/rejected/d.json").exists()


def test_prepare_names_fields_that_nothing_reads(tmp_path):
    rows = [question(0, colour="red", weight=3), question(1, colour="blue")]
    counts = prepare(tmp_path, [{**row, "url": "x"} for row in CORPUS], rows)
    assert counts["notes"] == [
        "corpus.jsonl: fields that are not read: 'url'",
        "train.jsonl: fields that are not read: 'colour', 'weight'",
    ]


WRONG_NAMES = {
    "question": ({"question": "who", "answers": ["he"]}, "no `query`; the row has `question`, name it `query`"),
    "Query": ({"Query": "who", "answers": ["he"]}, "no `query`; the row has `Query`"),
    "input": ({"input": "who", "output": "he"}, "no `query`; the row has `input`"),
    "answer": ({"query": "who", "answer": "he"}, "`answer` is not read; name it `answers`"),
    "positive": ({"query": "who", "answers": ["he"], "positive": "p0"}, "`positive` is not read; name it `pos`"),
    "positive_ids": ({"query": "who", "answers": ["he"], "positive_ids": ["p0"]}, "`positive_ids` is not read"),
    "negative": ({**question(1), "negative": ["p"]}, "`negative` is not read; name it `neg`"),
    "query and text": ({**question(1), "text": "a long one"}, "`query` and `text` in one row"),
}


@pytest.mark.parametrize(("row", "reason"), WRONG_NAMES.values(), ids=WRONG_NAMES.keys())
def test_prepare_names_the_right_field_for_a_wrong_one(tmp_path, row, reason):
    prepare(tmp_path, CORPUS, [question(0), row], max_rejected_share=1.0)
    assert [reason in each["reason"] for each in rejected(tmp_path)] == [True]


WRONG_PASSAGES = {
    "passage": ({"id": "p", "passage": "a"}, "no `text`; the row has `passage`, name it `text`"),
    "_id": ({"_id": "p", "text": "a"}, "no `id`; the row has `_id`, name it `id`"),
    "docid": ({"docid": 1, "text": "a"}, "no `id`; the row has `docid`"),
    "no name at all": ({"text": "a"}, "id is None; a text or a whole number is needed"),
}


@pytest.mark.parametrize(("row", "reason"), WRONG_PASSAGES.values(), ids=WRONG_PASSAGES.keys())
def test_prepare_names_the_right_field_of_a_passage_for_a_wrong_one(tmp_path, row, reason):
    prepare(tmp_path, [*CORPUS, row], [question(0)], max_rejected_share=1.0)
    assert [reason in each["reason"] for each in rejected(tmp_path)] == [True]
