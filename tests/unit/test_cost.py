"""What a job will cost, from sizes alone."""

from __future__ import annotations

import pytest

from embedder.run.cost import Work, characters_a_token, forward_flops, measured_rate, tokens_of


def test_forward_flops_are_two_operations_a_weight_and_token():
    assert forward_flops(1_000, tokens_of(400)) == 2 * 1_000 * 100


def test_measured_rate_is_one_that_a_machine_can_have():
    assert 1e8 < measured_rate() < 1e15


def test_characters_a_token_are_those_of_the_tokenizer(tmp_path, tiny_llama_folder):
    assert characters_a_token(tmp_path, ["a text"]) == 4
    assert characters_a_token(tiny_llama_folder, []) == 4
    # A byte-level tokenizer that knows no Chinese takes three bytes, each a token, for a letter.
    assert characters_a_token(tiny_llama_folder, ["\u6f22\u5b57" * 5]) == pytest.approx(1 / 3)
    assert characters_a_token(tiny_llama_folder, ["the quick brown fox"]) > 2


def test_work_without_a_model_has_no_estimate():
    assert Work("prepare", ["a file"], 0.0).told() == ["a file"]


def test_work_that_was_measured_tells_no_second_estimate():
    work = Work("label", ["60 groups"], 3e12, 1_000)
    assert work.told(["measured"]) == ["60 groups", "measured"]
    assert len(work.told()) == 2 and work.told()[1].startswith("about 1,000 tokens, 3 TFLOP of model work, ")


@pytest.mark.parametrize(("flops", "shown"), [(2e7, "0.02 GFLOP"), (3.2e11, "0.32 TFLOP"), (5.4e13, "54 TFLOP")])
def test_work_estimate_rounds_nothing_to_zero(flops, shown):
    assert Work("train", [], flops).estimate().startswith(f"about {shown} of model work")
