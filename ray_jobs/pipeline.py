"""Run every stage after the other on one Ray: prepare, questions where the run file has such a section, then mine,
label and train in rounds, then index and evaluate.

    python -m ray_jobs.pipeline --config configs/demo.yaml
    python -m ray_jobs.submit --config run.yaml pipeline

A stage whose settings, inputs and output are as it left them is skipped (embedder.run.stages); one that was cut off
resumes as the job of its own name does. With `pipeline.rounds` above 1 each further round mines, labels and trains with
the encoder of the round before, in `rounds/NN/`, so that nothing of an earlier round is overwritten; index and evaluate
take the encoder of the last round. A run file without a section `train` and with `index.model` is prepared and indexed,
and evaluated where `evaluate.retrievers` names none that training makes. The only file that imports jobs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from embedder.config.evaluate import QUERIES_REMEDY, TAUGHT
from embedder.config.run import RunConfig
from embedder.console import console, show_table
from embedder.data.first_rows import FirstRows
from embedder.data.records import Split, count_rows, parquet_files
from embedder.errors import ConfigError
from embedder.models.locate import locate_llm, locate_model
from embedder.models.st_folder import check_base_model
from embedder.run.cost import Work
from embedder.run.gpu_shares import stage_shares
from embedder.run.lineage import write_lineage
from embedder.run.rounds import is_untrained, planned_stages, stage_title
from embedder.run.run_status import status_of, write_page
from embedder.run.stage_report import StageReport, read_reports, stage_table
from embedder.run.stages import STAGES, Contents, is_done, mark_done, mark_path
from embedder.storage.holding import check_lease
from embedder.training.trackers import check_trackers
from embedder.writing.question_kinds import why_not_written
from ray_jobs import evaluate, index, label, mine, prepare, questions, train
from ray_jobs.cluster.session import Job, main, run_stage
from ray_jobs.labelling.teachers import needed_llm
from ray_jobs.retrieval.encoders import check_control
from ray_jobs.training.groups import earlier_paths

JOBS = {job.stage: job for job in (prepare.JOB, questions.JOB, mine.JOB, label.JOB, train.JOB, index.JOB, evaluate.JOB)}


@dataclass(frozen=True)
class Step:
    """One stage with the settings of its round."""

    job: Job
    config: RunConfig

    @property
    def title(self) -> str:
        """The stage, and the round where it is not the first."""
        return stage_title(self.job.stage, self.config)


def steps(config: RunConfig) -> list[Step]:
    """All stages of all rounds in order."""
    return [Step(JOBS[stage], settings) for stage, settings in planned_stages(config)]


def check(config: RunConfig) -> Work:
    """What can be known before the first stage: sources, sections, model folders, and which stages are done.

    Raises:
        ConfigError: `paths.round` is set, which the pipeline counts itself.
        EmbedderError: a stage cannot succeed.
    """
    if config.paths.round != 1:
        raise ConfigError(f"paths.round is {config.paths.round}; leave it out, pipeline.rounds says how many there are")
    if not is_untrained(config):
        _ = config.needed_train
    first_rows = with_questions(config, prepare.read_sources(config))
    work = prepare.work_of_sources(config, first_rows)
    if not is_untrained(config):
        check_later_stages(config, first_rows)
    planned, lines = steps(config), list(work.lines)
    if config.index.model is not None:
        locate_model(config.index.model)
    has_split = any(config.evaluate.split in rows.splits for rows in first_rows.values())
    if planned[-1].job is evaluate.JOB and not has_split:
        lines.append(f"{planned.pop().title}: left out, {no_queries(config)}")
    done = done_before(planned)
    lines += [f"{step.title}: done before" for step in done]
    for step in (rest := planned[len(done) :]):
        ran_before = step is not rest[0] and mark_path(STAGES[step.job.stage], step.config).is_file()
        lines.append(f"{step.title}: to run" + (" if what it reads changes" if ran_before else ""))
    shares = tuple(share for step in rest for share in stage_shares(step.job.stage, step.config))
    return Work("pipeline", lines, work.flops, shares=shares)


def with_questions(config: RunConfig, first_rows: dict[str, FirstRows]) -> dict[str, FirstRows]:
    """The same with the splits that sources without training rows will have when `questions` has run.

    Raises:
        ConfigError: there is no such source, or no questions can be written for its task.
    """
    if config.questions is None:
        return first_rows
    locate_llm(config.needed_llm)
    found = dict(first_rows)
    for source in config.needed_prepare.sources:
        splits = first_rows[source.dataset].splits
        if "train" in splits:
            continue
        if reason := why_not_written(source.task, config.tasks[source.task]):
            raise ConfigError(
                f"source {source.dataset}: no questions can be written for task {source.task!r}, since {reason}; give "
                "it training rows"
            )
        added: set[Split] = {"train"} if splits or not config.questions.test_share else {"train", "test"}
        found[source.dataset] = replace(first_rows[source.dataset], splits=splits | added, learns=True)
    if found == first_rows:
        raise ConfigError(
            "prepare.sources: every source has training rows, so there is nothing to write questions for; leave the "
            "section `questions` out"
        )
    return found


def check_later_stages(config: RunConfig, first_rows: Mapping[str, FirstRows]) -> None:
    """Refuse what a later stage would refuse, so far as the run file and the first rows of the sources tell.

    Raises:
        EmbedderError: with the settings that would make it succeed.
    """
    sources = {source.dataset: source for source in config.needed_prepare.sources}
    of_split = [source for name, source in sources.items() if config.evaluate.split in first_rows[name].splits]
    learned = [source for name, source in sources.items() if "train" in first_rows[name].splits]
    llm = needed_llm(config, {source.task for source in learned})
    if llm is not None:
        locate_llm(llm)
    if config.label.teacher == "reranker":
        locate_model(config.needed_reranker.model)
    if config.label.teacher == "imported" and not any(source.teacher_scores for source in learned):
        raise ConfigError(
            "label.teacher is 'imported', but no source with training rows has teacher_scores: true; add it to the "
            "source whose rows bring scores, or let the LLM label (label.teacher: llm)"
        )
    check_training(config, {source.task for source in learned if first_rows[source.dataset].learns})
    if of_split:
        check_control(config)
        # The encoder that is trained is not there yet.
        kept = [retriever for retriever in config.evaluate.retrievers if retriever.kind not in TAUGHT]
        settings = config.evaluate.model_copy(update={"retrievers": kept})
        evaluate.check_settings(config.model_copy(update={"evaluate": settings}), set(sources))
        evaluate.check_asked(config, of_split)


def check_training(config: RunConfig, tasks: set[str]) -> None:
    """Refuse a training that has nothing to learn from, or not what it starts from; `tasks` have rows to learn from.

    Raises:
        ConfigError, ModelError: with what to change.
    """
    settings = config.needed_train
    check_trackers(settings)
    check_base_model(config.encoder)
    for run in settings.replay.runs if settings.replay else []:
        earlier_paths(config.paths, run)
    if not tasks:
        raise ConfigError(
            "prepare.sources: no source has a training row to learn from; give one a train file (with train_queries "
            "above 0) whose rows have answers for tasks with a reward, and known positives (pos_ids) for the others"
        )
    weights = settings.task_weights
    if weights and not any(weights.get(task) for task in tasks) and not settings.replay:
        raise ConfigError(
            f"train.task_weights is {weights}, but only tasks {sorted(tasks)} have training rows; give one a weight"
        )


def rehearse(config: RunConfig) -> list[str]:
    """What the next stage costs, as its own dry run tells; what the others read is not there yet."""
    ahead = steps(config)[len(done_before(steps(config))) :]
    if not ahead:
        return []
    step = ahead[0]
    if step.job is evaluate.JOB and not has_queries(step.config):
        return []
    if step.job is prepare.JOB:
        return ["prepare needs no model; what the other stages cost is known when the one before has run"]
    work = step.job.check(step.config)
    told = work.told(step.job.rehearse(step.config) if step.job.rehearse else [])
    later = ["what the stages after it cost is known when it has run"] if len(ahead) > 1 else []
    return [f"{step.title}: {line}" for line in told] + later


def done_before(planned: list[Step]) -> list[Step]:
    """The stages before the first that has to run."""
    contents, done = Contents(), []
    for step in planned:
        if not is_done(STAGES[step.job.stage], step.config, contents):
            break
        done.append(step)
    return done


def has_queries(config: RunConfig) -> bool:
    """True if `prepare` left queries of the split that `evaluate` measures."""
    return count_rows(parquet_files(config.paths.queries / config.evaluate.split)) > 0


def no_queries(config: RunConfig) -> str:
    """The reason why `evaluate` is left out, and what would change it."""
    split = config.evaluate.split
    return f"since no source has {split} queries; {QUERIES_REMEDY}"


def run(config: RunConfig) -> StageReport:
    """Run what is not done, in order; the first stage that fails ends the run."""
    began = time.monotonic()
    out, contents, skipped, notes = console(), Contents(), 0, []
    for step in steps(config):
        stage = STAGES[step.job.stage]
        # Only now, because the tables tell what the first rows of the sources could not.
        if step.job is evaluate.JOB and not has_queries(step.config):
            notes.append(f"{step.title}: left out, {no_queries(config)}")
            out.print(notes[-1], markup=False)
            continue
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
        check_lease()
        mark_done(stage, step.config, contents)
    show_table(out, stage_table(_reports(config)))
    # Not above: the names of the measures bring libraries that take seconds to load.
    from embedder.evaluation.gains import kept_table

    for table in kept_table(config.paths.summary):
        show_table(out, table)
    count = len(steps(config)) - len(notes)
    report = StageReport("pipeline", count, "stages", time.monotonic() - began)
    report.lines = [f"{count - skipped} of {count} stages run, {skipped} were done before", *notes]
    # The marks are new, so no content need be compared again.
    if page := write_page(status_of(config, None), config):
        report.lines.append(f"all reports: {page}")
    return report


def _reports(config: RunConfig) -> list[StageReport]:
    """The reports of all rounds, in order."""
    reports: list[StageReport] = []
    for number in range(1, config.pipeline.rounds + 1):
        rows = read_reports(config.paths.model_copy(update={"round": number}).reports)
        reports += rows if number == 1 else [replace(row, stage=f"{row.stage}, round {number}") for row in rows]
    return reports


JOB = Job("pipeline", __doc__, check, run, rehearse)

if __name__ == "__main__":
    main(JOB)
