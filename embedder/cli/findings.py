"""`llm-embedder doctor`: what of this machine, the run and its cluster will not work, each with its remedy."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from embedder.cli.launch import PACKAGES
from embedder.config.load import load_run
from embedder.config.prepare import Source
from embedder.config.run import RunConfig
from embedder.data.first_rows import FirstRows, read_first_rows
from embedder.errors import DeviceError, EmbedderError
from embedder.models.locate import is_hub_name, loaded_bytes, locate_model
from embedder.run import machine
from embedder.run.gpu_shares import check_gpus, stage_shares
from embedder.run.ray_token import refuse_shared_token
from embedder.run.rounds import planned_stages
from embedder.storage.node_cache import cache_folder
from embedder.storage.object_store import ObjectPath

Level = Literal["ok", "note", "wrong"]
WORST: Level = "wrong"
ROOM = 5 * 10**9
"""Bytes of disk below which a note is made; a run on a laptop takes about one."""
SHARED_MEMORY = 10**9
"""Bytes of /dev/shm below which Ray keeps its objects on the disk."""
PORT = 8000
CLUSTER_S = 120.0
"""For starting Python, joining the cluster, and a task on every node."""
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
DISTRIBUTION = "llm-embedder"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    what: str
    found: str
    remedy: str = ""

    def line(self) -> str:
        """The finding for the user."""
        return f"{self.level:5} {self.what}: {self.found}{'; ' if self.remedy else ''}{self.remedy}"

    def record(self) -> dict[str, Any]:
        """The same for programs."""
        return asdict(self)


def look_around(run_file: Path, overrides: list[str], *, asks_cluster: bool) -> list[Finding]:
    """Look at everything; without a run file at the machine alone."""
    found = [*_software(), *_machine(), _port()]
    if not run_file.is_file() and not overrides:
        return [*found, Finding("note", "run file", f"no {run_file} here", "`llm-embedder init DATA` writes one")]
    try:
        config = load_run(run_file, overrides)
    except EmbedderError as error:
        return [*found, Finding(WORST, "run file", str(error))]
    found += [Finding("ok", "run file", str(run_file)), *_storage(config)]
    for source in config.prepare.sources if config.prepare else []:
        found += _source(source, config)
    for name, (model, weight_bytes) in models_of(config).items():
        found += _model(name, model, weight_bytes)
    address = os.environ.get("RAY_ADDRESS", "")
    if address in {"", "local"}:
        return [*found, *_gpus(config), *_memory(config), Finding("ok", "Ray", "one of its own, on this machine alone")]
    found += list(_tried("Ray's token", refuse_shared_token, lambda _: "no other user can read it"))
    return [*found, *(_cluster(run_file, overrides) if asks_cluster else [])]


def _tried(what: str, look: Callable[[], Any], told: Callable[[Any], str]) -> Iterator[Finding]:
    """A finding of what may raise an error of ours."""
    try:
        yield Finding("ok", what, told(look()))
    except (EmbedderError, OSError) as error:
        yield Finding(WORST, what, str(error))


def _software() -> Iterator[Finding]:
    """Python and the packages, against what this version was made for."""
    yield Finding("ok", "Python", f"{sys.version.split()[0]} at {sys.executable}")
    try:
        needed = [need for line in requires(DISTRIBUTION) or [] if not (need := Requirement(line)).marker]
    except PackageNotFoundError:
        yield Finding("note", "packages", f"{DISTRIBUTION} is not installed, only found", "pip install it")
        return
    versions = {need.name: _version(need.name) for need in needed}
    other = [
        f"{need.name} {versions[need.name] or 'missing'}, made for {need.specifier}"
        for need in needed
        if versions[need.name] not in need.specifier
    ]
    if other:
        yield Finding("note", "packages", ", ".join(other), "install the versions that are named if something fails")
    else:
        yield Finding("ok", "packages", "the versions that this one was made for")
    yield from _shared_names()
    if not machine.is_installed("faiss"):
        yield Finding(WORST, "FAISS", "not installed", "pip install faiss-cpu, or faiss-gpu where there are GPUs")


def _shared_names() -> Iterator[Finding]:
    """Distributions with a package of our names: pip writes the files of both into one folder and says nothing."""
    owners = packages_distributions()
    for name in PACKAGES:
        others = sorted(set(owners.get(name, [])) - {DISTRIBUTION})
        if others:
            found = f"{', '.join(others)} brings a package of this name, too, and overwrites files of {DISTRIBUTION}"
            yield Finding(WORST, f"package {name}", found, "give each an environment of its own")


def _version(package: str) -> str:
    """The version that is installed, without its build; empty where there is none."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return ""


def _machine() -> Iterator[Finding]:
    """Processors, memory and GPUs."""
    free = machine.free_memory()
    yield Finding("ok", "machine", f"{machine.cpus()} CPUs, {_size(free) if free else 'unknown'} of memory free")
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).total < SHARED_MEMORY:
        size = _size(shutil.disk_usage(shared).total)
        yield Finding("note", "/dev/shm", f"{size}, so Ray is slow", "start the container with --shm-size=4g or more")
    there, torch = machine.gpus(), machine.torch_build()
    if torch is None:
        yield Finding(WORST, "torch", "not installed", "pip install torch")
    elif there and torch.endswith("+cpu"):
        yield Finding(WORST, "GPUs", f"{len(there)}, but torch {torch} is a build for CPUs", "install a torch for CUDA")
    elif there:
        yield Finding("ok", "GPUs", ", ".join(f"{gpu.name} ({_size(gpu.bytes)})" for gpu in there) + f"; torch {torch}")
    elif machine.has_driver():
        yield Finding(WORST, "GPUs", "nvidia-smi is there and tells of none", "run it, and repair the driver")
    else:
        yield Finding("ok", "GPUs", "none; everything computes on CPUs")


