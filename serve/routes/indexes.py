"""Routes of the indexes: what there is, and the alias that swaps model and index."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from embedder.errors import ProbeError
from serve.access.scoped_service import ScopedService
from serve.backend import time_left
from serve.http_errors import ApiError
from serve.middleware.request_body import BoundedRoute
from serve.routes.dependencies import Here
from serve.routes.document_routes import Alias
from serve.schemas.index_schemas import (
    CollectionState,
    IndexList,
    IndexState,
    PointRequest,
    PointResponse,
    Removed,
)
from serve.service import SHORTLY_S, Service
from serve.versions.served import Version, key_of

LOOK_S = 0.2
"""Between two looks at whether an alias has moved."""

router = APIRouter(route_class=BoundedRoute, tags=["indexes"])


@router.get("/v1/indexes")
async def indexes(service: Here) -> IndexList:
    """What each alias serves, and all versions that there are."""
    await service.follow(SHORTLY_S)
    states = [await _state(service, alias, version) for alias, version in service.served.all()]
    return IndexList(data=states, versions=await asyncio.to_thread(service.versions))


@router.put("/v1/indexes/{name}")
async def point(name: Alias, request: PointRequest, scoped: Here) -> PointResponse:
    """Let an alias serve a version, once every replica has loaded it. Until then the old one answers."""
    service = scoped.whole(name, request.version)
    catalog = service.served.source.catalog
    # In threads, as all that may ask a store.
    versions = await asyncio.to_thread(catalog.versions)
    if request.version not in versions:
        raise ApiError(404, f"version {request.version!r:.200}: there are {versions}", param="version")
    # Before anything is loaded for it.
    await asyncio.to_thread(catalog.check_alias, name)
    known = dict(service.served.all())
    if name not in known and len(known) >= service.settings.max_versions:
        raise ApiError(409, f"{sorted(known)} are served already; at most {service.settings.max_versions} aliases")
    try:
        await asyncio.wait_for(
            service.backend.prepare(key_of(name, request.version)), max(LOOK_S, time_left() - LOOK_S)
        )
    except ProbeError as error:
        raise ApiError(409, str(error), param="version") from error
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise ApiError(
            503, f"{request.version} is being loaded, which takes longer than a request may; ask again"
        ) from error
    # Only now, because the alias is what every ingress follows: a version that cannot be loaded must not get that far.
    await asyncio.to_thread(catalog.point, name, request.version)
    service.served.forgive(name)
    version = await _moved(service, name, request.version)
    return PointResponse(name=name, version=version.name, **version.stamp.model_dump())


@router.delete("/v1/indexes/{name}")
async def drop(name: Alias, scoped: Here) -> Removed:
    """Serve an alias no longer; its version stays, and so does what was written."""
    service = scoped.whole(name)
    if name == service.served.source.default:
        raise ApiError(409, f"{name!r} is the default index; point it elsewhere instead")
    await scoped.named(name, "name")
    await asyncio.to_thread(service.served.source.catalog.drop, name)
    await service.follow(SHORTLY_S)
    return Removed(name=name)


async def _moved(service: Service, name: str, version: str) -> Version:
    """Wait until an alias serves a version here.

    Raises:
        ApiError: the version is refused, or much was written through versions with another model, and encoding it
            takes longer than a request may.
    """
    while True:
        await service.follow(max(LOOK_S, time_left() - LOOK_S))
        served = dict(service.served.all()).get(name)
        if served is not None and served.name == version:
            return served
        if (reason := service.served.refusal(name)) is not None:
            raise ApiError(409, f"{version}: {reason}", param="version")
        if time_left() < 2 * LOOK_S:
            raise ApiError(
                503, f"what was written is encoded for {version} first; {name} moves by itself when that is done"
            )
        await asyncio.sleep(LOOK_S)


async def _state(service: ScopedService, alias: str, version: Version) -> IndexState:
    stats = await service.stats(version)
    return IndexState(
        name=alias,
        version=version.name,
        model=version.manifest.name,
        dimension=version.manifest.dimension,
        reranker=version.has_reranker,
        shards=version.manifest.num_shards,
        default=alias == service.served.default,
        collections={
            task: CollectionState(
                documents=sum(shard.documents for shard in shards),
                uncompacted=sum(shard.uncompacted for shard in shards) if service.sees_all_documents else None,
            )
            for task, shards in stats.items()
        },
        **version.stamp.model_dump(),
    )
