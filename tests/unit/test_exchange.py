"""Rewards made elsewhere come in row by row, labelled groups go out, and what goes out comes back the same."""

from __future__ import annotations

import gzip
import json
import math
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.ledger import Ledger
from embedder.data.records import LABELLED, group_id
from embedder.data.rows import Rejected
from embedder.errors import DataError, LabelError
from embedder.hashing import content_id
from embedder.labelling import exchange
from embedder.labelling.exchange import (
    ExportSummary,
    Imported,
    dataset_of,
    fingerprint_of_import,
    import_into,
    read_teacher_scores,
    write_reference,
)
from embedder.training.training_rows import training_row
from tests.unit.judges import quick
from tests.unit.test_dataset import lines, read_reference

NOTHING = ("outputs", "base_scores", "scores", "error", "label_fingerprint")


def scored(i: int = 1, **fields) -> dict[str, object]:
    row = {
        "query": f"question {i}",
        "query_id": f"q{i}",
        "task": "qa",
        "answers": [f"answer {i}"],
        "pos": [f"P{i}"],
        "neg": ["N", "M"],
        "teacher_scores": [0.5, -1.25, 3],
    }
    return {**row, **fields}


def read(folder, rows, name="made.jsonl"):
    lines(folder / name, rows)
    return list(read_teacher_scores(folder / name, BUILTIN_TASKS))


def read_one(folder, **fields) -> dict[str, object]:
    (entry,) = read(folder, [scored(**fields)])
    assert isinstance(entry, Imported), entry
    return entry.row


def ledger_of(folder) -> Ledger:
    return Ledger(folder / "blocks", LABELLED, "row_id")


def bring(folder, path, block_rows=4):
    return import_into(ledger_of(folder), path, BUILTIN_TASKS, "print", block_rows, folder / "rejected")


def test_a_scored_row_is_a_labelled_group(tmp_path):
    row = read_one(tmp_path)
    assert row == {
        **dict.fromkeys(LABELLED.names),
        "task": "qa",
        "dataset": "made",
        "query_id": "q1",
        "query": "question 1",
        "answers": ["answer 1"],
        "candidate_ids": [content_id("P1"), content_id("N"), content_id("M")],
        "candidate_texts": ["P1", "N", "M"],
        "relevance": [1, 0, 0],
        "row_id": group_id(row),
        "rewards": [0.5, -1.25, 3.0],
        "reward": "imported",
    }
    assert all(row[name] is None for name in NOTHING)
    assert pa.Table.from_pylist([row], schema=LABELLED).to_pylist() == [row]


def test_an_imported_group_is_trained_on(tmp_path):
    row = training_row(read_one(tmp_path), BUILTIN_TASKS["qa"])
    assert row["candidates"] == ["P1", "N", "M"]
    assert row["rewards"] == [0.5, -1.25, 3.0]


def test_a_history_is_scored_in_its_own_order(tmp_path):
    chat = {"task": "chat", "history": ["old", "older", "new "], "pos": None, "neg": None}
    row = read_one(tmp_path, **chat)
    assert (row["candidate_texts"], row["relevance"]) == (["old", "older", "new"], [0, 0, 0])
    assert row["rewards"] == [0.5, -1.25, 3.0]
    assert read_one(tmp_path, **chat, gold_history=[1])["relevance"] == [0, 1, 0]
    assert read_one(tmp_path, **{**chat, "pos": ["new"]})["relevance"] == [0, 0, 1]


@pytest.mark.parametrize("fields", [{}, {"history": ["P1", "N ", "M"], "gold_history": [0]}])
def test_a_passage_has_the_id_that_prepare_gives_it(tmp_path, fields):
    prepared = read_reference(tmp_path, [scored(**fields)]).queries["train"][0]
    row = read_one(tmp_path, **fields)
    assert row["candidate_ids"] == prepared["pool_ids"]
    known = zip(row["candidate_ids"], row["relevance"], strict=True)
    assert [candidate_id for candidate_id, relevance in known if relevance] == prepared["positive_ids"]
    assert (row["query"], row["query_id"], row["answers"]) == tuple(
        prepared[key] for key in ("query", "query_id", "answers")
    )


