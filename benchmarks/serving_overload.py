"""More than the service can bear: queries beside bulk embedding, and clients that come back as SDKs do."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import psutil

from benchmarks.labelling_rounds import ForeignLoad
from benchmarks.serving_load import Ask, Load, finish, run, start
from benchmarks.serving_systems import WAYS, System

Found = dict[str, Any]
Ours = Callable[..., AbstractContextManager[System]]
"""Starts our service with some settings, in one of WAYS if it is named."""
HEADLINES = {
    "overload": ("goodput_share",),
    "mixed": ("mixed_goodput", "mixed_query_p99_ratio"),
    "retry": ("retry_goodput", "retry_refusal_ms"),
}
BULK_CLIENTS = 4
BULK_TEXTS = 1000
QUERY_CLIENTS = 16
RETRIES = 2
"""Of openai's SDK."""
FACTORS = (3, 10)
"""Requests a second in the part `retry`, as multiples of what the service bears."""
MOST_WAITING = 20_000
"""Requests of the part `retry` that are under way or wait for their next try."""


def own_seconds() -> float:
    """Processor seconds of this process and of all that come from it, those that have ended included."""
    seconds = sum(os.times()[:4])
    for process in psutil.Process().children(recursive=True):
        try:
            seconds += sum(process.cpu_times()[:4])
        except psutil.Error:
            continue
    return seconds


def p99(times: list[float]) -> float:
    """Of milliseconds; nan where there are none."""
    ordered = sorted(times)
    return ordered[int(0.99 * (len(ordered) - 1))] if ordered else float("nan")


def overload_part(ours: Ours, texts: list[str]) -> Found:
    """Three times as many requests as the service can answer, whatever it says."""
    with ours() as system:
        asks = system.embed(texts)
        run(system.spec(asks, 32, 3.0))
        peak = run(system.spec(asks, 32, 8.0))
        over = run(system.spec(asks, 2000, 20.0, rate=3 * peak.rate, warm_s=3.0))
        time.sleep(3)
        after = run(system.spec(asks, 32, 5.0))
    share = over.rate / peak.rate
    print(f"  peak {peak.rate:.0f} requests/s; at {3 * peak.rate:.0f}: {over.rate:.0f} ({share:.0%}), {over.statuses}")
    accepted, refused = over.percentile(99), p99(over.refused_ms)
    print(f"  accepted p99 {accepted:.0f} ms, refused p99 {refused:.0f} ms; after it {after.rate:.0f}")
    print(f"  the load itself took {peak.cores:.2f} cores at the peak, {over.cores:.2f} above it", flush=True)
    return {
        "goodput_share": round(share, 3),
        "peak": peak.figures(),
        "over": over.figures(),
        "refused": over.statuses.get("429", 0),
        "refused_p99_ms": round(refused, 1),
        "after": after.figures(),
        "examples": over.examples,
    }


def bulk(texts: list[str]) -> list[Ask]:
    """Requests of many texts, as openai's SDK sends them."""
    many = [texts[i % len(texts)] for i in range(BULK_TEXTS)]
    return [Ask("/v1/embeddings", {"model": "live", "input": many, "encoding_format": "base64"})]


def mixed_part(ours: Ours, texts: list[str], seconds: float) -> Found:
    """16 clients with single queries and 4 with a thousand texts each, alone and together.

    Goodput is the share of what each kind does alone, added up: 1 is what the service can do.
    """
    with ours() as system:
        queries, many = _by_turns(system.embed(texts), system.search(texts)), bulk(texts)
        run(system.spec(queries, QUERY_CLIENTS, 2.0))
        alone = run(system.spec(queries, QUERY_CLIENTS, seconds / 2))
        bulk_alone = run(system.spec(many, BULK_CLIENTS, seconds, retries=RETRIES))
        strangers = ForeignLoad(own_seconds)
        loading = start(system.spec(many, BULK_CLIENTS, seconds, retries=RETRIES))
        beside = run(system.spec(queries, QUERY_CLIENTS, seconds, retries=RETRIES))
        bulk_beside = finish(loading)
        foreign = strangers.cores()
    goodput = beside.rate / alone.rate + bulk_beside.rate / bulk_alone.rate
    ratio = p99(beside.ok_ms) / p99(alone.ok_ms)
    late = sum(load.failed - load.statuses.get("429", 0) for load in (beside, bulk_beside))
    for name, load in (("alone", alone), ("beside", beside), ("bulk alone", bulk_alone), ("bulk beside", bulk_beside)):
        print(f"  {name:11} {load.rate:7.2f} requests/s  p99 {p99(load.ok_ms):8.1f} ms  {load.statuses}")
    print(f"  goodput {goodput:.2f}, p99 of queries {ratio:.2f} times as long, {late} let in and not answered")
    print(f"  foreign processes kept {foreign:.2f} cores busy meanwhile", flush=True)
    return {
        "mixed_goodput": round(goodput, 3),
        "mixed_query_p99_ratio": round(ratio, 2),
        "late": late,
        "alone": alone.figures(),
        "beside": beside.figures(),
        "bulk_alone": bulk_alone.figures(),
        "bulk_beside": bulk_beside.figures(),
        "foreign_cores": round(foreign, 2),
        "examples": beside.examples + bulk_beside.examples,
    }


