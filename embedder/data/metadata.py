"""Metadata of a passage: the kinds of values it may hold, within limits, and how it is written down.

A field within an object is named by its path: `{"author": {"name": "Ada"}}` has the field `author.name`. A list stands
for each of its values, also where these are objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

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
from typing_extensions import TypeAliasType

DATASET_FIELD, ID_FIELD = "dataset", "id"
"""Can be filtered by like fields of the metadata."""

MAX_FIELDS_EACH = 64
"""Fields of one passage's metadata, those within its objects included."""
MAX_PATH = 128
"""Characters of a field's path."""
MAX_LEVELS = 8
"""Objects within each other, the metadata itself included."""
POSITION = re.compile(r"\[\d*\]")
"""What a path says of the values of a list. No name may hold it."""

LARGEST_INTEGER = 2**53
"""Beyond it neighbours are equal as float64, in which numbers are compared."""
MAX_METADATA = 65_536
"""Characters of a passage's metadata, written down as JSON."""


def _exact(value: object) -> object:
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        shown = str(value) if abs(value) < 10**40 else "it"
        raise ValueError(f"integers beyond 2**53 cannot be compared exactly; give {shown} as a text")
    return value


def _one_kind(values: list[Any]) -> list[Any]:
    if len({"object" if isinstance(value, dict) else kind_of(value) for value in values}) > 1:
        raise ValueError("a list holds values of one kind")
    return values


def _not_reserved(name: str) -> str:
    if name == DATASET_FIELD:
        raise ValueError(f"{DATASET_FIELD!r} is a field of its own; name this one differently")
    return name


def _without_position(name: str) -> str:
    if position := POSITION.search(name):
        raise ValueError(f"{position[0]} in a name could not be told from a list's values; name this field differently")
    return name


def without_nulls(fields: object) -> object:
    """Leave out the fields that are null: a field without a value is one that is not there."""
    return {name: value for name, value in fields.items() if value is not None} if isinstance(fields, dict) else fields


def _not_too_deep(fields: object) -> object:
    """Refuse what is too deep, level by level: what validates it calls itself for each."""
    levels, within = 0, [fields]
    while within := [one for one in within if isinstance(one, dict)]:
        levels += 1
        if levels > MAX_LEVELS:
            raise ValueError(f"objects are nested more than {MAX_LEVELS} deep")
        values = [value for one in within for value in one.values()]
        within = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return fields


def _within_limits(fields: dict[str, Any]) -> dict[str, Any]:
    if (length := len(json.dumps(fields, ensure_ascii=False))) > MAX_METADATA:
        raise ValueError(f"{length} characters as JSON; at most {MAX_METADATA}")
    if len(paths := paths_of(fields)) > MAX_FIELDS_EACH:
        raise ValueError(f"{len(paths)} fields, those within objects included; at most {MAX_FIELDS_EACH}")
    if (longest := max(map(len, paths), default=0)) > MAX_PATH:
        raise ValueError(f"the path of a field has {longest} characters; at most {MAX_PATH}")
    return fields


def _tag(value: object) -> str | None:
    """The branch of a union that a value can belong to: the others would only complain."""
    return kind_of(value) if isinstance(value, bool | int | float | str) else None


Kind = Literal["text", "number", "boolean", "object"]
"""An object is no value that could be asked for, but its field is not empty."""
Integer = Annotated[int, Strict()]
Number = Annotated[Integer | Annotated[float, Strict(), Field(allow_inf_nan=False)], BeforeValidator(_exact)]
Text = Annotated[str, Strict(), Field(max_length=1024)]
Scalar = Annotated[
    Annotated[bool, Strict(), Tag("boolean")] | Annotated[Number, Tag("number")] | Annotated[Text, Tag("text")],
    Discriminator(
        _tag, custom_error_type="value_type", custom_error_message="a value is a text, a number or a boolean"
    ),
]
InnerName = Annotated[str, Field(min_length=1, max_length=MAX_PATH), AfterValidator(_without_position)]
FieldName = Annotated[InnerName, AfterValidator(_not_reserved)]
Fields = TypeAliasType(
    "Fields",
    Annotated[
        dict[InnerName, "Values"], Field(max_length=MAX_FIELDS_EACH, fail_fast=True), BeforeValidator(without_nulls)
    ],
)
"""An object within the metadata."""
Value = Annotated[
    Annotated[Scalar, Tag("scalar")] | Annotated[Fields, Tag("object")],
    Discriminator(lambda value: "object" if isinstance(value, dict) else "scalar"),
]
Values = Annotated[
    Annotated[Value, Tag("one")]
    | Annotated[list[Value], Field(max_length=256, fail_fast=True), AfterValidator(_one_kind), Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list) else "one"),
]
Metadata = Annotated[
    dict[FieldName, Values],
    Field(max_length=MAX_FIELDS_EACH, fail_fast=True),
    BeforeValidator(without_nulls),
    BeforeValidator(_not_too_deep),
    AfterValidator(_within_limits),
]


_METADATA: TypeAdapter[dict[str, Any]] = TypeAdapter(Metadata)


def kind_of(value: Scalar) -> Kind:
    """The kind of a value."""
    # First, because a bool is an int too.
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "number"


def values_of(fields: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Kind, Scalar]]:
    """Every value of some metadata with the path and kind of its field; True for an object that holds any."""
    for name, value in fields.items():
        path = f"{within}{name}"
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, dict):
                yield path, kind_of(one), one
            elif inner := list(values_of(one, f"{path}.")):
                yield path, "object", True
                yield from inner


def paths_of(fields: Mapping[str, Any]) -> set[str]:
    """The paths of all fields that have a value."""
    return {path for path, _, _ in values_of(fields)}


def values_at(fields: Mapping[str, Any], path: str) -> list[Scalar]:
    """The values of one field, each once; True for objects."""
    # With their kinds, because True, 1 and 1.0 are equal.
    return [value for name, _, value in dict.fromkeys(values_of(fields)) if name == path]


def is_field_name(name: str) -> bool:
    """Tell whether metadata may have a field of that name."""
    return 0 < len(name) <= MAX_PATH and name != DATASET_FIELD and not POSITION.search(name)


def metadata_json(value: object) -> str | None:
    """A document's metadata as the payload keeps it; None where there is none.

    Raises:
        ValueError: it is no object of texts, numbers, booleans, objects and lists of them, or exceeds a limit.
    """
    if value is None or value == {}:
        return None
    try:
        checked = _METADATA.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{_place(first['loc'], value)}: {first['msg']}") from error
    return written_down(checked)


def _place(steps: tuple[int | str, ...], value: Any) -> str:  # noqa: ANN401 - whatever was given
    """The fields and positions that lead to an error, without the names of the branches between them."""
    names = ["metadata"]
    for step in steps:
        if step in value if isinstance(value, dict) else isinstance(value, list) and isinstance(step, int):
            names.append(str(step))
            value = value[step]
    return ".".join(names)


def written_down(fields: dict[str, Any]) -> str | None:
    """Metadata that has been checked as the payload keeps it; None where there is none."""
    return json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":")) if fields else None
