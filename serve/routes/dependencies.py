"""What the routes take from the service: the service itself, and the headers that tell which version answered."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Response

from serve.service import Service
from serve.versions.served import Version


async def service_of(request: Request) -> Service:
    """The service behind the routes."""
    service: Service = request.app.state.service
    return service


def stamp(response: Response, version: Version) -> None:
    """Say in headers what answered, where the body has no room for it."""
    response.headers["x-model-version"] = version.stamp.model_version
    response.headers["x-index-version"] = version.stamp.index_version


Here = Annotated[Service, Depends(service_of)]
