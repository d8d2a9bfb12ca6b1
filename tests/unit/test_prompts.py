"""Prompts: what stands where, and what goes when it is too long."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from embedder.config.tasks import BUILTIN_TASKS, PromptTemplate
from embedder.errors import ConfigError
from embedder.labelling.prompts import PromptBuilder, choose_shots, prompt_builder
from embedder.models.causal_lm import CausalLm, load_lm
from tests.unit.judges import quick
from tests.unit.tiny_tokenizers import tiny_tokenizer

TEMPLATE = PromptTemplate(context="Knowledge: {passage}\n", input="Q: {query} A:")
PASSAGE = "Paris is the capital of France, a country in Europe. " * 12
SHOTS = [("which lazy dog", "the quick one")]


@pytest.fixture(scope="module")
def lm(tiny_llm, tmp_path_factory):
    return load_lm(tiny_llm, tmp_path_factory.mktemp("cache"), device="cpu")


@pytest.fixture(scope="module")
def led_lm(lm):
    """The same with a tokenizer that begins every text with [UNK], and ends it with [END]."""
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[UNK] $A [END]", special_tokens=[("[UNK]", 1), ("[END]", 2)]
    )
    return replace(lm, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def chat_lm(lm):
    """The same with a chat template."""
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<answer>{% endif %}"
    )
    return replace(lm, tokenizer=tokenizer)


CHAT = TEMPLATE.model_copy(update={"chat": True})


def builder(lm, longest=200, template=TEMPLATE, output_tokens=5) -> PromptBuilder:
    return PromptBuilder(lm, template, output_tokens, longest)


def text_of(lm, prefix):
    return lm.tokenizer.decode(prefix.ids)


def flags(prefix):
    return prefix.passage_cut, prefix.passage_lost, prefix.query_cut


def test_prompt_builder_a_prompt_is_shots_then_context_then_query(lm):
    prefix = builder(lm).prefix("where?", ["one", "two"], SHOTS)
    assert text_of(lm, prefix) == "Q: which lazy dog A: the quick one\n\nKnowledge: one\ntwo\nQ: where? A:"
    assert flags(prefix) == (False, False, False)


@pytest.mark.parametrize("passages", [[], [""]])
def test_prompt_builder_without_passages_the_context_is_absent(lm, passages):
    prefix = builder(lm).prefix("where?", passages, [])
    assert text_of(lm, prefix) == "Q: where? A:"
    assert flags(prefix) == (False, False, False)


def test_prompt_builder_prompts_with_and_without_a_candidate_share_their_shots(lm):
    bare, full = (builder(lm).prefix("where?", passages, SHOTS) for passages in ([], ["one"]))
    shots = lm.tokens("Q: which lazy dog A: the quick one\n\n")
    assert bare.ids[: len(shots) - 1] == full.ids[: len(shots) - 1]


@pytest.mark.parametrize("longest", [30, 45, 60, 120])
def test_prompt_builder_a_long_prompt_loses_tokens_from_the_end_of_the_passage_alone(lm, longest):
    prefix = builder(lm, longest).prefix("which lazy dog jumps?", [PASSAGE], [])
    text = text_of(lm, prefix)
    kept = text.removeprefix("Knowledge: ").removesuffix("\nQ: which lazy dog jumps? A:")
    assert text == f"Knowledge: {kept}\nQ: which lazy dog jumps? A:"
    assert PASSAGE.startswith(kept)
    assert longest - 4 <= len(prefix.ids) <= longest
    assert flags(prefix) == (True, False, False)


def test_prompt_builder_a_long_prompt_keeps_its_shots(lm):
    prefix = builder(lm, 80).prefix("where?", [PASSAGE], SHOTS)
    assert text_of(lm, prefix).startswith("Q: which lazy dog A: the quick one\n\nKnowledge: Paris")
    assert len(prefix.ids) <= 80


def test_prompt_builder_a_passage_cut_within_a_letter_stays_within_the_limit_and_keeps_whole_letters(lm):
    letters = "日本語の文章です。" * 20
    for longest in range(40, 60):
        prefix = builder(lm, longest).prefix("where?", [letters], [])
        assert len(prefix.ids) <= longest
        kept = text_of(lm, prefix).removeprefix("Knowledge: ").removesuffix("\nQ: where? A:")
        assert letters.startswith(kept)
        assert kept


def test_prompt_builder_a_passage_of_which_nothing_fits_is_lost_and_the_query_stays_whole(lm):
    bare = builder(lm).prefix("where?", [], [])
    for passage in (PASSAGE, "日本", " \n\n" + PASSAGE):
        prefix = builder(lm, len(bare.ids) + 1).prefix("where?", [passage], [])
        assert (prefix.ids, flags(prefix)) == (bare.ids, (True, True, False))


def test_prompt_builder_a_query_that_alone_is_too_long_loses_its_beginning(lm):
    query = "fox " * 50 + "dog"
    prefix = builder(lm, 20).prefix(query, [PASSAGE], [])
    assert len(prefix.ids) == 20
    assert f"Q: {query} A:".endswith(text_of(lm, prefix))
    assert flags(prefix) == (True, True, True)
    assert flags(builder(lm, 20).prefix(query, [], [])) == (False, False, True)


@quick
@given(st.text(max_size=60), st.text(max_size=200), st.integers(16, 120), st.booleans())
def test_prompt_builder_a_prefix_is_never_too_long_and_its_query_is_whole_while_a_passage_can_give_way(
    lm, chat_lm, query, passage, longest, chat
):
    used, template = (chat_lm, CHAT) if chat else (lm, TEMPLATE)
    prefix = builder(used, longest, template).prefix(query, [passage], [])
    bare = builder(used, 10_000, template).prefix(query, [], [])
    assert len(prefix.ids) <= longest
    assert prefix.query_cut == (len(bare.ids) > longest)
    if not prefix.query_cut:
        asked = used.tokens(f"Q: {query} A:<answer>" if chat else f"Q: {query} A:")
        assert prefix.ids[-len(asked) + 1 :] == asked[1:]
    assert not prefix.passage_lost or prefix.passage_cut
    assert not prefix.passage_lost or prefix.query_cut or prefix.ids == bare.ids


def test_prompt_builder_a_prompt_begins_with_what_the_tokenizer_puts_before_every_text_and_an_output_does_not(
    led_lm, lm
):
    assert led_lm.lead_ids == [1]
    assert lm.lead_ids == []
    bare = builder(led_lm).prefix("where?", ["one"], [])
    assert bare.ids == [1, *builder(lm).prefix("where?", ["one"], []).ids]
    assert builder(led_lm).output("one") == builder(lm).output("one")
    assert builder(led_lm, len(bare.ids) - 1).prefix("where?", ["one"], []).ids[0] == 1


def test_prompt_builder_a_chat_template_wraps_the_whole_prompt_as_one_message(chat_lm):
    chat = builder(chat_lm, template=CHAT)
    assert text_of(chat_lm, chat.prefix("where?", ["one"], [])) == "<user>Knowledge: one\nQ: where? A:<answer>"
    shots = text_of(chat_lm, chat.prefix("where?", [], SHOTS))
    assert shots == "<user>Q: which lazy dog A: the quick one\n\nQ: where? A:<answer>"


def test_prompt_builder_a_long_passage_is_cut_within_the_message(chat_lm):
    prefix = builder(chat_lm, 60, CHAT).prefix("where?", [PASSAGE], [])
    assert len(prefix.ids) <= 60
    assert text_of(chat_lm, prefix).startswith("<user>Knowledge: Paris")
    assert text_of(chat_lm, prefix).endswith("\nQ: where? A:<answer>")
    assert flags(prefix) == (True, False, False)


def test_prompt_builder_a_chat_template_begins_the_text_itself(chat_lm, led_lm):
    tokenizer = copy.deepcopy(led_lm.tokenizer)
    tokenizer.chat_template = chat_lm.tokenizer.chat_template
    chat = builder(replace(led_lm, tokenizer=tokenizer), template=CHAT)
    assert chat.prefix("where?", [], []).ids == builder(chat_lm, template=CHAT).prefix("where?", [], []).ids


def test_prompt_builder_a_tokenizer_without_chat_template_is_refused_before_any_prompt(lm, chat_lm, tiny_llm):
    task = BUILTIN_TASKS["qa"].model_copy(update={"template": CHAT})
    with pytest.raises(ConfigError, match="no chat template"):
        prompt_builder(lm, task, tiny_llm)
    assert prompt_builder(chat_lm, task, tiny_llm).template == CHAT


def test_prompt_builder_an_output_is_cut_to_its_limit(lm):
    whole = lm.tokens(" the quick brown fox jumps over the lazy dog")
    assert builder(lm).output(" the quick brown fox jumps over the lazy dog ") == whole[:5]
    assert builder(lm, output_tokens=99).output("the quick brown fox jumps over the lazy dog") == whole


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("\n", "Paris"),
        ((), "Paris\nQ: which city"),
        (None, "Paris\nQ: which city"),
        ("Q", "Paris"),
        (("city", "which", "lazy"), "Paris\nQ:"),
        (" Paris", ""),
    ],
)
def test_prompt_builder_a_sample_ends_before_the_first_stop_text(lm, stop, text):
    ids = [*lm.tokens(" Paris\nQ: which city"), lm.tokenizer.eos_token_id]
    template = PromptTemplate(context="{passage}", input="{query}", stop=stop)
    assert builder(lm, template=template).clean_sample(ids) == text


def test_prompt_builder_a_chunk_goes_on_as_its_document_does(lm):
    """Case 13-lrlm-glued: the answer keeps the white space with which it follows, and none is added."""
    long = builder(lm, template=BUILTIN_TASKS["lrlm"].template)
    chunk = "fox runs over the old bridge near market"
    for answer in (" fox runs", "\nfox", "ing of foxes"):
        packed = long.pack(long.prefix(chunk, ["one"], []), chunk, [answer])
        text = lm.tokenizer.decode(packed.prefix + packed.outputs[0])
        assert f"one\n{chunk}{answer}".startswith(text)
        assert len(text) > len(f"one\n{chunk}")
    assert long.clean_sample(lm.tokens(" fox runs\n")) == " fox runs\n"
    assert long.output(" ", chunk) == []


def test_prompt_builder_samples_are_read_as_they_follow_the_prompt():
    """SentencePiece drops the space with which a text begins, and GPT-2's settings join "a ." to "a."."""
    tokenizer = tiny_tokenizer("SentencePiece, Llama 2")
    tokenizer.clean_up_tokenization_spaces = True
    made = PromptBuilder(CausalLm(None, tokenizer), BUILTIN_TASKS["lrlm"].template, 8, 200)
    prefix = made.prefix("the fox", [], [])
    (output,) = made.pack(prefix, "the fox", [" is here ."]).outputs
    assert made.clean_sample(output) == " is here ."


