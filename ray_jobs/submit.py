"""Print the `ray job submit` line of a stage from the run file, and run it with --run.

    python -m ray_jobs.submit --config run.yaml label
    python -m ray_jobs.submit --config run.yaml --run pipeline

Uploads the current directory, the repository, without `submit.excludes` and without files that look like credentials.
With --run a job of its own first asks every node whether it can work on the run (`ray_jobs.check_nodes`); what is wrong
is told before anything else is submitted.
Relative paths of the run file are taken from here and handed over as absolute ones; every node must see them. The id of
a submission is made from the run and its settings: a second one of the same run is refused while the first is running,
and gets a number once that has ended. The token of the cluster is taken from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or
~/.ray/auth_token and is not part of the line; neither is any other secret.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from embedder.config.load import load_run, raw_run, run_file_parser
from embedder.config.prepare import HubRevision
from embedder.config.run import RunConfig
from embedder.console import console, exit_on_error
from embedder.credentials import credential_in_file, find_credential, is_secret_file, masked
from embedder.errors import ConfigError
from embedder.hashing import content_id
from embedder.run.ray_token import refuse_shared_token

JOBS = ("prepare", "questions", "mine", "label", "train", "index", "evaluate", "pipeline")
LARGEST_UPLOAD = 100 * 2**20
"""Bytes; beyond it Ray may refuse the package."""
LOST_FILES = "unpacking the working_dir"
"""In what Ray says of a job whose files were taken away while they were looked for: it unpacks an upload for the job
and for its first process, and the later one begins by removing what the earlier one has unpacked."""
PATH_KEYS = (
    *("paths.work", "paths.cache", "label.export", "llm.endpoint.key_file"),
    *("serve.bundle", "serve.api_keys_file", "serve.audit_file"),
)
MODEL_KEYS = ("encoder.model", "llm.model", "reranker.model", "index.model")
LISTS = {
    "prepare.sources": ("path", "corpus", "queries", "tokenizer"),
    "train.replay.runs": ("work",),
    "evaluate.retrievers": ("model", "key_file"),
}
"""Lists of sections, and the paths in each of them."""
MODELS = {"tokenizer", "model"}
"""Of these the ones that may also be names on the hub."""


@dataclass(frozen=True)
class Submission:
    """One `ray job submit`."""

    config: RunConfig
    submission_id: str
    """The name by which Ray knows the job, the same for the same stage and settings of a run."""
    entrypoint: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """Files that are not uploaded because they look like credentials."""
    outside: tuple[str, ...] = ()
    """The run file where it lies outside of what is uploaded, so that every node must see it."""

    def command(self, wait: bool) -> list[str]:
        """The whole command, word by word."""
        settings = self.config.submit
        environment: dict[str, Any] = {"excludes": [*settings.excludes, *(f"/{name}" for name in self.left_out)]}
        if settings.env:
            environment["env_vars"] = settings.env
        words = ["ray", "job", "submit", "--address", settings.address, "--submission-id", self.submission_id]
        words += ["--working-dir", ".", "--runtime-env-json", json.dumps(environment)]
        if settings.entrypoint_cpus:
            words += ["--entrypoint-num-cpus", f"{settings.entrypoint_cpus:g}"]
        if settings.resources:
            words += ["--entrypoint-resources", json.dumps(settings.resources)]
        if settings.labels:
            words += ["--entrypoint-label-selector", json.dumps(settings.labels)]
        return [*words, *([] if wait else ["--no-wait"]), "--", *self.entrypoint]

    def preflight(self) -> Submission:
        """The job that only asks every node of the cluster whether it can do this one."""
        _, _, job, *options = self.entrypoint
        words = ("python", "-m", "ray_jobs.check_nodes", *options, job.removeprefix("ray_jobs."))
        return replace(self, submission_id=f"{self.submission_id}-preflight-{uuid4().hex[:6]}", entrypoint=words)

    def follow_ups(self) -> list[str]:
        """Commands that follow the job, tell its state and stop it."""
        address = shlex.quote(self.config.submit.address)
        verbs = {"follow": "logs --follow", "status": "status", "stop": "stop"}
        return [f"{name}: ray job {verb} --address {address} {self.submission_id}" for name, verb in verbs.items()]


def plan_submission(stage: str, run_file: Path, overrides: list[str]) -> Submission:
    """What to submit for one stage of a run file, from the current directory.

    Raises:
        ConfigError: the run file is wrong, holds a secret or is not uploaded, or the upload is too large.
    """
    config = load_run(run_file, overrides)
    refuse_secrets(run_file, overrides)
    here = Path.cwd().resolve()
    if not (here / "ray_jobs").is_dir():
        raise ConfigError(f"{here}: no ray_jobs/ here; start this in the root of the repository, which is uploaded")
    files, left_out = without_credentials(here, uploaded_files(here, config.submit.excludes), config)
    size = sum(path.stat().st_size for path in files)
    if size > LARGEST_UPLOAD:
        largest = max(files, key=lambda path: path.stat().st_size).relative_to(here)
        raise ConfigError(
            f"{here}: {size / 2**20:,.0f} MiB would be uploaded, more than {LARGEST_UPLOAD / 2**20:.0f}; the largest "
            f"file is {largest}; add what the job does not need to submit.excludes"
        )
    path = run_file.resolve()
    if path.is_relative_to(here) and path not in files:
        raise ConfigError(f"--config {run_file}: is not uploaded (submit.excludes, .gitignore); keep it elsewhere")
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    given = [*overrides, *absolute_settings(run_file, overrides, config)]
    sets = [word for override in given for word in ("--set", override)]
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", config.paths.work.name)
    submission_id = f"{name}-{stage}-{content_id(stage, config.model_dump(mode='json'))[:8]}"
    words = ("python", "-m", f"ray_jobs.{stage}", "--config", str(shown), *sets)
    return Submission(config, submission_id, words, left_out, () if path.is_relative_to(here) else (str(path),))


def refuse_secrets(run_file: Path, overrides: list[str]) -> None:
    """Neither the line nor the uploaded run file may hold a secret.

    Raises:
        ConfigError: a URI in one of them has credentials, or there is something else that looks like one.
    """
    for name, text in [("--config", run_file.read_text(encoding="utf-8")), *(("--set", text) for text in overrides)]:
        if masked(text) != text:
            kind = find_credential(text) or "a URI with credentials"
            raise ConfigError(
                f"{name}: holds {kind}; credentials would be shown by the dashboard: give them to the nodes (a role, "
                "or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in their environment)"
            )


def without_credentials(folder: Path, files: list[Path], config: RunConfig) -> tuple[list[Path], tuple[str, ...]]:
    """The files to upload, and the names of those that are left out because they look like credentials.

    Raises:
        ConfigError: one of the others holds a credential.
    """
    keys = config.serve.api_keys_file and config.serve.api_keys_file.resolve()
    secret = {path for path in files if is_secret_file(path.relative_to(folder)) or path.resolve() == keys}
    kept = [path for path in files if path not in secret]
    for path in kept:
        if (found := credential_in_file(path)) is not None:
            name = path.relative_to(folder)
            raise ConfigError(f"{name}: holds {found}; keep it elsewhere, or add /{name} to submit.excludes")
    return kept, tuple(sorted(path.relative_to(folder).as_posix() for path in secret))


def uploaded_files(folder: Path, excludes: list[str]) -> list[Path]:
    """The files that Ray uploads of a working directory."""
    # Ray's own walk, private as it is, because the rules of .gitignore and .rayignore must be those of the upload.
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    paths: list[Path] = []
    logger = logging.getLogger(__name__)
    _dir_travel(folder, [_get_excludes(folder, excludes)], paths.append, include_gitignore=True, logger=logger)
    return [path for path in paths if path.is_file()]


def absolute_settings(run_file: Path, overrides: list[str], config: RunConfig) -> list[str]:
    """Overrides that give each relative path of a run file as an absolute one."""
    # A submitted job runs in a temporary copy of this folder, where a relative path would name another file.
    raw, dumped = raw_run(run_file, overrides), config.model_dump(mode="json")
    sets = []
    for key in (*PATH_KEYS, *MODEL_KEYS):
        written, resolved = (_setting(settings, key) for settings in (raw, dumped))
        # A model may also be the name of one on the hub.
        is_path = key in PATH_KEYS or Path(resolved or "").is_dir()
        if resolved and "://" not in resolved and is_path and _is_relative(written or ""):
            sets.append(f"{key}={Path(resolved).absolute()}")
    for key, names in LISTS.items():
        rows = [dict(row) if isinstance(row, dict) else row for row in _setting(raw, key) or []]
        given = [(row, name) for row in rows for name in names if isinstance(row, dict) and _is_relative(row.get(name))]
        relative = [(row, name) for row, name in given if name not in MODELS or Path(row[name]).is_dir()]
        for row, name in relative:
            row[name] = str(Path(row[name]).absolute())
        if relative:
            sets.append(f"{key}={json.dumps(rows, ensure_ascii=False)}")
    return sets


def _setting(settings: Any, key: str) -> Any:  # noqa: ANN401 - whatever YAML can say
    """What stands at a key with dots; None where nothing does."""
    for name in key.split("."):
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings


def _is_relative(path: object) -> bool:
    return isinstance(path, str) and "://" not in path and not path.startswith(("/", "~"))


def shared_paths(config: RunConfig) -> list[str]:
    """Paths that every node must see."""
    # Each node fetches a data set of the hub for itself.
    given = config.prepare.sources if config.prepare else []
    sources = [source.path for source in given if not isinstance(source.path, HubRevision)]
    return sorted({str(path) for path in (config.paths.work, *sources)})


def free_id(submission: Submission) -> str:
    """The id of a submission, with a number from 2 on where the cluster has seen this run and stage before.

    Raises:
        ConfigError: one of them is still at work, or the cluster does not answer or refuses.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    address = submission.config.submit.address
    try:
        jobs = JobSubmissionClient(address).list_jobs()
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        reason = masked(" ".join(str(error).split()))
        raise ConfigError(
            f"submit.address {address}: {reason}; start `ray dashboard cluster.yaml` or a head, and set "
            "RAY_AUTH_MODE=token with the cluster's token"
        ) from error
    known = {job.submission_id: job.status for job in jobs if job.submission_id}
    names = [name for name in known if re.fullmatch(rf"{re.escape(submission.submission_id)}(-\d+)?", name)]
    for name in names:
        if not known[name].is_terminal():
            raise ConfigError(
                f"{name} is {known[name].value} on {address}; follow it with `ray job logs --follow {name}`, or end it "
                f"with `ray job stop {name}`"
            )
    seen = max((int(name.removeprefix(submission.submission_id)[1:] or 1) for name in names), default=0)
    return f"{submission.submission_id}-{seen + 1}" if seen else submission.submission_id


