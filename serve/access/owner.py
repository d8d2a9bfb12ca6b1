"""Who a request belongs to: those who ask take turns (`serve.deployments.fair_queue`)."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Scope

from serve.access.keys import ApiKey
from serve.backend import OWNER
from serve.http_errors import ApiError
from serve.middleware.incoming import with_bearer
from serve.middleware.request_head import num_bytes
from serve.service import Service


def owner_of(key: ApiKey | None, scope: Scope) -> str:
    """The key of a request, or where none is asked for the address that it comes from."""
    if key is not None:
        return f"key {key.name}"
    # The front sets it; a client that reaches the service itself may say what it likes there.
    forwarded = Headers(scope=scope).get("x-forwarded-for", "").partition(",")[0].strip()
    address = forwarded or (scope.get("client") or ("",))[0]
    return f"address {address:.64}"


class Entrance:
    """What is asked before anything of a request is checked."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def refusal(self, scope: Scope) -> ApiError | None:
        """Why a request for vectors would be refused by what waits."""
        # The gate stands before what gives requests these headers, and must find the same key.
        headers, keys = Headers(raw=with_bearer(scope)), self._service.keys
        key = None if keys is None else keys.find(headers.get("authorization", ""))
        OWNER.set(owner_of(key, scope))
        return self._service.backend.refusal(num_bytes(headers))