def _storage(config: RunConfig) -> Iterator[Finding]:
    """Whether the run can be written, and how much room there is."""
    work = config.paths.work
    if isinstance(work, ObjectPath):
        yield from _tried("paths.work", lambda: list(work.glob("*"))[:1], lambda _: f"{work} answers")
        yield _folder("$LLM_EMBEDDER_CACHE", cache_folder())
    else:
        yield _folder("paths.work", work)
    yield _folder("paths.cache", config.paths.cache)


def _folder(name: str, folder: Path) -> Finding:
    try:
        there = next(each for each in (folder, *folder.parents) if each.exists())
    except OSError as error:
        return Finding(WORST, name, f"{folder}: {error.strerror}", "correct the path")
    if not there.is_dir():
        return Finding(WORST, name, f"{there} is a file", "name a folder")
    if not os.access(there, os.W_OK):
        return Finding(
            WORST, name, f"{there} cannot be written here", "give this user the right, or name another folder"
        )
    free = shutil.disk_usage(there).free
    if free < ROOM:
        return Finding("note", name, f"{folder}: {_size(free)} free", "make room, or name a folder on another disk")
    return Finding("ok", name, f"{folder}: {_size(free)} free")


def _source(source: Source, config: RunConfig) -> Iterator[Finding]:
    """The first rows of a source."""

    def told(rows: FirstRows) -> str:
        splits = f" ({', '.join(sorted(rows.splits))})" if rows.splits else ""
        return "; ".join(rows.notes) or f"its beginning can be used{splits}"

    task = config.tasks[source.task]
    yield from _tried(f"source {source.dataset}", lambda: read_first_rows(source, task), told)


def models_of(config: RunConfig) -> dict[str, tuple[str, int]]:
    """Models that must be there before the run, by setting, with the bytes of a weight."""
    models = {"encoder.model": (config.encoder.model, BYTES[config.encoder.dtype])}
    if config.llm is not None and config.llm.weights is not None:
        models["llm.model"] = (config.llm.weights, BYTES[config.llm.dtype])
    if config.reranker is not None:
        models["reranker.model"] = (config.reranker.model, BYTES["float32"])
    if config.index.model is not None:
        models["index.model"] = (config.index.model, BYTES[config.encoder.dtype])
    return models


def _model(name: str, model: str, weight_bytes: int) -> Iterator[Finding]:
    """Whether a model is there and whole, by its files."""
    if is_hub_name(model) or "://" in model:
        # Not looked into, since that would fetch it.
        yield Finding("note", name, f"{model} is fetched when it is first used, if it is not in the cache yet")
        return

    def size_of() -> int:
        return loaded_bytes(locate_model(model), weight_bytes)

    yield from _tried(name, size_of, lambda size: f"{model}, {_size(size)} of weights")


def _gpus(config: RunConfig) -> Iterator[Finding]:
    """GPUs that the stages and the service ask for, against those of this machine."""
    nodes = [{"GPU": float(len(machine.gpus()))}]
    asked: dict[str, str] = {}
    for stage in (*dict.fromkeys(stage for stage, _ in planned_stages(config)), "serve"):
        try:
            asked |= dict.fromkeys(check_gpus(stage_shares(stage, config), nodes, can_grow=False), stage)
        except DeviceError as error:
            yield Finding(WORST, f"GPUs of {stage}", str(error))
    for told, stage in asked.items():
        yield Finding("note", f"GPUs of {stage}", told)


def _memory(config: RunConfig) -> Iterator[Finding]:
    """The weights that all actors of a stage hold, against the memory of this machine."""
    free = machine.free_memory()
    actors = {"encoder.model": (config.encoder.num_actors, config.encoder.gpus_per_actor, "encoder.num_actors")}
    actors["llm.model"] = (config.label.num_actors, config.label.gpus_per_actor, "label.num_actors")
    for name, (model, size) in models_of(config).items():
        number, on_gpus, setting = actors.get(name, (1, 0.0, ""))
        if free is None or on_gpus or is_hub_name(model) or "://" in model:
            continue
        try:
            needed = number * loaded_bytes(locate_model(model), size)
        except EmbedderError:
            continue  # told of with the models
        if needed > free:
            remedy = f"lower {setting}" if number > 1 else "take a smaller model or more memory"
            yield Finding(
                WORST, f"memory for {name}", f"{number} x weights are {_size(needed)} of {_size(free)}", remedy
            )


def _cluster(run_file: Path, overrides: list[str]) -> list[Finding]:
    """What the nodes of the cluster say, asked by a process that knows Ray."""
    sets = [word for given in overrides for word in ("--set", given)]
    command = [sys.executable, "-m", "ray_jobs.cluster.look", "--config", str(run_file), *sets]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CLUSTER_S, check=False)
    except subprocess.TimeoutExpired:
        return [
            Finding(WORST, "cluster", f"no answer within {CLUSTER_S:g} s", "`ray status` tells which nodes are there")
        ]
    if done.returncode:
        told = (done.stdout + done.stderr).strip().splitlines()
        return [Finding(WORST, "cluster", (told or ["no answer"])[-1].removeprefix("error: "))]
    return [Finding(**found) for found in json.loads(done.stdout.splitlines()[-1])]


def _port() -> Finding:
    """Whether the service can listen where it does by default."""
    with socket.socket() as looking:
        looking.settimeout(0.5)
        if looking.connect_ex(("127.0.0.1", PORT)):
            return Finding("ok", "port", f"{PORT} is free for the service")
    return Finding("note", "port", f"{PORT} is taken", "stop who listens, or give `llm-embedder serve` another --port")


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
