"""Every field that docs/data.md names, from the file to the text that the models see, or to the column that is used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from embedder.config.paths import Paths
from embedder.config.prepare import PrepareConfig, Source
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.records import PASSAGE, QUERY, parquet_files, read_tables
from embedder.hashing import content_id
from embedder.labelling.prompts import PromptBuilder
from embedder.mining.bm25 import LexicalIndex
from embedder.models.causal_lm import load_lm
from embedder.models.encoder import encode
from ray_jobs.prepare import prepare_dataset
from tests.unit.test_dataset import lines

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
SIGN = "zebra"
LONG = " ".join(f"word{i}" for i in range(80))

PASSAGES = [{"id": "p0", "text": "first"}, {"id": "p1", "text": "second"}]
ASKED = {"query": "who", "answers": ["he"], "pos_ids": ["p0"]}
CHAT = {"query": "who", "answers": ["he"], "history": ["old", "new"]}
DOCUMENT = {"query_id": "doc", "text": LONG}
BEIR = {
    "corpus.jsonl": [{"_id": "p0", "text": "first"}],
    "queries.jsonl": [{"_id": "q", "text": "who"}],
    "qrels/train.tsv": ["q\tp0\t1"],
}


def layout(row, *corpus):
    return {"corpus.jsonl": [*PASSAGES, *corpus], "train.jsonl": [row]}


def query(tables):
    return tables[0][0]


def positives(tables):
    return {tables[1][name]["text"] for name in query(tables)["positive_ids"]}


def pool(tables):
    return [tables[1][name]["text"] for name in query(tables)["pool_ids"]]


def column(name, wanted):
    return lambda tables: query(tables)[name] == wanted


def of_passage(name, wanted):
    return lambda tables: wanted in [passage[name] for passage in tables[1].values()]


LAYOUT_CORPUS = {
    "id": (layout({**ASKED, "pos_ids": [SIGN]}, {"id": SIGN, "text": "t"}), "qa", column("positive_ids", [SIGN])),
    "text": (layout(ASKED, {"id": "p", "text": f"a {SIGN}"}), "qa", of_passage("text", f"a {SIGN}")),
    "title": (layout(ASKED, {"id": "p", "text": "a", "title": SIGN}), "qa", of_passage("text", f"{SIGN} a")),
    "answer": (layout(ASKED, {"id": "p", "text": "a", "answer": SIGN}), "icl", of_passage("answer", SIGN)),
    "metadata": (
        layout(ASKED, {"id": "p", "text": "a", "metadata": {"a": SIGN}}),
        "qa",
        of_passage("metadata", '{"a":"zebra"}'),
    ),
}
LAYOUT_QUERIES = {
    "query": (layout({**ASKED, "query": f"a {SIGN}"}), "qa", column("query", f"a {SIGN}")),
    "query_id": (layout({**ASKED, "query_id": SIGN}), "qa", column("query_id", SIGN)),
    "answers": (layout({**ASKED, "answers": ["he", SIGN]}), "qa", column("answers", ["he", SIGN])),
    "pos_ids": (layout({**ASKED, "pos_ids": ["p1"]}), "qa", lambda tables: positives(tables) == {"second"}),
    "pos": (
        layout({"query": "who", "answers": ["he"], "pos": ["second", SIGN]}),
        "qa",
        lambda tables: positives(tables) == {"second", SIGN} and query(tables)["pool_ids"] is None,
    ),
    "neg_ids": (layout({**ASKED, "neg_ids": ["p1"]}), "qa", lambda tables: pool(tables) == ["first", "second"]),
    "neg": (layout({**ASKED, "neg": [SIGN]}), "qa", lambda tables: pool(tables) == ["first", SIGN]),
    "history": (
        {"train.jsonl": [{**CHAT, "history": ["old", SIGN]}]},
        "chat",
        lambda tables: pool(tables) == ["old", SIGN],
    ),
    "gold_history": (
        {"train.jsonl": [{**CHAT, "gold_history": [1]}]},
        "chat",
        lambda tables: positives(tables) == {"new"},
    ),
    "options": (layout({**ASKED, "options": ["he", SIGN]}), "qa", column("options", ["he", SIGN])),
    "category": (layout({**ASKED, "category": SIGN}), "qa", column("category", SIGN)),
    "subject": (layout({**ASKED, "subject": SIGN}), "qa", column("category", SIGN)),
    "conversation_id": (layout({**ASKED, "conversation_id": 7}), "qa", column("origin", "7")),
    "text": ({"train.jsonl": [{**DOCUMENT, "text": f"{SIGN} {LONG}"}]}, "lrlm", lambda tables: SIGN in pool(tables)[0]),
    "title": ({"train.jsonl": [{**DOCUMENT, "title": SIGN}]}, "lrlm", of_passage("title", SIGN)),
}
FILES = {
    "corpus.jsonl": LAYOUT_CORPUS["id"],
    "train.jsonl": LAYOUT_QUERIES["query"],
    "test.jsonl": (
        {**layout(ASKED), "test.jsonl": [{**ASKED, "query": SIGN}]},
        "qa",
        lambda tables: SIGN in [row["query"] for row in tables[0]],
    ),
    "dev.jsonl": (
        {**layout(ASKED), "dev.jsonl": [{**ASKED, "query": SIGN}]},
        "qa",
        lambda tables: SIGN in [row["query"] for row in tables[0]],
    ),
    "labels.json": ({**layout(ASKED), "labels.json": ['["he", "zebra"]']}, "qa", column("options", ["he", SIGN])),
}
BEIR_FIELDS = {
    "_id": ({**BEIR, "queries.jsonl": [{"_id": "q", "text": SIGN}]}, "tool", column("query_id", "q")),
    "title": (
        {**BEIR, "corpus.jsonl": [{"_id": "p0", "title": SIGN, "text": "a"}]},
        "tool",
        of_passage("text", "zebra a"),
    ),
    "text": ({**BEIR, "queries.jsonl": [{"_id": "q", "text": SIGN}]}, "tool", column("query", SIGN)),
    "metadata": (
        {**BEIR, "corpus.jsonl": [{"_id": "p0", "text": "a", "metadata": {"a": SIGN}}]},
        "tool",
        of_passage("metadata", '{"a":"zebra"}'),
    ),
    "1": ({**BEIR, "qrels/train.tsv": ["q\tp0\t3"]}, "tool", column("positive_grades", [3])),
    "1.0": ({**BEIR, "qrels/train.tsv": ["q\tp0\t3.0"]}, "tool", column("positive_grades", [3])),
}
BEIR_FILES = ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "dev.tsv", "test.tsv")


def numbered(row, **fields):
    """A reference folder with a corpus."""
    return {"corpus.json": [{"title": "T", "text": "first"}, {"text": SIGN}], "train.json": [{**row, **fields}]}


PLAIN = {"query": "who", "answers": ["he"]}
SCORED = {**PLAIN, "pos": ["P"], "neg": ["N"], "teacher_scores": [0.5, 0.25]}
CHOICES = {"query": "who", "choices": ["he", SIGN], "answer": 1}
REFERENCE_FIELDS = {
    "pos_index": (numbered(PLAIN, pos_index=[1]), "qa", lambda tables: positives(tables) == {SIGN}),
    "neg_index": (
        numbered({**PLAIN, "teacher_scores": [1, 2], "pos_index": [0]}, neg_index=[1]),
        "qa",
        lambda tables: pool(tables) == ["T first", SIGN],
    ),
    "teacher_scores": ({"train.json": [SCORED]}, "qa", column("teacher_scores", [0.5, 0.25])),
    "dataset": (
        {"train.json": [SCORED, {**SCORED, "query": SIGN, "dataset": "other"}]},
        "qa",
        lambda tables: [row["query"] for row in tables[0]] == ["who"],
    ),
    "possible_answers": (numbered(PLAIN, possible_answers=[SIGN]), "qa", column("answers", [SIGN])),
    "choices": (numbered(CHOICES), "qa", column("options", ["he", SIGN])),
    "answer": (numbered(CHOICES), "qa", column("answers", [SIGN])),
    "task_name": (numbered(PLAIN, task_name=SIGN), "qa", column("category", SIGN)),
}
SHARED = ("query", "query_id", "answers", "pos", "neg", "history", "gold_history", "options", "category", "subject")
SHARED += ("conversation_id", "text", "title")
REFERENCE_SHARED = {
    name: ({"train.json": rows}, task, wanted)
    for name in SHARED
    for files, task, wanted in [LAYOUT_QUERIES[name]]
    for rows in [
        [
            {**row, "pos_ids": None, "pos": row.get("pos", ["first"])} if "pos_ids" in row else row
            for row in (files["train.jsonl"])
        ]
    ]
}
CASES = {
    **{("layout", f"corpus {name}"): case for name, case in LAYOUT_CORPUS.items()},
    **{("layout", f"row {name}"): case for name, case in LAYOUT_QUERIES.items()},
    **{("layout", name): case for name, case in FILES.items()},
    **{("beir", name): case for name, case in BEIR_FIELDS.items()},
    **{("reference", name): case for name, case in REFERENCE_FIELDS.items()},
    **{("reference", f"shared {name}"): case for name, case in REFERENCE_SHARED.items() if name != "pos"},
    **{
        ("reference", f"corpus {name}"): (
            {"corpus.json": [{name: SIGN} if name != "title" else {"title": SIGN, "text": "a"}], "train.json": [PLAIN]},
            "qa",
            of_passage("text", f"{SIGN} a" if name == "title" else SIGN),
        )
        for name in ("title", "text", "contents", "content")
    },
}


def tables_of(folder, form, files, task):
    """All query rows and the passages by id that `prepare` writes of a source."""
    for name, rows in files.items():
        lines(folder / "source" / name, rows)
    scored = form == "reference" and any("teacher_scores" in row for row in files["train.json"])
    sizes = {"chunk_words": 8} if task == "lrlm" else {}
    source = Source(task=task, dataset="d", path=folder / "source", format=form, teacher_scores=scored, **sizes)
    counts = prepare_dataset(source, BUILTIN_TASKS[task], PrepareConfig(sources=[source]), Paths(work=folder))
    assert counts["rejected"] == 0
    queries = read_tables(sorted(folder.glob("prepared/queries/*/d.parquet")), QUERY).to_pylist()
    passages = read_tables(parquet_files(folder / "prepared" / "corpus" / "d"), PASSAGE).to_pylist()
    return queries, {passage["id"]: passage for passage in passages}


@pytest.mark.parametrize(("key", "case"), CASES.items(), ids=lambda value: " ".join(value) if len(value) == 2 else "")
def test_documented_field_reaches_the_column_that_is_used(tmp_path, key, case):
    files, task, wanted = case
    assert wanted(tables_of(tmp_path, key[0], files, task))


def documented(section: str, column: int = 0) -> list[set[str]]:
    """Names in a column of each table of a section, by table."""
    text = DOCS.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [
        {name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[column + 1])}
        for table in tables
    ]


def test_documented_fields_are_those_that_are_tried():
    files, corpus, queries, tasks = documented("The layout")
    assert (files, corpus, queries, tasks) == (set(FILES), set(LAYOUT_CORPUS), set(LAYOUT_QUERIES), set(BUILTIN_TASKS))
    beir_files, reference = documented("Other formats")
    assert (beir_files, reference) == (set(BEIR_FILES), set(REFERENCE_FIELDS))
    assert documented("Other formats", 1)[0] == set(BEIR_FIELDS)
    shared = DOCS.read_text(encoding="utf-8").split("Beside `query`")[1].split(" of the layout it knows")[0]
    assert {"query", *re.findall(r"`([^`]+)`", shared)} == set(SHARED)


class Listening:
    """An encoder that keeps what it is given."""

    dimension = 1

    def __init__(self):
        self.texts = []

    def tokenize(self, texts):
        self.texts += texts
        return []


TITLED = {"text": "was born in Ulm.", "title": f"Albert {SIGN}"}
TITLES = {
    "layout": {"corpus.jsonl": [{"id": "p0", **TITLED}], "train.jsonl": [ASKED]},
    "beir": {**BEIR, "corpus.jsonl": [{"_id": "p0", **TITLED}]},
    "reference": {"corpus.json": [TITLED], "train.json": [{**PLAIN, "pos_index": [0]}]},
}


@pytest.mark.parametrize("form", TITLES)
def test_title_reaches_encoder_word_search_and_llm_in_every_format(tmp_path, form, tiny_llm):
    """What is encoded, searched by words and shown to the LLM of a passage, case 38-title-unread."""
    _, passages = tables_of(tmp_path, form, TITLES[form], "tool" if form == "beir" else "qa")
    ((name, passage),) = passages.items()
    assert (passage["text"], passage["title"]) == (f"Albert {SIGN} was born in Ulm.", f"Albert {SIGN}")
    encoder = Listening()
    encode(encoder, [passage["text"]], BUILTIN_TASKS["qa"], "passage")
    assert SIGN in str(encoder.texts[0])
    (found,) = LexicalIndex([name, "other"], [passage["text"], "nothing"]).search([SIGN], [None], 1)
    assert [each for each, _ in found] == [name]
    lm = load_lm(tiny_llm, tmp_path / "cache", device="cpu")
    builder = PromptBuilder(lm, BUILTIN_TASKS["qa"].template, 32, 200)
    assert passage["text"] in lm.tokenizer.decode(builder.prefix("where?", [passage["text"]], []).ids)


def test_pos_that_is_a_passage_of_the_corpus_is_that_passage(tmp_path):
    """The text of a titled passage stands in rows with and without its title."""
    corpus = [{"id": "p0", "text": "first", "title": "T"}, {"id": "p1", "text": "second"}]
    rows = [{**PLAIN, "query": text, "pos": [text]} for text in ("first", "T first", "second", "new")]
    queries, passages = tables_of(tmp_path, "layout", {"corpus.jsonl": corpus, "train.jsonl": rows}, "qa")
    assert {row["query"]: row["positive_ids"] for row in queries} == {
        "first": ["p0"],
        "T first": ["p0"],
        "second": ["p1"],
        "new": [content_id("new")],
    }
    assert len(passages) == 3
