"""Data sets of the Hugging Face hub as files of this machine: plain files alone, never their scripts."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from embedder.config.prepare import HubRevision
from embedder.errors import DataError
from embedder.storage.fetched import local_copy
from embedder.storage.object_store import AnyPath

KINDS = ("parquet", "jsonl", "jsonl.gz", "ndjson", "json", "csv", "csv.gz", "tsv", "txt", "md", "rst", "html", "pdf")
"""Suffixes of the files that are fetched; a script is never among them."""


def source_copy(path: AnyPath | HubRevision) -> Path:
    """A file or folder of this machine with the content of a source.

    Raises:
        DataError: there is nothing, or store or hub do not answer or refuse.
    """
    return _fetched(path) if isinstance(path, HubRevision) else local_copy(path)


@cache
def _fetched(dataset: HubRevision) -> Path:
    """The snapshot of a data set in the cache of huggingface_hub; what is missing is downloaded, once a process."""
    # Here, because most sources do without, and a run file is checked in a second.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    inside = f"{dataset.folder}/" if dataset.folder else ""
    # The folder may be a single file.
    patterns = [f"{inside}*.{kind}" for kind in KINDS] + ([dataset.folder] if dataset.folder else [])
    try:
        folder = snapshot_download(
            dataset.name, repo_type="dataset", revision=dataset.revision, allow_patterns=patterns
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        raise DataError(
            f"{dataset}: the hub is out of reach (HF_HUB_OFFLINE, or no network) with no copy in its cache; download "
            "the data set where there is a network, and name its folder"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise DataError(f"{dataset}: the hub does not give it: {str(error).strip().splitlines()[-1]}") from error
    path = Path(folder, dataset.folder)
    if not path.exists():
        raise DataError(f"{dataset}: the data set has no {dataset.folder}, or no file of a kind that is read")
    return path
