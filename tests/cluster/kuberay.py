"""The fields of KubeRay 1.7's `ray.io/v1` resources, and a check of manifests against them.

KubeRay publishes its schemas as files of a megabyte, on GitHub alone; names, types and choices below are those of its
API reference for 1.7.0, written down here. What they embed of Kubernetes itself (pods, containers) is checked against
the schemas Kubernetes publishes. Where KUBERAY_CRDS names a folder of KubeRay's own files (of its repository
ray-operator/config/crd/bases) `check_by_definition` compares with these.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft7Validator

KUBERNETES = "1.33.0"
DEFINITIONS = os.environ.get("KUBERAY_CRDS", "")
"""Folder of KubeRay's definitions, `*rayjobs.yaml` and others; empty: there is none."""
TEXTS = {"text": "text"}
"""A mapping of texts to texts."""

FIELDS: dict[str, dict[str, Any]] = {
    "RayJobSpec": {
        **dict.fromkeys(("entrypoint", "runtimeEnvYAML", "jobId", "entrypointResources", "managedBy"), "text"),
        **dict.fromkeys(
            ("activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished", "preRunningDeadlineSeconds"), "whole"
        ),
        **dict.fromkeys(("entrypointNumCpus", "entrypointNumGpus"), "number"),
        **dict.fromkeys(("shutdownAfterJobFinishes", "suspend"), "flag"),
        **dict.fromkeys(("metadata", "clusterSelector"), TEXTS),
        "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        "rayClusterSpec": "RayClusterSpec",
        "submitterPodTemplate": "PodTemplate",
        "submitterConfig": {"backoffLimit": "whole"},
        "deletionStrategy": "other",
    },
    "RayServiceSpec": {
        **dict.fromkeys(("serveConfigV2", "managedBy"), "text"),
        "rayClusterDeletionDelaySeconds": "whole",
        **dict.fromkeys(("excludeHeadPodFromServeSvc", "suspend"), "flag"),
        "upgradeStrategy": {
            "type": ("NewCluster", "NewClusterWithIncrementalUpgrade", "None"),
            "clusterUpgradeOptions": {
                **dict.fromkeys(("maxSurgePercent", "stepSizePercent", "intervalSeconds"), "whole"),
                "gatewayClassName": "text",
            },
        },
        "rayClusterConfig": "RayClusterSpec",
        "serveService": "other",
    },
    "RayClusterSpec": {
        **dict.fromkeys(("rayVersion", "managedBy"), "text"),
        **dict.fromkeys(("enableInTreeAutoscaling", "suspend"), "flag"),
        "headServiceAnnotations": TEXTS,
        "upgradeStrategy": {"type": ("Recreate", "None")},
        "authOptions": {"mode": ("disabled", "token"), "secretName": "text", "enableK8sTokenAuth": "flag"},
        "tlsOptions": {"enabled": "flag"},
        "autoscalerOptions": "AutoscalerOptions",
        "headGroupSpec": "HeadGroupSpec",
        "workerGroupSpecs": ["WorkerGroupSpec"],
        **dict.fromkeys(("gcsFaultToleranceOptions", "historyServerOptions", "networkPolicy"), "other"),
    },
    "AutoscalerOptions": {
        "version": ("v1", "v2"),
        "upscalingMode": ("Default", "Aggressive", "Conservative"),
        "idleTimeoutSeconds": "whole",
        **dict.fromkeys(
            ("image", "imagePullPolicy", "resources", "securityContext", "env", "envFrom", "volumeMounts"), "container"
        ),
        "command": ["text"],
        "args": ["text"],
    },
    "HeadGroupSpec": {
        "template": "PodTemplate",
        **dict.fromkeys(("rayStartParams", "resources", "labels"), TEXTS),
        "enableIngress": "flag",
        "serviceType": ("ClusterIP", "NodePort", "LoadBalancer"),
        **dict.fromkeys(("headService", "ingressOptions"), "other"),
    },
    "WorkerGroupSpec": {
        "groupName": "text",
        "template": "PodTemplate",
        **dict.fromkeys(("replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "priority"), "whole"),
        **dict.fromkeys(("rayStartParams", "resources", "labels"), TEXTS),
        "numOfHosts": "whole",
        "suspend": "flag",
        "scaleStrategy": {"workersToDelete": ["text"]},
    },
}
REQUIRED = {
    "RayJobSpec": {"entrypoint"},
    "RayServiceSpec": {"serveConfigV2", "rayClusterConfig"},
    "RayClusterSpec": {"headGroupSpec"},
    "HeadGroupSpec": {"template", "rayStartParams"},
    "WorkerGroupSpec": {"groupName", "template", "rayStartParams", "minReplicas", "maxReplicas"},
}
PLAIN = {"text": str, "whole": int, "number": (int, float), "flag": bool}


def check_manifest(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with one object, a line each."""
    if manifest["apiVersion"] != "ray.io/v1":
        return _check_kubernetes(manifest, manifest["kind"])
    beyond = set(manifest) - {"apiVersion", "kind", "metadata", "spec"}
    return [f"{item}: unknown" for item in beyond] + _check(manifest["spec"], f"{manifest['kind']}Spec", "spec")


def _check(value: Any, kind: Any, path: str) -> list[str]:
    """Compare a value with what FIELDS says of it."""
    if isinstance(kind, list):
        if not isinstance(value, list):
            return [f"{path}: not a list"]
        return [line for i, item in enumerate(value) for line in _check(item, kind[0], f"{path}[{i}]")]
    if isinstance(kind, tuple):
        return [] if value in kind else [f"{path}: {value!r} is none of {kind}"]
    if kind == "PodTemplate":
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "one"}, "template": value}
        return _check_kubernetes(template, path)
    if isinstance(kind, str) and kind in PLAIN:
        right = isinstance(value, PLAIN[kind]) and (kind == "flag" or not isinstance(value, bool))
        return [] if right else [f"{path}: {value!r} is no {kind}"]
    if kind == "other":
        return [f"{path}: not described in this file; add its fields before it is used"]
    if kind == TEXTS:
        wrong = [f"{path}.{key}: {item!r} is no text" for key, item in value.items() if not isinstance(item, str)]
        return wrong if isinstance(value, dict) else [f"{path}: not a mapping"]
    return _check_mapping(value, kind, path)


def _check_mapping(value: Any, kind: Any, path: str) -> list[str]:
    fields = FIELDS[kind] if isinstance(kind, str) else kind
    if not isinstance(value, dict):
        return [f"{path}: not a mapping"]
    lines = [f"{path}.{name}: unknown" for name in set(value) - set(fields)]
    lines += [f"{path}.{name}: missing" for name in REQUIRED.get(str(kind), set()) - set(value)]
    contained = {name: item for name, item in value.items() if fields.get(name) == "container"}
    if contained:
        pod = {"containers": [{"name": "one", **contained}]}
        lines += _check({"spec": pod}, "PodTemplate", path)
    known = {name: item for name, item in value.items() if name in fields and name not in contained}
    return lines + [line for name, item in known.items() for line in _check(item, fields[name], f"{path}.{name}")]


def _check_kubernetes(manifest: dict[str, Any], path: str) -> list[str]:
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{path}: {'.'.join(map(str, error.path))}: {error.message}"]
    return []


def check_by_definition(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with one of KubeRay's objects by its own definition, a line each; unknown fields are wrong too."""
    validator = definition(manifest["kind"], manifest["apiVersion"])
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


@cache
def definition(kind: str, version: str) -> Draft7Validator:
    (path,) = Path(DEFINITIONS).glob(f"*{kind.lower()}s.yaml")
    # By the C library, since the other one takes a quarter of a minute.
    versions = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)["spec"]["versions"]
    (described,) = (each for each in versions if version == f"ray.io/{each['name']}")
    return Draft7Validator(strict(described["schema"]["openAPIV3Schema"]))


def strict(schema: Any) -> Any:
    """A schema of Kubernetes as one that knows all fields, as the API server warns of others and drops them."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "x-kubernetes-int-or-string" in schema:
        return {"type": ["integer", "string"]}
    made = {key: strict(part) for key, part in schema.items() if key != "format"}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    return made
