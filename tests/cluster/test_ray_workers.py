"""The last example of docs/python.md on the session's Ray: the same results as in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import ROOT, Cluster
from tests.unit.test_python_docs import EXAMPLES, with_tiny_models

pytestmark = [pytest.mark.ray, pytest.mark.slow]
COMPARE = """
import json, numpy as np
from embedder.errors import ConfigError
local = encoder.encode(passages)
alone = llm.label(groups)
try:
    workers.map(lambda gpus: lambda part: (_ for _ in ()).throw(ConfigError("one line")), [1], 0)
except ConfigError as error:
    told = str(error)
print(json.dumps({
    "apart": float(np.abs(vectors - local).max()),
    "rewards": [[group["rewards"] for group in rows] for rows in (labelled, alone)],
    "measures": sorted({row.encoder for row in table}),
    "told": told,
}))
"""


def test_workers_on_ray_give_what_this_process_gives(
    cluster: Cluster, tiny_encoder_folder: Path, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    parts = [*EXAMPLES[:4], EXAMPLES[5], COMPARE]
    script = tmp_path / "notebook.py"
    tiny = [with_tiny_models(text, tiny_encoder_folder, tiny_llama_folder, tmp_path, tmp_path) for text in parts]
    script.write_text("\n".join(tiny), encoding="utf-8")
    environment = {**cluster.environment, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, str(script)]
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["apart"] < 1e-5
    assert found["rewards"][0] == found["rewards"][1]
    assert found["measures"] == ["base", "trained"] and found["told"] == "one line"
