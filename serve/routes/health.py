"""Routes about the service itself: alive, healthy, ready, its replicas, its metrics."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from serve.routes.dependencies import Here
from serve.schemas.state_schemas import Health, IndexHealth, ServiceState

router = APIRouter(tags=["state"])


@router.get("/live")
async def live() -> Health:
    """This process answers."""
    return Health()


@router.get("/health")
async def health(service: Here) -> IndexHealth:
    """The encoder and every shard of the default index have just answered a real request."""
    version = await service.named(None)
    await service.check_health(version)
    return IndexHealth(behind_s=await service.behind_s(version))


@router.get("/ready")
async def ready(service: Here) -> Health:
    """The same for every index that is served."""
    for _, version in service.served.all():
        await service.check_health(version)
    return Health()


@router.get("/v1/state")
async def deployments(service: Here) -> ServiceState:
    """The replicas of every deployment."""
    return ServiceState(data=await service.deployments())


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: Here) -> PlainTextResponse:
    """What the service counts, for Prometheus; for keys without a scope."""
    return PlainTextResponse(await service.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")
