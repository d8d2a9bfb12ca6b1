"""Bind the deployments of a run's index.

    python -m serve.start --config configs/demo.yaml
    serve run serve.app:build run=configs/demo.yaml
    serve deploy configs/serve.yaml

The bundle is verified before anything is deployed. All listen on 127.0.0.1:8000 by default; a service that listens
elsewhere needs `serve.api_keys_file`. `serve.start` alone answers at SIGTERM what was asked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import click
import ray
from ray import serve
from ray._private.services import canonicalize_bootstrap_address
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from embedder.config.cluster import ClusterConfig
from embedder.config.load import load_run
from embedder.config.run import RunConfig
from embedder.config.serve import ServeConfig
from embedder.config.tasks import TaskSpec
from embedder.console import console
from embedder.credentials import masked
from embedder.errors import ConfigError, EmbedderError
from embedder.index.bundle import MODEL, read_manifest, verify, verify_model
from embedder.run.machine import cpus, free_memory
from embedder.run.ray_token import prepare_own_ray, refuse_open_ray, refuse_shared_token
from embedder.storage.connect import open_store
from embedder.storage.object_store import ObjectPath
from serve.access.keys import read_keys
from serve.deployments.coalescing import LANES, MOST_PIECES
from serve.deployments.ingress import Ingress
from serve.deployments.replica_layout import Node, choose_layout
from serve.deployments.shard_replica import ShardReplica
from serve.middleware.load_shedding import ENVIRONMENT
from serve.versions.served import VersionSource

SHARD_CPUS = 0.1
INGRESS_CPUS = 0.1
SLICE_REQUESTS = 8
"""Searches of a slice, waiting or running, above which another replica is started."""
TOGETHER, INGRESS = "service", "ingress"
"""Names of the deployment that answers HTTP, by layout."""
PARTS_TOGETHER = 8
"""Requests of a replica that does all which count as one call of an encoder: so many share a batch."""
OWN_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
"""A replica that does all answers in Ray's own event loop: it computes in threads, and a request changes loops less."""
INGRESS_REQUESTS = 100
"""Requests of an ingress above which another one is started; most of them only wait for the encoder or a shard."""
OVERLOADED = BackpressureConfig(status_code=429, retry_after_s=1)
JSON_LOGS = LoggingConfig(encoding="JSON", enable_access_log=False)
"""The guard writes a line for each request, which has what Ray's has not."""


def build(arguments: dict[str, str]) -> Application:
    """The application of a run file's index; exit status 2 and one line for an error the user can fix.

    `run` names the run file; every other argument is an override such as `serve.max_replicas=8`.
    """
    try:
        overrides = [f"{key}={value}" for key, value in arguments.items() if key != "run"]
        if "run" not in arguments:
            raise ConfigError("serve.app:build: name the run file, run=configs/demo.yaml")
        return build_checked(load_run(arguments["run"], overrides))
    except EmbedderError as error:
        if ray.is_initialized() and ray.get_runtime_context().get_task_id() is not None:
            raise
        console().print(masked(f"error: {error}"), markup=False)
        sys.exit(2)


def build_checked(config: RunConfig) -> Application:
    """The application of a run file as it was read, once Ray asks for a token.

    Raises:
        ConfigError: it does not, or the run has nothing to serve.
        BundleError: a file of the bundle is missing or altered.
    """
    check_ray(config.cluster)
    return build_run(config)


def check_ray(settings: ClusterConfig) -> None:
    """Refuse a Ray that asks for no token; where `serve run` will start one, make its token.

    Raises:
        ConfigError: with what to do.
    """
    allowed = settings.allow_no_authentication
    if ray.is_initialized():
        address: str | None = ray.get_runtime_context().gcs_address
    else:
        # `serve run` builds the application first and connects then: to this address, or to a Ray that it starts.
        command = click.get_current_context(silent=True)
        given: str | None = (command.params.get("address") if command else None) or os.environ.get("RAY_ADDRESS")
        is_client = given is not None and given.startswith("ray://")
        address = given if is_client else canonicalize_bootstrap_address(given)
    if address is None:
        prepare_own_ray(ray.util.get_node_ip_address(), allowed)
    else:
        refuse_shared_token()
        refuse_open_ray(address, allowed)


def build_run(config: RunConfig) -> Application:
    """The application of a run.

    Raises:
        BundleError: a file of the bundle is missing or altered.
        ConfigError: there is no version to serve, the file of API keys is missing or empty, or the object store
            ignores conditions.
        StorageError: the object store does not answer.
    """
    settings, source = config.serve, VersionSource.of(config)
    if isinstance(source.folder, ObjectPath) and not settings.read_only:
        open_store(source.folder)
    version = deployed(source)
    manifest = read_manifest(source.place(version))
    if isinstance(source.folder, ObjectPath):
        # Of a store each machine hashes what it fetches; here that is what tells whether the model is the index's.
        verify_model(source.bundle(version, [f"{MODEL}/"]))
    else:
        verify(source.bundle(version))
    if settings.api_keys_file is not None:
        read_keys(settings.api_keys_file)
    layout = choose_layout(settings, source.sizes(version), _nodes())
    console().print(str(layout), markup=False)
    own = Bound(settings, source, config.tasks, version)
    return own.together() if layout.is_together else own.apart(manifest.num_shards)


