"""Labelling on the card: pairs scored a second by LLMs of 7 and 8 billion parameters, and tokens sampled a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.gpu_bench import LONGEST_OUTPUT, Bench, backend_of, other_scorer, profiled, random_llama, scorer_of
from benchmarks.gpu_inputs import CANDIDATES, UNIT_GROUPS, Unit, prompts_of
from embedder.labelling.backends import LlmBackend
from embedder.labelling.sampling import Sampling

NOMINAL_FLOPS = 989e12
"""Of an H100, bfloat16, by its maker."""
PROFILED_LAYERS = 4
"""Of the LLM whose kernels are looked at: a profile of all would take as long as the rest."""
SAMPLES, STEPS = 10, 16


def scoring(name: str, bench: Bench) -> None:
    """Pairs a second of one LLM, by the scorer that the labeller chooses and by the other one."""
    lm = random_llama(bench, name)
    units = bench.units(lm.model.config.vocab_size, bench.size(UNIT_GROUPS, 1))
    began = time.perf_counter()
    backend = backend_of(bench, lm)
    backend.score(prompts_of(units[0]))
    bench.sync()
    warm_up = time.perf_counter() - began
    bench.figures.row(f"{scorer_of(backend)}: {warm_up:.0f} s to be tried, compiled and warm", warm_up_s=warm_up)
    pairs, share = score_row(bench, backend, units[-1])
    quoted = {f"label_{name}_pairs_s": pairs, f"label_{name}_share": share, "scorer": scorer_of(backend)}
    bench.figures.row(f"peak memory {bench.gigabytes():.1f} GB", **quoted)
    if other := other_scorer(bench, backend):
        # What was compiled for the one scorer is not for the other.
        with torch.compiler.set_stance("force_eager"):
            score_row(bench, backend_of(bench, lm, other), units[-1])
    del backend, lm
    bench.forget()
    few = backend_of(bench, random_llama(bench, name, num_hidden_layers=bench.size(PROFILED_LAYERS, 2)))
    prompts = prompts_of(units[-1])
    few.score(prompts)
    profiled(bench, f"scoring with {PROFILED_LAYERS} layers", partial(few.score, prompts))


def score_row(bench: Bench, backend: LlmBackend, unit: Unit) -> tuple[float, float]:
    """Pairs a second of one unit, and what share of the fastest product that takes.

    The unit is seen for the first time, as every unit of a labelling is.
    """
    prompts, pairs = prompts_of(unit), CANDIDATES * len(unit)
    tokens, flops = -backend.work.tokens, -backend.work.flops
    took = bench.seconds(partial(backend.score, prompts))
    tokens, flops = tokens + backend.work.tokens, flops + backend.work.flops
    share = flops / took / bench.peak_flops
    again = bench.seconds(partial(backend.score, prompts))
    bench.figures.row(
        f"{scorer_of(backend)}: {tokens / took:,.0f} tokens/s, {pairs / took:,.1f} pairs/s ({pairs / again:,.1f} the "
        f"second time), {share:.1%} of the measured peak, {flops / took / NOMINAL_FLOPS:.1%} of the nominal",
        **{f"pairs_s, {scorer_of(backend)}": pairs / took},
    )
    return pairs / took, share


def sampling(bench: Bench) -> None:
    """Tokens a second for few and for many prompts: the first call, which may capture a graph, and those after it."""
    lm = random_llama(bench, "7b")
    backend = backend_of(bench, lm)
    units = bench.units(lm.model.config.vocab_size, UNIT_GROUPS)
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
