"""Replicas that come with the load and go with it, as a curve."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving_load import Load, finish, start
from benchmarks.serving_systems import System

FILE = Path(__file__).with_name("serving-scale.png")
PHASES = ((2, 15.0), (64, 50.0), (2, 45.0))
"""Clients and seconds."""
MOST = 3
"""Replicas of the encoder."""


def scale_part(ours: Callable[..., AbstractContextManager[System]], texts: list[str]) -> dict[str, Any]:
    """One encoder becomes several and one again; nothing fails."""
    settings = {"max_replicas": MOST, "cpus_per_replica": 1, "upscale_delay_s": 3, "downscale_delay_s": 8}
    samples: list[tuple[float, int]] = []
    loads: list[tuple[float, int, Load]] = []
    with ours(**settings) as system:
        asks = system.embed(texts)
        began = time.perf_counter()
        for clients, seconds in PHASES:
            at = time.perf_counter() - began
            loading = start(system.spec(asks, clients, seconds, warm_s=0.0))
            while loading.poll() is None and time.perf_counter() - began < at + seconds:
                samples.append((time.perf_counter() - began, _encoders(system)))
                time.sleep(1)
            loads.append((at, clients, finish(loading)))
    failed = sum(load.failed for _, _, load in loads)
    counts = [count for _, count in samples]
    up = next((at for at, count in samples if count > 1), float("nan"))
    print(
        f"  1 to {max(counts)} and back to {counts[-1]} encoders, the second {up - PHASES[0][1]:.0f} s after the load"
    )
    print(f"  failed {failed}; drawn into {FILE.name}", flush=True)
    _draw(samples, loads)
    return {
        "most": max(counts),
        "last": counts[-1],
        "second_after_s": round(up - PHASES[0][1], 1),
        "scale_failed": failed,
        "phases": [{"clients": clients, **load.figures()} for _, clients, load in loads],
    }


def _encoders(system: System) -> int:
    states = {one["name"]: one["replicas"] for one in system.ask("GET", "/v1/state")["data"]}
    return int(states["encoder"].get("RUNNING", 0))


def _draw(samples: list[tuple[float, int]], loads: list[tuple[float, int, Load]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, middle, below) = plt.subplots(3, 1, figsize=(8, 6), sharex=True)
    above.step(*zip(*samples, strict=True), where="post")
    above.set_ylabel("encoder replicas")
    above.set_ylim(0, MOST + 0.5)
    for at, _, load in loads:
        began, took = np.asarray(load.began_s), np.asarray(load.ok_ms)
        seconds = np.arange(0, load.seconds)
        flying = [((began <= one) & (began + took / 1000 > one)).sum() for one in seconds]
        middle.plot(at + seconds, flying, color="tab:orange")
        places = np.digitize(began, seconds) - 1
        kept = [one for one in range(len(seconds)) if (places == one).any()]
        for share, style in ((50, "-"), (99, ":")):
            values = [float(np.percentile(took[places == one], share)) for one in kept]
            below.plot(
                at + np.asarray(kept),
                values,
                style,
                color="tab:green",
                label=f"p{share}" if at == loads[0][0] else None,
            )
    middle.set_ylabel("requests in flight")
    below.set_ylabel("latency, ms")
    below.set_yscale("log")
    below.set_xlabel("seconds")
    below.legend()
    for axes in (above, middle, below):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(FILE, dpi=90)
    plt.close(figure)
