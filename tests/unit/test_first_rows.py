"""What `prepare`'s check reads of each source, and what it refuses before any work."""

from __future__ import annotations

import pytest

from embedder.config.prepare import Source
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.first_rows import MOST_ROWS, SAMPLE, read_first_rows
from embedder.errors import DataError
from tests.unit.tiny_folders import write_jsonl

PASSAGES = [{"id": f"p{number}", "text": f"passage {number}"} for number in range(3)]
ANSWERED = {"query": "a question", "answers": ["an answer"]}


def source_of(folder, task="qa", files=None, **fields):
    for name, rows in {"corpus": PASSAGES, **(files or {})}.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    return Source(task=task, dataset="mine", path=folder, **fields)


def read(folder, task="qa", files=None, spec=None, **fields):
    return read_first_rows(source_of(folder, task, files, **fields), spec or BUILTIN_TASKS[task])


def numbered(row, count):
    return [{**row, "query": f"{row['query']} {number}"} for number in range(count)]


def test_first_rows_tell_which_splits_will_have_queries(tmp_path):
    files = {"train": numbered(ANSWERED, 5), "test": numbered(ANSWERED, 2), "dev": []}
    assert read(tmp_path, files=files).splits == {"train", "test"}
    assert read(tmp_path, test_queries=0).splits == {"train"}
    (tmp_path / "dev.jsonl").unlink()
    assert read(tmp_path, dev_queries=2).splits == {"train", "test", "dev"}
    (tmp_path / "test.jsonl").unlink()
    rows = read(tmp_path)
    assert rows.splits == {"train"} and rows.learns and rows.notes == []


def test_first_rows_of_a_large_source_name_passages_that_stand_further_down(tmp_path):
    passages = [{"id": f"p{number}", "text": f"passage {number}"} for number in range(5 * MOST_ROWS[0])]
    files = {"corpus": passages, "train": [{"query": "a request", "pos_ids": [passages[-1]["id"]]}]}
    rows = read(tmp_path, "tool", files)
    assert rows.learns and rows.notes == []


def test_first_rows_that_would_be_rejected_are_counted_and_the_first_is_quoted(tmp_path):
    files = {"corpus": [*PASSAGES, {"id": "blank", "text": " "}], "train": [{"query": ""}, ANSWERED]}
    (note,) = read(tmp_path, files=files).notes
    assert note.startswith(f"mine: 2 of the first 6 rows would be rejected; first {tmp_path}/corpus.jsonl:4: ")


def test_first_rows_without_a_usable_one_are_refused_with_the_first_reason(tmp_path):
    with pytest.raises(
        DataError, match=r"all of the first 2 rows of .*corpus\.jsonl would be rejected; first line 1: "
    ):
        read(tmp_path, files={"corpus": [{"name": "p"}, {"name": "q"}], "train": [ANSWERED]})
    files = {"corpus": PASSAGES, "train": [{"question": "who?", "answers": ["me"]}]}
    with pytest.raises(
        DataError, match=r"all of the first 1 rows of .*train\.jsonl would be rejected; first line 1: no .query."
    ):
        read(tmp_path, files=files)


def test_first_rows_of_no_use_do_not_condemn_a_file_with_later_ones(tmp_path):
    files = {"train": [*numbered({"query": "without an answer"}, 2 * MOST_ROWS[0]), ANSWERED]}
    assert read(tmp_path, files=files).learns


def test_first_rows_without_answers_are_refused_with_the_settings_that_would_do(tmp_path):
    files = {"train": [{"query": "a question", "pos_ids": ["p0"]}]}
    with pytest.raises(DataError, match=r"no answers.*set tasks\.qa\.reward: none and tasks\.qa\.loss: contrastive$"):
        read(tmp_path, files=files)
    spec = BUILTIN_TASKS["qa"].model_copy(update={"reward": "none", "loss": "contrastive"})
    assert read(tmp_path, files=files, spec=spec).learns
    with pytest.raises(DataError, match="no answers") as refused:
        read(tmp_path, files={"train": [{"query": "neither answer nor positive"}]})
    assert "contrastive" not in str(refused.value)


def test_first_rows_without_known_positives_teach_a_contrastive_task_nothing(tmp_path):
    rows = read(tmp_path, "tool", {"train": numbered({"query": "a request"}, 4), "test": [ANSWERED]})
    assert not rows.learns and rows.splits == {"train", "test"}
    assert "none of the first 4 training rows names a known positive" in rows.notes[0]


def test_first_rows_of_a_corpus_of_blank_lines_are_refused(tmp_path):
    source = source_of(tmp_path, files={"train": [ANSWERED]})
    (tmp_path / "corpus.jsonl").write_text("\ufeff\n \n", encoding="utf-8")
    with pytest.raises(DataError, match="corpus of blank lines alone"):
        read_first_rows(source, BUILTIN_TASKS["qa"])


def test_first_rows_of_long_texts_are_read_without_a_corpus(tmp_path):
    source = Source(task="lrlm", dataset="books", path=tmp_path, chunk_words=8)
    write_jsonl(tmp_path / "train.jsonl", [{"query_id": "book", "text": "word " * 200}])
    rows = read_first_rows(source, BUILTIN_TASKS["lrlm"])
    assert rows.learns and len(rows.continued) == 17
    text = rows.continued[0]
    assert [len(each.split()) for each in (text.query, text.passage, text.output)] == [5 * 8, 2 * 8, 8]


def test_first_rows_keep_a_sample_of_what_the_llm_reads_of_long_texts(tmp_path):
    rows = [{"query_id": f"book {number}", "text": f"book{number} " * 400} for number in range(4)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    source = Source(task="lrlm", dataset="books", path=tmp_path, chunk_words=8, recent_chunks=1)
    sample = read_first_rows(source, BUILTIN_TASKS["lrlm"]).continued
    assert len(sample) == SAMPLE
    assert {each.query.split()[0] for each in sample} == {f"book{number}" for number in range(4)}
    assert read(tmp_path / "qa", files={"train": [ANSWERED]}).continued == []
