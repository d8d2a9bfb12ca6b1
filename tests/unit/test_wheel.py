"""The wheel in an environment without a clone: its files, and what is imported from there.

What a stranger does with it, from own documents to a search, is tests/cluster/test_own_documents.py.
"""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.installed import ROOT, Installed, build_wheel, install


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_every_file_that_the_packages_have(wheel):
    with zipfile.ZipFile(wheel) as file:
        packed = set(file.namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "embedder", "ray_jobs", "serve"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(tracked) > 200 and set(tracked) - packed == set()
    configs = {path.name for path in (ROOT / "configs").glob("*.yaml")}
    assert {Path(name).name for name in packed if "/share/llm-embedder/configs/" in name} == configs


def test_wheel_is_imported_from_its_own_environment(wheel, tmp_path):
    installed: Installed = install(wheel, tmp_path / "venv")
    script = "import embedder, ray_jobs, serve; print(embedder.__file__, ray_jobs.__file__, serve.__file__)"
    told = subprocess.run(
        [installed.python, "-c", script],
        env=installed.environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert len(told) == 3 and all(Path(each).is_relative_to(tmp_path / "venv") for each in told)
