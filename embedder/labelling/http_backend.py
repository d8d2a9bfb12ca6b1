"""Scores and samples with an LLM that a server runs: a request an output, nothing shared.

A server reads the whole prompt for each output, where the tree reads what prompts have in common once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from embedder.errors import ModelError
from embedder.labelling.completions import (
    FORMS,
    AnswerError,
    CompletionForm,
    Likelihoods,
    choices_of,
    first_choice,
    likelihood,
)
from embedder.labelling.prefix_tree import PackedPrompt, check_prompts
from embedder.labelling.prompt_layout import encode
from embedder.labelling.sampling import Sampling
from embedder.labelling.server_backend import TEXT_REFUSED, ServerBackend, ServerIdentity
from embedder.models.remote_llm import RemoteLlm
from embedder.remote.server import RefusedError, whole_text

PROBES = (
    "The old bridge leads to the market. The market is open in the",
    "Paris is the capital of France, and Rome is the capital of",
)
"""Known texts, for which the server is asked before it is trusted."""
PROBE_SEEDS = 12
"""Tokens that are drawn until one stands for itself behind a probe, as no part of a longer token."""
ROUNDING = 0.25
"""Nats by which a server's likelihood of a token may differ from that which it gave as it wrote it."""
LARGEST_SEED = 2**31
REMEDY = (
    "take vLLM, SGLang, or llama-cpp-python's server with --logits_all true, or load the LLM here (llm.endpoint: null)"
)


class HttpBackend(ServerBackend):
    """Asks `POST /completions`."""

    ROUTE = "/completions"

    def __init__(self, lm: RemoteLlm, longest: int) -> None:
        """`longest`: tokens of the longest prompt with its output.

        Raises:
            ConfigError: the server takes no prompts of this length.
            ModelError: it gives no log-likelihoods that can be used; the message names the remedy.
        """
        super().__init__(lm, longest)
        self.form, scores = self._find_form()
        self.identity = ServerIdentity(lm.engine, self.form.name, scores)

    def score(self, prompts: Sequence[PackedPrompt]) -> list[list[float]]:
        """For each prompt the mean log-likelihood (nats) of the scored tokens of each of its outputs.

        It is NaN where the server divides a text into other tokens, or refuses it.

        Raises:
            ValueError: a prefix or output has no token.
            ModelError: the server fails.
        """
        check_prompts(prompts)
        asked = [
            (prompt.prefix + output, len(output) - first)
            for prompt in prompts
            for output, first in zip(prompt.outputs, prompt.first_scored, strict=True)
        ]
        means = iter(self._all(self._mean, asked))
        return [[next(means) for _ in prompt.outputs] for prompt in prompts]

    def sample(self, prefixes: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[list[list[int]]]:
        """Token ids of `num_samples` outputs a prefix, drawn with the seed of the prefix as far as the server does."""
        return self._all(partial(self._drawn, sampling), list(zip(prefixes, seeds, strict=True)))

    def _likelihoods(self, form: CompletionForm, ids: list[int]) -> Likelihoods:
        answer = self._post(form.scoring(self.lm, ids), len(ids))
        return form.likelihoods(self.lm, answer, ids)

    def _mean(self, asked: tuple[list[int], int]) -> float:
        ids, scored = asked
        try:
            values = self._likelihoods(self.form, ids)[-scored:]
        except AnswerError as error:
            self._warn(f"gave {error}")
            return math.nan
        except RefusedError as error:
            if error.status not in TEXT_REFUSED:
                raise
            self._warn(error)
            return math.nan
        return math.fsum(math.nan if value is None else value for value in values) / scored

    def _drawn(self, sampling: Sampling, asked: tuple[list[int], int]) -> list[list[int]]:
        prefix, seed = asked
        drawn: list[list[int]] = []
        # Not every server gives as many as it is asked for.
        while len(drawn) < sampling.num_samples:
            body = {
                "prompt": self.form.prompt(self.lm, prefix),
                "n": sampling.num_samples - len(drawn),
                "max_tokens": sampling.max_tokens,
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "seed": (seed + len(drawn)) % LARGEST_SEED,
                **({"stop": list(sampling.stop)} if sampling.stop else {}),
            }
            answer = self._post(body, len(prefix))
            texts = _texts(answer)
            if not texts:
                raise ModelError(f"{self.lm.endpoint.url}/completions gave no text; is it an OpenAI-compatible server?")
            drawn += [encode(self.lm.plain.inner, text).ids[: sampling.max_tokens] for text in texts]
        return drawn[: sampling.num_samples]

    def _find_form(self) -> tuple[CompletionForm, list[float]]:
        """The first form in which the server gives likelihoods of our tokens, and those of the probes."""
        refusals: dict[str, str] = {}
        for form in FORMS:
            if form.begins and (self.lm.lead_ids or not self.lm.tokenizer.bos_token):
                continue
            try:
                scores = [
                    score for text in PROBES for score in self._probe(form, self.lm.lead_ids + self.lm.tokens(text))
                ]
            except AnswerError as error:
                refusals[form.name] = str(error)
            except RefusedError as error:
                if error.status in {401, 403, 404}:
                    raise ModelError(f"{error}; likelihoods need POST /completions: {REMEDY}") from error
                refusals[form.name] = f"status {error.status}"
            else:
                return form, scores
        told = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
        raise ModelError(f"{self.lm.endpoint.url} gives no log-likelihoods of prompts ({told}); {REMEDY}")

    def _probe(self, form: CompletionForm, ids: list[int]) -> list[float]:
        """Likelihoods of a known text and of a token that the server wrote behind it.

        Raises:
            AnswerError: there are none, or the token's is not that with which it was written.
        """
        known = self._likelihoods(form, ids)
        if any(value is None for value in known[len(self.lm.lead_ids) + 1 :]):
            raise AnswerError("no log-likelihoods of some tokens")
        token, told = self._written_token(form, ids)
        again = self._likelihoods(form, [*ids, token])[-1]
        if again is None or not abs(again - told) <= ROUNDING:
            raise AnswerError(
                f"the log-likelihood {again:.2f} for a token that it wrote with {told:.2f}"
                if again is not None
                else "no log-likelihood of the last token"
            )
        return [value for value in known if value is not None]

    def _written_token(self, form: CompletionForm, ids: list[int]) -> tuple[int, float]:
        """A token that the server writes behind a text, with its log-likelihood."""
        bare = ids[len(self.lm.lead_ids) :]
        text = str(self.lm.tokenizer.decode(bare))
        for seed in range(PROBE_SEEDS):
            asked = {"max_tokens": 1, "temperature": 1.0, "logprobs": 1, "seed": seed}
            choice = first_choice(self._post({"prompt": form.prompt(self.lm, ids), **asked}, len(ids)))
            listed, written = choice.get("logprobs"), whole_text(choice.get("text"))
            values = listed.get("token_logprobs") if isinstance(listed, dict) else None
            if not isinstance(values, list):
                raise AnswerError("no log-likelihood of what it writes")
            token = encode(self.lm.plain.inner, written).ids
            # One that would join the word before it, or is a part of a letter, cannot be sent as text.
            told = likelihood(values[0]) if values else None
            if told is not None and len(token) == 1 and self.lm.tokens(text + written) == bare + token:
                return token[0], told
        raise AnswerError("no token that can be read again")


def _texts(answer: Any) -> list[str]:  # noqa: ANN401
    return [whole_text(row["text"]) for row in choices_of(answer) if isinstance(row.get("text"), str)]
