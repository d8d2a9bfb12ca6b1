"""Settings of paths, types of paths and models, and the base class of all settings."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    model_validator,
)

from embedder.credentials import masked
from embedder.storage.object_store import AnyPath, ObjectPath


def _local(path: Path) -> Path:
    # A single slash, because Path has already folded the two of s3://bucket into one.
    if re.match(r"[a-z0-9]+:/", str(path)):
        raise ValueError("an object store cannot be used here; give a path that every node mounts")
    if "\0" in str(path):
        raise ValueError("a path holds no null byte")
    return Path(os.path.expanduser(path)).absolute()


def any_path(value: object) -> AnyPath:
    """A path as a run file gives it; an object store's by its URI.

    Raises:
        ValueError: it is no path.
    """
    if isinstance(value, ObjectPath):
        return value
    if not isinstance(value, (str, Path)):
        raise ValueError("give a path, or the URI of an object store such as s3://bucket/folder")
    text = str(value)
    if text.startswith("file:///"):
        return _local(Path(unquote(text.removeprefix("file://"))))
    return ObjectPath.parse(text) if "://" in text else _local(Path(text))


def _model(reference: str) -> str:
    if "://" in reference:
        store = ObjectPath.parse(reference).store
        if masked(store) != store:
            raise ValueError(
                "the URI of a model is shown in cards and reports, so it may hold no credentials; give the nodes a "
                "role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in their environment"
            )
    return reference


def printed_path(path: AnyPath) -> str:
    """A path as it is shown, without secrets."""
    return path.uri if isinstance(path, ObjectPath) else str(path)


AbsolutePath = Annotated[Path, AfterValidator(_local)]
"""A local path; a relative one is taken from the directory in which the job is started."""
AnyAbsolutePath = Annotated[AnyPath, PlainValidator(any_path), PlainSerializer(printed_path, when_used="json")]
"""A local path, or a URI such as `s3://bucket/folder` or `gs://bucket/folder`, which is printed without its secrets."""

ModelReference = Annotated[str, AfterValidator(_model), PlainSerializer(masked, when_used="json")]
"""A model folder here or in an object store (`s3://bucket/folder`), a hub name, or `package:NAME/FOLDER` for a model
inside an installed Python package (embedder.models.locate)."""

EncodingDtype = Literal["float32", "bfloat16", "int8"]
"""Number formats in which an encoder makes vectors."""

SUMMARY = "summary.json"
"""The file of a run that says what its training gained."""

Pooling = Literal["cls", "mean", "last"]
"""Token states of a model that become the vector."""


class Section(BaseModel):
    """Base of all settings: an unknown key is an error, nothing changes after loading, docstrings are descriptions.

    No number is NaN or infinite.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def no_boolean_for_a_number(cls, given: object) -> object:
        """Refuse true and false where a setting takes none: Python counts with them, so that `yes` would be 1."""
        for name, value in given.items() if isinstance(given, dict) else ():
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            field = cls.model_fields.get(name)
            if field is None or _takes_boolean(field.annotation):
                continue
            if any(isinstance(each, bool) for each in inner):
                raise ValueError(f"{name} is {str(value).lower()}; it takes no yes or no")
        return given


def _takes_boolean(annotation: object) -> bool:
    """Whether a boolean may stand in a value of this type; within a section, that section says."""
    if annotation in (bool, Any, object) or isinstance(annotation, bool):
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(map(_takes_boolean, get_args(annotation)))


class Paths(Section):
    """Places of a run's files."""

    work: AnyAbsolutePath
    """Folder of everything this run writes: one that all nodes see under this path, or one in an object store
    (`s3://bucket/run`), which every job and the service read and write themselves."""
    cache: AbsolutePath = Field(default=Path(".cache"), validate_default=True)
    """Folder of converted models, shared between runs; each node may have its own."""
    round: int = Field(default=1, ge=1, le=99)
    """Round of `mine`, `label` and `train`. From the second round on these jobs write to `rounds/NN/`, so that nothing
    of an earlier round is overwritten. `pipeline` counts it. For a job by hand set it together with `encoder.model`,
    the encoder of the round before."""

    @property
    def of_round(self) -> AnyPath:
        """Folder of what mine, label and train write in this round; prepared rows and vectors serve all rounds."""
        return self.work if self.round == 1 else self.work / "rounds" / f"{self.round:02d}"

    @property
    def corpus(self) -> AnyPath:
        """Checked passages, a folder a dataset."""
        return self.work / "prepared" / "corpus"

    @property
    def queries(self) -> AnyPath:
        """Checked queries, `SPLIT/DATASET.parquet`."""
        return self.work / "prepared" / "queries"

    @property
    def questions(self) -> AnyPath:
        """Questions of the LLM: drafts and checks in committed blocks, and which files of `queries` they became."""
        return self.work / "questions"

    @property
    def vectors(self) -> AnyPath:
        """Passage vectors, `MODEL_FINGERPRINT/DATASET/*.parquet`."""
        return self.work / "vectors"

    @property
    def rankings(self) -> AnyPath:
        """Rankings by words and by vectors, `SPLIT/DATASET/KIND-IDENTITY/*.parquet`."""
        return self.of_round / "rankings"

    @property
    def candidates(self) -> AnyPath:
        """Groups (a query with its candidates), `DATASET.parquet`."""
        return self.of_round / "candidates"

    @property
    def labelled(self) -> AnyPath:
        """Groups with rewards, in committed blocks."""
        return self.of_round / "labelled"

    @property
    def training(self) -> AnyPath:
        """Checkpoints of the trainer."""
        return self.of_round / "training"

    @property
    def model(self) -> AnyPath:
        """The trained encoder as a Hugging Face folder."""
        return self.of_round / "model"

    @property
    def reranker(self) -> AnyPath:
        """The cross-encoder that `label` trained as a teacher, for all rounds; its trainings lie beside it."""
        return self.work / "reranker" / "model"

    @property
    def control(self) -> AnyPath:
        """The encoder that was trained on shuffled rewards, as such a folder."""
        return self.of_round / "control"

    @property
    def done(self) -> AnyPath:
        """A mark for each stage that `pipeline` has done."""
        return self.of_round / "done"

    @property
    def indexes(self) -> AnyPath:
        """Versions of the index, their aliases, and what was written to them: what `serve` deploys."""
        return self.work / "indexes"

    @property
    def summary(self) -> AnyPath:
        """What `evaluate` found, a few numbers a task, for programs."""
        return self.work / SUMMARY

    @property
    def reports(self) -> AnyPath:
        """One JSON summary a job."""
        return self.of_round / "reports"
