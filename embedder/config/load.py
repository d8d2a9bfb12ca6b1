"""Reads a run file: one YAML file with a section a job, and `section.key=value` overrides laid over it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from embedder.config.run import RunConfig
from embedder.errors import ConfigError
from embedder.storage.object_store import masked


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
        ConfigError: the file is missing or no YAML mapping, a key is unknown, or a value has the wrong type.
    """
    try:
        return RunConfig.model_validate(raw_run(path, overrides))
    except ValidationError as error:
        raise ConfigError(f"--config {path}: {_first_problem(error)}") from error


def raw_run(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The same as it is written, before types, defaults and absolute paths.

    Raises:
        ConfigError: the file is missing or no YAML mapping, or an override cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"--config {path}: no such file; give the path of a run file such as configs/demo.yaml")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not a YAML file: {masked(' '.join(str(error).split()))}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"--config {path}: holds {type(raw).__name__}; a run file is a mapping of sections")
    for override in overrides or []:
        _apply_override(raw, override)
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in a raw run file; the value is read as YAML."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {masked(override)!r}: write it as section.key=value")
    node = raw
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {masked(override)!r}: {key!r} is a value, not a section")
    try:
        node[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {masked(override)!r}: the value is not valid YAML") from error


def _first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints as one line: place, value, reason, how many more."""
    problems = error.errors()
    first = problems[0]
    place = ".".join(str(part) for part in first["loc"]) or "run file"
    reason = first["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(first["input"], dict) else f" (value {first['input']!r})"
    if first["type"] == "extra_forbidden":
        reason, shown = "unknown key; see embedder/config/run.py for the keys of this section", ""
    more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
    return masked(f"{place}: {reason}{shown}{more}")
