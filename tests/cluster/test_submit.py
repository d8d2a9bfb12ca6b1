"""`python -m ray_jobs.submit --run` on a real Jobs API with token authentication."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.cluster.conftest import ROOT, Cluster

pytestmark = pytest.mark.ray


def submit(cluster: Cluster, run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`python -m ray_jobs.submit`, as a user starts it in the repository."""
    command = [sys.executable, "-m", "ray_jobs.submit", "--config", str(run), *options]
    command += ["--set", f"submit.address={cluster.dashboard}", "--set", "submit.entrypoint_cpus=0.5"]
    return subprocess.run(
        command, env=cluster.environment, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )


def test_submit_runs_a_job_with_the_environment_of_the_run_file(cluster: Cluster, run_file: Path) -> None:
    client = JobSubmissionClient(cluster.dashboard)
    before = {job.submission_id for job in client.list_jobs()}
    done = submit(cluster, run_file, "--set", "submit.env={RUN_MARK: here}", "--run", "--wait", "prepare")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    new = [job for job in client.list_jobs() if job.submission_id not in before]
    asked, job = sorted(new, key=lambda each: each.start_time)
    assert asked.entrypoint.startswith("python -m ray_jobs.check_nodes --config")
    assert asked.entrypoint.endswith(" prepare") and asked.status is JobStatus.SUCCEEDED
    assert "preflight: 1 machine sees" in client.get_job_logs(asked.submission_id)
    assert job.submission_id.startswith("work-prepare-") and job.status is JobStatus.SUCCEEDED
    assert job.runtime_env["env_vars"] == {"RUN_MARK": "here"}
    assert "prepare:" in client.get_job_logs(job.submission_id)


def test_submit_with_a_preflight_that_fails_submits_nothing(cluster: Cluster, run_file: Path, tmp_path: Path) -> None:
    client = JobSubmissionClient(cluster.dashboard)
    before = len(client.list_jobs())
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    refused = submit(cluster, run_file, "--set", f"paths.work={tmp_path / 'file'}", "--run", "prepare")
    assert refused.returncode and "error: not submitted, because its preflight failed" in refused.stdout
    assert str(tmp_path / "file") in refused.stdout + refused.stderr
    assert len(client.list_jobs()) == before + 1


def test_submit_prints_the_line_without_a_cluster_or_a_token(cluster: Cluster, run_file: Path) -> None:
    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="utf-8")
    printed = submit(cluster, run_file, "--set", "submit.address=http://127.0.0.1:1", "label")
    assert printed.returncode == 0 and token not in printed.stdout + printed.stderr


def test_submit_with_a_wrong_token_prints_one_line(cluster: Cluster, run_file: Path) -> None:
    stranger = Cluster(cluster.address, cluster.dashboard, {**cluster.environment, "RAY_AUTH_TOKEN": "wrong" * 8})
    refused = submit(stranger, run_file, "--run", "prepare")
    assert refused.returncode == 2 and refused.stdout.startswith("error: submit.address"), refused.stdout
    assert "wrong" * 8 not in refused.stdout + refused.stderr
