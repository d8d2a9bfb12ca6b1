"""Teach the encoder from the labelled groups.

    python -m ray_jobs.train --config configs/demo.yaml

reads   candidates/*.parquet, labelled/blocks/*.parquet   records.GROUP, records.LABELLED; of replayed runs too
writes  training_rows/KEY/                                rows to train on, as memory-mapped Arrow files
        training/RUN/                                     checkpoints, metrics.jsonl (a line a step)
        model/                                            the trained encoder as a Hugging Face folder, with a card
        control/                                          the same from shuffled rewards, with train.control
        reports/training.html, .json, .png                the curves

RUN is named by a hash of data and settings: running the command again resumes from the last checkpoint, and a
finished run only writes its model again. Ray Train starts the workers, DeepSpeed trains.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from embedder.config.run import RunConfig
from embedder.config.train import NEUTRAL
from embedder.errors import ConfigError
from embedder.hashing import content_id
from embedder.models.fingerprint import encoder_fingerprint
from embedder.models.st_folder import check_base_model, plain_task_of
from embedder.run.cost import Work
from embedder.run.stage_report import StageReport
from embedder.storage.holding import check_lease
from embedder.storage.object_store import AnyPath
from embedder.training.batch_plan import task_shares
from embedder.training.job import FORMAT, TrainingJob
from embedder.training.trackers import check_trackers
from ray_jobs.cluster.session import Job, main
from ray_jobs.training.calls import OnCluster
from ray_jobs.training.data import DataSummary, build_data, built_data, data_folder, look_at
from ray_jobs.training.groups import sources


def check(config: RunConfig) -> Work:
    """Labels exist for every candidate group, the settings fit together, and the plan has a task to train."""
    settings = config.needed_train
    check_trackers(settings)
    check_base_model(config.encoder)
    found = sources(config)
    folder = data_folder(config, found)
    data = built_data(folder) or look_at(config, found)
    job = training_job(config, data, folder)
    if all(each.has_ended for each in ([job, control_of(job)] if settings.control else [job])):
        return Work("train", [*data.notes, "trained before; only the card and the report are made again"], 0.0)
    # Here and not above, because torch comes with it: what can be refused without torch has been by now.
    from embedder.models.encoder import check_encoder
    from embedder.training.estimate import work_of

    check_encoder(config.encoder)
    work = work_of(config, Counter(data.sizes), data.tokens, data.group_size, data.apart, data.notes)
    if settings.validation is not None and not data.apart:
        raise ConfigError(
            "train.validation: no group would be kept apart; raise share, label more groups, or leave validation out"
        )
    if not settings.control:
        return work
    line = "then the same once more, with the rewards of each group shuffled (train.control)"
    return replace(work, lines=[*work.lines, line], flops=2 * work.flops, tokens=2 * work.tokens)


def run(config: RunConfig) -> StageReport:
    """Train or resume; write model, card and report; the summary tells the rows left out, losses and validation."""
    from embedder.models.encoder_export import choose_plain_task
    from embedder.run.lineage import install_model
    from embedder.training.job import MetricsReader
    from embedder.training.model_card import model_card
    from embedder.training.training_report import report_lines, summarise, write_report

    settings = config.needed_train
    found = sources(config)
    folder = data_folder(config, found)
    data = built_data(folder) or build_data(config, found, folder, OnCluster())
    job = training_job(config, data, folder)
    trained_before = job.has_ended
    train_once(job, "train")
    sizes, left_out = Counter(data.sizes), Counter(data.left_out)
    steps = MetricsReader(job.metrics).steps()
    outcome = json.loads(job.outcome.read_text(encoding="utf-8"))
    numbers = summarise(steps, sizes, left_out, outcome, settings)
    plain_task = plain_task_of(task_shares(sizes, settings), settings.export_task)

    def complete(folder: Path) -> None:
        """Each time anew, also for a finished run: card, report and plain prompts cost seconds."""
        choose_plain_task(folder, plain_task)
        (folder / "README.md").write_text(model_card(config, numbers), encoding="utf-8")

    llm = config.llm and config.llm.model
    lineage = {"training_run": job.folder.name, "base_encoder": config.encoder.model, "llm": llm}
    check_lease()
    install_model(job.exported, config.paths.model, lineage, complete)
    if settings.control:
        control = control_of(job)
        train_once(control, "train, control")
        install_model(control.exported, config.paths.control, {**lineage, "training_run": control.folder.name})
    page = write_report(numbers, config.paths.reports, config.paths.work.name)
    report = StageReport("train", len(steps), "steps", details={"rows": dict(sizes), "left_out": dict(left_out)})
    report.details["outcome"] = outcome
    report.repeats = trained_before
    report.lines += data.notes + report_lines(numbers)
    if told := outcome.get("memory"):
        report.lines.append(told)
    report.lines += [f"left out {count:,} groups of {reason}" for reason, count in sorted(left_out.items())]
    report.lines.append(
        f"{config.paths.model}: encode_query and encode_document of sentence-transformers serve task {plain_task}; "
        "train.export_task chooses another one"
    )
    report.lines.append(f"report: {page}")
    return report


def train_once(job: TrainingJob, label: str) -> None:
    """Train, or resume, unless that was done."""
    from ray_jobs.training.worker import run_workers

    if not job.has_ended:
        if isinstance(job.folder, Path):
            job.folder.mkdir(parents=True, exist_ok=True)
        run_workers(job, label)


def control_of(job: TrainingJob) -> TrainingJob:
    """The training of the control, beside the training; its validation is shuffled too, which chooses the weights."""
    folder = job.folder.with_name(f"{job.folder.name}-control")
    return replace(job, folder=folder, data=job.data and job.data / "control")


def training_job(config: RunConfig, data: DataSummary, folder: AnyPath) -> TrainingJob:
    """The training of these rows, in a folder that is named by all its result depends on."""
    run_folder = config.paths.training / run_name(config, data)
    return TrainingJob(config.encoder, config.tasks, config.needed_train, run_folder, data=folder)


def run_name(config: RunConfig, data: DataSummary) -> str:
    """Identity of a training run: data, encoder, tasks, and the settings that change the result."""
    # Of the replay only the groups it chose count, which the identity has: another share may choose the same.
    # The task of the plain prompts is chosen after the training, in the folder alone; the control is another training.
    settings = config.needed_train.model_dump(mode="json", exclude=NEUTRAL | {"replay", "export_task", "control"})
    tasks = {name: spec.model_dump() for name, spec in config.tasks.items()}
    return content_id(FORMAT, encoder_fingerprint(config.encoder), settings, tasks, data.identity)[:16]


JOB = Job("train", __doc__, check, run)

if __name__ == "__main__":
    main(JOB)
