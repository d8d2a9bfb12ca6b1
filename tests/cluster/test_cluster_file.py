"""The cluster files against Ray's schema and the clouds' own, and their promises of what is closed."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import googleapiclient
import pytest
import yaml
from botocore.validate import ParamValidator
from jsonschema import Draft7Validator
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

import embedder
from tests.cluster.conftest import ROOT

FILES = {"aws": "cluster.yaml", "gcp": "cluster-gcp.yaml"}
SPOT = {
    "aws": lambda node: node.get("InstanceMarketOptions", {}).get("MarketType") == "spot",
    "gcp": lambda node: node.get("scheduling", {}).get("provisioningModel") == "SPOT",
}
both = pytest.mark.parametrize("cloud", FILES)


def text_of(cloud: str) -> str:
    return (ROOT / FILES[cloud]).read_text(encoding="utf-8")


def load(cloud: str) -> dict[str, Any]:
    return yaml.safe_load(text_of(cloud))


@both
def test_cluster_file_is_taken_by_ray(cloud) -> None:
    validate_config(prepare_config(load(cloud)))


def test_cluster_file_has_node_types_that_ec2_takes() -> None:
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, node_type in load("aws")["available_node_types"].items():
        report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node_type["node_config"]}, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_cluster_file_has_node_types_that_compute_engine_takes() -> None:
    described = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents" / "compute.v1.json"
    schemas = json.loads(described.read_text(encoding="utf-8"))["schemas"]
    strict = {name: strict_schema(schema) for name, schema in schemas.items() if name[0].isupper()}
    validator = Draft7Validator({**strict["Instance"], "definitions": strict})
    for name, node_type in load("gcp")["available_node_types"].items():
        errors = [
            f"{name}: {error.json_path}: {error.message}" for error in validator.iter_errors(node_type["node_config"])
        ]
        assert not errors


def strict_schema(described: Any) -> Any:
    """A schema of Google's API description as JSON Schema that knows all keys; it writes integers as strings too."""
    if isinstance(described, list):
        return [strict_schema(part) for part in described]
    if not isinstance(described, dict):
        return described
    if "$ref" in described:
        return {"$ref": f"#/definitions/{described['$ref']}"}
    if described.get("format") in {"int64", "uint64"}:
        return {"type": ["string", "integer"]}
    kept = {key: described[key] for key in ("type", "enum", "pattern") if isinstance(described.get(key), (str, list))}
    if isinstance(described.get("properties"), dict):
        kept["properties"] = {name: strict_schema(part) for name, part in described["properties"].items()}
        kept["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(described.get(key), dict):
            kept[key] = strict_schema(described[key])
    return kept


@both
def test_cluster_file_opens_nothing_and_asks_for_the_token_at_every_start(cloud) -> None:
    text, file = text_of(cloud), load(cloud)
    assert "--dashboard-host=127.0.0.1" in text and "0.0.0.0" not in text
    commands = [*file["head_start_ray_commands"], *file["worker_start_ray_commands"]]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert file["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    network = {"aws": "SecurityGroupIds", "gcp": "networkInterfaces"}[cloud]
    assert all(node_type["node_config"][network] for node_type in file["available_node_types"].values())


@both
def test_cluster_file_has_bounded_node_types_by_role(cloud) -> None:
    file = load(cloud)
    types = file["available_node_types"]
    assert types[file["head_node_type"]]["resources"] == {"CPU": 0}
    workers = {name: node_type for name, node_type in types.items() if name != file["head_node_type"]}
    assert all(node_type["min_workers"] == 0 < node_type["max_workers"] for node_type in workers.values())
    assert file["max_workers"] == sum(node_type["max_workers"] for node_type in workers.values())
    for name, node_type in types.items():
        spot = SPOT[cloud](node_type["node_config"])
        assert node_type["labels"] == {"market": "spot" if spot else "on-demand"} and name.endswith("_spot") == spot
        assert node_type.get("priority", 0) == (10 if spot else 0)
        if name.endswith("_spot"):
            assert node_type["resources"] == types[name.removesuffix("_spot")]["resources"]
        assert (
            node_type.get("docker", file["docker"])
            .get("worker_image", file["docker"]["image"])
            .partition("@")[0]
            .endswith("-gpu" if "GPU" in node_type["resources"] else "-cpu")
        )


def test_cluster_files_of_both_clouds_have_the_same_roles_and_commands() -> None:
    aws, gcp = load("aws"), load("gcp")
    for file in (aws, gcp):
        mount = file["initialization_commands"].pop(1)
        assert mount.startswith("mountpoint -q /shared || sudo mount ")
        file.pop("provider")
        for node_type in file["available_node_types"].values():
            node_type.pop("node_config")
    assert aws == gcp


@both
def test_cluster_file_installs_nothing_and_pins_its_images_by_digest(cloud) -> None:
    text = text_of(cloud)
    assert "pip" not in text
    images = re.findall(r"image: REGISTRY/llm-embedder:([0-9.]+)-[cg]pu@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert images == [embedder.__version__] * 2 and images == [embedder.__version__] * text.count("image: ")


@both
def test_cluster_file_copies_the_token_alone(cloud) -> None:
    assert load(cloud)["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


@both
def test_cluster_file_ends_a_node_that_mounts_nothing_or_has_an_old_driver(cloud, tmp_path: Path) -> None:
    """Its commands are run here with programs of the same names that answer as a node of each kind would."""
    commands = load(cloud)["initialization_commands"]
    assert boots(tmp_path / "mounted", commands, mounted=True)
    assert boots(tmp_path / "mounts", commands, mounts=True)
    assert not boots(tmp_path / "alone", commands)
    assert boots(tmp_path / "gpu", commands, mounted=True, driver="580.95.05")
    assert not boots(tmp_path / "old", commands, mounted=True, driver="550.54.15")


def boots(
    folder: Path, commands: list[str], *, mounted: bool = False, mounts: bool = False, driver: str | None = None
) -> bool:
    """Whether all commands succeed, as Ray wants of a node."""
    folder.mkdir()
    programs = {
        "sudo": 'exec "$@"',
        "mkdir": "exit 0",
        "chown": "exit 0",
        "mountpoint": f"exit {int(not mounted)}",
        "mount": f"exit {int(not mounts)}",
        "nvidia-smi": "exit 9" if driver is None else f"echo {driver}",
    }
    for name, line in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin"}
    return all(subprocess.run(["bash", "-c", line], env=environment, check=False).returncode == 0 for line in commands)


@both
def test_cluster_file_gives_workers_an_identity_of_their_own(cloud) -> None:
    """Ray gives one to the head alone, and on AWS that one may do everything."""
    file = load(cloud)
    key = {"aws": "IamInstanceProfile", "gcp": "serviceAccounts"}[cloud]
    identities = {name: node["node_config"].get(key) for name, node in file["available_node_types"].items()}
    head = identities.pop(file["head_node_type"])
    worker, *others = identities.values()
    assert worker and all(other == worker for other in others) and worker != head
    assert head is not None or cloud == "gcp"


def test_cluster_file_of_google_deletes_a_preempted_machine() -> None:
    types = load("gcp")["available_node_types"].values()
    actions = [node["node_config"].get("scheduling", {}).get("instanceTerminationAction") for node in types]
    assert actions == [None, None, "DELETE", None, "DELETE"]


@cache
def autoscaling_config(cloud: str) -> AutoscalingConfig:
    return AutoscalingConfig(load(cloud), skip_content_hash=True)


def started(cloud: str, count: int, shape: dict[str, float], failed: str = "", spot_cpus: int = 0) -> dict[str, int]:
    """The nodes that Ray's own scheduler would start for so many requests; the type `failed` has run out."""
    config = autoscaling_config(cloud)
    types = copy.deepcopy(config.get_node_type_configs())
    if spot_cpus:
        types["cpu_spot"].resources = {**types["cpu_spot"].resources, "CPU": spot_cpus}
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=types,
        max_num_nodes=config.get_max_num_worker_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(shape)] * count),
        recoverable_resource_availabilities={failed: 0.0},
    )
    reply = ResourceDemandScheduler().schedule(request)
    assert not reply.infeasible_resource_requests
    return {launch.instance_type: launch.count for launch in reply.to_launch}


GB = 1e9


@both
def test_cluster_file_starts_spot_for_work_without_a_gpu(cloud) -> None:
    for shape, of_a_node in (({"CPU": 1}, 8), ({"CPU": 1, "memory": 4 * GB}, 8), ({"CPU": 4, "memory": 30 * GB}, 1)):
        for count in (1, 2, 5, 8):
            assert started(cloud, count, shape) == {"cpu_spot": -(-count // of_a_node)}, (count, shape)


@both
def test_cluster_file_starts_spot_for_work_with_a_gpu(cloud) -> None:
    for shape, of_a_node in (({"CPU": 4, "GPU": 1}, 1), ({"CPU": 1, "GPU": 0.5}, 2), ({"GPU": 1, "memory": GB}, 1)):
        for count in (1, 2, 8):
            assert started(cloud, count, shape) == {"gpu_spot": -(-count // of_a_node)}, (count, shape)


@both
def test_cluster_file_starts_the_other_market_when_spot_has_run_out(cloud) -> None:
    assert started(cloud, 4, {"CPU": 1}, failed="cpu_spot") == {"cpu": 1}
    assert started(cloud, 2, {"CPU": 4, "GPU": 1}, failed="gpu_spot") == {"gpu": 2}
    assert started(cloud, 10, {"CPU": 4, "GPU": 1}) == {"gpu_spot": 8, "gpu": 2}


def test_scheduler_would_start_an_on_demand_machine_if_spot_machines_were_larger() -> None:
    """The reason why both markets have machines of one size: Ray compares how full a node would be before priority."""
    assert started("aws", 1, {"CPU": 1}, spot_cpus=16) == {"cpu": 1}
