"""2,000 random rows through the readers: each one ends in the output, merged, or rejected; none raises."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from embedder.config.paths import Paths
from embedder.config.prepare import PrepareConfig, Source
from embedder.config.tasks import BUILTIN_TASKS, TaskSpec
from embedder.data.fields import ALIASES
from embedder.errors import DataError
from ray_jobs.prepare import prepare_dataset
from tests.unit.test_documented_fields import BEIR_FIELDS, LAYOUT_CORPUS, LAYOUT_QUERIES, REFERENCE_FIELDS

ROWS = 40
"""Rows of one example: 17 examples of each of three formats are 2,040 rows."""
fuzz = settings(
    max_examples=17,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
"""Always the same examples; a failing one is shown as it is, since shrinking so much takes minutes."""

FIELDS = sorted({*LAYOUT_CORPUS, *LAYOUT_QUERIES, *REFERENCE_FIELDS, *BEIR_FIELDS, "contents", "content"})
NAMES = st.sampled_from(FIELDS) | st.sampled_from(sorted(sum(ALIASES.values(), ()))) | st.text(max_size=4)
TEXTS = st.sampled_from(
    ["", " ", "p0", "q0", "0", "a", "no", "\u200b", "\0", "\ufeff", "\ud800", "𝕏", "e\u0301", "x" * 600]
)
SCALARS = st.none() | st.booleans() | st.integers(-3, 9) | st.integers() | st.floats() | TEXTS | st.text(max_size=20)
LARGE = st.sampled_from(["word " * 200_000, [0] * 300_000, {"a" * 1_000_000: 1}, 10**4000, "é\n" * 300_000])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
DEEP = st.integers(1, 900).map(lambda depth: "[" * depth + "]" * depth)
GOOD: dict[str, list[dict[str, Any]]] = {
    "layout": [
        {"query_id": "q0", "query": "who", "answers": ["he", "she"], "pos_ids": ["p0"], "options": ["he", "she"]},
        {"query": "when", "answers": ["now"], "pos": ["first"], "neg": ["N"], "category": "time"},
        {"query": "and", "answers": ["so"], "history": ["a", "b"], "gold_history": [0], "conversation_id": 3},
        {"query_id": 7, "text": "a b c d e f g h " * 9, "title": "T"},
    ],
    "reference": [
        {
            "query": "who",
            "pos": ["P"],
            "neg": ["N"],
            "answers": ["he"],
            "pos_index": [0],
            "neg_index": [1],
            "teacher_scores": [1, 2],
        },
        {"query": "who", "query_id": 3, "choices": ["x", "y"], "answer": "B", "subject": "s"},
        {"query": "who", "options": ["x", "y"], "answers": ["1"], "task_name": "rte"},
        {"query": "who", "possible_answers": '["a", "b"]', "pos_index": [1]},
    ],
    "beir": [{"_id": f"q{i}", "text": f"question {i}", "metadata": {}} for i in range(4)],
}
PASSAGES = [{"id": f"p{i}", "_id": f"p{i}", "text": f"text {i}", "title": "T", "metadata": {"a": 1}} for i in range(3)]
JUDGEMENTS = ["query-id\tcorpus-id\tscore", "q0\tp0\t1", "q1\tp1\t1.0", "q2 0 p2 3"]
STRANGE = st.sampled_from(
    ["\t", "\t\t", "q0\tp0", "q0\tp0\t1\t1\t1", "q0\tp0\tNaN", "\0\t\0\t1", "q0\tp0\t" + "9" * 5000]
)


def written(value: object) -> bytes:
    """JSON as it may stand in a file, half surrogates written out."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", errors="surrogatepass")


@st.composite
def changed(draw: st.DrawFn, rows: list[dict[str, Any]]) -> bytes:
    """A good row of which some fields have another value or another name."""
    row = dict(draw(st.sampled_from(rows)))
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(row)) | NAMES)
        change = draw(st.sampled_from(["value", "inside", "name", "gone", "large"]))
        if change == "gone":
            row.pop(name, None)
        elif change == "name" and name in row:
            row[draw(NAMES)] = row.pop(name)
        elif change == "inside" and isinstance(row.get(name), list):
            row[name] = [*row[name], draw(VALUES)]
        else:
            row[name] = draw(LARGE) if change == "large" and draw(st.integers(0, 19)) == 0 else draw(VALUES)
    return written(row)


