"""Files of lines as bytes: marks, encodings, ends of lines, and what is JSON but not what it seems."""

from __future__ import annotations

import gzip
import json

import pytest

from embedder.config.prepare import Source
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data import json_lines
from embedder.data.dataset import read_source
from embedder.data.fields import RowError
from embedder.data.json_lines import MAX_NESTING, parse_object, read_text_lines
from embedder.errors import DataError
from tests.unit.test_dataset import CORPUS, lines, question, read_layout
from tests.unit.test_source_readers import read, write_beir

MARK = b"\xef\xbb\xbf"


def texts_of(path):
    return [(line.number, line.text) for line in read_text_lines(path)]


def rewrite(folder, change):
    """Change the bytes of every file of a folder."""
    for path in folder.rglob("*.*"):
        path.write_bytes(change(path.read_bytes()))
    return folder


def layout_folder(folder):
    lines(folder / "corpus.jsonl", CORPUS)
    lines(folder / "train.jsonl", [question(i) for i in range(3)])
    return folder


CHANGES = {
    "a mark at the beginning": lambda raw: MARK + raw,
    "two marks, as of a file that was marked twice": lambda raw: MARK + MARK + raw,
    "a mark at each line, as of joined files": lambda raw: MARK + raw.replace(b"\n", b"\n" + MARK),
    "blank lines at the end": lambda raw: raw + b"\n\n \t\r\n",
    "blank lines within": lambda raw: raw.replace(b"\n", b"\n\n"),
    "no end of the last line": lambda raw: raw.rstrip(b"\n"),
    "ends of lines of Windows": lambda raw: raw.replace(b"\n", b"\r\n"),
    "ends of lines of old Macs": lambda raw: raw.replace(b"\n", b"\r"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_reader_takes_marks_and_blank_lines_for_nothing(tmp_path, change):
    """Nothing is lost and nothing is rejected, cases 01-bom and 07-blank-lines-at-the-end."""
    got = read(rewrite(layout_folder(tmp_path / "layout"), change), "layout")
    assert (got.rejected, got.rows_in, len(got.passages), len(got.queries["train"])) == ([], 9, 6, 3)
    plain = read(write_beir(tmp_path / "plain"), "beir", "tool")
    marked = read(rewrite(write_beir(tmp_path / "beir"), change), "beir", "tool")
    assert (marked.rejected, marked.queries, marked.passages) == ([], plain.queries, plain.passages)
    assert marked.rows_in == plain.rows_in


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", ["latin-1", "gbk", "cp1252"])
def test_reader_rejects_a_line_that_is_not_utf8(tmp_path, encoding, packed):
    """No text of another encoding enters with replacement characters, case 02-not-utf8."""
    rows = [{"query": "q", "pos": ["P"], "neg": ["N"], "answers": ["a"]} for _ in range(2)]
    rows[1] |= {"query": "où", "pos": ["crème" if encoding != "gbk" else "你好"]}
    raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).replace("où", "q2").encode(encoding)
    path = tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")
    path.write_bytes(gzip.compress(raw) if packed else raw)
    got = read(path, "reference")
    assert [(row.line, "is not UTF-8" in row.reason) for row in got.rejected] == [(2, True)]
    assert not any("\ufffd" in passage["text"] for passage in got.passages.values())
    first = next(i for i, byte in enumerate(raw.split(b"\n")[1], start=1) if byte > 127)
    assert got.rejected[0].reason.startswith(f"byte {first} (0x")


def test_reader_rejects_lines_that_are_not_utf8_in_every_file_of_a_folder(tmp_path):
    def spoil(raw):
        return raw + b'{"_id": "\xe9", "text": "\xe9"}\n'

    assert len(read(rewrite(layout_folder(tmp_path / "layout"), spoil), "layout").rejected) == 2
    got = read(rewrite(write_beir(tmp_path / "beir"), spoil), "beir", "tool")
    assert sorted(row.file.rsplit("/", 1)[1] for row in got.rejected) == [
        "corpus.jsonl",
        "queries.jsonl",
        "test.tsv",
        "train.tsv",
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_reader_refuses_a_file_of_wide_characters_in_one_line(tmp_path, encoding):
    folder = rewrite(layout_folder(tmp_path), lambda raw: raw.decode().encode(encoding))
    with pytest.raises(DataError, match=r"corpus\.jsonl: is not UTF-8 but UTF-16 or UTF-32; save it as UTF-8") as told:
        read(folder, "layout")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("raw", "reason"), [(b'["\xe9"]', r"byte 3 \(0xe9\) is not UTF-8"), (b"[" * 999, "nested")])
def test_layout_reader_refuses_labels_that_cannot_be_read(tmp_path, raw, reason):
    (tmp_path / "labels.json").write_bytes(raw)
    with pytest.raises(DataError, match=rf"labels\.json: {reason}"):
        read(layout_folder(tmp_path), "layout", "icl")


def test_layout_reader_takes_labels_with_a_mark(tmp_path):
    (tmp_path / "labels.json").write_bytes(MARK + b'["answer 0", "answer 1", "answer 2"]')
    assert [row["options"][0] for row in read(layout_folder(tmp_path), "layout").queries["train"]] == ["answer 0"] * 3


def test_text_lines_that_are_too_long_are_cut_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 10)
    path = tmp_path / "rows.jsonl"
    for end in (b"\n", b"\r\n"):
        path.write_bytes(end.join([b"0123456789"[: 11 - len(end)], b"x" * 35, b"y" * 11, b"end", b""]))
        found = [(line.number, line.text[:9], line.fault) for line in read_text_lines(path)]
        long = "a line of more than 10 bytes"
        assert found == [
            (1, "012345678", None),
            (2, "xxxxxxxxx", long),
            (3, "yyyyyyyyy", long),
            (4, "end", None),
        ]


