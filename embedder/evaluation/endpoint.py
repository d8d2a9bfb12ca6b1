"""Gets vectors from any server with OpenAI's `POST /embeddings`.

https://platform.openai.com/docs/api-reference/embeddings: {"model", "input": [texts], "encoding_format": "float"} in,
{"data": [{"index", "embedding"}]} out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np

from embedder.config.evaluate import EndpointRetriever
from embedder.config.tasks import Side
from embedder.errors import ModelError
from embedder.remote.server import Server


class EmbeddingEndpoint:
    """A server's vectors; may be used by several threads."""

    def __init__(self, config: EndpointRetriever, transport: httpx.BaseTransport | None = None) -> None:
        self.config = config
        self._server = Server(config, config.setting, transport)

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

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
        return self._unit_vectors(self._server.post("/embeddings", body), len(texts))

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