def test_prompt_builder_an_assistants_message_begins_without_the_templates_space(chat_lm):
    chat = builder(chat_lm, template=CHAT)
    packed = chat.pack(chat.prefix("where?", ["one"], []), "where?", [" Paris "])
    text = chat_lm.tokenizer.decode(packed.prefix + packed.outputs[0])
    assert text == "<user>Knowledge: one\nQ: where? A:<answer>Paris"


def test_prompt_builder_outputs_that_change_the_border_share_what_they_do_not_change(lm):
    template = PromptTemplate(context="{passage}\n", input="{query}", output="{answer}")
    made = builder(lm, template=template)
    prefix = made.prefix("the capital of Fr", [], [])
    answers = ["ance", " is", "ance and dogs and foxes and more"]
    packed = made.pack(prefix, "the capital of Fr", answers)
    assert packed.prefix == prefix.ids[: len(packed.prefix)]
    for answer, output, unscored in zip(answers, packed.outputs, packed.unscored, strict=True):
        whole = lm.tokens("the capital of Fr" + answer)
        assert packed.prefix + output == whole[: len(packed.prefix) + len(output)]
        assert 1 <= len(output) - unscored <= 5
        assert output[unscored:] == made.output(answer, "the capital of Fr")


def test_prompt_builder_the_first_token_of_a_text_stays_the_prefixs(lm):
    """Nothing precedes it, so nothing could predict it as a part of the output."""
    template = PromptTemplate(context="{passage}\n", input="{query}", output="{answer}")
    made = builder(lm, template=template)
    packed = made.pack(made.prefix("T", [], []), "T", ["he quick fox"])
    assert packed.prefix == lm.tokens("T")
    assert lm.tokenizer.decode(packed.outputs[0]).startswith("he")


