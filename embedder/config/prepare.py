"""Settings of the job `prepare`: the sources and how much of each is kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from embedder.config.paths import AnyAbsolutePath, Section


class Source(Section):
    """One dataset to prepare."""

    task: str
    dataset: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the dataset within the run."""
    path: AnyAbsolutePath
    """layout, beir: a folder; reference: one JSON Lines file of training rows, or a folder (train, test, corpus)."""
    format: Literal["layout", "reference", "beir"] = "layout"
    corpus: AnyAbsolutePath | None = None
    """reference: the JSON Lines file whose lines `pos_index` counts; null: the folder's own, if there is one."""
    teacher_scores: bool = False
    """reference: keep the `teacher_scores` of the training rows, for `label.teacher: imported`. The candidates of
    such a row are its group as they stand; rows that name another `dataset` are left to other sources."""
    train_queries: int | None = Field(default=None, ge=0)
    """Rows of the training split that are kept (seeded choice); null keeps all."""
    test_queries: int | None = Field(default=None, ge=0)
    """The same for the test split."""
    dev_queries: int | None = Field(default=None, ge=0)
    """Rows of a dev split, cut from a fifth of the training rows (whole documents and conversations) where the source
    brings none; null: only one that the source brings."""
    passages: int | None = Field(default=None, ge=1)
    """Passages of the corpus that are kept besides those the kept queries name; null keeps all."""
    chunk_words: int = Field(default=96, ge=8)
    """lrlm: words of a chunk a long document is cut into."""
    history_chunks: int = Field(default=12, ge=2)
    """lrlm: earlier chunks among which candidates are looked for."""

    @model_validator(mode="after")
    def scores_have_a_format(self) -> Source:
        """Refuse scores of a format that has none."""
        if self.teacher_scores and self.format != "reference":
            raise ValueError(f"teacher_scores is true, but format is {self.format!r}; only `reference` has scores")
        return self


class PrepareConfig(Section):
    """Source files to checked rows."""

    sources: list[Source] = Field(min_length=1)
    max_rejected_share: float = Field(default=0.05, ge=0, le=1)
    """The job stops when a larger share of a dataset's rows is rejected."""
    seed: int = 0
