"""The control: rewards that are shuffled within each group, and the second training on them."""

from __future__ import annotations

from collections import Counter

import pytest

from embedder.config.load import load_run
from embedder.errors import ConfigError
from embedder.training.control import shuffle_rewards
from ray_jobs.retrieval.encoders import check_control
from ray_jobs.train import run_name
from ray_jobs.training.data import look_at
from ray_jobs.training.groups import sources
from tests.unit.test_training_groups import write_run


def test_shuffled_rewards_are_those_of_the_group_in_an_order_of_its_own():
    groups = [{"row_id": str(i), "rewards": [1.0, 2.0, 3.0, 4.0], "relevance": [1, 0, 0, 0]} for i in range(200)]
    shuffled = shuffle_rewards(groups, 0)
    assert all(sorted(group["rewards"]) == [1.0, 2.0, 3.0, 4.0] for group in shuffled)
    assert all(group["relevance"] == [1, 0, 0, 0] for group in shuffled)
    firsts = Counter(group["rewards"][0] for group in shuffled)
    assert len(firsts) == 4 and max(firsts.values()) < 80


def test_shuffled_rewards_depend_on_the_seed_and_the_group_alone():
    groups = [{"row_id": str(i), "rewards": [1.0, 2.0, 3.0, 4.0]} for i in range(20)]
    assert shuffle_rewards(groups, 0) == shuffle_rewards(groups[::-1], 0)[::-1] != shuffle_rewards(groups, 1)


def test_shuffled_rewards_of_a_group_without_rewards_are_none():
    assert shuffle_rewards([{"row_id": "a", "rewards": None}], 0) == [{"row_id": "a", "rewards": None}]


def test_training_is_the_same_whether_or_not_it_has_a_control(tmp_path, tiny_encoder_folder):
    config = load_run(write_run(tmp_path, tiny_encoder_folder, {"qa"}))
    names = []
    for control in (False, True):
        train = config.needed_train.model_copy(update={"control": control})
        changed = config.model_copy(update={"train": train})
        names.append(run_name(changed, look_at(changed, sources(changed))))
    assert names[0] == names[1]


def test_control_that_is_measured_but_not_trained_is_refused(tmp_path, tiny_encoder_folder):
    path = write_run(tmp_path, tiny_encoder_folder, {"qa"})
    measured = "evaluate.retrievers=[base, trained, control]"
    with pytest.raises(ConfigError, match=r"names control, but train\.control is false; set it to true"):
        check_control(load_run(path, [measured]))
    check_control(load_run(path, [measured, "train.control=true"]))
    check_control(load_run(path))
