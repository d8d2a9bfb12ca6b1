"""The documents of a task in some shards: operations are made of what is there, and applied in the order of the log.

Making changes nothing: what was made counts when it is applied, here and wherever the log is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedder.data.metadata import paths_of
from embedder.errors import ConfigError, DataError
from embedder.index.bundle import shard_of
from embedder.index.collection import CollectionIdentity
from embedder.index.documents import DocumentName, Row
from embedder.index.exact import Vectors
from embedder.index.filters import Filter
from embedder.index.memtable import Memtable, MemtableView
from embedder.index.metadata_change import MetadataChange
from embedder.index.metadata_index import fitting_rows
from embedder.index.operations import VECTOR, Waiting, deletions, writes
from embedder.index.shard import Shard

MAX_FIELDS = 1024
"""Different fields of the metadata in a collection."""


class ShardFolders(NamedTuple):
    """The folders of one shard."""

    bundled: Path
    generations: Path


class Made(NamedTuple):
    """Operations that do something to so many documents; None: they are as they should be."""

    documents: int
    operations: pa.Table | None


class OpenShards:
    """Some shards by their numbers; the caller keeps threads apart."""

    def __init__(self, folders: Mapping[int, ShardFolders], identity: CollectionIdentity, space: str, end: int) -> None:
        """Open the shards, whose identity is this one but for the number; the log ends at `end`.

        Raises:
            BundleError: a file is missing or damaged, or belongs elsewhere.
        """
        self._identity, self._space = identity, space
        self.by_number = {
            number: Shard(*folder, identity.model_copy(update={"shard": number}), space, end)
            for number, folder in folders.items()
        }

    @property
    def compacted(self) -> int:
        """The commit up to which all shards are compacted."""
        return min((shard.number for shard in self.by_number.values()), default=0)

    @property
    def memtables(self) -> list[Memtable]:
        return [shard.memtable for shard in self.by_number.values()]

    def views(self) -> list[MemtableView]:
        """All there is at this moment, by shard."""
        return [memtable.view() for memtable in self.memtables]

    def waiting(self) -> list[tuple[DocumentName, Waiting]]:
        """The writes that have no vector for this version yet."""
        return [one for memtable in self.memtables for one in memtable.waiting.items()]

    def found(self, names: Sequence[DocumentName]) -> list[tuple[Row, Vectors]]:
        """Those of the documents that are there, with their vectors (D,).

        Raises:
            ConfigError: a document's shard is not open here.
        """
        tables = [(self._memtable(name), name) for name in names]
        return [(row, table.vector(name)) for table, name in tables if (row := table.row(name)) is not None]

    def apply(self, operations: pa.Table, known: int) -> None:
        """Take in operations that follow commit `known`, or those of a snapshot that reaches further."""
        # Of a snapshot a part is known; the vector of an earlier write is always new.
        later = pc.greater(operations["number"], known)
        operations = operations.filter(pc.or_(pc.equal(operations["kind"], VECTOR), later))
        shards = [shard_of(document_id, self._identity.num_shards) for document_id in operations["id"].to_pylist()]
        for number, shard in self.by_number.items():
            shard.apply(operations.filter(pa.array(np.equal(shards, number), pa.bool_())))

    def written(self, rows: Sequence[Row], vector_PD: Vectors) -> pa.Table:
        """Operations that write rows with their vectors.

        Raises:
            ConfigError: a document's shard is not open here.
            DataError: a vector has another width or holds a value that is not finite, or there are too many fields.
        """
        vector_PD = np.ascontiguousarray(vector_PD, dtype=np.float32)
        if vector_PD.shape != (len(rows), self._identity.dimension) or not np.isfinite(vector_PD).all():
            raise DataError(
                f"{len(rows)} documents with vectors of shape {vector_PD.shape}: each needs one of width "
                f"{self._identity.dimension} with finite values; nothing was written"
            )
        known = [memtable.fields for memtable in self.memtables]
        fields = set[str]().union(*known, *(paths_of(json.loads(row.metadata)) for row in rows if row.metadata))
        if len(fields) > MAX_FIELDS:
            raise DataError(f"metadata with {len(fields)} different fields; at most {MAX_FIELDS}; nothing was written")
        return writes(rows, vector_PD, self._replaced([(row.id, row.dataset) for row in rows]), self._space)

    def deleted(self, names: Sequence[DocumentName], within: Mapping[str, str] | None, wanted: Filter | None) -> Made:
        """Operations that remove those of the documents that belong to `within` and fit a filter.

        Raises:
            ConfigError: a document's shard is not open here.
        """
        present = self._present(names, within, wanted)
        return Made(len(present), deletions(present, self._replaced(present)) if present else None)

    def changed(
        self,
        names: Sequence[DocumentName],
        change: MetadataChange,
        within: Mapping[str, str] | None,
        wanted: Filter | None,
    ) -> Made:
        """Operations that change the metadata of those of the documents that belong to `within` and fit a filter.

        Raises:
            ConfigError: a document's shard is not open here.
            DataError: one would have too many fields, or waits for its vector.
        """
        present = self._present(names, within, wanted)
        rows: list[Row] = []
        vector_PD: list[Vectors] = []
        for name in present:
            memtable = self._memtable(name)
            row = memtable.latest(name)
            if row is None or (new := change.applied(row)) == row:
                continue
            if name in memtable.waiting:
                raise DataError(f"document {row.id!r:.200} is being encoded for this version; try again in a moment")
            rows.append(new)
            vector_PD.append(memtable.vector(name))
        return Made(len(present), self.written(rows, np.stack(vector_PD)) if rows else None)

    def _present(
        self, names: Sequence[DocumentName], within: Mapping[str, str] | None, wanted: Filter | None
    ) -> list[DocumentName]:
        """Those of the documents that are there, belong to `within` and fit a filter."""
        present = [name for name in dict.fromkeys(names) if self._memtable(name).holds(name, within)]
        if wanted is None:
            return present
        rows = [row for name in present if (row := self._memtable(name).latest(name)) is not None]
        return [name for name, is_kept in zip(present, fitting_rows(wanted, rows), strict=True) if is_kept]

    def _replaced(self, names: Sequence[DocumentName]) -> list[str | None]:
        return [self._memtable(name).replaced(name) for name in names]

    def _memtable(self, name: DocumentName) -> Memtable:
        shard = shard_of(name[0], self._identity.num_shards)
        if shard not in self.by_number:
            raise ConfigError(
                f"shard {shard} of task {self._identity.task!r} is not open here; there are {sorted(self.by_number)}"
            )
        return self.by_number[shard].memtable
