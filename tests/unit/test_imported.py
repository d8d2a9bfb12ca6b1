"""Rewards made elsewhere: `prepare` keeps them, `mine` takes their candidates, `label` takes them as rewards."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.mine import MineConfig
from embedder.config.prepare import PrepareConfig, Source
from embedder.config.run import RunConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.dataset import read_source
from embedder.data.fields import is_blank
from embedder.data.ledger import Ledger
from embedder.data.records import GROUP, LABELLED, group_id, write_table
from embedder.errors import DataError
from embedder.hashing import content_id
from embedder.labelling.export import write_reference
from embedder.mining.candidates import make_group
from embedder.training.group_rows import training_row
from ray_jobs.cluster.tables import llm_ledger, passage_texts, queries
from ray_jobs.labelling.imported import commit_imported, imported_fingerprint, imported_row
from ray_jobs.prepare import prepare_dataset
from tests.unit.judges import quick
from tests.unit.test_dataset import lines
from tests.unit.test_export import group


def scored(i: int = 1, **fields) -> dict[str, object]:
    row = {
        "query": f"question {i}",
        "query_id": f"q{i}",
        "task": "qa",
        "answers": [f"answer {i}"],
        "pos": [f"P{i}"],
        "neg": ["N", "M"],
        "teacher_scores": [0.5, -1.25, 3],
    }
    return {**row, **fields}


def scored_source(path, task="qa", **fields) -> Source:
    return Source(task=task, dataset="d", path=path, format="reference", teacher_scores=True, **fields)


def read(folder, rows, task="qa", **fields):
    lines(folder / "made.jsonl", rows)
    prepared = read_source(scored_source(folder / "made.jsonl", task, **fields), BUILTIN_TASKS[task], 0)
    assert prepared.rows_in == prepared.rows_out + prepared.merged + prepared.left_out + len(prepared.rejected)
    return prepared


def read_group(folder, task="qa", **fields):
    """The group that `mine` makes of one scored row, and its scores by id."""
    prepared = read(folder, [scored(**fields)], task)
    (query,) = prepared.queries["train"]
    texts = {passage_id: row["text"] for passage_id, row in prepared.passages.items()}
    mined, _ = make_group(query, {}, texts, MineConfig(group_size=2), {})
    scores = query["teacher_scores"]
    return mined, scores and dict(zip(query["pool_ids"], scores, strict=True))


def label_one(folder, task="qa", **fields):
    mined, scores = read_group(folder, task, **fields)
    return imported_row(mined, scores, BUILTIN_TASKS, "print")


def test_imported_row_is_a_labelled_group_in_the_order_of_the_file(tmp_path):
    row = label_one(tmp_path)
    assert row == {
        **dict.fromkeys(LABELLED.names),
        "task": "qa",
        "dataset": "d",
        "query_id": "q1",
        "query": "question 1",
        "answers": ["answer 1"],
        "candidate_ids": [content_id("P1"), content_id("N"), content_id("M")],
        "candidate_texts": ["P1", "N", "M"],
        "relevance": [1, 0, 0],
        "row_id": group_id(row),
        "rewards": [0.5, -1.25, 3.0],
        "reward": "imported",
        "label_fingerprint": "print",
    }


def test_imported_row_is_trained_on(tmp_path):
    row = training_row(label_one(tmp_path), BUILTIN_TASKS["qa"])
    assert row["candidates"] == ["P1", "N", "M"]
    assert row["rewards"] == [0.5, -1.25, 3.0]


def test_imported_history_is_scored_in_its_own_order(tmp_path):
    chat = {"history": ["old", "older", "new "], "pos": None, "neg": None}
    row = label_one(tmp_path, "chat", **chat)
    assert (row["candidate_texts"], row["relevance"]) == (["old", "older", "new"], [0, 0, 0])
    assert row["rewards"] == [0.5, -1.25, 3.0]
    assert label_one(tmp_path, "chat", **chat, gold_history=[1])["relevance"] == [0, 1, 0]
    assert label_one(tmp_path, "chat", **{**chat, "pos": ["new"]})["relevance"] == [0, 0, 1]


def test_imported_candidates_are_lines_of_the_corpus_where_there_is_one(tmp_path):
    lines(tmp_path / "corpus.jsonl", [{"title": "T", "text": f"line {i}"} for i in range(4)])
    rows = [scored(pos_index=[2], neg_index=[0, 3]), scored(2, pos_index=[1], neg_index=[9, 0]), scored(3)]
    prepared = read(tmp_path, rows, corpus=tmp_path / "corpus.jsonl")
    (query,) = prepared.queries["train"]
    assert (query["positive_ids"], query["pool_ids"]) == (["2"], ["2", "0", "3"])
    assert query["teacher_scores"] == [0.5, -1.25, 3.0]
    assert [passage["text"] for passage in prepared.passages.values()] == [f"T line {i}" for i in range(4)]
    assert [rejected.reason for rejected in prepared.rejected] == [
        "neg_ids ['9'] are not in the corpus",
        "no candidates; with scores a row needs pos, neg or history",
    ]


def test_scored_row_of_the_released_icl_data_needs_neither_id_nor_answers(tmp_path):
    row = {key: value for key, value in scored().items() if key not in {"query_id", "answers"}}
    (query,) = read(tmp_path, [{**row, "pos_scores": [0.5], "neg_score": [1, 2]}], "icl").queries["train"]
    assert (query["query_id"], query["answers"]) == (content_id("d", "question 1"), [])


def test_scored_rows_of_another_dataset_are_left_to_other_sources(tmp_path):
    prepared = read(tmp_path, [scored(1, dataset="other"), scored(2, dataset="d"), scored(3)])
    assert [query["query_id"] for query in prepared.queries["train"]] == ["q2", "q3"]
    assert (prepared.left_out, prepared.notes) == (
        1,
        ["made.jsonl: 1 rows left out, since they name another dataset"],
    )
    with pytest.raises(DataError, match="no row of dataset 'd'; its rows name other datasets"):
        read(tmp_path, [scored(1, dataset="other")])


@pytest.mark.parametrize(("task", "usable"), [("convsearch", True), ("tool", True), ("qa", False), ("chat", False)])
@pytest.mark.parametrize("absent", [{"teacher_scores": None}, {}])
def test_row_without_scores_serves_only_a_loss_that_needs_none(tmp_path, task, usable, absent):
    row = {key: value for key, value in scored(9).items() if key != "teacher_scores"}
    prepared = read(tmp_path, [{**row, **absent}, scored(1)], task)
    if usable:
        assert [query["teacher_scores"] for query in prepared.queries["train"]] == [[0.5, -1.25, 3.0], None]
    else:
        assert [f"no teacher_scores, but tasks.{task}.loss is" in row.reason for row in prepared.rejected] == [True]


def test_loss_and_not_reward_decides_whether_scores_are_needed(tmp_path):
    lines(tmp_path / "made.jsonl", [scored(teacher_scores=None, answers=[])])
    plain = BUILTIN_TASKS["qa"].model_copy(update={"loss": "contrastive"})
    assert plain.reward == "rank"
    assert read_source(scored_source(tmp_path / "made.jsonl"), plain, 0).rejected == []


def test_repeated_text_is_left_out_with_its_score_and_counted(tmp_path):
    rows = [scored(pos=["P"], neg=["N", " P", "N", "M"], teacher_scores=[5, 4, 3, 2, 1]), scored(2)]
    prepared = read(tmp_path, rows)
    query = prepared.queries["train"][0]
    assert [prepared.passages[passage_id]["text"] for passage_id in query["pool_ids"]] == ["P", "N", "M"]
    assert query["teacher_scores"] == [5, 4, 1]
    assert prepared.notes == [
        "made.jsonl: 2 candidates left out with their scores, since they repeat an earlier text of their row"
    ]


BAD_ROWS = {
    "a whole text": ({"query_id": "q9", "text": "word " * 900}, "query is None"),
    "blank dataset": (scored(9, dataset=""), "dataset is ''"),
    "no candidates": (scored(9, pos=[], neg=None, teacher_scores=[]), "no candidates"),
    "empty candidate": (scored(9, neg=["N", " "]), "neg is not a list of non-empty texts; entry 1 is ' '"),
    "query_id seen before": (
        scored(1, neg=["N", "L"]),
        "query_id 'q1' was seen before, with other candidates or teacher_scores",
    ),
    "gold outside the history": (scored(9, history=["a", "b", "c"], gold_history=[3]), "leaves the history of 3"),
    "too few scores": (
        scored(9, teacher_scores=[1.0]),
        "teacher_scores has 1 entries for 3 candidates (pos 1, neg 2)",
    ),
    "no score": (scored(9, teacher_scores=[]), "teacher_scores has 0 entries for 3 candidates"),
    "scores of pos and neg for a history": (
        scored(9, history=["a", "b"]),
        "teacher_scores has 3 entries for 2 candidates (history 2)",
    ),
    "scores that are no list": (scored(9, teacher_scores="1"), "teacher_scores is '1'; a list of numbers"),
    "score that is no number": (scored(9, teacher_scores=[1, math.nan, 1]), "teacher_scores[1] is nan"),
    "infinite score": (scored(9, teacher_scores=[1, 1, -math.inf]), "teacher_scores[2] is -inf"),
    "score beyond float32": (scored(9, teacher_scores=[1e39, 1, 1]), "teacher_scores[0] is 1e+39"),
    "whole score beyond float64": (scored(9, teacher_scores=[10**400, 1, 1]), "teacher_scores[0] is 1000"),
    "score that is true": (scored(9, teacher_scores=[True, 1, 1]), "teacher_scores[0] is True"),
    "score that is a text": (scored(9, teacher_scores=["0.5", 1, 1]), "teacher_scores[0] is '0.5'"),
    "score that is null": (scored(9, teacher_scores=[None, 1, 1]), "teacher_scores[0] is None"),
}


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_bad_scored_row_is_rejected_with_file_line_and_reason(tmp_path, row, reason):
    prepared = read(tmp_path, [scored(1), row, scored(2)])
    (rejected,) = prepared.rejected
    assert (rejected.file, rejected.line) == (str(tmp_path / "made.jsonl"), 2)
    assert reason in rejected.reason
    assert len(rejected.reason) <= 400
    assert len(rejected.row) <= 2000
    assert [query["query_id"] for query in prepared.queries["train"]] == ["q1", "q2"]


def test_rejected_row_does_not_take_its_query_id(tmp_path):
    prepared = read(tmp_path, [scored(1, teacher_scores=[1]), scored(1)])
    assert (len(prepared.rejected), len(prepared.queries["train"])) == (1, 1)


def test_scores_of_a_test_split_are_neither_needed_nor_kept(tmp_path):
    lines(tmp_path / "train.json", [scored(1)])
    lines(tmp_path / "test.json", [scored(2), scored(3, teacher_scores=None), scored(4, teacher_scores=[1])])
    prepared = read_source(scored_source(tmp_path), BUILTIN_TASKS["qa"], 0)
    assert [query["teacher_scores"] for query in prepared.queries["test"]] == [None] * 3
    assert prepared.rejected == []


def test_compressed_source_is_read_the_same(tmp_path):
    plain = read(tmp_path, [scored(1), "{", scored(2)])
    packed = tmp_path / "made.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "made.jsonl").read_bytes()))
    prepared = read_source(scored_source(packed), BUILTIN_TASKS["qa"], 0)
    assert (prepared.queries, prepared.passages) == (plain.queries, plain.passages)
    assert [rejected.line for rejected in prepared.rejected] == [2]


@pytest.mark.parametrize("harm", [lambda packed: b"plain text", lambda packed: packed[:-40]])
def test_damaged_compressed_source_is_refused(tmp_path, harm):
    path = tmp_path / "made.jsonl.gz"
    path.write_bytes(harm(gzip.compress(json.dumps(scored()).encode() * 50)))
    with pytest.raises(DataError, match=r"made\.jsonl\.gz:1: not readable"):
        read_source(scored_source(path), BUILTIN_TASKS["qa"], 0)


def write_groups(config: RunConfig, dataset="d") -> None:
    """Groups of a dataset as `mine` makes them, in row groups of few rows."""
    passages = passage_texts(config.paths, dataset)
    far = dict.fromkeys(passages, 0.0)
    asked = queries(config.paths, "train", dataset)
    groups = [make_group(query, {}, passages, config.mine, far)[0] for query in asked]
    write_table(groups, GROUP, config.paths.candidates / f"{dataset}.parquet")


def prepared_run(folder, rows, tasks=("qa",)) -> RunConfig:
    """A run whose rows are prepared, a dataset a task, and whose groups are mined."""
    paths = {"work": folder / "work", "cache": folder / "cache"}
    config = RunConfig(paths=paths, encoder={"model": "none/needed", "pooling": "mean"})
    lines(folder / "made.jsonl", rows)
    for task in tasks:
        source = scored_source(folder / "made.jsonl", task).model_copy(update={"dataset": f"of-{task}"})
        settings = PrepareConfig(sources=[source], max_rejected_share=1)
        prepare_dataset(source, BUILTIN_TASKS[task], settings, config.paths)
        write_groups(config, source.dataset)
    return config


def test_every_prepared_group_is_imported_once(tmp_path):
    rows = [scored(i) for i in range(5)] + ["{", scored(6, teacher_scores=[1])]
    config = prepared_run(tmp_path, rows)
    expected, before = commit_imported(config, llm_ledger(config.paths), "print")
    assert (len(expected), before) == (5, 0)
    table = llm_ledger(config.paths).read()
    assert table["rewards"].to_pylist() == [[0.5, -1.25, 3.0]] * 5
    assert set(table["label_fingerprint"].to_pylist()) == {"print"}
    expected, before = commit_imported(config, llm_ledger(config.paths), "print")
    assert (len(expected), before, llm_ledger(config.paths).count_duplicates()) == (5, 5, 0)


class Dying(Ledger):
    """A ledger whose process is killed at the second block."""

    def commit(self, rows):
        if list(self.folder.glob("*.parquet")):
            raise KeyboardInterrupt
        super().commit(rows)


def test_import_goes_on_after_the_last_block(tmp_path):
    rows = [{**scored(i), "dataset": f"of-{task}", "task": task} for task in ("qa", "icl") for i in range(3)]
    config = prepared_run(tmp_path, rows, ("qa", "icl"))
    ledger = llm_ledger(config.paths)
    with pytest.raises(KeyboardInterrupt):
        commit_imported(config, Dying(ledger.folder, LABELLED, "row_id"), "print")
    expected, before = commit_imported(config, ledger, "print")
    assert (len(expected), before, ledger.read().num_rows, ledger.count_duplicates()) == (6, 3, 6, 0)


def test_import_says_why_a_group_has_no_rewards(tmp_path):
    mined, scores = read_group(tmp_path)
    assert scores is not None
    other = {passage_id: score for passage_id, score in scores.items() if passage_id != content_id("N")}
    assert "no teacher_scores, but tasks.qa.loss is" in imported_row(mined, None, BUILTIN_TASKS, "print")["error"]
    assert "has no teacher score; run mine again" in imported_row(mined, other, BUILTIN_TASKS, "print")["error"]
    plain = imported_row({**mined, "task": "tool"}, None, BUILTIN_TASKS, "print")
    assert (plain["error"], plain["reward"], plain["rewards"]) == (None, "none", None)


def test_import_fingerprint_follows_scores_and_candidates_but_not_the_file(tmp_path):
    def fingerprint(name, *rows):
        return imported_fingerprint(prepared_run(tmp_path / name, rows).paths)

    first = fingerprint("a", scored(1), scored(2))
    assert first == fingerprint("b", scored(2), "{", scored(1))
    others = {
        fingerprint("c", scored(1), scored(2, teacher_scores=[0.5, -1.25, 4])),
        fingerprint("d", scored(1), scored(2, neg=["N", "L"])),
        fingerprint("e", scored(1)),
    }
    assert len({first, *others}) == 4
    assert len(first) == 16


def test_import_without_scores_is_refused(tmp_path):
    config = prepared_run(tmp_path, [scored(1, teacher_scores=None)], ("tool",))
    with pytest.raises(
        DataError, match=r"no training query has teacher_scores; name a source with teacher_scores: true"
    ):
        imported_fingerprint(config.paths)


TEXT = st.text(max_size=12).map(str.strip).filter(lambda text: not is_blank(text))
NAME = TEXT.filter(lambda text: "\0" not in text)
SCORE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def groups_of_all_kinds(draw) -> list[dict[str, object]]:
    groups = []
    for query_id in draw(st.lists(NAME, max_size=5, unique=True)):
        texts = draw(st.lists(TEXT, min_size=1, max_size=6, unique=True))
        size = len(texts)
        task = draw(st.sampled_from(sorted(BUILTIN_TASKS)))
        fields = {
            "task": task,
            "dataset": f"of-{task}",
            "query_id": query_id,
            "query": draw(TEXT),
            "answers": draw(st.lists(TEXT, max_size=2)),
            "candidate_ids": [content_id(text) for text in texts],
            "candidate_texts": texts,
            "relevance": draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)),
        }
        rewards = draw(st.lists(SCORE, min_size=size, max_size=size))
        needed = BUILTIN_TASKS[task].loss != "contrastive"
        groups.append(group(**fields, rewards=rewards if needed or draw(st.booleans()) else None))
    return groups


def content(row) -> dict[str, object]:
    """A group whatever the order of its candidates."""
    rewards = row["rewards"] or [None] * len(row["candidate_ids"])
    columns = (row["candidate_ids"], row["candidate_texts"], row["relevance"], rewards)
    plain = {name: row[name] for name in ("task", "dataset", "query_id", "query", "answers")}
    return {**plain, "candidates": Counter(zip(*columns, strict=True))}


@quick
@given(groups_of_all_kinds())
def test_exported_groups_with_scores_come_back(tmp_path_factory, groups):
    folder = tmp_path_factory.mktemp("exported")
    write_reference(groups, folder / "out.jsonl")
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    config = prepared_run(folder, rows, sorted({row["task"] for row in groups}))
    if groups:
        commit_imported(config, llm_ledger(config.paths), "print")
    wanted = {row["query_id"]: content(row) for row in groups if row["rewards"] is not None}
    back = [row for row in llm_ledger(config.paths).read().to_pylist() if row["rewards"] is not None]
    assert {row["query_id"]: content(row) for row in back} == wanted
    for row in back:
        assert row["row_id"] == group_id(row)
        assert row["relevance"] == sorted(row["relevance"], reverse=True)
