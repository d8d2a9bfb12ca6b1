"""Measure encoders on a split, in one process and without Ray.

    python -m embedder.evaluation --config run.yaml --split dev --queries 200 runs/a/model runs/b/model
    python -m embedder.evaluation --config run.yaml --split dev --llm 50 base runs/a/model

An encoder is a model folder, or `base` for the run's own; names are the folders'. The first one is what the others are
compared with. Reads the prepared tables of the run; with --llm the LLM also scores the desired outputs of so many
queries a dataset (it writes nothing). Replies are kept in the run's `evaluation/judged`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from embedder.config.evaluate import EvaluateConfig, FolderRetriever
from embedder.config.load import load_run
from embedder.config.run import RunConfig
from embedder.console import console
from embedder.data.records import write_table
from embedder.errors import ConfigError, EmbedderError
from embedder.evaluation.comparison import summarise
from embedder.evaluation.evaluation_report import results_table
from embedder.evaluation.local import EvaluationSet, ask_llm, llm_judge, measure_encoder, read_sets
from embedder.evaluation.measurements import VALUES, value_rows
from embedder.models.onnx import load_inference_encoder
from embedder.models.st_folder import folder_encoder, read_folder
from embedder.storage.json_file import write_json

BASE = "base"
UNUSABLE = re.compile(r"[^A-Za-z0-9_.-]+")
"""What no name of a retriever may hold."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line; exit status 2 and one line for an error the user can fix."""
    options = _parser().parse_args(arguments)
    try:
        config = load_run(options.config, options.set)
        names = encoder_names(options.encoders)
        settings = quick_settings(config, options.split, names, options.llm)
        sets = read_sets(config, options.split, options.queries)
        for name, model in zip(names, options.encoders, strict=True):
            _measure(config, settings, sets, name, model)
        if options.llm:
            ask_llm(sets, llm_judge(config, settings), settings, config.paths.mounted / "evaluation")
    except EmbedderError as error:
        console().print(f"error: {error}", markup=False)
        sys.exit(2)
    measured = [one.measured for one in sets]
    results = summarise(measured, settings)
    console().print(results_table(results))
    if options.out is not None:
        write_json(results, options.out / "results.json")
        write_table(value_rows(measured), VALUES, options.out / "values.parquet")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m embedder.evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoders", nargs="+", help="model folders, or base")
    parser.add_argument("--config", required=True, help="run file (YAML)")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="override; repeatable")
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--queries", type=int, help="at most so many of each dataset (seeded choice)")
    parser.add_argument("--llm", type=int, default=0, help="of these, how many the LLM is asked about; default none")
    parser.add_argument("--out", type=Path, help="folder for results.json and values.parquet")
    return parser


def encoder_names(encoders: Sequence[str]) -> list[str]:
    """How the encoders are called: the end of their paths, as long as it takes to tell them apart.

    Raises:
        ConfigError: one is named twice.
    """
    parts = [Path(encoder).parts for encoder in encoders]
    for length in range(1, max(map(len, parts)) + 1):
        names = [UNUSABLE.sub("-", "-".join(one[-length:])).strip("-.") for one in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError(f"encoders {list(encoders)}: one of them is named twice")


def quick_settings(config: RunConfig, split: str, names: Sequence[str], llm_queries: int) -> EvaluateConfig:
    """The run's settings with these encoders as retrievers, the first of them as baseline, and nothing written."""
    retrievers = [{"name": name, "model": name} for name in names]
    changed = {"split": split, "retrievers": retrievers, "baseline": names[0], "generate_answers": False}
    kept = config.evaluate.model_dump(exclude={"retrievers"})
    return EvaluateConfig.model_validate({**kept, **changed, "llm_queries": llm_queries})


def _measure(config: RunConfig, settings: EvaluateConfig, sets: list[EvaluationSet], name: str, model: str) -> None:
    if model == BASE:
        encoder, tasks = config.encoder, config.base_tasks
    else:
        pooling = None if read_folder(model).pooling else config.encoder.pooling
        retriever = FolderRetriever(name=name, model=model, pooling=pooling)
        encoder, tasks = folder_encoder(retriever, config.encoder, config.tasks)
    measure_encoder(name, load_inference_encoder(encoder), tasks, sets, settings)


if __name__ == "__main__":
    main()
