"""The project as a stranger has it: its wheel in an environment of its own, without the repository.

The environment sees the packages of this one by a path, because installing them again takes minutes, and not this
project.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "embedder", "ray_jobs", "serve", "configs")


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel."""

    python: Path

    @property
    def command(self) -> str:
        """`llm-embedder`."""
        return str(self.python.parent / "llm-embedder")

    def environment(self, **more: str) -> dict[str, str]:
        """As of a shell in which the environment is active, on a machine where nothing is said of Ray."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and name[:4] != "RAY_"}
        return {**kept, "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}", **more}


def build_wheel(folder: Path) -> Path:
    """Build it from a copy, because building leaves files beside the sources."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(folder), str(source)], check=True, timeout=500)
    (built,) = folder.glob("*.whl")
    return built


def install(wheel: Path, folder: Path) -> Installed:
    """Install a wheel into a new environment."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    # A line of a .pth file adds a path and reads no .pth file there, such as that of an editable installation.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--force-reinstall", str(wheel)], check=True, timeout=300)
    return Installed(python)
