"""Settings of the job `questions`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from embedder.config.paths import Section

KindName = Literal["fact", "reason", "keywords", "request", "two_passages"]
"""The kinds of questions that an LLM is asked to write."""


class WorkedQuestion(Section):
    """A question as you would have it written, which the LLM reads before it writes its own."""

    kind: KindName
    """Kind of question that it is an example of."""
    passages: list[str] = Field(min_length=1, max_length=2)
    """The passage, or both of them for `two_passages`."""
    query: str = Field(min_length=1)
    """The question."""
    output: str = Field(min_length=1)
    """What the LLM is to answer to it."""

    @model_validator(mode="after")
    def passages_fit(self) -> WorkedQuestion:
        """Refuse an example with another number of passages than its kind has."""
        needed = 2 if self.kind == "two_passages" else 1
        if len(self.passages) != needed:
            raise ValueError(f"an example of kind {self.kind!r} has {needed} passages, not {len(self.passages)}")
        return self


class QuestionsConfig(Section):
    """Questions that the LLM writes for datasets without training queries. The actors are those of `label`."""

    passages: int = Field(default=300, ge=1)
    """Passages of each dataset for which questions are written, spread over its clusters; one of each kind for each."""
    kinds: list[KindName] | None = Field(default=None, min_length=1)
    """Kinds of questions. `fact`: answered in a few words. `reason`: how or why. `keywords`: words typed into a search.
    `request`: what somebody wants done, for tools. `two_passages`: needs two passages. null: by the task, `request` for
    `tool`, `fact` and `reason` for `convsearch`, `fact`, `reason`, `keywords` and `two_passages` for the others."""
    examples: list[WorkedQuestion] = Field(default=[])
    """Examples of your own in place of the built-in ones of their kind; two or three of a kind, in the language of the
    documents. There are built-in ones in English, German, French and Spanish, chosen by each passage's language."""
    num_samples: int = Field(default=4, ge=1)
    """Questions that are sampled of each kind for a passage. The one is kept whose output the passage makes likelier
    than the others."""
    max_tokens: int = Field(default=64, ge=16)
    """Tokens of a question and its output."""
    temperature: float = Field(default=0.7, gt=0)
    """Temperature of the sampling."""
    top_k: int = Field(default=50, ge=1)
    """Sampling draws from so many of the likeliest tokens."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Sampling draws from the likeliest tokens whose probabilities sum to this, within `top_k`."""
    least_words: int = Field(default=24, ge=1)
    """Words that a passage has at least; about shorter ones there is little to ask."""
    copied_words: int = Field(default=8, ge=2)
    """A question with so many words in a row of its passage is dropped as a copy."""
    min_gain: float = Field(default=0.5, ge=0)
    """Log-likelihood of the output (nats a token) that the passage must add to what the LLM knows without one."""
    min_second_gain: float = Field(default=0.1, ge=0)
    """Log-likelihood that both passages of `two_passages` must add to the better one alone."""
    other_passages: int = Field(default=3, ge=0)
    """Other passages that BM25 finds for a question, those above its own first. The question is dropped if one of them
    makes the output as likely. 0: none is looked at."""
    found_within: int = Field(default=20, ge=1, le=100)
    """BM25 must find the passage among so many for the question; one that names nothing of its passage, such as "who
    was the first of the two?", could be about any."""
    duplicate_overlap: float = Field(default=0.8, gt=0, le=1)
    """A question whose words overlap those of an earlier one by this share (Jaccard) is dropped."""
    test_share: float = Field(default=0.2, ge=0, lt=1)
    """Share of the passages whose questions are kept as test queries, where a dataset has neither dev nor test queries
    of its own."""
    block_rows: int = Field(default=8, ge=1)
    """Passages and kinds that are committed together. A kill costs at most this many of each actor."""
    seed: int = 0
    """Seed of the choice of passages, of the sampling and of the test queries."""
