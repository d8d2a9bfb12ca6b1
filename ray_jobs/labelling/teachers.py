"""The teachers that reward candidates: the LLM, a reranker trained on its rewards, and rewards made elsewhere.

`teacher_of` chooses one by the run file. Its `check` starts nothing, and comes to torch only after all that can be
refused without; its `run` commits the labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from embedder.config.run import LlmConfig, RunConfig
from embedder.config.tasks import TaskSpec
from embedder.data.ledger import Ledger
from embedder.data.records import LABELLED, each_table, parquet_files
from embedder.data.row_ids import RowIds
from embedder.errors import ConfigError, LabelError
from embedder.hashing import content_id
from embedder.labelling.prompts import check_chat
from embedder.labelling.rewards import task_rewards
from embedder.models.locate import locate_llm
from embedder.run.cost import CHARACTERS_A_TOKEN, Work, characters_a_token, forward_flops
from embedder.run.lineage import LINEAGE
from embedder.storage.folders import remove_folder
from ray_jobs.cluster.llm_server import AskedTokens, found_server, note_server, server_lines
from ray_jobs.cluster.tables import labelled_ledger, llm_ledger
from ray_jobs.labelling.block_plan import Survey, commit_missing, read_row_group, row_groups, select_llm_groups, survey
from ray_jobs.labelling.imported import commit_imported, imported_fingerprint
from ray_jobs.labelling.provenance import (
    LabelProvenance,
    check_provenance,
    label_pools,
    label_provenance,
    mark_mixed,
    read_provenance,
    write_provenance,
)

if TYPE_CHECKING:
    from embedder.labelling.label_statistics import LabelCost
    from embedder.labelling.rounding import Rounding


@dataclass(frozen=True)
class Labels:
    """The outcome of a teacher's run."""

    expected: RowIds
    """The groups that must have a label now."""
    before: int
    """How many of them were labelled before this run."""
    lines: list[str]
    """Facts for the user."""
    cost: LabelCost | None = None
    rounding: Rounding | str | None = None
    """What bfloat16 changed of the LLM's rewards, or why that is not known; None: nothing was measured."""


