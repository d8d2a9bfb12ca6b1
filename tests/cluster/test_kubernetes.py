"""The manifests in kubernetes/: fields, what is closed, and that they serve what serve.app builds."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ray.autoscaler._private.kuberay.node_provider import IN_CLUSTER_CA_CERT_PATH, IN_CLUSTER_TOKEN_PATH
from ray.serve.schema import ServeDeploySchema

from benchmarks.serving_front import CONFIGURATION
from embedder.config.load import load_run
from embedder.errors import ConfigError
from serve.app import build, build_run
from tests.cluster.conftest import ROOT, Cluster
from tests.cluster.kuberay import DEFINITIONS, check_by_definition, check_manifest
from tests.serving import publish

FOLDER = ROOT / "kubernetes"
MANIFESTS = [
    (path.name, each)
    for path in sorted(FOLDER.glob("*.yaml"))
    for each in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]
RAY = [(name, each) for name, each in MANIFESTS if each["apiVersion"] == "ray.io/v1"]
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
DIGEST = re.compile(r"llm-embedder:0\.1\.0-(cpu|gpu)@sha256:[0-9a-f]{64}")
(FRONT,) = (each for _, each in MANIFESTS if each["kind"] == "Deployment")
every = pytest.mark.parametrize(("name", "manifest"), MANIFESTS, ids=lambda each: str(each)[:40])
every_ray = pytest.mark.parametrize(("name", "manifest"), RAY, ids=lambda each: str(each)[:40])


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"].get("rayClusterSpec") or manifest["spec"]["rayClusterConfig"]


def pods_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates of a Ray object."""
    cluster = cluster_of(manifest)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    submitter = manifest["spec"].get("submitterPodTemplate")
    return [group["template"] for group in groups] + ([submitter] if submitter else [])


@every
def test_manifest_has_fields_and_types_of_kubernetes_and_kuberay(name, manifest) -> None:
    assert check_manifest(manifest) == []


@pytest.mark.skipif(not DEFINITIONS, reason="KUBERAY_CRDS names no folder of KubeRay's definitions")
@every_ray
def test_manifest_is_taken_by_kuberays_own_definition(name, manifest) -> None:
    wrong = copy.deepcopy(manifest)
    wrong["spec"]["unknown"] = 1
    assert check_by_definition(manifest) == [] != check_by_definition(wrong)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["entrypointt"], "x"),
        (["backoffLimit"], "5"),
        (["submissionMode"], "JobMode"),
        (["rayClusterSpec", "authOptions", "secret"], "x"),
        (["rayClusterSpec", "autoscalerOptions", "resources"], {"request": {}}),
        (["rayClusterSpec", "headGroupSpec", "rayStartParams"], {"num-cpus": 0}),
        (["rayClusterSpec", "headGroupSpec", "template", "spec", "containers"], [{"image": "x"}]),
        (["rayClusterSpec", "workerGroupSpecs"], [{"groupName": "x"}]),
    ],
)
def test_manifest_that_is_wrong_is_refused(path, value) -> None:
    (_, job) = next(each for each in RAY if each[1]["kind"] == "RayJob")
    wrong = copy.deepcopy(job)
    node = wrong["spec"]
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert check_manifest(wrong)


@every_ray
def test_manifest_asks_for_the_token_and_runs_the_pinned_ray(name, manifest) -> None:
    cluster = cluster_of(manifest)
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert f'"ray[default,data,serve,train]=={cluster["rayVersion"]}"' in (ROOT / "pyproject.toml").read_text("utf-8")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@every_ray
def test_pods_are_restricted_bounded_and_probed(name, manifest) -> None:
    for pod in pods_of(manifest):
        security, (container,) = pod["spec"]["securityContext"], pod["spec"]["containers"]
        assert security["runAsNonRoot"] and security["runAsUser"] == 1000
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == RESTRICTED
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]) and container["resources"]["limits"]
        assert container["name"] == "ray-job-submitter" or {"livenessProbe", "readinessProbe"} <= set(container)
        assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "llm-embedder"


