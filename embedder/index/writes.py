"""What was written to a collection, and when: it lets another version of the index find what it is missing.

Of two writes of a document the later one counts, in whichever version it was made. So they can be replayed in any
order, again, and across any number of versions. A document that was never written in the other version is replaced
only where it still is what the first write found; otherwise its corpus is newer than that, and it stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from embedder.errors import BundleError
from embedder.index.documents import BY_NAME, DocumentName, Row, row_named
from embedder.index.manifest import REMEDY
from embedder.storage.arrow_files import open_arrow

WRITES = pa.schema(
    [("id", pa.string()), ("dataset", pa.string()), ("written_ns", pa.int64()), ("replaced", pa.string())]
)
"""A row for each document that was ever written or deleted, with the fields of `Write`."""


class Write(NamedTuple):
    """The last write of a document."""

    written_ns: int
    """Since 1970; within a collection each write's is larger than that of all before it."""
    replaced: str | None
    """Digest of what the first write of the document found; None: there was nothing."""


@dataclass(frozen=True)
class Change:
    """A document as its last write left it, to be replayed in another version."""

    name: DocumentName
    row: Row | None
    """None: deleted."""
    write: Write

    @property
    def after(self) -> str | None:
        """Digest of what there is then; None: nothing."""
        return None if self.row is None else self.row.digest


class StoredWrites:
    """The writes that a collection on disk holds."""

    def __init__(self, table: pa.Table) -> None:
        """Take a table of WRITES in the order of id and dataset."""
        self.table = table
        self._ids: pa.Array = table["id"].combine_chunks()
        latest = pc.max(table["written_ns"]).as_py()
        self.latest_ns: int = latest or 0

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
        if row is None:
            return None
        return Write(self.table["written_ns"][row].as_py(), self.table["replaced"][row].as_py())

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


def lacking(there: pa.Table, here: pa.Table) -> list[DocumentName]:
    """Documents whose last write there is later than here, or that were never written here, sorted.

    Both are tables of WRITES, in any order.
    """
    known = here.select(["id", "dataset", "written_ns"]).rename_columns(["id", "dataset", "known_ns"])
    joined = there.join(known, ["id", "dataset"])
    joined = joined.filter(pc.less(pc.fill_null(joined["known_ns"], -1), joined["written_ns"])).sort_by(BY_NAME)
    return list(zip(joined["id"].to_pylist(), joined["dataset"].to_pylist(), strict=True))
