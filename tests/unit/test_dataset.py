"""Source files: both formats, all tasks; what is kept and how much."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.prepare import Source
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.dataset import read_source
from embedder.data.rows import Prepared
from embedder.errors import DataError
from embedder.hashing import content_id
from tests.unit.judges import quick


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def read_layout(folder, task="qa", seed=0, corpus=None, train=None, test=None, **fields) -> Prepared:
    for name, rows in {"corpus": corpus, "train": train, "test": test}.items():
        if rows is not None:
            lines(folder / f"{name}.jsonl", rows)
    return read_source(Source(task=task, dataset="d", path=folder, **fields), BUILTIN_TASKS[task], seed)


def read_reference(folder, rows, task="qa", **fields) -> Prepared:
    lines(folder / "rows.jsonl", rows)
    source = Source(task=task, dataset="d", path=folder / "rows.jsonl", format="reference", **fields)
    return read_source(source, BUILTIN_TASKS[task], 0)


CORPUS = [{"id": f"p{i}", "text": f"passage {i}", "title": f"title {i}"} for i in range(6)]


def question(i: int, **fields) -> dict[str, object]:
    row = {"query": f"question {i}", "query_id": f"q{i}", "pos_ids": [f"p{i % 6}"], "answers": [f"answer {i}"]}
    return {**row, **fields}


def test_layout_reader_keeps_ids_texts_and_titles(tmp_path):
    got = read_layout(tmp_path, corpus=CORPUS, train=[question(1)], test=[question(2)])
    assert got.queries["train"] == [
        {
            "task": "qa",
            "dataset": "d",
            "query_id": "q1",
            "query": "question 1",
            "answers": ["answer 1"],
            "positive_ids": ["p1"],
            "positive_grades": None,
            "pool_ids": None,
            "example_ids": [],
            "teacher_scores": None,
            "options": None,
            "category": None,
            "origin": None,
        }
    ]
    assert [query["query_id"] for query in got.queries["test"]] == ["q2"]
    assert [passage["text"] for passage in got.passages.values()] == [f"title {i} passage {i}" for i in range(6)]
    assert got.passages["p3"]["title"] == "title 3"
    assert (got.rows_in, got.rows_out, got.rejected) == (8, 8, [])


SCORED = {"teacher_scores": [0.9, 0.1, 0.2], "pos_index": [5], "answers": ["yes"]}
REFERENCE_ROWS = {
    "qa": {"query": "q", "pos": ["P"], "neg": ["N", "M"], **SCORED},
    "convsearch": {"query": "turn 1\nturn 2", "pos": ["P"], "neg": ["N", "M"], "teacher_scores": None, "answers": None},
    "tool": {"query": "do it", "pos": ["P"], "neg": ["N", "M"], "pos_index": [0]},
    "icl": {"query": "good movie", "pos": ["P"], "neg": ["N", "M"], **SCORED},
    "lrlm": {"query": "chunk", "pos": ["P"], "neg": ["N", "M"], **SCORED},
    "chat": {"query": "and then?", "history": ["P", "N", "M"], "answers": ["it rained"], "gold_history": [0]},
}


@pytest.mark.parametrize("task", REFERENCE_ROWS)
def test_reference_reader_takes_the_candidates_of_a_row(tmp_path, task):
    got = read_reference(tmp_path, [{**REFERENCE_ROWS[task], "task": task, "query_id": "r1"}], task)
    assert got.rejected == []
    (query,) = got.queries["train"]
    assert (query["query_id"], query["positive_ids"]) == ("r1", [content_id("P")])
    assert query["pool_ids"] == [content_id(text) for text in "PNM"]
    assert [got.passages[passage_id]["text"] for passage_id in query["pool_ids"]] == ["P", "N", "M"]


def test_reference_reader_makes_a_missing_id_from_the_text(tmp_path):
    row = REFERENCE_ROWS["qa"]
    got = read_reference(tmp_path, [row])
    assert got.queries["train"][0]["query_id"] == content_id("d", row["query"])


def test_reference_reader_tells_of_scores_that_are_not_used(tmp_path):
    got = read_reference(tmp_path, [REFERENCE_ROWS["qa"]])
    assert got.notes == ["rows.jsonl: teacher_scores of 1 rows not used; `label` gives its own rewards"]


def test_layout_reader_gives_a_worked_example_its_answer(tmp_path):
    corpus = [{"id": "q1", "text": "question 1 answer 1"}, {"id": "other", "text": "x"}]
    got = read_layout(tmp_path, "icl", corpus=corpus, train=[question(1, pos_ids=[])])
    assert (got.passages["q1"]["answer"], got.passages["other"]["answer"]) == ("answer 1", None)


LONG = " ".join(f"w{i}" for i in range(95))


def test_layout_reader_cuts_a_long_text_into_queries_whose_answer_is_the_next_chunk(tmp_path):
    sizes = {"chunk_words": 10, "recent_chunks": 2, "history_chunks": 3}
    got = read_layout(tmp_path, "lrlm", train=[{"query_id": "doc", "text": LONG}], **sizes)
    chunks = [" ".join(LONG.split()[i : i + 10]) for i in range(0, 95, 10)]
    queries = {query["query_id"]: query for query in got.queries["train"]}
    assert sorted(queries) == [f"doc#{j}" for j in range(5, 9)]
    for j in range(5, 9):
        query = queries[f"doc#{j}"]
        assert (query["query"], query["answers"]) == (" ".join(chunks[j - 2 : j + 1]), [f" {chunks[j + 1]}"])
        earlier = [i for i in range(j - 3) if i >= j - 3 - 3]
        assert query["pool_ids"] == [f"doc#{i}" for i in earlier]
        assert [got.passages[f"doc#{i}"]["text"] for i in earlier] == [f"{chunks[i]} {chunks[i + 1]}" for i in earlier]


@quick
@given(
    st.lists(st.sampled_from(["word", "x ", "\n\n  y", "\tz\n", "é, ", " ("]), min_size=30, max_size=90),
    st.integers(8, 9),
    st.integers(0, 4),
)
def test_layout_reader_takes_exact_slices_that_end_before_the_query(tmp_path_factory, pieces, size, recent):
    text = " ".join(pieces)
    folder = tmp_path_factory.mktemp("lrlm")
    row = {"query_id": "doc", "text": text}
    chunks = -(-len(text.split()) // size)
    sizes = {"chunk_words": size, "recent_chunks": recent}
    if chunks < recent + 5:
        with pytest.raises(DataError, match="no passage"):
            read_layout(folder, "lrlm", train=[row], **sizes)
        return
    got = read_layout(folder, "lrlm", train=[row], **sizes)
    words = text.split()
    for query in got.queries["train"]:
        j = int(query["query_id"].removeprefix("doc#"))
        assert query["query"] + query["answers"][0] in text
        assert query["query"].split() == words[(j - recent) * size : (j + 1) * size]
        assert query["answers"][0].split() == words[(j + 1) * size : (j + 2) * size]
        for passage_id in query["pool_ids"]:
            i = int(passage_id.removeprefix("doc#"))
            assert i + 1 < j - recent
            assert got.passages[passage_id]["text"] in text
            assert got.passages[passage_id]["text"].split() == words[i * size : (i + 2) * size]


def test_dataset_limits_are_seeded_and_keep_their_choice_when_they_grow(tmp_path):
    rows = [question(i) for i in range(30)]

    def kept(limit, seed=0):
        got = read_layout(tmp_path, corpus=CORPUS, train=rows, train_queries=limit, seed=seed)
        assert got.left_out == 30 - limit
        return {query["query_id"] for query in got.queries["train"]}

    assert len(kept(10)) == 10
    assert kept(10) == kept(10)
    assert kept(10) != kept(10, seed=1)
    assert kept(10) < kept(20)
    assert kept(0) == set()


def test_dataset_limit_does_not_depend_on_the_order_of_the_lines(tmp_path):
    rows = [question(i) for i in range(20)]
    one = read_layout(tmp_path / "a", corpus=CORPUS, train=rows, train_queries=5)
    other = read_layout(tmp_path / "b", corpus=CORPUS, train=rows[::-1], train_queries=5)
    assert one.queries == other.queries


def test_dataset_limit_takes_queries_evenly_from_long_texts(tmp_path):
    rows = [{"query_id": f"doc{n}", "text": LONG} for n in range(3)]
    got = read_layout(tmp_path, "lrlm", train=rows, chunk_words=10, recent_chunks=1, train_queries=6)
    documents = [query["query_id"].split("#")[0] for query in got.queries["train"]]
    assert documents == ["doc0", "doc0", "doc1", "doc1", "doc2", "doc2"]


def test_dataset_passage_limit_never_drops_what_kept_queries_name(tmp_path):
    got = read_layout(tmp_path, corpus=CORPUS, train=[question(5)], test=[question(4)], passages=3)
    assert {"p4", "p5"} < set(got.passages)
    assert (len(got.passages), got.left_out) == (3, 3)
    again = read_layout(tmp_path, passages=3)
    assert list(again.passages) == list(got.passages)
    tight = read_layout(tmp_path, passages=1)
    assert set(tight.passages) == {"p4", "p5"}


def test_dataset_leaves_out_the_candidates_of_rows_that_it_leaves_out(tmp_path):
    rows = [{**REFERENCE_ROWS["qa"], "query_id": str(i), "pos": [f"P{i}"], "neg": []} for i in range(4)]
    got = read_reference(tmp_path, rows, train_queries=1)
    (query,) = got.queries["train"]
    assert list(got.passages) == query["pool_ids"]


LINES = st.sampled_from(["good", "dup", "bad json", "no text", "list", "unknown id", "no answer", "blank"])


def _line(kind: str, number: int) -> object:
    return {
        "good": question(number),
        "dup": question(0),
        "bad json": '{"query": ',
        "no text": question(number, query="  "),
        "list": [1, 2],
        "unknown id": question(number, pos_ids=["nowhere"]),
        "no answer": question(number, answers=[]),
        "blank": "",
    }[kind]


@quick
@given(
    st.lists(LINES, max_size=12),
    st.lists(LINES, max_size=6),
    st.none() | st.integers(0, 5),
    st.none() | st.integers(1, 5),
)
def test_dataset_keeps_leaves_out_or_rejects_every_row(tmp_path_factory, train, test, queries, passages):
    corpus = [*CORPUS, CORPUS[0], {"id": "no text"}, "{", {"id": "p9", "text": ""}]
    files = {"corpus": corpus, "train": [_line(kind, i) for i, kind in enumerate(train)]}
    files["test"] = [_line(kind, i) for i, kind in enumerate(test)]
    limits = {"train_queries": queries, "passages": passages}
    got = read_layout(tmp_path_factory.mktemp("rows"), **files, **limits)
    assert got.rows_in == sum(row != "" for rows in files.values() for row in rows)
    assert got.rows_in == got.rows_out + got.merged + got.left_out + len(got.rejected)
    assert got.rows_out == len(got.passages) + sum(map(len, got.queries.values()))


def test_layout_reader_keeps_metadata_and_rejects_what_cannot_be_filtered_by(tmp_path):
    corpus = [
        {"id": "a", "text": "x", "metadata": {"year": 2020, "tags": ["new"]}},
        {"id": "b", "text": "y"},
        {"id": "c", "text": "z", "metadata": {"year": [1, "two"]}},
    ]
    got = read_layout(tmp_path, corpus=corpus, train=[question(1, pos_ids=["a"])], test=[])
    assert {name: one["metadata"] for name, one in got.passages.items()} == {
        "a": '{"tags":["new"],"year":2020}',
        "b": None,
    }
    assert ["metadata.year" in one.reason for one in got.rejected] == [True]
