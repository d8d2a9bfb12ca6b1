"""The study: what each arm changes, and the grid on a small run, from labels to tables."""

from __future__ import annotations

import json

import pytest
import yaml

from benchmarks.study import main
from benchmarks.study_arms import ARMS, FULL, arms_of
from benchmarks.study_tables import Cell, aim
from embedder.config.tasks import BUILTIN_TASKS
from embedder.config.train import TrainConfig
from embedder.data.ledger import Ledger
from embedder.data.records import GROUP, LABELLED, PASSAGE, QUERY, group_id, write_table
from embedder.errors import ConfigError
from embedder.evaluation.statistics import Difference

WORDS = ["fox", "dog", "forest", "bridge", "market", "station", "capital", "city"]
SCORES = {"base_scores": [-2.0, -1.0, -3.0], "scores": [[-3.0, -1.0, -2.0], [-1.0, -2.0, -3.0]]}


def arm(name):
    return next(one for one in ARMS if one.name == name)


def labelled(**changes):
    found = {"task": "qa", "relevance": [1, 0], "rewards": [-1.0, 1.0], "error": None, **SCORES}
    return {**found, **changes}


def test_arms_have_names_of_their_own_and_the_first_is_the_reference():
    assert ARMS[0] is FULL
    assert len({one.name for one in ARMS}) == len(ARMS)
    assert arms_of([]) == list(ARMS)
    assert arms_of(["kl"]) == [FULL, arm("kl")]
    with pytest.raises(ConfigError, match="nothing"):
        arms_of(["nothing"])


@pytest.mark.parametrize(
    ("name", "rewards", "relevance"),
    [
        ("full", [-1.0, 1.0], [1, 0]),
        ("likelihood", [-3.0, -1.0], [1, 0]),
        ("labels", [-1.0, 1.0], [1, 0]),
        ("best", [-1.0, 1.0], [0, 1]),
    ],
)
def test_an_arm_rewards_in_its_own_way(name, rewards, relevance):
    (found,) = arm(name).groups([labelled()])
    assert (found["rewards"], found["relevance"]) == (rewards, relevance)


def test_a_flat_group_has_no_best_candidate():
    (found,) = arm("best").groups([labelled(scores=[[-1.0, -2.0, -3.0]] * 2)])
    assert found["relevance"] == [0, 0]


def test_groups_without_scores_stay_as_they_are():
    group = labelled(task="tool", scores=None, base_scores=None, rewards=None)
    assert arm("likelihood").groups([group]) == [group]
    assert arm("only-qa").groups([group]) == []


def test_losses_and_instructions_are_those_of_the_arm():
    losses = {name: arm(name).specs(BUILTIN_TASKS)["qa"].loss for name in ("full", "kl", "best", "labels")}
    assert losses == {"full": "graded", "kl": "kl", "best": "contrastive", "labels": "contrastive"}
    assert all(one.specs(BUILTIN_TASKS)["tool"].loss == "contrastive" for one in ARMS)
    assert arm("bare").specs(BUILTIN_TASKS)["tool"].query_instruction == ""


def test_one_task_alone_gets_the_steps_it_has_among_all():
    train = TrainConfig(steps=90, num_workers=1, task_weights={"qa": 1, "tool": 2})
    alone = arm("only-tool").settings(train, 7)
    assert (alone.steps, alone.task_weights, alone.seed) == (60, {"tool": 1.0}, 7)
    assert arm("mixed").settings(train, 0).batches == "mixed"
    assert arm("unpaced").settings(train, 0).self_paced.direction == "off"


