"""Tools for an agent: the operations of an OpenAPI description, or the list that an MCP server gives of its tools.

Nothing is fetched: a reference to another file stays a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from embedder.data.documents.section import DocumentPart, UnreadableError, yaml_value
from embedder.data.documents.table_rows import TableColumns, object_sections
from embedder.data.fields import RowError
from embedder.data.json_lines import parse_json
from embedder.errors import shown

IS_OPENAPI = re.compile(r"""^\s*["']?(openapi|swagger)["']?\s*:""", re.MULTILINE)
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
MAX_TOOL = 16_384
"""Characters of what is told of one tool."""
MAX_UNITED = 100
"""Schemas that one unites (`allOf`)."""
MAX_REFERENCES = 8
"""References that follow each other; they may go round in a circle."""


def json_sections(text: str, columns: TableColumns) -> Iterator[DocumentPart] | None:
    """The tools or rows of a JSON file; None where it is neither and is read as text.

    Raises:
        UnreadableError: it says that it is OpenAPI, and is no JSON.
    """
    try:
        value = parse_json(text)
    except RowError as error:
        if IS_OPENAPI.search(text):
            raise UnreadableError(str(error)) from error
        return None
    if isinstance(value, dict) and isinstance(value.get("paths"), dict) and ("openapi" in value or "swagger" in value):
        return openapi_sections(value)
    tools = _tools(value)
    if tools:
        return map(tool_section, tools)
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return object_sections(value, columns)
    return None


def yaml_sections(text: str) -> Iterator[DocumentPart] | None:
    """The tools of an OpenAPI description in YAML; None where it is none.

    Raises:
        UnreadableError: it says that it is one, and is no YAML.
    """
    if not IS_OPENAPI.search(text):
        return None
    value = yaml_value(text)
    if not isinstance(value, dict) or not isinstance(value.get("paths"), dict):
        return None
    return openapi_sections(value)


def openapi_sections(api: dict[str, Any]) -> Iterator[DocumentPart]:
    """Each operation of an OpenAPI 2 or 3 description."""
    for path, given in api["paths"].items():
        item = _resolved(given, api)
        shared = _list(item.get("parameters"))
        for method in METHODS:
            operation = _dict(item.get(method))
            if not operation:
                continue
            told = f"{method.upper()} {path}"
            lines = [told, _words(operation.get("summary")), _words(operation.get("description"))]
            for each in shared + _list(operation.get("parameters")):
                parameter = _resolved(each, api)
                schema = _resolved(parameter.get("schema"), api) or parameter
                # The whole body, which OpenAPI 2 has among the parameters.
                is_body = parameter.get("in") == "body"
                fields = _fields(schema, api) if is_body else []
                lines += fields or [_field(parameter.get("name"), schema, parameter.get("required"), parameter)]
            lines += _body(operation, api)
            name = _words(operation.get("operationId")) or told
            place = {"method": method.upper(), "path": str(path)[:1024], "tags": _tags(operation)}
            yield _tool(name, lines, {key: value for key, value in place.items() if value})


def _body(operation: dict[str, Any], api: dict[str, Any]) -> list[str]:
    """The fields of what is sent; its first kind of content stands for the others."""
    content = _dict(_resolved(operation.get("requestBody"), api).get("content"))
    media = _dict(next(iter(content.values()), None))
    return _fields(_resolved(media.get("schema"), api), api)


def _fields(schema: dict[str, Any], api: dict[str, Any], depth: int = 0) -> list[str]:
    """The fields of an object, with those of the schemas that it unites."""
    required = _list(schema.get("required"))
    properties = _dict(schema.get("properties"))
    fields = [_field(name, _resolved(value, api), name in required) for name, value in properties.items()]
    for part in _list(schema.get("allOf"))[:MAX_UNITED] if depth < MAX_REFERENCES else ():
        fields += _fields(_resolved(part, api), api, depth + 1)
    return fields


def _field(name: object, schema: dict[str, Any], required: object, told: dict[str, Any] | None = None) -> str:
    kind = _words(schema.get("type")) or "value"
    described = _words((told or {}).get("description")) or _words(schema.get("description"))
    choices = [_words(each) for each in _list(schema.get("enum"))[:20]]
    kind += f", one of {', '.join(choices)}" if choices else ""
    kind += ", required" if required is True else ""
    return f"{_words(name)} ({kind})" + (f": {described}" if described else "")


def _tools(value: object) -> list[dict[str, Any]]:
    """Tools as MCP's tools/list gives them, with the answer around or without, or as functions of a chat API."""
    found = _dict(value)
    named = _list(found.get("tools") or _dict(found.get("result")).get("tools"))
    tools = [_tool_of(each) for each in named or _list(value)]
    # What is called tools may hold something else beside them; rows of a table are no tools because some look so.
    is_list_of_tools = any(tools) if named else all(tools)
    return tools if is_list_of_tools else []


def _tool_of(value: object) -> dict[str, Any]:
    """A tool; empty where it is none."""
    inner = _dict(value).get("function")
    tool = inner if isinstance(inner, dict) else _dict(value)
    has_parameters = isinstance(inner, dict) or {"inputSchema", "input_schema", "parameters"} & tool.keys()
    return tool if isinstance(tool.get("name"), str) and has_parameters else {}


def tool_section(tool: dict[str, Any]) -> DocumentPart:
    """One tool with its parameters."""
    if not tool:
        return DocumentPart((), "", fault="no tool with a name and parameters")
    schema = _dict(tool.get("inputSchema") or tool.get("input_schema") or tool.get("parameters"))
    lines = [_words(tool.get("title")), _words(tool.get("description")), *_fields(schema, schema)]
    return _tool(tool["name"], lines, {})


def _tool(name: str, lines: list[str], fields: dict[str, Any]) -> DocumentPart:
    name = " ".join(name.split())[:300]
    text = "\n".join(line for line in lines if line)[:MAX_TOOL]
    return DocumentPart((name,), text or name, metadata={**fields, "tool": name})


def _resolved(value: object, api: dict[str, Any]) -> dict[str, Any]:
    """An object, or the one that it refers to within the same file."""
    found = _dict(value)
    for _ in range(MAX_REFERENCES):
        reference = found.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        target: object = api
        for part in reference[2:].split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list):
                is_place = name.isdecimal() and len(name) < 9 and int(name) < len(target)
                target = target[int(name)] if is_place else None
            else:
                target = _dict(target).get(name)
        found = _dict(target)
    return found


def _tags(operation: dict[str, Any]) -> list[str]:
    return [tag[:1024] for tag in _list(operation.get("tags"))[:50] if isinstance(tag, str)]


def _words(value: object) -> str:
    """A text on one line; of other values their beginning, since aliases of YAML can make them endless."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else shown(value)
    return " ".join(text[:MAX_TOOL].split())


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
