"""Prompts: what stands where, and what goes when it is too long."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from embedder.labelling.prompts import PromptBuilder, choose_shots, prompt_builder
from embedder.lm import load_lm
from embedder.tasks import BUILTIN_TASKS, PromptTemplate

TEMPLATE = PromptTemplate(context="Knowledge: {passage}\n", input="Q: {query} A:")
PASSAGE = "Paris is the capital of France, a country in Europe. " * 12
SHOTS = [("which lazy dog", "the quick one")]


@pytest.fixture(scope="module")
def lm(tiny_llm, tmp_path_factory):
    return load_lm(tiny_llm, tmp_path_factory.mktemp("cache"), device="cpu")


def builder(lm, longest=200, template=TEMPLATE, output_tokens=5) -> PromptBuilder:
    return PromptBuilder(lm, template, output_tokens, longest)


def text_of(lm, ids):
    return lm.tokenizer.decode(ids)


def test_a_prompt_is_shots_then_context_then_query(lm):
    prefix = builder(lm).prefix("where?", ["one", "two"], SHOTS)
    assert text_of(lm, prefix) == "Q: which lazy dog A: the quick one\n\nKnowledge: one\ntwo\nQ: where? A:"


def test_without_passages_the_context_is_absent(lm):
    assert text_of(lm, builder(lm).prefix("where?", [], [])) == "Q: where? A:"


def test_prompts_with_and_without_a_candidate_share_their_shots(lm):
    bare, full = (builder(lm).prefix("where?", passages, SHOTS) for passages in ([], ["one"]))
    shots = lm.tokens("Q: which lazy dog A: the quick one\n\n")
    assert bare[: len(shots) - 1] == full[: len(shots) - 1]


@pytest.mark.parametrize("longest", [30, 45, 60, 120])
def test_a_long_prompt_loses_tokens_from_the_end_of_the_passage_alone(lm, longest):
    prefix = builder(lm, longest).prefix("which lazy dog jumps?", [PASSAGE], [])
    text = text_of(lm, prefix)
    kept = text.removeprefix("Knowledge: ").removesuffix("\nQ: which lazy dog jumps? A:")
    assert text == f"Knowledge: {kept}\nQ: which lazy dog jumps? A:"
    assert PASSAGE.startswith(kept)
    assert longest - 4 <= len(prefix) <= longest


def test_a_long_prompt_keeps_its_shots(lm):
    prefix = builder(lm, 80).prefix("where?", [PASSAGE], SHOTS)
    assert text_of(lm, prefix).startswith("Q: which lazy dog A: the quick one\n\nKnowledge: Paris")
    assert len(prefix) <= 80


def test_a_passage_cut_within_a_letter_stays_within_the_limit(lm):
    for longest in range(40, 60):
        prefix = builder(lm, longest).prefix("where?", ["日本語の文章です。" * 20], [])
        assert len(prefix) <= longest
        assert text_of(lm, prefix).endswith("\nQ: where? A:")


def test_a_query_that_alone_is_too_long_loses_its_beginning(lm):
    query = "fox " * 50 + "dog"
    prefix = builder(lm, 20).prefix(query, [PASSAGE], [])
    assert len(prefix) == 20
    assert f"Q: {query} A:".endswith(text_of(lm, prefix))


def test_a_chat_template_wraps_the_whole_prompt_as_one_message(lm):
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"
    chat = builder(replace(lm, tokenizer=tokenizer), template=TEMPLATE.model_copy(update={"chat": True}))
    assert text_of(lm, chat.prefix("where?", ["one"], [])) == "<user>Knowledge: one\nQ: where? A:<answer>"


def test_an_output_is_cut_to_its_limit(lm):
    whole = lm.tokens(" the quick brown fox jumps over the lazy dog")
    assert builder(lm).output(" the quick brown fox jumps over the lazy dog ") == whole[:5]
    assert builder(lm, output_tokens=99).output("the quick brown fox jumps over the lazy dog") == whole


@pytest.mark.parametrize(("stop", "text"), [("\n", "Paris"), (None, "Paris\nQ: which city"), ("Q", "Paris")])
def test_a_sample_ends_at_the_stop_text(lm, stop, text):
    ids = [*lm.tokens(" Paris\nQ: which city"), lm.tokenizer.eos_token_id]
    assert builder(lm, template=TEMPLATE.model_copy(update={"stop": stop})).clean_sample(ids) == text


POOL = [(f"q{i}", f"question {i}", f"answer {i}") for i in range(9)]


def test_shots_never_hold_the_query_itself():
    for query_id, question, _ in POOL:
        shots = choose_shots(POOL, query_id, 8, seed=0)
        assert len(shots) == 8
        assert question not in [query for query, _ in shots]


def test_shots_are_seeded_and_do_not_depend_on_the_order_of_the_pool():
    assert choose_shots(POOL, "x", 3, seed=0) == choose_shots(POOL[::-1], "x", 3, seed=0)
    assert len({tuple(choose_shots(POOL, "x", 3, seed)) for seed in range(8)}) > 1


def test_prompts_share_their_first_shots():
    assert choose_shots(POOL, "x", 2, seed=0) == choose_shots(POOL, "y", 3, seed=0)[:2]


def test_shots_answer_differently_while_the_pool_does():
    pool = [(f"q{i}", f"question {i}", "yes" if i == 5 else "no") for i in range(9)]
    for seed in range(9):
        assert {answer for _, answer in choose_shots(pool, "x", 2, seed)} == {"yes", "no"}
        assert len(set(choose_shots(pool, "x", 9, seed))) == 9
        assert {answer for _, answer in choose_shots(pool, "q5", 3, seed)} == {"no"}


def test_a_row_that_stands_twice_in_the_pool_is_no_other_answer():
    pool = [("q0", "same", "no"), ("q1", "same", "no"), ("q2", "other", "yes")]
    for seed in range(9):
        assert {answer for _, answer in choose_shots(pool, "x", 2, seed)} == {"yes", "no"}


def test_a_small_pool_gives_fewer_shots():
    assert choose_shots(POOL[:1], "q0", 3, seed=0) == []


def test_a_task_brings_its_template_unless_another_is_given(lm, tiny_llm):
    task = BUILTIN_TASKS["chat"]
    own = prompt_builder(lm, task, tiny_llm)
    assert (own.template, own.max_output_tokens, own.max_prefix_tokens) == (task.template, 32, 200)
    assert prompt_builder(lm, task, tiny_llm, TEMPLATE).template == TEMPLATE


def test_a_task_without_template_has_no_prompts(lm, tiny_llm):
    with pytest.raises(ValueError, match="no template"):
        prompt_builder(lm, BUILTIN_TASKS["tool"], tiny_llm)
