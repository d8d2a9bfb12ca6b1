"""Settings of the job `prepare`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from embedder.config.paths import AnyAbsolutePath, ModelReference, Section, any_path, printed_path
from embedder.storage.object_store import AnyPath

OF_DOCUMENTS = (
    *("files", "queries", "encoding", "text_columns", "title_column", "id_column"),
    *("chunk_tokens", "chunk_overlap", "tokenizer"),
)
"""Settings of a source that only the format `documents` has."""
HUB_URI = re.compile(r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?P<folder>/[^?#@]*)?")


@dataclass(frozen=True)
class HubRevision:
    """A data set of the Hugging Face hub, or a folder of one."""

    name: str
    """`owner/name`."""
    revision: str | None
    folder: str
    """Within the data set; empty: all of it."""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"hf://datasets/{self.name}{at}" + (f"/{self.folder}" if self.folder else "")


def _source_path(value: object) -> AnyPath | HubRevision:
    if isinstance(value, HubRevision):
        return value
    if not str(value).startswith("hf:"):
        return any_path(value)
    found = HUB_URI.fullmatch(str(value))
    if found is None:
        raise ValueError("give hf://datasets/owner/name, with @revision and /folder behind it where they are needed")
    folder = (found["folder"] or "").strip("/")
    if ".." in folder.split("/"):
        raise ValueError("a folder of a data set does not lead out of it")
    return HubRevision(found["name"], found["revision"], folder)


def _printed(path: AnyPath | HubRevision) -> str:
    return str(path) if isinstance(path, HubRevision) else printed_path(path)


SourcePath = Annotated[AnyPath | HubRevision, PlainValidator(_source_path), PlainSerializer(_printed, when_used="json")]
"""A local path, the URI of an object store, or a data set of the hub."""


class Source(Section):
    """A dataset to prepare."""

    task: str
    """Task of the dataset: a built-in one, or one of `tasks`."""
    dataset: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=128)
    """Name of the dataset within the run; files are named after it."""
    path: SourcePath
    """Where the dataset lies: a path, or `hf://datasets/owner/name@revision/folder` for a data set of the hub. Formats
    `layout` and `beir`: a folder. Format `reference`: a JSON Lines file of training rows, or a folder with train, test
    and corpus. Format `documents`: a file, or a folder with all that is in it."""
    format: Literal["layout", "reference", "beir", "documents"] = "layout"
    """Format of the files: `layout` is ours (docs/data.md), `reference` that of the paper's released code, `beir` that
    of the BEIR benchmark. `documents`: text, Markdown, HTML, PDF, source code, CSV, JSON Lines, Parquet, OpenAPI and
    lists of tools, cut into chunks (docs/documents.md)."""
    files: list[str] | None = None
    """Format `documents` only: files to read, as patterns such as `guide/*.md`, in which `*` stands for slashes too.
    null: all files of known kinds."""
    queries: AnyAbsolutePath | None = None
    """Format `documents` only: a folder with train.jsonl, dev.jsonl, test.jsonl. null: no queries, which is enough to
    index and search."""
    encoding: str = "utf-8"
    """Format `documents` only: encoding of text files without a byte order mark, such as `latin-1`."""
    text_columns: list[str] | None = Field(default=None, min_length=1)
    """Format `documents` only: columns of CSV, JSON Lines and Parquet that make the text. null: `text` or a name like
    it, or else all columns, a line each."""
    title_column: str | None = None
    """Format `documents` only: column of the title. null: `title`, where there is one."""
    id_column: str | None = None
    """Format `documents` only: column of the id. null: `id` or a name like it, where there is one."""
    chunk_tokens: int | None = Field(default=None, ge=16)
    """Format `documents` only: tokens of a chunk as the encoder reads it, with instruction and heading path. null:
    `encoder.max_tokens`, so that none is cut."""
    chunk_overlap: int = Field(default=32, ge=0)
    """Format `documents` only: tokens that a chunk repeats from the one before, at most, where a section is divided."""
    tokenizer: ModelReference | None = None
    """Format `documents` only: the model whose tokens are counted. null: `encoder.model`."""
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

    @model_validator(mode="after")
    def documents_have_settings(self) -> Source:
        """Refuse settings of documents for other formats, and those that no reader could follow."""
        given = [name for name in OF_DOCUMENTS if getattr(self, name) != Source.model_fields[name].default]
        if given and self.format != "documents":
            raise ValueError(f"{given[0]} is set, but format is {self.format!r}; only `documents` has it")
        if self.format == "documents" and self.corpus is not None:
            raise ValueError("corpus is set, but the documents of `path` are the corpus; leave it out")
        try:
            "".encode(self.encoding)
        except LookupError as error:
            raise ValueError(f"encoding is {self.encoding!r}, which is none that Python knows") from error
        return self


class PrepareConfig(Section):
    """The datasets of the run, and how much of them is kept."""

    sources: list[Source] = Field(min_length=1)
    """The datasets."""
    max_rejected_share: float = Field(default=0.05, ge=0, le=1)
    """The job stops when a larger share of a dataset's rows is rejected as unusable, or every row of a file."""
    seed: int = 0
    """Seed of all choices of rows."""
