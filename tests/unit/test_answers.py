"""Answers judged by exact match, containment and F1, and the LLM that gives them."""

from __future__ import annotations

import pytest
import torch

from embedder.evaluation.answers import (
    GREEDY_TOKENS,
    LlmJudge,
    contains_answer,
    exact_match,
    normalise_answer,
    token_f1,
)
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.prompts import choose_shots, prompt_builder
from embedder.lm import load_lm
from embedder.tasks import BUILTIN_TASKS, OPEN_QUESTION
from tests.unit.judges import exact_model, plain_scores


def test_an_answer_is_compared_without_articles_punctuation_and_case():
    assert normalise_answer(" The  Lord, of an  (a) Ring! ") == "lord of ring"
    assert normalise_answer("another theory") == "another theory"


@pytest.mark.parametrize(
    ("answer", "match", "contains", "f1"),
    [
        pytest.param("The Eiffel Tower!", 1, 1, 1.0, id="equal"),
        pytest.param("paris", 1, 1, 1.0, id="the second accepted answer"),
        pytest.param("It is the Eiffel Tower", 0, 1, 2 * 2 / (4 + 2), id="within more words"),
        pytest.param("Eiffel", 0, 0, 2 * 1 / (1 + 2), id="half of it"),
        pytest.param("Parisian", 0, 0, 0.0, id="part of a word"),
        pytest.param("tower tower eiffel", 0, 0, 2 * 2 / (3 + 2), id="a repeated word counts once"),
        pytest.param("London", 0, 0, 0.0, id="wrong"),
        pytest.param("", 0, 0, 0.0, id="empty"),
    ],
)
def test_answers_judged_by_hand(answer, match, contains, f1):
    accepted = ["Eiffel Tower", "Paris"]
    assert exact_match(answer, accepted) == match
    assert contains_answer(answer, accepted) == contains
    assert token_f1(answer, accepted) == pytest.approx(f1)


def test_an_accepted_answer_without_words_is_contained_in_nothing():
    assert contains_answer("anything", ["the", "!"]) == 0


def test_without_accepted_answers_nothing_is_right():
    assert (exact_match("x", []), contains_answer("x", []), token_f1("x", [])) == (0, 0, 0)


@pytest.mark.parametrize(("answer", "accepted"), [("U.S.", "US"), ("well-known", "wellknown"), ("Queen's", "queens")])
def test_punctuation_is_deleted_as_in_squad(answer, accepted):
    assert exact_match(answer, [accepted]) == 1


POOLS = {"d": [(f"s{i}", f"which city {i}", f"Paris {i}") for i in range(4)]}
ROWS = [
    {
        "dataset": "d",
        "query_id": f"q{i}",
        "query": "which city is the capital",
        "answers": [f"Paris {i}"],
        "passages": passages,
    }
    for i, passages in enumerate([[], ["the fox"], ["the fox jumps over the lazy dog", "Paris is the capital"]])
]


@pytest.fixture(scope="module")
def judge(tiny_llm, tmp_path_factory):
    lm = load_lm(tiny_llm, tmp_path_factory.mktemp("cache"), device="cpu")
    return LlmJudge(lm, tiny_llm, BUILTIN_TASKS, POOLS, seed=0)


def test_likelihoods_are_those_of_the_first_answer_after_the_passages(judge, tiny_llm):
    builder = prompt_builder(judge.lm, BUILTIN_TASKS["qa"], tiny_llm)
    prompts = [
        PackedPrompt(
            builder.prefix(row["query"], row["passages"], choose_shots(POOLS["d"], row["query_id"], 3, 0)).ids,
            [builder.output(row["answers"][0])],
        )
        for row in ROWS
    ]
    expected = [values[0] for values in plain_scores(exact_model(tiny_llm.model), prompts)]
    assert judge.likelihoods("qa", ROWS) == pytest.approx(expected, abs=1e-4)


def test_answers_are_greedy_and_end_with_the_line(judge, tiny_llm):
    builder = prompt_builder(judge.lm, BUILTIN_TASKS["qa"], tiny_llm, OPEN_QUESTION)
    expected = []
    for row in ROWS:
        shots = choose_shots(POOLS["d"], row["query_id"], 3, 0)
        ids = torch.tensor([builder.prefix(row["query"], row["passages"], shots).ids])
        options = {"do_sample": False, "max_new_tokens": GREEDY_TOKENS, "pad_token_id": 0}
        whole = judge.lm.model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :]
        expected.append(judge.lm.tokenizer.decode(whole, skip_special_tokens=True).split("\n")[0].strip())
    assert judge.answers("qa", ROWS) == expected


def test_an_answer_ends_where_its_line_does(judge, monkeypatch):
    """The token that ends the line may begin with the answer's last letter."""
    (last,) = judge.lm.tokens("x")
    texts = judge.lm.tokenizer.batch_decode([[token] for token in range(600)])
    monkeypatch.setitem(vars(judge.lm), "_token_texts", [*texts[:last], "x\n", *texts[last + 1 :]])
    given = []
    monkeypatch.setattr(judge.engine, "sample", lambda prefixes, seeds, how: given.append(how) or [[[last]]] * 3)
    assert judge.answers("qa", ROWS) == ["x"] * 3
    assert last in given[0].stop_ids
    assert (given[0].num_samples, given[0].top_k, given[0].end_ids) == (1, 1, {2})


def test_no_rows_need_no_answers(judge):
    assert (judge.answers("qa", []), judge.likelihoods("qa", [])) == ([], [])
