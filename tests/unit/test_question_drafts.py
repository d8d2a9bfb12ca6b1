"""What the LLM wrote is read as a question with an answer, and each fault of its words is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.questions import QuestionsConfig, WorkedQuestion
from embedder.mining.candidates import normalise, word_overlap
from embedder.writing.drafts import has_common_run, read_draft
from embedder.writing.question_kinds import (
    ALL_KINDS,
    FUNCTION_WORDS,
    KINDS,
    builtin_examples,
    examples_for,
    kinds_of,
    language_of,
)
from embedder.writing.verdicts import OutputScores, near_duplicates, verdict

PASSAGE = (
    "The lighthouse keeper Anna Berg lit the lamp every evening until 1931, when it was replaced by an electric one."
)
SETTINGS = QuestionsConfig(copied_words=6)


def fault(text, kind="fact", passages=(PASSAGE,), settings=SETTINGS):
    examples = builtin_examples()[kind, "english"]
    return read_draft(text, kind, passages, examples, settings).fault


def test_a_question_with_its_answer_has_no_fault():
    draft = read_draft(
        " Until which year did Anna Berg work?\nAnswer: until 1931\nmore", "fact", [PASSAGE], [], SETTINGS
    )
    assert (draft.query, draft.output, draft.fault) == ("Until which year did Anna Berg work?", "until 1931", "")
    assert fault("lighthouse keeper last year lamp\nAnswer: 1931", "keywords") == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Until which year did she work?", "not a question with an answer"),
        ("Until which year did she work?\n1931", "not a question with an answer"),
        ("", "not a question with an answer"),
        ("Which year?\nAnswer: 1931", "too short"),
        ("Until which year did she work?\nAnswer:", "too short"),
        (f"{'very ' * 60}late?\nAnswer: 1931", "too long"),
        ("Tell me until which year\nAnswer: 1931", "no question"),
        ("In which year did floods damage the Old Bridge?\nAnswer: 1931", "a worked example again"),
        ("What does the passage say about Anna?\nAnswer: lit the lamp", "points at the passage"),
        ("Did Anna Berg work until 1931 or longer?\nAnswer: 1931", "holds its answer"),
        ("Who lit the lamp every evening before?\nAnswer: Anna Berg", ""),
        ("Who lit the lamp every evening until 1931?\nAnswer: Anna Berg", "copied from the passage"),
        ("Who was the keeper's best friend?\nAnswer: a sailor named John", "answer is not in the passage"),
    ],
)
def test_each_fault_is_named(text, told):
    assert fault(text) == told


def test_search_words_are_of_the_passage():
    assert fault("cheap flights rome lamp\nAnswer: 1931", "keywords") == "search words are not of the passage"


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8), st.integers(1, 4))
def test_a_common_run_is_one_of_both(words, others, length):
    runs = [words[i : i + length] for i in range(len(words) - length + 1)]
    expected = any(run == others[i : i + length] for run in runs for i in range(len(others) - length + 1))
    assert has_common_run(words, others, length) is expected


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6).map(" ".join), max_size=12))
def test_near_duplicates_are_those_of_comparing_all_with_all(texts):
    kept, expected = [], []
    for text in map(normalise, texts):
        expected.append(any(word_overlap(text, other) >= 0.75 for other in kept))
        kept += [] if expected[-1] else [text]
    assert near_duplicates(texts, 0.75) == expected


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        (OutputScores(-3, -1, [-1], [-2, -2], 1, 1), None),
        (OutputScores(-3, -2.6, [-2.6], [], 0, 1), "the passage does not help"),
        (OutputScores(-3, float("nan"), [-1], [], 0, 1), "could not be scored: a server divides it into other tokens"),
        (OutputScores(-3, -1, [-2, -1.05], [], 0, 1), "one passage is enough"),
        (OutputScores(-3, -1, [-2, -1.2], [], 0, 1), None),
        (OutputScores(-3, -1, [-1], [-2], 1, None), "a search does not find the passage"),
        (OutputScores(-3, -1, [-1], [-2], 1, 21), "a search does not find the passage"),
        (OutputScores(-3, -1, [-1], [-1, -2], 1, 1), "answered by what a search finds first"),
        (OutputScores(-3, -1, [-1], [-2, -1], 1, 1), "answered by another passage"),
        (OutputScores(-3, -1, [-1], [float("nan")], 0, 1), "answered by another passage"),
    ],
)
def test_the_scores_decide(scores, told):
    assert verdict(scores, SETTINGS) == told


def test_every_kind_has_examples_in_every_language_and_each_is_right_by_the_rules_for_drafts():
    known = builtin_examples()
    assert set(known) == {(kind, language) for kind in ALL_KINDS for language in FUNCTION_WORDS}
    for (kind, language), examples in known.items():
        assert len(examples) >= 2
        for each in examples:
            assert len(each.passages) == len(KINDS[kind].passages)
            draft = read_draft(f"{each.query}\nAnswer: {each.output}", kind, each.passages, [], QuestionsConfig())
            # The answer to a question of two passages follows from both, and need not stand in either.
            assert draft.fault == "" or kind == "two_passages", (each.query, draft.fault)
            if kind not in {"keywords", "request"}:
                assert language_of(" ".join([*each.passages, each.query])) == language


def test_examples_are_in_the_language_of_the_passage_unless_the_user_gives_own_ones():
    assert language_of("Der Leuchtturm wird von der Stadt nicht mehr für Schiffe gebraucht.") == "german"
    assert language_of("12 34") == "english"
    assert (
        examples_for("fact", "El faro de la ciudad es una torre que se ve desde el mar.", SETTINGS)[0].query[0] == "¿"
    )
    own = WorkedQuestion(kind="fact", passages=["Kettu on metsässä."], query="Missä kettu on?", output="metsässä")
    settings = QuestionsConfig(examples=[own])
    assert examples_for("fact", "The lamp of the tower", settings) == (own,)
    assert examples_for("reason", "The lamp of the tower is lit", settings)[0].kind == "reason"


def test_kinds_follow_the_task_and_an_example_has_as_many_passages_as_its_kind():
    assert kinds_of("tool", SETTINGS) == ("request",)
    assert "two_passages" in kinds_of("my-own", SETTINGS)
    assert kinds_of("tool", QuestionsConfig(kinds=["fact", "fact"])) == ("fact",)
    with pytest.raises(ValueError, match="has 2 passages, not 1"):
        WorkedQuestion(kind="two_passages", passages=["one"], query="q", output="o")


def test_passages_are_shown_without_blank_lines_however_many_blanks_they_hold():
    kind = KINDS["fact"]
    assert kind.shown(["  a \n \n\t\n b\n"]) == "Passage: a\nb"
    # A search for blanks around each line's end would take hours.
    assert kind.shown(["a" + " " * 300_000 + "b"]) == "Passage: a" + " " * 300_000 + "b"
