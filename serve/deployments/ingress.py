"""Deployment: the HTTP interface, which checks every limit before a text reaches a model.

Encoder and index are in its own process or in deployments of their own (`layout`); the routes do not know which.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from embedder.config.serve import ServeConfig
from embedder.config.tasks import TaskSpec
from embedder.errors import ConfigError, EmbedderError
from serve.access.owner import Entrance
from serve.api import make_api
from serve.deployments.ray_backend import Deployments
from serve.deployments.service_metrics import IngressMetrics
from serve.http_errors import ApiError
from serve.middleware.load_shedding import OVERLOAD
from serve.service import Service
from serve.versions.served import Served, VersionSource

if TYPE_CHECKING:
    from serve.deployments.local_backend import InProcess

logger = logging.getLogger("ray.serve")

LOOPBACK = {"127.0.0.1", "::1", "localhost"}
FOLLOW_EVERY_S = 1.0
"""Between two looks at the aliases, which others move too: another ingress, or the job `index`."""


def check_bind(settings: ServeConfig, host: str) -> None:
    """Refuse to listen beyond loopback without keys.

    Raises:
        ConfigError: whoever reaches this machine could use the service.
    """
    if settings.api_keys_file is not None or settings.insecure or host in LOOPBACK:
        return
    raise ConfigError(
        f"the service listens on {host} and asks for no key; set "
        "serve.api_keys_file, or listen on 127.0.0.1, or set serve.insecure where the network keeps strangers out"
    )


@serve.ingress()
class Ingress:
    """The routes in a replica of their own."""

    def __init__(
        self,
        settings: ServeConfig,
        source: VersionSource,
        tasks: Mapping[str, TaskSpec],
        deployed: str,
        parts: tuple[DeploymentHandle, list[DeploymentHandle]] | None,
    ) -> None:
        """Check keys and the address, and read what is served.

        Args:
            settings, source, tasks: what is served, and how.
            deployed: the version that the service was deployed with.
            parts: encoder and slices of the index. None: they are in this process.

        Raises:
            EmbedderError: there are no keys where there must be, or nothing to serve.
        """
        check_bind(settings, _http_host())
        self._metrics = IngressMetrics()
        served = Served(source, settings.max_versions)
        self._backend = self._make_backend(settings, source, deployed, parts)
        self.service = Service(settings, tasks, served, self._backend)
        OVERLOAD.gate = Entrance(self.service)
        self._following: asyncio.Task[None] | None = None

    def _make_backend(
        self,
        settings: ServeConfig,
        source: VersionSource,
        deployed: str,
        parts: tuple[DeploymentHandle, list[DeploymentHandle]] | None,
    ) -> Deployments | InProcess:
        if parts is not None:
            return Deployments(settings, *parts, self._metrics.retries.inc)
        # Here, because it brings torch and FAISS, which an ingress of its own has no use for.
        from serve.deployments.local_backend import InProcess

        return InProcess(settings, source, deployed)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application; Ray calls this in the event loop that will answer requests."""
        self._following = asyncio.get_running_loop().create_task(self._follow_for_ever())
        return make_api(self.service, self._metrics.answered)

    async def close(self) -> None:
        """Refuse what begins from now on; returns when all that has begun is answered."""
        await self.service.traffic.close()

    async def check_health(self) -> None:
        """The replica is replaced when it no longer follows the aliases, for whatever reason, or a part of it fails."""
        if self._following is not None and self._following.done():
            await self._following
        await self._backend.check_health()

    async def prepare(self, version: str) -> None:
        """Load a version in this process, where this is what serves it.

        Raises:
            BundleError: it is missing or damaged.
        """
        await self._backend.prepare_here(version)

    async def _follow_for_ever(self) -> None:
        noted: set[tuple[str, str, str]] = set()
        refused = 0
        while True:
            try:
                await self._backend.follow_deletion()
                await self.service.follow()
            except (EmbedderError, ApiError, RayError, OSError, RuntimeError, ValueError) as error:
                # The old versions go on being served, whatever is wrong with the aliases or the new ones.
                logger.error("the aliases cannot be followed: %s", error)
            now = {
                (alias, version.stamp.model_version, version.stamp.index_version)
                for alias, version in self.service.served.all()
            }
            # To 0, because Prometheus would show the old version for ever.
            for labels in noted - now:
                self._metrics.serves(*labels, is_served=False)
            for labels in now - noted:
                self._metrics.serves(*labels)
            noted = now
            if more := OVERLOAD.refused - refused:
                refused += more
                self._metrics.refused(more)
                logger.info("requests refused unread", extra={"status": 429, "requests": more})
            await asyncio.sleep(FOLLOW_EVERY_S)


def _http_host() -> str:
    """Where Serve's proxies listen; known to the controller alone, and to no public call of Ray 2.60."""
    return str(_get_global_client().http_config.host)
