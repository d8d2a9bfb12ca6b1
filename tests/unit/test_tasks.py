"""The six built-in tasks and the prompt templates."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from embedder.config.tasks import BUILTIN_TASKS, PromptTemplate, TaskSpec

PAPER = {
    "qa": (
        "Represent this query for retrieving relevant documents: ",
        "Represent this document for retrieval: ",
    ),
    "convsearch": (
        "Encode this query and context for searching relevant passages: ",
        "Encode this passage for retrieval: ",
    ),
    "chat": (
        "Embed this dialogue to find useful historical dialogues: ",
        "Embed this historical dialogue for retrieval: ",
    ),
    "lrlm": (
        "Embed this text chunk for finding useful historical chunks: ",
        "Embed this historical text chunk for retrieval: ",
    ),
    "icl": (
        "Convert this example into vector to look for useful examples: ",
        "Convert this example into vector for retrieval: ",
    ),
    "tool": (
        "Transform this user request for fetching helpful tool descriptions: ",
        "Transform this tool description for retrieval: ",
    ),
}


def test_the_builtin_instructions_are_those_of_the_paper():
    found = {name: (spec.instruction("query"), spec.instruction("passage")) for name, spec in BUILTIN_TASKS.items()}
    assert found == PAPER


def test_tasks_without_well_formed_outputs_learn_from_labels_alone():
    unrewarded = {name for name, spec in BUILTIN_TASKS.items() if spec.reward == "none"}
    assert unrewarded == {"convsearch", "tool"}
    assert all(BUILTIN_TASKS[name].loss == "contrastive" for name in unrewarded)


def test_every_rewarded_task_has_a_template_that_fills():
    for spec in BUILTIN_TASKS.values():
        if spec.reward != "none":
            whole = spec.template.context.format(passage="PASSAGE") + spec.template.input.format(query="QUERY")
            assert "PASSAGE" in whole
            assert "QUERY" in whole
            assert "ANSWER" in spec.template.output.format(answer="ANSWER")


def test_the_knowledge_prompt_is_template_a1_of_the_paper():
    template = BUILTIN_TASKS["qa"].template
    prompt = template.context.format(passage="P") + template.input.format(query="Q?")
    assert prompt + template.output.format(answer="A") == "Knowledge:\nP\n\nQ: Q? A: A"


@pytest.mark.parametrize("text", ["{query.__class__}", "{query[0]}", "{0}", "{}", "{query:>9}", "{query!r}", "{text}"])
@pytest.mark.parametrize("part", ["context", "input", "output"])
def test_a_template_takes_plain_fields_only(part, text):
    fields = {"context": "{passage}", "input": "{query}", "output": "{answer}", part: text}
    with pytest.raises(ValidationError, match="written plainly"):
        PromptTemplate(**fields)


def test_doubled_braces_stand_for_themselves():
    template = PromptTemplate(context="{passage}", input="{{json}} {query}")
    assert template.input.format(query="q") == "{json} q"


@pytest.mark.parametrize(
    ("given", "stop"), [("\n", ("\n",)), (["\n", "Q:"], ("\n", "Q:")), (None, ()), ([], ()), (("a",), ("a",))]
)
def test_stop_texts_are_one_or_many_or_none(given, stop):
    assert PromptTemplate(context="{passage}", input="{query}", stop=given).stop == stop


def test_an_output_ends_with_its_line_unless_the_template_says_otherwise():
    assert PromptTemplate(context="{passage}", input="{query}").stop == ("\n",)
    assert BUILTIN_TASKS["lrlm"].template.stop == ()


@pytest.mark.parametrize("given", ["", ["\n", ""]])
def test_an_empty_stop_text_is_refused(given):
    with pytest.raises(ValidationError, match="leave every output empty"):
        PromptTemplate(context="{passage}", input="{query}", stop=given)


@pytest.mark.parametrize("reward", ["rank", "likelihood", "gain", "rank_then_gain", "none"])
def test_the_kinds_of_reward(reward):
    assert TaskSpec(query_instruction="", passage_instruction="", reward=reward).reward == reward


def test_an_unknown_kind_of_reward_is_refused():
    with pytest.raises(ValidationError, match="reward"):
        TaskSpec(query_instruction="", passage_instruction="", reward="win")


def test_the_earlier_name_of_the_gain_is_refused_with_the_new_one():
    with pytest.raises(ValidationError, match="'lift' is called 'gain' now; with reward_margin: 0 it is the same"):
        TaskSpec(query_instruction="", passage_instruction="", reward="lift")


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"reward": "rank"}, "rank"),
        ({"reward": "rank", "reward_margin": 0.5, "reward_sum": "sum"}, "rank sum"),
        ({"reward": "gain"}, "gain margin 0.1"),
        ({"reward": "rank_then_gain", "reward_margin": 0.25, "reward_sum": "sum"}, "rank_then_gain margin 0.25 sum"),
        ({"reward": "own_answers", "reward_sum": "sum"}, "own_answers margin 0.1 sum"),
        ({"reward": "judgement", "reward_sum": "sum"}, "judgement"),
        ({"reward": "none", "reward_sum": "sum"}, "none"),
    ],
)
def test_the_rule_of_a_reward_names_what_changes_it(settings, rule):
    assert TaskSpec(query_instruction="", passage_instruction="", **settings).reward_rule == rule


def test_alpha_is_no_number_before_it_was_computed():
    task = TaskSpec(query_instruction="", passage_instruction="")
    with pytest.raises(ValueError, match="compute it from the rewards first"):
        _ = task.alpha
    assert task.model_copy(update={"reward_temperature": 0.5}).alpha == 0.5


def test_a_task_cannot_change_after_it_is_read():
    with pytest.raises(ValidationError, match="frozen"):
        BUILTIN_TASKS["qa"].shots = 5


def test_an_unknown_field_of_a_task_is_refused():
    with pytest.raises(ValidationError, match="instruction_query"):
        TaskSpec(query_instruction="", passage_instruction="", instruction_query="")