def any_line(rows: list[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    """Lines of a file: mostly rows that were changed, and some that are nothing like a row."""
    damaged = st.tuples(changed(rows), st.integers(0, 99), st.binary(max_size=3)).map(
        lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]
    )
    nested = DEEP.map(lambda brackets: f'{{"query": "who", "answers": {brackets}}}'.encode())
    return (
        changed(rows) | changed(rows) | changed(rows) | damaged | VALUES.map(written) | nested
        | st.binary(max_size=40)
    )  # fmt: skip


def lines_of(raw: bytes) -> int:
    """Rows that a file holds: lines that are not blank."""
    lines = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return sum(
        bool(line.decode("utf-8", errors="replace").strip(" \ufeff\t\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0"))
        for line in lines
    )


REFUSALS = ("no passage in", "can be used", "no query in", "UTF-16", "is empty", "labels.json: ")


def check_sum(
    folder: Path, source: Source, task: TaskSpec, files: dict[str, bytes], judgements: bool = False
) -> Counter[str]:
    """Write the files, prepare them, and see that every row is counted once; returns the counts."""
    for name, raw in files.items():
        path = folder / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    settings = PrepareConfig(sources=[source], max_rejected_share=1.0)
    try:
        counts = prepare_dataset(source, task, settings, Paths(work=folder))
    except DataError as error:
        # A source may be refused as a whole, in one line, but never as a defect.
        told = str(error)
        assert "defect" not in told
        assert any(reason in told for reason in REFUSALS) and "\n" not in told
        return Counter(refused=1)
    kept = ("rows_out", "merged", "left_out", "rejected")
    assert counts["rows_in"] == sum(counts[name] for name in kept)
    file = folder / "prepared/rejected/d.json"
    rejected = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    assert len(rejected) == counts["rejected"]
    assert all(0 < len(row["reason"]) < 2000 for row in rejected)
    if not judgements:
        assert counts["rows_in"] == sum(map(lines_of, files.values()))
    return Counter({name: counts[name] for name in kept})


def joined(lines: list[bytes]) -> bytes:
    return b"\n".join(lines) + b"\n"


@pytest.mark.parametrize("form", ["layout", "reference", "beir"])
def test_readers_keep_merge_or_reject_every_row(tmp_path_factory, form):
    names = {"layout": ("corpus.jsonl", "train.jsonl"), "reference": ("corpus.json", "train.json")}
    corpus, split = names.get(form, ("corpus.jsonl", "queries.jsonl"))

    totals: Counter[str] = Counter()

    @fuzz
    @given(
        st.lists(any_line(PASSAGES), max_size=ROWS // 4),
        st.lists(any_line(GOOD[form]), min_size=ROWS, max_size=ROWS),
        st.lists(STRANGE | st.sampled_from(JUDGEMENTS) | st.text(max_size=9), max_size=8),
        st.sampled_from(sorted(BUILTIN_TASKS)),
        st.booleans(),
    )
    def run(passages, rows, judgements, task, scored):
        folder = tmp_path_factory.mktemp("fuzz")
        files = {
            corpus: joined([*map(written, PASSAGES), *passages]),
            split: joined([*map(written, GOOD[form]), *rows]),
        }
        if form == "beir":
            text = "\n".join([*JUDGEMENTS, *judgements])
            files["qrels/test.tsv"] = text.encode("utf-8", errors="surrogatepass")
        scores = {"teacher_scores": scored and form == "reference"}
        source = Source(task=task, dataset="d", path=folder / "source", format=form, chunk_words=8, **scores)
        totals.update(check_sum(folder, source, BUILTIN_TASKS[task], files, judgements=form == "beir"))

    run()
    # Random rows must reach the code behind the first refusal, or this would show nothing.
    assert totals["refused"] <= 2
    assert min(totals["rows_out"], totals["merged"], totals["rejected"]) >= 50, totals


@settings(fuzz, max_examples=60)
@given(st.sampled_from(["corpus.jsonl", "train.jsonl", "labels.json"]), st.binary(max_size=400), st.booleans())
def test_layout_reader_takes_any_bytes_for_a_file(tmp_path_factory, name, raw, behind):
    folder = tmp_path_factory.mktemp("bytes")
    files = {
        "corpus.jsonl": joined(list(map(written, PASSAGES))),
        "train.jsonl": joined(list(map(written, GOOD["layout"]))),
    }
    files[name] = files.get(name, b"") + raw if behind else raw
    source = Source(task="qa", dataset="d", path=folder / "source", chunk_words=8)
    check_sum(folder, source, BUILTIN_TASKS["qa"], files, judgements=name == "labels.json")
