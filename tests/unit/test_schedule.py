"""Learning rates: warm-up, decay, and the self-paced factor."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.train import SelfPacedConfig
from embedder.training.schedule import Pace, SelfPaced, linear_rate
from tests.unit.judges import quick


def test_linear_rate_rises_to_one_over_the_warm_up_and_falls_towards_zero():
    rates = [linear_rate(step, 10, 0.2) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[3:] == pytest.approx([7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_linear_rate_without_warm_up_only_falls():
    assert [linear_rate(step, 4, 0.0) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.99])
def test_linear_rate_is_never_zero_and_never_above_one(steps, share):
    assert all(0 < linear_rate(step, steps, share) <= 1 for step in range(steps))


def paced(**fields) -> SelfPaced:
    return SelfPaced(SelfPacedConfig(**{"checkpoint_every": 4, "smoothing": 0.0, **fields}))


def feed(pace: SelfPaced) -> SelfPaced:
    """Losses of 10 up to the checkpoint; then `lossy` stays high and `learned` halves."""
    for step, (task, loss) in enumerate([("lossy", 10), ("learned", 10), ("lossy", 10), ("learned", 10)]):
        pace.update(task, loss, step)
    pace.update("lossy", 11.0, 4)
    pace.update("learned", 6.0, 5)
    return pace


def test_self_paced_task_whose_loss_stays_high_learns_faster():
    pace = feed(paced(direction="lossy_faster"))
    assert (pace.factor("lossy"), pace.factor("learned")) == pytest.approx((1.1, 0.6))


def test_self_paced_task_whose_loss_stays_high_learns_slower_the_other_way_round():
    pace = feed(paced(direction="lossy_slower"))
    assert (pace.factor("lossy"), pace.factor("learned")) == pytest.approx((1 / 1.1, 1 / 0.6))


def test_self_paced_factors_are_one_when_switched_off():
    pace = feed(paced(direction="off"))
    assert (pace.factor("lossy"), pace.factor("learned")) == (1.0, 1.0)


def test_self_paced_task_without_loss_has_factor_one():
    assert feed(paced()).factor("other") == 1.0


@pytest.mark.parametrize("direction", ["lossy_faster", "lossy_slower"])
def test_self_paced_factors_stay_within_their_bounds(direction):
    pace = paced(direction=direction, bounds=(0.5, 2.0))
    for task, loss in (("up", 100.0), ("down", 0.01)):
        pace.update(task, 1.0, 0)
        pace.update(task, loss, 1)
    assert {pace.factor("up"), pace.factor("down")} == {0.5, 2.0}


def test_self_paced_factor_of_a_loss_of_zero_is_one():
    pace = paced(direction="lossy_slower")
    pace.update("qa", 0.0, 0)
    assert pace.factor("qa") == 1.0


def test_self_paced_checkpoint_makes_the_running_losses_the_reference():
    pace = paced()
    for step, loss in enumerate([8.0, 4.0, 4.0]):
        pace.update("qa", loss, step)
    assert pace.factor("qa") == 0.5
    pace.update("qa", 4.0, 3)
    assert pace.factor("qa") == 1.0


def test_self_paced_running_loss_is_smoothed():
    pace = paced(smoothing=0.9)
    pace.update("qa", 10.0, 0)
    pace.update("qa", 20.0, 1)
    assert pace.current["qa"] == pytest.approx(0.9 * 10 + 0.1 * 20)


def plain_factors(losses, every, smoothing, direction, bounds):
    """The factor before each step of a sequence of (task, loss), followed step by step."""
    now, checkpoint, factors = {}, {}, []
    for step, (task, loss) in enumerate(losses):
        if task in now and direction != "off":
            ratio = now[task] / checkpoint[task]
            factors.append(min(max(ratio if direction == "lossy_faster" else 1 / ratio, bounds[0]), bounds[1]))
        else:
            factors.append(1.0)
        now[task] = smoothing * now[task] + (1 - smoothing) * loss if task in now else loss
        checkpoint.setdefault(task, loss)
        if step % every == every - 1:
            checkpoint = dict(now)
    return factors


@quick
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.01, 100)), max_size=30),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from(["off", "lossy_faster", "lossy_slower"]),
)
def test_self_paced_factors_of_any_losses_are_those_of_a_plain_loop(losses, every, smoothing, direction):
    pace = paced(checkpoint_every=every, smoothing=smoothing, direction=direction, bounds=(0.25, 3.0))
    found = []
    for step, (task, loss) in enumerate(losses):
        found.append(pace.factor(task))
        pace.update(task, loss, step)
    assert found == pytest.approx(plain_factors(losses, every, smoothing, direction, (0.25, 3.0)))


@pytest.mark.parametrize(
    ("losses", "factors"),
    [
        ([4, 4, 4, 4, 4], [1, 1, 1, 1, 1]),
        ([4, 2, 2, 2, 2], [1, 1, 0.75, 0.625, 0.5625]),
        ([4, 8, 8, 8, 8], [1, 1, 1.5, 1.75, 1.875]),
    ],
)
def test_self_paced_factor_follows_a_loss_that_jumps_by_halves(losses, factors):
    """With smoothing 1/2 the running loss covers half of what is left of the way at each step."""
    pace, found = paced(checkpoint_every=99, smoothing=0.5), []
    for step, loss in enumerate(losses):
        found.append(pace.factor("qa"))
        pace.update("qa", float(loss), step)
    assert found == pytest.approx(factors)


def test_self_paced_task_that_comes_late_is_measured_from_its_own_first_loss():
    pace = paced(checkpoint_every=2)
    for step, loss in enumerate([8.0, 4.0]):
        pace.update("early", loss, step)
    pace.update("late", 6.0, 2)
    assert pace.factor("late") == 1.0
    pace.update("late", 3.0, 4)
    assert (pace.factor("late"), pace.factor("early")) == (0.5, 1.0)


def test_pace_of_a_one_task_batch_is_on_the_rate_alone():
    assert feed(paced()).pace({"learned": 8}) == Pace(pytest.approx(0.6), {"learned": 1.0})


def test_pace_of_a_mixed_batch_is_each_tasks_factor_as_rate_times_weight():
    rate, weights = feed(paced()).pace({"lossy": 2, "learned": 6, "new": 8})
    assert rate == pytest.approx((2 * 1.1 + 6 * 0.6 + 8) / 16)
    assert {task: rate * weight for task, weight in weights.items()} == pytest.approx(
        {"lossy": 1.1, "learned": 0.6, "new": 1.0}
    )


def test_self_paced_restored_goes_on_as_if_it_had_not_stopped():
    straight = feed(paced())
    stopped = SelfPaced(straight.config, **json.loads(json.dumps(straight.state())))
    for pace in (straight, stopped):
        for step in range(6, 12):
            pace.update("lossy", float(step), step)
    assert stopped.state() == straight.state()
    assert stopped.factor("lossy") == straight.factor("lossy")


def test_self_paced_state_that_was_kept_does_not_change_later():
    pace = feed(paced())
    state = pace.state()
    pace.update("lossy", 99.0, 6)
    assert state["current"]["lossy"] == 11.0
