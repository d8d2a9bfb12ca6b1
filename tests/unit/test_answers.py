"""Answers judged by exact match, containment, F1 and ROUGE-L."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from embedder.answer_text import normalise_answer
from embedder.evaluation.answers import contains_answer, exact_match, rouge_l, token_f1
from embedder.words import folded
from tests.unit.judges import quick


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


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("", "A"),
        ("5", "-5"),
        ("314", "3.14"),
        ("10", "1.0"),
        ("C", "C++"),
        ("C#", "C++"),
        ("+", "-"),
        ("−5", "5"),
        ("the", "A"),
        ("!", "?"),
        ("B", "A"),
        ("Vitamin", "Vitamin A"),
        ("B, C", "A, B, C"),
        ("型血", "A型血"),
        ("102", "10²"),
        ("11/2", "1½"),
        ("12", "1/2"),
        ("1230", "12:30"),
        ("53", "5-3"),
        ("15", "1,5"),
        ("5", ".5"),
        ("A", "A+"),
        ("A-", "A+"),
        ("O", "O-"),
        ("A", "A*"),
        ("ab", "a+b"),
        ("x<y", "x>y"),
        ("x < y", "x > y"),
        ("<5", ">5"),
        ("x != y", "x = y"),
        ("x2", "x^2"),
        ("x", "-x"),
        ("pi", "-pi"),
        ("1e5", "1e-5"),
        ("10^5", "10⁻⁵"),
        ("x=5", "x=-5"),
        ("[1, 1]", "[-1, 1]"),
        ("हिन्द", "हिन्दी"),
        ("か", "が"),
        ("cafe", "café"),
        ("東京都", "京都"),
    ],
)
def test_exact_match_keeps_what_tells_answers_apart(answer, accepted):
    """Case 37-answers-stripped-away, and others of its kind."""
    assert exact_match(answer, [accepted]) == exact_match(accepted, [answer]) == 0
    assert exact_match(answer, [answer]) == exact_match(accepted, [accepted]) == 1


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("“Paris”", "Paris"),
        ("«Paris»", "Paris"),
        ("don’t know", "don't know"),
        ("北京。", "北京"),
        ("「北京」", "北京"),
        ("北京！", "北京"),
        ("पेरिस।", "पेरिस"),
        ("باريس؟", "باريس"),
        ("Ｐａｒｉｓ　２０２４", "Paris 2024"),
        ("٢٠٢٤", "2024"),
        ("iPhone 手机", "iPhone手机"),
        ("cafe\u0301", "caf\u00e9"),
        ("ﾃｽﾄ", "テスト"),
        ("GROSSE", "große"),
        ("−5", "-5"),
        ("-$5.", "-5"),
        ("½", "1/2"),
        (".5", "0.5"),
        ("1,000,000", "1000000"),
        ("C++.", "C++"),
        ("1990–2000", "1990-2000"),
        ("(a) Ring", "ring"),
        ("“-”", "-"),
        ("**Paris**", "Paris"),
        ("٣٫١٤", "3.14"),
        ("١٬٠٠٠", "1000"),
        ("1\u202f000\u00a0000", "1000000"),
        ("1’000", "1000"),
        ("İstanbul", "ISTANBUL"),
        ("The The", "the the"),
        ("كِتَابٌ", "كتاب"),
        ("שָׁלוֹם", "שלום"),
    ],
)
def test_exact_match_passes_over_what_does_not_tell_answers_apart(answer, accepted):
    """Case 37-answers-stripped-away, and others of its kind."""
    assert exact_match(answer, [accepted]) == exact_match(accepted, [answer]) == 1


def test_answers_without_spaces_are_judged_by_characters():
    """Case 11-answers-cjk; characters as in MLQA and CMRC 2018."""
    assert exact_match("北京。", ["北京"]) == 1
    assert contains_answer("首都是北京。", ["北京"]) == 1
    assert contains_answer("首都是南京。", ["北京"]) == 0
    assert token_f1("首都是北京", ["北京"]) == pytest.approx(2 * 2 / (5 + 2))
    assert rouge_l("首都是北京", ["首都是北京"]) == 1
    assert rouge_l("北京是首都", ["首都是北京"]) == pytest.approx(2 * (2 / 5) * (2 / 5) / (4 / 5))
    assert contains_answer("서울은 수도다", ["서울"]) == 1
    assert token_f1("東京タワー", ["東京"]) == pytest.approx(2 * 2 / (5 + 2))


@pytest.mark.parametrize(
    ("text", "accepted", "contained"),
    [
        ("the value is 1.0", "10", 0),
        ("about 310 of them", "10", 0),
        ("minus -5 degrees", "5", 0),
        ("written in C++", "C", 0),
        ("written in C++, mostly", "C++", 1),
        ("第10届", "10", 1),
        ("2010年", "10", 0),
        ("in “Paris”, they say", "Paris", 1),
        ("un cafe\u0301 noir", "caf\u00e9", 1),
        ("The The is a band", "The The", 1),
        ("the New-York of today", "New York", 1),
        ("in 2020\u00a0300 of them", "300", 1),
        ("I'd go", "D", 0),
    ],
)
def test_contains_answer_looks_for_whole_words(text, accepted, contained):
    assert contains_answer(text, [accepted]) == contained


@quick
@given(st.text())
def test_normalise_answer_leaves_nothing_only_of_what_is_invisible(text):
    assert bool(normalise_answer(text)) == bool(folded(text).split())
    assert exact_match(text, [text]) == 1


# A hyphen behind three letters and more: behind fewer it is a mark, as in `A-`, which counts here and not there.
plain_words = st.lists(st.from_regex(r"[a-z]{1,6}[,.!?;:']?|[a-z]{3,6}-", fullmatch=True), max_size=12).map(" ".join)


@quick
@given(plain_words, plain_words)
def test_rouge_l_of_english_words_is_that_of_rouge_score(answer, accepted):
    expected = RougeScorer(["rougeL"]).score(accepted, answer)["rougeL"].fmeasure
    assert rouge_l(answer, [accepted]) == pytest.approx(expected)


@pytest.mark.parametrize(
    "unit", ["a ", "1,000", ",000", "a(", "x<", "-", "\u0301\u0316", "中 ", "*", "<", " "], ids=ascii
)
def test_normalise_answer_takes_time_in_proportion_to_the_text(unit):
    began = time.process_time()
    normalise_answer("a" + unit * (200_000 // len(unit)) + "!")
    # Well below a second; what is quadratic takes many minutes.
    assert time.process_time() - began < 10
