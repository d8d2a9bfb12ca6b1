"""An LLM on a server: what asking it costs, and that what two servers made is never mixed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

from embedder.config.endpoints import LlmEndpoint
from embedder.config.run import LlmConfig
from embedder.errors import ConfigError
from embedder.storage.json_file import write_json
from embedder.storage.object_store import AnyPath

if TYPE_CHECKING:  # torch comes with it
    from embedder.labelling.server_backend import ServerIdentity

SERVER = "server.json"
"""What a server said of itself and of a known text, beside what it made."""
SAME_LLM = 0.1
"""Nats a token, on average, by which one LLM may differ from itself: bfloat16 in other batches."""


class AskedTokens(NamedTuple):
    """Tokens that a server is asked for; the two have prices of their own."""

    read: float
    written: float

    @property
    def together(self) -> float:
        return self.read + self.written


def server_lines(
    llm: LlmConfig, endpoint: LlmEndpoint, tokens: AskedTokens, outputs: int, folder: AnyPath
) -> list[str]:
    """Lines on the server and what so many tokens cost there; it is the one that made what is in the folder.

    `outputs`: tokens of the longest output.

    Raises:
        ConfigError: it would cost too much, or another server made what is there.
        ModelError: the server cannot be used.
    """
    money = endpoint.money(*tokens)
    if endpoint.max_money is not None and money > endpoint.max_money:
        raise ConfigError(
            f"the LLM would cost about {money:,.2f} ({tokens.together:,.0f} tokens), more than llm.endpoint.max_money "
            f"{endpoint.max_money:,.2f}; ask it less, use an LLM of your own, or raise it"
        )
    server = found_server(llm, endpoint, outputs)
    check_server(folder, server)
    told = f", money {money:,.2f}" if endpoint.prompt_price else ""
    return [
        f"the LLM is {endpoint.model} on {endpoint.url} ({server.engine}), asked for {server.form}",
        f"about {tokens.together:,.0f} tokens{told}: a server reads the whole prompt for each output",
    ]


def found_server(llm: LlmConfig, endpoint: LlmEndpoint, outputs: int) -> ServerIdentity:
    """What the server is, for outputs of so many tokens; raises as `find_server`."""
    # Here, because torch comes with it.
    from embedder.labelling.backends import find_server

    return find_server(llm, endpoint, llm.max_prefix_tokens + outputs)


def check_server(folder: AnyPath, found: ServerIdentity) -> None:
    """Refuse to add to what another engine made, or another LLM behind the same name.

    Raises:
        ConfigError: with what differs.
    """
    path = folder / SERVER
    if not path.is_file():
        return
    known = json.loads(path.read_text(encoding="utf-8"))
    differs = [
        f"{name} {known[name]!r} -> {getattr(found, name)!r}"
        for name in ("engine", "form")
        if known[name] != getattr(found, name)
    ]
    if not differs and (apart := _mean_difference(known["scores"], found.scores)) > SAME_LLM:
        differs = [f"the log-likelihoods of a known text differ by {apart:.2f} nats a token"]
    if differs:
        raise ConfigError(
            f"{folder}: another engine or LLM made what is there ({'; '.join(differs)}); ask the one before, remove "
            "that folder, or choose another paths.work"
        )


def note_server(folder: AnyPath, found: ServerIdentity) -> None:
    """Note which server is asked, before it is."""
    if not (folder / SERVER).is_file():
        write_json(asdict(found), folder / SERVER)


def _mean_difference(known: Sequence[float], found: Sequence[float]) -> float:
    if len(known) != len(found):
        return float("inf")
    return sum(abs(one - other) for one, other in zip(known, found, strict=True)) / max(1, len(known))
