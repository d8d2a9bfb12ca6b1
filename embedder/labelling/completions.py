"""Forms in which servers take a prompt at `POST /completions` and give the log-likelihoods of its tokens.

vLLM:              token ids in, `prompt_logprobs` out (an extension of its own)
SGLang:            token ids in, `echo` with `logprobs` out, as OpenAI's first completions had it
llama-cpp-python:  text in, the same out
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from embedder.models.llm import LanguageModel

LEAST, MOST = -1e6, 1e-3
"""Bounds of a log-likelihood (nats): no token is less likely, and rounding takes a certain one a little above 0."""
Likelihoods = list[float | None]
"""One a token in nats; None where there is none, as for the first."""


class AnswerError(Exception):
    """An answer holds no log-likelihoods of the prompt's tokens; says what it holds instead."""


@dataclass(frozen=True)
class CompletionForm:
    """How a server is asked, and how its answers are read."""

    takes_ids: bool
    extends: bool = False
    """It answers with `prompt_logprobs`; else it repeats the prompt (`echo`)."""
    begins: bool = False
    """The text of the beginning-of-text token stands before every prompt."""

    @property
    def name(self) -> str:
        """As it stands in reports: scores of two forms differ in last digits, or more where texts are begun."""
        taken = "token ids" if self.takes_ids else "texts that are begun" if self.begins else "texts"
        return f"{'prompt_logprobs' if self.extends else 'echo'} of {taken}"

    def prompt(self, lm: LanguageModel, ids: Sequence[int]) -> str | list[int]:
        """Token ids as this server takes them."""
        if self.takes_ids:
            return list(ids)
        # The server's own tokenizer begins a text.
        bare = list(ids)[len(_lead(lm, ids)) :]
        text = str(lm.tokenizer.decode(bare, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return str(lm.tokenizer.bos_token) + text if self.begins else text

    def scoring(self, lm: LanguageModel, ids: Sequence[int]) -> dict[str, Any]:
        """The request for the log-likelihoods of all tokens."""
        # One token is written, because some servers take 0 for "no limit". Temperature 1 changes no likelihood.
        asked: dict[str, Any] = {"prompt_logprobs": 1} if self.extends else {"echo": True, "logprobs": 1}
        return {"prompt": self.prompt(lm, ids), "max_tokens": 1, "temperature": 1.0, **asked}

    def likelihoods(self, lm: LanguageModel, answer: Any, ids: Sequence[int]) -> Likelihoods:  # noqa: ANN401
        """The log-likelihood of each token of the prompt.

        Raises:
            AnswerError: there are none, or they are of other tokens.
        """
        choice = first_choice(answer)
        found = _of_ids(choice, ids) if self.extends else _of_echo(lm, choice, ids)
        known = [value for value in found if value is not None]
        if len(known) > 1 and not any(known):
            raise AnswerError("zeros")
        return found


FORMS = (
    CompletionForm(takes_ids=True, extends=True),
    CompletionForm(takes_ids=True),
    CompletionForm(takes_ids=False),
    # llama-cpp-python pairs each token with the likelihoods behind it, unless a beginning-of-text token stands first.
    CompletionForm(takes_ids=False, begins=True),
)
"""In the order in which they are tried: token ids leave no doubt about what the LLM reads."""


def choices_of(answer: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """The objects among the choices of an answer; none where it is of another form."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    return [row for row in choices if isinstance(row, dict)] if isinstance(choices, list) else []


def first_choice(answer: Any) -> dict[str, Any]:  # noqa: ANN401
    """The only completion of an answer.

    Raises:
        AnswerError: it is of another form.
    """
    if choices := choices_of(answer):
        return choices[0]
    raise AnswerError("no choices")


def likelihood(value: Any) -> float | None:  # noqa: ANN401
    """A log-likelihood (nats) as an answer holds it; None where there is none.

    Raises:
        AnswerError: it is none, such as a probability or NaN.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not LEAST <= value <= MOST:
        raise AnswerError("numbers that are no log-likelihoods")
    return float(value)


def _of_ids(choice: dict[str, Any], ids: Sequence[int]) -> Likelihoods:
    rows = choice.get("prompt_logprobs")
    if not isinstance(rows, list):
        raise AnswerError("no prompt_logprobs")
    if len(rows) != len(ids):
        raise AnswerError(f"{len(rows)} tokens for {len(ids)}")
    found: Likelihoods = []
    for row, token in zip(rows, ids, strict=True):
        if row is None:
            found.append(None)
            continue
        if not isinstance(row, dict) or not isinstance(row.get(str(token)), dict):
            raise AnswerError("log-likelihoods of other tokens")
        found.append(likelihood(row[str(token)].get("logprob")))
    return found


def _of_echo(lm: LanguageModel, choice: dict[str, Any], ids: Sequence[int]) -> Likelihoods:
    told = choice.get("logprobs")
    told = told if isinstance(told, dict) else {}
    tokens, values = told.get("tokens"), told.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        raise AnswerError("no log-likelihoods of the prompt")
    # Some servers leave out the token that begins a text. Behind the prompt stands what was written.
    for begun in sorted({0, len(_lead(lm, ids))}):
        count = len(ids) - begun
        if count <= len(tokens) <= count + 1 and _same(lm, tokens[:count], ids[begun:]):
            return [None] * begun + [likelihood(value) for value in values[:count]]
    if len(tokens) <= 1:
        raise AnswerError("log-likelihoods of what it wrote, and none of the prompt")
    raise AnswerError(f"another tokenisation, of {len(tokens)} tokens for {len(ids)}")


def _lead(lm: LanguageModel, ids: Sequence[int]) -> list[int]:
    """The tokens that begin a text, if these ids do so."""
    return lm.lead_ids if list(ids[: len(lm.lead_ids)]) == lm.lead_ids else []


def _same(lm: LanguageModel, tokens: Sequence[Any], ids: Sequence[int]) -> bool:
    """Tell whether texts of tokens are those of the ids, as far as a part of a letter has a text."""
    for token, known in zip(tokens, ids, strict=True):
        here, there = (_plain(str(text)) for text in (token, lm.token_texts[known]))
        if here != there and here and there:
            return False
    return True


def _plain(text: str) -> str:
    # White space and parts of letters are written in many ways, and the tokens are as many.
    return text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").replace("\N{REPLACEMENT CHARACTER}", "").strip()
