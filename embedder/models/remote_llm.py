"""An LLM that a server runs: its tokenizer here, its computation there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from embedder.config.endpoints import LlmEndpoint
from embedder.config.run import LlmConfig
from embedder.errors import ModelError
from embedder.models.llm import LanguageModel
from embedder.models.loader import generation_ends, load_tokenizer
from embedder.models.locate import locate_llm
from embedder.remote.server import RefusedError, Server, whole_text

SETTING = "llm.endpoint"


@dataclass(frozen=True)
class RemoteLlm(LanguageModel):
    """An LLM on a server with OpenAI's `POST /completions`."""

    tokenizer: PreTrainedTokenizerBase
    server: Server
    endpoint: LlmEndpoint
    ends: object = None

    @classmethod
    def of(cls, config: LlmConfig, endpoint: LlmEndpoint) -> RemoteLlm:
        """The LLM of a run file; asks nothing yet.

        Raises:
            ConfigError: the key is missing.
            ModelError: the tokenizer is missing, or has no fast form.
        """
        folder = locate_llm(config)
        tokenizer = load_tokenizer(folder)
        return cls(tokenizer, Server(endpoint, SETTING), endpoint, generation_ends(folder))

    @property
    def device_kind(self) -> str:
        return f"server {self.engine}, model {self.endpoint.model}"

    @property
    def further_ends(self) -> object:
        return self.ends

    @property
    def peak_flops(self) -> float:
        return 0.0

    @property
    def engine(self) -> str:
        """What the server says it is; "unknown" where it says nothing."""
        return whole_text(self.described.get("owned_by") or "unknown")[:80]

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the longest prompt that the server takes; None where it does not say."""
        most = self.described.get("max_model_len")
        return most if isinstance(most, int) else None

    @cached_property
    def described(self) -> dict[str, Any]:
        """The model in the server's list of models; empty where it has no such list.

        Raises:
            ModelError: the server does not answer, or does not know the model.
        """
        try:
            listed = self.server.get("/models")
        except RefusedError as error:
            if error.status != 404:
                raise
            return {}
        rows = listed.get("data") if isinstance(listed, dict) else None
        models = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        known = sorted(str(row.get("id")) for row in models)
        if models and self.endpoint.model not in known:
            there = whole_text(", ".join(known))[:200]
            raise ModelError(
                f"{self.endpoint.url} has no model {self.endpoint.model!r}; it has {there}; correct {SETTING}.model"
            )
        return next((row for row in models if row.get("id") == self.endpoint.model), {})
