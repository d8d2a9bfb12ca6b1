"""Answers judged by exact match, containment, F1 and ROUGE-L."""

from __future__ import annotations

import pytest

from embedder.evaluation.answers import contains_answer, exact_match, normalise_answer, rouge_l, token_f1


def test_normalise_answer_an_answer_is_compared_without_articles_punctuation_and_case():
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


def test_contains_answer_an_accepted_answer_without_words_is_contained_in_nothing():
    assert contains_answer("anything", ["the", "!"]) == 0


def test_answers_without_accepted_answers_nothing_is_right():
    assert (exact_match("x", []), contains_answer("x", []), token_f1("x", [])) == (0, 0, 0)


@pytest.mark.parametrize(("answer", "accepted"), [("U.S.", "US"), ("well-known", "wellknown"), ("Queen's", "queens")])
def test_normalise_answer_punctuation_is_deleted_as_in_squad(answer, accepted):
    assert exact_match(answer, [accepted]) == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param("the cat sat on the mat", 1.0, id="equal"),
        pytest.param("THE CAT SAT, on the mat!", 1.0, id="without case and punctuation"),
        pytest.param("the mat sat on the cat", 2 * (4 / 6) * (4 / 6) / (8 / 6), id="longest common subsequence"),
        pytest.param("a dog", 0.0, id="nothing in common"),
        pytest.param("", 0.0, id="empty"),
        pytest.param("rain", 1.0, id="the second accepted answer"),
    ],
)
def test_rouge_l_is_that_of_the_best_accepted_answer(answer, expected):
    assert rouge_l(answer, ["the cat sat on the mat", "rain"]) == pytest.approx(expected)


def test_rouge_l_without_accepted_answers_is_nothing():
    assert rouge_l("x", []) == 0
