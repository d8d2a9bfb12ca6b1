"""Asks the LLM: questions with passages in, likelihoods and written answers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import Any

from embedder.config.evaluate import EvaluateConfig, EvaluationName
from embedder.config.run import LlmConfig
from embedder.config.tasks import TaskSpec
from embedder.evaluation.base import Ask, Evaluation, Question
from embedder.evaluation.evaluations import EVALUATIONS, LONGEST_WRITTEN
from embedder.evaluation.replies import JUDGED
from embedder.labelling.backends import choose_backend
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.prompts import Prefix, PromptBuilder, Shot, ShotPools, choose_shots, prompt_builder
from embedder.labelling.sampling import Sampling
from embedder.models.llm import LanguageModel
from embedder.models.memory import apart_on_memory_error


@dataclass(frozen=True)
class _PromptedQuestion:
    """A question with the tokens that the LLM reads."""

    row: dict[str, Any]
    ask: Ask
    prefix: Prefix
    packed: PackedPrompt


class LlmJudge:
    """Answers questions with one LLM; one that cannot be answered says why in `error`."""

    def __init__(
        self,
        lm: LanguageModel,
        llm: LlmConfig,
        tasks: Mapping[str, TaskSpec],
        settings: EvaluateConfig,
        shot_pools: ShotPools,
    ) -> None:
        self.lm, self.llm, self.tasks, self.settings, self.shot_pools = lm, llm, tasks, settings, shot_pools
        self.backend = choose_backend(lm, llm, max(LONGEST_WRITTEN, settings.max_output_tokens))
        self._builders: dict[tuple[EvaluationName, str], PromptBuilder] = {}

    def judge(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows of ASKED to rows of JUDGED in the order of their ids: a pure function of the set of rows."""
        answered = {row["row_id"]: {name: row.get(name) for name in JUDGED.names} for row in rows}
        kinds: dict[tuple[EvaluationName, str], list[_PromptedQuestion]] = {}
        # In the order of their ids, because it decides which of them are read in one batch.
        for row in sorted(rows, key=lambda row: str(row["row_id"])):
            question = Question.of(row)
            prompted = self._prompt(question, answered[row["row_id"]])
            if prompted is not None:
                kinds.setdefault((question.evaluation, question.task), []).append(prompted)
        for (name, task), prompts in sorted(kinds.items()):
            answer = partial(self._answer, self._builder(EVALUATIONS[name], task))
            for prompt, reason in apart_on_memory_error(answer, prompts):
                prompt.row["error"] = reason
        return [answered[row_id] for row_id in sorted(answered)]

    def _builder(self, evaluation: Evaluation, task: str) -> PromptBuilder:
        # Kept, because it finds out only once how the LLM's tokenizer divides the template.
        if (evaluation.name, task) not in self._builders:
            spec = self.tasks[task]
            builder = prompt_builder(self.lm, spec, self.llm, evaluation.template(spec))
            limited = replace(builder, max_output_tokens=self.settings.max_output_tokens)
            self._builders[evaluation.name, task] = limited
        return self._builders[evaluation.name, task]

    def _prompt(self, question: Question, row: dict[str, Any]) -> _PromptedQuestion | None:
        """The tokens that the LLM reads; None, with the reason in the row, where nothing can be asked."""
        row["truncated"] = False
        evaluation = EVALUATIONS[question.evaluation]
        ask = evaluation.ask(question)
        builder = self._builder(evaluation, question.task)
        if ask is None or not ask.outputs or not all(builder.output(text, ask.query) for text in ask.outputs):
            row["error"] = "a desired output has no token"
            return None
        pool = self.shot_pools.get(question.dataset, []) if evaluation.uses_shots else []
        shots = choose_shots(pool, question.query, self.tasks[question.task].shots, self.settings.seed)
        prefix = fitting_prefix(builder, evaluation, question, ask.query, shots)
        if prefix.query_cut or not prefix.ids:
            row["error"] = f"the query has no token, or needs more than the {builder.max_prefix_tokens} of a prefix"
            return None
        row["truncated"] = prefix.passage_cut
        return _PromptedQuestion(row, ask, prefix, builder.pack(prefix, ask.query, ask.outputs))

    def _answer(self, builder: PromptBuilder, prompts: list[_PromptedQuestion]) -> None:
        scores = self.backend.score([prompt.packed for prompt in prompts])
        texts = self._write(builder, prompts)
        for prompt, likelihoods, text in zip(prompts, scores, texts, strict=True):
            if not all(map(isfinite, likelihoods)):
                # NaN compares as neither more nor less, so an answer would be chosen by chance.
                prompt.row["error"] = "a log-likelihood is not finite"
                continue
            prompt.row.update({"likelihoods": likelihoods, "tokens": prompt.packed.scored_tokens, "text": text})

    def _write(self, builder: PromptBuilder, prompts: list[_PromptedQuestion]) -> list[str | None]:
        """The greedy answers of those prompts that ask for one."""
        texts: list[str | None] = [None] * len(prompts)
        if not self.settings.generate_answers:
            return texts
        for length in sorted({prompt.ask.written_tokens for prompt in prompts} - {0}):
            writing = [i for i, prompt in enumerate(prompts) if prompt.ask.written_tokens == length]
            greedy = Sampling(
                num_samples=1,
                max_tokens=length,
                temperature=1.0,
                top_k=1,
                end_ids=self.lm.end_ids,
                stop=builder.template.stop,
                stop_ids=self.lm.stop_ids(builder.template.stop),
            )
            # Seeds are needed but decide nothing: of one token to choose from every draw is the same.
            drawn = self.backend.sample([prompts[i].prefix.ids for i in writing], [0] * len(writing), greedy)
            for i, samples in zip(writing, drawn, strict=True):
                texts[i] = builder.clean_sample(samples[0])
        return texts


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
