"""Settings of the job `evaluate`: the retrievers, and what the LLM is asked about their results."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from embedder.config.endpoints import ServerAddress
from embedder.config.paths import ModelReference, Pooling, Section

EvaluationName = Literal["qa", "choice", "chat", "lrlm", "icl", "tool", "convsearch"]
"""The evaluations. The built-in tasks have the one of their name; `choice` is multiple choice."""

PASSAGES: dict[EvaluationName, int] = {"qa": 3, "choice": 3, "chat": 1, "lrlm": 8, "icl": 8}
"""Passages that the LLM sees in each evaluation; the numbers are those of the paper."""

QUERIES_REMEDY = (
    "give a source of prepare.sources a test file, or let it keep dev_queries: 200 of its training rows and set "
    "evaluate.split: dev"
)
"""How a run comes to queries that can be measured, as errors and notes tell it."""

RETRIEVER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


TAUGHT = frozenset({"trained", "control"})
"""Kinds of retrievers that `train` makes."""
WITH_ENCODER = TAUGHT | {"base", "folder"}
"""Kinds of retrievers that are an encoder of ours."""


class BuiltinRetriever(Section):
    """A retriever that needs no settings; in the run file its kind alone stands for it."""

    kind: Literal["none", "random", "recency", "bm25", "base", "trained", "control"]
    """`none`: the LLM without passages. `random`: a seeded order. `recency`: the latest of a history, where there is
    one. `bm25`: lexical. `base`: the encoder of `encoder`. `trained`: the encoder that `train` wrote. `control`: the
    one that it trained on shuffled rewards (`train.control`)."""

    @property
    def name(self) -> str:
        """Its name in the results."""
        return self.kind


class FolderRetriever(Section):
    """An encoder of your own."""

    kind: Literal["folder"] = "folder"
    """Marks a retriever as a model folder; may be left out."""
    name: str
    """Its name in the results."""
    model: ModelReference
    """As `encoder.model`. The files of a sentence-transformers folder say its pooling, length and prompts."""
    pooling: Pooling | None = None
    """As `encoder.pooling`. null: as the sentence-transformers files say; needed where there are none."""
    max_tokens: int | None = Field(default=None, ge=8)
    """Tokens of a text; longer texts are cut, and always to what the folder allows. null: `encoder.max_tokens`, so that
    all retrievers read the same."""
    query_prompt: str | None = None
    """Text before every query. null: the prompt `TASK_query` or `query` of the folder, if there is one."""
    passage_prompt: str | None = None
    """Text before every passage. null: the prompt `TASK_passage`, `document`, `passage` or `corpus` of the folder, if
    there is one."""


DEEPEST = 10
"""Passages that the measures of the evaluations themselves read."""


class EndpointRetriever(ServerAddress):
    """Any server with OpenAI's `POST /embeddings`."""

    kind: Literal["endpoint"] = "endpoint"
    """Marks a retriever as a server."""
    name: str
    """Its name in the results."""
    dimensions: int | None = Field(default=None, ge=1)
    """Length of the vectors that the server is asked for. null: its own length."""
    query_prompt: str = ""
    """Text before every query."""
    passage_prompt: str = ""
    """Text before every passage."""
    extra_query: dict[str, str] = Field(default={})
    """Further fields of a request for queries, such as `input_type`. `{task}` in a value is the name of the task."""
    extra_passage: dict[str, str] = Field(default={})
    """Further fields of a request for passages, in the same form."""
    batch_texts: int = Field(default=64, ge=1)
    """Texts of a request."""

    @property
    def setting(self) -> str:
        """Where the run file describes it, as errors name it."""
        return f"evaluate.retrievers {self.name!r}"


Retriever = Annotated[BuiltinRetriever | FolderRetriever | EndpointRetriever, Field(discriminator="kind")]


