"""The validation split: what is kept apart, how a ranking is measured, when the training stops."""

from __future__ import annotations

import pytest
import torch

from embedder.config.tasks import BUILTIN_TASKS
from embedder.config.train import ValidationConfig
from embedder.errors import ConfigError
from embedder.models.encoder import load_encoder
from embedder.training.learners import EncoderLearner
from embedder.training.objective import Objective
from embedder.training.ranking_quality import gains_of, ndcg
from embedder.training.row_files import write_training_rows
from embedder.training.split import split_groups
from embedder.training.token_batches import TokenLimits
from embedder.training.validation import EarlyStopping, HeldOut
from tests.unit.bare_network import BareNetwork
from tests.unit.training_ranks import groups


def queries(count, task="qa"):
    return [{"task": task, "query": f"query {i}"} for i in range(count)]


@pytest.mark.parametrize("size", [{"share": 0.25}, {"queries": 10}])
def test_split_groups_parts_queries_and_keeps_every_group(size):
    made = queries(40) + queries(40, "chat") + queries(20)
    kept, apart = split_groups(made, ValidationConfig(**size))
    assert len(kept) + len(apart) == 100
    for task in ("qa", "chat"):
        sides = [{group["query"] for group in side if group["task"] == task} for side in (kept, apart)]
        assert not sides[0] & sides[1]
        assert len(sides[1]) == 10
    assert {g["query"] for g in apart if g["task"] == "qa"} != {g["query"] for g in apart if g["task"] == "chat"}


def test_split_groups_depends_on_the_seed_and_not_on_the_order():
    made = queries(60)
    _, apart = split_groups(made, ValidationConfig(share=0.3))
    _, again = split_groups(made[::-1], ValidationConfig(share=0.3))
    _, other = split_groups(made, ValidationConfig(share=0.3, seed=1))
    names = [{group["query"] for group in side} for side in (apart, again, other)]
    assert names[0] == names[1] != names[2]


def test_split_groups_without_validation_keeps_nothing_apart():
    assert split_groups(queries(3), None) == (queries(3), [])


def test_split_groups_that_leaves_a_task_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"validation.queries is 3, but task 'chat' has 3 queries"):
        split_groups(queries(9) + queries(3, "chat"), ValidationConfig(queries=3))


@pytest.mark.parametrize(
    ("scores", "gains", "cutoff", "expected"),
    [
        ([3, 2, 1], [1, 0, 0], 10, 1.0),
        ([1, 2, 3], [1, 0, 0], 10, 0.5),
        ([1, 2, 3], [1, 0, 0], 2, 0.0),
        ([2, 3, 1], [3, 1, 0], 10, (1 + 3 / 1.5849625) / (3 + 1 / 1.5849625)),
        ([1, 1, 1], [1, 0, 0], 10, 0.5),
        ([1, 1, 1], [0, 0, 1], 10, 0.5),
    ],
)
def test_ndcg_worked_by_hand(scores, gains, cutoff, expected):
    assert ndcg(scores, gains, cutoff) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("positive", "rewards", "gains"),
    [
        ([True, False, False], [0.0, 5.0, 1.0], [1, 0, 0]),
        ([False, False, False], [-2.0, 1.0, 0.0], [0, 3, 2]),
        ([False, False], [1.0, 1.0], None),
        ([True, True], [0.0, 3.0], None),
    ],
)
def test_gains_of_known_positives_count_before_rewards(positive, rewards, gains):
    assert gains_of(positive, rewards) == gains


def learner(encoder, tasks):
    return EncoderLearner(encoder, Objective(tasks, 0.1), cutoff=3)


@pytest.mark.parametrize("memory", [TokenLimits(256, None), TokenLimits(64, 64)])
def test_held_out_groups_are_ranked_by_the_encoder(tiny_encoder, tmp_path, memory):
    encoder = load_encoder(tiny_encoder, device="cpu")
    write_training_rows(groups(), BUILTIN_TASKS, tmp_path / "rows.arrow", {})
    found = HeldOut(tmp_path / "rows.arrow", learner(encoder, BUILTIN_TASKS)).measure(BareNetwork(encoder), memory)
    assert found.keys() == {"qa", "chat", "tool"}
    for name, value in found.items():
        task, total = BUILTIN_TASKS[name], []
        for group in groups():
            if group["task"] == name:
                texts = [task.query_instruction + group["query"]]
                texts += [task.passage_instruction + text for text in group["candidate_texts"]]
                vectors = encoder(encoder.tokenize(texts)).detach()
                total.append(ndcg((vectors[1:] @ vectors[0]).tolist(), group["relevance"], 3))
        assert value == pytest.approx(sum(total) / len(total), abs=1e-6)


def test_held_out_groups_that_prefer_nothing_do_not_count(tiny_encoder, tmp_path):
    encoder = load_encoder(tiny_encoder, device="cpu")
    flat = [
        group | {"relevance": [0] * len(group["relevance"]), "rewards": [1.0] * len(group["rewards"])}
        for group in groups()
    ]
    tasks = {name: spec.model_copy(update={"skip_flat": False}) for name, spec in BUILTIN_TASKS.items()}
    write_training_rows([group for group in flat if group["task"] == "qa"], tasks, tmp_path / "rows.arrow", {})
    held_out = HeldOut(tmp_path / "rows.arrow", learner(encoder, tasks))
    assert held_out.measure(BareNetwork(encoder), TokenLimits(256, None)) == {}


def test_held_out_without_a_group_is_refused_in_one_line(tiny_encoder, tmp_path):
    write_training_rows([], BUILTIN_TASKS, tmp_path / "rows.arrow", {})
    with pytest.raises(ConfigError, match="no group is kept apart that can be ranked"):
        HeldOut(tmp_path / "rows.arrow", learner(load_encoder(tiny_encoder, device="cpu"), BUILTIN_TASKS))


def test_early_stopping_counts_patience_from_the_best_the_earliest_of_equals():
    stopping = EarlyStopping(patience=2)
    kept = [stopping.add(10 * i, {"qa": value, "tool": 0.5}) for i, value in enumerate([0.2, 0.4, 0.4, 0.6, 0.5])]
    assert kept == [True, True, False, True, False]
    assert not stopping.exhausted
    again = EarlyStopping(2, **stopping.state())
    assert not again.add(50, {"qa": 0.3, "tool": 0.8})
    assert again.exhausted
    assert again.history[again.best] == {"steps": 30, "tasks": {"qa": 0.6, "tool": 0.5}, "mean": 0.55}
    assert len(stopping.history) == 5


def test_early_stopping_without_patience_never_stops():
    stopping = EarlyStopping(patience=None)
    for step in range(20):
        stopping.add(step, {"qa": -step})
    assert not stopping.exhausted
    assert torch.tensor(stopping.history[0]["mean"]) == 0
