"""What a training takes: this run's groups and replayed ones of earlier runs; its name; where it starts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

from embedder.config.load import load_run
from embedder.config.train import ReplayConfig
from embedder.data.ledger import Ledger
from embedder.data.records import GROUP, LABELLED, QUERY, group_id, write_table
from embedder.errors import ConfigError
from ray_jobs.train import check, run_name
from ray_jobs.training.groups import replayed, training_groups
from tests.unit.training_ranks import groups

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


def test_replay_takes_the_share_of_all_and_of_every_task(tmp_path, tiny_encoder_folder, old):
    taken = training_groups(load_run(new(tmp_path, tiny_encoder_folder, share=0.5)))
    assert Counter(group["task"] for group in taken.groups) == {"tool": 8, "qa": 4, "chat": 4}
    assert taken.notes == ["replays 8 of 16 groups of 1 earlier runs: chat 4, qa 4"]


def test_replay_takes_all_old_groups_where_they_are_fewer(tmp_path, tiny_encoder_folder, old):
    taken = training_groups(load_run(new(tmp_path, tiny_encoder_folder, share=0.9)))
    assert Counter(group["task"] for group in taken.groups) == {"tool": 8, "qa": 8, "chat": 8}


def test_replay_is_seeded_and_does_not_depend_on_the_order():
    old = [{"task": task, "row_id": f"{task}-{i}"} for task in ("qa", "chat") for i in range(40)]
    settings = ReplayConfig(runs=[{"work": "old"}], share=0.5)
    first, again, other = (replayed(rows, 20, settings, seed) for rows, seed in ((old, 0), (old[::-1], 0), (old, 1)))
    names = [sorted(group["row_id"] for group in rows) for rows in (first, again, other)]
    assert len(names[0]) == 20
    assert names[0] == names[1] != names[2]
    assert Counter(group["task"] for group in first) == {"qa": 10, "chat": 10}


def test_training_groups_take_a_group_of_both_runs_once_as_a_new_one(tmp_path, tiny_encoder_folder):
    write_run(tmp_path / "old", tiny_encoder_folder, {"tool"})
    taken = training_groups(load_run(new(tmp_path, tiny_encoder_folder, share=0.5)))
    assert len(taken.groups) == len({group["row_id"] for group in taken.groups}) == 8


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
    taken = training_groups(load_run(path))
    for group in taken.groups:
        query = (group["dataset"], group["query_id"])
        if group["query_id"] == "0":
            wanted = "is-new" if group["task"] == "tool" else "is-old"
            assert (taken.positives[query], taken.examples[query]) == ([wanted], [f"own-{wanted}"])
    assert len({group["dataset"] for group in taken.groups}) == 3


def test_replay_takes_the_labels_of_a_reranker_where_a_run_has_some(tmp_path, tiny_encoder_folder, old):
    config = load_run(old)
    rows = Ledger(config.paths.labelled / "blocks", LABELLED, "row_id").read().to_pylist()
    relabelled = [{**row, "rewards": [9.0] * len(row["candidate_ids"])} for row in rows]
    Ledger(config.paths.labelled / "reranked", LABELLED, "row_id").commit(relabelled)
    taken = training_groups(load_run(new(tmp_path, tiny_encoder_folder)))
    assert {group["rewards"][0] for group in taken.groups if group["task"] != "tool"} == {9.0}


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
        training_groups(config.model_copy(update={"tasks": fewer}))


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
        return run_name(config, training_groups(config))

    first = name()
    same = ["train.num_workers=2", "train.save_every=9", "train.tensorboard=true", "train.wandb=mine"]
    assert {name(override) for override in same} == {first}
    others = {name("train.seed=1"), name("train.learning_rate=1"), name("train.replay.share=0.6")}
    assert len(others | {first}) == 4
    known = {"task": "tool", "dataset": "tool", "query_id": "0", "positive_ids": ["elsewhere"]}
    write_table([{**dict.fromkeys(QUERY.names), **known}], QUERY, tmp_path / "new/prepared/queries/train/tool.parquet")
    assert name() not in others | {first}
