"""A change of documents' metadata, which leaves text and vector as they are: nothing is encoded for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from embedder.data.metadata import metadata_json
from embedder.errors import DataError
from embedder.index.documents import Row


@dataclass(frozen=True)
class MetadataChange:
    """Fields that are set and fields that are removed; the others stay, or go where all is overwritten."""

    set: Mapping[str, Any] = field(default_factory=dict)
    """Values that `data.metadata.Metadata` takes."""
    remove: Sequence[str] = ()
    overwrite: bool = False

    def applied(self, row: Row) -> Row:
        """The row with its new metadata.

        Raises:
            DataError: it would have too many fields or characters.
        """
        old = {} if self.overwrite else json.loads(row.metadata or "{}")
        for path in [*self.remove, *self.set]:
            old = without(old, path)
        try:
            return row._replace(metadata=metadata_json({**old, **self.set}))
        except ValueError as error:
            raise DataError(f"document {row.id!r:.200}: {error}; nothing was written") from error


def without(value: Any, path: str) -> Any:  # noqa: ANN401 - whatever JSON can say
    """Metadata without a field, which filters and this name by its path; of a list in each of its values."""
    if isinstance(value, list):
        return [without(each, path) for each in value]
    if not isinstance(value, dict):
        return value
    first, _, rest = path.partition(".")
    kept = {name: inner for name, inner in value.items() if name != path and not name.startswith(f"{path}.")}
    return {name: without(inner, rest) if name == first and rest else inner for name, inner in kept.items()}
