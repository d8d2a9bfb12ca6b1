"""The service through Ray, behind the front that is shipped, under attacks on the wire: nothing dies, nothing grows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from benchmarks import serving_attacks
from benchmarks.hostile_requests import WIRE
from benchmarks.serving_attacks import attacked
from benchmarks.serving_systems import System, served_by_ray
from tests.cluster.conftest import free_port
from tests.cluster.served import MODEL
from tests.serving import publish, run_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]
KEY = "key-" + "k" * 32
SECONDS = 15.0


@pytest.mark.parametrize("way", ["proxy", "default"])
def test_attacks_on_the_wire_leave_proxy_and_service_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Faults 8.4 and 8.5: a body of 600 MiB took as much of proxy and ingress, a header of 100 MiB stopped both."""
    monkeypatch.setattr(serving_attacks, "REST_S", 0.0)  # what is left after a rest is a figure of the benchmark
    publish(tmp_path / "work", MODEL, "v1", shards=1)
    keys = tmp_path / "keys"
    keys.write_text(f"admin {KEY}\n", encoding="utf-8")

    @contextmanager
    def ours(way: str, **serve: object) -> Iterator[System]:
        config = run_config(tmp_path / "work", MODEL, api_keys_file=str(keys), max_replicas=1, **serve)
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
        with served_by_ray("ours", str(path), free_port(), KEY, way=way) as system:
            yield system

    found = attacked(ours, [f"text {number}" for number in range(40)], SECONDS, way, list(WIRE))
    assert found["crashes"] == 0
    assert found["failed"] == 0, found["examples"]
    before, peak = found["memory_mib"]["before"], found["memory_mib"]["peak"]
    for part in ("proxy", "service", "front"):
        assert peak[part] - before[part] < 150, (part, found["memory_mib"])
