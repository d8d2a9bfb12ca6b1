"""Errors of the service in the shape of the API that was asked, whatever raised them: OpenAI's, TEI's on its routes."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from embedder.errors import BundleError, EmbedderError
from serve.schemas import ErrorDetail, ErrorResponse, TeiError

logger = logging.getLogger("ray.serve")

TEI_PATHS = ("/embed", "/info")
"""Routes of text-embeddings-inference, whose clients expect its errors."""
RETRY_AFTER_S = "1"


class ApiError(Exception):
    """A refusal with its HTTP status. Survives pickling, so that a replica can raise it."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status, message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def __str__(self) -> str:
        return self.message

    @property
    def detail(self) -> ErrorDetail:
        """The same on the wire."""
        return ErrorDetail(message=self.message, type=_kind(self.status), param=self.param, code=self.code)


def _kind(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 429:
            return "overloaded"
        case _:
            return "invalid_request_error" if status < 500 else "server_error"


def answer(path: str, status: int, detail: ErrorDetail, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as a response; overload tells when to come back, and what would fail again says so."""
    sent = dict(headers or {})
    if status in {429, 503}:
        sent["Retry-After"] = RETRY_AFTER_S
    elif status >= 500:
        sent["x-should-retry"] = "false"
    if path not in TEI_PATHS:
        return JSONResponse(ErrorResponse(error=detail).model_dump(), status_code=status, headers=sent)
    status = 422 if status == 400 else status
    kind = {413: "validation", 422: "validation", 429: "overloaded", 503: "unhealthy"}.get(status, "backend")
    body = TeiError(error=detail.message, error_type="validation" if status < 422 else kind)
    return JSONResponse(body.model_dump(), status_code=status, headers=sent)


def install_handlers(api: FastAPI) -> None:
    """Give every kind of failure its shape."""

    @api.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return answer(request.url.path, error.status, error.detail)

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
        param = location[0] if location else None
        return answer(request.url.path, 400, ErrorDetail(message=message, type=_kind(400), param=param))

    @api.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        detail = ErrorDetail(message=str(error.detail), type=_kind(error.status_code))
        return answer(request.url.path, error.status_code, detail, error.headers)

    @api.exception_handler(EmbedderError)
    async def unusable(request: Request, error: EmbedderError) -> JSONResponse:
        if not isinstance(error, BundleError):
            return answer(request.url.path, 400, ErrorDetail(message=str(error), type=_kind(400)))
        logger.error("%s", error)
        detail = ErrorDetail(message="the index is damaged; see the logs of the service", type=_kind(503))
        return answer(request.url.path, 503, detail)

    @api.exception_handler(TimeoutError)
    async def late(request: Request, error: TimeoutError) -> JSONResponse:
        detail = ErrorDetail(message="the request took too long; try again", type=_kind(503), code="timeout")
        return answer(request.url.path, 503, detail)

    @api.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        logger.error("unexpected error", exc_info=error)
        return answer(request.url.path, 500, ErrorDetail(message=f"unexpected {type(error).__name__}", type=_kind(500)))
