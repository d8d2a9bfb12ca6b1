"""Ids and judgements of sources: what is an id, on both sides, and what it does not say."""

from __future__ import annotations

import pytest

from embedder.data.fields import RowError, as_id
from embedder.evaluation.retrieval import measure, own_examples, without_itself
from tests.unit.test_dataset import CORPUS, lines, question, read_layout
from tests.unit.test_source_readers import read, write_beir

IDS = [("7", "7"), (7, "7"), (7.0, "7"), (-3, "-3"), (" a b ", "a b"), ("７", "７"), ("p\x1b", "p\x1b")]
NO_NUMBERS = [True, False, 1.5, float("nan"), float("inf"), 1e300]
NO_IDS = [*NO_NUMBERS, None, "", "  ", "\u200b", [], ["a"], {}, "a\0b", "x" * 513]


@pytest.mark.parametrize(("value", "wanted"), IDS, ids=repr)
def test_as_id_takes_texts_and_whole_numbers(value, wanted):
    assert as_id(value, "id") == wanted


@pytest.mark.parametrize("value", NO_IDS, ids=lambda value: repr(value)[:12])
def test_as_id_refuses_everything_else(value):
    with pytest.raises(RowError, match="id "):
        as_id(value, "id")


@pytest.mark.parametrize("passage_id", [int, float, str, lambda i: f" {i} "])
@pytest.mark.parametrize("named", [int, float, str, lambda i: f"{i}\t"])
def test_layout_reader_takes_numbers_for_ids_on_both_sides(tmp_path, passage_id, named):
    """Integer ids find each other however each side writes them, case 03-integer-ids."""
    corpus = [{"id": passage_id(i), "text": f"passage {i}"} for i in range(5)]
    rows = [{"query_id": i, "query": f"question {i}", "answers": ["a"], "pos_ids": [named(i)]} for i in range(3)]
    got = read_layout(tmp_path, corpus=corpus, train=rows)
    assert (got.rejected, len(got.passages)) == ([], 5)
    assert {row["query_id"]: row["positive_ids"] for row in got.queries["train"]} == {
        str(i): [str(i)] for i in range(3)
    }


@pytest.mark.parametrize("kind", [int, float, str, lambda i: f" {i} "])
def test_beir_reader_takes_numbers_for_ids_on_all_sides(tmp_path, kind):
    files = {
        "corpus.jsonl": [{"_id": kind(i), "text": f"text {i}"} for i in range(3)],
        "queries.jsonl": [{"_id": kind(i), "text": f"question {i}"} for i in range(2)],
        "qrels/train.tsv": ["query-id\tcorpus-id\tscore", "0\t1\t1", " 1 \t 2 \t 1 "],
        "qrels/test.tsv": ["query-id\tcorpus-id\tscore", "0\t2\t1"],
    }
    got = read(write_beir(tmp_path, **files), "beir", "tool")
    assert got.rejected == []
    assert {row["query_id"]: row["positive_ids"] for row in got.queries["train"]} == {"0": ["1"], "1": ["2"]}


def test_reference_numbers_of_queries_and_passages_are_not_one_thing(tmp_path):
    """Queries and passages that are both numbered from 0: a perfect ranking is perfect, case 04-id-collision."""
    lines(tmp_path / "corpus.json", [{"title": "T", "text": f"text {i}"} for i in range(6)])
    rows = [{"query": f"q {i}", "query_id": i, "pos_index": [i], "answers": ["a"]} for i in range(4)]
    lines(tmp_path / "test.json", rows)
    got = read(tmp_path, "reference")
    queries = got.queries["test"]
    relevant = {row["query_id"]: dict.fromkeys(row["positive_ids"], 1) for row in queries}
    perfect = {
        query: [(passage_id, 1.0) for passage_id in found] + [(str(i), 0.5) for i in range(6) if str(i) not in found]
        for query, found in relevant.items()
    }
    value = measure(without_itself(perfect, 5, own_examples(queries)), relevant, ["R@5"])["R@5"]
    assert value == dict.fromkeys("0123", 1.0)
    assert {passage["answer"] for passage in got.passages.values()} == {None}


def test_reference_reader_counts_lines_as_rows_of_the_corpus(tmp_path):
    lines(tmp_path / "corpus.json", [{"text": "zero"}, "", {"text": " "}, "", {"text": "two"}])
    lines(tmp_path / "test.json", [{"query": "q", "pos_index": [2], "answers": ["a"]}])
    got = read(tmp_path, "reference")
    assert [got.passages[name]["text"] for name in got.queries["test"][0]["positive_ids"]] == ["two"]


