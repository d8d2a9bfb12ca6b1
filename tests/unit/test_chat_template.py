"""The LLM's own chat template: arguments, the day, and what is refused."""

from __future__ import annotations

import datetime

import pytest
import transformers.utils.chat_template_utils
from pydantic import ValidationError

from embedder.config.run import LlmConfig
from embedder.config.tasks import BUILTIN_TASKS, KNOWLEDGE, PromptTemplate
from embedder.errors import ConfigError
from embedder.labelling.chat_template import chat_text
from embedder.labelling.prompts import PromptBuilder, check_chat
from embedder.models.causal_lm import CausalLm
from tests.unit.tiny_folders import CHATML, chat_llm_folder
from tests.unit.tiny_tokenizers import CHATS, tiny_tokenizer

CHAT = KNOWLEDGE.model_copy(update={"chat": True})
DATED = "<|im_start|>system\nToday is {{ strftime_now('%d %B %Y') }}<|im_end|>\n" + CHATML


def tokenizer_with(template):
    tokenizer = tiny_tokenizer("byte level, GPT-2")
    tokenizer.chat_template = template
    return tokenizer


def prompt(template, wanted=CHAT):
    builder = PromptBuilder(CausalLm(None, tokenizer_with(template)), wanted, 8, 200)
    return builder.lm.tokenizer.decode(builder.prefix("q?", ["p"], []).ids)


def with_(**fields):
    return PromptTemplate(**{**CHAT.model_dump(), **fields})


def test_chat_text_the_day_is_that_of_the_setting(monkeypatch):
    """Case 17-dated-chat-template: labels of two days would be made from two prompts under one fingerprint."""

    class Day(datetime.datetime):
        wanted = 1

        @classmethod
        def now(cls, tz=None):
            return cls(2027, 5, cls.wanted)

    monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", Day)
    first = prompt(DATED)
    monkeypatch.setattr(Day, "wanted", 2)
    assert prompt(DATED) == first
    assert "Today is 01 January 2026" in first
    assert "Today is 24 December 2030" in prompt(DATED, with_(chat_date="2030-12-24"))


def test_chat_text_arguments_reach_the_template():
    """Case 19-thinking-switch."""
    thinking, silent = (
        prompt(CHATS["Qwen 3"]),
        prompt(CHATS["Qwen 3"], with_(chat_arguments={"enable_thinking": False})),
    )
    assert "</think>" not in thinking
    assert silent == thinking + "<think>\n\n</think>\n\n"


def test_chat_text_the_messages_end_is_where_the_answer_begins():
    tokenizer = tokenizer_with(CHATS["Llama 2"])
    assert chat_text(tokenizer, CHAT, "hello") == ("<s>[INST] hello [/INST]", " ")
    tokenizer.chat_template = CHATS["Qwen 3"]
    assert chat_text(tokenizer, CHAT, "hello") == ("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", "")


def test_chat_text_of_several_named_templates_the_default_is_taken():
    tokenizer = tokenizer_with({"default": CHATML, "tool_use": "no"})
    assert chat_text(tokenizer, CHAT, "hello")[0].startswith("<|im_start|>user\nhello")
    tokenizer.chat_template = {"rag": CHATML, "tool_use": "no"}
    with pytest.raises(ConfigError, match=r"one of \['rag', 'tool_use'\], none of them named default"):
        chat_text(tokenizer, CHAT, "hello")


REFUSED = {
    "{{ raise_exception('no system role') }}": "fails (TemplateError: no system role)",
    "{{ messages[0].content[0].text.more }}": "fails (UndefinedError: ",
    "{{ messages[0].content + 1 }}": "fails (TypeError: ",
    "{{ 1 // 0 }}": "fails (ZeroDivisionError: ",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "fails (RecursionError: ",
    "{{ 'a' * 10 ** 15 }}": "fails (MemoryError",
    "{{ messages[0].content }}{{ [1, 2] | random }}": "gives another text each time",
    "{% for m in %}": "is no template (TemplateSyntaxError: ",
    "hello": "does not hold the user's message once",
    "{{ messages[0].content | upper }}": "does not hold the user's message once",
    "{{ messages[0].content }}{{ messages[0].content }}": "does not hold the user's message once",
    "{{ messages[0].content }}{{ range(99999) | random }}": "gives another text each time",
}


@pytest.mark.parametrize("template", REFUSED)
def test_chat_text_what_cannot_be_used_is_refused_in_one_line(template):
    with pytest.raises(ConfigError) as refused:
        chat_text(tokenizer_with(template), CHAT, "Hello")
    assert REFUSED[template] in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["enable_thinkin", "messages", "add_generation_prompt"])
def test_chat_text_an_argument_that_the_template_does_not_read_is_refused(name):
    with pytest.raises(ConfigError, match=f"takes no argument '{name}' of template.chat_arguments; it reads .*enable_"):
        chat_text(tokenizer_with(CHATS["Qwen 3"]), with_(chat_arguments={name: False}), "hello")


def test_chat_text_a_template_that_strips_the_prompt_is_refused():
    with pytest.raises(ConfigError, match="begin and end without white space"):
        chat_text(tokenizer_with(CHATS["Llama 3"]), CHAT, "hello\n")


def test_check_chat_tries_the_templates_of_the_tasks_that_ask_for_one(tmp_path):
    llm = LlmConfig(model=str(chat_llm_folder(tmp_path / "good")))
    assert check_chat(llm, {"qa": KNOWLEDGE, "tool": None}) == []
    assert check_chat(None, {"qa": CHAT}) == []
    (line,) = check_chat(llm, {"qa": CHAT, "chat": CHAT, "icl": BUILTIN_TASKS["icl"].template})
    assert line == f"prompts of chat, qa are messages in the chat template of {llm.model}"
    bad = LlmConfig(model=str(chat_llm_folder(tmp_path / "bad", "{{ raise_exception('never') }}")))
    with pytest.raises(ConfigError, match=r"^tasks\.qa: the chat template of .* fails \(TemplateError: never\)"):
        check_chat(bad, {"qa": CHAT})


def test_prompt_template_a_date_that_is_none_and_arguments_without_chat_are_refused():
    assert with_(chat_date=datetime.date(2027, 2, 3)).chat_date == "2027-02-03"
    with pytest.raises(ValidationError, match="isoformat"):
        with_(chat_date="yesterday")
    with pytest.raises(ValidationError, match="set chat to true"):
        with_(chat=False, chat_arguments={"enable_thinking": False})
