"""Verdicts of an LLM on a chat server, which tells no log-likelihoods of prompts.

A prompt becomes a message, and how likely each verdict is follows from the first token of the reply (`top_logprobs`);
from a server that gives none, from how often each is the reply. Good for the reward `judgement` alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

from embedder.config.tasks import VERDICTS
from embedder.errors import ModelError
from embedder.labelling.completions import AnswerError, choices_of, likelihood
from embedder.labelling.prefix_tree import PackedPrompt, check_prompts
from embedder.labelling.sampling import Sampling
from embedder.labelling.server_backend import TEXT_REFUSED, ServerBackend, ServerIdentity
from embedder.models.remote_llm import RemoteLlm
from embedder.remote.server import RefusedError, whole_text

TOP = 20
"""Tokens of which a server tells the likelihood; more are not given by all."""
REPLIES = 10
"""Replies that are sampled where it tells none."""
REPLY_TOKENS = 4
LEAST_REST = 1e-12
"""Probability of a verdict that the listed tokens leave nothing."""
MAX_TOKENS, NEWER_MAX_TOKENS = "max_tokens", "max_completion_tokens"
"""What bounds a reply. OpenAI's newer models refuse the first, and many other servers do not know the second."""
PROBES = (
    "Is Paris the capital of France? Answer yes, partly or no.",
    "Passage:\nThe market is open on Mondays.\n\nQuestion: Who built the bridge?\nDoes the passage help to answer the "
    "question? Answer yes, partly or no.",
)
"""Messages for which the server is asked before it is trusted."""

First = list[tuple[str, float]]
"""Tokens with which a reply may begin, and their log-likelihoods."""
Verdicts = Sequence[str]


