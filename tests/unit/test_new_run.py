"""`llm-embedder init`: what it finds in data, and that the run file it writes says so."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
from pathlib import Path

import pytest
import yaml

from embedder.cli.new_run import Wishes, write_new_run
from embedder.config.load import load_run
from embedder.data.dataset import read_source
from embedder.errors import ConfigError, DataError, ModelError, StorageError
from tests.storage import files_end_at
from tests.unit.tiny_folders import write_jsonl

DOCS = Path(__file__).parents[2] / "docs"
QUESTION = {"query": "who?", "answers": ["she"], "pos_ids": ["p"]}


@pytest.fixture
def init(tmp_path, tiny_encoder_folder, tiny_llama_folder):
    """Writes a run file for data below `tmp_path`; returns it as it is read, and as it was written."""

    def write(*data, **wishes):
        out = tmp_path / "run.yaml"
        given = {"task": None, "questions": None, "work": str(tmp_path / "work"), "encoder": str(tiny_encoder_folder)}
        given |= {"llm": str(tiny_llama_folder), "gpus": 0, "asks": False, "replaces": True, "out": out} | wishes
        written = write_new_run(Wishes(tuple(tmp_path / each for each in data), **given))
        return load_run(out), written, out.read_text(encoding="utf-8")

    return write


def corpus(folder: Path, **rows) -> None:
    write_jsonl(folder / "corpus.jsonl", [{"id": "p", "text": "a passage"}])
    for split, row in rows.items():
        write_jsonl(folder / f"{split}.jsonl", [row])


def test_init_writes_a_run_with_comments_for_a_folder_of_questions(tmp_path, init):
    corpus(tmp_path / "handbook", train=QUESTION, test=QUESTION)
    config, written, text = init("handbook")
    source = config.prepare.sources[0]
    assert (source.task, source.dataset, source.format) == ("qa", "handbook", "layout")
    assert (config.evaluate.split, config.tasks["qa"].reward) == ("test", "rank")
    assert text.count("#") > 8 and "cls, mean or last" in text
    assert written.record()["sources"][0]["train_rows"] == 1
    assert written.lines()[-1].endswith(f"llm-embedder serve --config {written.path}")


def test_init_keeps_training_rows_to_measure_where_there_is_no_test_file(tmp_path, init):
    corpus(tmp_path / "handbook", train=QUESTION)
    config, _, _ = init("handbook")
    assert (config.evaluate.split, config.prepare.sources[0].dev_queries) == ("dev", 200)


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"query": "q", "answers": ["a"], "history": ["b", "c"]}, "chat"),
        ({"text": " ".join(f"word{i}" for i in range(2000))}, "lrlm"),
        ({**QUESTION, "conversation_id": "c"}, "convsearch"),
        ({**QUESTION, "task": "tool"}, "tool"),
    ],
)
def test_init_takes_the_task_that_the_rows_speak_for(tmp_path, init, row, task):
    corpus(tmp_path / "data", train=row)
    assert init("data")[0].prepare.sources[0].task == task


def test_init_makes_one_run_of_all_folders_below(tmp_path, init):
    corpus(tmp_path / "all" / "tool" / "ours", train=QUESTION)
    corpus(tmp_path / "all" / "handbook", train=QUESTION)
    sources = init("all")[0].prepare.sources
    assert [(source.task, source.dataset) for source in sources] == [("qa", "handbook"), ("tool", "ours")]


def test_init_learns_from_right_passages_alone_where_there_are_no_answers_or_no_llm(tmp_path, init):
    folder = tmp_path / "beir"
    write_jsonl(folder / "corpus.jsonl", [{"_id": "p", "text": "a passage"}])
    write_jsonl(folder / "queries.jsonl", [{"_id": "q", "text": "a query"}])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\tp\t1\n", encoding="utf-8")
    config, written, _ = init("beir")
    assert (config.prepare.sources[0].format, config.tasks["qa"].loss, config.llm) == ("beir", "contrastive", None)
    assert written.record()["llm"] is None
    corpus(tmp_path / "handbook", train=QUESTION)
    assert init("handbook", llm="none")[0].tasks["qa"].reward == "none"


def test_init_refuses_rows_that_nothing_can_be_learned_from(tmp_path, init):
    corpus(tmp_path / "handbook", train={"query": "who?", "answers": ["she"]})
    with pytest.raises(ConfigError, match=r"name no right passage .* give --llm"):
        init("handbook", llm="none")


def test_init_gives_everything_gpus(tmp_path, init):
    corpus(tmp_path / "handbook", train=QUESTION)
    config, _, _ = init("handbook", gpus=2)
    assert (config.encoder.gpus_per_actor, config.label.gpus_per_actor, config.train.gpus_per_worker) == (1, 1, 1)
    assert (config.encoder.num_actors, config.label.num_actors, config.train.num_workers) == (2, 2, 2)
    assert (config.encoder.dtype, config.llm.dtype, config.train.precision) == ("bfloat16",) * 3


def documents(folder: Path) -> None:
    (folder / "guide").mkdir(parents=True)
    (folder / "guide" / "first.md").write_text("# Leave\n\nThere are thirty days of it.\n", encoding="utf-8")


def test_init_lets_the_llm_write_questions_for_documents_alone(tmp_path, init):
    documents(tmp_path / "pages")
    config, written, text = init("pages")
    assert (config.prepare.sources[0].format, config.index.model) == ("documents", None)
    assert config.questions is not None and config.train is not None and "docs/questions.md" in text
    assert (config.tasks["qa"].reward, config.evaluate.split) == ("none", "test")
    assert written.record()["trains"] is True and written.record()["llm"] == config.llm.model
    assert "taught by questions that" in written.lines()[1]


def test_init_makes_a_run_without_training_of_documents_alone_where_there_is_no_llm(tmp_path, init):
    documents(tmp_path / "pages")
    config, written, _ = init("pages", llm="none")
    assert (config.prepare.sources[0].format, config.train, config.questions) == ("documents", None, None)
    assert config.index.model == config.encoder.model and written.record()["trains"] is False


def test_init_takes_no_llm_for_documents_alone_unless_it_is_named(tmp_path, init):
    documents(tmp_path / "pages")
    config, written, _ = init("pages", llm=None)
    assert (config.llm, config.questions) == (None, None)
    assert any("--questions FOLDER gives yours, or --llm MODEL" in line for line in written.lines())


def test_init_learns_from_the_users_own_questions_about_documents(tmp_path, init):
    documents(tmp_path / "pages")
    own = {"query": "how much leave?", "answers": ["thirty days"], "pos": ["There are thirty days of it."]}
    write_jsonl(tmp_path / "asked" / "train.jsonl", [own] * 3)
    config, written, _ = init("pages", questions=tmp_path / "asked")
    source = config.prepare.sources[0]
    assert (source.format, source.dataset, source.queries) == ("documents", "pages", tmp_path / "asked")
    assert config.train is not None and config.tasks["qa"].reward == "rank" and written.record()["trains"] is True
    write_jsonl(tmp_path / "other" / "test.jsonl", [{"query": own["query"], "pos": own["pos"]}])
    config, _, text = init("pages", questions=tmp_path / "other", llm=None)
    assert (config.train, config.index.model, config.evaluate.compares_trained) == (None, config.encoder.model, False)
    assert config.tasks["qa"].reward == "none" and "# Measured by the right passages" in text
    with pytest.raises(DataError, match=r"--questions .*: give a folder with train\.jsonl or test\.jsonl"):
        init("pages", questions=tmp_path / "pages")
    with pytest.raises(ConfigError, match="which of 2 folders are they about"):
        init("pages", "asked", questions=tmp_path / "asked")


def test_init_tells_of_documents_that_lie_beside_questions(tmp_path, init):
    documents(tmp_path / "handbook")
    corpus(tmp_path / "handbook" / "asked", train=QUESTION)
    _, written, _ = init("handbook")
    (note,) = (line for line in written.lines() if "left out" in line)
    assert "1 documents are left out, such as guide/first.md" in note and "--questions" in note


def test_init_takes_a_table_or_description_of_tools_for_documents(tmp_path, init):
    write_jsonl(tmp_path / "phones.jsonl", [{"id": "t1", "text": "The help desk answers until six."}])
    write_jsonl(tmp_path / "asked.jsonl", [{"query": "who?", "pos": ["she"], "neg": ["he"], "pos_index": 0}])
    formats = {name: init(name)[0].prepare.sources[0].format for name in ("phones.jsonl", "asked.jsonl")}
    assert formats == {"phones.jsonl": "documents", "asked.jsonl": "reference"}


TOOLS = {
    "tools": [
        {"name": "get_forecast", "description": "Returns the weather of a town.", "inputSchema": {"type": "object"}},
        {"name": "send_mail", "description": "Sends a mail to an address.", "inputSchema": {"type": "object"}},
    ]
}


def test_descriptions_of_tools_become_a_run_whose_passages_are_tools(tmp_path, init):
    """The files of docs/tools.md: a list of tools, then requests that quote the name of the right one."""
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS), encoding="utf-8")
    source = init("tools.json", task="tool", llm="none")[0].prepare.sources[0]
    assert (source.task, source.format) == ("tool", "documents")
    page = (DOCS / "tools.md").read_text(encoding="utf-8")
    (example,) = re.findall(r'^\{"query": .*"pos": .*\}$', page, re.MULTILINE)
    write_jsonl(tmp_path / "requests" / "train.jsonl", [json.loads(example)])
    config, _, _ = init("tools.json", task="tool", llm=None, questions=tmp_path / "requests")
    found = read_source(config.prepare.sources[0], config.tasks["tool"], 0)
    (query,) = itertools.chain(*found.queries.values())  # the only row is kept for dev
    (right,) = query["positive_ids"]
    assert len(found.passages) == 2 and "weather" in found.passages[right]["text"]


def test_init_tells_which_llm_it_takes_and_checks_that_it_is_there(tmp_path, init, tiny_llama_folder):
    corpus(tmp_path / "handbook", train=QUESTION)
    config, written, _ = init("handbook", llm=str(tiny_llama_folder))
    assert config.llm.model == str(tiny_llama_folder) and f"taught by {tiny_llama_folder}" in written.lines()[1]
    with pytest.raises(ModelError, match="no such folder"):
        init("handbook", llm=str(tmp_path / "elsewhere"))


def test_init_leaves_a_run_file_that_is_there(tmp_path, init):
    corpus(tmp_path / "handbook", train=QUESTION)
    (tmp_path / "run.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="is there already; write another one by --out, or replace it by --force"):
        init("handbook", replaces=False)
    assert (tmp_path / "run.yaml").read_text(encoding="utf-8") == "mine"


def test_init_tells_what_is_wrong_before_it_writes(tmp_path, init):
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "sea.png").touch()
    (tmp_path / "notes.txt").touch()
    corpus(tmp_path / "handbook", train=QUESTION)
    for data, wishes, kind, told in [
        ("none", {}, DataError, "no such folder or file"),
        ("empty", {}, DataError, "holds nothing; give a folder with corpus.jsonl"),
        ("photos", {}, DataError, r"holds sea\.png; give a folder"),
        ("notes.txt", {}, DataError, "all of the first 1 rows .* would be rejected; first line 0: empty"),
        ("handbook", {"task": "convsaerch"}, ConfigError, "did you mean convsearch?"),
        ("handbook", {"llm": str(tmp_path / "none")}, ModelError, "no such folder"),
    ]:
        with pytest.raises(kind, match=told):
            init(data, **wishes)
        assert not (tmp_path / "run.yaml").exists()


def test_init_on_a_full_disk_says_where_and_to_run_it_again(tmp_path, init):
    corpus(tmp_path / "handbook", train=QUESTION)
    with files_end_at(0), pytest.raises(StorageError, match=r"full .*; make room and run it again"):
        init("handbook")
    assert not (tmp_path / "run.yaml").exists()


def test_init_writes_paths_and_names_that_yaml_would_read_otherwise(tmp_path, init):
    corpus(tmp_path / "a: #b {c}", train=QUESTION)
    config, _, text = init("a: #b {c}")
    assert config.prepare.sources[0].path == tmp_path / "a: #b {c}"
    assert yaml.safe_load(text)["prepare"]["sources"][0]["dataset"] == "a-b-c"


def test_init_gives_two_folders_of_one_name_two_names_and_keeps_dots(tmp_path, init):
    for folder in ("a/man-1.0", "b/man-1.0", "man-1.1"):
        documents(tmp_path / folder)
    config, _, _ = init("a/man-1.0", "b/man-1.0", "man-1.1")
    assert [source.dataset for source in config.prepare.sources] == ["man-1.0", "man-1.0-2", "man-1.1"]


def test_init_does_not_look_into_hidden_folders(tmp_path, init):
    documents(tmp_path / "docs")
    corpus(tmp_path / "docs" / ".backup", train=QUESTION)
    config, _, _ = init("docs")
    assert [source.format for source in config.prepare.sources] == ["documents"]


def test_init_counts_the_rows_of_a_compressed_file(tmp_path, init):
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write(
            "".join(json.dumps({"query": f"q{i}", "answers": ["a"], "pos": ["a passage"]}) + "\n" for i in range(5000))
        )
    _, written, _ = init("rows.jsonl.gz")
    assert written.record()["sources"][0]["train_rows"] == 5000


def test_init_refuses_a_name_that_is_not_utf8_in_one_line(tmp_path, init):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe4ta"))
    documents(folder)
    with pytest.raises(DataError, match="its name is not UTF-8; rename it"):
        init(folder.name)
