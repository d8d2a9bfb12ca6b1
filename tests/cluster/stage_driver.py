"""A driver that runs one job after another, with actors of `label` that tell what they do.

    python -m tests.cluster.stage_driver [WatchedBlocks|RewardedBlocks]

Reads lines of JSON from its standard input, each a stage and the arguments of its job; says `ready` and the name of
Ray's session when it is connected to the cluster that RAY_ADDRESS names, and `ended CODE SECONDS` after each call, in
monotonic seconds, which are the same in every process. So a test waits for the imports once.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module

import ray

from embedder.config.cluster import ClusterConfig
from ray_jobs.cluster.session import connect, main
from ray_jobs.labelling import actors
from tests.cluster import label_actors


def serve() -> None:
    """Answer one command after another until the input ends."""
    if sys.argv[1:]:
        actors.LabelBlocks = getattr(label_actors, sys.argv[1])
    connect(ClusterConfig())
    sys.stdout.write(f"ready {ray.get_runtime_context().get_session_name()}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        code: object = 0
        stage, *arguments = json.loads(line)
        try:
            main(import_module(f"ray_jobs.{stage}").JOB, arguments)
        except SystemExit as error:
            code = error.code
        sys.stdout.write(f"ended {code} {time.monotonic()}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
