"""Starts a job or the service in the place of this process: the same terminal, signals and exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from embedder.errors import ConfigError

PACKAGES = ("embedder", "ray_jobs", "serve")

SERVICE_URL = "http://127.0.0.1:8000"
"""Where a service answers that is started without further options."""


def start(module: str, words: Sequence[str]) -> NoReturn:
    """Become `python -m MODULE WORDS`.

    Raises:
        ConfigError: another package of that name lies in the current folder, or comes first on Python's path.
    """
    refuse_other_packages(Path.cwd())
    for name in PACKAGES:
        refuse_elsewhere(name)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *words])


def need(package: str, extra: str) -> None:
    """Refuse to go on without a package that comes by an extra alone.

    Raises:
        ConfigError: with how to install it.
    """
    if find_spec(package) is None:
        raise ConfigError(f"{package} is not installed; run `pip install 'llm-embedder[{extra}]'`")


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


def refuse_elsewhere(name: str) -> None:
    """Refuse a package of ours that Python would take from another place than this one's.

    Raises:
        ConfigError: with that place.
    """
    spec, own = find_spec(name), Path(__file__).parents[2]
    found = Path(spec.origin) if spec is not None and spec.origin else None
    if found != own / name / "__init__.py":
        raise ConfigError(
            f"package {name!r} is taken from {found or 'nowhere'}, not from {own}; install LLM-Embedder into an "
            "environment of its own, and look at PYTHONPATH"
        )
