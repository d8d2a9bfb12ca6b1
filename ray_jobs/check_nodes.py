"""Ask every node of the cluster whether it can work on a run: what each stage asks again before it begins.

    python -m ray_jobs.check_nodes --config run.yaml label

Each must see the run's storage, may write there, has the models of the run, and fits in drivers, versions and memory
(embedder.run.preflight). `python -m ray_jobs.submit --run` has the cluster run it before it submits a job. Without
RAY_ADDRESS it looks at this machine alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from embedder.config.load import load_run, run_file_parser
from embedder.console import console, exit_on_error
from embedder.run.stages import STAGES
from ray_jobs.cluster.session import check_nodes


def main(arguments: Sequence[str] | None = None) -> None:
    """Say that all can; exit status 2 and one line if one cannot."""
    parser = run_file_parser("ray_jobs.check_nodes", __doc__)
    parser.add_argument("stage", choices=[*STAGES, "pipeline"], help="the job that is to run there")
    options = parser.parse_args(arguments)
    with exit_on_error():
        console().print(check_nodes(options.stage, load_run(options.config, options.set)), markup=False)


if __name__ == "__main__":
    main()
