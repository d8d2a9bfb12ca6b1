"""Errors of the service in the shape of the API that was asked, whatever raised them: OpenAI's, TEI's on its routes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from embedder.errors import BundleError, EmbedderError, StorageError
from serve.schemas.state_schemas import ErrorDetail, ErrorResponse, TeiError

logger = logging.getLogger("ray.serve")

TEI_PATHS = ("/embed", "/info")
"""Routes of text-embeddings-inference, whose clients expect its errors."""
RETRY_AFTER_S = 1.0
"""When to come back where nobody knows better."""
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
    return {"Retry-After": str(max(1, math.ceil(seconds))), "retry-after-ms": str(max(1, round(1000 * seconds)))}


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
    kind = {413: "validation", 422: "validation", 429: "overloaded", 503: "unhealthy"}.get(status, "backend")
    body = TeiError(error=error.message, error_type="validation" if status < 422 else kind)
    return JSONResponse(body.model_dump(), status_code=status, headers=sent)


def install_handlers(api: FastAPI) -> None:
    """Give every kind of failure its shape."""

    @api.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return answer(request.url.path, error)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = error.errors()
        # Of a union every branch complains; what a validator of ours says is the most telling.
        first = next((problem for problem in problems if problem["type"] == "value_error"), problems[0])
        location = [str(part) for part in first["loc"][1:]]
        if first["type"] == "json_invalid":
            location = []
        # A lone surrogate of the request would fail to be encoded again in the answer.
        message = f"{'.'.join(location) or 'body'}: {first['msg'].removeprefix('Value error, ')}".encode(
            errors="replace"
        ).decode()
        return answer(request.url.path, ApiError(400, message, param=location[0] if location else None))

    @api.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return answer(request.url.path, ApiError(error.status_code, str(error.detail)), error.headers)

    @api.exception_handler(EmbedderError)
    async def unusable(request: Request, error: EmbedderError) -> JSONResponse:
        return answer(request.url.path, _refusal(error))

    @api.exception_handler(TimeoutError)
    async def late(request: Request, error: TimeoutError) -> JSONResponse:
        return answer(request.url.path, ApiError(503, "the request took too long; try again", code="timeout"))

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
    if isinstance(error, StorageError):
        logger.error("%s", error)
        return ApiError(507, f"the index cannot be written: {error.reason}", code="storage")
    if isinstance(error, BundleError):
        logger.error("%s", error)
        return ApiError(503, "the index is damaged; see the logs of the service")
    return ApiError(400, str(error))