@pytest.fixture(scope="module")
def run_file(tmp_path_factory, tiny_encoder_folder, tiny_llama_folder):
    """Prepared tables and labels of one dataset of qa."""
    folder = tmp_path_factory.mktemp("study")
    work = folder / "work"
    passages = [
        {"task": "qa", "dataset": "docs", "id": f"p{i}", "text": f"the {word} is behind the bridge", "title": None}
        for i, word in enumerate(WORDS)
    ]
    write_table(passages, PASSAGE, work / "prepared" / "corpus" / "docs" / "part-00000.parquet")
    empty = dict.fromkeys(QUERY.names)
    for split in ("train", "dev", "test"):
        rows = [
            {
                **empty,
                "task": "qa",
                "dataset": "docs",
                "query_id": f"{split}{i}",
                "query": f"{split} where is the {word}",
                "answers": ["Paris"],
                "positive_ids": [f"p{i}"],
            }
            for i, word in enumerate(WORDS)
        ]
        write_table(rows, QUERY, work / "prepared" / "queries" / split / "docs.parquet")
        if split == "train":
            groups = [group_row(row, i) for i, row in enumerate(rows)]
            write_table(groups, GROUP, work / "candidates" / "docs.parquet")
            kept = [label_row(group) for group in groups]
            Ledger(work / "labelled" / "blocks", LABELLED, "row_id").commit(kept)
    run = {
        "paths": {"work": str(work), "cache": str(folder / "cache")},
        "encoder": {"model": str(tiny_encoder_folder), "pooling": "mean", "max_tokens": 32, "instructions": False},
        "llm": {"model": str(tiny_llama_folder), "max_prefix_tokens": 100, "batch_tokens": 1024},
        "train": {"steps": 3, "batch_size": 4, "num_workers": 1, "learning_rate": 1e-3, "task_weights": {"qa": 1}},
        "evaluate": {"llm_queries": 2, "passages": {"qa": 1}, "unit_queries": 2},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def group_row(row, number):
    """A candidate group of a query: its passage and the next one."""
    both = [number, (number + 1) % len(WORDS)]
    return {
        **dict.fromkeys(GROUP.names),
        **{key: row[key] for key in ("task", "dataset", "query_id", "query", "answers") if key in GROUP.names},
        "candidate_ids": [f"p{i}" for i in both],
        "candidate_texts": [f"the {WORDS[i]} is behind the bridge" for i in both],
        "relevance": [1, 0],
    }


def label_row(group):
    """The same, labelled."""
    known = {"row_id": group_id(group), "reward": "rank", "rewards": [1.0, -1.0], "label_fingerprint": "f", **SCORES}
    return {**dict.fromkeys(LABELLED.names), **{k: v for k, v in group.items() if k in LABELLED.names}, **known}


def test_the_grid_runs_goes_on_and_is_reported(run_file, tmp_path, capsys):
    command = ["--config", str(run_file), "--seeds", "2", "--arm", "labels", "--arm", "only-qa"]
    assert main([*command, "--report"]) == 2
    assert "not there yet" in capsys.readouterr().out
    assert main(command) == 0
    kept = {path: path.stat().st_mtime_ns for path in run_file.parent.glob("work/study/*.json")}
    assert len(kept) == 1 + 2 * 3
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    capsys.readouterr()
    assert main([*command, "--report", "--json", str(tmp_path / "study.json")]) == 0
    shown = capsys.readouterr().out
    assert "### Reward" in shown and "### One task" in shown and "| labels |" in shown
    grid = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))["grid"]
    assert set(grid["qa nDCG@10"]) == {"base", "full", "labels", "only-qa"}
    assert grid["qa log-likelihood"]["base"]["against_full"]["value"] == pytest.approx(
        -grid["qa log-likelihood"]["full"]["against_base"]["value"]
    )
    assert len(grid["qa nDCG@10"]["full"]["seeds"]) == 2


def test_the_arm_that_was_chosen_is_measured_on_the_test_split_beside_the_grid(run_file, tmp_path, capsys):
    command = ["--config", str(run_file), "--seeds", "1", "--split", "test", "--arm", "labels"]
    kept = tmp_path / "study.json"
    kept.write_text('{"grid": {"of": "dev"}}', encoding="utf-8")
    assert main(command) == 0
    assert main([*command, "--report", "--json", str(kept)]) == 0
    assert "| labels |" in capsys.readouterr().out
    found = json.loads(kept.read_text(encoding="utf-8"))
    cells = found["test"]["cells"]
    assert found["grid"] == {"of": "dev"} and set(cells["qa nDCG@10"]) == {"base", "labels"}
    assert found["qa_em_gain"] == cells["qa exact match"]["labels"]["against_base"]["value"]
    change = cells["qa nDCG@10"]["labels"]["against_base"]
    assert found["tasks_better"] == int(change["value"] > 0)
    assert found["tasks_significant"] == int(change["low"] > 0)


def test_the_aim_counts_a_lower_perplexity_as_better_and_an_interval_over_zero_as_unsure():
    def row(value, low, high):
        return {"labels": Cell([0.0], Difference(value, low, high, 0.5), None)}

    found = {
        "chat perplexity": row(-1.0, -2.0, -0.5),
        "lrlm perplexity": row(1.0, 0.5, 2.0),
        "tool nDCG@5": row(0.1, -0.1, 0.3),
        "icl nDCG@10": row(0.1, 0.05, 0.2),
    }
    told = aim(found, arm("labels"))
    assert (told["better"], told["significant"], told["qa_em_gain"]) == (["tool", "chat", "icl"], ["chat", "icl"], None)
