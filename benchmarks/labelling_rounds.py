"""Timing by turns: every way once a round, and the ratio of two ways taken within a round."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from embedder.storage.json_file import write_json

Times = dict[str, float]
"""Seconds by the name of a way."""
CLOCK_TICKS = 100.0
"""Of /proc/stat, a second."""


@dataclass(frozen=True)
class Spread:
    """What some rounds gave."""

    values: list[float]

    @property
    def median(self) -> float:
        """The figure to quote."""
        return median(self.values)

    def __str__(self) -> str:
        return f"{self.median:.3g} ({min(self.values):.3g} to {max(self.values):.3g}, {len(self.values)} rounds)"


def ratios(rounds: Sequence[Times], slow: str, fast: str) -> Spread:
    """How many times as long `slow` took as `fast`, round by round."""
    return Spread([times[slow] / times[fast] for times in rounds if slow in times])


def time_each(ways: Mapping[str, Callable[[], object]]) -> Times:
    """Seconds that each way took, one after the other."""
    times = {}
    for name, way in ways.items():
        began = time.perf_counter()
        way()
        times[name] = time.perf_counter() - began
    return times


class ForeignLoad:
    """How many cores others kept busy; nothing is known of it where there is no /proc/stat."""

    def __init__(self, own_seconds: Callable[[], float] = time.process_time) -> None:
        """`own_seconds`: processor seconds of all that is not foreign; by default of this process alone."""
        self._own_seconds = own_seconds
        self._began, self._own, self._busy = time.perf_counter(), own_seconds(), busy_seconds()

    def cores(self) -> float:
        """Mean number since this was made."""
        others = busy_seconds() - self._busy - (self._own_seconds() - self._own)
        return max(0.0, others / (time.perf_counter() - self._began))


def busy_seconds() -> float:
    """Seconds that all cores together have worked, time stolen by other guests of the same host included."""
    try:
        counts = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
    except OSError:
        return float("nan")
    user, nice, system, _idle, _waiting, interrupt, soft, stolen = map(int, counts[:8])
    return (user + nice + system + interrupt + soft + stolen) / CLOCK_TICKS


def write_figures(found: dict[str, Any], file: Path | None) -> None:
    """Keep what was found so far, if a file was named; NaN, which stands for what is not known, becomes null."""
    if file is not None:
        write_json(_known(found), file)


def _known(value: object) -> object:
    if isinstance(value, dict):
        return {key: _known(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_known(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def machine() -> dict[str, str | int]:
    """What the figures were measured on, and of which commit."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    known = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    return f"{known.get('model name', platform.machine())}, family {known.get('cpu family', '?')}"


def _commit() -> str:
    root = Path(__file__).parents[1]
    try:
        head = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip()
