"""Source files of other tools, dev splits, and rows with options."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from embedder.config.prepare import Source
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.dataset import DEV_SHARE, open_source, read_source
from embedder.data.records import QUERY
from embedder.errors import DataError
from embedder.hashing import content_id
from tests.conftest import DATA
from tests.unit.test_dataset import CORPUS, LONG, lines, question, read_layout


def read(folder, form, task="qa", **fields):
    source = Source(task=task, dataset="d", path=folder, format=form, **fields)
    prepared = read_source(source, BUILTIN_TASKS[task], 0)
    assert prepared.rows_in == prepared.rows_out + prepared.merged + prepared.left_out + len(prepared.rejected)
    for rows in prepared.queries.values():
        pa.Table.from_pylist(rows, schema=QUERY)
    return prepared


BEIR = {
    "corpus.jsonl": [
        {"_id": "a", "title": "Title", "text": "text of a"},
        {"_id": "b", "title": "", "text": "text of b"},
        {"_id": "c", "text": "text of c"},
    ],
    "queries.jsonl": [{"_id": f"q{i}", "text": f"question {i}", "metadata": {}} for i in range(4)],
    "qrels/train.tsv": ["query-id\tcorpus-id\tscore", "q0\ta\t1"],
    "qrels/test.tsv": ["query-id\tcorpus-id\tscore", "q1\ta\t2", "q1\tb\t1", "q1\tc\t0", "q0\tb\t1", "q2\tc\t0"],
}


def write_beir(folder, **changed):
    for name, rows in {**BEIR, **changed}.items():
        lines(folder / name, rows)
    return folder


def test_beir_reader_gives_passages_queries_and_graded_positives(tmp_path):
    got = read(write_beir(tmp_path), "beir", "tool")
    assert {key: row["text"] for key, row in got.passages.items()} == {
        "a": "Title text of a",
        "b": "text of b",
        "c": "text of c",
    }
    train, test = got.queries["train"], {row["query_id"]: row for row in got.queries["test"]}
    assert [(row["query_id"], row["query"], row["positive_ids"]) for row in train] == [("q0", "question 0", ["a"])]
    assert sorted(test) == ["q0", "q1"]
    assert (test["q1"]["positive_ids"], test["q1"]["positive_grades"]) == (["a", "b"], [2, 1])
    assert test["q1"]["pool_ids"] is None
    assert got.left_out == 2


BAD_JUDGEMENTS = {
    "q1\ta": "2 columns",
    "q9\ta\t1": "query 'q9' is not in queries.jsonl",
    "q1\tz\t1": "passage 'z' is not in corpus.jsonl",
    "q1\ta\tyes": "score is 'yes'",
}


@pytest.mark.parametrize(("line", "reason"), BAD_JUDGEMENTS.items())
def test_beir_reader_rejects_a_bad_judgement_with_its_line(tmp_path, line, reason):
    got = read(
        write_beir(tmp_path, **{"qrels/test.tsv": ["query-id\tcorpus-id\tscore", "q1\tb\t1", line]}), "beir", "tool"
    )
    (rejected,) = got.rejected
    assert (rejected.line, reason in rejected.reason) == (3, True)
    assert [row["positive_ids"] for row in got.queries["test"]] == [["b"]]


def test_beir_reader_rejects_a_query_without_id_or_text(tmp_path):
    rows = [*BEIR["queries.jsonl"], {"text": "no id"}, {"_id": "q1", "text": "again"}, {"_id": "q7", "text": " "}]
    got = read(write_beir(tmp_path, **{"queries.jsonl": rows}), "beir", "tool")
    assert [rejected.line for rejected in got.rejected] == [5, 6, 7]


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl"])
def test_beir_reader_refuses_a_folder_that_lacks_a_file(tmp_path, missing):
    (write_beir(tmp_path) / missing).unlink()
    with pytest.raises(DataError, match=r"lacks one of .*queries\.jsonl"):
        read(tmp_path, "beir", "tool")


def test_beir_reader_refuses_a_folder_without_judgements(tmp_path):
    write_beir(tmp_path)
    (tmp_path / "qrels/test.tsv").unlink()
    assert list(read(tmp_path, "beir", "tool").queries) == ["train"]
    (tmp_path / "qrels/train.tsv").unlink()
    with pytest.raises(DataError, match=r"neither qrels/train\.tsv"):
        read(tmp_path, "beir", "tool")


REFERENCE_CORPUS = [{"title": "T", "text": "zero"}, {"content": "one"}, {"contents": "two"}]


def test_reference_reader_counts_positives_by_lines_of_its_corpus(tmp_path):
    lines(tmp_path / "corpus.json", REFERENCE_CORPUS)
    lines(
        tmp_path / "train.json", [{"query": "q", "pos": ["T zero"], "neg": ["x"], "pos_index": [0], "answers": ["a"]}]
    )
    lines(tmp_path / "test.concat.json", [{"query": "r", "query_id": 7, "pos_index": [2], "answers": ["a"]}])
    got = read(tmp_path, "reference")
    assert [row["text"] for row in got.passages.values()] == ["T zero", "one", "two"]
    (train,), (test,) = got.queries["train"], got.queries["test"]
    assert (train["positive_ids"], train["pool_ids"]) == (["0"], None)
    assert (test["query_id"], test["positive_ids"], test["pool_ids"]) == ("7", ["2"], None)


def test_reference_reader_takes_the_corpus_of_another(tmp_path):
    lines(tmp_path / "msmarco" / "corpus.json", REFERENCE_CORPUS)
    row = {"query": "q", "query_id": 1, "subject": "world_religions", "choices": ["w", "x", "y", "z"], "answer": 2}
    lines(tmp_path / "mmlu" / "test.json", [row, {**row, "query_id": 2, "answer": 4}])
    got = read(tmp_path / "mmlu", "reference", corpus=tmp_path / "msmarco" / "corpus.json")
    (test,) = got.queries["test"]
    assert (test["options"], test["answers"], test["category"]) == (["w", "x", "y", "z"], ["y"], "world_religions")
    assert (test["positive_ids"], test["pool_ids"]) == ([], None)
    assert ["the answer is 4" in rejected.reason for rejected in got.rejected] == [True]


@pytest.mark.parametrize("accepted", [["a", "b"], '["a", "b"]'])
def test_reference_reader_takes_the_accepted_answers_of_popqa(tmp_path, accepted):
    lines(tmp_path / "corpus.json", REFERENCE_CORPUS)
    lines(tmp_path / "test.json", [{"query": "q", "query_id": 3, "obj": "a", "possible_answers": accepted}])
    assert read(tmp_path, "reference").queries["test"][0]["answers"] == ["a", "b"]


def test_reference_reader_finds_the_right_option_by_its_position(tmp_path):
    rows = [{"query": "q", "query_id": "1", "task_name": "rte", "options": ["yes", "no"], "answers": ["1"]}]
    rows += [{"query": "r", "query_id": "2", "task_name": "gen", "answers": ["free text"]}]
    lines(tmp_path / "corpus.json", REFERENCE_CORPUS)
    lines(tmp_path / "test.json", rows)
    one, two = read(tmp_path, "reference", "icl").queries["test"]
    assert (one["options"], one["answers"], one["category"]) == (["yes", "no"], ["no"], "rte")
    assert (two["options"], two["answers"]) == (None, ["free text"])


def test_reference_reader_needs_no_id_of_a_text(tmp_path):
    lines(tmp_path / "test.json", [{"text": LONG}])
    got = read(tmp_path, "reference", "lrlm", chunk_words=10)
    assert {row["origin"] for row in got.queries["test"]} == {content_id(LONG)}


def test_reference_reader_refuses_two_files_of_one_split(tmp_path):
    for name in ("test.json", "test.concat.json"):
        lines(tmp_path / name, [{"query": "q", "answers": ["a"], "pos": ["p"]}])
    with pytest.raises(DataError, match="may all be the test split"):
        read(tmp_path, "reference")


def test_reference_reader_without_a_corpus_does_not_count_lines(tmp_path):
    rows = [{"query": f"q{i}", "pos": [f"P{i}"], "neg": ["N"], "pos_index": [5], "answers": ["a"]} for i in range(3)]
    lines(tmp_path / "rows.jsonl", rows)
    got = read(tmp_path / "rows.jsonl", "reference")
    found = {row["query"]: row["positive_ids"] for row in got.queries["train"]}
    assert found == {f"q{i}": [content_id(f"P{i}")] for i in range(3)}


def test_dev_split_takes_a_fifth_and_leaves_the_rest_to_train(tmp_path):
    rows = [question(i) for i in range(50)]
    got = read_layout(tmp_path, corpus=CORPUS, train=rows, dev_queries=4)
    dev, train = ({row["query_id"] for row in got.queries[split]} for split in ("dev", "train"))
    assert (len(dev), len(train)) == (4, 50 - DEV_SHARE * 50)
    assert not dev & train
    more = read_layout(tmp_path, corpus=CORPUS, train=rows[::-1], dev_queries=10, train_queries=20)
    assert dev < {row["query_id"] for row in more.queries["dev"]}
    assert not {row["query_id"] for row in more.queries["dev"]} & train
    assert "dev" not in read_layout(tmp_path, corpus=CORPUS, train=rows).queries


def test_dev_split_does_not_cut_documents_and_conversations_apart(tmp_path):
    documents = [{"query_id": f"doc{n}", "text": f"n{n} {LONG}"} for n in range(6)]
    got = read_layout(tmp_path / "lrlm", "lrlm", train=documents, chunk_words=10, dev_queries=100)
    dev, train = ({row["origin"] for row in got.queries[split]} for split in ("dev", "train"))
    assert (len(dev), len(train), dev & train) == (2, 4, set())
    chats = [{**question(i), "conversation_id": i // 5, "history": [f"turn {i}"]} for i in range(50)]
    got = read_layout(tmp_path / "chat", "chat", train=chats, dev_queries=100)
    dev, train = ({row["origin"] for row in got.queries[split]} for split in ("dev", "train"))
    assert (len(dev), len(train), dev & train) == (2, 8, set())


def test_dev_split_that_a_source_brings_is_kept(tmp_path):
    lines(tmp_path / "dev.jsonl", [question(i) for i in range(100, 110)])
    whole = read_layout(tmp_path, corpus=CORPUS, train=[question(i) for i in range(20)])
    assert (len(whole.queries["dev"]), len(whole.queries["train"])) == (10, 20)
    some = read_layout(tmp_path, corpus=CORPUS, dev_queries=3)
    assert (len(some.queries["dev"]), len(some.queries["train"])) == (3, 20)


CHOICE = {"query": "2 + 2?", "query_id": "m1", "options": ["3", "4"], "answers": ["4"], "category": "arithmetic"}


def test_layout_reader_keeps_options_and_rejects_an_answer_beside_them(tmp_path):
    wrong = {**CHOICE, "query_id": "m2", "answers": ["5"]}
    got = read_layout(tmp_path, corpus=CORPUS, test=[CHOICE, wrong])
    (row,) = got.queries["test"]
    assert (row["options"], row["answers"], row["category"]) == (["3", "4"], ["4"], "arithmetic")
    assert (row["positive_ids"], row["pool_ids"]) == ([], None)
    assert ["not among the options" in rejected.reason for rejected in got.rejected] == [True]


def test_layout_reader_takes_labels_of_the_folder_as_options_of_rows_without(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(["yes", "no"]), encoding="utf-8")
    rows = [{"query": f"q{i}", "query_id": f"q{i}", "answers": [answer]} for i, answer in enumerate(["yes", "no"])]
    got = read_layout(tmp_path, "icl", corpus=CORPUS, test=rows)
    assert [row["options"] for row in got.queries["test"]] == [["yes", "no"]] * 2


@pytest.mark.parametrize("text", ["{", "3", "[true]", '["a", " "]'])
def test_layout_reader_refuses_labels_that_are_no_texts(tmp_path, text):
    (tmp_path / "labels.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"labels\.json"):
        read_layout(tmp_path, "icl", corpus=CORPUS, test=[{"query": "q", "query_id": "q", "answers": ["a"]}])


def test_reader_size_counts_all_files(tmp_path):
    folder = write_beir(tmp_path)
    known = open_source(Source(task="tool", dataset="d", path=folder, format="beir"), BUILTIN_TASKS["tool"])
    assert known.size == sum((folder / name).stat().st_size for name in BEIR if name != "queries.jsonl")


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data are not here")
@pytest.mark.parametrize("folder", sorted(DATA.glob("icl/*")), ids=lambda path: path.name)
def test_layout_reader_finds_options_in_every_real_example_set(folder):
    prepared = read_source(Source(task="icl", dataset=folder.name, path=folder), BUILTIN_TASKS["icl"], 0)
    assert prepared.rejected == []
    assert all(len(row["options"]) >= 2 for row in prepared.queries["test"])
