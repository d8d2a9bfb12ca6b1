"""What one writes first with Ray Serve: the encoder behind `@serve.batch`, in one deployment."""

from typing import Any

import torch
from ray import serve
from starlette.requests import Request

from benchmarks.serving_index import MAX_TOKENS
from embedder.config.run import EncoderConfig
from embedder.models.encoder import encode_prompted, load_encoder

BATCH = 32
THREADS = 2


class Bare:
    """Eager PyTorch; whatever the path."""

    def __init__(self, model: str) -> None:
        torch.set_num_threads(THREADS)
        self._encoder = load_encoder(
            EncoderConfig(model=model, pooling="mean", max_tokens=MAX_TOKENS, instructions=False), "cpu"
        )

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.002)
    async def encode(self, texts: list[str]) -> list[list[float]]:
        """Vectors of one batch."""
        vectors: list[list[float]] = encode_prompted(self._encoder, texts).tolist()
        return vectors

    async def __call__(self, request: Request) -> dict[str, Any]:
        """In OpenAI's shape."""
        body = await request.json()
        vector = await self.encode(body["input"][0])
        entry = {"object": "embedding", "index": 0, "embedding": vector}
        return {"object": "list", "model": body["model"], "data": [entry], "usage": {"prompt_tokens": 0}}


def deploy_bare(model: str) -> None:
    """Serve it."""
    bare: Any = serve.deployment(Bare)
    options = {"max_ongoing_requests": 4 * BATCH, "ray_actor_options": {"num_cpus": THREADS}}
    serve.run(bare.options(**options).bind(model))
