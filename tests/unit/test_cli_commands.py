"""The command `llm-embedder` as a process: help, the jobs it becomes, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from embedder.cli.commands import ORDER
from embedder.cli.launch import PACKAGES, refuse_elsewhere, refuse_other_packages
from embedder.errors import ConfigError
from embedder.interrupt import GOES_ON, STATUS

ROOT = Path(__file__).parents[2]
HEAVY = "import sys; sys.exit(sorted({'torch', 'ray', 'pydantic', 'pyarrow', 'numpy'} & set(sys.modules)) or None)"


def command(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "embedder.cli", *words]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_help_names_every_command_and_imports_nothing_that_takes_time():
    told = command("--help").stdout
    places = [told.index(f"\n  {name} ") for name in ORDER]
    assert places == sorted(places), "commands stand in the order in which they are used"
    assert "..." not in told.split("Commands:")[1], "what a command does is told in full"
    assert "130 interrupted" in " ".join(told.split())
    imports = subprocess.run([sys.executable, "-c", f"import embedder.cli.commands; {HEAVY}"], cwd=ROOT, check=False)
    assert imports.returncode == 0


def test_a_job_command_becomes_the_job_with_its_error_and_its_status(tmp_path):
    (tmp_path / "run.yaml").write_text("paths: {work: run}\nencoder: {modl: m, pooling: cls}\n", encoding="utf-8")
    done = command("mine", "--set", "mine.seed=1", folder=tmp_path)
    assert done.returncode == 2
    (line,) = (done.stdout + done.stderr).splitlines()
    assert line.startswith("error: --config run.yaml: encoder.modl is not a setting; did you mean encoder.model?")


def test_a_folder_with_another_package_of_our_name_is_refused(tmp_path):
    refuse_other_packages(tmp_path)
    refuse_other_packages(ROOT)
    (tmp_path / "serve.py").touch()
    with pytest.raises(ConfigError, match=r"serve\.py: Python would take it for"):
        refuse_other_packages(tmp_path)


def test_a_package_that_is_taken_from_elsewhere_is_refused(tmp_path, monkeypatch):
    for name in PACKAGES:
        refuse_elsewhere(name)
    (tmp_path / "serve").mkdir()
    (tmp_path / "serve" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "serve", raising=False)
    with pytest.raises(ConfigError, match=rf"package 'serve' is taken from {tmp_path}/serve/__init__\.py, not from"):
        refuse_elsewhere("serve")


WAITING = """
import ctypes, os, threading
from embedder.interrupt import end_at_interrupt
end_at_interrupt({line})
os.write(1, b"ready")
{wait}
"""
IN_PYTHON = "threading.Event().wait()"
IN_C = """
lock = ctypes.CDLL(None).pthread_mutex_lock
mutex = ctypes.create_string_buffer(64)
lock(mutex)
lock(mutex)
"""
CLOSING = f"""
try:
    {IN_PYTHON}
finally:
    {IN_PYTHON}
"""


@pytest.mark.parametrize("wait", [IN_PYTHON, IN_C, CLOSING], ids=["python", "c", "closing"])
def test_an_interrupt_ends_a_process_with_one_line_wherever_it_is_stuck(wait):
    script = WAITING.format(line="", wait=wait)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.read(5) == "ready"
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=60)
    assert (running.returncode, told) == (STATUS, f"{GOES_ON}\n")


@pytest.mark.parametrize("module", ["ray_jobs.mine", "serve.start"])
def test_a_module_that_is_started_ends_at_an_interrupt_from_its_first_import_on(module):
    package = module.split(".")[0]
    script = f"import sys; sys.argv = ['-m']; import {package}, signal; print(signal.getsignal(signal.SIGINT).__name__)"
    found = [
        subprocess.run(
            [sys.executable, "-c", each], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        for each in (script, script.replace("'-m'", "'job'"))
    ]
    assert found == ["leave_what_is_at_work", "default_int_handler"]
