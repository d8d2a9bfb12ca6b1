"""Bind the deployments of one bundle.

    serve run serve.app:build run=configs/demo.yaml

The bundle is verified before anything is deployed. `serve run` listens on 127.0.0.1:8000; a service that listens
elsewhere needs `serve.api_keys_file`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from embedder.bundle import verify
from embedder.config import RunConfig
from embedder.errors import ConfigError, EmbedderError
from embedder.index.catalog import Catalog
from embedder.reports import console
from embedder.run_file import load_run
from serve.embed import EncoderReplica
from serve.ingress import Ingress
from serve.search import ShardReplica

SHARD_CPUS = 0.1
INGRESS_CPUS = 0.1


def build(arguments: dict[str, str]) -> Application:
    """The application of a run file's bundle; exit status 2 and one line for an error the user can mend.

    `run` names the run file; every other argument is an override such as `serve.max_replicas=8`.
    """
    try:
        overrides = [f"{key}={value}" for key, value in arguments.items() if key != "run"]
        if "run" not in arguments:
            raise ConfigError("serve run serve.app:build: name the run file, run=configs/demo.yaml")
        return build_run(load_run(arguments["run"], overrides))
    except EmbedderError as error:
        console().print(f"error: {error}", markup=False)
        sys.exit(2)


def build_run(config: RunConfig) -> Application:
    """The application of a resolved run file.

    Raises:
        BundleError: a file of the bundle is missing or altered.
        ConfigError: the file of API keys is missing or empty.
    """
    settings = config.serve
    bundle, state = deployed(config)
    manifest = verify(bundle)
    _check_keys(settings.api_keys_file)
    scaling = AutoscalingConfig(
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        target_ongoing_requests=settings.batch_size,
    )
    resources = {"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica}
    encoder = serve.deployment(
        EncoderReplica,
        name="encoder",
        autoscaling_config=scaling,
        # A batch can only fill when twice as many requests may be under way.
        max_ongoing_requests=2 * settings.batch_size,
        max_queued_requests=settings.max_queued_requests,
        ray_actor_options=resources,
    ).bind(str(bundle), settings.batch_size, settings.batch_wait_s)
    shards = [
        serve.deployment(
            ShardReplica,
            name=f"shard-{shard:05d}",
            autoscaling_config=scaling,
            max_ongoing_requests=2 * settings.batch_size,
            ray_actor_options={"num_cpus": SHARD_CPUS},
        ).bind(str(bundle), str(state), shard)
        for shard in range(manifest.num_shards)
    ]
    return serve.deployment(
        Ingress,
        name="ingress",
        max_ongoing_requests=settings.max_queued_requests,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
    ).bind(settings, str(bundle), encoder, shards)


def deployed(config: RunConfig) -> tuple[Path, Path]:
    """The bundle to deploy, and where what is written to its index is.

    Raises:
        ConfigError: the run has no version that its alias names.
    """
    if config.serve.bundle is not None:
        return config.serve.bundle, config.serve.bundle.with_name(f"{config.serve.bundle.name}.state")
    catalog = Catalog(config.paths.indexes)
    version = catalog.resolve(config.index.alias)
    return catalog.bundle(version), catalog.state(version)


def _check_keys(path: Path | None) -> None:
    if path is not None and (not path.is_file() or not path.read_text(encoding="utf-8").strip()):
        raise ConfigError(f"serve.api_keys_file {path}: missing or empty; write one key a line")
