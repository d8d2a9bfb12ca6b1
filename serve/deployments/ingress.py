"""Deployment: the HTTP interface. Holds no model; checks every limit before a text reaches one."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from embedder.config.serve import ServeConfig
from embedder.config.tasks import TaskSpec
from embedder.errors import ConfigError, EmbedderError
from serve.api import make_api
from serve.deployments.ray_backend import Deployments
from serve.deployments.service_metrics import IngressMetrics
from serve.http_errors import ApiError
from serve.middleware.load_shedding import OVERLOAD
from serve.service import Service
from serve.versions.served import Served, VersionSource

logger = logging.getLogger("ray.serve")

LOOPBACK = {"127.0.0.1", "::1", "localhost"}
FOLLOW_EVERY_S = 1.0
"""Between two looks at the aliases, which others move too: another ingress, or the job `index`."""


def check_bind(settings: ServeConfig, host: str, *, everywhere: bool) -> None:
    """Refuse to listen beyond loopback without keys.

    Raises:
        ConfigError: whoever reaches this machine could use the service.
    """
    if settings.api_keys_file is not None or settings.insecure or (host in LOOPBACK and not everywhere):
        return
    raise ConfigError(
        f"the service listens on {'all interfaces (HAProxy)' if everywhere else host} and asks for no key; set "
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
        encoder: DeploymentHandle,
        slices: list[DeploymentHandle],
    ) -> None:
        """Check keys and the address, and read what is served.

        Raises:
            EmbedderError: there are no keys where there must be, or nothing to serve.
        """
        check_bind(settings, _http_host(), everywhere=os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1")
        self._metrics = IngressMetrics()
        served = Served(source, settings.max_versions)
        self._backend = Deployments(settings, encoder, slices, self._metrics.retries.inc)
        self.service = Service(settings, tasks, served, self._backend)
        OVERLOAD.gate = self._backend
        self._following: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application; Ray calls this in the event loop that will answer requests."""
        self._following = asyncio.get_running_loop().create_task(self._follow_for_ever())
        return make_api(self.service, self._metrics.answered)

    async def close(self) -> None:
        """Refuse what begins from now on; returns when all that has begun is answered."""
        await self.service.traffic.close()

    async def check_health(self) -> None:
        """The replica is replaced when it no longer follows the aliases, for whatever reason."""
        if self._following is not None and self._following.done():
            await self._following

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