class EvaluateConfig(Section):
    """Which retrievers are compared, on which queries, and what the LLM is asked about their results."""

    split: Literal["dev", "test"] = "test"
    """Split of the queries."""
    retrievers: list[Retriever] = Field(
        default=[BuiltinRetriever(kind=kind) for kind in ("none", "random", "recency", "bm25", "base", "trained")],
        min_length=1,
    )
    """The retrievers: a built-in one by its kind, any other as a mapping with `kind`, `name` and its settings."""
    baseline: str = "base"
    """Name of the retriever with which the others are compared."""
    cutoffs: list[Annotated[int, Field(ge=1, le=10_000)]] = Field(default=[5, 10], min_length=1)
    """Each k of recall@k and NDCG@k, beside those that the evaluation of a task names."""
    depth: int = Field(default=100, ge=1)
    """Passages of each ranking."""
    llm_queries: dict[EvaluationName, int] = Field(default={})
    """Queries of each dataset about which the LLM is asked (seeded choice), by evaluation; a single number stands for
    all. Evaluations that are not named are not asked. 0 or nothing at all compares rankings alone, without an LLM."""
    generate_answers: bool = True
    """The LLM writes answers (exact match, F1, ROUGE-L). `false`: likelihoods alone, which cost a fraction."""
    passages: dict[EvaluationName, int] = Field(default=PASSAGES)
    """Passages that the LLM sees, by evaluation. The defaults are those of the paper."""
    evaluations: dict[str, EvaluationName] = Field(default={})
    """Evaluation of a task or dataset, where it is not the default. The default is the evaluation of the task's name;
    for a task of your own `tool` (rankings alone), for a dataset of `qa` whose queries all have options `choice`."""
    max_output_tokens: int = Field(default=192, ge=1)
    """Tokens of a desired output; longer ones are cut before they are scored, the same for all retrievers."""
    unit_queries: int = Field(default=8, ge=1)
    """Queries about which the LLM is asked together, and whose replies are committed together. A kill costs at most
    this many of each actor."""
    num_actors: int = Field(default=2, ge=1)
    """Actors that hold the LLM. Those that encode are settings of `encoder`."""
    cpus_per_actor: float = Field(default=1, gt=0)
    """CPUs, and threads, of an actor; one with a GPU gets its share of the machine's, up to 4, if that is more."""
    gpus_per_actor: float = Field(default=0, ge=0)
    """GPUs of each actor that holds the LLM. 0: the CPU. The encoder's are `encoder.gpus_per_actor`."""
    resamples: int = Field(default=10_000, ge=100, le=1_000_000)
    """Resamples of the bootstrap intervals and of the randomisation test."""
    examples: int = Field(default=3, ge=0)
    """Queries won, and as many lost, that the report shows of each dataset."""
    seed: int = 0
    """Seed of the choice of queries and worked examples, of the retriever `random` and of the resamples."""

    @field_validator("retrievers", mode="before")
    @classmethod
    def words_are_kinds(cls, value: object) -> object:
        """Turn a word into the built-in retriever of that kind, and a mapping without a kind into a folder."""
        if not isinstance(value, list):
            return value
        words = [{"kind": each} if isinstance(each, str) else each for each in value]
        return [{"kind": "folder", **each} if isinstance(each, dict) else each for each in words]

    @field_validator("llm_queries", mode="before")
    @classmethod
    def one_number_for_all(cls, value: object) -> object:
        """Turn a number into that number for every evaluation that asks the LLM."""
        return dict.fromkeys(PASSAGES, value) if isinstance(value, int) else value

    @field_validator("passages")
    @classmethod
    def rest_as_in_the_paper(cls, value: dict[EvaluationName, int]) -> dict[EvaluationName, int]:
        """Fill in the evaluations that are not named."""
        return {**PASSAGES, **value}

    @model_validator(mode="after")
    def names_fit(self) -> EvaluateConfig:
        """Refuse two retrievers of one name, a name no file could have, an unknown baseline, and negative numbers."""
        names = [retriever.name for retriever in self.retrievers]
        if len(set(names)) < len(names):
            raise ValueError(f"retrievers are called {names}; names must differ")
        for name in names:
            if not RETRIEVER_NAME.fullmatch(name):
                raise ValueError(f"retriever {name!r}; use letters, digits, ., - and _ for its name")
        if self.baseline not in names:
            raise ValueError(f"baseline is {self.baseline!r}, which is none of the retrievers {names}")
        deepest = max(DEEPEST, *self.cutoffs)
        if self.depth < deepest:
            raise ValueError(f"depth is {self.depth}, but measures read the first {deepest} passages; raise it")
        for key, numbers, least in (("llm_queries", self.llm_queries, 0), ("passages", self.passages, 1)):
            low = [name for name, number in numbers.items() if number < least]
            if low:
                raise ValueError(f"{key} of {low[0]} is {numbers[low[0]]}; give {least} or more")
        return self

    @property
    def asks(self) -> bool:
        """True if an LLM is asked about any query."""
        return any(self.llm_queries.values())

    @property
    def compares_trained(self) -> bool:
        """True if a retriever is one that `train` makes."""
        return any(retriever.kind in TAUGHT for retriever in self.retrievers)
