"""Puts a message into the LLM's own chat template: the same on every day, and refused where it would be changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import TYPE_CHECKING

from embedder.config.tasks import PromptTemplate
from embedder.errors import ConfigError

if TYPE_CHECKING:  # so that the checks of a job import transformers only where a task has a chat template
    from transformers import PreTrainedTokenizerBase

ANSWER = "the answer"
RENDERED = 12
FAILURES = (
    *(TypeError, ValueError, AttributeError, LookupError, ArithmeticError),
    *(RecursionError, MemoryError),
)
"""What the code of a template may raise beside jinja's own errors."""
OWN_NAMES = {"messages", "add_generation_prompt", "tools", "documents", "strftime_now"}
"""What the project itself gives to a chat template."""


def chat_text(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, message: str) -> tuple[str, str]:
    """A user's message in the chat template, up to where the answer begins; and the white space before an answer.

    Raises:
        ConfigError: there is no chat template, it fails, changes the message, or takes none of the arguments.
    """
    render = _renderer(tokenizer, template)
    asked = [{"role": "user", "content": message}]
    text = render(asked, add_generation_prompt=True)
    if text.count(message) != 1:
        raise _refusal(
            tokenizer,
            "does not hold the user's message once, as it is; let the texts of the task's `template` begin and end "
            "without white space, or choose another LLM",
        )
    # Several times, because one of few texts, chosen by chance, is often the same twice.
    if any(render(asked, add_generation_prompt=True) != text for _ in range(RENDERED)):
        raise _refusal(tokenizer, "gives another text each time; labels could not be compared, so choose another LLM")
    return text, _space_before_answer(render, asked, text)


def _space_before_answer(render: Callable[..., str], asked: list[dict[str, str]], text: str) -> str:
    """White space that the template puts between the prompt and an answer, as Llama 2's does."""
    try:
        answered = render([*asked, {"role": "assistant", "content": ANSWER}], add_generation_prompt=False)
    except ConfigError:
        return ""  # it takes no answers, so it says nothing of how they begin
    between = answered.removeprefix(text).partition(ANSWER)[0] if answered.startswith(text) else ""
    # A template may begin a stored answer in words of its own, such as an empty thought.
    return between if between.isspace() else ""


def _renderer(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> Callable[..., str]:
    """The compiled chat template as a function of messages."""
    import jinja2
    from transformers.utils.chat_template_utils import _compile_jinja_template

    source = _source(tokenizer)
    day = date.fromisoformat(template.chat_date)
    try:
        # `apply_chat_template` would do the same with today's date, which it lets nobody replace.
        compiled = _compile_jinja_template(source)
        syntax = compiled.environment.parse(source)
    except jinja2.TemplateError as error:
        raise _refusal(tokenizer, f"is no template ({_line(error)}); correct it in the folder") from error
    read = {node.name for node in syntax.find_all(jinja2.nodes.Name)}
    unread = sorted(template.chat_arguments.keys() - read | template.chat_arguments.keys() & OWN_NAMES)
    if unread:
        raise _refusal(
            tokenizer,
            f"takes no argument {unread[0]!r} of template.chat_arguments; it reads {', '.join(sorted(read))}",
        )

    def render(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        names = {**tokenizer.special_tokens_map, **template.chat_arguments}
        names |= {"messages": messages, "add_generation_prompt": add_generation_prompt, "tools": None}
        names |= {"documents": None, "strftime_now": day.strftime}
        try:
            return str(compiled.render(**names))
        except (jinja2.TemplateError, *FAILURES) as error:
            remedy = "give what it asks for in template.chat_arguments, or set template.chat to false"
            raise _refusal(tokenizer, f"fails ({_line(error)}); {remedy}") from error

    return render


def _source(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template's text; of several named ones the default."""
    templates: str | Mapping[str, str] | None = tokenizer.chat_template
    if templates is None:
        name = tokenizer.name_or_path
        raise ConfigError(
            f"template.chat is true, but the tokenizer of {name!r} has no chat template; set template.chat to false, "
            "or add the chat_template.jinja of the LLM's publisher to its folder"
        )
    if isinstance(templates, str):
        return templates
    if "default" not in templates:
        raise _refusal(
            tokenizer, f"is one of {sorted(templates)}, none of them named default; keep the one to use in the folder"
        )
    return templates["default"]


def _refusal(tokenizer: PreTrainedTokenizerBase, what: str) -> ConfigError:
    return ConfigError(f"the chat template of {tokenizer.name_or_path!r} {what}")


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
