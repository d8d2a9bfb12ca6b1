"""One collection of a shard on disk: vectors, payload, metadata and words of a task's documents. It never changes.

    collection.json      CollectionInfo
    vectors.faiss        a flat index: row i is the vector of row i of the payload
    approximate.faiss    the index of the factory string beside it, where that is not Flat
    payload.arrow        documents.PAYLOAD in the order of id and dataset
    metadata.arrow       metadata.METADATA
    lexical/             BM25 of the texts
    writes.arrow         writes.WRITES; absent where nothing was written since the corpus was indexed

All is memory-mapped, so that replicas on one machine share it. Needs no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from embedder.config.index import BuildSettings, SearchParameters
from embedder.errors import BundleError, DataError
from embedder.hashing import file_sha256
from embedder.index.documents import BY_NAME, PAYLOAD, DocumentName, Row, first_after, row_named
from embedder.index.exact import Ranked, Vectors, exact_search
from embedder.index.faiss_index import (
    DEFAULTS,
    ApproximateIndex,
    build_approximate,
    choose_factory,
    open_flat,
    open_index,
    save_approximate,
    save_flat,
    vectors_of,
)
from embedder.index.filters import Mask
from embedder.index.lexical import StoredWords, write_lexical
from embedder.index.manifest import REMEDY, HashedManifest, hash_files
from embedder.index.metadata_index import StoredMetadata, write_metadata
from embedder.index.writes import WRITES, StoredWrites, write_writes
from embedder.storage.arrow_files import open_arrow

EXACT_ROWS = 20_000
"""A filter that leaves fewer rows is answered exactly: an approximate index would pass too many of them by."""


class CollectionIdentity(BaseModel):
    """What a collection belongs to; one that belongs elsewhere is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    shard: int
    num_shards: int
    encoder_fingerprint: str
    """Content hash of the model the vectors were made with."""
    dimension: int


class CollectionInfo(HashedManifest):
    """What a collection is, and what its files must hash to."""

    FILE: ClassVar[str] = "collection.json"

    # To be raised too when `embedder.words` splits texts in another way: queries would miss words that are stored.
    format: Literal[4] = 4
    identity: CollectionIdentity
    generation: int
    """The commit up to which it holds what was written; 0 as it comes in a bundle."""
    rows: int
    factory: str
    """The factory string as built, never `auto`."""
    settings: BuildSettings
    mean_words: float
    """The mean number of words of a text, for BM25."""

    def hashed_files(self, folder: Path, bundle: Path) -> dict[str, str]:
        """SHA-256 of every file of the collection in a folder, this one too, by its name inside the bundle."""
        inside = folder.relative_to(bundle).as_posix()
        files = {f"{inside}/{name}": digest for name, digest in self.files.items()}
        return {**files, f"{inside}/{self.FILE}": file_sha256(folder / self.FILE)}


class History(NamedTuple):
    """What happened to a collection before it was written."""

    generation: int
    """The commit up to which it holds what was written; 0 as it comes in a bundle."""
    writes: pa.Table
    """A table of WRITES."""


NO_HISTORY = History(0, WRITES.empty_table())


def write_collection(  # noqa: PLR0913  (what it is made of, and where its cells are trained)
    folder: Path,
    payload: pa.Table,
    flat: faiss.IndexFlat,
    identity: CollectionIdentity,
    settings: BuildSettings,
    history: History = NO_HISTORY,
    *,
    on_gpu: bool = False,
) -> CollectionInfo:
    """Build and write a collection into an existing folder; needs memory for this collection alone.

    The rows must be in the order of id and dataset, and row i of the payload must belong to vector i.

    Raises:
        ConfigError: FAISS cannot build the factory string.
        DataError: two rows have the same id and dataset.
        BundleError: payload and vectors do not belong together.
    """
    if (flat.ntotal, flat.d) != (payload.num_rows, identity.dimension):
        raise BundleError(
            f"{flat.ntotal} vectors of width {flat.d}, but {payload.num_rows} rows of width {identity.dimension}; "
            "they must match row by row"
        )
    _check_names(payload)
    payload = payload.cast(PAYLOAD).combine_chunks()
    factory = choose_factory(settings.factory, payload.num_rows, identity.dimension)
    approximate = build_approximate(flat, factory, on_gpu=on_gpu)
    save_flat(flat, folder / "vectors.faiss")
    if approximate is not None:
        save_approximate(approximate, folder / "approximate.faiss")
    with pa.OSFile(str(folder / "payload.arrow"), "wb") as sink, pa.ipc.new_file(sink, PAYLOAD) as writer:
        writer.write_table(payload)
    write_metadata(payload, folder / "metadata.arrow")
    write_writes(history.writes, folder / "writes.arrow")
    texts = payload["text"].to_pylist() if settings.lexical else []
    info = CollectionInfo(
        identity=identity,
        generation=history.generation,
        rows=payload.num_rows,
        factory=factory if approximate is not None else "Flat",
        settings=settings,
        mean_words=write_lexical(texts, folder / "lexical"),
        files=hash_files(folder),
    )
    # Last, because a folder without this file counts as unfinished.
    info.write(folder)
    return info


