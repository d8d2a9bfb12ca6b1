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
from pathlib import Path

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
from embedder.console import console
from embedder.credentials import masked
from embedder.errors import ConfigError, EmbedderError
from embedder.index.bundle import verify
from embedder.run.ray_token import prepare_own_ray, refuse_open_ray, refuse_shared_token
from embedder.run.workspace import workplace
from serve.access.keys import read_keys
from serve.deployments.coalescing import LANES, MOST_PIECES
from serve.deployments.ingress import Ingress
from serve.deployments.shard_replica import ShardReplica
from serve.middleware.load_shedding import ENVIRONMENT
from serve.versions.served import VersionSource

SHARD_CPUS = 0.1
INGRESS_CPUS = 0.1
SLICE_REQUESTS = 8
"""Searches of a slice, waiting or running, above which another replica is started."""
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
    """The application of a run file as it was read, once Ray asks for a token and the workplace is there.

    Raises:
        ConfigError: it does not, or the run has nothing to serve.
        BundleError: a file of the bundle is missing or altered.
    """
    with workplace(config, writes=False) as resolved:
        check_ray(resolved.cluster)
        return build_run(resolved)


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
    """The application of a resolved run file.

    Raises:
        BundleError: a file of the bundle is missing or altered.
        ConfigError: there is no version to serve, or the file of API keys is missing or empty.
    """
    settings, source = config.serve, VersionSource.of(config)
    bundle = deployed(config)
    manifest = verify(bundle)
    if settings.api_keys_file is not None:
        read_keys(settings.api_keys_file)
    # The replica of the encoder brings torch, which a run file or bundle that is refused need not wait for.
    from serve.deployments.encoder_replica import EncoderReplica

    version = bundle.name
    calls = settings.target_ongoing_requests * settings.max_replicas
    encoder = serve.deployment(
        EncoderReplica,
        name="encoder",
        # As many as all ingresses send: a call that waits for a replica is asked about again at intervals.
        max_ongoing_requests=LANES * calls * settings.max_ingress_replicas,
        max_queued_requests=settings.max_queued_requests,
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
        **_common(settings, settings.min_replicas, settings.max_replicas, settings.target_ongoing_requests),
    ).bind(source, settings, version)
    slices = [
        serve.deployment(
            ShardReplica,
            name=f"shard-{number:05d}",
            max_ongoing_requests=8 * SLICE_REQUESTS,
            max_queued_requests=settings.max_queued_requests,
            ray_actor_options={"num_cpus": SHARD_CPUS},
            **_common(settings, settings.min_replicas, settings.max_replicas, SLICE_REQUESTS),
        ).bind(source, settings, version, number, manifest.num_shards)
        for number in range(manifest.num_shards)
    ]
    most = LANES * settings.max_queued_requests + MOST_PIECES * calls
    return serve.deployment(
        Ingress,
        name="ingress",
        # More than the encoder takes, so that it is the ingress that says 429 and not the proxy that waits. Beyond
        # that Ray says it, in plain text.
        max_ongoing_requests=2 * most,
        max_queued_requests=most,
        ray_actor_options={"num_cpus": INGRESS_CPUS, "runtime_env": _ingress_environment()},
        # As many as there are encoders at least, so that the death of one leaves another to answer.
        **_common(
            settings,
            min(settings.min_replicas, settings.max_ingress_replicas),
            settings.max_ingress_replicas,
            INGRESS_REQUESTS,
        ),
    ).bind(settings, source, config.tasks, encoder, slices)


def _ingress_environment() -> dict[str, object]:
    """The environment of the job with ours added: Ray takes one that a deployment has in place of the job's."""
    job = dict(ray.get_runtime_context().runtime_env) if ray.is_initialized() else {}
    return {**job, "env_vars": {**job.get("env_vars", {}), **ENVIRONMENT}}


def _common(settings: ServeConfig, least: int, most: int, target: int) -> dict[str, object]:
    """The options that all deployments share: Ray's defaults leave a gap at updates and wait for ever."""
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=least,
            max_replicas=max(least, most),
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


def deployed(config: RunConfig) -> Path:
    """The bundle that is served by default.

    Raises:
        ConfigError: the run has no version that its alias names.
    """
    source = VersionSource.of(config)
    return source.bundle(source.catalog.resolve(config.index.alias)) if source.is_catalog else source.folder
