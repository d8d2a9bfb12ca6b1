"""FAISS indexes by factory string: the choice by size, training on a bounded sample, search parameters, GPU.

A collection keeps its vectors once, in a memory-mapped flat index. An approximate index beside it shares them: HNSW has
them as its storage, and exact refinement (`,RFlat`) reads its candidates' vectors there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from embedder.config.index import SearchParameters
from embedder.errors import BundleError, ConfigError, DeviceError
from embedder.index.exact import Vectors
from embedder.index.manifest import REMEDY

swig: Any = faiss
"""FAISS's type stubs lack some classes, and all keyword arguments."""

FLAT_ROWS = 50_000
"""Up to here exact search takes a few milliseconds at most."""
REFINED = re.compile(r",R(efine\()?Flat\)?$")
TRAINING_ROWS = 262_144
"""Vectors that an index is trained on at most: a seeded sample."""
LEAST_PER_CENTROID = 39
"""FAISS calls fewer too few."""
LEAST_CENTROIDS = 256
"""Product quantisation to 8 bits has so many centroids."""
ROWS_AT_ONCE = 65_536
ALIGNMENT = 64
"""Of the vectors in a file, in bytes: a line of the cache."""
MOST_CACHED = 64
"""Parameter sets that are kept in FAISS's form."""
DEFAULTS = SearchParameters(nprobe=128, ef_search=128, k_factor=20)


