"""Start the service of a run on this machine, ask it one test query of each task over HTTP, and stop it.

    python -m serve.ask --config configs/demo.yaml

Prints the hits, marks known positives, and closes with the table of all stages and that of what the training gained.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from embedder.cli.launch import SERVICE_URL
from embedder.config.load import load_run, run_file_parser
from embedder.config.run import RunConfig
from embedder.console import console, exit_on_error, show_table
from embedder.data.records import QUERY, parquet_files, read_tables
from embedder.errors import DataError
from embedder.run.ray_start import starting_ray
from embedder.run.ray_token import prepare_own_ray
from embedder.run.stage_report import StageReport, read_reports, stage_table
from serve.client import Client
from serve.schemas.search_schemas import SearchRequest

SHOWN_CHARACTERS = 160
RESULTS = 3


def first_queries(config: RunConfig) -> dict[str, dict[str, Any]]:
    """One test query of each task.

    Raises:
        DataError: the run has no test queries.
    """
    files = parquet_files(config.paths.queries / "test")
    chosen: dict[str, dict[str, Any]] = {}
    for row in read_tables(files, QUERY).to_pylist():
        chosen.setdefault(row["task"], row)
    if not chosen:
        raise DataError(f"{config.paths.queries / 'test'}: no test queries to ask")
    return chosen


def ask(config: RunConfig, out: Console) -> int:
    """Ask one query of each task and print the answers; returns how many were asked."""
    asked = first_queries(config)
    with Client(SERVICE_URL, timeout_s=config.serve.timeout_s) as client:
        for task, row in sorted(asked.items()):
            answer = client.search(SearchRequest(query=row["query"], task=task, k=RESULTS))
            out.print(f"[bold]{task}[/bold]", end=" ")
            out.print(_short(row["query"]), markup=False)
            for hit in answer.results[0]:
                mark = "*" if hit.id in row["positive_ids"] else " "
                out.print(f"  {mark} {hit.score:.3f} {_short(hit.text or '')}", markup=False)
    out.print("* = known to be relevant; icl and lrlm have no such marks", markup=False)
    return len(asked)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN_CHARACTERS else flat[: SHOWN_CHARACTERS - 3] + "..."


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask the service of a run file; exit status 2 and one line for an error the user can fix."""
    options = run_file_parser("serve.ask", __doc__).parse_args(arguments)
    out = console()
    with exit_on_error():
        config = load_run(options.config, options.set)
        # Ray is imported here and not above, because help and a refused run file must not wait for it.
        import ray
        from ray import serve

        from serve.app import build_run
        from serve.replica_gpus import check_replica_gpus

        application = build_run(config)
        prepare_own_ray(ray.util.get_node_ip_address(), config.cluster.allow_no_authentication)
    out.rule("serve")
    began = time.monotonic()
    with exit_on_error(), starting_ray():
        ray.init(address="local", num_cpus=max(4, os.cpu_count() or 1), log_to_driver=False)
    try:
        with exit_on_error():
            check_replica_gpus(config, out, can_grow=False)
        serve.run(application)
        out.print(f"ready after {time.monotonic() - began:.1f} s on {SERVICE_URL}", markup=False)
        count = ask(config, out)
    finally:
        ray.shutdown()
    StageReport("serve", count, "queries asked", time.monotonic() - began).write(config.paths.reports)
    # Not above: the names of the measures bring libraries that take seconds to load.
    from embedder.evaluation.gains import kept_table

    for table in (stage_table(read_reports(config.paths.reports)), *kept_table(config.paths.summary)):
        show_table(out, table)


if __name__ == "__main__":
    main()