class Teacher(ABC):
    """One way to reward the candidates of a run."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @abstractmethod
    def check(self) -> Work:
        """The work ahead; what it needs is there, and its labels would not mix with others."""

    def rehearse(self, count: int | None = None) -> list[str]:
        """Label a sample on this machine for the lines of a dry run; nothing where that takes no model.

        With `count`, so many groups of each task, of which a report tells whether they can be trusted.
        """
        return [] if count is None else [f"label.teacher {self.config.label.teacher!r} has nothing to try: no sample"]

    @abstractmethod
    def run(self) -> Labels:
        """Commit the labels that are missing."""


def teacher_of(config: RunConfig) -> Teacher:
    """The teacher that `label.teacher` names; `label.recompute` stands for the LLM, which is then not asked."""
    if config.label.teacher == "imported":
        return ImportedTeacher(config)
    if config.label.recompute:
        return RecomputingTeacher(config)
    return RerankerTeacher(config) if config.label.teacher == "reranker" else LlmTeacher(config)


def needed_llm(config: RunConfig, tasks: set[str]) -> LlmConfig | None:
    """The run file's `llm` section, without which a run has no rewards but imported ones.

    Raises:
        ConfigError: one of the tasks has a reward, and there is no such section, or an LLM that cannot give it.
    """
    rewarded = sorted(task for task in tasks if config.tasks[task].reward != "none")
    if config.label.teacher == "imported":
        return config.llm
    if rewarded and config.llm is None:
        raise ConfigError(f"the run file has no `llm` section, but tasks {rewarded} have a reward; name the LLM")
    scored = [task for task in rewarded if config.tasks[task].reward != "judgement"]
    if scored and config.llm and config.llm.endpoint and config.llm.endpoint.interface == "chat":
        raise ConfigError(
            f"llm.endpoint.interface is 'chat', which tells no log-likelihoods of prompts, but tasks {scored} need "
            "them; set their reward to judgement, or use a server with completions (docs/engines.md)"
        )
    return config.llm


class LlmTeacher(Teacher):
    """The LLM labels every group of a task with a reward."""

    @cached_property
    def provenance(self) -> LabelProvenance:
        """What the LLM's labels depend on; kept, because the weights of the LLM are hashed for it."""
        return label_provenance(self.config, label_pools(self.config))

    def selected(self) -> RowIds | None:
        """The groups that the LLM labels; None: all of them."""
        return None

    def survey(self) -> Survey:
        """What the LLM has to label and what of it is done."""
        return survey(self.config, llm_ledger(self.config.paths), self.config.label.block_rows, self.selected())

    def check(self) -> Work:
        check_provenance(self.config, self.provenance)
        work = self.survey()
        llm = needed_llm(self.config, set(work.tasks))
        for task, ahead in work.tasks.items():
            if self.config.tasks[task].reward != "none" and ahead.ahead == ahead.groups and not ahead.pairs:
                raise LabelError(
                    f"{self.config.paths.candidates}: none of the {ahead.groups:,} groups of task {task!r} has a "
                    "candidate to reward; give its sources a corpus, or rows with candidates, and run prepare and mine"
                )
        lines = [
            f"{task}: {ahead.groups:,} groups, {ahead.ahead:,} still to label ({ahead.pairs:,} pairs), reward "
            f"{self.config.tasks[task].reward_rule}"
            for task, ahead in sorted(work.tasks.items())
        ]
        lines += self._unshown_lines(set(work.tasks))
        asks = llm is not None and any(ahead.pairs for ahead in work.tasks.values())
        if llm is not None and asks:
            # Last and imported here, because torch comes with it: what can be refused without torch has been by now.
            from embedder.models.open_llm import check_open

            check_open(llm, self.config.label.gpus_per_actor)
        rewarded = {task: self.config.tasks[task] for task in work.tasks if self.config.tasks[task].reward != "none"}
        lines += check_chat(llm, {task: spec.reward_template for task, spec in rewarded.items()})
        if llm is None or not asks:
            return Work("label", lines, 0.0)
        folder, block = locate_llm(llm), work.blocks.slice(0, 1).to_pylist()[0]
        rows = read_row_group(self.config.paths.candidates / block["file"], block["row_group"])
        texts = [text for unit in block["units"] for i in unit for text in rows.groups[i]["candidate_texts"]]
        # The survey takes the rule of thumb, which is right in proportion; here the tokenizer itself is asked.
        scale = CHARACTERS_A_TOKEN / characters_a_token(folder, texts)
        tokens = scale * sum(ahead.tokens for ahead in work.tasks.values())
        if llm.endpoint is not None:
            written = sum(ahead.written for ahead in work.tasks.values())
            asked = AskedTokens(tokens, written)
            lines += server_lines(llm, llm.endpoint, asked, self._longest_output, self.config.paths.labelled)
            return Work("label", lines, 0.0, asked.together)
        from embedder.labelling.compute_cost import memory_line, multiplied_weights

        lines.append(memory_line(llm, self.config.label.gpus_per_actor))
        return Work("label", lines, forward_flops(multiplied_weights(folder), tokens), tokens)

    def _unshown_lines(self, tasks: set[str]) -> list[str]:
        """What the LLM lacks to answer by itself: no row of a dataset has an answer that it could be shown."""
        if not any(self.config.tasks[task].reward == "own_answers" for task in tasks):
            return []
        return [
            f"{dataset}: no training row has an answer, so that prompts have no worked examples; a small LLM then "
            "writes nothing of use: give its task some (tasks.NAME.worked_examples)"
            for dataset, pool in label_pools(self.config).shots.items()
            if not pool
        ]

    @property
    def _longest_output(self) -> int:
        return max(spec.max_output_tokens for spec in self.config.tasks.values() if spec.reward != "none")

    def rehearse(self, count: int | None = None) -> list[str]:
        if self.config.llm is None or not (count or self.config.label.dry_run_groups):
            return []
        from ray_jobs.labelling.rehearsal import rehearse_labelling

        return rehearse_labelling(self.config, self.config.llm, self.survey(), count)

    def run(self) -> Labels:
        config, provenance = self.config, self.provenance
        # Before the first label: a run that is cut off must not leave labels of which nobody knows what made them.
        write_provenance(config.paths, provenance)
        work = self.survey()
        if work.blocks.num_rows and config.llm is not None and config.llm.endpoint is not None:
            server = found_server(config.llm, config.llm.endpoint, self._longest_output)
            note_server(config.paths.labelled, server)
        _commit_plain(config, llm_ledger(config.paths), work, provenance.fingerprint)
        cost, rounding = None, None
        if work.blocks.num_rows and config.llm is not None:
            from ray_jobs.labelling.actors import label_with_llm
            from ray_jobs.labelling.rounding_sample import measure_rounding

            pools = label_pools(config)
            cost = label_with_llm(config, work, pools, provenance.fingerprint)
            write_provenance(config.paths, provenance)
            if config.llm.dtype == "bfloat16" and config.label.rounding_groups:
                rounding = measure_rounding(config, pools)
        return Labels(work.expected, work.before, [], cost, rounding)


