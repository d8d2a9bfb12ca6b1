"""The description of the interface: /openapi.json for programs, /docs for people, made of the same."""

from __future__ import annotations

import json
from functools import lru_cache
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from serve.middleware.incoming import PREFIX
from serve.routes.page import HEADERS

router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """The description, which says where the routes begin if that is not at `/`."""
    return Response(_as_json(request.app, request.scope.get(PREFIX) or ""), media_type="application/json")


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """The same as a page without a script, so that it opens without a key and without a network."""
    return HTMLResponse(_as_page(request.app, request.scope.get(PREFIX) or ""), headers=HEADERS)


# Made once a process: a client that asks again and again would take the time of those who embed. 90 kB cost 5 ms.
@lru_cache(maxsize=2)
def _as_json(api: FastAPI, prefix: str) -> bytes:
    described = {**api.openapi(), "servers": [{"url": prefix}]} if prefix else api.openapi()
    return json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()


@lru_cache(maxsize=2)
def _as_page(api: FastAPI, prefix: str) -> str:
    described, prefix = api.openapi(), escape(prefix)
    schemas = described["components"]["schemas"]
    operations = [
        (method.upper(), path, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    rows = "".join(
        f'<li><a href="#{_anchor(method, path)}"><b>{method}</b> {escape(path)}</a></li>'
        for method, path, _ in operations
    )
    sections = "".join(_section(*operation, schemas) for operation in operations)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>LLM-Embedder: routes</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f'<link rel="stylesheet" href="{prefix}/static/page.css"></head><body><header><h1>LLM-Embedder: routes</h1>'
        f'</header><main class="docs"><p>For programs: <a href="{prefix}/openapi.json">openapi.json</a>, which asks '
        f"for a key where the service has keys. Send it as <code>Authorization: Bearer KEY</code>.</p><ul>{rows}</ul>"
        f"{sections}</main></body></html>\n"
    )


def _section(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    """One route: what it does, what it takes and what it answers."""
    parts = [f'<section id="{_anchor(method, path)}"><h2>{method} {escape(path)}</h2>']
    parts.append(f"<p>{escape(operation.get('description', ''))}</p>")
    sent = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    parts += [_table("Body", name, schemas[name], schemas) for name in _named(sent)]
    for status, response in sorted(operation["responses"].items()):
        answered = response.get("content", {}).get("application/json", {}).get("schema", {})
        parts.append(f"<p><b>{status}</b> {escape(response['description'])}</p>")
        if status == "200":
            parts += [_table("Answer", name, schemas[name], schemas) for name in _named(answered)]
    return "".join([*parts, "</section>"])


def _table(what: str, name: str, schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """The fields of a model, and below it those of the models in it."""
    tables = []
    for inner in [name, *(other for other in _within(schema, schemas) if other != name)]:
        fields = schemas[inner].get("properties", {})
        required = schemas[inner].get("required", [])
        rows = "".join(
            f"<tr><td><code>{escape(field)}</code>{' (required)' if field in required else ''}</td>"
            f"<td><code>{escape(_kind(value))}</code></td><td>{escape(value.get('description', ''))}</td></tr>"
            for field, value in fields.items()
        )
        label = f"{what}: {inner}" if inner == name else inner
        tables.append(f"<h3>{escape(label)}</h3><table><tbody>{rows}</tbody></table>")
    return "".join(tables)


def _within(schema: object, schemas: dict[str, Any]) -> list[str]:
    """Names of the models in a schema, at all depths, each once."""
    found: dict[str, None] = {}
    waiting = _named(schema)
    while waiting:
        name = waiting.pop(0)
        if name not in found:
            found[name] = None
            waiting += _named(schemas[name])
    return list(found)


def _named(schema: object) -> list[str]:
    """Names of the models that a schema refers to."""
    if isinstance(schema, dict):
        own = [schema["$ref"].rpartition("/")[2]] if isinstance(schema.get("$ref"), str) else []
        return [*own, *(name for value in schema.values() for name in _named(value))]
    return [name for value in schema for name in _named(value)] if isinstance(schema, list) else []


def _kind(schema: dict[str, Any]) -> str:
    """The type of a field, in words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(dict.fromkeys(map(_kind, schema.get("anyOf") or schema["oneOf"])))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    values: list[object] = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    return " or ".join(json.dumps(value) for value in values) or str(schema.get("type", "any"))


def _anchor(method: str, path: str) -> str:
    return "".join(sign if sign.isalnum() else "-" for sign in f"{method}{path}")
