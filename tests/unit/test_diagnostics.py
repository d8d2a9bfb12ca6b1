"""The summary that tells whether labels carry signal."""

from __future__ import annotations

from embedder.labelling.diagnostics import reward_summary


def group(rewards, relevance, base=(-2.0, -1.0), error=None, task="qa", reward="rank"):
    fields = {"task": task, "rewards": rewards, "relevance": relevance, "base_scores": list(base)}
    return {**fields, "error": error, "reward": reward}


def test_shares_are_of_the_rewarded_groups():
    groups = [
        group([1, 0], [1, 0]),
        group([0, 0], [1, 0]),
        group([0, -1], [0, 1], base=(-1.0, -2.0)),
        group([1, 0], [0, 0]),
        group(None, [1, 0], error="no candidates"),
    ]
    assert reward_summary(groups) == {
        "qa": {"groups": 5, "rewarded": 4, "errors": 1, "flat": 0.25, "saturated": 0.25, "positive_is_best": 0.5}
    }


def test_a_task_without_rewards_counts_its_groups_alone():
    assert reward_summary([group(None, [1, 0], task="tool", reward="none")]) == {
        "tool": {"groups": 1, "rewarded": 0, "errors": 0}
    }


def test_a_likelihood_reward_is_never_saturated():
    (summary,) = reward_summary([group([-1.0, -2.0], [0, 0], base=(-1.0,), reward="likelihood")]).values()
    assert summary["saturated"] == 0


def test_tasks_are_summed_up_apart_and_in_order():
    summary = reward_summary([group([1, 0], [1, 0], task="qa"), group([1, 0], [1, 0], task="chat")])
    assert list(summary) == ["chat", "qa"]
    assert summary["qa"]["groups"] == 1
