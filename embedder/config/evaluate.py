"""The settings of an evaluation: which retrievers are compared, on what, and what the LLM is asked."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from embedder.config.paths import ModelReference, Section

EvaluationName = Literal["qa", "choice", "chat", "lrlm", "icl", "tool", "convsearch"]
"""What is asked of a dataset; the built-in tasks have the evaluation of their name, `choice` is multiple choice."""

PASSAGES: dict[EvaluationName, int] = {"qa": 3, "choice": 3, "chat": 1, "lrlm": 8, "icl": 8}
"""As in the paper."""

RETRIEVER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class BuiltinRetriever(Section):
    """A retriever that needs no settings; in the run file its kind alone."""

    kind: Literal["none", "random", "recency", "bm25", "base", "trained"]
    """none: the LLM without passages; random: seeded; recency: the latest of a history, where there is one; bm25; base:
    `encoder`; trained: the encoder that `train` wrote."""

    @property
    def name(self) -> str:
        """How it is called in the results."""
        return self.kind


class FolderRetriever(Section):
    """An encoder of your own."""

    kind: Literal["folder"] = "folder"
    name: str
    model: ModelReference
    """As `encoder.model`; of a sentence-transformers folder pooling, length and prompts are those of its files."""
    pooling: Literal["cls", "mean", "last"] | None = None
    """Needed where no sentence-transformers file names it."""
    max_tokens: int | None = Field(default=None, ge=8)
    """Texts are cut to the run's `encoder.max_tokens`, or to this, and never to more than the folder allows."""
    query_prompt: str | None = None
    """Before every query; null: the folder's prompt `TASK_query` or `query`, if there is one."""
    passage_prompt: str | None = None
    """Before every passage; null: the folder's `TASK_passage`, `document`, `passage` or `corpus`."""


class EndpointRetriever(Section):
    """Any server with OpenAI's `POST /embeddings`."""

    kind: Literal["endpoint"] = "endpoint"
    name: str
    url: str = Field(pattern=r"^https?://[^\s?#]+$")
    """Up to the version, such as https://api.openai.com/v1."""
    model: str
    key_variable: str | None = None
    """Environment variable of the driver that holds the API key; null: none is sent."""
    dimensions: int | None = Field(default=None, ge=1)
    """Sent along where the server shortens its vectors."""
    query_prompt: str = ""
    passage_prompt: str = ""
    extra_query: dict[str, str] = Field(default={})
    """Further fields of a request for queries, such as input_type; {task} in a value is the task's name."""
    extra_passage: dict[str, str] = Field(default={})
    batch_texts: int = Field(default=64, ge=1)
    """Texts of one request."""
    max_requests: int = Field(default=4, ge=1)
    """Requests at a time."""
    timeout_s: float = Field(default=60.0, gt=0)
    attempts: int = Field(default=6, ge=1)
    """Of a request that fails for a while (429, 5xx, no connection), with growing pauses between them."""

    @field_validator("url")
    @classmethod
    def no_secret_in_the_address(cls, value: str) -> str:
        """Refuse a user or key in the address, which would stand in every resolved run file."""
        if "@" in value:
            raise ValueError("url holds a user or key; put the key into an environment variable and name it")
        return value.rstrip("/")


Retriever = Annotated[BuiltinRetriever | FolderRetriever | EndpointRetriever, Field(discriminator="kind")]


class EvaluateConfig(Section):
    """How good the retrievers are."""

    split: Literal["dev", "test"] = "test"
    retrievers: list[Retriever] = Field(
        default=[BuiltinRetriever(kind=kind) for kind in ("none", "random", "recency", "bm25", "base", "trained")],
        min_length=1,
    )
    """A built-in one by its kind; others as mappings with `kind`, `name` and their settings."""
    baseline: str = "base"
    """Name of the retriever that the others are compared with."""
    cutoffs: list[int] = Field(default=[5, 10], min_length=1)
    """k of recall@k and NDCG@k, beside those that a task's evaluation names."""
    depth: int = Field(default=100, ge=1)
    """Length of the rankings."""
    llm_queries: dict[EvaluationName, int] = Field(default={})
    """Queries of each dataset that the LLM is asked (seeded choice); a number stands for all evaluations. What is not
    named is not asked; 0 or nothing at all: rankings alone, without an LLM."""
    generate_answers: bool = True
    """Whether the LLM writes answers (exact match, F1, ROUGE-L); false: likelihoods alone, which cost a fraction."""
    passages: dict[EvaluationName, int] = Field(default=PASSAGES)
    """Passages the LLM sees; what is not named is as in the paper."""
    evaluations: dict[str, EvaluationName] = Field(default={})
    """By task or dataset, where it is not the one of the task's name. A task of your own is `tool` (rankings alone) by
    default, a dataset of qa whose queries all have options is `choice`."""
    max_output_tokens: int = Field(default=128, ge=1)
    """Longer desired outputs are cut to this before they are scored."""
    unit_queries: int = Field(default=8, ge=1)
    """Queries that the LLM is asked together and that are committed together."""
    num_actors: int = Field(default=2, ge=1)
    cpus_per_actor: float = Field(default=1, gt=0)
    """Of an actor without a GPU; also its threads."""
    gpus_per_actor: float = Field(default=0, ge=0)
    resamples: int = Field(default=10_000, ge=100)
    """Resamples of the intervals and of the test of significance."""
    examples: int = Field(default=3, ge=0)
    """Queries won and lost that the report shows, of each dataset and kind."""
    seed: int = 0

    @field_validator("retrievers", mode="before")
    @classmethod
    def words_are_kinds(cls, value: object) -> object:
        """A word stands for the built-in retriever of that kind; a mapping without one is a folder."""
        if not isinstance(value, list):
            return value
        words = [{"kind": each} if isinstance(each, str) else each for each in value]
        return [{"kind": "folder", **each} if isinstance(each, dict) else each for each in words]

    @field_validator("llm_queries", mode="before")
    @classmethod
    def one_number_for_all(cls, value: object) -> object:
        """A number stands for every evaluation that asks the LLM."""
        return dict.fromkeys(PASSAGES, value) if isinstance(value, int) else value

    @field_validator("passages")
    @classmethod
    def rest_as_in_the_paper(cls, value: dict[EvaluationName, int]) -> dict[EvaluationName, int]:
        """Fill in what is not named."""
        return {**PASSAGES, **value}

    @model_validator(mode="after")
    def names_fit(self) -> EvaluateConfig:
        """Refuse two retrievers of one name, a name no file could have, an unknown baseline, and negative numbers."""
        names = [one.name for one in self.retrievers]
        if len(set(names)) < len(names):
            raise ValueError(f"retrievers are called {names}; names must differ")
        for name in names:
            if not RETRIEVER_NAME.fullmatch(name):
                raise ValueError(f"retriever {name!r}; use letters, digits, ., - and _ for its name")
        if self.baseline not in names:
            raise ValueError(f"baseline is {self.baseline!r}, which is none of the retrievers {names}")
        for key, numbers, least in (("llm_queries", self.llm_queries, 0), ("passages", self.passages, 1)):
            low = [name for name, number in numbers.items() if number < least]
            if low:
                raise ValueError(f"{key} of {low[0]} is {numbers[low[0]]}; give {least} or more")
        return self

    @property
    def asks(self) -> bool:
        """Whether an LLM is asked at all."""
        return any(self.llm_queries.values())
