"""Look at every node of the cluster for `llm-embedder doctor`, and print what was found as one line of JSON.

    RAY_ADDRESS=10.0.0.1:6379 python -m ray_jobs.cluster.look --config run.yaml

Each node is asked what the preflight of a stage asks it (ray_jobs.cluster.node_checks).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from embedder.config.load import load_run, run_file_parser
from embedder.config.run import RunConfig
from embedder.console import exit_on_error
from embedder.errors import ConfigError, DeviceError
from embedder.run.gpu_shares import check_gpus, stage_shares
from embedder.run.preflight import model_needs, too_small
from embedder.run.rounds import planned_stages
from ray_jobs.cluster.node_checks import NodeChecks
from ray_jobs.cluster.session import connect

Finding = dict[str, str]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the findings; exit status 2 and one line where the cluster cannot be joined."""
    options = run_file_parser("ray_jobs.cluster.look", __doc__ or "").parse_args(arguments)
    with exit_on_error():
        config = load_run(options.config, options.set)
        connect(config.cluster)
        found = list(look(config))
    sys.stdout.write(json.dumps(found) + "\n")


def look(config: RunConfig) -> Iterator[Finding]:
    """The findings of all nodes, and of what the stages ask for."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    resources = [node["Resources"] for node in nodes]
    cpus, gpus = (sum(each.get(name, 0.0) for each in resources) for name in ("CPU", "GPU"))
    yield _finding("ok", "cluster", f"{len(nodes)} nodes with {cpus:g} CPUs and {gpus:g} GPUs")
    stages = [*dict.fromkeys(stage for stage, _ in planned_stages(config)), "serve"]
    for stage in stages:
        try:
            for line in check_gpus(stage_shares(stage, config), resources, can_grow=True):
                yield _finding("note", f"GPUs of {stage}", line)
        except DeviceError as error:
            yield _finding("wrong", f"GPUs of {stage}", str(error))
    yield from _machines(config, stages)


def _machines(config: RunConfig, stages: Iterable[str]) -> Iterator[Finding]:
    """What the preflight of the stages says of each node."""
    checks = NodeChecks("prepare", config)
    # Its first line is the error; all of them are in the answers.
    with suppress(ConfigError), checks:
        pass
    for each in checks.answers:
        name = each.machine.name
        yield from (_finding("wrong", name, line.removeprefix(f"{name}: ")) for line in each.lines)
        if not each.lines:
            yield _finding("ok", name, "sees the run's storage and may write there; versions as here")
    for line in dict.fromkeys(
        line for stage in stages for line in too_small(model_needs(stage, config), checks.answers)
    ):
        yield _finding("wrong", "models", line)


def _finding(level: str, what: str, found: str, remedy: str = "") -> Finding:
    return {"level": level, "what": what, "found": found, "remedy": remedy}


if __name__ == "__main__":
    main()