def _commit_plain(config: RunConfig, ledger: Ledger, work: Survey, fingerprint: str) -> None:
    """Groups of tasks without a reward need no model: the driver commits them, a row group at a time."""
    done, tasks = ledger.row_ids(), config.tasks
    for path, number in work.plain:
        rows = read_row_group(path, number)
        plain = [position for position, group in enumerate(rows.groups) if tasks[group["task"]].reward == "none"]
        commit_missing(ledger, [rows.without_rewards(position, tasks, fingerprint) for position in plain], done)


class RerankerTeacher(LlmTeacher):
    """The LLM labels some groups, a cross-encoder learns from these, and labels all groups."""

    def selected(self) -> RowIds | None:
        settings = self.config.reranker
        if settings is None or settings.llm_groups is None:
            return None
        rows = (read_row_group(path, number) for path, number in row_groups(self.config.paths))
        groups = (group for each in rows for group in each.groups)
        return select_llm_groups(groups, settings.llm_groups, settings.seed)

    def check(self) -> Work:
        work, settings = super().check(), self.config.needed_reranker
        from embedder.training.cross_encoder import check_cross_encoder

        check_cross_encoder(settings.model, settings.max_tokens)
        return work

    def run(self) -> Labels:
        from ray_jobs.labelling.reranker import reranker_lines, score_with_reranker, train_reranker

        # The LLM's labels first, all of them: the reranker is named by a hash of the rewards that it was trained on.
        by_llm = super().run()
        missing, first = by_llm.expected.missing_from(llm_ledger(self.config.paths).row_ids())
        if missing:
            raise LabelError(f"{missing:,} of the LLM's groups are in no block, first {first}; run it again")
        model = train_reranker(self.config, llm_ledger(self.config.paths).read())
        lineage = (model / LINEAGE).read_text(encoding="utf-8")
        ledger, llm_fingerprint = labelled_ledger(self.config), self.provenance.fingerprint
        fingerprint = content_id(llm_fingerprint, lineage)[:16]
        # Scores of two rerankers have no common scale, and are soon made again.
        if _scored_by_others(ledger, fingerprint):
            remove_folder(ledger.folder)
        work = score_with_reranker(self.config, ledger, fingerprint)
        _commit_plain(self.config, ledger, work, llm_fingerprint)
        write_provenance(self.config.paths, self.provenance)
        return Labels(work.expected, by_llm.before, reranker_lines(model), by_llm.cost, by_llm.rounding)


def _scored_by_others(ledger: Ledger, fingerprint: str) -> bool:
    """Whether a ledger has labels of another reranker than that of a fingerprint."""
    tables = each_table(parquet_files(ledger.folder), LABELLED, ["reward", "label_fingerprint"])
    rows = (row for table in tables for row in table.to_pylist())
    return any(row["reward"] == "reranker" and row["label_fingerprint"] != fingerprint for row in rows)


