"""What all LLMs on servers have in common: requests side by side, what they cost, and who the server is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

from embedder.errors import ConfigError
from embedder.labelling.compute_cost import ModelSize, ModelWork
from embedder.models.memory import BatchLimit
from embedder.models.remote_llm import RemoteLlm

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

    def _post(self, body: dict[str, Any], tokens: int) -> Any:  # noqa: ANN401
        """Ask the server, and count what it costs; `tokens` of the prompt, where the server does not count."""
        answer = self.lm.server.post(self.ROUTE, {"model": self.lm.endpoint.model, **body})
        usage = answer.get("usage") if isinstance(answer, dict) else None
        usage = usage if isinstance(usage, dict) else {}
        read, written = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
        read, written = (read if isinstance(read, int) else tokens), (written if isinstance(written, int) else 1)
        with self._lock:
            self.work.tokens += read + written
            self.work.money += self.lm.endpoint.money(read, written)
        return answer


def choices_of(answer: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """The objects among the choices of an answer; none where it is of another form."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    return [row for row in choices if isinstance(row, dict)] if isinstance(choices, list) else []
