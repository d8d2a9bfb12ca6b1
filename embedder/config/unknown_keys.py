"""The answer to a key that is not a setting: its new name, or the nearest known one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from embedder.config.run import RunConfig

MANUAL = "docs/configuration.md"
MOST_NAMED = 3
"""Settings of one name that a message may list."""

RENAMED_KEYS = {
    "tasks.*.key_instruction": "tasks.*.passage_instruction",
    "evaluate.retrievers.*.key_prompt": "evaluate.retrievers.*.passage_prompt",
    "evaluate.retrievers.*.extra_key": "evaluate.retrievers.*.extra_passage",
    "evaluate.writes": "evaluate.generate_answers",
    "evaluate.rounds": "evaluate.resamples",
    "serve.fold_rows": "serve.compact_after_rows",
    "mine.num_actors": "encoder.num_actors",
    "mine.gpus_per_actor": "encoder.gpus_per_actor",
    "label.imported": "prepare.sources",
    "encoder.int8": "encoder.dtype",
}
"""Old key to new key; * stands for the name of a task or the number of a retriever."""

RENAMED_VALUES = {("train.exhausted", "leave"): "drop"}
"""Key and old value to the new value."""


def is_model(annotation: object) -> bool:
    """True for a class of settings."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def alternatives(annotation: object) -> Iterator[Any]:
    """The types of a union, or the type itself, without what `Annotated` adds."""
    if get_origin(annotation) is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for each in get_args(annotation):
            yield from alternatives(each)
    else:
        yield annotation


def locate_key(location: Sequence[str | int]) -> tuple[str, list[str]]:
    """The key that pydantic's `location` of an error names, and the known keys beside it.

    Pydantic puts the kind of a retriever between its number and its key; a run file does not, so it is left out.
    """
    names: list[str] = []
    here: list[Any] = [RunConfig]
    known: list[str] = []
    for part in location:
        models = [kind for kind in here if is_model(kind)]
        kinds = [model for model in models if part in get_args(_annotation(model, "kind"))]
        if kinds:
            here = kinds
            continue
        names.append(str(part))
        known = [name for model in models for name in model.model_fields]
        if models:
            here = [each for model in models for each in alternatives(_annotation(model, part))]
        else:
            items = [get_args(kind)[-1] for kind in here if get_origin(kind) in (list, dict)]
            here = [each for item in items for each in alternatives(item)]
    return ".".join(names), known


def _annotation(model: type[BaseModel], name: str | int) -> object:
    field = model.model_fields.get(str(name))
    return field.annotation if field else None


def new_key(key: str) -> str | None:
    """What an old key is called now; None for a key that was never another's name."""
    for old, new in RENAMED_KEYS.items():
        if fnmatchcase(key, old):
            parts = zip(new.split("."), key.split("."), strict=False)
            return ".".join(given if part == "*" else part for part, given in parts)
    return None


def describe_unknown_key(key: str, known: Sequence[str]) -> str:
    """What to say of a key that is not a setting, given the known keys beside it."""
    renamed = new_key(key)
    if renamed is not None:
        return f"{key} is now {renamed} ({MANUAL} has all settings)"
    parent, _, name = key.rpartition(".")
    near = [f"{parent}{'.' if parent else ''}{each}" for each in get_close_matches(name, known, n=1)]
    near = near or keys_elsewhere(name)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{key} is not a setting{meant} ({MANUAL} has all)"


def keys_elsewhere(name: str) -> list[str]:
    """The settings of that very name in the sections of a run file, where these are no more than a few."""
    found = []
    for section, field in RunConfig.model_fields.items():
        models = [kind for kind in alternatives(field.annotation) if is_model(kind)]
        found += [f"{section}.{name}" for model in models if name in model.model_fields]
    return found if len(found) <= MOST_NAMED else []


def nearest(value: str, known: Iterable[str]) -> str:
    """The end of a message on a value that is none of the known ones: which it may be, or which there are."""
    names = list(known)
    near = get_close_matches(value, names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"


def describe_missing(key: str) -> str:
    """What to say of a setting that must be there: its section's other needs, or its values."""
    kinds = [kind for kind in alternatives(annotation_of(key)) if kind is not type(None)]
    models = [kind for kind in kinds if is_model(kind)]
    needed = [name for model in models for name, field in model.model_fields.items() if field.is_required()]
    values = [repr(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    wanted = f"; it needs {' and '.join(needed)}" if needed else f"; give one of {', '.join(values)}" if values else ""
    return f"{key} is missing{wanted} ({MANUAL} has all)"


def annotation_of(key: str) -> object:
    """The type of a setting, given its whole key."""
    here: list[Any] = [RunConfig]
    for part in key.split("."):
        models = [kind for kind in here if is_model(kind)]
        found = [_annotation(model, part) for model in models if part in model.model_fields]
        items = [get_args(kind)[-1] for kind in here if get_origin(kind) in (list, dict)]
        here = [each for kind in found or items for each in alternatives(kind)]
    return Union[tuple(here)] if here else object  # noqa: UP007 - of kinds that are known at run time
