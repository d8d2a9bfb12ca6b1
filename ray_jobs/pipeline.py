"""Run every stage after the other on one Ray: prepare, mine, label, train, index, evaluate.

    python -m ray_jobs.pipeline --config configs/demo.yaml

Each stage is the job of its own name and resumes as that job does. The only file that imports jobs.
"""

from __future__ import annotations

import time

from embedder.config import RunConfig
from embedder.cost import Work
from embedder.locate import locate_model
from embedder.reports import StageReport, console, read_reports, stage_table
from ray_jobs import evaluate, index, label, mine, prepare, train
from ray_jobs.session import Job, main, run_stage

STAGES = (prepare.JOB, mine.JOB, label.JOB, train.JOB, index.JOB, evaluate.JOB)


def check(config: RunConfig) -> Work:
    """What can be known before the first stage: sources, sections and model folders."""
    work = prepare.check(config)
    train.section(config)
    locate_model(config.encoder.model)
    llm = label.needed_llm(config, {source.task for source in prepare.section(config).sources})
    if llm is not None:
        locate_model(llm.model)
    return Work("pipeline", work.lines, work.flops)


def run(config: RunConfig) -> StageReport:
    """Run the stages in order; the first that fails ends the run."""
    began = time.monotonic()
    for job in STAGES:
        job.check(config)
        run_stage(job, config)
    console().print(stage_table(read_reports(config.paths.reports)))
    return StageReport("pipeline", len(STAGES), "stages", time.monotonic() - began)


JOB = Job("pipeline", __doc__, check, run)

if __name__ == "__main__":
    main(JOB)
