"""The statistics of labels: numbers worked out by hand, bounded memory, and no dependence on the order of rows."""

from __future__ import annotations

import json
import random
from itertools import combinations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.data.records import LABELLED
from embedder.labelling.label_statistics import (
    BARS,
    EXAMPLES,
    RANK_STEP,
    REASONS,
    SCORE_STEP,
    Histogram,
    LabelCost,
    TaskStatistics,
    bins_a_bar,
    chance_of_positive,
    example,
)
from embedder.reporting.html import TEXT_CHARACTERS
from tests.unit.labelled_rows import COST, FIRST, GROUPS, SECOND, THIRD, counted, row, statistics_of, unlabelled


def shares_of(rows):
    """Shares by task."""
    return {task: one.shares() for task, one in counted(rows).items()}


class Asked(dict):
    """A row that knows which of its columns were read."""

    def __init__(self, row):
        super().__init__(row)
        self.names = set()

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)


def test_label_statistics_read_only_columns_of_the_schema():
    rows = [Asked(group) for group in GROUPS]
    statistics_of(rows)
    assert {name for row in rows for name in row.names} <= set(LABELLED.names)


def test_label_statistics_of_a_table_are_those_of_its_rows():
    table = pa.Table.from_pylist(GROUPS, schema=LABELLED)
    assert statistics_of(table.to_pylist()).numbers() == statistics_of(GROUPS).numbers()
    assert statistics_of(table.to_pylist()).examples == statistics_of(GROUPS).examples


def test_label_shares_are_those_worked_out_by_hand():
    assert shares_of(GROUPS) == {
        "qa": {
            "groups": 7,
            "rewarded": 5,
            "errors": 1,
            "flat": 1 / 5,
            "flat_rank": 1 / 5,
            "flat_likelihood": 1 / 5,
            "flat_gain": 1 / 5,
            "saturated": 1 / 5,
            "polarised": 2 / 5,  # 2 0 0; and 0 -1, as two candidates always are
            "decided": 3 / 5,
            "positive_is_best": 2 / 3,
            "positive_by_chance": pytest.approx((1 / 3 + 1 / 2 + 2 / 3) / 3, abs=1e-6),
        }
    }


def test_label_numbers_are_those_worked_out_by_hand():
    numbers = statistics_of(GROUPS).numbers()
    names = ("unrewarded", "ranked", "known", "candidates", "mean_samples", "truncated_candidates")
    assert [numbers[name] for name in names] == [1, 5, 3, 14, 2.0, None]
    assert numbers["error_reasons"] == {"no candidates": 1}
    assert numbers["rank_without"]["counts"] == {"1": 1, "3": 4}
    assert numbers["rank_without"]["mean"] == 13 / 5
    assert numbers["rank_with"]["counts"] == {"1": 3, "2": 4, "3": 7}
    assert numbers["rewards"]["rank"]["positive"]["counts"] == {"-1": 1, "0": 1, "1": 1, "2": 1}
    assert numbers["rewards"]["rank"]["other"]["counts"] == {"0": 7, "1": 2, "2": 1}
    assert numbers["rewards"]["rank"]["positive"]["mean"] == 1 / 2
    assert numbers["rewards"]["rank"]["other"]["mean"] == 4 / 10
    json.dumps(numbers, allow_nan=False)


def test_label_histograms_have_bins_for_half_ranks():
    numbers = statistics_of([row([(-1.0, -1.0, -2.0)], [0], base=(-2.0, -2.0, -1.0))]).numbers()
    assert numbers["rank_without"]["counts"] == {"2.5": 1}
    assert numbers["rank_with"]["counts"] == {"1.5": 1}
    assert numbers["rewards"]["rank"]["other"]["counts"] == {"1": 1}


def test_label_shares_count_truncated_candidates_only_in_rows_that_tell():
    rows = [GROUPS[0] | {"truncated": 2}, GROUPS[1] | {"truncated": 0}, GROUPS[2] | {"truncated": None}, GROUPS[3]]
    numbers = statistics_of(rows).numbers()
    assert (numbers["truncated"], numbers["truncated_candidates"]) == (2 / 6, 2)


def test_label_statistics_of_likelihood_rewards_have_no_ranks():
    numbers = statistics_of([row([(-1.0,), (-2.5,)], [1, 0], base=(-2.0,), reward="likelihood")]).numbers()
    assert "saturated" not in numbers
    assert (numbers["decided"], numbers["positive_is_best"], numbers["mean_samples"]) == (1, 1, None)
    assert numbers["rewards"]["likelihood"]["positive"]["mean"] == -1
    assert numbers["rank_with"]["counts"] == {}


