"""Errors of the service in the OpenAI shape, whatever raised them."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.exceptions import HTTPException

from serve.schemas import ErrorDetail, ErrorResponse


class ApiError(Exception):
    """A refusal with its HTTP status."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status, message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status, self.detail = status, ErrorDetail(message=message, type=kind, param=param, code=code)


def answer(status: int, detail: ErrorDetail) -> JSONResponse:
    """An error as a response; overload tells when to come back."""
    headers = {"Retry-After": "1"} if status in {429, 503} else None
    return JSONResponse(ErrorResponse(error=detail).model_dump(), status_code=status, headers=headers)


def install_handlers(api: FastAPI) -> None:
    """Give every kind of failure the same shape."""

    @api.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return answer(error.status, error.detail)

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part != "body"]
        message = f"{'.'.join(place) or 'body'}: {first['msg']}"
        detail = ErrorDetail(message=message, type="invalid_request_error", param=place[0] if place else None)
        return answer(400, detail)

    @api.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, ErrorDetail(message=str(error.detail), type="invalid_request_error"))

    @api.exception_handler(BackPressureError)
    async def overloaded(_: Request, error: BackPressureError) -> JSONResponse:
        return answer(429, ErrorDetail(message="too many requests are waiting; try again", type="overloaded"))

    @api.exception_handler(DeploymentUnavailableError)
    async def unavailable(_: Request, error: DeploymentUnavailableError) -> JSONResponse:
        return answer(503, ErrorDetail(message="a part of the service is not ready; try again", type="server_error"))

    @api.exception_handler(TimeoutError)
    async def late(_: Request, error: TimeoutError) -> JSONResponse:
        return answer(503, ErrorDetail(message="the request took too long; try again", type="server_error"))

    @api.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return answer(500, ErrorDetail(message=f"unexpected {type(error).__name__}", type="server_error"))
