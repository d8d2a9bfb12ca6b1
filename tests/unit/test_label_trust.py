"""Whether rewards can be trusted: planted signal is found, noise is named, and nothing depends on the order of rows."""

from __future__ import annotations

import random

import pytest

from embedder.labelling.label_trust import Agreement, LabelTrust, SameOrder, WithinGroups, trust_lines
from embedder.labelling.rewards import group_rewards, summed


def row(number, rewards, relevance=(1, 0, 0, 0), base=None, scores=None, reward="rank"):
    return {
        "reward": reward,
        "row_id": f"row-{number}",
        "rewards": rewards,
        "relevance": list(relevance),
        "base_scores": base,
        "scores": scores,
    }


def trust_of(rows):
    trust = LabelTrust(0)
    for each in rows:
        trust.add(each)
    return trust


def planted(count, signal, noise):
    """Groups whose first candidate is the positive, and is better by `signal`."""
    drawn = random.Random(5)
    return [row(i, [signal * (k == 0) + noise * drawn.gauss(0, 1) for k in range(4)]) for i in range(count)]


def ranked(count, signal, rivals=10):
    """Groups with log-likelihoods, in which a candidate lifts the desired output by what is planted for it."""
    drawn, rows = random.Random(6), []
    for i in range(count):
        base = [-2.0, *(drawn.gauss(-2, 1) for _ in range(rivals))]
        scores = [
            [-2.0 + signal * k + drawn.gauss(0, 0.1), *(drawn.gauss(-2, 1) for _ in range(rivals))] for k in range(4)
        ]
        rows.append(row(i, group_rewards("rank", base, scores), base=base, scores=scores))
    return rows


def test_agreement_of_one_group_is_the_share_of_pairs_won_and_ties_count_half():
    agreement = Agreement()
    agreement.add([3.0, 1.0, 3.0, 5.0], [1, 0, 0, 0])
    assert agreement.mean == pytest.approx((1 + 0.5 + 0) / 3)
    agreement.add([1.0, 2.0], [1, 1])
    agreement.add([1.0, 2.0], [0, 0])
    assert (agreement.groups, agreement.interval) == (1, None)


def test_agreement_interval_is_that_of_a_mean():
    agreement = Agreement()
    for wins in (1, 0, 1, 1):
        agreement.add([float(wins), 0.5], [1, 0])
    # Standard deviation of 1, 0, 1, 1 by hand: sqrt(0.25), over sqrt(4).
    low, high = agreement.interval
    assert (low, high) == (pytest.approx(0.75 - 1.96 * 0.25, abs=1e-5), pytest.approx(0.75 + 1.96 * 0.25, abs=1e-5))


def test_within_groups_leaves_out_what_differs_between_them():
    same = WithinGroups()
    same.add([1.0, 2.0, 3.0], [101.0, 102.0, 103.0])
    same.add([50.0, 49.0, 48.0], [3.0, 2.0, 1.0])
    assert same.value == pytest.approx(1.0)
    against = WithinGroups()
    against.add([1.0, 2.0], [100.0, 0.0])
    against.add([1000.0, 1000.0], [1000.0, 1000.0])
    assert against.value == pytest.approx(-1.0)
    flat = WithinGroups()
    flat.add([1.0, 1.0], [1.0, 2.0])
    assert flat.value is None


def test_trust_planted_signal_is_found_and_shuffling_removes_it():
    trust = trust_of(planted(200, signal=2.0, noise=1.0))
    assert trust.agreement.mean > 0.85 and trust.agreement.interval[0] > 0.8
    assert 0.42 < trust.shuffled.mean < 0.58
    assert trust.warnings() == []


def test_trust_rewards_that_are_noise_are_named_with_a_remedy():
    warned = trust_of(planted(100, signal=0.0, noise=1.0)).warnings()
    assert len(warned) == 1 and "which chance gives too" in warned[0] and "reward: none" in warned[0]
    assert trust_of(planted(10, signal=0.0, noise=1.0)).warnings() == []


def test_trust_flat_groups_are_named():
    flat = [row(i, [1.0] * 4) for i in range(60)] + planted(40, signal=3.0, noise=1.0)
    warned = trust_of(flat).warnings()
    assert [warning.split(" are flat")[0] for warning in warned] == ["60 of 100 groups"]


def test_trust_reliability_tells_ranks_with_signal_from_ranks_by_chance():
    strong, weak = trust_of(ranked(100, signal=0.6)), trust_of(ranked(100, signal=0.0))
    assert strong.reliability > 0.7 and not any("halves" in warning for warning in strong.warnings())
    assert weak.reliability < 0.3
    assert any("two halves of the sampled outputs" in warning for warning in weak.warnings())
    assert trust_of(ranked(30, signal=0.6, rivals=3)).reliability is None


