"""What the routes take from the service: the service itself, and the headers that tell which version answered."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Response

from serve.access.audit import CALLER, Caller
from serve.access.scoped_service import ScopedService
from serve.service import Service
from serve.versions.served import Version


async def service_of(request: Request) -> ScopedService:
    """The service behind the routes, within the scope of whoever asks."""
    service: Service = request.app.state.service
    # No default: a request that did not come through the guard is answered by nothing.
    caller: Caller = request.scope[CALLER]
    return ScopedService(service, caller)


def stamp(response: Response, version: Version) -> None:
    """Say in headers what answered, where the body has no room for it."""
    response.headers["x-model-version"] = version.stamp.model_version
    response.headers["x-index-version"] = version.stamp.index_version


Here = Annotated[ScopedService, Depends(service_of)]
