"""Settings of servers that this project asks: vectors, and an LLM's log-likelihoods and outputs."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from embedder.config.paths import AbsolutePath, Section


class ServerAddress(Section):
    """A server with one of OpenAI's interfaces, and how it is asked."""

    url: str = Field(pattern=r"^https?://[^\s?#]+$")
    """Address of the server up to the version, such as `https://api.openai.com/v1`. May hold no user or key."""
    model: str
    """Name of the model on the server."""
    key_variable: str | None = None
    """Environment variable of the asking process that holds the API key. null: no key, or that of `key_file`."""
    key_file: AbsolutePath | None = None
    """File that holds the API key and nothing else. null: no key, or that of `key_variable`."""
    max_requests: int = Field(default=4, ge=1)
    """Requests that are under way at most; fewer while the server refuses or is silent."""
    timeout_s: float = Field(default=60.0, gt=0, le=86400)
    """Seconds that a request may take."""
    attempts: int = Field(default=6, ge=1)
    """Attempts of a request that fails for a while (429, 5xx, no connection), with growing pauses between them."""
    max_answer_bytes: int = Field(default=64 * 2**20, ge=1024)
    """A longer answer is refused before it is read to its end."""

    @field_validator("url")
    @classmethod
    def no_secret_in_the_address(cls, value: str) -> str:
        """Refuse a user or key in the address, which would stand in every resolved run file."""
        # Refused here and not masked later, because a resolved run file is printed and sent to a cluster.
        if "@" in value:
            raise ValueError("url holds a user or key; put the key into an environment variable and name it")
        if not names_server(value):
            raise ValueError("url names no server; write it as https://HOST:PORT/v1")
        return value.rstrip("/")

    @model_validator(mode="after")
    def one_place_for_the_key(self) -> ServerAddress:
        """Refuse two places of which one would be passed over."""
        if self.key_variable and self.key_file:
            raise ValueError("key_variable and key_file are both given; name the one that holds the key")
        return self


def names_server(url: str) -> bool:
    """Whether a URL has a host that DNS could know and no impossible port."""
    try:
        parts = urlsplit(url)
        return bool((parts.hostname or "").encode("idna")) and parts.port != 0
    except ValueError:
        return False


class LlmEndpoint(ServerAddress):
    """An LLM on a server with one of OpenAI's interfaces for text."""

    interface: Literal["completions", "chat"] = "completions"
    """What the server is asked. `completions`: `POST /completions`, which gives log-likelihoods of its prompt. `chat`:
    `POST /chat/completions`, which gives none, for tasks with the reward `judgement` (docs/engines.md)."""
    max_requests: int = Field(default=64, ge=1)
    """Requests of an actor that are under way at most. It begins with 8, doubles while the server keeps up, and takes
    fewer when it refuses or is silent."""
    timeout_s: float = Field(default=300.0, gt=0, le=86400)
    """Seconds that a request may take."""
    prompt_price: float = Field(default=0.0, ge=0)
    """Money for a million tokens of prompts, by which the dry run and the report tell the cost."""
    output_price: float = Field(default=0.0, ge=0)
    """Money for a million tokens that the LLM writes."""
    max_money: float | None = Field(default=None, gt=0)
    """Money that the labelling ahead may cost by the estimate; above it the job is refused before it begins. null: no
    bound. Needs the prices."""

    @model_validator(mode="after")
    def a_bound_needs_prices(self) -> LlmEndpoint:
        """Refuse a bound that nothing could reach."""
        if self.max_money is not None and not self.prompt_price:
            raise ValueError("max_money is given without prompt_price, so that nothing would reach it; give the price")
        return self

    def money(self, prompt_tokens: float, output_tokens: float = 0.0) -> float:
        """The price of so many tokens that are read, and written."""
        return (prompt_tokens * self.prompt_price + output_tokens * self.output_price) / 1e6
