"""Measure encoders on a split, in one process and without Ray.

    python -m embedder.evaluation --config run.yaml --split dev --queries 200 runs/a/model runs/b/model
    python -m embedder.evaluation --config run.yaml --split dev --llm 50 base runs/a/model

An encoder is a model folder, or `base` for the run's own; names are the folders'. `none`, `random`, `recency` and
`bm25` are the retrievers that need no model. The first one is what the others are compared with. Reads the prepared
tables of the run; with --llm the LLM also scores the desired outputs of so many queries a dataset (it writes nothing).
Replies are kept in the run's `evaluation/judged`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from embedder.config.evaluate import EvaluateConfig
from embedder.config.load import load_run, run_file_parser
from embedder.config.paths import any_path
from embedder.config.run import RunConfig
from embedder.console import console, exit_on_error, show_table
from embedder.data.records import write_table
from embedder.errors import ConfigError
from embedder.storage.durable import storage_failures
from embedder.storage.json_file import write_json

UNUSABLE = re.compile(r"[^A-Za-z0-9_.-]+")
"""Characters that the name of a retriever may not hold."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line; exit status 2 and one line for an error the user can fix."""
    options = _parser().parse_args(arguments)
    with exit_on_error():
        config = load_run(options.config, options.set)
        if options.llm:
            _ = config.needed_llm
        for name, number, least in (("--queries", options.queries, 1), ("--llm", options.llm, 0)):
            if number is not None and number < least:
                raise ConfigError(f"{name} {number}: give {least} or more")
        if isinstance(options.out, Path):
            # Before anything is measured.
            with storage_failures(options.out):
                options.out.mkdir(parents=True, exist_ok=True)
        settings = quick_settings(config, options.split, encoder_names(options.encoders), options.llm)
        # Torch is imported here and not above, because help and a refused run file must not wait for it.
        from embedder.evaluation.comparison import summarise
        from embedder.evaluation.evaluation_report import results_table
        from embedder.evaluation.local import compare_encoders
        from embedder.evaluation.measurements import VALUES, value_rows

        measured = compare_encoders(config, settings, options.encoders, options.queries)
        results = summarise(measured, settings)
        show_table(console(), results_table(results))
        if options.out is not None:
            write_json(results, options.out / "results.json")
            write_table(value_rows(measured), VALUES, options.out / "values.parquet")


def _parser() -> argparse.ArgumentParser:
    parser = run_file_parser("embedder.evaluation", __doc__)
    parser.add_argument("encoders", nargs="+", help="model folders, base, none, random, recency or bm25")
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--queries", type=int, help="at most so many of each dataset (seeded choice)")
    parser.add_argument("--llm", type=int, default=0, help="of these, how many the LLM is asked about; default none")
    parser.add_argument("--out", type=any_path, help="folder for results.json and values.parquet")
    return parser


def encoder_names(encoders: Sequence[str]) -> list[str]:
    """How the encoders are called: the end of their paths, as long as it takes to tell them apart.

    Raises:
        ConfigError: one is named twice.
    """
    # A folder by its whole path: one may stand in it and call it `.`.
    paths = [Path(encoder).absolute() if Path(encoder).is_dir() else Path(encoder) for encoder in encoders]
    parts = [path.parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = [UNUSABLE.sub("-", "-".join(path[-length:])).strip("-.") for path in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError(f"encoders {list(encoders)}: one of them is named twice")


def quick_settings(config: RunConfig, split: str, names: Sequence[str], llm_queries: int) -> EvaluateConfig:
    """The run's settings with these encoders as retrievers, the first of them as baseline, and nothing written."""
    retrievers = [{"name": name, "model": name} for name in names]
    changed = {"split": split, "retrievers": retrievers, "baseline": names[0], "generate_answers": False}
    kept = config.evaluate.model_dump(exclude={"retrievers"})
    return EvaluateConfig.model_validate({**kept, **changed, "llm_queries": llm_queries})


if __name__ == "__main__":
    main()
