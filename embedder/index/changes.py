"""What was written to a collection, told so that it can be written to another version of the index.

A change names what stood there before. Where the other version has just that, the change is made; where it has anything
else, its corpus is newer or somebody has written there, and it stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedder.index.collection import Collection
from embedder.index.documents import PAYLOAD, DocumentName, Row
from embedder.index.fresh import FreshView

ROWS_AT_ONCE = 65_536
"""Whose texts are compared together."""


@dataclass(frozen=True)
class Change:
    """A document that was written, or deleted."""

    name: DocumentName
    row: Row | None
    """None: deleted."""
    before: str | None
    """Digest of what is to be replaced; None: there must be nothing."""

    @property
    def after(self) -> str | None:
        """Digest of what there is then; None: nothing."""
        return None if self.row is None else self.row.digest


Known = Mapping[DocumentName, str | None]
"""Digests of documents as another version has been told of them; None: as deleted, or as never there."""


def changes_since(bundled: Collection, base: Collection, view: FreshView, known: Known) -> list[Change]:
    """What there is now and was not in the bundle, or not as it is known; sorted by name."""
    stored = np.ones(base.info.rows, dtype=np.bool_) if view.stored is None else view.stored
    fresh = view.take(pa.array(np.flatnonzero(view.live)))
    if base is bundled:  # the rows that are left are the same
        pairs = _differences(fresh, bundled.payload.filter(pa.array(~stored)))
    else:
        pairs = _differences(pa.concat_tables([base.payload.filter(pa.array(stored)), fresh]), bundled.payload)
    found = {name: Change(name, row, known.get(name, old and old.digest)) for name, row, old in pairs}
    for name in known.keys() - found.keys():
        # As the bundle has it, or as absent as there; what is known may be neither.
        place = bundled.row_of(name)
        found[name] = Change(name, None if place is None else bundled.row(place), known[name])
    return sorted((one for one in found.values() if one.after != one.before), key=lambda one: one.name)


def _differences(live: pa.Table, bundled: pa.Table) -> Iterator[tuple[DocumentName, Row | None, Row | None]]:
    """Name, row now and row of the bundle, wherever these are not the same."""
    places = _numbered(live, "now").join(_numbered(bundled, "then"), ["id", "dataset"], join_type="full outer")
    for first in range(0, places.num_rows, ROWS_AT_ONCE):
        part = places.slice(first, ROWS_AT_ONCE).combine_chunks()
        now, then = (table.take(part[side]) for table, side in ((live, "now"), (bundled, "then")))
        same = [_same(now[name], then[name]) for name in ("id", "text", "title", "metadata")]
        other = np.flatnonzero(~np.logical_and.reduce(same))
        pairs = zip(_rows(now.take(pa.array(other))), _rows(then.take(pa.array(other))), strict=True)
        for row, old in pairs:
            named = row or old
            assert named is not None, "the join gives at least one of both"
            yield (named.id, named.dataset), row, old


def _numbered(payload: pa.Table, name: str) -> pa.Table:
    return payload.select(["id", "dataset"]).append_column(name, pa.array(np.arange(payload.num_rows)))


def _same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> np.ndarray:
    equal = pc.fill_null(pc.equal(one, other), False)
    same: np.ndarray = pc.or_(equal, pc.and_(pc.is_null(one), pc.is_null(other))).to_numpy()
    return same


def _rows(payload: pa.Table) -> Iterator[Row | None]:
    """Row by row; None where a row number was null."""
    for values in zip(*(payload[name].to_pylist() for name in PAYLOAD.names), strict=True):
        yield None if values[0] is None else Row(*values)
