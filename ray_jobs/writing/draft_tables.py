"""The tables of questions before they are queries: what is asked, drafts, and scores; and what these depend on."""

from __future__ import annotations

import pyarrow as pa

from embedder.config.paths import Paths
from embedder.config.run import RunConfig
from embedder.config.tasks import PROMPT_FORMAT
from embedder.data.ledger import Ledger
from embedder.data.records import TEXTS
from embedder.hashing import content_id
from embedder.models.fingerprint import llm_fingerprint
from embedder.writing.question_kinds import QUESTIONS_FORMAT, builtin_examples

ASKED = pa.schema(
    [*((name, pa.string()) for name in ("row_id", "task", "dataset", "kind")), ("passage_ids", TEXTS), ("texts", TEXTS)]
)
"""Passages for which one question of a kind is written."""
DRAFT = pa.schema(
    [
        *ASKED,
        ("drafts", pa.list_(pa.struct([(name, pa.string()) for name in ("query", "output", "fault")]))),
    ]
)
"""The same with what the LLM wrote; `fault` is empty where nothing is wrong with its words."""
CHECK = pa.schema(
    [
        *ASKED,
        ("draft_id", pa.string()),
        ("query", pa.string()),
        ("output", pa.string()),
        ("other_ids", TEXTS),
        ("above", pa.int32()),
        ("rank", pa.int32()),
        ("bare", pa.float64()),
        ("own", pa.float64()),
        ("alone", pa.list_(pa.float64())),
        ("others", pa.list_(pa.float64())),
    ]
)
"""The best draft of each row with a good one, and its verdicts.OutputScores. `draft_id`: the row that it was chosen
from."""


def questions_fingerprint(config: RunConfig) -> str:
    """Identity of drafts and scores: the LLM, prompts, examples, sampling and seed; what only decides is left out."""
    llm, settings = config.needed_llm, config.needed_questions
    names = ("num_samples", "max_tokens", "temperature", "top_k", "top_p", "copied_words", "examples", "seed")
    dumped = settings.model_dump(mode="json")
    known = [
        [kind, language, [each.model_dump() for each in rows]] for (kind, language), rows in builtin_examples().items()
    ]
    templates = {name: spec.template and spec.template.model_dump() for name, spec in config.tasks.items()}
    # By the columns too, because rows of a version that knew fewer could not be read.
    columns = [DRAFT.names, CHECK.names]
    return content_id(
        columns,
        llm_fingerprint(llm),
        [dumped[name] for name in names],
        QUESTIONS_FORMAT,
        PROMPT_FORMAT,
        known,
        templates,
    )[:16]


def draft_ledger(paths: Paths, fingerprint: str) -> Ledger:
    """The committed drafts of one fingerprint."""
    return Ledger(paths.questions / fingerprint / "drafts", DRAFT, "row_id")


def check_ledger(paths: Paths, fingerprint: str) -> Ledger:
    """The committed scores of one fingerprint."""
    return Ledger(paths.questions / fingerprint / "checks", CHECK, "row_id")