class ChatBackend(ServerBackend):
    """Asks `POST /chat/completions`, once a prompt whatever the number of its outputs."""

    ROUTE = "/chat/completions"

    def __init__(self, lm: RemoteLlm, longest: int) -> None:
        """`longest`: as for `ServerBackend`.

        Raises:
            ConfigError: as `ServerBackend`.
            ModelError: its replies are no verdicts.
        """
        super().__init__(lm, longest)
        self._bound = MAX_TOKENS
        self._tells = self._tells_first_tokens()
        told = [self._verdicts(text, list(VERDICTS)) for text in PROBES]
        if any(map(math.isnan, chain(*told))):
            raise ModelError(
                f"{lm.endpoint.url}: {lm.endpoint.model} begins its replies with none of {', '.join(VERDICTS)}; take "
                "an LLM that answers at once"
            )
        form = "first token of a chat reply" if self._tells else f"{REPLIES} chat replies"
        # Sampled replies differ from time to time, so they say nothing of whether it is the same LLM.
        self.identity = ServerIdentity(lm.engine, form, list(chain(*told)) if self._tells else [])

    def score(self, prompts: Sequence[PackedPrompt]) -> list[list[float]]:
        """For each prompt the log-likelihood (nats) of each of its outputs as a reply, as a mean over its tokens.

        NaN where the reply is none of them, or the server refuses the prompt.

        Raises:
            ValueError: a prefix or output has no token.
            ModelError: the server fails.
        """
        check_prompts(prompts)
        return self._all(self._scores, prompts)

    def sample(self, prefixes: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[list[list[int]]]:
        """Not possible: what a chat server writes could not be scored.

        Raises:
            ModelError: always.
        """
        raise ModelError(f"{self.lm.endpoint.url}: a chat server gives verdicts alone; set reward: judgement")

    def _scores(self, prompt: PackedPrompt) -> list[float]:
        decode = self.lm.tokenizer.decode
        lead = len(self.lm.lead_ids) if prompt.prefix[: len(self.lm.lead_ids)] == self.lm.lead_ids else 0
        message = str(decode([*prompt.prefix[lead:], *prompt.outputs[0][: prompt.first_scored[0]]]))
        outputs = zip(prompt.outputs, prompt.first_scored, strict=True)
        verdicts = [str(decode(output[first:])).strip().lower() for output, first in outputs]
        try:
            scores = self._verdicts(message, verdicts)
        except RefusedError as error:
            if error.status not in TEXT_REFUSED:
                raise
            self._warn(error)
            scores = [math.nan] * len(verdicts)
        return [score / count for score, count in zip(scores, prompt.scored_tokens, strict=True)]

    def _tells_first_tokens(self) -> bool:
        try:
            return self._first(PROBES[0]) is not None
        except RefusedError as error:
            # Some servers refuse what they do not know; for anything else the next request is refused too.
            if error.status not in TEXT_REFUSED:
                raise
            return False

    def _verdicts(self, message: str, verdicts: Verdicts) -> list[float]:
        """The log-likelihood of each verdict as the reply to a message; NaN where the reply is none."""
        if not self._tells:
            return from_replies(self._replies(message), verdicts)
        return from_first_tokens(self._first(message) or [], verdicts)

    def _first(self, message: str) -> First | None:
        """The tokens with which the reply may begin; None where the server does not tell."""
        return _first_tokens(self._asked(message, 1, {"logprobs": True, "top_logprobs": TOP}))

    def _replies(self, message: str) -> list[str]:
        replies: list[str] = []
        # Not every server gives as many as it is asked for.
        while len(replies) < REPLIES:
            texts = _texts(self._asked(message, REPLY_TOKENS, {"n": REPLIES - len(replies)}))
            if not texts:
                raise ModelError(f"{self.lm.endpoint.url}{self.ROUTE} gave no reply; does it have OpenAI's interface?")
            replies += texts
        return replies[:REPLIES]

    def _asked(self, message: str, most: int, fields: dict[str, Any]) -> Any:  # noqa: ANN401
        """The answer to a message, with replies of at most so many tokens."""
        body = {"messages": [{"role": "user", "content": message}], self._bound: most, "temperature": 1.0, **fields}
        try:
            return self._post(body, len(self.lm.tokens(message)))
        except RefusedError as error:
            if self._bound == NEWER_MAX_TOKENS or NEWER_MAX_TOKENS not in str(error):
                raise
            self._bound = NEWER_MAX_TOKENS
        return self._asked(message, most, fields)


def from_first_tokens(first: First, verdicts: Verdicts) -> list[float]:
    """The log-likelihood of each verdict, by the tokens that begin it; NaN where none of them does.

    A verdict that is not listed is at most as likely as the last that is, and as what the listed ones leave.
    """
    masses = [0.0] * len(verdicts)
    for text, value in first:
        said = text.strip().lower()
        begun = [i for i, verdict in enumerate(verdicts) if said and verdict.startswith(said)]
        if len(begun) == 1:
            masses[begun[0]] += math.exp(value)
    if not any(masses):
        return [math.nan] * len(verdicts)
    # What the listed tokens leave is all that another can have.
    rest = 1 - math.fsum(math.exp(value) for _, value in first)
    least = min(*(value for _, value in first), math.log(max(rest, LEAST_REST)))
    return [math.log(mass) if mass else least for mass in masses]


def from_replies(replies: Sequence[str], verdicts: Verdicts) -> list[float]:
    """The log-likelihood of each verdict by how often it is the reply, half a reply added to each (Jeffreys).

    NaN where no reply is one of them.
    """
    counts = [sum(reply.strip().lower().startswith(verdict) for reply in replies) for verdict in verdicts]
    if not any(counts):
        return [math.nan] * len(verdicts)
    whole = sum(counts) + len(verdicts) / 2
    return [math.log((count + 0.5) / whole) for count in counts]


def _texts(answer: Any) -> list[str]:  # noqa: ANN401
    messages = [row.get("message") for row in choices_of(answer)]
    contents = [each.get("content") for each in messages if isinstance(each, dict)]
    return [whole_text(content) for content in contents if isinstance(content, str)]


def _first_tokens(answer: Any) -> First | None:  # noqa: ANN401
    for row in choices_of(answer):
        told = row.get("logprobs")
        content = told.get("content") if isinstance(told, dict) else None
        first = content[0] if isinstance(content, list) and content else None
        listed = first.get("top_logprobs") if isinstance(first, dict) else None
        rows = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        if tokens := [(str(each.get("token")), value) for each in rows if (value := _known(each)) is not None]:
            return tokens
    return None


def _known(token: dict[str, Any]) -> float | None:
    try:
        return likelihood(token.get("logprob"))
    except AnswerError:
        return None
