"""What the tests of `label` share: groups to label, a driver that stays, and labels that can be compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from embedder.data.ledger import Ledger
from embedder.data.records import GROUP, QUERY, write_table
from tests.cluster.conftest import ROOT

PLACES = ["forest", "bridge", "market", "station"]


def group(task: str, dataset: str, number: int) -> dict[str, Any]:
    """A group with four candidates, of which neighbours share some."""
    texts = [f"the fox jumps over {name} {(number + i) // 2}" for i, name in enumerate(PLACES)]
    return {
        "task": task,
        "dataset": dataset,
        "query_id": f"{dataset}-{number}",
        "query": f"which city is number {number}",
        "answers": [f"Paris {number}"],
        "candidate_ids": [f"p{i}" for i in range(len(texts))],
        "candidate_texts": texts,
        "relevance": [1] + [0] * (len(texts) - 1),
    }


def write_groups(groups: Sequence[dict[str, Any]], path: Path, row_group_rows: int) -> None:
    """A candidate file of several row groups, and the queries of its groups as `prepare` leaves them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(groups), schema=GROUP), path, row_group_size=row_group_rows)
    queries = [
        {**dict.fromkeys(QUERY.names), **{name: candidates[name] for name in GROUP.names[:5]}} for candidates in groups
    ]
    folder = path.parents[1] / "prepared" / "queries" / "train"
    write_table(queries, QUERY, folder / f"{groups[0]['dataset']}.parquet")


def write_run_file(folder: Path, llm: Path, encoder: Path, **label: object) -> Path:
    """A run below `folder` that labels with a tiny LLM."""
    run = {
        "paths": {"work": str(folder / "work"), "cache": str(folder / "cache")},
        "encoder": {"model": str(encoder), "pooling": "mean", "max_tokens": 64},
        "llm": {"model": str(llm), "max_prefix_tokens": 400, "batch_tokens": 1024},
        "tasks": {"qa": {"shots": 1}, "lrlm": {"max_output_tokens": 32}},
        "label": {"num_samples": 6, "temperature": 3.0, "unit_groups": 2, "num_actors": 1, **label},
    }
    (folder / "cache").mkdir(parents=True, exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def labels(ledger: Ledger) -> dict[str, bytes]:
    """Every committed row by its id; equal bytes are equal to the last bit of every number."""
    return {row["row_id"]: json.dumps(row).encode() for row in ledger.read().to_pylist()}


class Driver:
    """A process that runs calls of jobs one after another; its output is kept in `lines`."""

    def __init__(
        self, address: str, actor: str | None = "WatchedBlocks", environment: Mapping[str, str] = os.environ
    ) -> None:
        """`actor`: one of `label_actors`, in place of the job's own."""
        self.lines: list[str] = []
        self.session = ""
        """Name of Ray's session, known once a call was begun."""
        self.ended = 0.0
        """When the last call ended, in monotonic seconds."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.stage_driver", *([actor] if actor else [])],
            env={**environment, "RAY_ADDRESS": address, "PYTHONUNBUFFERED": "1"},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until_ready(self) -> None:
        """Until it has imported what it needs and is connected."""
        if not self.session:
            self.session = self._read_until("ready ").split()[1]

    def begin(self, run_file: Path, *arguments: str, stage: str = "label") -> None:
        """Start a call, once the driver is connected."""
        self.wait_until_ready()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([stage, "--config", str(run_file), *arguments]) + "\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        """Wait for the call that was begun; its exit status and output."""
        first = len(self.lines)
        _, code, ended = self._read_until("ended ").split()
        self.ended = float(ended)
        return int(code), "".join(self.lines[first:-1])

    def call(self, run_file: Path, *arguments: str, stage: str = "label") -> tuple[int, str]:
        """Run one call to its end."""
        self.begin(run_file, *arguments, stage=stage)
        return self.end()

    def _read_until(self, start: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith(start):
                return line
        raise AssertionError("".join(self.lines)[-5000:])

    def close(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.communicate()
