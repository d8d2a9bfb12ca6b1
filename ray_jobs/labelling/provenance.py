"""What labels depend on, kept beside them, so that those of two LLMs, prompts or seeds are never mixed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import NamedTuple, cast, get_args

from embedder.config.paths import Paths
from embedder.config.run import RunConfig, Scorer
from embedder.errors import ConfigError
from embedder.hashing import content_id
from embedder.labelling.corpus_outputs import OutputPools, read_output_pools
from embedder.labelling.prompts import ShotPools
from embedder.models.fingerprint import label_fingerprint
from embedder.run.lineage import PROVENANCE
from embedder.storage.json_file import write_json
from embedder.storage.object_store import AnyPath
from ray_jobs.cluster.tables import shot_pools

DEVICES = "devices"
"""Folder beside it with a file for each kind of device, number format, scorer and size of batches that has labelled."""
SCORERS = get_args(Scorer)
RECOMPUTING = "being recomputed"
"""Stands for every task's reward while blocks hold old and new rewards."""


@dataclass(frozen=True)
class LabelProvenance:
    """`fingerprint` of the log-likelihoods (LLM, prompts, sampling, seed), and the rewards made from them by task."""

    fingerprint: str
    rewards: dict[str, str]
    devices: tuple[str, ...] = field(default=(), compare=False)
    """Kinds of device, number format, scorer and size of batches that made the log-likelihoods. They change last digits
    alone, so labels of several kinds may stand together; that they do is told."""


class LabelPools(NamedTuple):
    """Training rows that the LLM reads or scores with other queries, by dataset."""

    shots: ShotPools
    outputs: OutputPools


def label_pools(config: RunConfig) -> LabelPools:
    """The pools of a run.

    Raises:
        DataError: `prepare` has not run.
    """
    return LabelPools(shot_pools(config), read_output_pools(config))


def label_provenance(config: RunConfig, pools: LabelPools) -> LabelProvenance:
    """What the LLM's labels of a run depend on, the pools included."""
    # A pool that is empty stays out, so that labels made before there was such a pool stay what they are.
    parts = [pools.shots, pools.outputs] if pools.outputs else [pools.shots]
    fingerprint = content_id(label_fingerprint(config.llm, config.label, config.tasks), *parts)[:16]
    return LabelProvenance(fingerprint, {name: spec.reward_rule for name, spec in config.tasks.items()})


def read_provenance(paths: Paths) -> LabelProvenance | None:
    """Where the labels that are there come from; None if there are none."""
    path = paths.labelled / PROVENANCE
    if not path.is_file():
        return None
    known = json.loads(path.read_text(encoding="utf-8"))
    return LabelProvenance(known["fingerprint"], known["rewards"], tuple(known.get("devices", ())))


def note_device(paths: Paths, kind: str) -> None:
    """Note device and number format of an actor and, of an LLM's, how it scores, before it commits a label."""
    # A file a kind, because many actors note theirs at once, and a killed run must not lose it.
    write_json({"device": kind}, paths.labelled / DEVICES / f"{content_id(kind)[:16]}.json")


def read_devices(paths: Paths) -> list[str]:
    """What has labelled so far: kinds of device and number format, and how an LLM scored."""
    files = cast("Iterable[AnyPath]", (paths.labelled / DEVICES).glob("*.json"))
    # A name that begins with a dot is that of an unfinished file.
    noted = [path.read_text(encoding="utf-8") for path in files if not path.name.startswith(".")]
    kinds = sorted(json.loads(text)["device"] for text in noted)
    # Folders begun before the scorer was noted have the same device without it too.
    scored = [kind for kind in kinds if any(f", {scorer}" in kind for scorer in SCORERS)]
    return [kind for kind in kinds if kind in scored or not any(each.startswith(f"{kind}, ") for each in scored)]


def check_provenance(config: RunConfig, wanted: LabelProvenance) -> None:
    """Refuse to add labels to those of another provenance.

    Raises:
        ConfigError: with both fingerprints, or the tasks whose reward differs.
    """
    known = read_provenance(config.paths)
    if known is None:
        if config.label.recompute:
            raise ConfigError(f"{config.paths.labelled}: no labels to recompute; run label without label.recompute")
        return
    # Before the rewards are compared: a recomputation could not make other log-likelihoods either.
    if known.fingerprint != wanted.fingerprint:
        raise ConfigError(
            f"{config.paths.labelled}: holds labels {known.fingerprint}, this run file would make {wanted.fingerprint} "
            "(another LLM, prompt, sampling or seed); remove that folder or choose another paths.work"
        )
    differs = {
        task: f"{known.rewards[task]} -> {reward}"
        for task, reward in wanted.rewards.items()
        if known.rewards.get(task, reward) != reward
    }
    if differs and not config.label.recompute:
        raise ConfigError(
            f"{config.paths.labelled}: the reward of {differs} changed; add --set label.recompute=true to recompute "
            "rewards from the stored log-likelihoods"
        )
    unscored = [task for task, change in differs.items() if change.startswith("none ->") or change.endswith("-> none")]
    if unscored:
        raise ConfigError(
            f"{config.paths.labelled}: tasks {unscored} change from or to no reward, which stored scores cannot "
            "give; choose another paths.work"
        )


def write_provenance(paths: Paths, wanted: LabelProvenance) -> None:
    """Note what the labels depend on, before the first of them is made, and with the devices after the last."""
    write_json({**asdict(wanted), "devices": read_devices(paths)}, paths.labelled / PROVENANCE)


def mark_mixed(paths: Paths, wanted: LabelProvenance) -> None:
    """Note that rewards are mixed for now: until `write_provenance`, only a recomputation may run."""
    mixed = {task: reward if reward == "none" else RECOMPUTING for task, reward in wanted.rewards.items()}
    write_provenance(paths, LabelProvenance(wanted.fingerprint, mixed))
