"""What all LLMs on servers have in common: requests side by side, what they cost, and who the server is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

from embedder.errors import ConfigError
from embedder.labelling.completions import choices_of
from embedder.labelling.compute_cost import ModelSize, ModelWork
from embedder.models.memory import BatchLimit
from embedder.models.remote_llm import RemoteLlm

LOG = logging.getLogger(__name__)

TEXT_REFUSED = {400, 413, 422}
"""Statuses that a server may give for one text alone, such as one that its filter does not let through."""
MOST_TOKENS = 2**40
"""A server that counts more for one request miscounts."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class ServerIdentity:
    """What labels of a server depend on and what no name tells: another LLM, or quantisation, behind the same name."""

    engine: str
    form: str
    scores: list[float]
    """Log-likelihoods (nats) of known texts."""


class ServerBackend:
    """Asks a server, with as many requests at once as it bears."""

    identity: ServerIdentity
    ROUTE: str
    """Which of the server's paths is asked."""

    def __init__(self, lm: RemoteLlm, longest: int) -> None:
        """`longest`: tokens of the longest prompt with its output.

        Raises:
            ConfigError: the server takes no prompts of this length.
        """
        self.lm = lm
        self.work = ModelWork(ModelSize(0, 0, 0))
        self.limits: Sequence[BatchLimit] = ()
        self._lock = Lock()
        self._is_warned = False
        self._threads = ThreadPoolExecutor(lm.endpoint.max_requests)
        if lm.most_tokens is not None and lm.most_tokens <= longest:
            raise ConfigError(
                f"llm.max_prefix_tokens with the outputs needs {longest + 1} tokens, but {lm.endpoint.url} takes "
                f"{lm.most_tokens}; lower llm.max_prefix_tokens"
            )

    @property
    def how(self) -> str:
        """How outputs are scored."""
        return self.identity.form

    def _all(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        futures = [self._threads.submit(work, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            # What is not begun when one has failed would cost money for nothing.
            for future in futures:
                future.cancel()
        failures = [error for future in futures if not future.cancelled() and (error := future.exception())]
        if failures:
            raise failures[0]
        return [future.result() for future in futures]

    def _warn(self, told: object) -> None:
        """Tell once that a text gets no scores, and why."""
        if not self._is_warned:
            LOG.warning("%s: %s; groups with such texts get no reward", self.lm.endpoint.url, told)
            self._is_warned = True

    def _post(self, body: dict[str, Any], tokens: int) -> Any:  # noqa: ANN401
        """Ask the server, and count what it costs; `tokens` of the prompt, where the server does not count."""
        answer = self.lm.server.post(self.ROUTE, {"model": self.lm.endpoint.model, **body})
        usage = answer.get("usage") if isinstance(answer, dict) else None
        usage = usage if isinstance(usage, dict) else {}
        read = _counted(usage.get("prompt_tokens"), tokens)
        written = _counted(usage.get("completion_tokens"), len(choices_of(answer)))
        with self._lock:
            self.work.tokens += read + written
            self.work.money += self.lm.endpoint.money(read, written)
        return answer


def _counted(told: Any, ours: int) -> int:  # noqa: ANN401
    """A number of tokens that a server tells, or ours where it tells none."""
    return told if type(told) is int and 0 <= told <= MOST_TOKENS else ours
