"""The service under attack, behind the front that is shipped, while honest clients go on.

    python -m benchmarks.serving_attacks < TARGET.json > ENDED.json

is the attacker, in a process of its own: every attack of `hostile_requests` and `hostile_bodies`, again and again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import psutil

from benchmarks.hostile_bodies import BODIES, FRESH, TITLED
from benchmarks.hostile_requests import WIRE, Target, besiege
from benchmarks.serving_front import front
from benchmarks.serving_index import ALIAS, TASK, attackers_key
from benchmarks.serving_load import Ask, Load, finish, run, said_by, start, start_module
from benchmarks.serving_systems import System

Found = dict[str, Any]
Ours = Callable[..., AbstractContextManager[System]]
CLIENTS = 8
"""Of the run that finds out what the service can bear."""
HONEST_SHARE = 0.5
"""Of that, the rate at which honest requests come: a service that is full already could keep nobody quick."""
MOST_WAITING = 500
"""Honest requests under way at most."""
REQUESTS = 8 * (os.cpu_count() or 1)
"""That the front gives the service at once: what docs/serving.md says of a service on processors."""
QUIET_S = 20.0
LOOK_EVERY_S = 2.0
"""Between two looks at memory."""
REST_S = 15.0
"""Between the last attack and the last look at memory."""


def attack_part(ours: Ours, texts: list[str], seconds: float, ways: list[str], *, one_key: bool = False) -> Found:
    """Every attack for so long, mixed with honest load, once for each way in which the service is offered.

    `one_key`: attackers have the key of honest clients.
    """
    found = {way: attacked(ours, texts, seconds, way, list(WIRE | BODIES), one_key=one_key) for way in ways}
    return {
        "seconds": seconds,
        "attack_crashes": sum(each["crashes"] for each in found.values()),
        "attack_p99_ratio": max(each["p99_ratio"] for each in found.values()),
        "attack_memory_growth": max(each["memory_growth"] for each in found.values()),
        "attack_memory_peak": max(each["memory_peak"] for each in found.values()),
        "attack_failed": sum(each["failed"] for each in found.values()),
        "by_way": found,
    }


def honest(system: System, texts: list[str]) -> list[Ask]:
    """Embeddings, searches and prompts by turns."""
    asks = zip(
        system.embed(texts),
        system.search(texts),
        [Ask("/v1/retrieve/qa", {"query": text, "k": 3}) for text in texts],
        strict=True,
    )
    return [ask for group in asks for ask in group]


def attacked(
    ours: Ours, texts: list[str], seconds: float, way: str, attacks: list[str], *, one_key: bool = False
) -> Found:
    """The same with some attacks and in one way."""
    with (
        ours(way=way, max_ingress_replicas=1) as direct,
        front(direct.port, direct.port + 9, FRONT_REQUESTS=REQUESTS) as process,
    ):
        system = replace(direct, port=direct.port + 9)
        asks = honest(system, texts)
        run(system.spec(asks, CLIENTS, 3.0))
        rate = HONEST_SHARE * run(system.spec(asks, CLIENTS, 5.0)).rate
        quiet = run(system.spec(asks, MOST_WAITING, min(QUIET_S, seconds), rate=rate))
        before, standing = _memory(system, process), set(system.tell("pids"))
        given = {
            "target": asdict(Target(system.port, system.key if one_key else attackers_key(system.key))),
            "seconds": seconds,
            "attacks": attacks,
        }
        attacker = start_module("benchmarks.serving_attacks", given)
        loading, during = start(system.spec(asks, MOST_WAITING, seconds, rate=rate)), [before]
        while attacker.poll() is None:
            time.sleep(LOOK_EVERY_S)
            during.append(_memory(system, process))
        under, attack = finish(loading), said_by(attacker)
        time.sleep(REST_S)
        rested = _memory(system, process)
        crashes = len(standing - set(system.tell("pids"))) + (process.poll() is not None)
        after = run(system.spec(asks, MOST_WAITING, 5.0, rate=rate))
        _forget(direct)
    peak = max(during, key=lambda memory: sum(memory.values()))
    print(f"  {way}: {crashes} crashes; MiB before {before}\n    at most {peak}\n    after a rest {rested}")
    return _figures(way, quiet, under, after, attack) | {
        "crashes": crashes,
        "memory_growth": _growth(before, rested),
        "memory_peak": _growth(before, peak),
        "memory_mib": {"before": before, "peak": peak, "rested": rested},
    }


def _growth(before: dict[str, float], after: dict[str, float]) -> float:
    """Of all parts together: one that has little may take twice of it."""
    return round(sum(after.values()) / sum(before.values()) - 1, 3)


def _forget(system: System) -> None:
    """Delete what attacks have written, or the next part would search it."""
    names = [{"id": f"attack-{number}"} for number in range(FRESH)] + [{"id": f"attack-{name}"} for name, _ in TITLED]
    system.ask("POST", f"/v1/indexes/{ALIAS}/documents/delete", {"task": TASK, "documents": names})


def _figures(way: str, quiet: Load, under: Load, after: Load, attacker: Found) -> Found:
    ended = attacker["ended"]
    ratio = under.percentile(99) / quiet.percentile(99)
    print(f"  {way}: p99 {quiet.percentile(99):.0f} ms, under attack {under.percentile(99):.0f} ({ratio:.1f}x)")
    print(f"  the attacker took {attacker['cores']:.2f} cores, the honest load {under.cores:.2f}")
    print(f"  honest requests {under.statuses} {under.examples[:2]}; after it {after.statuses}")
    beside = _by_attack(under, attacker["turns"])
    for name, outcomes in ended.items():
        print(f"    {name}: {outcomes} {beside.get(name, '')}")
    sys.stdout.flush()
    return {
        "p99_ratio": round(ratio, 2),
        "failed": under.failed + after.failed,
        "quiet": quiet.figures(),
        "under": under.figures(),
        "after": after.figures(),
        "attacks": ended,
        "beside": beside,
        "attacker_cores": round(attacker["cores"], 2),
        "examples": under.examples,
    }


def _by_attack(load: Load, turns: list[tuple[str, float, float]]) -> Found:
    """Of each attack that took turns: how long, and the latency of what honest clients asked meanwhile."""
    began_N, took_N = np.asarray(load.began_s) + load.start_at, np.asarray(load.ok_ms)
    found: Found = {}
    for name in dict.fromkeys(name for name, *_ in turns):
        spans = [(began, ended) for one, began, ended in turns if one == name]
        beside_N = np.any([(began_N >= began) & (began_N < ended) for began, ended in spans], axis=0)
        if beside_N.any():
            p50, p99, longest = np.percentile(took_N[beside_N], (50, 99, 100)).round(1).tolist()
            seconds = round(sum(ended - began for began, ended in spans), 1)
            found[name] = {"seconds": seconds, "p50_ms": p50, "p99_ms": p99, "longest_ms": longest}
    return found


def _memory(system: System, process: subprocess.Popen[bytes]) -> dict[str, float]:
    """MiB of each part of the service and of the front."""
    found = {name: round(sum(sizes), 1) for name, sizes in system.tell("memory").items()}
    return found | {"front": round(psutil.Process(process.pid).memory_full_info().uss / 2**20, 1)}


def main() -> None:
    """Attack whom stdin names."""
    given = json.load(sys.stdin)
    # Behind the service: on a machine of its own an attacker would take none of the service's processor time.
    os.nice(19)
    began, busy = time.monotonic(), time.process_time()
    until = began + given["seconds"]
    attacks = {name: (WIRE | BODIES)[name] for name in given["attacks"]}
    turns: list[tuple[str, float, float]] = []
    ended = besiege(Target(**given["target"]), attacks, until, lambda *turn: turns.append(turn))
    cores = (time.process_time() - busy) / (time.monotonic() - began)
    json.dump({"ended": ended, "cores": cores, "turns": turns}, sys.stdout)


if __name__ == "__main__":
    main()