@pytest.mark.parametrize(
    ("fields", "ids"),
    [
        ({"pos_index": [0], "neg_index": [7, "x"]}, ["0", "7", "x"]),
        ({"pos_index": [5]}, ["5", content_id("N"), content_id("M")]),
        ({"pos_ids": ["a"], "pos_index": [1], "neg_ids": [" b", "c"]}, ["a", " b", "c"]),
        ({"pos_index": None, "neg_index": None}, [content_id("P1"), content_id("N"), content_id("M")]),
    ],
)
def test_candidates_keep_the_ids_they_bring(tmp_path, fields, ids):
    assert read_one(tmp_path, **fields)["candidate_ids"] == ids


def test_a_row_of_the_released_icl_data_needs_neither_id_nor_answers(tmp_path):
    row = {key: value for key, value in scored(task="icl").items() if key not in {"query_id", "answers"}}
    (entry,) = read(tmp_path, [{**row, "pos_scores": [0.5], "neg_score": [1, 2]}])
    assert entry.row["query_id"] == content_id("made", "question 1")
    assert entry.row["answers"] == []


def test_the_dataset_is_named_by_the_row_or_else_by_the_file(tmp_path):
    assert read_one(tmp_path, dataset="nq")["dataset"] == "nq"
    names = ["train.scored.json", "train.jsonl", "train.jsonl.gz", "train.gz", "train", ".jsonl"]
    assert [dataset_of(tmp_path / name) for name in names] == ["train.scored", *["train"] * 4, ".jsonl"]


def test_one_query_id_may_stand_in_two_datasets(tmp_path):
    got = read(tmp_path, [scored(dataset="a"), scored(dataset="b"), scored(dataset="b", task="icl")])
    assert [type(entry) for entry in got] == [Imported] * 3


@pytest.mark.parametrize(("task", "usable"), [("convsearch", True), ("tool", True), ("qa", False), ("chat", False)])
@pytest.mark.parametrize("absent", [{"teacher_scores": None}, {}])
def test_a_row_without_scores_serves_only_a_loss_that_needs_none(tmp_path, task, usable, absent):
    row = {key: value for key, value in scored(task=task).items() if key != "teacher_scores"}
    (entry,) = read(tmp_path, [{**row, **absent}])
    if usable:
        assert (entry.row["rewards"], entry.row["reward"]) == (None, "none")
    else:
        assert f"no teacher_scores, but tasks.{task}.loss is" in entry.reason


def test_the_loss_and_not_the_reward_decides_whether_scores_are_needed(tmp_path):
    lines(tmp_path / "made.jsonl", [scored(teacher_scores=None)])
    hard = {"qa": BUILTIN_TASKS["qa"].model_copy(update={"loss": "contrastive"})}
    assert hard["qa"].reward == "rank"
    (entry,) = read_teacher_scores(tmp_path / "made.jsonl", hard)
    assert isinstance(entry, Imported)


def test_a_repeated_text_is_left_out_with_its_score(tmp_path):
    (entry,) = read(
        tmp_path, [scored(pos=["P"], neg=["N", " P", "N", "M"], neg_index=[1, 2, 3, 4], teacher_scores=[5, 4, 3, 2, 1])]
    )
    assert entry.repeated == 2
    assert entry.row["candidate_texts"] == ["P", "N", "M"]
    assert entry.row["candidate_ids"] == [content_id("P"), "1", "4"]
    assert (entry.row["relevance"], entry.row["rewards"]) == ([1, 0, 0], [5, 4, 1])


