"""`cluster.yaml` against Ray's own schema, and its promises about what is open."""

from __future__ import annotations

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.conftest import ROOT


def test_the_cluster_file_is_valid_and_keeps_the_dashboard_on_loopback() -> None:
    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    validate_config(prepare_config(yaml.safe_load(text)))
    assert "--dashboard-host=127.0.0.1" in text and "0.0.0.0" not in text
    starts = [line for line in text.splitlines() if "ray start" in line]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token" in line for line in starts)