def test_label_statistics_of_another_teacher_need_no_log_likelihoods():
    rows = [unlabelled(rewards=[0.25, 70.0]), unlabelled(rewards=[1e9, -1e9]), unlabelled(rewards=[0.5, 0.5])]
    one = statistics_of(rows)
    assert one.shares() == {
        "groups": 3,
        "rewarded": 3,
        "errors": 0,
        "flat": 1 / 3,
        "polarised": 2 / 3,
        "decided": 2 / 3,
        "positive_is_best": 0.5,
        "positive_by_chance": 0.5,
    }
    assert list(one.rewards) == ["teacher"]
    best = example(rows[0])["candidates"][0]
    assert (best["reward"], best["rank"]) == (70, None)


def test_label_shares_of_flat_groups_are_told_for_each_kind_side_by_side():
    groups = [
        row([(-3.0, -1.0, -2.0), (-2.75, -1.0, -2.0)], [1, 0]),  # ranks 3 and 3, likelihoods apart by 0.25
        row([(-3.0, -1.0, -2.0), (-2.25, -1.0, -2.0)], [1, 0], reward="likelihood"),  # by 0.75
        row([(-3.0, -1.0, -2.0), (-0.5, -1.0, -2.0)], [1, 0], reward="gain"),  # ranks 3 and 1
        row([(-3.0,), (-3.0,)], [1, 0], base=(-3.0,), reward="gain"),  # no rivals
    ]
    one = TaskStatistics(0, margin=0.5)
    for group in groups:
        one.add(group)
    shares = one.shares()
    assert (shares["flat_rank"], shares["flat_likelihood"], shares["flat_gain"]) == (2 / 3, 1 / 4, 2 / 4)


def test_label_ranks_are_those_of_the_sums_where_these_count():
    group = row([(-1.5, -1.0, -2.0)], [1], output_tokens=[1, 2, 3])  # means: second of three; sums -1.5, -2, -6
    means, sums = TaskStatistics(0), TaskStatistics(0, sums=True)
    for one in (means, sums):
        one.add(group)
    assert [one.numbers()["rank_with"]["counts"] for one in (means, sums)] == [{"2": 1}, {"1": 1}]
    assert [example["candidates"][0]["rank"] for one in (means, sums) for example in one.examples] == [2, 1]


def test_label_errors_are_counted_by_their_first_words_without_numbers():
    rows = [unlabelled(row_id=str(i), error=f"query {i} has 12 tokens too many for the LLM {i}") for i in range(3)]
    assert statistics_of(rows).numbers()["error_reasons"] == {"query # has # tokens too": 3}


def test_label_errors_have_bounded_reasons_and_none_is_lost():
    words = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(100)]
    rows = [unlabelled(row_id=f"{word}{i}", error=word) for word in words for i in range(2)]
    random.Random(0).shuffle(rows)
    reasons = statistics_of(rows).numbers()["error_reasons"]
    assert reasons == dict.fromkeys(words[:REASONS], 2) | {"(other)": 2 * (100 - REASONS)}


def test_label_statistics_of_a_thousand_rows_keep_ten_examples_and_few_bins():
    scores = [[(-0.01 * i, -1.0, -2.0), (-0.02 * i, -1.0, -2.0)] for i in range(1000)]
    one = statistics_of([row(part, [1, 0], row_id=str(i), query="x" * 5000) for i, part in enumerate(scores)])
    assert len(one.examples) == len(one._examples._kept) == EXAMPLES
    assert len(one.rank_with.counts) <= 5
    assert all(len(shown["query"]) == TEXT_CHARACTERS + 1 for shown in one.examples)
    assert one.counts["groups"] == 1000


def test_label_examples_are_drawn_evenly_and_by_the_seed():
    rows = [row([FIRST], [1], row_id=str(i), query_id=str(i)) for i in range(1000)]
    drawn = [[int(e["query_id"]) for e in counted(rows, seed)["qa"].examples] for seed in range(40)]
    assert len({tuple(ids) for ids in drawn}) == 40
    assert 450 < sum(map(sum, drawn)) / 400 < 550  # 499.5 on average, with a standard deviation of 14


