"""Gets vectors from any server with OpenAI's `POST /embeddings`.

https://platform.openai.com/docs/api-reference/embeddings: {"model", "input": [texts], "encoding_format": "float"} in,
{"data": [{"index", "embedding"}]} out. The key goes into the Authorization header and nowhere else; in messages of the
server it is masked.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np

from embedder.config.evaluate import EndpointRetriever
from embedder.config.tasks import Side
from embedder.errors import ConfigError, ModelError

PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
"""Statuses that may change a little later, so that another try makes sense."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
SHOWN_CHARACTERS = 200
"""Characters shown of what a server says when it refuses."""


class EmbeddingEndpoint:
    """A server's vectors; may be used by several threads."""

    def __init__(self, config: EndpointRetriever, transport: httpx.BaseTransport | None = None) -> None:
        self.config = config
        self._key = api_key(config)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(headers=headers, timeout=config.timeout_s, transport=transport)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def encode(self, texts: Sequence[str], task: str, side: Side) -> np.ndarray:
        """Unit vectors (len(texts), D), float32, of texts that carry their prompt; at most `batch_texts` of them.

        Raises:
            ModelError: the server refuses, stays unreachable for `attempts` requests, or answers with something else.
        """
        extra = self.config.extra_query if side == "query" else self.config.extra_passage
        body: dict[str, Any] = {"model": self.config.model, "input": list(texts), "encoding_format": "float"}
        if self.config.dimensions is not None:
            body["dimensions"] = self.config.dimensions
        body |= {name: value.replace("{task}", task) for name, value in extra.items()}
        return self._unit_vectors(self._post(body), len(texts))

    def _post(self, body: Mapping[str, Any]) -> Any:  # noqa: ANN401
        url = f"{self.config.url}/embeddings"
        problem = ""
        for attempt in range(self.config.attempts):
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
            try:
                response = self._client.post(url, json=body)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == httpx.codes.OK:
                    return self._json(response)
                problem = f"status {response.status_code}: {self._shown(response)}"
                if response.status_code not in PASSING:
                    raise ModelError(f"{url} refuses: {problem}; correct evaluate.retrievers {self.config.name!r}")
                pause = max(pause, _asked_pause(response))
            if attempt + 1 < self.config.attempts:
                # The pauses of several threads differ, so that they do not come back together.
                time.sleep(pause * random.uniform(0.5, 1.0))
        raise ModelError(f"{url}: {self.config.attempts} requests failed, the last one with {problem}; try again later")

    def _json(self, response: httpx.Response) -> Any:  # noqa: ANN401
        try:
            return response.json()
        except ValueError as error:
            raise ModelError(f"{self.config.url} answered with no JSON: {self._shown(response)}") from error

    def _shown(self, response: httpx.Response) -> str:
        text = response.text.replace(self._key, "***") if self._key else response.text
        return text[:SHOWN_CHARACTERS]

    def _unit_vectors(self, answer: Any, count: int) -> np.ndarray:  # noqa: ANN401
        rows = answer.get("data") if isinstance(answer, dict) else None
        what = f"{self.config.url}/embeddings"
        if not isinstance(rows, list) or len(rows) != count:
            given = len(rows) if isinstance(rows, list) else "no"
            raise ModelError(f"{what} gave {given} vectors for {count} texts; is it an OpenAI-compatible server?")
        try:
            # The API promises an index and not an order.
            ordered = sorted(rows, key=lambda row: int(row["index"]))
            vectors = np.array([row["embedding"] for row in ordered], dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{what} gave vectors of another form ({error}); floats of one length are needed"
            ) from error
        norms = np.linalg.norm(vectors, axis=-1, keepdims=True) if vectors.ndim == 2 else np.zeros(1)
        if vectors.ndim != 2 or not np.isfinite(vectors).all() or not (norms > 0).all():
            raise ModelError(f"{what} gave vectors that are empty, zero or no numbers")
        unit: np.ndarray = vectors / norms
        return unit


def api_key(config: EndpointRetriever) -> str:
    """The key in the retriever's environment variable; empty where it names none.

    Raises:
        ConfigError: the variable holds no key.
    """
    if config.key_variable is None:
        return ""
    key = os.environ.get(config.key_variable, "").strip()
    if not key:
        raise ConfigError(
            f"retriever {config.name!r}: the environment variable {config.key_variable} holds no key; set it"
        )
    return key


def _asked_pause(response: httpx.Response) -> float:
    """Seconds that the server asks to wait; a date is not read."""
    value = response.headers.get("retry-after", "")
    return min(LONGEST_PAUSE_S, float(value)) if value.replace(".", "", 1).isdigit() else 0.0
