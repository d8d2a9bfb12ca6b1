"""Deployment: the bundle's encoder behind dynamic batches."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ray import serve

from embedder.bundle import MODEL, bundle_encoder, verify
from embedder.encode import encode_prompted, encode_tokens
from embedder.model import load_inference_encoder

PROBE = "ready"


@dataclass(frozen=True)
class Encoded:
    """The vector of one text and how many tokens it has."""

    vector: np.ndarray
    tokens: int


class EncoderReplica:
    """Encodes texts that already carry their instruction, several requests together."""

    def __init__(self, bundle: str, batch_size: int, batch_wait_s: float) -> None:
        folder = Path(bundle)
        manifest = verify(folder, only=f"{MODEL}/")
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        self.encoder = load_inference_encoder(bundle_encoder(folder, manifest))
        self._batched.set_max_batch_size(batch_size)
        self._batched.set_batch_wait_timeout_s(batch_wait_s)

    async def encode(self, texts: list[str]) -> list[Encoded]:
        """The vectors of one request's texts."""
        encoded: list[Encoded] = await self._batched(texts)
        return encoded

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005)
    async def _batched(self, requests: list[list[str]]) -> list[list[Encoded]]:
        """Encode the texts of several requests in one go, and hand each request its own."""
        rows = self.encoder.tokenize([text for request in requests for text in request])
        vectors = encode_tokens(self.encoder, rows)
        encoded = iter([Encoded(vector, len(row)) for vector, row in zip(vectors, rows, strict=True)])
        return [[next(encoded) for _ in request] for request in requests]

    def check_health(self) -> None:
        """A real forward pass; a replica whose vectors are not finite is replaced."""
        if not np.isfinite(encode_prompted(self.encoder, [PROBE])).all():
            raise RuntimeError("the encoder gives vectors that are not finite")
