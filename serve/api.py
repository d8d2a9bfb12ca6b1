"""The HTTP interface: all routes behind the guard, with one shape of errors and one OpenAPI description."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.middleware.cors import CORSMiddleware

from embedder import __version__
from serve.access.keys import needed_role
from serve.http_errors import TEI_PATHS, install_handlers
from serve.middleware.guard import Answered, Guard
from serve.middleware.incoming import Incoming
from serve.routes import description, document_routes, embeddings, health, indexes, page, rerank, search
from serve.schemas.state_schemas import ErrorResponse, TeiError
from serve.service import Service

REFUSALS = {
    400: "the request is not one, or exceeds a limit",
    401: "no valid key",
    403: "the key has not the role or the scope that this needs, or a page of another site asks",
    404: "no such model, index, version or path",
    408: "the body did not arrive in time",
    409: "not while things are as they are",
    413: "the body exceeds the limit",
    415: "the body is no JSON by its Content-Type, or is compressed",
    431: "path and headers exceed the limit",
    422: "the request is not one, or exceeds a limit",
    429: "too many requests are waiting; come back after `Retry-After` seconds",
    500: "a failure of the service",
    503: "a part of the service is not ready; come back after `Retry-After` seconds",
    507: "the disk of the index is full, read-only or failing; searches go on",
}
"""Every status but 200 that a route may answer with."""
SHOWN_HEADERS = ("Retry-After", "x-request-id", "x-model-version", "x-index-version", "x-should-retry")
"""Headers of an answer that a page of another origin may read."""


def make_api(service: Service, answered: Answered) -> FastAPI:
    """The application of a service."""
    api = describe()
    api.state.service = service
    api.add_middleware(Guard, service=service, routes=api.routes, answered=answered)
    # The last one added is the first that is asked: a browser's preflight has no key, and refusals need its headers.
    api.add_middleware(Incoming, traffic=service.traffic)
    api.add_middleware(
        CORSMiddleware,
        allow_origins=service.settings.origins(has_keys=service.keys is not None),
        allow_methods=("GET", "HEAD", "POST", "PUT", "DELETE"),
        allow_headers=("*",),
        expose_headers=SHOWN_HEADERS,
    )
    return api


def describe() -> FastAPI:
    """An application with its routes, errors and description; no request can be answered without a service."""
    # A redirect to the path without a slash would lose the key or the body with many clients; `Incoming` drops it.
    api = FastAPI(
        title="LLM-Embedder",
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for routes in (embeddings, rerank, search, document_routes, indexes, health, page, description):
        api.include_router(routes.router)
    install_handlers(api)
    api.openapi = lambda: _openapi(api)  # type: ignore[method-assign] # as FastAPI's manual says
    return api


def _openapi(api: FastAPI) -> dict[str, Any]:
    """The description with the answers that the guard and the handlers give, in place of FastAPI's own 422."""
    if api.openapi_schema is None:
        schema = get_openapi(title=api.title, version=api.version, routes=api.routes)
        parts = schema["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            parts.pop(name, None)
        _, refusals = models_json_schema(
            [(ErrorResponse, "validation"), (TeiError, "validation")], ref_template="#/components/schemas/{model}"
        )
        parts |= refusals["$defs"]
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                _describe_refusals(path, method.upper(), operation)
        api.openapi_schema = schema
    return api.openapi_schema


def _describe_refusals(path: str, method: str, operation: dict[str, Any]) -> None:
    is_tei = path in TEI_PATHS
    operation["responses"].pop("422", None)
    role = needed_role(method, path)
    possible = {422 if is_tei else 400, 403, 431, 500, 503}
    if role is not None:
        possible |= {401}
        operation["security"] = [{"key": []}, {}]
        operation["description"] = f"{operation.get('description', '')} Role: {role}."
    if method in {"POST", "PUT"}:
        possible |= {408, 413, 415, 429}
    if "{" in path or path in {"/v1/embeddings", "/v1/rerank", "/v1/search", "/v1/search/batch", "/embed", "/info"}:
        possible |= {404}
    if path.startswith("/v1/indexes/"):
        possible |= {409, 507}
    shape = (TeiError if is_tei else ErrorResponse).__name__
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
    for status in sorted(possible):
        operation["responses"][str(status)] = {"description": REFUSALS[status], "content": content}