def _check_names(payload: pa.Table) -> None:
    order = pc.sort_indices(payload, sort_keys=BY_NAME).to_numpy()
    if not np.array_equal(order, np.arange(len(order))):
        raise BundleError("the rows of a collection must be in the order of id and dataset")
    names = (
        payload.select(["id", "dataset"]).group_by(["id", "dataset"], use_threads=False).aggregate([([], "count_all")])
    )
    if names.num_rows < payload.num_rows:
        twice = names.filter(pc.field("count_all") > 1).to_pylist()[0]
        raise DataError(
            f"dataset {twice['dataset']!r}: {twice['count_all']} passages have the id {twice['id']!r}; "
            "give each an id of its own and run `python -m ray_jobs.prepare` again"
        )


class Collection:
    """A collection that is searched."""

    def __init__(self, folder: Path, info: CollectionInfo) -> None:
        self.folder, self.info = folder, info
        self._flat = open_flat(folder / "vectors.faiss")
        try:
            self.payload: pa.Table = open_arrow(folder / "payload.arrow", PAYLOAD).read_all()
        except (OSError, pa.ArrowException) as error:
            raise BundleError(f"{folder / 'payload.arrow'}: not readable ({error}); {REMEDY}") from error
        held = (self._flat.d, self._flat.ntotal, self.payload.num_rows)
        if held != (info.identity.dimension, info.rows, info.rows):
            raise BundleError(
                f"{folder}: {self._flat.ntotal} vectors of width {self._flat.d} and {self.payload.num_rows} rows, but "
                f"the manifest says {info.rows} rows of width {info.identity.dimension}; {REMEDY}"
            )
        self.vectors: Vectors = vectors_of(self._flat)
        self._ids: pa.Array = self.payload["id"].combine_chunks()
        self.metadata = StoredMetadata(folder / "metadata.arrow", info.rows, self._ids)
        self.words = StoredWords(folder / "lexical", info.rows, info.mean_words)
        self.writes = StoredWrites.open(folder / "writes.arrow")
        self.defaults = info.settings.search.over(DEFAULTS)
        self._approximate: ApproximateIndex | None = None
        if info.factory != "Flat":
            self._approximate = ApproximateIndex(open_index(folder / "approximate.faiss"), self._flat, info.factory)
        # At last: of a folder that is removed meanwhile, files that need not be there would be taken for none.
        for name in info.files:
            if not (folder / name).exists():
                raise BundleError(f"{folder / name}: missing; {REMEDY}")

    @classmethod
    def load(cls, folder: Path, identity: CollectionIdentity, *, check: bool) -> Collection:
        """Open a collection; with `check` its files are hashed first, which the verification of a bundle does already.

        Raises:
            BundleError: a file is missing, altered or not readable, or it is of another task, shard or model.
        """
        info = CollectionInfo.read(folder)
        for name, value in identity.model_dump().items():
            if getattr(info.identity, name) != value:
                raise BundleError(f"{folder}: {name} is {getattr(info.identity, name)!r}, not {value!r}; {REMEDY}")
        if check:
            info.check_files(folder)
        return cls(folder, info)

    def row_of(self, name: DocumentName) -> int | None:
        """The row of a document, found by binary search; None: there is none of that name."""
        return row_named(self._ids, self.payload["dataset"], name)

    def first_after(self, name: DocumentName) -> int:
        """The first row that comes after a name, which need not be there."""
        return first_after(self._ids, self.payload["dataset"], name)

    def row(self, position: int) -> Row:
        """The document of a row."""
        return Row(*(self.payload[name][position].as_py() for name in PAYLOAD.names))

    def rank(self, query_QD: Vectors, k: int, parameters: SearchParameters, allowed: Mask | None = None) -> Ranked:
        """The k best of the allowed rows (all by default); exactly min(k, allowed) of them, whatever the index."""
        parameters = parameters.over(self.defaults)
        available = self.info.rows if allowed is None else int(np.count_nonzero(allowed))
        index = self._approximate
        if (
            index is None
            or parameters.exact
            or (allowed is not None and not (index.filters and available > EXACT_ROWS))
        ):
            return exact_search(query_QD, self.vectors, k, allowed)
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        if allowed is not None and parameters.nprobe is not None:
            # Where fewer rows are allowed, the k best of them are spread over more cells.
            wider = min(4.0, self.info.rows / available)
            parameters = parameters.model_copy(update={"nprobe": int(parameters.nprobe * wider)})
        ranked = _in_order(*index.search(query_QD, k, parameters, bits))
        # An approximate index may visit too few cells to find k rows, above all with a filter; k were promised.
        short = np.flatnonzero((ranked.row_QK >= 0).sum(axis=1) < min(k, available))
        if len(short):
            exact = exact_search(query_QD[short], self.vectors, k, allowed)
            ranked.score_QK[short], ranked.row_QK[short] = exact.score_QK, exact.row_QK
        return ranked


def _in_order(score_QK: Vectors, row_QK: NDArray[np.int64]) -> Ranked:
    """FAISS's results with ties by row."""
    # FAISS promises no order of ties; ours is by row, which is by id.
    if ((score_QK[:, 1:] == score_QK[:, :-1]) & (row_QK[:, 1:] >= 0)).any():
        order = np.lexsort((row_QK, -score_QK), axis=-1)
        return Ranked(np.take_along_axis(score_QK, order, axis=1), np.take_along_axis(row_QK, order, axis=1))
    return Ranked(score_QK, row_QK)


def sort_by_name(payload: pa.Table) -> NDArray[np.int64]:
    """The order in which a collection keeps its rows."""
    order: NDArray[np.int64] = pc.sort_indices(payload, sort_keys=BY_NAME).to_numpy().astype(np.int64)
    return order
