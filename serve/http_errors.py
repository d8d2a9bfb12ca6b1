"""Errors of the service in the shape of the API that was asked, whatever raised them: OpenAI's, TEI's on its routes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from embedder.errors import (
    BundleError,
    DeviceError,
    EmbedderError,
    ModelError,
    StorageError,
    UnreachableError,
)
from serve.schemas.state_schemas import ErrorDetail, ErrorResponse, TeiError

logger = logging.getLogger("ray.serve")

TEI_PATHS = ("/embed", "/info", "/rerank")
"""Routes of text-embeddings-inference, whose clients expect its errors."""
RETRY_AFTER_S = 1.0
"""When to come back where nobody knows better."""
MOST_NAME, MOST_REASON = 256, 512
"""Characters of a field's name and of what is wrong with it, in the answer to a body that is refused."""
KINDS = {401: "authentication_error", 403: "permission_error", 429: "overloaded"}
"""OpenAI's name of an error, by status; the others have one name below 500 and one from there on."""


class ApiError(Exception):
    """A refusal with its HTTP status. Survives pickling, so that a replica can raise it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float = RETRY_AFTER_S,
    ) -> None:
        """`retry_after_s` is told to clients with statuses 429 and 503 only."""
        super().__init__(status, message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message

    @property
    def detail(self) -> ErrorDetail:
        """The same on the wire."""
        other = "invalid_request_error" if self.status < 500 else "server_error"
        return ErrorDetail(message=self.message, type=KINDS.get(self.status, other), param=self.param, code=self.code)


def overloaded(retry_after_s: float = RETRY_AFTER_S) -> ApiError:
    """The refusal of what there is no room for, and when there will be."""
    message = "too many requests are waiting; try again after the time in Retry-After"
    return ApiError(429, message, code="overloaded", retry_after_s=retry_after_s)


def retry_headers(seconds: float) -> dict[str, str]:
    """When to come back: in whole seconds, as HTTP has it, and in milliseconds, which openai's SDK reads first."""
    milliseconds = max(1, round(1000 * seconds))
    # Of the rounded number, so that the two agree.
    return {"Retry-After": str(math.ceil(milliseconds / 1000)), "retry-after-ms": str(milliseconds)}


def timed_out() -> ApiError:
    """The refusal of what was not done by its deadline."""
    return ApiError(503, "the request took too long; try again", code="timeout")


def stopping() -> ApiError:
    """The refusal of a service that is being taken down."""
    return ApiError(503, "the service is stopping; ask the one that takes its place", code="stopping")


def answer(path: str, error: ApiError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as a response; overload tells when to come back, and what would fail again says so."""
    sent, status = dict(headers or {}), error.status
    if status in {429, 503}:
        sent |= retry_headers(error.retry_after_s)
    elif status >= 500:
        sent["x-should-retry"] = "false"
    if path not in TEI_PATHS:
        return JSONResponse(ErrorResponse(error=error.detail).model_dump(), status_code=status, headers=sent)
    status = 422 if status == 400 else status
    kind = {429: "overloaded", 503: "unhealthy"}.get(status, "backend")
    body = TeiError(error=error.message, error_type="validation" if status <= 422 else kind)
    return JSONResponse(body.model_dump(), status_code=status, headers=sent)


def refusal(problems: Sequence[Mapping[str, Any]], body: object) -> ApiError:
    """One error of the many that a model has found in a body, which names the field as the client wrote it.

    Of a union every branch complains. The one that was meant got furthest into the body, and fails there by more than
    the kind of the value.
    """
    located = [(_field(problem, body), problem) for problem in problems]
    # The first of several, because `max` keeps the order of the fields and branches.
    field, problem = max(located, key=lambda pair: (len(pair[0]), not pair[1]["type"].endswith("_type")))
    is_null = problem["type"].endswith("_type") and problem.get("input") is None
    message = "null is not a value" if is_null else problem["msg"].removeprefix("Value error, ")
    name = ".".join(field) or "body"
    # A lone surrogate of the request would fail to be encoded again in the answer.
    text = f"{name:.{MOST_NAME}}: {message:.{MOST_REASON}}".encode(errors="replace").decode()
    return ApiError(400, text, param=field[0][:MOST_NAME] if field else None)


def _field(problem: Mapping[str, Any], body: object) -> list[str]:
    """The names and positions that lead to a problem, without the names of branches and validators between them."""
    if problem["type"] == "json_invalid":
        return []
    whole, *steps = problem["loc"]
    if whole != "body":
        return [str(step) for step in steps]
    field: list[str] = []
    for step in steps[:-1]:
        if _leads_on(body, step):
            field.append(str(step))
            body = body[step]  # type: ignore[index] # as `_leads_on` has seen
    # A field that is missing is named though it is not there.
    if steps and (problem["type"] == "missing" or _leads_on(body, steps[-1])):
        field.append(str(steps[-1]))
    return field


def _leads_on(value: object, step: str | int) -> bool:
    """Tell whether a value of the body has a part of that name or position."""
    if isinstance(value, dict):
        return step in value
    return isinstance(value, list) and isinstance(step, int) and step < len(value)


def install_handlers(api: FastAPI) -> None:
    """Give every kind of failure its shape."""

    @api.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return answer(request.url.path, error)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(request.url.path, refusal(error.errors(), error.body))

    @api.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return answer(request.url.path, ApiError(error.status_code, str(error.detail)), error.headers)

    @api.exception_handler(EmbedderError)
    async def unusable(request: Request, error: EmbedderError) -> JSONResponse:
        return answer(request.url.path, _refusal(error))

    @api.exception_handler(TimeoutError)
    async def late(request: Request, error: TimeoutError) -> JSONResponse:
        return answer(request.url.path, timed_out())

    @api.exception_handler(OSError)
    async def unreadable(request: Request, error: OSError) -> JSONResponse:
        # Of a disk or mount that fails while it is read: writes end in a StorageError.
        logger.error("a file cannot be read", exc_info=error)
        return answer(request.url.path, ApiError(503, f"a file of the index cannot be read ({error.strerror})"))

    @api.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        logger.error("unexpected error", exc_info=error)
        return answer(request.url.path, ApiError(500, f"unexpected {type(error).__name__}"))


def _refusal(error: EmbedderError) -> ApiError:
    """What a client is told; what is wrong with the service's own files goes into its log, paths and all."""
    if isinstance(error, UnreachableError):
        logger.error("%s", error)
        return ApiError(503, "the store of the index does not answer; try again", code="storage")
    if isinstance(error, StorageError):
        logger.error("%s", error)
        return ApiError(507, f"the index cannot be written: {error.reason}", code="storage")
    if isinstance(error, BundleError):
        logger.error("%s", error)
        return ApiError(503, "the index is damaged; see the logs of the service")
    if isinstance(error, (ModelError, DeviceError)):
        # Such as a second version's model, for which there was no memory: no fault of the request.
        logger.error("%s", error)
        return ApiError(503, "the model cannot be loaded now; try again, and see the logs of the service")
    return ApiError(400, str(error))
