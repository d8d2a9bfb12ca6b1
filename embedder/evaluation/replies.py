"""Where the LLM's replies are kept: their table, their identity, and how they are read back. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyarrow as pa

from embedder.config.evaluate import EvaluateConfig
from embedder.config.run import LlmConfig
from embedder.config.tasks import PROMPT_FORMAT, TaskSpec
from embedder.data.ledger import Ledger
from embedder.hashing import content_id
from embedder.labelling.prompts import ShotPools
from embedder.models.fingerprint import llm_fingerprint
from embedder.storage.object_store import AnyPath

Fingerprint = Callable[[str, str], str]
"""Identity of replies by (task, dataset)."""

JUDGED = pa.schema(
    [
        *((name, pa.string()) for name in ("row_id", "evaluation", "task", "dataset", "query_id")),
        ("likelihoods", pa.list_(pa.float64())),
        ("tokens", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("truncated", pa.bool_()),
        ("error", pa.string()),
    ]
)
"""A `base.Reply` to the question of this id; `error` says why there is none, `truncated` that passages were cut or left
out to fit the prompt."""


def judge_fingerprint(
    llm: LlmConfig, tasks: Mapping[str, TaskSpec], settings: EvaluateConfig, shot_pools: ShotPools
) -> Fingerprint:
    """The fingerprint of an LLM, the templates, the worked examples and the limits."""
    model = llm_fingerprint(llm)

    def fingerprint(task: str, dataset: str) -> str:
        spec, pool = tasks[task], shot_pools.get(dataset, [])
        prompt = [spec.template and spec.template.model_dump(), spec.shots, pool, settings.seed]
        return content_id(model, PROMPT_FORMAT, prompt, settings.max_output_tokens, settings.generate_answers)

    return fingerprint


def judged_ledger(folder: AnyPath) -> Ledger:
    """The replies that were committed below a run's `evaluation` folder, of all LLMs and retrievers."""
    return Ledger(folder / "judged", JUDGED, "row_id")