def test_trust_another_seed_is_compared_within_groups():
    rows = planted(50, signal=2.0, noise=1.0)
    trust = trust_of(rows)
    for each in rows:
        trust.add_repeated(each, each)
    assert trust.stability.value == pytest.approx(1.0)
    other = trust_of(rows)
    for each, another in zip(rows, planted(51, signal=0.0, noise=1.0)[1:], strict=True):
        other.add_repeated(each, another)
    assert other.stability.value < 0.5
    assert any("another seed gives other rewards" in warning for warning in other.warnings())


def test_trust_shows_the_groups_that_disagree_most_whatever_the_order():
    rows = [row(i, [0.0, float(i), 0.0, 0.0]) for i in range(12)] + planted(20, signal=9.0, noise=0.1)
    trust = trust_of(rows)
    assert [each["row_id"] for each in trust.disagreements] == [f"row-{i}" for i in (11, 10, 9, 8, 7)]
    mixed = list(rows)
    random.Random(1).shuffle(mixed)
    assert trust_of(mixed).numbers() == trust.numbers()


def test_trust_rows_without_rewards_or_known_positives_say_nothing():
    trust = trust_of([row(0, None), row(1, [1.0, 2.0], relevance=(0, 0))])
    assert (trust.rewarded, trust.agreement.groups, trust.line(), trust.warnings()) == (1, 0, "", [])


def test_same_order_is_the_rank_correlation_within_groups_and_how_often_the_best_is_the_same():
    order = SameOrder()
    order.add([1.0, 2.0, 3.0], [10.0, 20.0, 90.0])
    assert (order.spearman.mean, order.best.mean) == (1.0, 1.0)
    order.add([3.0, 2.0, 1.0], [1.0, 2.0, 3.0])
    assert (order.spearman.mean, order.best.mean) == (0.0, 0.5)
    tied = SameOrder()
    tied.add([2.0, 2.0, 1.0], [5.0, 4.0, 4.0])  # Ranks 2 2 0.5 and 2.5 1 1.
    assert (tied.spearman.mean, tied.best.mean) == (pytest.approx(0.5, abs=1e-6), 0.5)
    tied.add([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    assert tied.spearman.groups == 1


def test_trust_rewards_beside_those_from_answers_tell_agreement_from_chance():
    rows = planted(60, signal=0.0, noise=1.0)
    near, far = trust_of(rows), trust_of(rows)
    drawn = random.Random(7)
    for each in rows:
        near.add_with_answers(each, "likelihood", [reward + drawn.gauss(0, 0.5) for reward in each["rewards"]])
        far.add_with_answers(each, "likelihood", [drawn.gauss(0, 1) for _ in each["rewards"]])
    agree, chance = (trust.numbers()["with_answers"]["likelihood"] for trust in (near, far))
    assert agree["groups"] == 60 and agree["spearman"] > 0.6 and agree["interval"][0] > 0.5
    assert agree["same_best"] > 0.6 and 0.1 < agree["same_best_shuffled"] < 0.4
    assert abs(agree["spearman_shuffled"]) < 0.25 and abs(chance["spearman"]) < 0.25
    assert not any("without answers" in warning for warning in near.warnings())
    assert any("no more than chance would" in warning for warning in far.warnings())
    told = "\n".join(trust_lines({"qa": near}))
    assert "qa: beside likelihood from the rows' answers: Spearman 0." in told and "within 60 groups" in told


def test_trust_own_answers_are_halved_by_the_answers():
    def own(signal):
        drawn, rows = random.Random(8), []
        for i in range(60):
            base = [-2.0] * 10
            scores = [[-2.0 + signal * k + drawn.gauss(0, 1) for _ in base] for k in range(4)]
            rewards = group_rewards("own_answers", base, scores)
            rows.append(row(i, rewards, base=base, scores=scores, reward="own_answers"))
        return trust_of(rows)

    assert own(1.0).reliability > 0.8 and abs(own(0.0).reliability) < 0.4


def test_trust_reliability_is_of_what_is_compared_and_of_ranks_alone():
    rows = ranked(60, signal=0.6)
    for each in rows:
        each["output_tokens"] = [1, *range(1, 20, 2)]
    means, sums = LabelTrust(0), LabelTrust(0, sums=True)
    for each in rows:
        means.add(each)
        sums.add(each)
    by_hand = LabelTrust(0)
    for each in rows:
        tokens = each["output_tokens"]
        of_sums = {"base_scores": summed(each["base_scores"], tokens)}
        of_sums["scores"] = [summed(one, tokens) for one in each["scores"]]
        by_hand.add({**each, **of_sums})
    assert sums.reliability == by_hand.reliability != means.reliability
    assert trust_of([{**each, "reward": "gain"} for each in rows]).reliability is None
