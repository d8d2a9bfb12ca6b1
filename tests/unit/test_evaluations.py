"""The seven evaluations, by hand: what the LLM is asked, and what its reply is worth."""

from __future__ import annotations

import math
from typing import get_args

import pytest

from embedder.config.evaluate import EvaluationName
from embedder.config.tasks import BUILTIN_TASKS, TaskSpec
from embedder.evaluation.base import Passage, Question, Reply, best_last, in_time
from embedder.evaluation.evaluations import (
    EVALUATIONS,
    evaluation_of,
    in_document_order,
    measure_of,
    option_letters,
    overlap,
)


def question(evaluation, **fields):
    known = {
        "task": evaluation if evaluation in BUILTIN_TASKS else "qa",
        "dataset": "d",
        "query_id": "q",
        "query": "which city?",
        "answers": ["Paris", "the city of Paris"],
        "options": None,
        "category": None,
    }
    return Question(evaluation=evaluation, **{**known, **fields})


def judged(evaluation, reply, **fields):
    return EVALUATIONS[evaluation].judge(question(evaluation, **fields), reply)


def test_evaluation_there_are_seven_and_each_has_a_headline_it_can_measure():
    assert set(EVALUATIONS) == set(get_args(EvaluationName))
    assert len(EVALUATIONS) == 7
    for one in EVALUATIONS.values():
        assert set(one.headline) <= {measure.name for measure in one.measures} | set(one.rankings)


def test_question_row_a_question_survives_its_row_and_its_id_tells_what_is_asked():
    one = question("qa", passages=[Passage("a", "text", 3), Passage("b", "more")])
    assert Question.of(one.row("llm")) == one
    assert one.row("llm")["row_id"] == question("qa", passages=one.passages).row("llm")["row_id"]
    others = [one.row("other llm"), question("qa").row("llm"), question("qa", passages=one.passages[::-1]).row("llm")]
    assert len({row["row_id"] for row in [one.row("llm"), *others]}) == 4


def test_qa_asks_for_an_answer_and_scores_the_first_accepted_one():
    ask = EVALUATIONS["qa"].ask(question("qa"))
    assert (ask.query, ask.outputs, ask.written_tokens) == ("which city?", ["Paris"], 16)
    values = judged("qa", Reply([-0.5], [2], "The city of Paris, France"))
    assert values == {
        "exact match": (0.0, 1.0),
        "contains answer": (1.0, 1.0),
        "F1": (pytest.approx(2 * 3 / (3 + 4)), 1.0),
        "log-likelihood": (-0.5, 1.0),
    }
    assert judged("qa", Reply([-0.5], [2])) == {"log-likelihood": (-0.5, 1.0)}


CHOICE = {"query": "2 + 2?", "options": ["3", "4", "5"], "answers": ["4"], "category": "high_school_mathematics"}


def test_multiple_choice_shows_lettered_options_and_scores_the_letters():
    ask = EVALUATIONS["choice"].ask(question("choice", **CHOICE))
    assert ask.query == (
        "The following are multiple choice questions (with answers) about high school mathematics.\n\n"
        "2 + 2?\nA. 3\nB. 4\nC. 5"
    )
    assert (ask.outputs, ask.written_tokens) == (["A", "B", "C"], 0)
    plain = EVALUATIONS["choice"].ask(question("choice", **{**CHOICE, "category": None}))
    assert plain.query.startswith("The following are multiple choice questions (with answers).\n\n2 + 2?")


def test_multiple_choice_of_many_options_names_each():
    """Beyond Z the letters go on as AA, AB; a right answer there was an IndexError."""
    options = [f"option {i}" for i in range(30)]
    many = {**CHOICE, "options": options, "answers": ["option 28"]}
    ask = EVALUATIONS["choice"].ask(question("choice", **many))
    assert ask.outputs[24:] == ["Y", "Z", "AA", "AB", "AC", "AD"]
    assert ask.query.endswith("AC. option 28\nAD. option 29")
    assert len(set(option_letters(800))) == 800
    likelihoods = [-2.0] * 28 + [-1.0, -2.0]
    assert judged("choice", Reply(likelihoods, [1] * 30), **many)["accuracy"] == (1.0, 1.0)


def test_multiple_choice_is_right_if_the_right_letter_is_the_likeliest():
    right = judged("choice", Reply([-2.0, -1.0, -3.0], [1, 1, 1]), **CHOICE)
    wrong = judged("choice", Reply([-0.5, -1.0, -3.0], [1, 1, 1]), **CHOICE)
    assert right == {"accuracy": (1.0, 1.0), "log-likelihood": (-1.0, 1.0)}
    assert wrong == {"accuracy": (0.0, 1.0), "log-likelihood": (-1.0, 1.0)}


def test_multiple_choice_has_the_papers_prompt_as_a_message_where_the_tasks_own_is_one():
    template = EVALUATIONS["choice"].template(BUILTIN_TASKS["qa"])
    whole = template.context.format(passage="P1\nP2") + template.input.format(query="HEAD\n\nQ\nA. x")
    assert whole == "Knowledge:\nP1\nP2\n\nHEAD\n\nQ\nA. x\nAnswer:"
    chatty = BUILTIN_TASKS["qa"].template.model_copy(update={"chat": True})
    assert EVALUATIONS["choice"].template(BUILTIN_TASKS["qa"].model_copy(update={"template": chatty})).chat