QRELS = {
    "whole numbers written as floats": ["query-id\tcorpus-id\tscore", "q0\ta\t1.0", "q0\tb\t2.000", "q0\tc\t0.0"],
    "a heading in other letters": ["Query-ID\tCorpus ID\tScore", "q0\ta\t1", "q0\tb\t2"],
    "another tool's heading": ["query_id\tdoc_id\trelevance", "q0\ta\t1", "q0\tb\t2"],
    "no heading": ["q0\ta\t1", "q0\tb\t2"],
    "TREC's columns": ["q0\t0\ta\t1", "q0\t0\tb\t2"],
    "TREC's columns with spaces": ["q0 Q0 a 1", "q0  Q0   b  2"],
    "spaces around": ["query-id\tcorpus-id\tscore", "q0 \t a\t 1 ", " q0\tb \t+2"],
    "a judgement twice": ["q0\ta\t1", "q0\tb\t2", "q0\ta\t1"],
    "grades of passages that are not relevant": ["q0\ta\t1", "q0\tb\t2", "q0\tc\t-1"],
}


@pytest.mark.parametrize("rows", QRELS.values(), ids=QRELS.keys())
def test_beir_reader_takes_judgements_as_tools_write_them(tmp_path, rows):
    """Whole grades are grades, case 06-float-grades."""
    got = read(write_beir(tmp_path, **{"qrels/test.tsv": rows}), "beir", "tool")
    assert got.rejected == []
    (row,) = got.queries["test"]
    assert (row["positive_ids"], row["positive_grades"]) == (["a", "b"], [1, 2])


@pytest.mark.parametrize("score", ["1.5", "nan", "inf", "yes", "", "1e3", "1_0", "0x1", "9" * 5000, "2147483648", "²"])
def test_beir_reader_rejects_a_grade_that_is_no_whole_number(tmp_path, score):
    got = read(write_beir(tmp_path, **{"qrels/test.tsv": ["q0\tb\t1", f"q0\ta\t{score}"]}), "beir", "tool")
    (rejected,) = got.rejected
    assert rejected.line == 2 and "a whole number of at most 2147483647 is needed" in rejected.reason
    assert len(rejected.reason) < 300


def test_beir_reader_rejects_a_judgement_that_contradicts_an_earlier_one(tmp_path):
    got = read(write_beir(tmp_path, **{"qrels/test.tsv": ["q0\ta\t1", "q0\ta\t2"]}), "beir", "tool")
    assert [row.reason for row in got.rejected] == ["query 'q0' with 'a' was seen before, with score 1"]
    assert got.queries["test"][0]["positive_grades"] == [1]


def test_beir_reader_counts_strays(tmp_path):
    """Unknown ids, an empty passage, grades 0 and -1, CR LF, a query without hits: case 52-beir-strays."""
    corpus = [{"_id": str(i), "title": "", "text": f"text {i}" if i < 4 else ""} for i in range(5)]
    lines(tmp_path / "corpus.jsonl", corpus)
    lines(tmp_path / "queries.jsonl", [{"_id": query, "text": query} for query in "abc"])
    rows = ["query-id\tcorpus-id\tscore", "a\t0\t1", "a\tgone\t1", "b\t1\t0", "none\t1\t1", "c\t2\t-1", "c\t3\t2"]
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/test.tsv").write_bytes("".join(f"{row}\r\n" for row in rows).encode())
    got = read(tmp_path, "beir", "tool")
    assert sorted(row["query_id"] for row in got.queries["test"]) == ["a", "c"]
    assert len(got.rejected) == 3
    ranked = {"a": [], "c": [("3", 1.0)]}
    value = measure(ranked, {"a": {"0": 1}, "c": {"3": 2}}, ["R@5", "nDCG@5"])
    assert value["R@5"] == {"a": 0.0, "c": 1.0}


def test_dev_split_keeps_a_conversation_and_a_query_of_one_name_apart(tmp_path):
    rows = [question(i, query_id=f"{i}", pos_ids=[]) for i in range(20)]
    rows += [question(100 + i, conversation_id=i, pos_ids=[]) for i in range(20)]
    got = read_layout(tmp_path, corpus=CORPUS, train=rows, dev_queries=100)
    assert len(got.queries["dev"]) == 8


def test_beir_reader_keeps_a_passage_whose_metadata_nothing_could_be_filtered_by(tmp_path):
    corpus = [{"_id": "a", "text": "x", "metadata": {"year": 2020, "unknown": None}}]
    corpus += [{"_id": name, "text": "y", "metadata": {"deep": {"er": [[1]]}}} for name in "bc"]
    got = read(write_beir(tmp_path, **{"corpus.jsonl": corpus}), "beir", "tool")
    assert [passage["metadata"] for passage in got.passages.values()] == ['{"year":2020}', None, None]
    assert got.rejected == [] and any(
        "metadata of 2 passages not kept: metadata.deep.er.0" in note for note in got.notes
    )
