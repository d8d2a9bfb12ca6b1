"""What every job shares: its three options, its errors, and the connection to Ray.

Ray is imported by the functions that use it, so that help and a refused run file need not wait for it.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import yaml

from embedder.config.cluster import ClusterConfig
from embedder.config.load import load_run, own_settings, run_file_parser
from embedder.config.run import RunConfig
from embedder.console import console, exit_on_error
from embedder.errors import ConfigError
from embedder.run.cost import Work
from embedder.run.gpu_shares import refuse_without_driver, stage_shares
from embedder.run.preflight import local_lines, shared_folders, told
from embedder.run.ray_start import starting_ray
from embedder.run.ray_token import is_own_ray, prepare_own_ray, refuse_open_ray, refuse_shared_token
from embedder.run.stage_report import StageReport
from embedder.run.stages import STAGES
from embedder.storage.durable import full_disk_told
from embedder.storage.holding import check_lease, holding
from embedder.storage.node_cache import cache_folder

logger = logging.getLogger(__name__)

SPARE_CPUS = 2
"""Logical CPUs a local Ray gets beyond the cores, for reading and coordination while actors hold the others."""


@dataclass(frozen=True)
class Job:
    """A stage: what it checks before it starts, and what it does."""

    stage: str
    manual: str
    check: Callable[[RunConfig], Work]
    """Raises an EmbedderError on bad input; loads no model and starts nothing."""
    run: Callable[[RunConfig], StageReport]
    rehearse: Callable[[RunConfig], list[str]] | None = None
    """For the lines of a dry run, which take the place of the estimate from sizes; takes no cluster.

    Does a sample of the work on this machine, or tells what is known without one.
    """
    sample: Callable[[RunConfig, int], list[str]] | None = None
    """For the lines of a dry run that does so much of the work of each task on this machine, and reports on it."""


def make_parser(job: Job) -> argparse.ArgumentParser:
    """The three options that every job takes, and that for a sample where a job offers one."""
    parser = run_file_parser(f"ray_jobs.{job.stage}", job.manual)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check, print the settings that are not the defaults and the work ahead, stop",
    )
    if job.sample:
        parser.add_argument(
            "--sample",
            type=int,
            metavar="N",
            help="a dry run that does N groups of each task on this machine, and reports whether they can be trusted",
        )
    return parser


def _rehearsed(job: Job, config: RunConfig, count: int | None) -> list[str]:
    """Lines of the dry run on work that it did; `count` where it is to do so much."""
    if job.sample and count is not None:
        return job.sample(config, count)
    return job.rehearse(config) if job.rehearse else []


def main(job: Job, arguments: Sequence[str] | None = None) -> None:
    """Run a job from the command line; exit status 2 and one line for an error the user can fix."""
    options = make_parser(job).parse_args(arguments)
    with exit_on_error():
        config, count = load_run(options.config, options.set), getattr(options, "sample", None)
        is_dry = options.dry_run or count is not None
        if count is not None and count < 1:
            raise ConfigError(f"--sample {count}: give the number of groups, at least 1")
        refuse_temporary_paths(config)
        # Of a run in an object store only what is on its way there, or fetched, is on a disk.
        disk = config.paths.work if isinstance(config.paths.work, Path) else cache_folder()
        with full_disk_told(disk), ExitStack() as stack:
            if is_own_ray() and not is_dry:
                # Before the check, which imports and reads for a second or more.
                refuse_without_driver(stage_shares(job.stage, config))
            work = job.check(config)
            if is_dry:
                shown = yaml.safe_dump(own_settings(config), sort_keys=False, allow_unicode=True)
                console().print(f"# settings that are not the defaults (docs/configuration.md)\n{shown}", markup=False)
                print_work(work, _rehearsed(job, config, count))
                console().print(f"{job.stage}: {check_nodes(job.stage, config)}", markup=False)
                return
            if is_own_ray():
                # Of a pipeline, what any of its stages would ask for an hour later.
                refuse_without_driver(work.shares)
            # Behind the check, so that a mistake is told at once and leaves no folder.
            stack.enter_context(holding(config.paths.work, job.stage))
            run_stage(job, config, work)


def run_stage(job: Job, config: RunConfig, work: Work) -> StageReport:
    """Run one stage, of which `check` found that work, on the cluster; print and keep its report."""
    from ray_jobs.cluster.machines import gpu_lines
    from ray_jobs.cluster.metrics import ResourceUsage
    from ray_jobs.cluster.node_checks import NodeChecks

    connect(config.cluster)
    out = console()
    out.rule(f"{job.stage}")
    print_work(work)
    for line in gpu_lines(job.stage, config):
        out.print(f"{job.stage}: {line}", markup=False)
    logger.info("stage begins", extra={"stage": job.stage, "work": str(config.paths.work)})
    # The stages of a pipeline ask by themselves.
    checks = NodeChecks(job.stage, config) if job.stage in STAGES else nullcontext()
    with checks, ResourceUsage() as usage:
        report = job.run(config)
    check_lease()
    seconds = report.seconds = report.seconds or usage.seconds
    report.details["estimate"] = {"flops": work.flops, "gpu_hours": work.gpu_hours}
    report.details["resources"] = usage.record()
    logger.info("stage ended", extra={"stage": job.stage, "rows": report.rows, "unit": report.unit, **usage.record()})
    report.lines.append(usage.line())
    report.keep_cost(config.paths.reports)
    report.write(config.paths.reports)
    for line in report.lines:
        out.print(f"  {line}", markup=False)
    rate = report.rows / seconds if seconds else 0.0
    out.print(f"{job.stage}: {report.rows:,} {report.unit} in {seconds:,.1f} s ({rate:,.1f}/s)", markup=False)
    return report


def check_nodes(stage: str, config: RunConfig) -> str:
    """Ask the machines of the cluster, or this one where none is named, and say that they can work on the run.

    Raises:
        ConfigError, StorageError: one of them cannot.
    """
    if is_own_ray():
        if lines := local_lines(config):
            raise ConfigError(lines[0])
        return told(1, shared_folders(config))
    from ray_jobs.cluster.node_checks import NodeChecks

    connect(config.cluster)
    with NodeChecks(stage, config) as checks:
        return checks.told()


def print_work(work: Work, measured: Sequence[str] = ()) -> None:
    """Print the work ahead, and what its models cost: as measured, or else as sizes tell."""
    for line in work.told(measured):
        console().print(f"{work.stage}: {line}", markup=False)


def refuse_temporary_paths(config: RunConfig) -> None:
    """A submitted job runs in a temporary copy of the working directory, where its output would be lost.

    Raises:
        ConfigError: `paths.work` or `paths.cache` lies inside that copy.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        return
    for name in ("work", "cache"):
        path = getattr(config.paths, name)
        if isinstance(path, Path) and "runtime_resources" in path.parts:
            raise ConfigError(
                f"paths.{name} is {path}, inside this job's temporary copy; give an absolute, shared path"
            )