SCORES = st.tuples(*[st.sampled_from([-3.0, -2.0, -1.0]) | st.floats(-9, 0)] * 3)
DRAWN = st.one_of(
    st.builds(
        lambda scores, base, known, cut, task: row(
            scores, [known, *[0] * (len(scores) - 1)], base=base, truncated=cut, task=task
        ),
        st.lists(SCORES, min_size=1, max_size=4),
        SCORES,
        st.integers(0, 1),
        st.none() | st.integers(0, 1),
        st.sampled_from(["qa", "icl"]),
    ),
    st.builds(lambda rewards: unlabelled(rewards=rewards), st.tuples(st.floats(-200, 200), st.floats(-1, 1)).map(list)),
    st.builds(lambda error: unlabelled(error=error), st.none() | st.text(max_size=20)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(DRAWN, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_label_statistics_do_not_depend_on_the_order_of_the_rows(rows, shuffler):
    rows = [row | {"row_id": f"id{i}"} for i, row in enumerate(rows)]
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    one, other = counted(rows), counted(shuffled)
    assert {task: of.numbers() for task, of in one.items()} == {task: of.numbers() for task, of in other.items()}
    assert {task: of.examples for task, of in one.items()} == {task: of.examples for task, of in other.items()}


@given(st.lists(st.floats(-1e4, 1e4), min_size=1), st.sampled_from([RANK_STEP, SCORE_STEP]))
def test_histogram_has_few_bars_and_loses_no_value(values, step):
    histogram = Histogram(step)
    for value in values:
        histogram.add(value)
    bars = histogram.bars(bins_a_bar([histogram]))
    assert sum(bars.values()) == len(values)
    assert len(bars) <= BARS + 1
    assert histogram.mean == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_histogram_bars_hold_as_many_whole_ranks_each():
    bases = [(-rank + 0.5, *(-float(i) for i in range(1, 64))) for rank in range(1, 65)]
    numbers = statistics_of([row([bases[0]], [1], base=base) for base in bases]).numbers()
    assert numbers["rank_without"]["bar_width"] == 2.0
    assert numbers["rank_without"]["counts"] == {str(rank): 2 for rank in range(1, 65, 2)}


@pytest.mark.parametrize(("candidates", "positives", "chosen"), [(4, 1, 1), (4, 1, 2), (5, 2, 2), (5, 4, 2), (3, 3, 1)])
def test_chance_of_positive_is_the_share_of_choices_that_hold_one(candidates, positives, chosen):
    choices = list(combinations(range(candidates), chosen))
    expected = sum(min(choice) < positives for choice in choices) / len(choices)
    assert chance_of_positive(candidates, positives, chosen) == pytest.approx(expected)


def test_label_cost_gives_rates_and_the_share_of_the_peak():
    assert COST.numbers() | {"pairs_per_s": 2.5, "tokens_per_s": 200.0, "peak_share": 0.075} == COST.numbers()
    nothing = LabelCost(seconds=0, pairs=0, tokens=0, flops=0, peak_flops=1e9, actors=2)
    assert (nothing.pairs_per_s, nothing.tokens_per_s, nothing.peak_share) == (0, 0, None)
    assert LabelCost(1.0, 1, 1, 1.0, None, 1).peak_share is None


def test_label_example_holds_what_one_needs_to_judge_the_reward():
    shown = example(row([THIRD, FIRST], [0, 1], query="when", base=SECOND))
    assert (shown["desired"], shown["rank"]) == ("now", 2)
    assert shown["outputs"] == [("sample 0", -1.0, False), ("now", -1.5, True), ("sample 1", -2.0, False)]
    assert shown["candidates"] == [
        {"text": "text 1", "positive": True, "as_good": False, "reward": 1, "rank": 1, "likelihood": -0.5},
        {"text": "text 0", "positive": False, "as_good": False, "reward": -1, "rank": 3, "likelihood": -3.0},
    ]
    assert example(unlabelled(answers=[]))["desired"] is None


def test_label_example_of_own_answers_marks_none_as_desired_and_shows_each_once():
    base, scores = (-1.0, -3.0, -1.0), [(-0.5, -2.0, -0.5), (-1.0, -3.0, -1.0)]
    own = row(scores, [0, 1], base=base, reward="own_answers", outputs=["a", "b", "a"], answers=["now"])
    shown = example(own)
    assert (shown["desired"], shown["rank"]) == ("now", None)
    assert shown["outputs"] == [("a", -1.0, False), ("b", -3.0, False)]
    assert [(each["likelihood"], each["as_good"]) for each in shown["candidates"]] == [(-1.0, False), (-5 / 3, False)]
    numbers = statistics_of([own]).numbers()
    assert not any(name.startswith("flat_") for name in numbers) and numbers["rewarded"] == 1
    assert list(numbers["rewards"]) == ["own_answers"]


def test_label_statistics_count_mined_candidates_as_good_as_the_positive():
    rows = [row([FIRST, FIRST, THIRD, THIRD], [1, 0, 0, 0]), row([FIRST, THIRD, THIRD], [1, 0, 0])]
    found = statistics_of(rows)
    assert found.numbers()["false_negatives"] == {"mined": 5, "as_good": 1, "groups": 1}
    assert [candidate["as_good"] for candidate in found.as_good[0]["candidates"]] == [False, True, False, False]
