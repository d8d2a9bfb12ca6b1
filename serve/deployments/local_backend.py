"""The encoder and the index in the process of the ingress: no call to another process, the same admission."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ray import serve
from typing_extensions import Unpack

from embedder.config.serve import ServeConfig
from embedder.index.opened import OpenIndex
from serve.backend import CALL_FORMAT, Encoded, Piece, R, Texts, Ts, time_left
from serve.deployments.coalescing import Coalescer, Limits, Outcome
from serve.deployments.encoder_replica import EncoderReplica, threads_together
from serve.deployments.node_metrics import gathered
from serve.deployments.ray_backend import prepare_everywhere, state_of_deployments
from serve.deployments.shard_replica import ShardReplica
from serve.http_errors import ApiError
from serve.schemas.state_schemas import DeploymentState
from serve.versions.served import VersionSource

CALLS_A_THREAD = 2
"""Calls of a lane under way for each thread that computes: one is computed, the next one is made tokens of."""
CALL_CHARACTERS = 1000
"""Of a call: eight short texts. A CPU is no faster with more, and queries that come meanwhile wait for them."""


class InProcess:
    """Backend of the service where model and index fit one process."""

    def __init__(self, settings: ServeConfig, source: VersionSource, deployed: str) -> None:
        """Load what is served; `deployed` is the version that the service was deployed with.

        Raises:
            BundleError: it is missing or damaged.
            DeviceError: it was given a GPU that cannot be used.
        """
        self._settings = settings
        threads = threads_together(settings)
        self.encoder = EncoderReplica(source, settings, deployed, threads=threads)
        self.parts = [ShardReplica(source, settings, deployed, 0, 1)]
        self._coalescer = Coalescer(self._encode, Limits.of(settings, CALLS_A_THREAD * threads, CALL_CHARACTERS))

    @property
    def num_slices(self) -> int:
        """Slices of the index."""
        return len(self.parts)

    def refusal(self, num_bytes: int) -> ApiError | None:
        return self._coalescer.refusal(num_bytes)

    async def encode(self, version: str, texts: Texts, truncate: bool) -> Encoded:
        return await self._coalescer.encode(version, texts, truncate)

    async def _encode(self, version: str, pieces: list[Piece], truncate: bool) -> list[Outcome]:
        return await self.encoder.encode(version, pieces, truncate, CALL_FORMAT)

    async def call(
        self, part: int, version: str, method: Callable[[OpenIndex, Unpack[Ts]], R], *arguments: Unpack[Ts]
    ) -> R:
        """Call a method of INDEX_CALLS on the index of one slice.

        Raises:
            TimeoutError: the deadline of the request has passed; what was begun goes on.
        """
        answering = self.parts[part].call(version, method.__name__, *arguments, call_format=CALL_FORMAT)
        try:
            answer: R = await asyncio.wait_for(answering, time_left())
        except asyncio.TimeoutError as error:
            raise TimeoutError from error
        return answer

    async def prepare(self, version: str) -> None:
        """Have every replica of this deployment load a version and try it."""
        here = serve.get_replica_context()
        own = serve.get_deployment_handle(here.deployment, here.app_name)
        await prepare_everywhere([own], version, self._settings.retries)

    async def prepare_here(self, version: str) -> None:
        """Load a version in this process, and try it.

        Raises:
            BundleError: it is missing or damaged.
        """
        await self.encoder.prepare(version)
        for part in self.parts:
            await part.prepare(version)

    async def check_health(self) -> None:
        """Pass through every model and every collection that is loaded; raises what a replica is replaced for."""
        await self.encoder.check_health()
        for part in self.parts:
            await part.check_health()

    async def deployments(self) -> list[DeploymentState]:
        return await asyncio.to_thread(state_of_deployments, serve.get_replica_context().app_name)

    async def metrics(self) -> str:
        return await gathered(serve.get_replica_context().app_name)

    async def follow_deletion(self) -> None:
        """Nothing: no other deployment is taken away from this one."""
