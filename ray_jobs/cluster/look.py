"""Look at every node of the cluster for `llm-embedder doctor`, and print what was found as one line of JSON.

    RAY_ADDRESS=10.0.0.1:6379 python -m ray_jobs.cluster.look --config run.yaml

A file that this process writes below `paths.work` and `paths.cache` must be seen by a task on each node.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from embedder import __version__
from embedder.config.load import load_run, run_file_parser
from embedder.config.run import RunConfig
from embedder.console import exit_on_error
from embedder.errors import DeviceError
from embedder.run.gpu_shares import check_gpus, stage_shares
from embedder.run.rounds import planned_stages
from embedder.storage.durable import storage_failures
from ray_jobs.cluster.session import connect

NODE_S = 60.0
"""For a task on a node that has no worker yet."""

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
    for stage in (*dict.fromkeys(stage for stage, _ in planned_stages(config)), "serve"):
        try:
            for line in check_gpus(stage_shares(stage, config), resources, can_grow=True):
                yield _finding("note", f"GPUs of {stage}", line)
        except DeviceError as error:
            yield _finding("wrong", f"GPUs of {stage}", str(error))
    yield from _nodes(config, nodes)


def _nodes(config: RunConfig, nodes: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folders = {"paths.work": config.paths.work, "paths.cache": config.paths.cache}
    marks = {name: place / f".doctor-{uuid4().hex}" for name, place in folders.items() if isinstance(place, Path)}
    sources = [str(source.path) for source in (config.prepare.sources if config.prepare else [])]
    models = [model for model in (config.encoder.model, config.llm and config.llm.model) if model]
    paths = [path for path in (*sources, *models) if path.startswith(("/", "~"))]
    try:
        for name, mark in marks.items():
            with storage_failures(folders[name]):  # type: ignore[arg-type]
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.write_text(name, encoding="ascii")
        task = ray.remote(num_cpus=0)(tell)
        asked = {
            node["NodeManagerAddress"]: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote({name: str(mark) for name, mark in marks.items()}, paths)
            for node in nodes
        }
        for address, reference in asked.items():
            yield from _node(address, reference, config)
    finally:
        for mark in marks.values():
            mark.unlink(missing_ok=True)


def _node(address: str, reference: object, config: RunConfig) -> Iterator[Finding]:
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    what = f"node {address}"
    try:
        told = ray.get(reference, timeout=NODE_S)
    except GetTimeoutError:
        yield _finding("wrong", what, f"no answer within {NODE_S:g} s", "`ray status` tells what it is busy with")
        return
    except RayError as error:
        yield _finding("wrong", what, " ".join(str(error).split())[-300:], "its packages must be those of the driver")
        return
    for name in told["unseen"]:
        yield _finding("wrong", what, f"does not see {name}", "mount it there at the same path, or use an object store")
    for path in told["missing"]:
        yield _finding("wrong", what, f"has no {path}", "put it where every node sees it")
    if told["version"] != __version__:
        yield _finding("wrong", what, f"has version {told['version']}, here is {__version__}", "install the same one")
    yield _finding("ok", what, f"{told['free'] / 1e9:,.1f} GB of disk free at paths.cache, Python {told['python']}")


def tell(marks: dict[str, str], paths: Sequence[str]) -> dict[str, Any]:
    """Tell what a node sees; it runs there."""
    cache = Path(marks["paths.cache"]).parent
    there = next(each for each in (cache, *cache.parents) if each.exists())
    return {
        "unseen": [name for name, mark in marks.items() if not Path(mark).is_file()],
        "missing": [path for path in paths if not Path(path).expanduser().exists()],
        "version": __version__,
        "python": sys.version.split()[0],
        "free": shutil.disk_usage(there).free,
    }


def _finding(level: str, what: str, found: str, remedy: str = "") -> Finding:
    return {"level": level, "what": what, "found": found, "remedy": remedy}


if __name__ == "__main__":
    main()
