"""An index that `index` built, opened and searched in this process, beside a service or without one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from embedder.config.paths import any_path
from embedder.errors import BundleError, ConfigError
from embedder.index.bundle import Manifest, bundle_encoder
from embedder.index.catalog import Catalog
from embedder.index.filters import Filter
from embedder.index.opened import OpenIndex
from embedder.index.results import Hit
from embedder.index.search_options import Mode, SearchOptions
from embedder.index.state_places import StatePlaces
from embedder.models.device import resolve_device
from embedder.models.encoder import TextEncoder, encode_prompted
from embedder.models.onnx import load_inference_encoder


class SearchableIndex:
    """A verified version of an index with its own encoder."""

    def __init__(self, index: OpenIndex, encoder: TextEncoder) -> None:
        self.index, self.encoder = index, encoder

    @property
    def documents(self) -> dict[str, int]:
        """The number of documents that the version was built from, by task; without tasks that have none."""
        return {task: count for task, count in self.index.manifest.collections.items() if count}

    def search(
        self,
        query: str,
        task: str | None = None,
        k: int = 10,
        mode: Mode = "dense",
        wanted: Mapping[str, object] | None = None,
    ) -> list[Hit]:
        """The `k` best documents, best first.

        Args:
            query: The query's text; it gets the instruction that the index was built with.
            task: None: the only task with documents.
            k: Hits at most.
            mode: By vectors, by words (BM25), or both fused.
            wanted: A filter on metadata, as the service takes it (docs/serving.md).

        Raises:
            ConfigError: there is no such task, or several have documents and none is named.
            ValueError: the filter or `k` is wrong.
            DataError: the index was built without words.
        """
        if task is None:
            task = self._only_task()
        if task not in self.index.manifest.tasks:
            raise ConfigError(f"the index has no task {task!r}; it has {', '.join(sorted(self.documents))}")
        chosen = None if wanted is None else Filter.model_validate(wanted)
        options = SearchOptions(k=k, mode=mode, filter=chosen)
        prompted = self.index.manifest.tasks[task].prompted("query", query)
        query_QD = None if mode == "lexical" else encode_prompted(self.encoder, [prompted])
        return self.index.search(task, options, query_QD, [query]).hits()[0]

    def _only_task(self) -> str:
        if len(self.documents) != 1:
            raise ConfigError(f"the index has documents of {', '.join(sorted(self.documents)) or 'no task'}; name one")
        return next(iter(self.documents))


def open_index(folder: str | Path, name: str = "live", gpus: float = 0) -> SearchableIndex:
    """Verify a version and open it, with what was written to it since.

    Args:
        folder: `indexes` of a run, here or in an object store (`s3://bucket/run/indexes`), or a single bundle.
        name: Alias or version, where it is the folder of a run.
        gpus: 0 encodes queries on the CPU.

    Raises:
        BundleError: nothing is there, or something is damaged or belongs elsewhere.
        ConfigError: there is no such version.
    """
    path = any_path(folder)
    if not path.is_dir():
        raise BundleError(f"{path}: no such folder; give `indexes` of a run, or a bundle")
    if isinstance(path, Path) and (path / Manifest.FILE).is_file():
        bundle, state = path, StatePlaces.beside(path)
    else:
        catalog = Catalog(path)
        version = catalog.resolve(name)
        bundle, state = catalog.here(version), catalog.state(version, name)
    index = OpenIndex.open(bundle, state)
    return SearchableIndex(index, load_inference_encoder(bundle_encoder(bundle, index.manifest), resolve_device(gpus)))
