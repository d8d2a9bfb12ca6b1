"""Filters on metadata, in the vocabulary of Qdrant: must, should and must_not of conditions.

    {"must": [{"key": "language", "match": {"value": "en"}}, {"key": "year", "range": {"gte": 2020}}],
     "must_not": [{"key": "tags", "match": {"any": ["draft", "old"]}}, {"is_empty": {"key": "author"}}]}

A condition on a field is true for a document with at least one value of that field that fits; without the field it
fits `is_empty` alone. Texts are compared by code point, so that ISO dates of one time zone can be compared too.

A field within objects is named by its path, `author.name`. A list stands for each of its values: `authors.name` is the
name of any author, and so is `authors[].name`, as Qdrant writes it. Two conditions may be met by two authors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from embedder.data.metadata import DATASET_FIELD, ID_FIELD, MAX_PATH, POSITION, Kind, Number, Scalar, Text, kind_of
from embedder.index.documents import DocumentId
from embedder.index.sent import Sent

MAX_DEPTH = 8
"""Filters within filters."""
MAX_CLAUSES = 256
"""Conditions and nested filters together, counted over the whole filter."""
MAX_VALUES = 1024
"""Values of one `any` or `except`."""
MAX_ALL_VALUES = 4096
"""Values of all conditions together."""

Bound = Annotated[
    Annotated[Number, Tag("number")] | Annotated[Text, Tag("text")],
    Discriminator(
        lambda value: "text" if isinstance(value, str) else "number" if isinstance(value, int | float) else None,
        custom_error_type="value_type",
        custom_error_message="a bound is a number or a text",
    ),
]
ValueList = Annotated[list[Scalar], Field(max_length=MAX_VALUES, fail_fast=True)]
Rows = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]


class _Part(Sent):
    model_config = ConfigDict(frozen=True)


class Match(_Part):
    """Exactly one of: equal to `value`, one of `any`, none of `except`."""

    value: Scalar | None = None
    any: ValueList | None = None
    except_: ValueList | None = Field(default=None, alias="except")

    @model_validator(mode="after")
    def exactly_one(self) -> Match:
        """Refuse none and several."""
        if sum(part is not None for part in (self.value, self.any, self.except_)) != 1:
            raise ValueError("give exactly one of value, any, except")
        return self

    @property
    def values(self) -> list[Scalar]:
        """Those of which a document needs one, or for `except` must have none."""
        return (self.any or self.except_ or []) if self.value is None else [self.value]


class Range(_Part):
    """Bounds of one kind, all of which hold."""

    gt: Bound | None = None
    gte: Bound | None = None
    lt: Bound | None = None
    lte: Bound | None = None

    @model_validator(mode="after")
    def one_kind(self) -> Range:
        """Refuse no bound, and bounds that cannot be compared."""
        kinds = {kind_of(bound) for bound in (self.gt, self.gte, self.lt, self.lte) if bound is not None}
        if len(kinds) != 1:
            raise ValueError("give one or more of gt, gte, lt, lte, all numbers or all texts")
        return self

    @property
    def kind(self) -> Kind:
        return next(kind_of(bound) for bound in (self.gt, self.gte, self.lt, self.lte) if bound is not None)

    def holds(self, value: Any) -> bool:  # noqa: ANN401 - comparable with the bounds, being of their kind
        """Compare a value, of the kind of the bounds, with them."""
        return (
            (self.gt is None or value > self.gt)
            and (self.gte is None or value >= self.gte)
            and (self.lt is None or value < self.lt)
            and (self.lte is None or value <= self.lte)
        )


def _path(key: str) -> str:
    """The path of a field, as metadata names it."""
    path = key.replace("[]", "")
    if position := POSITION.search(path):
        raise ValueError(f"{position[0]}: a list cannot be asked for one position; [] stands for all of them")
    if not path:
        raise ValueError("no field is named")
    return path


Key = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PATH), AfterValidator(_path)]
"""The path of a field of the metadata, such as `author.name`; `[]` after a list may be left out."""


class Condition(_Part):
    """What one field must hold; `dataset` is a field too, and `id` is, beside one of that name in the metadata."""

    key: Key
    match: Match | None = None
    range: Range | None = None

    @model_validator(mode="after")
    def exactly_one(self) -> Condition:
        """Refuse none and both."""
        if (self.match is None) == (self.range is None):
            raise ValueError("give exactly one of match, range")
        return self

    @model_validator(mode="after")
    def names_are_texts(self) -> Condition:
        """Refuse a condition on a document's name that none could fit."""
        if self.key in (ID_FIELD, DATASET_FIELD):
            values = [] if self.match is None else self.match.values
            is_number = self.range is not None and self.range.kind == "number"
            if is_number or any(isinstance(value, bool | float) for value in values):
                raise ValueError(f"{self.key} is a text; give a text to compare it with")
        return self

    @property
    def num_values(self) -> int:
        return len(self.match.values) if self.match else 0


class NamedField(_Part):
    """A field of the metadata."""

    key: Key


class IsEmpty(_Part):
    """A field without any value. Null, an empty list and no such field are the same here, and both names mean it."""

    is_empty: NamedField | None = None
    is_null: NamedField | None = None

    @model_validator(mode="after")
    def exactly_one(self) -> IsEmpty:
        """Refuse none and both."""
        if (self.is_empty is None) == (self.is_null is None):
            raise ValueError("give exactly one of is_empty, is_null")
        return self

    @property
    def key(self) -> str:
        return next(field.key for field in (self.is_empty, self.is_null) if field is not None)

    @property
    def num_values(self) -> int:
        return 0


