"""A driver of `label` that runs one command after another.

    python -m tests.cluster.label_driver WatchedBlocks|RewardedBlocks

Reads lines of JSON from its standard input, each the arguments of one call of `ray_jobs.label`; says `ready` and the
name of Ray's session when it is connected to the cluster that RAY_ADDRESS names, and `ended CODE` after each call. So a
test waits for the imports once.
"""

from __future__ import annotations

import json
import sys

import ray

from ray_jobs import label
from ray_jobs.session import connect, main
from tests.cluster import label_actors


def serve() -> None:
    """Answer one command after another until the input ends."""
    label.LabelBlocks = getattr(label_actors, sys.argv[1])
    connect()
    sys.stdout.write(f"ready {ray.get_runtime_context().get_session_name()}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        code: object = 0
        try:
            main(label.JOB, json.loads(line))
        except SystemExit as error:
            code = error.code
        sys.stdout.write(f"ended {code}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