def test_text_lines_of_a_file_without_ends_of_lines_are_one_line_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 10)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"one\rtwo\rthree\rfour\r")
    assert [(line.number, line.fault) for line in read_text_lines(path)] == [(1, "a line of more than 10 bytes")]


def test_text_lines_end_at_line_feeds_and_carriage_returns_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("a\u2028b\x0bc\x85d\x0ce\nf", encoding="utf-8")
    assert texts_of(path) == [(1, "a\u2028b\x0bc\x85d\x0ce"), (2, "f")]


NO_ROWS = {
    "a field twice": ('{"query": "a", "query": "b"}', "the field 'query' stands twice"),
    "a field twice within": ('{"metadata": {"a": 1, "a": 2}}', "the field 'a' stands twice"),
    "deep lists": ('{"a": ' + "[" * 65 + "]" * 65 + "}", f"nested more than {MAX_NESTING} levels"),
    "endless lists": ("[" * 500_000, f"nested more than {MAX_NESTING} levels"),
    "half a surrogate": (r'{"query": "\ud800"}', "half of a character"),
    "half a surrogate in a name": (r'{"\udfff": 1}', "half of a character"),
    "a number of 5,000 digits": ('{"query_id": ' + "9" * 5000 + "}", "not JSON"),
    "a bare empty byte": ('{"query": "a\0b"}', "not JSON"),
    "two objects": ('{"query": "a"} {"query": "b"}', "not JSON: Extra data"),
    "the beginning of an array": ("[ ", "write one object a line"),
    "the beginning of an object": ("{", "write one object a line"),
    "nothing but an end": ("\x1a", "not JSON"),
}


@pytest.mark.parametrize(("line", "reason"), NO_ROWS.values(), ids=NO_ROWS.keys())
def test_parse_object_says_why_a_line_is_no_row(line, reason):
    with pytest.raises(RowError, match=reason):
        parse_object(line)


def test_parse_object_counts_no_brackets_in_texts():
    row = {"text": "[{" * 500 + '\\"' * 7 + "[" * 99, "a": [[1]] * 80}
    assert parse_object(json.dumps(row)) == row


def test_parse_object_takes_whole_characters_of_two_halves():
    assert parse_object(r'{"query": "\ud83d\ude00"}') == {"query": "😀"}


AWKWARD = {
    "an empty byte is text": ({"query": "a\0b"}, None),
    "a number that is none, in a field that is read": ({"category": float("nan")}, "category is nan"),
    "a number that is none, in a field that is not read": ({"weight": float("inf")}, None),
    "nothing but joiners": ({"query": "\u200b\u2060\ufeff"}, "query is '\\u200b"),
    "a title of a number": ({"category": 1984}, None),
    "null for a long text": ({"text": None, "history": None}, None),
    "a list for a text": ({"category": ["x"]}, "category is ['x']"),
    "a truth for a text": ({"subject": True}, "subject is True"),
    "a text for a list": ({"answers": "yes"}, "answers is not a list of non-empty texts, but 'yes'"),
    "numbers among answers": ({"answers": [1945, 3.5, "x"]}, None),
    "a truth among answers": ({"answers": [True]}, "entry 0 is True"),
    "an endless number among answers": ({"answers": [float("inf")]}, "entry 0 is inf"),
    "an object for a list": ({"pos_ids": {"p0": 1}}, "pos_ids is not a list of ids, but {'p0': 1}"),
}


@pytest.mark.parametrize(("fields", "reason"), AWKWARD.values(), ids=AWKWARD.keys())
def test_layout_reader_decides_about_awkward_values(tmp_path, fields, reason):
    got = read_layout(tmp_path, corpus=CORPUS, train=[question(1), question(9, **fields)])
    assert [reason in row.reason for row in got.rejected] == ([] if reason is None else [True])
    assert len(got.queries["train"]) == 2 - len(got.rejected)


def test_layout_reader_reads_numbers_of_lists_as_their_texts(tmp_path):
    got = read_layout(tmp_path, corpus=CORPUS, train=[question(1, answers=[1945, 3.5, " x "])])
    assert got.queries["train"][0]["answers"] == ["1945", "3.5", "x"]


def test_damaged_archive_is_refused_with_its_line(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"query": "q"}\n' * 9000)[:-30])
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz:\d+: not readable"):
        read_source(Source(task="qa", dataset="d", path=path, format="reference"), BUILTIN_TASKS["qa"], 0)
