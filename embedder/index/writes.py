"""Which documents of a collection were written or deleted, and what the corpus holds under their names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from embedder.errors import BundleError
from embedder.index.documents import BY_NAME, DocumentName, row_named
from embedder.index.manifest import REMEDY
from embedder.storage.arrow_files import open_arrow

WRITES = pa.schema([("id", pa.string()), ("dataset", pa.string()), ("replaced", pa.string())])
"""A row for each document whose writes have counted, with the fields of `Write`."""


class Write(NamedTuple):
    """A document was written or deleted."""

    replaced: str | None
    """Digest of what the corpus holds under the name; None: nothing."""


class StoredWrites:
    """The writes that a collection on disk holds."""

    def __init__(self, table: pa.Table) -> None:
        """Take a table of WRITES in the order of id and dataset."""
        self.table = table
        self._ids: pa.Array = table["id"].combine_chunks()

    @classmethod
    def open(cls, path: Path) -> StoredWrites:
        """Map the file of a collection, which has none where nothing was ever written.

        Raises:
            BundleError: it is damaged.
        """
        if not path.exists():
            return cls(WRITES.empty_table())
        try:
            return cls(open_arrow(path, WRITES).read_all())
        except (OSError, pa.ArrowException) as error:
            raise BundleError(f"{path}: not readable ({error}); {REMEDY}") from error

    def find(self, name: DocumentName) -> Write | None:
        """The write of a document."""
        row = row_named(self._ids, self.table["dataset"], name)
        return None if row is None else Write(self.table["replaced"][row].as_py())

    def updated(self, later: Mapping[DocumentName, Write]) -> pa.Table:
        """These writes and later ones, each document once; a table of WRITES in the order of id and dataset."""
        if not later:
            return self.table
        columns = zip(*((*name, *write) for name, write in later.items()), strict=True)
        new = pa.table([pa.array(column, field.type) for column, field in zip(columns, WRITES, strict=True)], WRITES)
        # An anti join and not a dictionary of all writes, of which there may be millions.
        kept = self.table.join(new.select(["id", "dataset"]), ["id", "dataset"], join_type="left anti")
        return pa.concat_tables([kept, new]).sort_by(BY_NAME).combine_chunks()


def write_writes(table: pa.Table, path: Path) -> None:
    """Write the file that `StoredWrites.open` maps; none for an empty table."""
    if table.num_rows:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, WRITES) as writer:
            writer.write_table(table)
