"""The LLM's part of an evaluation: questions with passages in, likelihoods and written answers out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch

from embedder.config.evaluate import EvaluateConfig
from embedder.config.run import LlmConfig
from embedder.config.tasks import TaskSpec
from embedder.data.ledger import Ledger
from embedder.data.records import TEXTS
from embedder.evaluation.base import Ask, Evaluation, Question, Reply
from embedder.evaluation.evaluations import EVALUATIONS
from embedder.hashing import content_id
from embedder.labelling.backends import choose_backend
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.prompts import Prefix, PromptBuilder, Shot, ShotPools, choose_shots, prompt_builder
from embedder.labelling.sampling import Sampling
from embedder.models.causal_lm import CausalLm
from embedder.models.locate import locate_model, model_fingerprint
from embedder.storage.object_store import AnyPath

LONGEST_WRITTEN = 64
"""Tokens that any evaluation lets the LLM write."""

ASKED = pa.schema(
    [
        *((name, pa.string()) for name in ("row_id", "evaluation", "task", "dataset", "query_id", "query")),
        ("answers", TEXTS),
        ("options", TEXTS),
        ("category", pa.string()),
        ("passages", pa.list_(pa.struct([("id", pa.string()), ("text", pa.string()), ("place", pa.int64())]))),
    ]
)
"""An `interface.Question`."""

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
"""An `interface.Reply` to the question of this id; `error` says why there is none, `truncated` that passages were cut
or left out to fit the prompt."""


@dataclass(frozen=True)
class _PromptedQuestion:
    """A question, and what the LLM reads."""

    row: dict[str, Any]
    ask: Ask
    prefix: Prefix
    outputs: list[list[int]]


class LlmJudge:
    """Answers questions with one LLM; one that cannot be answered says why in `error`."""

    def __init__(
        self,
        lm: CausalLm,
        llm: LlmConfig,
        tasks: Mapping[str, TaskSpec],
        settings: EvaluateConfig,
        shot_pools: ShotPools,
    ) -> None:
        self.lm, self.llm, self.tasks, self.settings, self.shot_pools = lm, llm, tasks, settings, shot_pools
        self.backend = choose_backend(lm, llm, max(LONGEST_WRITTEN, settings.max_output_tokens))

    def judge(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows of ASKED to rows of JUDGED in the order of their ids: a pure function of the set of rows."""
        answered = {row["row_id"]: self._empty(row) for row in rows}
        kinds: dict[tuple[str, str], list[_PromptedQuestion]] = {}
        for row in sorted(rows, key=lambda row: str(row["row_id"])):
            question = Question.of(row)
            prompted = self._prompt(question, answered[row["row_id"]])
            if prompted is not None:
                kinds.setdefault((question.evaluation, question.task), []).append(prompted)
        for (name, task), prompts in sorted(kinds.items()):
            self._answer(self._builder(evaluation_named(name), task), prompts)
        return [answered[row_id] for row_id in sorted(answered)]

    def _empty(self, row: Mapping[str, Any]) -> dict[str, Any]:
        known = {name: row[name] for name in ("row_id", "evaluation", "task", "dataset", "query_id")}
        return {**dict.fromkeys(JUDGED.names), **known, "truncated": False}

    def _builder(self, evaluation: Evaluation, task: str) -> PromptBuilder:
        spec = self.tasks[task]
        builder = prompt_builder(self.lm, spec, self.llm, evaluation.template(spec))
        return replace(builder, max_output_tokens=self.settings.max_output_tokens)

    def _prompt(self, question: Question, row: dict[str, Any]) -> _PromptedQuestion | None:
        """What the LLM reads; None, with the reason in the row, where nothing can be asked."""
        evaluation = evaluation_named(question.evaluation)
        ask = evaluation.ask(question)
        builder = self._builder(evaluation, question.task)
        outputs = [builder.output(text) for text in ask.outputs] if ask else []
        if ask is None or not outputs or not all(outputs):
            row["error"] = "a desired output has no token"
            return None
        prefix = fitting_prefix(builder, evaluation, question, ask.query, self._shots(evaluation, question))
        if prefix.query_cut or not prefix.ids:
            row["error"] = f"the query has no token, or needs more than the {builder.max_prefix_tokens} of a prefix"
            return None
        row["truncated"] = prefix.passage_cut
        return _PromptedQuestion(row, ask, prefix, outputs)

    def _shots(self, evaluation: Evaluation, question: Question) -> list[Shot]:
        if not evaluation.uses_shots:
            return []
        pool, count = self.shot_pools.get(question.dataset, []), self.tasks[question.task].shots
        return choose_shots(pool, question.query_id, count, self.settings.seed)

    def _answer(self, builder: PromptBuilder, prompts: list[_PromptedQuestion]) -> None:
        """Fill the rows; where that exhausts the memory, one by one."""
        try:
            scores = self.backend.score([PackedPrompt(one.prefix.ids, one.outputs) for one in prompts])
            texts = self._write(builder, prompts)
        except torch.OutOfMemoryError as error:
            if len(prompts) == 1:
                prompts[0].row["error"] = f"out of memory: {str(error).partition(chr(10))[0]}"
                return
            for one in prompts:
                self._answer(builder, [one])
            return
        for one, likelihoods, text in zip(prompts, scores, texts, strict=True):
            tokens = [len(output) for output in one.outputs]
            one.row.update({"likelihoods": likelihoods, "tokens": tokens, "text": text})

    def _write(self, builder: PromptBuilder, prompts: list[_PromptedQuestion]) -> list[str | None]:
        """The greedy answers of those prompts that ask for one."""
        texts: list[str | None] = [None] * len(prompts)
        for length in (
            sorted({one.ask.written_tokens for one in prompts} - {0}) if self.settings.generate_answers else ()
        ):
            places = [i for i, one in enumerate(prompts) if one.ask.written_tokens == length]
            greedy = Sampling(
                num_samples=1,
                max_tokens=length,
                temperature=1.0,
                top_k=1,
                end_ids=self.lm.end_ids,
                stop_ids=self.lm.stop_ids(builder.template.stop),
            )
            drawn = self.backend.sample([prompts[i].prefix.ids for i in places], [0] * len(places), greedy)
            for place, samples in zip(places, drawn, strict=True):
                texts[place] = builder.clean_sample(samples[0])
        return texts


