"""Hooks of schemathesis: names that exist, so that generated requests reach further than the first refusal."""

from __future__ import annotations

from typing import Any

import schemathesis

KNOWN = {"task": "qa", "model": "live", "index": "live", "name": "live"}


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Name what is served, where the generated body has a name of the right type."""
    return _known(body)


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    """The same in the path, but for the models, of which others are asked for too."""
    return _known(path_parameters)


def _known(fields: Any) -> Any:
    if not isinstance(fields, dict):
        return fields
    return {key: KNOWN[key] if key in KNOWN and isinstance(value, str) else value for key, value in fields.items()}
