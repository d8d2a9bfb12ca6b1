"""Defines an evaluation: which rankings count, what the LLM is asked with the passages found, how its reply is judged.

An evaluation is data and pure functions: a `Question` in, an `Ask` out; the LLM's `Reply` in, measured values out.
Neither the retriever nor the LLM is known here, so that all retrievers are compared by the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa

from embedder.config.evaluate import EvaluationName
from embedder.config.tasks import PromptTemplate, TaskSpec
from embedder.data.records import TEXTS
from embedder.hashing import content_id

Value = tuple[float, float]
"""A query's value and its weight: what it counts in the mean over queries (tokens in a perplexity, else 1)."""

ASKED = pa.schema(
    [
        *((name, pa.string()) for name in ("row_id", "evaluation", "task", "dataset", "query_id", "query")),
        ("answers", TEXTS),
        ("options", TEXTS),
        ("category", pa.string()),
        ("passages", pa.list_(pa.struct([("id", pa.string()), ("text", pa.string()), ("position", pa.int64())]))),
    ]
)
"""A `Question`."""


@dataclass(frozen=True)
class Measure:
    """How values of queries become one number."""

    name: str
    kind: Literal["mean", "perplexity"] = "mean"
    """mean: their weighted mean, higher is better; perplexity: its exponential, lower is better."""

    @property
    def better(self) -> int:
        """1 if higher is better, else -1."""
        return 1 if self.kind == "mean" else -1


LIKELIHOOD = Measure("log-likelihood")
"""Log-likelihood of the desired output, mean over its tokens (nats)."""
PERPLEXITY = Measure("perplexity", "perplexity")
"""Perplexity of desired outputs; every token counts once, so that a long output weighs more than a short one."""


@dataclass(frozen=True)
class Passage:
    """A passage that a retriever returned."""

    id: str
    text: str
    position: int | None = None
    """Its position among the query's own candidates, the oldest 0; None where the whole corpus was searched."""


@dataclass(frozen=True)
class Question:
    """A query with the passages that one retriever returned for it."""

    evaluation: EvaluationName
    task: str
    dataset: str
    query_id: str
    query: str
    answers: list[str]
    options: list[str] | None
    category: str | None
    passages: list[Passage] = field(default_factory=list)
    """Best first."""

    def row(self, fingerprint: str) -> dict[str, Any]:
        """The row of ASKED; equal questions to an equal LLM have an equal id, whichever retriever they come from."""
        # The retriever is no part of the id, so that a prompt that several retrievers lead to is computed once.
        fields = asdict(self)
        return {**fields, "row_id": content_id(fingerprint, fields)}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Question:
        """The question in such a row."""
        fields = {name: value for name, value in row.items() if name not in {"row_id", "passages"}}
        return cls(**fields, passages=[Passage(**passage) for passage in row["passages"]])


@dataclass(frozen=True)
class Ask:
    """The task that an evaluation gives the LLM."""

    query: str
    """Fills the input of the template."""
    outputs: list[str]
    """Texts whose log-likelihoods are asked for."""
    written_tokens: int = 0
    """Tokens that the LLM may write, greedily, up to the template's stop text; 0: it writes nothing."""


@dataclass(frozen=True)
class Reply:
    """The LLM's part of an evaluation."""

    likelihoods: list[float]
    """Mean token log-likelihood (nats) of each output."""
    tokens: list[int]
    """Number of tokens of each output that were scored."""
    text: str | None = None
    """The written answer; None where the LLM was not let write."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Reply | None:
        """The reply in a row of replies.JUDGED; None where there is none."""
        if row["likelihoods"] is None:
            return None
        return cls(list(row["likelihoods"]), list(row["tokens"]), row["text"])


def best_first(passages: Sequence[Passage]) -> list[str]:
    """The texts in the order of the ranking."""
    return [passage.text for passage in passages]


def best_last(passages: Sequence[Passage]) -> list[str]:
    """The texts with the best one next to the input, where it weighs most."""
    return [passage.text for passage in reversed(passages)]


def in_time(passages: Sequence[Passage]) -> list[str]:
    """The texts in the order in which they were said or written."""
    return [passage.text for passage in sorted(passages, key=lambda passage: passage.position or 0)]


def own_template(spec: TaskSpec) -> PromptTemplate | None:
    """The template with which the LLM rewards the task's candidates."""
    return spec.template


def no_ask(_: Question) -> Ask | None:
    """Nothing is asked: the ranking says it all."""
    return None


def no_values(_question: Question, _reply: Reply) -> dict[str, Value]:
    """Nothing was asked, so there is nothing to judge."""
    return {}


@dataclass(frozen=True)
class Evaluation:
    """One of the evaluations."""

    name: EvaluationName
    describes: str
    """A sentence for the report."""
    headline: tuple[str, ...]
    """Names of the measure that stands for it; the first that a dataset has."""
    rankings: tuple[str, ...]
    """Ranking measures beside those of `evaluate.cutoffs`, as ir_measures writes them."""
    measures: tuple[Measure, ...] = ()
    """Measures of the LLM's replies."""
    ask: Callable[[Question], Ask | None] = no_ask
    judge: Callable[[Question, Reply], dict[str, Value]] = no_values
    """Values by name of the measure."""
    template: Callable[[TaskSpec], PromptTemplate | None] = own_template
    arrange: Callable[[Sequence[Passage]], list[str]] = best_first
    whole_passages: bool = False
    """True: a passage that does not fit is left out whole; else it loses its end."""
    uses_shots: bool = False
    """True: the task's worked examples stand before the prompt."""
    relevance: Literal["positives", "same_answer"] = "positives"
    """The relevant passages are the known positives, or the worked examples with the query's own answer."""
    has_history: bool = False
    """True: candidates are in order of time, so that recency is a retriever."""

    @property
    def judged_by(self) -> str:
        """The measure that says whether a training has bettered the rankings: NDCG, or else the first headline."""
        return next((name for name in self.rankings if name.startswith("nDCG")), self.headline[0])


def weigh_tokens(question: Question, reply: Reply) -> dict[str, Value]:
    """Perplexity of the first output: its mean negative log-likelihood, weighted by its tokens."""
    return {PERPLEXITY.name: (-reply.likelihoods[0], float(reply.tokens[0]))}


def score_answer(question: Question) -> Ask:
    """Score the desired output, write nothing."""
    return Ask(question.query, [question.answers[0]])