def evaluation_named(name: str) -> Evaluation:
    """One of the evaluations."""
    return next(one for one in EVALUATIONS.values() if one.name == name)


def fitting_prefix(
    builder: PromptBuilder, evaluation: Evaluation, question: Question, query: str, shots: Sequence[Shot]
) -> Prefix:
    """The prompt with as many of the best passages as fit; the last of them loses its end where it may."""
    count = len(question.passages)
    while True:
        prefix = builder.prefix(query, evaluation.arrange(question.passages[:count]), shots)
        if count <= 1 or not evaluation.whole_passages or not prefix.passage_cut:
            return replace(prefix, passage_cut=prefix.passage_cut or count < len(question.passages))
        count -= 1


def reply_of(row: Mapping[str, Any]) -> Reply | None:
    """The reply in a row of JUDGED; None where there is none."""
    if row["likelihoods"] is None:
        return None
    return Reply(list(row["likelihoods"]), list(row["tokens"]), row["text"])


def judge_fingerprint(
    llm: LlmConfig, tasks: Mapping[str, TaskSpec], settings: EvaluateConfig, shot_pools: ShotPools
) -> Callable[[str, str], str]:
    """Identity of replies by (task, dataset): the LLM, the template, the worked examples and the limits."""
    limits = {"dtype": llm.dtype, "max_prefix_tokens": llm.max_prefix_tokens}
    model = model_fingerprint(locate_model(llm.model), limits)

    def fingerprint(task: str, dataset: str) -> str:
        spec, pool = tasks[task], shot_pools.get(dataset, [])
        prompt = [spec.template and spec.template.model_dump(), spec.shots, pool, settings.seed]
        return content_id(model, prompt, settings.max_output_tokens, settings.generate_answers)

    return fingerprint


def judged_ledger(folder: AnyPath) -> Ledger:
    """The replies that were committed below a run's `evaluation` folder, of all LLMs and retrievers."""
    return Ledger(folder / "judged", JUDGED, "row_id")
