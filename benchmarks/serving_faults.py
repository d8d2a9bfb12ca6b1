"""Faults under load: replicas killed, everything deployed again, the alias swapped, a soak, a fuzzer."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.serving_index import ALIAS, Texts
from benchmarks.serving_load import Ask, finish, run, start
from benchmarks.serving_systems import System

Found = dict[str, Any]
Ours = Callable[..., AbstractContextManager[System]]
"""Starts our service with some settings."""
HEADLINES = {
    "kill": ("kill_failed", "kill_wrong"),
    "update": ("update_failed", "swap_failed"),
    "soak": ("soak_memory_growth",),
    "fuzz": ("fuzz_5xx",),
    "attack": ("attack_crashes", "attack_p99_ratio", "attack_memory_growth", "attack_memory_peak"),
}
KILL_EVERY_S = 5.0
KILL_FOR_S = 60.0
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
SOAK_BATCHES = 10


def expecting(system: System, texts: list[str]) -> list[Ask]:
    """Searches and embeddings by turns, with what is answered while nothing happens."""
    asks = []
    for i, text in enumerate(texts):
        ask = (system.search([text], 3) if i % 2 else system.embed([text]))[0]
        answer = system.ask("POST", ask.path, ask.body)
        if i % 2:
            asks.append(replace(ask, ids=[hit["id"] for hit in answer["results"][0]]))
        else:
            asks.append(replace(ask, vector=answer["data"][0]["embedding"]))
    return asks


def kill_part(ours: Ours, texts: list[str]) -> Found:
    """A random replica of encoder and shard killed every 5 s for 60 s, under 10 clients."""
    with ours(min_replicas=2, max_replicas=2, cpus_per_replica=1) as system:
        asks = expecting(system, texts[:40])
        quiet = run(system.spec(asks, 10, 5.0))
        loading = start(system.spec(asks, 10, KILL_FOR_S))
        killed = []
        for _ in range(int(KILL_FOR_S / KILL_EVERY_S)):
            time.sleep(KILL_EVERY_S)
            killed.append(system.tell("kill", names=["encoder", "shard"]))
        load = finish(loading)
    print(f"  {len(killed)} replicas killed ({', '.join(sorted(set(killed)))}), {load.ok} requests answered")
    print(f"  failed {load.failed} {load.examples}, wrong {load.wrong}; p99 {load.percentile(99):.0f} ms")
    print(f"  before: {quiet.rate:.0f} requests/s, p99 {quiet.percentile(99):.0f} ms", flush=True)
    return {
        "kill_failed": load.failed,
        "kill_wrong": load.wrong,
        "killed": killed,
        "under_kills": load.figures(),
        "quiet": quiet.figures(),
        "examples": load.examples,
    }


def update_part(ours: Ours, texts: list[str]) -> Found:
    """All deployed again, and the alias swapped there and back, under 8 clients."""
    with ours() as system:
        asks = system.search(texts, 3) + system.embed(texts)
        loading = start(system.spec(asks, 8, 15.0))
        time.sleep(2)
        for version in ("v2", "v1", "v2", "v1"):
            system.ask("PUT", f"/v1/indexes/{ALIAS}", {"version": version})
            time.sleep(1)
        swapped = finish(loading)
        loading = start(system.spec(asks, 8, 45.0))
        time.sleep(3)
        began = time.perf_counter()
        system.tell("deploy")
        took = time.perf_counter() - began
        updated = finish(loading)
    print(f"  4 swaps: {swapped.ok} answered, failed {swapped.failed} {swapped.examples}")
    print(f"  1 update of {took:.0f} s: {updated.ok} answered, failed {updated.failed} {updated.examples}", flush=True)
    return {
        "swap_failed": swapped.failed,
        "update_failed": updated.failed,
        "under_swaps": swapped.figures(),
        "under_update": updated.figures(),
        "update_s": round(took, 1),
        "examples": swapped.examples + updated.examples,
    }


def writing(texts: list[str]) -> list[Ask]:
    """The same 40 documents again and again, a deletion, and searches of them alone: writes are compacted meanwhile."""
    path = f"/v1/indexes/{ALIAS}/documents"
    notes = {"must": [{"key": "dataset", "match": {"value": "notes"}}]}
    asks = [
        Ask(path, {"task": "qa", "documents": [{"id": f"note-{i % 40}", "dataset": "notes", "text": text}]})
        for i, text in enumerate(texts[:80])
    ]
    asks.append(Ask(f"{path}/delete", {"task": "qa", "documents": [{"id": "note-0", "dataset": "notes"}]}))
    return asks + [Ask("/v1/search", {"query": text, "task": "qa", "filter": notes}) for text in texts[:50]]


def soak_part(ours: Ours, texts: Texts, requests: int) -> Found:
    """Mixed requests; memory of each deployment after the first tenth, and at the end."""
    with ours() as system:
        asks = system.embed(texts.short) + system.search(texts.short) + system.search(texts.short[:50], 100)
        asks += [Ask("/v1/retrieve/qa", {"query": text}) for text in texts.short[:50]]
        asks += [Ask("/v1/rerank", {"query": text, "documents": texts.short[:5]}) for text in texts.short[:50]]
        asks += system.embed(texts.long[:20])
        asks += writing(texts.short)
        random.Random(0).shuffle(asks)
        curve, failed = [], 0
        for batch in range(SOAK_BATCHES + 1):
            if batch:
                load = run(system.spec(asks, 16, 600.0, warm_s=0.0, requests=requests // SOAK_BATCHES))
                failed += load.failed
            curve.append({name: round(sum(sizes), 1) for name, sizes in system.tell("memory").items()})
            print(f"  {batch * requests // SOAK_BATCHES:6} requests: MiB {curve[-1]}", flush=True)
    growth = {name: round(curve[-1][name] / curve[1][name] - 1, 4) for name in curve[1]}
    print(f"  growth from the first tenth on {growth}; failed {failed}", flush=True)
    return {"soak_memory_growth": max(growth.values()), "growth": growth, "memory_mib": curve, "soak_failed": failed}


def fuzz_part(ours: Ours) -> Found:
    """schemathesis on every route but those that move or drop an alias."""
    root = Path(__file__).parents[1]
    with ours() as system:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{system.url}/openapi.json", "--checks", CHECKS]
        command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "30", "--continue-on-failure"]
        command += ["--suppress-health-check", "all", "--seed", "1", "--exclude-method", "DELETE"]
        command += ["--exclude-method", "PUT", "--no-color", "--warnings", "off"]
        command += ["-H", f"Authorization: Bearer {system.key}"]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.fuzzing", "PYTHONPATH": str(root)}
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    failures = len(re.findall(r"^- Server error", done.stdout, re.MULTILINE))
    others = len(re.findall(r"^- (?!Server error)", done.stdout, re.MULTILINE))
    print("\n".join(done.stdout.splitlines()[-15:]), flush=True)
    if done.returncode not in {0, 1}:
        raise RuntimeError(f"schemathesis did not run: {done.stderr[-500:]}")
    return {"fuzz_5xx": failures, "fuzz_other": others, "exit": done.returncode}