def connect(settings: ClusterConfig) -> None:
    """Connect to the cluster RAY_ADDRESS names (a submitted job has it set), or start a local one.

    Raises:
        ConfigError: it asks for no token, or others can read the token.
        ClusterError: the local one does not start.
    """
    import ray
    from ray.data import DataContext

    given, allowed = os.environ.get("RAY_ADDRESS", ""), settings.allow_no_authentication
    if is_own_ray() and not ray.is_initialized():
        prepare_own_ray(ray.util.get_node_ip_address(), allowed)
        cpus = (os.cpu_count() or 1) + SPARE_CPUS
        with starting_ray():
            ray.init(address="local", num_cpus=cpus, log_to_driver=False, logging_level=logging.WARNING)
    else:
        refuse_shared_token()
        refuse_open_ray(_head_address(given), allowed)
        if not ray.is_initialized():
            # A line of JSON for each event, with the ids of job, node and worker, here and in the logs of all workers.
            ray.init(log_to_driver=False, logging_config=ray.LoggingConfig(encoding="JSON"))
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # Its second way of reading Parquet asks actors for the footers, and fails when the node of one dies.
    context.use_datasource_v2 = False
    # Never: it is half an hour by default, and a block of labels, or GPUs that are yet to come, may take longer.
    context.execution_no_progress_timeout_s = -1
    for noisy in ("ray.train", "ray.data"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # One warns of actors with CPUs and GPUs; ours need both, because with a GPU alone they would have one thread. The
    # other one says that its bars are off, each time.
    for warns in ("execution.operators.map_operator", "progress"):
        logging.getLogger(f"ray.data._internal.{warns}").setLevel(logging.ERROR)


def _head_address(given: str) -> str:
    """The address of the head that is connected, or that Ray will connect to by what RAY_ADDRESS says."""
    import ray
    from ray._private.services import canonicalize_bootstrap_address

    if given.startswith("ray://"):
        return given
    return str(ray.get_runtime_context().gcs_address if ray.is_initialized() else canonicalize_bootstrap_address(given))
