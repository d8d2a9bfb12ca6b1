"""Labels that no LLM makes in this run: imported, recomputed from stored log-likelihoods, or a reranker's."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from embedder.config.run import RunConfig
from embedder.data.row_ids import RowIds
from embedder.errors import LabelError
from embedder.hashing import content_id
from embedder.labelling.rewards import group_rewards
from embedder.run.cost import Work
from embedder.run.lineage import LINEAGE
from ray_jobs.cluster.metrics import track_progress
from ray_jobs.cluster.tables import labelled_ledger, llm_ledger
from ray_jobs.labelling.imported import commit_imported, imported_fingerprint
from ray_jobs.labelling.provenance import (
    LabelProvenance,
    check_provenance,
    mark_mixed,
    read_provenance,
    write_provenance,
)
from ray_jobs.labelling.reranker import reranker_lines, score_with_reranker, train_reranker


def check_import(config: RunConfig) -> Work:
    """There are scores, and their rewards would not mix with others."""
    check_provenance(config, LabelProvenance(imported_fingerprint(config), {}))
    return Work("label", [f"rewards are the teacher_scores in {config.paths.queries}"], 0.0)


def import_rewards(config: RunConfig) -> tuple[RowIds, int]:
    """Label every group with the scores that `prepare` kept; their ids, and how many were labelled before."""
    provenance = LabelProvenance(imported_fingerprint(config), {})
    write_provenance(config, provenance)
    return commit_imported(config, llm_ledger(config), provenance.fingerprint)


def recompute_rewards(config: RunConfig, provenance: LabelProvenance) -> int:
    """Recompute every reward from the stored log-likelihoods, block by block; returns the rows.

    Raises:
        LabelError: a task wants ranks, but its outputs were never sampled.
    """
    ledger = llm_ledger(config)
    known = read_provenance(config)
    unsampled = {task for task, reward in (known.rewards if known else {}).items() if reward in {"likelihood", "lift"}}
    wanted = {task for task in unsampled if provenance.rewards.get(task) == "rank"}
    if wanted and not _has_samples(config, wanted):
        raise LabelError(
            f"tasks {sorted(wanted)} have no sampled outputs to rank among; label them into another folder"
        )
    mark_mixed(config, provenance)
    rows = 0
    with track_progress("recompute", ledger.row_ids().total) as counter:
        for count in ledger.replace(lambda block: [_recomputed(row, provenance.rewards) for row in block]):
            rows += count
            counter.advance(count)
    write_provenance(config, provenance)
    return rows


def _has_samples(config: RunConfig, tasks: set[str]) -> bool:
    ledger = llm_ledger(config)
    for table in ledger.stream(ledger.row_ids()):
        for row in table.select(["task", "outputs"]).to_pylist():
            if row["task"] in tasks and row["outputs"] and len(row["outputs"]) > 1:
                return True
    return False


def _recomputed(row: dict[str, Any], rewards: dict[str, str]) -> dict[str, Any]:
    kind = rewards.get(row["task"], row["reward"])
    if row["scores"] is None or row["error"] is not None:
        return {**row, "reward": kind}
    return {**row, "reward": kind, "rewards": group_rewards(kind, row["base_scores"], row["scores"])}


def rerank(config: RunConfig, llm_fingerprint: str) -> tuple[RowIds, list[str]]:
    """Train the cross-encoder on the LLM's rewards and let it reward every group; their ids, and lines to report."""
    model = train_reranker(config, llm_ledger(config).read())
    fingerprint = content_id(llm_fingerprint, (model / LINEAGE).read_text(encoding="utf-8"))[:16]
    expected = score_with_reranker(config, labelled_ledger(config), fingerprint)
    _pass_on_plain(config)
    return expected, reranker_lines(model)


def _pass_on_plain(config: RunConfig) -> None:
    """Groups of tasks without a reward stand in the reranker's ledger as they are."""
    ledger, llm = labelled_ledger(config), llm_ledger(config)
    known = ledger.row_ids()
    for table in llm.stream(llm.row_ids()):
        plain = table.filter(pc.equal(table["reward"], "none"))
        fresh = plain.filter(pa.array(~known.contains(plain["row_id"].to_pylist()), pa.bool_()))
        if fresh.num_rows:
            ledger.commit(fresh)
