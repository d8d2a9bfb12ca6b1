"""The study: what each arm changes, and which tasks count as better."""

from __future__ import annotations

import pytest

from benchmarks.study_arms import ARMS, FULL, arms_of
from benchmarks.study_tables import Cell, aim
from embedder.config.tasks import BUILTIN_TASKS
from embedder.config.train import TrainConfig
from embedder.errors import ConfigError
from embedder.evaluation.statistics import Difference
from tests.unit.study_run import SCORES


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
