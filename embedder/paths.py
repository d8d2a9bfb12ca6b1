"""Where a run keeps its files, and what every section of a run file has in common."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def _local(path: Path) -> Path:
    if re.match(r"[a-z0-9]+:/", str(path)):
        raise ValueError("object stores are not supported yet; give a path that every node mounts")
    return Path(os.path.expanduser(path)).absolute()


AbsolutePath = Annotated[Path, AfterValidator(_local)]
"""A local path; a relative one is taken from the directory the job is started in."""


class Section(BaseModel):
    """Base of all sections: unknown keys are errors and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Paths(Section):
    """Where a run keeps its files; on a cluster both must be on storage that every node mounts."""

    work: AbsolutePath
    """Folder of everything this run writes."""
    cache: AbsolutePath = Path(".cache").absolute()
    """Folder of converted models, shared between runs."""

    @property
    def corpus(self) -> Path:
        """Checked passages, a folder a dataset."""
        return self.work / "prepared" / "corpus"

    @property
    def queries(self) -> Path:
        """Checked queries, `SPLIT/DATASET.parquet`."""
        return self.work / "prepared" / "queries"

    @property
    def vectors(self) -> Path:
        """Passage vectors, `MODEL_FINGERPRINT/DATASET/*.parquet`."""
        return self.work / "vectors"

    @property
    def candidates(self) -> Path:
        """Groups (a query with its candidates), `DATASET.parquet`."""
        return self.work / "candidates"

    @property
    def labelled(self) -> Path:
        """Groups with rewards, in committed blocks."""
        return self.work / "labelled"

    @property
    def training(self) -> Path:
        """Checkpoints of the trainer."""
        return self.work / "training"

    @property
    def model(self) -> Path:
        """The trained encoder as a Hugging Face folder."""
        return self.work / "model"

    @property
    def bundle(self) -> Path:
        """What `serve` deploys."""
        return self.work / "bundle"

    @property
    def reports(self) -> Path:
        """One JSON summary a job."""
        return self.work / "reports"
