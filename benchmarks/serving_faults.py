"""Faults under load: everything deployed again, the alias swapped, a soak, a fuzzer."""

from __future__ import annotations

import os
import random
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks.serving_index import ALIAS, Texts
from benchmarks.serving_load import Ask, finish, run, start
from benchmarks.serving_systems import System
from serve.access.keys import ROLES

Found = dict[str, Any]
Ours = Callable[..., AbstractContextManager[System]]
"""Starts our service with some settings."""
HEADLINES = {
    "kill": ("kill_failed", "kill_wrong", "kill_lost_writes", "kill_p99_ms"),
    "update": ("update_failed", "swap_failed"),
    "soak": ("soak_memory_growth",),
    "fuzz": ("fuzz_5xx",),
    "attack": ("attack_crashes", "attack_p99_ratio", "attack_memory_growth", "attack_memory_peak"),
}
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
SOAK_BATCHES = 10


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
    """schemathesis on every route with the key of each role, and with none."""
    with tempfile.TemporaryDirectory() as folder:
        keys: dict[str, str] = {role: secrets.token_hex(16) for role in ROLES}
        path = Path(folder) / "keys"
        path.write_text("".join(f"{role} {key}\n" for role, key in keys.items()), encoding="utf-8")
        with ours(api_keys_file=str(path), key=keys["admin"]) as system:
            found = {role: fuzz(system.url, role, key, 30) for role, key in {**keys, "none": ""}.items()}
    return {
        "fuzz_5xx": sum(each["server_errors"] for each in found.values()),
        "fuzz_other": sum(each["others"] for each in found.values()),
        # A report of no failures says nothing more, and names the folders of the machine.
        "by_role": {role: {**each, "report": each["report"] if each["exit"] else ""} for role, each in found.items()},
    }


def fuzz(url: str, role: str, key: str, examples: int) -> Found:
    """schemathesis on every route with one key; how many failures of each kind, and its report.

    Raises:
        RuntimeError: it does not run.
    """
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{root / 'docs' / 'openapi.json'}", "--url", url]
    command += ["--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--max-examples", str(examples)]
    command += ["--continue-on-failure", "--suppress-health-check", "all", "--seed", "1", "--no-color"]
    command += ["--warnings", "off"]
    if role == "admin":  # it may drop the alias that all other requests name
        command += ["--exclude-method", "DELETE"]
    if key:
        command += ["-H", f"Authorization: Bearer {key}"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.fuzzing", "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode not in {0, 1}:
        raise RuntimeError(f"schemathesis did not run: {done.stdout[-500:]}{done.stderr[-500:]}")
    print(f"  {role}:", *done.stdout.splitlines()[-8:], sep="\n    ", flush=True)
    server_errors = len(re.findall(r"^- Server error", done.stdout, re.MULTILINE))
    others = len(re.findall(r"^- (?!Server error)", done.stdout, re.MULTILINE))
    return {"server_errors": server_errors, "others": others, "exit": done.returncode, "report": done.stdout[-5000:]}
