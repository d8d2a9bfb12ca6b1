"""An LLM that rewards the candidates of groups: by how far each lifts the desired output among sampled ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from embedder.config.label import LabelConfig
from embedder.config.run import LlmConfig
from embedder.config.tasks import BUILTIN_TASKS, TaskSpec
from embedder.data.records import GROUP
from embedder.errors import ConfigError, DataError
from embedder.hashing import content_id
from embedder.labelling.labeller import Group, RewardLabeller
from embedder.labelling.prompts import ShotPools, shot_pool
from embedder.models.causal_lm import CausalLm, load_lm
from embedder.models.device import resolve_device
from embedder.models.fingerprint import label_fingerprint
from embedder.models.locate import locate_model
from embedder.notebook.encoding import task_named
from embedder.notebook.workers import Workers, refuse_single_text

CACHE = Path(".cache")
"""As `paths.cache` of a run file."""


def candidate_group(
    query: str, answers: Sequence[str], candidates: Sequence[str], task: str = "qa", positives: Sequence[int] = ()
) -> Group:
    """A query with its candidates, as a row of records.GROUP.

    Args:
        query: The query's text.
        answers: Outputs that are right; the first one is the desired one.
        candidates: Texts of passages.
        task: Name of a task.
        positives: Positions of the candidates that are known to be right.

    Raises:
        ConfigError: there is one text where several are wanted, or no candidate at a position.
    """
    refuse_single_text(answers, "answers")
    refuse_single_text(candidates, "candidates")
    wrong = [position for position in positives if position not in range(len(candidates))]
    if wrong:
        raise ConfigError(f"positives: no candidate at position {wrong[0]}; there are {len(candidates)}, from 0 on")
    return {
        "task": task,
        "dataset": "notebook",
        "query_id": content_id(task, query)[:16],
        "query": query,
        "answers": list(answers),
        "candidate_ids": [content_id(text)[:16] for text in candidates],
        "candidate_texts": list(candidates),
        "relevance": [int(position in positives) for position in range(len(candidates))],
    }


@dataclass(frozen=True)
class Llm:
    """How an LLM is loaded and asked for rewards."""

    settings: LlmConfig
    asking: LabelConfig
    tasks: Mapping[str, TaskSpec]

    @cached_property
    def loaded(self) -> CausalLm:
        """The model, loaded in this process when the first group is labelled."""
        return _load(self.settings, self.asking.gpus_per_actor)

    def label(self, groups: Sequence[Group], workers: Workers | None = None) -> list[Group]:
        """The groups in their order, as rows of records.LABELLED: with outputs, log-likelihoods and `rewards`.

        A group that cannot be scored has rewards of None and says why in `error`. Worked examples of a prompt (`shots`
        of the task) are chosen among the other groups, which stand for the training rows of a run.

        Raises:
            DataError: a row is no group.
            ConfigError: a task is not known.
        """
        rows = [self._checked(number, group) for number, group in enumerate(groups)]
        size = self.asking.groups_per_unit
        units = [rows[first : first + size] for first in range(0, len(rows), size)]
        part = _Labelling(self.settings, self.asking, dict(self.tasks), shot_pools(rows, self.tasks, self.asking.seed))
        if workers is None:
            label = part.labeller(self.loaded)
            labelled = [label(unit) for unit in units]
        else:
            labelled = workers.map(part.made, units, self.asking.gpus_per_actor)
        return [group for unit in labelled for group in unit]

    def _checked(self, number: int, group: Group) -> Group:
        missing = [name for name in GROUP.names if name not in group]
        if missing:
            raise DataError(f"groups[{number}]: no {missing[0]!r}; make groups with embedder.candidate_group")
        task_named(self.tasks, group["task"])
        return {name: group[name] for name in GROUP.names}


def load_llm(
    model: str,
    *,
    settings: Mapping[str, object] | None = None,
    asking: LabelConfig | None = None,
    tasks: Mapping[str, TaskSpec] | None = None,
) -> Llm:
    """An LLM from a folder, a hub name, or `package:NAME`.

    Args:
        model: As `llm.model` of a run file.
        settings: Further keys of `llm`, such as `{"dtype": "bfloat16"}`.
        asking: Sampling, seed and GPUs, as the section `label`.
        tasks: None: the built-in tasks.

    Raises:
        ModelError: the folder is missing, or holds no model that is loaded here.
        ConfigError: the sampling would need outputs of a run's other queries.
    """
    asking = asking or LabelConfig()
    if asking.corpus_outputs:
        raise ConfigError("corpus_outputs takes outputs from the training rows of a run; set it to 0 here")
    found = LlmConfig.model_validate({"model": model, **(settings or {})})
    locate_model(found.model)
    return Llm(found, asking, tasks or BUILTIN_TASKS)


def shot_pools(groups: Iterable[Group], tasks: Mapping[str, TaskSpec], seed: int) -> ShotPools:
    """By dataset the worked examples that groups of tasks with shots are chosen from."""
    by_dataset: dict[str, list[Group]] = {}
    for group in groups:
        if tasks[group["task"]].shots:
            by_dataset.setdefault(group["dataset"], []).append(group)
    # A dataset is of one task, as in a run.
    return {dataset: shot_pool(rows, tasks[rows[0]["task"]], seed) for dataset, rows in by_dataset.items()}


@dataclass(frozen=True)
class _Labelling:
    """All that a worker needs to label units of groups."""

    settings: LlmConfig
    asking: LabelConfig
    tasks: dict[str, TaskSpec]
    pools: ShotPools

    def made(self, gpus: float) -> Callable[[list[Group]], list[Group]]:
        """Load the LLM in a worker; returns what labels a unit."""
        return self.labeller(_load(self.settings, gpus))

    def labeller(self, lm: CausalLm) -> Callable[[list[Group]], list[Group]]:
        """A unit of groups to the same with rewards."""
        labeller = RewardLabeller(lm, self.settings, self.asking, self.tasks, self.pools)
        return partial(labeller.label, fingerprint=label_fingerprint(self.settings, self.asking, self.tasks))


def _load(settings: LlmConfig, gpus: float) -> CausalLm:
    return load_lm(settings, CACHE, resolve_device(gpus), gpus)
