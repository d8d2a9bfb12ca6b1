"""A small server with OpenAI's completions over a local LLM, in the forms of real engines, and with their faults."""

from __future__ import annotations

import asyncio
import math
import random
import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.sampling import Sampling
from embedder.labelling.sequential_backend import SequentialBackend
from embedder.models.causal_lm import CausalLm

ENGINES = {"vllm": "prompt_logprobs", "sglang": "echo", "llama": "text"}
"""In which form each takes prompts and gives likelihoods."""


@dataclass
class LlmServer:
    """What the server is, and what it was asked."""

    lm: CausalLm
    engine: str = "vllm"
    spoiled: str = ""
    """How its likelihoods are wrong: zeros, none, shifted, split. Of its chats: what it refuses, or no verdicts."""
    key: str = ""
    name: str = "tiny"
    most_tokens: int | None = None
    faults: list[Any] = field(default_factory=list)
    """Answers that the next scoring requests get instead: a status, or (status, headers), or "cut", "slow", "large"."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    capacity: int = 10**6
    """Requests at once above which it refuses."""
    seconds: float = 0.0
    """How long an answer takes, beside its computation."""
    refused: int = 0
    lasts: int | None = None
    """Requests after which it is broken."""
    _running: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.backend = SequentialBackend(self.lm)

    def app(self) -> FastAPI:
        app = FastAPI()
        app.get("/live")(self._live)
        app.get("/v1/models")(self._models)
        app.post("/v1/completions")(self._completions)
        app.post("/v1/chat/completions")(self._chat)
        return app

    def _live(self) -> dict[str, str]:
        return {}

    def _models(self) -> Response:
        row = {"id": self.name, "object": "model", "owned_by": self.engine}
        if self.most_tokens:
            row["max_model_len"] = self.most_tokens
        return JSONResponse({"object": "list", "data": [row]})

    async def _completions(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": f"no such key: {request.headers.get('authorization')}"}, 401)
        body = await request.json()
        self.requests.append(body)
        self._running += 1
        self.most_at_once = max(self.most_at_once, self._running)
        try:
            if self._running > self.capacity:
                self.refused += 1
                return JSONResponse({"error": "busy"}, 429)
            if self.lasts is not None and len(self.requests) > self.lasts:
                return JSONResponse({"error": "broken"}, 500)
            if self.faults:
                return await self._fault(self.faults.pop(0))
            if self.seconds:
                await asyncio.sleep(self.seconds)
            return JSONResponse(await asyncio.to_thread(self._answer, body))
        finally:
            self._running -= 1

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        if "max_tokens" in body and "newer" in self.spoiled:
            told = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
            return JSONResponse({"error": {"message": told, "type": "invalid_request_error"}}, 400)
        if "logprobs" in body and "refused" in self.spoiled:
            return JSONResponse({"error": "unknown field logprobs"}, 400)
        return JSONResponse(await asyncio.to_thread(self._reply, body))

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        """Replies of one of three verdicts, as likely as the LLM finds each behind the message."""
        (message,) = body["messages"]
        with self._lock:
            ids = self.lm.lead_ids + self.lm.tokens(message["content"])
            outputs = [self.lm.tokens(f" {verdict}") for verdict in ("yes", "partly", "no")]
            means = self.backend.score([PackedPrompt(ids, outputs)])[0]
        sums = [mean * len(output) for mean, output in zip(means, outputs, strict=True)]
        if self.spoiled == "no verdicts":
            return {"choices": [_chat_choice("Well", {"Well": -0.1})] * body.get("n", 1)}
        if "logprobs" not in body or self.spoiled in {"none", "refused", "newer, refused"}:
            weights = [math.exp(each - max(sums)) for each in sums]
            drawn = random.Random(len(self.requests)).choices(("Yes, it does", "partly", "No."), weights, k=2)
            return {"choices": [_chat_choice(text, None) for text in drawn[: body.get("n", 1)]]}
        # A token may begin a verdict, and one of them in two ways.
        told = dict(zip(("Yes", "part", "no"), sums, strict=True)) | {" No": -1e4, "Maybe": -1.0}
        return {"choices": [_chat_choice("Maybe", told)]}

    async def _fault(self, fault: Any) -> Response:
        match fault:
            case "cut":
                return Response(b'{"choices": [', headers={"content-length": "5000"}, media_type="application/json")
            case "slow":
                await asyncio.sleep(5)
                return JSONResponse({})
            case "large":
                return JSONResponse({"choices": [{"text": "x" * 100_000}]})
            case (status, headers):
                return JSONResponse({"error": "later"}, status, headers)
            case status:
                return JSONResponse({"error": "broken"}, status)

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            prompt = body["prompt"]
            if isinstance(prompt, list) and self.engine == "llama":
                return {"detail": "prompt must be a string"}
            ids = list(prompt) if isinstance(prompt, list) else self.lm.tokens(prompt)
            asks_prompt = "echo" in body or "prompt_logprobs" in body
            choices = [self._scored(body, ids)] if asks_prompt else self._written(body, ids)
        return {"choices": choices, "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}}

    def _written(self, body: dict[str, Any], ids: list[int]) -> list[dict[str, Any]]:
        count = body.get("n", 1) if self.engine != "llama" else 1
        sampling = Sampling(
            num_samples=count,
            max_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_k=body.get("top_k", 50),
            end_ids=self.lm.end_ids,
        )
        drawn = self.backend.sample([ids], [body["seed"]], sampling)[0]
        choices = []
        for tokens in drawn:
            text = self.lm.tokenizer.decode(tokens)
            cuts = [text.find(stop) for stop in body.get("stop", []) if stop in text]
            choice = {"text": text[: min(cuts, default=len(text))]}
            if "logprobs" in body:
                table = self._table(ids)[-1]
                choice["logprobs"] = {"token_logprobs": [float(table[token]) for token in tokens[:1]]}
            choices.append(choice)
        return choices

    @torch.inference_mode()
    def _table(self, ids: list[int]) -> torch.Tensor:
        """Log-likelihoods of every token behind each of the ids."""
        return self.lm.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def _scored(self, body: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        table = self._table(ids)
        before = table if self.spoiled == "shifted" else torch.cat([table[:1], table[:-1]])
        values: list[float | None] = [float(row[token]) for row, token in zip(before, ids, strict=True)]
        values[0] = None
        if self.spoiled == "zeros":
            values = [None, *[0.0] * (len(ids) - 1)]
        texts = [self.lm.token_texts[token] for token in ids]
        if self.spoiled == "split":
            texts, values = [*texts[0], *texts[1:]], [*[None] * len(texts[0]), *values[1:]]
        if self.spoiled == "none":
            return {"text": "x"}
        if "prompt_logprobs" in body:
            if self.engine != "vllm":
                return {"text": "x"}
            rows = [
                None if value is None else {str(token): {"logprob": value}, "0": {"logprob": -9.0}}
                for token, value in zip(ids, values, strict=False)
            ]
            return {"text": "x", "prompt_logprobs": rows}
        return {"text": "x", "logprobs": {"tokens": [*texts, "x"], "token_logprobs": [*values, -1.0]}}


def _chat_choice(text: str, top: dict[str, float] | None) -> dict[str, Any]:
    listed = [{"token": token, "logprob": value} for token, value in (top or {}).items()]
    told = {"content": [{"token": text, "logprob": -1.0, "top_logprobs": listed}]} if top else None
    return {"message": {"role": "assistant", "content": text}, "logprobs": told}
