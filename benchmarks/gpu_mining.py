"""Exact dense search on the card: a part of a million queries over ten million passages."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_bench import Bench, profiled
from embedder.config.mine import MineConfig
from embedder.index.exact import Ranked
from embedder.mining.device_search import DeviceSearch

WIDTH = 768
SUBJECTS = 4096
"""Directions around which the vectors lie, as those of texts do: of vectors without any, hardly one is near a query."""
CHECKED = 16
"""Queries whose result is compared with products in float64."""
NEAR = 1e-6
"""Difference of two scores that are taken for equal."""
STAGED = 65_536
"""Passages that are brought to the card together."""


def mining(bench: Bench) -> None:
    """Operations a second that the products of the whole search come to, reading and choosing included."""
    draw = torch.Generator(bench.device).manual_seed(0)
    width = bench.size(WIDTH, 32)
    subjects = F.normalize(torch.randn(bench.size(SUBJECTS, 16), width, device=bench.device, generator=draw), dim=-1)
    queries = vectors(bench, subjects, bench.size(131_072, 64), draw).cpu().numpy()
    count, pinned = bench.size(1_048_576, 512), bench.device.type == "cuda"
    staged = bench.size(STAGED, 128)
    passages = [
        vectors(bench, subjects, staged, draw).cpu().pin_memory() if pinned else vectors(bench, subjects, staged, draw)
        for _ in range(count // staged)
    ]
    depth = bench.size(MineConfig().window[1] + 1, 5)
    search = partial(searched, bench, queries, passages, depth)
    search()
    took = bench.seconds(search)
    rate = 2.0 * len(queries) * count * width / took
    bench.figures.row(
        f"{len(queries):,} queries over {count:,} passages, {width} wide, the {depth} best: {took:.2f} s, "
        f"{rate / 1e12:.1f} TFLOP/s, {rate / bench.peak_flops:.0%} of the peak; at that rate 1 M x 10 M take "
        f"{2e13 * WIDTH / rate:.0f} s",
        mining_tflops=rate / 1e12,
        mining_s=took,
    )
    bench.figures.row(f"peak memory {bench.gigabytes():.1f} GB")
    check_exact(bench, queries, passages, search())
    profiled(bench, "mining", search)


def vectors(bench: Bench, subjects: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Unit vectors around the subjects."""
    chosen = torch.randint(len(subjects), (count,), device=bench.device, generator=draw)
    noise = torch.randn(count, subjects.shape[1], device=bench.device, generator=draw) / subjects.shape[1] ** 0.5
    return F.normalize(subjects[chosen] + noise, dim=-1)


def searched(bench: Bench, queries: np.ndarray, passages: list[Tensor], depth: int) -> Ranked:
    """The best passages of each query, which pass by in the order of their numbers."""
    search = DeviceSearch(queries, depth, bench.device)
    first = 0
    for part in passages:
        search.add(part, torch.arange(first, first + len(part)))
        first += len(part)
    return search.ranked()


def check_exact(bench: Bench, queries: np.ndarray, passages: list[Tensor], found: Ranked) -> None:
    """The scores of some queries are the best there are, by products in float64."""
    chosen = np.linspace(0, len(queries) - 1, CHECKED, dtype=np.int64)
    query = torch.from_numpy(queries[chosen]).to(bench.device, torch.float64)
    scores = torch.cat([query @ part.to(bench.device, torch.float64).T for part in passages], dim=1)
    expected = scores.topk(found.score_QK.shape[1]).values.cpu().numpy()
    off = float(np.abs(found.score_QK[chosen] - expected).max())
    rows = torch.from_numpy(found.row_QK[chosen]).to(bench.device)
    named = float(np.abs(scores.gather(1, rows).cpu().numpy() - expected).max())
    told = f"scores of {CHECKED} queries off by {off:.1e}, those of the passages named by {named:.1e}"
    bench.figures.check("exact", is_right=max(off, named) <= NEAR, told=told)
    if bench.figures.wrong:
        raise SystemExit("the search is not exact")
