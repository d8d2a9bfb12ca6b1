"""Reads a run file: one YAML file with a section a job, and `section.key=value` overrides laid over it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from embedder.config.run import RunConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.config.unknown_keys import RENAMED_VALUES, describe_missing, describe_unknown_key, locate_key, new_key
from embedder.credentials import find_credential, masked
from embedder.errors import ConfigError, shown

LARGEST_RUN_FILE = 2**20
"""Bytes; the longest of a real run has some thousand."""
MERGE = "tag:yaml.org,2002:merge"
LONGEST_SHOWN = 80
"""Characters of an override that a message repeats; of a longer one it names the key alone."""


def run_file_parser(command: str, manual: str) -> argparse.ArgumentParser:
    """The parser of a command that reads a run file, with the options `--config` and `--set`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {command}", description=manual, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="run file (YAML)")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="override; repeatable")
    return parser


def load_run(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a run file and lay `section.key=value` overrides over it.

    Raises:
        ConfigError: the file is missing or no YAML mapping, a key is unknown, or a value has the wrong type. The
            message begins with the override that gave the key, else with the file. Or a value looks like a credential,
            which only the path of an object store may hold.
    """
    try:
        config = RunConfig.model_validate(raw_run(path, overrides))
    except ValidationError as error:
        raise ConfigError(_first_problem(error, path, overrides or [])) from error
    # As they are printed, because paths in object stores are so without their secrets.
    for key, value in _texts(config.model_dump(mode="json")):
        if (kind := find_credential(value)) is not None:
            raise ConfigError(
                f"{masked(_origin(key, path, overrides or [], above=True))}: {key} holds {kind}, which reports, model "
                "cards and dashboards would show; put it into the environment of the nodes, or into a file of theirs"
            )
    return config


def own_settings(config: RunConfig) -> dict[str, Any]:
    """A run file with the settings that are not the defaults, and with all that have none.

    Of the tasks it holds the fields that differ from those of the built-in ones.
    """
    own = config.model_dump(mode="json", exclude_defaults=True)
    tasks = {}
    for name, fields in config.model_dump(mode="json")["tasks"].items():
        known = BUILTIN_TASKS[name].model_dump(mode="json") if name in BUILTIN_TASKS else {}
        tasks[name] = {key: value for key, value in fields.items() if key not in known or known[key] != value}
    changed = {name: fields for name, fields in tasks.items() if fields}
    return {key: value for key, value in own.items() if key != "tasks"} | ({"tasks": changed} if changed else {})


def _texts(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text within settings, with the key it lies at."""
    if isinstance(value, str):
        yield key, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield from _texts(inner, f"{key}.{name}" if key else str(name))


def raw_run(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """Read a run file with its overrides as they are written, before types, defaults and absolute paths.

    Raises:
        ConfigError: the file is missing or no YAML mapping, or an override cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"--config {path}: no such file; give the path of a run file such as configs/demo.yaml")
    size = path.stat().st_size
    if size > LARGEST_RUN_FILE:
        raise ConfigError(f"--config {path}: {size:,} bytes; a run file has at most {LARGEST_RUN_FILE:,}")
    try:
        raw = _read_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror}); give this user the right to") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--config {path}: not a YAML file: {masked(' '.join(str(error).split()))}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"--config {path}: holds {type(raw).__name__}; a run file is a mapping of sections")
    for override in overrides or []:
        _apply_override(raw, override)
    return raw


class RunFileLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: YAML would pass over the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node, as YAML reads it."""
        names: set[str] = set()
        # Before what `<<` brings is laid below them, where one name may well stand again.
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                if key.value in names:
                    line = key.start_mark.line + 1
                    raise yaml.YAMLError(f"line {line}: {key.value!r} stands there a second time; keep one of them")
                names.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(text: str) -> Any:  # noqa: ANN401
    """The value of a YAML text.

    Raises:
        yaml.YAMLError, ValueError: it is no YAML, or nested too deeply.
    """
    try:
        # The safe loader, because a run file from elsewhere could otherwise build any Python object.
        return yaml.load(text, Loader=RunFileLoader)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _apply_override(raw: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in a raw run file; the value is read as YAML."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {masked(override)!r}: write it as section.key=value")
    # On the raw mapping and not on the models, because an override may give a section that the file does not have.
    node = raw
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {masked(override)!r}: {key!r} is a value, not a section")
    try:
        node[keys[-1]] = _read_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--set {masked(override)!r}: the value is not valid YAML") from error


def _first_problem(error: ValidationError, path: str | Path, overrides: list[str]) -> str:
    """The first of pydantic's complaints as one line: origin, key, reason, value, and how many more there are."""
    # Old names come first and missing keys last, because a wrong name is often what a key is missing for.
    problems = sorted(error.errors(), key=_urgency)
    first = problems[0]
    key, known = locate_key(first["loc"])
    more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        text = describe_unknown_key(key, known)
    elif _new_value(first) is not None:
        text = f"{key}: {first['input']} is now {_new_value(first)}"
    elif first["type"] == "missing":
        text = describe_missing(key)
    else:
        told = "" if isinstance(first["input"], dict) else f" (value {shown(first['input'])}{_meant(first)})"
        text = f"{key or 'run file'}: {first['msg'].removeprefix('Value error, ')}{told}"
    # A complaint about a whole section is of the values together, so no single override within it is at fault.
    is_of_section = first["type"] == "value_error"
    return masked(f"{_origin(key, path, overrides, above=not is_of_section)}: {text}{more}")


def _meant(problem: ErrorDetails) -> str:
    """The value that is nearest to one that is none of the known values."""
    if problem["type"] != "literal_error":
        return ""
    expected = [part for part in str(problem.get("ctx", {}).get("expected", "")).split("'")[1::2] if part]
    near = get_close_matches(problem["input"], expected, n=1) if isinstance(problem["input"], str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def _urgency(problem: ErrorDetails) -> int:
    key, _ = locate_key(problem["loc"])
    is_old = problem["type"] == "extra_forbidden" and new_key(key) is not None
    return 0 if is_old else 2 if problem["type"] == "missing" else 1


def _new_value(problem: ErrorDetails) -> str | None:
    key, _ = locate_key(problem["loc"])
    given = problem["input"]
    return RENAMED_VALUES.get((key, given)) if isinstance(given, str) else None


def _origin(key: str, path: str | Path, overrides: list[str], *, above: bool) -> str:
    """The last override that gave a key or what it lies in, as `--set ...`; else the run file, as `--config ...`.

    With `above` an override of something within the key counts too.
    """
    for override in reversed(overrides):
        given = override.partition("=")[0]
        if f"{key}.".startswith(f"{given}.") or (above and f"{given}.".startswith(f"{key}.")):
            return f"--set {override if len(override) <= LONGEST_SHOWN else f'{given}=...'}"
    return f"--config {path}"
