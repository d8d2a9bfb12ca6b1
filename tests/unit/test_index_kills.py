"""SIGKILL in the middle of upserts, compactions, snapshots and alias swaps: the old state or the new one, whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_index_killed_at_any_point_is_whole():
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.index_kills", "7"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **single},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) >= 50
