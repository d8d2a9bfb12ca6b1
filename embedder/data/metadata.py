"""Metadata of a passage: the kinds of values it may hold, within limits, and how it is written down."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict, TypeAdapter, ValidationError

DATASET_FIELD = "dataset"
"""Can be filtered by like a field of the metadata."""

MAX_FIELDS_EACH = 64
"""Fields of one passage's metadata."""

LARGEST_INTEGER = 2**53
"""Beyond it neighbours are equal as float64, in which numbers are compared."""


def _exact(value: object) -> object:
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise ValueError(f"integers beyond 2**53 cannot be compared exactly; give {value} as a text")
    return value


def _one_kind(values: list[Scalar]) -> list[Scalar]:
    if len({kind_of(value) for value in values}) > 1:
        raise ValueError("a list holds values of one kind")
    return values


def _not_reserved(name: str) -> str:
    if name == DATASET_FIELD:
        raise ValueError(f"{DATASET_FIELD!r} is a field of its own; name this one differently")
    return name


Kind = Literal["text", "number", "boolean"]
Integer = Annotated[int, Strict()]
Number = Annotated[Integer | Annotated[float, Strict(), Field(allow_inf_nan=False)], BeforeValidator(_exact)]
Text = Annotated[str, Strict(), Field(max_length=1024)]
Scalar = Annotated[bool, Strict()] | Number | Text
FieldName = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_not_reserved)]
Values = Scalar | Annotated[list[Scalar], Field(max_length=256), AfterValidator(_one_kind)]
Metadata = Annotated[dict[FieldName, Values], Field(max_length=MAX_FIELDS_EACH)]


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
        location = ".".join(str(part) for part in ("metadata", *first["loc"]))
        raise ValueError(f"{location}: {first['msg']}") from error
    return json.dumps(checked, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
