"""Labelling on the card: pairs scored a second by LLMs of 7 and 8 billion parameters, and tokens sampled a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from benchmarks.gpu_bench import LONGEST_OUTPUT, Bench, backend_of, profiled, random_llama
from benchmarks.gpu_inputs import CANDIDATES, UNIT_GROUPS, Unit, prompts_of, read_units
from embedder.labelling.backends import LlmBackend
from embedder.labelling.compute_cost import ModelWork
from embedder.labelling.sampling import Sampling

NOMINAL_FLOPS = 989e12
"""Of an H100, bfloat16, by its maker."""
PROFILED_LAYERS = 4
"""Of the LLM whose kernels are looked at: a profile of all would take as long as the rest."""
SAMPLES, STEPS = 10, 16


def scoring(name: str, bench: Bench) -> None:
    """Pairs a second of one LLM, by what the labeller chooses for it, on units that it has not seen."""
    lm = random_llama(bench, name)
    units = read_units(bench.inputs, lm.model.config.vocab_size, bench.size(UNIT_GROUPS, 2))
    began = time.perf_counter()
    backend = backend_of(bench, lm)
    backend.score(prompts_of(units[0]))
    bench.sync()
    kind = scorer_name(backend)
    bench.figures.row(
        f"{kind}: {time.perf_counter() - began:.0f} s to be tried and warm",
        scorer=kind,
        warm_up_s=time.perf_counter() - began,
    )
    pairs, share = score_row(bench, backend, units[-1], kind)
    bench.figures.row(f"peak memory {bench.gigabytes():.1f} GB", **{f"label_{name}_pairs_s": pairs, f"label_{name}_share": share})
    del backend, lm
    bench.forget()
    few = backend_of(bench, random_llama(bench, name, num_hidden_layers=bench.size(PROFILED_LAYERS, 2)))
    prompts = prompts_of(units[-1])
    few.score(prompts)
    profiled(bench, f"scoring, {PROFILED_LAYERS} layers", partial(few.score, prompts))


def score_row(bench: Bench, backend: LlmBackend, unit: Unit, kind: str) -> tuple[float, float]:
    """Pairs a second of one unit, and what share of the product peak that takes."""
    prompts, pairs = prompts_of(unit), CANDIDATES * len(unit)
    backend.work = ModelWork(backend.work.size)
    took = bench.seconds(partial(backend.score, prompts))
    tokens, flops = backend.work.tokens, backend.work.flops
    share = flops / took / bench.peak_flops
    bench.figures.row(
        f"{kind}, first sight of a unit: {tokens / took:,.0f} tokens/s, {pairs / took:,.1f} pairs/s, "
        f"{share:.1%} of the measured peak, {flops / took / NOMINAL_FLOPS:.1%} of the nominal"
    )
    again = bench.seconds(partial(backend.score, prompts))
    bench.figures.row(f"{kind}, again: {pairs / again:,.1f} pairs/s", again_pairs_s=pairs / again)
    return pairs / took, share


def scorer_name(backend: LlmBackend) -> str:
    """Which scorer was chosen."""
    return type(backend).__name__


def sampling(bench: Bench) -> None:
    """Tokens a second for few and for many prompts: the first call, which may capture a graph, and those after it."""
    lm = random_llama(bench, "7b")
    backend = backend_of(bench, lm)
    units = read_units(bench.inputs, lm.model.config.vocab_size, UNIT_GROUPS)
    prefixes = [group["prefixes"][0] for unit in units for group in unit]
    for count in (8, 32, 128) if not bench.toy else (2, 3):
        chosen = (prefixes * (1 + count // len(prefixes)))[:count]
        draw = sampler(backend, chosen)
        began = time.perf_counter()
        draw(STEPS)
        bench.sync()
        first = time.perf_counter() - began
        draw(1)  # another shape, which may be captured anew
        whole, one = bench.seconds(partial(draw, STEPS), 2), bench.seconds(partial(draw, 1))
        tokens = SAMPLES * STEPS * count
        bench.figures.row(
            f"{count} prompts x {SAMPLES} x {STEPS}: {tokens / whole:,.0f} tokens/s, the first time "
            f"{tokens / first:,.0f}; {1e3 * (whole - one) / (STEPS - 1):.1f} ms a step",
            sampling_tokens_s=tokens / whole,
            **{f"tokens_s_{count}": tokens / whole, f"first_tokens_s_{count}": tokens / first},
        )
    profiled(bench, "sampling", partial(draw, STEPS))
    bench.figures.row(f"peak memory {bench.gigabytes():.1f} GB")


def sampler(backend: LlmBackend, prefixes: list[list[int]]) -> Callable[[int], object]:
    """Draws outputs of so many tokens for these prefixes; no token ends them, so that the work is always the same."""
    seeds = list(range(len(prefixes)))
    return lambda steps: backend.sample(prefixes, seeds, Sampling(SAMPLES, min(steps, LONGEST_OUTPUT), 1.0, 50))
