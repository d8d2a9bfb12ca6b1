"""The demo's source data, written from the running Python."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest

from embedder.config.load import load_run
from embedder.config.prepare import Source
from embedder.data.dataset import read_source
from embedder.demo.build import SOURCES, build, docstring, documentation_rows, load, squeeze, topic_passages
from tests.unit.test_config import ROOT

HAND_WRITTEN = {
    "qa/python-docs": "questions",
    "convsearch/python-talk": "conversations",
    "tool/stdlib": "requests",
    "chat/assistant": "dialogues",
}
FROZEN = "fcf2f5d91599823aecad0b9d454967118a667c41eb51c57b1092e9db17ccf80e"
"""SHA-256 of the test rows. Who changes one knows it by this line: no figure of before compares with one of after."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, build(folder)


def rows(folder, dataset, split):
    return [json.loads(line) for line in (folder / dataset / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def sources() -> list[Source]:
    return load_run(ROOT / "configs" / "demo.yaml").prepare.sources


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.dataset)
def test_every_source_of_the_demo_run_file_is_written_and_read_without_a_reject(built, source):
    folder, _ = built
    tasks = load_run(ROOT / "configs" / "demo.yaml").tasks
    here = source.model_copy(update={"path": folder / source.task / source.dataset})
    prepared = read_source(here, tasks[source.task], seed=0)
    assert prepared.rejected == []
    assert prepared.queries["train"]
    assert prepared.queries["test"]


@pytest.mark.parametrize(("dataset", "name"), HAND_WRITTEN.items())
def test_every_hand_written_row_is_written_or_counted_as_skipped(built, dataset, name):
    folder, skipped = built
    written = [row["query_id"] for split in ("train", "test") for row in rows(folder, dataset, split)]
    assert len(set(written)) == len(written)
    assert len(written) + skipped[dataset.split("/")[0]] == len(load(name))
    assert set(written) <= {row["id"] for row in load(name)}


def test_every_worked_example_is_written(built):
    folder, _ = built
    written = [
        row["query_id"] for path in (folder / "icl").iterdir() for s in ("train", "test") for row in rows(path, "", s)
    ]
    assert sorted(written) == sorted(row["id"] for row in load("examples"))


def test_no_passage_that_a_row_is_trained_on_is_gold_of_a_test_row_of_either_task(built):
    documentation = ["qa/python-docs", "convsearch/python-talk"]
    gold = {
        split: {name for dataset in documentation for row in rows(built[0], dataset, split) for name in row["pos_ids"]}
        for split in ("train", "test")
    }
    assert gold["train"]
    assert gold["test"]
    assert not gold["train"] & gold["test"]


def test_no_worked_example_of_the_pool_is_a_test_row(built):
    for path in (built[0] / "icl").iterdir():
        pool = [json.loads(line)["id"] for line in (path / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
        assert sorted(pool) == sorted(row["query_id"] for row in rows(path, "", "train"))


def test_the_demo_is_the_same_each_time(built, tmp_path):
    build(tmp_path)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.jsonl"))
    assert files == sorted(path.relative_to(built[0]) for path in built[0].rglob("*.jsonl"))
    assert all((tmp_path / file).read_bytes() == (built[0] / file).read_bytes() for file in files)


def test_passages_of_the_documentation_have_ids_of_their_own_and_some_length():
    passages = topic_passages().values()
    assert len({passage["id"] for passage in passages}) == len(passages) > 100
    assert len({passage["text"] for passage in passages}) == len(passages)


def test_the_test_rows_are_those_that_were_frozen():
    digest = hashlib.sha256()
    for name in (*HAND_WRITTEN.values(), "examples"):
        digest.update(json.dumps([row for row in load(name) if row["split"] == "test"]).encode())
    digest.update(json.dumps(SOURCES["test"]).encode())
    assert digest.hexdigest() == FROZEN


def test_every_task_has_at_least_thirty_test_queries(built):
    config = load_run(ROOT / "configs" / "demo.yaml")
    queries: Counter[str] = Counter()
    for source in sources():
        here = source.model_copy(update={"path": built[0] / source.task / source.dataset})
        queries[source.task] += len(read_source(here, config.tasks[source.task], seed=0).queries["test"])
    assert set(queries) == {"qa", "convsearch", "tool", "chat", "icl", "lrlm"}
    assert min(queries.values()) >= 30


def test_no_source_file_is_in_both_splits():
    assert not set(SOURCES["train"]) & set(SOURCES["test"])


def test_a_training_row_whose_passage_another_python_shares_with_a_test_row_is_skipped():
    row = {"question": "?", "answers": ["x"], "evidence": "x"}
    rows = [{"id": "a", "split": "train", **row}, {"id": "b", "split": "test", **row, "evidence": "y"}]
    skipped: Counter[str] = Counter()
    apart = documentation_rows(rows, [{"id": "1", "text": "x"}, {"id": "2", "text": "y"}], {"2"}, skipped, "qa")
    assert ([len(apart[split]) for split in ("train", "test")], skipped.total()) == ([1, 1], 0)
    joined = documentation_rows(rows, [{"id": "1", "text": "x y"}], {"1"}, skipped, "qa")
    assert ([len(joined[split]) for split in ("train", "test")], skipped["qa"]) == ([0, 1], 1)


def test_a_docstring_is_shortened_and_an_unknown_function_has_none():
    assert docstring("bisect.bisect_left").startswith("bisect.bisect_left: Return the index")
    assert docstring("bisect.no_such_function") is None
    assert docstring("no_such_module.f") is None
    assert squeeze(" a\n\t b ") == "a b"