def test_manifests_hold_no_secret() -> None:
    assert "Secret" not in {manifest["kind"] for _, manifest in MANIFESTS}
    for _, manifest in RAY:
        for pod in pods_of(manifest):
            assert [each["name"] for each in pod["spec"]["containers"][0].get("env", [])] in (
                [],
                ["NVIDIA_VISIBLE_DEVICES"],
            )


def test_images_are_pinned_by_digest() -> None:
    images = re.findall(r"image: (\S+)", "".join(path.read_text("utf-8") for path in FOLDER.glob("*.yaml")))
    assert len(images) == 11 and all(map(DIGEST.fullmatch, images))


@every_ray
def test_pods_may_write_where_ray_writes_and_nowhere_else(name, manifest) -> None:
    for pod in pods_of(manifest):
        (container,) = pod["spec"]["containers"]
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert "emptyDir" in volumes[mounts["/tmp"]["name"]]
        if container["name"] != "ray-job-submitter":
            assert "emptyDir" in volumes[mounts["/home/ray/.cache"]["name"]]
        written = {path for path, mount in mounts.items() if not mount.get("readOnly")}
        assert written <= {"/tmp", "/home/ray/.cache", "/shared"}
        assert {mount["name"] for mount in mounts.values()} <= volumes.keys()


@every_ray
def test_only_the_autoscaler_has_a_token_of_the_service_account(name, manifest) -> None:
    cluster = cluster_of(manifest)
    assert all(pod["spec"]["automountServiceAccountToken"] is False for pod in pods_of(manifest))
    holders = [
        pod["spec"]["containers"][0]["name"]
        for pod in pods_of(manifest)
        for volume in pod["spec"]["volumes"]
        if "projected" in volume
    ]
    assert holders == ["ray-head"]
    (token,) = [each for each in cluster["headGroupSpec"]["template"]["spec"]["volumes"] if "projected" in each]
    mounts = cluster["autoscalerOptions"]["volumeMounts"]
    (mount,) = [each for each in mounts if each["name"] == token["name"]]
    assert f"{mount['mountPath']}/{token_file(token)}" == IN_CLUSTER_TOKEN_PATH
    assert f"{mount['mountPath']}/ca.crt" == IN_CLUSTER_CA_CERT_PATH
    assert cluster["autoscalerOptions"]["securityContext"] == RESTRICTED
    for pod in pods_of(manifest):
        assert token["name"] not in {each["name"] for each in pod["spec"]["containers"][0]["volumeMounts"]}


def token_file(volume: dict[str, Any]) -> str:
    return next(
        source["serviceAccountToken"]["path"]
        for source in volume["projected"]["sources"]
        if "serviceAccountToken" in source
    )


POLICIES = [manifest for _, manifest in MANIFESTS if manifest["kind"] == "NetworkPolicy"]


