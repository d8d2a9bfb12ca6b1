"""Commands of the docs marked `run`, word by word, with the session's Ray and run file in place of the reader's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import ROOT, Cluster
from tests.unit.test_docs import DOCS, blocks

pytestmark = pytest.mark.ray
COMMANDS = list(
    dict.fromkeys(line for path in DOCS for mark, text in blocks(path) if mark == "run" for line in text.splitlines())
)
"""Each once, though several pages may have it."""


@pytest.mark.parametrize("text", COMMANDS)
def test_docs_have_commands_that_run(cluster: Cluster, run_file: Path, tmp_path: Path, text: str) -> None:
    run = yaml.safe_load(run_file.read_text(encoding="utf-8"))
    mine = tmp_path / "run.yaml"
    mine.write_text(yaml.safe_dump({**run, "submit": {"address": cluster.dashboard}}), encoding="utf-8")
    commands = text.replace("/shared/run.yaml", str(mine))
    done = subprocess.run(
        ["bash", "-ec", commands], env=cluster.environment, cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