class HasId(_Part):
    """The id of the document itself, in whatever dataset."""

    has_id: Annotated[list[DocumentId], Field(max_length=MAX_VALUES, fail_fast=True)]

    @property
    def num_values(self) -> int:
        return len(self.has_id)


def _as_list(given: object) -> object:
    return [given] if isinstance(given, dict) else given


BRANCHES = {"condition": {"key", "match", "range"}, "empty": {"is_empty", "is_null"}, "id": {"has_id"}}
"""Fields by which a part of a filter is told."""


def _branch(part: object) -> str:
    """The branch of a part of a filter, so that an error speaks of the one that was meant."""
    if isinstance(part, dict):
        return next((branch for branch, names in BRANCHES.items() if part.keys() & names), "filter")
    if isinstance(part, Condition):
        return "condition"
    return "empty" if isinstance(part, IsEmpty) else "id" if isinstance(part, HasId) else "filter"


Parts = Annotated[
    list[
        Annotated[
            Annotated[Condition, Tag("condition")]
            | Annotated[IsEmpty, Tag("empty")]
            | Annotated[HasId, Tag("id")]
            | Annotated["Filter", Tag("filter")],
            Discriminator(_branch),
        ]
    ],
    Field(max_length=MAX_CLAUSES, fail_fast=True),
    BeforeValidator(_as_list),
]
"""Conditions and filters; a single one may stand without a list."""


class Filter(_Part):
    """True where all of `must`, at least one of `should` (if there are any) and none of `must_not` are."""

    must: Parts = Field(default_factory=list)
    should: Parts = Field(default_factory=list)
    must_not: Parts = Field(default_factory=list)

    @model_validator(mode="after")
    def within_limits(self) -> Filter:
        """Refuse a filter that is too deep or too long to be answered quickly."""
        if self.depth > MAX_DEPTH:
            raise ValueError(f"filters are nested {self.depth} deep; at most {MAX_DEPTH}")
        if self.clauses > MAX_CLAUSES:
            raise ValueError(f"the filter has {self.clauses} clauses; at most {MAX_CLAUSES}")
        if self.num_values > MAX_ALL_VALUES:
            raise ValueError(f"the filter has {self.num_values} values; at most {MAX_ALL_VALUES}")
        return self

    @property
    def parts(self) -> list[Part]:
        """All conditions and filters right within it."""
        return [*self.must, *self.should, *self.must_not]

    @property
    def depth(self) -> int:
        """1 without filters within it."""
        return 1 + max((part.depth for part in self.parts if isinstance(part, Filter)), default=0)

    @property
    def clauses(self) -> int:
        """Conditions and filters at all depths."""
        return sum(1 + (part.clauses if isinstance(part, Filter) else 0) for part in self.parts)

    @property
    def num_values(self) -> int:
        """Values of the conditions at all depths."""
        return sum(part.num_values for part in self.parts)


Part = Condition | IsEmpty | HasId | Filter


class FieldIndex(Protocol):
    """The rows of each value: the collection on disk and the memtable have one each."""

    @property
    def num_rows(self) -> int:
        """Rows that a mask covers."""

    def equal(self, field: str, value: Scalar) -> Rows:
        """Rows with that value."""

    def between(self, field: str, bounds: Range) -> Rows:
        """Rows with a value within the bounds."""

    def having(self, field: str) -> Rows:
        """Rows with any value of that field."""

    def identified(self, document_id: str) -> Rows:
        """Rows of the documents of that id."""


def matching(wanted: Filter, fields: FieldIndex) -> Mask:
    """A mask of the rows that fit a filter."""
    mask = np.ones(fields.num_rows, dtype=np.bool_)
    # One mask for all conditions of a kind: with a mask each, 256 of them would fill the memory of as many.
    marked = np.empty_like(mask)

    def fitting_any(parts: Sequence[Part]) -> Mask:
        marked[:] = False
        for part in parts:
            _mark(part, fields, marked)
        return marked

    for part in wanted.must:
        mask &= fitting_any([part])
    if wanted.should:
        mask &= fitting_any(wanted.should)
    if wanted.must_not:
        mask &= ~fitting_any(wanted.must_not)
    return mask


def equals(field: str, value: Scalar) -> Filter:
    """The filter for documents whose field has that value."""
    return Filter(must=[Condition(key=field, match=Match(value=value))])


def both(own: Filter | None, wanted: Filter | None) -> Filter | None:
    """A client's filter with conditions of ours, which all stand in `must`; None always holds."""
    if own is None or wanted is None:
        return own or wanted
    # Beside the client's `must`, which hold whatever stands in `should` and `must_not`: around them the filter would be
    # one deeper than it may be. Not validated, because the limits are for what a client sends.
    return wanted.model_copy(update={"must": [*own.must, *wanted.must]})


def _mark(part: Part, fields: FieldIndex, mask: Mask) -> None:
    """Set the rows that fit a part of a filter, and leave the others as they are."""
    if isinstance(part, Filter):
        mask |= matching(part, fields)
    elif isinstance(part, HasId):
        for document_id in part.has_id:
            mask[fields.identified(document_id)] = True
    elif isinstance(part, IsEmpty):
        fitting = np.ones_like(mask)
        fitting[fields.having(part.key)] = False
        mask |= fitting
    elif part.range is not None:
        mask[fields.between(part.key, part.range)] = True
    elif part.match is not None and part.match.except_ is not None:
        fitting = np.zeros_like(mask)
        fitting[fields.having(part.key)] = True
        for value in part.match.except_:
            fitting[fields.equal(part.key, value)] = False
        mask |= fitting
    elif part.match is not None:
        for value in part.match.values:
            mask[fields.equal(part.key, value)] = True
