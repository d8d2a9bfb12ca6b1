"""`cluster.yaml` at work: its node types on Ray's fake provider, where a label job makes nodes appear and go."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.cluster_utils import FAKE_HEAD_NODE_ID
from ray.job_submission import JobSubmissionClient

from embedder.config.load import load_run
from embedder.config.run import RunConfig
from embedder.data.records import GROUP, read_tables, write_table
from embedder.demo.build import build
from ray_jobs.cluster.tables import candidate_groups, labelled_ledger, passage_texts, queries
from ray_jobs.prepare import prepare_dataset
from tests.cluster.conftest import ROOT, free_port
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]
FAKE_HEAD_TYPE = "ray.head.default"
IDLE_S = 4


def fake_cluster_file(port: int) -> dict[str, Any]:
    """`cluster.yaml` with its node types, bounds, labels and priorities, on nodes that are processes here.

    CPUs are cut to 2 a node, since a node starts a process for each.
    """
    real = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    types = {}
    for name, one in real["available_node_types"].items():
        # The memory of this machine is not that of each node.
        resources = {key: min(count, 2) for key, count in one["resources"].items() if key != "memory"}
        kept = {key: one[key] for key in ("min_workers", "max_workers", "labels", "priority") if key in one}
        types[FAKE_HEAD_TYPE if name == real["head_node_type"] else name] = {
            **kept,
            "resources": resources,
            "node_config": {},
        }
    # As an external provider: Ray's wheel lacks the defaults of the type fake_multinode.
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    provider = {"type": "external", "module": module, "launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID}
    address = ray.util.get_node_ip_address()
    empty: dict[str, Any] = {"head_start_ray_commands": [], "worker_start_ray_commands": [], "setup_commands": []}
    empty |= {"head_setup_commands": [], "worker_setup_commands": [], "initialization_commands": []}
    empty |= {"file_mounts": {}, "cluster_synced_files": [], "rsync_exclude": [], "rsync_filter": [], "auth": {}}
    return {
        **{key: real[key] for key in ("cluster_name", "max_workers", "upscaling_speed")},
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {**provider, "gcs_address": f"{address}:{port}"},
        "available_node_types": types,
        "head_node_type": FAKE_HEAD_TYPE,
        **empty,
    }


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """A head with the autoscaler: the address of Ray, that of the Jobs API, and the environment to reach both."""
    port, dashboard = free_port(), free_port()
    config = tmp_path / "fake.yaml"
    config.write_text(yaml.safe_dump(fake_cluster_file(port)), encoding="utf-8")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": FAKE_HEAD_TYPE,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    command = ["ray", "start", "--head", f"--port={port}", "--num-cpus=0", f"--autoscaling-config={config}", "--block"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    # A short folder of its own: sockets lie in it, and by it a driver finds its cluster among several on a machine.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as sockets,
        (tmp_path / "head.log").open("w") as log,
    ):
        command += [f"--temp-dir={sockets}", f"--dashboard-agent-listen-port={free_port()}"]
        started = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for_jobs(started, f"http://127.0.0.1:{dashboard}", Path(log.name))
            yield f"{ray.util.get_node_ip_address()}:{port}", f"http://127.0.0.1:{dashboard}", environment
        finally:
            started.terminate()
            started.wait(timeout=60)


def wait_for_jobs(started: subprocess.Popen[bytes], dashboard: str, log: Path) -> None:
    """Wait until the Jobs API answers."""

    def answers() -> bool:
        assert started.poll() is None, log.read_text(encoding="utf-8")[-3000:]
        try:
            JobSubmissionClient(dashboard).list_jobs()
        except (ConnectionError, RuntimeError):
            return False
        return True

    wait_until(answers, timeout_s=90)


@pytest.fixture
def label_run(tmp_path: Path, tiny_encoder_folder: Path, tiny_llama_folder: Path) -> RunConfig:
    """A run with candidates of one dataset, as mine would have left them."""
    build(tmp_path / "data")
    source = {"task": "qa", "dataset": "docs", "path": str(tmp_path / "data" / "qa" / "python-docs")}
    run = {
        "paths": {"work": str(tmp_path / "work"), "cache": str(tmp_path / "cache")},
        "encoder": {"model": str(tiny_encoder_folder), "pooling": "mean"},
        "llm": {"model": str(tiny_llama_folder), "max_prefix_tokens": 400},
        "tasks": {"qa": {"shots": 0}},
        "prepare": {"sources": [{**source, "train_queries": 4, "passages": 12}]},
        "label": {"num_samples": 2, "num_actors": 1},
        "submit": {"entrypoint_cpus": 2, "labels": {"market": "on-demand"}},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    config = load_run(path)
    prepare_dataset(config.prepare.sources[0], config.tasks["qa"], config.prepare, config.paths)
    texts = dict(list(passage_texts(config.paths, "docs").items())[:3])
    groups = [
        {
            **{name: row[name] for name in ("task", "dataset", "query_id", "query", "answers")},
            "candidate_ids": list(texts),
            "candidate_texts": list(texts.values()),
            "relevance": [0] * len(texts),
        }
        for row in queries(config.paths, "train", "docs")
    ]
    write_table(groups, GROUP, config.paths.candidates / "docs.parquet")
    assert read_tables([config.paths.candidates / "docs.parquet"], GROUP).num_rows == 4
    return config


def markets(only_alive: bool) -> list[str]:
    """The label `market` of all nodes but the head, also of those that are gone."""
    nodes = [node for node in ray.nodes() if node["NodeID"] != FAKE_HEAD_NODE_ID]
    return sorted(node["Labels"]["market"] for node in nodes if node["Alive"] or not only_alive)


def test_a_label_job_makes_nodes_appear_and_go(head, label_run: RunConfig, tmp_path: Path) -> None:
    address, dashboard, environment = head
    command = [sys.executable, "-m", "ray_jobs.submit", "--config", str(tmp_path / "run.yaml"), "--run", "--wait"]
    command += ["--set", f"submit.address={dashboard}", "label"]
    job = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]
    ray.init(address=address, log_to_driver=False)
    try:
        # Preflight and driver filled nodes that stay; for the actor one of the type of higher priority was started.
        assert set(markets(only_alive=False)) == {"on-demand", "spot"}
        assert markets(only_alive=False).count("spot") == 1
        ids = labelled_ledger(label_run).read()["row_id"].to_pylist()
        assert len(ids) == len(set(ids)) == candidate_groups(label_run.paths).num_rows
        wait_until(lambda: not markets(only_alive=True))
    finally:
        ray.shutdown()
