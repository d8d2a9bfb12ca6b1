"""The files that ship with the service: Ray Serve's config, and the dashboard."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from embedder.config.load import load_run
from embedder.errors import ConfigError
from serve.app import build, build_run
from serve.deployments import service_metrics

ROOT = Path(__file__).parents[2]


def test_serve_config_is_what_serve_reads_without_a_key_it_would_ignore():
    config = yaml.safe_load((ROOT / "configs" / "serve.yaml").read_text(encoding="utf-8"))
    understood = ServeDeploySchema.model_validate(config).model_dump(mode="json", exclude_unset=True)
    assert understood == config
    (application,) = config["applications"]
    assert application["import_path"] == f"{build.__module__}:{build.__name__}"
    run = load_run(ROOT / application["args"]["run"])
    assert config["http_options"]["request_timeout_s"] > run.serve.timeout_s
    assert config["http_options"]["host"] == "127.0.0.1"


def test_dashboard_shows_metrics_that_there_are():
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text(encoding="utf-8"))
    shown = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_(embedder_\w+?)(?:_bucket)?\b", target["expr"])
    }
    known = set(re.findall(r'"(embedder_\w+)"', inspect.getsource(service_metrics)))
    assert shown and shown <= known
    documented = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert all(name in documented or name.removesuffix("_duration_seconds") + "_" in documented for name in known)


def test_build_of_a_run_that_cannot_be_served_says_why(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"paths: {{work: {tmp_path}}}\nencoder: {{model: a/b, pooling: mean}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"llm-embedder index"):
        build_run(load_run(path))
    with pytest.raises(ConfigError, match="exceeds max_replicas"):
        load_run(path, ["serve.min_replicas=5"])
