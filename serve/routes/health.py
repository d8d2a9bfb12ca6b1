"""Routes about the service itself, and what all routes take from it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from serve.schemas import Health, ServiceState
from serve.service import Service
from serve.versions.served import Version

router = APIRouter(tags=["state"])


async def service_of(request: Request) -> Service:
    """The service behind the routes."""
    service: Service = request.app.state.service
    return service


def stamp(response: Response, version: Version) -> None:
    """Say in headers what answered, where the body has no room for it."""
    response.headers["x-model-version"] = version.stamp.model_version
    response.headers["x-index-version"] = version.stamp.index_version


Here = Annotated[Service, Depends(service_of)]


@router.get("/live")
async def live() -> Health:
    """This process answers."""
    return Health()


@router.get("/health")
async def health(service: Here) -> Health:
    """The encoder and every shard of the default index have just answered a real request."""
    await service.check_health(service.served.named(None))
    return Health()


@router.get("/ready")
async def ready(service: Here) -> Health:
    """The same for every index that is served."""
    for _, version in service.served.all():
        await service.check_health(version)
    return Health()


@router.get("/v1/state")
async def deployments(service: Here) -> ServiceState:
    """The replicas of every deployment."""
    return ServiceState(data=await service.backend.deployments())
