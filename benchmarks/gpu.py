"""What the project does on one GPU, beside what that GPU can do: `python -m benchmarks.gpu`.

One command of at most nine minutes. Each part is a process of its own; all are started at once, because imports take
longer than some parts, and let onto the card in turn. A part that fails, or takes too long, leaves the others. Weights
are random and of true shapes; texts, prompts and outputs are real (`python -m benchmarks.gpu_inputs` makes them once,
on any machine that has the data). Without a GPU all of it runs at toy sizes, whose figures say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedder.storage.json_file import write_json

ROOT = Path(__file__).parents[1]
LONGEST = 540
"""Seconds of a whole run."""
PARTS = {
    "ceilings": 45,
    "right": 90,
    "scoring-7b": 90,
    "scoring-8b": 80,
    "sampling": 45,
    "encoding": 60,
    "training": 80,
    "mining": 45,
    "memory": 50,
    "way": 240,
}
"""By name: seconds that a part takes at most, in the order of their turns. Together they would take longer than a run:
each is there to end a part that stands still."""
KEYS = (
    *("label_7b_pairs_s", "label_7b_share", "label_8b_pairs_s", "label_8b_share", "sampling_tokens_s"),
    *("encode_texts_s", "encode_vs_sentence_transformers", "train_samples_s", "train_vs_sentence_transformers"),
    "mining_tflops",
)
"""The figures to quote."""
CARD = ("device", "driver", "cores", "python", "versions")
"""What every part tells of the machine."""
TOLD_LINES = 12
"""Of the errors of a part that failed."""
PART_COMMAND = [sys.executable, "-m", "benchmarks.gpu_part"]
GRACE_S = 5.0
"""Seconds that a part has to end in once it is told to."""

Found = dict[str, Any]


@dataclass
class Turn:
    """A part that waits for its turn, or has had it."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def found(self) -> Found:
        """What it has found so far."""
        path = self.folder / "figures.json"
        found: Found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found

    def take(self, seconds: float) -> str | None:
        """Let the part work for so long, then end it; the error if it had one."""
        written = (self.folder / "table.txt").open("rb")
        ends = time.monotonic() + seconds
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.write(f"{seconds}\n".encode())
                self.process.stdin.close()
        while self.process.poll() is None and time.monotonic() < ends:
            _show(written.read())
            time.sleep(0.05)
        is_late = self.process.poll() is None
        self.end()
        _show(written.read())
        if is_late:
            return f"ended after {seconds:.0f} s"
        return None if self.process.returncode == 0 else self._errors()

    def end(self) -> None:
        """End the part and all that it has started."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE_S)
                return

    def _errors(self) -> str:
        told = (self.folder / "errors.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n".join(told[-TOLD_LINES:]) or f"ended with {self.process.returncode}"


def _show(written: bytes) -> None:
    sys.stdout.write(written.decode("utf-8", errors="replace"))
    sys.stdout.flush()


def start(name: str, inputs: Path, folder: Path, *, toy: bool) -> Turn:
    """Start the process of a part, which imports what it needs and waits."""
    folder.mkdir(parents=True)
    words = [*PART_COMMAND, name, str(inputs.absolute()), str(folder), *["toy"] * toy]
    with (folder / "table.txt").open("wb") as table, (folder / "errors.txt").open("wb") as errors:
        process = subprocess.Popen(
            words, cwd=ROOT, stdin=subprocess.PIPE, stdout=table, stderr=errors, start_new_session=True
        )
    return Turn(name, folder, process)


def run(names: Sequence[str], inputs: Path, scratch: Path, found: Found, json_file: Path | None, *, toy: bool) -> int:
    """Let every part have its turn; returns how many failed. `found` is written after each."""
    began, failed = time.monotonic(), 0
    turns = [start(name, inputs, scratch / name, toy=toy) for name in names]
    try:
        for turn in turns:
            left = LONGEST - (time.monotonic() - began)
            print(turn.name, flush=True)
            at = time.monotonic()
            error = turn.take(min(PARTS[turn.name], left)) if left > 0 else "left out: the time was up"
            seconds = time.monotonic() - at
            print(f"  {seconds:.0f} s" if error is None else f"  FAILED after {seconds:.0f} s\n{error}", flush=True)
            failed += error is not None
            enter(found, turn.name, turn.found, seconds, error)
            if json_file is not None:
                write_json(found, json_file)
    finally:
        for turn in turns:
            turn.end()
    return failed


def enter(found: Found, name: str, figures: Found, seconds: float, error: str | None) -> None:
    """Enter what a part found: the figures to quote and the machine at the top, the rest under its name."""
    own = {key: value for key, value in figures.items() if key not in CARD}
    found.setdefault("parts", {})[name] = {**own, "seconds": seconds, "error": error}
    found |= {key: figures[key] for key in (*CARD, *KEYS) if key in figures}


def commit_of(root: Path) -> str:
    """The commit that is measured, as far as git knows it."""
    try:
        told = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told.stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    """Run the parts asked for; 1 if one failed or there are no inputs."""
    given = _parser().parse_args(arguments)
    if not (given.inputs / "units.json.gz").is_file():
        print(f"{given.inputs}: no inputs; `python -m benchmarks.gpu_inputs --out {given.inputs}` makes them")
        return 1
    found: Found = {"commit": given.commit or commit_of(ROOT)}
    print(f"commit {found['commit']}", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
        failed = run(given.part or list(PARTS), given.inputs, Path(scratch), found, given.json, toy=given.toy)
    for key in ("device", "driver", *KEYS):
        if key in found:
            value = found[key]
            print(f"{key}: {value:,.3g}" if isinstance(value, float) and value < 100 else f"{key}: {value}")
    return int(failed > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=Path, default=Path(".cache/gpu"), help="folder of gpu_inputs (.cache/gpu)")
    parser.add_argument("--json", type=Path, help="file that the figures are written to, part by part")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this part; may be repeated")
    parser.add_argument("--toy", action="store_true", help="toy sizes on a GPU too, to see that all of it runs")
    parser.add_argument("--commit", help="what is measured, where the folder is no git checkout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
