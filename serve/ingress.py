"""Deployment: HTTP routes, limits and keys; asks the encoder and all shards, and merges."""

# Ray Serve pickles the FastAPI app where the class is decorated: annotations must not be postponed, and what the
# routes use must stand above the class.
import asyncio
import base64
import hmac
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
from fastapi import FastAPI, Request, Response
from ray import serve
from ray.serve.handle import DeploymentHandle

from embedder.bundle import Manifest, read_manifest
from embedder.config import ServeConfig
from embedder.index.found import hit_record
from embedder.index.opened import combine
from embedder.index.settings import SearchOptions
from embedder.tasks import Side
from serve.embed import Encoded
from serve.errors import ApiError, answer, install_handlers
from serve.schemas import (
    Embedding,
    EmbeddingRequest,
    EmbeddingResponse,
    Model,
    ModelList,
    SearchRequest,
    SearchResponse,
    SearchResult,
    ShardCounts,
    Usage,
)

PUBLIC_PATHS = {"/health"}
"""Routes that ask for no key."""

api = FastAPI(title="LLM-Embedder", version="1")
install_handlers(api)


def read_keys(path: Path | None) -> list[bytes]:
    """The API keys, one a line; several allow a change of keys without a gap."""
    if path is None:
        return []
    return [line.strip().encode() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def is_authorised(header: str, keys: list[bytes]) -> bool:
    """Whether `Bearer KEY` names one of the keys; every key is compared, each in constant time."""
    given = header.removeprefix("Bearer ").encode()
    matches = [hmac.compare_digest(given, key) for key in keys]
    return any(matches)


def wire(vector: np.ndarray, encoding: str) -> list[float] | str:
    """A vector as JSON numbers or as base64 of little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return [float(value) for value in vector]


@api.middleware("http")
async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse wrong keys and too large bodies before anything is parsed, on every route there is."""
    refusal = serve.get_replica_context().servable_object.refusal(request)
    return answer(refusal.status, refusal.detail) if refusal else await call_next(request)


@serve.ingress(api)
class Ingress:
    """The routes. Holds no model; checks every limit before a text reaches one."""

    def __init__(
        self, settings: ServeConfig, bundle: str, encoder: DeploymentHandle, shards: list[DeploymentHandle]
    ) -> None:
        self.settings, self.encoder, self.shards = settings, encoder, shards
        self.manifest: Manifest = read_manifest(Path(bundle))
        self.created = int((Path(bundle) / "manifest.json").stat().st_mtime)
        self.keys = read_keys(settings.api_keys_file)

    def refusal(self, request: Request) -> ApiError | None:
        """Why a request must not go on, if so."""
        header = request.headers.get("authorization", "")
        if self.keys and request.url.path not in PUBLIC_PATHS and not is_authorised(header, self.keys):
            return ApiError(401, "no valid API key; send `Authorization: Bearer KEY`", code="invalid_api_key")
        if request.method != "POST":
            return None
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            return ApiError(411, "a request body needs a Content-Length")
        if int(length) > self.settings.max_body_bytes:
            return ApiError(413, f"body of {length} bytes; the limit is {self.settings.max_body_bytes}")
        return None

    @api.post("/v1/embeddings")
    async def embeddings(self, request: EmbeddingRequest) -> EmbeddingResponse:
        """Vectors of texts, with the instruction of `task` and `input_type` where a task is named."""
        if request.model != self.manifest.name:
            raise ApiError(
                404,
                f"model {request.model!r}: only {self.manifest.name!r} is served",
                param="model",
                code="model_not_found",
            )
        if request.dimensions not in (None, self.manifest.dimension):
            raise ApiError(
                400, f"dimensions {request.dimensions}: this model has {self.manifest.dimension}", param="dimensions"
            )
        side: Side = "query" if request.input_type == "query" else "key"
        texts = self._texts(request.input, "input")
        instruction = self._instruction(request.task, side) if request.task is not None else ""
        encoded = await self._encode([instruction + text for text in texts])
        tokens = sum(one.tokens for one in encoded)
        data = [
            Embedding(index=i, embedding=wire(one.vector, request.encoding_format)) for i, one in enumerate(encoded)
        ]
        return EmbeddingResponse(
            data=data, model=self.manifest.name, usage=Usage(prompt_tokens=tokens, total_tokens=tokens)
        )

    @api.post("/v1/search")
    async def search(self, request: SearchRequest) -> SearchResponse:
        """The best passages of a task for each query, over all shards."""
        began = time.perf_counter()
        if request.limit > self.settings.max_results:
            raise ApiError(400, f"limit {request.limit}: at most {self.settings.max_results}", param="limit")
        texts = self._texts(request.query, "query")
        instruction = self._instruction(request.task, "query")
        encoded = await self._encode([instruction + text for text in texts])
        query_QD = np.stack([one.vector for one in encoded])
        options = SearchOptions(k=request.limit)
        calls = [shard.rank.remote(request.task, options, query_QD, texts) for shard in self.shards]
        parts = await asyncio.wait_for(asyncio.gather(*calls), self.settings.timeout_s)
        return SearchResponse(
            results=[
                [SearchResult.model_validate(hit_record(hit)) for hit in hits]
                for hits in combine(parts, options).hits()
            ],
            model_version=self.manifest.model_version,
            index_version=self.manifest.index_version,
            shards=ShardCounts(total=len(self.shards), successful=len(parts), failed=0),
            time_ms=(time.perf_counter() - began) * 1000,
        )

    @api.get("/v1/models")
    def models(self) -> ModelList:
        """The served model."""
        return ModelList(data=[self.model(self.manifest.name)])

    @api.get("/v1/models/{name}")
    def model(self, name: str) -> Model:
        """The served model, by name."""
        if name != self.manifest.name:
            raise ApiError(
                404, f"model {name!r}: only {self.manifest.name!r} is served", param="model", code="model_not_found"
            )
        return Model(id=name, created=self.created)

    @api.get("/health")
    async def health(self) -> dict[str, str]:
        """200 when the encoder and every shard answer."""
        encoded = await self._encode(["ready"])
        query_QD = np.stack([encoded[0].vector])
        task = next(iter(self.manifest.collections))
        calls = [shard.rank.remote(task, SearchOptions(k=1), query_QD, ["ready"]) for shard in self.shards]
        await asyncio.wait_for(asyncio.gather(*calls), self.settings.timeout_s)
        return {"status": "ok"}

    def _texts(self, given: object, name: str) -> list[str]:
        """The texts of a request, within the limits."""
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ApiError(
                400,
                f"{name}: token ids are not accepted, send text (LangChain: check_embedding_ctx_length=False)",
                param=name,
            )
        if len(texts) > self.settings.max_inputs:
            raise ApiError(400, f"{name}: {len(texts)} texts; at most {self.settings.max_inputs}", param=name)
        for i, text in enumerate(texts):
            if len(text) > self.settings.max_characters:
                limit = self.settings.max_characters
                raise ApiError(400, f"{name}[{i}]: {len(text)} characters; at most {limit}", param=name)
            if not text.strip():
                raise ApiError(400, f"{name}[{i}]: blank text", param=name)
        return texts

    def _instruction(self, task: str, side: Side) -> str:
        if task not in self.manifest.tasks:
            raise ApiError(400, f"task {task!r}: known are {sorted(self.manifest.tasks)}", param="task")
        return self.manifest.tasks[task].instruction(side)

    async def _encode(self, texts: list[str]) -> list[Encoded]:
        return await asyncio.wait_for(self.encoder.encode.remote(texts), self.settings.timeout_s)