def admits(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items()


def test_network_policies_shut_everything_that_no_other_opens() -> None:
    (shut,) = [policy for policy in POLICIES if policy["metadata"]["name"] == "deny-all"]
    assert shut["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_network_policies_admit_the_pods_of_one_run_alone() -> None:
    pods = [
        {**pod["metadata"]["labels"], "ray.io/node-type": role}
        for _, manifest in RAY
        for role, pod in zip(("head", "worker", "submitter"), pods_of(manifest), strict=False)
    ]
    for here in pods:
        for way, side in (("ingress", "from"), ("egress", "to")):
            peers = [
                peer["podSelector"]
                for policy in POLICIES
                if admits(policy["spec"]["podSelector"], here)
                for rule in policy["spec"].get(way, [])
                for peer in rule[side]
                if "podSelector" in peer and "namespaceSelector" not in peer
            ]
            reached = [there for there in pods if any(admits(selector, there) for selector in peers)]
            assert {there["app.kubernetes.io/name"] for there in reached} == {here["app.kubernetes.io/name"]}, here


def test_network_policies_let_nothing_out_but_names_the_api_server_and_what_a_label_allows() -> None:
    outward = {
        policy["metadata"]["name"]: policy["spec"]
        for policy in POLICIES
        for rule in policy["spec"].get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    }
    assert set(outward) == {"autoscaler", "object-stores"}
    assert outward["autoscaler"]["podSelector"]["matchLabels"]["ray.io/node-type"] == "head"
    assert outward["object-stores"]["podSelector"]["matchLabels"]["llm-embedder/egress"] == "https"
    assert not any("llm-embedder/egress" in pod["metadata"]["labels"] for _, each in RAY for pod in pods_of(each))
    assert all(rule["ports"] for spec in outward.values() for rule in spec["egress"])


def test_disruption_budgets_and_network_policies_select_the_pods() -> None:
    labels = [
        {**pod["metadata"]["labels"], "ray.io/node-type": role}
        for _, manifest in RAY
        for role, pod in zip(("head", "worker"), pods_of(manifest), strict=False)
    ] + [FRONT["spec"]["template"]["metadata"]["labels"]]
    for _, manifest in MANIFESTS:
        selector = manifest.get("spec", {}).get(
            "selector" if manifest["kind"] == "PodDisruptionBudget" else "podSelector"
        )
        if manifest["kind"] in {"PodDisruptionBudget", "NetworkPolicy"} and selector:
            # The label that opens the way to object stores is for users to set.
            wanted = selector["matchLabels"].items() - {("llm-embedder/egress", "https")}
            assert any(wanted <= each.items() for each in labels), manifest["metadata"]["name"]


def test_disruption_budgets_let_every_node_drain() -> None:
    """A budget that wants all pods that there may be would block the nodes of these for ever."""
    fewest = {
        group["template"]["metadata"]["labels"]["app.kubernetes.io/name"]: group["minReplicas"]
        for _, manifest in RAY
        for group in cluster_of(manifest)["workerGroupSpecs"]
        if manifest["kind"] == "RayService"
    } | {FRONT["metadata"]["name"]: FRONT["spec"]["replicas"]}
    budgets = [manifest["spec"] for _, manifest in MANIFESTS if manifest["kind"] == "PodDisruptionBudget"]
    assert len(budgets) == 2
    for budget in budgets:
        selected = budget["selector"]["matchLabels"]
        assert selected.get("ray.io/node-type") != "head"
        assert budget["minAvailable"] < fewest[selected["app.kubernetes.io/name"]]


@every_ray
def test_heads_are_moved_by_nobody_but_who_drains(name, manifest) -> None:
    annotations = cluster_of(manifest)["headGroupSpec"]["template"]["metadata"]["annotations"]
    assert annotations == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }


@every_ray
def test_pods_of_a_run_have_its_own_run_file_and_an_identity_for_stores(name, manifest) -> None:
    accounts = {each["metadata"]["name"] for _, each in MANIFESTS if each["kind"] == "ServiceAccount"}
    cluster, run = cluster_of(manifest), f"{manifest['metadata']['name']}-run"
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        role = "ray-head" if group is groups[0] else "ray-worker"
        assert pod["serviceAccountName"] == role and role in accounts
        (container,) = pod["containers"]
        (mount,) = [each for each in container["volumeMounts"] if each["name"] == "run"]
        assert mount == {"name": "run", "mountPath": "/etc/llm-embedder/run", "readOnly": True}
        assert {"name": "run", "configMap": {"name": run}} in pod["volumes"]
        assert "ephemeral-storage" in container["resources"]["requests"]
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert "/etc/llm-embedder/run/run.yaml" in text and "/shared/run.yaml" not in text
    assert f"create configmap {run} --from-file=run.yaml" in text


@every_ray
def test_workers_of_jobs_are_brought_as_work_asks_for_them(name, manifest) -> None:
    groups = {group["groupName"]: group for group in cluster_of(manifest)["workerGroupSpecs"]}
    if manifest["kind"] == "RayService":
        return
    assert cluster_of(manifest)["enableInTreeAutoscaling"] and set(groups) == {"cpu", "gpu"}
    assert all(group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"] for group in groups.values())
    for kind, group in groups.items():
        (container,) = group["template"]["spec"]["containers"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (kind == "gpu")
        assert DIGEST.fullmatch(container["image"])[1] == kind


def test_prometheus_reaches_the_metrics_and_nothing_else() -> None:
    (policy,) = [each["spec"] for each in POLICIES if each["metadata"]["name"] == "metrics"]
    assert policy["ingress"] == [
        {"from": [{"namespaceSelector": {"matchLabels": {"llm-embedder/metrics": "true"}}}], "ports": [{"port": 8080}]}
    ]


def test_front_is_restricted_bounded_and_before_the_service() -> None:
    """It runs the configuration that tests/unit/test_front.py attacks, and is the one way to the service."""
    pod = FRONT["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] and container["resources"]["limits"]
    assert container["command"][-1].endswith("-f serve/front/haproxy.cfg")
    settings = {each["name"]: each["value"] for each in container["env"]}
    assert settings.keys() <= set(re.findall(r"presetenv (\w+)", CONFIGURATION.read_text(encoding="utf-8")))
    (service,) = (manifest for _, manifest in RAY if manifest["kind"] == "RayService")
    port = serve_config()["http_options"]["port"]
    assert settings["FRONT_SERVICE"] == f"{service['metadata']['name']}-serve-svc:{port}"
    policies = {each["metadata"]["name"]: each["spec"] for _, each in MANIFESTS if each["kind"] == "NetworkPolicy"}
    (rule,) = policies["service"]["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": FRONT["spec"]["template"]["metadata"]["labels"]}}]
    (way,) = policies["front"]["egress"]
    assert way == {"to": [{"podSelector": policies["service"]["podSelector"]}], "ports": rule["ports"]}


def serve_config() -> dict[str, Any]:
    (service,) = (manifest for _, manifest in RAY if manifest["kind"] == "RayService")
    return yaml.safe_load(service["spec"]["serveConfigV2"])


def test_serve_config_has_no_key_that_serve_would_ignore() -> None:
    config = serve_config()
    understood = ServeDeploySchema.model_validate(config).model_dump(mode="json", exclude_unset=True)
    assert understood == config
    (application,) = config["applications"]
    module, name = application["import_path"].split(":")
    assert (module, name) == (build.__module__, build.__name__)


@pytest.mark.ray
@pytest.mark.slow
def test_serve_config_builds_an_application_that_fits_its_pods(
    run_file: Path, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    publish(tmp_path / "work", tiny_encoder_folder, "v1")
    (application,) = serve_config()["applications"]
    keys = tmp_path / "keys"
    keys.write_text("read a-key-that-reads\n", encoding="utf-8")
    given = {**application["args"], "run": str(run_file), "serve.api_keys_file": str(keys)}
    overrides = [f"{key}={value}" for key, value in given.items() if key != "run"] + [f"paths.work={tmp_path / 'work'}"]
    built = build_run(load_run(run_file, overrides))
    (service,) = (manifest for _, manifest in RAY if manifest["kind"] == "RayService")
    (group,) = cluster_of(service)["workerGroupSpecs"]
    pod = group["template"]["spec"]["containers"][0]["resources"]["requests"]
    have = {"num_cpus": int(pod["cpu"]), "num_gpus": pod["nvidia.com/gpu"]}
    wanted = dict.fromkeys(have, 0.0)
    for deployment in deployments_of(built):
        options = deployment.ray_actor_options or {}
        scaling = deployment._deployment_config.autoscaling_config
        for name in have:
            assert (options.get(name) or 0) <= have[name], f"{deployment.name} fits no pod"
            wanted[name] += (options.get(name) or 0) * (scaling.max_replicas if scaling else 1)
    assert all(wanted[name] <= have[name] * group["maxReplicas"] for name in have), (wanted, have)
    with pytest.raises(ConfigError):
        load_run(run_file, ["serve.max_replica=4"])


def deployments_of(application: Any) -> list[Any]:
    """All deployments of an application, each once."""
    deployments: dict[str, Any] = {}

    def visit(value: Any) -> None:
        if hasattr(value, "_bound_deployment"):
            bound = value._bound_deployment
            deployments[bound.name] = bound
            for item in [*bound.init_args, *bound.init_kwargs.values()]:
                visit(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                visit(item)

    visit(application)
    return list(deployments.values())


@pytest.mark.ray
@pytest.mark.slow
def test_probes_of_the_head_need_no_token(cluster: Cluster) -> None:
    assert httpx.get(f"{cluster.dashboard}/api/gcs_healthz", timeout=20).text == "success"
    assert httpx.get(f"{cluster.dashboard}/api/jobs/", timeout=20).status_code == 401
