"""All stages as one submitted job: two rounds, a killed driver, and what a second run skips."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from embedder.config.load import load_run
from embedder.config.run import RunConfig
from embedder.index.__main__ import main as versions
from embedder.index.bundle import verify
from embedder.run.lineage import read_lineage
from embedder.run.rounds import round_config
from embedder.run.stages import STAGES, Contents, mark_path
from tests.cluster.commands import deployed_config, serve, wait_until_up
from tests.cluster.conftest import ROOT, Cluster, free_port
from tests.cluster.results import served_bundle
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def small_run(run_file: Path, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of the session's run, one of them with rewards, in a folder of its own and in two rounds."""
    folder = tmp_path_factory.mktemp("pipeline")
    run = yaml.safe_load(run_file.read_text(encoding="utf-8"))
    run["prepare"]["sources"] = [source for source in run["prepare"]["sources"] if source["task"] in {"qa", "tool"}]
    run |= {"paths": {"work": str(folder / "work"), "cache": str(folder / "cache")}, "pipeline": {"rounds": 2}}
    run |= {"submit": {"address": cluster.dashboard, "entrypoint_cpus": 0.5}, "evaluate": {}}
    run["tasks"] = {"qa": {"shots": 0}}
    run["train"] |= {"steps": 2, "num_workers": 1}
    run["index"] = {"num_shards": 1}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def submit(cluster: Cluster, run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`python -m ray_jobs.submit`, as a user starts it in the repository."""
    command = [sys.executable, "-m", "ray_jobs.submit", "--config", str(run), *options]
    return subprocess.run(
        command, env=cluster.environment, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )


def kill_driver(cluster: Cluster, config: RunConfig, mark: Path) -> str:
    """End the pipeline's driver by SIGKILL as soon as a mark is there; the id of the job."""
    client = JobSubmissionClient(cluster.dashboard)
    # Without its preflight, which is a job of its own.
    (job,) = (job for job in client.list_jobs() if re.fullmatch(r"work-pipeline-\w+", job.submission_id or ""))

    def has_ended() -> bool:
        return bool(client.get_job_status(job.submission_id).is_terminal())

    def is_marked() -> bool:
        assert mark.is_file() or not has_ended(), client.get_job_logs(job.submission_id)[-3000:]
        return mark.is_file()

    wait_until(is_marked, 240)
    os.kill(int(client.get_job_info(job.submission_id).driver_info.pid), signal.SIGKILL)
    wait_until(has_ended)
    assert client.get_job_status(job.submission_id) is JobStatus.FAILED
    return str(job.submission_id)


def contents_of_round(config: RunConfig) -> list[str]:
    """Hashes of what mine, label and train wrote."""
    return [Contents().of(path) for stage in ("mine", "label", "train") for path in STAGES[stage].writes(config)]


def test_pipeline_survives_its_driver_and_repeats_nothing(cluster: Cluster, small_run: Path) -> None:
    config = load_run(small_run)
    second = round_config(config, 2)
    started = submit(cluster, small_run, "--run", "pipeline")
    assert started.returncode == 0, started.stdout + started.stderr
    refused = submit(cluster, small_run, "--run", "pipeline")
    assert refused.returncode == 2 and "is RUNNING" in refused.stdout + refused.stderr
    killed = kill_driver(cluster, config, mark_path(STAGES["mine"], second))
    first_round = contents_of_round(config)

    again = submit(cluster, small_run, "--run", "--wait", "pipeline")
    output = again.stdout + again.stderr
    assert again.returncode == 0, output[-4000:]
    assert f"{killed}-2" in output
    skipped = ["prepare", "mine", "label", "train", "mine, round 2"]
    assert [line for line in output.splitlines() if "done before, skipped" in line] == [
        f"{title}: done before, skipped" for title in skipped
    ]
    assert contents_of_round(config) == first_round
    bundle = served_bundle(config)
    manifest = verify(bundle)
    lineage = read_lineage(bundle / "model")
    assert "model/lineage.json" in manifest.files
    assert [lineage["round"], lineage["encoder"]["lineage"]["round"]] == [2, 1]
    assert lineage["candidates"] == Contents().of(second.paths.candidates)
    assert lineage["encoder"]["lineage"]["labels"]["content"] == Contents().of(config.paths.labelled)
    assert lineage["sources"][0]["content"] == Contents().of(config.prepare.sources[0].path)


def test_pipeline_result_is_put_online_written_to_copied_and_swapped(
    cluster: Cluster, small_run: Path, tmp_path: Path
) -> None:
    config, port = load_run(small_run), free_port()
    url = f"http://127.0.0.1:{port}"
    try:
        serve(cluster, "deploy", str(deployed_config(tmp_path, port, str(small_run))))
        wait_until_up(url)
        with httpx.Client(base_url=url, timeout=60) as client:
            note = {"id": "note", "dataset": "notes", "text": "Remember the milk."}
            written = client.post("/v1/indexes/live/documents", json={"task": "qa", "documents": [note]})
            assert written.status_code == 200, written.text
            versions([str(config.paths.indexes), "snapshot", "monday"])
            swapped = client.put("/v1/indexes/live", json={"version": "monday"})
            assert swapped.status_code == 200 and swapped.json()["version"] == "monday", swapped.text
            body = {"query": note["text"], "task": "qa", "k": 3, "mode": "lexical"}
            (hits,) = client.post("/v1/search", json=body).json()["results"]
            assert hits[0]["id"] == "note"
    finally:
        serve(cluster, "shutdown", "-y")


def test_pipeline_that_is_done_starts_nothing(cluster: Cluster, small_run: Path) -> None:
    driver = cluster.start("pipeline", small_run)
    output = driver.communicate(timeout=120)[0]
    assert driver.returncode == 0, output
    assert output.count("done before, skipped") == 9 and "0 of 9 stages run" in output
