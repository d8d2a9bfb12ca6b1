"""Source rows that are set aside, with file, line and reason, and sources that are refused as a whole."""

from __future__ import annotations

import pytest

from embedder.config.prepare import Source
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.dataset import read_source
from embedder.errors import DataError
from embedder.hashing import content_id
from tests.unit.test_dataset import CORPUS, REFERENCE_ROWS, lines, question, read_layout, read_reference

BAD_ROWS = {
    "not json": ('{"query": "x"', "not JSON"),
    "a number of 5,000 digits": ('{"query": ' + "9" * 5000 + "}", "not JSON"),
    "no object": ([1, 2], "a list, not an object"),
    "no query": (question(9, query=None), "query is None"),
    "blank query": (question(9, query=" \n"), "query is ' \\n'"),
    "query of another type": (question(9, query=["x"]), "query is ['x']"),
    "id seen before": (question(1, query="other"), "query_id 'q1' was seen before, with another query"),
    "unknown positive": (question(9, pos_ids=["p0", "gone"]), "pos_ids ['gone'] are not in the corpus"),
    "positives of another type": (question(9, pos_ids="p0"), "pos_ids is not a list"),
    "no answer": (question(9, answers=[]), "no answers, but tasks.qa.reward is 'rank'"),
    "empty answer": (question(9, answers=["", "x"]), "answers is not a list of non-empty texts"),
    "short document": ({"query_id": "q9", "text": "a b c"}, "only 1 chunks of 48 words"),
}


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_layout_reader_rejects_a_bad_row_with_file_line_and_reason(tmp_path, row, reason):
    got = read_layout(tmp_path, corpus=CORPUS, train=[question(1), row, question(2)])
    (rejected,) = got.rejected
    assert (rejected.file, rejected.line) == (str(tmp_path / "train.jsonl"), 2)
    assert reason in rejected.reason
    assert [query["query_id"] for query in got.queries["train"]] == ["q1", "q2"]


def test_layout_reader_takes_rows_without_answers_where_the_reward_needs_none(tmp_path):
    own = BUILTIN_TASKS["qa"].model_copy(update={"reward": "own_answers"})
    lines(tmp_path / "corpus.jsonl", CORPUS)
    lines(tmp_path / "train.jsonl", [question(1), question(2, answers=None)])
    got = read_source(Source(task="qa", dataset="d", path=tmp_path), own, 0)
    assert [query["answers"] for query in got.queries["train"]] == [question(1)["answers"], []]
    assert not got.rejected


BAD_PASSAGES = {
    "no text": ({"id": "x"}, "text is None"),
    "no id": ({"text": "x"}, "id is None"),
    "id seen before": ({"id": "p0", "text": "x"}, "id 'p0' was seen before"),
}


@pytest.mark.parametrize(("row", "reason"), BAD_PASSAGES.values(), ids=BAD_PASSAGES.keys())
def test_layout_reader_rejects_a_bad_passage_with_file_line_and_reason(tmp_path, row, reason):
    got = read_layout(tmp_path, corpus=[*CORPUS, row], train=[question(1)])
    (rejected,) = got.rejected
    assert (rejected.file, rejected.line) == (str(tmp_path / "corpus.jsonl"), 7)
    assert reason in rejected.reason
    assert got.passages["p0"]["text"] == "title 0 passage 0"


@pytest.mark.parametrize("gold", [[3], [-1], ["0"], [0, 7]])
def test_reference_reader_rejects_a_gold_position_outside_the_history(tmp_path, gold):
    row = {**REFERENCE_ROWS["chat"], "gold_history": gold}
    got = read_reference(tmp_path, [REFERENCE_ROWS["chat"], row], "chat")
    assert [(rejected.line, rejected.reason) for rejected in got.rejected] == [
        (2, f"gold_history {gold} leaves the history of 3")
    ]


def test_layout_reader_rejects_a_row_without_candidates_where_no_corpus_has_any(tmp_path):
    rows = [{"query": "q", "pos": ["p"]}, {"query": "r"}, {"query": "s", "history": [], "neg": []}]
    lines(tmp_path / "train.jsonl", rows)
    spec = BUILTIN_TASKS["tool"]
    got = read_source(Source(task="tool", dataset="d", path=tmp_path), spec, seed=0)
    assert [(row.line, row.reason.split(";")[0]) for row in got.rejected] == [
        (2, "no candidates"),
        (3, "no candidates"),
    ]


def test_layout_reader_reads_ids_and_texts_of_one_row_and_tells_what_is_on_both_sides(tmp_path):
    rows = [
        {"query": "q", "pos_ids": ["p0"], "pos": ["passage 1", "new"], "answers": ["a"]},
        {"query": "r", "pos_ids": ["p0"], "neg": ["passage 0", "passage 2"], "answers": ["a"]},
    ]
    got = read_layout(tmp_path, corpus=CORPUS, train=rows)
    queries = {query["query"]: query for query in got.queries["train"]}
    assert queries["q"]["positive_ids"] == ["p0", "p1", content_id("new")]
    assert (queries["r"]["positive_ids"], queries["r"]["pool_ids"]) == (["p0"], ["p0", "p2"])
    assert got.notes == [
        "train.jsonl: 1 passages are positive and negative in one row; they count as positive",
        "train.jsonl: 1 texts of rows are not in the corpus and were added to it",
    ]