@dataclass(frozen=True)
class Bound:
    """What all deployments of a service are bound with."""

    settings: ServeConfig
    source: VersionSource
    tasks: Mapping[str, TaskSpec]
    version: str
    """The one that the service is deployed with."""

    def together(self) -> Application:
        """One deployment, whose replicas do all."""
        settings = self.settings
        return self._ingress(
            TOGETHER,
            None,
            settings.max_replicas,
            calls=PARTS_TOGETHER * settings.target_ongoing_requests,
            target=PARTS_TOGETHER * settings.target_ongoing_requests,
            actor={
                "num_cpus": settings.cpus_per_replica,
                "num_gpus": settings.gpus_per_replica,
                "runtime_env": _ingress_environment(OWN_LOOP),
            },
        )

    def apart(self, num_slices: int) -> Application:
        """An ingress, the encoder, and a deployment for each slice of the index."""
        # The replica of the encoder brings torch, which a run file or bundle that is refused need not wait for.
        from serve.deployments.encoder_replica import EncoderReplica

        settings = self.settings
        calls = settings.target_ongoing_requests * settings.max_replicas
        encoder = serve.deployment(
            EncoderReplica,
            name="encoder",
            # As many as all ingresses send: a call that waits for a replica is asked about again at intervals.
            max_ongoing_requests=LANES * calls * settings.max_ingress_replicas,
            max_queued_requests=settings.max_queued_requests,
            ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
            **_common(settings, settings.max_replicas, settings.target_ongoing_requests),
        ).bind(self.source, settings, self.version)
        slices = [
            serve.deployment(
                ShardReplica,
                name=f"shard-{number:05d}",
                max_ongoing_requests=8 * SLICE_REQUESTS,
                max_queued_requests=settings.max_queued_requests,
                ray_actor_options={"num_cpus": SHARD_CPUS},
                **_common(settings, settings.max_replicas, SLICE_REQUESTS),
            ).bind(self.source, settings, self.version, number, num_slices)
            for number in range(num_slices)
        ]
        return self._ingress(
            INGRESS,
            (encoder, slices),
            settings.max_ingress_replicas,
            calls=calls,
            target=INGRESS_REQUESTS,
            actor={"num_cpus": INGRESS_CPUS, "runtime_env": _ingress_environment({})},
        )

    def _ingress(
        self,
        name: str,
        parts: tuple[Application, list[Application]] | None,
        most_replicas: int,
        *,
        calls: int,
        target: int,
        actor: dict[str, object],
    ) -> Application:
        """The deployment that answers HTTP, with so many calls to the encoder under way in each lane."""
        settings = self.settings
        most = LANES * settings.max_queued_requests + MOST_PIECES * calls
        return serve.deployment(
            Ingress,
            name=name,
            # More than the encoder takes, so that it is the ingress that says 429 and not the proxy that waits. Beyond
            # that Ray says it, in plain text.
            max_ongoing_requests=2 * most,
            max_queued_requests=most,
            ray_actor_options=actor,
            # As many as there are encoders at least, so that the death of one leaves another to answer.
            **_common(settings, most_replicas, target),
        ).bind(settings, self.source, self.tasks, self.version, parts)


def _nodes() -> list[Node]:
    """The machines on which replicas may run; this one, where Ray is not there yet."""
    if not ray.is_initialized():
        return [Node(cpus(), free_memory() or 0)]
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(one["CPU"], int(one.get("memory", 0))) for one in found if one.get("CPU")]


def _ingress_environment(variables: Mapping[str, str]) -> dict[str, object]:
    """The environment of the job with ours added: Ray takes one that a deployment has in place of the job's."""
    job = dict(ray.get_runtime_context().runtime_env) if ray.is_initialized() else {}
    return {**job, "env_vars": {**job.get("env_vars", {}), **ENVIRONMENT, **variables}}


def _common(settings: ServeConfig, most: int, target: int) -> dict[str, object]:
    """The options that all deployments share: Ray's defaults leave a gap at updates and wait for ever."""
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=min(settings.min_replicas, most),
            max_replicas=most,
            target_ongoing_requests=target,
            upscale_delay_s=settings.upscale_delay_s,
            downscale_delay_s=settings.downscale_delay_s,
        ),
        "backpressure_config": OVERLOADED,
        "max_surge_percent": settings.surge_percent,
        "graceful_shutdown_timeout_s": settings.timeout_s + 5,
        "graceful_shutdown_wait_loop_s": 1,
        "health_check_period_s": 5,
        "health_check_timeout_s": 5,
        "logging_config": JSON_LOGS,
    }


def deployed(source: VersionSource) -> str:
    """The version that is served by default.

    Raises:
        ConfigError: the run has no version that its alias names.
    """
    return source.catalog.resolve(source.default) if source.is_catalog else source.folder.name
