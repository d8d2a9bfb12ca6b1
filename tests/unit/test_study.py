"""The study: what each training learns from, what each arm changes, and what the report claims of known gains."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.study_arms import ARMS, FULL, LABELS, SHUFFLED, arms_of
from benchmarks.study_gains import tables
from benchmarks.study_protocol import EXAMPLES, LEARNED, TRAININGS, Training
from benchmarks.study_tables import results_page, summary
from benchmarks.study_values import Results, grid
from embedder.config.tasks import BUILTIN_TASKS
from embedder.config.train import TrainConfig
from embedder.errors import ConfigError, DataError
from tests.unit.study_grid import TASKS, made_up
from tests.unit.study_run import SCORES

ALL = [name for names in TASKS.values() for name in names]
REWARDS = [3.0, -1.0, 0.5, 2.0]


def arm(name):
    return next(one for one in ARMS if one.name == name)


def labelled(**changes):
    ids = {"row_id": "r", "candidate_ids": ["p0", "p1"], "answers": ["Paris"]}
    found = {"task": "qa", "dataset": "nq", "relevance": [1, 0], "rewards": [-1.0, 1.0], "error": None, **SCORES, **ids}
    return {**found, **changes}


def test_every_data_set_is_unseen_by_some_training_and_none_is_both_seen_and_unseen():
    for number in range(TRAININGS):
        training = Training(number)
        assert sorted(training.seen(ALL) + training.unseen(ALL)) == sorted(ALL)
        assert {"mtrag", "dstc10", "peps"} <= set(training.unseen(ALL)) and "dstc11" in training.seen(ALL)
    assert {name for number in range(TRAININGS) for name in Training(number).unseen(ALL)} == set(ALL) - {"dstc11"}


def test_directions_share_no_pair_and_each_example_set_is_left_out_in_both():
    assert LEARNED["A"] & LEARNED["B"] == {"dstc11"}
    left_out = [(Training(number).left_out, Training(number).direction) for number in range(TRAININGS)]
    assert sorted(left_out) == sorted((kind, direction) for kind in EXAMPLES for direction in "AB")


def test_grid_trains_every_arm_once_before_any_arm_again():
    names = [entry.name for entry in grid([FULL, SHUFFLED, arm("longer")], TRAININGS)]
    assert names[:8] == ["base", "bm25", "recency", "full-00", "shuffled-00", "longer-00", "full-01", "shuffled-01"]
    assert len(names) == len(set(names)) == 3 + 6 + 6 + 2
    assert [entry.name for entry in grid([FULL], 1)] == ["base", "bm25", "recency", "full-00"]


def test_arms_have_names_of_their_own_and_the_method_is_always_among_them():
    assert len({one.name for one in ARMS}) == len(ARMS)
    assert arms_of([]) == list(ARMS)
    assert arms_of(["labels"]) == [FULL, LABELS]
    with pytest.raises(ConfigError, match="nothing"):
        arms_of(["nothing"])


def test_arm_shuffled_permutes_rewards_within_a_group_by_its_id():
    groups = [labelled(row_id=f"r{i}", rewards=REWARDS) for i in range(20)]
    found = SHUFFLED.groups(groups, Training(0), {})
    assert all(sorted(group["rewards"]) == sorted(REWARDS) for group in found)
    assert len({tuple(group["rewards"]) for group in found}) > 5
    assert SHUFFLED.groups(groups, Training(0), {}) == found and groups[0]["rewards"] == REWARDS
    assert FULL.groups(groups, Training(0), {}) == groups


def test_arm_labels_takes_examples_with_the_querys_answer_for_positives():
    group = labelled(task="icl", dataset="snips", answers=["rain"])
    answers = {"snips": {"p0": "music", "p1": "rain"}}
    (found,) = LABELS.groups([group], Training(2), answers)
    assert found["relevance"] == [0, 1]
    (other,) = LABELS.groups([labelled()], Training(0), {"nq": {"p0": None, "p1": None}})
    assert other["relevance"] == [1, 0]
    assert {spec.loss for spec in LABELS.specs(BUILTIN_TASKS).values()} == {"contrastive"}


def test_arms_learn_from_the_data_sets_of_their_training_alone():
    groups = [labelled(dataset=name) for name in ALL]
    for number in (0, 1, 5):
        found = {group["dataset"] for group in FULL.groups(groups, Training(number), {})}
        assert found == set(Training(number).learned)


def test_arm_of_another_reward_makes_it_from_the_scores_and_leaves_groups_without_scores():
    (found,) = arm("likelihood").groups([labelled()], Training(0), {})
    assert found["rewards"] == [-3.0, -1.0]
    group = labelled(dataset="metatool", scores=None, base_scores=None, rewards=None)
    assert arm("likelihood").groups([group], Training(0), {}) == [group]


def test_a_task_has_as_many_steps_in_every_arm_whatever_the_others_have():
    train = TrainConfig(steps=90, num_workers=1, task_weights={"qa": 1, "tool": 2}, validation={"queries": 5})
    both = FULL.settings(train, Training(3), ["qa", "tool"])
    assert (both.steps, both.seed, both.validation.seed) == (90, 3, 3)
    alone = LABELS.settings(train, Training(3), ["tool"])
    assert (alone.steps, alone.task_weights) == (60, {"tool": 2})
    assert arm("longer").settings(train, Training(0), ["qa", "tool"]).steps == 180
    large = arm("large").settings(train, Training(0), ["qa", "tool"])
    assert (large.steps, large.batch_size) == (45, 32)
    with pytest.raises(ConfigError, match="task_weights is empty"):
        FULL.settings(TrainConfig(steps=9, num_workers=1), Training(0), ["qa"])


KNOWN = {
    **{("full", task): 0.05 for task in ("tool", "icl", "chat")},
    **{("shuffled", task): 0.05 for task in ("tool", "icl")},
    ("full", "qa"): -0.1,
}


@pytest.fixture(scope="module")
def known():
    """The tables of a grid with known gains, of as many resamples as the report has: p cannot be below two of them."""
    return tables(made_up(KNOWN), resamples=20_000)


def test_summary_claims_the_gains_that_are_there_and_no_others(known):
    told = summary(known)
    assert told["gaining_unseen"] == ["tool", "icl", "chat"] and told["tasks_gaining_unseen"] == 3
    assert told["gaining_beyond_shuffled"] == ["chat"] and told["tasks_gaining_beyond_shuffled"] == 1
    assert {"nq", "pubmedqa"} <= set(told["significantly_below"]) <= set(told["below_uncorrected"])
    assert told["datasets_significantly_below"] == len(told["significantly_below"])
    assert told["trainings"]["full"] == 6 and set(told["unseen"]) == set(TASKS)


def test_summary_of_a_task_averages_over_the_data_sets_that_its_trainings_never_saw(known):
    told = summary(known)["unseen"]
    assert told["convsearch"]["datasets"] == ["dstc10", "mtrag"]
    assert told["lrlm"]["datasets"] == ["books", "code", "peps"]
    chat = told["chat"]
    assert chat["low"] < chat["gain"] < chat["high"] and chat["gain"] == pytest.approx(0.05, abs=0.01)
    # A gain of perplexity is in nats, and positive where the perplexity falls.
    assert chat["trained"] < chat["base"] and chat["over_shuffled"] == pytest.approx(0.05, abs=0.01)
    assert told["tool"]["trained"] - told["tool"]["base"] == pytest.approx(told["tool"]["gain"])


def test_results_page_has_a_row_a_task_and_says_what_is_claimed(known):
    page = results_page(known, summary(known))
    assert "tool, icl, chat (3 of 6); beyond shuffled rewards: chat;" in page
    assert "| tool (apibench, metatool) | nDCG@5 |" in page and "### Each data set that was trained on" in page


def test_results_of_other_labels_are_not_compared(tmp_path):
    results, found = Results(tmp_path), made_up({}, arms=("full",))
    results.write(found["base"])
    results.write(replace(found["full-00"], study="another"))
    with pytest.raises(DataError, match=r"full-00\.json: of other data, labels or settings than"):
        results.read_all(["base", "full-00", "full-01"])


def test_results_are_read_as_they_were_written(tmp_path):
    results, found = Results(tmp_path), made_up({}, arms=("full",))
    for name in ("base", "full-00"):
        results.write(found[name])
        again = results.read(name)
        assert (again.tasks, again.origins, again.arm) == (found[name].tasks, found[name].origins, found[name].arm)
        value, weight = again.values["test"]["peps"]["perplexity"]["q0"]
        assert (value, weight) == (
            pytest.approx(found[name].values["test"]["peps"]["perplexity"]["q0"][0], rel=1e-5),
            7,
        )
    assert results.path("full-00").stat().st_size < 100_000
