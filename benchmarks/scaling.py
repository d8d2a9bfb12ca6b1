"""What a large run costs, from its sizes and assumed rates: the block of figures in docs/scaling.md.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --scoring-share 0.55 --price 2.2

Nothing is measured here. A rate that was measured replaces the assumption of the same name.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

from embedder.console import console

GPUS = (8, 64)


@dataclass(frozen=True)
class Run:
    """Sizes of the run and assumptions on the machines."""

    passages: float = 10e6
    passage_tokens: float = 128
    encoder_parameters: float = 110e6
    """bge-base."""
    dimensions: float = 768
    groups: float = 10e6
    """Queries with their candidates."""
    candidates: float = 8
    prompt_tokens: float = 190
    """Of a candidate with its query and template."""
    query_tokens: float = 40
    outputs: float = 11
    """The desired one and 10 sampled."""
    output_tokens: float = 16
    llm_parameters: float = 7e9
    train_steps: float = 10_000
    batch_queries: float = 800
    peak: float = 989e12
    """Operations a second of one GPU: H100 SXM, bfloat16, dense, by its maker."""
    encoding_share: float = 0.4
    """Share of the peak that encoding and training reach."""
    scoring_share: float = 0.4
    """Share of the peak that scoring reaches."""
    sampling_share: float = 0.1
    """Share of the peak that sampling reaches: one token an output at a time."""
    price: float = 3.0
    """US dollars a GPU-hour."""


def gpu_hours(run: Run) -> dict[str, tuple[str, float]]:
    """Work in words and GPU-hours, by stage."""
    encoding = 2 * run.encoder_parameters * run.passages * run.passage_tokens
    branches = run.outputs * run.output_tokens
    scored = run.groups * run.candidates * (run.prompt_tokens + branches) + run.groups * (run.query_tokens + branches)
    sampled = run.groups * (run.outputs - 1) * run.output_tokens
    trained = run.train_steps * run.batch_queries * (run.query_tokens + run.candidates * run.passage_tokens)
    second = {
        "encode, once a round": (f"{run.passages / 1e6:.0f} M passages", encoding / run.encoding_share),
        "label: scoring": (
            f"{run.groups * run.candidates / 1e6:.0f} M scorings, {scored / 1e9:.0f} G tokens",
            2 * run.llm_parameters * scored / run.scoring_share,
        ),
        "label: sampling": (
            f"{run.groups * (run.outputs - 1) / 1e6:.0f} M outputs, {sampled / 1e9:.1f} G tokens",
            2 * run.llm_parameters * sampled / run.sampling_share,
        ),
        "train": (
            f"{run.train_steps:,.0f} steps of {run.batch_queries:.0f} queries",
            6 * run.encoder_parameters * trained / run.encoding_share,
        ),
    }
    return {stage: (work, operations / run.peak / 3600) for stage, (work, operations) in second.items()}


def gigabytes(run: Run) -> dict[str, float]:
    """Size of what is kept, before compression; four characters a token."""
    texts = run.candidates * run.passage_tokens * 4
    scores = (1 + run.candidates) * run.outputs * 8 + run.outputs * run.output_tokens * 4
    # Beside its texts a candidate has three hashes, a reward and a mark.
    rows = run.query_tokens * 4 + texts + run.candidates * (3 * 8 + 4 + 1)
    return {
        "passages": run.passages * run.passage_tokens * 4 / 1e9,
        "vectors, float32": run.passages * run.dimensions * 4 / 1e9,
        "candidates": run.groups * texts / 1e9,
        "labels": run.groups * (texts + scores) / 1e9,
        "training rows": run.groups * rows / 1e9,
    }


def tables(run: Run) -> list[str]:
    """The two tables, as lines of Markdown."""
    hours = gpu_hours(run)
    lines = ["| stage | work | GPU-hours | " + " | ".join(f"hours on {count} GPUs" for count in GPUS) + " | US$ |"]
    lines.append("|---|---|---:|" + "---:|" * len(GPUS) + "---:|")
    total = sum(spent for _, spent in hours.values())
    for stage, (work, spent) in [*hours.items(), ("all", ("", total))]:
        on_gpus = " | ".join(f"{spent / count:,.1f}" for count in GPUS)
        lines.append(f"| {stage} | {work} | {spent:,.1f} | {on_gpus} | {spent * run.price:,.0f} |")
    lines += ["", "| kept | GB |", "|---|---:|"]
    return lines + [f"| {name} | {size:,.1f} |" for name, size in gigabytes(run).items()]


def main() -> None:
    """Print the tables for the given sizes and assumptions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for one in fields(Run):
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=float, default=one.default)
    for line in tables(Run(**vars(parser.parse_args()))):
        console().print(line, markup=False)


if __name__ == "__main__":
    main()
