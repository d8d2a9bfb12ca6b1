"""Requests and answers on the wire: OpenAI's shape for embeddings, TEI's, Cohere's for reranking, and our own.

https://platform.openai.com/docs/api-reference/embeddings/create, https://huggingface.github.io/text-embeddings-inference,
https://docs.cohere.com/reference/rerank. `task`, `input_type` and `truncate` of embeddings are extensions of ours.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from embedder.config.index import SearchParameters
from embedder.index.documents import Document
from embedder.index.filters import Filter
from embedder.index.search_options import Mode

Text = Annotated[str, StringConstraints(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]
TokenIds = Annotated[list[int], Field(min_length=1)] | Annotated[list[list[int]], Field(min_length=1)]
"""Refused: those of another tokenizer would give plausible garbage."""
InputType = Literal["query", "document"]


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class EmbeddingRequest(Strict):
    """Body of POST /v1/embeddings."""

    input: Text | Texts | TokenIds
    """One text or a list of texts."""
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """A prefix that the model was trained for (Matryoshka), scaled to length 1; null: the whole vector."""
    user: str | None = None
    task: str | None = None
    """Task whose instruction is put before each text; none by default."""
    input_type: InputType = "query"
    """Side of the instruction."""
    truncate: bool = True
    """Whether a text longer than the model reads is cut at its end; else it is refused."""


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


class TeiRequest(Strict):
    """Body of POST /embed."""

    inputs: Text | Texts | TokenIds
    truncate: bool | None = None
    """Null: true, as `/info` says by `auto_truncate`."""
    truncation_direction: Literal["Right", "right"] = "Right"
    prompt_name: str | None = None
    """`TASK_query` or `TASK_passage`, as in the exported model's prompts."""
    normalize: Literal[True] | None = None
    """Vectors are always of length 1."""
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


class TeiError(Strict):
    """Body of every answer of TEI's routes that is not 200."""

    error: str
    error_type: str


class DocumentText(Strict):
    """A document to be reranked, or one that was."""

    text: Text


class RerankRequest(Strict):
    """Body of POST /v1/rerank."""

    model: str | None = None
    """Null: that of the index that is served by default."""
    query: Text
    documents: list[Text | DocumentText] = Field(min_length=1)
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False
    task: str | None = None
    """Task whose instructions are put before query and documents; none by default."""


class RerankResult(Strict):
    """A document's position in the request, and how well it fits: (1 + cosine) / 2."""

    index: int
    relevance_score: float
    document: DocumentText | None = None


class RerankResponse(Strict):
    """Answer of POST /v1/rerank: the best first, ties by index."""

    id: str
    results: list[RerankResult]
    model: str
    usage: Usage


class SearchFields(Strict):
    """What every request that searches an index may say."""

    index: str | None = None
    """Alias of the index; null: the one that is served by default."""
    k: Annotated[int, Field(ge=1)] = 10
    """Results a query."""
    mode: Mode = "dense"
    """Ranking by vectors, by words (BM25), or both fused."""
    filter: Filter | None = None
    """Conditions on the metadata, in Qdrant's vocabulary."""
    parameters: SearchParameters = SearchParameters()
    """How thoroughly an approximate index is searched."""


class SearchRequest(SearchFields):
    """Body of POST /v1/search."""

    query: Text | Texts
    task: str
    """Whose documents are searched, with that task's instruction."""
    with_payload: bool = True
    """True: hits have text, title and metadata too."""


class SearchResult(Strict):
    """One hit. Score: inner product of unit vectors; BM25 by words; sum of reciprocal ranks where both are fused."""

    id: str
    dataset: str
    score: float
    text: str | None = None
    title: str | None = None
    metadata: dict[str, Any] | None = None


class ShardCounts(Strict):
    """How many index shards took part; a search that any shard cannot answer fails as a whole."""

    total: int
    successful: int
    failed: int


class Versions(Strict):
    """The versions that answered. Both change together, with the alias."""

    model_version: str
    index_version: str


class Timing(Strict):
    """Milliseconds of an answer by stage."""

    encode: float
    """The query: waiting, tokens, forward pass."""
    search: float
    """The slowest shard, and merging."""
    total: float


class SearchResponse(Versions):
    """Answer of POST /v1/search: results by query, best first, ties by id."""

    results: list[list[SearchResult]]
    shards: ShardCounts
    time_ms: Timing


class RetrieveRequest(SearchFields):
    """Body of POST /v1/retrieve/{task}."""

    query: Text
    k: Annotated[int, Field(ge=1)] = 3
    session: Text | None = None
    """Only documents whose metadata field `session` is this: the memory of one conversation."""
    max_characters: Annotated[int, Field(ge=1)] = 8000
    """Of the passages together; what does not fit is left out from the least relevant up, whole passages at a time."""


class RetrieveResponse(Versions):
    """Answer of POST /v1/retrieve/{task}."""

    prompt: str
    """What the LLM is given: the passages in the task's template, then the query."""
    context: str
    """The part of it before the query."""
    passages: list[SearchResult]
    """The passages in the prompt, best first."""
    left_out: int
    """Hits that did not fit."""
    time_ms: Timing


class UpsertRequest(Strict):
    """Body of POST /v1/indexes/{name}/documents."""

    task: str
    documents: list[Document] = Field(min_length=1)


class UpsertResponse(Versions):
    """The documents are on the disk and are found from now on."""

    upserted: int


class NamedDocument(Strict):
    """Id and dataset, which identify a document."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    dataset: Annotated[str, StringConstraints(max_length=256)] = ""


class DeleteRequest(Strict):
    """Body of POST /v1/indexes/{name}/documents/delete."""

    task: str
    documents: list[NamedDocument] = Field(min_length=1)


class DeleteResponse(Versions):
    """The documents are no longer found."""

    deleted: int
    """How many of them there were."""


class CollectionState(Strict):
    """The documents of one task."""

    documents: int
    uncompacted: int
    """Writes that are not compacted into the index yet."""


class IndexState(Versions):
    """The version that an alias serves, and its sizes."""

    name: str
    """The alias."""
    version: str
    model: str
    dimension: int
    shards: int
    default: bool
    collections: dict[str, CollectionState]


class IndexList(Strict):
    """Answer of GET /v1/indexes."""

    data: list[IndexState]
    versions: list[str]
    """All there are; an alias can be pointed at each."""


class PointRequest(Strict):
    """Body of PUT /v1/indexes/{name}."""

    version: str


class PointResponse(Versions):
    """The alias names this version from now on."""

    name: str
    version: str


class Removed(Strict):
    """An alias that is no more; its version stays."""

    name: str


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


class Health(Strict):
    """Answer of GET /health, /ready and /live."""

    status: Literal["ok"] = "ok"


class DeploymentState(Strict):
    """A part of the service."""

    name: str
    status: str
    """As Ray calls it: HEALTHY, UPDATING, UPSCALING, DOWNSCALING, UNHEALTHY, DEPLOY_FAILED."""
    replicas: dict[str, int]
    """How many there are by their state: RUNNING, STARTING, STOPPING and others of Ray's."""


class ServiceState(Strict):
    """Answer of GET /v1/state."""

    data: list[DeploymentState]


class ErrorDetail(Strict):
    """The reason of a refusal, and the field it is about."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(Strict):
    """Body of every answer that is not 200."""

    error: ErrorDetail
