"""The machine this process runs on, looked at without torch and without Ray."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 5.0
"""For asking the driver."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver names it."""

    name: str
    bytes: int


def gpus() -> list[Gpu]:
    """The GPUs that the driver of this machine tells; none where there is no driver, or it does not work."""
    try:
        asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        told = subprocess.run(asked, capture_output=True, text=True, timeout=LOOK_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rpartition(",") for line in told.splitlines() if line.strip()]
    return [Gpu(name.strip(), int(size) * 2**20) for name, _, size in rows if size.strip().isdigit()]


def has_driver() -> bool:
    """Tell whether the command of NVIDIA's driver is there."""
    return shutil.which("nvidia-smi") is not None


def torch_build() -> str | None:
    """The version of torch with its build, such as `2.13.0+cpu`; None where it is not installed."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    # From its file, because importing torch takes seconds; its distribution does not tell the build everywhere.
    for line in (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8").splitlines():
        if line.startswith("__version__"):
            return line.partition("=")[2].strip().strip("'\"")
    return None


def free_memory() -> int | None:
    """Bytes that new processes may take here, within the limit of a container; None where the system does not tell."""
    try:
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        free = min(free, limit - int((group / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass  # no limit, or none that is told there
    return free


def cpus() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_installed(package: str) -> bool:
    """Tell whether a Python package is there, without importing it."""
    return importlib.util.find_spec(package) is not None
