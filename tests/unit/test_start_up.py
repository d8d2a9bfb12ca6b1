"""Commands start quickly: help and a refused run file need neither torch nor Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from embedder.run.stages import STAGES
from ray_jobs.submit import JOBS

ROOT = Path(__file__).parents[2]
RUN_FILE_COMMANDS = {
    **{f"ray_jobs.{job}": ["--config", "RUN"] for job in JOBS},
    "ray_jobs.submit": ["--config", "RUN", "label"],
    "embedder.evaluation": ["--config", "RUN", "base"],
    "serve.ask": ["--config", "RUN"],
}
"""Commands that read a run file, and their shortest arguments."""
REFUSING = ["ray_jobs.label", "ray_jobs.submit", "embedder.evaluation", "serve.ask"]
"""Of these one of each way of reading it: all jobs have theirs in common (ray_jobs.cluster.session)."""
COMMANDS = [*RUN_FILE_COMMANDS, "embedder.index", "embedder.demo.build"]
MAIN = """
import runpy, sys
sys.argv = ["command", *sys.argv[2:]]
try:
    runpy.run_module({command!r}, run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
heavy = sorted({{"torch", "ray", "transformers"}} & set(sys.modules))
print(f"exit {{code}}, imported {{heavy}}")
"""


def outcome(command: str, *arguments: str) -> str:
    """What the command printed, with its exit status and the heavy modules it imported in the last line."""
    script = MAIN.format(command=command)
    words = [sys.executable, "-c", script, "-", *arguments]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_neither_torch_nor_ray(command):
    printed = outcome(command, "--help")
    assert printed.startswith("usage: ")
    assert printed.endswith("exit 0, imported []\n")


@pytest.mark.parametrize("command", REFUSING)
def test_a_refused_run_file_imports_neither_torch_nor_ray(tmp_path, command):
    run_file = tmp_path / "run.yaml"
    run_file.write_text("paths: {work: run}\nencoder: {model: m, pooling: cls, modl: m}\n", encoding="utf-8")
    arguments = [str(run_file) if word == "RUN" else word for word in RUN_FILE_COMMANDS[command]]
    printed = outcome(command, *arguments)
    assert printed.startswith("error: ") and "encoder.modl" in printed
    assert printed.endswith("exit 2, imported []\n")


LIGHT = """
import sys
import ray_jobs.retrieval.vector_rankings, ray_jobs.retrieval.retrievers, ray_jobs.retrieval.candidate_groups
import ray_jobs.retrieval.shards, ray_jobs.prepare, ray_jobs.labelling.block_plan
import serve.deployments.ingress, serve.deployments.shard_replica
print(sorted({"torch", "transformers", "onnxruntime", "deepspeed"} & set(sys.modules)))
"""
"""Processes that hold no model: tasks that search, that build shards and that prepare; ingress and shards."""


def test_processes_without_a_model_import_no_torch():
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


FIRST_PROBLEM = {
    "prepare": "the run file has no `prepare` section",
    "questions": "the run file has no `questions` section",
    "mine": "no prepared ",
    "label": "no prepared ",
    "train": "the run file has no `train` section",
    "index": "model: no trained encoder; run",
    "evaluate": "no prepared ",
    "pipeline": "the run file has no `train` section",
}


@pytest.mark.parametrize("job", JOBS)
def test_a_check_that_fails_does_so_before_torch_or_ray_is_imported(tmp_path, job):
    run_file = tmp_path / "run.yaml"
    work = tmp_path / "work"
    run_file.write_text(f"paths: {{work: {work}}}\nencoder: {{model: m, pooling: cls}}\n", encoding="utf-8")
    printed = outcome(f"ray_jobs.{job}", "--config", str(run_file))
    assert printed.startswith("error: ") and FIRST_PROBLEM[job] in printed
    assert printed.endswith("exit 2, imported []\n")


def test_the_jobs_that_submit_offers_are_all_stages_and_the_pipeline():
    assert (*STAGES, "pipeline") == JOBS
