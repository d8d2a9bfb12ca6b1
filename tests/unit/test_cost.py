"""What a job will cost, from sizes alone."""

from __future__ import annotations

from embedder.run.cost import forward_flops, measured_rate, tokens_of


def test_forward_flops_are_two_operations_a_weight_and_token():
    assert forward_flops(1_000, tokens_of(400)) == 2 * 1_000 * 100


def test_measured_rate_is_one_that_a_machine_can_have():
    assert 1e8 < measured_rate() < 1e15
