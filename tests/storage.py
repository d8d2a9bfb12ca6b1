"""Disks that take nothing: folders that may not be written, files that may not grow, and a small disk of its own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing below a folder may be written. Root, whom modes do not stop, is somebody else meanwhile."""
    paths = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in modes.items():
        path.chmod((mode | (0o555 if path.is_dir() else 0o444)) & ~0o222)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """No file of this process may grow beyond a size: what a quota or a full disk does, without a disk of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def passes_on_a_disk_of_its_own(module: str, folder: Path, size: str) -> None:
    """Run a module with the name of a folder in which a disk of a size is mounted; skip where none can be mounted."""
    done = _on_a_disk_of_its_own(module, folder, size)
    if done is None:
        pytest.skip("no disk can be mounted here; another test fills files instead")
    assert done.returncode == 0, done.stderr[-3000:]


def _on_a_disk_of_its_own(module: str, folder: Path, size: str) -> subprocess.CompletedProcess[str] | None:
    mount = f'mount -t tmpfs -o size={size} none "$1"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        tried = subprocess.run([*command, mount, "sh", folder], capture_output=True, check=False)
    except FileNotFoundError:
        return None
    if tried.returncode:
        return None
    work = f'{mount} && exec "$2" -m {module} "$1"'
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, work, "sh", folder, sys.executable],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
