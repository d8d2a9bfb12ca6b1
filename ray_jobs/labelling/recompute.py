"""Other rewards from the LLM's stored log-likelihoods, without asking it again."""

from __future__ import annotations

from typing import Any

from embedder.config.run import RunConfig
from embedder.data.ledger import Ledger
from embedder.errors import LabelError
from embedder.labelling.rewards import group_rewards
from ray_jobs.labelling.provenance import LabelProvenance, mark_mixed, read_provenance, write_provenance


def recompute_rewards(config: RunConfig, ledger: Ledger, provenance: LabelProvenance) -> int:
    """Recompute every reward, block by block; returns the rows.

    Raises:
        LabelError: a task wants ranks, but its outputs were never sampled.
    """
    from ray_jobs.cluster.metrics import track_progress

    known = read_provenance(config.paths)
    unsampled = {task for task, reward in (known.rewards if known else {}).items() if reward in {"likelihood", "lift"}}
    wanted = {task for task in unsampled if provenance.rewards.get(task) == "rank"}
    if wanted and not _has_samples(ledger, wanted):
        raise LabelError(
            f"tasks {sorted(wanted)} have no sampled outputs to rank among; label them into another folder"
        )
    # Blocks are rewritten one by one: cut off between two of them, the folder holds old and new rewards.
    mark_mixed(config.paths, provenance)
    rows = 0
    with track_progress("recompute", ledger.row_ids().total) as counter:
        for count in ledger.replace(lambda block: [_recomputed(row, provenance.rewards) for row in block]):
            rows += count
            counter.advance(count)
    write_provenance(config.paths, provenance)
    return rows


def _has_samples(ledger: Ledger, tasks: set[str]) -> bool:
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