def choose_factory(factory: str, rows: int, dimension: int) -> str:
    """The factory string of a collection of that size, where it says `auto`.

    Small: exact. Larger: IVF with about 4 sqrt(rows) cells, product quantisation to 4 bits for each 4 dimensions in the
    layout of fast scans, and exact refinement.
    """
    if factory != "auto":
        return factory
    codes = next((parts for parts in (dimension // 4, dimension // 2) if parts and dimension % parts == 0), None)
    if rows <= FLAT_ROWS or codes is None:
        return "Flat"
    cells = 2 ** round(np.log2(4 * np.sqrt(rows)))
    return f"IVF{cells},PQ{codes}x4fs,RFlat"


def empty_vectors(rows: int, dimension: int) -> tuple[faiss.IndexFlat, Vectors]:
    """A flat index of that many vectors, and a view of them to be filled in."""
    flat = faiss.IndexFlatIP(dimension)
    # Filled through a view instead of `add`, which would need the vectors a second time in memory.
    flat.codes.resize(rows * dimension * 4)
    flat.ntotal = rows
    return flat, vectors_of(flat)


def vectors_of(flat: faiss.IndexFlat) -> Vectors:
    """The vectors (P, D) of a flat index, without a copy; valid as long as the index is."""
    shape = (flat.ntotal, flat.d)
    if not flat.ntotal:
        return np.empty(shape, dtype=np.float32)
    view: Vectors = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(shape)
    return view


def check_faiss_gpu() -> None:
    """Refuse to build on a GPU with a FAISS that cannot.

    Raises:
        DeviceError: it is built for CPUs, or finds no GPU.
    """
    if not faiss.get_num_gpus():
        raise DeviceError(
            f"index.gpus_per_shard asks for a GPU, but FAISS {faiss.__version__} finds none: install faiss-gpu for the "
            "driver's CUDA in place of faiss-cpu, or set it to 0"
        )


def build_approximate(flat: faiss.IndexFlat, factory: str, *, on_gpu: bool = False) -> faiss.Index | None:
    """The index of a factory string over the vectors of a flat one, trained and filled.

    None for `Flat` itself, and where there are too few vectors to train on: these are searched exactly. `on_gpu`: the
    process was given GPUs, and its cells are trained there.

    Raises:
        ConfigError: FAISS does not know the factory string, or cannot train it.
    """
    base = REFINED.sub("", factory)
    if base == "Flat":
        return None
    vectors = vectors_of(flat)
    try:
        index = faiss.index_factory(flat.d, base, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            if flat.ntotal < _least_rows(index):
                return None
            _train(index, vectors, on_gpu=on_gpu)
        for first in range(0, len(vectors), ROWS_AT_ONCE):
            index.add(vectors[first : first + ROWS_AT_ONCE])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        raise ConfigError(f"index.factory {factory!r} with {flat.ntotal} vectors: {reason}") from error
    return index if flat.ntotal else None


def _least_rows(index: faiss.Index) -> int:
    """Vectors that k-means needs, for the cells and for 8-bit codes, where FAISS would warn."""
    inverted = faiss.try_extract_index_ivf(index)
    cells = 0 if inverted is None else inverted.nlist
    return int(LEAST_PER_CENTROID * max(cells, LEAST_CENTROIDS))


def _train(index: faiss.Index, vectors: Vectors, *, on_gpu: bool) -> None:
    """Train on a seeded sample."""
    sample = vectors
    if len(vectors) > TRAINING_ROWS:
        rows = np.random.default_rng(0).choice(len(vectors), TRAINING_ROWS, replace=False)
        sample = vectors[np.sort(rows)]
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None:
        # A quarter of FAISS's own 256, and so a quarter of the time of k-means.
        inverted.cp.max_points_per_centroid = 64
        if on_gpu:
            # On all that the process sees, which are those it was given.
            inverted.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(inverted.d))
    index.train(sample)


def save_approximate(index: faiss.Index, path: Path) -> None:
    """Write an index; HNSW over flat vectors without them, since the collection has them already."""
    flag = faiss.IO_FLAG_SKIP_STORAGE if isinstance(index, faiss.IndexHNSWFlat) else 0
    with path.open("wb") as file:
        # Through Python's file, because FAISS's own ignores that the disk is full when it closes: half an index would
        # count as a whole one.
        swig.write_index(index, swig.PyCallbackIOWriter(file.write), flag)


def save_flat(flat: faiss.IndexFlat, path: Path) -> None:
    """Write a flat index behind zeros, so that its vectors stand where matrix products want them.

    Right behind FAISS's header of 45 bytes they would not even begin at a whole number, and NumPy would copy them all
    for every search.
    """
    with path.open("wb") as file:
        file.write(bytes(_padding()))
        faiss.write_index(flat, swig.PyCallbackIOWriter(file.write))


def _padding() -> int:
    """Bytes before a flat index that bring its vectors to a multiple of ALIGNMENT."""
    return -len(faiss.serialize_index(faiss.IndexFlatIP(1))) % ALIGNMENT


def open_index(path: Path) -> faiss.Index:
    """Memory-map an index whose hash the caller has checked; kinds that cannot be mapped are read.

    Raises:
        BundleError: FAISS cannot read it.
    """
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise _unreadable(path, error) from error


def open_flat(path: Path) -> faiss.IndexFlat:
    """The same for the flat index of a collection's vectors, as `save_flat` writes it.

    Raises:
        BundleError: FAISS cannot read it, or it is another index.
    """
    try:
        content = np.memmap(path, dtype=np.uint8, mode="r")[_padding() :]
        index = faiss.read_index(swig.ZeroCopyIOReader(faiss.swig_ptr(content), len(content)))
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(index, faiss.IndexFlatIP):
        raise BundleError(f"{path}: a {type(index).__name__}, not the vectors of a collection; {REMEDY}")
    # The index reads from the mapped memory without owning it: the map must live as long.
    swig.add_to_referenced_objects(index, content)
    return index


def _unreadable(path: Path, error: Exception) -> BundleError:
    return BundleError(f"{path}: not readable ({' '.join(str(error).split())[-200:]}); {REMEDY}")


class ApproximateIndex:
    """An index beside the flat vectors of a collection: search with parameters and, where it can, with a filter."""

    def __init__(self, index: faiss.Index, flat: faiss.IndexFlat, factory: str) -> None:
        if (index.d, index.ntotal) != (flat.d, flat.ntotal):
            raise BundleError(
                f"an index of {index.ntotal} vectors of width {index.d} beside {flat.ntotal} of width {flat.d}; "
                f"{REMEDY}"
            )
        if isinstance(index, faiss.IndexHNSWFlat):
            index.storage = flat
        self._parts = (index, flat)
        """FAISS does not keep alive what an index refers to."""
        self._refined = REFINED.search(factory) is not None
        self.index = faiss.IndexRefine(index, flat) if self._refined else index
        # Kept, because each is a chain of SWIG objects, which are slow to make.
        self._unfiltered: dict[SearchParameters, Any] = {}
        self.filters = self._takes_filters()

    def search(
        self, query_QD: Vectors, k: int, parameters: SearchParameters, allowed: NDArray[np.uint8] | None = None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Scores and rows (Q, k) in FAISS's order, -1 where nothing was found; `allowed` holds a bit for each row."""
        selector = None if allowed is None else swig.IDSelectorBitmap(allowed)
        settings = self._unfiltered.get(parameters) if selector is None else None
        if settings is None:
            settings = _faiss_parameters(self.index, parameters, selector)
            if selector is None and len(self._unfiltered) < MOST_CACHED:
                self._unfiltered[parameters] = settings
        score_QK, row_QK = self.index.search(query_QD, k, params=settings)
        return score_QK, row_QK

    def _takes_filters(self) -> bool:
        """Asked of the index itself: some kinds, such as PQ without IVF, refuse them."""
        try:
            everything = np.full((self.index.ntotal + 7) // 8, 255, dtype=np.uint8)
            self.search(vectors_of(self._parts[1])[:1], 1, DEFAULTS, everything)
        except RuntimeError:
            return False
        return True


def _faiss_parameters(index: faiss.Index, parameters: SearchParameters, selector: faiss.IDSelector | None) -> Any:  # noqa: ANN401 - a class of FAISS
    """Parameters in the class that an index of this kind wants."""
    match index:
        case faiss.IndexRefine():
            base = _faiss_parameters(faiss.downcast_index(index.base_index), parameters, selector)
            return swig.IndexRefineSearchParameters(k_factor=parameters.k_factor, base_index_params=base)
        case faiss.IndexPreTransform():
            inner = _faiss_parameters(faiss.downcast_index(index.index), parameters, selector)
            return swig.SearchParametersPreTransform(index_params=inner)
        case faiss.IndexIVF():
            return swig.SearchParametersIVF(nprobe=min(parameters.nprobe or 1, index.nlist), sel=selector)
        case swig.IndexHNSW():
            return swig.SearchParametersHNSW(efSearch=parameters.ef_search, sel=selector)
        case _:
            return None if selector is None else swig.SearchParameters(sel=selector)
