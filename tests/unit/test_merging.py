"""Rows that are one query: what is united, what contradicts, and how they are counted."""

from __future__ import annotations

import pytest

from embedder.hashing import content_id
from tests.unit.test_dataset import CORPUS, lines, question, read_layout
from tests.unit.test_source_readers import read, write_beir


def without_id(i, **fields):
    return {name: value for name, value in question(i, **fields).items() if name != "query_id"}


@pytest.mark.parametrize("row", [without_id, question], ids=["without an id", "with an id"])
def test_merging_unites_positives_and_answers_of_one_query_on_several_lines(tmp_path, row):
    rows = [row(0), row(1), row(0, pos_ids=["p1"]), row(0, pos_ids=["p2", "p0"], answers=["other", "answer 0"])]
    got = read_layout(tmp_path, corpus=CORPUS, train=rows)
    assert (got.rejected, got.merged, got.rows_in, got.rows_out) == ([], 2, 10, 8)
    merged = next(query for query in got.queries["train"] if query["query"] == "question 0")
    assert (merged["positive_ids"], merged["answers"]) == (["p0", "p1", "p2"], ["answer 0", "other"])
    assert merged["query_id"] == row(0).get("query_id", content_id("d", "question 0"))


def test_merging_unites_candidates_of_rows_that_bring_their_own(tmp_path):
    rows = [{"query": "q", "pos": ["P"], "neg": ["N"]}, {"query": "q", "pos": ["O"], "neg": ["N", "M"]}]
    lines(tmp_path / "rows.jsonl", rows)
    got = read(tmp_path / "rows.jsonl", "reference", "tool")
    (query,) = got.queries["train"]
    assert [got.passages[name]["text"] for name in query["pool_ids"]] == ["P", "N", "O", "M"]
    assert query["positive_ids"] == [content_id("P"), content_id("O")]
    assert got.merged == 1


@pytest.mark.parametrize(
    "facts",
    [
        [{"options": ["answer 0", "x"]}, {"options": ["answer 0", "y"]}],
        [{"conversation_id": "c"}, {"conversation_id": "d"}],
        [{"category": "c"}, {"subject": "d"}],
    ],
    ids=["options", "conversations", "subjects"],
)
def test_merging_leaves_queries_of_one_text_apart_that_differ_in_what_they_are(tmp_path, facts):
    """Nobody gave them one id: each is kept, and a repetition of either is merged."""
    rows = [without_id(0, **fact) for fact in facts]
    got = read_layout(tmp_path, corpus=CORPUS, train=[*rows, *rows])
    assert (got.rejected, got.merged, len(got.queries["train"])) == ([], 2, 2)


def test_merging_leaves_groups_with_scores_apart(tmp_path):
    """Scores are for the candidates of their row, so two rows are two groups; the same row twice is one."""
    rows = [{"query": "q", "answers": ["a"], "pos": ["P"], "neg": [text], "teacher_scores": [2, 1]} for text in "NMN"]
    lines(tmp_path / "rows.jsonl", rows)
    got = read(tmp_path / "rows.jsonl", "reference", teacher_scores=True)
    assert (got.rejected, got.merged, len(got.queries["train"])) == ([], 1, 2)


CONTRADICTIONS = {
    "another query of its id": (question(1), question(1, query="other"), "with another query"),
    "another subject": (question(1, category="a"), question(1, category="b"), "with category 'a'"),
    "another conversation": (question(1, conversation_id=1), question(1, conversation_id=2), "with origin '1'"),
    "another option that is right": (
        question(1, options=["answer 1", "x"]),
        question(1, options=["answer 1", "x"], answers=["x"]),
        "with the answer",
    ),
    "other options": (
        question(1, options=["answer 1", "x"]),
        question(1, options=["answer 1", "y"]),
        "with options",
    ),
    "candidates of its own in one row": (question(1), question(1, neg_ids=["p3"]), "candidates of its own"),
    "negative here and positive there": (
        question(1, neg_ids=["p3"]),
        question(1, pos_ids=["p3"], neg_ids=["p4"]),
        "a candidate that is positive in one row and negative in the other",
    ),
}


@pytest.mark.parametrize(("first", "second", "reason"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_merging_rejects_a_row_that_contradicts_an_earlier_one(tmp_path, first, second, reason):
    got = read_layout(tmp_path / "both", corpus=CORPUS, train=[first, second])
    (rejected,) = got.rejected
    assert rejected.line == 2 and "was seen before, with" in rejected.reason and reason in rejected.reason
    alone = read_layout(tmp_path / "alone", corpus=CORPUS, train=[first])
    assert got.queries == alone.queries


def test_merging_keeps_the_same_words_after_different_histories_apart(tmp_path):
    rows = [{"query": "thanks", "answers": ["bye"], "history": [f"turn {i}"]} for i in (0, 1, 0)]
    got = read_layout(tmp_path / "chat", "chat", train=rows)
    assert (got.rejected, got.merged, len(got.queries["train"])) == ([], 1, 2)
    named = read_layout(tmp_path / "named", "chat", train=[{**row, "query_id": 1} for row in rows])
    assert [row.reason for row in named.rejected] == ["query_id '1' was seen before, with another history"]


def test_merging_counts_equal_passages_and_rejects_another_of_their_id(tmp_path):
    corpus = [*CORPUS, CORPUS[0], {**CORPUS[1], "title": "another"}]
    got = read_layout(tmp_path, corpus=corpus, train=[question(1)])
    assert (got.merged, len(got.passages)) == (1, 6)
    assert [row.reason for row in got.rejected] == ["id 'p1' was seen before, with another text"]


def test_merging_of_long_texts_is_by_their_text(tmp_path):
    texts = [" ".join(f"{start}{i}" for i in range(60)) for start in "ab"]
    rows = [{"query_id": "doc", "text": text} for text in (texts[0], texts[0], texts[1])]
    got = read_layout(tmp_path / "one", "lrlm", train=rows, chunk_words=10, recent_chunks=0)
    assert (got.merged, len(got.queries["train"])) == (1, 2)
    assert [row.reason for row in got.rejected] == ["query_id 'doc' was seen before, with another text"]
    got = read_layout(tmp_path / "two", "lrlm", train=rows[:1], test=rows[2:], chunk_words=10, recent_chunks=0)
    assert got.rejected == []
    for split, text in zip(("train", "test"), texts, strict=True):
        for query in got.queries[split]:
            assert query["query"] in text
            assert all(got.passages[name]["text"] in text for name in query["pool_ids"])


def test_merging_of_a_question_and_a_long_text_of_one_name_is_refused(tmp_path):
    document = {"query_id": "doc", "text": " ".join(f"w{i}" for i in range(60))}
    rows = [question(1, query_id="doc#3", pos_ids=[], pos=["P"]), document]
    got = read_layout(tmp_path, "lrlm", train=rows, chunk_words=10, recent_chunks=0)
    assert ["of another kind of row" in row.reason for row in got.rejected] == [True]


def test_merging_counts_queries_of_beir(tmp_path):
    rows = [{"_id": f"q{i}", "text": f"question {i}"} for i in (0, 1, 2, 3, 3)] + [{"_id": "q3", "text": "other"}]
    got = read(write_beir(tmp_path, **{"queries.jsonl": rows}), "beir", "tool")
    assert got.merged == 1
    assert [row.reason for row in got.rejected] == ["_id 'q3' was seen before, with another text"]
