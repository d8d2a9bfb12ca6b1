"""What a machine must show before a stage works on it: the same storage as all others, drivers, versions, memory.

The driver leaves a file in every folder that all machines must share (`Questions.ask`). Each machine looks for it, may
not put another under its name, and leaves one of its own, which the driver must see (`answer`, `missed`). What is wrong
is a line each, with the machine and the remedy. Which machines are asked, and when, is for ray_jobs.cluster.node_checks
to say.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from uuid import uuid4

from embedder import __version__
from embedder.config.run import RunConfig
from embedder.errors import ConfigError, ModelError, StorageError
from embedder.models.locate import count_parameters, locate_model
from embedder.storage.connect import PROBES, open_store
from embedder.storage.object_store import AnyPath, ObjectPath

FOLDER = ".preflight"
"""In each folder that all machines must share; removed in the end."""
LEAST_DRIVER = 580
"""Of NVIDIA, the first for CUDA 13, for which the pinned torch is built."""
ALIKE = ("ray", "torch", "transformers", "tokenizers", "pyarrow", "numpy")
"""Packages of which two versions may compute other numbers, or not understand each other's files."""
BYTES = {"float32": 4, "bfloat16": 2, "int8": 4}
"""Of a weight in memory; int8 is made of float32."""
DRIVER = ("nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class ModelNeed:
    """The weights that each process of a stage holds."""

    setting: str
    bytes: int
    gpus: float
    """Of a process; 0: they lie in the machine's memory."""


@dataclass(frozen=True)
class Machine:
    """A machine, as Ray tells of it."""

    name: str
    gpus: float = 0.0
    memory: float = 0.0
    """Bytes that processes may have together; 0: not told."""


@dataclass(frozen=True)
class Questions:
    """The questions to every machine."""

    token: str
    shared: tuple[AnyPath, ...]
    """Folders in which all machines write and see each other's files."""
    read: tuple[Path, ...]
    """Files and folders that each machine reads under the same name."""
    versions: Mapping[str, str]
    needs: tuple[ModelNeed, ...] = ()

    @classmethod
    def ask(cls, shared: Sequence[AnyPath], read: Sequence[Path] = (), needs: Sequence[ModelNeed] = ()) -> Questions:
        """Leave the driver's own file in each shared folder.

        Raises:
            ConfigError: a store ignores conditions.
            StorageError: a folder cannot be written, or the store does not answer.
        """
        questions = cls(uuid4().hex, tuple(shared), tuple(read), own_versions(), tuple(needs))
        for folder in shared:
            open_store(folder / FOLDER).put_if_absent(questions.name("driver"), questions.token.encode())
        return questions

    def name(self, machine: str) -> str:
        """The name of a machine's file."""
        return f"{self.token}/{machine.replace(' ', '-').replace('/', '-')}"

    def end(self) -> None:
        """Remove what was left; another stage's files stay."""
        for folder in self.shared:
            store = open_store(folder / FOLDER)
            for entry in store.entries(self.token):
                store.remove(f"{self.token}/{entry.name}")
            if isinstance(folder, Path):
                with suppress(OSError):  # not empty, since another one asks here too
                    for left in (self.token, PROBES, "."):
                        (folder / FOLDER / left).rmdir()


def own_versions() -> dict[str, str]:
    """Versions of what must be alike on all machines."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, "llm-embedder": __version__, **{name: metadata.version(name) for name in ALIKE}}


@dataclass(frozen=True)
class Answer:
    """The answer of one machine."""

    machine: Machine
    lines: list[str]
    """What is wrong, a line each."""
    gpu_memory: float = 0.0
    """Bytes of its smallest GPU; 0: it has none."""


def answer(questions: Questions, machine: Machine) -> Answer:
    """Look at the machine on which this runs."""
    lines = [line for folder in questions.shared for line in _storage(questions, machine, folder)]
    lines += [
        f"{machine.name}: no {path}, which the run reads; every node must see it under the same path"
        for path in questions.read
        if not path.exists()
    ]
    for name, version in own_versions().items():
        wanted = questions.versions[name]
        if version != wanted:
            lines.append(f"{machine.name}: {name} {version}, but the driver has {wanted}; give all nodes one image")
    gpus = nvidia_gpus() if machine.gpus else []
    if machine.gpus:
        lines += _driver(machine, gpus)
    return Answer(machine, lines, min((memory for _, memory in gpus), default=0))


def _storage(questions: Questions, machine: Machine, folder: AnyPath) -> list[str]:
    """Tell whether the driver's file is here and kept, and leave one of this machine's."""
    try:
        store = open_store(folder / FOLDER)
        if store.put_if_absent(questions.name("driver"), b""):
            store.remove(questions.name("driver"))
            return [
                f"{machine.name}: its {folder} is another one than the driver's, whose file is not in it; mount one "
                "storage there on all nodes, or give an object store"
            ]
        if store.get(questions.name("driver")) != questions.token.encode():
            return [f"{machine.name}: reads old content in {folder}; mount it with lookupcache=positive,noac"]
        store.put_if_absent(questions.name(machine.name), b"here")
    except (StorageError, ConfigError) as error:
        return [f"{machine.name}: {error}"]
    return []


def missed(questions: Questions, machine: Machine) -> list[str]:
    """Shared folders in which the driver does not see the file that a machine has left, a line each.

    Raises:
        StorageError: the store does not answer.
    """
    return [
        f"{machine.name}: what it writes to {folder} is not seen by the driver; mount one storage there on all nodes"
        for folder in questions.shared
        if open_store(folder / FOLDER).get(questions.name(machine.name)) is None
    ]


def nvidia_gpus() -> list[tuple[str, int]]:
    """Driver's version and memory (bytes) of each NVIDIA GPU here; none where the driver does not answer."""
    try:
        told = subprocess.run(DRIVER, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.split(", ") for line in told.splitlines() if line.strip()]
    return [(row[0], int(float(row[1]) * 2**20)) for row in rows if len(row) == 2 and row[1][:1].isdigit()]


def _driver(machine: Machine, gpus: Sequence[tuple[str, int]]) -> list[str]:
    if len(gpus) < machine.gpus:
        return [
            f"{machine.name}: Ray counts {machine.gpus:g} GPUs, but nvidia-smi knows {len(gpus)}; install NVIDIA's "
            f"driver {LEAST_DRIVER} or later, or start the node without GPUs"
        ]
    version = gpus[0][0]
    if int(version.partition(".")[0]) < LEAST_DRIVER:
        return [f"{machine.name}: NVIDIA's driver is {version}; torch needs {LEAST_DRIVER} or later"]
    return []


def too_small(needs: Sequence[ModelNeed], answers: Sequence[Answer]) -> list[str]:
    """Models whose weights alone are more than a process has on any machine of the kind that it needs, a line each."""
    lines = []
    for need in needs:
        # Of machines that are yet to join nobody knows; those of the other kind do not count.
        if need.gpus:
            found = [(each.gpu_memory * max(need.gpus, 1.0), each.machine) for each in answers if each.gpu_memory]
        else:
            found = [(each.machine.memory, each.machine) for each in answers if each.machine.memory]
        most, largest = max(found, key=lambda pair: pair[0], default=(0.0, None))
        if largest is not None and need.bytes > most:
            kind = "GPU memory" if need.gpus else "memory for processes"
            lines.append(
                f"{need.setting}: its weights are {need.bytes / 1e9:,.1f} GB, but the largest machine, {largest.name}, "
                f"gives a process {most / 1e9:,.1f} GB of {kind}; take larger nodes or a smaller model"
            )
    return lines


def shared_folders(config: RunConfig) -> list[AnyPath]:
    """Folders of a run that all machines must share: its own, or the nearest one above it that is there."""
    work = config.paths.work
    if isinstance(work, ObjectPath):
        return [work]
    return [next(folder for folder in (work, *work.parents) if folder.exists())]


def model_needs(stage: str, config: RunConfig) -> list[ModelNeed]:
    """The models whose weights processes of a stage hold, as far as they are there to be looked at."""
    encoder = config.encoder
    needed = {"encoder.model": (encoder.model, BYTES[encoder.dtype], encoder.gpus_per_actor)}
    stages = {"mine": ["encoder.model"], "index": ["encoder.model"], "evaluate": ["encoder.model"]}
    if config.llm is not None:
        share = config.evaluate.gpus_per_actor if stage == "evaluate" else config.label.gpus_per_actor
        needed["llm.model"] = (config.llm.weights or "", BYTES[config.llm.dtype], share)
        stages["questions"] = ["encoder.model", "llm.model"]
        stages["label"] = ["llm.model"] if config.label.teacher != "imported" and not config.label.recompute else []
        if config.evaluate.asks:
            stages["evaluate"].append("llm.model")
    found = []
    for setting in stages.get(stage, []):
        model, number_bytes, gpus = needed[setting]
        # One in an object store would be fetched for this question; one that is missing is for the stage to tell.
        with suppress(ModelError):
            if model and "://" not in model:
                found.append(ModelNeed(setting, count_parameters(locate_model(model)) * number_bytes, gpus))
    return found


def read_paths(stage: str, config: RunConfig) -> list[Path]:
    """The models of a run, and the data that `prepare` reads, that lie on the driver's machine."""
    named = [section.model for section in (config.encoder, config.llm, config.reranker) if section is not None]
    # A relative one was made absolute where it was submitted; a name of the hub is no folder here.
    models = {Path(model) for model in named if model.startswith("/") and Path(model).is_dir()}
    sources = config.prepare.sources if stage == "prepare" and config.prepare else []
    # One that is missing here too is for the stage to tell; a relative one is sent along with the job.
    given = {source.path for source in sources if isinstance(source.path, Path)}
    return sorted(models | {path for path in given if path.is_absolute() and path.exists()})


def local_lines(config: RunConfig) -> list[str]:
    """What is wrong with this machine for a run that stays on it, a line each.

    Raises:
        ConfigError, StorageError: as `Questions.ask`.
    """
    questions = Questions.ask(shared_folders(config))
    try:
        return answer(questions, Machine("this machine")).lines
    finally:
        questions.end()


def told(machines: int, shared: Sequence[AnyPath]) -> str:
    """The line of a preflight that found nothing wrong."""
    places = ", ".join(map(str, shared))
    return f"preflight: {machines} {'machine sees' if machines == 1 else 'machines see'} {places} and may write there"