POOL = [(f"q{i}", f"question {i}", f"answer {i}") for i in range(9)]


def test_shots_never_hold_the_query_itself():
    """By text: an equal id says nothing, since the ids of test queries may be those of other training queries."""
    for _, question, _ in POOL:
        shots = choose_shots(POOL, question, 8, seed=0)
        assert len(shots) == 8
        assert question not in [query for query, _ in shots]


def test_shots_are_seeded_and_do_not_depend_on_the_order_of_the_pool():
    assert choose_shots(POOL, "x", 3, seed=0) == choose_shots(POOL[::-1], "x", 3, seed=0)
    assert len({tuple(choose_shots(POOL, "x", 3, seed)) for seed in range(8)}) > 1


def test_shots_of_all_prompts_begin_alike():
    assert choose_shots(POOL, "x", 2, seed=0) == choose_shots(POOL, "y", 3, seed=0)[:2]


def test_shots_answer_differently_while_the_pool_does():
    pool = [(f"q{i}", f"question {i}", "yes" if i == 5 else "no") for i in range(9)]
    for seed in range(9):
        assert {answer for _, answer in choose_shots(pool, "x", 2, seed)} == {"yes", "no"}
        assert len(set(choose_shots(pool, "x", 9, seed))) == 9
        assert {answer for _, answer in choose_shots(pool, "question 5", 3, seed)} == {"no"}


def test_shots_a_row_that_stands_twice_in_the_pool_is_no_other_answer():
    pool = [("q0", "same", "no"), ("q1", "same", "no"), ("q2", "other", "yes")]
    for seed in range(9):
        assert {answer for _, answer in choose_shots(pool, "x", 2, seed)} == {"yes", "no"}


def test_shots_of_a_small_pool_are_fewer():
    assert choose_shots(POOL[:1], "question 0", 3, seed=0) == []


def test_prompt_builder_a_task_brings_its_template_unless_another_is_given(lm, tiny_llm):
    task = BUILTIN_TASKS["chat"]
    own = prompt_builder(lm, task, tiny_llm)
    assert (own.template, own.max_output_tokens, own.max_prefix_tokens) == (task.template, 32, 200)
    assert prompt_builder(lm, task, tiny_llm, TEMPLATE).template == TEMPLATE


def test_prompt_builder_a_task_without_template_has_no_prompts(lm, tiny_llm):
    with pytest.raises(ValueError, match="no template"):
        prompt_builder(lm, BUILTIN_TASKS["tool"], tiny_llm)
