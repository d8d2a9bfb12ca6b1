"""Jobs that write in every way in which jobs write. Run by test_full_disk_of_jobs.py on a small disk of its own too."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from embedder.config.run import RunConfig
from embedder.data.records import write_table
from embedder.run.cost import Work
from embedder.storage.durable import appearing, write_durably
from embedder.storage.json_file import write_json
from ray_jobs.cluster.session import Job, main

MANY = np.random.default_rng(0).standard_normal(500_000)
"""Numbers that do not become smaller when compressed: 4 MB."""
RUN_FILE = "paths: {{work: {work}, cache: {cache}}}\nencoder: {{model: none, pooling: mean}}\n"
TABLE = pa.table({"number": MANY})


def by_arrow(folder: Path) -> None:
    with appearing(folder / "arrow") as staged, pa.OSFile(str(staged / "x"), "wb") as sink:
        pa.ipc.new_file(sink, TABLE.schema).write_table(TABLE)


def by_safetensors(folder: Path) -> None:
    with appearing(folder / "weights") as staged:
        save_file({"x": MANY}, staged / "x")


def appended(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(MANY.tobytes())


WRITERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "json": (lambda folder: write_json([0.5] * 500_000, folder / "report.json"), "report.json"),
    "table": (lambda folder: write_table(TABLE, TABLE.schema, folder / "rows.parquet"), "rows.parquet"),
    "durable": (lambda folder: write_durably(folder / "record", MANY.tobytes()), "record"),
    "arrow": (by_arrow, "arrow"),
    "safetensors": (by_safetensors, ""),
    "appended": (appended, ""),
}
"""What writes, and the file or folder that is named; nothing where that cannot be known, which means the run's own."""


def ended(folder: Path, act: Callable[[Path], None]) -> tuple[int, str]:
    """Exit status and last line of a job that does that for the run of a folder."""

    def check(config: RunConfig) -> Work:
        assert isinstance(config.paths.work, Path)
        act(config.paths.work)
        return Work("prepare", [], 0.0)

    run_file = folder / "run.yaml"
    out = io.StringIO()
    with redirect_stdout(out):
        try:
            main(Job("prepare", "A job.", check, lambda _: never()), ["--config", str(run_file), "--dry-run"])
        except SystemExit as end:
            assert isinstance(end.code, int)
            return end.code, out.getvalue()
    return 0, out.getvalue()


def never() -> None:
    raise AssertionError("a dry run runs nothing")


def prepared(folder: Path) -> Path:
    """The run's own folder, with the run file beside it."""
    work = folder / "work"
    work.mkdir()
    (folder / "run.yaml").write_text(RUN_FILE.format(work=work, cache=folder / "cache"), encoding="utf-8")
    return work


def check_writers(folder: Path, reason: str, full: Callable[[], AbstractContextManager[None]]) -> None:
    """Every writer ends the job in one line with the place, the reason and what to do."""
    work = prepared(folder)
    for name, (act, file) in WRITERS.items():
        with full():
            status, told = ended(folder, act)
        place = work / file if file else work
        wanted = f"error: {place}: the disk is full ({reason}); make room and run it again, what is finished stays\n"
        assert (status, told) == (2, wanted), (name, status, told)
        if name != "appended":
            assert not [path for path in work.rglob("*") if path.is_file()], name
        (work / "metrics.jsonl").unlink(missing_ok=True)


if __name__ == "__main__":
    check_writers(Path(sys.argv[1]), "No space left on device", nullcontext)
