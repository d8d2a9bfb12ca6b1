"""Metadata of a passage: the kinds of values it may hold, within limits, and how it is written down."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Strict,
    Tag,
    TypeAdapter,
    ValidationError,
)

DATASET_FIELD, ID_FIELD = "dataset", "id"
"""Can be filtered by like fields of the metadata."""

MAX_FIELDS_EACH = 64
"""Fields of one passage's metadata."""

LARGEST_INTEGER = 2**53
"""Beyond it neighbours are equal as float64, in which numbers are compared."""
MAX_METADATA = 65_536
"""Characters of a passage's metadata, written down as JSON."""


def _exact(value: object) -> object:
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        shown = str(value) if abs(value) < 10**40 else "it"
        raise ValueError(f"integers beyond 2**53 cannot be compared exactly; give {shown} as a text")
    return value


def _one_kind(values: list[Scalar]) -> list[Scalar]:
    if len({kind_of(value) for value in values}) > 1:
        raise ValueError("a list holds values of one kind")
    return values


def _not_reserved(name: str) -> str:
    if name == DATASET_FIELD:
        raise ValueError(f"{DATASET_FIELD!r} is a field of its own; name this one differently")
    return name


def without_nulls(fields: object) -> object:
    """Leave out the fields that are null: a field without a value is one that is not there."""
    return {name: value for name, value in fields.items() if value is not None} if isinstance(fields, dict) else fields


def _not_too_long(fields: dict[str, Scalar | list[Scalar]]) -> dict[str, Scalar | list[Scalar]]:
    if (length := len(json.dumps(fields, ensure_ascii=False))) > MAX_METADATA:
        raise ValueError(f"{length} characters as JSON; at most {MAX_METADATA}")
    return fields


def _tag(value: object) -> str | None:
    """The branch of a union that a value can belong to: the others would only complain."""
    return kind_of(value) if isinstance(value, bool | int | float | str) else None


Kind = Literal["text", "number", "boolean"]
Integer = Annotated[int, Strict()]
Number = Annotated[Integer | Annotated[float, Strict(), Field(allow_inf_nan=False)], BeforeValidator(_exact)]
Text = Annotated[str, Strict(), Field(max_length=1024)]
Scalar = Annotated[
    Annotated[bool, Strict(), Tag("boolean")] | Annotated[Number, Tag("number")] | Annotated[Text, Tag("text")],
    Discriminator(
        _tag, custom_error_type="value_type", custom_error_message="a value is a text, a number or a boolean"
    ),
]
FieldName = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_not_reserved)]
Values = Annotated[
    Annotated[Scalar, Tag("scalar")]
    | Annotated[list[Scalar], Field(max_length=256, fail_fast=True), AfterValidator(_one_kind), Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list) else "scalar"),
]
Metadata = Annotated[
    dict[FieldName, Values],
    Field(max_length=MAX_FIELDS_EACH, fail_fast=True),
    BeforeValidator(without_nulls),
    AfterValidator(_not_too_long),
]


_METADATA: TypeAdapter[dict[str, Scalar | list[Scalar]]] = TypeAdapter(Metadata)


def kind_of(value: Scalar) -> Kind:
    """The kind of a value."""
    # First, because a bool is an int too.
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "number"


def metadata_json(value: object) -> str | None:
    """A document's metadata as the payload keeps it; None where there is none.

    Raises:
        ValueError: it is no object of texts, numbers, booleans and lists of them, or exceeds a limit.
    """
    if value is None or value == {}:
        return None
    try:
        checked = _METADATA.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        # The field, and positions in its list; what stands between them are tags of ours.
        steps = [part for i, part in enumerate(first["loc"]) if i == 0 or isinstance(part, int)]
        location = ".".join(map(str, ["metadata", *steps]))
        raise ValueError(f"{location}: {first['msg']}") from error
    return written_down(checked)


def written_down(fields: Metadata) -> str | None:
    """Metadata that has been checked as the payload keeps it; None where there is none."""
    return json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":")) if fields else None
