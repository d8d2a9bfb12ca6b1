"""One part of the GPU benchmark in a process of its own, which `benchmarks.gpu` starts.

It imports what it needs at once, and touches the card only when a line comes in by its standard input: then it is its
turn, and the line says how many seconds it has. So a part whose context is broken spoils no other, and none waits for
imports.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers

from benchmarks.gpu_bench import Bench, Figures
from embedder.models.device import cuda_versions, resolve_device

FUNCTIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "ceilings": ("gpu_ceilings", "ceilings", ()),
    "right": ("gpu_right", "right", ()),
    "scoring-7b": ("gpu_labelling", "scoring", ("7b",)),
    "scoring-8b": ("gpu_labelling", "scoring", ("8b",)),
    "sampling": ("gpu_labelling", "sampling", ()),
    "encoding": ("gpu_encoding", "encoding", ()),
    "training": ("gpu_training", "training", ()),
    "mining": ("gpu_mining", "mining", ()),
    "memory": ("gpu_memory", "memory", ()),
    "way": ("gpu_way", "way", ()),
}
"""By part: its module, its function, and what that is called with before the bench."""


def function_of(part: str) -> Callable[[Bench], None]:
    """What a part does."""
    module, name, given = FUNCTIONS[part]
    return partial(getattr(import_module(f"benchmarks.{module}"), name), *given)


def open_bench(inputs: Path, scratch: Path, *, toy: bool = False, seconds: float = float("inf")) -> Bench:
    """The bench of a part; without a GPU all of it is a toy, and nothing is compiled."""
    has_gpu = torch.cuda.is_available()
    scratch.mkdir(parents=True, exist_ok=True)
    figures = Figures(scratch / "figures.json")
    if not has_gpu:
        torch.compiler.set_stance("force_eager")
    return Bench(
        inputs, scratch, figures, resolve_device(float(has_gpu)), toy or not has_gpu, time.monotonic() + seconds
    )


def card(device: torch.device) -> dict[str, Any]:
    """What a part was measured on."""
    names = ("ray", "deepspeed", "faiss-gpu", "faiss-cpu", "sentence-transformers")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "none: toy sizes on a CPU",
        "driver": cuda_versions(),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, **_installed(names)},
    }


def _installed(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            continue
    return found


def main() -> int:
    """Wait for the turn, then do the part of this name with these inputs in this folder."""
    part, inputs, scratch, *toy = sys.argv[1:]
    transformers.utils.logging.disable_progress_bar()
    function = function_of(part)
    line = sys.stdin.readline()
    if not line:
        return 0  # whoever started this has ended, or has no time left for it
    bench = open_bench(Path(inputs), Path(scratch), toy=bool(toy), seconds=float(line))
    bench.figures.values |= card(bench.device)
    function(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