def test_dataset_tells_of_test_queries_that_are_trained_on(tmp_path):
    other = {**question(3), "answers": ["another"]}
    got = read_layout(tmp_path, corpus=CORPUS, train=[question(1), question(3)], test=[question(1), question(2), other])
    assert got.notes == ["1 test queries, answers included, are training queries too"]


def test_layout_reader_needs_no_answer_of_a_task_without_reward(tmp_path):
    got = read_layout(tmp_path, "tool", corpus=CORPUS, train=[question(1, answers=[])])
    assert got.rejected == []


def test_dataset_corpus_lacks_the_candidates_of_a_rejected_row(tmp_path):
    rows = [REFERENCE_ROWS["qa"], {**REFERENCE_ROWS["qa"], "query": "other", "pos": ["SPY"], "answers": []}]
    got = read_reference(tmp_path, rows)
    assert len(got.rejected) == 1
    assert content_id("SPY") not in got.passages


@pytest.mark.parametrize("file_format", ["layout", "reference"])
def test_dataset_of_a_missing_source_is_refused(tmp_path, file_format):
    source = Source(task="qa", dataset="d", path=tmp_path / "gone", format=file_format)
    with pytest.raises(DataError, match=r"source d: .*gone is no"):
        read_source(source, BUILTIN_TASKS["qa"], 0)


def test_layout_reader_refuses_a_folder_without_rows(tmp_path):
    with pytest.raises(DataError, match=r"neither train\.jsonl nor test\.jsonl"):
        read_layout(tmp_path, corpus=CORPUS)


@pytest.mark.parametrize(("corpus", "reason"), [([], "is empty"), (["{"], "no passage"), (None, "no passage")])
def test_dataset_without_passages_is_refused(tmp_path, corpus, reason):
    with pytest.raises(DataError, match=reason):
        read_layout(tmp_path, corpus=corpus, train=[question(1)])


def test_reference_reader_rejects_a_text_that_is_no_unicode(tmp_path):
    lines(tmp_path / "rows.jsonl", [REFERENCE_ROWS["qa"], r'{"query": "\ud800", "pos": ["P"], "answers": ["x"]}'])
    source = Source(task="qa", dataset="d", path=tmp_path / "rows.jsonl", format="reference")
    got = read_source(source, BUILTIN_TASKS["qa"], 0)
    assert [rejected.line for rejected in got.rejected] == [2]


def test_reference_reader_rejects_a_line_of_deeply_nested_json(tmp_path):
    got = read_reference(tmp_path, [REFERENCE_ROWS["qa"], "[" * 100_000])
    assert [rejected.line for rejected in got.rejected] == [2]


def test_reference_reader_rejects_gold_positions_that_are_no_list(tmp_path):
    got = read_reference(tmp_path, [REFERENCE_ROWS["chat"], {**REFERENCE_ROWS["chat"], "gold_history": 1}], "chat")
    assert [rejected.line for rejected in got.rejected] == [2]


@pytest.mark.parametrize("history", [None, []])
def test_reference_reader_finds_positives_beside_an_absent_history(tmp_path, history):
    got = read_reference(tmp_path, [{**REFERENCE_ROWS["qa"], "history": history}])
    assert got.queries["train"][0]["positive_ids"] == [content_id("P")]


def test_reference_reader_knows_a_positive_that_stands_in_the_history(tmp_path):
    row = {"query": "and?", "history": ["N", "P"], "pos": ["P"], "neg": ["N"], "answers": ["it rained"]}
    got = read_reference(tmp_path, [row], "chat")
    assert got.queries["train"][0]["positive_ids"] == [content_id("P")]


def test_reference_reader_takes_the_number_zero_as_an_id(tmp_path):
    got = read_reference(tmp_path, [{**REFERENCE_ROWS["qa"], "query_id": 0}])
    assert got.queries["train"][0]["query_id"] == "0"


def test_layout_reader_keeps_long_texts_of_one_id_in_both_splits_apart(tmp_path):
    texts = {split: " ".join(f"{split}{i}" for i in range(60)) for split in ("train", "test")}
    rows = {split: [{"query_id": "doc", "text": text}] for split, text in texts.items()}
    try:
        got = read_layout(tmp_path, "lrlm", chunk_words=10, recent_chunks=0, **rows)
    except DataError:
        return  # refusing them is as good
    for split, text in texts.items():
        for query in got.queries.get(split, []):
            assert all(got.passages[passage_id]["text"] in text for passage_id in query["pool_ids"])
