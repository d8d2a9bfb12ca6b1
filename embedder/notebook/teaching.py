"""An encoder trained on labelled groups, in this process or by workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embedder.config.train import NEUTRAL, TrainConfig
from embedder.console import console, progress
from embedder.data.fields import FLOAT32_MAX
from embedder.data.records import LABELLED, group_id
from embedder.errors import ConfigError, DataError, shown
from embedder.hashing import content_id
from embedder.labelling.labeller import Group
from embedder.models.fingerprint import encoder_fingerprint
from embedder.notebook.encoding import Encoder, load_encoder, task_named
from embedder.notebook.workers import Workers
from embedder.run.lineage import install_model
from embedder.training.followed import train_followed
from embedder.training.job import FORMAT, MetricsReader, TrainingJob
from embedder.training.row_files import write_training_rows
from embedder.training.split import split_groups
from embedder.training.trackers import check_trackers

OF_RUNS = ("control", "replay")
"""Settings of `train` that concern whole runs."""


def train(
    groups: Sequence[Group],
    encoder: Encoder,
    folder: str | Path,
    settings: TrainConfig,
    workers: Workers | None = None,
) -> Encoder:
    """Train an encoder on labelled groups; returns the trained one, which is the folder `folder`/model.

    The same call goes on from the last checkpoint, or returns what it has trained before. The result does not depend
    on the number of workers. The instructions of `encoder` stand before the texts, and become prompts of the folder.

    Args:
        groups: Rows of records.LABELLED, as `Llm.label` returns them.
        encoder: Where the training starts.
        folder: Keeps checkpoints, metrics and the model; workers must see it.
        settings: As the section `train`.
        workers: None: this process, with `settings.gpus_per_worker`.

    Raises:
        ConfigError: a setting concerns whole runs, or the split leaves nothing to train on.
        DataError: a row has no label columns, or no group can be trained on.
        NotFiniteError: the training's numbers ceased to be finite.
    """
    asked = [name for name in OF_RUNS if getattr(settings, name)]
    if asked:
        raise ConfigError(f"train.{asked[0]} needs the folders of a run; leave it out, or use the job `train`")
    check_trackers(settings)
    rows = [_checked(encoder, number, group) for number, group in enumerate(groups)]
    kept, apart = split_groups(rows, settings.validation)
    job = TrainingJob(
        encoder.settings,
        dict(encoder.tasks),
        settings,
        Path(folder).absolute() / "training" / _name(encoder, settings, rows),
    )
    sizes, left_out = write_training_rows(kept, encoder.tasks, job.rows, {})
    write_training_rows(apart, encoder.tasks, job.held_out, {})
    out = console()
    for reason, count in sorted(left_out.items()):
        out.print(f"train: left out {count:,} groups of {reason}", markup=False)
    if not sizes:
        reasons = ", ".join(sorted(left_out)) or "there is none"
        raise DataError(f"train: none of {len(rows)} groups can be trained on ({reasons}); label more, or other ones")
    if not job.exported.is_dir():
        _train(job, workers)
    model = Path(folder).absolute() / "model"
    install_model(job.exported, model, {"training_run": job.folder.name, "base_encoder": encoder.settings.model})
    used = encoder.settings
    return load_encoder(str(model), max_tokens=used.max_tokens, tasks=encoder.tasks, gpus=used.gpus_per_actor)


def _train(job: TrainingJob, workers: Workers | None) -> None:
    if workers is not None:
        workers.train(job)
        return
    with progress("train: steps", job.config.steps, console()) as counter:
        counter.skip(len(MetricsReader(job.metrics).steps()))
        train_followed(job, lambda metrics: counter.advance(1, f"loss {metrics.loss:.4f}"))


def _checked(encoder: Encoder, number: int, group: Group) -> Group:
    missing = [name for name in LABELLED.names if name not in group]
    if missing:
        raise DataError(f"groups[{number}]: no {missing[0]!r}; label groups with Llm.label first")
    task_named(encoder.tasks, group["task"])
    rewards, candidates = group["rewards"], len(group["candidate_ids"])
    for name in ("candidate_texts", "relevance", *(["rewards"] if rewards is not None else [])):
        if len(group[name]) != candidates:
            raise DataError(f"groups[{number}]: {len(group[name])} {name} for {candidates} candidates; give one each")
    wrong = [each for each in rewards or () if not _is_number(each)]
    if wrong:
        raise DataError(f"groups[{number}]: the reward {shown(wrong[0])} is no number that float32 holds; correct it")
    return group


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX


def _name(encoder: Encoder, settings: TrainConfig, groups: Sequence[Group]) -> str:
    """Identity of the training, so that another one never goes on with its checkpoints."""
    tasks = {name: spec.model_dump() for name, spec in encoder.tasks.items()}
    labels = [[group_id(group), group["rewards"]] for group in groups]
    used = settings.model_dump(mode="json", exclude=NEUTRAL | {"export_task"})
    return content_id(FORMAT, encoder_fingerprint(encoder.settings), used, tasks, labels)[:16]
