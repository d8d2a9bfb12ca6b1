"""The `ray job submit` line that is spelled from a run file, and what is refused before anything is sent."""

from __future__ import annotations

import json
import logging
import shlex
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobStatus, JobSubmissionClient

from embedder.config.load import load_run
from embedder.errors import ConfigError
from ray_jobs import submit
from ray_jobs.submit import JOBS, Submission, absolute_settings, free_id, main, plan_submission, uploaded_files

ROOT = Path(__file__).parents[2]
RUN = {
    "paths": {"work": "/shared/runs/first", "cache": "/shared/cache"},
    "encoder": {"model": "owner/name", "pooling": "cls"},
    "prepare": {"sources": [{"task": "qa", "dataset": "nq", "path": "/shared/nq", "train_queries": 5}]},
}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder with code, ignored files and a run file, as the current directory."""
    for name in ("ray_jobs/label.py", "runs/big.bin", "tests/test_x.py", "data/kept.txt", "data/drop.tmp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * 100, encoding="utf-8")
    (tmp_path / ".gitignore").write_text("*.tmp\n", encoding="utf-8")
    write_run(tmp_path / "run.yaml", RUN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_run(path: Path, run: dict) -> Path:
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def words_of(submission: Submission) -> tuple[list[str], list[str]]:
    """Options before `--`, and the entrypoint after it."""
    command = submission.command(wait=False)
    middle = command.index("--")
    return command[:middle], command[middle + 1 :]


def job(submission_id: str, status: JobStatus) -> SimpleNamespace:
    return SimpleNamespace(submission_id=submission_id, status=status)


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


@pytest.mark.parametrize("stage", JOBS)
def test_the_line_runs_the_job_with_the_run_file_in_the_uploaded_folder(repository, stage):
    options, entrypoint = words_of(plan_submission(stage, Path("run.yaml"), []))
    assert options[:3] == ["ray", "job", "submit"] and "--no-wait" in options
    assert option(options, "--working-dir") == "."
    assert entrypoint == ["python", "-m", f"ray_jobs.{stage}", "--config", "run.yaml"]
    assert option(options, "--submission-id").startswith(f"first-{stage}-")


def test_resources_labels_and_environment_come_from_the_run_file(repository):
    settings = {"entrypoint_cpus": 1, "resources": {"big": 1}, "labels": {"market": "on-demand"}, "env": {"A": "b c"}}
    write_run(repository / "run.yaml", {**RUN, "submit": {**settings, "address": "http://10.0.0.1:8265"}})
    options, _ = words_of(plan_submission("label", Path("run.yaml"), []))
    assert option(options, "--address") == "http://10.0.0.1:8265"
    assert option(options, "--entrypoint-num-cpus") == "1"
    assert json.loads(option(options, "--entrypoint-resources")) == {"big": 1}
    assert json.loads(option(options, "--entrypoint-label-selector")) == {"market": "on-demand"}
    assert json.loads(option(options, "--runtime-env-json"))["env_vars"] == {"A": "b c"}


def test_overrides_are_handed_over(repository):
    _, entrypoint = words_of(plan_submission("label", Path("run.yaml"), ["label.seed=3"]))
    assert entrypoint[-2:] == ["--set", "label.seed=3"]


def test_relative_paths_are_handed_over_as_absolute_ones_that_mean_the_same(repository):
    sources = [{**RUN["prepare"]["sources"][0], "path": "data/nq", "passages": 3}]
    run = {**RUN, "paths": {"work": "runs/first"}, "prepare": {"sources": sources}}
    write_run(repository / "run.yaml", {**run, "encoder": {"model": "data", "pooling": "cls"}})
    _, entrypoint = words_of(plan_submission("prepare", Path("run.yaml"), []))
    sets = [entrypoint[i + 1] for i, word in enumerate(entrypoint) if word == "--set"]
    assert {one.partition("=")[0] for one in sets} == {"paths.work", "paths.cache", "encoder.model", "prepare.sources"}
    handed, here = load_run("run.yaml", sets), load_run("run.yaml")
    assert handed.paths == here.paths and handed.prepare == here.prepare
    assert handed.encoder.model == str(repository / "data")


def test_sources_and_models_in_an_object_store_stay_as_they_are_written(repository):
    source = {**RUN["prepare"]["sources"][0], "path": "s3://bucket/nq", "corpus": "gs://bucket/passages.jsonl"}
    run = {**RUN, "prepare": {"sources": [source]}, "encoder": {"model": "s3://bucket/model", "pooling": "cls"}}
    write_run(repository / "run.yaml", run)
    _, entrypoint = words_of(plan_submission("prepare", Path("run.yaml"), []))
    assert "--set" not in entrypoint


def test_beside_a_relative_source_one_in_an_object_store_stays_as_it_is_written(repository):
    stored = {**RUN["prepare"]["sources"][0], "path": "s3://bucket/nq?region=r&allow_delayed_open=true"}
    relative = {**RUN["prepare"]["sources"][0], "dataset": "mine", "path": "data/nq"}
    write_run(repository / "run.yaml", {**RUN, "prepare": {"sources": [stored, relative]}})
    _, entrypoint = words_of(plan_submission("prepare", Path("run.yaml"), []))
    (handed,) = [word for word in entrypoint if word.startswith("prepare.sources=")]
    sources = json.loads(handed.partition("=")[2])
    assert sources == [stored, {**relative, "path": str(repository / "data/nq")}]


def test_the_id_is_that_of_the_run_and_its_settings(repository):
    ids = [
        plan_submission("label", Path("run.yaml"), overrides).submission_id for overrides in ([], [], ["label.seed=3"])
    ]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(("seen", "number"), [([], ""), ([""], "-2"), (["", "-2", "-10"], "-11"), (["-x", "x"], "")])
def test_free_id_is_numbered_after_those_that_the_cluster_has_seen(repository, monkeypatch, seen, number):
    submission = plan_submission("label", Path("run.yaml"), [])
    jobs = [job(f"{submission.submission_id}{end}", JobStatus.FAILED) for end in seen]
    monkeypatch.setattr(JobSubmissionClient, "__init__", lambda self, address: None)
    monkeypatch.setattr(JobSubmissionClient, "list_jobs", lambda self: jobs)
    assert free_id(submission) == f"{submission.submission_id}{number}"
    jobs.append(job(f"{submission.submission_id}-20", JobStatus.RUNNING))
    with pytest.raises(ConfigError, match=r"-20 is RUNNING on .*; follow it with `ray job logs --follow"):
        free_id(submission)


@pytest.mark.parametrize(
    ("message", "runs"), [("Something went wrong while unpacking the working_dir.", 2), ("exit code 2", 1)]
)
def test_preflight_whose_files_ray_lost_is_asked_once_more(repository, monkeypatch, message, runs):
    submission = plan_submission("prepare", Path("run.yaml"), [])
    asked: list[str] = []
    monkeypatch.setattr(submit, "run_command", lambda command: asked.append(shlex.join(command)) or 1)
    monkeypatch.setattr(JobSubmissionClient, "__init__", lambda self, address: None)
    monkeypatch.setattr(JobSubmissionClient, "get_job_info", lambda self, name: SimpleNamespace(message=message))
    assert submit.ask_nodes(submission) == 1
    assert len(set(asked)) == runs


def test_what_is_counted_is_what_ray_packs(repository):
    excludes = load_run("run.yaml").submit.excludes
    create_package(
        ".", repository.parent / "package.zip", include_gitignore=True, excludes=excludes, logger=logging.getLogger()
    )
    with ZipFile(repository.parent / "package.zip") as packed:
        files = {name for name in packed.namelist() if not name.endswith("/")}
    assert {path.relative_to(repository).as_posix() for path in uploaded_files(repository, excludes)} == files
    assert files == {"ray_jobs/label.py", "data/kept.txt", "run.yaml", ".gitignore"}


def test_a_large_upload_is_refused_with_the_largest_file(repository, monkeypatch):
    (repository / "data" / "kept.txt").write_text("x" * 5000, encoding="utf-8")
    monkeypatch.setattr(submit, "LARGEST_UPLOAD", 4000)
    with pytest.raises(ConfigError, match=r"largest file is data/kept\.txt"):
        plan_submission("label", Path("run.yaml"), [])


def test_this_repository_is_small_enough(monkeypatch):
    monkeypatch.chdir(ROOT)
    files = uploaded_files(ROOT, load_run("configs/demo.yaml").submit.excludes)
    assert sum(path.stat().st_size for path in files) < 10 * 2**20
    assert ROOT / "embedder" / "config" / "run.py" in files


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["paths.work=s3://KEY:SECRET@bucket/run"], "credentials"),
        (["submit.env={AWS_SECRET_ACCESS_KEY: x}"], "looks like a secret"),
        (["submit.env={HF_AUTH: x}"], "HF_AUTH looks like a secret"),
        (["submit.env={DB_PASSWD: x}"], "DB_PASSWD looks like a secret"),
        (["submit.env={URL: 'http://user:pw@host'}"], "URL looks like a secret"),
        (
            ["train.steps=8", "train.batch_size=8", "train.mlflow=http://user:pw@host"],
            "train.mlflow holds a URI with a user or password",
        ),
        (["submit.address=http://user:pw@head:8265"], "submit.address"),
        (["submit.excludes=[run.yaml]"], "is not uploaded"),
    ],
)
def test_secrets_and_files_left_behind_are_refused(repository, overrides, words):
    with pytest.raises(ConfigError, match=words) as caught:
        plan_submission("label", Path("run.yaml"), overrides)
    assert "SECRET@" not in str(caught.value)


def test_another_folder_than_the_repository_is_refused(repository, monkeypatch):
    monkeypatch.chdir(repository / "data")
    with pytest.raises(ConfigError, match="no ray_jobs/ here"):
        plan_submission("label", repository / "run.yaml", [])


def test_the_command_prints_a_line_for_a_shell_and_how_to_follow(repository, capsys):
    main(["--config", "run.yaml", "label"])
    line, *rest = capsys.readouterr().out.splitlines()
    assert shlex.split(line) == plan_submission("label", Path("run.yaml"), []).command(wait=False)
    assert [one.split(":")[0] for one in rest] == [
        "# follow",
        "# status",
        "# stop",
        "# every node must see /shared/nq, /shared/runs/first",
    ]


def test_every_relative_path_of_a_run_becomes_absolute(repository):
    (repository / "models" / "old").mkdir(parents=True)
    text = Path("run.yaml").read_text(encoding="utf-8")
    raw = yaml.safe_load(text)
    raw.setdefault("train", {"steps": 8}).update(replay={"runs": [{"work": "runs/zero"}], "share": 0.5})
    retrievers = [{"name": "old", "model": "models/old"}, {"name": "hub", "model": "owner/name"}, "base"]
    raw["evaluate"] = {"retrievers": retrievers, "baseline": "base"}
    Path("paths.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    sets = dict(one.partition("=")[::2] for one in absolute_settings(Path("paths.yaml"), [], load_run("paths.yaml")))
    assert json.loads(sets["train.replay.runs"]) == [{"work": str(repository / "runs" / "zero")}]
    found = json.loads(sets["evaluate.retrievers"])
    assert found == [{"name": "old", "model": str(repository / "models" / "old")}, *retrievers[1:]]
