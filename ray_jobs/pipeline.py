"""Run every stage after the other on one Ray: prepare, then mine, label and train in rounds, then index and evaluate.

    python -m ray_jobs.pipeline --config configs/demo.yaml
    python -m ray_jobs.submit --config run.yaml pipeline

A stage whose settings, inputs and output are as it left them is skipped (embedder.run.stages); one that was cut off
resumes as the job of its own name does. With `pipeline.rounds` above 1 each further round mines, labels and trains with
the encoder of the round before, in `rounds/NN/`, so that nothing of an earlier round is overwritten; index and evaluate
take the encoder of the last round. The only file that imports jobs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from embedder.config.run import RunConfig
from embedder.console import console
from embedder.errors import ConfigError
from embedder.models.locate import locate_model
from embedder.run.cost import Work
from embedder.run.lineage import write_lineage
from embedder.run.stage_report import StageReport, read_reports, stage_table
from embedder.run.stages import STAGES, Contents, is_done, mark_done
from embedder.training.trackers import check_trackers
from ray_jobs import evaluate, index, label, mine, prepare, train
from ray_jobs.cluster.session import Job, main, run_stage
from ray_jobs.labelling.teachers import needed_llm

EACH_ROUND = (mine.JOB, label.JOB, train.JOB)
AT_THE_END = (index.JOB, evaluate.JOB)


@dataclass(frozen=True)
class Step:
    """One stage with the settings of its round."""

    job: Job
    config: RunConfig

    @property
    def title(self) -> str:
        """The stage, and the round where it is not the first."""
        number = self.config.paths.round
        return self.job.stage if number == 1 else f"{self.job.stage}, round {number}"


def round_config(config: RunConfig, number: int) -> RunConfig:
    """The settings of mine, label and train in a round; each starts from the encoder of the one before."""
    if number == 1:
        return config
    trained = round_config(config, number - 1).paths.model
    encoder = config.encoder.model_copy(update={"model": str(trained), "instructions": True})
    return config.model_copy(update={"paths": config.paths.model_copy(update={"round": number}), "encoder": encoder})


def steps(config: RunConfig) -> list[Step]:
    """All stages of all rounds in order. At the end the run's own encoder is the base of the comparison."""
    rounds = config.pipeline.rounds
    repeated = [Step(job, round_config(config, number)) for number in range(1, rounds + 1) for job in EACH_ROUND]
    last = config.model_copy(update={"paths": config.paths.model_copy(update={"round": rounds})})
    return [Step(prepare.JOB, config), *repeated, *(Step(job, last) for job in AT_THE_END)]


def check(config: RunConfig) -> Work:
    """What can be known before the first stage: sources, sections, model folders, and which stages are done.

    Raises:
        ConfigError: `paths.round` is set, which the pipeline counts itself.
    """
    if config.paths.round != 1:
        raise ConfigError(f"paths.round is {config.paths.round}; leave it out, pipeline.rounds says how many there are")
    check_trackers(config.needed_train)
    work = prepare.check(config)
    sources = config.needed_prepare.sources
    locate_model(config.encoder.model)
    llm = needed_llm(config, {source.task for source in sources})
    if llm is not None:
        locate_model(llm.model)
    done = done_before(config)
    lines = [f"{step.title}: done before" for step in done]
    lines += [f"{step.title}: to run" for step in steps(config)[len(done) :][:1]]
    lines += [f"{step.title}: to run if what it reads changes" for step in steps(config)[len(done) + 1 :]]
    return Work("pipeline", [*work.lines, *lines], work.flops)


def done_before(config: RunConfig) -> list[Step]:
    """The stages before the first that has to run."""
    contents, done = Contents(), []
    for step in steps(config):
        if not is_done(STAGES[step.job.stage], step.config, contents):
            break
        done.append(step)
    return done


def run(config: RunConfig) -> StageReport:
    """Run what is not done, in order; the first stage that fails ends the run."""
    began = time.monotonic()
    out, contents, skipped = console(), Contents(), 0
    for step in steps(config):
        stage = STAGES[step.job.stage]
        if is_done(stage, step.config, contents):
            out.print(f"{step.title}: done before, skipped", markup=False)
            skipped += 1
            continue
        out.print(f"{step.title}: begins", markup=False)
        run_stage(step.job, step.config, step.job.check(step.config))
        contents.forget()
        if step.job is train.JOB:
            # Before the mark, which holds the hash of the model folder that the lineage is a part of.
            write_lineage(step.config, contents)
            contents.forget()
        mark_done(stage, step.config, contents)
    out.print(stage_table(_reports(config)))
    count = len(steps(config))
    report = StageReport("pipeline", count, "stages", time.monotonic() - began)
    report.lines = [f"{count - skipped} of {count} stages run, {skipped} were done before"]
    return report


def _reports(config: RunConfig) -> list[StageReport]:
    """The reports of all rounds, in order."""
    reports: list[StageReport] = []
    for number in range(1, config.pipeline.rounds + 1):
        rows = read_reports(config.paths.model_copy(update={"round": number}).reports)
        reports += rows if number == 1 else [replace(row, stage=f"{row.stage}, round {number}") for row in rows]
    return reports


JOB = Job("pipeline", __doc__, check, run)

if __name__ == "__main__":
    main(JOB)
