"""Write docs/configuration.md, the list of all settings, from the models.

    python -m embedder.config.manual

A test compares the committed file with what the models say now.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from embedder.config.prepare import HubRevision
from embedder.config.run import RunConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.config.unknown_keys import MANUAL, alternatives, is_model
from embedder.storage.object_store import ObjectPath

FILE = Path(__file__).parents[2] / MANUAL
INTRODUCTION = """# Configuration

Every setting of a run file. This page is written by `python -m embedder.config.manual` from the models in
`embedder/config/`; change the descriptions there.

A run file is YAML with a section for each heading below. `--set section.key=value` overrides a setting from the command
line, for example `--set train.steps=500`; the value is read as YAML. `--dry-run` prints those that are
not the defaults. A key that is not listed here is refused. A setting without a default is marked *required*.

| section | what it holds; who reads it |
|---|---|
"""
HEAD = "| key | type | default | description |\n|---|---|---|---|\n"
WORDS = {
    int: "integer",
    float: "number",
    bool: "boolean",
    str: "text",
    Path: "path",
    ObjectPath: "URI",
    HubRevision: "`hf://` URI",
}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def manual() -> str:
    """The text of docs/configuration.md."""
    sections = RunConfig.model_fields
    overview = "".join(f"| [`{name}`](#{name}) | {_cell(field.description)} |\n" for name, field in sections.items())
    tables = [table for name, field in sections.items() for table in _tables(name, field.annotation, level=2)]
    return INTRODUCTION + overview + "\n" + "\n".join(tables)


def _tables(key: str, annotation: object, level: int) -> Iterator[str]:
    """Heading, description and table of each model that a key may hold, and of what these hold."""
    for kind in alternatives(annotation):
        if get_origin(kind) in (list, dict):
            name = "N" if get_origin(kind) is list else "NAME"
            yield from _tables(f"{key}.{name}", get_args(kind)[-1], level)
        elif is_model(kind):
            yield _table(key, kind, level)
            for name, field in kind.model_fields.items():
                yield from _tables(f"{key}.{name}", field.annotation, level + 1)


def _table(key: str, model: type[BaseModel], level: int) -> str:
    """Heading, description and fields of a model; below `tasks` also those of the built-in tasks."""
    title = key.removesuffix(".NAME") if level == 2 else f"`{key}`"
    kind = model.model_fields.get("kind")
    named = f", kind {_type(kind.annotation)}" if kind else ""
    rows = "".join(
        f"| `{name}` | {_limited(field)} | {_default(field)} | {_cell(field.description)} |\n"
        for name, field in model.model_fields.items()
    )
    about = inspect.cleandoc(model.__doc__ or "")
    builtin = _builtin_tasks() if key == "tasks.NAME" else ""
    return f"{'#' * level} {title}{named}\n\n{about}\n\n{builtin}{HEAD}{rows}"


def _builtin_tasks() -> str:
    """The settings of the built-in tasks that differ."""
    names = ("reward", "loss", "shots", "max_output_tokens", "query_instruction", "passage_instruction")
    head = f"| built-in task | {' | '.join(f'`{name}`' for name in names)} |\n|---|{'---|' * len(names)}\n"
    rows = "".join(
        f"| `{task}` | {' | '.join(_cell(str(getattr(spec, name))) for name in names)} |\n"
        for task, spec in BUILTIN_TASKS.items()
    )
    return f"Each key of `tasks` is the name of a task. The keys of a task, `tasks.NAME.KEY`, follow.\n\n{head}{rows}\n"


def _cell(text: str | None) -> str:
    """A text as a cell of a table."""
    return " ".join((text or "").split()).replace("|", "\\|")


def _type(annotation: object) -> str:
    """A type in words."""
    kinds = list(alternatives(annotation))
    words = [word for kind in kinds if kind is not NoneType and (word := _word(kind))]
    return " or ".join(dict.fromkeys(words)) + (" or null" if NoneType in kinds else "")


def _word(kind: Any) -> str:  # noqa: ANN401 - whatever may stand in an annotation
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is list or (origin is tuple and inner[-1] is Ellipsis):
        return f"list of {_plural(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(_type(each) for each in inner)}]"
    if origin is dict:
        return f"mapping of {_plural(inner[0])} to {_plural(inner[1])}"
    return "section" if is_model(kind) else WORDS[kind]


def _plural(annotation: object) -> str:
    """The types of the items of a list or mapping, in words."""
    words = dict.fromkeys(_word(kind) for kind in alternatives(annotation))
    return " or ".join(word if word.startswith("`") else f"{word}s" for word in words)


def _limited(field: FieldInfo) -> str:
    """The type of a field with its bounds."""
    bounds = [
        f" {sign} {bound:,}"
        for limit in field.metadata
        for name, sign in BOUNDS.items()
        if (bound := getattr(limit, name, None)) is not None
    ]
    words, null, _ = _type(field.annotation).partition(" or null")
    return f"{words}{','.join(bounds)}{null}"


def _default(field: FieldInfo) -> str:
    """The default of a field, as it would be written in a run file."""
    if field.is_required():
        return "*required*"
    if isinstance(field.default, BaseModel):
        return "defaults below"
    if field.default == "":
        return "empty"
    return f"`{_cell(_written(field.default))}`"


def _written(value: object) -> str:
    """A value as YAML on one line; a built-in retriever, which has a single setting, as that alone."""
    if isinstance(value, BaseModel):
        (value,) = value.model_dump(mode="json").values()
        return str(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_written(each) for each in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_written(each)}' for name, each in value.items())}}}"
    if isinstance(value, str) and value.strip() == value:
        return value
    return str(value) if isinstance(value, (Path, float)) else json.dumps(value)


if __name__ == "__main__":
    FILE.write_text(manual(), encoding="utf-8")
