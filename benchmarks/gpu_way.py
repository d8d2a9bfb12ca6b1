"""The whole way under Ray with the card: every stage of the demo's data with small random models, then a served query.

The stages run in one Ray (`ray_jobs.pipeline`), the service in another (`serve.ask`). Meanwhile it is looked at which
processes hold memory of the card: one that was given no GPU, as the driver of a job, may hold none.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from benchmarks.gpu_bench import TOY, Bench, random_bert
from benchmarks.gpu_inputs import LLM_TOKENIZER
from embedder.demo.build import build
from embedder.run.stage_report import read_reports

ROOT = Path(__file__).parents[1]
SOURCES = {"qa": "python-docs", "tool": "stdlib", "chat": "assistant"}
"""Of the demo's data: two tasks that the LLM labels, and one that learns from known positives."""
LOOKS_S = 1.0
"""Between two looks at the card."""
PIPELINE, SERVICE = "ray_jobs.pipeline", "serve.ask"
TOLD_LINES = 20
"""Of the output of a command that fails."""


def way(bench: Bench) -> None:
    """Prepare, mine, label, train, index, evaluate, then ask the service: seconds of each, and who used the card."""
    run = written_run(bench)
    with watched_card(bench) as users:
        stages_s = command(bench, PIPELINE, run)
        reports = read_reports(bench.scratch / "run" / "reports")
        for report in reports:
            line = f"{report.stage}: {report.rows:,} {report.unit} in {report.seconds:.1f} s"
            bench.figures.row(line, **{f"{report.stage}_s": report.seconds})
        outside_s = stages_s - sum(report.seconds for report in reports)
        line = f"all stages {stages_s:.1f} s, of which {outside_s:.1f} s of start, imports and checks"
        bench.figures.row(line, stages_s=stages_s, outside_s=outside_s)
        served_s = command(bench, SERVICE, run)
    bench.figures.row(f"the service started and asked: {served_s:.1f} s", served_s=served_s, card_users=users)
    for name, megabytes in sorted(users.items(), key=lambda user: -user[1]):
        is_driver = any(driver in name for driver in (PIPELINE, SERVICE))
        bench.figures.check(f"on the card: {name}", is_right=not is_driver, told=f"{megabytes:,} MB")
    if bench.figures.wrong:
        raise SystemExit("a process used the card that was given none of it")


def written_run(bench: Bench) -> Path:
    """The run file, with its data and models beside it; several actors share the card."""
    gpus = float(bench.device.type == "cuda")
    demo = bench.scratch / "demo"
    sources = [{"task": task, "dataset": name, "path": str(demo / task / name)} for task, name in SOURCES.items()]
    build(demo)
    llm = {"model": str(random_llm(bench)), "max_prefix_tokens": 512, "batch_tokens": bench.batch_tokens}
    encoder = {"model": random_bert(bench).model, "pooling": "cls", "max_tokens": 64, "num_actors": 2}
    run: dict[str, Any] = {
        "paths": {"work": str(bench.scratch / "run"), "cache": str(bench.scratch / "cache")},
        "encoder": encoder | {"gpus_per_actor": gpus / 2},
        "llm": llm | ({"dtype": "bfloat16"} if gpus else {}),
        "prepare": {"sources": sources},
        "mine": {"group_size": 4, "window": [1, 30]},
        "label": {"num_samples": 4, "num_actors": 2, "gpus_per_actor": gpus / 2, "block_rows": 16},
        # Two workers on one card stand in for two cards.
        "train": {"steps": 8, "batch_size": 8, "num_workers": 2, "gpus_per_worker": gpus / 2},
        "evaluate": {"llm_queries": {"qa": 8, "chat": 8}, "num_actors": 1, "gpus_per_actor": gpus / 2},
        "serve": {"gpus_per_replica": gpus / 2, "max_replicas": 1},
    }
    if gpus:
        run["encoder"]["dtype"] = "bfloat16"
    path = bench.scratch / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def random_llm(bench: Bench) -> Path:
    """The folder of a small LLM with random weights and a real tokenizer."""
    folder = bench.scratch / "llm"
    tokenizer = AutoTokenizer.from_pretrained(bench.inputs / LLM_TOKENIZER, trust_remote_code=False)
    shape = {**TOY, "vocab_size": len(tokenizer), "num_key_value_heads": 2, "max_position_embeddings": 4096}
    AutoModelForCausalLM.from_config(LlamaConfig(**shape), trust_remote_code=False).save_pretrained(folder)
    for path in (bench.inputs / LLM_TOKENIZER).iterdir():
        shutil.copy(path, folder / path.name)
    return folder


def command(bench: Bench, module: str, run: Path) -> float:
    """Seconds that a command takes; where it fails or stands still, its last lines are printed.

    Raises:
        SystemExit: it failed, or was still at work when the part had to end.
    """
    log = bench.scratch / f"{module}.log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]), "PYTHONFAULTHANDLER": "1"}
    began = time.perf_counter()
    with log.open("wb") as out:
        words = [sys.executable, "-m", module, "--config", str(run)]
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
        try:
            process.wait(bench.seconds_left())
        except subprocess.TimeoutExpired:
            # Whose handler prints where every thread of the driver stands.
            process.send_signal(signal.SIGABRT)
            process.wait()
    if process.returncode:
        told = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TOLD_LINES:]
        print(*(f"    {line}" for line in told), sep="\n", flush=True)
        raise SystemExit(f"{module} ended with {process.returncode} after {time.perf_counter() - began:.0f} s")
    return time.perf_counter() - began


@contextmanager
def watched_card(bench: Bench) -> Iterator[dict[str, int]]:
    """The most megabytes of the card that each process held, by the command of the process."""
    users: dict[str, int] = {}
    ended = Event()
    watcher = Thread(target=_watch, args=(users, ended), daemon=True)
    if bench.device.type == "cuda":
        watcher.start()
    try:
        yield users
    finally:
        ended.set()
        if watcher.ident is not None:
            watcher.join()


def _watch(users: dict[str, int], ended: Event) -> None:
    asked = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    while not ended.wait(LOOKS_S):
        told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
        for line in told.splitlines():
            pid, _, megabytes = line.partition(",")
            name = process_name(pid.strip())
            if name and megabytes.strip().isdigit() and int(pid) != os.getpid():
                users[name] = max(users.get(name, 0), int(megabytes))


def process_name(pid: str) -> str:
    """The command of a process, shortened; empty if it has ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").replace("\0", " ").split()
    except OSError:
        return ""
    return " ".join(words[:4])[:80]
