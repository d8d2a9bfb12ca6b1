"""Which worked example is a query itself: the text says it, for tasks that declare it, and never an id alone."""

from __future__ import annotations

import pytest

from embedder.config.prepare import Source
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.dataset import read_source
from embedder.data.worked_examples import KnownAnswers
from tests.conftest import DATA
from tests.unit.test_dataset import lines, read_layout

QUERY = {"query": "Is the sky blue?", "query_id": "3", "answers": ["yes", "sure"]}

EXAMPLES = {
    "query and answer": ({"id": "e", "text": "Is the sky blue? yes"}, True),
    "on two lines": ({"id": "e", "text": " Is  the sky\nblue?\nsure "}, True),
    "the query alone": ({"id": "e", "text": "Is the sky blue?", "answer": "yes"}, True),
    "other words around it, with its id": ({"id": 3, "text": "Input: Is the sky blue?\nLabel: yes"}, True),
    "other words around it, without its id": ({"id": 4, "text": "Input: Is the sky blue?\nLabel: yes"}, False),
    "its id and another text": ({"id": "3", "text": "Is the sea blue? yes"}, False),
    "its id, and its words within others": ({"id": "3", "text": "This the sky blue? yes"}, False),
    "its id, and no answer": ({"id": "3", "text": "Input: Is the sky blue?\nLabel: no"}, False),
    "another answer": ({"id": "e", "text": "Is the sky blue? no"}, False),
}


@pytest.mark.parametrize(("example", "own"), EXAMPLES.values(), ids=EXAMPLES.keys())
def test_link_examples_goes_by_text(tmp_path, example, own):
    """An equal id is never enough, case 04-id-collision."""
    corpus = [example, {"id": "other", "text": "Is grass red? no"}]
    got = read_layout(tmp_path, "icl", corpus=corpus, train=[QUERY])
    (query,) = got.queries["train"]
    assert query["example_ids"] == ([str(example["id"])] if own else [])
    assert got.passages[str(example["id"])]["answer"] == ("yes" if own else None)
    assert read_layout(tmp_path, "qa").queries["train"][0]["example_ids"] == []


def test_link_examples_compares_accents_in_one_form(tmp_path):
    query = {"query": "un caf\u00e9?", "answers": ["yes"]}
    got = read_layout(tmp_path, "icl", corpus=[{"id": "e", "text": "un cafe\u0301? yes"}], train=[query])
    assert got.queries["train"][0]["example_ids"] == ["e"]


def test_link_examples_is_for_tasks_that_declare_it(tmp_path):
    lines(tmp_path / "corpus.jsonl", [{"id": "3", "text": "Is the sky blue? yes"}])
    lines(tmp_path / "train.jsonl", [QUERY])
    source = Source(task="mine", dataset="d", path=tmp_path)
    found = {}
    for declared in (False, True):
        task = BUILTIN_TASKS["qa"].model_copy(update={"queries_are_examples": declared})
        found[declared] = read_source(source, task, 0).queries["train"][0]["example_ids"]
    assert found == {False: [], True: ["3"]}
    assert [name for name, task in BUILTIN_TASKS.items() if task.queries_are_examples] == ["icl"]


def test_link_examples_keeps_the_answer_that_the_corpus_gives(tmp_path):
    corpus = [{"id": "e", "text": "Is the sky blue? yes", "answer": "often"}]
    assert read_layout(tmp_path, "icl", corpus=corpus, train=[QUERY]).passages["e"]["answer"] == "often"


def test_link_examples_finds_every_copy_of_an_example(tmp_path):
    corpus = [{"id": name, "text": "Is the sky blue? yes"} for name in ("a", "b", "3")]
    assert read_layout(tmp_path, "icl", corpus=corpus, train=[QUERY]).queries["train"][0]["example_ids"] == [
        *("a", "b", "3")
    ]


def test_link_examples_is_quick_for_short_queries_in_long_texts(tmp_path):
    corpus = [{"id": "3", "text": "a " * 300_000}]
    row = {"query": "a", "query_id": "3", "answers": ["yes"]}
    assert read_layout(tmp_path, "icl", corpus=corpus, train=[row]).queries["train"][0]["example_ids"] == []


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data are not here")
@pytest.mark.parametrize("folder", sorted(DATA.glob("icl/*")), ids=lambda path: path.name)
def test_link_examples_of_real_data_links_every_training_row_to_its_own_and_no_test_row(folder):
    got = read_source(Source(task="icl", dataset=folder.name, path=folder), BUILTIN_TASKS["icl"], 0)
    assert all(row["example_ids"] == [row["query_id"]] for row in got.queries["train"])
    assert not any(row["example_ids"] for row in got.queries["test"])
    assert all(passage["answer"] for passage in got.passages.values())


@pytest.mark.parametrize(
    ("example", "answer"),
    [
        ("Is the sky blue? yes", "yes"),
        ("Play some jazz.\nplay  music", "play music"),
        ("What is it? music", "music"),
        ("Is the sky blue? eyes", None),
        ("yes", None),
        ("yes, the sky", None),
        ("", None),
        ("Un cafe\u0301? caf\u00e9", "caf\u00e9"),
    ],
)
def test_known_answers_find_the_longest_that_an_example_ends_with(example, answer):
    assert KnownAnswers(["yes", "music", "play  music", "cafe\u0301", " "]).ending(example) == answer


def test_known_answers_of_no_query_end_nothing():
    assert KnownAnswers([]).ending("Is the sky blue? yes") is None