BAD_ROWS = {
    "not json": ('{"query": "x"', "not JSON"),
    "blank line": ("", "not JSON"),
    "deeply nested": ("[" * 100_000, "not JSON"),
    "a number of 5,000 digits": ('{"query": ' + "9" * 5000 + "}", "not JSON"),
    "lone surrogate": (r'{"query": "\ud800", "task": "qa"}', "not JSON"),
    "lone surrogate in a field not used": (json.dumps(scored(9, extra="\udc00")), "not JSON"),
    "no object": ([1, 2], "a list, not an object"),
    "no task": (scored(9, task=None), "task is None"),
    "unknown task": (scored(9, task="poetry"), "task 'poetry' is unknown; known are ['chat'"),
    "no query": (scored(9, query=None), "query is None"),
    "blank query": (scored(9, query=" \n"), "query is ' \\n'"),
    "a huge query of another type": (scored(9, query=["x"] * 10_000), "query is ['x', 'x'"),
    "blank dataset": (scored(9, dataset=""), "dataset is ''"),
    "answers of another type": (scored(9, answers="x"), "answers is not a list of non-empty texts, but 'x'"),
    "no candidates": (scored(9, pos=[], neg=None, teacher_scores=[]), "no candidates"),
    "empty candidate": (scored(9, neg=["N", " "]), "neg is not a list of non-empty texts; entry 1 is ' '"),
    "candidate of another type": (scored(9, pos=[1]), "pos is not a list of non-empty texts; entry 0 is 1"),
    "query_id seen before": (scored(1), "query_id 'q1' of dataset 'made' was seen before"),
    "one id, two texts": (scored(9, neg_index=[4, 4]), "candidate id '4' stands for two texts"),
    "too few ids": (scored(9, neg_index=[4]), "neg_index does not fit: 1 for 2 texts of neg"),
    "ids that are no list": (scored(9, pos_ids="a"), "pos_ids does not fit: 'a' for 1 texts of pos"),
    "an id that is a fraction": (scored(9, neg_index=[1, 2.0]), "neg_index[1] is 2.0"),
    "an id that is true": (scored(9, pos_index=[True]), "pos_index[0] is True"),
    "a blank id": (scored(9, pos_index=[" "]), "pos_index[0] is ' '"),
    "gold outside the history": (scored(9, history=["a", "b", "c"], gold_history=[3]), "leaves the history of 3"),
    "too few scores": (
        scored(9, teacher_scores=[1.0]),
        "teacher_scores has 1 entries for 3 candidates (pos 1, neg 2)",
    ),
    "no score": (scored(9, teacher_scores=[]), "teacher_scores has 0 entries for 3 candidates"),
    "scores of pos and neg for a history": (
        scored(9, history=["a", "b"]),
        "teacher_scores has 3 entries for 2 candidates (history 2)",
    ),
    "scores that are no list": (scored(9, teacher_scores="1"), "teacher_scores is '1'; a list of numbers"),
    "score that is no number": (scored(9, teacher_scores=[1, math.nan, 1]), "teacher_scores[1] is nan"),
    "infinite score": (scored(9, teacher_scores=[1, 1, -math.inf]), "teacher_scores[2] is -inf"),
    "score beyond float32": (scored(9, teacher_scores=[1e39, 1, 1]), "teacher_scores[0] is 1e+39"),
    "whole score beyond float64": (scored(9, teacher_scores=[10**400, 1, 1]), "teacher_scores[0] is 1000"),
    "score that is true": (scored(9, teacher_scores=[True, 1, 1]), "teacher_scores[0] is True"),
    "score that is a text": (scored(9, teacher_scores=["0.5", 1, 1]), "teacher_scores[0] is '0.5'"),
    "score that is null": (scored(9, teacher_scores=[None, 1, 1]), "teacher_scores[0] is None"),
}


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_rejected_with_file_line_and_reason(tmp_path, row, reason):
    first, rejected, last = read(tmp_path, [scored(1), row, scored(2)])
    assert isinstance(rejected, Rejected)
    assert (rejected.file, rejected.line) == (str(tmp_path / "made.jsonl"), 2)
    assert reason in rejected.reason
    assert len(rejected.reason) <= 400
    assert len(rejected.row) <= 2000
    assert [entry.row["query_id"] for entry in (first, last)] == ["q1", "q2"]


def test_a_rejected_row_does_not_take_its_query_id(tmp_path):
    bad, good = read(tmp_path, [scored(1, teacher_scores=[1]), scored(1)])
    assert (type(bad), type(good)) == (Rejected, Imported)


def test_bytes_that_are_no_utf8_are_rejected(tmp_path):
    path = tmp_path / "made.jsonl"
    path.write_bytes(b'{"query": "caf\xe9"}\r\n' + json.dumps(scored()).encode() + b"\r\n")
    bad, good = read_teacher_scores(path, BUILTIN_TASKS)
    assert (bad.line, bad.reason[:10]) == (1, "not UTF-8:")
    assert (good.line, good.row["query_id"]) == (2, "q1")


