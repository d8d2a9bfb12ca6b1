"""Starts the Ray Train workers, and what each of them runs: the training loop, whose metrics the first one keeps."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from embedder.console import console
from embedder.credentials import masked
from embedder.errors import (
    ConfigError,
    DataError,
    DeviceError,
    EmbedderError,
    ModelError,
    NoAnswerError,
    NotFiniteError,
    UnfinishedError,
)
from embedder.run.gpu_shares import gpu_cpus
from embedder.storage.object_store import AnyPath, ObjectPath, replacing
from embedder.training.distributed import group_backend
from embedder.training.job import MetricsReader, TrainingJob, live_note
from ray_jobs.cluster.machines import machines, try_gpu
from ray_jobs.cluster.metrics import track_progress

STOPPING: dict[str, type[EmbedderError]] = {
    kind.__name__: kind for kind in (NotFiniteError, ConfigError, DeviceError, DataError, ModelError)
}
"""Errors with which a worker ends for good."""
PASSING = (UnfinishedError, NoAnswerError)
"""Of these the ones that may pass: a store does not answer, or is being written to."""
POLL_S = 1.0
"""How often the driver looks for new steps in a folder, and so many times less often in a store."""
STORE_POLL = 5


def run_workers(job: TrainingJob, label: str) -> None:
    """Run the workers to the end of the training, and show the steps they have made behind `label`.

    Raises:
        DeviceError: a worker is to have a GPU that cannot be used, or that lacks what the settings want of it.
        NotFiniteError: the training's numbers ceased to be finite.
        ConfigError: a worker cannot train as the settings want, or has no memory for a single text.
        DataError: the workers ended without a model.
    """
    job.stopped.unlink(missing_ok=True)
    settings = job.config
    reader = MetricsReader(job.metrics)
    finished = threading.Event()
    with track_progress(f"{label}: steps", settings.steps) as counter:
        counter.skip(len(reader.steps()))

        def watch() -> None:
            is_going = False
            while not finished.wait(POLL_S * (STORE_POLL if isinstance(job.folder, ObjectPath) else 1)):
                try:
                    steps = reader.steps()
                except DataError:
                    continue  # the store does not answer; the training itself goes on
                new = len(steps) - counter.count
                if new and not is_going:
                    # Until now the workers were started, which may take longer than many steps.
                    is_going = True
                    counter.skip(new)
                elif job.network == "encoder":
                    counter.advance(new, live_note(steps, settings.batch_size))
                else:
                    counter.advance(new)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            # In a thread, because in the main one Ray Train takes Ctrl-C for itself and then waits for its workers.
            with ThreadPoolExecutor(1) as caller:
                caller.submit(fit, job).result()
        except TrainingFailedError:
            if not job.stopped.is_file():
                raise
        finally:
            finished.set()
            watcher.join()
    if job.stopped.is_file():
        name, _, told = job.stopped.read_text(encoding="utf-8").partition(": ")
        raise STOPPING[name](told)
    if not job.has_ended:
        raise DataError(f"training {job.folder.name} ended without a model; see {job.folder}")


def fit(job: TrainingJob) -> None:
    """Train, and start anew when Ray has given up, as long as each time brings a new checkpoint.

    So spot nodes may be taken away as often as they like; a training that fails again and again at one place ends.

    Raises:
        TrainingFailedError: `max_failures` failures and one more brought no new checkpoint.
    """
    while True:
        kept = job.kept_step
        try:
            torch_trainer(job).fit()
            return
        except TrainingFailedError:
            if job.stopped.is_file() or job.kept_step <= kept:
                raise
        console().print(
            f"training {job.folder.name}: workers were lost more than {job.config.max_failures} times since step "
            f"{kept:,}; goes on from step {job.kept_step:,}",
            markup=False,
        )


def torch_trainer(job: TrainingJob) -> TorchTrainer:
    """What starts the workers; their GPU is tried first."""
    settings = job.config
    gpus, least, most = settings.gpus_per_worker, settings.min_workers, settings.num_workers
    resources, environment = worker_resources(gpus)
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend=group_backend(gpus)),
        scaling_config=ScalingConfig(
            num_workers=most if least is None else (least, most),
            use_gpu=bool(gpus),
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=job.folder.name,
            **storage_of(job.folder.parent),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            worker_runtime_env=environment,
        ),
    )


def storage_of(folder: AnyPath) -> dict[str, Any]:
    """The folder in which Ray Train keeps its own notes on runs."""
    if isinstance(folder, ObjectPath):
        return {"storage_path": folder.key, "storage_filesystem": folder.filesystem}
    return {"storage_path": str(folder)}


def worker_resources(gpus: float) -> tuple[dict[str, float], dict[str, Any]]:
    """What Ray gives each worker, and the runtime environment it runs in; a GPU is tried first.

    Raises:
        DeviceError: it cannot be used.
    """
    if gpus:
        # Before the workers are started, because Ray joins them by NCCL first, which fails with a traceback each time.
        try_gpu(gpus)
        return {"GPU": gpus, "CPU": gpu_cpus(gpus, machines())}, {}
    # Ray makes the first GPU that a worker sees its own, also where it has asked for none, and CUDA takes memory there.
    # Always, because a machine may have GPUs that it does not report to Ray.
    return {"CPU": 1}, {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}


def train_worker(settings: dict[str, TrainingJob]) -> None:
    """Train to the end, from the last checkpoint if there is one.

    Numbers that are not finite end it without an error, because Ray would make the same steps again `max_failures`
    times; the driver is told by a file. So it is of settings that a worker finds to be impossible, except that the
    other workers, if there are any, must not wait for this one.

    Checkpoints are the loop's own, in a folder or store that every worker sees. Ray 2.60 lists those it is handed in
    one file that it writes in place: a driver killed at that moment leaves a run that Ray refuses to start again.
    """
    job, context = settings["job"], ray.train.get_context()
    is_first = not context.get_world_rank()
    try:
        _train(job, is_first)
    except NotFiniteError as error:
        # All workers end so; one tells of it.
        if is_first:
            _tell(job, error)
    except PASSING:
        raise
    except tuple(STOPPING.values()) as error:
        _tell(job, error)
        if context.get_world_size() > 1:
            raise


def _tell(job: TrainingJob, error: EmbedderError) -> None:
    with replacing(job.stopped) as file:
        kind = next(each.__name__ for each in type(error).__mro__ if each.__name__ in STOPPING)
        file.write(masked(f"{kind}: {error}").encode())


def _train(job: TrainingJob, is_first: bool) -> None:
    """Make one worker's part; the first one keeps the metrics and tells the trackers."""
    # Not above: the driver names this file and needs no DeepSpeed.
    from embedder.training.followed import train_followed
    from embedder.training.loop import train

    if is_first:
        train_followed(job)
    else:
        train(job, lambda metrics: None)
