"""Vectors on the wire: OpenAI's shape and TEI's; `task`, `input_type` and `truncate` are extensions of ours.

https://platform.openai.com/docs/api-reference/embeddings/create, https://huggingface.github.io/text-embeddings-inference
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from embedder.index.sent import ANY, Sent
from serve.schemas.strict import InputType, Name, Strict, TextOrTexts


class EmbeddingRequest(Sent):
    """Body of POST /v1/embeddings."""

    # OpenAI's, then those of vLLM, infinity and Voyage.
    PASSED_OVER: ClassVar[Mapping[str, object]] = {
        "metadata": ANY,
        "safety_identifier": ANY,
        "add_special_tokens": True,
        "cache_salt": ANY,
        "embed_dtype": "float32",
        "priority": ANY,
        "request_id": ANY,
        "truncate_prompt_tokens": -1,
        "modality": "text",
        "output_dtype": "float",
    }
    ALSO_CALLED: ClassVar[Mapping[str, str]] = {"truncation": "truncate", "output_dimension": "dimensions"}
    MEANT: ClassVar[Mapping[str, str]] = {"texts": "input", "inputs": "input", "prompt_name": "task"}

    input: TextOrTexts
    """One text or a list of texts."""
    model: Name
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """A prefix that the model was trained for (Matryoshka), scaled to length 1; null: the whole vector."""
    user: Name | None = None
    task: Name | None = None
    """Task whose instruction is put before each text; none by default."""
    input_type: InputType = "query"
    """Side of the instruction."""
    truncate: bool = True
    """Whether a text longer than the model reads is cut at its end; else it is refused."""
    normalize: bool = True
    """Vectors are of length 1 either way, because that is the last step of the model itself."""


class Embedding(Strict):
    """One vector; with base64 the little-endian float32 bytes."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(Strict):
    """Tokens the model read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(Strict):
    """Answer of POST /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class TeiRequest(Sent):
    """Body of POST /embed and POST /."""

    PASSED_OVER: ClassVar[Mapping[str, object]] = {"options": ANY}
    MEANT: ClassVar[Mapping[str, str]] = {"input": "inputs", "texts": "inputs", "task": "prompt_name"}

    inputs: TextOrTexts
    truncate: bool | None = None
    """Null: true, as `/info` says by `auto_truncate`."""
    truncation_direction: Literal["Right", "right"] = "Right"
    prompt_name: Name | None = None
    """`TASK_query` or `TASK_passage`, as in the exported model's prompts."""
    normalize: bool = True
    """Vectors are of length 1 either way, because that is the last step of the model itself."""
    dimensions: Annotated[int, Field(ge=1)] | None = None


class TeiInfo(Strict):
    """Answer of GET /info."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: dict[str, dict[str, str]]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str


class Model(Strict):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llm-embedder"


class ModelList(Strict):
    """Answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]
