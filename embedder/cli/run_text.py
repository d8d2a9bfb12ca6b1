"""The text of a run file, with a comment at each setting that a user is likely to change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from embedder.cli.found_data import FoundData
from embedder.config.paths import Pooling
from embedder.config.tasks import BUILTIN_TASKS
from embedder.writing.question_kinds import why_not_written

PASSES = 3
"""Times that the training rows are learned from."""
QUESTIONED = 300
"""Passages that an LLM writes questions for where the data has none."""
FEWEST_STEPS, MOST_STEPS = 50, 1_000
CPU_BATCH, GPU_BATCH = 16, 64
ON_GPU = "\n  dtype: bfloat16\n  batch_tokens: 32768"
MEASURED = 200
"""Queries that are kept to be measured where the data has no test file."""


@dataclass(frozen=True)
class Choices:
    """All that was asked or found."""

    work: str
    encoder: str
    pooling: Pooling
    has_instructions: bool
    """The encoder was trained with instructions."""
    llm: str | None
    gpus: int
    found: Sequence[FoundData]

    @property
    def learns(self) -> bool:
        """Tell whether there is anything to learn from."""
        return any(source.train_rows for source in self.found)

    @property
    def writes_questions(self) -> bool:
        """Tell whether the LLM writes the questions, because there is nothing else to learn from."""
        return self.llm is not None and not self.learns and not any(map(_why_not_written, self.found))

    @property
    def labels_alone(self) -> list[str]:
        """Tasks that know right passages alone, because rows have no answers or there is no LLM."""
        if self.writes_questions:
            return sorted({each.task for each in self.found if BUILTIN_TASKS[each.task].reward != "none"})
        rewarded = [each for each in self.found if BUILTIN_TASKS[each.task].reward != "none" and each.has_rows]
        return sorted({each.task for each in rewarded if self.llm is None or not each.has_answers})

    @property
    def asks_llm(self) -> bool:
        """Tell whether a task is rewarded by the LLM."""
        tasks = {each.task for each in self.found if each.train_rows}
        return any(BUILTIN_TASKS[task].reward != "none" and task not in self.labels_alone for task in tasks)


def run_text(choices: Choices) -> str:
    """The run file as YAML."""
    parts = [_head(choices), _encoder(choices)]
    if choices.asks_llm or choices.writes_questions:
        parts.append(_llm(choices))
    if choices.labels_alone:
        parts.append(_labels_alone(choices))
    parts.append(_sources(choices))
    if choices.writes_questions:
        parts.append(_questions())
    parts.append(_training(choices) if choices.learns or choices.writes_questions else _untrained(choices))
    return "\n".join(parts)


def _why_not_written(found: FoundData) -> str | None:
    return why_not_written(found.task, BUILTIN_TASKS[found.task])


def quoted(text: str) -> str:
    """A text as YAML reads it, whatever is in it."""
    return json.dumps(text, ensure_ascii=False)


def _head(choices: Choices) -> str:
    return f"""# Written by `llm-embedder init`. Every setting there is: docs/configuration.md.
# Next: llm-embedder doctor, then llm-embedder pipeline, then llm-embedder serve.
paths:
  work: {quoted(choices.work)}   # all that the run writes; also s3://bucket/run
  cache: .cache/models   # converted models, shared between runs
"""


def _encoder(choices: Choices) -> str:
    actors = choices.gpus or 2
    on_gpu = (
        f"\n  dtype: bfloat16\n  batch_tokens: 32768\n  num_actors: {actors}\n  gpus_per_actor: 1"
        if choices.gpus
        else ""
    )
    return f"""encoder:
  model: {quoted(choices.encoder)}   # where training starts: a folder, a hub name, or package:NAME/FOLDER
  pooling: {choices.pooling}   # as the model was trained: cls, mean or last
  instructions: {str(choices.has_instructions).lower()}   # true: trained with them; learned: to be taught; false: none
  max_tokens: 256   # longer texts are cut; `prepare` tells how many are{on_gpu}
"""


def _llm(choices: Choices) -> str:
    on_gpu = ON_GPU if choices.gpus else ""
    told = (
        "writes the questions: the larger, the better"
        if choices.writes_questions
        else "its feedback teaches: best the LLM that will read what is found"
    )
    label = f"label: {{num_actors: {choices.gpus}, gpus_per_actor: 1}}\n" if choices.gpus else ""
    return f"""llm:
  model: {quoted(str(choices.llm))}   # {told}{on_gpu}
{label}"""


def _labels_alone(choices: Choices) -> str:
    named = "passage that each question is written for" if choices.writes_questions else "right passages of the rows"
    told = "Learned from" if choices.learns or choices.writes_questions else "Measured by"
    lines = [f"# {told} the {named} alone, without rewards of an LLM.", "tasks:"]
    lines += [f"  {task}: {{reward: none, loss: contrastive}}" for task in choices.labels_alone]
    return "\n".join(lines) + "\n"


def _sources(choices: Choices) -> str:
    lines = ["prepare:", "  sources:"]
    for found in choices.found:
        fields = [
            f"task: {found.task}",
            f"dataset: {quoted(found.dataset)}",
            f"path: {quoted(str(found.path.absolute()))}",
        ]
        fields += [f"format: {found.format}"] if found.format != "layout" else []
        fields += [f"queries: {quoted(str(found.queries.absolute()))}"] if found.queries else []
        fields += [f"dev_queries: {MEASURED}"] if _measures_dev(choices) and found.train_rows else []
        lines.append(f"    - {{{', '.join(fields)}}}   # {found.why}{found.size}")
    return "\n".join(lines) + "\n"


def _measures_dev(choices: Choices) -> bool:
    """Tell whether a part of the training rows is kept to be measured, because no source has a test file."""
    return choices.learns and not any(found.has_test for found in choices.found)


def _questions() -> str:
    return f"""questions:   # written by the LLM, for there are none: docs/questions.md
  passages: {QUESTIONED}   # passages with a question of each kind
"""


def _training(choices: Choices) -> str:
    rows = sum(found.train_rows for found in choices.found) or QUESTIONED * len(choices.found)
    batch = GPU_BATCH if choices.gpus else CPU_BATCH
    steps = min(MOST_STEPS, max(FEWEST_STEPS, ceil(PASSES * rows / batch)))
    on_gpu = "\n  gpus_per_worker: 1\n  precision: bfloat16" if choices.gpus else ""
    split = (
        "\n  split: dev   # a part of the training rows, since there is no test file" if _measures_dev(choices) else ""
    )
    return f"""train:   # docs/tuning.md when the numbers should be better
  steps: {steps}   # {PASSES} times over the rows, but {FEWEST_STEPS} at least and {MOST_STEPS:,} at most
  batch_size: {batch}
  learning_rate: {"1.0e-5" if choices.gpus else "3.0e-5"}
  temperature: 0.05
  num_workers: {choices.gpus or 1}{on_gpu}
evaluate:   # docs/evaluation.md tells how the LLM is asked, too
  retrievers: [bm25, base, trained]{split}
"""


def _untrained(choices: Choices) -> str:
    measured = "evaluate:\n  retrievers: [bm25, base]\n" if any(found.has_test for found in choices.found) else ""
    return f"""# There are no queries to learn from, so the encoder is served as it is. To train it, let `llm-embedder
# init` write another run file, with --questions of yours or an --llm that writes some (docs/documents.md).
index:
  model: {quoted(choices.encoder)}
{measured}"""