def make_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = run_file_parser("ray_jobs.submit", __doc__)
    parser.add_argument("stage", choices=JOBS, help="the job to submit")
    parser.add_argument("--run", action="store_true", help="submit it too, behind a preflight of all nodes")
    parser.add_argument("--wait", action="store_true", help="stay until the job ends, and end as it does")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the line, or run it; exit status 2 and one line for an error the user can fix."""
    options = make_parser().parse_args(arguments)
    out = console()
    with exit_on_error():
        submission = plan_submission(options.stage, Path(options.config), options.set)
        if options.run:
            refuse_shared_token()
            submission = replace(submission, submission_id=free_id(submission))
    command = submission.command(options.wait)
    out.print(shlex.join(command), markup=False)
    for line in submission.follow_ups():
        out.print(f"# {line}", markup=False)
    if submission.left_out:
        out.print(f"# not uploaded, since these look like credentials: {', '.join(submission.left_out)}", markup=False)
    seen = [*shared_paths(submission.config), *submission.outside]
    out.print(f"# every node must see {', '.join(seen)}", markup=False)
    if options.run:
        if refused := ask_nodes(submission):
            out.print("error: not submitted, because its preflight failed; the line above says why", markup=False)
        sys.exit(refused or run_command(command))


def ask_nodes(submission: Submission) -> int:
    """Run the preflight and return its exit status; once more where Ray lost the files that it had just unpacked."""
    asked = submission.preflight()
    refused = run_command(asked.command(wait=True))
    if not refused or LOST_FILES not in job_message(submission.config.submit.address, asked.submission_id):
        return refused
    console().print("preflight: Ray lost the files of the job while it unpacked them; once more", markup=False)
    return run_command(submission.preflight().command(wait=True))


def job_message(address: str, name: str) -> str:
    """What Ray says of the state of a job; nothing where it does not answer or knows none of that name."""
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address).get_job_info(name).message or ""
    except (ConnectionError, RuntimeError):
        return ""


def run_command(command: Sequence[str]) -> int:
    """Run a command of Ray and return its exit status."""
    # The command `ray` of this environment, which need not be on the PATH.
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"}
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    main()
