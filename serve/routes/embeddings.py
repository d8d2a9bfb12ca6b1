"""Routes that give vectors and names of models: OpenAI's /v1/embeddings and /v1/models, TEI's /embed and /info."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator

import numpy as np
import orjson
from fastapi import APIRouter, Response

from embedder import __version__
from embedder.config.tasks import Side
from serve.http_errors import ApiError
from serve.middleware.request_body import BoundedRoute
from serve.routes.dependencies import Here, stamp
from serve.schemas.embedding_schemas import (
    EmbeddingRequest,
    EmbeddingResponse,
    Model,
    ModelList,
    TeiInfo,
    TeiRequest,
)
from serve.versions.served import Version

router = APIRouter(route_class=BoundedRoute)


@router.post("/v1/embeddings", tags=["embeddings"], response_model=EmbeddingResponse)
async def embeddings(request: EmbeddingRequest, service: Here) -> Response:
    """Vectors of texts, with the instruction of `task` and `input_type` where a task is named."""
    version = await service.model(request.model)
    check_width(version, request.dimensions)
    texts = service.texts(request.input, "input")
    side: Side = "query" if request.input_type == "query" else "passage"
    prompted = service.prompted(version, request.task, side, texts)
    encoded = await service.encode(version, prompted, request.truncate)

    def written() -> Response:
        vector_ND = narrowed(encoded.vector_ND, request.dimensions)
        return json_answer(version, openai_shape(vector_ND, request, sum(encoded.tokens)))

    return await service.large.beside(len(texts), written)


@router.get("/v1/models", tags=["embeddings"])
async def models(service: Here) -> ModelList:
    """The served models: each by its own name, the others by their alias too."""
    served = service.served.models()
    return ModelList(data=[Model(id=name, created=version.created) for name, version in served.items()])


@router.get("/v1/models/{name}", tags=["embeddings"])
async def model(name: str, service: Here) -> Model:
    """A served model, by name."""
    return Model(id=name, created=(await service.model(name)).created)


@router.post("/embed", tags=["text-embeddings-inference"], response_model=list[list[float]])
async def embed(request: TeiRequest, service: Here) -> Response:
    """Vectors of texts, with one of the exported model's prompts where it is named."""
    version = await service.named(None)
    check_width(version, request.dimensions)
    texts = service.texts(request.inputs, "inputs")
    task, _, side = (request.prompt_name or "").rpartition("_")
    if request.prompt_name is not None and (not task or side not in {"query", "passage"}):
        known = [f"{name}_{side}" for name in sorted(version.manifest.tasks) for side in ("query", "passage")]
        raise ApiError(400, f"prompt_name {request.prompt_name!r:.200}: known are {known}", param="prompt_name")
    known_side: Side = "query" if side == "query" else "passage"
    prompted = service.prompted(version, task or None, known_side, texts, "prompt_name")
    encoded = await service.encode(version, prompted, request.truncate is not False)

    def written() -> Response:
        return json_answer(version, list(numbers(narrowed(encoded.vector_ND, request.dimensions))))

    return await service.large.beside(len(texts), written)


@router.get("/info", tags=["text-embeddings-inference"])
async def info(response: Response, service: Here) -> TeiInfo:
    """The model that answers here, and its limits."""
    version, settings = await service.named(None), service.settings
    stamp(response, version)
    return TeiInfo(
        model_id=version.manifest.name,
        model_sha=version.manifest.model_version,
        model_dtype="float32",
        served_model_name=version.manifest.name,
        model_type={"embedding": {"pooling": version.manifest.pooling}},
        max_concurrent_requests=settings.max_queued_requests,
        max_input_length=version.manifest.max_tokens,
        max_batch_tokens=settings.batch_tokens,
        max_client_batch_size=settings.max_inputs,
        auto_truncate=True,
        tokenization_workers=1,
        version=__version__,
    )


def check_width(version: Version, dimensions: int | None) -> None:
    """Refuse a prefix that the model was not trained for.

    Raises:
        ApiError: the model has no such prefix.
    """
    if dimensions is None or dimensions in version.widths:
        return
    known = str(list(version.widths))
    if len(version.widths) == 1:
        known = f"{version.manifest.dimension} and was trained for no other (train.matryoshka_dimensions)"
    raise ApiError(400, f"dimensions {dimensions}: this model gives {known}", param="dimensions")


def narrowed(vector_ND: np.ndarray, dimensions: int | None) -> np.ndarray:
    """A prefix of unit vectors, as unit vectors."""
    if dimensions is None or dimensions == vector_ND.shape[1]:
        return vector_ND
    prefix_Nd = vector_ND[:, :dimensions]
    length_N1 = np.linalg.norm(prefix_Nd, axis=1, keepdims=True)
    return np.asarray(prefix_Nd / np.maximum(length_N1, 1e-12), dtype=np.float32)


def openai_shape(vector_ND: np.ndarray, request: EmbeddingRequest, tokens: int) -> dict[str, object]:
    """The answer in the shape of EmbeddingResponse."""
    # Not by the model, which would make a Python number of each component and check it, at more than tokens cost.
    vectors: Iterable[object] = numbers(vector_ND)
    if request.encoding_format == "base64":
        vectors = (base64.b64encode(vector.tobytes()).decode("ascii") for vector in vector_ND.astype("<f4"))
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)],
        "model": request.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def numbers(vector_ND: np.ndarray) -> Iterator[orjson.Fragment]:
    """Vectors as JSON: float32 as the fewest digits that are read back as the same number."""
    # One at a time: orjson keeps Python's lock until it is done, and all else waits for it meanwhile.
    return (orjson.Fragment(orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)) for vector in vector_ND)


def json_answer(version: Version, content: object) -> Response:
    """An answer on the wire."""
    answer = Response(orjson.dumps(content), media_type="application/json")
    stamp(answer, version)
    return answer