def _by_turns(first: list[Ask], second: list[Ask]) -> list[Ask]:
    return [ask for pair in zip(first, second, strict=True) for ask in pair]


def retry_part(ours: Ours, texts: list[str], seconds: float, rounds: int) -> Found:
    """Three and ten times the load that it bears, from clients that come back, behind each proxy; the worst round."""
    found: Found = {way: _retry_rounds(ours, way, texts, seconds, rounds) for way in WAYS}
    each = [one for way in found.values() for one in way["rounds"]]
    return {
        "retry_goodput": min(one["goodput"] for one in each),
        "retry_refusal_ms": max(one["refused_p99_ms"] for one in each if one["factor"] == FACTORS[0]),
        "retry_accepted_p99_ms": max(one["accepted_p99_ms"] for one in each),
        "retry_memory_growth": max(way["memory_growth"] for way in found.values()),
        **found,
    }


def _retry_rounds(ours: Ours, way: str, texts: list[str], seconds: float, rounds: int) -> Found:
    each: list[Found] = []
    with ours(way=way) as system:
        asks = system.embed(texts)
        run(system.spec(asks, 32, 3.0))
        memory = []
        for _ in range(rounds):
            peak = run(system.spec(asks, 32, seconds / 2))
            for factor in FACTORS:
                each.append(_retry_round(system, asks, peak, factor, seconds) | {"way": way})
                # Of the largest process: another ingress that the load has started is no growth.
                memory.append({name: max(sizes) for name, sizes in system.tell("memory").items()})
                sys.stdout.flush()
    # From the first pass on: what the largest load takes once is not growth.
    growth = max(memory[-1][name] / memory[1][name] - 1 for name in memory[1])
    print(f"  {way}: memory grew by {growth:.1%} from the first round to the last")
    return {"rounds": each, "memory_growth": round(growth, 4), "memory_mib": memory}


def _retry_round(system: System, asks: list[Ask], peak: Load, factor: int, seconds: float) -> Found:
    strangers = ForeignLoad(own_seconds)
    rate = factor * peak.rate
    over = run(system.spec(asks, MOST_WAITING, seconds, rate=rate, warm_s=3.0, retries=RETRIES))
    foreign, refused = strangers.cores(), over.statuses.get("429", 0)
    goodput, others = over.rate / peak.rate, over.failed - over.statuses.get("429", 0)
    print(
        f"  {system.name:18} {factor:2}x of {peak.rate:4.0f}: goodput {goodput:.2f}, accepted p99 "
        f"{p99(over.ok_ms):6.0f} ms, refused {refused} p99 {p99(over.refused_ms):5.0f} ms, others {others}; "
        f"sent {over.sent_rate:.0f}/s, cores of load {over.cores:.2f}, foreign {foreign:.2f}"
    )
    return {
        "factor": factor,
        "goodput": round(goodput, 3),
        "accepted_p99_ms": round(p99(over.ok_ms), 1),
        "refused_p99_ms": round(p99(over.refused_ms), 1),
        "peak_rps": round(peak.rate, 1),
        "foreign_cores": round(foreign, 2),
        "sent_rps": round(over.sent_rate, 1),
        "over": over.figures(),
        "examples": over.examples,
    }
