"""Starts a job or the service in the place of this process: the same terminal, signals and exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from embedder.errors import ConfigError

PACKAGES = ("embedder", "ray_jobs", "serve")


def start(module: str, words: Sequence[str]) -> NoReturn:
    """Become `python -m MODULE WORDS`.

    Raises:
        ConfigError: another package of that name lies in the current folder.
    """
    refuse_other_packages(Path.cwd())
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *words])


def refuse_other_packages(folder: Path) -> None:
    """Refuse a folder in which Python would find other code under our names.

    Raises:
        ConfigError: with what to do.
    """
    # `python -m` and Ray's workers look into the current folder first. Our own clone is such a folder, too.
    if (folder / "embedder" / "cli" / "__main__.py").is_file():
        return
    for name in PACKAGES:
        for path in (folder / f"{name}.py", folder / name / "__init__.py"):
            if path.is_file():
                raise ConfigError(
                    f"{path}: Python would take it for LLM-Embedder's package {name!r}; start this in another folder"
                )
