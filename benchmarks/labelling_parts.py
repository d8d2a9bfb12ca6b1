"""The parts of the labelling benchmark; each prints its table and gives the figures for the JSON file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from benchmarks.labelling_baselines import (
    REFERENCE_BATCH,
    exact_model,
    exact_scores,
    generated_tokens,
    padded_scores,
    stock_model,
)
from benchmarks.labelling_groups import (
    LONGEST_OUTPUT,
    SAMPLES,
    Group,
    long_groups,
    question_groups,
    shared_groups,
    with_samples,
)
from benchmarks.labelling_limit import necessary_flops, product_rates, time_shares
from benchmarks.labelling_rounds import Spread, Times, ratios, time_each
from embedder.config.run import LlmConfig
from embedder.labelling.backends import choose_backend
from embedder.labelling.compute_cost import model_size
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.sampling import Sampling
from embedder.labelling.tree_backend import TreeBackend
from embedder.models.causal_lm import load_lm, prepare_lm

Found = dict[str, Any]
SHARING = 4
"""Queries that have the same candidates."""
EXACT_PROMPTS = 2
ONE_BY_ONE = 3
"""Outputs that `generate` draws of each of two queries a round."""
SAMPLED_QUERIES = 16
SAMPLE_TOKENS = 4096
"""Of a batch in which the outputs are sampled that are scored later."""


class Bench:
    """The LLM, ours and stock, with what all parts have in common."""

    def __init__(self, model: str, data: Path, cache: Path, rounds: int, groups: int, seed: int) -> None:
        self.data, self.rounds, self.groups, self.seed = data, rounds, groups, seed
        self.config = LlmConfig(model=model)
        self.lm = load_lm(self.config, cache, device="cpu")
        self.backend = choose_backend(self.lm, self.config, LONGEST_OUTPUT)
        self.size = model_size(self.lm.model)
        self.folder = prepare_lm(self.config, cache)
        self.stock = stock_model(self.folder)
        self.lanes = self.backend.lanes if isinstance(self.backend, TreeBackend) else 1

    @cached_property
    def questions(self) -> list[list[Group]]:
        """Groups of qa/nq with sampled outputs, those of a round together; the first are there to warm up."""
        made = question_groups(self.lm, self.config, self.data, (self.rounds + 1) * self.groups, self.seed)
        return self._in_rounds(made, self.groups)

    @cached_property
    def books(self) -> list[list[Group]]:
        """The same of lrlm/books, for a round less."""
        rounds = max(1, self.rounds - 1)
        made = long_groups(self.lm, self.config, self.data, (rounds + 1) * self.groups, self.seed)
        return self._in_rounds(made, self.groups)

    @cached_property
    def sharing(self) -> list[list[Group]]:
        """For each round queries of qa/nq that share their candidates."""
        seeds = range(self.seed, self.seed + self.rounds + 1)
        made = [shared_groups(self.lm, self.config, self.data, SHARING, seed) for seed in seeds]
        return self._in_rounds([group for groups in made for group in groups], SHARING)

    def _in_rounds(self, made: list[Group], each: int) -> list[list[Group]]:
        sampled = with_samples(self.lm, made, self.seed, SAMPLE_TOKENS)
        return [sampled[i : i + each] for i in range(0, len(sampled), each)]


def prompts_of(groups: Sequence[Group], cap: int) -> tuple[list[PackedPrompt], list[PackedPrompt]]:
    """What the rank-aware reward of some groups needs, and what the likelihood reward needs."""
    return [prompt for group in groups for prompt in group.ranked(cap)], [
        prompt for group in groups for prompt in group.alone(cap)
    ]


def time_rounds(
    bench: Bench, groups: list[list[Group]], cap: int, ablation: bool
) -> tuple[list[Times], list[float], int]:
    """Seconds of A, B, C, D round by round, then the shares of the limit that C reached, and the batch that B took."""
    warm, *timed = groups
    ranked, alone = prompts_of(warm, cap)
    batch = faster_batch(bench.stock, ranked[1:3])
    padded_scores(bench.stock, alone[:REFERENCE_BATCH], REFERENCE_BATCH)
    for prompts in (ranked, alone):
        bench.backend.score(prompts)
    rounds, shares = [], []
    for number, chosen in enumerate(timed):
        ranked, alone = prompts_of(chosen, cap)
        rate = max(product_rates(bench.lanes).values())
        ways: dict[str, Callable[[], object]] = {
            "A": partial(padded_scores, bench.stock, alone, REFERENCE_BATCH),
            "B": partial(padded_scores, bench.stock, ranked, batch),
            "C": partial(bench.backend.score, ranked),
            "D": partial(bench.backend.score, alone),
        }
        if ablation and number == 0:
            ways["A2"] = partial(padded_scores, bench.lm.model, alone, REFERENCE_BATCH)
            ways["B2"] = partial(padded_scores, bench.lm.model, ranked, batch)
        rounds.append(time_each(ways))
        shares.append(necessary_flops(bench.size, ranked) / rounds[-1]["C"] / rate)
    return rounds, shares, batch


def faster_batch(model: PreTrainedModel, prompts: Sequence[PackedPrompt]) -> int:
    """4 sequences a batch, or all of a prompt: with which of them the plain way is faster."""
    sizes = (REFERENCE_BATCH, SAMPLES + 1)
    times = time_each({str(size): partial(padded_scores, model, prompts, size) for size in sizes})
    return min(sizes, key=lambda size: times[str(size)])


def ranked_part(name: str, cap: int, ablation: bool, bench: Bench) -> Found:
    """A, B, C and D on groups of one kind, outputs capped."""
    groups = bench.books if name == "long" else bench.questions
    rounds, shares, batch = time_rounds(bench, groups, cap, ablation)
    pairs = sum(group.pairs for group in groups[1])
    prefixes = [len(prefix) for chosen in groups[1:] for group in chosen for prefix in group.prefixes[1:]]
    outputs = [len(output[:cap]) for chosen in groups[1:] for group in chosen for output in group.sampled]
    print(f"\n{name}: {len(rounds)} rounds of {pairs} pairs, outputs capped at {cap} (B: batches of {batch})")
    print(f"  prefixes {sum(prefixes) / len(prefixes):.0f} tokens, sampled outputs {sum(outputs) / len(outputs):.1f}")
    for way in sorted({way for times in rounds for way in times}):
        print(f"  {way:2}  pairs/s {Spread([pairs / times[way] for times in rounds if way in times])}")
    found: dict[str, Spread] = {
        "rank_vs_naive": ratios(rounds, "B", "C"),
        "rank_vs_reference": ratios(rounds, "A", "C"),
        "likelihood_vs_reference": ratios(rounds, "A", "D"),
        "share_of_limit": Spread(shares),
    }
    if ablation:
        found |= {
            "rank_vs_naive_same_kernels": ratios(rounds, "B2", "C"),
            "likelihood_vs_reference_same_kernels": ratios(rounds, "A2", "D"),
        }
    for key, spread in found.items():
        print(f"  {key:36} {spread}")
    return {"rounds": rounds, "pairs": pairs, **{key: spread.values for key, spread in found.items()}}


def shared_part(bench: Bench) -> Found:
    """Queries with the same candidates, scored together and one by one."""
    warm, *timed = bench.sharing
    found: Found = {}
    for cap in (8, LONGEST_OUTPUT):
        bench.backend.score(prompts_of(warm, cap)[0])
        rounds = []
        for groups in timed:
            each, whole = [group.ranked(cap) for group in groups], prompts_of(groups, cap)[0]
            rounds.append(
                time_each({"unshared": partial(score_each, bench, each), "shared": partial(bench.backend.score, whole)})
            )
        gain = ratios(rounds, "unshared", "shared")
        print(f"\nshared: {SHARING} queries with the same candidates, outputs capped at {cap}: gain {gain}")
        found[f"cap{cap}"] = gain.values
    return found


def score_each(bench: Bench, groups: Sequence[Sequence[PackedPrompt]]) -> None:
    """Score one group after the other."""
    for prompts in groups:
        bench.backend.score(prompts)


def sampling_part(bench: Bench) -> Found:
    """Many queries at once against one `generate` an output; tokens are counted up to the end of each output."""
    groups = question_groups(bench.lm, bench.config, bench.data, (bench.rounds + 1) * SAMPLED_QUERIES, bench.seed)
    prefixes = [group.question for group in groups]
    sampling = Sampling(SAMPLES, LONGEST_OUTPUT, temperature=1.0, top_k=50, end_ids=bench.lm.end_ids)
    many, single = [], []
    bench.backend.sample(prefixes[:2], [0, 1], sampling)
    generated_tokens(bench.stock, prefixes[:1], 1, 0, sampling)
    for round in range(bench.rounds):
        chosen = prefixes[(round + 1) * SAMPLED_QUERIES :][:SAMPLED_QUERIES]
        began = time.perf_counter()
        drawn = bench.backend.sample(chosen, list(range(len(chosen))), sampling)
        many.append(sum(len(output) for outputs in drawn for output in outputs) / (time.perf_counter() - began))
        began = time.perf_counter()
        kept = generated_tokens(bench.stock, chosen[:2], ONE_BY_ONE, round, sampling)
        single.append(kept / (time.perf_counter() - began))
    gain = Spread([fast / slow for fast, slow in zip(many, single, strict=True)])
    print(f"\nsampling: {SAMPLES} outputs of up to {LONGEST_OUTPUT} tokens for {SAMPLED_QUERIES} queries, tokens/s")
    print(f"  ours {Spread(many)}\n  generate, one by one {Spread(single)}\n  sampling_vs_single {gain}")
    return {"tokens_a_second": many, "one_by_one": single, "gain": gain.values}


def accuracy_part(bench: Bench) -> Found:
    """Greatest distance of a log-likelihood from that of a float64 model, of an output's mean token and of its sum."""
    prompts = bench.questions[0][0].ranked(LONGEST_OUTPUT)[1 : 1 + EXACT_PROMPTS]
    exact = exact_scores(exact_model(bench.folder), prompts)
    found: Found = {}
    for name, scores in (
        ("C", bench.backend.score(prompts)),
        ("B", padded_scores(bench.stock, prompts, SAMPLES + 1)),
    ):
        means, sums = [], []
        for prompt, row, expected in zip(prompts, scores, exact, strict=True):
            for output, value, true in zip(prompt.outputs, row, expected, strict=True):
                means.append(abs(value - true))
                sums.append(len(output) * abs(value - true))
        print(f"\naccuracy of {name}, {len(means)} outputs: nats a token {max(means):.1e}, of a sum {max(sums):.1e}")
        found[name] = {"mean": max(means), "sum": max(sums)}
    return found


def profile_part(bench: Bench) -> Found:
    """Rates of matrix products, and where the time of C goes."""
    rates = product_rates(bench.lanes)
    print("\nmatrix products, GFLOP/s: " + ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items()))
    found: Found = {"rates": rates}
    for name, groups, cap in (
        ("nq", bench.questions[0], 8),
        ("nq", bench.questions[0], 32),
        ("books", bench.books[0], 32),
    ):
        shares = time_shares(bench.backend, prompts_of(groups, cap)[0])
        print(f"time of C, {name} cap {cap}: " + ", ".join(f"{part} {share:.0%}" for part, share in shares.items()))
        found[f"{name}_cap{cap}"] = shares
    return found


PARTS: dict[str, Callable[[Bench], Found]] = {
    "cap32": partial(ranked_part, "cap32", 32, True),
    "cap8": partial(ranked_part, "cap8", 8, True),
    "long": partial(ranked_part, "long", 32, False),
    "shared": shared_part,
    "sampling": sampling_part,
    "accuracy": accuracy_part,
    "profile": profile_part,
}