class RecomputingTeacher(Teacher):
    """Other rewards follow from the LLM's stored log-likelihoods, without asking it again."""

    def check(self) -> Work:
        provenance = label_provenance(self.config, label_pools(self.config))
        check_provenance(self.config, provenance)
        _refuse_missing_numbers(self.config, provenance)
        return Work("label", ["rewards are recomputed from the stored log-likelihoods"], 0.0)

    def run(self) -> Labels:
        from ray_jobs.cluster.metrics import track_progress

        ledger = llm_ledger(self.config.paths)
        provenance = label_provenance(self.config, label_pools(self.config))
        # Blocks are rewritten one by one: cut off between two of them, the folder holds old and new rewards.
        mark_mixed(self.config.paths, provenance)
        ids = ledger.row_ids()
        with track_progress("recompute", ids.total) as counter:
            for count in ledger.replace(lambda block: [_recomputed(row, self.config.tasks) for row in block]):
                counter.advance(count)
        write_provenance(self.config.paths, provenance)
        return Labels(ids, ids.total, ["rewards recomputed, without the LLM"])


def _refuse_missing_numbers(config: RunConfig, provenance: LabelProvenance) -> None:
    """Refuse rewards for which the labels lack what is needed: rivals to rank among, or the numbers of tokens for sums.

    Raises:
        LabelError: there are such tasks.
    """
    known = read_provenance(config.paths)
    before = known.rewards if known else {}
    wanted = {task: config.tasks[task] for task, rule in provenance.rewards.items() if rule != before.get(task)}
    ranks = {task for task, spec in wanted.items() if spec.has_rivals and not before.get(task, "").startswith("rank")}
    sums = {task for task, spec in wanted.items() if spec.reward_sum == "sum"}
    if not ranks and not sums:
        return
    scored, have_rivals, lack_tokens = set(), set(), set()
    columns = ["task", "outputs", "output_tokens"]
    for table in each_table(parquet_files(llm_ledger(config.paths).folder), LABELLED, columns):
        for row in table.to_pylist():
            if row["outputs"] is not None:
                scored.add(row["task"])
                have_rivals |= {row["task"]} if len(row["outputs"]) > 1 else set()
                lack_tokens |= {row["task"]} if row["output_tokens"] is None else set()
    if unranked := sorted(ranks & scored - have_rivals):
        raise LabelError(f"tasks {unranked} have no other outputs to rank among; label them into another folder")
    if uncounted := sorted(sums & lack_tokens):
        raise LabelError(
            f"tasks {uncounted} were labelled before the numbers of tokens were kept, which reward_sum 'sum' needs; "
            "label them into another folder"
        )


def _recomputed(row: dict[str, Any], tasks: dict[str, TaskSpec]) -> dict[str, Any]:
    spec = tasks.get(row["task"])
    if spec is None:
        return row
    if row["scores"] is None or row["error"] is not None:
        return {**row, "reward": spec.reward}
    rewards = task_rewards(spec, row["base_scores"], row["scores"], row["output_tokens"])
    return {**row, "reward": spec.reward, "rewards": rewards}


class ImportedTeacher(Teacher):
    """Rewards that were made elsewhere and that `prepare` kept."""

    def check(self) -> Work:
        check_provenance(self.config, self.provenance())
        return Work("label", [f"rewards are the teacher_scores in {self.config.paths.queries}"], 0.0)

    def run(self) -> Labels:
        provenance = self.provenance()
        write_provenance(self.config.paths, provenance)
        expected, before = commit_imported(self.config, llm_ledger(self.config.paths), provenance.fingerprint)
        return Labels(expected, before, [])

    def provenance(self) -> LabelProvenance:
        """The scores stand for themselves: no kind of reward is made from them."""
        return LabelProvenance(imported_fingerprint(self.config.paths), {})
