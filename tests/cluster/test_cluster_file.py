"""The cluster files against Ray's schema and the clouds' own, and their promises of what is closed."""

from __future__ import annotations

import json
import re
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import botocore.session
import googleapiclient
import pytest
import yaml
from botocore.validate import ParamValidator
from jsonschema import Draft7Validator
from ray.autoscaler._private.util import prepare_config, validate_config

from embedder.credentials import SECRET_FILES
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


def pins() -> dict[str, str]:
    """Pinned versions of pyproject.toml, by package."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return dict(re.findall(r'"([A-Za-z0-9_-]+)(?:\[[^]]*\])?==([0-9.]+)"', text))


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
        assert (
            node_type.get("docker", file["docker"])
            .get("worker_image", file["docker"]["image"])
            .partition("@")[0]
            .endswith("-gpu" if "GPU" in node_type["resources"] else "-cpu")
        )


def test_cluster_files_of_both_clouds_have_the_same_roles_and_commands() -> None:
    aws, gcp = load("aws"), load("gcp")
    for file in (aws, gcp):
        for key in ("provider", "head_setup_commands"):
            file.pop(key)
        for node_type in file["available_node_types"].values():
            node_type.pop("node_config")
    assert aws == gcp


@both
def test_cluster_file_has_the_versions_of_the_project(cloud) -> None:
    text, pinned = text_of(cloud), pins()
    images = re.findall(r"rayproject/ray:([0-9.]+)-py311-[cg]pu", text)
    assert len(images) == 2 and set(images) == {pinned["ray"]}
    versions = dict(re.findall(r"(torch|boto3|google-api-python-client)==([0-9.]+)", text))
    assert versions == {name: pinned[name] for name in versions} and len(versions) == 2


@both
def test_cluster_file_pins_its_images_by_digest(cloud) -> None:
    assert len(re.findall(r"image: rayproject/ray:\S+@sha256:[0-9a-f]{64}$", text_of(cloud), re.MULTILINE)) == 2


@both
def test_cluster_file_copies_what_nodes_need_and_no_credential(cloud) -> None:
    file = load(cloud)
    sent = {target: source for target, source in file["file_mounts"].items() if target.startswith("/home/ray/llm-")}
    needed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{source}" for source in sent.values()} == {line for line in needed if line.startswith("!")}
    patterns = file["rsync_exclude"]
    # Ray sends its own key and token by the same way: a pattern that fits them would lock it out.
    assert not any(
        fnmatchcase(name, pattern) for name in ("auth_token", "ray_bootstrap_key.pem") for pattern in patterns
    )
    assert set(SECRET_FILES) - set(patterns) == {"auth_token", "*.pem", ".config"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    inside = [Path(name) for name in tracked if name.split("/")[0] in sent.values()]
    assert len(inside) > 100
    assert not [name for name in inside if any(fnmatchcase(part, one) for part in name.parts for one in patterns)]