@pytest.mark.parametrize("excess", [1, 2, 2000, 2001, 9999])
@pytest.mark.parametrize("last", [False, True])
def test_a_line_over_the_limit_is_rejected_and_the_next_one_read(tmp_path, monkeypatch, excess, last):
    monkeypatch.setattr(exchange, "MAX_LINE_BYTES", 2000)
    long = "x" * (2000 + excess) + ("" if last else "\n")
    fitting = json.dumps(scored())
    fitting += " " * (1999 - len(fitting)) + "\n"
    (tmp_path / "made.jsonl").write_text(fitting + long, encoding="utf-8")
    good, bad = read_teacher_scores(tmp_path / "made.jsonl", BUILTIN_TASKS)
    assert (good.line, good.row["query_id"]) == (1, "q1")
    assert (bad.line, bad.reason) == (2, "a line of more than 2,000 bytes")


def test_a_compressed_file_is_read_the_same(tmp_path):
    plain = read(tmp_path, [scored(1), "{", scored(2)])
    packed = tmp_path / "made.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "made.jsonl").read_bytes()))
    got = list(read_teacher_scores(packed, BUILTIN_TASKS))
    assert [entry.row for entry in got if isinstance(entry, Imported)] == [plain[0].row, plain[2].row]


@pytest.mark.parametrize("harm", [lambda packed: b"plain text", lambda packed: packed[:-40]])
def test_a_damaged_compressed_file_is_refused(tmp_path, harm):
    path = tmp_path / "made.jsonl.gz"
    path.write_bytes(harm(gzip.compress(json.dumps(scored()).encode() * 50)))
    with pytest.raises(DataError, match=r"made\.jsonl\.gz:1: not readable"):
        list(read_teacher_scores(path, BUILTIN_TASKS))


def test_a_missing_file_is_refused(tmp_path):
    for call in (fingerprint_of_import, lambda path: list(read_teacher_scores(path, BUILTIN_TASKS))):
        with pytest.raises(DataError, match=r"gone\.jsonl: no such file; correct label\.imported"):
            call(tmp_path / "gone.jsonl")


def test_the_fingerprint_follows_content_and_name_but_not_the_folder(tmp_path):
    content = {"a/x.jsonl": "1", "b/x.jsonl": "1", "a/y.jsonl": "1", "c/x.jsonl": "2"}
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    same, moved, renamed, changed = (fingerprint_of_import(tmp_path / name) for name in content)
    assert same == moved
    assert len({same, renamed, changed}) == 3
    assert len(same) == 16


def group(i: int = 1, **fields) -> dict[str, object]:
    row = {
        **dict.fromkeys(LABELLED.names),
        "task": "qa",
        "dataset": "d",
        "query_id": f"q{i}",
        "query": f"question {i}",
        "answers": [f"answer {i}"],
        "candidate_ids": ["n", "p", "m"],
        "candidate_texts": ["N", "P", "M"],
        "relevance": [0, 1, 0],
        "rewards": [-1.0, 2.5, 0.0],
        "reward": "rank",
        **fields,
    }
    return {**row, "row_id": group_id(row)}


