"""What a key may use: some of the aliases, some of the tasks, and the documents with some metadata.

`where` is ANDed with the filter of every search. A document that is written with the key gets these fields, or is
refused where it has other values. It is stored under a dataset that its owner alone writes (`documents.OWNER`): what
others have under the same id and dataset is another document, and no answer tells that it is there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from embedder.data.metadata import DATASET_FIELD, MAX_FIELDS_EACH, paths_of, values_at
from embedder.index.documents import MAX_DATASET, Document, DocumentName, owned_dataset
from embedder.index.filters import Condition, Filter, Match, both
from embedder.index.metadata_change import MetadataChange
from embedder.index.results import StoredDocument
from serve.http_errors import ApiError

WORD = re.compile(r"[\w.:@/+-]{1,64}")
"""Fields and values of `where`: nothing that `owner` is joined with, so that no two scopes have one owner."""
MAX_OWNER = 128
"""Characters of all of `where`; what is left of a dataset's 256 is for its name."""

D = TypeVar("D", bound=StoredDocument)
W = TypeVar("W", bound=Document)


@dataclass(frozen=True)
class KeyScope:
    """The bounds of a key; None and no `where` are none."""

    indexes: frozenset[str] | None = None
    tasks: frozenset[str] | None = None
    where: dict[str, str] = field(default_factory=dict)

    @property
    def is_limited(self) -> bool:
        return self != UNLIMITED

    @property
    def owner(self) -> str:
        """The name of whoever owns what is written within `where`; the same for all keys with the same fields."""
        return ",".join(f"{name}={value}" for name, value in sorted(self.where.items()))

    @property
    def filter(self) -> Filter | None:
        """The filter that is always added."""
        conditions = [Condition(key=name, match=Match(value=value)) for name, value in sorted(self.where.items())]
        return Filter(must=conditions) if conditions else None

    def has_index(self, alias: str) -> bool:
        return self.indexes is None or alias in self.indexes

    def has_task(self, task: str) -> bool:
        return self.tasks is None or task in self.tasks

    def narrowed(self, wanted: Filter | None) -> Filter | None:
        """A request's filter and the scope's: both must hold."""
        return both(self.filter, wanted)

    def stored(self, documents: Sequence[W]) -> list[W]:
        """Documents as they are written: with the fields of the scope, under a dataset of its owner.

        Raises:
            ApiError: a document has another value in one of these fields, or no room for them.
        """
        return [self._stored(document, i) for i, document in enumerate(documents)] if self.where else list(documents)

    def _stored(self, document: W, number: int) -> W:
        dataset = document.dataset or self.where.get(DATASET_FIELD, "")
        metadata = dict(document.metadata)
        for name, value in self.where.items():
            is_dataset = name == DATASET_FIELD
            # No other value beside it: a document of several tenants would be written into the view of others. That
            # of `a.b` may stand under this name or within an object.
            if any(given != value for given in ([dataset] if is_dataset else values_at(document.metadata, name))):
                place = f"documents.{number}.{name}" if is_dataset else f"documents.{number}.metadata.{name}"
                raise ApiError(403, f"{place}: this key writes {value!r} there and nothing else", param="documents")
            if not is_dataset:
                metadata[name] = value
        if len(paths_of(metadata)) > MAX_FIELDS_EACH:
            own = sorted(metadata.keys() - document.metadata.keys())
            limit = f"at most {MAX_FIELDS_EACH} fields, with {own} of this key"
            raise ApiError(400, f"documents.{number}.metadata: {limit}", param="documents")
        stored = owned_dataset(dataset, self.owner)
        if len(stored) > MAX_DATASET:
            longest = MAX_DATASET - len(owned_dataset("", self.owner))
            raise ApiError(
                400, f"documents.{number}.dataset: at most {longest} characters with this key", param="documents"
            )
        return document.model_copy(update={"dataset": stored, "metadata": metadata})

    def stored_names(self, names: Sequence[DocumentName]) -> list[DocumentName]:
        """The names under which documents of a scope may be stored: its owner's, and the one of an unlimited key."""
        default = self.where.get(DATASET_FIELD, "")
        pairs = [(document_id, dataset or default) for document_id, dataset in names]
        return [
            (document_id, stored)
            for document_id, dataset in dict.fromkeys(pairs)
            for stored in dict.fromkeys((owned_dataset(dataset, self.owner), dataset))
        ]

    def shown(self, document: D) -> D:
        """A document, or hit, under the dataset that was written."""
        own = owned_dataset("", self.owner)
        return replace(document, dataset=document.dataset.removesuffix(own)) if own else document

    def changed(self, change: MetadataChange) -> MetadataChange:
        """A change after which documents still have the fields of the scope.

        Raises:
            ApiError: it gives one of these fields another value, or removes it.
        """
        fields = {name: value for name, value in self.where.items() if name != DATASET_FIELD}
        for name, value in fields.items():
            # The field itself, and the objects that may hold it.
            removed = [part for part in change.remove if _holds(part, name)]
            replaced = [part for part in change.set if _holds(part, name)]
            if removed or (replaced and values_at(change.set, name) != [value]):
                part = "remove" if removed else f"set.{replaced[0]}"
                raise ApiError(403, f"{part}: this key leaves {value!r} in {name!r}", param=part.partition(".")[0])
        return replace(change, set={**change.set, **fields}) if change.overwrite else change


def _holds(part: str, path: str) -> bool:
    """Tell whether a field of metadata is the one that a path names, or an object on the way to it."""
    return path == part or path.startswith(f"{part}.")


UNLIMITED = KeyScope()
