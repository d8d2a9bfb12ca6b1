"""What the best retriever could win: `python -m benchmarks.study_ceiling [--config configs/study.yaml]`.

Measures the LLM of the study with no passage, with the base encoder's first passage, with the known positive, and with
that one of the base's best passages that helps this LLM most, which no retriever can know. What lies between the second
and the last is all that any encoder could gain by reordering them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from math import exp

from embedder.config.load import load_run
from embedder.config.run import RunConfig
from embedder.console import console
from embedder.errors import EmbedderError
from embedder.evaluation.base import Measure, Value
from embedder.evaluation.evaluations import measure_of
from embedder.evaluation.local import EvaluationSet, ask_llm, llm_judge, rank, read_sets
from embedder.mining.ranking import Ranking
from embedder.models.device import resolve_device
from embedder.models.onnx import load_inference_encoder

MEASURES = {"qa": ("log-likelihood",), "chat": ("perplexity",), "lrlm": ("perplexity",)}
NONE, FIRST, GOLD, BEST = "none", "base's first", "known positive", "best of the base's"


def main(arguments: list[str] | None = None) -> int:
    """Print a table a task; 2 for an error that the user can fix."""
    parser = argparse.ArgumentParser(prog="benchmarks.study_ceiling", description=__doc__)
    parser.add_argument("--config", default="configs/study.yaml", help="run file (default configs/study.yaml)")
    parser.add_argument("--split", choices=["dev", "test"], default="dev", help="whose queries (default dev)")
    parser.add_argument("--passages", type=int, default=10, help="of the base's best (default 10)")
    given = parser.parse_args(arguments)
    try:
        config = load_run(given.config)
        sets = [one for one in read_sets(config, given.split) if one.measured.task in MEASURES]
        _ask(config, sets, given.passages)
    except EmbedderError as error:
        console().print(f"error: {error}", markup=False)
        return 2
    for one in sets:
        for name in MEASURES[one.measured.task]:
            console().print(_row(one, name, given.passages), markup=False, soft_wrap=True)
    return 0


def single(rankings: dict[str, Ranking], place: int) -> dict[str, Ranking]:
    """The passage at one place of each ranking, alone."""
    return {query: ranking[place : place + 1] for query, ranking in rankings.items()}


def _ask(config: RunConfig, sets: Sequence[EvaluationSet], passages: int) -> None:
    """Let the LLM read every passage that is compared, one at a time."""
    encoder = load_inference_encoder(config.encoder, resolve_device(config.encoder.gpus_per_actor))
    for one in sets:
        found = rank(encoder, config.base_tasks[one.measured.task], one, passages)
        positives = {row["query_id"]: [(each, 1.0) for each in row["positive_ids"][:1]] for row in one.measured.rows}
        one.measured.rankings = {NONE: {}, GOLD: {query: ranking for query, ranking in positives.items() if ranking}}
        one.measured.rankings |= {str(place): single(found, place) for place in range(passages)}
    changed = {"generate_answers": False, "passages": {**config.evaluate.passages, "qa": 1, "chat": 1, "lrlm": 1}}
    settings = config.evaluate.model_copy(update=changed)
    ask_llm(sets, llm_judge(config, settings), settings, config.paths.work / "study")


def _row(one: EvaluationSet, name: str, passages: int) -> str:
    measure, values = measure_of(one.measured.evaluation, name), one.measured.values[name]
    by_place = [values[str(place)] for place in range(passages)]
    best = {
        query: max((each[query] for each in by_place), key=lambda value: measure.better * value[0])
        for query in by_place[0]
    }
    compared = {NONE: values[NONE], FIRST: by_place[0], BEST: best}
    if all(query in one.measured.rankings[GOLD] for query in best):
        compared[GOLD] = values[GOLD]
    means = {key: _mean(measure, list(each.values())) for key, each in compared.items()}
    cells = ", ".join(f"{retriever} {mean:.3f}" for retriever, mean in means.items())
    return f"{one.measured.task}, {one.measured.name}, {name} ({len(best)} queries): {cells}"


def _mean(measure: Measure, values: Sequence[Value]) -> float:
    mean = sum(value * weight for value, weight in values) / sum(weight for _, weight in values)
    return exp(mean) if measure.kind == "perplexity" else mean


if __name__ == "__main__":
    sys.exit(main())
