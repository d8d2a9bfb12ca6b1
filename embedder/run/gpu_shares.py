"""What of a cluster's GPUs the processes of a stage ask for: refused where there are none, told where some are idle."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from embedder.config.run import RunConfig
from embedder.errors import DeviceError

MOST_CPUS = 4
"""CPUs of a process with a GPU at most: they make tokens and copy while the GPU computes."""

DRIVER = "libnvidia-ml.so.1"
"""NVIDIA's library by which Ray counts GPUs; it comes with the driver."""

Node = Mapping[str, float]
"""What a machine of the cluster has, by the names of Ray: `CPU`, `GPU`."""


@dataclass(frozen=True)
class GpuShare:
    """Processes of one kind, and the GPUs or the share of one that each is given."""

    setting: str
    gpus: float
    processes: int = 1
    number: str = ""
    """The setting that says how many processes there are."""


def stage_shares(stage: str, config: RunConfig) -> list[GpuShare]:
    """The kinds of processes of a stage that could compute on a GPU."""
    encoders = GpuShare(
        "encoder.gpus_per_actor", config.encoder.gpus_per_actor, config.encoder.num_actors, "encoder.num_actors"
    )
    label, evaluate, train, ranker = config.label, config.evaluate, config.train, config.reranker
    shares: dict[str, list[GpuShare]] = {"mine": [encoders], "index": [encoders], "evaluate": [encoders]}
    if evaluate.asks:
        asking = GpuShare(
            "evaluate.gpus_per_actor", evaluate.gpus_per_actor, evaluate.num_actors, "evaluate.num_actors"
        )
        shares["evaluate"].append(asking)
    if config.index.gpus_per_shard:
        # Nothing is said of those without, because few shards have cells to train.
        shares["index"].append(GpuShare("index.gpus_per_shard", config.index.gpus_per_shard))
    writers = GpuShare("label.gpus_per_actor", label.gpus_per_actor, label.num_actors, "label.num_actors")
    shares["questions"] = [encoders, writers]
    if label.teacher != "imported" and not label.recompute:
        shares["label"] = [writers]
    if label.teacher == "reranker" and ranker is not None:
        training = GpuShare("reranker.gpus_per_worker", ranker.gpus_per_worker, ranker.num_workers)
        shares["label"] = [*shares.get("label", []), training]
    if train is not None:
        shares["train"] = [GpuShare("train.gpus_per_worker", train.gpus_per_worker, train.num_workers)]
    shares["serve"] = [GpuShare("serve.gpus_per_replica", config.serve.gpus_per_replica)]
    return shares.get(stage, [])


def check_gpus(shares: Sequence[GpuShare], nodes: Iterable[Node], *, can_grow: bool) -> list[str]:
    """A line on GPUs that stay unused, and the setting that would use them; or on those that are waited for.

    Args:
        nodes: The machines that there are.
        can_grow: More may join, so that what is missing is waited for.

    Raises:
        DeviceError: a process asks for more GPUs than any machine has.
    """
    each = [node.get("GPU", 0.0) for node in nodes]
    total, most = sum(each), max(each, default=0.0)
    for share in shares:
        if share.gpus <= most:
            continue
        wanted = _gpus(max(share.gpus, 1.0))
        found = f"{share.setting} is {share.gpus:g}, but no machine here has {wanted} that Ray sees"
        if not can_grow:
            raise DeviceError(
                f"{found} (`nvidia-smi` tells the driver's version and its CUDA, if there is one); set it to 0 for the "
                "CPU, or repair the driver"
            )
        return [f"{found}; waiting for one to join the cluster"]
    without = [share.setting for share in shares if not share.gpus]
    if total and without:
        settings = " or ".join(without)
        return [f"{_gpus(total)} here, but processes without one compute on CPUs; to give them one, set {settings}"]
    used = max((share.gpus * share.processes for share in shares), default=total)
    number_setting = next((share.number for share in shares if share.number), None)
    if number_setting is not None and used < math.floor(total):
        return [f"{total - used:g} of {_gpus(total)} stay unused; a greater {number_setting} uses them"]
    return []


def refuse_without_driver(shares: Sequence[GpuShare]) -> None:
    """Before this process starts a Ray of its own, which takes seconds: refuse GPUs on a machine without a driver.

    Raises:
        DeviceError: a process asks for a GPU, and this machine has no driver for one.
    """
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        check_gpus(shares, [], can_grow=False)


def gpu_cpus(gpus: float, nodes: Iterable[Node]) -> int:
    """CPUs of a process with so many GPUs: its share of the CPUs of the machine, `MOST_CPUS` at most and 1 at least.

    Of each machine one CPU is left to what has no GPU; where machines differ, the smallest share counts.
    """
    shares = [(node.get("CPU", 0.0) - 1) / node["GPU"] for node in nodes if node.get("GPU")]
    return max(1, min(MOST_CPUS, math.floor(min(shares, default=0.0) * gpus)))


def _gpus(count: float) -> str:
    return f"{count:g} GPU" if count == 1 else f"{count:g} GPUs"