@pytest.mark.parametrize("name", ["chat", "lrlm"])
def test_perplexity_is_of_the_true_continuation_and_weighs_its_tokens(name):
    ask = EVALUATIONS[name].ask(question(name))
    assert (ask.outputs, ask.written_tokens) == (["Paris"], 0)
    assert judged(name, Reply([-1.5], [7])) == {"perplexity": (1.5, 7.0)}
    measure = measure_of(EVALUATIONS[name], "perplexity")
    assert (measure.kind, measure.better) == ("perplexity", -1)


def test_icl_examples_with_options_are_judged_by_the_likeliest_option():
    fields = {"options": ["yes", "no"], "answers": ["no"]}
    ask = EVALUATIONS["icl"].ask(question("icl", **fields))
    assert (ask.outputs, ask.written_tokens) == (["yes", "no"], 0)
    assert judged("icl", Reply([-1.0, -0.2], [1, 1]), **fields) == {
        "accuracy": (1.0, 1.0),
        "log-likelihood": (-0.2, 1.0),
    }
    assert judged("icl", Reply([-0.1, -0.2], [1, 1]), **fields)["accuracy"] == (0.0, 1.0)


def test_icl_examples_without_options_are_judged_by_what_is_written():
    ask = EVALUATIONS["icl"].ask(question("icl"))
    assert (ask.outputs, ask.written_tokens) == (["Paris"], 64)
    values = judged("icl", Reply([-1.0], [1], "paris city"))
    assert values["exact match"] == (0.0, 1.0)
    assert values["ROUGE-L"] == (pytest.approx(2 * 1 * 0.5 / 1.5), 1.0)
    assert judged("icl", Reply([-1.0], [1])) == {"log-likelihood": (-1.0, 1.0)}


@pytest.mark.parametrize("name", ["tool", "convsearch"])
def test_evaluation_rankings_alone_ask_nothing(name):
    assert EVALUATIONS[name].ask(question("tool")) is None
    assert EVALUATIONS[name].judge(question("tool"), Reply([], [])) == {}


PASSAGES = [Passage("c", "third", 2), Passage("a", "first", 0), Passage("b", "second", 1)]


def test_arrange_the_best_example_stands_last_and_turns_in_order_of_time():
    assert best_last(PASSAGES) == ["second", "first", "third"]
    assert in_time(PASSAGES) == ["first", "second", "third"]


CHUNKS = [f"chunk number {i} of the whole document " for i in range(8)]


def pair(position):
    return Passage(f"doc#{position}", CHUNKS[position] + CHUNKS[position + 1], position)


def test_lrlm_neighbouring_chunks_are_one_text_that_has_the_shared_chunk_once():
    assert in_document_order([pair(4), pair(1), pair(2)]) == ["".join(CHUNKS[1:4]), "".join(CHUNKS[4:6])]
    assert in_document_order([pair(3), pair(2), pair(4)]) == ["".join(CHUNKS[2:6])]
    assert in_document_order([pair(0), pair(5)]) == [CHUNKS[0] + CHUNKS[1], CHUNKS[5] + CHUNKS[6]]
    assert in_document_order([]) == []


def test_lrlm_a_letter_in_common_is_no_shared_chunk():
    texts = [Passage("a", "ends with e", 0), Passage("b", "e begins", 1)]
    assert overlap(texts[0].text, texts[1].text) == 1
    assert in_document_order(texts) == ["ends with e", "e begins"]


ROW = {"options": ["a", "b"]}


def test_evaluation_of_a_dataset_gets_the_evaluation_of_its_task():
    assert evaluation_of("chat", "irc", [{"options": None}], {}).name == "chat"
    assert evaluation_of("icl", "snips", [ROW], {}).name == "icl"
    assert evaluation_of("qa", "nq", [{"options": None}, ROW], {}).name == "qa"
    assert evaluation_of("qa", "mmlu", [ROW, ROW], {}).name == "choice"
    assert evaluation_of("recipes", "mine", [{"options": None}], {}).name == "tool"


def test_evaluation_of_the_run_file_may_name_another_for_a_dataset_or_its_task():
    named = {"recipes": "qa", "special": "convsearch"}
    assert evaluation_of("recipes", "mine", [], named).name == "qa"
    assert evaluation_of("recipes", "special", [], named).name == "convsearch"


def test_measure_of_ranking_measures_are_means():
    assert measure_of(EVALUATIONS["chat"], "nDCG@10").kind == "mean"


def test_perplexity_of_one_token_is_its_inverse_probability():
    ((value, weight),) = judged("chat", Reply([math.log(0.25)], [1])).values()
    assert (math.exp(value), weight) == (pytest.approx(4.0), 1.0)


def test_evaluation_a_task_without_a_template_has_none_to_ask_with():
    bare = TaskSpec(query_instruction="", passage_instruction="")
    assert EVALUATIONS["qa"].template(bare) is None
