"""Settings of the job `prepare`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from embedder.config.paths import AnyAbsolutePath, Section


class Source(Section):
    """A dataset to prepare."""

    task: str
    """Task of the dataset: a built-in one, or one of `tasks`."""
    dataset: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the dataset within the run; files are named after it."""
    path: AnyAbsolutePath
    """Where the dataset lies. Formats `layout` and `beir`: a folder. Format `reference`: a JSON Lines file of training
    rows, or a folder with train, test and corpus."""
    format: Literal["layout", "reference", "beir"] = "layout"
    """Format of the files: `layout` is ours (docs/data.md), `reference` that of the paper's released code, `beir` that
    of the BEIR benchmark."""
    corpus: AnyAbsolutePath | None = None
    """Format `reference` only: the JSON Lines file whose lines `pos_index` counts. null: the folder's own, if there is
    one."""
    teacher_scores: bool = False
    """Format `reference` only: keep the `teacher_scores` of the training rows, for `label.teacher: imported`. The
    candidates of such a row become its group as they are; rows that name another `dataset` are left out."""
    train_queries: int | None = Field(default=None, ge=0)
    """Rows of the training split that are kept (seeded choice). null: all."""
    test_queries: int | None = Field(default=None, ge=0)
    """Rows of the test split that are kept (seeded choice). null: all."""
    dev_queries: int | None = Field(default=None, ge=0)
    """Rows of the dev split. A source without one gets it from a fifth of its training rows, by whole documents and
    conversations. null: only what the source has."""
    passages: int | None = Field(default=None, ge=1)
    """Passages of the corpus that are kept besides those that the kept queries name. null: all."""
    chunk_words: int = Field(default=48, ge=8)
    """Task `lrlm` only: words of a chunk of a long document; characters where a script has no spaces. Query and
    candidate together are `recent_chunks` + 3 chunks, which are to fit into `llm.max_prefix_tokens` (docs/data.md)."""
    recent_chunks: int = Field(default=4, ge=0)
    """Task `lrlm` only: chunks before the one that asks which belong to the query too, as one text. The LLM always
    reads them; the encoder keeps their end (`tasks.lrlm.query_cut`). 0: one chunk alone, whose candidates are the text
    just before it, so that little but recency is measured."""
    history_chunks: int = Field(default=48, ge=2)
    """Task `lrlm` only: chunks among which the candidates of a query are sought, the latest that end before it."""

    @property
    def query_limits(self) -> dict[str, int | None]:
        """Rows that are kept of each split; None: all."""
        return {"train": self.train_queries, "dev": self.dev_queries, "test": self.test_queries}

    @model_validator(mode="after")
    def scores_have_a_format(self) -> Source:
        """Refuse scores of a format that has none."""
        if self.teacher_scores and self.format != "reference":
            raise ValueError(f"teacher_scores is true, but format is {self.format!r}; only `reference` has scores")
        return self


class PrepareConfig(Section):
    """The datasets of the run, and how much of them is kept."""

    sources: list[Source] = Field(min_length=1)
    """The datasets."""
    max_rejected_share: float = Field(default=0.05, ge=0, le=1)
    """The job stops when a larger share of a dataset's rows is rejected as unusable, or every row of a file."""
    seed: int = 0
    """Seed of all choices of rows."""
