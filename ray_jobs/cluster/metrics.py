"""Metrics of a running job for Prometheus, through Ray, and the resources that its actors held."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import ray
from ray.util.metrics import Gauge
from ray.util.state import list_actors
from ray.util.state.exception import RayStateApiException

from embedder.console import Counter, console, progress

LOOK_EVERY_S = 2.0
MOST_ACTORS = 10_000
TAGS = ("run", "work")
DONE = "embedder_job_rows_done"
TOTAL = "embedder_job_rows"


@contextmanager
def track_progress(work: str, total: int) -> Iterator[Counter]:
    """Show progress, and set the gauges `embedder_job_rows_done` and `embedder_job_rows` by job and piece of work."""
    tags = {"run": ray.get_runtime_context().get_job_id(), "work": work}
    done, of = Gauge(DONE, "Rows of a piece of work that are done.", TAGS), Gauge(TOTAL, "Rows of it.", TAGS)
    of.set(total, tags)
    with progress(work, total, console(), lambda count: done.set(count, tags)) as counter:
        yield counter


class ResourceUsage:
    """CPU-hours and GPU-hours that the actors of this driver hold while a block runs.

    Not in it are tasks, which live for a moment, and the time in which an actor waits for a node or loads its model.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.held: dict[str, float] | None = None
        """Resource-seconds by CPU and GPU; None while the cluster has not told."""
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ResourceUsage:
        self._began = time.monotonic()
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._watcher.join()
        self.seconds = time.monotonic() - self._began

    def record(self) -> dict[str, float | None]:
        """The hours as the report of a stage holds them."""
        hours = {name: None if self.held is None else self.held[name] / 3600 for name in ("CPU", "GPU")}
        return {"seconds": self.seconds, "cpu_hours": hours["CPU"], "gpu_hours": hours["GPU"]}

    def line(self) -> str:
        """The hours as the user reads them."""
        if self.held is None:
            return f"resources: {self.seconds:,.0f} s; what actors held is not known, the cluster did not tell"
        cpu, gpu = self.held["CPU"] / 3600, self.held["GPU"] / 3600
        return f"resources: {cpu:,.3g} CPU-hours and {gpu:,.3g} GPU-hours held by actors, {self.seconds:,.0f} s"

    def _watch(self) -> None:
        # Looks again and again, because a pool grows and shrinks. What one look misses, as while a cluster is still
        # starting, the next one stands for: `last` moves only when the cluster has told.
        job, last = ray.get_runtime_context().get_job_id(), time.monotonic()
        is_last = False
        while not is_last:
            is_last = self._ended.wait(LOOK_EVERY_S)
            amounts, now = held_by_actors(job), time.monotonic()
            if amounts is not None:
                held = self.held or dict.fromkeys(amounts, 0.0)
                self.held = {name: held[name] + amounts[name] * (now - last) for name in amounts}
                last = now


def held_by_actors(job: str) -> dict[str, float] | None:
    """CPUs and GPUs that the living actors of a job hold; null where the cluster does not tell."""
    try:
        actors = list_actors(
            address=ray.get_runtime_context().gcs_address,
            filters=[("job_id", "=", job), ("state", "=", "ALIVE")],
            limit=MOST_ACTORS,
            detail=True,
            timeout=10,
        )
    except (RayStateApiException, ConnectionError):
        return None
    held = {"CPU": 0.0, "GPU": 0.0}
    for actor in actors:
        for name, amount in (actor.required_resources or {}).items():
            # An actor of a placement group has CPU_group_0_ID beside CPU_group_ID: the same CPUs under two names.
            kind, _, group = name.partition("_group_")
            if kind in held and "_" not in group:
                held[kind] += amount
    return held
