"""What bfloat16 changes of rank rewards: counted by hand, drawn evenly, and measured with a tiny LLM."""

from __future__ import annotations

from embedder.config.tasks import BUILTIN_TASKS
from embedder.labelling.rounding import Rounding, compare_rounding, draw_sample
from tests.unit.labelled_rows import FIRST, SECOND, THIRD, row, unlabelled


def test_compare_rounding_by_hand():
    """Rewards 2 0 become 1 0, then 0 -1 become -1 0, where another candidate is best; eighteen scores, three moved."""
    rows = [row([FIRST, THIRD], [1, 0]), row([FIRST, SECOND], [0, 1], base=FIRST)]
    moved = (-1.25, -1.0, -2.0)
    exact = [[THIRD, moved, THIRD], [FIRST, moved, FIRST]]
    tokens = [each | {"output_tokens": [1, 1, 1]} for each in rows]
    found = compare_rounding(tokens, exact, BUILTIN_TASKS)
    assert found == Rounding(
        groups=2, rewards=4, differing=3, most_ranks=1.0, best_differs=1, mean_nats=(0.75 + 0.75 + 1.0) / 18
    )
    assert found.line() == (
        "bfloat16 beside float32, on 2 groups: 3 of 4 rank rewards differ (75.0%), the most by 1; the best "
        "candidate differs in 1 groups, log-likelihoods by 0.14 nats on average"
    )


def test_compare_rounding_of_equal_scores_finds_nothing():
    rows = [row([FIRST, SECOND, THIRD], [1, 0, 0])]
    found = compare_rounding(rows, [[THIRD, FIRST, SECOND, THIRD]], BUILTIN_TASKS)
    assert (found.differing, found.most_ranks, found.best_differs, found.mean_nats) == (0, 0, 0, 0)
    assert compare_rounding([], [], BUILTIN_TASKS) is None


def test_compare_rounding_ranks_sums_where_the_task_does():
    """By means the desired output stays above its rival, by sums below."""
    rows = [row([(-1.0, -2.0)], [1], base=(-3.0, -2.0)) | {"output_tokens": [4, 1]}]
    exact = [[(-3.0, -2.0), (-0.4, -2.0)]]
    assert compare_rounding(rows, exact, BUILTIN_TASKS).differing == 0
    sums = {"qa": BUILTIN_TASKS["qa"].model_copy(update={"reward_sum": "sum"})}
    assert compare_rounding(rows, exact, sums).differing == 1


def test_draw_sample_takes_groups_with_rivals_whatever_their_order():
    rows = [row([FIRST], [1], row_id=str(number)) for number in range(30)]
    without = [unlabelled(error="no candidates", row_id="a"), row([(-1.0,)], [1], base=(-1.0,), row_id="b")]
    chosen = draw_sample([*rows, *without], 5, seed=1)
    assert draw_sample([*without, *rows[::-1]], 5, seed=1) == chosen
    assert len({each["row_id"] for each in chosen}) == 5
    assert draw_sample(rows, 5, seed=2) != chosen
    assert len(draw_sample([*rows[:3], *without], 5, seed=1)) == 3 and draw_sample(rows, 0, seed=1) == []


def test_draw_sample_passes_over_groups_that_could_not_be_scored():
    failed = {"rewards": None, "scores": [[float("nan"), -2.0]], "error": "a log-likelihood is not finite"}
    bad = row([FIRST], [1]) | failed
    assert draw_sample([bad, row([FIRST], [1])], 5, 0) == [row([FIRST], [1])]