def exported(path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_group_is_written_positives_first(tmp_path):
    assert write_reference([group()], tmp_path / "new" / "out.jsonl") == ExportSummary(1, 1, 0, 0)
    assert exported(tmp_path / "new" / "out.jsonl") == [
        {
            "task": "qa",
            "dataset": "d",
            "query_id": "q1",
            "query": "question 1",
            "answers": ["answer 1"],
            "pos": ["P"],
            "neg": ["N", "M"],
            "pos_index": ["p"],
            "neg_index": ["n", "m"],
            "teacher_scores": [2.5, -1.0, 0.0],
        }
    ]


def test_groups_without_rewards_are_written_without_scores_and_counted(tmp_path):
    nothing = {"candidate_ids": [], "candidate_texts": [], "relevance": [], "rewards": None, "error": "no candidates"}
    groups = [group(1), group(2, rewards=None, reward="none"), group(3, **nothing)]
    assert write_reference(iter(groups), tmp_path / "out.jsonl") == ExportSummary(3, rewarded=1, failed=1, plain=1)
    rows = exported(tmp_path / "out.jsonl")
    assert ["teacher_scores" in row for row in rows] == [True, False, False]
    assert (rows[2]["pos"], rows[2]["neg"]) == ([], [])


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out.jsonl"
    write_reference([group(1)], path)
    before = path.read_bytes()

    def failing():
        yield group(2)
        raise LabelError("lost")

    with pytest.raises(LabelError, match="lost"):
        write_reference(failing(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


BAD_GROUPS = {
    "no number": ({"rewards": [1.0, math.nan, 1.0]}, "not JSON compliant"),
    "too few": ({"rewards": [1.0]}, "1 rewards for 3 candidates"),
}


@pytest.mark.parametrize(("fields", "reason"), BAD_GROUPS.values(), ids=BAD_GROUPS.keys())
def test_a_group_that_cannot_be_written_is_named(tmp_path, fields, reason):
    with pytest.raises(DataError, match=rf"group 'q1' of dataset 'd' cannot be written \(.*{reason}"):
        write_reference([group(**fields)], tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_compressed_export_is_read_back_and_the_same_each_time(tmp_path):
    path = tmp_path / "out.jsonl.gz"
    write_reference([group(1), group(2)], path)
    first = path.read_bytes()
    write_reference([group(1), group(2)], path)
    assert path.read_bytes() == first
    assert first[4:8] == bytes(4), "the header holds the time"
    assert [entry.row["query_id"] for entry in read_teacher_scores(path, BUILTIN_TASKS)] == ["q1", "q2"]


TEXT = st.text(max_size=12).map(str.strip).filter(bool)
SCORE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def groups_of_all_kinds(draw) -> list[dict[str, object]]:
    groups = []
    for query_id in draw(st.lists(TEXT, max_size=5, unique=True)):
        texts = draw(st.lists(TEXT, min_size=1, max_size=6, unique=True))
        size = len(texts)
        rewards = draw(st.lists(SCORE, min_size=size, max_size=size))
        fields = {
            "task": draw(st.sampled_from(["qa", "chat", "lrlm", "icl", "convsearch", "tool"])),
            "dataset": draw(st.sampled_from(["d", "é"])),
            "query_id": query_id,
            "query": draw(TEXT),
            "answers": draw(st.lists(TEXT, max_size=2)),
            "candidate_ids": draw(st.lists(TEXT, min_size=size, max_size=size, unique=True)),
            "candidate_texts": texts,
            "relevance": draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)),
        }
        needed = BUILTIN_TASKS[fields["task"]].loss != "contrastive"
        groups.append(group(**fields, rewards=rewards if needed or draw(st.booleans()) else None))
    return groups


def content(row) -> dict[str, object]:
    """A group whatever the order of its candidates."""
    rewards = row["rewards"] or [None] * len(row["candidate_ids"])
    columns = (row["candidate_ids"], row["candidate_texts"], row["relevance"], rewards)
    plain = {name: row[name] for name in ("task", "dataset", "query_id", "query", "answers")}
    return {**plain, "candidates": set(zip(*columns, strict=True))}


@quick
@given(groups_of_all_kinds())
def test_what_is_exported_comes_back(tmp_path_factory, groups):
    folder = tmp_path_factory.mktemp("exchange")
    write_reference(groups, folder / "out.jsonl")
    if not groups:
        return
    summary = bring(folder, folder / "out.jsonl", block_rows=2)
    assert (summary.imported, summary.rejected, summary.repeated_candidates) == (len(groups), 0, 0)
    back = ledger_of(folder).read().to_pylist()
    assert {row["query_id"]: content(row) for row in back} == {row["query_id"]: content(row) for row in groups}
    for row in back:
        assert row["row_id"] == group_id(row)
        assert row["relevance"] == sorted(row["relevance"], reverse=True)
    write_reference(sorted(back, key=lambda row: [g["query_id"] for g in groups].index(row["query_id"])), folder / "2")
    assert (folder / "2").read_bytes() == (folder / "out.jsonl").read_bytes()


def test_rows_in_are_rows_out_and_rejected(tmp_path):
    path = tmp_path / "made.jsonl"
    rows = [scored(i) for i in range(1, 11)] + ["{", scored(3), scored(11, pos=["N"]), scored(12, task="tool")]
    rows[-1]["teacher_scores"] = None
    lines(path, rows)
    summary = bring(tmp_path, path)
    assert summary.first_rejected is not None
    assert (summary.first_rejected.line, summary.first_rejected.row) == (11, "{\n")
    counts = {**vars(summary), "first_rejected": None}
    assert counts == {
        "rows_in": 14,
        "imported": 12,
        "imported_before": 0,
        "rejected": 2,
        "first_rejected": None,
        "unrewarded": 1,
        "repeated_candidates": 1,
    }
    assert [row["line"] for row in exported(tmp_path / "rejected" / "made.jsonl.jsonl")] == [11, 12]
    table = ledger_of(tmp_path).read()
    assert table.num_rows == 12
    assert set(table["label_fingerprint"].to_pylist()) == {"print"}
    assert sorted(pq.read_metadata(file).num_rows for file in (tmp_path / "blocks").iterdir()) == [4, 4, 4]


def test_a_second_import_adds_nothing_and_says_the_same(tmp_path):
    path = tmp_path / "made.jsonl"
    lines(path, [scored(1), "{", scored(2, neg=["N", "N"])])
    first = bring(tmp_path, path)
    second = bring(tmp_path, path)
    assert (first.imported, first.imported_before) == (2, 0)
    assert {**vars(second), "imported": 2, "imported_before": 0} == vars(first)
    assert (second.imported, second.imported_before) == (0, 2)
    assert ledger_of(tmp_path).count_duplicates() == 0


def test_rejects_of_an_earlier_file_do_not_stay(tmp_path):
    path = tmp_path / "made.jsonl"
    lines(path, [scored(1), "{"])
    bring(tmp_path, path)
    lines(path, [scored(1), scored(2)])
    bring(tmp_path, path)
    assert list((tmp_path / "rejected").iterdir()) == []


class Dying(Ledger):
    """A ledger whose process is killed at the third block."""

    def commit(self, rows):
        if len(list(self.folder.glob("*.parquet"))) == 2:
            raise KeyboardInterrupt
        super().commit(rows)


@pytest.mark.parametrize("other_block_rows", [3, 5])
def test_a_restart_goes_on_after_the_last_block(tmp_path, other_block_rows):
    path = tmp_path / "made.jsonl"
    lines(path, [scored(i) if i % 4 else "{" for i in range(20)])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    bring(whole, path, block_rows=3)
    dying = Dying(broken / "blocks", LABELLED, "row_id")
    with pytest.raises(KeyboardInterrupt):
        import_into(dying, path, BUILTIN_TASKS, "print", 3, broken / "rejected")
    assert list((broken / "rejected").iterdir()) == []
    summary = bring(broken, path, block_rows=other_block_rows)
    assert (summary.imported_before, summary.imported, summary.rejected) == (6, 9, 5)
    assert ledger_of(broken).read() == ledger_of(whole).read()
    assert ledger_of(broken).count_duplicates() == 0


@pytest.mark.parametrize(
    ("rows", "reason"), [([], "it is empty"), (["{", scored(task="x")], r"line 1: not JSON: .*teacher_scores")]
)
def test_a_file_without_a_usable_row_is_refused(tmp_path, rows, reason):
    lines(tmp_path / "made.jsonl", rows)
    with pytest.raises(DataError, match=rf"made\.jsonl: no usable row \({reason}"):
        bring(tmp_path, tmp_path / "made.jsonl")


def test_a_lost_row_is_noticed(tmp_path, monkeypatch):
    lines(tmp_path / "made.jsonl", [scored(1), scored(2), scored(3)])
    whole = list(read_teacher_scores(tmp_path / "made.jsonl", BUILTIN_TASKS))
    monkeypatch.setattr(exchange, "read_teacher_scores", lambda path, tasks: iter([whole[0], whole[2]]))
    with pytest.raises(LabelError, match="3 rows in, but"):
        bring(tmp_path, tmp_path / "made.jsonl")


def test_ten_thousand_rows_take_the_memory_of_a_block(tmp_path):
    path = tmp_path / "made.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(10_000):
            negatives = [f"{i} {j} " + "word " * 100 for j in range(7)]
            row = scored(i, neg=negatives, teacher_scores=list(range(8)))
            file.write("{\n" if i % 100 == 99 else json.dumps(row) + "\n")
    assert path.stat().st_size > 35_000_000
    tracemalloc.start()
    summary = bring(tmp_path, path, block_rows=250)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (summary.rows_in, summary.imported, summary.rejected) == (10_000, 9_900, 100)
    assert peak < 8_000_000
