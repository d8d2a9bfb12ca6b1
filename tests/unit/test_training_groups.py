"""What a training takes: this run's groups and replayed ones of earlier runs; its name; where it starts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from embedder.config.load import load_run
from embedder.config.train import ReplayConfig
from embedder.data.ledger import Ledger
from embedder.data.records import GROUP, LABELLED, QUERY, group_id, write_table
from embedder.errors import ConfigError, LabelError
from embedder.hashing import row_seed
from embedder.training.control import shuffle_rewards
from embedder.training.group_rows import id_hashes
from embedder.training.group_survey import replayed
from embedder.training.row_files import write_training_rows
from embedder.training.split import split_groups
from ray_jobs.train import check, run_name
from ray_jobs.training import data
from ray_jobs.training.calls import InDriver
from ray_jobs.training.data import build_data, built_data, data_folder, look_at
from ray_jobs.training.groups import sources
from tests.unit.training_ranks import all_rows, groups

REPLAY = {"share": 0.25}


def write_run(folder: Path, encoder: Path, tasks: set[str], marked: str = "", **train) -> Path:
    """A run of these tasks whose groups are labelled already; `marked` makes its queries others."""
    made = [{"answers": ["x"], **group} for group in groups() if group["task"] in tasks]
    made = [{**group, "query": marked + group["query"]} for group in made]
    plain = [{name: group[name] for name in GROUP.names} for group in made]
    rows = [{**dict.fromkeys(LABELLED.names), **group, "label_fingerprint": "x"} for group in made]
    rows = [{**row, "row_id": group_id(group)} for row, group in zip(rows, plain, strict=True)]
    write_table(plain, GROUP, folder / "candidates/a.parquet")
    Ledger(folder / "labelled" / "blocks", LABELLED, "row_id").commit(rows)
    settings = {"steps": 4, "batch_size": 4, "num_workers": 1, **train}
    run = {
        "paths": {"work": str(folder), "cache": str(folder / "cache")},
        "encoder": {"model": str(encoder), "pooling": "mean", "max_tokens": 64},
        "train": settings,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


@pytest.fixture
def old(tmp_path, tiny_encoder_folder):
    """A run of two tasks with eight groups each."""
    return write_run(tmp_path / "old", tiny_encoder_folder, {"qa", "chat"}, "old: ")


def new(tmp_path, tiny_encoder_folder, share=0.25, **replay):
    """A run of eight new groups that replays the old one."""
    runs = [{"work": str(tmp_path / "old")}]
    return write_run(tmp_path / "new", tiny_encoder_folder, {"tool"}, replay={"runs": runs, "share": share, **replay})


def built(path, *overrides):
    """The rows of a run, built in this process, and what they come to."""
    config = load_run(path, list(overrides))
    found = sources(config)
    folder = data_folder(config, found)
    return folder, build_data(config, found, folder, InDriver())


def rows_of(path):
    """The training rows of a run."""
    return all_rows(built(path)[0] / "rows")


def test_replay_takes_the_share_of_all_and_of_every_task(tmp_path, tiny_encoder_folder, old):
    _, data = built(new(tmp_path, tiny_encoder_folder, share=0.5))
    assert data.sizes == {"tool": 8, "qa": 4, "chat": 4}
    assert data.notes == ["replays 8 of 16 groups of 1 earlier runs: chat 4, qa 4"]


def test_replay_takes_all_old_groups_where_they_are_fewer(tmp_path, tiny_encoder_folder, old):
    assert built(new(tmp_path, tiny_encoder_folder, share=0.9))[1].sizes == {"tool": 8, "qa": 8, "chat": 8}


def test_replay_is_seeded_and_does_not_depend_on_the_order():
    ids = np.array([f"{i:016d}".encode() for i in range(80)])
    task = np.arange(80) % 2
    settings = ReplayConfig(runs=[{"work": "old"}], share=0.5)

    def names(order, seed):
        keys = np.array([row_seed(seed, i.decode()) for i in ids[order]], dtype=np.uint64)
        return ids[order][replayed(task[order], keys, ids[order], 20, settings)].tolist()

    first, again, other = names(np.arange(80), 0), names(np.arange(80)[::-1], 0), names(np.arange(80), 1)
    assert len(first) == 20 and first == again
    assert set(first) != set(other)
    assert Counter(int(name) % 2 for name in first) == {0: 10, 1: 10}


def test_training_takes_a_group_of_both_runs_once_as_a_new_one(tmp_path, tiny_encoder_folder):
    write_run(tmp_path / "old", tiny_encoder_folder, {"tool"})
    rows = rows_of(new(tmp_path, tiny_encoder_folder, share=0.5))
    assert len({row["query"] for row in rows}) == len(rows) == 8
    assert not any("round" in row["name"] for row in rows)


def test_replay_takes_equal_ids_of_two_runs_for_two_things(tmp_path, tiny_encoder_folder, old):
    """Both runs number their queries and passages in the same way, case 04-id-collision."""
    path = new(tmp_path, tiny_encoder_folder, share=0.5)
    for run, positive in (("new", "is-new"), ("old", "is-old")):
        for task in ("tool", "qa", "chat"):
            known = {"task": task, "dataset": task, "query_id": "0", "positive_ids": [positive]}
            write_table(
                [{**dict.fromkeys(QUERY.names), **known, "example_ids": [f"own-{positive}"]}],
                QUERY,
                tmp_path / run / "prepared" / "queries" / "train" / f"{task}.parquet",
            )
    rows = rows_of(path)
    seen = 0
    for row in rows:
        dataset, _, query = row["name"].rpartition("/")
        if query == "0":
            wanted = "is-new" if row["task"] == "tool" else "is-old"
            assert set(id_hashes(dataset, [wanted, f"own-{wanted}"])) <= set(row["known_hashes"])
            seen += 1
    assert seen >= 1
    assert len({row["name"].rpartition("/")[0] for row in rows}) == 3


def test_replay_takes_the_labels_of_a_reranker_where_a_run_has_some(tmp_path, tiny_encoder_folder, old):
    config = load_run(old)
    rows = Ledger(config.paths.labelled / "blocks", LABELLED, "row_id").read().to_pylist()
    relabelled = [{**row, "rewards": [9.0] + [8.0] * (len(row["candidate_ids"]) - 1)} for row in rows]
    Ledger(config.paths.labelled / "reranked", LABELLED, "row_id").commit(relabelled)
    rewards = {row["rewards"][0] for row in rows_of(new(tmp_path, tiny_encoder_folder)) if row["task"] != "tool"}
    assert rewards == {9.0}


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([{"work": "{}/new"}], "names this run itself"),
        ([{"work": "{}/none"}], "holds no candidates; correct `work` and `round`"),
        ([{"work": "{}/old", "round": 2}], "holds no candidates"),
        ([{"work": "{}/old"}, {"work": "{}/old"}], "twice"),
        ([], "at least 1 item"),
    ],
)
def test_replay_that_makes_no_sense_is_refused(tmp_path, tiny_encoder_folder, old, runs, said):
    runs = [{**run, "work": run["work"].format(tmp_path)} for run in runs]
    path = write_run(tmp_path / "new", tiny_encoder_folder, {"tool"}, replay={"runs": runs, **REPLAY})
    with pytest.raises(ConfigError, match=said):
        check(load_run(path))


def test_replay_of_an_unknown_task_is_refused(tmp_path, tiny_encoder_folder, old):
    config = load_run(new(tmp_path, tiny_encoder_folder))
    fewer = {name: spec for name, spec in config.tasks.items() if name != "chat"}
    with pytest.raises(ConfigError, match=r"tasks \['chat'\], which this run file does not describe"):
        look_at(config.model_copy(update={"tasks": fewer}), sources(config))


def test_train_dry_run_tells_of_the_replay_and_of_weights_without_groups(tmp_path, tiny_encoder_folder, old):
    path = new(tmp_path, tiny_encoder_folder)
    lines = check(load_run(path)).lines
    assert lines[0] == "replays 3 of 16 groups of 1 earlier runs: chat 2, qa 1"
    weighed = check(load_run(path, ["train.task_weights.tool=1", "train.task_weights.icl=2"])).lines
    assert "chat: 2 groups, not trained: no weight" in weighed
    assert "icl: train.task_weights gives it 2, but it has no group to train on" in weighed


def test_run_name_depends_on_all_that_changes_a_training(tmp_path, tiny_encoder_folder, old):
    path = new(tmp_path, tiny_encoder_folder)

    def name(*overrides):
        config = load_run(path, list(overrides))
        return run_name(config, look_at(config, sources(config)))

    first = name()
    same = ["train.num_workers=2", "train.save_every=9", "train.tensorboard=true", "train.wandb=mine"]
    assert {name(override) for override in same} == {first}
    others = {name("train.seed=1"), name("train.learning_rate=1"), name("train.replay.share=0.6")}
    assert len(others | {first}) == 4
    known = {"task": "tool", "dataset": "tool", "query_id": "0", "positive_ids": ["elsewhere"]}
    write_table([{**dict.fromkeys(QUERY.names), **known}], QUERY, tmp_path / "new/prepared/queries/train/tool.parquet")
    assert name() not in others | {first}


def test_rows_that_are_built_in_chunks_are_those_of_one_list(tmp_path, tiny_encoder_folder, monkeypatch):
    """Split, control, positives of other groups of a query, and a block that was committed twice."""
    path = write_run(tmp_path / "run", tiny_encoder_folder, {"qa", "chat", "tool"}, control=True)
    config = load_run(path, ["train.validation.queries=2", "train.validation.every=2"])
    ledger = Ledger(config.paths.labelled / "blocks", LABELLED, "row_id")
    table = ledger.read()
    for first in range(0, table.num_rows, 5):
        ledger.commit(table.slice(first, 5))
    monkeypatch.setattr(data, "CHUNK_ROWS", 7)
    monkeypatch.setattr(data, "PIECE_ROWS", 3)
    found = sources(config)
    folder = data_folder(config, found)
    summary = build_data(config, found, folder, InDriver())
    assert len(list((folder / "rows").glob("part-*"))) > 2
    train, listed = config.needed_train, table.to_pylist()
    kept, apart = split_groups(listed, train.validation)
    for place, own in (("rows", kept), ("held_out", apart)):
        for shuffled, where in ((own, folder), (shuffle_rewards(own, train.seed), folder / "control")):
            sizes, left_out = write_training_rows(shuffled, config.tasks, tmp_path / "one", {})
            assert all_rows(where / place) == all_rows(tmp_path / "one") != []
            if place == "rows":
                assert (summary.sizes, summary.left_out, summary.apart) == (sizes, left_out, len(apart))
    assert built_data(folder) == summary == look_at(config, found)


def test_rows_of_other_inputs_are_dropped_and_built_ones_found(tmp_path, tiny_encoder_folder):
    path = write_run(tmp_path / "run", tiny_encoder_folder, {"qa"})
    first, summary = built(path)
    assert built_data(first) == summary
    second, _ = built(path, "train.seed=1")
    assert built_data(first) is None and built_data(second) is not None


def test_train_of_groups_without_a_label_is_refused(tmp_path, tiny_encoder_folder):
    path = write_run(tmp_path / "run", tiny_encoder_folder, {"qa"})
    config = load_run(path)
    more = {"task": "qa", "dataset": "qa", "query_id": "new", "query": "new", "answers": ["x"]}
    more |= {"candidate_ids": ["a"], "candidate_texts": ["a"], "relevance": [1]}
    write_table([more], GROUP, config.paths.candidates / "b.parquet")
    with pytest.raises(LabelError, match=r"blocks: 1 of 9 rows missing, first [0-9a-f]{32}; run the job again"):
        check(config)


def test_check_of_very_many_groups_tells_what_the_first_ones_say(tmp_path, tiny_encoder_folder, monkeypatch):
    path = write_run(tmp_path / "run", tiny_encoder_folder, {"qa"})
    config = load_run(path)
    ledger = Ledger(config.paths.labelled / "blocks", LABELLED, "row_id")
    table = ledger.read()
    for block in list((tmp_path / "run" / "labelled" / "blocks").iterdir()):
        block.unlink()
    ledger.commit(table.slice(0, 4))
    ledger.commit(table.slice(4))
    monkeypatch.setattr(data, "CHECKED_GROUPS", 4)
    monkeypatch.setattr(data, "PIECE_ROWS", 1)
    lines = check(config).lines
    assert lines[0] == "counted on 4 of 8 groups; the rows are built before the training starts"
    assert lines[1].startswith("qa: 8 groups")
    split = ["train.validation.queries=5", "train.validation.every=2"]
    lines = check(load_run(path, split)).lines
    assert lines[1].startswith("qa: 3 groups") and any(line.startswith("5 groups are kept apart") for line in lines)
